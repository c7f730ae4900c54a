//! StatefulSet controller: pods with lasting names and claims, made and removed in order (pkg/controller/statefulset).
//! persistentVolumeClaimRetentionPolicy's whenScaled is not carried out yet.

use crate::action::{Action, PERSISTENTVOLUMECLAIMS, PODS, STATEFULSETS};
use crate::claim;
use crate::history::{self, REVISION};
use crate::model::{
    controller_of, controller_ref, is_available, is_ready, is_terminal, merge_difference,
    owner_key, phase, pod_from, until_available,
};
use crate::shell::{Controller, Shell, unless_there};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use skiff_client::{Cache, ObjectKey, labels};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a sync sees.
pub struct Observed<'a> {
    /// The set.
    pub set: &'a StatefulSet,
    /// The pods of its namespace.
    pub pods: &'a [Arc<Pod>],
    /// The revisions of its namespace.
    pub revisions: &'a [Arc<ControllerRevision>],
    /// Names of the claims of its namespace.
    pub claims: &'a BTreeSet<String>,
    /// The cache shows all that was asked for: pods may be created and deleted.
    pub caught_up: bool,
}

/// The ordinal in a pod's name, if the name is of this set.
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let n = pod.strip_prefix(set)?.strip_prefix('-')?;
    (n == "0" || !n.starts_with('0'))
        .then(|| n.parse().ok())
        .flatten()
        .filter(|n| *n >= 0)
}

fn remove(pod: &Pod) -> Action {
    Action::delete(PODS, &pod.metadata)
}

fn revision_of(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(REVISION))
        .map_or("", String::as_str)
}

struct Plan<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    name: String,
    namespace: String,
    claims: &'a BTreeSet<String>,
    actions: Vec<Action>,
}

impl Plan<'_> {
    fn claim_name(&self, template: &PersistentVolumeClaim, n: i32) -> String {
        let t = template.metadata.name.as_deref().unwrap_or_default();
        format!("{t}-{}-{n}", self.name)
    }

    /// The claims of a pod that are not there yet.
    fn claims(&mut self, n: i32) {
        for t in self.spec.volume_claim_templates.iter().flatten() {
            let name = self.claim_name(t, n);
            if self.claims.contains(&name) {
                continue;
            }
            let mut labels = t.metadata.labels.clone().unwrap_or_default();
            labels.extend(self.spec.selector.match_labels.clone().unwrap_or_default());
            let mut metadata = json!({"name": name, "labels": labels});
            if let Some(a) = &t.metadata.annotations {
                metadata["annotations"] = json!(a);
            }
            let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
            if policy.and_then(|p| p.when_deleted.as_deref()) == Some("Delete") {
                let owner = controller_ref("apps/v1", "StatefulSet", &self.set.metadata);
                metadata["ownerReferences"] = json!([owner]);
            }
            self.actions.push(Action::Create {
                kind: PERSISTENTVOLUMECLAIMS,
                namespace: self.namespace.clone(),
                object: json!({"metadata": metadata, "spec": t.spec}),
            });
        }
    }

    fn create(&mut self, n: i32, revision: &str, template: &PodTemplateSpec) {
        self.claims(n);
        let name = format!("{}-{n}", self.name);
        let owner = controller_ref("apps/v1", "StatefulSet", &self.set.metadata);
        let mut pod = pod_from(template, &name, owner);
        let labels = &mut pod["metadata"]["labels"];
        labels["statefulset.kubernetes.io/pod-name"] = name.clone().into();
        labels["apps.kubernetes.io/pod-index"] = n.to_string().into();
        labels[REVISION] = revision.into();
        pod["spec"]["hostname"] = name.into();
        if let Some(service) = self.spec.service_name.as_ref().filter(|s| !s.is_empty()) {
            pod["spec"]["subdomain"] = service.clone().into();
        }
        let mut volumes = pod["spec"]["volumes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for t in self.spec.volume_claim_templates.iter().flatten() {
            let volume = json!(t.metadata.name);
            volumes.retain(|v| v["name"] != volume);
            volumes.push(json!({"name": volume,
                "persistentVolumeClaim": {"claimName": self.claim_name(t, n)}}));
        }
        if !volumes.is_empty() {
            pod["spec"]["volumes"] = volumes.into();
        }
        self.actions.push(Action::Create {
            kind: PODS,
            namespace: self.namespace.clone(),
            object: pod,
        });
    }
}

