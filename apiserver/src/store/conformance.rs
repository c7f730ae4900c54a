//! The conformance suite of the [`Store`] seam: every implementation runs [`all`] over its own factory, and the crash
//! checks ([`Journal`]) over its own way of dying. Owns what a store must do; knows no implementation. Panics say what broke.

mod resume;

use super::{Entry, Error, Event, Expect, Range, Store};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Opens one store: called again after `close` it opens the same data.
pub type Open<'a> = &'a dyn Fn() -> Arc<dyn Store>;

/// A value as the registry stores it.
pub fn value(text: &str) -> Bytes {
    format!("{{\"metadata\":{{\"name\":\"{text}\"}},\"data\":\"{text}\"}}").into()
}

/// What [`value`] put into an entry.
fn text(e: &Entry) -> String {
    let v: serde_json::Value = serde_json::from_slice(&e.value).unwrap_or_default();
    assert_eq!(
        v["metadata"]["resourceVersion"],
        e.revision.to_string(),
        "the revision is inside of the value"
    );
    v["data"].as_str().unwrap_or("").to_string()
}

fn key(name: &str) -> String {
    format!("/test/things/ns/{name}")
}

async fn put(s: &dyn Store, name: &str, text: &str) -> Arc<Entry> {
    s.write(key(name), Expect::Any, Some(value(text)))
        .await
        .expect("a write without expectation")
}

/// Name, text and revision of entries.
type Shown = Vec<(String, String, u64)>;

fn shown(entries: &[Arc<Entry>]) -> Shown {
    entries
        .iter()
        .map(|e| (e.name().to_string(), text(e), e.revision))
        .collect()
}

fn range(s: &dyn Store, r: &Range<'_>) -> Vec<(String, String, u64)> {
    shown(&s.range(r).expect("range").entries)
}

const PREFIX: &str = "/test/things/";

async fn next(w: &mut super::Watch) -> Vec<Arc<Event>> {
    tokio::time::timeout(Duration::from_secs(10), w.next())
        .await
        .expect("an event within ten seconds")
        .expect("events")
}

/// Runs everything. `fresh` makes a factory of a new, empty store.
pub async fn all<'a>(fresh: &dyn Fn() -> Box<dyn Fn() -> Arc<dyn Store> + 'a>) {
    writes_hold_to_what_they_expect(&*fresh()).await;
    ranges_are_cut_and_filtered(&*fresh()).await;
    old_revisions_can_be_read(&*fresh()).await;
    watches_see_everything_in_order(&*fresh()).await;
    history_is_forgotten_cleanly(&*fresh()).await;
    everything_is_there_after_a_restart(&*fresh()).await;
    for seed in 0..4 {
        resume::watches_and_old_revisions_go_on_after_a_restart(&*fresh(), seed).await;
        concurrent_histories_match_the_model(&*fresh(), seed).await;
    }
}

/// Create, update and delete with each expectation.
pub async fn writes_hold_to_what_they_expect(open: Open<'_>) {
    let s = open();
    let start = s.revision();
    let a = s
        .write(key("a"), Expect::Absent, Some(value("1")))
        .await
        .expect("create");
    assert!(a.revision > start && s.revision() == a.revision);
    assert_eq!(text(&a), "1");
    let again = s.write(key("a"), Expect::Absent, Some(value("2"))).await;
    assert!(
        matches!(&again, Err(Error::Conflict(Some(e))) if e.revision == a.revision),
        "{again:?}"
    );
    let b = s
        .write(key("a"), Expect::Revision(a.revision), Some(value("2")))
        .await
        .expect("update");
    assert!(b.revision > a.revision);
    assert!(
        s.write(key("a"), Expect::Revision(a.revision), Some(value("3")))
            .await
            .is_err_and(|e| e.is_conflict())
    );
    assert!(
        s.write(key("a"), Expect::Revision(a.revision), None)
            .await
            .is_err_and(|e| e.is_conflict())
    );
    assert!(
        s.write(key("none"), Expect::Revision(1), Some(value("x")))
            .await
            .is_err_and(|e| e.is_conflict())
    );
    assert!(
        s.write(key("none"), Expect::Any, None)
            .await
            .is_err_and(|e| e.is_conflict()),
        "nothing to delete"
    );
    assert_eq!(s.revision(), b.revision, "refused writes take no revision");
    let gone = s
        .write(key("a"), Expect::Revision(b.revision), None)
        .await
        .expect("delete");
    assert!(gone.revision > b.revision);
    assert_eq!(
        text(&gone),
        "2",
        "the last state, with the revision of the deletion"
    );
    assert!(s.get(&key("a")).is_none());
    let c = s
        .write(key("a"), Expect::Absent, Some(value("4")))
        .await
        .expect("create again");
    assert_eq!(s.get(&key("a")).map(|e| e.revision), Some(c.revision));
    s.close().await;
    assert!(matches!(
        s.write(key("a"), Expect::Any, None).await,
        Err(Error::Closed)
    ));
}

