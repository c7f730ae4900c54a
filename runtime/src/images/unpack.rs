//! Owns applying a layer's tar to a directory that becomes an overlay lower directory. Must never touch anything
//! outside that directory, whatever the tar says, and must not know where the tar comes from.
//! Paths are the matter of [`super::tree`]; this is about what a tar's entries mean: types, PAX records, whiteouts, links.

use super::digest::{Digest, HashingReader};
use super::error::IoContext;
use super::limits::Allowance;
use super::lower::{Lower, is_whiteout, open_dir_at};
use super::store::Usage;
use super::tree::{Meta, TreeWriter, mtime_of};
use super::{ImageError, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

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
    let mut u = TreeWriter::new(root, Lower::open(lower)?, layer, true);
    let read = u.apply_all(HashingReader::new(reader))?;
    u.finish()?;
    let usage = u.usage;
    let (diff_id, _) = read
        .finish()
        .map_err(|e| u.read_error("(end of the tar)", &e))?;
    Ok(Unpacked { diff_id, usage })
}

impl TreeWriter {
    pub(super) fn read_error(&self, path: &str, e: &io::Error) -> ImageError {
        self.error(
            path.as_bytes(),
            format!("the tar is damaged: {}", one_line(e)),
        )
    }

    /// Applies every entry; gives the reader back, behind the last one.
    fn apply_all<R: Read>(&mut self, mut reader: R) -> Result<R> {
        let (bounded, allowance) = Allowance::new(&mut reader);
        let mut archive = tar::Archive::new(bounded);
        let mut before = "(start of the tar)".to_owned();
        let mut entries = archive
            .entries()
            .map_err(|e| self.read_error(&before, &e))?;
        let mut count = 0;
        loop {
            // Between two entries there are only headers, which the library holds in memory.
            allowance.set(self.limits.header);
            let entry = entries.next();
            allowance.set(u64::MAX);
            let Some(entry) = entry else { break };
            let mut entry = entry.map_err(|e| self.read_error(&format!("(after {before})"), &e))?;
            let path = entry.path_bytes().into_owned();
            before = String::from_utf8_lossy(&path).into_owned();
            count += 1;
            if count > self.limits.entries {
                return Err(self.error(
                    &path,
                    format!("the layer has more than {} entries", self.limits.entries),
                ));
            }
            self.apply(&mut entry, &path)?;
            // What the entry's kind has no use for.
            io::copy(&mut entry, &mut io::sink()).map_err(|e| self.read_error(&before, &e))?;
        }
        drop(archive);
        Ok(reader)
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
        let r = self.apply_all(reader).map(drop);
        self.prefix.clear();
        self.owner = None;
        r
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
                        xattrs: super::tree::list_xattrs(
                            &src.as_fd().try_clone_to_owned().what(|| "dup")?,
                        ),
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

#[cfg(test)]
mod tests {
    use super::super::tree::Comps;
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

    fn unpack_within(
        tar: &[u8],
        change: impl FnOnce(&mut super::super::limits::Limits),
    ) -> Result<()> {
        let t = tempfile::tempdir().unwrap();
        let root =
            rustix::fs::open(t.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut u = TreeWriter::new(root, Lower::open(&[]).unwrap(), "bomb", true);
        change(&mut u.limits);
        u.apply_all(tar).map(drop)
    }

    #[test]
    fn a_layer_that_is_a_bomb_is_refused_before_it_fills_disk_or_memory() {
        let entry = |kind: tar::EntryType, size: u64, data: &[u8]| {
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(kind);
            h.set_path("f").unwrap();
            h.set_mode(0o644);
            h.set_size(size);
            h.set_cksum();
            let mut out = h.as_bytes().to_vec();
            out.extend_from_slice(data);
            out.resize(out.len().div_ceil(512) * 512, 0);
            out
        };
        let file = entry(tar::EntryType::Regular, 5000, &[0; 5000]);
        unpack_within(&file, |_| {}).unwrap();
        let e = unpack_within(&file, |l| l.bytes = 4999).unwrap_err();
        assert!(
            matches!(&e, ImageError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
            "{e}"
        );
        let many: Vec<u8> = (0..4)
            .flat_map(|_| entry(tar::EntryType::Directory, 0, &[]))
            .collect();
        unpack_within(&many, |l| l.entries = 4).unwrap();
        let e = unpack_within(&many, |l| l.entries = 3)
            .unwrap_err()
            .to_string();
        assert!(e.contains("more than 3 entries"), "{e}");
        // A name and a PAX record of 2 MiB; and the same as the data of an entry that has no use for any, which is skipped.
        let long = vec![b'x'; 2 << 20];
        let record = {
            let mut r = format!("{} comment=", (2 << 20) + 100).into_bytes();
            r.resize((2 << 20) + 99, b'y');
            r.push(b'\n');
            r
        };
        for bomb in [
            entry(tar::EntryType::GNULongName, long.len() as u64, &long),
            entry(tar::EntryType::GNULongLink, long.len() as u64, &long),
            entry(tar::EntryType::XHeader, record.len() as u64, &record),
        ] {
            let tar = [bomb, file.clone()].concat();
            let e = unpack_within(&tar, |_| {}).unwrap_err().to_string();
            assert!(e.contains("headers of one entry are too long"), "{e}");
        }
        let fat = [
            entry(tar::EntryType::Directory, long.len() as u64, &long),
            entry(tar::EntryType::Regular, 1, b"1"),
        ]
        .concat();
        unpack_within(&fat, |_| {}).unwrap();
    }
}
