//! Disks that fail: power cuts with torn writes, a sync that fails once, a writer that panics.

use super::super::conformance::{Journal, value};
use super::super::embedded::{Embedded, Options};
use super::super::{Error, Expect, Range, Store, splice};
use super::disks::{Flaky, FlakyDisk};
use super::{hooks, runtime};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn open(disk: &Arc<Flaky>) -> Result<Embedded, Error> {
    Embedded::open_on(Box::new(FlakyDisk(disk.clone())), Options::new(hooks()))
}

/// Four clients write until the store fails; what they saw goes into the journal.
fn write_until_it_fails(s: &Arc<dyn Store>, journal: &mut Journal, seed: u64) {
    let shared = Arc::new(Mutex::new(std::mem::take(journal)));
    runtime().block_on(async {
        let clients = (0..4).map(|c| {
            let (s, shared) = (s.clone(), shared.clone());
            let tried = shared.clone();
            tokio::spawn(async move {
                let id = format!("c{c}");
                Journal::write_until_it_fails(
                    &*s,
                    &id,
                    seed * 10 + c,
                    move |n, t| tried.lock().attempt(n, t.clone()),
                    move |n, r, t| shared.lock().acknowledge(n, r, t.clone()),
                )
                .await
            })
        });
        for c in clients.collect::<Vec<_>>() {
            let e = c.await.expect("client");
            assert!(matches!(e, Error::Failed { .. }), "{e}");
        }
    });
    *journal = shared.lock().clone();
}

fn contents(s: &dyn Store) -> Vec<(String, u64, bytes::Bytes)> {
    let all = Range {
        prefix: "/test/things/",
        ..Range::default()
    };
    let page = s.range(&all).expect("range");
    page.entries
        .iter()
        .map(|e| (e.key.to_string(), e.revision, e.value.clone()))
        .collect()
}

#[test]
fn acknowledged_writes_survive_power_cuts_that_tear_writes() {
    for seed in 0..10 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut disk = Arc::new(Flaky::default());
        let mut journal = Journal::default();
        for round in 0..6 {
            let s: Arc<dyn Store> = Arc::new(open(&disk).expect("opens after a power cut"));
            journal.check(&*s);
            disk.fuse
                .store(random.random_range(1..40), Ordering::Relaxed);
            write_until_it_fails(&s, &mut journal, seed * 100 + round);
            disk = disk.crash(&mut random);
        }
    }
}

/// A sync that fails loses what it was to write, but the system shows it as if it were there, also to the next process.
#[test]
fn after_a_failed_sync_nothing_is_written_and_the_next_start_reads_what_the_disk_holds() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut disk = Arc::new(Flaky::default());
        let mut journal = Journal::default();
        for round in 0..4 {
            let told = Arc::new(Mutex::new(None));
            let options = Options {
                on_fatal: Some(Box::new({
                    let told = told.clone();
                    move |why| *told.lock() = Some(why)
                })),
                ..Options::new(hooks())
            };
            let s = Embedded::open_on(Box::new(FlakyDisk(disk.clone())), options).expect("opens");
            let s: Arc<dyn Store> = Arc::new(s);
            journal.check(&*s);
            disk.bad_sync
                .store(random.random_range(1..30), Ordering::Relaxed);
            write_until_it_fails(&s, &mut journal, seed * 100 + round);
            let why = s.check().expect_err("told by the health check");
            assert!(why.contains("sync: Input/output error"), "{why}");
            // The disk is well again, and still nothing reaches it.
            let before = contents(&*s);
            let e = runtime()
                .block_on(s.write("/test/things/ns/x".into(), Expect::Any, Some(value("x"))))
                .expect_err("nothing is written any more");
            assert!(matches!(e, Error::Failed { .. }) && e.status().code == 500);
            assert_eq!(contents(&*s), before, "what is read was acknowledged");
            runtime().block_on(s.close());
            drop(s);
            while told.lock().is_none() {
                std::thread::yield_now();
            }
            assert_eq!(disk.after_failure.load(Ordering::Relaxed), 0);
            disk = disk.restart();
            let s = open(&disk).expect("opens after the failure");
            journal.check(&s);
            let shown = contents(&s);
            runtime().block_on(s.close());
            // What was shown is on the disk, and not only in the system's memory.
            let bare = Flaky::holding(disk.durable.lock().clone(), None);
            assert_eq!(contents(&open(&bare).expect("opens")), shown);
            disk = disk.restart();
        }
    }
}

