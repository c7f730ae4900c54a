//! A small world in which the deployment's actions are carried out and pods become ready at once: rollouts must end,
//! must keep their bounds at every step, and a finished one must ask for nothing.

use super::*;
use serde_json::Value;
use serde_json::json;

struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    events: Vec<String>,
    time: i64,
}

fn merge(into: &mut Value, from: &Value) {
    match from {
        Value::Object(b) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (k, v) in b {
                if v.is_null() {
                    into.as_object_mut().map(|m| m.remove(k));
                } else {
                    merge(&mut into[k.as_str()], v);
                }
            }
        }
        other => *into = other.clone(),
    }
}

impl World {
    fn new(spec: Value) -> Self {
        let mut d = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
            "spec": {"replicas": 4, "progressDeadlineSeconds": 600, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}}});
        merge(&mut d["spec"], &spec);
        Self {
            deployment: serde_json::from_value(d).expect("a deployment"),
            sets: Vec::new(),
            events: Vec::new(),
            time: 1_000,
        }
    }

    fn change(&mut self, patch: Value) {
        let mut v = json!(self.deployment);
        merge(&mut v, &patch);
        let generation = v["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        v["metadata"]["generation"] = generation.into();
        self.deployment = serde_json::from_value(v).expect("a deployment");
    }

    fn step(&mut self) -> usize {
        let sets: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        let observed = Observed {
            deployment: &self.deployment,
            sets: &sets,
            pods: &[],
        };
        let now = Timestamp::from_second(self.time).expect("a time");
        let actions = reconcile(&observed, now);
        let mut done = 0;
        for a in actions {
            match a {
                Action::Create { mut object, .. } => {
                    object["metadata"]["namespace"] = "ns".into();
                    let uid = object["metadata"]["name"].clone();
                    object["metadata"]["uid"] = uid;
                    object["metadata"]["creationTimestamp"] = now.to_string().into();
                    self.sets
                        .push(serde_json::from_value(object).expect("a set"));
                }
                Action::Patch {
                    kind, name, patch, ..
                } if kind == REPLICASETS => {
                    let set = self
                        .sets
                        .iter_mut()
                        .find(|s| s.metadata.name.as_deref() == Some(&name))
                        .expect("there");
                    let mut v = json!(set);
                    merge(&mut v, &patch);
                    *set = serde_json::from_value(v).expect("a set");
                }
                Action::Patch { patch, .. } => {
                    let mut v = json!(self.deployment);
                    merge(&mut v, &patch);
                    self.deployment = serde_json::from_value(v).expect("a deployment");
                }
                Action::Delete { name, .. } => {
                    self.sets
                        .retain(|s| s.metadata.name.as_deref() != Some(&name));
                }
                Action::Event { message, .. } => {
                    self.events.push(message);
                    continue;
                }
                other => {
                    if !matches!(other, Action::After(_)) {
                        panic!("unexpected {other:?}");
                    }
                    continue;
                }
            }
            done += 1;
        }
        self.time += 1;
        done
    }

    fn pods_come_up(&mut self) {
        for s in &mut self.sets {
            let n = wanted(s);
            s.status = serde_json::from_value(
                json!({"replicas": n, "readyReplicas": n, "availableReplicas": n,
                "observedGeneration": s.metadata.generation}),
            )
            .ok();
        }
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let total: i32 = self.sets.iter().map(wanted).sum();
            assert!(total <= 5, "surge was exceeded: {total}");
            let did = self.step();
            self.pods_come_up();
            let up: i32 = self.sets.iter().map(available).sum();
            assert!(
                self.sets.len() < 2 || up >= 3,
                "too few are available: {up}"
            );
            if did == 0 && self.step() == 0 {
                return;
            }
        }
        panic!("the rollout never ended");
    }

    fn condition(&self, name: &str) -> String {
        let c = self
            .deployment
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .find(|c| c.type_ == name);
        c.map(|c| format!("{} {}", c.status, c.reason.clone().unwrap_or_default()))
            .unwrap_or_default()
    }
}

#[test]
fn a_rollout_keeps_its_bounds_and_ends_with_every_pod_of_the_new_template() {
    let mut w = World::new(json!({}));
    w.settle();
    assert_eq!(w.sets.iter().map(wanted).collect::<Vec<_>>(), [4]);
    assert_eq!(w.condition("Progressing"), "True NewReplicaSetAvailable");
    assert_eq!(w.condition("Available"), "True MinimumReplicasAvailable");
    w.change(
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
    );
    w.settle();
    assert_eq!(w.sets.iter().map(wanted).collect::<Vec<_>>(), [0, 4]);
    assert_eq!(
        w.sets.iter().map(sets::revision).collect::<Vec<_>>(),
        [1, 2]
    );
    // Undo: the first template again, under a new revision.
    w.change(
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v1"}]}}}}),
    );
    w.settle();
    assert_eq!(w.sets.iter().map(wanted).collect::<Vec<_>>(), [4, 0]);
    assert_eq!(
        w.sets.iter().map(sets::revision).collect::<Vec<_>>(),
        [3, 2]
    );
}

#[test]
fn old_sets_beyond_the_history_limit_go() {
    let mut w = World::new(json!({"revisionHistoryLimit": 1}));
    for image in ["v1", "v2", "v3", "v4"] {
        w.change(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}));
        w.settle();
    }
    assert_eq!(w.sets.len(), 2);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut w = World::new(json!({}));
    w.settle();
    w.change(json!({"spec": {"paused": true, "replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}));
    w.settle();
    assert_eq!(w.sets.iter().map(wanted).collect::<Vec<_>>(), [2]);
    w.change(json!({"spec": {"paused": false}}));
    for _ in 0..50 {
        w.step();
        w.pods_come_up();
    }
    assert_eq!(w.sets.iter().map(wanted).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn recreate_takes_the_old_pods_away_first() {
    let mut w = World::new(json!({"strategy": {"type": "Recreate", "rollingUpdate": null}}));
    w.step();
    w.pods_come_up();
    w.change(
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
    );
    w.step();
    assert_eq!(w.sets.iter().map(wanted).collect::<Vec<_>>(), [0]);
    w.pods_come_up();
    w.step();
    assert_eq!(w.sets.iter().map(wanted).collect::<Vec<_>>(), [0, 4]);
}

#[test]
fn a_rollout_that_does_not_move_exceeds_its_deadline() {
    let mut w = World::new(json!({}));
    w.step();
    w.step();
    assert!(w.condition("Progressing").starts_with("True"));
    w.time += 700;
    w.step();
    assert_eq!(w.condition("Progressing"), "False ProgressDeadlineExceeded");
    w.pods_come_up();
    w.step();
    w.step();
    assert_eq!(w.condition("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn percentages_round_surge_up_and_unavailable_down() {
    let bounds = |replicas: i32, surge: Value, unavailable: Value| {
        let w = World::new(
            json!({"replicas": replicas, "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}),
        );
        rolling::bounds(&w.deployment)
    };
    assert_eq!(bounds(10, "25%".into(), "25%".into()), (3, 2));
    assert_eq!(bounds(1, "25%".into(), "25%".into()), (1, 0));
    assert_eq!(bounds(3, 0.into(), 0.into()), (0, 1));
}
