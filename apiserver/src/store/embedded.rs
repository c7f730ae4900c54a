//! The store in one file: redb for durability, everything in memory for reading. Owns opening and the seam's face; the
//! [`super::writer`] thread commits all waiting writes with one fsync and only then makes them visible.
//!
//! The format on disk is that of [`super::record`], in the tables of [`super::load`].

use super::disk::{self, Disk, FileDisk, Witness};
use super::load::{Failure, Loaded, load};
use super::memory::{Limits, Memory, Watch};
use super::space::{Quota, Space};
use super::writer::{Command, Shared, TailLimits, Writer};
use super::{Entry, Error, Expect, Hooks, Page, Range, Store};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;

/// A file of more bytes that is mostly free inside is made smaller when it is opened.
const WASTEFUL: u64 = 16 << 20;

/// Called once, with the reason, when the store fails for good: the server has to end.
pub type OnFatal = Box<dyn FnOnce(String) + Send>;

/// How a store is opened.
pub struct Options {
    /// What the store is told about values.
    pub hooks: Hooks,
    /// Keys below these prefixes vanish so many seconds after their last write (events: one hour, as upstream).
    pub expire: Vec<(String, u64)>,
    /// Bounds of the history in memory.
    pub limits: Limits,
    /// Bounds of the history on disk.
    pub tail: TailLimits,
    /// Bounds of everything.
    pub quota: Quota,
    /// An object under this key passes also when the store is full: what tells of it.
    pub urgent: Option<String>,
    /// Seconds since the epoch.
    pub clock: fn() -> u64,
    /// Whom a failure is told.
    pub on_fatal: Option<OnFatal>,
}

fn seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

impl Options {
    /// Kubernetes' options: both hooks, events vanish after an hour.
    pub fn new(hooks: Hooks) -> Self {
        Self {
            hooks,
            expire: vec![("/core/events/".into(), 3600)],
            limits: Limits::default(),
            tail: TailLimits::default(),
            quota: Quota::default(),
            urgent: None,
            clock: seconds,
            on_fatal: None,
        }
    }
}

/// The store.
pub struct Embedded {
    memory: Arc<Memory>,
    commands: Mutex<Sender<Command>>,
    shared: Arc<Shared>,
    attributes: super::AttributesOf,
}

impl Embedded {
    /// Opens or makes `skiff.redb` in a directory, which is made when missing.
    ///
    /// # Errors
    /// [`Error::Open`], naming the file and the mend.
    pub fn open(directory: &Path, options: Options) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| {
                Error::Open(format!(
                    "cannot make {}: {e}; check --data-dir and its permissions",
                    directory.display()
                ))
            })?;
        let path = directory.join("skiff.redb");
        let new = !path.exists();
        let disk = FileDisk::new(directory)
            .map_err(|e| Error::Open(disk::explain(&path.display().to_string(), &e)))?;
        let store = Self::open_on(Box::new(disk), options)?;
        if new {
            // The file's name must survive a power cut, too.
            std::fs::File::open(directory)
                .and_then(|d| d.sync_all())
                .map_err(|e| Error::Open(format!("cannot sync {}: {e}", directory.display())))?;
        }
        Ok(store)
    }

    /// Opens the store on any disk.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open_on(disk: Box<dyn Disk>, mut options: Options) -> Result<Self, Error> {
        let name = disk.name();
        let witness = disk.witness();
        if witness.is_some_and(|w| w.acknowledged != w.attempted) {
            disk.settle().map_err(|e| {
                Error::Open(format!(
                    "{name} cannot be opened: its disk does not take what was written last: {e}; check the disk"
                ))
            })?;
        }
        // Opening writes, too: should a sync fail meanwhile, the next start knows.
        if let Some(w) = witness {
            let _ = disk.testify(Witness {
                attempted: w.acknowledged + 1,
                ..w
            });
        }
        let mut opened = disk
            .open()
            .map_err(|e| Error::Open(disk::explain(&name, &e)))?;
        let loaded = load(&opened.db, &options).map_err(|e| match e {
            Failure::Redb(e) if opened.faults.full() => {
                Error::Open(format!("{name} cannot be opened, its disk is full ({e}): free some space and start again"))
            }
            Failure::Redb(e) => Error::Open(format!("{name} cannot be read: {e}; check the disk, or put back a copy of the file")),
            Failure::Damaged(what) => {
                Error::Open(format!("{name} is damaged ({what}): put back a copy of it, or move it away to begin with an empty cluster"))
            }
        })?;
        compare(&name, witness, loaded.revision)?;
        let room = disk.room();
        if !room.tight && room.used > WASTEFUL && room.used > loaded.live * 3 {
            // Nobody waits yet, and what stays is the smaller part. A disk that fails at it fails for good.
            opened.db.compact().map_err(|e| {
                Error::Open(format!(
                    "{name} cannot be made smaller: {e}; check the disk and its free space"
                ))
            })?;
            let now = disk.room().used;
            tracing::info!(
                store = name,
                before = room.used,
                now,
                "the database was made smaller"
            );
        }
        // A witness that cannot be kept accuses nobody falsely, it only sees less.
        if let Err(e) = disk.testify(Witness {
            acknowledged: loaded.revision,
            attempted: loaded.revision,
        }) {
            tracing::warn!(error = %e, "the store's witness cannot be written");
        }
        let Loaded {
            entries,
            revision,
            expiries,
            digest,
            live,
            history,
            tail,
        } = loaded;
        let (count, base) = (entries.len() as u64, history.base);
        let memory = Arc::new(Memory::new(
            entries,
            revision,
            history,
            options.limits.clone(),
            (options.clock)(),
        ));
        let space = Space::new(options.quota, name, live, memory.cost(), disk.room());
        let shared = Arc::new(Shared::default());
        let (commands, receiver) = channel();
        let attributes = options.hooks.attributes.clone();
        let on_fatal = options.on_fatal.take();
        let writer = Writer {
            disk,
            opened: Some(opened),
            memory: memory.clone(),
            revision,
            count,
            digest,
            base,
            tail,
            expiries,
            space,
            options,
            shared: shared.clone(),
            uncertain: Vec::new(),
            recent: [0; 2],
            commit_time: std::time::Duration::ZERO,
        };
        writer
            .start(receiver, on_fatal)
            .map_err(|e| Error::Open(format!("cannot start the store's thread: {e}")))?;
        Ok(Self {
            memory,
            commands: Mutex::new(commands),
            shared,
            attributes,
        })
    }
}

