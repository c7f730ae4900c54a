//! Where the embedded store's bytes are: files, or in tests a disk with faults. Owns opening, locking, the reserve for a full
//! disk, the witness of what was acknowledged, and the rule that nothing follows a failed sync; knows nothing of keys and
//! values.

use super::space::Room;
use parking_lot::Mutex;
use redb::{BackendError, Database, DatabaseError, StorageBackend, StorageError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use twox_hash::XxHash3_64;

/// redb's page cache. Everything is in our memory anyway, so it only holds pages on their way to the disk.
const CACHE: usize = 1 << 20;

/// A place to open a database at, again after its disk was full.
pub trait Disk: Send + 'static {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// What redb says.
    fn open(&self) -> Result<Opened, DatabaseError>;
    /// What errors call it.
    fn name(&self) -> String;
    /// What was last testified; None when nothing was, or it cannot be read.
    fn witness(&self) -> Option<Witness>;
    /// Notes what is being written and what was acknowledged. Survives the end of this process at least.
    ///
    /// # Errors
    /// The system's.
    fn testify(&self, witness: Witness) -> io::Result<()>;
    /// Makes sure that the database's file reads as the disk holds it: after a failed sync the system may keep pages in
    /// memory, marked as written, that never reached the disk.
    ///
    /// # Errors
    /// The system's.
    fn settle(&self) -> io::Result<()>;
    /// How much is used, and whether the reserve had to be touched.
    fn room(&self) -> Room;
    /// Makes the reserve whole again; true when it is.
    fn refill(&self) -> bool;
}

/// An open database and what its disk did to it.
pub struct Opened {
    /// The database.
    pub db: Database,
    /// What failed below it.
    pub faults: Arc<Faults>,
}

/// What failed below the database since it was opened. redb does not tell a failed sync from a failed write.
#[derive(Debug, Default)]
pub struct Faults {
    full: AtomicBool,
    fatal: OnceLock<String>,
}

impl Faults {
    /// There was no space for a write. It can be tried again.
    pub fn full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }
    /// Something failed after which nothing that the system says about the file can be trusted.
    pub fn fatal(&self) -> Option<&str> {
        self.fatal.get().map(String::as_str)
    }
}

/// What the database is known to hold. It stands outside of the database, so that a database that silently went back (to
/// the commit before, because the last one is damaged) is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Witness {
    /// The last revision that was synced and may have been seen by somebody.
    pub acknowledged: u64,
    /// The last revision that somebody began to write.
    pub attempted: u64,
}

const WITNESS: &[u8; 8] = b"skiffwit";

impl Witness {
    fn encode(self) -> [u8; 32] {
        let mut out = [0; 32];
        out[..8].copy_from_slice(WITNESS);
        out[8..16].copy_from_slice(&self.acknowledged.to_le_bytes());
        out[16..24].copy_from_slice(&self.attempted.to_le_bytes());
        let sum = XxHash3_64::oneshot(&out[..24]);
        out[24..].copy_from_slice(&sum.to_le_bytes());
        out
    }
    fn decode(bytes: &[u8; 32]) -> Option<Self> {
        let n = |i: usize| {
            bytes[i..]
                .first_chunk::<8>()
                .map(|b| u64::from_le_bytes(*b))
        };
        let w = Self {
            acknowledged: n(8)?,
            attempted: n(16)?,
        };
        (w.encode() == *bytes).then_some(w)
    }
}

/// redb with our settings over a backend.
///
/// # Errors
/// What redb says.
pub fn database(
    backend: impl StorageBackend,
    reserve: Option<Arc<Reserve>>,
) -> Result<Opened, DatabaseError> {
    let faults = Arc::new(Faults::default());
    let guard = Guard {
        inner: backend,
        faults: faults.clone(),
        reserve,
    };
    // Some damage makes redb panic rather than answer ("Malformed allocator state"): that, too, is a damaged file, and
    // users must be told so. Nothing of ours is in an unsound state then: the backend goes with the attempt.
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        Database::builder()
            .set_cache_size(CACHE)
            // A damaged file becomes an error here instead of a panic later; the whole file is read at start in any case.
            .set_check_integrity_on_open(true)
            .create_with_backend(guard)
    }));
    let db = opened.unwrap_or_else(|_| {
        Err(DatabaseError::Storage(StorageError::Corrupted(
            "the database's own structures are damaged".into(),
        )))
    })?;
    Ok(Opened { db, faults })
}

/// Stands between redb and its disk: notes what fails, lets nothing pass after what cannot be trusted, and gives the reserve
/// up for writes that find no space.
#[derive(Debug)]
struct Guard<B> {
    inner: B,
    faults: Arc<Faults>,
    reserve: Option<Arc<Reserve>>,
}

impl<B> Guard<B> {
    fn trusted(&self) -> io::Result<()> {
        match self.faults.fatal() {
            None => Ok(()),
            Some(why) => Err(io::Error::other(format!("it failed before: {why}"))),
        }
    }
    fn note(&self, what: &str, e: io::Error) -> io::Error {
        if no_space(&e) && what != "sync" {
            self.faults.full.store(true, Ordering::Release);
        } else {
            // Also a sync that says that there is no space: what it was to write is as lost as after any other failure.
            let _ = self.faults.fatal.set(format!("{what}: {e}"));
        }
        e
    }
    fn with_reserve(&self, what: &str, mut act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        self.trusted()?;
        loop {
            match act() {
                Err(e) if no_space(&e) && self.reserve.as_ref().is_some_and(|r| r.give()) => {}
                other => return other.map_err(|e| self.note(what, e)),
            }
        }
    }
}

