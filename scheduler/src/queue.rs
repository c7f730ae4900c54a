//! Pods that wait for a node: ready ones by priority, those that failed after a back-off, and those that wait for
//! something to change. Time comes in as an argument. (Upstream: backend/queue/scheduling_queue.go.)

use crate::snapshot::PodInfo;
use skiff_client::ObjectKey;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Wait after the first failure; doubles up to [`MAX_BACKOFF`].
pub const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait.
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Something changed that may make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A node was added, or what it offers, its labels or taints changed.
    Node,
    /// A pod that had a node is gone or finished.
    PodGone,
    /// A pod got its node.
    PodPlaced,
}

/// Can this change help a pod that this plugin refused?
fn helps(change: Change, plugin: &str) -> bool {
    match change {
        Change::Node => true,
        Change::PodGone => {
            matches!(
                plugin,
                "NodeResourcesFit" | "NodePorts" | "InterPodAffinity" | "PodTopologySpread"
            )
        }
        Change::PodPlaced => matches!(plugin, "InterPodAffinity" | "PodTopologySpread"),
    }
}

#[derive(Debug, Clone)]
enum Place {
    /// Waits its turn; the key in `ready`.
    Ready,
    /// Waits until then.
    BackOff(Instant),
    /// Waits for a change that helps one of these plugins.
    Unschedulable(Vec<&'static str>),
    /// Is being scheduled or bound now.
    InFlight,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    last_failure: Option<Instant>,
    /// Changes seen while in flight, which may have helped.
    missed: Vec<Change>,
    seq: u64,
}

/// The queue.
#[derive(Debug, Default)]
pub struct SchedulingQueue {
    entries: HashMap<ObjectKey, Entry>,
    /// Negated priority, order of arrival, key.
    ready: BTreeSet<(i64, u64, ObjectKey)>,
    backoff: BTreeSet<(Instant, ObjectKey)>,
    seq: u64,
}

fn rank(pod: &PodInfo) -> i64 {
    -i64::from(pod.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0))
}