/// Is the database at a revision that it can be at? redb goes back to the commit before when the last one is damaged: after
/// a power cut that is right, unless somebody was told of it.
fn compare(name: &str, witness: Option<Witness>, found: u64) -> Result<(), Error> {
    match witness {
        Some(w) if found < w.acknowledged => Err(Error::Open(format!(
            "{name} is at revision {found}, but revision {} was acknowledged: it is damaged, or an older copy. Put back a newer copy; if this one is to be used and what came after it is to be lost, remove skiff.witness beside it",
            w.acknowledged
        ))),
        _ => Ok(()),
    }
}

#[async_trait]
impl Store for Embedded {
    fn revision(&self) -> u64 {
        self.memory.revision()
    }
    fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.memory.get(key)
    }
    fn range(&self, range: &Range<'_>) -> Result<Page, Error> {
        self.memory.range(range)
    }
    fn count(&self, prefix: &str) -> usize {
        self.memory.count(prefix)
    }
    fn claimed(&self, claim: &str) -> bool {
        self.memory.claimed(claim, |_| true)
    }
    async fn write(
        &self,
        key: String,
        expect: Expect,
        value: Option<Bytes>,
    ) -> Result<Arc<Entry>, Error> {
        // Selectable facts are found here, on the caller's thread: the writer is alone.
        let value = value.map(|v| {
            let attributes = (self.attributes)(&key, &v);
            (v, attributes)
        });
        let (reply, answer) = oneshot::channel();
        self.commands
            .lock()
            .send(Command::Write {
                key,
                expect,
                value,
                reply,
            })
            .map_err(|_| ())
            .ok();
        match answer.await {
            Ok(answer) => answer,
            // The writer has ended, or is about to: wait until it has said why.
            Err(_) => {
                self.shared.ended().await;
                Err(self.shared.failure().unwrap_or(Error::Closed))
            }
        }
    }
    fn watch(&self, prefix: &str, after: u64) -> Result<Watch, Error> {
        self.memory.watch(prefix, after)
    }
    fn compact(&self, revision: u64) {
        self.memory.compact(revision);
        let _ = self.commands.lock().send(Command::Compact(revision));
    }
    fn check(&self) -> Result<(), String> {
        self.shared.check()
    }
    fn alarms(&self) -> tokio::sync::watch::Receiver<Option<String>> {
        self.shared.alarms()
    }
    async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.lock().send(Command::Close(reply));
        if sent.is_ok() {
            let _ = answer.await;
        }
        self.memory.close();
    }
}