/// Prefixes, pages, filters, counts.
pub async fn ranges_are_cut_and_filtered(open: Open<'_>) {
    let s = open();
    for n in ["c", "a", "d", "b"] {
        put(&*s, n, n).await;
    }
    s.write("/test/things/nt/x".into(), Expect::Any, Some(value("x")))
        .await
        .expect("write");
    s.write("/test/things2/ns/y".into(), Expect::Any, Some(value("y")))
        .await
        .expect("write");
    let names = |r: &Range<'_>| {
        range(&*s, r)
            .into_iter()
            .map(|(n, ..)| n)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&Range {
            prefix: "/test/things/ns/",
            ..Range::default()
        }),
        ["a", "b", "c", "d"]
    );
    assert_eq!(
        names(&Range {
            prefix: PREFIX,
            ..Range::default()
        }),
        ["a", "b", "c", "d", "x"]
    );
    assert_eq!(
        (
            s.count(PREFIX),
            s.count("/test/things/ns/"),
            s.count("/test/none/")
        ),
        (5, 4, 0)
    );
    let first = s
        .range(&Range {
            prefix: "/test/things/ns/",
            limit: 2,
            ..Range::default()
        })
        .expect("range");
    assert_eq!(
        (first.entries.len(), first.more, first.remaining),
        (2, true, 2)
    );
    let last = s
        .range(&Range {
            prefix: "/test/things/ns/",
            limit: 2,
            start_after: &first.entries[1].key,
            ..Range::default()
        })
        .expect("range");
    assert_eq!(
        (
            shown(&last.entries)[0].0.as_str(),
            last.more,
            last.remaining
        ),
        ("c", false, 0)
    );
    let odd = |e: &Entry| matches!(e.name(), "a" | "c");
    let page = s
        .range(&Range {
            prefix: "/test/things/ns/",
            limit: 1,
            filter: Some(&odd),
            ..Range::default()
        })
        .expect("range");
    assert_eq!((page.entries.len(), page.more), (1, true));
    let page = s
        .range(&Range {
            prefix: "/test/things/ns/",
            limit: 1,
            filter: Some(&odd),
            start_after: &page.entries[0].key,
            ..Range::default()
        })
        .expect("range");
    assert_eq!((page.entries[0].name(), page.more), ("c", false));
    s.close().await;
}

/// Ranges at an older revision are as they were then.
pub async fn old_revisions_can_be_read(open: Open<'_>) {
    let s = open();
    let mut then: Vec<(u64, Shown)> = Vec::new();
    let mut random = StdRng::seed_from_u64(7);
    for i in 0..60 {
        let n = ["a", "b", "c", "d", "e"][random.random_range(0..5)];
        if random.random_range(0..3) == 0 {
            let _ = s.write(key(n), Expect::Any, None).await;
        } else {
            put(&*s, n, &i.to_string()).await;
        }
        then.push((
            s.revision(),
            range(
                &*s,
                &Range {
                    prefix: PREFIX,
                    ..Range::default()
                },
            ),
        ));
    }
    for (revision, want) in &then {
        let got = range(
            &*s,
            &Range {
                prefix: PREFIX,
                revision: Some(*revision),
                ..Range::default()
            },
        );
        assert_eq!(&got, want, "at revision {revision}");
        // In pages, too.
        let mut paged: Vec<(String, String, u64)> = Vec::new();
        let mut after = String::new();
        loop {
            let r = Range {
                prefix: PREFIX,
                revision: Some(*revision),
                limit: 2,
                start_after: &after,
                ..Range::default()
            };
            let p = s.range(&r).expect("page");
            paged.extend(shown(&p.entries));
            match p.entries.last() {
                Some(e) if p.more => after = e.key.to_string(),
                _ => break,
            }
        }
        assert_eq!(&paged, want, "in pages at revision {revision}");
    }
    let future = s.range(&Range {
        prefix: PREFIX,
        revision: Some(s.revision() + 1),
        ..Range::default()
    });
    assert!(matches!(future, Err(Error::Future { .. })));
    s.close().await;
}

