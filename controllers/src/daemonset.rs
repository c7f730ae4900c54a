//! DaemonSet controller: one pod on each node that may have it (pkg/controller/daemon). The scheduler binds the pods; each
//! names its node in a required node affinity.

use crate::action::{Action, DAEMONSETS, PODS};
use crate::claim;
use crate::history::{self, REVISION};
use crate::model::{
    controller_of, controller_ref, generated_name, is_available, is_ready, is_terminal,
    merge_difference, owner_key, phase, pod_from, until_available,
};
use crate::shell::{Controller, Shell, unless_there};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use skiff_api::selector::Selector;
use skiff_client::{Cache, ObjectKey, labels};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Pods created or deleted in one sync at the most (upstream: BurstReplicas).
const BURST: usize = 250;

/// What a sync sees.
pub struct Observed<'a> {
    /// The set.
    pub set: &'a DaemonSet,
    /// The pods of its namespace.
    pub pods: &'a [Arc<Pod>],
    /// All nodes.
    pub nodes: &'a [Arc<Node>],
    /// The revisions of its namespace.
    pub revisions: &'a [Arc<ControllerRevision>],
    /// The cache shows all that was asked for: pods may be created and deleted.
    pub caught_up: bool,
}

/// Taints that daemons' pods bear with: (key, effect).
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// The tolerations of the set's pods: the template's and those that daemons have.
fn tolerations(spec: &Value) -> Vec<Value> {
    let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let network = ("node.kubernetes.io/network-unavailable", "NoSchedule");
    let host = spec["hostNetwork"] == true;
    for (key, effect) in TOLERATED.iter().chain(host.then_some(&network)) {
        let mine = json!({"key": key, "operator": "Exists", "effect": effect});
        if !all.contains(&mine) {
            all.push(mine);
        }
    }
    all
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let text = |v: &Value, k: &str| v[k].as_str().unwrap_or_default().to_string();
    let (key, effect) = (text(toleration, "key"), text(toleration, "effect"));
    let exists = text(toleration, "operator") == "Exists";
    (effect.is_empty() || effect == text(taint, "effect"))
        && ((key.is_empty() && exists) || key == text(taint, "key"))
        && (exists || text(toleration, "value") == text(taint, "value"))
}

/// Does a required node affinity allow the node? Terms are alternatives.
fn affinity_allows(spec: &Value, node: &Value) -> bool {
    let terms = spec.pointer(
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms",
    );
    let Some(terms) = terms.and_then(Value::as_array) else {
        return true;
    };
    let name = node["metadata"]["name"].as_str();
    terms.iter().any(|term| {
        let given = |k: &str| term[k].as_array().is_some_and(|l| !l.is_empty());
        let labels = Selector::from_node_expressions(&term["matchExpressions"]);
        let fields = Selector::from_node_expressions(&term["matchFields"]);
        (given("matchExpressions") || given("matchFields"))
            && labels.is_ok_and(|s| s.matches_object(node))
            && fields.is_ok_and(|s| s.matches_by(|k| name.filter(|_| k == "metadata.name")))
    })
}

/// (should a pod be made on the node, may one that runs there stay): upstream's NodeShouldRunDaemonPod.
pub fn fits(set: &DaemonSet, node: &Node) -> (bool, bool) {
    let spec = set.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    let (spec, node) = (json!(spec), json!(node));
    let named = spec["nodeName"].as_str().filter(|n| !n.is_empty());
    let selected = spec["nodeSelector"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(k, v)| node["metadata"]["labels"].get(k) == Some(v));
    if named.is_some_and(|n| node["metadata"]["name"] != n)
        || !selected
        || !affinity_allows(&spec, &node)
    {
        return (false, false);
    }
    let tolerations = tolerations(&spec);
    let bears = |taint: &Value| tolerations.iter().any(|t| tolerates(t, taint));
    let against = |effects: &[&str]| {
        let taints = node.pointer("/spec/taints").and_then(Value::as_array);
        taints
            .into_iter()
            .flatten()
            .any(|t| effects.contains(&t["effect"].as_str().unwrap_or_default()) && !bears(t))
    };
    (
        !against(&["NoSchedule", "NoExecute"]),
        !against(&["NoExecute"]),
    )
}

