//! Owns the read-only merged view of stacked layers (what overlayfs would show), without mounting anything.
//! Must not change the layers. Used to unpack a layer on top of others: attributes of directories the layer only
//! passes through, link targets and whiteouts depend on what is below.

use super::Result;
use super::error::IoContext;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Layers below, top first.
pub struct Lower {
    roots: Vec<OwnedFd>,
}

/// An entry of the merged view, not followed if it is a link.
pub struct Found {
    /// Directory of the layer that holds it.
    pub dir: OwnedFd,
    pub name: Vec<u8>,
    pub stat: Stat,
}

/// Overlayfs' mark of a deleted name: a character device 0:0.
pub fn is_whiteout(st: &Stat) -> bool {
    FileType::from_raw_mode(st.st_mode) == FileType::CharacterDevice && st.st_rdev == 0
}

/// Does this directory hide what lower layers have in it?
pub fn is_opaque(dir: &OwnedFd) -> bool {
    let mut buf = [0u8; 8];
    matches!(rustix::fs::fgetxattr(dir, "trusted.overlay.opaque", &mut buf), Ok(1) if buf[0] == b'y')
}

/// Open a real directory by one name, never through a link.
pub fn open_dir_at(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

impl Lower {
    /// Open the layers' directories (top first).
    pub fn open(dirs: &[PathBuf]) -> Result<Self> {
        let mut roots = Vec::with_capacity(dirs.len());
        for d in dirs {
            let fd = rustix::fs::open(
                d.as_path(),
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .what(|| format!("open layer {}", d.display()))?;
            roots.push(fd);
        }
        Ok(Lower { roots })
    }

    /// Is there nothing below?
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Look a path up; links in it are not followed (the caller walks one name at a time and follows them itself).
    pub fn find(&self, path: &[Vec<u8>]) -> Result<Option<Found>> {
        let Some((last, parents)) = path.split_last() else {
            return Ok(None);
        };
        let mut active: Vec<OwnedFd> = Vec::new();
        for r in &self.roots {
            active.push(rustix::io::dup(r).what(|| "duplicate a layer's descriptor")?);
        }
        for name in parents {
            let mut next = Vec::new();
            for dir in &active {
                match rustix::fs::statat(dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => continue,
                    Err(e) => {
                        return Err(e).what(|| {
                            format!("stat {:?} in a lower layer", String::from_utf8_lossy(name))
                        });
                    }
                    Ok(st) if FileType::from_raw_mode(st.st_mode) == FileType::Directory => {
                        let fd =
                            open_dir_at(dir, name).what(|| "open a directory of a lower layer")?;
                        let opaque = is_opaque(&fd);
                        next.push(fd);
                        if opaque {
                            break;
                        }
                    }
                    // A file or whiteout hides what is below it.
                    Ok(_) => break,
                }
            }
            active = next;
        }
        for dir in active {
            match rustix::fs::statat(&dir, last.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                Err(e) => {
                    return Err(e).what(|| {
                        format!("stat {:?} in a lower layer", String::from_utf8_lossy(last))
                    });
                }
                Ok(st) if is_whiteout(&st) => return Ok(None),
                Ok(stat) => {
                    return Ok(Some(Found {
                        dir,
                        name: last.clone(),
                        stat,
                    }));
                }
            }
        }
        Ok(None)
    }
}
