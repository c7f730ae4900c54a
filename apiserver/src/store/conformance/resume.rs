//! What a restart keeps: watches and old revisions go on as if the store had never been closed.

use super::{Open, PREFIX, key, next, range, text, value};
use crate::store::{Event, Expect, Range};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn line(e: &Event) -> String {
    format!(
        "{} {} {}={} was {:?}",
        e.revision,
        e.deleted,
        e.entry.name(),
        text(&e.entry),
        e.previous.as_ref().map(|p| (text(p), p.revision))
    )
}

/// Random writes, a restart, and then every watch and every range that could have been asked before.
pub async fn watches_and_old_revisions_go_on_after_a_restart(open: Open<'_>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let s = open();
    let start = s.revision();
    let mut watch = s.watch(PREFIX, start).expect("watch");
    let mut told: Vec<(u64, String)> = Vec::new();
    let mut then = Vec::new();
    for i in 0..80 {
        let name = format!("k{}", random.random_range(0..6));
        let delete = s.get(&key(&name)).is_some() && random.random_range(0..3) == 0;
        let long = "-".repeat(random.random_range(0..300));
        let new = (!delete).then(|| value(&format!("{i}{long}")));
        s.write(key(&name), Expect::Any, new).await.expect("write");
        told.extend(next(&mut watch).await.iter().map(|e| (e.revision, line(e))));
        let at = |revision| Range {
            prefix: PREFIX,
            revision,
            ..Range::default()
        };
        then.push((s.revision(), range(&*s, &at(None))));
    }
    s.close().await;
    drop((s, watch));
    let s = open();
    for after in start..=s.revision() {
        let mut w = s
            .watch(PREFIX, after)
            .expect("watch from before the restart");
        let got: Vec<String> = w.ready().expect("ready").iter().map(|e| line(e)).collect();
        let want: Vec<&String> = told
            .iter()
            .filter(|(r, _)| *r > after)
            .map(|(_, l)| l)
            .collect();
        assert_eq!(got.iter().collect::<Vec<_>>(), want, "after {after}");
    }
    for (revision, want) in &then {
        let r = Range {
            prefix: PREFIX,
            revision: Some(*revision),
            ..Range::default()
        };
        assert_eq!(&range(&*s, &r), want, "at {revision}");
    }
    // What comes now follows on.
    let mut w = s.watch(PREFIX, s.revision()).expect("watch");
    let before = s.get(&key("k0")).map(|e| e.revision);
    s.write(key("k0"), Expect::Any, Some(value("new")))
        .await
        .expect("write");
    let e = &next(&mut w).await[0];
    assert_eq!(e.previous.as_ref().map(|p| p.revision), before);
    s.close().await;
}