impl<B: StorageBackend> StorageBackend for Guard<B> {
    fn len(&self) -> io::Result<u64> {
        self.trusted()?;
        self.inner.len().map_err(|e| self.note("length", e))
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.trusted()?;
        self.inner
            .read(offset, out)
            .map_err(|e| self.note("read", e))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_reserve("write", || self.inner.write(offset, data))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_reserve("resize", || self.inner.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.trusted()?;
        self.inner.sync_data().map_err(|e| self.note("sync", e))
    }
    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }
    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }
}

/// Space that is kept for deletes on a full disk: a file of its own that becomes smaller when a write finds no space.
pub struct Reserve {
    /// Sets how many bytes are kept.
    resize: Box<dyn Fn(u64) -> io::Result<()> + Send + Sync>,
    whole: u64,
    kept: Mutex<u64>,
}

impl std::fmt::Debug for Reserve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserve")
            .field("kept", &*self.kept.lock())
            .finish_non_exhaustive()
    }
}

/// How much a reserve gives at a time.
const PORTION: u64 = 256 << 10;

impl Reserve {
    /// A reserve of `whole` bytes, none of which are kept yet.
    pub fn new(whole: u64, resize: Box<dyn Fn(u64) -> io::Result<()> + Send + Sync>) -> Self {
        Self {
            resize,
            whole,
            kept: Mutex::new(0),
        }
    }
    /// Gives a portion up; false when there was none.
    fn give(&self) -> bool {
        let mut kept = self.kept.lock();
        if *kept == 0 {
            return false;
        }
        let less = kept.saturating_sub(PORTION);
        if (self.resize)(less).is_err() {
            return false;
        }
        *kept = less;
        true
    }
    /// Makes it whole again; true when it is.
    pub fn refill(&self) -> bool {
        let mut kept = self.kept.lock();
        if *kept < self.whole && (self.resize)(self.whole).is_ok() {
            *kept = self.whole;
        }
        *kept == self.whole
    }
    /// Was some of it given up?
    pub fn touched(&self) -> bool {
        *self.kept.lock() < self.whole
    }
    /// How much is left.
    pub fn kept(&self) -> u64 {
        *self.kept.lock()
    }
}

/// How much is reserved for deletes: some thousand of them touch fewer pages.
const RESERVE: u64 = 4 << 20;

/// A directory with `skiff.redb`, the witness `skiff.witness` and the reserve `skiff.reserve`.
pub struct FileDisk {
    path: PathBuf,
    witness: File,
    reserve: Arc<Reserve>,
    /// For the numbers of [`Disk::room`].
    file: File,
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

impl FileDisk {
    /// Opens or makes the files in a directory.
    ///
    /// # Errors
    /// The system's; another process uses them.
    pub fn new(directory: &Path) -> Result<Self, DatabaseError> {
        let path = directory.join("skiff.redb");
        let file = open_file(&path)?;
        let witness = open_file(&directory.join("skiff.witness"))?;
        // The database has a lock of its own, but nobody may touch the others before.
        locked(witness.try_lock())
            .ok()
            .filter(|free| *free)
            .ok_or(DatabaseError::DatabaseAlreadyOpen)?;
        if witness.metadata()?.len() == 0 {
            // Its block is allocated now, not on a full disk; and one that was never written says nothing.
            witness.write_all_at(&[0; 32], 0)?;
        }
        let reserved = open_file(&directory.join("skiff.reserve"))?;
        let reserve = Reserve::new(
            RESERVE,
            Box::new(move |bytes| {
                let old = reserved.metadata()?.len();
                if bytes <= old {
                    return reserved.set_len(bytes);
                }
                allocate(&reserved, bytes).inspect_err(|_| {
                    // What was allocated of it goes back, so that others get to breathe.
                    let _ = reserved.set_len(old);
                })
            }),
        );
        reserve.refill();
        Ok(Self {
            path,
            witness,
            reserve: Arc::new(reserve),
            file,
        })
    }
}

/// Allocates all blocks of a file up to a length.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        // Not every file system can; written zeros are blocks, too.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeros = vec![0; 64 << 10];
            let mut at = file.metadata()?.len();
            while at < len {
                let n = zeros
                    .len()
                    .min(usize::try_from(len - at).unwrap_or(usize::MAX));
                file.write_all_at(&zeros[..n], at)?;
                at += n as u64;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

impl Disk for FileDisk {
    fn open(&self) -> Result<Opened, DatabaseError> {
        let file = open_file(&self.path)?;
        database(Backend(file), Some(self.reserve.clone()))
    }
    fn name(&self) -> String {
        self.path.display().to_string()
    }
    fn witness(&self) -> Option<Witness> {
        let mut bytes = [0; 32];
        self.witness.read_exact_at(&mut bytes, 0).ok()?;
        Witness::decode(&bytes)
    }
    fn testify(&self, witness: Witness) -> io::Result<()> {
        self.witness.write_all_at(&witness.encode(), 0)
    }
    fn settle(&self) -> io::Result<()> {
        // Pages that are still to be written are not dropped, so they are written first; if that fails again, nothing is read.
        self.file.sync_data()?;
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    }
    fn room(&self) -> Room {
        Room {
            used: self.file.metadata().map_or(0, |m| m.blocks() * 512),
            tight: self.reserve.touched(),
            spent: self.reserve.kept() < RESERVE / 2,
        }
    }
    fn refill(&self) -> bool {
        self.reserve.refill()
    }
}

/// The database's file. It grows without allocating: redb doubles it, which would take twice the space that is used.
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
pub(super) fn no_space(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
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
        DatabaseError::Storage(StorageError::Io(e)) if no_space(e) => {
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
