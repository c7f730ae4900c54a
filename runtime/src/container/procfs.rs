//! Owns private handles of procfs: an instance that nobody else sees, so that no mount or link of a container (or of
//! the node) can send what is written to /proc/self or /proc/sys elsewhere. It holds no policy about what is written.

use crate::sys;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What fstatfs(2) says of a procfs.
const MAGIC: i64 = 0x9fa0;
/// The inode of a procfs's root directory.
const ROOT_INO: u64 = 1;

/// True if the descriptor is on a procfs.
pub fn is_procfs(fd: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as i64 == MAGIC)
}

/// A detached mount of a new procfs instance of the caller's process namespace.
pub fn detached() -> io::Result<OwnedFd> {
    let fs = mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_set_string(fs.as_fd(), "source", "proc")?;
    mount::fsconfig_create(fs.as_fd())?;
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attrs,
    )?)
}

/// A procfs to write through.
pub struct Procfs(OwnedFd);

impl Procfs {
    /// A new instance; where that is refused (a user namespace), the node's own, after a look that it is one.
    pub fn open() -> io::Result<Self> {
        let fd = match detached() {
            Ok(fd) => fd,
            Err(_) => {
                use rustix::fs::{Mode, OFlags};
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::open("/proc", flags, Mode::empty())?
            }
        };
        if !is_procfs(&fd)? || rustix::fs::fstat(&fd)?.st_ino != ROOT_INO {
            return Err(io::Error::other("/proc is not a procfs"));
        }
        Ok(Self(fd))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Writes a file below the root in one write(2). Never crosses a mount or a magic link; `self` and `thread-self`
    /// work, because they are plain links of procfs itself.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_XDEV | sys::RESOLVE_NO_MAGICLINKS;
        let fd = sys::openat2(
            self.0.as_fd(),
            path,
            libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_NOCTTY,
            0,
            resolve,
        )?;
        if !is_procfs(&fd)? {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        let n = sys::write(fd.as_fd(), bytes)?;
        if n != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_of_procfs_is_written_to() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a procfs of its own needs root");
            return;
        }
        let p = Procfs::open().unwrap();
        let score = std::fs::read("/proc/self/oom_score_adj").unwrap();
        p.write(Path::new("self/oom_score_adj"), score.trim_ascii())
            .unwrap();
        let t = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(t.path().join("f")).unwrap();
        use std::os::fd::AsRawFd;
        for path in [
            format!("self/fd/{}", file.as_raw_fd()),
            format!("self/cwd{}", t.path().join("f").display()),
            format!("self/root{}", t.path().join("f").display()),
            format!("../..{}", t.path().join("f").display()),
            t.path().join("f").display().to_string(),
        ] {
            assert!(p.write(Path::new(&path), b"x").is_err(), "{path}");
        }
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}
