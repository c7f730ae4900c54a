//! Files that change all at once (upstream pkg/volume/util/atomic_writer.go): `file -> ..data/file`,
//! `..data -> ..<time>`; an update writes a new directory and renames one symlink. Owns that layout only; everything is
//! done on descriptors, so whoever may write in the volume can disturb nothing outside of it.

use super::ownership::with_group;
use skiff_beneath::{Attributes, Root};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path};

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, when not root.
    pub owner: Option<u32>,
}

impl File {
    /// A file of root.
    pub fn new(data: Vec<u8>, mode: i32) -> Self {
        Self {
            data,
            mode: mode as u32 & 0o777,
            owner: None,
        }
    }
}

/// Files by relative path.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Makes the directory hold exactly these files, readable for the group. Does nothing when it does already.
///
/// # Errors
/// A path that leaves the directory (`..`, absolute), or the file system's error.
pub fn write(dir: &Root, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    for path in payload.keys() {
        check(path)?;
    }
    let old = dir
        .read_link(DATA)
        .ok()
        .filter(|t| is_stamp(t))
        .and_then(|t| t.into_string().ok());
    let wanted = roots(payload);
    if let Some(old) = &old
        && dir.dir(old).is_ok_and(|d| holds(&d, payload))
        && links(dir)? == wanted
    {
        return Ok(());
    }
    let fresh = fresh_name(dir);
    let result = fill(dir, &fresh, payload, group).and_then(|()| show(dir, &fresh, &wanted));
    let keep = match (&result, &old) {
        (Err(_), Some(old)) => old,
        _ => &fresh,
    };
    // The old files, and what a process that was killed left behind.
    for (name, _) in dir.entries()? {
        if is_stamp(&name) && name != keep.as_str() {
            let _ = dir.remove_tree(&name);
        }
    }
    result
}

fn fill(dir: &Root, fresh: &str, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    let mode = |mode: u32, directory| group.map_or(mode, |_| with_group(mode, directory, true));
    // Nobody sees the files before all are there.
    let top = dir.make_dir(fresh, 0o700)?;
    for (path, file) in payload {
        let mut parent = top.try_clone()?;
        let path = Path::new(path);
        for name in path.parent().into_iter().flat_map(Path::components) {
            parent = parent.make_dir(name.as_os_str(), 0o755)?;
            parent.set_owner(None, group)?;
            parent.set_mode(mode(0o755, true))?;
        }
        let attributes = Attributes {
            mode: mode(file.mode, false),
            user: file.owner,
            group,
        };
        let name = path.file_name().unwrap_or_default();
        parent.write_new(name, &file.data, attributes)?;
    }
    top.set_owner(None, group)?;
    top.set_mode(mode(0o755, true))
}

/// Turns `..data` to the new files, and makes the links that users see: only first path elements are linked.
fn show(dir: &Root, fresh: &str, wanted: &BTreeSet<String>) -> io::Result<()> {
    dir.remove_tree(DATA_TMP)?;
    dir.symlink(fresh, DATA_TMP)?;
    if dir.rename(DATA_TMP, DATA).is_err() {
        // Something else than our link has the name.
        dir.remove_tree(DATA)?;
        dir.rename(DATA_TMP, DATA)?;
    }
    for name in links(dir)?.difference(wanted) {
        dir.remove_file(name)?;
    }
    for name in wanted {
        if is_link(dir, name.as_ref()) {
            continue;
        }
        if dir.stat_at(name).is_ok() {
            // A directory that was made for a subPath while the key was missing.
            dir.remove_empty_dir(name)?;
        }
        dir.symlink(Path::new(DATA).join(name), name)?;
    }
    Ok(())
}

fn check(path: &str) -> io::Result<()> {
    let p = Path::new(path);
    let ok = !path.is_empty()
        && path.len() <= 4096
        && !path.starts_with("..")
        && p.components()
            .all(|c| matches!(c, Component::Normal(n) if n.len() <= 255));
    if ok {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("invalid path {path:?}: it must be relative and stay below the volume"),
    ))
}

/// A name that [`fresh_name`] gives, and nothing else: not `..`, not `..data`.
fn is_stamp(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|n| n.strip_prefix(".."))
        .is_some_and(|n| {
            n.starts_with(|c: char| c.is_ascii_digit())
                && n.bytes()
                    .all(|b| b.is_ascii_digit() || matches!(b, b'_' | b'.'))
        })
}

fn roots(payload: &Payload) -> BTreeSet<String> {
    payload
        .keys()
        .filter_map(|p| p.split('/').find(|s| !s.is_empty() && *s != "."))
        .map(Into::into)
        .collect()
}

