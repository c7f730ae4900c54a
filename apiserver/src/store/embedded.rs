//! The store in one file: redb for durability, everything in memory for reading. Owns the writer thread, which commits all
//! waiting writes with one fsync and only then makes them visible; keeps no history on disk.
//!
//! On disk: table `objects`, key -> revision (8 bytes, little endian), expiry in seconds since the epoch (8 bytes, 0 for
//! never), value; table `meta`, `revision` -> the last revision, `format` -> 1.

use super::disk::{self, Disk, FileDisk};
use super::memory::{Change, Limits, Memory, Watch};
use super::{Attributes, Entry, Error, Event, Expect, Hooks, Page, Range, Store};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Bytes before the value of an object's record.
const HEAD: usize = 16;
/// Most writes in one transaction: bounds how long the first one waits, and redb's memory.
const BATCH: usize = 1024;
/// From so many writes in one batch on, the next batch waits for the same writers to come back.
const CROWD: usize = 4;
/// The longest it waits.
const LINGER: Duration = Duration::from_micros(300);
/// Expiries are rounded up to this, so that a flood of events does not end in a flood of wake-ups.
const ROUND: u64 = 10;

/// How a store is opened.
pub struct Options {
    /// What the store is told about values.
    pub hooks: Hooks,
    /// Keys below these prefixes vanish so many seconds after their last write (events: one hour, as upstream).
    pub expire: Vec<(String, u64)>,
    /// Bounds of the history in memory.
    pub limits: Limits,
    /// Seconds since the epoch.
    pub clock: fn() -> u64,
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
            clock: seconds,
        }
    }
}

enum Command {
    Write {
        key: String,
        expect: Expect,
        value: Option<(Bytes, Attributes)>,
        reply: oneshot::Sender<Result<Arc<Entry>, Error>>,
    },
    Close(oneshot::Sender<()>),
}

