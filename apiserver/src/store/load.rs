//! Reads a database when it is opened: makes a new one, brings format 1 to format 2, checks every record and their sum, and
//! builds the recent events again. Owns the tables' definitions; writes nothing but new and older databases.

use super::embedded::Options;
use super::expiry::Expiries;
use super::record::{self, Past, RowHead};
use super::writer::Tail;
use super::{Entry, Event, space};
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::HashMap;
use std::sync::Arc;

/// Key -> record.
pub const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
/// `format` -> 2. Format 1 had `revision` here, too.
pub const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Last revision of a transaction -> its row.
pub const HISTORY: TableDefinition<u64, &[u8]> = TableDefinition::new("history");
/// Collection -> the revision after which its history is whole, when some of it was cut.
pub const SINCE: TableDefinition<&str, &[u8]> = TableDefinition::new("since");
/// Bytes before the value of a record of format 1: revision and expiry.
const HEAD_1: usize = 16;

/// Why a database cannot be read.
pub enum Failure {
    /// redb or the disk.
    Redb(redb::Error),
    /// What is there is not what was written.
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(e: E) -> Self {
        Self::Redb(e.into())
    }
}

/// The events that are still known.
#[derive(Default)]
pub struct History {
    /// In order, with the time of each in seconds since the epoch.
    pub events: Vec<(Arc<Event>, u64)>,
    /// Collections that are not in `since` know everything after this revision.
    pub base: u64,
    /// The others by name.
    pub since: HashMap<Box<str>, u64>,
}

/// What was found.
pub struct Loaded {
    /// In key order.
    pub entries: Vec<Arc<Entry>>,
    /// Of the last write.
    pub revision: u64,
    /// When which key vanishes.
    pub expiries: Expiries,
    /// Sum of all records' sums.
    pub digest: u64,
    /// Bytes of all records in the file, see [`space::pages`].
    pub live: u64,
    /// Recent events.
    pub history: History,
    /// The rows they are in.
    pub tail: Tail,
}

/// Reads everything.
///
/// # Errors
/// When something is not as it was written; nothing of the database is to be used then.
pub fn load(db: &Database, options: &Options) -> Result<Loaded, Failure> {
    // redb panics on keys that are no UTF-8, for one.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        prepare(db, options)?;
        read(db, options)
    }))
    .unwrap_or_else(|_| Err(Failure::Damaged("its tables cannot be read".into())))
}

/// Makes the tables of a new database, and mends those of an older one.
fn prepare(db: &Database, options: &Options) -> Result<(), Failure> {
    let tx = db.begin_write()?;
    let done = {
        let mut objects = tx.open_table(OBJECTS)?;
        let mut meta = tx.open_table(META)?;
        let mut history = tx.open_table(HISTORY)?;
        tx.open_table(SINCE)?;
        let format = meta.get("format")?.map(|v| v.value());
        let mut row = Vec::new();
        let mut head = RowHead {
            at: (options.clock)(),
            count: 0,
            digest: 0,
            base: 0,
        };
        match format {
            Some(record::FORMAT) => true,
            None if objects.first()?.is_some() || history.first()?.is_some() => {
                return Err(Failure::Damaged("it does not say its format".into()));
            }
            None => {
                record::begin_row(&mut row, &head);
                record::end_row(&mut row, 0);
                history.insert(0, row.as_slice())?;
                meta.insert("format", record::FORMAT)?;
                false
            }
            Some(1) => {
                let mut revision = meta.remove("revision")?.map_or(0, |v| v.value());
                let mut all: Vec<(String, Vec<u8>)> = Vec::new();
                for item in objects.iter()? {
                    let (k, v) = item?;
                    all.push((k.value().to_string(), v.value().to_vec()));
                }
                let mut out = Vec::new();
                for (key, old) in all {
                    let number =
                        |i: usize| old[i..].first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
                    let (Some(at), Some(expiry)) = (number(0), old.get(8..).and(number(8))) else {
                        return Err(Failure::Damaged(format!(
                            "the record of {key} is too short"
                        )));
                    };
                    let sum = record::put(&mut out, &key, at, expiry, &old[HEAD_1..]);
                    objects.insert(key.as_str(), out.as_slice())?;
                    head.count += 1;
                    head.digest = head.digest.wrapping_add(sum);
                    revision = revision.max(at);
                }
                head.base = revision;
                record::begin_row(&mut row, &head);
                record::end_row(&mut row, revision);
                history.insert(revision, row.as_slice())?;
                meta.insert("format", record::FORMAT)?;
                false
            }
            Some(other) => {
                return Err(Failure::Damaged(format!(
                    "it is of format {other}, which a newer skiff writes"
                )));
            }
        }
    };
    if done {
        tx.abort()?;
    } else {
        tx.commit()?;
    }
    Ok(())
}

