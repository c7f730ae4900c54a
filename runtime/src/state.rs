//! Owns what the runtime keeps on disk for itself: private directories, and small JSON records that are written whole or
//! not at all, without fsync. After a power loss no container runs, so nothing here needs to be durable; after a kill
//! everything written is there.
//!
//! Nothing of the node's state is for other users of the machine: a directory that they can pass through opens every
//! setuid program of an image to them (CVE-2021-41103). So directories are 0700 and files 0600, whatever the umask, and
//! what an older version left wider is narrowed at the start ([`narrow`]).

use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Files that containers see as they lie there; everybody inside may read them.
const SEEN_BY_CONTAINERS: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// Makes a directory that only its owner can enter, with its parents; one that is there is narrowed to that. A link or
/// a file in its place is an error.
pub fn private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    check_owner(&dir)?;
    restrict(&dir)
}

/// What belongs to somebody else is refused: its owner could widen it again.
fn check_owner(fd: &OwnedFd) -> io::Result<()> {
    let st = rustix::fs::fstat(fd)?;
    if st.st_uid == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("it belongs to user {}, not to this one", st.st_uid),
    ))
}

/// Takes the rights of group and others away.
fn restrict(fd: &OwnedFd) -> io::Result<()> {
    let st = rustix::fs::fstat(fd)?;
    if st.st_mode & 0o077 != 0 {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(st.st_mode & 0o7700))?;
    }
    Ok(())
}

/// Narrows a directory and `levels` levels of what is in it: directories and files lose every right of group and others,
/// but for the files that containers see. Links are not followed and mount points not entered. Leftovers of writes that
/// were cut off are removed. A directory that is not there is fine.
pub fn narrow(path: &Path, levels: u32) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => check_owner(&dir).and_then(|()| narrow_fd(&dir, levels)),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn narrow_fd(dir: &OwnedFd, levels: u32) -> io::Result<()> {
    restrict(dir)?;
    if levels == 0 {
        return Ok(());
    }
    let device = rustix::fs::fstat(dir)?.st_dev;
    for e in rustix::fs::Dir::read_from(dir)? {
        let e = e?;
        let name = e.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let at = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let Ok(st) = rustix::fs::statat(dir, name, at) else {
            continue;
        };
        if st.st_dev != device {
            continue;
        }
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match st.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY;
                narrow_fd(
                    &rustix::fs::openat(dir, name, flags, Mode::empty())?,
                    levels - 1,
                )?;
            }
            libc::S_IFREG if name.to_bytes().ends_with(b".tmp") => {
                let _ = rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty());
            }
            libc::S_IFREG
                if st.st_mode & 0o077 != 0
                    && !SEEN_BY_CONTAINERS
                        .iter()
                        .any(|n| name.to_bytes() == n.as_bytes()) =>
            {
                let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK;
                restrict(&rustix::fs::openat(dir, name, flags, Mode::empty())?)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes a directory with all in it; one that is not there is fine. A shim that is just ending may put a last record into
/// it meanwhile: then again, for two seconds at the most. Blocks.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    for left in (0..100).rev() {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && left > 0 => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => break,
        }
    }
    Ok(())
}

/// Replaces the file in one step.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write(path, &serde_json::to_vec(value).map_err(io::Error::other)?)
}

/// Replaces the file in one step.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Two writers of the same content (a cache file) must not meet in one temporary file.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let tmp = path.with_extension(format!("{n}.tmp"));
    create(&tmp, 0o600, bytes)?;
    std::fs::rename(&tmp, path)
}

/// Writes a file that containers see and everybody inside may read, whatever the umask.
pub fn write_visible(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create(path, 0o644, bytes)
}

fn create(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)
}

/// Reads a record; None when it is not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {e}", path.display()),
            )
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A fresh id as containerd makes them: 64 hexadecimal digits.
pub fn new_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(p: &Path) -> u32 {
        std::fs::metadata(p).unwrap().permissions().mode() & 0o7777
    }

    fn set(p: &Path, mode: u32) {
        std::fs::set_permissions(p, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_was_left_open_to_others_is_closed_and_links_are_not_followed() {
        let t = tempfile::tempdir().unwrap();
        let outside = t.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("f"), b"x").unwrap();
        set(&outside, 0o755);
        let dir = t.path().join("state");
        private_dir(&dir.join("pods/a")).unwrap();
        assert_eq!((mode(&dir), mode(&dir.join("pods/a"))), (0o700, 0o700));
        set(&dir, 0o755);
        set(&dir.join("pods"), 0o777);
        write_json(&dir.join("pods/a/r.json"), &1).unwrap();
        assert_eq!(mode(&dir.join("pods/a/r.json")), 0o600);
        set(&dir.join("pods/a/r.json"), 0o664);
        write_visible(&dir.join("pods/a/resolv.conf"), b"").unwrap();
        std::fs::write(dir.join("pods/a/r.7.tmp"), b"").unwrap();
        std::os::unix::fs::symlink(&outside, dir.join("pods/link")).unwrap();
        narrow(&dir, 4).unwrap();
        for d in ["", "pods", "pods/a"] {
            assert_eq!(mode(&dir.join(d)), 0o700, "{d}");
        }
        assert_eq!(mode(&dir.join("pods/a/r.json")), 0o600);
        assert_eq!(mode(&dir.join("pods/a/resolv.conf")), 0o644);
        assert!(!dir.join("pods/a/r.7.tmp").exists());
        assert_eq!(mode(&outside), 0o755);
        assert!(private_dir(&dir.join("pods/link")).is_err());
        assert!(private_dir(&dir.join("pods/a/r.json")).is_err());
        narrow(&dir.join("is-not-there"), 3).unwrap();
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let t = tempfile::tempdir().unwrap();
        let theirs = t.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
        assert!(private_dir(&theirs).is_err());
    }
}