/// Watches from now, from before, of a part.
pub async fn watches_see_everything_in_order(open: Open<'_>) {
    let s = open();
    let start = s.revision();
    let a = put(&*s, "a", "1").await;
    let mut early = s.watch(PREFIX, start).expect("watch from before");
    let mut part = s.watch("/test/things/ns/b", start).expect("watch of one");
    let mut late = s.watch(PREFIX, a.revision).expect("watch from now");
    assert!(late.ready().expect("ready").is_empty());
    assert_eq!(late.progress(), Some(s.revision()));
    assert_eq!(early.progress(), None, "something is waiting");
    let waiting = tokio::spawn(async move {
        let e = next(&mut late).await;
        (e, late)
    });
    tokio::task::yield_now().await;
    let b = put(&*s, "b", "2").await;
    let (events, mut late) = waiting.await.expect("task");
    assert_eq!(events.len(), 1);
    assert_eq!(
        (
            events[0].revision,
            events[0].deleted,
            events[0].previous.is_none()
        ),
        (b.revision, false, true)
    );
    put(&*s, "b", "3").await;
    s.write(key("b"), Expect::Any, None).await.expect("delete");
    s.write("/test/others/ns/b".into(), Expect::Any, Some(value("x")))
        .await
        .expect("another collection");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(next(&mut early).await);
    }
    let line = |e: &Event| {
        format!(
            "{}{}:{}<{}",
            if e.deleted { "-" } else { "+" },
            e.entry.name(),
            text(&e.entry),
            e.previous.as_ref().map_or(String::new(), |p| text(p))
        )
    };
    assert_eq!(
        seen.iter().map(|e| line(e)).collect::<Vec<_>>(),
        ["+a:1<", "+b:2<", "+b:3<2", "-b:3<3"]
    );
    assert!(seen.windows(2).all(|w| w[0].revision < w[1].revision));
    let mut of_b = Vec::new();
    while of_b.len() < 3 {
        of_b.extend(next(&mut part).await);
    }
    assert!(of_b.iter().all(|e| e.entry.name() == "b"));
    while late.progress().is_none() {
        next(&mut late).await;
    }
    assert_eq!(
        late.progress(),
        Some(s.revision()),
        "nothing of other collections is waited for"
    );
    s.close().await;
    assert!(
        matches!(late.next().await, Err(Error::Closed)),
        "watches end with the store"
    );
}

/// Compaction, and what asks for more than there is.
pub async fn history_is_forgotten_cleanly(open: Open<'_>) {
    let s = open();
    let first = put(&*s, "a", "1").await.revision;
    let mut slow = s.watch(PREFIX, first).expect("watch");
    let second = put(&*s, "a", "2").await.revision;
    let third = put(&*s, "a", "3").await.revision;
    s.compact(second);
    assert!(
        matches!(slow.next().await, Err(Error::Compacted { .. })),
        "its events are gone"
    );
    assert!(matches!(
        s.watch(PREFIX, first),
        Err(Error::Compacted { .. })
    ));
    assert!(matches!(
        s.range(&Range {
            prefix: PREFIX,
            revision: Some(first),
            ..Range::default()
        }),
        Err(Error::Compacted { .. })
    ));
    assert_eq!(
        range(
            &*s,
            &Range {
                prefix: PREFIX,
                revision: Some(second),
                ..Range::default()
            }
        )[0]
        .1,
        "2"
    );
    let mut w = s
        .watch(PREFIX, second)
        .expect("from the compacted revision on");
    assert_eq!(next(&mut w).await[0].revision, third);
    assert_eq!(
        s.get(&key("a")).map(|e| text(&e)),
        Some("3".into()),
        "the present is never forgotten"
    );
    s.close().await;
}