impl SchedulingQueue {
    /// A pod that wants a node, new or changed. A changed pod may fit now, so it becomes ready after its back-off.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let key = pod.key.clone();
        match self.entries.get_mut(&key) {
            Some(e) if e.pod.uid == pod.uid => {
                let waits = matches!(e.place, Place::Unschedulable(_));
                let ready = matches!(e.place, Place::Ready);
                if ready {
                    self.ready.remove(&(rank(&e.pod), e.seq, key.clone()));
                }
                e.pod = pod;
                if ready {
                    self.ready.insert((rank(&e.pod), e.seq, key));
                } else if waits {
                    self.wake(&key, now);
                }
            }
            _ => {
                self.remove(&key);
                self.seq += 1;
                let entry = Entry {
                    pod: pod.clone(),
                    place: Place::Ready,
                    attempts: 0,
                    last_failure: None,
                    missed: Vec::new(),
                    seq: self.seq,
                };
                self.ready.insert((rank(&pod), self.seq, key.clone()));
                self.entries.insert(key, entry);
            }
        }
    }

    /// A pod that no longer wants a node (from us).
    pub fn remove(&mut self, key: &ObjectKey) {
        if let Some(e) = self.entries.remove(key) {
            match e.place {
                Place::Ready => {
                    self.ready.remove(&(rank(&e.pod), e.seq, key.clone()));
                }
                Place::BackOff(until) => {
                    self.backoff.remove(&(until, key.clone()));
                }
                Place::Unschedulable(_) | Place::InFlight => {}
            }
        }
    }

    /// The next pod to schedule; it is in flight until [`SchedulingQueue::failed`], [`SchedulingQueue::retry`] or
    /// [`SchedulingQueue::remove`].
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        while let Some((until, key)) = self.backoff.first().cloned() {
            if until > now {
                break;
            }
            self.backoff.remove(&(until, key.clone()));
            self.make_ready(&key);
        }
        let (_, _, key) = self.ready.pop_first()?;
        let e = self.entries.get_mut(&key)?;
        e.place = Place::InFlight;
        e.attempts += 1;
        e.missed.clear();
        Some(e.pod.clone())
    }

    /// No node did: the pod waits for a change that helps one of these plugins.
    pub fn failed(&mut self, key: &ObjectKey, plugins: Vec<&'static str>, now: Instant) {
        let Some(e) = self.entries.get_mut(key) else {
            return;
        };
        e.last_failure = Some(now);
        let helped = e
            .missed
            .iter()
            .any(|c| plugins.is_empty() || plugins.iter().any(|p| helps(*c, p)));
        e.place = Place::Unschedulable(plugins);
        if helped {
            self.wake(key, now);
        }
    }

    /// Something went wrong that is not the pod's fault (a bind failed): again after a back-off.
    pub fn retry(&mut self, key: &ObjectKey, now: Instant) {
        let Some(e) = self.entries.get_mut(key) else {
            return;
        };
        e.last_failure = Some(now);
        e.place = Place::Unschedulable(Vec::new());
        self.wake(key, now);
    }

    /// Something changed: pods that it may help become ready, after what is left of their back-off.
    pub fn changed(&mut self, change: Change, now: Instant) {
        let mut woken = Vec::new();
        for (key, e) in &mut self.entries {
            match &e.place {
                Place::Unschedulable(plugins)
                    if plugins.is_empty() || plugins.iter().any(|p| helps(change, p)) =>
                {
                    woken.push(key.clone());
                }
                Place::InFlight if !e.missed.contains(&change) => e.missed.push(change),
                _ => {}
            }
        }
        for key in woken {
            self.wake(&key, now);
        }
    }

    /// When [`SchedulingQueue::pop`] may next give a pod: now if one is ready, else the end of the first back-off.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        if self.ready.is_empty() {
            self.backoff.first().map(|(t, _)| *t)
        } else {
            Some(now)
        }
    }

    /// How many pods wait or are in flight.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn wake(&mut self, key: &ObjectKey, now: Instant) {
        let Some(e) = self.entries.get_mut(key) else {
            return;
        };
        let wait = INITIAL_BACKOFF
            .saturating_mul(1 << e.attempts.saturating_sub(1).min(8))
            .min(MAX_BACKOFF);
        match e.last_failure.map(|t| t + wait) {
            Some(until) if until > now && e.attempts > 0 => {
                e.place = Place::BackOff(until);
                self.backoff.insert((until, key.clone()));
            }
            _ => self.make_ready(key),
        }
    }

    fn make_ready(&mut self, key: &ObjectKey) {
        if let Some(e) = self.entries.get_mut(key) {
            e.place = Place::Ready;
            self.ready.insert((rank(&e.pod), e.seq, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::pod;
    use serde_json::json;

    fn name(p: Option<Arc<PodInfo>>) -> Option<String> {
        p.map(|p| p.key.name.clone())
    }

    #[test]
    fn higher_priority_goes_first_then_order_of_arrival() {
        let now = Instant::now();
        let mut q = SchedulingQueue::default();
        q.add(pod("a", json!({})), now);
        q.add(pod("b", json!({"spec": {"priority": 10}})), now);
        q.add(pod("c", json!({})), now);
        let order: Vec<_> = std::iter::from_fn(|| name(q.pop(now))).collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[test]
    fn a_refused_pod_waits_for_a_change_that_helps_and_for_its_back_off() {
        let now = Instant::now();
        let mut q = SchedulingQueue::default();
        let p = pod("a", json!({}));
        q.add(p.clone(), now);
        q.pop(now);
        q.failed(&p.key, vec!["NodeAffinity"], now);
        q.changed(Change::PodGone, now);
        assert_eq!(
            q.next_due(now),
            None,
            "a pod that goes does not change labels"
        );
        q.changed(Change::Node, now);
        assert_eq!(q.next_due(now), Some(now + INITIAL_BACKOFF));
        assert!(q.pop(now).is_none());
        assert!(q.pop(now + INITIAL_BACKOFF).is_some());
        q.failed(&p.key, vec!["NodeAffinity"], now);
        q.changed(Change::Node, now);
        assert_eq!(q.next_due(now), Some(now + 2 * INITIAL_BACKOFF));
    }

    #[test]
    fn a_change_that_came_while_the_pod_was_in_flight_is_not_missed() {
        let now = Instant::now();
        let mut q = SchedulingQueue::default();
        let p = pod("a", json!({}));
        q.add(p.clone(), now);
        q.pop(now);
        q.changed(Change::PodGone, now);
        q.failed(&p.key, vec!["NodeResourcesFit"], now);
        assert!(q.pop(now + INITIAL_BACKOFF).is_some());
    }

    #[test]
    fn a_removed_pod_is_gone_from_wherever_it_waited() {
        let now = Instant::now();
        let mut q = SchedulingQueue::default();
        let p = pod("a", json!({}));
        q.add(p.clone(), now);
        q.remove(&p.key);
        assert!(q.pop(now).is_none());
        q.add(p.clone(), now);
        q.pop(now);
        q.retry(&p.key, now);
        q.remove(&p.key);
        assert!(q.pop(now + MAX_BACKOFF).is_none() && q.is_empty());
    }
}
