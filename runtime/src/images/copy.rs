//! Owns COPY and ADD: finding sources below a root without ever leaving it, and writing them into a layer.
//! Must not know stages or variables.

use super::build::dir_meta;
use super::dockerignore::{Ignore, has_wildcards, matches_name};
use super::error::IoContext;
use super::layer::decompress;
use super::lower::open_dir_at;
use super::tree::{Meta, Node, TreeWriter, list_xattrs};
use super::{ImageError, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

/// Where sources come from: the build context or another stage.
pub struct Source {
    pub root: Option<OwnedFd>,
    /// For errors.
    pub what: String,
    pub ignore: Ignore,
    /// Keep owners and extended attributes (other stages); files of the context belong to root.
    pub keep_owner: bool,
}

/// One COPY or ADD.
pub struct Copier<'a> {
    pub name: &'static str,
    pub unpacker: TreeWriter,
    pub source: &'a Source,
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
    /// ADD: tars are extracted.
    pub extract: bool,
    /// Absolute path in the image.
    pub dest: String,
    pub dest_is_dir: bool,
}

impl Copier<'_> {
    /// Copy all sources; afterwards the layer's directory is complete.
    pub fn copy_all(&mut self, patterns: &[String]) -> Result<()> {
        let mut found = Vec::new();
        for p in patterns {
            if ["http://", "https://", "git://", "git@"]
                .iter()
                .any(|s| p.starts_with(s))
            {
                return Err(ImageError::Invalid(format!(
                    "{}: {p:?}: only local files are supported",
                    self.name
                )));
            }
            found.extend(self.find(p)?);
        }
        if found.len() > 1 && !self.dest_is_dir {
            return Err(ImageError::Invalid(format!(
                "{}: with several sources the destination must be a directory and end with /",
                self.name
            )));
        }
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        for src in found {
            let (fd, st) = self.open(&src)?;
            let shown = src.join("/");
            if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
                let dest = self.dest.trim_matches('/').as_bytes().to_vec();
                self.unpacker.make_dirs(&dest, &dir_meta(uid, gid))?;
                let dir = reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY)
                    .what(|| format!("open {shown}"))?;
                let mut rel = src.clone();
                self.tree(&dir, &mut rel, &dest)?;
                continue;
            }
            if FileType::from_raw_mode(st.st_mode) != FileType::RegularFile {
                return Err(ImageError::Invalid(format!(
                    "{}: {shown:?} is neither a file nor a directory",
                    self.name
                )));
            }
            let file = File::from(reopen(&fd, OFlags::RDONLY).what(|| format!("open {shown}"))?);
            if self.extract && self.extract_tar(&file, &shown)? {
                continue;
            }
            let base = src.last().cloned().unwrap_or_default();
            let dest = if self.dest_is_dir {
                format!("{}/{base}", self.dest.trim_end_matches('/'))
            } else {
                self.dest.clone()
            };
            let dest = dest.trim_matches('/').as_bytes().to_vec();
            if let Some(at) = dest.iter().rposition(|&b| b == b'/') {
                self.unpacker.make_dirs(&dest[..at], &dir_meta(uid, gid))?;
            }
            self.file(file, &st, &dest, &shown)?;
        }
        self.unpacker.finish()
    }

    fn error_missing(&self, pattern: &str, excluded: bool) -> ImageError {
        let hint = if excluded {
            " (.dockerignore excludes it)"
        } else {
            ""
        };
        ImageError::Invalid(format!(
            "{}: {pattern:?} not found in {}{hint}",
            self.name, self.source.what
        ))
    }

    /// Source paths (parts, relative to the root) for one word.
    fn find(&self, pattern: &str) -> Result<Vec<Vec<String>>> {
        let mut parts: Vec<String> = Vec::new();
        for c in pattern.split('/') {
            match c {
                "" | "." => {}
                ".." => {
                    if parts.pop().is_none() {
                        return Err(ImageError::Invalid(format!(
                            "{}: {pattern:?} is outside of {}",
                            self.name, self.source.what
                        )));
                    }
                }
                c => parts.push(c.to_owned()),
            }
        }
        let excludes = |p: &[String]| {
            !p.is_empty()
                && self
                    .source
                    .ignore
                    .excludes(&p.iter().map(String::as_str).collect::<Vec<_>>())
        };
        if !has_wildcards(pattern) {
            let there = self.open(&parts).is_ok();
            let is_dir = || {
                self.open(&parts)
                    .is_ok_and(|(_, st)| FileType::from_raw_mode(st.st_mode) == FileType::Directory)
            };
            if !there || (excludes(&parts) && !(self.source.ignore.has_exceptions() && is_dir())) {
                return Err(self.error_missing(pattern, there));
            }
            return Ok(vec![parts]);
        }
        let mut level: Vec<Vec<String>> = vec![Vec::new()];
        for part in &parts {
            let mut next = Vec::new();
            for base in level {
                if !has_wildcards(part) {
                    let mut p = base;
                    p.push(part.clone());
                    if self.open(&p).is_ok() {
                        next.push(p);
                    }
                    continue;
                }
                let Ok((fd, _)) = self.open(&base) else {
                    continue;
                };
                let Ok(dir) = reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY) else {
                    continue;
                };
                for n in names(&dir)? {
                    if matches_name(part, &n) {
                        let mut p = base.clone();
                        p.push(n);
                        next.push(p);
                    }
                }
            }
            level = next;
        }
        level.retain(|p| !excludes(p));
        if level.is_empty() {
            Err(self.error_missing(pattern, false))
        } else {
            Ok(level)
        }
    }

    /// Open below the root; links are followed inside of it only.
    fn open(&self, parts: &[String]) -> Result<(OwnedFd, Stat)> {
        let path = if parts.is_empty() {
            ".".to_owned()
        } else {
            parts.join("/")
        };
        let root = self
            .source
            .root
            .as_ref()
            .ok_or_else(|| ImageError::Invalid("no source".into()))?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(
            root,
            &path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
        .what(|| format!("open {path}"))?;
        let st = rustix::fs::fstat(&fd).what(|| format!("stat {path}"))?;
        Ok((fd, st))
    }

    fn meta(&self, st: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Meta {
        let own = if self.source.keep_owner {
            (st.st_uid, st.st_gid)
        } else {
            (0, 0)
        };
        let (uid, gid) = self.owner.unwrap_or(own);
        Meta {
            mode: self.mode.unwrap_or(st.st_mode & 0o7777),
            uid,
            gid,
            // Layers hold whole seconds; the directory on disk is to say the same.
            mtime: Timespec {
                tv_sec: st.st_mtime,
                tv_nsec: 0,
            },
            xattrs,
        }
    }

    fn xattrs(&self, fd: &OwnedFd) -> Vec<(Vec<u8>, Vec<u8>)> {
        if self.source.keep_owner {
            list_xattrs(fd)
        } else {
            Vec::new()
        }
    }

    fn file(&mut self, file: File, st: &Stat, dest: &[u8], shown: &str) -> Result<()> {
        let fd = OwnedFd::from(file);
        let meta = self.meta(st, self.xattrs(&fd));
        let mut file = File::from(fd);
        file.rewind().what(|| format!("read {shown}"))?;
        self.unpacker.put(dest, Node::File(&mut file), &meta)
    }

    fn tree(&mut self, dir: &OwnedFd, rel: &mut Vec<String>, dest: &[u8]) -> Result<()> {
        for name in names(dir)? {
            rel.push(name.clone());
            let shown = rel.join("/");
            let mut to = dest.to_vec();
            if !to.is_empty() {
                to.push(b'/');
            }
            to.extend_from_slice(name.as_bytes());
            let st = rustix::fs::statat(dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)
                .what(|| format!("stat {shown}"))?;
            let excluded = self
                .source
                .ignore
                .excludes(&rel.iter().map(String::as_str).collect::<Vec<_>>());
            let kind = FileType::from_raw_mode(st.st_mode);
            match kind {
                FileType::Directory if excluded && !self.source.ignore.has_exceptions() => {}
                FileType::Directory => {
                    let fd = open_dir_at(dir, name.as_bytes()).what(|| format!("open {shown}"))?;
                    // An excluded directory comes to be only if something in it is taken back in.
                    if !excluded {
                        let meta = self.meta(&st, self.xattrs(&fd));
                        self.unpacker.put(&to, Node::Dir, &meta)?;
                    }
                    self.tree(&fd, rel, &to)?;
                }
                _ if excluded => {}
                FileType::RegularFile => {
                    let flags =
                        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let fd = rustix::fs::openat(dir, name.as_str(), flags, Mode::empty())
                        .what(|| format!("open {shown}"))?;
                    self.file(File::from(fd), &st, &to, &shown)?;
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(dir, name.as_str(), Vec::new())
                        .what(|| format!("readlink {shown}"))?;
                    let meta = self.meta(&st, Vec::new());
                    self.unpacker
                        .put(&to, Node::Symlink(target.as_bytes()), &meta)?;
                }
                // A socket in a source tree is somebody's running program.
                FileType::Socket => {}
                _ => {
                    return Err(ImageError::Invalid(format!(
                        "{}: {shown:?} is a device or a pipe, which cannot be copied",
                        self.name
                    )));
                }
            }
            rel.pop();
        }
        Ok(())
    }

    /// If the file is a tar (by its content), extract it into the destination.
    fn extract_tar(&mut self, file: &File, shown: &str) -> Result<bool> {
        let fault = |e: std::io::Error| ImageError::io(format!("read {shown}"), e);
        let mut magic = [0u8; 6];
        let n = (&*file).read(&mut magic).map_err(fault)?;
        (&*file).rewind().map_err(fault)?;
        if magic[..n].starts_with(b"BZh") || magic[..n] == [0xfd, b'7', b'z', b'X', b'Z', 0] {
            return Err(ImageError::Invalid(format!(
                "ADD: {shown:?} is compressed with bzip2 or xz, which cannot be extracted here; use gzip or zstd, or COPY it"
            )));
        }
        let mut head = Vec::new();
        // A damaged stream is not a tar; it is then copied as it is.
        let is_tar = decompress(file)
            .and_then(|r| r.take(512).read_to_end(&mut head))
            .is_ok_and(|n| n == 512 && &head[257..262] == b"ustar");
        (&*file).rewind().map_err(fault)?;
        if !is_tar {
            return Ok(false);
        }
        let into = self.dest.trim_matches('/').as_bytes().to_vec();
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        self.unpacker.make_dirs(&into, &dir_meta(uid, gid))?;
        let plain = decompress(file).map_err(fault)?;
        self.unpacker.extract(plain, &into, self.owner)?;
        Ok(true)
    }
}

/// Turn an O_PATH descriptor into one that can be read.
fn reopen(fd: &OwnedFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let p = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(p, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

fn names(dir: &OwnedFd) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for e in rustix::fs::Dir::read_from(dir).what(|| "list a directory")? {
        let e = e.what(|| "list a directory")?;
        match e.file_name().to_str() {
            Ok("." | "..") => {}
            Ok(n) => out.push(n.to_owned()),
            Err(_) => {
                return Err(ImageError::Invalid(format!(
                    "the file name {:?} is not UTF-8",
                    e.file_name().to_string_lossy()
                )));
            }
        }
    }
    out.sort();
    Ok(out)
}
