//! 10,000 config maps of 1 KiB cost less than 20 MB, store, cache and history together. Measured in a process of its own:
//! this test binary, started again.

use skiff_apiserver::registry::{select, table::Table};
use skiff_apiserver::store::embedded::{Embedded, Options};
use skiff_apiserver::store::{Expect, Hooks, Store};
use std::process::Command;
use std::sync::Arc;

const DIRECTORY: &str = "SKIFF_TEST_MEMORY_DIRECTORY";
const OBJECTS: usize = 10_000;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .expect("VmRSS");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("number")
}

/// The child's side; does nothing when it is run as a test of its own.
#[test]
fn a_child_holds_many_objects() {
    let Ok(dir) = std::env::var(DIRECTORY) else {
        return;
    };
    let rt = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    rt.block_on(async {
        let table = Table::new(skiff_api::kinds::builtin());
        let hooks = Hooks::new(select::attributes_of(&table.rows()));
        let s: Arc<dyn Store> = Arc::new(Embedded::open(std::path::Path::new(&dir), Options::new(hooks)).expect("opens"));
        let value = |i: usize| -> bytes::Bytes {
            let id = format!("{i:036}");
            format!(
                "{{\"metadata\":{{\"name\":\"cm-{i}\",\"namespace\":\"default\",\"uid\":\"{id}\",\"creationTimestamp\":\"2026-01-01T00:00:00Z\"}},\"data\":{{\"k\":\"{}\"}}}}",
                "x".repeat(1024)
            )
            .into()
        };
        s.write("/core/configmaps/default/first".into(), Expect::Any, Some(value(0))).await.expect("write");
        let before = resident();
        let writers: Vec<_> = (0..32)
            .map(|w| {
                let s = s.clone();
                tokio::spawn(async move {
                    for i in (w..OBJECTS).step_by(32) {
                        s.write(format!("/core/configmaps/default/cm-{i}"), Expect::Absent, Some(value(i))).await.expect("write");
                    }
                })
            })
            .collect();
        for w in writers {
            w.await.expect("writer");
        }
        println!("\nGREW {}", resident() - before);
        assert_eq!(s.count("/core/configmaps/"), OBJECTS + 1);
        s.close().await;
    });
}

#[test]
fn ten_thousand_objects_of_1_kib_cost_less_than_20_mb() {
    let dir = tempfile::tempdir().expect("dir");
    let out = Command::new(std::env::current_exe().expect("exe"))
        .args([
            "--exact",
            "memory::a_child_holds_many_objects",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIRECTORY, dir.path())
        .output()
        .expect("child");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8_lossy(&out.stdout);
    let grew: u64 = text
        .lines()
        .find_map(|l| l.strip_prefix("GREW "))
        .and_then(|n| n.trim().parse().ok())
        .expect("a figure");
    println!("{OBJECTS} objects of 1 KiB: {grew} KiB");
    assert!(grew < 20 * 1024, "{grew} KiB");
}
