//! Bits that flip: a database with one is refused, or everything in it is as it was written.

use super::super::conformance::value;
use super::super::disk::Witness;
use super::super::embedded::{Embedded, Options};
use super::super::{Error, Expect, Range, Store};
use super::disks::{Flaky, FlakyDisk};
use super::{hooks, runtime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

type Contents = (u64, Vec<(String, u64, bytes::Bytes)>);

fn open(disk: &Arc<Flaky>) -> Result<Embedded, Error> {
    Embedded::open_on(Box::new(FlakyDisk(disk.clone())), Options::new(hooks()))
}

fn contents(s: &dyn Store) -> Contents {
    let all = Range {
        prefix: "/test/things/",
        ..Range::default()
    };
    let page = s.range(&all).expect("range");
    let entries = page
        .entries
        .iter()
        .map(|e| (e.key.to_string(), e.revision, e.value.clone()));
    (s.revision(), entries.collect())
}

/// A database with pages of every kind (branches, leaves, large values, history, freed pages), as it is after a kill and
/// after a clean end.
fn databases() -> (Contents, [(Vec<u8>, Option<Witness>); 2]) {
    let disk = Arc::new(Flaky::default());
    let s = open(&disk).expect("open");
    runtime().block_on(async {
        for round in 0..2 {
            for i in 0..150 {
                let text = "z".repeat(if i % 50 == 0 { 9000 } else { 300 + round });
                let key = format!("/test/things/ns/{i:04}");
                s.write(key, Expect::Any, Some(value(&text)))
                    .await
                    .expect("write");
            }
        }
        for i in (0..150).step_by(3) {
            s.write(format!("/test/things/ns/{i:04}"), Expect::Any, None)
                .await
                .expect("delete");
        }
    });
    let truth = contents(&s);
    let killed = (disk.durable.lock().clone(), *disk.witness.lock());
    runtime().block_on(s.close());
    let closed = (disk.durable.lock().clone(), *disk.witness.lock());
    (truth, [killed, closed])
}

#[test]
fn a_flipped_bit_in_any_page_is_refused_or_repaired_and_never_served() {
    let (truth, databases) = databases();
    let mut random = StdRng::seed_from_u64(7);
    let mut refused = 0;
    let mut check = |bytes: &[u8], witness: Option<Witness>, at: usize, bit: u32| {
        let mut broken = bytes.to_vec();
        broken[at] ^= 1 << bit;
        match open(&Flaky::holding(broken, witness)) {
            Ok(s) => assert_eq!(contents(&s), truth, "bit {bit} of byte {at}"),
            Err(e) => {
                refused += 1;
                let e = e.to_string();
                let told = [
                    "is damaged",
                    "cannot be",
                    "was acknowledged",
                    "in use",
                    "older format",
                ];
                assert!(told.iter().any(|t| e.contains(t)), "{e}");
            }
        }
    };
    for (bytes, witness) in &databases {
        // The header and both commit slots, byte by byte.
        let every = std::env::var_os("SKIFF_TEST_EVERY_BIT").is_some();
        for at in 0..320 {
            for bit in 0..8 {
                if every || bit == random.random_range(0..8) {
                    check(bytes, *witness, at, bit);
                }
            }
        }
        // Every page: its head, which says of what kind it is, and somewhere.
        for page in (4096..bytes.len()).step_by(4096) {
            if bytes[page..page + 4096].iter().any(|b| *b != 0) {
                let at = page + random.random_range(0..8);
                check(bytes, *witness, at, random.random_range(0..8));
                let at = page + random.random_range(0..4096);
                check(bytes, *witness, at, random.random_range(0..8));
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

/// redb goes back to the commit before when the last one is damaged. That is right after a power cut, but a commit that was
/// acknowledged must not vanish in silence.
#[test]
fn a_damaged_last_commit_that_was_acknowledged_is_refused() {
    let (_, [(bytes, witness), _]) = databases();
    let w = witness.expect("witness");
    assert_eq!(w.acknowledged, w.attempted);
    let mut older = 0;
    for page in (4096..bytes.len()).step_by(4096) {
        let mut broken = bytes.clone();
        broken[page + 8] ^= 1;
        // Without the witness the damage of the last commit's own pages goes unseen.
        if open(&Flaky::holding(broken.clone(), None)).is_ok_and(|s| s.revision() < w.acknowledged)
        {
            older += 1;
            let e = open(&Flaky::holding(broken, witness))
                .err()
                .expect("refused");
            assert!(e.to_string().contains("was acknowledged"), "{e}");
        }
    }
    assert!(older > 0, "some page is of the last commit alone");
}

/// redb does not check pages that it copies: what rots on the disk while the server runs would get a good checksum.
#[test]
fn what_rots_while_the_server_runs_is_not_written_again_as_if_it_were_good() {
    let (truth, [(bytes, witness), _]) = databases();
    let mut refused = 0;
    for key in ["ns/0001", "ns/0071", "ns/0148"] {
        let disk = Flaky::holding(bytes.clone(), witness);
        let s = open(&disk).expect("open");
        // Every copy of one byte of the value of one object.
        let needle = format!("/test/things/{key}");
        let mut seen = disk.seen.lock();
        let places: Vec<usize> = seen
            .windows(needle.len())
            .enumerate()
            .filter(|(_, w)| *w == needle.as_bytes())
            .map(|(i, _)| i)
            .collect();
        assert!(!places.is_empty());
        for place in places {
            // Keys stand before the values in a leaf: the page from here on is full of them.
            let end = (place / 4096 + 1) * 4096;
            for at in place + 100..end {
                if seen[at] == b'z' {
                    seen[at] = b'q';
                }
            }
        }
        drop(seen);
        // Neighbours are written, so that pages with the damage are copied.
        let went_on = runtime().block_on(async {
            for (k, ..) in &truth.1 {
                if !k.ends_with(key)
                    && s.write(k.clone(), Expect::Any, Some(value("new")))
                        .await
                        .is_err()
                {
                    return false;
                }
            }
            s.close().await;
            true
        });
        match open(&disk.restart()) {
            Err(e) => {
                refused += 1;
                assert!(e.to_string().contains("damaged"), "{e}");
            }
            Ok(s) => {
                assert!(went_on);
                let (_, entries) = contents(&s);
                let was = truth.1.iter().find(|(k, ..)| k.ends_with(key));
                assert_eq!(entries.iter().find(|(k, ..)| k.ends_with(key)), was);
            }
        }
    }
    assert!(refused > 0, "the damage got into a copied page");
}
