//! Status of PodDisruptionBudgets (pkg/controller/disruption): how many pods there should be, how many are healthy and
//! how many may be evicted now. Evictions spend it (the API server); this only fills it up again.

use crate::action::{Action, PODDISRUPTIONBUDGETS};
use crate::model::{controller_of, is_ready, merge_difference, rfc3339, set_condition};
use crate::shell::{Controller, Shell};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use skiff_client::cache::Kind;
use skiff_client::{Cache, ObjectKey, Queue, labels};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// An evicted pod whose deletion is not seen within this time counts as still there (upstream: DeletionTimeout).
const DELETION_TIMEOUT: i64 = 120;

/// What a sync sees.
pub struct Observed<'a> {
    /// The budget.
    pub budget: &'a PodDisruptionBudget,
    /// The pods that its selector matches.
    pub pods: &'a [Arc<Pod>],
    /// How many pods the owners of these pods want together; an error's text where an owner has no scale.
    pub expected: &'a Result<i64, String>,
}

/// A number, or a share of `total` rounded up (GetScaledValueFromIntOrPercent).
fn scaled(value: &IntOrString, total: i64) -> Result<i64, String> {
    match value {
        IntOrString::Int(n) => Ok(i64::from(*n)),
        IntOrString::String(s) => s
            .strip_suffix('%')
            .and_then(|p| p.parse::<i64>().ok())
            .map(|p| (p.saturating_mul(total).saturating_add(99)).div_euclid(100))
            .ok_or_else(|| format!("invalid value for IntOrString: {s:?} is no percentage")),
    }
}

/// (expected, desired healthy)
fn wanted(o: &Observed) -> Result<(i64, i64), String> {
    let spec = o.budget.spec.as_ref();
    let there = i64::try_from(o.pods.len()).unwrap_or(i64::MAX);
    if let Some(max) = spec.and_then(|s| s.max_unavailable.as_ref()) {
        let expected = o.expected.clone()?;
        return Ok((expected, (expected - scaled(max, expected)?).max(0)));
    }
    match spec.and_then(|s| s.min_available.as_ref()) {
        // A plain number needs no owners: it works for bare pods.
        Some(IntOrString::Int(n)) => Ok((there, i64::from(*n))),
        Some(share) => {
            let expected = o.expected.clone()?;
            Ok((expected, scaled(share, expected)?))
        }
        None => Ok((there, 0)),
    }
}

/// What to do.
pub fn reconcile(o: &Observed, now: Timestamp) -> Vec<Action> {
    let budget = o.budget;
    let old = serde_json::to_value(&budget.status)
        .ok()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    let generation = budget.metadata.generation.unwrap_or(0);
    let mut actions = Vec::new();
    let mut fresh = old.clone();
    let mut conditions = old["conditions"].as_array().cloned().unwrap_or_default();
    let mut again = None;
    match wanted(o) {
        Ok((expected, desired)) => {
            let (disrupted, next) = still_disrupted(o, now);
            again = next;
            let healthy = o
                .pods
                .iter()
                .filter(|p| p.metadata.deletion_timestamp.is_none())
                .filter(|p| !disrupted.contains_key(p.metadata.name.as_deref().unwrap_or_default()))
                .filter(|p| is_ready(p))
                .count();
            let healthy = i64::try_from(healthy).unwrap_or(i64::MAX);
            let allowed = if expected > 0 {
                (healthy - desired).max(0)
            } else {
                0
            };
            fresh["expectedPods"] = expected.into();
            fresh["desiredHealthy"] = desired.into();
            fresh["currentHealthy"] = healthy.into();
            fresh["disruptionsAllowed"] = allowed.into();
            if disrupted.is_empty() {
                fresh.as_object_mut().map(|f| f.remove("disruptedPods"));
            } else {
                fresh["disruptedPods"] = json!(disrupted);
            }
            let (status, reason) = if allowed > 0 {
                ("True", "SufficientPods")
            } else {
                ("False", "InsufficientPods")
            };
            condition(&mut conditions, status, reason, "", generation, now);
        }
        Err(why) => {
            // Fail safe: no eviction passes while the number of pods is unknown.
            for k in ["expectedPods", "desiredHealthy", "currentHealthy"] {
                fresh[k] = old.get(k).cloned().unwrap_or_else(|| 0.into());
            }
            fresh["disruptionsAllowed"] = 0.into();
            condition(
                &mut conditions,
                "False",
                "SyncFailed",
                &why,
                generation,
                now,
            );
            actions.push(Action::Event {
                warning: true,
                reason: "CalculateExpectedPodCountFailed",
                message: format!("Failed to calculate the number of expected pods: {why}"),
            });
        }
    }
    fresh["observedGeneration"] = generation.into();
    fresh["conditions"] = conditions.into();
    if let Some(patch) = merge_difference(&old, &fresh) {
        // The revision: an eviction may have spent a disruption meanwhile, which must not be forgotten.
        actions.push(Action::Patch {
            kind: PODDISRUPTIONBUDGETS,
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            name: budget.metadata.name.clone().unwrap_or_default(),
            subresource: "status",
            patch: json!({"metadata": {"uid": budget.metadata.uid,
                "resourceVersion": budget.metadata.resource_version}, "status": patch}),
        });
    } else {
        // What is as before was told before.
        actions.clear();
    }
    actions.extend(again.map(Action::After));
    actions
}

