//! The thread that writes: commits all waiting writes with one fsync, keeps the account of the space, the history on disk and
//! expiries, and fails for good when the disk does. Owns the database; nobody else writes to it.
//!
//! A failed sync, or anything else that the disk fails at but for want of space, ends the thread: what the system then says
//! about the file may be what the disk never got. Whoever waits gets an error, and [`OnFatal`] ends the server; the next
//! start reads what the disk really holds.

use super::disk::{Disk, Opened, Witness};
use super::embedded::{OnFatal, Options};
use super::expiry::Expiries;
use super::load::{HISTORY, OBJECTS, SINCE};
use super::memory::{Change, Memory};
use super::record::{self, RowHead};
use super::space::{self, Space};
use super::{Attributes, Entry, Error, Event, Expect, collection};
use bytes::Bytes;
use parking_lot::Mutex;
use redb::{ReadableDatabase, ReadableTable};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Most writes in one transaction: bounds how long the first one waits, and redb's memory.
const BATCH: usize = 1024;
/// Most bytes of values in one transaction, but for a single write.
const BATCH_BYTES: usize = 8 << 20;
/// From so many writes in one batch on, the next batch waits for the same writers to come back.
const CROWD: usize = 4;
/// The longest it waits.
const LINGER: Duration = Duration::from_micros(300);
/// Expiries are rounded up to this, so that a flood of events does not end in a flood of wake-ups.
const ROUND: u64 = 10;
/// How often a full disk is looked at when nobody writes.
const LOOK: Duration = Duration::from_secs(2);
/// A disk that takes longer for a commit is told as a fault.
const HUNG: Duration = Duration::from_secs(10);

type Answer = Result<Arc<Entry>, Error>;

/// What the writer is asked for.
pub enum Command {
    /// See [`super::Store::write`].
    Write {
        /// The object's key.
        key: String,
        /// What must be there.
        expect: Expect,
        /// The new value; none to delete.
        value: Option<(Bytes, Attributes)>,
        /// Who waits.
        reply: oneshot::Sender<Answer>,
    },
    /// Forget history up to this revision, with the next write.
    Compact(u64),
    /// Close the database and end.
    Close(oneshot::Sender<()>),
}

/// What others see of the writer.
pub struct Shared {
    failure: Mutex<Option<Error>>,
    /// True when the thread has ended and a failure is told.
    ended: watch::Sender<bool>,
    alarm: watch::Sender<Option<String>>,
    /// Since when the disk is waited for.
    busy: Mutex<Option<Instant>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            failure: Mutex::default(),
            ended: watch::Sender::new(false),
            alarm: watch::Sender::new(None),
            busy: Mutex::default(),
        }
    }
}

impl Shared {
    /// Waits for the end of the writer.
    pub async fn ended(&self) {
        // The sender is ours and does not go.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
    /// Why nothing is written any more.
    pub fn failure(&self) -> Option<Error> {
        self.failure.lock().clone()
    }
    /// Why nothing new is taken.
    pub fn alarms(&self) -> watch::Receiver<Option<String>> {
        self.alarm.subscribe()
    }
    /// Does it work?
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        if let Some(e) = &*self.failure.lock() {
            return Err(e.to_string());
        }
        match *self.busy.lock() {
            Some(since) if since.elapsed() > HUNG => Err(format!(
                "the disk has not answered for {} s",
                since.elapsed().as_secs()
            )),
            _ => Ok(()),
        }
    }
}

/// Bounds of the history on disk, as [`super::memory::Limits`] are of that in memory, but for all collections together.
#[derive(Debug, Clone)]
pub struct TailLimits {
    /// Bytes.
    pub bytes: usize,
    /// Transactions.
    pub rows: usize,
    /// Bytes of what is older than `age`.
    pub old_bytes: usize,
    /// Transactions of what is older than `age`.
    pub old_rows: usize,
    /// Seconds for which history is kept generously.
    pub age: u64,
}

