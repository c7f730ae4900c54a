//! The state in memory that every implementation of the store answers reads and watches from: the current entries, and for
//! each collection a bounded ring of its recent events. Does no I/O; one writer applies batches, everybody else reads.

use super::load::History;
use super::{Entry, Error, Event, Page, Range, collection};
use parking_lot::RwLock;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::Notify;

/// How much history is kept; the first bound that is passed drops the oldest events of the collection.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Events of one collection.
    pub events: usize,
    /// Bytes that only the history of one collection keeps alive (previous values).
    pub bytes: usize,
    /// The same, for events older than `age`: what an idle cluster keeps.
    pub old_bytes: usize,
    /// The number of events, for those older than `age`.
    pub old_events: usize,
    /// Seconds for which history is kept generously (etcd is compacted every five minutes upstream).
    pub age: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            events: 65_536,
            bytes: 8 << 20,
            old_bytes: 128 << 10,
            old_events: 256,
            age: 300,
        }
    }
}

/// An entry ordered by its key, so that the map needs no second copy of the key.
#[derive(Debug)]
struct ByKey(Arc<Entry>);
impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        &self.0.key
    }
}
impl PartialEq for ByKey {
    fn eq(&self, o: &Self) -> bool {
        self.0.key == o.0.key
    }
}
impl Eq for ByKey {}
impl PartialOrd for ByKey {
    fn partial_cmp(&self, o: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for ByKey {
    fn cmp(&self, o: &Self) -> std::cmp::Ordering {
        self.0.key.cmp(&o.0.key)
    }
}

struct Recorded {
    event: Arc<Event>,
    /// Seconds of the store's clock.
    at: u64,
}

struct Collection {
    entries: BTreeSet<ByKey>,
    ring: VecDeque<Recorded>,
    /// The number of the ring's first event, counted since the store was opened.
    first: u64,
    /// Every event after this revision is in the ring.
    since: u64,
    /// Bytes of previous entries in the ring.
    bytes: usize,
    notify: Arc<Notify>,
}

impl Collection {
    fn new(since: u64) -> Self {
        Self {
            entries: BTreeSet::new(),
            ring: VecDeque::new(),
            first: 0,
            since,
            bytes: 0,
            notify: Arc::default(),
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(r) = self.ring.pop_front() {
            self.first += 1;
            self.since = r.event.revision;
            self.bytes -= retained(&r.event);
        }
    }

    fn trim(&mut self, limits: &Limits, now: u64) {
        while self.ring.len() > limits.events || self.bytes > limits.bytes {
            self.drop_oldest();
        }
        while (self.ring.len() > limits.old_events || self.bytes > limits.old_bytes)
            && self.ring.front().is_some_and(|r| r.at + limits.age < now)
        {
            self.drop_oldest();
        }
        if self.ring.capacity() > 1024 && self.ring.len() < self.ring.capacity() / 4 {
            self.ring.shrink_to(self.ring.len() * 2);
        }
    }
}

fn retained(e: &Event) -> usize {
    let deleted = if e.deleted { e.entry.cost() } else { 0 };
    e.previous.as_ref().map_or(0, |p| p.cost()) + deleted
}

struct State {
    collections: HashMap<Box<str>, Collection>,
    /// Claims with the keys of those who have them. More than one has the same only in data of older versions.
    claims: BTreeSet<(Box<str>, Box<str>)>,
    /// The sum of what the entries cost.
    cost: usize,
    revision: u64,
    /// What a collection that has not been seen yet knows everything since.
    opened: u64,
    closed: bool,
    /// Which collection is trimmed next.
    turn: usize,
}

impl State {
    fn collection(&mut self, key: &str) -> &mut Collection {
        let name = collection(key);
        // Two look-ups, but no copy of the name where there is one.
        if !self.collections.contains_key(name) {
            self.collections
                .insert(name.into(), Collection::new(self.opened));
        }
        #[allow(clippy::expect_used)]
        self.collections.get_mut(name).expect("made just now")
    }

    fn claim(&mut self, e: &Entry) {
        for c in e.attributes.claims() {
            self.claims.insert((c.into(), e.key.clone()));
        }
    }

    fn give_up(&mut self, e: &Entry) {
        for c in e.attributes.claims() {
            self.claims.remove(&(Box::from(c), e.key.clone()));
        }
    }
}

/// The state. Cheap to share.
pub struct Memory {
    state: RwLock<State>,
    limits: Limits,
}

/// One change of a batch.
pub struct Change {
    /// What watchers will see.
    pub event: Arc<Event>,
}

impl Memory {
    /// The entries and the recent events that were found on disk, at a revision.
    pub fn new(
        entries: Vec<Arc<Entry>>,
        revision: u64,
        history: History,
        limits: Limits,
        now: u64,
    ) -> Self {
        let mut state = State {
            collections: HashMap::new(),
            claims: BTreeSet::new(),
            cost: 0,
            revision,
            opened: history.base,
            closed: false,
            turn: 0,
        };
        for (name, since) in &history.since {
            let c = Collection::new((*since).max(history.base));
            state.collections.insert(name.clone(), c);
        }
        for e in entries {
            state.cost += e.cost();
            state.claim(&e);
            state.collection(&e.key).entries.insert(ByKey(e));
        }
        for (event, at) in history.events {
            let c = state.collection(&event.entry.key);
            if event.revision > c.since {
                c.bytes += retained(&event);
                c.ring.push_back(Recorded { event, at });
            }
        }
        for c in state.collections.values_mut() {
            c.trim(&limits, now);
        }
        Self {
            state: RwLock::new(state),
            limits,
        }
    }

    /// The revision of the last write.
    pub fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        let state = self.state.read();
        state
            .collections
            .get(collection(key))?
            .entries
            .get(key)
            .map(|e| e.0.clone())
    }

    /// What entries and history cost in bytes, roughly.
    pub fn cost(&self) -> u64 {
        let state = self.state.read();
        let history: usize = state.collections.values().map(|c| c.bytes).sum();
        (state.cost + history) as u64
    }

    /// Has anybody this claim whose key passes?
    pub fn claimed(&self, claim: &str, whose: impl Fn(&str) -> bool) -> bool {
        let state = self.state.read();
        let from = (Box::from(claim), Box::from(""));
        state
            .claims
            .range(from..)
            .take_while(|(c, _)| &**c == claim)
            .any(|(_, k)| whose(k))
    }

    /// How many entries a prefix has.
    pub fn count(&self, prefix: &str) -> usize {
        let state = self.state.read();
        let Some(c) = state.collections.get(collection(prefix)) else {
            return 0;
        };
        if collection(prefix) == prefix {
            return c.entries.len();
        }
        below(&c.entries, prefix, "").count()
    }

    /// The entries of a prefix.
    ///
    /// # Errors
    /// Compacted, Future.
    pub fn range(&self, range: &Range<'_>) -> Result<Page, Error> {
        let state = self.state.read();
        let revision = range.revision.unwrap_or(state.revision);
        if revision > state.revision {
            return Err(Error::Future {
                asked: revision,
                current: state.revision,
            });
        }
        let mut page = Page {
            entries: Vec::new(),
            revision,
            more: false,
            remaining: 0,
        };
        let Some(c) = state.collections.get(collection(range.prefix)) else {
            if revision < state.opened {
                return Err(Error::Compacted {
                    asked: revision,
                    oldest: state.opened,
                });
            }
            return Ok(page);
        };
        if revision == state.revision {
            fill(
                &mut page,
                range,
                below(&c.entries, range.prefix, range.start_after),
            );
            return Ok(page);
        }
        if revision < c.since {
            return Err(Error::Compacted {
                asked: revision,
                oldest: c.since,
            });
        }
        // Roll back: the first event of a key after the revision knows what was there before it.
        let from = c.ring.partition_point(|r| r.event.revision <= revision);
        let mut then: BTreeMap<&str, Option<&Arc<Entry>>> = BTreeMap::new();
        for r in c.ring.range(from..) {
            let key: &str = &r.event.entry.key;
            if key.starts_with(range.prefix) && key > range.start_after {
                then.entry(key).or_insert(r.event.previous.as_ref());
            }
        }
        let mut now = below(&c.entries, range.prefix, range.start_after)
            .filter(|e| !then.contains_key(&*e.key))
            .peekable();
        let mut old = then.values().filter_map(|e| *e).peekable();
        let merged = std::iter::from_fn(|| match (now.peek(), old.peek()) {
            (Some(a), Some(b)) if a.key < b.key => now.next(),
            (_, Some(_)) => old.next(),
            _ => now.next(),
        });
        fill(&mut page, range, merged);
        Ok(page)
    }

    /// Events below a prefix after a revision.
    ///
    /// # Errors
    /// Compacted, Closed.
    pub fn watch(self: &Arc<Self>, prefix: &str, after: u64) -> Result<Watch, Error> {
        let name = collection(prefix);
        let found = {
            let state = self.state.read();
            if state.closed {
                return Err(Error::Closed);
            }
            state
                .collections
                .get(name)
                .map(|c| start(c, after))
                .transpose()?
        };
        let (next, notify) = match found {
            Some(x) => x,
            None => {
                let mut state = self.state.write();
                let opened = state.opened;
                let c = state
                    .collections
                    .entry(name.into())
                    .or_insert_with(|| Collection::new(opened));
                start(c, after)?
            }
        };
        Ok(Watch {
            memory: self.clone(),
            collection: name.into(),
            prefix: prefix.into(),
            next,
            after,
            notify,
        })
    }

    /// Makes a durable batch visible, all of it at once. Only the writer calls this.
    pub fn apply(&self, changes: Vec<Change>, now: u64) {
        let mut touched: Vec<Arc<Notify>> = Vec::new();
        {
            let mut state = self.state.write();
            let state = &mut *state;
            for Change { event } in changes {
                state.revision = event.revision;
                if let Some(p) = &event.previous {
                    state.cost -= p.cost();
                    state.give_up(p);
                }
                if !event.deleted {
                    state.cost += event.entry.cost();
                    state.claim(&event.entry);
                }
                let c = state.collection(&event.entry.key);
                if event.deleted {
                    c.entries.remove(&*event.entry.key);
                } else {
                    c.entries.replace(ByKey(event.entry.clone()));
                }
                c.bytes += retained(&event);
                c.ring.push_back(Recorded { event, at: now });
                c.trim(&self.limits, now);
                if !touched.iter().any(|n| Arc::ptr_eq(n, &c.notify)) {
                    touched.push(c.notify.clone());
                }
            }
            // A collection that went quiet after a burst is trimmed when others are written, one each time.
            let n = state.collections.len();
            if n > 0 {
                state.turn = (state.turn + 1) % n;
                if let Some(c) = state.collections.values_mut().nth(state.turn) {
                    c.trim(&self.limits, now);
                }
            }
        }
        for n in touched {
            n.notify_waiters();
        }
    }

    /// Forgets history up to and including a revision.
    pub fn compact(&self, revision: u64) {
        let mut state = self.state.write();
        let revision = revision.min(state.revision);
        for c in state.collections.values_mut() {
            while c.ring.front().is_some_and(|r| r.event.revision <= revision) {
                c.drop_oldest();
            }
            c.since = c.since.max(revision);
        }
        state.opened = state.opened.max(revision);
    }

    /// Ends all watches.
    pub fn close(&self) {
        let notifies: Vec<Arc<Notify>> = {
            let mut state = self.state.write();
            state.closed = true;
            state
                .collections
                .values()
                .map(|c| c.notify.clone())
                .collect()
        };
        for n in notifies {
            n.notify_waiters();
        }
    }
}

fn start(c: &Collection, after: u64) -> Result<(u64, Arc<Notify>), Error> {
    if after < c.since {
        return Err(Error::Compacted {
            asked: after,
            oldest: c.since,
        });
    }
    let skip = c.ring.partition_point(|r| r.event.revision <= after);
    Ok((c.first + skip as u64, c.notify.clone()))
}

fn below<'a>(
    entries: &'a BTreeSet<ByKey>,
    prefix: &'a str,
    start_after: &str,
) -> impl Iterator<Item = &'a Arc<Entry>> {
    let from = if start_after >= prefix {
        Bound::Excluded(start_after)
    } else {
        Bound::Included(prefix)
    };
    entries
        .range::<str, _>((from, Bound::Unbounded))
        .map(|e| &e.0)
        .take_while(move |e| e.key.starts_with(prefix))
}

