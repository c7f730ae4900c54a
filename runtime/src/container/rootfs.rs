//! Owns the container's mount namespace: overlay root, mounts, devices, masked paths. Runs in the forked child of the
//! shim, in two halves: `Prepared::new` while the node's files are still visible, `finish` after the root was changed.
//!
//! Every host path is turned into a detached mount before the root changes, and every target is resolved inside the
//! new root without magic links, so no symbolic link of an image can reach the node.

use super::spec::{
    BindMount, ContainerSpec, DeviceNode, FsMount, MountKind, MountSpec, Propagation, RootSpec,
};
use crate::images::rootfs::{self as images, OverlayOptions};
use crate::sys;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// A message for the user: which step failed, on what, and the kernel's word.
pub type StepResult<T> = Result<T, String>;

pub(crate) fn step<T>(what: impl std::fmt::Display, r: io::Result<T>) -> StepResult<T> {
    r.map_err(|e| format!("{what}: {}", os_text(&e)))
}

/// The kernel's text without Rust's "(os error n)".
pub(crate) fn os_text(e: &io::Error) -> String {
    let s = e.to_string();
    match s.find(" (os error") {
        Some(i) => s[..i].to_lowercase(),
        None => s,
    }
}

/// Mounts that are taken from the node before the root changes.
pub struct Prepared {
    /// One entry for each mount of the spec; None where the mount is made later inside the container.
    trees: Vec<Option<OwnedFd>>,
}

/// Mounts the overlay on `<dir>/rootfs`. `volatile` leaves out the sync of the whole disk at unmount: a container's
/// writable layer is never used again after its container ended, not even after a crash.
fn mount_overlay(root: &RootSpec) -> StepResult<()> {
    let options = OverlayOptions {
        volatile: true,
        plain_upper: root.plain_upper,
        ..OverlayOptions::default()
    };
    images::mount_overlay(
        &root.layers,
        &root.dir.join("upper"),
        &root.dir.join("work"),
        &root.dir.join("rootfs"),
        options,
    )
    .map_err(|e| e.to_string())
}

/// The host side of a bind mount as a detached tree with its flags already set.
fn bind_tree(b: &BindMount) -> io::Result<OwnedFd> {
    if b.create_source
        && std::fs::symlink_metadata(&b.source).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    {
        std::fs::create_dir_all(&b.source)?;
    }
    let tree = sys::open_tree_clone(libc::AT_FDCWD, &b.source, true)?;
    let propagation = match b.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        // A clone of a shared mount stays in its peer group; asking again makes an unshared one shared.
        Propagation::Bidirectional => libc::MS_SHARED,
    };
    sys::mount_setattr(tree.as_fd(), true, 0, propagation)?;
    if b.readonly || b.attrs != 0 {
        let set = b.attrs
            | if b.readonly {
                sys::MOUNT_ATTR_RDONLY
            } else {
                0
            };
        sys::mount_setattr(tree.as_fd(), b.recursive_readonly, set, 0)?;
    }
    Ok(tree)
}

impl Prepared {
    /// Enters a mount namespace of its own and takes everything the container needs from the node; then the root is
    /// the container's.
    pub fn new(spec: &ContainerSpec) -> StepResult<Self> {
        step("make a mount namespace", sys::unshare(libc::CLONE_NEWNS))?;
        let mut trees = Vec::with_capacity(spec.mounts.len());
        for m in &spec.mounts {
            trees.push(match &m.kind {
                MountKind::Bind(b) => Some(step(
                    format_args!("mount {} at {}", b.source.display(), m.target.display()),
                    bind_tree(b),
                )?),
                MountKind::Image { layers } => {
                    let tree = match layers.as_slice() {
                        [one] => sys::open_tree_clone(libc::AT_FDCWD, one, false),
                        many => images::overlay_fd(
                            many,
                            None,
                            OverlayOptions {
                                read_only: true,
                                ..OverlayOptions::default()
                            },
                        )
                        .map_err(io::Error::other),
                    };
                    let tree = step(
                        format_args!("mount an image at {}", m.target.display()),
                        tree,
                    )?;
                    step(
                        "make an image mount read-only",
                        sys::mount_setattr(tree.as_fd(), true, sys::MOUNT_ATTR_RDONLY, 0),
                    )?;
                    Some(tree)
                }
                _ => None,
            });
        }
        // From here on nothing we mount may reach the node's namespace.
        step(
            "make the mounts private",
            sys::mount("", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, ""),
        )?;
        mount_overlay(&spec.root)?;
        step(
            "enter the root",
            std::env::set_current_dir(spec.root.dir.join("rootfs")),
        )?;
        step("change the root", sys::pivot_to_cwd())?;
        Ok(Self { trees })
    }