impl Default for TailLimits {
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            rows: 16_384,
            old_bytes: 256 << 10,
            old_rows: 1024,
            age: 300,
        }
    }
}

/// The rows of history on disk.
#[derive(Debug, Default)]
pub struct Tail {
    rows: VecDeque<(u64, u32, u64)>,
    bytes: usize,
}

impl Tail {
    /// A row was written: its revision, its size, its time.
    pub fn push(&mut self, revision: u64, bytes: usize, at: u64) {
        self.rows.push_back((revision, bytes as u32, at));
        self.bytes += bytes;
    }
    /// How many rows, the oldest first, are to go. More than the bound at once, so that it is seldom; never the last one.
    fn surplus(&self, limits: &TailLimits, now: u64) -> usize {
        let last = self.rows.len().saturating_sub(1);
        let old = self
            .rows
            .front()
            .is_some_and(|(_, _, at)| at + limits.age < now);
        let (bytes, rows) = if old {
            (limits.old_bytes, limits.old_rows)
        } else {
            (limits.bytes, limits.rows)
        };
        if self.bytes <= bytes && self.rows.len() <= rows {
            return 0;
        }
        let (mut left, mut n) = (self.bytes, 0);
        for (_, size, at) in self.rows.iter().take(last) {
            let enough = left <= bytes - bytes / 8 && self.rows.len() - n <= rows - rows / 8;
            if enough || (old && at + limits.age >= now && left <= limits.bytes) {
                break;
            }
            left -= *size as usize;
            n += 1;
        }
        n
    }
    fn cut(&mut self, n: usize) {
        for (_, size, _) in self.rows.drain(..n) {
            self.bytes -= size as usize;
        }
    }
}

/// One change of a batch, before it is durable.
pub(super) struct Prepared {
    event: Arc<Event>,
    expiry: u64,
}

type Waiting = (
    String,
    Expect,
    Option<(Bytes, Attributes)>,
    Option<oneshot::Sender<Answer>>,
);

/// What a transaction leaves.
struct After {
    count: u64,
    digest: u64,
    objects: u64,
    base: u64,
    /// Rows of history that went.
    cut: usize,
    /// The size of the new one.
    row: usize,
}

/// Why a transaction did not come about.
enum Failed {
    Redb(redb::Error),
    /// The database does not hold what it should.
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for Failed {
    fn from(e: E) -> Self {
        Self::Redb(e.into())
    }
}

impl Failed {
    fn why(&self) -> String {
        match self {
            Self::Redb(e) => e.to_string(),
            Self::Damaged(e) => format!("it is damaged: {e}"),
        }
    }
}

/// The writer.
pub struct Writer {
    pub(super) disk: Box<dyn Disk>,
    /// None after the disk was full, until it is opened again.
    pub(super) opened: Option<Opened>,
    pub(super) memory: Arc<Memory>,
    pub(super) revision: u64,
    /// How many objects there are.
    pub(super) count: u64,
    /// The sum of their records' sums.
    pub(super) digest: u64,
    /// See [`RowHead::base`].
    pub(super) base: u64,
    pub(super) tail: Tail,
    pub(super) expiries: Expiries,
    pub(super) space: Space,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    /// A batch of which it is not known whether it is in the file.
    pub(super) uncertain: Vec<Prepared>,
    /// The sizes of the last two batches.
    pub(super) recent: [usize; 2],
    pub(super) commit_time: Duration,
}

impl Writer {
    /// Runs the thread. Its end by failure or panic is told; whoever waits then gets an error.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(
        self,
        commands: Receiver<Command>,
        on_fatal: Option<OnFatal>,
    ) -> std::io::Result<()> {
        let (shared, name) = (self.shared.clone(), self.disk.name());
        std::thread::Builder::new()
            .name("skiff-store".into())
            .spawn(move || {
                let run = std::panic::AssertUnwindSafe(|| self.run(&commands));
                let why = match std::panic::catch_unwind(run) {
                    Ok(Ok(closing)) => {
                        shared.ended.send_replace(true);
                        if let Some(reply) = closing {
                            let _ = reply.send(());
                        }
                        return;
                    }
                    Ok(Err(why)) => why,
                    Err(p) => format!(
                        "its writer panicked: {}",
                        skiff_supervise::panic_text(p.as_ref())
                    ),
                };
                let e = Error::Failed { file: name, why };
                *shared.failure.lock() = Some(e.clone());
                *shared.busy.lock() = None;
                shared.ended.send_replace(true);
                drop(commands);
                match on_fatal {
                    Some(f) => f(e.to_string()),
                    None => tracing::error!("{e}"),
                }
            })
            .map(drop)
    }

