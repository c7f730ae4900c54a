//! Owns writing a layer directory (or an overlay's upper directory) as a layer tar. Must not change the directory.
//! The same directory always gives the same bytes: names are sorted, times are whole seconds, names of users are left
//! out. Whiteouts and opaque marks become the `.wh.` names of the OCI image spec.

use super::error::IoContext;
use super::lower::{is_opaque, is_whiteout, open_dir_at};
use super::store::Usage;
use super::tree::list_xattrs;
use super::{ImageError, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How to write.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiffOptions {
    /// Later times become this one (SOURCE_DATE_EPOCH's meaning).
    pub clamp_mtime: Option<i64>,
}

/// Write everything below `dir` as a tar into `out`. Returns the writer and what was counted.
pub fn write_layer<W: Write>(dir: &Path, out: W, options: DiffOptions) -> Result<(W, Usage)> {
    let root = rustix::fs::open(
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .what(|| format!("open {}", dir.display()))?;
    let mut w = Writer {
        tar: tar::Builder::new(out),
        links: HashMap::new(),
        usage: Usage::default(),
        options,
    };
    w.usage.inodes += 1;
    w.walk(&root, &mut Vec::new())?;
    let out = w.tar.into_inner().what(|| "write the layer")?;
    Ok((out, w.usage))
}

struct Writer<W: Write> {
    tar: tar::Builder<W>,
    /// First path of each file with several links.
    links: HashMap<(u64, u64), Vec<u8>>,
    usage: Usage,
    options: DiffOptions,
}

impl<W: Write> Writer<W> {
    fn walk(&mut self, dir: &OwnedFd, path: &mut Vec<u8>) -> Result<()> {
        let shown = |p: &[u8]| String::from_utf8_lossy(p).into_owned();
        let mut names = Vec::new();
        let entries = rustix::fs::Dir::read_from(dir).what(|| format!("list {:?}", shown(path)))?;
        for e in entries {
            let e = e.what(|| format!("list {:?}", shown(path)))?;
            let n = e.file_name().to_bytes();
            if n != b"." && n != b".." {
                names.push(n.to_vec());
            }
        }
        names.sort();
        for name in names {
            let len = path.len();
            if len > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let st = rustix::fs::statat(dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
                .what(|| format!("stat {:?}", shown(path)))?;
            self.entry(dir, &name, path, &st)?;
            path.truncate(len);
        }
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &[u8], path: &mut Vec<u8>, st: &Stat) -> Result<()> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let kind = FileType::from_raw_mode(st.st_mode);
        if is_whiteout(st) {
            let mut wh = path[..path.len() - name.len()].to_vec();
            wh.extend_from_slice(b".wh.");
            wh.extend_from_slice(name);
            return self.append(
                &wh,
                tar::EntryType::Regular,
                None,
                None,
                &[],
                &mut io::empty(),
            );
        }
        if kind != FileType::Directory && st.st_nlink > 1 {
            if let Some(first) = self.links.get(&(st.st_dev, st.st_ino)).cloned() {
                return self.append(
                    path,
                    tar::EntryType::Link,
                    Some(st),
                    Some(&first),
                    &[],
                    &mut io::empty(),
                );
            }
            self.links.insert((st.st_dev, st.st_ino), path.clone());
        }
        match kind {
            FileType::Directory => {
                let fd = open_dir_at(dir, name).what(|| format!("open {shown:?}"))?;
                let xattrs = list_xattrs(&fd);
                path.push(b'/');
                self.append(
                    path,
                    tar::EntryType::Directory,
                    Some(st),
                    None,
                    &xattrs,
                    &mut io::empty(),
                )?;
                self.usage.inodes += 1;
                if is_opaque(&fd) {
                    let mut opq = path.clone();
                    opq.extend_from_slice(b".wh..wh..opq");
                    self.append(
                        &opq,
                        tar::EntryType::Regular,
                        None,
                        None,
                        &[],
                        &mut io::empty(),
                    )?;
                }
                path.pop();
                self.walk(&fd, path)
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let fd = rustix::fs::openat(dir, name, flags, Mode::empty())
                    .what(|| format!("open {shown:?}"))?;
                let xattrs = list_xattrs(&fd);
                // A file that grows while it is read must not break the tar.
                let mut data = File::from(fd).take(st.st_size as u64);
                self.append(
                    path,
                    tar::EntryType::Regular,
                    Some(st),
                    None,
                    &xattrs,
                    &mut data,
                )?;
                self.usage.inodes += 1;
                self.usage.bytes += st.st_size as u64;
                if data.limit() > 0 {
                    return Err(ImageError::Invalid(format!(
                        "{shown:?} changed while it was read"
                    )));
                }
                Ok(())
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())
                    .what(|| format!("readlink {shown:?}"))?;
                let xattrs = link_xattrs(dir, name);
                self.usage.inodes += 1;
                self.append(
                    path,
                    tar::EntryType::Symlink,
                    Some(st),
                    Some(target.as_bytes()),
                    &xattrs,
                    &mut io::empty(),
                )
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                let t = match kind {
                    FileType::CharacterDevice => tar::EntryType::Char,
                    FileType::BlockDevice => tar::EntryType::Block,
                    _ => tar::EntryType::Fifo,
                };
                self.usage.inodes += 1;
                self.append(path, t, Some(st), None, &[], &mut io::empty())
            }
            // Sockets have no place in a tar; Docker leaves them out too.
            _ => Ok(()),
        }
    }

    fn append(
        &mut self,
        path: &[u8],
        kind: tar::EntryType,
        st: Option<&Stat>,
        link: Option<&[u8]>,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        data: &mut dyn Read,
    ) -> Result<()> {
        let shown = || format!("write {:?} to the layer", String::from_utf8_lossy(path));
        let mut h = tar::Header::new_ustar();
        h.set_entry_type(kind);
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        h.as_mut_bytes()[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        if path.len() > 100 {
            pax.push(("path".into(), path.to_vec()));
        }
        if let Some(l) = link {
            h.as_mut_bytes()[157..157 + l.len().min(100)].copy_from_slice(&l[..l.len().min(100)]);
            if l.len() > 100 {
                pax.push(("linkpath".into(), l.to_vec()));
            }
        }
        h.set_size(0);
        match st {
            Some(st) => {
                h.set_mode(st.st_mode & 0o7777);
                let mtime = self
                    .options
                    .clamp_mtime
                    .map_or(st.st_mtime, |c| c.min(st.st_mtime));
                // Octal fields hold numbers up to 8^7 and 8^11; larger ones go into records of their own.
                for (key, value, limit) in [
                    ("uid", st.st_uid as u64, 1 << 21),
                    ("gid", st.st_gid as u64, 1 << 21),
                ] {
                    if value >= limit {
                        pax.push((key.into(), value.to_string().into_bytes()));
                    }
                }
                h.set_uid((st.st_uid as u64).min((1 << 21) - 1));
                h.set_gid((st.st_gid as u64).min((1 << 21) - 1));
                h.set_mtime(mtime.clamp(0, (1 << 33) - 1) as u64);
                if mtime < 0 {
                    pax.push(("mtime".into(), mtime.to_string().into_bytes()));
                }
                if kind == tar::EntryType::Regular {
                    h.set_size(st.st_size as u64);
                    if st.st_size as u64 >= 1 << 33 {
                        pax.push(("size".into(), st.st_size.to_string().into_bytes()));
                    }
                }
                if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
                    h.set_device_major(rustix::fs::major(st.st_rdev))
                        .what(shown)?;
                    h.set_device_minor(rustix::fs::minor(st.st_rdev))
                        .what(shown)?;
                }
            }
            None => {
                h.set_mode(0);
                h.set_uid(0);
                h.set_gid(0);
                h.set_mtime(0);
            }
        }
        for (k, v) in xattrs {
            pax.push((
                format!("SCHILY.xattr.{}", String::from_utf8_lossy(k)),
                v.clone(),
            ));
        }
        if !pax.is_empty() {
            let records: Vec<(&str, &[u8])> = pax
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_slice()))
                .collect();
            self.tar.append_pax_extensions(records).what(shown)?;
        }
        h.set_cksum();
        self.tar.append(&h, data).what(shown)
    }
}

