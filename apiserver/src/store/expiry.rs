//! When which key vanishes. Pure; the writer asks it what is due.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Times, in seconds since the epoch, by key and in order.
#[derive(Default)]
pub struct Expiries {
    by_time: BTreeSet<(u64, Arc<str>)>,
    by_key: HashMap<Arc<str>, u64>,
}

impl Expiries {
    /// The key vanishes at this time; 0: never.
    pub fn set(&mut self, key: &str, at: u64) {
        if let Some((key, old)) = self.by_key.remove_entry(key) {
            self.by_time.remove(&(old, key));
        }
        if at != 0 {
            let key: Arc<str> = key.into();
            self.by_time.insert((at, key.clone()));
            self.by_key.insert(key, at);
        }
    }

    /// The next time at which something vanishes.
    pub fn next(&self) -> Option<u64> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// What vanishes now, the oldest first.
    pub fn due(&self, now: u64) -> impl Iterator<Item = &Arc<str>> {
        self.by_time
            .iter()
            .take_while(move |(at, _)| *at <= now)
            .map(|(_, k)| k)
    }
}
