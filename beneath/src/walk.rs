//! Walks through a tree that somebody else may be changing: every thing is handed over as a descriptor, directories
//! after what is in them. Owns the bounds on depth, descriptors and memory; what is done to a thing is the caller's.

use super::{DIRECTORY, INSIDE, Root, name_path, resolve};
use rustix::fs::{AtFlags, Dir, FileType, Gid, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Directories that are kept open; those above are opened again through `..` on the way back.
const OPEN: usize = 32;
/// A path of more names than this cannot be written down (PATH_MAX is 4096 bytes).
const DEEPEST: usize = 2048;
/// Bytes of names of directories that wait to be entered.
const WAITING: usize = 64 << 20;
/// Inodes with several names that are remembered.
const LINKED: usize = 1 << 20;

/// One thing of the tree.
pub struct Entry<'a> {
    fd: BorrowedFd<'a>,
    /// As it was when it was opened.
    pub stat: Stat,
}

impl Entry<'_> {
    /// Directory, file, link and so on.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Gives it to a group; a link itself, never what it points to.
    ///
    /// # Errors
    /// The file system's.
    pub fn set_group(&self, group: u32) -> io::Result<()> {
        let group = Some(Gid::from_raw(group));
        Ok(rustix::fs::chownat(
            self.fd,
            "",
            None,
            group,
            AtFlags::EMPTY_PATH,
        )?)
    }

    /// Sets the mode of anything but a link, without opening it.
    ///
    /// # Errors
    /// The file system's; INVAL for a link.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        if self.kind() == FileType::Symlink {
            return Err(Errno::INVAL.into());
        }
        // fchmod takes no O_PATH descriptor; this leads to the inode that the descriptor holds.
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        Ok(rustix::fs::chmod(
            path,
            rustix::fs::Mode::from_raw_mode(mode),
        )?)
    }
}

/// Space that a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on the disk, of each inode once.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

struct Level {
    fd: Option<OwnedFd>,
    id: (u64, u64),
    /// Names of directories that are to be entered, each ended by a NUL; the last one is next.
    waiting: Vec<u8>,
}

impl Level {
    fn next(&mut self) -> Option<Vec<u8>> {
        self.waiting.pop()?;
        let start = self
            .waiting
            .iter()
            .rposition(|b| *b == 0)
            .map_or(0, |p| p + 1);
        Some(self.waiting.split_off(start))
    }
}

fn id(st: &Stat) -> (u64, u64) {
    (st.st_dev, st.st_ino)
}