fn fill<'a>(page: &mut Page, range: &Range<'_>, mut entries: impl Iterator<Item = &'a Arc<Entry>>) {
    let keep = |e: &Entry| range.filter.is_none_or(|f| f(e));
    while let Some(e) = entries.next() {
        if !keep(e) {
            continue;
        }
        page.entries.push(e.clone());
        if range.limit > 0 && page.entries.len() == range.limit {
            for rest in entries {
                page.remaining += 1;
                page.more = page.more || keep(rest);
            }
            return;
        }
    }
}

/// A stream of events. Dropping it ends it; it costs nothing while nothing happens.
pub struct Watch {
    memory: Arc<Memory>,
    collection: Box<str>,
    prefix: Box<str>,
    /// The number of the next event to look at.
    next: u64,
    after: u64,
    notify: Arc<Notify>,
}

/// How many events a watcher takes at once.
const BATCH: usize = 512;

impl Watch {
    /// The next events, at least one, in order. Safe to drop and call again.
    ///
    /// # Errors
    /// [`Error::Compacted`] when this watcher is so slow that events were forgotten; [`Error::Closed`].
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, Error> {
        let notify = self.notify.clone();
        loop {
            let notified = notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let events = self.ready()?;
            if !events.is_empty() {
                return Ok(events);
            }
            notified.await;
        }
    }

