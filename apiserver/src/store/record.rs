//! The bytes of format 2: records of objects and rows of history. Pure: encodes, decodes and checks; knows no database.
//!
//! Everything carries a checksum of its own: redb checks its pages when a file is opened, but not those that it copies while
//! it runs, so damage could come to lie in a page with a good checksum.
//!
//! An object's record: version (1 byte, 2), transformer (1 byte, 0: none), revision (8 bytes, all numbers little endian),
//! expiry (8 bytes, seconds since the epoch, 0 for never), value, checksum (8 bytes).
//!
//! A row of history, one for each transaction, under its last revision: version (1 byte), time (8), number of all objects
//! (8), digest of all objects (8), base (8): collections whose history was never cut know everything after it; then the
//! events in order; checksum (8). An event: flags (1), revision (8), length of the key (4), key; with [`PREVIOUS`] the
//! revision before (8), and the value before: how many bytes of the new value it begins with (4) and ends with (4), and what
//! lies between (length, 4, and bytes).

use super::{Event, Hooks};
use twox_hash::XxHash3_64;

/// The format that is written.
pub const FORMAT: u64 = 2;
const VERSION: u8 = 2;
/// Bytes before the value of an object's record.
pub const HEAD: usize = 18;
/// Bytes after it.
pub const FOOT: usize = 8;
const DELETED: u8 = 1;
const PREVIOUS: u8 = 2;
const ROW_HEAD: usize = 33;

/// The checksum of some bytes under a name: bytes that come to lie under another name do not pass.
fn checksum(name: &[u8], bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(name), bytes)
}

/// An object's record.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Of its last write.
    pub revision: u64,
    /// Seconds since the epoch; 0 for never.
    pub expiry: u64,
    /// The object's bytes.
    pub value: &'a [u8],
    /// What it adds to the digest of all objects.
    pub sum: u64,
}

/// Writes an object's record into `out`; gives what it adds to the digest.
pub fn put(out: &mut Vec<u8>, key: &str, revision: u64, expiry: u64, value: &[u8]) -> u64 {
    out.clear();
    out.reserve(HEAD + value.len() + FOOT);
    out.extend_from_slice(&[VERSION, 0]);
    out.extend_from_slice(&revision.to_le_bytes());
    out.extend_from_slice(&expiry.to_le_bytes());
    out.extend_from_slice(value);
    let sum = checksum(key.as_bytes(), out);
    out.extend_from_slice(&sum.to_le_bytes());
    sum
}

/// Reads an object's record; None when it is damaged.
pub fn get<'a>(key: &str, bytes: &'a [u8]) -> Option<Record<'a>> {
    let r = glance(bytes)?;
    let (body, _) = bytes.split_last_chunk::<FOOT>()?;
    (body[..2] == [VERSION, 0] && r.sum == checksum(key.as_bytes(), body)).then_some(r)
}

/// Reads an object's record without checking it; None when it is too short to be one.
pub fn glance(bytes: &[u8]) -> Option<Record<'_>> {
    let (body, sum) = bytes.split_last_chunk::<FOOT>()?;
    Some(Record {
        revision: number(body.get(2..10)?)?,
        expiry: number(body.get(10..HEAD)?)?,
        value: body.get(HEAD..)?,
        sum: u64::from_le_bytes(*sum),
    })
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Some number under a name, with a checksum.
pub fn put_number(name: &str, n: u64) -> [u8; 16] {
    let n = n.to_le_bytes();
    let mut out = [0; 16];
    out[..8].copy_from_slice(&n);
    out[8..].copy_from_slice(&checksum(name.as_bytes(), &n).to_le_bytes());
    out
}

/// Reads what [`put_number`] wrote; None when it is damaged.
pub fn get_number(name: &str, bytes: &[u8]) -> Option<u64> {
    let n = number(bytes.get(..8)?)?;
    (put_number(name, n) == bytes).then_some(n)
}

/// What a row of history says beside its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowHead {
    /// Seconds since the epoch.
    pub at: u64,
    /// How many objects there are.
    pub count: u64,
    /// The sum of all their records' sums.
    pub digest: u64,
    /// Collections whose history was never cut know everything after this revision.
    pub base: u64,
}

/// Begins a row in `out`.
pub fn begin_row(out: &mut Vec<u8>, head: &RowHead) {
    out.clear();
    out.push(VERSION);
    for n in [head.at, head.count, head.digest, head.base] {
        out.extend_from_slice(&n.to_le_bytes());
    }
}

