//! A ReplicaSet against a small model of the API, seen through caches that lag, each by itself: whatever the order of
//! events, only pods that are the set's at that moment are deleted, and only an owner that is there adopts. The other
//! workload controllers claim and delete by the same actions.

use crate::action::{Action, PODS, REPLICASETS};
use crate::replicaset::{Observed, reconcile};
use crate::shell::Pending;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};
use skiff_client::ObjectKey;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

#[derive(Default)]
struct World {
    version: u64,
    /// Live objects: what the API has.
    set: Value,
    pods: BTreeMap<String, Value>,
    /// What the caches have not been told yet.
    set_events: VecDeque<Value>,
    pod_events: VecDeque<(String, Option<Value>)>,
    /// What the caches have.
    seen_set: Value,
    seen_pods: BTreeMap<String, Value>,
    pending: Pending,
    random: u64,
}

fn key() -> ObjectKey {
    ObjectKey::new("ns", "web")
}

impl World {
    fn new() -> Self {
        let mut w = Self::default();
        w.make_set();
        w
    }

    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn make_set(&mut self) {
        let uid = format!("set-{}", self.next());
        self.set = json!({"metadata": {"name": "web", "namespace": "ns", "uid": uid, "generation": 1},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}}});
        self.set_events.push_back(self.set.clone());
    }

    fn pod_changed(&mut self, name: &str) {
        let version = self.next();
        let now = self.pods.get_mut(name).map(|p| {
            p["metadata"]["resourceVersion"] = version.into();
            p.clone()
        });
        self.pod_events.push_back((name.into(), now));
    }

    fn user(&mut self, what: u8, n: usize) {
        let name = self.pods.keys().nth(n % self.pods.len().max(1)).cloned();
        match (what, name) {
            (0, _) => {
                self.set["spec"]["replicas"] = (n % 4).into();
                self.set_events.push_back(self.set.clone());
            }
            // Taken out of the set to be looked at, or back in.
            (1, Some(name)) => {
                if let Some(p) = self.pods.get_mut(&name) {
                    let app = if p["metadata"]["labels"]["app"] == "web" {
                        "debug"
                    } else {
                        "web"
                    };
                    p["metadata"]["labels"]["app"] = app.into();
                }
                self.pod_changed(&name);
            }
            (2, Some(name)) => {
                self.pods.remove(&name);
                self.pod_changed(&name);
            }
            // The set goes and another of its name comes; its pods stay behind without an owner (--cascade=orphan).
            (3, _) => {
                self.make_set();
                let all: Vec<String> = self.pods.keys().cloned().collect();
                for name in all {
                    if let Some(p) = self.pods.get_mut(&name) {
                        p["metadata"]["ownerReferences"] = json!([]);
                    }
                    self.pod_changed(&name);
                }
            }
            _ => {}
        }
    }

    fn deliver(&mut self, pods: bool) {
        if !pods {
            if let Some(s) = self.set_events.pop_front() {
                self.seen_set = s;
            }
        } else if let Some((name, state)) = self.pod_events.pop_front() {
            self.pending.seen(&key(), &name);
            match state {
                Some(p) => self.seen_pods.insert(name, p),
                None => self.seen_pods.remove(&name),
            };
        }
    }

    /// One sync over the caches. True when it did something.
    fn sync(&mut self) -> Result<bool, TestCaseError> {
        let Ok(set) = serde_json::from_value::<ReplicaSet>(self.seen_set.clone()) else {
            return Ok(false);
        };
        let pods: Vec<Arc<Pod>> = self
            .seen_pods
            .values()
            .filter_map(|p| serde_json::from_value(p.clone()).ok())
            .map(Arc::new)
            .collect();
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let observed = Observed {
            kind: REPLICASETS,
            set: &set,
            pods: &pods,
            caught_up: self.pending.caught_up_with(&key(), &uid, &pods),
        };
        let mut random = self.random;
        let actions = reconcile(&observed, Timestamp::UNIX_EPOCH, &mut || {
            random += 1;
            random
        });
        self.random = random;
        let mut did = false;
        for action in actions {
            if matches!(
                &action,
                Action::Patch {
                    subresource: "status",
                    ..
                }
            ) {
                continue;
            }
            did = true;
            self.pending.expect(&key(), &action);
            if !self.execute(&action)? {
                // As the shell does: the first failure ends the sync, and the key comes back.
                self.pending.failed(&key(), &action);
                break;
            }
        }
        Ok(did)
    }

    /// What the API does with an action; false when it refuses.
    fn execute(&mut self, action: &Action) -> Result<bool, TestCaseError> {
        let live_set = self.set["metadata"]["uid"].clone();
        match action {
            Action::Create { object, .. } => {
                let mut pod = object.clone();
                let name = pod["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_string();
                pod["metadata"]["namespace"] = "ns".into();
                pod["metadata"]["uid"] = format!("pod-{}", self.next()).into();
                pod["status"] = json!({"phase": "Running"});
                self.pods.insert(name.clone(), pod);
                self.pod_changed(&name);
            }
            Action::Delete {
                name, uid, version, ..
            } => {
                let Some(pod) = self.pods.get(name) else {
                    return Ok(true);
                };
                let meta = &pod["metadata"];
                if meta["uid"] != uid.as_str()
                    || !version.is_empty() && meta["resourceVersion"] != version.as_str()
                {
                    return Ok(false);
                }
                let owner = &self.seen_set["metadata"]["uid"];
                prop_assert!(
                    meta["labels"]["app"] == "web" && meta["ownerReferences"][0]["uid"] == *owner,
                    "{name} was deleted, and is not the set's: {meta}"
                );
                self.pods.remove(name);
                self.pod_changed(name);
            }
            Action::Adopt {
                owner_uid, patch, ..
            } => {
                if live_set != owner_uid.as_str() {
                    return Ok(false);
                }
                return self.patch(patch, true);
            }
            patch @ Action::Patch { .. } => return self.patch(patch, false),
            _ => {}
        }
        Ok(true)
    }

    fn patch(&mut self, action: &Action, adopts: bool) -> Result<bool, TestCaseError> {
        let Action::Patch {
            name, patch, kind, ..
        } = action
        else {
            return Ok(true);
        };
        prop_assert_eq!(*kind, PODS);
        let Some(pod) = self.pods.get_mut(name) else {
            return Ok(true);
        };
        let (have, asked) = (&pod["metadata"], &patch["metadata"]);
        let stale = |field: &str| !asked[field].is_null() && asked[field] != have[field];
        if stale("uid") || stale("resourceVersion") {
            return Ok(false);
        }
        let (app, owned) = (
            have["labels"]["app"] == "web",
            have["ownerReferences"]
                .as_array()
                .is_some_and(|o| !o.is_empty()),
        );
        prop_assert_eq!(
            app,
            adopts,
            "{} is claimed or let go against its labels",
            name
        );
        prop_assert!(!adopts || !owned, "{} has an owner and is adopted", name);
        pod["metadata"]["ownerReferences"] = asked["ownerReferences"].clone();
        let name = name.clone();
        self.pod_changed(&name);
        Ok(true)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn only_its_own_pods_are_deleted_and_the_count_comes_right(
        steps in prop::collection::vec((0u8..16, any::<u16>()), 1..120)
    ) {
        let mut w = World::new();
        for (what, n) in steps {
            match what {
                0..=3 => w.user(what, n.into()),
                4..=9 => w.deliver(what % 2 == 0),
                _ => {
                    w.sync()?;
                }
            }
        }
        let mut idle = false;
        for _ in 0..100 {
            while !w.set_events.is_empty() {
                w.deliver(false);
            }
            while !w.pod_events.is_empty() {
                w.deliver(true);
            }
            idle = !w.sync()?;
            if idle {
                break;
            }
        }
        prop_assert!(idle, "it never comes to rest");
        let uid = &w.set["metadata"]["uid"];
        let mine = |p: &&Value| p["metadata"]["ownerReferences"][0]["uid"] == *uid;
        let count = w.pods.values().filter(mine).count();
        prop_assert_eq!(Some(count as u64), w.set["spec"]["replicas"].as_u64());
        prop_assert!(w.pods.values().filter(mine).all(|p| p["metadata"]["labels"]["app"] == "web"));
    }
}