fn condition(
    conditions: &mut Vec<Value>,
    status: &str,
    reason: &str,
    message: &str,
    generation: i64,
    now: Timestamp,
) {
    set_condition(
        conditions,
        "DisruptionAllowed",
        status,
        reason,
        message,
        now,
        false,
    );
    for c in conditions
        .iter_mut()
        .filter(|c| c["type"] == "DisruptionAllowed")
    {
        c["observedGeneration"] = generation.into();
        if c.get("message").is_none() {
            c["message"] = "".into();
        }
    }
}

/// Evicted pods whose deletion is not yet seen, and when the first of them is given up.
fn still_disrupted(o: &Observed, now: Timestamp) -> (BTreeMap<String, String>, Option<Duration>) {
    let mut left = BTreeMap::new();
    let mut next: Option<i64> = None;
    let evicted = o.budget.status.iter().flat_map(|s| s.disrupted_pods.iter());
    for (name, at) in evicted.flatten() {
        let there = o.pods.iter().any(|p| {
            p.metadata.name.as_ref() == Some(name) && p.metadata.deletion_timestamp.is_none()
        });
        let wait = at.0.as_second() + DELETION_TIMEOUT - now.as_second();
        if there && wait > 0 {
            left.insert(name.clone(), rfc3339(at.0));
            next = Some(next.map_or(wait, |n| n.min(wait)));
        }
    }
    let next = next.and_then(|n| u64::try_from(n).ok());
    (left, next.map(Duration::from_secs))
}

/// Caches of what pods' owners can be.
#[derive(Clone)]
struct Owners {
    sets: Cache<ReplicaSet>,
    deployments: Cache<Deployment>,
    controllers: Cache<ReplicationController>,
    stateful: Cache<StatefulSet>,
}

impl Owners {
    /// How many pods the owner of a pod wants: (the owner's uid, number). None for a pod without an owner.
    fn scale(&self, pod: &Pod) -> Result<Option<(String, i64)>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(owner) = controller_of(&pod.metadata) else {
            return Ok(None);
        };
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        let one = |n: Option<i32>| i64::from(n.unwrap_or(1));
        let found = match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => self.sets.get(namespace, &owner.name).map(|set| {
                let above = controller_of(&set.metadata)
                    .filter(|o| o.kind == "Deployment")
                    .and_then(|o| self.deployments.get(namespace, &o.name));
                match above {
                    Some(d) => (
                        d.metadata.uid.clone().unwrap_or_default(),
                        one(d.spec.as_ref().and_then(|s| s.replicas)),
                    ),
                    None => (
                        owner.uid.clone(),
                        one(set.spec.as_ref().and_then(|s| s.replicas)),
                    ),
                }
            }),
            ("apps", "StatefulSet") => self.stateful.get(namespace, &owner.name).map(|s| {
                (
                    owner.uid.clone(),
                    one(s.spec.as_ref().and_then(|s| s.replicas)),
                )
            }),
            ("", "ReplicationController") => {
                self.controllers.get(namespace, &owner.name).map(|s| {
                    (
                        owner.uid.clone(),
                        one(s.spec.as_ref().and_then(|s| s.replicas)),
                    )
                })
            }
            _ => {
                return Err(format!(
                    "{}.{group} does not implement the scale subresource",
                    owner.kind.to_lowercase() + "s"
                ));
            }
        };
        Ok(found)
    }

    fn expected(&self, pods: &[Arc<Pod>]) -> Result<i64, String> {
        let mut by_owner = BTreeMap::new();
        for pod in pods {
            if let Some((uid, n)) = self.scale(pod)? {
                by_owner.insert(uid, n);
            }
        }
        Ok(by_owner.values().sum())
    }
}

