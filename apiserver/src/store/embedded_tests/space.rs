//! Quotas and full disks: growth is refused by name, reads and deletes pass, and it ends by itself.

use super::super::conformance::Journal;
use super::super::embedded::{Embedded, Options};
use super::super::space::Quota;
use super::super::{Error, Expect, Store};
use super::disks::{Flaky, FlakyDisk};
use super::{hooks, runtime};
use bytes::Bytes;
use std::sync::Arc;

fn big(n: usize) -> Bytes {
    format!("{{\"metadata\":{{}},\"data\":\"{}\"}}", "x".repeat(n)).into()
}

fn alarm(s: &dyn Store) -> Option<String> {
    s.alarms().borrow().clone()
}

/// Creates objects until it is refused; gives how many there are and the refusal.
async fn fill(s: &dyn Store, size: usize) -> (usize, Error) {
    for i in 0.. {
        let key = format!("/a/b/c/{i:05}");
        match s.write(key, Expect::Any, Some(big(size))).await {
            Ok(_) => assert!(i < 20_000, "it never became full"),
            Err(e) => return (i, e),
        }
    }
    unreachable!()
}

#[test]
fn a_full_disk_refuses_growth_lets_reads_and_deletes_pass_and_recovers() {
    let disk = Flaky::with_room(14 << 20);
    runtime().block_on(async {
        let s = Embedded::open_on(Box::new(FlakyDisk(disk.clone())), Options::new(hooks()))
            .expect("open");
        let (n, e) = fill(&s, 20_000).await;
        assert!(matches!(e, Error::Full(_)) && e.status().code == 507, "{e}");
        assert!(alarm(&s).is_some_and(|e| e.contains("full")));
        assert!(s.check().is_ok(), "the store itself is well");
        let revision = s.revision();
        for _ in 0..3 {
            let again = s.write("/a/b/c/x".into(), Expect::Any, Some(big(2_000_000)));
            assert!(again.await.is_err());
        }
        assert_eq!((s.count("/a/b/"), s.revision()), (n, revision));
        assert!(s.get("/a/b/c/00000").is_some());
        // Everything can be deleted, without a byte more on the disk.
        for i in 0..n {
            s.write(format!("/a/b/c/{i:05}"), Expect::Any, None)
                .await
                .expect("a delete passes");
        }
        // What was deleted makes room inside of the file.
        s.write("/a/b/c/new".into(), Expect::Any, Some(big(20_000)))
            .await
            .expect("there is room");
        *disk.room.lock() = None;
        s.write("/a/b/c/more".into(), Expect::Any, Some(big(20_000)))
            .await
            .expect("there is space again");
        assert!(alarm(&s).is_none());
        let revision = s.revision();
        s.close().await;
        let s = Embedded::open_on(Box::new(FlakyDisk(disk.restart())), Options::new(hooks()))
            .expect("open");
        assert_eq!((s.count("/a/b/"), s.revision()), (2, revision));
    });
}

/// Without any reserve the transaction itself fails; whoever wrote learns at once what became of it.
#[test]
fn a_write_that_finds_no_space_is_refused_for_certain() {
    let disk = Arc::new(Flaky::default());
    *disk.room.lock() = Some(6 << 20);
    let mut journal = Journal::default();
    let s =
        Embedded::open_on(Box::new(FlakyDisk(disk.clone())), Options::new(hooks())).expect("open");
    runtime().block_on(async {
        let (n, e) = fill(&s, 20_000).await;
        assert!(matches!(e, Error::Full(_)), "{e}");
        assert_eq!(s.count("/a/b/"), n);
        *disk.room.lock() = None;
        s.write("/a/b/c/after".into(), Expect::Absent, Some(big(20_000)))
            .await
            .expect("there is space again");
        assert!(alarm(&s).is_none() && s.check().is_ok());
        s.close().await;
    });
    let again = Embedded::open_on(Box::new(FlakyDisk(disk.restart())), Options::new(hooks()))
        .expect("open");
    assert_eq!(
        (again.count("/a/b/"), again.revision()),
        (s.count("/a/b/"), s.revision())
    );
    journal.check(&again);
}

#[test]
fn a_quota_refuses_growth_in_etcds_words_and_clears_itself() {
    let dir = tempfile::tempdir().expect("dir");
    let quota = Quota {
        bytes: 8 << 20,
        memory: None,
    };
    let open = || {
        let options = Options {
            quota,
            ..Options::new(hooks())
        };
        Embedded::open(dir.path(), options).expect("open")
    };
    runtime().block_on(async {
        let s = open();
        let (n, e) = fill(&s, 5000).await;
        assert!(n > 200, "{n}");
        assert!(matches!(e, Error::Quota { .. }) && e.status().code == 507);
        let told = alarm(&s).expect("alarm");
        assert!(
            told.starts_with("etcdserver: mvcc: database space exceeded"),
            "{told}"
        );
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata(dir.path().join("skiff.redb")).expect("file");
        assert!(
            file.blocks() * 512 < 10 << 20,
            "{} bytes on disk",
            file.blocks() * 512
        );
        // A deletion's mark and a finalizer that goes are small updates.
        s.write("/a/b/c/00001".into(), Expect::Any, Some(big(5050)))
            .await
            .expect("a small update");
        s.write("/a/b/c/00001".into(), Expect::Any, Some(big(50_000)))
            .await
            .expect_err("a large one");
        for i in 0..n / 2 {
            s.write(format!("/a/b/c/{i:05}"), Expect::Any, None)
                .await
                .expect("a delete");
        }
        assert!(alarm(&s).is_none(), "{:?}", alarm(&s));
        let mut again = 0;
        while s
            .write(format!("/a/b/d/{again:05}"), Expect::Any, Some(big(5000)))
            .await
            .is_ok()
        {
            again += 1;
        }
        let file = std::fs::metadata(dir.path().join("skiff.redb")).expect("file");
        println!(
            "{n} objects, then {again} after half were deleted: {} bytes",
            file.blocks() * 512
        );
        assert!(again > n / 8, "{again} of {n}");
        assert!(
            file.blocks() * 512 < 10 << 20,
            "{} bytes on disk",
            file.blocks() * 512
        );
        s.close().await;
        drop(s);
        let s = open();
        assert_eq!(s.count("/a/b/"), n - n / 2 + again);
        s.close().await;
    });
}

#[test]
fn memory_has_a_quota_of_its_own() {
    let dir = tempfile::tempdir().expect("dir");
    let options = Options {
        quota: Quota {
            memory: Some(4 << 20),
            ..Quota::default()
        },
        ..Options::new(hooks())
    };
    let s = Embedded::open(dir.path(), options).expect("open");
    runtime().block_on(async {
        let (n, e) = fill(&s, 10_000).await;
        assert!(
            e.to_string().contains("--datastore-memory-quota-bytes"),
            "{e}"
        );
        assert!((300..420).contains(&n), "{n}");
        s.close().await;
    });
}
