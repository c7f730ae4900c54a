//! Removal of a pod's directory with everything that is mounted in it. Owns the order: unmount first, and never delete
//! through a mount that is still there. What containers made in it is not trusted.

use super::place::Place;
use super::work::Closed;
use rustix::mount::{UnmountFlags, unmount};
use skiff_beneath::Root;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Unmounts everything at or below a path and removes it. Fine when it is not there.
///
/// # Errors
/// A mount that would not go, or the file system's error.
pub fn remove(path: &Path) -> Result<(), String> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("{} cannot be removed", path.display()));
    };
    let fail = |e: io::Error| format!("removing {}: {e}", path.display());
    let parent = match Root::open(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        r => r.map_err(fail)?,
    };
    let whole = real_path(&parent).map_err(fail)?.join(name);
    for mount in mounts_below(&whole)? {
        let relative = mount.strip_prefix(&whole).unwrap_or(Path::new(""));
        take_down(&parent, &Path::new(name).join(relative))
            .map_err(|e| format!("unmounting {}: {e}", mount.display()))?;
    }
    if let Some(left) = mounts_below(&whole)?.first() {
        return Err(format!("{} is still mounted", left.display()));
    }
    parent.remove_tree(name).map_err(fail)
}

/// Takes away again what work made that came back after its pod's volumes were removed.
pub fn if_late(place: &Place, closed: &Closed) {
    if !closed.is() {
        return;
    }
    for part in ["volume-subpaths", "volumes"] {
        if let Err(e) = remove(&place.path().join(part)) {
            tracing::warn!(error = %e, "late volumes of a pod that has ended could not be removed");
        }
    }
    // Termination messages stay until the pod is deleted; an empty directory is nobody's.
    let _ = fs::remove_dir(place.path());
}

/// Unmounts what is mounted at a path below a directory, without following a link on the way.
///
/// # Errors
/// The kernel's; INVAL when nothing is mounted there.
pub fn take_down(below: &Root, path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = below.dir_across(parent)?;
    let at = Path::new(&parent.proc_path()).join(name);
    match unmount(&at, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        // Something still holds it open; it goes from the tree now and for good later.
        Err(_) => Ok(unmount(&at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?),
    }
}

fn real_path(dir: &Root) -> io::Result<PathBuf> {
    fs::read_link(dir.proc_path())
}

/// Mount points at or below a directory, the innermost first.
///
/// # Errors
/// There is no /proc.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let table =
        fs::read("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    let mut found: Vec<PathBuf> = table
        .split(|b| *b == b'\n')
        .filter_map(|l| l.split(|b| *b == b' ').nth(4))
        .map(unescape)
        .filter(|p| p.starts_with(dir))
        .collect();
    // Later mounts cover earlier ones.
    found.reverse();
    Ok(found)
}

/// Blanks and backslashes are octal in mountinfo.
fn unescape(bytes: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes
            .get(i + 1..i + 4)
            .filter(|_| bytes[i] == b'\\')
            .and_then(|o| std::str::from_utf8(o).ok())
            .and_then(|o| u8::from_str_radix(o, 8).ok());
        match octal {
            Some(b) => {
                out.push(b);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Removes directories of a folder whose name says so, with all that is in them; goes on after a failure.
pub fn remove_entries(dir: &Path, which: impl Fn(&OsStr) -> bool) {
    let Ok(root) = Root::open(dir) else { return };
    for (name, _) in root.entries().unwrap_or_default() {
        if which(&name)
            && let Err(e) = root.remove_tree(&name)
        {
            let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
            tracing::warn!(dir = %dir.display(), name, error = %e, "could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn mountinfo_paths_are_unescaped() {
        assert_eq!(unescape(b"/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape(b"/plain"), PathBuf::from("/plain"));
    }

    #[test]
    fn mounts_and_all_that_containers_made_go_and_nothing_outside() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        for d in ["pod/v/a b/m", "pod/v/n", "host/x"] {
            fs::create_dir_all(t.join(d)).unwrap();
        }
        symlink("../../../host", t.join("pod/v/a b/link")).unwrap();
        fs::write(t.join("pod/v/file"), "").unwrap();
        let fifo = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mkfifoat(rustix::fs::CWD, t.join("pod/v/fifo"), fifo).unwrap();
        let bind = |from: &str, to: &str| rustix::mount::mount_bind(t.join(from), t.join(to));
        bind("host", "pod/v/a b/m").unwrap();
        bind("host", "pod/v/a b/m/x").unwrap();
        bind("pod/v/file", "pod/v/file").unwrap();
        remove(&t.join("pod")).unwrap();
        assert!(!t.join("pod").exists() && t.join("host/x").exists());
        remove(&t.join("pod")).unwrap();
        remove(&t.join("none/pod")).unwrap();
    }

    #[test]
    fn a_link_on_the_way_to_a_mount_is_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        fs::create_dir_all(t.join("pod/d")).unwrap();
        fs::create_dir_all(t.join("host/m")).unwrap();
        rustix::mount::mount_bind(t.join("host"), t.join("host/m")).unwrap();
        symlink("../host", t.join("pod/v")).unwrap();
        let pod = Root::open(t.join("pod")).unwrap();
        let refused = take_down(&pod, Path::new("v/m")).is_err();
        let there = !mounts_below(&t.join("host")).unwrap().is_empty();
        unmount(t.join("host/m"), UnmountFlags::DETACH).unwrap();
        assert!(refused && there);
    }
}
