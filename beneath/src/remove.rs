//! Removal of whole trees that somebody else has made: any depth with few descriptors and little memory, never into
//! another mount, also what was made immutable. Owns only that.

use super::{DIRECTORY, INSIDE, Root, at, name_path, resolve};
use rustix::fs::{AtFlags, Dir, FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Directories that are open at once. What lies deeper is first moved up.
const DEEPEST: usize = 32;
/// How often a directory is read again because something was left in it or came new.
const ROUNDS: usize = 64;

type Result<T> = rustix::io::Result<T>;

impl Root {
    /// Removes a name directly here with everything below it. Fine when there is none.
    ///
    /// # Errors
    /// XDEV or BUSY when something is mounted in the tree (nothing is removed through a mount); what could be removed
    /// is gone then.
    pub fn remove_tree(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let path = name.as_ref();
        let Some(name) = path.file_name().filter(|n| Path::new(n) == path) else {
            return at(path, Err(Errno::INVAL));
        };
        at(path, remove(&self.fd, name.as_encoded_bytes()))
    }
}

/// Deep trees are taken apart from above: what is deeper than the limit moves into a directory next to the tree, which
/// is removed after it in the same way.
fn remove(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let mut name = name.to_vec();
    for round in 0u64.. {
        let attic = Attic {
            dir,
            name: format!("..skiff-removing-{}-{round}", std::process::id()),
        };
        let removed = entry(dir, &name, 0, &attic);
        let filled = rustix::fs::statat(dir, &attic.name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if !filled {
            return removed;
        }
        // What could not be removed stays for another try; the attic goes in any case.
        if let Err(e) = removed {
            entry(dir, attic.name.as_bytes(), 0, &attic.next(round))?;
            return Err(e);
        }
        name = attic.name.into_bytes();
    }
    Ok(())
}

struct Attic<'a> {
    dir: &'a OwnedFd,
    name: String,
}

impl Attic<'_> {
    fn next(&self, round: u64) -> Attic<'_> {
        Attic {
            dir: self.dir,
            name: format!("{}-{round}", self.name),
        }
    }

    /// Moves a directory here under a name that is free.
    fn take(&self, from: &OwnedFd, name: &[u8]) -> Result<()> {
        match rustix::fs::mkdirat(self.dir, &self.name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        let attic = open_dir(self.dir, self.name.as_bytes())?;
        let st = rustix::fs::statat(from, name_path(name), AtFlags::SYMLINK_NOFOLLOW)?;
        let to = st.st_ino.to_string();
        retry(from, name, || {
            rustix::fs::renameat(from, name_path(name), &attic, &to)
        })
    }
}

fn open_dir(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    resolve(dir, name_path(name), DIRECTORY, 0, INSIDE)
}

fn entry(dir: &OwnedFd, name: &[u8], depth: usize, attic: &Attic<'_>) -> Result<()> {
    let unlink = retry(dir, name, || {
        rustix::fs::unlinkat(dir, name_path(name), AtFlags::empty())
    });
    match unlink {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e),
    }
    if depth >= DEEPEST {
        // An empty one needs no move.
        return match rustix::fs::unlinkat(dir, name_path(name), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::PERM) => attic.take(dir, name),
            Err(e) => Err(e),
        };
    }
    let here = match open_dir(dir, name) {
        Err(Errno::NOENT) => return Ok(()),
        r => r?,
    };
    let mut failed = Ok(());
    for _ in 0..ROUNDS {
        let cleared = clear(&here, depth, attic);
        let gone = retry(dir, name, || {
            rustix::fs::unlinkat(dir, name_path(name), AtFlags::REMOVEDIR)
        });
        match gone {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return cleared.and(Err(e)),
        }
        failed = cleared.and(Err(Errno::NOTEMPTY));
        if !matches!(failed, Err(Errno::NOTEMPTY)) {
            return failed;
        }
    }
    failed
}

/// Removes what is in a directory; the first failure, once everything was tried.
fn clear(here: &OwnedFd, depth: usize, attic: &Attic<'_>) -> Result<()> {
    let again = rustix::fs::openat(here, ".", DIRECTORY, Mode::empty())?;
    let mut result = Ok(());
    for e in Dir::new(again)? {
        let e = e?;
        let name = e.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let one = entry(here, name, depth + 1, attic);
        result = result.and(one);
    }
    result
}

