//! Owns what container creation needs of an image: lower directories, config, the overlay mount, users by name.
//! Must not create containers or keep state: the store's holds do that.

use super::config::ImageConfig;
use super::error::IoContext;
use super::store::ImageRecord;
use super::{ImageError, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An image ready to be run, and held: its layers stay on disk until [`super::ImageStore::release`].
#[derive(Debug, Clone)]
pub struct ImageRootfs {
    pub image: Arc<ImageRecord>,
    pub config: ImageConfig,
    /// Absolute paths for overlayfs, top layer first, never empty (an image without layers gets an empty directory).
    pub lowerdirs: Vec<PathBuf>,
}

/// How to mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct OverlayOptions {
    pub read_only: bool,
    /// Never sync the upper directory: faster, but it must be thrown away after a crash of the machine.
    pub volatile: bool,
    /// Keep the upper directory free of redirects and metadata-only copies, so that it can be read as a layer.
    pub plain_upper: bool,
}

/// Mount an overlay at `target`. `lowerdirs` is top first. `upper` and `work` must be on one file system.
///
/// Uses the mount API of Linux 5.2 with `lowerdir+` (no 4096 byte limit for options); before 6.5, which lacks it, mount(2)
/// with directories named through /proc/self/fd so that the one string stays short.
pub fn mount_overlay(
    lowerdirs: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
    options: OverlayOptions,
) -> Result<()> {
    if overlay_is_old() {
        return mount_old(lowerdirs, upper, work, target, options);
    }
    let fd = overlay_fd(lowerdirs, Some((upper, work)), options)?;
    rustix::mount::move_mount(
        fd.as_fd(),
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .what(|| format!("mount overlay at {}", target.display()))
}

/// True before kernel 6.5, whose overlayfs takes one string of options and finds out at the mount what it cannot read.
/// Such a context accepts every option at first, also one that does not exist.
fn overlay_is_old() -> bool {
    static OLD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *OLD.get_or_init(|| {
        rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).is_ok_and(|fs| {
            rustix::mount::fsconfig_set_string(fs.as_fd(), "skiff-no-such-option", "x").is_ok()
        })
    })
}

/// Lower directories as one short option value, valid while the descriptors live.
fn named_by_descriptor(lowerdirs: &[PathBuf]) -> Result<(String, Vec<OwnedFd>)> {
    let (mut joined, mut held) = (String::new(), Vec::new());
    for l in lowerdirs {
        let fd = rustix::fs::open(
            l.as_path(),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .what(|| format!("open {}", l.display()))?;
        if !joined.is_empty() {
            joined.push(':');
        }
        joined.push_str(&format!("/proc/self/fd/{}", fd.as_raw_fd()));
        held.push(fd);
    }
    Ok((joined, held))
}

/// mount(2) for old kernels: fsconfig(2) takes values of 255 bytes only, too short for more than a dozen layers.
fn mount_old(
    lowerdirs: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
    options: OverlayOptions,
) -> Result<()> {
    let (mut data, mut held) = named_by_descriptor(lowerdirs)?;
    data.insert_str(0, "index=off,lowerdir=");
    for (key, dir) in [("upperdir", upper), ("workdir", work)] {
        let (name, fds) = named_by_descriptor(&[dir.to_path_buf()])?;
        data.push_str(&format!(",{key}={name}"));
        held.extend(fds);
    }
    if options.plain_upper {
        data.push_str(",redirect_dir=off,metacopy=off");
    }
    if options.volatile {
        data.push_str(",volatile");
    }
    let flags = if options.read_only {
        rustix::mount::MountFlags::RDONLY
    } else {
        rustix::mount::MountFlags::empty()
    };
    let data =
        std::ffi::CString::new(data).map_err(|_| ImageError::Invalid("a NUL in a path".into()))?;
    rustix::mount::mount("overlay", target, "overlay", flags, Some(data.as_c_str()))
        .what(|| format!("mount overlay at {}", target.display()))
}

/// An overlay that is mounted nowhere: it lives as long as the descriptor and can be walked with `openat`.
/// Without `upper` it is read-only; then at least two lower directories are needed (overlayfs' rule).
pub fn overlay_fd(
    lowerdirs: &[PathBuf],
    upper_work: Option<(&Path, &Path)>,
    options: OverlayOptions,
) -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| {
        ImageError::io(
            "overlayfs is not usable on this machine (load it with `modprobe overlay`, and run as root)",
            e,
        )
    })?;
    let fail = |what: String, e: rustix::io::Errno| {
        let log = kernel_log(&fs);
        ImageError::io(
            if log.is_empty() {
                what
            } else {
                format!("{what} (kernel: {log})")
            },
            e,
        )
    };
    let set = |key: &str, value: &Path| {
        rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)
            .map_err(|e| fail(format!("overlay option {key}={}", value.display()), e))
    };
    let mut held: Vec<OwnedFd> = Vec::new();
    if overlay_is_old() {
        let (joined, fds) = named_by_descriptor(lowerdirs)?;
        held.extend(fds);
        set("lowerdir", Path::new(&joined))?;
    } else {
        for l in lowerdirs {
            set("lowerdir+", l)?;
        }
    }
    if let Some((upper, work)) = upper_work {
        set("upperdir", upper)?;
        set("workdir", work)?;
    }
    // containerd turns the inode index off as well: it makes a lower directory belong to one mount only.
    set("index", Path::new("off"))?;
    if options.plain_upper {
        set("redirect_dir", Path::new("off"))?;
        set("metacopy", Path::new("off"))?;
    }
    if options.volatile {
        rustix::mount::fsconfig_set_flag(fs.as_fd(), "volatile")
            .map_err(|e| fail("overlay option volatile".into(), e))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(|e| {
        let what = upper_work.map_or("read-only overlay".into(), |(u, _)| {
            format!("overlay with upper {}", u.display())
        });
        fail(what, e)
    })?;
    let attr = if options.read_only {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)
        .map_err(|e| fail("overlay mount".into(), e))
}

