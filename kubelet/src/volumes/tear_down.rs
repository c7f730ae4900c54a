//! Removal of a pod's directory with everything that is mounted in it. Owns the order: unmount first, and never delete
//! through a mount that is still there.

use rustix::mount::{UnmountFlags, unmount};
use std::fs;
use std::path::{Path, PathBuf};

/// Unmounts everything below the directory and removes it. Fine when it is not there.
///
/// # Errors
/// A mount that would not go, or the file system's error.
pub fn remove_pod_dir(dir: &Path) -> Result<(), String> {
    if !dir.exists() {
        return Ok(());
    }
    for mount in mounts_below(dir)? {
        if unmount(&mount, UnmountFlags::NOFOLLOW).is_err() {
            // Something still holds it open; it goes from the tree now and for good later.
            unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|e| format!("unmounting {}: {e}", mount.display()))?;
        }
    }
    if let Some(left) = mounts_below(dir)?.first() {
        return Err(format!("{} is still mounted", left.display()));
    }
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(format!("removing {}: {e}", dir.display())),
    }
}

/// Mount points at or below a directory, the innermost first.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(unescape)
        .filter(|p| p.starts_with(&dir))
        .collect();
    // Later mounts cover earlier ones.
    found.reverse();
    Ok(found)
}

/// Blanks and backslashes are octal in mountinfo.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
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
    PathBuf::from(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_paths_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/plain"), PathBuf::from("/plain"));
    }
}
