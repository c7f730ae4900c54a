//! Tests of the embedded store: the conformance suite, damaged and locked files, expiry, memory; disks that fail in files of
//! their own.

mod bits;
mod disks;
mod failing;
mod figures;
mod restarts;
mod space;

use super::conformance::{self, value};
use super::embedded::{Embedded, Options};
use super::memory::Limits;
use super::{Attributes, Error, Expect, Hooks, Range, Store};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn hooks() -> Hooks {
    Hooks::new(Arc::new(|_, _| Attributes::default()))
}

fn open(dir: &Path) -> Result<Embedded, Error> {
    Embedded::open(dir, Options::new(hooks()))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
}

#[test]
fn the_embedded_store_conforms() {
    let root = tempfile::tempdir().expect("dir");
    let n = AtomicU64::new(0);
    runtime().block_on(conformance::all(&|| {
        let dir = root
            .path()
            .join(n.fetch_add(1, Ordering::Relaxed).to_string());
        Box::new(move || Arc::new(open(&dir).expect("open")) as Arc<dyn Store>)
    }));
}

#[test]
fn a_locked_or_damaged_database_is_named_with_its_mend() {
    let dir = tempfile::tempdir().expect("dir");
    let first = open(dir.path()).expect("open");
    let e = open(dir.path())
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    assert!(
        e.contains("skiff.redb is in use by another process") && e.contains("--data-dir"),
        "{e}"
    );
    runtime().block_on(async {
        for i in 0..200 {
            first
                .write(
                    format!("/a/b/c/{i}"),
                    Expect::Absent,
                    Some(value(&"x".repeat(500))),
                )
                .await
                .expect("write");
        }
        first.close().await;
    });
    drop(first);
    let file = dir.path().join("skiff.redb");
    let whole = std::fs::read(&file).expect("read");
    let mut random = StdRng::seed_from_u64(1);
    let mut refused = 0;
    for round in 0..12 {
        let mut broken = whole.clone();
        match round {
            0 => {
                broken =
                    b"this is no database, but some text that is long enough to be one".repeat(100)
            }
            1 => broken.truncate(whole.len() / 3),
            _ => {
                for _ in 0..200 {
                    let at = random.random_range(0..broken.len() / 2);
                    broken[at] ^= 0x55;
                }
            }
        }
        std::fs::write(&file, &broken).expect("write");
        // Either it is refused with a reason, or what was damaged was not in use.
        match open(dir.path()) {
            Ok(s) => assert_eq!(s.count("/a/b/"), 200),
            Err(e) => {
                refused += 1;
                let e = e.to_string();
                assert!(
                    e.contains("skiff.redb is damaged") || e.contains("cannot be"),
                    "{e}"
                );
            }
        }
    }
    assert!(refused >= 2);
}

static CLOCK: AtomicU64 = AtomicU64::new(1000);

#[test]
fn events_vanish_when_their_time_is_over_and_an_update_gives_them_more() {
    let dir = tempfile::tempdir().expect("dir");
    let options = || Options {
        expire: vec![("/core/events/".into(), 100)],
        clock: || CLOCK.load(Ordering::Relaxed),
        ..Options::new(hooks())
    };
    runtime().block_on(async {
        let s = Embedded::open(dir.path(), options()).expect("open");
        for n in ["old", "new"] {
            s.write(
                format!("/core/events/ns/{n}"),
                Expect::Absent,
                Some(value(n)),
            )
            .await
            .expect("write");
        }
        s.write("/core/pods/ns/p".into(), Expect::Absent, Some(value("p")))
            .await
            .expect("write");
        CLOCK.store(1060, Ordering::Relaxed);
        s.write(
            "/core/events/ns/new".into(),
            Expect::Any,
            Some(value("new")),
        )
        .await
        .expect("write");
        CLOCK.store(1110, Ordering::Relaxed);
        let mut w = s.watch("/core/events/", s.revision()).expect("watch");
        // The writer looks at the clock when something wakes it.
        s.write("/core/pods/ns/q".into(), Expect::Absent, Some(value("q")))
            .await
            .expect("write");
        let events = w.next().await.expect("events");
        assert!(events[0].deleted && events[0].entry.name() == "old" && events.len() == 1);
        assert_eq!((s.count("/core/events/"), s.count("/core/pods/")), (1, 2));
        s.close().await;
        CLOCK.store(1200, Ordering::Relaxed);
        // What became due while it was closed goes by itself.
        let s = Embedded::open(dir.path(), options()).expect("open");
        let mut w = s.watch("/core/events/", s.revision()).expect("watch");
        if s.count("/core/events/") > 0 {
            let _ = w.next().await;
        }
        assert_eq!(s.count("/core/events/"), 0);
    });
}

#[test]
fn a_slow_watcher_falls_off_and_holds_nobody() {
    let dir = tempfile::tempdir().expect("dir");
    let limits = Limits {
        events: 50,
        bytes: 10_000,
        ..Limits::default()
    };
    runtime().block_on(async {
        let s = Embedded::open(
            dir.path(),
            Options {
                limits,
                ..Options::new(hooks())
            },
        )
        .expect("open");
        let mut slow = s.watch("/a/b/", 0).expect("watch");
        let mut fast = s.watch("/a/b/", 0).expect("watch");
        let mut seen = 0;
        for i in 0..200 {
            s.write("/a/b/c/x".into(), Expect::Any, Some(value(&i.to_string())))
                .await
                .expect("write");
            seen += fast.ready().expect("fast").len();
        }
        assert_eq!(seen, 200);
        assert!(matches!(slow.next().await, Err(Error::Compacted { .. })));
        assert_eq!(
            Error::Compacted {
                asked: 1,
                oldest: 2
            }
            .status()
            .code,
            410
        );
    });
}

#[test]
fn many_writers_share_commits() {
    let dir = tempfile::tempdir().expect("dir");
    runtime().block_on(async {
        let s: Arc<dyn Store> = Arc::new(open(dir.path()).expect("open"));
        let started = std::time::Instant::now();
        let tasks: Vec<_> = (0..32)
            .map(|c| {
                let s = s.clone();
                tokio::spawn(async move {
                    for i in 0..100 {
                        s.write(
                            format!("/core/configmaps/ns/{c}-{i}"),
                            Expect::Absent,
                            Some(value(&"x".repeat(1000))),
                        )
                        .await
                        .expect("write");
                    }
                })
            })
            .collect();
        for t in tasks {
            t.await.expect("writer");
        }
        // Printed for whoever wants to know; no test of time.
        println!(
            "3200 durable creates of 1 KiB by 32 writers: {:?}",
            started.elapsed()
        );
        assert_eq!(s.count("/core/configmaps/"), 3200);
        assert_eq!(
            s.range(&Range {
                prefix: "/core/configmaps/",
                ..Range::default()
            })
            .expect("range")
            .entries
            .len(),
            3200
        );
        s.close().await;
    });
}