/// What to do.
pub fn reconcile(o: &Observed, now: Timestamp) -> Vec<Action> {
    let set = o.set;
    let Some(spec) = &set.spec else {
        return Vec::new();
    };
    let name = set.metadata.name.clone().unwrap_or_default();
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let deleting = set.metadata.deletion_timestamp.is_some();
    let mut p = Plan {
        set,
        spec,
        namespace: set.metadata.namespace.clone().unwrap_or_default(),
        claims: o.claims,
        actions: Vec::new(),
        name: name.clone(),
    };
    let mut pods: BTreeMap<i32, &Pod> = BTreeMap::new();
    for pod in o.pods.iter().map(Arc::as_ref) {
        let matches = labels::matches(Some(&spec.selector), pod.metadata.labels.as_ref());
        let n = ordinal(&name, pod.metadata.name.as_deref().unwrap_or_default());
        match (controller_of(&pod.metadata), n) {
            (Some(owner), Some(n)) if owner.uid == uid && matches => {
                pods.insert(n, pod);
            }
            (Some(owner), _) if owner.uid == uid && !deleting => {
                p.actions
                    .push(claim::release(PODS, &pod.metadata, uid, None))
            }
            (None, Some(n))
                if matches && !deleting && pod.metadata.deletion_timestamp.is_none() =>
            {
                p.actions.push(claim::adopt(
                    PODS,
                    &pod.metadata,
                    STATEFULSETS,
                    &set.metadata,
                    None,
                ));
                pods.insert(n, pod);
            }
            _ => {}
        }
    }
    if deleting {
        return p.actions;
    }
    let status = set.status.clone().unwrap_or_default();
    let revisions = history::owned(o.revisions, &set.metadata);
    let update = history::update(
        ("apps/v1", "StatefulSet", &set.metadata),
        &spec.template,
        spec.selector.match_labels.as_ref(),
        status.collision_count.unwrap_or(0),
        &revisions,
    );
    p.actions.extend(update.action.clone());
    // The current revision: its template makes the pods below the partition.
    let known = status.current_revision.as_deref().unwrap_or_default();
    let found = revisions
        .iter()
        .find(|r| r.metadata.name.as_deref() == Some(known))
        .and_then(|r| Some((known.to_string(), history::template_of(r)?)));
    let (current, current_template) =
        found.unwrap_or_else(|| (update.name.clone(), spec.template.clone()));
    let versions = Versions {
        current,
        current_template,
        update: update.name.clone(),
    };
    if o.caught_up {
        scale_and_roll(&mut p, &pods, &versions, now);
    }
    let mut used: BTreeSet<String> = pods.values().map(|p| revision_of(p).to_string()).collect();
    used.extend([versions.current.clone(), versions.update.clone()]);
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut actions = Vec::new();
    actions.extend(write_status(set, &pods, &versions, now));
    actions.append(&mut p.actions);
    actions.extend(history::truncate(&revisions, &used, limit));
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let soonest = pods
        .values()
        .filter_map(|p| until_available(p, min_ready, now))
        .min();
    actions.extend(soonest.map(Action::After));
    actions
}

/// The names of both revisions, and the template of the current one.
struct Versions {
    current: String,
    current_template: PodTemplateSpec,
    update: String,
}