/// The store.
pub struct Embedded {
    memory: Arc<Memory>,
    commands: Mutex<Sender<Command>>,
    health: Arc<Mutex<Option<Error>>>,
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
        let store = Self::open_on(Box::new(FileDisk(path)), options)?;
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
    pub fn open_on(disk: Box<dyn Disk>, options: Options) -> Result<Self, Error> {
        let name = disk.name();
        let db = disk
            .open()
            .map_err(|e| Error::Open(disk::explain(&name, &e)))?;
        let loaded = load(&db, &options).map_err(|e| match e {
            Failure::Redb(e) if disk::is_full(&e) => {
                Error::Open(format!("{name} cannot be opened, its disk is full: free some space and start again"))
            }
            Failure::Redb(e) => Error::Open(format!("{name} cannot be read: {e}; check the disk, or put back a copy of the file")),
            Failure::Damaged(what) => {
                Error::Open(format!("{name} is damaged ({what}): put back a copy of it, or move it away to begin with an empty cluster"))
            }
        })?;
        let memory = Arc::new(Memory::new(
            loaded.entries.into_iter(),
            loaded.revision,
            options.limits.clone(),
        ));
        let health = Arc::new(Mutex::new(None));
        let (commands, receiver) = channel();
        let attributes = options.hooks.attributes.clone();
        let writer = Writer {
            disk,
            db: Some(db),
            memory: memory.clone(),
            revision: loaded.revision,
            expiries: loaded.expiries,
            options,
            health: health.clone(),
            uncertain: Vec::new(),
            recent: [0; 2],
            commit_time: Duration::ZERO,
        };
        std::thread::Builder::new()
            .name("skiff-store".into())
            .spawn(move || writer.run(&receiver))
            .map_err(|e| Error::Open(format!("cannot start the store's thread: {e}")))?;
        Ok(Self {
            memory,
            commands: Mutex::new(commands),
            health,
            attributes,
        })
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
            .map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
    fn watch(&self, prefix: &str, after: u64) -> Result<Watch, Error> {
        self.memory.watch(prefix, after)
    }
    fn compact(&self, revision: u64) {
        self.memory.compact(revision);
    }
    fn check(&self) -> Result<(), String> {
        match &*self.health.lock() {
            None => Ok(()),
            Some(e) => Err(e.to_string()),
        }
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

struct Loaded {
    entries: Vec<Arc<Entry>>,
    revision: u64,
    expiries: Expiries,
}

/// When which key vanishes.
#[derive(Default)]
struct Expiries {
    by_time: BTreeSet<(u64, Arc<str>)>,
    by_key: HashMap<Arc<str>, u64>,
}

impl Expiries {
    /// 0: never.
    fn set(&mut self, key: &str, at: u64) {
        if let Some((key, old)) = self.by_key.remove_entry(key) {
            self.by_time.remove(&(old, key));
        }
        if at != 0 {
            let key: Arc<str> = key.into();
            self.by_time.insert((at, key.clone()));
            self.by_key.insert(key, at);
        }
    }
    fn next(&self) -> Option<u64> {
        self.by_time.first().map(|(at, _)| *at)
    }
    fn due(&self, now: u64) -> impl Iterator<Item = &Arc<str>> {
        self.by_time
            .iter()
            .take_while(move |(at, _)| *at <= now)
            .map(|(_, k)| k)
    }
}

enum Failure {
    Redb(redb::Error),
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(e: E) -> Self {
        Self::Redb(e.into())
    }
}

fn load(db: &Database, options: &Options) -> Result<Loaded, Failure> {
    // Makes the tables of a new database.
    let tx = db.begin_write()?;
    let format = {
        tx.open_table(OBJECTS)?;
        let mut meta = tx.open_table(META)?;
        let found = meta.get("format")?.map(|v| v.value());
        if found.is_none() {
            meta.insert("format", 1)?;
        }
        found
    };
    match format {
        None => tx.commit()?,
        Some(1) => tx.abort()?,
        Some(other) => {
            return Err(Failure::Damaged(format!(
                "it is of format {other}, which a newer skiff writes"
            )));
        }
    }
    let tx = db.begin_read()?;
    let mut revision = revision(&tx)?;
    let mut entries = Vec::new();
    let mut expiries = Expiries::default();
    for item in tx.open_table(OBJECTS)?.iter()? {
        let (key, record) = item?;
        let (key, record) = (key.value(), record.value());
        let (Some((r, rest)), true) = (record.split_first_chunk::<8>(), record.len() >= HEAD)
        else {
            return Err(Failure::Damaged(format!(
                "the record of {key} is too short"
            )));
        };
        let at = u64::from_le_bytes(*r);
        let expiry = rest
            .first_chunk::<8>()
            .map_or(0, |e| u64::from_le_bytes(*e));
        let value = Bytes::from(record[HEAD..].to_vec().into_boxed_slice());
        let attributes = (options.hooks.attributes)(key, &value);
        expiries.set(key, expiry);
        revision = revision.max(at);
        entries.push(Arc::new(Entry {
            key: key.into(),
            value,
            revision: at,
            attributes,
        }));
    }
    Ok(Loaded {
        entries,
        revision,
        expiries,
    })
}

fn revision(tx: &redb::ReadTransaction) -> Result<u64, redb::Error> {
    Ok(tx
        .open_table(META)?
        .get("revision")?
        .map_or(0, |v| v.value()))
}

/// A write that may be committed, and what it changes.
struct Prepared {
    event: Arc<Event>,
    /// 0 for never.
    expiry: u64,
}

/// The only one who writes.
struct Writer {
    disk: Box<dyn Disk>,
    /// None after a fault, until it could be opened again.
    db: Option<Database>,
    memory: Arc<Memory>,
    revision: u64,
    expiries: Expiries,
    options: Options,
    health: Arc<Mutex<Option<Error>>>,
    /// The batch whose commit failed: whether the disk has it shows when the database is opened again.
    uncertain: Vec<Prepared>,
    /// The sizes of the last two batches.
    recent: [usize; 2],
    /// How long the last commit took.
    commit_time: Duration,
}

/// Key, expectation, value, who waits (nobody for an expiry).
type Waiting = (
    String,
    Expect,
    Option<(Bytes, Attributes)>,
    Option<oneshot::Sender<Result<Arc<Entry>, Error>>>,
);
type Reply = (
    oneshot::Sender<Result<Arc<Entry>, Error>>,
    Result<Arc<Entry>, Error>,
);

impl Writer {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let due = self.expiries.next();
            let first = match due {
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => {
                    let wait = at.saturating_sub((self.options.clock)());
                    // A fault makes expiry wait a little, not spin.
                    let wait = if self.db.is_none() {
                        wait.max(ROUND)
                    } else {
                        wait
                    };
                    commands.recv_timeout(Duration::from_secs(wait))
                }
            };
            let mut batch = Vec::new();
            let mut closing = None;
            match first {
                Ok(c) => batch.push(c),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while batch.len() < BATCH
                && let Ok(c) = commands.try_recv()
            {
                batch.push(c);
            }
            self.linger(commands, &mut batch);
            let mut writes: Vec<Waiting> = Vec::with_capacity(batch.len());
            for c in batch {
                match c {
                    Command::Write {
                        key,
                        expect,
                        value,
                        reply,
                    } => writes.push((key, expect, value, Some(reply))),
                    Command::Close(reply) => closing = Some(reply),
                }
            }
            let now = (self.options.clock)();
            // After the others: one that writes the key anew in this batch moves its expiry, which the next round sees.
            let written: Vec<&str> = writes.iter().map(|(k, ..)| k.as_str()).collect();
            let due: Vec<String> = self
                .expiries
                .due(now)
                .take(BATCH)
                .filter(|k| !written.contains(&&***k))
                .map(|k| k.to_string())
                .collect();
            writes.extend(due.into_iter().map(|k| (k, Expect::Any, None, None)));
            self.batch(writes, now);
            if let Some(reply) = closing {
                // Closes the file properly, so that the next start need not repair it.
                drop(self.db.take());
                let _ = reply.send(());
                return;
            }
        }
    }

    /// When many write at once, those whose last write was just answered come back within a moment: waiting for them a
    /// fraction of a commit's time makes one commit of what would be two halves taking turns. A lone writer never waits.
    fn linger(&mut self, commands: &Receiver<Command>, batch: &mut Vec<Command>) {
        let expected = (self.recent[0] + self.recent[1]).min(BATCH);
        if self.recent[0].max(self.recent[1]) >= CROWD && !batch.is_empty() {
            let end = Instant::now() + (self.commit_time / 8).min(LINGER);
            while batch.len() < expected {
                match commands.recv_timeout(end.saturating_duration_since(Instant::now())) {
                    Ok(c) => batch.push(c),
                    Err(_) => break,
                }
            }
        }
        self.recent = [self.recent[1], batch.len()];
    }

    /// Commits what can be committed and answers everybody.
    fn batch(&mut self, writes: Vec<Waiting>, now: u64) {
        if writes.is_empty() {
            return;
        }
        if self.db.is_none()
            && let Err(e) = self.reopen()
        {
            self.refuse(writes.into_iter().filter_map(|(.., r)| r), &e);
            return;
        }
        let mut next = self.revision;
        // What earlier writes of this batch did to a key.
        let mut ahead: HashMap<String, Option<Arc<Entry>>> = HashMap::new();
        let mut prepared: Vec<Prepared> = Vec::new();
        let mut replies: Vec<Reply> = Vec::new();
        for (key, expect, value, reply) in writes {
            let current = match ahead.get(&key) {
                Some(e) => e.clone(),
                None => self.memory.get(&key),
            };
            let holds = match expect {
                Expect::Absent => current.is_none(),
                Expect::Revision(r) => current.as_ref().is_some_and(|e| e.revision == r),
                Expect::Any => true,
            };
            if !holds || (value.is_none() && current.is_none()) {
                replies.extend(reply.map(|r| (r, Err(Error::Conflict(current)))));
                continue;
            }
            next += 1;
            let deleted = value.is_none();
            let entry = match (value, &current) {
                (Some((v, attributes)), _) => Arc::new(Entry {
                    key: key.as_str().into(),
                    value: (self.options.hooks.splice)(&v, None, next),
                    revision: next,
                    attributes,
                }),
                (None, Some(c)) => Arc::new(Entry {
                    key: c.key.clone(),
                    value: (self.options.hooks.splice)(&c.value, Some(c.revision), next),
                    revision: next,
                    attributes: c.attributes.clone(),
                }),
                (None, None) => continue,
            };
            let expiry = if deleted { 0 } else { self.expiry(&key, now) };
            ahead.insert(key, (!deleted).then(|| entry.clone()));
            let event = Event {
                revision: next,
                deleted,
                entry: entry.clone(),
                previous: current,
            };
            prepared.push(Prepared {
                event: Arc::new(event),
                expiry,
            });
            replies.extend(reply.map(|r| (r, Ok(entry))));
        }
        if !prepared.is_empty() {
            let begun = Instant::now();
            let committed = self.commit(&prepared, next);
            self.commit_time = begun.elapsed();
            if let Err(e) = committed {
                // redb trusts nothing after a failed write; the file is opened again before the next one.
                self.db = None;
                self.uncertain = prepared;
                let e = self.explain(&e);
                tracing::error!(error = %e, "the store could not write");
                self.refuse(replies.into_iter().map(|(r, _)| r), &e);
                return;
            }
            self.publish(prepared, now);
            if self.health.lock().take().is_some() {
                tracing::info!("the store can write again");
            }
        }
        for (reply, answer) in replies {
            let _ = reply.send(answer);
        }
    }

    fn expiry(&self, key: &str, now: u64) -> u64 {
        self.options
            .expire
            .iter()
            .find(|(prefix, _)| key.starts_with(prefix.as_str()))
            .map_or(0, |(_, ttl)| (now + ttl).div_ceil(ROUND) * ROUND)
    }

    fn commit(&self, prepared: &[Prepared], revision: u64) -> Result<(), redb::Error> {
        let Some(db) = &self.db else {
            return Err(redb::Error::DatabaseClosed);
        };
        let tx = db.begin_write()?;
        {
            let mut objects = tx.open_table(OBJECTS)?;
            let mut record = Vec::new();
            for p in prepared {
                let e = &p.event.entry;
                if p.event.deleted {
                    objects.remove(&*e.key)?;
                } else {
                    record.clear();
                    record.extend_from_slice(&e.revision.to_le_bytes());
                    record.extend_from_slice(&p.expiry.to_le_bytes());
                    record.extend_from_slice(&e.value);
                    objects.insert(&*e.key, record.as_slice())?;
                }
            }
            tx.open_table(META)?.insert("revision", revision)?;
        }
        Ok(tx.commit()?)
    }

    /// Makes a durable batch visible.
    fn publish(&mut self, prepared: Vec<Prepared>, now: u64) {
        for p in &prepared {
            self.revision = p.event.revision;
            self.expiries.set(&p.event.entry.key, p.expiry);
        }
        self.memory.apply(
            prepared
                .into_iter()
                .map(|p| Change { event: p.event })
                .collect(),
            now,
        );
    }

    fn reopen(&mut self) -> Result<(), Error> {
        let db = self.disk.open().map_err(|e| self.explain(&e.into()))?;
        let found = db
            .begin_read()
            .map_err(redb::Error::from)
            .and_then(|tx| revision(&tx))
            .map_err(|e| self.explain(&e))?;
        if found == self.revision {
            self.uncertain.clear();
        } else if self
            .uncertain
            .last()
            .is_some_and(|p| p.event.revision == found)
        {
            // It was refused, but it is there: then everybody shall see it.
            let prepared = std::mem::take(&mut self.uncertain);
            self.publish(prepared, (self.options.clock)());
        } else {
            return Err(Error::Io {
                file: self.disk.name(),
                why: format!(
                    "it is at revision {found}, but {} was written: it was replaced while in use; start the server again",
                    self.revision
                ),
            });
        }
        self.db = Some(db);
        Ok(())
    }

    fn explain(&self, e: &redb::Error) -> Error {
        if disk::is_full(e) {
            Error::Full(self.disk.name())
        } else {
            Error::Io {
                file: self.disk.name(),
                why: e.to_string(),
            }
        }
    }

    fn refuse(
        &self,
        replies: impl Iterator<Item = oneshot::Sender<Result<Arc<Entry>, Error>>>,
        e: &Error,
    ) {
        *self.health.lock() = Some(e.clone());
        for r in replies {
            let _ = r.send(Err(e.clone()));
        }
    }
}
