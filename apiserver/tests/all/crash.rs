//! kill -9 of a process that writes: every acknowledged write is there afterwards, revisions never go back, no acknowledged
//! deletion returns. The child is this test binary, started again.

use skiff_apiserver::store::conformance::Journal;
use skiff_apiserver::store::embedded::{Embedded, Options};
use skiff_apiserver::store::{Attributes, Hooks, Store};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const DIRECTORY: &str = "SKIFF_TEST_CRASH_DIRECTORY";
const SEED: &str = "SKIFF_TEST_CRASH_SEED";

fn open(dir: &str) -> Arc<dyn Store> {
    let hooks = Hooks::new(Arc::new(|_, _| Attributes::default()));
    Arc::new(Embedded::open(std::path::Path::new(dir), Options::new(hooks)).expect("opens"))
}

/// The child's side; does nothing when it is run as a test of its own.
#[test]
fn a_child_writes_until_it_is_killed() {
    let (Ok(dir), Ok(seed)) = (std::env::var(DIRECTORY), std::env::var(SEED)) else {
        return;
    };
    let seed: u64 = seed.parse().expect("seed");
    let rt = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    // One line for one fact, written at once, so that no line is half there.
    fn say(line: String) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(line.as_bytes());
        let _ = out.flush();
    }
    rt.block_on(async {
        let s = open(&dir);
        let clients: Vec<_> = (0..8)
            .map(|c| {
                let s = s.clone();
                tokio::spawn(async move {
                    let id = format!("c{c}");
                    let e = Journal::write_until_it_fails(
                        &*s,
                        &id,
                        seed * 100 + c,
                        |n, t| say(format!("try {n} {}\n", t.as_deref().unwrap_or("-"))),
                        |n, r, t| say(format!("ack {n} {r} {}\n", t.as_deref().unwrap_or("-"))),
                    )
                    .await;
                    say(format!("\nfailed: {e}\n"));
                })
            })
            .collect();
        for c in clients {
            c.await.expect("client");
        }
        // Nobody killed us: the store gave up.
        std::process::exit(3);
    });
}

#[test]
fn acknowledged_writes_survive_kill_9_with_eight_writers() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().to_str().expect("utf-8").to_string();
    let mut journal = Journal::default();
    let mut total = 0;
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().expect("exe"))
            .args([
                "--exact",
                "crash::a_child_writes_until_it_is_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIRECTORY, &path)
            .env(SEED, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("child");
        let out = child.stdout.take().expect("stdout");
        let reader = std::thread::spawn(move || {
            BufReader::new(out)
                .split(b'\n')
                .map_while(Result::ok)
                .collect::<Vec<_>>()
        });
        // Some rounds die while the database is being opened, most while it is written.
        std::thread::sleep(Duration::from_millis(
            [400, 700, 90, 500, 30, 600][round as usize],
        ));
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(status.code(), None, "killed, and not ended by itself");
        for line in reader.join().expect("reader") {
            let line = String::from_utf8_lossy(&line).into_owned();
            let words: Vec<&str> = line.split_whitespace().collect();
            let text = |t: &str| (t != "-").then(|| t.to_string());
            // The test harness of the child says things, too.
            match words.as_slice() {
                [.., "try", name, t] => journal.attempt(name, text(t)),
                ["ack", name, revision, t] => {
                    journal.acknowledge(name, revision.parse().expect("number"), text(t))
                }
                _ => {}
            }
        }
        total += journal.len();
        let s = open(&path);
        journal.check(&*s);
        let rt = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("runtime");
        rt.block_on(s.close());
    }
    assert!(total > 50, "the children wrote something: {total}");
}