fn scale_and_roll(p: &mut Plan, pods: &BTreeMap<i32, &Pod>, v: &Versions, now: Timestamp) {
    let spec = p.spec;
    let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let replicas = spec.replicas.unwrap_or(1).max(0);
    let range = start..start.saturating_add(replicas);
    let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let strategy = spec.update_strategy.as_ref();
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let partition = rolling.and_then(|r| r.partition).unwrap_or(0).max(0);
    let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    let deleted = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    let healthy = |pod: &Pod| !deleted(pod) && phase(pod) == "Running" && is_ready(pod);
    for n in range.clone() {
        match pods.get(&n) {
            None => {
                if !on_delete && n < start.saturating_add(partition) {
                    p.create(n, &v.current, &v.current_template);
                } else {
                    p.create(n, &v.update, &spec.template);
                }
                if ordered {
                    return;
                }
            }
            Some(pod) if is_terminal(pod) => {
                // It comes back under its name once this one is gone.
                if !deleted(pod) {
                    p.actions.push(remove(pod));
                }
                if ordered {
                    return;
                }
            }
            Some(pod) => {
                if phase(pod) == "Pending" && !deleted(pod) {
                    p.claims(n);
                }
                if ordered && (!healthy(pod) || !is_available(pod, min_ready, now)) {
                    return;
                }
            }
        }
    }
    for (_, pod) in pods.iter().rev().filter(|(n, _)| !range.contains(n)) {
        if !deleted(pod) {
            p.actions.push(remove(pod));
        }
        if ordered {
            return;
        }
    }
    if on_delete {
        return;
    }
    let mut budget = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
        Some(IntOrString::Int(n)) => (*n).max(1),
        Some(IntOrString::String(s)) => {
            let share: i32 = s.trim_end_matches('%').parse().unwrap_or(0);
            (replicas.saturating_mul(share) / 100).max(1)
        }
        None => 1,
    };
    for n in range
        .rev()
        .filter(|n| *n >= start.saturating_add(partition))
    {
        let Some(pod) = pods.get(&n) else {
            budget -= 1;
            if budget <= 0 {
                return;
            }
            continue;
        };
        if revision_of(pod) != v.update && !deleted(pod) {
            p.actions.push(remove(pod));
            budget -= 1;
        } else if !healthy(pod) || !is_available(pod, min_ready, now) {
            budget -= 1;
        }
        if budget <= 0 {
            return;
        }
    }
}

fn write_status(
    set: &StatefulSet,
    pods: &BTreeMap<i32, &Pod>,
    v: &Versions,
    now: Timestamp,
) -> Option<Action> {
    let spec = set.spec.as_ref()?;
    let old = serde_json::to_value(&set.status)
        .ok()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let all: Vec<&Pod> = pods.values().copied().collect();
    let count = |f: &dyn Fn(&Pod) -> bool| all.iter().filter(|p| f(p)).count();
    let alive = |p: &Pod| p.metadata.deletion_timestamp.is_none() && !is_terminal(p);
    let ready = count(&|p| phase(p) == "Running" && is_ready(p));
    let mut current = count(&|p| alive(p) && revision_of(p) == v.current);
    let updated = count(&|p| alive(p) && revision_of(p) == v.update);
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let rolling = spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.type_.as_deref())
        != Some("OnDelete");
    let mut revision = v.current.as_str();
    if rolling && updated == wanted && ready == wanted && all.len() == wanted {
        revision = v.update.as_str();
        current = updated;
    }
    let mut fresh = old.clone();
    fresh["observedGeneration"] = set.metadata.generation.unwrap_or(0).into();
    fresh["replicas"] = all.len().into();
    fresh["availableReplicas"] =
        count(&|p| phase(p) == "Running" && is_available(p, min_ready, now)).into();
    fresh["currentRevision"] = revision.into();
    fresh["updateRevision"] = v.update.clone().into();
    if fresh.get("collisionCount").is_none() {
        fresh["collisionCount"] = 0.into();
    }
    for (key, n) in [
        ("readyReplicas", ready),
        ("currentReplicas", current),
        ("updatedReplicas", updated),
    ] {
        if n == 0 {
            fresh.as_object_mut().map(|f| f.remove(key));
        } else {
            fresh[key] = n.into();
        }
    }
    merge_difference(&old, &fresh).map(|patch| Action::Patch {
        kind: STATEFULSETS,
        namespace: set.metadata.namespace.clone().unwrap_or_default(),
        name: set.metadata.name.clone().unwrap_or_default(),
        subresource: "status",
        patch: json!({"metadata": {"uid": set.metadata.uid}, "status": patch}),
    })
}

