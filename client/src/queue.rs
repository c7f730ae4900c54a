//! A work queue (client-go's workqueue): each key waits once, is worked on by one worker at a time, and comes back
//! later with a growing delay when its work failed. Owns keys and their times; knows nothing of what they mean.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// First delay of a failed key.
pub const BASE_DELAY: Duration = Duration::from_millis(5);
/// Longest delay of a failed key.
pub const MAX_DELAY: Duration = Duration::from_secs(1000);

struct State<T> {
    ready: VecDeque<T>,
    waiting: HashSet<T>,
    working: HashSet<T>,
    later: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
    closed: bool,
}

struct Inner<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

/// A shared queue of keys. Cheap to clone.
pub struct Queue<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<T: Hash + Eq + Clone + Send + 'static> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Hash + Eq + Clone + Send + 'static> Queue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    ready: VecDeque::new(),
                    waiting: HashSet::new(),
                    working: HashSet::new(),
                    later: HashMap::new(),
                    failures: HashMap::new(),
                    closed: false,
                }),
                wake: Notify::new(),
            }),
        }
    }

    /// Wants this key worked on. A key that waits already is not added again; one that is being worked on comes back
    /// after [`Queue::done`].
    pub fn add(&self, key: T) {
        let mut s = self.inner.state.lock();
        if s.closed || !s.waiting.insert(key.clone()) {
            return;
        }
        if !s.working.contains(&key) {
            s.ready.push_back(key);
            drop(s);
            self.inner.wake.notify_one();
        }
    }

    /// [`Queue::add`] after a delay; the earliest of several wins.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        {
            let mut s = self.inner.state.lock();
            if s.closed || s.later.get(&key).is_some_and(|d| *d <= due) {
                return;
            }
            s.later.insert(key.clone(), due);
        }
        let weak = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            let Some(inner) = weak.upgrade() else { return };
            let queue = Queue { inner };
            {
                let mut s = queue.inner.state.lock();
                if s.later.get(&key) != Some(&due) {
                    return;
                }
                s.later.remove(&key);
            }
            queue.add(key);
        });
    }

    /// Back after 5 ms, 10 ms, 20 ms... up to 1000 s, counting this key's failures since [`Queue::forget`].
    pub fn add_rate_limited(&self, key: T) {
        let failures = {
            let mut s = self.inner.state.lock();
            let n = s.failures.entry(key.clone()).or_insert(0);
            *n += 1;
            *n
        };
        let delay = BASE_DELAY
            .saturating_mul(1u32 << (failures - 1).min(20))
            .min(MAX_DELAY);
        self.add_after(key, delay);
    }

    /// How often this key failed since it was last forgotten.
    pub fn failures(&self, key: &T) -> u32 {
        self.inner
            .state
            .lock()
            .failures
            .get(key)
            .copied()
            .unwrap_or(0)
    }

    /// The key's work succeeded: its failures no longer count.
    pub fn forget(&self, key: &T) {
        self.inner.state.lock().failures.remove(key);
    }

    /// The next key; None once the queue is shut down. [`Queue::done`] must follow.
    pub async fn get(&self) -> Option<T> {
        loop {
            let notified = self.inner.wake.notified();
            {
                let mut s = self.inner.state.lock();
                if s.closed {
                    return None;
                }
                if let Some(key) = s.ready.pop_front() {
                    s.waiting.remove(&key);
                    s.working.insert(key.clone());
                    if !s.ready.is_empty() {
                        self.inner.wake.notify_one();
                    }
                    return Some(key);
                }
            }
            notified.await;
        }
    }

    /// The work on a key has ended, well or not.
    pub fn done(&self, key: &T) {
        let mut s = self.inner.state.lock();
        s.working.remove(key);
        if s.waiting.contains(key) {
            s.ready.push_back(key.clone());
            drop(s);
            self.inner.wake.notify_one();
        }
    }

    /// Keys that wait now.
    pub fn len(&self) -> usize {
        self.inner.state.lock().waiting.len()
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every [`Queue::get`].
    pub fn shut_down(&self) {
        self.inner.state.lock().closed = true;
        self.inner.wake.notify_waiters();
        self.inner.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_is_worked_on_by_one_worker() {
        let q = Queue::new();
        q.add("a");
        q.add("a");
        assert_eq!(q.len(), 1);
        assert_eq!(q.get().await, Some("a"));
        q.add("a");
        q.add("b");
        assert_eq!(q.get().await, Some("b"), "a is being worked on");
        q.done(&"a");
        assert_eq!(q.get().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_keys_come_back_later_and_later() {
        let q = Queue::new();
        let start = Instant::now();
        q.add_rate_limited(1);
        q.get().await;
        q.done(&1);
        let first = start.elapsed();
        q.add_rate_limited(1);
        q.get().await;
        q.done(&1);
        let second = start.elapsed() - first;
        assert!(second > first, "{first:?} then {second:?}");
        assert_eq!(q.failures(&1), 2);
        q.forget(&1);
        assert_eq!(q.failures(&1), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_wins() {
        let q = Queue::new();
        let start = Instant::now();
        q.add_after(1, Duration::from_secs(60));
        q.add_after(1, Duration::from_secs(1));
        q.get().await;
        assert!(start.elapsed() < Duration::from_secs(2));
        q.done(&1);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(q.is_empty(), "the later one was dropped");
    }

    #[tokio::test]
    async fn shut_down_ends_every_get() {
        let q = Queue::<u8>::new();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let q = q.clone();
                tokio::spawn(async move { q.get().await })
            })
            .collect();
        tokio::task::yield_now().await;
        q.shut_down();
        for w in waiters {
            assert_eq!(w.await.ok().flatten(), None);
        }
    }
}
