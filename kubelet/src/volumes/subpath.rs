//! subPath: one file or directory of a volume, resolved so that nothing in the volume can lead outside it (upstream
//! pkg/volume/util/subpath, CVE-2017-1002101, CVE-2021-25741). Owns the bind mounts at `pods/<uid>/volume-subpaths`:
//! what was looked up is a descriptor, and that descriptor is what is mounted.

use super::place::PRIVATE;
use super::tear_down::take_down;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use skiff_beneath::{Attributes, Root};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Bind mounts `volume/sub_path` at `target` below the pod's directory. A missing path is made as directories, unless
/// `make` is off.
///
/// # Errors
/// A path that leaves the volume (also through symlinks), or the file system's error.
pub fn bind(
    volume: &Path,
    sub_path: &str,
    pod: &Root,
    target: &Path,
    make: bool,
) -> Result<(), String> {
    let relative = Path::new(sub_path);
    if relative.is_absolute()
        || relative
            .components()
            .any(|c| matches!(c, Component::ParentDir))
    {
        return Err(format!(
            "subPath {sub_path:?} must be relative and must not contain '..'"
        ));
    }
    let root = openat(
        CWD,
        volume,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| format!("{}: {e}", volume.display()))?;
    let fd = match open_inside(&root, relative, OFlags::PATH) {
        Err(Errno::NOENT) if make => {
            make_dirs(&root, relative)
                .map_err(|e| format!("failed to create subPath directory {sub_path:?}: {e}"))?;
            open_inside(&root, relative, OFlags::PATH)
        }
        r => r,
    };
    let fd = fd.map_err(|e| match e {
        Errno::XDEV => format!("subPath {sub_path:?} leads outside the volume"),
        e => format!("subPath {sub_path:?}: {e}"),
    })?;
    mount(&fd, pod, target).map_err(|e| format!("binding subPath {sub_path:?}: {e}"))
}

fn mount(fd: &OwnedFd, pod: &Root, target: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = is_directory(rustix::fs::fstat(fd)?.st_mode);
    let parent = pod.make_dirs(parent, PRIVATE)?;
    // Leftovers of a container that was never started.
    for _ in 0..16 {
        if take_down(&parent, Path::new(name)).is_err() {
            break;
        }
    }
    match parent.stat_at(name) {
        Ok(st) if is_directory(st.st_mode) == directory => {}
        Ok(_) => parent.remove_tree(name)?,
        Err(_) => {}
    }
    if parent.stat_at(name).is_err() {
        if directory {
            parent.make_dir(name, PRIVATE)?;
        } else {
            parent.write_new(name, b"", Attributes::default())?;
        }
    }
    let point = openat(
        &parent,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(fd.as_fd(), "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), "", point.as_fd(), "", flags)?)
}

fn is_directory(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::Directory
}

/// Links are followed as long as they stay in the volume: users have those.
fn open_inside(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        // AGAIN: something was renamed while a `..` was resolved.
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 100 => tries += 1,
            r => return r,
        }
    }
}

/// Directories with the volume's own permissions (upstream doSafeMakeDir), so that whoever may use the volume may use
/// them.
fn make_dirs(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let mode = rustix::fs::fstat(root)?.st_mode & 0o7777;
    let mut so_far = PathBuf::new();
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let below = so_far.join(name);
        match open_inside(root, &below, OFlags::PATH) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let parent = open_inside(root, &so_far, OFlags::RDONLY | OFlags::DIRECTORY)?;
                Root::from(parent).make_dir(name, mode)?;
            }
            Err(e) => return Err(e.into()),
        }
        so_far = below;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Setting {
        tmp: tempfile::TempDir,
        pod: Root,
    }

    impl Setting {
        fn new() -> Self {
            let tmp = tempfile::tempdir().unwrap();
            for d in ["v/in", "pod", "host/dir"] {
                fs::create_dir_all(tmp.path().join(d)).unwrap();
            }
            fs::write(tmp.path().join("host/dir/secret"), "host").unwrap();
            let pod = Root::open(tmp.path().join("pod")).unwrap();
            Self { tmp, pod }
        }

        fn bind(&self, sub_path: &str, make: bool) -> Result<PathBuf, String> {
            let target = Path::new("s/0");
            bind(
                &self.tmp.path().join("v"),
                sub_path,
                &self.pod,
                target,
                make,
            )?;
            Ok(self.tmp.path().join("pod").join(target))
        }
    }

    impl Drop for Setting {
        fn drop(&mut self) {
            super::super::tear_down::remove(&self.tmp.path().join("pod")).unwrap();
        }
    }

    #[test]
    fn a_link_that_leads_outside_is_refused_and_missing_directories_are_made() {
        let s = Setting::new();
        let v = s.tmp.path().join("v");
        symlink("/etc", v.join("out")).unwrap();
        symlink("../host", v.join("out2")).unwrap();
        symlink("in", v.join("fine")).unwrap();
        symlink("gone", v.join("dangling")).unwrap();
        symlink("/proc/self/root", v.join("magic")).unwrap();
        for bad in [
            "out",
            "out/passwd",
            "out2/dir",
            "../host",
            "/etc",
            "magic",
            "dangling",
        ] {
            assert!(s.bind(bad, true).is_err(), "{bad}");
        }
        assert!(!v.join("gone").exists());
        fs::write(v.join("in/f"), "inside").unwrap();
        let at = s.bind("fine/f", false).unwrap();
        assert_eq!(fs::read_to_string(at).unwrap(), "inside");
        let at = s.bind("fine", false).unwrap();
        assert!(
            at.join("f").exists(),
            "a directory takes the place of a file"
        );
        assert!(s.bind("none", false).is_err() && !v.join("none").exists());
        fs::set_permissions(&v, fs::Permissions::from_mode(0o2777)).unwrap();
        s.bind("a/b/c", true).unwrap();
        let mode = fs::metadata(v.join("a/b/c")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o2777, "as the volume's own");
    }

    /// Two containers share a volume: one has the subPath, the other exchanges it for a link again and again.
    #[test]
    fn a_neighbour_that_swaps_links_in_never_shows_the_host() {
        let s = Setting::new();
        let t = s.tmp.path().to_path_buf();
        fs::create_dir_all(t.join("v/x/dir")).unwrap();
        symlink("../host", t.join("v/y")).unwrap();
        let host = fs::metadata(t.join("host/dir")).unwrap();
        let stop = AtomicBool::new(false);
        let mut bound = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let swap = rustix::fs::RenameFlags::EXCHANGE;
                while !stop.load(Ordering::Relaxed) {
                    let _ = rustix::fs::renameat_with(CWD, t.join("v/x"), CWD, t.join("v/y"), swap);
                    let _ = fs::create_dir(t.join("v/x/dir"));
                }
            });
            for _ in 0..2000 {
                if let Ok(at) = s.bind("x/dir", true) {
                    bound += 1;
                    assert!(!at.join("secret").exists(), "the host shows");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(bound > 0);
        let after = fs::metadata(t.join("host/dir")).unwrap();
        assert_eq!((host.mode(), host.ino()), (after.mode(), after.ino()));
        assert_eq!(fs::read_dir(t.join("host")).unwrap().count(), 1);
    }
}
