//! Where the embedded store's bytes are: a file, or in tests a disk with faults. Owns opening and locking; knows nothing of
//! keys and values.

use redb::{BackendError, Database, DatabaseError, StorageBackend, StorageError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// redb's page cache. Everything is in our memory anyway, so it only holds pages on their way to the disk.
const CACHE: usize = 1 << 20;

/// A place to open a database at, again after a fault.
pub trait Disk: Send + 'static {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// What redb says.
    fn open(&self) -> Result<Database, DatabaseError>;
    /// What errors call it.
    fn name(&self) -> String;
}

/// redb with our settings over a backend.
///
/// # Errors
/// What redb says.
pub fn database(backend: impl StorageBackend) -> Result<Database, DatabaseError> {
    // Some damage makes redb panic rather than answer ("Malformed allocator state"): that, too, is a damaged file, and
    // users must be told so. Nothing of ours is in an unsound state then: the backend goes with the attempt.
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        Database::builder()
            .set_cache_size(CACHE)
            // A damaged file becomes an error here instead of a panic later; the whole file is read at start in any case.
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
    }));
    opened.unwrap_or_else(|_| {
        Err(DatabaseError::Storage(StorageError::Corrupted(
            "the database's own structures are damaged".into(),
        )))
    })
}

/// A file.
pub struct FileDisk(pub PathBuf);

impl Disk for FileDisk {
    fn open(&self) -> Result<Database, DatabaseError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.0)?;
        database(Backend(file))
    }
    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

/// redb's own file backend, but for one thing: space is allocated when the file grows, so that a full disk shows then, and
/// not when a page in the middle of a transaction is written or synced.
#[derive(Debug)]
struct Backend(File);

fn whole(start: Bound<u64>, end: Bound<u64>) -> bool {
    matches!(start, Bound::Unbounded | Bound::Included(0)) && end == Bound::Unbounded
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old {
            match rustix::fs::fallocate(
                &self.0,
                rustix::fs::FallocateFlags::empty(),
                old,
                len - old,
            ) {
                Ok(()) => return Ok(()),
                // Not every file system can; a hole is the second best.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(e) => {
                    // What was allocated of it goes back, so that others get to breathe.
                    let _ = self.0.set_len(old);
                    return Err(e.into());
                }
            }
        }
        self.0.set_len(len)
    }
    fn close(&self) -> io::Result<()> {
        self.0.unlock()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if !whole(start, end) {
            return Err(BackendError::Unsupported);
        }
        locked(self.0.try_lock())
    }
    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        if !whole(start, end) {
            return Err(BackendError::Unsupported);
        }
        locked(self.0.try_lock_shared())
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        if !whole(start, end) {
            return Err(BackendError::Unsupported);
        }
        Ok(self.0.unlock()?)
    }
}

fn locked(result: Result<(), TryLockError>) -> Result<bool, BackendError> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e.into()),
    }
}

/// True when the error means that there is no space.
pub fn is_full(e: &redb::Error) -> bool {
    matches!(e, redb::Error::Io(e) if full(e))
}

fn full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Why a database could not be opened, and how to mend it.
pub fn explain(name: &str, e: &DatabaseError) -> String {
    match e {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => format!(
            "{name} is in use by another process: stop the other skiff server, or give this one its own --data-dir"
        ),
        DatabaseError::UpgradeRequired(v) => format!(
            "{name} is of an older format ({v}): start the version of skiff that wrote it, or move the file away to begin with an empty cluster"
        ),
        DatabaseError::Storage(StorageError::Io(e))
            if e.kind() == io::ErrorKind::PermissionDenied =>
        {
            format!(
                "{name} cannot be opened: {e}; start skiff as the user who owns it, or correct its permissions"
            )
        }
        DatabaseError::Storage(StorageError::Io(e)) if full(e) => {
            format!("{name} cannot be opened, its disk is full: free some space and start again")
        }
        DatabaseError::Storage(StorageError::Io(e))
            if e.kind() != io::ErrorKind::InvalidData && e.raw_os_error().is_some() =>
        {
            format!("{name} cannot be opened: {e}; check --data-dir and its disk")
        }
        e => format!(
            "{name} is damaged ({e}): put back a copy of it, or move it away to begin with an empty cluster"
        ),
    }
}
