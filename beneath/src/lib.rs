//! File access beneath a directory that somebody else may be changing at the same time. Owns the directory descriptor
//! [`Root`] and what is done below it; must not know what the files are for, and never takes a path for the whole way.
//!
//! Nothing here follows a symbolic link, nothing leaves the root, nothing blocks on a FIFO or opens a device, and
//! nothing enters another mount unless the function's name says `across`. What is looked at is what is changed: names
//! become descriptors once (openat2), and owners, modes and content are changed through the descriptor.

mod file;
mod remove;
mod walk;

pub use file::Attributes;
pub use walk::{Entry, Usage};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A directory, held by a descriptor.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// Nothing but names below the directory, in its own mount.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The same, but what is mounted below may be entered.
const ACROSS: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

fn resolve(
    dir: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: u32,
    how: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let mode = Mode::from_raw_mode(mode);
    let flags = flags | OFlags::CLOEXEC;
    // AGAIN: something was renamed or mounted while the kernel walked.
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(&dir, path, flags, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 100 => tries += 1,
            r => return r,
        }
    }
}

/// Says of which path the error is.
fn at<T>(path: &Path, result: rustix::io::Result<T>) -> io::Result<T> {
    result.map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("{}: {e}", path.display()))
    })
}

impl Root {
    /// Opens a directory by a path that only the caller's own side can change; links on it are followed.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = at(path, rustix::fs::openat(CWD, path, flags, Mode::empty()))?;
        Ok(Self { fd })
    }

    /// A directory below.
    ///
    /// # Errors
    /// Among the file system's: ELOOP for a link, ENOTDIR, EXDEV when the path leaves the root or enters a mount.
    pub fn dir(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let fd = at(path, resolve(&self.fd, path, DIRECTORY, 0, INSIDE))?;
        Ok(Self { fd })
    }

    /// A directory below, also one that is mounted there or in something mounted there.
    ///
    /// # Errors
    /// As [`Root::dir`].
    pub fn dir_across(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let fd = at(path, resolve(&self.fd, path, DIRECTORY, 0, ACROSS))?;
        Ok(Self { fd })
    }

    /// A directory below, made with its parents where they are missing. New ones get exactly `mode`; what was there
    /// stays as it is.
    ///
    /// # Errors
    /// As [`Root::dir`].
    pub fn make_dirs(&self, path: impl AsRef<Path>, mode: u32) -> io::Result<Self> {
        let path = path.as_ref();
        match resolve(&self.fd, path, DIRECTORY, 0, ACROSS) {
            Ok(fd) => return Ok(Self { fd }),
            Err(Errno::NOENT) => {}
            Err(e) => return at(path, Err(e)),
        }
        let mut here = self.try_clone()?;
        for name in path.components() {
            here = here.make_dir(name.as_os_str(), mode)?;
        }
        Ok(here)
    }

    /// One directory directly here, made if it is missing; a new one gets exactly `mode`, whatever the umask.
    ///
    /// # Errors
    /// As [`Root::dir`]; EXIST when somebody put another directory in the place of the new one.
    pub fn make_dir(&self, name: impl AsRef<Path>, mode: u32) -> io::Result<Self> {
        let name = name.as_ref();
        // Until its mode is set nobody else may enter.
        let first = mode & 0o700;
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(first)) {
            Err(Errno::EXIST) => return self.dir_across(name),
            r => at(name, r)?,
        }
        let made = self.dir(name)?;
        // The name may already lead to a directory that somebody moved here to have its mode changed. One that is
        // ours, closed and empty is as good as the new one.
        let st = made.stat()?;
        let closed = st.st_mode & 0o777 & !first == 0;
        if st.st_uid != rustix::process::geteuid().as_raw() || !closed || !made.is_empty()? {
            return at(name, Err(Errno::EXIST));
        }
        made.set_mode(mode | (st.st_mode & 0o2000))?;
        Ok(made)
    }

    /// The same directory, held a second time.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
        })
    }

    /// Its own owner, mode and so on.
    ///
    /// # Errors
    /// The file system's.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.fd)?)
    }

    /// What a name directly here is, without following it. A mount point answers for what is mounted.
    ///
    /// # Errors
    /// The file system's.
    pub fn stat_at(&self, name: impl AsRef<Path>) -> io::Result<Stat> {
        let name = name.as_ref();
        at(
            name,
            rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW),
        )
    }

    /// Sets the directory's own mode.
    ///
    /// # Errors
    /// The file system's.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode))?)
    }

    /// Sets the directory's own owner and group.
    ///
    /// # Errors
    /// The file system's.
    pub fn set_owner(&self, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
        let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
        Ok(rustix::fs::fchown(&self.fd, user, group)?)
    }

    /// Is something mounted on this name directly here?
    ///
    /// # Errors
    /// The file system's; NotFound when there is no such name.
    pub fn is_mount_point(&self, name: impl AsRef<Path>) -> io::Result<bool> {
        let name = name.as_ref();
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        match resolve(&self.fd, name, flags, 0, INSIDE) {
            Ok(_) => Ok(false),
            // A link does not come here: it is opened itself.
            Err(Errno::XDEV) => Ok(true),
            Err(e) => at(name, Err(e)),
        }
    }

    /// Names and kinds of what is in the directory, unsorted. For directories that containers cannot fill; others are
    /// walked.
    ///
    /// # Errors
    /// The file system's.
    pub fn entries(&self) -> io::Result<Vec<(OsString, FileType)>> {
        let mut out = Vec::new();
        for e in Dir::new(self.again()?)? {
            let e = e?;
            let name = e.file_name().to_bytes();
            if name != b"." && name != b".." {
                out.push((OsString::from_vec(name.to_vec()), e.file_type()));
            }
        }
        Ok(out)
    }

    fn is_empty(&self) -> io::Result<bool> {
        for e in Dir::new(self.again()?)? {
            if !matches!(e?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The directory with a reading position of its own.
    fn again(&self) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(&self.fd, ".", DIRECTORY, Mode::empty())
    }

    /// Makes a link directly here.
    ///
    /// # Errors
    /// EXIST when the name is taken.
    pub fn symlink(&self, target: impl AsRef<Path>, name: impl AsRef<Path>) -> io::Result<()> {
        let name = name.as_ref();
        at(name, rustix::fs::symlinkat(target.as_ref(), &self.fd, name))
    }

    /// Where a link directly here points to.
    ///
    /// # Errors
    /// INVAL when it is no link.
    pub fn read_link(&self, name: impl AsRef<Path>) -> io::Result<OsString> {
        let name = name.as_ref();
        let target = at(name, rustix::fs::readlinkat(&self.fd, name, Vec::new()))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Renames within this directory; what had the new name goes.
    ///
    /// # Errors
    /// The file system's.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        at(from, rustix::fs::renameat(&self.fd, from, &self.fd, to))
    }

    /// Renames within this directory, only to a name that is free.
    ///
    /// # Errors
    /// EXIST when the new name is taken.
    pub fn rename_new(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.fd, from, &self.fd, to, flags) {
            // A file system that cannot be told so (NFS).
            Err(Errno::INVAL | Errno::NOSYS) if self.stat_at(to).is_err() => self.rename(from, to),
            r => at(to, r),
        }
    }

    /// Removes a name directly here that is no directory. Fine when there is none.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_file(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let name = name.as_ref();
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            r => at(name, r),
        }
    }

    /// Removes an empty directory directly here.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_empty_dir(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let name = name.as_ref();
        at(
            name,
            rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR),
        )
    }

    /// A path for system calls that take no descriptor: `/proc/self/fd/N`, valid while this lives.
    pub fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Root> for OwnedFd {
    fn from(root: Root) -> Self {
        root.fd
    }
}