fn is_link(dir: &Root, name: &OsStr) -> bool {
    dir.read_link(name)
        .is_ok_and(|t| Path::new(&t) == Path::new(DATA).join(name))
}

/// Links of ours that users see.
fn links(dir: &Root) -> io::Result<BTreeSet<String>> {
    Ok(dir
        .entries()?
        .into_iter()
        .filter(|(n, _)| is_link(dir, n))
        .filter_map(|(n, _)| n.into_string().ok())
        .collect())
}

fn holds(dir: &Root, payload: &Payload) -> bool {
    let mut files = 0;
    let counted = dir.walk(&mut |e| {
        files += usize::from(e.kind() != rustix::fs::FileType::Directory);
        if files > payload.len() {
            return Err(io::ErrorKind::Other.into());
        }
        Ok(())
    });
    counted.is_ok()
        && files == payload.len()
        && payload.iter().all(|(path, file)| {
            dir.read(path, file.data.len())
                .is_ok_and(|data| data == file.data)
        })
}

fn fresh_name(dir: &Root) -> String {
    let stamp = jiff::Timestamp::now()
        .strftime("%Y_%m_%d_%H_%M_%S")
        .to_string();
    loop {
        let name = format!("..{stamp}.{}", rand::random::<u32>());
        if dir.stat_at(&name).is_err() {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(p, d)| (p.to_string(), File::new(d.as_bytes().to_vec(), 0o640)))
            .collect()
    }

    fn look(dir: &Path) -> String {
        let mut out: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.starts_with(".."))
            .map(|n| match fs::read_to_string(dir.join(&n)) {
                Ok(text) => format!("{n}={text} "),
                Err(_) => format!("{n}/ "),
            })
            .collect();
        out.sort();
        out.concat()
    }

    #[test]
    fn files_change_all_at_once_and_stale_ones_go() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        let dir = Root::open(t).unwrap();
        fs::create_dir(t.join("..2020_01_01_00_00_00.1")).unwrap();
        write(&dir, &payload(&[("a", "1"), ("d/x", "2")]), None).unwrap();
        assert_eq!(look(t), "a=1 d/ ");
        assert_eq!(fs::read_to_string(t.join("d/x")).unwrap(), "2");
        let mode = |p: &str| fs::metadata(t.join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode("a"), mode("d"), mode("..data")),
            (0o640, 0o755, 0o755)
        );
        let first = fs::read_link(t.join(DATA)).unwrap();
        write(&dir, &payload(&[("a", "1"), ("d/x", "2")]), None).unwrap();
        assert_eq!(
            fs::read_link(t.join(DATA)).unwrap(),
            first,
            "nothing changed, nothing is written"
        );
        // A container waits with a subPath for a key that comes later.
        fs::create_dir(t.join("b")).unwrap();
        write(&dir, &payload(&[("a", "3"), ("b", "4")]), None).unwrap();
        assert_eq!(look(t), "a=3 b=4 ");
        assert!(!t.join(first).exists() && !t.join("..2020_01_01_00_00_00.1").exists());
        for bad in ["../x", "/x", "a/../b", "..data", ""] {
            assert!(write(&dir, &payload(&[(bad, "")]), None).is_err(), "{bad}");
        }
        assert!(write(&dir, &payload(&[("x", ""), ("x/y", "")]), None).is_err());
        assert_eq!(
            look(t),
            "a=3 b=4 ",
            "what cannot be written changes nothing"
        );
    }

    #[test]
    fn the_group_may_read_and_never_write() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Root::open(tmp.path()).unwrap();
        let files = [("plain", 0o440), ("own", 0o400), ("d/exec", 0o555)];
        let mut p: Payload = files
            .iter()
            .map(|(n, m)| (n.to_string(), File::new(Vec::new(), *m)))
            .collect();
        p.get_mut("own").unwrap().owner = Some(1000);
        write(&dir, &p, Some(7)).unwrap();
        let of = |p: &str| {
            let m = fs::metadata(tmp.path().join(p)).unwrap();
            (m.mode() & 0o7777, m.uid(), m.gid())
        };
        let me = of("plain").1;
        assert_eq!(of("plain"), (0o440, me, 7));
        assert_eq!(of("own"), (0o440, 1000, 7));
        assert_eq!(of("d/exec"), (0o555, me, 7));
        assert_eq!(of("d"), (0o2755, me, 7));
        assert_eq!(of("..data"), (0o2755, me, 7));
    }

    #[test]
    fn a_data_link_that_leads_elsewhere_makes_nothing_go() {
        for target in [
            "..",
            ".",
            "/",
            "../keep",
            "..data",
            "..2020/../../keep",
            "..9",
        ] {
            let tmp = tempfile::tempdir().unwrap();
            let t = tmp.path();
            fs::create_dir_all(t.join("keep/d")).unwrap();
            fs::create_dir(t.join("v")).unwrap();
            symlink("../keep", t.join("v/..9")).unwrap();
            symlink(target, t.join("v/..data")).unwrap();
            let dir = Root::open(t.join("v")).unwrap();
            write(&dir, &payload(&[("a", "1")]), None).unwrap();
            assert_eq!(look(&t.join("v")), "a=1 ", "{target}");
            assert!(
                t.join("keep/d").exists() && t.join("v").exists(),
                "{target}"
            );
        }
    }

    #[test]
    fn whatever_is_in_the_volume_the_writer_neither_waits_nor_leaves_it() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        fs::create_dir(t.join("out")).unwrap();
        fs::create_dir_all(t.join("v/..data/full")).unwrap();
        let fifo = |p: &str| {
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            rustix::fs::mkfifoat(rustix::fs::CWD, t.join(p), mode).unwrap();
        };
        let dir = Root::open(t.join("v")).unwrap();
        fifo("v/..data_tmp");
        write(&dir, &payload(&[("a", "1")]), None).unwrap();
        let now = fs::read_link(t.join("v/..data")).unwrap();
        // The file that is compared is a FIFO, then a link, then larger than any memory.
        let file = Path::new("v").join(&now).join("a");
        fs::remove_file(t.join(&file)).unwrap();
        fifo(file.to_str().unwrap());
        write(&dir, &payload(&[("a", "1")]), None).unwrap();
        assert_eq!(look(&t.join("v")), "a=1 ");
        let now = t.join("v").join(fs::read_link(t.join("v/..data")).unwrap());
        fs::remove_file(now.join("a")).unwrap();
        symlink("/dev/zero", now.join("a")).unwrap();
        write(&dir, &payload(&[("a", "1")]), None).unwrap();
        let now = t.join("v").join(fs::read_link(t.join("v/..data")).unwrap());
        let big = fs::File::create(now.join("a")).unwrap();
        big.set_len(1 << 40).unwrap();
        write(&dir, &payload(&[("a", "1")]), None).unwrap();
        assert_eq!(look(&t.join("v")), "a=1 ");
        assert_eq!(fs::read_dir(t.join("out")).unwrap().count(), 0);
    }

    /// The proved hole: the fresh directory is exchanged for a link as soon as it shows, and root writes outside.
    #[test]
    fn a_container_that_exchanges_the_fresh_directory_for_a_link_writes_nothing_outside() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        fs::create_dir_all(t.join("out/sub")).unwrap();
        fs::create_dir(t.join("v")).unwrap();
        fs::set_permissions(t.join("out"), fs::Permissions::from_mode(0o700)).unwrap();
        let before = fs::metadata(t.join("out")).unwrap();
        let dir = Root::open(t.join("v")).unwrap();
        let stop = AtomicBool::new(false);
        let swapped = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|s| {
            for target in ["../out", ".."] {
                let (stop, swapped) = (&stop, &swapped);
                s.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        for e in fs::read_dir(t.join("v")).into_iter().flatten().flatten() {
                            let aside = t.join("v").join(format!("aside-{target:.2}"));
                            if !is_stamp(&e.file_name()) || !e.file_type().is_ok_and(|k| k.is_dir())
                            {
                                continue;
                            }
                            let _ = fs::remove_dir_all(&aside);
                            if fs::rename(e.path(), &aside).is_ok()
                                && symlink(target, e.path()).is_ok()
                            {
                                swapped.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        let _ = fs::remove_file(t.join("v/..data"));
                        let _ = symlink(target, t.join("v/..data"));
                    }
                });
            }
            for n in 0..400 {
                let text = n.to_string();
                let _ = write(&dir, &payload(&[("sub/f", &text), ("g", &text)]), Some(7));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(swapped.load(Ordering::Relaxed) > 0, "nothing was tried");
        let names: BTreeSet<_> = fs::read_dir(t.join("out"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, BTreeSet::from(["sub".into()]));
        assert_eq!(fs::read_dir(t.join("out/sub")).unwrap().count(), 0);
        let after = fs::metadata(t.join("out")).unwrap();
        assert_eq!((after.mode(), after.gid()), (before.mode(), before.gid()));
        let names: BTreeSet<_> = fs::read_dir(t)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, BTreeSet::from(["out".into(), "v".into()]));
    }
}