    /// What is there already; empty when nothing is.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn ready(&mut self) -> Result<Vec<Arc<Event>>, Error> {
        let memory = self.memory.clone();
        let state = memory.state.read();
        let Some(c) = state.collections.get(&*self.collection) else {
            return Ok(Vec::new());
        };
        if self.next < c.first {
            return Err(Error::Compacted {
                asked: self.after,
                oldest: c.since,
            });
        }
        let mut out = Vec::new();
        let skip = usize::try_from(self.next - c.first)
            .unwrap_or(usize::MAX)
            .min(c.ring.len());
        for r in c.ring.range(skip..) {
            self.next += 1;
            let e = &r.event;
            if e.revision > self.after && e.entry.key.starts_with(&*self.prefix) {
                self.after = e.revision;
                out.push(e.clone());
                if out.len() == BATCH {
                    break;
                }
            }
        }
        if out.is_empty() && state.closed {
            return Err(Error::Closed);
        }
        Ok(out)
    }

    /// The revision up to which everything has been given out (for bookmarks); none when events are waiting.
    pub fn progress(&self) -> Option<u64> {
        let state = self.memory.state.read();
        match state.collections.get(&*self.collection) {
            Some(c) if self.next < c.first + c.ring.len() as u64 => None,
            _ => Some(state.revision.max(self.after)),
        }
    }
}