    /// Gives who waits for the end, when somebody asked for it; everything is closed then.
    fn run(mut self, commands: &Receiver<Command>) -> Result<Option<oneshot::Sender<()>>, String> {
        let mut open = true;
        self.show();
        while open {
            let mut batch = self.wait(commands, &mut open);
            self.linger(commands, &mut batch);
            let mut bytes = 0;
            while batch.len() < BATCH && bytes < BATCH_BYTES {
                match commands.try_recv() {
                    Ok(c) => {
                        if let Command::Write {
                            value: Some((v, _)),
                            ..
                        } = &c
                        {
                            bytes += v.len();
                        }
                        batch.push(c);
                    }
                    Err(_) => break,
                }
            }
            let mut writes: Vec<Waiting> = Vec::new();
            let mut closing = None;
            for c in batch {
                match c {
                    Command::Write {
                        key,
                        expect,
                        value,
                        reply,
                    } => writes.push((key, expect, value, Some(reply))),
                    Command::Compact(revision) => {
                        self.base = self.base.max(revision.min(self.revision));
                    }
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
            if self.space.tight() {
                self.disk.refill();
                self.space.looked(self.disk.room());
                self.show();
            }
            self.batch(writes, now)?;
            if closing.is_some() {
                self.close()?;
                return Ok(closing);
            }
        }
        self.close()?;
        Ok(None)
    }

    /// Closes the file properly, so that the next start need not repair it.
    fn close(&mut self) -> Result<(), String> {
        let Some(Opened { db, faults }) = self.opened.take() else {
            return Ok(());
        };
        self.testify(self.revision + 1);
        drop(db);
        if let Some(why) = faults.fatal() {
            return Err(why.to_string());
        }
        self.testify(self.revision);
        Ok(())
    }

    /// Waits for something to do; `open` becomes false when nobody can ask any more.
    fn wait(&self, commands: &Receiver<Command>, open: &mut bool) -> Vec<Command> {
        let now = (self.options.clock)();
        let due = self
            .expiries
            .next()
            .map(|at| Duration::from_secs(at.saturating_sub(now)));
        let look = self.space.tight().then_some(LOOK);
        let first = match due.into_iter().chain(look).min() {
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(d) => commands.recv_timeout(d),
        };
        match first {
            Ok(c) => vec![c],
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => {
                *open = false;
                Vec::new()
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
    fn batch(&mut self, writes: Vec<Waiting>, now: u64) -> Result<(), String> {
        if writes.is_empty() {
            return Ok(());
        }
        if self.opened.is_none()
            && let Some(e) = self.reopen(now)?
        {
            self.show();
            for (.., reply) in writes {
                let _ = reply.map(|r| r.send(Err(e.clone())));
            }
            return Ok(());
        }
        let (prepared, replies) = self.prepare(writes, now);
        let mut replies = replies;
        if !prepared.is_empty() {
            let refused = self.store(prepared, now)?;
            if let Some(e) = refused {
                for (_, answer) in &mut replies {
                    if answer.is_ok() {
                        *answer = Err(e.clone());
                    }
                }
            }
        }
        self.show();
        for (reply, answer) in replies {
            let _ = reply.send(answer);
        }
        Ok(())
    }

    /// Decides each write on what those before it leave.
    fn prepare(
        &mut self,
        writes: Vec<Waiting>,
        now: u64,
    ) -> (Vec<Prepared>, Vec<(oneshot::Sender<Answer>, Answer)>) {
        let mut next = self.revision;
        // What earlier writes of this batch did to a key.
        let mut ahead: HashMap<String, Option<Arc<Entry>>> = HashMap::new();
        let mut added = 0;
        let mut prepared: Vec<Prepared> = Vec::new();
        let mut replies = Vec::new();
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
            let size = |bytes: usize| space::pages(key.len() + bytes + record::HEAD + 32);
            let old = current.as_ref().map_or(0, |c| size(c.value.len()));
            let new = value.as_ref().map_or(0, |(v, _)| size(v.len() + 32));
            let urgent = self.options.urgent.as_ref() == Some(&key);
            let allowed = self
                .space
                .admit(old, new, added, urgent)
                .and_then(|()| match &value {
                    Some((_, a)) => self.unclaimed(&key, a, current.as_deref(), &ahead),
                    None => Ok(()),
                });
            if let Err(e) = allowed {
                replies.extend(reply.map(|r| (r, Err(e))));
                continue;
            }
            added += new.saturating_sub(old);
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
        (prepared, replies)
    }

    /// Does nobody else have what the object claims? What it had before stays its own.
    fn unclaimed(
        &self,
        key: &str,
        attributes: &Attributes,
        current: Option<&Entry>,
        ahead: &HashMap<String, Option<Arc<Entry>>>,
    ) -> Result<(), Error> {
        for claim in attributes.claims() {
            if current.is_some_and(|c| c.attributes.claims().any(|x| x == claim)) {
                continue;
            }
            let in_batch = ahead
                .values()
                .flatten()
                .any(|e| &*e.key != key && e.attributes.claims().any(|x| x == claim));
            let stored = || {
                self.memory
                    .claimed(claim, |k| k != key && !ahead.contains_key(k))
            };
            if in_batch || stored() {
                return Err(Error::Claimed {
                    claim: claim.into(),
                    by: "another object".into(),
                });
            }
        }
        Ok(())
    }

    fn expiry(&self, key: &str, now: u64) -> u64 {
        self.options
            .expire
            .iter()
            .find(|(prefix, _)| key.starts_with(prefix.as_str()))
            .map_or(0, |(_, ttl)| (now + ttl).div_ceil(ROUND) * ROUND)
    }

    /// Makes a batch durable and visible. Gives why it was refused when there was no space for it.
    fn store(&mut self, prepared: Vec<Prepared>, now: u64) -> Result<Option<Error>, String> {
        let Some(next) = prepared.last().map(|p| p.event.revision) else {
            return Ok(None);
        };
        self.testify(next);
        let begun = Instant::now();
        *self.shared.busy.lock() = Some(begun);
        let committed = self.commit(&prepared, next, now);
        *self.shared.busy.lock() = None;
        self.commit_time = begun.elapsed();
        let failed = match committed {
            Ok(after) => {
                self.count = after.count;
                self.digest = after.digest;
                self.base = after.base;
                self.tail.cut(after.cut);
                self.tail.push(next, after.row, now);
                self.publish(prepared, now);
                self.testify(next);
                let live = after.objects + self.tail.bytes as u64;
                let room = self.disk.room();
                self.space.committed(live, self.memory.cost(), room);
                return Ok(None);
            }
            Err(e) => e,
        };
        let faults = self.opened.as_ref().map(|o| o.faults.clone());
        if let Some(why) = faults.as_ref().and_then(|f| f.fatal()) {
            return Err(why.to_string());
        }
        if !faults.is_some_and(|f| f.full()) {
            return Err(failed.why());
        }
        // redb trusts nothing after a failed write. The file is opened again at once, so that everybody learns now whether
        // the batch is in it.
        let e = self.space.full(self.disk.room());
        self.opened = None;
        self.uncertain = prepared;
        match self.reopen(now)? {
            Some(e) => Ok(Some(e)),
            None if self.revision == next => Ok(None),
            None => Ok(Some(e)),
        }
    }

    /// Notes what is about to be, or was, written up to a revision.
    fn testify(&self, attempted: u64) {
        let w = Witness {
            acknowledged: self.revision,
            attempted,
        };
        if let Err(e) = self.disk.testify(w) {
            tracing::debug!(error = %e, "the store's witness cannot be written");
        }
    }

    fn commit(&self, prepared: &[Prepared], revision: u64, now: u64) -> Result<After, Failed> {
        let Some(opened) = &self.opened else {
            return Err(redb::Error::DatabaseClosed.into());
        };
        let mut after = After {
            count: self.count,
            digest: self.digest,
            objects: self.space.live().saturating_sub(self.tail.bytes as u64),
            base: self.base,
            cut: 0,
            row: 0,
        };
        let tx = opened.db.begin_write()?;
        {
            let mut objects = tx.open_table(OBJECTS)?;
            let mut out = Vec::new();
            for p in prepared {
                let e = &p.event.entry;
                let old = if p.event.deleted {
                    objects.remove(&*e.key)?
                } else {
                    let sum = record::put(&mut out, &e.key, e.revision, p.expiry, &e.value);
                    after.digest = after.digest.wrapping_add(sum);
                    after.count += 1;
                    after.objects += space::pages(e.key.len() + out.len());
                    objects.insert(&*e.key, out.as_slice())?
                };
                let mut found = None;
                if let Some(old) = &old
                    && let Some(r) = record::glance(old.value())
                {
                    found = Some(r.revision);
                    after.digest = after.digest.wrapping_sub(r.sum);
                    after.count -= 1;
                    let freed = space::pages(e.key.len() + old.value().len());
                    after.objects = after.objects.saturating_sub(freed);
                }
                // Costs nothing, and sees a page that rotted before it is written again with a good checksum.
                if found != p.event.previous.as_ref().map(|p| p.revision) {
                    return Err(Failed::Damaged(format!(
                        "under {} it has revision {found:?}",
                        e.key
                    )));
                }
            }
        }
        self.remember(&tx, prepared, revision, now, &mut after)?;
        tx.commit()?;
        Ok(after)
    }

    /// Writes the batch's row of history and cuts what is too much.
    fn remember(
        &self,
        tx: &redb::WriteTransaction,
        prepared: &[Prepared],
        revision: u64,
        now: u64,
        after: &mut After,
    ) -> Result<(), Failed> {
        let mut history = tx.open_table(HISTORY)?;
        let head = |after: &After| RowHead {
            at: now,
            count: after.count,
            digest: after.digest,
            base: after.base,
        };
        let mut row = Vec::new();
        record::begin_row(&mut row, &head(after));
        for p in prepared {
            record::put_event(&mut row, &self.options.hooks, &p.event);
        }
        let limits = &self.options.tail;
        if self.space.alarm().is_some() || row.len() > limits.bytes / 2 {
            // On a full store a delete must not need more space than it frees; and what is too large for the history is
            // followed by none of what came before. Watchers that come back after a restart list again.
            after.base = revision;
            after.cut = self.tail.rows.len();
            record::begin_row(&mut row, &head(after));
        } else {
            after.cut = self.tail.surplus(limits, now);
        }
        let mut since: BTreeMap<String, u64> = BTreeMap::new();
        for _ in 0..after.cut {
            let Some((at, bytes)) = history.pop_first()? else {
                break;
            };
            match record::get_row(at.value(), bytes.value()) {
                Some((_, events)) => {
                    for e in events {
                        since.insert(collection(e.key).to_string(), e.revision);
                    }
                }
                None => after.base = revision,
            }
        }
        record::set_row_head(&mut row, &head(after));
        record::end_row(&mut row, revision);
        history.insert(revision, row.as_slice())?;
        after.row = row.len();
        if !since.is_empty() && after.base < revision {
            let mut table = tx.open_table(SINCE)?;
            for (name, n) in since {
                table.insert(name.as_str(), &record::put_number(&name, n)[..])?;
            }
        }
        Ok(())
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

    /// Opens the database again after its disk was full. Gives why it still cannot be written.
    fn reopen(&mut self, now: u64) -> Result<Option<Error>, String> {
        let opened = match self.disk.open() {
            Ok(o) => o,
            Err(redb::DatabaseError::Storage(redb::StorageError::Io(e)))
                if super::disk::no_space(&e) =>
            {
                return Ok(Some(self.space.full(self.disk.room())));
            }
            Err(e) => return Err(format!("it cannot be opened again: {e}")),
        };
        let last = last_row(&opened.db).map_err(|e| e.why())?;
        let (found, head) = last.ok_or("it is damaged: its last transaction cannot be read")?;
        let refused = std::mem::take(&mut self.uncertain);
        if refused.last().is_some_and(|p| p.event.revision == found) {
            // It was refused, but it is there: then everybody shall see it.
            self.count = head.count;
            self.digest = head.digest;
            self.base = found;
            self.publish(refused, now);
        } else if found != self.revision {
            return Err(format!(
                "it is at revision {found}, but {} was written: it was replaced while in use",
                self.revision
            ));
        }
        // What the lost transaction did to the history is not looked at: only the last row counts from here on.
        self.base = self.base.max(found);
        self.tail = rows(&opened.db).map_err(|e| e.why())?;
        self.testify(self.revision);
        self.opened = Some(opened);
        Ok(None)
    }

    /// Tells the others how it stands.
    fn show(&self) {
        let alarm = self.space.alarm();
        // Nearly always there is none, and there was none.
        if alarm.is_some() || self.shared.alarm.borrow().is_some() {
            let alarm = alarm.map(ToString::to_string);
            self.shared.alarm.send_if_modified(|told| {
                let changed = *told != alarm;
                *told = alarm;
                changed
            });
        }
    }
}

fn last_row(db: &redb::Database) -> Result<Option<(u64, RowHead)>, Failed> {
    let tx = db.begin_read()?;
    let table = tx.open_table(HISTORY)?;
    let Some((at, bytes)) = table.last()? else {
        return Ok(None);
    };
    let at = at.value();
    Ok(record::get_row(at, bytes.value()).map(|(head, _)| (at, head)))
}

fn rows(db: &redb::Database) -> Result<Tail, Failed> {
    let tx = db.begin_read()?;
    let mut tail = Tail::default();
    for item in tx.open_table(HISTORY)?.iter()? {
        let (at, bytes) = item?;
        let (at, bytes) = (at.value(), bytes.value());
        tail.push(
            at,
            bytes.len(),
            record::get_row(at, bytes).map_or(0, |(h, _)| h.at),
        );
    }
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_rows_go_first_and_the_last_one_never() {
        let limits = TailLimits {
            bytes: 1000,
            rows: 50,
            old_bytes: 200,
            old_rows: 4,
            age: 10,
        };
        let mut t = Tail::default();
        for i in 0..10 {
            t.push(i, 100, 100);
        }
        assert_eq!(t.surplus(&limits, 105), 0);
        t.push(10, 100, 105);
        assert_eq!(t.surplus(&limits, 105), 3, "to seven eighths of the bound");
        assert_eq!(t.surplus(&limits, 111), 10, "old ones to the smaller bound");
        t.cut(10);
        assert_eq!((t.bytes, t.rows.len()), (100, 1));
        assert_eq!(t.surplus(&limits, 9999), 0);
        let mut t = Tail::default();
        t.push(1, 5000, 0);
        assert_eq!(t.surplus(&limits, 9999), 0);
    }
}