fn selected(budget: &PodDisruptionBudget, pods: &Cache<Pod>) -> Vec<Arc<Pod>> {
    let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    let mut all = pods.list_namespace(namespace);
    all.retain(|p| labels::matches(selector, p.metadata.labels.as_ref()));
    all
}

/// The budgets that cover a pod.
fn budgets_of(budgets: &Cache<PodDisruptionBudget>, pod: &Pod) -> Vec<ObjectKey> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let labels = pod.metadata.labels.as_ref();
    budgets
        .list_namespace(namespace)
        .iter()
        .filter(|b| {
            let selector = b.spec.as_ref().and_then(|s| s.selector.as_ref());
            labels::matches(selector, labels)
        })
        .map(|b| ObjectKey::of(&**b))
        .collect()
}

/// Another number of replicas is another number of expected pods; the owner's pods may match any budget of the
/// namespace.
fn follow<K: Kind>(
    shell: &Shell,
    cache: &Cache<K>,
    (budgets, queue): (Cache<PodDisruptionBudget>, Queue<ObjectKey>),
    replicas: fn(&K) -> Option<i32>,
) {
    shell.watch(cache, &queue, move |new, old| {
        if old.is_some_and(|o| replicas(o) == replicas(new)) {
            return Vec::new();
        }
        let namespace = new.meta().namespace.as_deref().unwrap_or_default();
        let all = budgets.list_namespace(namespace);
        all.iter().map(|b| ObjectKey::of(&**b)).collect()
    });
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let me = Controller::new(shell, "controllermanager", false);
    let budgets = shell.informers.cache::<PodDisruptionBudget>();
    let pods = shell.informers.cache::<Pod>();
    let owners = Owners {
        sets: shell.informers.cache(),
        deployments: shell.informers.cache(),
        controllers: shell.informers.cache(),
        stateful: shell.informers.cache(),
    };
    shell.watch(&budgets, &me.queue, |b, _| vec![ObjectKey::of(b)]);
    let all = budgets.clone();
    shell.watch(&pods, &me.queue, move |pod, old| {
        let mut keys = budgets_of(&all, pod);
        if let Some(old) = old.filter(|o| o.metadata.labels != pod.metadata.labels) {
            keys.extend(budgets_of(&all, old));
        }
        keys
    });
    let on = |queue: &_| (budgets.clone(), Clone::clone(queue));
    follow(shell, &owners.sets, on(&me.queue), |o| {
        o.spec.as_ref().and_then(|s| s.replicas)
    });
    follow(shell, &owners.deployments, on(&me.queue), |o| {
        o.spec.as_ref().and_then(|s| s.replicas)
    });
    follow(shell, &owners.controllers, on(&me.queue), |o| {
        o.spec.as_ref().and_then(|s| s.replicas)
    });
    follow(shell, &owners.stateful, on(&me.queue), |o| {
        o.spec.as_ref().and_then(|s| s.replicas)
    });
    let ready = {
        let (budgets, pods, owners) = (budgets.clone(), pods.clone(), owners.clone());
        async move {
            budgets.synced().await;
            pods.synced().await;
            owners.sets.synced().await;
            owners.deployments.synced().await;
            owners.controllers.synced().await;
            owners.stateful.synced().await;
        }
    };
    let this = shell.clone();
    shell.work("disruption", me.queue.clone(), ready, move |key| {
        let (shell, me, budgets, pods, owners) = (
            this.clone(),
            me.clone(),
            budgets.clone(),
            pods.clone(),
            owners.clone(),
        );
        async move {
            let Some(budget) = budgets.get(&key.namespace, &key.name) else {
                return Ok(());
            };
            let pods = selected(&budget, &pods);
            let expected = owners.expected(&pods);
            let observed = Observed {
                budget: &budget,
                pods: &pods,
                expected: &expected,
            };
            let actions = reconcile(&observed, Timestamp::now());
            shell.run_actions(&me, &key, &*budget, actions).await
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b", "namespace": "ns", "generation": 2, "resourceVersion": "7"},
            "spec": spec, "status": status}))
        .expect("a budget")
    }

    fn pods(ready: &[bool]) -> Vec<Arc<Pod>> {
        let pod = |(i, ready): (usize, &bool)| {
            let status = if *ready { "True" } else { "False" };
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": format!("p{i}")}, "status":
                    {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}}))
                .expect("a pod"),
            )
        };
        ready.iter().enumerate().map(pod).collect()
    }

    fn status(
        budget: &PodDisruptionBudget,
        ready: &[bool],
        expected: Result<i64, &str>,
        now: i64,
    ) -> Value {
        let o = Observed {
            budget,
            pods: &pods(ready),
            expected: &expected.map_err(String::from),
        };
        let now = Timestamp::from_second(now).expect("a time");
        reconcile(&o, now)
            .into_iter()
            .find_map(|a| match a {
                Action::Patch { patch, .. } => Some(patch["status"].clone()),
                _ => None,
            })
            .unwrap_or_default()
    }

    #[test]
    fn a_number_of_pods_must_stay_and_the_rest_may_go() {
        let b = budget(json!({"minAvailable": 2}), json!(null));
        let s = status(&b, &[true, true, true, false], Ok(0), 0);
        assert_eq!(
            (
                &s["expectedPods"],
                &s["currentHealthy"],
                &s["desiredHealthy"],
                &s["disruptionsAllowed"]
            ),
            (&json!(4), &json!(3), &json!(2), &json!(1))
        );
        assert_eq!(s["observedGeneration"], 2);
        assert_eq!(s["conditions"][0]["reason"], "SufficientPods");
    }

    #[test]
    fn shares_are_of_what_the_owners_want_and_rounded_up() {
        let b = budget(json!({"maxUnavailable": "30%"}), json!(null));
        let s = status(&b, &[true, true, true], Ok(4), 0);
        assert_eq!(
            (&s["desiredHealthy"], &s["disruptionsAllowed"]),
            (&json!(2), &json!(1))
        );
        let b = budget(json!({"minAvailable": "50%"}), json!(null));
        assert_eq!(
            status(&b, &[true, true, true], Ok(3), 0)["desiredHealthy"],
            2
        );
    }

    #[test]
    fn evicted_pods_count_as_gone_until_they_are_given_up() {
        let was = json!({"disruptedPods": {"p0": "1970-01-01T00:00:00Z", "gone": "1970-01-01T00:00:00Z"},
            "currentHealthy": 0, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 0});
        let b = budget(json!({"minAvailable": 1}), was);
        let s = status(&b, &[true, true], Ok(0), 60);
        assert_eq!(
            (&s["currentHealthy"], &s["disruptedPods"]),
            (&json!(1), &json!({"gone": null}))
        );
        assert_eq!(
            status(&b, &[true, true], Ok(0), 121)["disruptionsAllowed"],
            1
        );
    }

    #[test]
    fn an_owner_without_a_scale_allows_nothing_and_says_why() {
        let b = budget(json!({"maxUnavailable": 1}), json!(null));
        let s = status(
            &b,
            &[true],
            Err("jobs.batch does not implement the scale subresource"),
            0,
        );
        assert_eq!(s["disruptionsAllowed"], 0);
        assert_eq!(s["conditions"][0]["reason"], "SyncFailed");
    }
}