/// Does it, and once more after taking away the flags that forbid it (chattr +i, +a) from the thing and its directory.
fn retry(dir: &OwnedFd, name: &[u8], act: impl Fn() -> Result<()>) -> Result<()> {
    match act() {
        Err(Errno::PERM | Errno::ACCESS) => {
            unlock(dir);
            let st = rustix::fs::statat(dir, name_path(name), AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(st.st_mode);
            if matches!(kind, FileType::RegularFile | FileType::Directory) {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
                if let Ok(fd) = resolve(dir, name_path(name), flags, 0, INSIDE) {
                    unlock(&fd);
                }
            }
            act()
        }
        r => r,
    }
}

fn unlock(fd: impl AsFd) {
    let fd = fd.as_fd();
    if let Ok(flags) = rustix::fs::ioctl_getflags(fd) {
        let locked = IFlags::IMMUTABLE | IFlags::APPEND;
        if flags.intersects(locked) {
            let _ = rustix::fs::ioctl_setflags(fd, flags.difference(locked));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// Directories in one another, deeper than any path can name.
    fn deep(at: &Root, levels: usize) {
        let mut here = at.try_clone().unwrap();
        for _ in 0..levels {
            here = here.make_dir("d", 0o755).unwrap();
            rustix::fs::mkfifoat(&here, "fifo", Mode::from_raw_mode(0o600)).unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_paths_and_descriptors_allow_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Root::open(tmp.path()).unwrap();
        let tree = root.make_dir("t", 0o755).unwrap();
        deep(&tree, 2500);
        for n in 0..3 {
            let side = tree.make_dir(format!("s{n}"), 0o700).unwrap();
            deep(&side, 200);
        }
        root.remove_tree("t").unwrap();
        assert!(root.entries().unwrap().is_empty());
    }

    #[test]
    fn links_are_removed_and_not_what_they_point_to() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("out")).unwrap();
        fs::write(tmp.path().join("out/keep"), "").unwrap();
        fs::create_dir(tmp.path().join("t")).unwrap();
        symlink("../out", tmp.path().join("t/dir")).unwrap();
        symlink("out", tmp.path().join("link")).unwrap();
        let root = Root::open(tmp.path()).unwrap();
        root.remove_tree("t").unwrap();
        root.remove_tree("link").unwrap();
        root.remove_tree("none").unwrap();
        for bad in ["..", ".", "out/keep", "/", ""] {
            assert!(root.remove_tree(bad).is_err(), "{bad:?}");
        }
        assert!(tmp.path().join("out/keep").exists());
    }

    #[test]
    fn nothing_is_removed_through_a_mount() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        for d in ["t/m", "t/n", "other"] {
            fs::create_dir_all(t.join(d)).unwrap();
        }
        fs::write(t.join("other/keep"), "").unwrap();
        fs::write(t.join("t/n/goes"), "").unwrap();
        rustix::mount::mount_bind(t.join("other"), t.join("t/m")).unwrap();
        let result = Root::open(t).unwrap().remove_tree("t");
        rustix::mount::unmount(t.join("t/m"), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(result.is_err());
        assert!(t.join("other/keep").exists() && !t.join("t/n").exists());
    }

    #[test]
    fn what_is_immutable_is_removed_too() {
        let tmp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let root = Root::open(tmp.path()).unwrap();
        let tree = root.make_dir("t", 0o755).unwrap();
        fs::write(tmp.path().join("t/f"), "").unwrap();
        let locked = tree.open_file("f").unwrap();
        if rustix::fs::ioctl_setflags(&locked, IFlags::IMMUTABLE).is_err() {
            // A file system without such flags has nothing to test.
            return;
        }
        rustix::fs::ioctl_setflags(&tree, IFlags::IMMUTABLE).unwrap();
        root.remove_tree("t").unwrap();
        assert!(root.entries().unwrap().is_empty());
    }

    #[test]
    fn links_that_are_swapped_in_meanwhile_do_not_lead_outside() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path().to_path_buf();
        fs::create_dir(t.join("out")).unwrap();
        for n in 0..50 {
            fs::write(t.join(format!("out/{n}")), "").unwrap();
        }
        let root = Root::open(&t).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                // Exchanges a directory of the tree with a link to the outside, again and again.
                let swap = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = fs::create_dir_all(t.join("t/a"));
                    let _ = fs::write(t.join("t/a/x"), "");
                    let _ = symlink("../../out", t.join("t/b"));
                    let _ = rustix::fs::renameat_with(cwd, t.join("t/a"), cwd, t.join("t/b"), swap);
                }
            });
            for _ in 0..3000 {
                let _ = root.remove_tree("t");
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(t.join("out")).unwrap().count(), 50);
    }
}