/// Changes what a row that was begun says beside its events.
pub fn set_row_head(out: &mut [u8], head: &RowHead) {
    for (i, n) in [head.at, head.count, head.digest, head.base]
        .into_iter()
        .enumerate()
    {
        out[1 + i * 8..9 + i * 8].copy_from_slice(&n.to_le_bytes());
    }
}

/// Appends an event. The value before is kept as what differs from the value after, both with the same revision inside:
/// most updates change a few bytes.
pub fn put_event(out: &mut Vec<u8>, hooks: &Hooks, event: &Event) {
    let entry = &event.entry;
    let flags = if event.deleted { DELETED } else { 0 };
    let flags = flags | event.previous.as_ref().map_or(0, |_| PREVIOUS);
    out.push(flags);
    out.extend_from_slice(&event.revision.to_le_bytes());
    put_bytes(out, entry.key.as_bytes());
    let Some(p) = &event.previous else { return };
    out.extend_from_slice(&p.revision.to_le_bytes());
    if event.deleted {
        out.extend_from_slice(&[0; 8]);
        put_bytes(out, &p.value);
        return;
    }
    let was = (hooks.splice)(&p.value, Some(p.revision), entry.revision);
    let (head, tail) = common(&was, &entry.value);
    out.extend_from_slice(&(head as u32).to_le_bytes());
    out.extend_from_slice(&(tail as u32).to_le_bytes());
    put_bytes(out, &was[head..was.len() - tail]);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// How many bytes two values begin and end with, not overlapping. In steps: this is done for each update.
fn common(a: &[u8], b: &[u8]) -> (usize, usize) {
    const STEP: usize = 64;
    let steps = a.chunks_exact(STEP).zip(b.chunks_exact(STEP));
    let mut head = steps.take_while(|(x, y)| x == y).count() * STEP;
    let rest = a[head..].iter().zip(&b[head..]);
    head += rest.take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[head..], &b[head..]);
    let steps = a.rchunks_exact(STEP).zip(b.rchunks_exact(STEP));
    let mut tail = steps.take_while(|(x, y)| x == y).count() * STEP;
    let rest = a[..a.len() - tail]
        .iter()
        .rev()
        .zip(b[..b.len() - tail].iter().rev());
    tail += rest.take_while(|(x, y)| x == y).count();
    (head, tail)
}

/// Ends a row that is stored under `revision`.
pub fn end_row(out: &mut Vec<u8>, revision: u64) {
    let sum = checksum(&revision.to_le_bytes(), out);
    out.extend_from_slice(&sum.to_le_bytes());
}

/// An event of a row.
#[derive(Debug, PartialEq, Eq)]
pub struct Past<'a> {
    /// The write's revision.
    pub revision: u64,
    /// A deletion.
    pub deleted: bool,
    /// The object's key.
    pub key: &'a str,
    /// The revision before and the value before.
    pub previous: Option<(u64, Difference<'a>)>,
}

/// A value as what differs from a later one.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<'a> {
    head: usize,
    tail: usize,
    middle: &'a [u8],
}

impl Difference<'_> {
    /// The value, which still has the later one's revision inside; None when it does not fit to the later one.
    pub fn undo(&self, later: &[u8]) -> Option<Vec<u8>> {
        let tail_at = later.len().checked_sub(self.tail)?;
        let mut out = Vec::with_capacity(self.head + self.middle.len() + self.tail);
        out.extend_from_slice(later.get(..self.head)?);
        out.extend_from_slice(self.middle);
        out.extend_from_slice(&later[tail_at..]);
        Some(out)
    }
}

/// Reads a row; None when it is damaged.
pub fn get_row(revision: u64, bytes: &[u8]) -> Option<(RowHead, Vec<Past<'_>>)> {
    let (body, sum) = bytes.split_last_chunk::<8>()?;
    if u64::from_le_bytes(*sum) != checksum(&revision.to_le_bytes(), body) {
        return None;
    }
    let (head, mut rest) = body.split_at_checked(ROW_HEAD)?;
    if head[0] != VERSION {
        return None;
    }
    let field = |i: usize| number(&head[1 + i * 8..9 + i * 8]);
    let head = RowHead {
        at: field(0)?,
        count: field(1)?,
        digest: field(2)?,
        base: field(3)?,
    };
    let mut events = Vec::new();
    while !rest.is_empty() {
        events.push(get_event(&mut rest)?);
    }
    Some((head, events))
}

