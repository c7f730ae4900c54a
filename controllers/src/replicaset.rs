//! ReplicaSet controller: keeps as many pods as asked for (pkg/controller/replicaset). Also claims orphans that match
//! and lets go of pods that no longer do.

use crate::action::{Action, Kind, PODS, REPLICASETS};
use crate::claim;
use crate::model::{
    controller_of, controller_ref, deletion_order, generated_name, is_active, is_available,
    is_ready, is_uid, owner_key, pod_from, set_condition, until_available,
};
use crate::shell::{Controller, Shell};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use skiff_client::{Cache, ObjectKey, labels};
use std::sync::Arc;

/// Pods created or deleted in one sync at the most (upstream: BurstReplicas).
pub const BURST: usize = 500;

/// What a sync sees.
pub struct Observed<'a> {
    /// What the set is in the API: ReplicationControllers are kept in the same way.
    pub kind: Kind,
    /// The set.
    pub set: &'a ReplicaSet,
    /// The pods of its namespace.
    pub pods: &'a [Arc<Pod>],
    /// The cache shows all that was asked for: pods may be created and deleted.
    pub caught_up: bool,
}

/// What to do. `random` gives names.
pub fn reconcile(o: &Observed, now: Timestamp, random: &mut dyn FnMut() -> u64) -> Vec<Action> {
    let set = o.set;
    let meta = &set.metadata;
    let Some(spec) = &set.spec else {
        return Vec::new();
    };
    let namespace = meta.namespace.clone().unwrap_or_default();
    let uid = meta.uid.as_deref().unwrap_or_default();
    let deleting = meta.deletion_timestamp.is_some();
    let mut actions = Vec::new();
    let mut mine: Vec<&Pod> = Vec::new();
    for pod in o.pods.iter().map(Arc::as_ref) {
        let matches = labels::matches(Some(&spec.selector), pod.metadata.labels.as_ref());
        match controller_of(&pod.metadata) {
            Some(owner) if owner.uid == uid => {
                if matches {
                    mine.push(pod);
                } else if !deleting {
                    actions.push(claim::release(PODS, &pod.metadata, uid, None));
                }
            }
            None if matches && !deleting && is_active(pod) => {
                actions.push(claim::adopt(PODS, &pod.metadata, o.kind, meta, None));
                mine.push(pod);
            }
            _ => {}
        }
    }
    let active: Vec<&Pod> = mine.iter().copied().filter(|p| is_active(p)).collect();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    if o.caught_up && !deleting {
        if active.len() < wanted {
            let template = spec.template.clone().unwrap_or_default();
            for _ in 0..(wanted - active.len()).min(BURST) {
                let name = generated_name(
                    &format!("{}-", meta.name.as_deref().unwrap_or_default()),
                    random(),
                );
                let object = pod_from(
                    &template,
                    &name,
                    controller_ref(&o.kind.api_version(), o.kind.kind, meta),
                );
                actions.push(Action::Create {
                    kind: PODS,
                    namespace: namespace.clone(),
                    object,
                });
            }
        } else if active.len() > wanted {
            let mut order = active.clone();
            order.sort_by(|a, b| deletion_order(a, b));
            for pod in order.into_iter().take((active.len() - wanted).min(BURST)) {
                actions.push(Action::delete(PODS, &pod.metadata));
            }
        }
    }
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let failure = if o.caught_up && (deleting || active.len() == wanted) {
        Failure::Clear
    } else {
        Failure::Keep
    };
    if let Some(patch) = status(o.kind, set, &active, &mine, min_ready, now, failure) {
        // Status first: what follows may take long or fail.
        actions.insert(0, patch);
    }
    if let Some(soonest) = active
        .iter()
        .filter_map(|p| until_available(p, min_ready, now))
        .min()
    {
        actions.push(Action::After(soonest));
    }
    actions
}

/// What becomes of the ReplicaFailure condition.
#[derive(Clone, Copy)]
enum Failure<'a> {
    /// Pods are about to be made or removed: whether that works is not known yet.
    Keep,
    /// Nothing is left to do.
    Clear,
    /// It failed. A condition that is there keeps its words: refusals name the pod, which has another name each time,
    /// and a status written for each attempt would wake this controller at once, without any back-off.
    Set(&'a str),
}

