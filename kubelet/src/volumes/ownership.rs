//! fsGroup: group and permission bits of a volume's files (upstream pkg/volume/volume_linux.go). Owns nothing.

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Gives everything below (and `path` itself) to the group: files readable and writable by it, directories also
/// searchable and setgid. Symlinks themselves are given, never what they point to.
pub fn set_group(path: &Path, group: i64) -> io::Result<()> {
    let gid = u32::try_from(group).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("fsGroup {group} is no group id"),
        )
    })?;
    let meta = fs::symlink_metadata(path)?;
    chownat(
        CWD,
        path,
        None::<Uid>,
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mut mode = meta.permissions().mode() | 0o660;
    if meta.is_dir() {
        mode |= 0o2110;
        for entry in fs::read_dir(path)? {
            set_group(&entry?.path(), group)?;
        }
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
}

/// Is the root of the volume as [`set_group`] leaves it? (fsGroupChangePolicy OnRootMismatch)
pub fn root_matches(path: &Path, group: i64) -> bool {
    fs::metadata(path)
        .is_ok_and(|m| i64::from(m.gid()) == group && m.permissions().mode() & 0o2770 == 0o2770)
}