    /// Makes the mounts inside the new root, in order.
    pub fn mount_all(&mut self, spec: &ContainerSpec, cgroups: &[CgroupMount]) -> StepResult<()> {
        let root = step("open the root", open_dir(Path::new("/")))?;
        for (m, tree) in spec.mounts.iter().zip(self.trees.drain(..)) {
            let what = m.target.display();
            match (&m.kind, tree) {
                (MountKind::Fs(fs), _) => mount_fs(&root, m, fs)?,
                (MountKind::Cgroup { readonly }, _) => mount_cgroups(&root, m, *readonly, cgroups)?,
                (_, Some(tree)) => {
                    let is_dir = step(&what, rustix::fs::fstat(&tree).map_err(io::Error::from))?
                        .st_mode
                        & libc::S_IFMT
                        == libc::S_IFDIR;
                    let target = step(
                        format_args!("make the mount point {what}"),
                        ensure(&root, &m.target, is_dir),
                    )?;
                    step(
                        format_args!("mount at {what}"),
                        sys::move_mount_to_fd(tree.as_fd(), target.as_fd()),
                    )?;
                }
                (_, None) => return Err(format!("mount at {what}: its source was not prepared")),
            }
            if m.target == Path::new("/dev") {
                make_dev(&root, &spec.devices)?;
            }
        }
        Ok(())
    }

    /// Masks and write-protects paths, then the root itself. The last changes to the tree.
    pub fn protect(&self, spec: &ContainerSpec) -> StepResult<()> {
        let root = step("open the root", open_dir(Path::new("/")))?;
        for p in &spec.readonly_paths {
            let Some(target) = existing(&root, p)? else {
                continue;
            };
            let what = format!("make {} read-only", p.display());
            let tree = step(&what, clone_of(&target))?;
            step(
                &what,
                sys::mount_setattr(tree.as_fd(), true, sys::MOUNT_ATTR_RDONLY, 0),
            )?;
            step(&what, sys::move_mount_to_fd(tree.as_fd(), target.as_fd()))?;
        }
        for p in &spec.masked_paths {
            let Some(target) = existing(&root, p)? else {
                continue;
            };
            let what = format!("mask {}", p.display());
            let is_dir = step(&what, rustix::fs::fstat(&target).map_err(io::Error::from))?.st_mode
                & libc::S_IFMT
                == libc::S_IFDIR;
            let tree = if is_dir {
                step(&what, empty_tmpfs())?
            } else {
                step(
                    &what,
                    sys::open_tree_clone(libc::AT_FDCWD, Path::new("/dev/null"), false),
                )?
            };
            step(&what, sys::move_mount_to_fd(tree.as_fd(), target.as_fd()))?;
        }
        if spec.root.readonly {
            step(
                "make the root read-only",
                sys::mount_setattr(root.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0),
            )?;
        }
        Ok(())
    }
}

fn open_dir(p: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(
        p,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn clone_of(fd: &OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    sys::open_tree_clone(fd.as_raw_fd(), Path::new(""), true)
}

fn empty_tmpfs() -> io::Result<OwnedFd> {
    use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};
    let fs = mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_set_string(fs.as_fd(), "size", "0")?;
    mount::fsconfig_create(fs.as_fd())?;
    Ok(mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?)
}

const IN_ROOT: u64 = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;

fn existing(root: &OwnedFd, p: &Path) -> StepResult<Option<OwnedFd>> {
    match sys::openat2(root.as_fd(), p, libc::O_PATH, 0, IN_ROOT) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(format!("open {}: {}", p.display(), os_text(&e))),
    }
}

