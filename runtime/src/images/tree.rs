//! Owns writing entries below a root directory, whatever their paths say, on top of lower layers. Must not know where
//! entries come from: [`super::unpack`] (layers, ADD) and [`super::copy`] (COPY) use it.
//!
//! Every path is walked one name at a time on directory descriptors, with O_NOFOLLOW; symbolic links are resolved here,
//! absolute ones from the root as containerd does. A `..` in an entry's path, or a link's `..` above the root, is an
//! error that names layer and path.

use super::error::IoContext;
use super::limits::Limits;
use super::lower::{Lower, is_whiteout, open_dir_at};
use super::store::Usage;
use super::{ImageError, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The kernel's limit of 40 followed links, so that link loops end.
const MAX_LINKS: u32 = 40;
/// Deeper paths than any image has, but few enough for descriptors when they are removed again.
const MAX_DEPTH: usize = 512;

/// A path in names.
pub(super) type Comps = Vec<Vec<u8>>;

/// Writes below one root directory. Also the tool of COPY and ADD, which have the same need for safe paths.
pub struct TreeWriter {
    pub(super) layer: String,
    pub(super) root: Rc<OwnedFd>,
    pub(super) lower: Lower,
    pub(super) whiteouts: bool,
    pub(super) owner: Option<(u32, u32)>,
    /// Directory below the root where a tar's entries go.
    pub(super) prefix: Comps,
    /// The directory the last entry was in: tars go directory by directory.
    pub(super) last_dir: Option<(Comps, Rc<OwnedFd>, Comps)>,
    /// Directories whose lower content this layer hides.
    pub(super) opaque: HashSet<Comps>,
    /// Times of directories, set at the end: filling a directory changes them.
    pub(super) dir_times: BTreeMap<Comps, Timespec>,
    pub(super) usage: Usage,
    pub(super) limits: Limits,
}

/// Metadata of one entry.
#[derive(Debug, Clone)]
pub struct Meta {
    /// Permission bits with setuid, setgid, sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timespec,
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What [`TreeWriter::put`] makes.
pub enum Node<'a> {
    Dir,
    File(&'a mut dyn Read),
    Symlink(&'a [u8]),
}

impl TreeWriter {
    /// Work below `root`, with `lower` under it.
    pub fn new(root: OwnedFd, lower: Lower, layer: &str, whiteouts: bool) -> Self {
        TreeWriter {
            limits: Limits::of(&root),
            layer: layer.to_owned(),
            root: Rc::new(root),
            lower,
            whiteouts,
            owner: None,
            prefix: Vec::new(),
            last_dir: None,
            opaque: HashSet::new(),
            dir_times: BTreeMap::new(),
            usage: Usage::default(),
        }
    }

    pub(super) fn error(&self, path: &[u8], message: impl Into<String>) -> ImageError {
        ImageError::Layer {
            layer: self.layer.clone(),
            path: String::from_utf8_lossy(path).into_owned(),
            message: message.into(),
        }
    }

    /// Errors of the machine (disk full) keep their kind; the text still names layer and path.
    pub(super) fn os<T>(&self, path: &[u8], what: &str, r: Result<T, Errno>) -> Result<T> {
        r.what(|| {
            format!(
                "layer {}: entry {:?}: {what}",
                self.layer,
                String::from_utf8_lossy(path)
            )
        })
    }

    /// Make one entry, as if a tar had it: replaces what is there, except that a directory joins a directory.
    pub fn put(&mut self, path: &[u8], node: Node<'_>, meta: &Meta) -> Result<()> {
        let comps = self.components(path)?;
        let Some((name, parents)) = comps.split_last() else {
            return Err(self.error(path, "the root cannot be replaced"));
        };
        let is_dir = matches!(node, Node::Dir);
        let (dir, mut full) = self.dir(parents, path)?;
        if let Some(st) = self.stat(&dir, name, path)?
            && !(is_dir && FileType::from_raw_mode(st.st_mode) == FileType::Directory)
        {
            self.remove(&dir, name, path)?;
        }
        full.push(name.clone());
        match node {
            Node::Dir => {
                match rustix::fs::mkdirat(&*dir, name.as_slice(), Mode::from_raw_mode(0o700)) {
                    Ok(()) => self.usage.inodes += 1,
                    Err(Errno::EXIST) => {}
                    Err(e) => return self.os(path, "mkdir", Err(e)),
                }
                let fd = self.os(path, "open", open_dir_at(&dir, name))?;
                self.set_dir_meta(&fd, &full, path, meta)
            }
            Node::File(data) => self.write_file(&dir, name, path, data, meta).map(drop),
            Node::Symlink(target) => {
                let made = rustix::fs::symlinkat(target, &*dir, name.as_slice());
                self.os(path, "symlink", made)?;
                self.usage.inodes += 1;
                self.set_meta_at(&dir, name, path, meta, true)
            }
        }
    }

    /// Make a directory and its parents if they are missing, below or here; a new one gets `meta`.
    pub fn make_dirs(&mut self, path: &[u8], meta: &Meta) -> Result<()> {
        let comps = self.components(path)?;
        for n in 1..=comps.len() {
            let (dir, mut at) = self.dir(&comps[..n - 1], path)?;
            at.push(comps[n - 1].clone());
            if self.stat(&dir, &comps[n - 1], path)?.is_none() && self.find_lower(&at)?.is_none() {
                self.put(&comps[..n].join(&b'/'), Node::Dir, meta)?;
            }
        }
        self.dir(&comps, path).map(drop)
    }

    /// Split into names. `..` is refused: no image builder writes it, and upstream refuses what leads out.
    pub(super) fn components(&self, path: &[u8]) -> Result<Comps> {
        let mut out = Vec::new();
        for c in path.split(|&b| b == b'/') {
            match c {
                b"" | b"." => {}
                b".." => {
                    return Err(self.error(
                        path,
                        "the path leads outside of the layer's root (it has a \"..\")",
                    ));
                }
                _ if c.contains(&0) => return Err(self.error(path, "the path has a NUL byte")),
                _ => out.push(c.to_vec()),
            }
        }
        if out.len() > MAX_DEPTH || path.len() > 4096 {
            return Err(self.error(path, "the path is too long"));
        }
        Ok(out)
    }

    pub(super) fn stat(&self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Option<Stat>> {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) => Ok(Some(st)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => self.os(path, "stat", Err(e)),
        }
    }

    pub(super) fn find_lower(&self, at: &[Vec<u8>]) -> Result<Option<super::lower::Found>> {
        if self.lower.is_empty() || (0..at.len()).any(|n| self.opaque.contains(&at[..n])) {
            return Ok(None);
        }
        self.lower.find(at)
    }

    /// The directory at `comps`, made if missing, links followed. Returns it with its real path.
    pub fn dir(&mut self, comps: &[Vec<u8>], path: &[u8]) -> Result<(Rc<OwnedFd>, Comps)> {
        if let Some((asked, fd, at)) = &self.last_dir
            && asked == comps
        {
            return Ok((fd.clone(), at.clone()));
        }
        let mut todo: VecDeque<Vec<u8>> = comps.iter().cloned().collect();
        let mut at: Comps = Vec::new();
        let mut cur = self.root.clone();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                // Only links bring these.
                if at.pop().is_none() {
                    return Err(self.error(
                        path,
                        "a symbolic link on the path leads outside of the layer's root",
                    ));
                }
                for n in std::mem::take(&mut at).into_iter().rev() {
                    todo.push_front(n);
                }
                cur = self.root.clone();
                continue;
            }
            let here = self.stat(&cur, &name, path)?;
            let mut link = None;
            match here {
                Some(st) if FileType::from_raw_mode(st.st_mode) == FileType::Directory => {}
                Some(st) if FileType::from_raw_mode(st.st_mode) == FileType::Symlink => {
                    let read = rustix::fs::readlinkat(&*cur, name.as_slice(), Vec::new());
                    link = Some(self.os(path, "readlink", read)?.into_bytes());
                }
                Some(st) if is_whiteout(&st) => {
                    // Deleted below by this same layer and made anew: nothing of the old one may shine through.
                    self.remove(&cur, &name, path)?;
                    self.make_dir(&cur, &name, path, None)?;
                    let fd = self.os(path, "open", open_dir_at(&cur, &name))?;
                    self.set_opaque(&fd, path)?;
                    let mut p = at.clone();
                    p.push(name.clone());
                    self.opaque.insert(p);
                }
                Some(_) => {
                    let shown = String::from_utf8_lossy(&name).into_owned();
                    return Err(
                        self.error(path, format!("{shown:?} on the path is not a directory"))
                    );
                }
                None => {
                    let mut p = at.clone();
                    p.push(name.clone());
                    let below = self.find_lower(&p)?;
                    match below
                        .as_ref()
                        .map(|f| FileType::from_raw_mode(f.stat.st_mode))
                    {
                        Some(FileType::Symlink) => {
                            if let Some(f) = &below {
                                let read =
                                    rustix::fs::readlinkat(&f.dir, f.name.as_slice(), Vec::new());
                                link = Some(self.os(path, "readlink", read)?.into_bytes());
                            }
                        }
                        Some(FileType::Directory) => {
                            self.make_dir(&cur, &name, path, below.as_ref())?;
                            if let Some(f) = &below {
                                self.dir_times.insert(p, mtime_of(&f.stat));
                            }
                        }
                        _ => {
                            self.make_dir(&cur, &name, path, None)?;
                            self.dir_times.insert(
                                p,
                                Timespec {
                                    tv_sec: 0,
                                    tv_nsec: 0,
                                },
                            );
                        }
                    }
                }
            }
            if let Some(target) = link {
                links += 1;
                if links > MAX_LINKS {
                    return Err(self.error(path, "too many symbolic links on the path"));
                }
                if target.starts_with(b"/") {
                    at.clear();
                    cur = self.root.clone();
                }
                for c in target
                    .split(|&b| b == b'/')
                    .rev()
                    .filter(|c| !c.is_empty() && *c != b".")
                {
                    todo.push_front(c.to_vec());
                }
                if todo.len() + at.len() > MAX_DEPTH * 2 {
                    return Err(self.error(path, "the path is too long"));
                }
                continue;
            }
            cur = Rc::new(self.os(path, "open", open_dir_at(&cur, &name))?);
            at.push(name);
        }
        self.last_dir = Some((comps.to_vec(), cur.clone(), at.clone()));
        Ok((cur, at))
    }

    pub(super) fn make_dir(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        like: Option<&super::lower::Found>,
    ) -> Result<()> {
        let made = rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755));
        self.os(path, "mkdir", made)?;
        self.usage.inodes += 1;
        let fd = self.os(path, "open", open_dir_at(dir, name))?;
        // The umask may have taken bits away.
        let mode = like.map_or(0o755, |f| f.stat.st_mode & 0o7777);
        if let Some(f) = like {
            let set = rustix::fs::fchown(
                &fd,
                Some(Uid::from_raw(f.stat.st_uid)),
                Some(Gid::from_raw(f.stat.st_gid)),
            );
            self.os(path, "chown", set)?;
            if let Ok(src) = open_dir_at(&f.dir, &f.name) {
                copy_xattrs(&src, &fd);
            }
        }
        let set = rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode));
        self.os(path, "chmod", set)
    }

    pub(super) fn set_opaque(&self, dir: &OwnedFd, path: &[u8]) -> Result<()> {
        let set = rustix::fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty());
        self.os(path, "set trusted.overlay.opaque", set)
    }

    pub(super) fn remove(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        self.last_dir = None;
        let removed = remove_tree(dir, name);
        self.os(path, "replace", removed)
    }

    pub(super) fn write_file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        data: &mut dyn Read,
        meta: &Meta,
    ) -> Result<u64> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(self.os(path, "create", opened)?);
        let room = self.limits.bytes.saturating_sub(self.usage.bytes);
        let n = io::copy(&mut data.take(room.saturating_add(1)), &mut file).map_err(|e| {
            if e.raw_os_error().is_some() {
                ImageError::io(
                    format!(
                        "layer {}: write {:?}",
                        self.layer,
                        String::from_utf8_lossy(path)
                    ),
                    e,
                )
            } else {
                self.read_error(&String::from_utf8_lossy(path), &e)
            }
        })?;
        if n > room {
            return Err(ImageError::io(
                format!(
                    "layer {}: write {:?}: it has more than the {} MiB that this disk has left for it",
                    self.layer,
                    String::from_utf8_lossy(path),
                    self.limits.bytes >> 20
                ),
                io::Error::from_raw_os_error(libc::ENOSPC),
            ));
        }
        self.usage.inodes += 1;
        self.usage.bytes += n;
        self.set_fd_meta(
            file.as_fd().try_clone_to_owned().what(|| "dup")?,
            path,
            meta,
        )?;
        Ok(n)
    }

    /// chown clears setuid and capabilities, so it comes first; times come last.
    pub(super) fn set_fd_meta(&self, fd: OwnedFd, path: &[u8], meta: &Meta) -> Result<()> {
        let set = rustix::fs::fchown(
            &fd,
            Some(Uid::from_raw(meta.uid)),
            Some(Gid::from_raw(meta.gid)),
        );
        self.os(path, "chown", set)?;
        let set = rustix::fs::fchmod(&fd, Mode::from_raw_mode(meta.mode));
        self.os(path, "chmod", set)?;
        for (k, v) in &meta.xattrs {
            let set = rustix::fs::fsetxattr(&fd, k.as_slice(), v, XattrFlags::empty());
            self.xattr_result(path, k, set)?;
        }
        let set = rustix::fs::futimens(&fd, &times(meta.mtime));
        self.os(path, "set times", set)
    }

    pub(super) fn set_dir_meta(
        &mut self,
        fd: &OwnedFd,
        at: &Comps,
        path: &[u8],
        meta: &Meta,
    ) -> Result<()> {
        let dup = fd.try_clone().what(|| "dup")?;
        self.set_fd_meta(dup, path, meta)?;
        self.dir_times.insert(at.clone(), meta.mtime);
        Ok(())
    }

    /// For links and devices, which cannot be opened.
    pub(super) fn set_meta_at(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        meta: &Meta,
        link: bool,
    ) -> Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
        let set = rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        self.os(path, "chown", set)?;
        if !link {
            // Made by us a moment ago as a device, so there is no link to follow.
            let set =
                rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.mode), AtFlags::empty());
            self.os(path, "chmod", set)?;
        }
        if !meta.xattrs.is_empty() {
            let mut p = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            p.push(OsStr::from_bytes(name));
            for (k, v) in &meta.xattrs {
                let set = rustix::fs::lsetxattr(&p, k.as_slice(), v, XattrFlags::empty());
                self.xattr_result(path, k, set)?;
            }
        }
        let set = rustix::fs::utimensat(dir, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW);
        self.os(path, "set times", set)
    }

    /// As containerd: a file system without (this kind of) attributes is no reason to refuse an image.
    pub(super) fn xattr_result(
        &self,
        path: &[u8],
        key: &[u8],
        r: rustix::io::Result<()>,
    ) -> Result<()> {
        match r {
            Err(Errno::NOTSUP) => Ok(()),
            Err(Errno::PERM) if key.starts_with(b"user.") => Ok(()),
            r => self.os(
                path,
                &format!("set attribute {}", String::from_utf8_lossy(key)),
                r,
            ),
        }
    }

    /// Set the directories' times; call once, last.
    pub fn finish(&mut self) -> Result<()> {
        self.last_dir = None;
        for (at, time) in std::mem::take(&mut self.dir_times) {
            let opened = if at.is_empty() {
                self.root.try_clone().map_err(|_| Errno::MFILE)
            } else {
                rustix::fs::openat2(
                    &*self.root,
                    at.join(&b'/').as_slice(),
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
                )
            };
            match opened {
                Ok(fd) => {
                    let set = rustix::fs::futimens(&fd, &times(time));
                    self.os(&at.join(&b'/'), "set times", set)?;
                }
                // Replaced or deleted by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return self.os(&at.join(&b'/'), "open", Err(e)),
            }
        }
        Ok(())
    }
}