#[derive(Clone)]
struct Caches {
    sets: Cache<StatefulSet>,
    pods: Cache<Pod>,
    revisions: Cache<ControllerRevision>,
    claims: Cache<PersistentVolumeClaim>,
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let me = Controller::new(shell, "statefulset-controller", true);
    let caches = Caches {
        sets: shell.informers.cache(),
        pods: shell.informers.cache(),
        revisions: shell.informers.cache(),
        claims: shell.informers.cache(),
    };
    shell.watch(&caches.sets, &me.queue, |s, _| vec![ObjectKey::of(s)]);
    shell.watch(&caches.revisions, &me.queue, |r, _| {
        owner_key(&r.metadata, "StatefulSet").into_iter().collect()
    });
    let (all, pending) = (caches.sets.clone(), me.pending.clone());
    shell.watch(&caches.pods, &me.queue, move |pod, old| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut keys: Vec<ObjectKey> = Vec::new();
        if let Some(key) = owner_key(&pod.metadata, "StatefulSet") {
            pending.seen(&key, name);
            keys.push(key);
        } else if controller_of(&pod.metadata).is_none()
            && let Some((set, _)) = name.rsplit_once('-')
            && all.get(namespace, set).is_some()
        {
            keys.push(ObjectKey::new(namespace, set));
        }
        let was = old.and_then(|o| owner_key(&o.metadata, "StatefulSet"));
        keys.extend(was.filter(|k| !keys.contains(k)));
        keys
    });
    let ready = {
        let c = caches.clone();
        async move {
            c.sets.synced().await;
            c.pods.synced().await;
            c.revisions.synced().await;
            c.claims.synced().await;
        }
    };
    let this = shell.clone();
    shell.work("statefulset", me.queue.clone(), ready, move |key| {
        let (shell, me, caches) = (this.clone(), me.clone(), caches.clone());
        async move { sync(&shell, &me, &caches, &key).await }
    });
}

