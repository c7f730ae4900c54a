//! Node lifecycle controller: a node whose lease is no longer renewed becomes Unknown, is tainted, and loses the pods
//! that do not tolerate it (pkg/controller/nodelifecycle and tainteviction).

use crate::action::{Action, NODES, PODS, execute};
use crate::model::{is_terminal, rfc3339};
use crate::shell::{Controller, Shell};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use serde_json::{Value, json};
use skiff_client::taints::covers;
use skiff_client::{ObjectKey, Scope};
use std::sync::Arc;
use std::time::Duration;

/// How long a node may be silent (upstream: --node-monitor-grace-period, 50 s since 1.32).
pub const GRACE: Duration = Duration::from_secs(50);
/// Conditions whose truth taints a node with NoSchedule, and the taint.
const TAINTS_BY_CONDITION: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

fn condition<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    node.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == name)
        .map(|c| c.status.as_str())
}

fn taints(node: &Node) -> Vec<Taint> {
    node.spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default()
}

/// The taints that a node should have. Those that are none of ours stay as they are.
pub fn wanted_taints(node: &Node, now: Timestamp) -> Vec<Value> {
    let ready = condition(node, "Ready");
    let mut want: Vec<(&str, &str)> = Vec::new();
    for (name, taint) in TAINTS_BY_CONDITION {
        if condition(node, name) == Some("True") {
            want.push((taint, "NoSchedule"));
        }
    }
    match ready {
        Some("True") => {}
        Some("Unknown") => want.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        _ => want.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
    }
    if node
        .spec
        .as_ref()
        .and_then(|s| s.unschedulable)
        .unwrap_or(false)
    {
        want.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |key: &str| {
        key == NOT_READY
            || key == UNREACHABLE
            || key == UNSCHEDULABLE
            || TAINTS_BY_CONDITION.iter().any(|(_, t)| *t == key)
    };
    let mut out: Vec<Value> = Vec::new();
    for t in taints(node) {
        if !ours(&t.key) || want.contains(&(t.key.as_str(), t.effect.as_str())) {
            want.retain(|(k, e)| (*k, *e) != (t.key.as_str(), t.effect.as_str()));
            out.push(json!(t));
        }
    }
    for (key, effect) in want {
        let mut t = json!({"key": key, "effect": effect});
        // timeAdded is what tolerationSeconds count from.
        t["timeAdded"] = rfc3339(now).into();
        out.push(t);
    }
    out
}

/// What to do for a node, given when its lease was last renewed. `seen` is when this controller first saw the node
/// or its last renewal.
pub fn reconcile(node: &Node, silent_for: Duration, now: Timestamp) -> Vec<Action> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let mut actions = Vec::new();
    let mut after = node.clone();
    if silent_for >= GRACE && condition(node, "Ready") != Some("Unknown") {
        let mut conditions: Vec<Value> = node
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .map(|c| json!(c))
            .collect();
        for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
            let fresh = json!({"type": kind, "status": "Unknown", "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
                "lastHeartbeatTime": conditions.iter().find(|c| c["type"] == kind).map(|c| c["lastHeartbeatTime"].clone()),
                "lastTransitionTime": rfc3339(now)});
            conditions.retain(|c| c["type"] != kind);
            conditions.push(fresh);
        }
        if let (Some(status), Ok(c)) =
            (&mut after.status, serde_json::from_value(json!(conditions)))
        {
            status.conditions = Some(c);
        }
        actions.push(Action::Patch {
            kind: NODES,
            namespace: String::new(),
            name: name.clone(),
            subresource: "status",
            patch: json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": conditions}}),
        });
        actions.push(Action::Event {
            warning: false,
            reason: "NodeNotReady",
            message: format!("Node {name} status is now: NodeNotReady"),
        });
    } else if silent_for < GRACE {
        actions.push(Action::After(GRACE - silent_for + Duration::from_secs(1)));
    }
    let want = wanted_taints(&after, now);
    let have: Vec<Value> = taints(node).iter().map(|t| json!(t)).collect();
    if have != want {
        actions.push(Action::Patch {
            kind: NODES,
            namespace: String::new(),
            name,
            subresource: "",
            // Under the version that was read: the node's other writers must not lose a taint.
            patch: json!({"metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
                "spec": {"taints": want}}),
        });
    }
    actions
}