/// Closing and opening again.
pub async fn everything_is_there_after_a_restart(open: Open<'_>) {
    let s = open();
    put(&*s, "a", "1").await;
    put(&*s, "b", "2").await;
    put(&*s, "b", "3").await;
    s.write(key("a"), Expect::Any, None).await.expect("delete");
    let (revision, before) = (
        s.revision(),
        range(
            &*s,
            &Range {
                prefix: PREFIX,
                ..Range::default()
            },
        ),
    );
    s.close().await;
    drop(s);
    let s = open();
    assert_eq!(
        s.revision(),
        revision,
        "revisions go on, also after a deletion"
    );
    assert_eq!(
        range(
            &*s,
            &Range {
                prefix: PREFIX,
                ..Range::default()
            }
        ),
        before
    );
    let mut w = s
        .watch(PREFIX, revision)
        .expect("watch from the last revision");
    let c = put(&*s, "c", "4").await;
    assert!(c.revision > revision);
    assert_eq!(next(&mut w).await[0].revision, c.revision);
    s.close().await;
}

/// Many writers on few keys, readers and a watcher: everything agrees with one sequence of writes.
pub async fn concurrent_histories_match_the_model(open: Open<'_>, seed: u64) {
    const WRITERS: u64 = 8;
    const WRITES: usize = 120;
    let s = open();
    let start = s.revision();
    let mut watch = s.watch(PREFIX, start).expect("watch");
    let mut tasks = Vec::new();
    for id in 0..WRITERS {
        let s = s.clone();
        tasks.push(tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed * 100 + id);
            let mut done: Vec<(u64, String, Option<String>)> = Vec::new();
            let mut seen = 0;
            for i in 0..WRITES {
                let name = format!("k{}", random.random_range(0..6));
                let current = s.get(&key(&name));
                assert!(
                    s.revision() >= seen,
                    "the revision never goes back for a reader"
                );
                seen = s.revision();
                let expect = match &current {
                    None => Expect::Absent,
                    Some(e) => Expect::Revision(e.revision),
                };
                let delete = current.is_some() && random.random_range(0..4) == 0;
                let text_of = format!("{id}-{i}");
                let new = (!delete).then(|| value(&text_of));
                match s.write(key(&name), expect, new).await {
                    Ok(e) => {
                        assert!(e.revision > current.as_ref().map_or(0, |c| c.revision));
                        assert!(s.revision() >= e.revision, "visible when acknowledged");
                        done.push((e.revision, name, (!delete).then_some(text_of)));
                    }
                    Err(Error::Conflict(_)) => {}
                    Err(e) => panic!("{e}"),
                }
                if random.random_range(0..8) == 0 {
                    let page = s
                        .range(&Range {
                            prefix: PREFIX,
                            ..Range::default()
                        })
                        .expect("range");
                    assert!(page.entries.iter().all(|e| e.revision <= page.revision));
                }
            }
            done
        }));
    }
    let mut acknowledged: BTreeMap<u64, (String, Option<String>)> = BTreeMap::new();
    for t in tasks {
        for (revision, name, text) in t.await.expect("writer") {
            let twice = acknowledged.insert(revision, (name, text));
            assert!(twice.is_none(), "revision {revision} was given twice");
        }
    }
    // The watcher saw exactly what was acknowledged, in order, each with the right state before it.
    let mut model: BTreeMap<String, (String, u64)> = BTreeMap::new();
    let mut states: BTreeMap<u64, Vec<(String, String, u64)>> = BTreeMap::new();
    let mut expected = acknowledged.iter();
    let mut left = acknowledged.len();
    while left > 0 {
        for e in next(&mut watch).await {
            let (revision, (name, text_of)) = expected.next().expect("no event that nobody wrote");
            left -= 1;
            assert_eq!((e.revision, e.entry.name()), (*revision, name.as_str()));
            assert_eq!(
                e.previous.as_ref().map(|p| (text(p), p.revision)),
                model.get(name).cloned(),
                "the state before"
            );
            assert_eq!(e.deleted, text_of.is_none());
            match text_of {
                Some(t) => {
                    assert_eq!(&text(&e.entry), t);
                    model.insert(name.clone(), (t.clone(), *revision));
                }
                None => drop(model.remove(name)),
            }
            states.insert(
                *revision,
                model
                    .iter()
                    .map(|(n, (t, r))| (n.clone(), t.clone(), *r))
                    .collect(),
            );
        }
    }
    assert_eq!(
        range(
            &*s,
            &Range {
                prefix: PREFIX,
                ..Range::default()
            }
        ),
        *states.values().last().expect("some")
    );
    for (revision, state) in states.iter().step_by(17) {
        assert_eq!(
            &range(
                &*s,
                &Range {
                    prefix: PREFIX,
                    revision: Some(*revision),
                    ..Range::default()
                }
            ),
            state,
            "at {revision}"
        );
    }
    s.close().await;
}