async fn sync(
    shell: &Shell,
    me: &Controller,
    caches: &Caches,
    key: &ObjectKey,
) -> Result<(), kube::Error> {
    let Some(set) = caches.sets.get(&key.namespace, &key.name) else {
        me.pending.forget(key);
        return Ok(());
    };
    let pods = caches.pods.list_namespace(&key.namespace);
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let caught_up = me.pending.caught_up_with(key, &uid, &pods);
    let claims: BTreeSet<String> = caches
        .claims
        .list_namespace(&key.namespace)
        .iter()
        .filter_map(|c| c.metadata.name.clone())
        .collect();
    let revisions = caches.revisions.list_namespace(&key.namespace);
    let observed = Observed {
        set: &set,
        pods: &pods,
        revisions: &revisions,
        claims: &claims,
        caught_up,
    };
    let mut actions = reconcile(&observed, Timestamp::now());
    // Claims and revisions that our cache does not show yet are as good as made.
    let made = |a: &Action| matches!(a, Action::Create { kind, .. } if kind.plural != "pods");
    for a in actions.iter().filter(|a| made(a)) {
        let done = crate::action::execute(shell.client(), a).await;
        if let Err(e) = unless_there(done.map(|_| ())) {
            if let Action::Create { kind, object, .. } = a
                && *kind == PERSISTENTVOLUMECLAIMS
            {
                let claim = object["metadata"]["name"].as_str().unwrap_or_default();
                let told = Action::Event {
                    warning: true,
                    reason: "FailedCreate",
                    message: format!(
                        "create Claim {claim} in StatefulSet {} failed error: {}",
                        key.name,
                        crate::action::text(&e)
                    ),
                };
                crate::action::note(&me.recorder, &*set, &told);
            }
            return Err(e);
        }
    }
    actions.retain(|a| !made(a));
    shell.run_actions(me, key, &*set, actions).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(spec: Value, status: Value) -> StatefulSet {
        let mut v = json!({"metadata": {"name": "db", "namespace": "ns", "uid": "u"}, "status": status,
            "spec": {"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "new"}]}}}});
        for (k, x) in spec.as_object().into_iter().flatten() {
            v["spec"][k] = x.clone();
        }
        serde_json::from_value(v).expect("a set")
    }

    fn pod(n: i32, revision: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        let name = format!("db-{n}");
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": name,
            "labels": {"a": "b", REVISION: revision},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "u", "controller": true}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})).expect("a pod"))
    }

    /// The revision's name of the sets above.
    fn newest() -> String {
        let s = set(json!({}), json!(null));
        let t = s
            .spec
            .as_ref()
            .map(|s| s.template.clone())
            .expect("a template");
        history::update(("apps/v1", "StatefulSet", &s.metadata), &t, None, 0, &[]).name
    }

    fn act(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
        let o = Observed {
            set,
            pods,
            revisions: &[],
            claims: &BTreeSet::from(["data-db-0".to_string()]),
            caught_up: true,
        };
        let text = |a: Action| match a {
            Action::Create { object, .. } => Some(format!(
                "create {}",
                object["metadata"]["name"].as_str().unwrap_or_default()
            )),
            Action::Delete { name, .. } => Some(format!("delete {name}")),
            _ => None,
        };
        let revision = format!("create {}", newest());
        reconcile(&o, Timestamp::UNIX_EPOCH)
            .into_iter()
            .filter_map(text)
            .filter(|t| *t != revision)
            .collect()
    }

    #[test]
    fn pods_are_made_one_after_another_or_all_at_once() {
        let s = set(json!({}), json!(null));
        assert_eq!(act(&s, &[]), ["create db-0"]);
        assert!(act(&s, &[pod(0, &newest(), false)]).is_empty());
        assert_eq!(act(&s, &[pod(0, &newest(), true)]), ["create db-1"]);
        let s = set(json!({"podManagementPolicy": "Parallel"}), json!(null));
        assert_eq!(act(&s, &[]), ["create db-0", "create db-1", "create db-2"]);
    }

    #[test]
    fn claims_are_made_before_the_pod_unless_they_are_there() {
        let claim = json!([{"metadata": {"name": "data"}, "spec": {}}]);
        let s = set(json!({"volumeClaimTemplates": claim}), json!(null));
        assert_eq!(act(&s, &[]), ["create db-0"]);
        assert_eq!(
            act(&s, &[pod(0, &newest(), true)]),
            ["create data-db-1", "create db-1"]
        );
    }

    #[test]
    fn the_highest_goes_first_when_there_are_too_many() {
        let s = set(json!({"replicas": 1}), json!(null));
        let pods: Vec<_> = (0..3).map(|n| pod(n, &newest(), true)).collect();
        assert_eq!(act(&s, &pods), ["delete db-2"]);
    }

    #[test]
    fn an_update_goes_down_from_the_highest_to_the_partition() {
        let old: Vec<_> = (0..3).map(|n| pod(n, "old", true)).collect();
        assert_eq!(act(&set(json!({}), json!(null)), &old), ["delete db-2"]);
        let mut some = old.clone();
        some[2] = pod(2, &newest(), true);
        assert_eq!(act(&set(json!({}), json!(null)), &some), ["delete db-1"]);
        let part =
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
        assert!(act(&set(part, json!(null)), &some).is_empty());
        let on_delete = json!({"updateStrategy": {"type": "OnDelete"}});
        assert!(act(&set(on_delete, json!(null)), &old).is_empty());
        some[2] = pod(2, &newest(), false);
        assert!(act(&set(json!({}), json!(null)), &some).is_empty());
    }

    #[test]
    fn names_hold_ordinals() {
        assert_eq!(ordinal("db", "db-10"), Some(10));
        assert_eq!(ordinal("db", "db-01"), None);
        assert_eq!(ordinal("db", "db-x-1"), None);
        assert_eq!(ordinal("db", "other-1"), None);
    }
}