/// The node of a pod: where it runs, or where its affinity sends it.
fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(n) = spec.node_name.clone().filter(|n| !n.is_empty()) {
        return Some(n);
    }
    let required = spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let terms = required.node_selector_terms.iter();
    terms
        .flat_map(|t| t.match_fields.iter().flatten())
        .find(|f| f.key == "metadata.name" && f.operator == "In")
        .and_then(|f| f.values.as_ref()?.first().cloned())
}

fn new_pod(set: &DaemonSet, spec: &DaemonSetSpec, node: &str, hash: &str, random: u64) -> Value {
    let base = format!("{}-", set.metadata.name.as_deref().unwrap_or_default());
    let owner = controller_ref("apps/v1", "DaemonSet", &set.metadata);
    let mut pod = pod_from(&spec.template, &generated_name(&base, random), owner);
    pod["metadata"]["labels"][REVISION] = hash.into();
    let field = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let path = format!("/spec/affinity/nodeAffinity/{required}/nodeSelectorTerms");
    let mut terms = pod
        .pointer(&path)
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if terms.is_empty() {
        terms.push(json!({}));
    }
    for t in &mut terms {
        t["matchFields"] = field.clone();
    }
    pod["spec"]["affinity"]["nodeAffinity"][required] = json!({"nodeSelectorTerms": terms});
    pod["spec"]["tolerations"] = tolerations(&pod["spec"]).into();
    pod
}

fn remove(pod: &Pod) -> Action {
    Action::delete(PODS, &pod.metadata)
}

/// A number, or a share of `total` rounded up.
fn scaled(value: Option<&IntOrString>, default: i32, total: usize) -> usize {
    match value {
        None => usize::try_from(default).unwrap_or(0),
        Some(IntOrString::Int(n)) => usize::try_from(*n).unwrap_or(0),
        Some(IntOrString::String(s)) => {
            let share: usize = s.trim_end_matches('%').parse().unwrap_or(0);
            (share.saturating_mul(total)).div_ceil(100)
        }
    }
}

