//! Owns finding and making places inside a container's root, by descriptors: links of an image lead nowhere else, magic
//! links of /proc nowhere at all. It must not mount anything.

use super::rootfs::{StepResult, os_text};
use crate::sys;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Opens a directory of this process's root.
pub fn open_dir(p: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(
        p,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// As if the descriptor were the root directory.
pub const IN_ROOT: u64 = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;

/// What the path names, links followed inside the root; None if it is not there.
pub fn existing(root: &OwnedFd, p: &Path) -> StepResult<Option<OwnedFd>> {
    found(p, sys::openat2(root.as_fd(), p, libc::O_PATH, 0, IN_ROOT))
}

/// What the path names itself: a link at its end is not followed.
pub fn existing_no_follow(root: &OwnedFd, p: &Path) -> StepResult<Option<OwnedFd>> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    found(p, sys::openat2(root.as_fd(), p, flags, 0, IN_ROOT))
}

fn found(p: &Path, r: io::Result<OwnedFd>) -> StepResult<Option<OwnedFd>> {
    match r {
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

/// Opens (or makes) a directory on whose way there is no link: for the file systems that the runtime itself puts into a
/// container. An image whose /proc is a link, or a volume whose content somebody exchanges, must not choose their place.
pub fn ensure_plain(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let open = || {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let resolve = IN_ROOT | sys::RESOLVE_NO_SYMLINKS;
        sys::openat2(root.as_fd(), path, flags, 0, resolve)
    };
    match open() {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
            ensure(root, path, true)?;
            open()
        }
        r => r,
    }
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
