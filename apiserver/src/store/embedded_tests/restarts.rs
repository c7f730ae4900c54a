//! What a restart keeps: the recent events, and what older versions wrote.

use super::super::conformance::value;
use super::super::embedded::{Embedded, Options};
use super::super::load::{META, OBJECTS};
use super::super::writer::TailLimits;
use super::super::{Error, Expect, Store};
use super::disks::{Flaky, FlakyDisk};
use super::{hooks, runtime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::ReadableTable;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn open_with(disk: &Arc<Flaky>, tail: TailLimits) -> Embedded {
    let options = Options {
        tail,
        ..Options::new(hooks())
    };
    Embedded::open_on(Box::new(FlakyDisk(disk.clone())), options).expect("open")
}

fn events(s: &dyn Store, prefix: &str, after: u64) -> Result<Vec<String>, Error> {
    let mut w = s.watch(prefix, after)?;
    let mut out = Vec::new();
    loop {
        let some = w.ready()?;
        if some.is_empty() {
            return Ok(out);
        }
        out.extend(some.iter().map(|e| {
            let text = |e: &super::super::Entry| {
                format!(
                    "{}@{}:{}",
                    e.key,
                    e.revision,
                    String::from_utf8_lossy(&e.value)
                )
            };
            let was = e.previous.as_ref().map_or(String::new(), |p| text(p));
            format!("{} {} {} <{was}>", e.revision, e.deleted, text(&e.entry))
        }));
    }
}

/// Over restarts, power cuts and a history that is cut, a watcher that comes back gets exactly what it missed, or is told
/// that this is not known any more.
#[test]
fn watchers_resume_after_a_restart_or_are_told_that_they_cannot() {
    let prefixes = ["/test/things/", "/test/others/", "/test/quiet/"];
    for seed in 0..8 {
        let mut random = StdRng::seed_from_u64(seed);
        let tail = TailLimits {
            bytes: if seed % 2 == 0 { 4 << 20 } else { 3000 },
            ..TailLimits::default()
        };
        let mut disk = Arc::new(Flaky::default());
        // Everything that ever happened, by prefix.
        let mut told: Vec<Vec<(u64, String)>> = vec![Vec::new(); 3];
        let mut resumed = 0;
        for round in 0..5 {
            let s: Arc<dyn Store> = Arc::new(open_with(&disk, tail.clone()));
            for (prefix, told) in prefixes.iter().zip(&told) {
                let last = s.revision();
                for after in [0, last / 2, last.saturating_sub(5), last] {
                    let want: Vec<&String> = told
                        .iter()
                        .filter(|(r, _)| *r > after)
                        .map(|(_, t)| t)
                        .collect();
                    match events(&*s, prefix, after) {
                        Ok(got) => {
                            assert_eq!(
                                got.iter().collect::<Vec<_>>(),
                                want,
                                "{prefix} after {after}"
                            );
                            resumed += 1;
                        }
                        Err(Error::Compacted { oldest, .. }) => {
                            assert!(tail.bytes < 4096, "nothing was cut");
                            assert!(after < oldest && oldest <= last);
                        }
                        Err(e) => panic!("{e}"),
                    }
                    assert!(after < last || want.is_empty());
                }
            }
            let from = s.revision();
            runtime().block_on(async {
                if round == 0 {
                    s.write("/test/quiet/a".into(), Expect::Any, Some(value("q")))
                        .await
                        .expect("write");
                }
                for i in 0..60 {
                    let prefix = prefixes[random.random_range(0..2)];
                    let key = format!("{prefix}ns/{}", random.random_range(0..5));
                    let delete = s.get(&key).is_some() && random.random_range(0..3) == 0;
                    let text = format!(
                        "{seed}-{round}-{i}-{}",
                        "x".repeat(random.random_range(0..90))
                    );
                    s.write(key, Expect::Any, (!delete).then(|| value(&text)))
                        .await
                        .expect("write");
                }
            });
            for (prefix, told) in prefixes.iter().zip(&mut told) {
                for line in events(&*s, prefix, from).expect("what just happened") {
                    let revision = line.split(' ').next().and_then(|r| r.parse().ok());
                    told.push((revision.expect("number"), line));
                }
            }
            match round % 3 {
                0 => {
                    runtime().block_on(s.close());
                    disk = disk.restart();
                }
                // Killed.
                1 => disk = disk.restart(),
                _ => disk = disk.crash(&mut random),
            }
            drop(s);
        }
        assert!(resumed > 10, "{resumed}");
    }
}

#[test]
fn history_on_disk_stays_within_its_bounds() {
    let disk = Arc::new(Flaky::default());
    let tail = TailLimits {
        bytes: 64 << 10,
        ..TailLimits::default()
    };
    let s = open_with(&disk, tail.clone());
    runtime().block_on(async {
        for i in 0..3000 {
            let text = format!("{i}{}", "y".repeat(500 + i % 7));
            s.write("/test/things/ns/a".into(), Expect::Any, Some(value(&text)))
                .await
                .expect("write");
        }
        s.close().await;
    });
    let size = disk.durable.lock().len();
    assert!(
        size < 2 << 20,
        "{size} bytes for one object and 64 KiB of history"
    );
    let s = open_with(&disk.restart(), tail);
    let last = s.revision();
    assert!(s.watch("/test/things/", last - 10).is_ok());
    assert!(matches!(
        s.watch("/test/things/", 10),
        Err(Error::Compacted { .. })
    ));
}

#[test]
fn what_was_compacted_stays_forgotten_after_a_restart() {
    let disk = Arc::new(Flaky::default());
    let s = open_with(&disk, TailLimits::default());
    runtime().block_on(async {
        for i in 0..5 {
            s.write(
                "/test/things/ns/a".into(),
                Expect::Any,
                Some(value(&i.to_string())),
            )
            .await
            .expect("write");
        }
        s.compact(3);
        s.write("/test/things/ns/a".into(), Expect::Any, Some(value("6")))
            .await
            .expect("write");
        s.close().await;
    });
    let s = open_with(&disk.restart(), TailLimits::default());
    assert!(matches!(
        s.watch("/test/things/", 2),
        Err(Error::Compacted { oldest: 3, .. })
    ));
    assert_eq!(events(&s, "/test/things/", 3).expect("events").len(), 3);
}

#[test]
fn damage_of_the_history_costs_the_history_alone() {
    let disk = Arc::new(Flaky::default());
    let s = open_with(&disk, TailLimits::default());
    runtime().block_on(async {
        for text in ["first", "second", "third"] {
            s.write("/test/things/ns/a".into(), Expect::Any, Some(value(text)))
                .await
                .expect("write");
        }
        s.close().await;
    });
    // The bytes that only the history has, changed through redb: its own checksums are right.
    {
        let opened = super::super::disk::Disk::open(&FlakyDisk(disk.clone())).expect("open");
        let tx = opened.db.begin_write().expect("begin");
        {
            let mut t = tx.open_table(super::super::load::HISTORY).expect("table");
            let mut row = t.get(2).expect("get").expect("row").value().to_vec();
            let at = row.len() - 20;
            row[at] ^= 1;
            t.insert(2, row.as_slice()).expect("insert");
        }
        tx.commit().expect("commit");
    }
    let s = open_with(&disk, TailLimits::default());
    assert_eq!((s.revision(), s.count("/test/things/")), (3, 1));
    assert!(s.watch("/test/things/", 3).is_ok());
    assert!(matches!(
        s.watch("/test/things/", 1),
        Err(Error::Compacted { .. })
    ));
}

#[test]
fn a_database_of_format_1_is_taken_over_and_one_of_a_later_format_refused() {
    let disk = Arc::new(Flaky::default());
    let write = |format: u64| {
        let opened = super::super::disk::Disk::open(&FlakyDisk(disk.clone())).expect("open");
        let tx = opened.db.begin_write().expect("begin");
        {
            let mut objects = tx.open_table(OBJECTS).expect("table");
            for i in 0..30u64 {
                let mut record = (i + 1).to_le_bytes().to_vec();
                record.extend_from_slice(&0u64.to_le_bytes());
                let text = value(&format!("v{i}"));
                record.extend_from_slice(&super::super::splice(&text, None, i + 1));
                objects
                    .insert(format!("/test/things/ns/{i}").as_str(), record.as_slice())
                    .expect("insert");
            }
            let mut meta = tx.open_table(META).expect("table");
            meta.insert("format", format).expect("insert");
            meta.insert("revision", 40).expect("insert");
        }
        tx.commit().expect("commit");
    };
    write(1);
    for _ in 0..2 {
        let s = open_with(&disk, TailLimits::default());
        assert_eq!((s.count("/test/things/"), s.revision()), (30, 40));
        let e = s.get("/test/things/ns/7").expect("entry");
        assert!(
            e.revision == 8
                && e.value
                    .starts_with(b"{\"metadata\":{\"resourceVersion\":\"8\"")
        );
        assert!(matches!(
            s.watch("/test/things/", 39),
            Err(Error::Compacted { oldest: 40, .. })
        ));
        runtime().block_on(s.close());
    }
    write(3);
    let e = Embedded::open_on(Box::new(FlakyDisk(disk.clone())), Options::new(hooks()))
        .err()
        .expect("refused");
    assert!(e.to_string().contains("which a newer skiff writes"), "{e}");
    assert_eq!(disk.after_failure.load(Ordering::Relaxed), 0);
}