/// What the kernel said about a failed mount: a file system context can be read for its messages.
fn kernel_log(fs: &OwnedFd) -> String {
    let mut out = Vec::new();
    let mut buf = [0u8; 512];
    while let Ok(n) = rustix::io::read(fs, &mut buf) {
        if n == 0 || out.len() > 16 {
            break;
        }
        let line = String::from_utf8_lossy(&buf[..n]);
        // "e overlay: text": the letter is the severity.
        out.push(
            line.trim()
                .trim_start_matches(['e', 'w', 'i'])
                .trim()
                .to_owned(),
        );
    }
    out.join("; ")
}

/// A user of a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Groups of /etc/group that list the user, without `gid`; what CRI calls the groups "defined in the image".
    pub additional_gids: Vec<u32>,
    /// Empty when the user is not in /etc/passwd.
    pub name: String,
    /// Home directory, `/` when the user is not in /etc/passwd.
    pub home: String,
}

/// Resolve `user[:group]` (names or numbers, empty = root) in the root file system at `root`, as runc and containerd
/// do: a number need not be in /etc/passwd (group 0 then), a name must.
pub fn lookup_user(root: &Path, spec: &str) -> Result<ResolvedUser> {
    let dir = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .what(|| format!("open {}", root.display()))?;
    lookup_user_at(&dir, spec)
}

/// [`lookup_user`] for a root file system that is open, and perhaps mounted nowhere.
pub fn lookup_user_at(root: &OwnedFd, spec: &str) -> Result<ResolvedUser> {
    lookup_user_in(
        spec,
        &read_in_root(root, "etc/passwd")?.unwrap_or_default(),
        &read_in_root(root, "etc/group")?.unwrap_or_default(),
    )
}