/// What to do. `random` gives names.
pub fn reconcile(o: &Observed, now: Timestamp, random: &mut dyn FnMut() -> u64) -> Vec<Action> {
    let set = o.set;
    let Some(spec) = &set.spec else {
        return Vec::new();
    };
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let deleting = set.metadata.deletion_timestamp.is_some();
    let mut actions = Vec::new();
    let mut mine: Vec<&Pod> = Vec::new();
    for pod in o.pods.iter().map(Arc::as_ref) {
        let matches = labels::matches(Some(&spec.selector), pod.metadata.labels.as_ref());
        match controller_of(&pod.metadata) {
            Some(owner) if owner.uid == uid && matches => mine.push(pod),
            Some(owner) if owner.uid == uid && !deleting => {
                actions.push(claim::release(PODS, &pod.metadata, uid, None))
            }
            None if matches && !deleting && crate::model::is_active(pod) => {
                actions.push(claim::adopt(
                    PODS,
                    &pod.metadata,
                    DAEMONSETS,
                    &set.metadata,
                    None,
                ));
                mine.push(pod);
            }
            _ => {}
        }
    }
    if deleting {
        return actions;
    }
    let revisions = history::owned(o.revisions, &set.metadata);
    let template_labels = spec
        .template
        .metadata
        .as_ref()
        .and_then(|m| m.labels.as_ref());
    let collisions = set
        .status
        .as_ref()
        .and_then(|s| s.collision_count)
        .unwrap_or(0);
    let update = history::update(
        ("apps/v1", "DaemonSet", &set.metadata),
        &spec.template,
        template_labels,
        collisions,
        &revisions,
    );
    actions.extend(update.action.clone());
    let mut by_node: BTreeMap<String, Vec<&Pod>> = BTreeMap::new();
    for pod in &mine {
        if let Some(node) = node_of(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let mut s = Sync {
        set,
        spec,
        now,
        by_node,
        hash: &update.hash,
        create: Vec::new(),
        delete: Vec::new(),
    };
    let status = s.status(o.nodes);
    if o.caught_up {
        s.manage(o.nodes);
        if s.create.is_empty() && s.delete.is_empty() {
            s.roll(o.nodes);
        }
    }
    actions.extend(s.delete.iter().take(BURST).map(|p| remove(p)));
    for node in s.create.iter().take(BURST) {
        actions.push(Action::Create {
            kind: PODS,
            namespace: set.metadata.namespace.clone().unwrap_or_default(),
            object: new_pod(set, spec, node, &update.hash, random()),
        });
    }
    if let Some(patch) = status {
        actions.insert(0, patch);
    }
    let used: BTreeSet<String> = revisions
        .iter()
        .filter(|r| {
            let hash = r.metadata.labels.as_ref().and_then(|l| l.get(REVISION));
            let of = |p: &&Pod| p.metadata.labels.as_ref().and_then(|l| l.get(REVISION)) == hash;
            mine.iter().any(of) || r.metadata.name.as_deref() == Some(&update.name)
        })
        .filter_map(|r| r.metadata.name.clone())
        .collect();
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    actions.extend(history::truncate(&revisions, &used, limit));
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let soonest = mine
        .iter()
        .filter_map(|p| until_available(p, min_ready, now))
        .min();
    actions.extend(soonest.map(Action::After));
    actions
}

struct Sync<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    now: Timestamp,
    by_node: BTreeMap<String, Vec<&'a Pod>>,
    hash: &'a str,
    create: Vec<String>,
    delete: Vec<&'a Pod>,
}

fn name_of(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

impl<'a> Sync<'a> {
    fn updated(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        labels.and_then(|l| l.get(REVISION)).map(String::as_str) == Some(self.hash)
    }

    fn available(&self, pod: &Pod) -> bool {
        pod.metadata.deletion_timestamp.is_none()
            && is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    /// (max unavailable, max surge) of a rolling update.
    fn limits(&self, desired: usize) -> (usize, usize) {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), 0, desired);
        let down = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), 1, desired);
        (if surge == 0 { down.max(1) } else { down }, surge)
    }

    /// Pods that are missing, ended, spare or where they must not be.
    fn manage(&mut self, nodes: &[Arc<Node>]) {
        let (_, surge) = self.limits(nodes.len());
        for node in nodes {
            let (run, stay) = fits(self.set, node);
            let pods = self.by_node.get(name_of(node)).cloned().unwrap_or_default();
            let mut alive: Vec<&Pod> = Vec::new();
            for pod in &pods {
                if pod.metadata.deletion_timestamp.is_some() {
                    // Its successor waits until it is gone: both would claim the same ports and paths.
                    continue;
                }
                if is_terminal(pod) {
                    self.delete.push(pod);
                } else {
                    alive.push(pod);
                }
            }
            if !stay {
                self.delete.extend(alive);
                continue;
            }
            if run && pods.is_empty() {
                self.create.push(name_of(node).to_string());
            }
            if alive.len() > 1 {
                // The oldest stays; in a surge, the old one stays until the new one is available.
                alive.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
                let new = alive.iter().find(|p| self.updated(p)).copied();
                let old = alive.iter().find(|p| !self.updated(p)).copied();
                let keep: Vec<&Pod> = match (old, new) {
                    (Some(_), Some(n)) if self.available(n) => vec![n],
                    (Some(o), Some(n)) if surge > 0 => vec![o, n],
                    _ => alive.iter().take(1).copied().collect(),
                };
                let uid = |p: &Pod| p.metadata.uid.clone();
                let spare = alive
                    .iter()
                    .filter(|p| keep.iter().all(|k| uid(k) != uid(p)));
                self.delete.extend(spare);
            }
        }
        let known: BTreeSet<&str> = nodes.iter().map(|n| name_of(n)).collect();
        // Pods that wait for a node that is gone would wait for ever.
        for (node, pods) in &self.by_node {
            if !known.contains(node.as_str()) {
                let alive = pods
                    .iter()
                    .filter(|p| p.metadata.deletion_timestamp.is_none());
                self.delete.extend(alive);
            }
        }
    }

    /// A rolling update's next step.
    fn roll(&mut self, nodes: &[Arc<Node>]) {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
            return;
        }
        let wanted: Vec<&str> = nodes
            .iter()
            .filter(|n| fits(self.set, n).0)
            .map(|n| name_of(n))
            .collect();
        let (max_down, max_surge) = self.limits(wanted.len());
        let mut down = 0;
        let mut surging = 0;
        let mut old_unavailable = Vec::new();
        let mut old_available = Vec::new();
        for node in &wanted {
            let pods = self.by_node.get(*node).map_or(&[][..], Vec::as_slice);
            let alive: Vec<&Pod> = pods
                .iter()
                .copied()
                .filter(|p| p.metadata.deletion_timestamp.is_none())
                .collect();
            if !alive.iter().any(|p| self.available(p)) {
                down += 1;
            }
            let old = alive.iter().find(|p| !self.updated(p)).copied();
            let new = alive.iter().any(|p| self.updated(p));
            match old {
                Some(_) if new => surging += 1,
                Some(p) if self.available(p) => old_available.push((*node, p)),
                Some(p) => old_unavailable.push(p),
                None => {}
            }
        }
        // An old pod that does not work is no loss.
        self.delete.extend(old_unavailable);
        if max_surge > 0 {
            let room = max_surge.saturating_sub(surging);
            let next = old_available
                .iter()
                .take(room)
                .map(|(n, _)| (*n).to_string());
            self.create.extend(next);
        } else {
            let room = max_down.saturating_sub(down);
            self.delete
                .extend(old_available.into_iter().take(room).map(|(_, p)| p));
        }
    }

    fn status(&self, nodes: &[Arc<Node>]) -> Option<Action> {
        let old = serde_json::to_value(&self.set.status)
            .ok()
            .filter(Value::is_object)
            .unwrap_or_else(|| json!({}));
        let (mut desired, mut current, mut misplaced) = (0, 0, 0);
        let (mut ready, mut available, mut updated) = (0, 0, 0);
        for node in nodes {
            let (run, _) = fits(self.set, node);
            let pods = self
                .by_node
                .get(name_of(node))
                .map_or(&[][..], Vec::as_slice);
            let scheduled = !pods.is_empty();
            if !run {
                misplaced += i32::from(pods.iter().any(|p| phase(p) != "Failed"));
                continue;
            }
            desired += 1;
            if !scheduled {
                continue;
            }
            current += 1;
            let alive = || {
                pods.iter()
                    .filter(|p| p.metadata.deletion_timestamp.is_none())
            };
            ready += i32::from(alive().any(|p| is_ready(p)));
            available += i32::from(alive().any(|p| self.available(p)));
            updated += i32::from(alive().any(|p| self.updated(p)));
        }
        let mut fresh = old.clone();
        for (key, n) in [
            ("currentNumberScheduled", current),
            ("numberMisscheduled", misplaced),
            ("desiredNumberScheduled", desired),
            ("numberReady", ready),
        ] {
            fresh[key] = n.into();
        }
        for (key, n) in [
            ("updatedNumberScheduled", updated),
            ("numberAvailable", available),
            ("numberUnavailable", desired - available),
        ] {
            if n == 0 {
                fresh.as_object_mut().map(|f| f.remove(key));
            } else {
                fresh[key] = n.into();
            }
        }
        fresh["observedGeneration"] = self.set.metadata.generation.unwrap_or(0).into();
        merge_difference(&old, &fresh).map(|patch| Action::Patch {
            kind: DAEMONSETS,
            namespace: self.set.metadata.namespace.clone().unwrap_or_default(),
            name: self.set.metadata.name.clone().unwrap_or_default(),
            subresource: "status",
            patch: json!({"metadata": {"uid": self.set.metadata.uid}, "status": patch}),
        })
    }
}

