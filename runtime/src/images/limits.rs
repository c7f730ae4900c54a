//! Owns what a layer may cost whatever its bytes say: disk, entries, memory for headers. A few KiB of zstd can be a disk of
//! zeros, and one header a gigabyte of name.

use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::rc::Rc;

/// The bounds of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of files.
    pub bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of the headers of one entry, long names and PAX records included: the tar library holds them in memory.
    pub header: u64,
}

impl Limits {
    /// What the file system of a directory has room for, without its last percent, which is everybody's.
    pub fn of(dir: impl AsFd) -> Self {
        let bytes = rustix::fs::fstatvfs(dir).map_or(u64::MAX, |s| {
            let (free, all) = (s.f_bavail * s.f_frsize, s.f_blocks * s.f_frsize);
            free.saturating_sub(all / 100)
        });
        Limits {
            bytes,
            entries: 1_000_000,
            header: 1 << 20,
        }
    }
}

/// Gives what a shared allowance has left, then an error.
pub struct Allowance<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Allowance<R> {
    /// The reader, and the allowance to set.
    pub fn new(inner: R) -> (Self, Rc<Cell<u64>>) {
        let left = Rc::new(Cell::new(u64::MAX));
        let this = Allowance {
            inner,
            left: left.clone(),
        };
        (this, left)
    }
}

impl<R: Read> Read for Allowance<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buf.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the headers of one entry are too long",
            ));
        }
        let room = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut buf[..room])?;
        if left != u64::MAX {
            self.left.set(left - n as u64);
        }
        Ok(n)
    }
}