/// When a pod is to be evicted because of its node's NoExecute taints: None never, zero now.
pub fn evict_after(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Duration> {
    let mut soonest: Option<Duration> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let tolerations: Vec<_> = pod
            .spec
            .iter()
            .flat_map(|s| s.tolerations.iter().flatten())
            .filter(|t| covers(t, taint))
            .collect();
        if tolerations.is_empty() {
            return Some(Duration::ZERO);
        }
        let Some(least) = tolerations
            .iter()
            .filter_map(|t| t.toleration_seconds)
            .min()
        else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let left = (since.as_second() + least.max(0) - now.as_second()).max(0);
        let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
        soonest = Some(soonest.map_or(left, |s| s.min(left)));
    }
    soonest
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "node-controller", false);
    let nodes = shell.informers.cache::<Node>();
    let pods = shell.informers.cache::<Pod>();
    let leases = shell.informers.scoped::<Lease>(Scope {
        namespace: Some("kube-node-lease".into()),
        ..Scope::default()
    });
    // When each node was last heard of, by our own clock (the node's may be wrong).
    let heard: Arc<parking_lot::Mutex<std::collections::HashMap<String, std::time::Instant>>> =
        Arc::default();
    shell.watch(&nodes, &controller.queue, |n, _| vec![ObjectKey::of(n)]);
    let last = heard.clone();
    shell.watch(&leases, &controller.queue, move |lease, old| {
        let renewed = |l: &Lease| l.spec.as_ref().and_then(|s| s.renew_time.clone());
        let name = lease.metadata.name.clone().unwrap_or_default();
        if old.is_some_and(|o| renewed(o) == renewed(lease)) {
            return Vec::new();
        }
        let before = last.lock().insert(name.clone(), std::time::Instant::now());
        // Ordinary renewals need no look: the timer set at the last one finds out for itself.
        if before.is_none_or(|t| t.elapsed() >= GRACE) {
            vec![ObjectKey::new("", name)]
        } else {
            Vec::new()
        }
    });
    let of_pod = nodes.clone();
    shell.watch(&pods, &controller.queue, move |pod, old| {
        let node = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.clone())
            .unwrap_or_default();
        let fresh = old.is_none_or(|o| {
            o.spec
                .as_ref()
                .and_then(|s| s.node_name.clone())
                .unwrap_or_default()
                != node
        });
        let tainted = fresh
            && of_pod
                .get("", &node)
                .is_some_and(|n| taints(&n).iter().any(|t| t.effect == "NoExecute"));
        if tainted {
            vec![ObjectKey::new("", node)]
        } else {
            Vec::new()
        }
    });
    let ready = {
        let (nodes, pods, leases) = (nodes.clone(), pods.clone(), leases.clone());
        async move {
            nodes.synced().await;
            pods.synced().await;
            leases.synced().await;
        }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work(
        "node-lifecycle",
        controller.queue.clone(),
        ready,
        move |key| {
            let (shell, me, nodes, pods, heard) = (
                this.clone(),
                me.clone(),
                nodes.clone(),
                pods.clone(),
                heard.clone(),
            );
            async move {
                let Some(node) = nodes.get("", &key.name) else {
                    heard.lock().remove(&key.name);
                    return Ok(());
                };
                let now = Timestamp::now();
                let silent = heard
                    .lock()
                    .entry(key.name.clone())
                    .or_insert_with(std::time::Instant::now)
                    .elapsed();
                let actions = reconcile(&node, silent, now);
                let unreachable = silent >= GRACE;
                shell.run_actions(&me, &key, &*node, actions).await?;
                let taints = taints(&node);
                let here = |p: &Pod| {
                    p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(key.name.as_str())
                };
                if unreachable {
                    for pod in pods.filter(|p| here(p) && crate::model::is_ready(p)) {
                        execute(shell.client(), &not_ready(&pod, now)).await?;
                    }
                }
                if !taints.iter().any(|t| t.effect == "NoExecute") {
                    return Ok(());
                }
                let mut soonest: Option<Duration> = None;
                for pod in pods.filter(|p| {
                    here(p) && !is_terminal(p) && p.metadata.deletion_timestamp.is_none()
                }) {
                    match evict_after(&pod, &taints, now) {
                        None => {}
                        Some(d) if d.is_zero() => {
                            me.recorder.event(
                                &*pod,
                                skiff_client::recorder::EventType::Normal,
                                "TaintManagerEviction",
                                format!("Marking for deletion Pod {}", ObjectKey::of(&*pod)),
                            );
                            let delete = Action::delete(PODS, &pod.metadata);
                            execute(shell.client(), &delete).await?;
                        }
                        Some(d) => soonest = Some(soonest.map_or(d, |s| s.min(d))),
                    }
                }
                if let Some(d) = soonest {
                    me.queue.add_after(key.clone(), d + Duration::from_secs(1));
                }
                Ok(())
            }
        },
    );
}