#[derive(Clone)]
struct Caches {
    sets: Cache<DaemonSet>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    revisions: Cache<ControllerRevision>,
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let me = Controller::new(shell, "daemonset-controller", true);
    let caches = Caches {
        sets: shell.informers.cache(),
        pods: shell.informers.cache(),
        nodes: shell.informers.cache(),
        revisions: shell.informers.cache(),
    };
    shell.watch(&caches.sets, &me.queue, |s, _| vec![ObjectKey::of(s)]);
    shell.watch(&caches.revisions, &me.queue, |r, _| {
        owner_key(&r.metadata, "DaemonSet").into_iter().collect()
    });
    let all = caches.sets.clone();
    shell.watch(&caches.nodes, &me.queue, move |node, old| {
        // Heartbeats are no news: labels and taints are what decides.
        let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
        if old
            .is_some_and(|o| o.metadata.labels == node.metadata.labels && taints(o) == taints(node))
        {
            return Vec::new();
        }
        all.list().iter().map(|s| ObjectKey::of(&**s)).collect()
    });
    let (all, pending) = (caches.sets.clone(), me.pending.clone());
    shell.watch(&caches.pods, &me.queue, move |pod, old| {
        let mut keys = Vec::new();
        if let Some(key) = owner_key(&pod.metadata, "DaemonSet") {
            pending.seen(&key, pod.metadata.name.as_deref().unwrap_or_default());
            keys.push(key);
        } else if controller_of(&pod.metadata).is_none() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for set in all.list_namespace(namespace) {
                let selector = set.spec.as_ref().map(|s| &s.selector);
                if labels::matches(selector, pod.metadata.labels.as_ref()) {
                    keys.push(ObjectKey::of(&*set));
                }
            }
        }
        let was = old.and_then(|o| owner_key(&o.metadata, "DaemonSet"));
        keys.extend(was.filter(|k| !keys.contains(k)));
        keys
    });
    let ready = {
        let c = caches.clone();
        async move {
            c.sets.synced().await;
            c.pods.synced().await;
            c.nodes.synced().await;
            c.revisions.synced().await;
        }
    };
    let this = shell.clone();
    shell.work("daemonset", me.queue.clone(), ready, move |key| {
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
    let revisions = caches.revisions.list_namespace(&key.namespace);
    let nodes = caches.nodes.list();
    let observed = Observed {
        set: &set,
        pods: &pods,
        nodes: &nodes,
        revisions: &revisions,
        caught_up,
    };
    let mut actions = reconcile(&observed, Timestamp::now(), &mut rand::random);
    // A revision that our cache does not show yet is as good as made.
    let made = |a: &Action| matches!(a, Action::Create { kind, .. } if kind.plural != "pods");
    for a in actions.iter().filter(|a| made(a)) {
        let done = crate::action::execute(shell.client(), a).await;
        unless_there(done.map(|_| ()))?;
    }
    actions.retain(|a| !made(a));
    shell.run_actions(me, key, &*set, actions).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(spec: Value) -> DaemonSet {
        let mut v = json!({"metadata": {"name": "d", "namespace": "ns", "uid": "u"},
            "spec": {"selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}}});
        for (k, x) in spec.as_object().into_iter().flatten() {
            v["spec"][k] = x.clone();
        }
        serde_json::from_value(v).expect("a set")
    }

    fn node(name: &str, taint: Option<(&str, &str)>) -> Arc<Node> {
        let taints: Vec<Value> = taint
            .map(|(k, e)| json!({"key": k, "effect": e}))
            .into_iter()
            .collect();
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": {"taints": taints}}))
                .expect("a node"),
        )
    }

    fn pod(name: &str, node: &str, hash: &str, phase: &str) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": name,
            "labels": {"a": "b", REVISION: hash},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}]},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]}})).expect("a pod"))
    }

    fn act(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Vec<String> {
        let o = Observed {
            set,
            pods,
            nodes,
            revisions: &[],
            caught_up: true,
        };
        let text = |a: Action| match a {
            Action::Create { kind, object, .. } if kind == PODS => {
                let pod: Pod = serde_json::from_value(object).expect("a pod");
                node_of(&pod).map(|n| format!("create on {n}"))
            }
            Action::Delete { name, .. } => Some(format!("delete {name}")),
            _ => None,
        };
        reconcile(&o, Timestamp::UNIX_EPOCH, &mut || 1)
            .into_iter()
            .filter_map(text)
            .collect()
    }

    fn hash(set: &DaemonSet) -> String {
        let t = set
            .spec
            .as_ref()
            .map(|s| s.template.clone())
            .expect("a template");
        history::update(("apps/v1", "DaemonSet", &set.metadata), &t, None, 0, &[]).hash
    }

    #[test]
    fn every_node_that_may_have_a_pod_gets_one() {
        let nodes = [
            node("a", None),
            node(
                "b",
                Some(("node.kubernetes.io/unschedulable", "NoSchedule")),
            ),
            node("c", Some(("mine", "NoSchedule"))),
        ];
        assert_eq!(
            act(&set(json!({})), &nodes, &[]),
            ["create on a", "create on b"]
        );
        let mut chosen = set(json!({}));
        if let Some(t) = chosen.spec.as_mut().and_then(|s| s.template.spec.as_mut()) {
            t.node_selector = Some(BTreeMap::from([("disk".to_string(), "b".to_string())]));
        }
        assert_eq!(act(&chosen, &nodes, &[]), ["create on b"]);
    }

    #[test]
    fn pods_go_where_they_must_not_be_and_when_they_have_ended() {
        let s = set(json!({}));
        let h = hash(&s);
        let nodes = [
            node("a", Some(("mine", "NoExecute"))),
            node("b", Some(("mine", "NoSchedule"))),
            node("c", None),
        ];
        let pods = [
            pod("on-a", "a", &h, "Running"),
            pod("on-b", "b", &h, "Running"),
            pod("on-c", "c", &h, "Failed"),
            pod("lost", "gone", &h, "Running"),
        ];
        assert_eq!(
            act(&s, &nodes, &pods),
            ["delete on-a", "delete on-c", "delete lost"]
        );
    }

    #[test]
    fn an_update_takes_one_pod_after_another_or_surges() {
        let s = set(json!({}));
        let nodes = [node("a", None), node("b", None)];
        let pods = [
            pod("x", "a", "old", "Running"),
            pod("y", "b", "old", "Running"),
        ];
        assert_eq!(act(&s, &nodes, &pods), ["delete x"]);
        let surge = set(
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}),
        );
        assert_eq!(act(&surge, &nodes, &pods), ["create on a"]);
        let h = hash(&surge);
        let both = [
            pods[0].clone(),
            pods[1].clone(),
            pod("z", "a", &h, "Running"),
        ];
        assert_eq!(act(&surge, &nodes, &both), ["delete x"]);
        let wait = set(json!({"updateStrategy": {"type": "OnDelete"}}));
        assert!(act(&wait, &nodes, &pods).is_empty());
    }
}
