//! subPath: one file or directory of a volume, resolved so that nothing in the volume can lead outside it (upstream
//! pkg/volume/util/subpath, CVE-2017-1002101). Owns the bind mounts at `pods/<uid>/volume-subpaths`.

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::mount::mount_bind;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Bind mounts `volume/sub_path` at `target` and answers `target`. A missing path is made as directories, unless the
/// volume is read-only.
///
/// # Errors
/// A path that leaves the volume (also through symlinks), or the file system's error.
pub fn bind(
    volume: &Path,
    sub_path: &str,
    target: &Path,
    read_only: bool,
) -> Result<PathBuf, String> {
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
    let root = openat(CWD, volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| format!("{}: {e}", volume.display()))?;
    let fd = match open_beneath(&root, relative) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT) if !read_only => {
            make_dirs(&root, relative)
                .map_err(|e| format!("failed to create subPath directory {sub_path:?}: {e}"))?;
            open_beneath(&root, relative).map_err(|e| format!("subPath {sub_path:?}: {e}"))?
        }
        Err(rustix::io::Errno::XDEV) => {
            return Err(format!("subPath {sub_path:?} leads outside the volume"));
        }
        Err(e) => return Err(format!("subPath {sub_path:?}: {e}")),
    };
    let is_dir = rustix::fs::fstat(&fd)
        .map(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir())
        .map_err(|e| e.to_string())?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))?;
    }
    // A leftover of a container that was never started.
    let _ = rustix::mount::unmount(
        target,
        rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW,
    );
    if is_dir {
        fs::create_dir_all(target).map_err(|e| format!("{}: {e}", target.display()))?;
    } else {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(target)
            .map_err(|e| format!("{}: {e}", target.display()))?;
    }
    let from = format!("/proc/self/fd/{}", fd.as_raw_fd());
    mount_bind(from.as_str(), target).map_err(|e| format!("binding subPath {sub_path:?}: {e}"))?;
    Ok(target.to_path_buf())
}

fn open_beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Directories with the volume's own permissions (upstream doSafeMakeDir), so that whoever may use the volume may use
/// them.
fn make_dirs(root: &OwnedFd, path: &Path) -> Result<(), rustix::io::Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(root)?.st_mode & 0o7777);
    let mut so_far = PathBuf::new();
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let parent = open_beneath(root, &so_far)?;
        match mkdirat(&parent, name, mode) {
            Ok(()) => {
                // The umask has taken bits away. Only what was just made, never what a link leads to.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(&parent, name, flags, Mode::empty())?;
                rustix::fs::fchmod(&made, mode)?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        so_far.push(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_that_leads_outside_is_refused_and_missing_directories_are_made() {
        let tmp = std::env::temp_dir().join(format!("skiff-sp-{}", rand::random::<u64>()));
        fs::create_dir_all(tmp.join("v/in")).unwrap();
        std::os::unix::fs::symlink("/etc", tmp.join("v/out")).unwrap();
        std::os::unix::fs::symlink("../../etc", tmp.join("v/out2")).unwrap();
        std::os::unix::fs::symlink("in", tmp.join("v/fine")).unwrap();
        let root = openat(CWD, tmp.join("v"), OFlags::PATH, Mode::empty()).unwrap();
        assert!(open_beneath(&root, Path::new("fine")).is_ok());
        for bad in ["out", "out/passwd", "out2"] {
            assert_eq!(
                open_beneath(&root, Path::new(bad)).unwrap_err(),
                rustix::io::Errno::XDEV,
                "{bad}"
            );
            assert!(bind(&tmp.join("v"), bad, &tmp.join("t"), false).is_err());
        }
        assert!(bind(&tmp.join("v"), "../v", &tmp.join("t"), false).is_err());
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(tmp.join("v"), fs::Permissions::from_mode(0o2777)).unwrap();
        make_dirs(&root, Path::new("a/b/c")).unwrap();
        let mode = fs::metadata(tmp.join("v/a/b/c"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o2777, "as the volume's own");
        fs::remove_dir_all(tmp).unwrap();
    }
}
