//! Regular files beneath a root: read up to a limit, written anew, overwritten in place. Owns opening them so that
//! nothing else than a regular file is ever opened.

use super::{ACROSS, INSIDE, Root, at, resolve};
use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// Owner and mode of a file that is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid, sticky.
    pub mode: u32,
    /// None: whoever makes it.
    pub user: Option<u32>,
    /// None: whoever makes it.
    pub group: Option<u32>,
}

/// Opens what is there only once it is known to be a regular file: opening a FIFO blocks, and opening a device can
/// act. Reopening through /proc takes the very inode that was looked at.
fn open_regular(
    dir: impl AsFd,
    path: &Path,
    flags: OFlags,
    how: ResolveFlags,
) -> rustix::io::Result<File> {
    let found = resolve(dir, path, OFlags::PATH | OFlags::NOFOLLOW, 0, how)?;
    let st = rustix::fs::fstat(&found)?;
    match FileType::from_raw_mode(st.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        FileType::Symlink => return Err(Errno::LOOP),
        _ => return Err(Errno::INVAL),
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(again, flags, Mode::empty())?.into())
}

fn not_regular(path: &Path, e: Errno) -> io::Error {
    match e {
        Errno::INVAL => io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{}: not a regular file", path.display()),
        ),
        e => at::<()>(path, Err(e)).unwrap_err(),
    }
}

impl Root {
    /// Opens a regular file below for reading.
    ///
    /// # Errors
    /// A link, a FIFO, a device, a directory; or as [`Root::dir`].
    pub fn open_file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        open_regular(&self.fd, path, OFlags::RDONLY, INSIDE).map_err(|e| not_regular(path, e))
    }

    /// The same for a file that may be mounted there, or be in something mounted there.
    ///
    /// # Errors
    /// As [`Root::open_file`].
    pub fn open_file_across(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        open_regular(&self.fd, path, OFlags::RDONLY, ACROSS).map_err(|e| not_regular(path, e))
    }

    /// The content of a regular file below that has at most `limit` bytes.
    ///
    /// # Errors
    /// A larger file; or as [`Root::open_file`].
    pub fn read(&self, path: impl AsRef<Path>, limit: usize) -> io::Result<Vec<u8>> {
        let path = path.as_ref();
        let out = read_start(self.open_file(path)?, limit.saturating_add(1))?;
        if out.len() > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{}: larger than {limit} bytes", path.display()),
            ));
        }
        Ok(out)
    }

    /// Makes a file directly here that was not there, with its content.
    ///
    /// # Errors
    /// EXIST when the name is taken, by whatever.
    pub fn write_new(
        &self,
        name: impl AsRef<Path>,
        data: &[u8],
        attributes: Attributes,
    ) -> io::Result<()> {
        let name = name.as_ref();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mut file = File::from(at(name, resolve(&self.fd, name, flags, 0o600, INSIDE))?);
        file.write_all(data)?;
        set(&file, attributes)
    }

    /// Opens a regular file directly here to write at its end, or makes it with this mode.
    ///
    /// # Errors
    /// As [`Root::open_file`].
    pub fn append(&self, name: impl AsRef<Path>, mode: u32) -> io::Result<File> {
        let name = name.as_ref();
        let end = OFlags::WRONLY | OFlags::APPEND;
        let new = end | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let made = match open_regular(&self.fd, name, end, INSIDE) {
            Err(Errno::NOENT) => match resolve(&self.fd, name, new, mode, INSIDE) {
                // Somebody was faster.
                Err(Errno::EXIST) => open_regular(&self.fd, name, end, INSIDE),
                r => r.map(File::from),
            },
            r => r,
        };
        made.map_err(|e| not_regular(name, e))
    }

    /// Overwrites a regular file directly here in place, or makes it: for files that are bind mounted elsewhere. Only a
    /// new one gets the attributes.
    ///
    /// # Errors
    /// As [`Root::open_file`].
    pub fn overwrite(
        &self,
        name: impl AsRef<Path>,
        data: &[u8],
        attributes: Attributes,
    ) -> io::Result<()> {
        let name = name.as_ref();
        match open_regular(&self.fd, name, OFlags::WRONLY, INSIDE) {
            Ok(mut file) => {
                file.write_all(data)?;
                file.set_len(data.len() as u64)
            }
            Err(Errno::NOENT) => self.write_new(name, data, attributes),
            Err(e) => Err(not_regular(name, e)),
        }
    }
}

/// chown takes setuid and setgid away, so the mode comes last.
fn set(file: &File, a: Attributes) -> io::Result<()> {
    if a.user.is_some() || a.group.is_some() {
        rustix::fs::fchown(file, a.user.map(Uid::from_raw), a.group.map(Gid::from_raw))?;
    }
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(a.mode))?)
}

/// At most `limit` bytes of a file. Memory grows with what is read, not with what the file says of its size.
pub(crate) fn read_start(file: File, limit: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    file.take(limit as u64).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const PLAIN: Attributes = Attributes {
        mode: 0o640,
        user: None,
        group: None,
    };

    #[test]
    fn only_regular_files_are_opened_and_only_up_to_the_limit() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Root::open(tmp.path()).unwrap();
        root.write_new("f", b"12345", PLAIN).unwrap();
        assert_eq!(root.read("f", 5).unwrap(), b"12345");
        assert_eq!(
            root.read("f", 4).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        let fifo = Mode::from_raw_mode(0o666);
        rustix::fs::mkfifoat(&root, "fifo", fifo).unwrap();
        symlink("f", tmp.path().join("link")).unwrap();
        symlink("/dev/zero", tmp.path().join("zero")).unwrap();
        fs::create_dir(tmp.path().join("dir")).unwrap();
        for bad in ["fifo", "link", "zero", "dir", "none", "../f"] {
            assert!(root.read(bad, 9).is_err(), "{bad}");
            assert!(
                bad == "none" || root.overwrite(bad, b"x", PLAIN).is_err(),
                "{bad}"
            );
            assert!(bad == "none" || root.append(bad, 0o600).is_err(), "{bad}");
            assert!(
                bad == "none" || root.write_new(bad, b"x", PLAIN).is_err(),
                "{bad}"
            );
        }
        assert_eq!(fs::read(tmp.path().join("f")).unwrap(), b"12345");
    }

    #[test]
    fn a_sparse_file_costs_only_the_limit() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Root::open(tmp.path()).unwrap();
        let big = File::create(tmp.path().join("big")).unwrap();
        big.set_len(1 << 40).unwrap();
        assert_eq!(
            root.read("big", 100).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        let out = read_start(root.open_file("big").unwrap(), 100).unwrap();
        assert!(out.len() == 100 && out.capacity() < 1 << 16);
    }

    #[test]
    fn overwriting_keeps_the_file_and_its_mode_and_shortens_it() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Root::open(tmp.path()).unwrap();
        root.overwrite("f", b"a long text", PLAIN).unwrap();
        let before = fs::metadata(tmp.path().join("f")).unwrap();
        assert_eq!(before.permissions().mode() & 0o7777, 0o640);
        root.overwrite(
            "f",
            b"short",
            Attributes {
                mode: 0o777,
                ..PLAIN
            },
        )
        .unwrap();
        root.append("f", 0o600).unwrap().write_all(b"er").unwrap();
        root.append("g", 0o600).unwrap().write_all(b"new").unwrap();
        assert_eq!(root.read("f", 9).unwrap(), b"shorter");
        assert_eq!(root.read("g", 9).unwrap(), b"new");
        let after = fs::metadata(tmp.path().join("f")).unwrap();
        assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    }
}
