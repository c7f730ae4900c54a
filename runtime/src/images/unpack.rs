//! Owns applying a layer's tar to a directory that becomes an overlay lower directory. Must never touch anything
//! outside that directory, whatever the tar says, and must not know where the tar comes from.
//!
//! Every path is walked one name at a time on directory descriptors, with O_NOFOLLOW; symbolic links are resolved here,
//! absolute ones from the layer's root as containerd does. A `..` in an entry's path, or a link's `..` above the root,
//! is an error that names layer and path.

use super::digest::HashingReader;
use super::error::IoContext;
use super::lower::{Lower, is_whiteout, open_dir_at};
use super::store::Usage;
use super::{ImageError, Result};
use crate::images::digest::Digest;
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

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The kernel's limit of 40 followed links, so that link loops end.
const MAX_LINKS: u32 = 40;
/// Deeper paths than any image has, but few enough for descriptors when they are removed again.
const MAX_DEPTH: usize = 512;

type Comps = Vec<Vec<u8>>;

/// What came of a layer.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    pub usage: Usage,
}

/// Apply the uncompressed tar `reader` to the empty directory `dest`. `lower` are the layers below, top first;
/// `layer` is what errors call it (its digest). Reads to the end, so that `diff_id` covers trailing padding.
/// On error `dest` holds a part and must be thrown away.
pub fn unpack_layer(
    reader: impl Read,
    dest: &Path,
    lower: &[PathBuf],
    layer: &str,
) -> Result<Unpacked> {
    let root = rustix::fs::open(
        dest,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .what(|| format!("open {}", dest.display()))?;
    let mut u = Unpacker::new(root, Lower::open(lower)?, layer, true);
    let mut archive = tar::Archive::new(HashingReader::new(reader));
    u.apply_all(&mut archive)?;
    u.finish()?;
    let usage = u.usage;
    let (diff_id, _) = archive
        .into_inner()
        .finish()
        .map_err(|e| u.read_error("(end of the tar)", &e))?;
    Ok(Unpacked { diff_id, usage })
}

/// Writes below one root directory. Also the tool of COPY and ADD, which have the same need for safe paths.
pub struct Unpacker {
    layer: String,
    root: Rc<OwnedFd>,
    lower: Lower,
    whiteouts: bool,
    owner: Option<(u32, u32)>,
    /// Directory below the root where a tar's entries go.
    prefix: Comps,
    /// The directory the last entry was in: tars go directory by directory.
    last_dir: Option<(Comps, Rc<OwnedFd>, Comps)>,
    /// Directories whose lower content this layer hides.
    opaque: HashSet<Comps>,
    /// Times of directories, set at the end: filling a directory changes them.
    dir_times: BTreeMap<Comps, Timespec>,
    usage: Usage,
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

/// What [`Unpacker::put`] makes.
pub enum Node<'a> {
    Dir,
    File(&'a mut dyn Read),
    Symlink(&'a [u8]),
}

impl Unpacker {
    /// Work below `root`, with `lower` under it.
    pub fn new(root: OwnedFd, lower: Lower, layer: &str, whiteouts: bool) -> Self {
        Unpacker {
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

    fn error(&self, path: &[u8], message: impl Into<String>) -> ImageError {
        ImageError::Layer {
            layer: self.layer.clone(),
            path: String::from_utf8_lossy(path).into_owned(),
            message: message.into(),
        }
    }

    fn read_error(&self, path: &str, e: &io::Error) -> ImageError {
        self.error(
            path.as_bytes(),
            format!("the tar is damaged: {}", one_line(e)),
        )
    }

    /// Errors of the machine (disk full) keep their kind; the text still names layer and path.
    fn os<T>(&self, path: &[u8], what: &str, r: Result<T, Errno>) -> Result<T> {
        r.what(|| {
            format!(
                "layer {}: entry {:?}: {what}",
                self.layer,
                String::from_utf8_lossy(path)
            )
        })
    }

    fn apply_all<R: Read>(&mut self, archive: &mut tar::Archive<R>) -> Result<()> {
        let mut before = "(start of the tar)".to_owned();
        let entries = archive
            .entries()
            .map_err(|e| self.read_error(&before, &e))?;
        for entry in entries {
            let mut entry = entry.map_err(|e| self.read_error(&format!("(after {before})"), &e))?;
            let path = entry.path_bytes().into_owned();
            before = String::from_utf8_lossy(&path).into_owned();
            self.apply(&mut entry, &path)?;
        }
        Ok(())
    }

    fn apply<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &[u8]) -> Result<()> {
        use tar::EntryType as T;
        let kind = entry.header().entry_type();
        if matches!(
            kind,
            T::XGlobalHeader | T::XHeader | T::GNULongName | T::GNULongLink
        ) {
            return Ok(());
        }
        let mut comps = self.prefix.clone();
        comps.extend(self.components(path)?);
        let meta = self.meta(entry, path)?;
        let Some((name, parents)) = comps.split_last() else {
            if kind != T::Directory {
                return Err(self.error(path, "the layer's root must be a directory"));
            }
            let root = self.root.clone();
            self.set_dir_meta(&root, &Vec::new(), path, &meta)?;
            return Ok(());
        };
        if self.whiteouts && name.starts_with(WHITEOUT) {
            return self.whiteout(parents, name, path);
        }
        let (dir, at) = self.dir(parents, path)?;
        let name = name.as_slice();
        let existing = self.stat(&dir, name, path)?;
        // A whiteout and the same name made anew in one layer: the whiteout is about what is below.
        let replaces_whiteout = self.whiteouts && existing.as_ref().is_some_and(is_whiteout);
        if let Some(st) = existing {
            let both_dirs =
                FileType::from_raw_mode(st.st_mode) == FileType::Directory && kind == T::Directory;
            if !both_dirs {
                self.remove(&dir, name, path)?;
            }
        }
        let mut full = at;
        full.push(name.to_vec());
        match kind {
            T::Directory => {
                match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) => self.usage.inodes += 1,
                    Err(Errno::EXIST) => {}
                    Err(e) => return self.os(path, "mkdir", Err(e)),
                }
                let fd = self.os(path, "open", open_dir_at(&dir, name))?;
                if replaces_whiteout {
                    self.set_opaque(&fd, path)?;
                    self.opaque.insert(full.clone());
                }
                self.set_dir_meta(&fd, &full, path, &meta)?;
                return Ok(());
            }
            T::Regular | T::Continuous | T::GNUSparse => {
                let size = entry.size();
                let n = self.write_file(&dir, name, path, entry, &meta)?;
                if n != size && kind != T::GNUSparse {
                    return Err(self.error(
                        path,
                        format!("the tar ends in the middle of the file ({n} of {size} bytes)"),
                    ));
                }
            }
            T::Link => {
                let target = entry
                    .link_name_bytes()
                    .map(|b| b.into_owned())
                    .unwrap_or_default();
                self.hard_link(&dir, name, path, &target)?;
            }
            T::Symlink => {
                let target = entry
                    .link_name_bytes()
                    .map(|b| b.into_owned())
                    .unwrap_or_default();
                if target.is_empty() || target.contains(&0) {
                    return Err(self.error(path, "symbolic link with an empty or invalid target"));
                }
                let made = rustix::fs::symlinkat(target.as_slice(), &dir, name);
                self.os(path, "symlink", made)?;
                self.usage.inodes += 1;
                self.set_meta_at(&dir, name, path, &meta, true)?;
            }
            T::Char | T::Block | T::Fifo => {
                let h = entry.header();
                let number = |n: io::Result<Option<u32>>| n.map(Option::unwrap_or_default);
                let dev = match (kind, number(h.device_major()), number(h.device_minor())) {
                    (T::Fifo, _, _) => 0,
                    (_, Ok(major), Ok(minor)) => rustix::fs::makedev(major, minor),
                    _ => return Err(self.error(path, "device numbers are not readable")),
                };
                let file_type = match kind {
                    T::Char => FileType::CharacterDevice,
                    T::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let made =
                    rustix::fs::mknodat(&dir, name, file_type, Mode::from_raw_mode(0o600), dev);
                self.os(path, "mknod", made)?;
                self.usage.inodes += 1;
                self.set_meta_at(&dir, name, path, &meta, false)?;
            }
            other => {
                return Err(self.error(
                    path,
                    format!(
                        "entries of type {:?} are not supported",
                        other.as_byte() as char
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Extract a tar (Dockerfile's ADD) into the directory `into`; `owner` replaces the owners in the tar.
    pub fn extract(
        &mut self,
        reader: impl Read,
        into: &[u8],
        owner: Option<(u32, u32)>,
    ) -> Result<()> {
        self.prefix = self.components(into)?;
        self.owner = owner;
        let r = self.apply_all(&mut tar::Archive::new(reader));
        self.prefix.clear();
        self.owner = None;
        r
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
    fn components(&self, path: &[u8]) -> Result<Comps> {
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

    fn meta<R: Read>(&self, entry: &mut tar::Entry<'_, R>, path: &[u8]) -> Result<Meta> {
        let h = entry.header();
        let old = h.as_old();
        let id = |n: io::Result<u64>, raw: &[u8], what: &str| {
            n.or_else(|e| if blank(raw) { Ok(0) } else { Err(e) })
                .ok()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n != u32::MAX)
                .ok_or_else(|| self.error(path, format!("the {what} is not a valid number")))
        };
        let mut meta = Meta {
            mode: id(h.mode().map(u64::from), &old.mode, "mode")? & 0o7777,
            uid: id(h.uid(), &old.uid, "owner")?,
            gid: id(h.gid(), &old.gid, "group")?,
            mtime: Timespec {
                tv_sec: h.mtime().unwrap_or(0).min(i64::MAX as u64) as i64,
                tv_nsec: 0,
            },
            xattrs: Vec::new(),
        };
        if let Some((uid, gid)) = self.owner {
            (meta.uid, meta.gid) = (uid, gid);
        }
        let pax = entry
            .pax_extensions()
            .map_err(|e| self.read_error(&String::from_utf8_lossy(path), &e))?;
        for ext in pax.into_iter().flatten() {
            let ext = ext.map_err(|e| self.read_error(&String::from_utf8_lossy(path), &e))?;
            let key = ext.key_bytes();
            if key == b"mtime" {
                if let Some(t) = ext.value().ok().and_then(parse_pax_time) {
                    meta.mtime = t;
                }
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                // overlayfs' own attributes would let a layer redirect lookups; SELinux labels belong to the host.
                if !name.starts_with(b"trusted.overlay.")
                    && name != b"security.selinux"
                    && !name.contains(&0)
                {
                    meta.xattrs
                        .push((name.to_vec(), ext.value_bytes().to_vec()));
                }
            }
        }
        Ok(meta)
    }

    fn stat(&self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Option<Stat>> {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) => Ok(Some(st)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => self.os(path, "stat", Err(e)),
        }
    }

    fn find_lower(&self, at: &[Vec<u8>]) -> Result<Option<super::lower::Found>> {
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

    fn make_dir(
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

    fn set_opaque(&self, dir: &OwnedFd, path: &[u8]) -> Result<()> {
        let set = rustix::fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty());
        self.os(path, "set trusted.overlay.opaque", set)
    }

    fn whiteout(&mut self, parents: &[Vec<u8>], name: &[u8], path: &[u8]) -> Result<()> {
        if name == OPAQUE {
            // Hides what is below, never what this layer itself puts here, before or after.
            let (dir, at) = self.dir(parents, path)?;
            let below = at.is_empty() || self.find_lower(&at)?.is_some();
            if below && !self.lower.is_empty() {
                self.set_opaque(&dir, path)?;
                self.opaque.insert(at);
            }
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.starts_with(b".wh.") {
            return Ok(()); // AUFS' own book-keeping.
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(self.error(
                path,
                "a whiteout of this name leads outside of its directory",
            ));
        }
        let (dir, mut at) = self.dir(parents, path)?;
        at.push(hidden.to_vec());
        // Only where there is something to hide: a stray whiteout shows up in directory listings.
        if self.find_lower(&at)?.is_none() {
            return Ok(());
        }
        if let Some(st) = self.stat(&dir, hidden, path)? {
            // This layer's own entry came first and stays; a directory must not let the old content through.
            if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
                let fd = self.os(path, "open", open_dir_at(&dir, hidden))?;
                self.set_opaque(&fd, path)?;
                self.opaque.insert(at);
            }
        } else {
            let made =
                rustix::fs::mknodat(&*dir, hidden, FileType::CharacterDevice, Mode::empty(), 0);
            self.os(path, "make whiteout", made)?;
            self.usage.inodes += 1;
        }
        Ok(())
    }

    fn remove(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        self.last_dir = None;
        let removed = remove_tree(dir, name);
        self.os(path, "replace", removed)
    }

    fn write_file(
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
        let n = io::copy(data, &mut file).map_err(|e| {
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
    fn set_fd_meta(&self, fd: OwnedFd, path: &[u8], meta: &Meta) -> Result<()> {
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

    fn set_dir_meta(&mut self, fd: &OwnedFd, at: &Comps, path: &[u8], meta: &Meta) -> Result<()> {
        let dup = fd.try_clone().what(|| "dup")?;
        self.set_fd_meta(dup, path, meta)?;
        self.dir_times.insert(at.clone(), meta.mtime);
        Ok(())
    }

    /// For links and devices, which cannot be opened.
    fn set_meta_at(
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
    fn xattr_result(&self, path: &[u8], key: &[u8], r: rustix::io::Result<()>) -> Result<()> {
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

    fn hard_link(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8], target: &[u8]) -> Result<()> {
        let mut comps = self.prefix.clone();
        comps.extend(self.components(target).map_err(|_| {
            self.error(
                path,
                format!(
                    "its hard link target {:?} leads outside of the layer's root",
                    String::from_utf8_lossy(target)
                ),
            )
        })?);
        let missing = || {
            self.error(
                path,
                format!(
                    "its hard link target {:?} does not exist",
                    String::from_utf8_lossy(target)
                ),
            )
        };
        let Some((tname, tparents)) = comps.split_last() else {
            return Err(missing());
        };
        let (tdir, mut tat) = self.dir(tparents, path)?;
        if self.stat(&tdir, tname, path)?.is_none() {
            // In a lower layer: bring it up, as overlayfs would on link(2).
            tat.push(tname.clone());
            match self.find_lower(&tat)? {
                Some(f) if FileType::from_raw_mode(f.stat.st_mode) == FileType::RegularFile => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let opened =
                        rustix::fs::openat(&f.dir, f.name.as_slice(), flags, Mode::empty());
                    let mut src =
                        File::from(self.os(path, "open the hard link's target", opened)?);
                    let meta = Meta {
                        mode: f.stat.st_mode & 0o7777,
                        uid: f.stat.st_uid,
                        gid: f.stat.st_gid,
                        mtime: mtime_of(&f.stat),
                        xattrs: list_xattrs(&src.as_fd().try_clone_to_owned().what(|| "dup")?),
                    };
                    self.write_file(&tdir, tname, path, &mut src, &meta)?;
                }
                _ => {
                    return Err(self.error(
                        path,
                        format!(
                            "its hard link target {:?} does not exist",
                            String::from_utf8_lossy(target)
                        ),
                    ));
                }
            }
        }
        match rustix::fs::linkat(&*tdir, tname.as_slice(), dir, name, AtFlags::empty()) {
            Err(Errno::PERM) => Err(self.error(path, "its hard link target is a directory")),
            r => self.os(path, "link", r),
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

/// The library's texts may quote damaged bytes.
pub(super) fn one_line(e: &io::Error) -> String {
    e.to_string()
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

/// Go's tar reader takes an empty number for 0, and so do the images made with it.
fn blank(field: &[u8]) -> bool {
    field.iter().all(|b| matches!(b, 0 | b' '))
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}

fn mtime_of(st: &Stat) -> Timespec {
    Timespec {
        tv_sec: st.st_mtime,
        tv_nsec: st.st_mtime_nsec as _,
    }
}

/// `1700000000.123456789`, possibly negative.
fn parse_pax_time(s: &str) -> Option<Timespec> {
    let (whole, frac) = s.split_once('.').unwrap_or((s, ""));
    let sec: i64 = whole.parse().ok()?;
    let digits: String = frac.chars().chain("000000000".chars()).take(9).collect();
    let nsec: i64 = digits.parse().ok()?;
    match whole.starts_with('-') && nsec > 0 {
        true => Some(Timespec {
            tv_sec: sec.checked_sub(1)?,
            tv_nsec: 1_000_000_000 - nsec,
        }),
        false => Some(Timespec {
            tv_sec: sec,
            tv_nsec: nsec,
        }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// One entry of a hand-made tar: kind, path, link target or content.
    type Entry<'a> = (tar::EntryType, &'a str, &'a str);

    fn tar_bytes(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut b = tar::Builder::new(Vec::new());
        for (kind, path, data) in entries {
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(*kind);
            h.set_mode(0o755);
            h.set_uid(0);
            h.set_gid(0);
            h.set_mtime(1000);
            let n = path.len().min(100);
            h.as_mut_bytes()[..n].copy_from_slice(&path.as_bytes()[..n]);
            let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
            let body = if is_link {
                h.set_link_name_literal(data).unwrap();
                ""
            } else {
                data
            };
            h.set_size(body.len() as u64);
            h.set_cksum();
            b.append(&h, body.as_bytes()).unwrap();
        }
        b.into_inner().unwrap()
    }

    const F: tar::EntryType = tar::EntryType::Regular;
    const D: tar::EntryType = tar::EntryType::Directory;
    const S: tar::EntryType = tar::EntryType::Symlink;
    const L: tar::EntryType = tar::EntryType::Link;

    fn unpack(entries: &[Entry<'_>], lower: &[PathBuf]) -> (tempfile::TempDir, Result<Unpacked>) {
        let t = tempfile::tempdir().unwrap();
        let root = t.path().join("root");
        fs::create_dir(&root).unwrap();
        let r = unpack_layer(tar_bytes(entries).as_slice(), &root, lower, "sha256:abc");
        (t, r)
    }

    #[test]
    fn entries_that_lead_outside_are_errors_with_layer_and_path() {
        let cases: &[&[Entry<'_>]] = &[
            &[(F, "../evil", "x")],
            &[(F, "a/../../evil", "x")],
            &[(D, "a/..", "")],
            &[(S, "out", "../.."), (F, "out/evil", "x")],
            &[(L, "evil", "../../etc/passwd")],
            &[(F, "a/.wh...", "")],
            &[(F, ".wh.", "")],
            &[(F, "", "x")],
        ];
        for entries in cases {
            let (t, r) = unpack(entries, &[]);
            let e = r
                .err()
                .unwrap_or_else(|| panic!("{entries:?} was taken"))
                .to_string();
            assert!(
                e.contains("sha256:abc") && e.contains(&format!("{:?}", entries.last().unwrap().1)),
                "{e}"
            );
            assert!(!t.path().join("evil").exists());
        }
    }

    #[test]
    fn absolute_paths_and_links_stay_inside() {
        let host = tempfile::tempdir().unwrap();
        let target = host.path().to_str().unwrap().to_owned();
        let (t, r) = unpack(
            &[
                (F, "/etc/motd", "hi"),
                (S, "way", &target),
                (F, "way/evil", "x"),
                (S, "etc/passwd", "/etc/passwd"),
                (F, "etc/passwd", "ours"),
                (L, "abs", "/etc/motd"),
            ],
            &[],
        );
        r.unwrap();
        let root = t.path().join("root");
        assert_eq!(
            fs::read_dir(host.path()).unwrap().count(),
            0,
            "nothing on the host"
        );
        assert_eq!(
            fs::read_to_string(root.join(target.trim_start_matches('/')).join("evil")).unwrap(),
            "x"
        );
        assert_eq!(fs::read_to_string(root.join("etc/motd")).unwrap(), "hi");
        assert!(
            fs::symlink_metadata(root.join("etc/passwd"))
                .unwrap()
                .is_file(),
            "a file replaces the link"
        );
        assert_eq!(fs::metadata(root.join("abs")).unwrap().nlink(), 2);
    }

    #[test]
    fn link_loops_and_files_on_the_path_end_in_errors() {
        let (_t, r) = unpack(&[(S, "a", "b"), (S, "b", "a"), (F, "a/x", "")], &[]);
        assert!(
            r.err()
                .unwrap()
                .to_string()
                .contains("too many symbolic links")
        );
        let (_t, r) = unpack(&[(F, "a", ""), (F, "a/x", "")], &[]);
        assert!(r.err().unwrap().to_string().contains("not a directory"));
        let (_t, r) = unpack(&[(L, "a", "nowhere")], &[]);
        assert!(r.err().unwrap().to_string().contains("does not exist"));
        let (_t, r) = unpack(&[(D, "d", ""), (L, "a", "d")], &[]);
        assert!(r.err().unwrap().to_string().contains("directory"));
    }

    #[test]
    fn a_truncated_layer_is_an_error() {
        let bytes = tar_bytes(&[(F, "file", &"x".repeat(3000))]);
        for cut in [100, 700, 1500, 3000] {
            let t = tempfile::tempdir().unwrap();
            let e = unpack_layer(&bytes[..cut], t.path(), &[], "sha256:abc").err();
            assert!(e.is_some(), "cut at {cut}");
        }
    }

    /// A lower layer: usr/lib/f, lib -> usr/lib, etc (mode 0700, owner 5), etc/gone, etc/stay, old/a, old/b.
    fn lower() -> tempfile::TempDir {
        let t = tempfile::tempdir().unwrap();
        let p = t.path();
        for d in ["usr/lib", "etc", "old/sub"] {
            fs::create_dir_all(p.join(d)).unwrap();
        }
        for f in ["usr/lib/f", "etc/gone", "etc/stay", "old/a", "old/sub/b"] {
            fs::write(p.join(f), f).unwrap();
        }
        symlink("usr/lib", p.join("lib")).unwrap();
        fs::set_permissions(p.join("etc"), fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(p.join("etc"), Some(5), Some(6)).unwrap();
        t
    }

    #[test]
    fn what_is_below_decides_links_attributes_and_whiteouts() {
        let low = lower();
        let (t, r) = unpack(
            &[
                (F, "lib/new", "n"),
                (F, "etc/.wh.gone", ""),
                (F, "etc/.wh.never-there", ""),
                (L, "hard", "usr/lib/f"),
                (F, "old/.wh..wh..opq", ""),
                (F, "old/sub/c", ""),
            ],
            &[low.path().to_owned()],
        );
        let usage = r.unwrap().usage;
        assert!(usage.inodes > 5);
        let root = t.path().join("root");
        assert!(
            root.join("usr/lib/new").is_file(),
            "the lower layer's link was followed"
        );
        assert!(!root.join("lib").exists());
        let etc = fs::metadata(root.join("etc")).unwrap();
        assert_eq!(
            (etc.mode() & 0o7777, etc.uid(), etc.gid()),
            (0o700, 5, 6),
            "a directory passed through keeps its face"
        );
        let gone = fs::symlink_metadata(root.join("etc/gone")).unwrap();
        assert_eq!(
            (gone.mode() & libc::S_IFMT, gone.rdev()),
            (libc::S_IFCHR, 0)
        );
        assert!(!root.join("etc/never-there").exists());
        assert_eq!(
            fs::read_to_string(root.join("hard")).unwrap(),
            "usr/lib/f",
            "a link into the lower layer copies up"
        );
        assert_eq!(
            xattr::get(root.join("old"), "trusted.overlay.opaque")
                .unwrap()
                .unwrap(),
            b"y"
        );
        assert_eq!(fs::read_dir(root.join("old/sub")).unwrap().count(), 1);
    }

    #[test]
    fn a_whiteout_beside_its_new_directory_hides_only_the_old_one_in_any_order() {
        for entries in [
            [(F, ".wh.old", ""), (D, "old", ""), (F, "old/new", "")],
            [(D, "old", ""), (F, "old/new", ""), (F, ".wh.old", "")],
            [(F, ".wh.old", ""), (F, "old/new", ""), (F, "x", "")],
        ] {
            let low = lower();
            let (t, r) = unpack(&entries, &[low.path().to_owned()]);
            r.unwrap();
            let root = t.path().join("root");
            assert!(root.join("old/new").is_file(), "{entries:?}");
            assert_eq!(
                xattr::get(root.join("old"), "trusted.overlay.opaque")
                    .unwrap()
                    .unwrap(),
                b"y",
                "{entries:?}"
            );
        }
    }

    #[test]
    fn the_merged_view_is_the_one_overlayfs_shows() {
        let low = lower();
        let (t, r) = unpack(
            &[
                (F, "etc/.wh.gone", ""),
                (F, "old/.wh..wh..opq", ""),
                (F, "old/n", ""),
            ],
            &[low.path().to_owned()],
        );
        r.unwrap();
        let dirs = [t.path().join("root"), low.path().to_owned()];
        let view = crate::images::rootfs::overlay_fd(&dirs, None, Default::default()).unwrap();
        let merged = Lower::open(&dirs).unwrap();
        for path in [
            "etc",
            "etc/gone",
            "etc/stay",
            "old",
            "old/a",
            "old/n",
            "old/sub/b",
            "usr/lib/f",
            "lib",
            "no/such",
        ] {
            let real = rustix::fs::statat(&view, path, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            let comps: Comps = path.split('/').map(|c| c.as_bytes().to_vec()).collect();
            assert_eq!(merged.find(&comps).unwrap().is_some(), real, "{path}");
        }
    }

    #[test]
    fn pax_times_may_have_fractions_and_be_negative() {
        let t = |s| parse_pax_time(s).map(|t| (t.tv_sec, t.tv_nsec));
        assert_eq!(t("12.5"), Some((12, 500_000_000)));
        assert_eq!(t("7"), Some((7, 0)));
        assert_eq!(t("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(t("x"), None);
    }

    fn arb_entry() -> impl Strategy<Value = (u8, String, String)> {
        const PATH: &str = r"/?(\.\.|\.|a|b|c|\.wh\.a|\.wh\.\.wh\.\.opq|\.wh\.\.\.|)(/(\.\.|\.|a|b|c|\.wh\.a|\.wh\.\.wh\.\.opq|)){0,3}";
        (0u8..7, PATH, PATH)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..Default::default() })]
        #[test]
        fn no_sequence_of_entries_writes_outside_of_the_root(entries in prop::collection::vec(arb_entry(), 1..12)) {
            let kinds = [F, D, S, L, tar::EntryType::Fifo, S, D];
            let list: Vec<Entry<'_>> = entries.iter().map(|(k, p, d)| (kinds[*k as usize], p.as_str(), d.as_str())).collect();
            let t = tempfile::tempdir().unwrap();
            let root = t.path().join("x/y/root");
            fs::create_dir_all(&root).unwrap();
            fs::write(t.path().join("x/witness"), b"w").unwrap();
            let low = lower();
            let _ = unpack_layer(tar_bytes(&list).as_slice(), &root, &[low.path().to_owned()], "sha256:abc");
            let names = |p: &Path| fs::read_dir(p).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
            prop_assert_eq!(names(t.path()), ["x"]);
            prop_assert_eq!(names(&t.path().join("x/y")), ["root"]);
            prop_assert_eq!(names(&t.path().join("x")).len(), 2);
            prop_assert_eq!(fs::read_dir(low.path().join("old")).unwrap().count(), 2, "the lower layer is as it was");
        }

        #[test]
        fn damaged_tars_never_panic(mut flips in prop::collection::vec((0usize..4096, any::<u8>()), 1..8)) {
            let mut bytes = tar_bytes(&[(D, "d", ""), (F, "d/f", "hello"), (S, "s", "d"), (L, "h", "d/f")]);
            for (at, v) in flips.drain(..) {
                let n = bytes.len();
                bytes[at % n] = v;
            }
            let t = tempfile::tempdir().unwrap();
            let _ = unpack_layer(bytes.as_slice(), t.path(), &[], "sha256:abc");
        }
    }
}