fn get_event<'a>(rest: &mut &'a [u8]) -> Option<Past<'a>> {
    let flags = take(rest, 1)?[0];
    let revision = number(take(rest, 8)?)?;
    let n = length(rest)?;
    let key = std::str::from_utf8(take(rest, n)?).ok()?;
    let mut previous = None;
    if flags & PREVIOUS != 0 {
        let before = number(take(rest, 8)?)?;
        let (head, tail) = (length(rest)?, length(rest)?);
        let n = length(rest)?;
        let middle = take(rest, n)?;
        previous = Some((before, Difference { head, tail, middle }));
    }
    Some(Past {
        revision,
        deleted: flags & DELETED != 0,
        key,
        previous,
    })
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken)
}

fn length(rest: &mut &[u8]) -> Option<usize> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::super::{Attributes, Entry, splice};
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn entry(key: &str, text: &str, revision: u64) -> Arc<Entry> {
        let raw = format!("{{\"metadata\":{{\"name\":\"n\"}},\"data\":\"{text}\"}}");
        Arc::new(Entry {
            key: key.into(),
            value: splice(raw.as_bytes(), None, revision),
            revision,
            attributes: Attributes::default(),
        })
    }

    proptest! {
        #[test]
        fn a_record_comes_back_and_no_changed_bit_passes(
            value in proptest::collection::vec(any::<u8>(), 0..80), revision: u64, expiry: u64, at: prop::sample::Index, bit in 0..8u32
        ) {
            let mut out = Vec::new();
            let sum = put(&mut out, "/a/b/c", revision, expiry, &value);
            prop_assert_eq!(get("/a/b/c", &out), Some(Record { revision, expiry, value: &value, sum }));
            prop_assert_eq!(get("/a/b/d", &out), None);
            let i = at.index(out.len());
            out[i] ^= 1 << bit;
            prop_assert_eq!(get("/a/b/c", &out), None);
        }

        #[test]
        fn a_row_of_history_gives_the_values_before_back(
            before in "[a-c]{0,200}", after in "[a-c]{0,200}", r in 1..1_000_000u64, at: prop::sample::Index, bit in 0..8u32
        ) {
            let hooks = Hooks::new(Arc::new(|_, _| Attributes::default()));
            let (old, new) = (entry("/a/b/c", &before, r), entry("/a/b/c", &after, r + 17));
            let head = RowHead { at: 5, count: 7, digest: 9, base: 1 };
            let mut out = Vec::new();
            begin_row(&mut out, &RowHead { at: 5, count: 0, digest: 0, base: 0 });
            put_event(&mut out, &hooks, &Event { revision: r + 17, deleted: false, entry: new.clone(), previous: Some(old.clone()) });
            put_event(&mut out, &hooks, &Event { revision: r + 18, deleted: true, entry: new.clone(), previous: Some(new.clone()) });
            put_event(&mut out, &hooks, &Event { revision: r + 19, deleted: false, entry: old.clone(), previous: None });
            set_row_head(&mut out, &head);
            end_row(&mut out, r + 19);
            let (h, events) = get_row(r + 19, &out).expect("row");
            prop_assert_eq!(h, head);
            prop_assert_eq!(events.len(), 3);
            let (rev, d) = events[0].previous.as_ref().expect("previous");
            let undone = splice(&d.undo(&new.value).expect("fits"), Some(r + 17), *rev);
            prop_assert_eq!(&undone, &old.value);
            prop_assert_eq!(events[1].previous.as_ref().and_then(|(_, d)| d.undo(b"")), Some(new.value.to_vec()));
            prop_assert!(events[2].previous.is_none() && !events[2].deleted && events[1].deleted);
            prop_assert!(get_row(r + 20, &out).is_none());
            let i = at.index(out.len());
            out[i] ^= 1 << bit;
            prop_assert!(get_row(r + 19, &out).is_none());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = get("/a", &bytes);
            let _ = get_number("x", &bytes);
            let mut rest = &bytes[..];
            while get_event(&mut rest).is_some() {}
        }
    }

    #[test]
    fn numbers_are_checked_with_their_names() {
        let n = put_number("/core/pods/", 12);
        assert_eq!(get_number("/core/pods/", &n), Some(12));
        assert_eq!(get_number("/core/nodes/", &n), None);
    }
}