/// The status patch, if the status is to change.
fn status(
    kind: Kind,
    set: &ReplicaSet,
    active: &[&Pod],
    mine: &[&Pod],
    min_ready: i32,
    now: Timestamp,
    failure: Failure<'_>,
) -> Option<Action> {
    let template = set.spec.as_ref().and_then(|s| s.template.as_ref());
    let template_labels = template
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.as_ref());
    let count = |f: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| f(p)).count();
    let labelled = count(&|p| {
        template_labels.is_none_or(|want| {
            want.iter()
                .all(|(k, v)| p.metadata.labels.as_ref().and_then(|l| l.get(k)) == Some(v))
        })
    });
    let ready = count(&is_ready);
    let available = count(&|p| is_available(p, min_ready, now));
    let terminating = mine
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_some() && !crate::model::is_terminal(p))
        .count();
    let old = serde_json::to_value(set.status.clone().unwrap_or_default()).unwrap_or_default();
    let mut conditions: Vec<Value> = old["conditions"].as_array().cloned().unwrap_or_default();
    match failure {
        Failure::Set(message) if conditions.iter().all(|c| c["type"] != "ReplicaFailure") => {
            set_condition(
                &mut conditions,
                "ReplicaFailure",
                "True",
                "FailedCreate",
                message,
                now,
                false,
            );
        }
        Failure::Set(_) | Failure::Keep => {}
        Failure::Clear => conditions.retain(|c| c["type"] != "ReplicaFailure"),
    }
    let fresh = json!({
        "replicas": active.len(), "fullyLabeledReplicas": labelled, "readyReplicas": ready,
        "availableReplicas": available, "terminatingReplicas": terminating,
        "observedGeneration": set.metadata.generation.unwrap_or(0), "conditions": conditions,
    });
    let number = |v: &Value, k: &str| v[k].as_i64().unwrap_or(0);
    let same = [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "terminatingReplicas",
        "observedGeneration",
    ]
    .iter()
    .all(|k| number(&old, k) == number(&fresh, k))
        && old["conditions"].as_array().cloned().unwrap_or_default() == conditions;
    (!same).then(|| Action::Patch {
        kind,
        namespace: set.metadata.namespace.clone().unwrap_or_default(),
        name: set.metadata.name.clone().unwrap_or_default(),
        subresource: "status",
        patch: json!({"metadata": {"uid": set.metadata.uid}, "status": fresh}),
    })
}

/// The status that tells of a failure.
pub fn failed(o: &Observed, now: Timestamp, error: &kube::Error) -> Option<Action> {
    let mine: Vec<&Pod> = o
        .pods
        .iter()
        .map(Arc::as_ref)
        .filter(|p| controller_of(&p.metadata).is_some_and(|r| is_uid(&o.set.metadata, &r.uid)))
        .collect();
    let active: Vec<&Pod> = mine.iter().copied().filter(|p| is_active(p)).collect();
    let spec = o.set.spec.as_ref();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let message = crate::action::text(error);
    let failure = Failure::Set(&message);
    status(o.kind, o.set, &active, &mine, min_ready, now, failure)
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "replicaset-controller", true);
    let sets = shell.informers.cache::<ReplicaSet>();
    let pods = shell.informers.cache::<Pod>();
    shell.watch(&sets, &controller.queue, |set, _| vec![ObjectKey::of(set)]);
    let (all, pending) = (sets.clone(), controller.pending.clone());
    shell.watch(&pods, &controller.queue, move |pod, old| {
        keys_of(pod, old, &all, &pending)
    });
    let ready = {
        let (sets, pods) = (sets.clone(), pods.clone());
        async move {
            sets.synced().await;
            pods.synced().await;
        }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work("replicaset", controller.queue.clone(), ready, move |key| {
        let (shell, me, sets, pods) = (this.clone(), me.clone(), sets.clone(), pods.clone());
        async move { sync(&shell, &me, &sets, &pods, &key).await }
    });
}

/// Which sets a pod's change concerns: its owner, its former owner, or, for an orphan, every set that would take it.
fn keys_of(
    pod: &Pod,
    old: Option<&Pod>,
    sets: &Cache<ReplicaSet>,
    pending: &crate::shell::Pending,
) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    if let Some(key) = owner_key(&pod.metadata, "ReplicaSet") {
        pending.seen(&key, pod.metadata.name.as_deref().unwrap_or_default());
        keys.push(key);
    } else if controller_of(&pod.metadata).is_none() && pod.metadata.deletion_timestamp.is_none() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for set in sets.list_namespace(namespace) {
            let selector = set.spec.as_ref().map(|s| &s.selector);
            if labels::matches(selector, pod.metadata.labels.as_ref()) {
                keys.push(ObjectKey::of(&*set));
            }
        }
    }
    if let Some(was) = old.and_then(|o| owner_key(&o.metadata, "ReplicaSet"))
        && !keys.contains(&was)
    {
        keys.push(was);
    }
    keys
}

