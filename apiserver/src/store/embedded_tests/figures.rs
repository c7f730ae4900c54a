//! Figures, printed for whoever changes the store: run with `--ignored --nocapture`, before and after. No test of time.

use super::super::conformance::value;
use super::super::embedded::Embedded;
use super::super::{Expect, Store};
use super::{open, runtime};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn file(dir: &Path) -> String {
    let m = std::fs::metadata(dir.join("skiff.redb")).expect("file");
    format!("{} KiB long, {} KiB on disk", m.len() >> 10, m.blocks() / 2)
}

/// Many writers at once; gives how many writes a second.
async fn all(s: &Arc<Embedded>, each: usize, text: &str, delete: bool) -> f64 {
    const WRITERS: usize = 32;
    let begun = Instant::now();
    let tasks: Vec<_> = (0..WRITERS)
        .map(|c| {
            let (s, text) = (s.clone(), text.to_string());
            tokio::spawn(async move {
                for i in 0..each {
                    let key = format!("/core/configmaps/ns/{c:02}-{i:05}");
                    let new = (!delete).then(|| value(&text));
                    s.write(key, Expect::Any, new).await.expect("write");
                }
            })
        })
        .collect();
    for t in tasks {
        t.await.expect("writer");
    }
    (WRITERS * each) as f64 / begun.elapsed().as_secs_f64()
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let dir = tempfile::tempdir_in(std::env::var("SKIFF_TEST_DIR").unwrap_or("/tmp".into()))
        .expect("dir");
    let each = 25_000 / 32;
    runtime().block_on(async {
        let s = Arc::new(open(dir.path()).expect("open"));
        let text = "x".repeat(450);
        for (what, text) in [
            ("creates", text.clone()),
            ("updates", text.replace('x', "y")),
            (
                "small updates",
                format!("{}{}", "y".repeat(440), "z".repeat(10)),
            ),
        ] {
            let n = all(&s, each, &text, false).await;
            println!("{what}: {n:.0}/s; {}", file(dir.path()));
        }
        s.close().await;
        println!("closed: {}", file(dir.path()));
        drop(s);
        let begun = Instant::now();
        let s = Arc::new(open(dir.path()).expect("open"));
        println!(
            "open: {:?}, {} objects",
            begun.elapsed(),
            s.count("/core/configmaps/")
        );
        let n = all(&s, each - each / 10, "", true).await;
        println!("deletes: {n:.0}/s; {}", file(dir.path()));
        for i in 0..2000 {
            let key = format!("/core/leases/ns/{}", i % 10);
            s.write(key, Expect::Any, Some(value(&i.to_string())))
                .await
                .expect("write");
        }
        println!("2000 small writes later: {}", file(dir.path()));
        let s = Arc::into_inner(s).expect("alone");
        s.close().await;
        println!("closed: {}", file(dir.path()));
        drop(s);
        let begun = Instant::now();
        let s = open(dir.path()).expect("open");
        println!("open: {:?}; {}", begun.elapsed(), file(dir.path()));
        s.close().await;
    });
}