pub(super) fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}

pub(super) fn mtime_of(st: &Stat) -> Timespec {
    Timespec {
        tv_sec: st.st_mtime,
        tv_nsec: st.st_mtime_nsec as _,
    }
}

/// All extended attributes but overlayfs' own.
pub fn list_xattrs(fd: &OwnedFd) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0u8; 64 * 1024];
    let Ok(n) = rustix::fs::flistxattr(fd, &mut names) else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for name in names[..n].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0u8; 64 * 1024];
        if let Ok(len) = rustix::fs::fgetxattr(fd, name, &mut value) {
            value.truncate(len);
            out.push((name.to_vec(), value));
        }
    }
    out.sort();
    out
}

fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) {
    for (k, v) in list_xattrs(from) {
        let _ = rustix::fs::fsetxattr(to, k.as_slice(), &v, XattrFlags::empty());
    }
}

/// Remove a name with everything below it, never following links.
pub fn remove_tree(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        r => return r,
    }
    let fd = open_dir_at(dir, name)?;
    for e in rustix::fs::Dir::read_from(&fd)? {
        let e = e?;
        let n = e.file_name().to_bytes();
        if n != b"." && n != b".." {
            remove_tree(&fd, n)?;
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// The same by path, for callers outside of this module's trees.
pub fn remove_path(path: &Path) -> rustix::io::Result<()> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let dir = rustix::fs::openat(
                CWD,
                parent,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            remove_tree(&dir, name.as_bytes())
        }
        _ => Err(Errno::INVAL),
    }
}