impl Root {
    /// Visits everything below, not the root itself: first what is no directory, then each directory after its
    /// content. What vanishes meanwhile is left out, and so is what is mounted there.
    ///
    /// # Errors
    /// The visitor's; the file system's; a tree that nests deeper or is wider than the bounds; a directory that was
    /// moved while its content was walked.
    pub fn walk(&self, visit: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut levels: Vec<Level> = Vec::new();
        let mut waiting = 0;
        let fd = self.again()?;
        enter(fd, &mut levels, &mut waiting, visit)?;
        while let Some(depth) = levels.len().checked_sub(1) {
            let Some(name) = levels[depth].next() else {
                leave(&mut levels, visit)?;
                continue;
            };
            waiting -= name.len() + 1;
            let parent = levels[depth].fd.as_ref().ok_or(Errno::STALE)?;
            match resolve(parent, name_path(&name), DIRECTORY, 0, INSIDE) {
                Ok(fd) => {
                    if levels.len() > DEEPEST {
                        return Err(io::Error::other(format!(
                            "directories nest deeper than {DEEPEST} levels"
                        )));
                    }
                    enter(fd, &mut levels, &mut waiting, visit)?;
                }
                Err(Errno::NOENT | Errno::XDEV | Errno::LOOP | Errno::NOTDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// What the tree takes, with the root itself. Files that are open but removed are not seen; a tree that is moved
    /// about meanwhile is seen in part.
    ///
    /// # Errors
    /// As [`Root::walk`]; of kind `Other` when the tree is beyond the bounds.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        let mut seen = HashSet::new();
        let mut add = |st: &Stat| {
            let several = st.st_nlink > 1
                && FileType::from_raw_mode(st.st_mode) != FileType::Directory
                && seen.len() < LINKED;
            if several && !seen.insert(id(st)) {
                return;
            }
            usage.bytes = usage
                .bytes
                .saturating_add((st.st_blocks as u64).saturating_mul(512));
            usage.inodes += 1;
        };
        add(&self.stat()?);
        let walked = self.walk(&mut |e| {
            add(&e.stat);
            Ok(())
        });
        match walked {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(usage),
            r => r.map(|()| usage),
        }
    }
}

fn enter(
    fd: OwnedFd,
    levels: &mut Vec<Level>,
    waiting: &mut usize,
    visit: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let stat = rustix::fs::fstat(&fd)?;
    let mut names = Vec::new();
    for e in Dir::read_from(&fd)? {
        let e = e?;
        let name = e.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let thing = match resolve(&fd, name_path(name), flags, 0, INSIDE) {
            Ok(thing) => thing,
            Err(Errno::NOENT | Errno::XDEV) => continue,
            Err(e) => return Err(e.into()),
        };
        let stat = rustix::fs::fstat(&thing)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            *waiting += name.len() + 1;
            if *waiting > WAITING {
                return Err(io::Error::other("too many directories in one another"));
            }
            names.extend_from_slice(name);
            names.push(0);
            continue;
        }
        visit(&Entry {
            fd: thing.as_fd(),
            stat,
        })?;
    }
    levels.push(Level {
        fd: Some(fd),
        id: id(&stat),
        waiting: names,
    });
    if let Some(far) = levels.len().checked_sub(OPEN + 1) {
        levels[far].fd = None;
    }
    Ok(())
}

/// The last level is done: its directory is visited (not the root), and the one above is open again after that.
fn leave(
    levels: &mut Vec<Level>,
    visit: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let Some(done) = levels.pop() else {
        return Ok(());
    };
    let Some(above) = levels.last_mut() else {
        return Ok(());
    };
    let fd = done.fd.ok_or(Errno::STALE)?;
    if above.fd.is_none() {
        let back = rustix::fs::openat(&fd, "..", DIRECTORY, rustix::fs::Mode::empty())?;
        if id(&rustix::fs::fstat(&back)?) != above.id {
            return Err(io::Error::other(
                "a directory was moved while it was walked",
            ));
        }
        above.fd = Some(back);
    }
    let stat = rustix::fs::fstat(&fd)?;
    visit(&Entry {
        fd: fd.as_fd(),
        stat,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn directories_come_after_their_content_and_links_as_themselves() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        fs::write(tmp.path().join("a/b/f"), "x").unwrap();
        symlink("/etc", tmp.path().join("a/l")).unwrap();
        let ino = |p: &str| fs::symlink_metadata(tmp.path().join(p)).unwrap().ino();
        let mut seen = Vec::new();
        let root = Root::open(tmp.path()).unwrap();
        root.walk(&mut |e| {
            seen.push(e.stat.st_ino);
            Ok(())
        })
        .unwrap();
        let want: Vec<u64> = ["a/l", "a/b/f", "a/b", "a"].map(ino).to_vec();
        assert_eq!(seen, want);
    }

    #[test]
    fn a_hard_link_counts_once_and_a_mount_not_at_all() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        fs::create_dir_all(t.join("v/m")).unwrap();
        fs::create_dir_all(t.join("v/s")).unwrap();
        fs::create_dir(t.join("other")).unwrap();
        fs::write(t.join("v/f"), vec![1; 1 << 16]).unwrap();
        fs::hard_link(t.join("v/f"), t.join("v/s/g")).unwrap();
        fs::write(t.join("other/big"), vec![1; 1 << 20]).unwrap();
        rustix::mount::mount_bind(t.join("other"), t.join("v/m")).unwrap();
        let usage = Root::open(t.join("v")).unwrap().usage();
        rustix::mount::unmount(t.join("v/m"), rustix::mount::UnmountFlags::DETACH).unwrap();
        let usage = usage.unwrap();
        assert_eq!(usage.inodes, 3, "v, f, s");
        assert!((1 << 16..1 << 18).contains(&usage.bytes), "{usage:?}");
    }

    #[test]
    fn a_deep_tree_is_walked_with_few_descriptors_and_a_bottomless_one_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Root::open(tmp.path()).unwrap();
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let tree = root.make_dir("t", 0o755).unwrap();
        let mut here = tree.try_clone().unwrap();
        for _ in 0..1000 {
            here = here.make_dir("d", 0o755).unwrap();
        }
        let before = open();
        let mut most = 0;
        tree.walk(&mut |_| {
            most = most.max(open());
            Ok(())
        })
        .unwrap();
        assert_eq!(tree.usage().unwrap().inodes, 1001);
        // Other tests run beside this one.
        assert!(most < before + 200, "{before} {most}");
        for _ in 0..2000 {
            here = here.make_dir("d", 0o755).unwrap();
        }
        let refused = tree.usage().unwrap_err().to_string();
        assert!(refused.contains("nest deeper"), "{refused}");
        root.remove_tree("t").unwrap();
    }
}