/// Opens the path inside the root, making what is missing: directories (0755), and for a file mount an empty file. A
/// link that leads nowhere (/var/run to a missing /run) gets its target made, inside the root.
pub fn ensure(root: &OwnedFd, path: &Path, is_dir: bool) -> io::Result<OwnedFd> {
    ensure_within(root, path, is_dir, 40)
}

fn ensure_within(root: &OwnedFd, path: &Path, is_dir: bool, links: u32) -> io::Result<OwnedFd> {
    match sys::openat2(root.as_fd(), path, libc::O_PATH, 0, IN_ROOT) {
        Ok(fd) => return Ok(fd),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) && links > 0 => {}
        Err(e) => return Err(e),
    }
    let parts: Vec<&OsStr> = path
        .components()
        .filter_map(|c| {
            if let Component::Normal(n) = c {
                Some(n)
            } else {
                None
            }
        })
        .collect();
    let mut done = PathBuf::from("/");
    for (i, name) in parts.iter().enumerate() {
        let file = i + 1 == parts.len() && !is_dir;
        let parent = sys::openat2(
            root.as_fd(),
            &done,
            libc::O_PATH | libc::O_DIRECTORY,
            0,
            IN_ROOT,
        )?;
        let above = done.clone();
        done.push(name);
        match sys::openat2(root.as_fd(), &done, libc::O_PATH, 0, IN_ROOT) {
            Ok(_) => continue,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
        if let Ok(target) = rustix::fs::readlinkat(&parent, *name, Vec::new()) {
            let target = above.join(OsStr::from_bytes(target.to_bytes()));
            ensure_within(
                root,
                &super::build::clean(&target.to_string_lossy()),
                !file,
                links - 1,
            )?;
        } else {
            create(parent.as_fd(), name, file)?;
        }
    }
    sys::openat2(root.as_fd(), path, libc::O_PATH, 0, IN_ROOT)
}

fn create(parent: BorrowedFd<'_>, name: &OsStr, file: bool) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let r = if file {
        rustix::fs::openat(
            parent,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )
        .map(drop)
    } else {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
    };
    match r {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        r => Ok(r?),
    }
}

/// The current process's view of an O_PATH descriptor, for calls that want a path.
fn fd_path(fd: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn mount_fs(root: &OwnedFd, m: &MountSpec, fs: &FsMount) -> StepResult<()> {
    let what = format!("mount {} at {}", fs.fstype, m.target.display());
    let target = step(&what, ensure(root, &m.target, true))?;
    // /proc is not there yet when the first mounts are made, so go by the descriptor's directory instead of a path.
    let here = step(
        &what,
        rustix::process::fchdir(&target).map_err(io::Error::from),
    );
    here?;
    let mounted = sys::mount(&fs.fstype, Path::new("."), &fs.fstype, fs.flags, &fs.data);
    let _ = std::env::set_current_dir("/");
    step(&what, mounted)?;
    if fs.readonly {
        let top = step(&what, ensure(root, &m.target, true))?;
        step(
            &what,
            sys::mount_setattr(top.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0),
        )?;
    }
    Ok(())
}

pub use skiff_cgroup::CgroupMount;

fn mount_cgroups(
    root: &OwnedFd,
    m: &MountSpec,
    readonly: bool,
    cgroups: &[CgroupMount],
) -> StepResult<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RELATIME;
    let one = |target: &Path, fstype: &str, data: &str, readonly: bool| {
        let fs = FsMount {
            fstype: fstype.into(),
            flags,
            data: data.into(),
            readonly,
        };
        mount_fs(
            root,
            &MountSpec {
                target: target.to_path_buf(),
                kind: MountKind::Fs(fs.clone()),
            },
            &fs,
        )
    };
    if let [only] = cgroups
        && only.name.is_empty()
    {
        return one(&m.target, &only.fstype, "", readonly);
    }
    one(&m.target, "tmpfs", "mode=755,size=64k", false)?;
    for c in cgroups {
        // A hierarchy that cannot be mounted here (another user namespace owns it) is left out, as runc does.
        if one(&m.target.join(&c.name), &c.fstype, &c.data, readonly).is_err() {
            continue;
        }
        for link in &c.links {
            let _ = std::os::unix::fs::symlink(&c.name, m.target.join(link));
        }
    }
    if readonly {
        let top = step("open /sys/fs/cgroup", ensure(root, &m.target, true))?;
        step(
            "make /sys/fs/cgroup read-only",
            sys::mount_setattr(top.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0),
        )?;
    }
    Ok(())
}

