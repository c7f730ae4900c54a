//! Container logs in the CRI's format, `<time> <stream> <P|F> <text>`: reading them for users, rotating them. The
//! runtime writes them; nothing here does. A log is reached beneath the logs' directory without following links: pods
//! that may write there (log collectors do) must not choose what the kubelet reads, renames or removes.

pub mod read;
pub mod rotate;

use crate::volumes::place::PRIVATE;
use skiff_beneath::Root;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;

/// Makes a directory of logs below the one of all logs.
///
/// # Errors
/// The file system's; a link on the way.
pub fn make_dir(base: &Path, dir: &Path) -> io::Result<()> {
    match dir.strip_prefix(base) {
        Ok(below) => Root::open(base)?.make_dirs(below, PRIVATE).map(drop),
        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A container's log: the directory it is in, and its name there.
#[derive(Debug)]
pub struct Log {
    /// The directory, held.
    pub dir: Root,
    /// Such as `0.log`.
    pub name: OsString,
}

impl Log {
    /// The log at a path as the runtime says it. `base` is the directory of all logs.
    ///
    /// # Errors
    /// A directory that is not there, or a link on the way.
    pub fn find(base: &Path, path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let dir = match parent.strip_prefix(base) {
            Ok(below) => Root::open(base)?.dir_across(below)?,
            // A runtime that keeps its logs elsewhere.
            Err(_) => Root::open(parent)?,
        };
        Ok(Self {
            dir,
            name: name.to_owned(),
        })
    }

    /// The file that is written now.
    ///
    /// # Errors
    /// It is not there, or no regular file.
    pub fn open(&self) -> io::Result<File> {
        self.dir.open_file(&self.name)
    }

    /// Names of rotated files, the oldest first.
    pub fn rotated(&self) -> Vec<OsString> {
        let own = self.name.as_encoded_bytes();
        let mut out: Vec<OsString> = self
            .dir
            .entries()
            .unwrap_or_default()
            .into_iter()
            .map(|(n, _)| n)
            .filter(|n| {
                n.as_encoded_bytes().strip_prefix(own).is_some_and(|rest| {
                    rest.first() == Some(&b'.') && rest.get(1).is_some_and(u8::is_ascii_digit)
                })
            })
            .collect();
        out.sort();
        out
    }
}