fn link_xattrs(dir: &OwnedFd, name: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut p = std::path::PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    p.push(std::ffi::OsStr::from_bytes(name));
    let mut out = Vec::new();
    for key in xattr::list(&p).into_iter().flatten() {
        let k = key.as_bytes();
        if k.starts_with(b"trusted.overlay.") || k == b"security.selinux" {
            continue;
        }
        if let Ok(Some(v)) = xattr::get(&p, &key) {
            out.push((k.to_vec(), v));
        }
    }
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::digest::Digest;
    use crate::images::unpack::unpack_layer;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn tar_of(dir: &Path) -> Vec<u8> {
        write_layer(dir, Vec::new(), DiffOptions::default())
            .unwrap()
            .0
    }

    #[test]
    fn a_tree_survives_being_written_and_unpacked() {
        let t = tempfile::tempdir().unwrap();
        let a = t.path().join("a");
        let deep = a.join("d".repeat(90)).join("e".repeat(90));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("long"), b"long path").unwrap();
        fs::write(a.join("suid"), b"#!").unwrap();
        std::os::unix::fs::chown(a.join("suid"), Some(3_000_000), Some(7)).unwrap();
        fs::set_permissions(a.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(a.join("suid"), a.join("suid2")).unwrap();
        symlink("t".repeat(150), a.join("link")).unwrap();
        xattr::set(a.join("suid"), "user.note", b"hi").unwrap();
        let fifo = rustix::fs::mknodat(
            rustix::fs::CWD,
            a.join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        );
        fifo.unwrap();
        let dev = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            a.join("null"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            dev,
        )
        .unwrap();
        let tar = tar_of(&a);
        let b = t.path().join("b");
        fs::create_dir(&b).unwrap();
        let got = unpack_layer(tar.as_slice(), &b, &[], "test").unwrap();
        assert_eq!(got.diff_id, Digest::of(&tar));
        assert_eq!(tar_of(&b), tar, "the same bytes again");
        let m = fs::metadata(b.join("suid")).unwrap();
        assert_eq!(
            (m.uid(), m.gid(), m.mode() & 0o7777, m.nlink()),
            (3_000_000, 7, 0o4755, 2)
        );
        assert_eq!(
            xattr::get(b.join("suid"), "user.note").unwrap().unwrap(),
            b"hi"
        );
        assert_eq!(fs::metadata(b.join("null")).unwrap().rdev(), dev);
    }

    #[test]
    fn deletions_of_an_upper_directory_become_whiteouts_and_back() {
        let t = tempfile::tempdir().unwrap();
        let low = t.path().join("low");
        fs::create_dir_all(low.join("etc")).unwrap();
        fs::create_dir_all(low.join("var/old")).unwrap();
        fs::write(low.join("etc/gone"), b"").unwrap();
        let up = t.path().join("up");
        fs::create_dir_all(up.join("etc")).unwrap();
        fs::create_dir_all(up.join("var")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            up.join("etc/gone"),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();
        xattr::set(up.join("var"), "trusted.overlay.opaque", b"y").unwrap();
        fs::write(up.join("var/new"), b"").unwrap();
        let tar = tar_of(&up);
        let names: Vec<String> = tar::Archive::new(tar.as_slice())
            .entries()
            .unwrap()
            .map(|e| String::from_utf8_lossy(&e.unwrap().path_bytes()).into_owned())
            .collect();
        assert_eq!(
            names,
            [
                "etc/",
                "etc/.wh.gone",
                "var/",
                "var/.wh..wh..opq",
                "var/new"
            ]
        );
        let back = t.path().join("back");
        fs::create_dir(&back).unwrap();
        unpack_layer(tar.as_slice(), &back, &[low], "test").unwrap();
        assert_eq!(tar_of(&back), tar);
    }

    #[test]
    fn times_after_the_clamp_are_clamped() {
        let t = tempfile::tempdir().unwrap();
        fs::write(t.path().join("f"), b"").unwrap();
        let (tar, _) = write_layer(
            t.path(),
            Vec::new(),
            DiffOptions {
                clamp_mtime: Some(42),
            },
        )
        .unwrap();
        let mut a = tar::Archive::new(tar.as_slice());
        assert_eq!(
            a.entries()
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .header()
                .mtime()
                .unwrap(),
            42
        );
    }
}