async fn sync(
    shell: &Shell,
    controller: &Controller,
    sets: &Cache<ReplicaSet>,
    pods: &Cache<Pod>,
    key: &ObjectKey,
) -> Result<(), kube::Error> {
    let Some(set) = sets.get(&key.namespace, &key.name) else {
        controller.pending.forget(key);
        return Ok(());
    };
    let pods = pods.list_namespace(&key.namespace);
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let caught_up = controller.pending.caught_up_with(key, &uid, &pods);
    let observed = Observed {
        kind: REPLICASETS,
        set: &set,
        pods: &pods,
        caught_up,
    };
    let now = Timestamp::now();
    let actions = reconcile(&observed, now, &mut rand::random);
    let result = shell.run_actions(controller, key, &*set, actions).await;
    if let Err(e) = &result
        && !skiff_client::is_code(e, 404)
        && !skiff_client::is_code(e, 409)
        && let Some(patch) = failed(&observed, now, e)
    {
        let _ = crate::action::execute(shell.client(), &patch).await;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}}}))
        .expect("a set")
    }

    fn pod(name: &str, extra: Value) -> Arc<Pod> {
        let mut v = json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]},
            "spec": {"containers": []}, "status": {"phase": "Running"}});
        for (k, val) in extra.as_object().into_iter().flatten() {
            v["metadata"][k] = val.clone();
        }
        Arc::new(serde_json::from_value(v).expect("a pod"))
    }

    fn act(set: &ReplicaSet, pods: &[Arc<Pod>], caught_up: bool) -> Vec<String> {
        let mut n = 0;
        let mut random = || {
            n += 1;
            n
        };
        reconcile(
            &Observed {
                kind: REPLICASETS,
                set,
                pods,
                caught_up,
            },
            Timestamp::UNIX_EPOCH,
            &mut random,
        )
        .into_iter()
        .map(|a| match a {
            Action::Create { object, .. } => format!(
                "create {}",
                object["metadata"]["name"].as_str().unwrap_or("")
            ),
            Action::Delete { name, .. } => format!("delete {name}"),
            Action::Adopt { patch, .. } => match *patch {
                Action::Patch { name, .. } => format!("adopt {name}"),
                other => format!("{other:?}"),
            },
            Action::Patch {
                name,
                subresource,
                patch,
                ..
            } if subresource.is_empty() => {
                format!(
                    "patch {name} owners {}",
                    patch["metadata"]["ownerReferences"]
                        .as_array()
                        .map_or(0, Vec::len)
                )
            }
            Action::Patch {
                subresource, patch, ..
            } => format!("{subresource} {}", patch["status"]["replicas"]),
            other => format!("{other:?}"),
        })
        .collect()
    }

    #[test]
    fn missing_pods_are_created_and_spare_ones_deleted() {
        assert_eq!(
            act(&set(2), &[], true),
            ["status 0", "create web-cbbbb", "create web-dbbbb"]
        );
        let pods = [
            pod("a", json!({})),
            pod("b", json!({})),
            pod("c", json!({})),
        ];
        assert_eq!(act(&set(2), &pods, true), ["status 3", "delete a"]);
    }

    #[test]
    fn a_failure_that_lasts_is_written_once_and_goes_when_the_pods_are_there() {
        let now = Timestamp::UNIX_EPOCH;
        let mut it = set(1);
        it.status = serde_json::from_value(json!({"replicas": 0, "observedGeneration": 1, "conditions": [
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "no web-a"}]}))
        .ok();
        // The next attempt: no status patch before it, none after it failed with other words.
        assert_eq!(act(&it, &[], true), ["create web-cbbbb"]);
        assert!(status(REPLICASETS, &it, &[], &[], 0, now, Failure::Set("no web-b")).is_none());
        // It worked.
        assert_eq!(act(&it, &[pod("a", json!({}))], true), ["status 1"]);
        let Some(Action::Patch { patch, .. }) =
            status(REPLICASETS, &it, &[], &[], 0, now, Failure::Clear)
        else {
            panic!("the condition has to go")
        };
        assert_eq!(patch["status"]["conditions"], json!([]));
        // The first failure is written.
        assert!(
            status(
                REPLICASETS,
                &set(1),
                &[],
                &[],
                0,
                now,
                Failure::Set("no web-a")
            )
            .is_some()
        );
    }

    #[test]
    fn nothing_is_created_before_the_cache_has_caught_up() {
        assert_eq!(act(&set(2), &[], false), ["status 0"]);
    }

    #[test]
    fn orphans_are_claimed_and_strangers_let_go() {
        let orphan = pod("o", json!({"ownerReferences": null}));
        let stranger = pod("s", json!({"labels": {"app": "else"}}));
        assert_eq!(
            act(&set(1), &[orphan, stranger], true),
            ["status 1", "adopt o", "patch s owners 0"]
        );
    }

    #[test]
    fn a_set_in_its_wanted_state_asks_for_nothing() {
        let mut s = set(1);
        let pods = [pod("a", json!({}))];
        s.status = serde_json::from_value(
            json!({"replicas": 1, "fullyLabeledReplicas": 1, "observedGeneration": 1}),
        )
        .ok();
        assert!(act(&s, &pods, true).is_empty());
    }
}
