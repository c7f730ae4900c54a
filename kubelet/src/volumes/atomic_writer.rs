//! Files that change all at once (upstream pkg/volume/util/atomic_writer.go): `file -> ..data/file`,
//! `..data -> ..<time>`; an update writes a new directory and renames one symlink. Owns that layout only.

use super::ownership;
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
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

/// Makes the directory hold exactly these files. Does nothing when it does already.
///
/// # Errors
/// A path that leaves the directory (`..`, absolute), or the file system's error.
pub fn write(dir: &Path, payload: &Payload, group: Option<i64>) -> io::Result<()> {
    for path in payload.keys() {
        check(path)?;
    }
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
    let old = fs::read_link(dir.join(DATA))
        .ok()
        .filter(|t| t.components().count() == 1);
    if let Some(old) = &old
        && holds(&dir.join(old), payload)
        && visible(dir)? == roots(payload)
    {
        return Ok(());
    }
    let fresh = fresh_name(dir);
    let fresh_dir = dir.join(&fresh);
    let result = fill(dir, &fresh_dir, &fresh, payload, group);
    if result.is_err() {
        let _ = fs::remove_dir_all(&fresh_dir);
        return result;
    }
    if let Some(old) = old {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    Ok(())
}

fn fill(
    dir: &Path,
    fresh_dir: &Path,
    fresh: &str,
    payload: &Payload,
    group: Option<i64>,
) -> io::Result<()> {
    fs::create_dir(fresh_dir)?;
    fs::set_permissions(fresh_dir, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = fresh_dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.data)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
        if let Some(owner) = file.owner {
            chownat(
                CWD,
                &target,
                Some(Uid::from_raw(owner)),
                None::<Gid>,
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
    }
    if let Some(group) = group {
        ownership::set_group(fresh_dir, group)?;
    }
    let _ = fs::remove_file(dir.join(DATA_TMP));
    symlink(fresh, dir.join(DATA_TMP))?;
    fs::rename(dir.join(DATA_TMP), dir.join(DATA))?;
    // What users see are links through ..data; only first path elements are linked.
    let wanted = roots(payload);
    for name in visible(dir)? {
        if !wanted.contains(&name) {
            fs::remove_file(dir.join(name))?;
        }
    }
    for name in wanted {
        let link = dir.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&name), link)?;
        }
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

fn roots(payload: &Payload) -> BTreeSet<String> {
    payload
        .keys()
        .filter_map(|p| p.split('/').find(|s| !s.is_empty() && *s != "."))
        .map(Into::into)
        .collect()
}

/// Links that users see: everything whose name does not begin with two dots.
fn visible(dir: &Path) -> io::Result<BTreeSet<String>> {
    Ok(fs::read_dir(dir)?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| !n.starts_with(".."))
        .collect())
}

fn holds(dir: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut stack = vec![dir.to_path_buf()];
    while let Some(d) = stack.pop() {
        let Ok(entries) = fs::read_dir(&d) else {
            return false;
        };
        for e in entries.flatten() {
            let path = e.path();
            let Ok(meta) = fs::symlink_metadata(&path) else {
                return false;
            };
            if meta.is_dir() {
                stack.push(path);
                continue;
            }
            let Some(file) = path
                .strip_prefix(dir)
                .ok()
                .and_then(|r| r.to_str())
                .and_then(|r| {
                    payload
                        .iter()
                        .find(|(k, _)| Path::new(k) == Path::new(r))
                        .map(|(_, f)| f)
                })
            else {
                return false;
            };
            if fs::read(&path).ok().as_ref() != Some(&file.data) {
                return false;
            }
            found += 1;
        }
    }
    found == payload.len()
}

fn fresh_name(dir: &Path) -> String {
    let stamp = jiff::Timestamp::now()
        .strftime("%Y_%m_%d_%H_%M_%S")
        .to_string();
    loop {
        let name = format!("..{stamp}.{}", rand::random::<u32>());
        if !dir.join(&name).exists() {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(p, d)| (p.to_string(), File::new(d.as_bytes().to_vec(), 0o640)))
            .collect()
    }

    fn look(dir: &Path) -> String {
        visible(dir)
            .unwrap()
            .iter()
            .map(|n| {
                let p = dir.join(n);
                if p.is_dir() {
                    format!("{n}/ ")
                } else {
                    format!("{n}={} ", fs::read_to_string(p).unwrap())
                }
            })
            .collect()
    }

    #[test]
    fn files_change_all_at_once_and_stale_ones_go() {
        let tmp = std::env::temp_dir().join(format!("skiff-aw-{}", rand::random::<u64>()));
        write(&tmp, &payload(&[("a", "1"), ("d/x", "2")]), None).unwrap();
        assert_eq!(look(&tmp), "a=1 d/ ");
        assert_eq!(fs::read_to_string(tmp.join("d/x")).unwrap(), "2");
        assert_eq!(
            fs::metadata(tmp.join("a")).unwrap().permissions().mode() & 0o777,
            0o640
        );
        let first = fs::read_link(tmp.join(DATA)).unwrap();
        write(&tmp, &payload(&[("a", "1"), ("d/x", "2")]), None).unwrap();
        assert_eq!(
            fs::read_link(tmp.join(DATA)).unwrap(),
            first,
            "nothing changed, nothing is written"
        );
        write(&tmp, &payload(&[("a", "3"), ("b", "4")]), None).unwrap();
        assert_eq!(look(&tmp), "a=3 b=4 ");
        assert!(!tmp.join(first).exists());
        for bad in ["../x", "/x", "a/../b", "..data", ""] {
            assert!(write(&tmp, &payload(&[(bad, "")]), None).is_err(), "{bad}");
        }
        fs::remove_dir_all(tmp).unwrap();
    }
}
