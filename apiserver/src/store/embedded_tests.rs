//! Tests of the embedded store: the conformance suite, disks that lose what was not synced, disks that are full, damaged
//! and locked files, expiry, memory.

use super::conformance::{self, Journal, value};
use super::disk::{Disk, database};
use super::embedded::{Embedded, Options};
use super::memory::Limits;
use super::{Attributes, Error, Expect, Hooks, Range, Store};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::{Database, DatabaseError, StorageBackend};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

/// A disk in memory: what was written is read back, but only what was synced survives [`Flaky::crash`]; of the rest any
/// part may, in any order, also half of a write.
#[derive(Debug, Default)]
struct Flaky {
    seen: Mutex<Vec<u8>>,
    durable: Mutex<Vec<u8>>,
    unsynced: Mutex<Vec<Op>>,
    /// How many more bytes fit; none for no end.
    room: Mutex<Option<u64>>,
    /// Every operation fails from now on: the machine is off.
    off: AtomicBool,
    /// How many syncs until it goes off; 0 for never.
    fuse: AtomicU64,
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Len(u64),
}

fn apply(data: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(at, b) => {
            let (at, end) = (*at as usize, *at as usize + b.len());
            if data.len() < end {
                data.resize(end, 0);
            }
            data[at..end].copy_from_slice(b);
        }
        Op::Len(n) => data.resize(*n as usize, 0),
    }
}

#[derive(Debug, Clone)]
struct Handle(Arc<Flaky>);

impl Handle {
    fn on(&self) -> io::Result<()> {
        if self.0.off.load(Ordering::Relaxed) {
            Err(io::Error::other("the power is off"))
        } else {
            Ok(())
        }
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.on()?;
        Ok(self.0.seen.lock().len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.on()?;
        let seen = self.0.seen.lock();
        let from = offset as usize;
        out.copy_from_slice(
            seen.get(from..from + out.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.on()?;
        let mut seen = self.0.seen.lock();
        if self.0.room.lock().is_some_and(|room| len > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        seen.resize(len as usize, 0);
        self.0.unsynced.lock().push(Op::Len(len));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.on()?;
        if self.0.fuse.load(Ordering::Relaxed) > 0
            && self.0.fuse.fetch_sub(1, Ordering::Relaxed) == 1
        {
            self.0.off.store(true, Ordering::Relaxed);
            return self.on();
        }
        *self.0.durable.lock() = self.0.seen.lock().clone();
        self.0.unsynced.lock().clear();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.on()?;
        let op = Op::Write(offset, data.to_vec());
        apply(&mut self.0.seen.lock(), &op);
        self.0.unsynced.lock().push(op);
        Ok(())
    }
}

struct FlakyDisk(Arc<Flaky>);

impl Disk for FlakyDisk {
    fn open(&self) -> Result<Database, DatabaseError> {
        database(Handle(self.0.clone()))
    }
    fn name(&self) -> String {
        "flaky.redb".into()
    }
}

impl Flaky {
    /// The disk as it is found after the crash.
    fn crash(&self, random: &mut StdRng) -> Arc<Flaky> {
        let mut data = self.durable.lock().clone();
        for op in self.unsynced.lock().iter() {
            match random.random_range(0..3) {
                0 => {}
                1 => apply(&mut data, op),
                _ => match op {
                    Op::Write(at, b) if b.len() > 512 => {
                        let n = random.random_range(1..b.len() / 512 + 1) * 512;
                        apply(&mut data, &Op::Write(*at, b[..n].to_vec()));
                    }
                    op => apply(&mut data, op),
                },
            }
        }
        Arc::new(Flaky {
            seen: Mutex::new(data.clone()),
            durable: Mutex::new(data),
            ..Flaky::default()
        })
    }
}

#[test]
fn acknowledged_writes_survive_a_disk_that_loses_what_was_not_synced() {
    let rt = runtime();
    for seed in 0..6 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut disk = Arc::new(Flaky::default());
        let mut journal = Journal::default();
        for round in 0..6 {
            let s: Arc<dyn Store> = Arc::new(
                Embedded::open_on(Box::new(FlakyDisk(disk.clone())), Options::new(hooks()))
                    .expect("opens after a crash"),
            );
            journal.check(&*s);
            disk.fuse
                .store(random.random_range(2..40), Ordering::Relaxed);
            let shared = Arc::new(Mutex::new(std::mem::take(&mut journal)));
            rt.block_on(async {
                let clients = (0..4).map(|c| {
                    let (s, shared) = (s.clone(), shared.clone());
                    let tried = shared.clone();
                    tokio::spawn(async move {
                        let id = format!("c{c}");
                        Journal::write_until_it_fails(
                            &*s,
                            &id,
                            seed * 1000 + round * 10 + c,
                            move |n, t| tried.lock().attempt(n, t.clone()),
                            move |n, r, t| shared.lock().acknowledge(n, r, t.clone()),
                        )
                        .await
                    })
                });
                for c in clients.collect::<Vec<_>>() {
                    let e = c.await.expect("client");
                    assert!(matches!(e, Error::Io { .. }), "{e}");
                }
            });
            journal = shared.lock().clone();
            disk = disk.crash(&mut random);
            drop(s);
        }
    }
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let disk = Arc::new(Flaky::default());
    runtime().block_on(async {
        let s = Embedded::open_on(Box::new(FlakyDisk(disk.clone())), Options::new(hooks()))
            .expect("open");
        let big = |n: usize| -> bytes::Bytes {
            format!("{{\"metadata\":{{}},\"data\":\"{}\"}}", "x".repeat(n)).into()
        };
        s.write("/a/b/c/first".into(), Expect::Absent, Some(big(100)))
            .await
            .expect("write");
        *disk.room.lock() = Some(disk.seen.lock().len() as u64);
        let mut acknowledged = 1;
        let e = loop {
            match s
                .write(
                    format!("/a/b/c/{acknowledged}"),
                    Expect::Absent,
                    Some(big(20_000)),
                )
                .await
            {
                Ok(_) => acknowledged += 1,
                Err(e) => break e,
            }
            assert!(acknowledged < 10_000, "the disk never became full");
        };
        assert!(matches!(e, Error::Full(_)), "{e}");
        assert_eq!(e.status().code, 507);
        assert!(s.check().is_err_and(|e| e.contains("full")));
        let revision = s.revision();
        for _ in 0..3 {
            assert!(
                s.write("/a/b/c/again".into(), Expect::Absent, Some(big(2_000_000)))
                    .await
                    .is_err()
            );
        }
        assert_eq!(
            (s.count("/a/b/"), s.revision()),
            (acknowledged, revision),
            "nothing half done is seen"
        );
        assert!(s.get("/a/b/c/first").is_some());
        *disk.room.lock() = None;
        let e = s
            .write("/a/b/c/after".into(), Expect::Absent, Some(big(20_000)))
            .await
            .expect("there is space again");
        assert!(e.revision > revision && s.check().is_ok());
        s.close().await;
        let s = Embedded::open_on(Box::new(FlakyDisk(disk.clone())), Options::new(hooks()))
            .expect("open");
        assert_eq!(
            (s.count("/a/b/"), s.revision()),
            (acknowledged + 1, e.revision)
        );
    });
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