fn read(db: &Database, options: &Options) -> Result<Loaded, Failure> {
    let damaged = |what: String| Failure::Damaged(what);
    let tx = db.begin_read()?;
    let mut rows: Vec<(u64, Vec<u8>)> = Vec::new();
    for item in tx.open_table(HISTORY)?.iter()? {
        let (k, v) = item?;
        rows.push((k.value(), v.value().to_vec()));
    }
    let Some((revision, last)) = rows.last() else {
        return Err(damaged("it does not say its revision".into()));
    };
    let revision = *revision;
    let Some((head, _)) = record::get_row(revision, last) else {
        return Err(damaged(
            "the record of its last transaction is damaged".into(),
        ));
    };
    let mut loaded = Loaded {
        entries: Vec::new(),
        revision,
        expiries: Expiries::default(),
        digest: 0,
        live: 0,
        history: History::default(),
        tail: Tail::default(),
    };
    for item in tx.open_table(OBJECTS)?.iter()? {
        let (key, bytes) = item?;
        let (key, bytes) = (key.value(), bytes.value());
        let Some(r) = record::get(key, bytes) else {
            return Err(damaged(format!("the record of {key} is damaged")));
        };
        if r.revision > revision {
            return Err(damaged(format!("{key} is newer than the database")));
        }
        loaded.digest = loaded.digest.wrapping_add(r.sum);
        loaded.live += space::pages(key.len() + bytes.len());
        loaded.expiries.set(key, r.expiry);
        loaded.entries.push(Arc::new(Entry {
            key: key.into(),
            value: Bytes::from(r.value.to_vec().into_boxed_slice()),
            revision: r.revision,
            attributes: (options.hooks.attributes)(key, r.value),
        }));
    }
    let count = loaded.entries.len() as u64;
    if (count, loaded.digest) != (head.count, head.digest) {
        return Err(damaged(format!(
            "of {} objects {count} are there, or some are older than they should be",
            head.count
        )));
    }
    let mut since = HashMap::new();
    let mut whole = true;
    for item in tx.open_table(SINCE)?.iter()? {
        let (name, n) = item?;
        match record::get_number(name.value(), n.value()) {
            Some(n) => drop(since.insert(Box::from(name.value()), n)),
            None => whole = false,
        }
    }
    for (revision, bytes) in &rows {
        // The time is only needed to cut what is old.
        let at = record::get_row(*revision, bytes).map_or(0, |(h, _)| h.at);
        loaded.tail.push(*revision, bytes.len(), at);
    }
    // Damage of what lies in the past costs the past: watchers list again.
    match events(&rows, &loaded.entries, options).filter(|_| whole) {
        Some(events) => {
            loaded.history = History {
                events,
                base: head.base,
                since,
            };
        }
        None => {
            tracing::warn!("the store's record of recent changes is damaged: clients list again");
            loaded.history.base = revision;
        }
    }
    Ok(loaded)
}

/// The events of the rows, the newest first decoded: each says what was there before it. None when they do not fit.
fn events(
    rows: &[(u64, Vec<u8>)],
    entries: &[Arc<Entry>],
    options: &Options,
) -> Option<Vec<(Arc<Event>, u64)>> {
    let hooks = &options.hooks;
    let mut out = Vec::new();
    // What was under a key before the events that were already looked at.
    let mut after: HashMap<&str, Option<Arc<Entry>>> = HashMap::new();
    for (revision, bytes) in rows.iter().rev() {
        let (head, past) = record::get_row(*revision, bytes)?;
        for p in past.into_iter().rev() {
            let later = after.remove(p.key).unwrap_or_else(|| {
                let i = entries.binary_search_by(|e| (*e.key).cmp(p.key)).ok()?;
                Some(entries[i].clone())
            });
            let event = event(&p, later, hooks)?;
            after.insert(p.key, event.previous.clone());
            out.push((Arc::new(event), head.at));
        }
    }
    out.reverse();
    Some(out)
}

fn event(p: &Past<'_>, later: Option<Arc<Entry>>, hooks: &super::Hooks) -> Option<Event> {
    // A deletion leaves nothing, anything else the entry of its revision.
    if p.deleted != later.is_none() || later.as_ref().is_some_and(|e| e.revision != p.revision) {
        return None;
    }
    let previous = match &p.previous {
        None => None,
        Some((revision, difference)) => {
            let value = match &later {
                None => Bytes::from(difference.undo(b"")?),
                Some(e) => {
                    let was = difference.undo(&e.value)?;
                    (hooks.splice)(&was, Some(p.revision), *revision)
                }
            };
            Some(Arc::new(Entry {
                key: p.key.into(),
                attributes: (hooks.attributes)(p.key, &value),
                value,
                revision: *revision,
            }))
        }
    };
    let entry = match (&later, &previous) {
        (Some(e), _) => e.clone(),
        (None, Some(was)) => Arc::new(Entry {
            key: p.key.into(),
            value: (hooks.splice)(&was.value, Some(was.revision), p.revision),
            revision: p.revision,
            attributes: was.attributes.clone(),
        }),
        (None, None) => return None,
    };
    Some(Event {
        revision: p.revision,
        deleted: p.deleted,
        entry,
        previous,
    })
}