/// The pure part of [`lookup_user`]: over the texts of /etc/passwd and /etc/group.
pub fn lookup_user_in(spec: &str, passwd: &str, group: &str) -> Result<ResolvedUser> {
    let (user, grp) = match spec.split_once(':') {
        Some((u, g)) => (u, g),
        None => (spec, ""),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let mut out = ResolvedUser {
        home: "/".into(),
        ..Default::default()
    };
    let entry = passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        // A number matches the uid field; a name that is all digits is a number (runc's rule).
        .find(|f| {
            f.len() >= 4
                && if number.is_some() {
                    f[2].parse().ok() == number
                } else {
                    f[0] == user
                }
        });
    match (&entry, number) {
        (Some(f), _) => {
            let id = |s: &str| {
                s.parse::<u32>().map_err(|_| {
                    ImageError::Invalid(format!(
                        "/etc/passwd of the image: bad id {s:?} of user {user:?}"
                    ))
                })
            };
            out.uid = id(f[2])?;
            out.gid = id(f[3])?;
            out.name = f[0].to_owned();
            if let Some(home) = f.get(5).filter(|h| !h.is_empty()) {
                out.home = (*home).to_owned();
            }
        }
        (None, Some(n)) => out.uid = n,
        (None, None) => {
            return Err(ImageError::Invalid(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    }
    let groups: Vec<(&str, u32, &str)> = group
        .lines()
        .filter_map(|l| {
            let f: Vec<&str> = l.split(':').collect();
            (f.len() >= 3).then(|| {
                f[2].parse()
                    .ok()
                    .map(|g| (f[0], g, f.get(3).copied().unwrap_or("")))
            })?
        })
        .collect();
    if !out.name.is_empty() {
        for (_, gid, members) in &groups {
            if members.split(',').any(|m| m == out.name) && !out.additional_gids.contains(gid) {
                out.additional_gids.push(*gid);
            }
        }
    }
    if !grp.is_empty() {
        out.gid = match (grp.parse().ok(), groups.iter().find(|(n, _, _)| *n == grp)) {
            (Some(n), _) => n,
            (None, Some((_, gid, _))) => *gid,
            (None, None) => {
                return Err(ImageError::Invalid(format!(
                    "unable to find group {grp}: no matching entries in group file"
                )));
            }
        };
    }
    let gid = out.gid;
    out.additional_gids.retain(|g| *g != gid);
    Ok(out)
}

/// Read a small text file beneath `dir`; symbolic links resolve inside `dir` as in a chroot. None when it is absent.
pub fn read_in_root(dir: &OwnedFd, path: &str) -> Result<Option<String>> {
    let opened = rustix::fs::openat2(
        dir,
        path,
        // NONBLOCK: a fifo in the image must not hang us.
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let fd = match opened {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok(None);
        }
        Err(e) => return Err(ImageError::io(format!("open /{path} of the image"), e)),
    };
    let file = std::fs::File::from(fd);
    let what = || format!("read /{path} of the image");
    if !file.metadata().what(what)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(16 << 20).read_to_end(&mut bytes).what(what)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Signal number of a config's StopSignal: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; empty is SIGTERM.
pub fn parse_signal(s: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if s.is_empty() {
        return Some(15);
    }
    if let Ok(n) = s.parse::<i32>() {
        return (1..=64).contains(&n).then_some(n);
    }
    let upper = s.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // Second names that Kubernetes takes.
    let name = match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        n => n,
    };
    if let Some(i) = NAMES.iter().position(|n| *n == name) {
        return Some(i as i32 + 1);
    }
    // glibc keeps two real-time signals: RTMIN is 34, RTMAX 64.
    let n = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => 34,
        (_, Some("")) => 64,
        (Some(rest), _) => 34 + rest.strip_prefix('+')?.parse::<i32>().ok()?,
        (_, Some(rest)) => 64 - rest.strip_prefix('-')?.parse::<i32>().ok()?,
        _ => return None,
    };
    (34..=64).contains(&n).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\nbroken\nweb:x:33:33::/:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\nvideo:x:44:app\n";

    fn user(spec: &str) -> Result<ResolvedUser> {
        lookup_user_in(spec, PASSWD, GROUP)
    }

    #[test]
    fn users_resolve_by_name_and_by_number() {
        let u = user("app").unwrap();
        assert_eq!((u.uid, u.gid, u.home.as_str()), (1000, 1001, "/home/app"));
        assert_eq!(u.additional_gids, [10, 44]);
        assert_eq!(user("1000").unwrap(), u);
        assert_eq!(user("").unwrap().home, "/root");
        let u = user("4711").unwrap();
        assert_eq!((u.uid, u.gid, u.home.as_str()), (4711, 0, "/"));
        assert_eq!(user("app:video").unwrap().gid, 44);
        assert_eq!(user("app:video").unwrap().additional_gids, [10]);
        assert_eq!(user("4711:12").unwrap().gid, 12);
    }

    #[test]
    fn unknown_names_are_errors_that_name_them() {
        assert!(user("nobody").unwrap_err().to_string().contains("nobody"));
        assert!(
            user("app:nogroup")
                .unwrap_err()
                .to_string()
                .contains("nogroup")
        );
    }

    #[test]
    fn a_passwd_link_out_of_the_image_reads_nothing_of_the_host() {
        let t = tempfile::tempdir().unwrap();
        std::fs::create_dir(t.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(
            "/etc/hostname-of-nowhere/../passwd",
            t.path().join("etc/passwd"),
        )
        .unwrap();
        std::os::unix::fs::symlink("../../../../../etc/group", t.path().join("etc/group")).unwrap();
        assert_eq!(lookup_user(t.path(), "0").unwrap().name, "");
        assert!(lookup_user(t.path(), "root").is_err());
    }

    #[test]
    fn stop_signals_are_read_in_all_their_forms() {
        for (s, n) in [
            ("", 15),
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGWINCH", 28),
        ] {
            assert_eq!(parse_signal(s), Some(n), "{s}");
        }
        assert_eq!(parse_signal("SIGNOPE"), None);
        assert_eq!(parse_signal("0"), None);
    }

    #[test]
    fn an_overlay_mounts_with_more_layers_than_fit_in_one_page() {
        let t = tempfile::tempdir().unwrap();
        let mut lower = Vec::new();
        for i in 0..120 {
            let d = t
                .path()
                .join(format!("layer-with-a-rather-long-name-{i:0>60}"));
            std::fs::create_dir(&d).unwrap();
            std::fs::write(d.join(format!("f{i}")), b"x").unwrap();
            lower.push(d);
        }
        let dir = |n: &str| {
            let d = t.path().join(n);
            std::fs::create_dir(&d).unwrap();
            d
        };
        let (upper, work, target) = (dir("upper"), dir("work"), dir("target"));
        mount_overlay(&lower, &upper, &work, &target, OverlayOptions::default()).unwrap();
        let seen = std::fs::read_dir(&target).unwrap().count();
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(seen, 120);
    }
}