#[test]
fn a_start_whose_sync_fails_is_refused_and_the_next_one_reads_the_disk() {
    let disk = Arc::new(Flaky::default());
    let s = open(&disk).expect("open");
    runtime().block_on(async {
        for i in 0..20 {
            let key = format!("/test/things/ns/{i}");
            s.write(key, Expect::Absent, Some(value("x")))
                .await
                .expect("write");
        }
        s.close().await;
    });
    for sync in 1..3 {
        let disk = disk.restart();
        disk.bad_sync.store(sync, Ordering::Relaxed);
        let Err(e) = open(&disk) else { continue };
        assert!(e.to_string().contains("Input/output error"), "{e}");
        let s = open(&disk.restart()).expect("the next start");
        assert_eq!(s.count("/test/things/"), 20);
    }
}

#[test]
fn a_writer_that_panics_is_told_and_nobody_waits_for_ever() {
    let disk = Arc::new(Flaky::default());
    let told = Arc::new(Mutex::new(None));
    let mut options = Options::new(hooks());
    // The splice runs on the writer's thread.
    options.hooks.splice = |value, old, new| {
        assert!(!value.starts_with(b"poison"), "the hook is broken");
        splice(value, old, new)
    };
    options.on_fatal = Some(Box::new({
        let told = told.clone();
        move |why| *told.lock() = Some(why)
    }));
    let s = Embedded::open_on(Box::new(FlakyDisk(disk.clone())), options).expect("open");
    let s: Arc<dyn Store> = Arc::new(s);
    runtime().block_on(async {
        s.write("/test/things/ns/a".into(), Expect::Any, Some(value("1")))
            .await
            .expect("write");
        let mut waiting = Vec::new();
        for i in 0..50 {
            let s = s.clone();
            waiting.push(tokio::spawn(async move {
                let text = if i == 20 { "poison".into() } else { value("y") };
                s.write(format!("/test/things/ns/{i}"), Expect::Any, Some(text))
                    .await
            }));
        }
        let mut failed = 0;
        for w in waiting {
            let answer = tokio::time::timeout(std::time::Duration::from_secs(10), w)
                .await
                .expect("an answer")
                .expect("task");
            if let Err(e) = answer {
                assert!(
                    matches!(&e, Error::Failed { why, .. } if why.contains("panicked: the hook is broken")),
                    "{e}"
                );
                failed += 1;
            }
        }
        assert!(failed > 0);
        assert!(s.check().is_err());
        assert!(s.get("/test/things/ns/a").is_some(), "reads go on");
        s.close().await;
    });
    while told.lock().is_none() {
        std::thread::yield_now();
    }
    // What was acknowledged is there.
    let s = open(&disk.restart()).expect("open");
    assert!(s.get("/test/things/ns/a").is_some());
}

#[test]
fn an_object_that_claims_what_another_has_is_refused_whatever_is_known_of_the_write() {
    let mut options = Options::new(hooks());
    options.hooks.attributes = Arc::new(|_, v| {
        let text = String::from_utf8_lossy(v).into_owned();
        let claims = ["one", "two"].into_iter().filter(move |c| text.contains(c));
        super::super::Attributes::default().with_claims(claims.map(String::from))
    });
    let disk = Arc::new(Flaky::default());
    let s: Arc<dyn Store> =
        Arc::new(Embedded::open_on(Box::new(FlakyDisk(disk.clone())), options).expect("open"));
    let key = |n: &str| format!("/core/services/ns/{n}");
    runtime().block_on(async {
        // A write whose caller went away is done, or not; either way its claim is given once.
        let gone = s.write(key("a"), Expect::Absent, Some(value("one")));
        let _ = futures::poll!(Box::pin(gone));
        let e = s
            .write(key("b"), Expect::Absent, Some(value("one")))
            .await
            .expect_err("taken");
        assert!(
            matches!(&e, Error::Claimed { claim, .. } if claim == "one"),
            "{e}"
        );
        assert_eq!(e.status().code, 500);
        assert!(s.get(&key("a")).is_some() && s.claimed("one") && !s.claimed("two"));
        s.write(key("a"), Expect::Any, Some(value("one two")))
            .await
            .expect("one keeps what one has");
        s.write(key("b"), Expect::Absent, Some(value("two")))
            .await
            .expect_err("taken meanwhile");
        // In one batch: given back and taken.
        let (gone, taken) = tokio::join!(
            s.write(key("a"), Expect::Any, None),
            s.write(key("b"), Expect::Absent, Some(value("two")))
        );
        gone.expect("delete");
        taken.expect("free by then");
        let both = tokio::join!(
            s.write(key("c"), Expect::Absent, Some(value("one"))),
            s.write(key("d"), Expect::Absent, Some(value("one")))
        );
        assert!(both.0.is_ok() && both.1.is_err(), "in one batch, too");
        s.close().await;
    });
}