/// Fills the fresh /dev: nodes and the usual links. The tmpfs is ours and empty, so plain paths are safe here.
fn make_dev(root: &OwnedFd, devices: &[DeviceNode]) -> StepResult<()> {
    for d in devices {
        let what = format!("make the device {}", d.path.display());
        if let Some(parent) = d.path.parent() {
            step(&what, ensure(root, parent, true))?;
        }
        let kind = if d.kind == 'b' {
            libc::S_IFBLK
        } else {
            libc::S_IFCHR
        };
        match sys::mknod(&d.path, kind | d.mode, d.major, d.minor) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(format!("{what}: {}", os_text(&e))),
        }
        step(
            &what,
            std::fs::set_permissions(&d.path, std::fs::Permissions::from_mode(d.mode)),
        )?;
        if (d.uid, d.gid) != (0, 0) {
            step(
                &what,
                std::os::unix::fs::chown(&d.path, Some(d.uid), Some(d.gid)),
            )?;
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        step(
            format_args!("link {link}"),
            std::os::unix::fs::symlink(target, link).or_else(exists_ok),
        )?;
    }
    Ok(())
}

fn exists_ok(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::AlreadyExists {
        Ok(())
    } else {
        Err(e)
    }
}

/// Opens a new pty inside the container's /dev/pts and binds it on /dev/console (as runc does for terminals).
pub fn open_pty(uid: u32) -> StepResult<(OwnedFd, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = step(
        "open /dev/pts/ptmx",
        rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).map_err(io::Error::from),
    )?;
    step(
        "unlock the terminal",
        rustix::pty::unlockpt(&master).map_err(io::Error::from),
    )?;
    let slave = step("open the terminal", sys::pty_peer(master.as_fd()))?;
    let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None);
    Ok((master, slave))
}

/// Binds the terminal on /dev/console.
pub fn bind_console(slave: &OwnedFd) -> StepResult<()> {
    let root = step("open the root", open_dir(Path::new("/")))?;
    let target = step(
        "make /dev/console",
        ensure(&root, Path::new("/dev/console"), false),
    )?;
    let path = step("name the terminal", std::fs::read_link(fd_path(slave)))?;
    let tree = step(
        "clone the terminal",
        sys::open_tree_clone(libc::AT_FDCWD, &path, false),
    )?;
    step(
        "mount /dev/console",
        sys::move_mount_to_fd(tree.as_fd(), target.as_fd()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_with_a_link_out_of_the_root_is_made_inside_it() {
        let t = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/../../outside", t.path().join("link")).unwrap();
        std::fs::create_dir(t.path().join("outside")).unwrap();
        let root = open_dir(t.path()).unwrap();
        ensure(&root, Path::new("/link/a/b"), true).unwrap();
        assert!(t.path().join("outside/a/b").is_dir());
        std::os::unix::fs::symlink("/run", t.path().join("var")).unwrap();
        ensure(&root, Path::new("/var/secrets/token"), false).unwrap();
        assert!(t.path().join("run/secrets/token").is_file());
        std::os::unix::fs::symlink("loop", t.path().join("loop")).unwrap();
        assert!(ensure(&root, Path::new("/loop/x"), true).is_err());
        ensure(&root, Path::new("/x/y/file"), false).unwrap();
        assert!(t.path().join("x/y/file").is_file());
    }
}