/// What was acknowledged and what was only tried, for crash checks: after a crash the store must hold a state that has all
/// of the first and maybe some of the second.
#[derive(Debug, Default, Clone)]
pub struct Journal {
    /// By key: the acknowledged writes, revision and text (none for a deletion).
    acknowledged: BTreeMap<String, Vec<(u64, Option<String>)>>,
    /// By key: what was tried and not acknowledged.
    tried: BTreeMap<String, Vec<Option<String>>>,
    highest: u64,
}

impl Journal {
    /// A write was acknowledged.
    pub fn acknowledge(&mut self, name: &str, revision: u64, text: Option<String>) {
        self.highest = self.highest.max(revision);
        self.acknowledged
            .entry(name.into())
            .or_default()
            .push((revision, text));
    }
    /// A write was tried, and nobody knows what became of it.
    pub fn attempt(&mut self, name: &str, text: Option<String>) {
        self.tried.entry(name.into()).or_default().push(text);
    }
    /// How many writes were acknowledged.
    pub fn len(&self) -> usize {
        self.acknowledged.values().map(Vec::len).sum()
    }
    /// Nothing was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.acknowledged.is_empty()
    }
    /// Checks the store after the crash; what it holds becomes the acknowledged state of the next round.
    ///
    /// # Panics
    /// When something acknowledged is not there, something deleted is there again, or revisions went back.
    pub fn check(&mut self, s: &dyn Store) {
        assert!(
            s.revision() >= self.highest,
            "revision {} after {} was acknowledged",
            s.revision(),
            self.highest
        );
        let names: Vec<String> = self
            .acknowledged
            .keys()
            .chain(self.tried.keys())
            .cloned()
            .collect();
        for name in names {
            let last = self
                .acknowledged
                .get(&name)
                .and_then(|l| l.iter().max_by_key(|(r, _)| *r))
                .cloned();
            let found = s.get(&key(&name));
            let state = found.as_ref().map(|e| text(e));
            let same = last.as_ref().is_some_and(|(r, t)| {
                *t == state && found.as_ref().is_none_or(|e| e.revision == *r)
            }) || (last.is_none() && state.is_none());
            let later = found
                .as_ref()
                .is_none_or(|e| e.revision > last.as_ref().map_or(0, |(r, _)| *r));
            let tried = later && self.tried.get(&name).is_some_and(|l| l.contains(&state));
            assert!(
                same || tried,
                "{name}: {state:?} at {:?}, but {last:?} was acknowledged",
                found.map(|e| e.revision)
            );
        }
        self.highest = s.revision();
        self.tried.clear();
        self.acknowledged.clear();
        for e in s
            .range(&Range {
                prefix: PREFIX,
                ..Range::default()
            })
            .expect("range")
            .entries
        {
            self.acknowledge(e.name(), e.revision, Some(text(&e)));
        }
    }
    /// Writes to the store until it fails, as one client of a crash check: random creates, updates and deletes over names
    /// that start with `id`. `told` is called with each acknowledged write.
    ///
    /// # Errors
    /// The first error that is no conflict.
    pub async fn write_until_it_fails(
        s: &dyn Store,
        id: &str,
        seed: u64,
        mut trying: impl FnMut(&str, &Option<String>),
        mut told: impl FnMut(&str, u64, &Option<String>),
    ) -> Error {
        let mut random = StdRng::seed_from_u64(seed);
        for i in 0.. {
            let name = format!("{id}-{}", random.random_range(0..12));
            let delete = s.get(&key(&name)).is_some() && random.random_range(0..3) == 0;
            let text = (!delete).then(|| format!("{seed}-{i}"));
            trying(&name, &text);
            match s
                .write(key(&name), Expect::Any, text.as_deref().map(value))
                .await
            {
                Ok(e) => told(&name, e.revision, &text),
                Err(Error::Conflict(_)) => {}
                Err(e) => return e,
            }
        }
        Error::Closed
    }
}