impl From<OwnedFd> for Root {
    /// Of a descriptor that the caller knows to be a directory, opened for reading.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

/// A name as a path, for the kernel's bytes.
fn name_path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_and_parents_lead_nowhere() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("r/d")).unwrap();
        fs::create_dir(tmp.path().join("out")).unwrap();
        symlink("../out", tmp.path().join("r/up")).unwrap();
        symlink("d", tmp.path().join("r/inside")).unwrap();
        let root = Root::open(tmp.path().join("r")).unwrap();
        assert!(root.dir("d").is_ok());
        for bad in ["up", "inside", "..", "/", "d/../.."] {
            assert!(root.dir(bad).is_err(), "{bad}");
            assert!(
                root.make_dirs(Path::new(bad).join("new"), 0o755).is_err(),
                "{bad}"
            );
        }
        assert!(!tmp.path().join("out/new").exists());
    }

    #[test]
    fn a_new_directory_has_exactly_its_mode_and_an_old_one_keeps_its_own() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Root::open(tmp.path()).unwrap();
        root.make_dirs("a/b", 0o777).unwrap();
        let mode = |p: &str| {
            fs::metadata(tmp.path().join(p))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!((mode("a"), mode("a/b")), (0o777, 0o777));
        fs::set_permissions(tmp.path().join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        root.make_dirs("a/b", 0o777).unwrap();
        assert_eq!(mode("a"), 0o700);
    }
}