/// A pod of a node that is not heard of is not ready: Services must not send to it.
fn not_ready(pod: &Pod, now: Timestamp) -> Action {
    let conditions: Vec<Value> = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .map(|c| {
            let mut v = json!(c);
            if c.type_ == "Ready" {
                v["status"] = "False".into();
                v["lastTransitionTime"] = rfc3339(now).into();
            }
            v
        })
        .collect();
    Action::Patch {
        kind: PODS,
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        subresource: "status",
        patch: json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": conditions}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, spec: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u"}, "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        .expect("a node")
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_is_tainted() {
        let actions = reconcile(&node("True", json!({})), GRACE, Timestamp::UNIX_EPOCH);
        let Some(Action::Patch { patch, .. }) = actions.last() else {
            panic!("{actions:?}")
        };
        assert_eq!(patch["spec"]["taints"][1]["key"], UNREACHABLE);
        let fine = reconcile(
            &node("True", json!({})),
            Duration::ZERO,
            Timestamp::UNIX_EPOCH,
        );
        assert!(matches!(fine[..], [Action::After(_)]));
    }

    #[test]
    fn taints_follow_conditions_and_those_of_others_stay() {
        let n = node(
            "True",
            json!({"unschedulable": true, "taints": [
            {"key": NOT_READY, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoExecute"}]}),
        );
        let want = wanted_taints(&n, Timestamp::UNIX_EPOCH);
        let keys: Vec<_> = want.iter().filter_map(|t| t["key"].as_str()).collect();
        assert_eq!(keys, ["mine", UNSCHEDULABLE]);
    }

    #[test]
    fn pods_stay_as_long_as_they_tolerate() {
        let taint: Taint = serde_json::from_value(
            json!({"key": NOT_READY, "effect": "NoExecute", "timeAdded": "1970-01-01T00:00:00Z"}),
        )
        .expect("t");
        let pod = |tolerations: Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .expect("p")
        };
        let at = |s: i64| Timestamp::from_second(s).expect("t");
        let five = pod(
            json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
        );
        assert_eq!(
            evict_after(&five, std::slice::from_ref(&taint), at(100)),
            Some(Duration::from_secs(200))
        );
        assert_eq!(
            evict_after(&five, std::slice::from_ref(&taint), at(400)),
            Some(Duration::ZERO)
        );
        assert_eq!(
            evict_after(&pod(json!([])), std::slice::from_ref(&taint), at(0)),
            Some(Duration::ZERO)
        );
        assert_eq!(
            evict_after(&pod(json!([{"operator": "Exists"}])), &[taint], at(0)),
            None
        );
    }
}
