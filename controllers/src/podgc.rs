//! Pod garbage collector: pods of nodes that are gone, pods that were deleted before they had a node, and finished
//! pods beyond a limit (pkg/controller/podgc).

use crate::action::{Action, NODES, PODS, execute};
use crate::model::is_terminal;
use crate::shell::{Controller, Shell};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use skiff_client::ObjectKey;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Finished pods that are kept (upstream: --terminated-pod-gc-threshold).
pub const TERMINATED_THRESHOLD: usize = 12_500;
/// How long a node must be gone before its pods are taken for lost (upstream: 40 s).
const QUARANTINE: Duration = Duration::from_secs(40);

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .filter(|n| !n.is_empty())
}

/// Upstream marks what it deletes as failed first. Either write is refused when the pod has become another since it was
/// looked at: one without a node may just have been bound.
fn delete(pod: &Pod) -> Vec<Action> {
    let meta = &pod.metadata;
    if is_terminal(pod) {
        let mut gone = Action::delete(PODS, meta);
        if let Action::Delete { grace_seconds, .. } = &mut gone {
            *grace_seconds = Some(0);
        }
        return vec![gone];
    }
    vec![
        Action::Patch {
            kind: PODS,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            subresource: "status",
            patch: json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
                "status": {"phase": "Failed"}}),
        },
        Action::delete_any_version(PODS, meta, Some(0)),
    ]
}

/// What to do, given all pods, the nodes that are there and those that have been gone for long enough.
pub fn reconcile(
    pods: &[Arc<Pod>],
    nodes: &BTreeSet<String>,
    lost: &BTreeSet<String>,
    threshold: usize,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut finished: Vec<&Pod> = Vec::new();
    for pod in pods.iter().map(Arc::as_ref) {
        match node_of(pod) {
            Some(n) if !nodes.contains(n) && lost.contains(n) => {
                actions.extend(delete(pod));
                continue;
            }
            None if pod.metadata.deletion_timestamp.is_some() => {
                actions.extend(delete(pod));
                continue;
            }
            _ => {}
        }
        if is_terminal(pod) && pod.metadata.deletion_timestamp.is_none() {
            finished.push(pod);
        }
    }
    if finished.len() > threshold {
        finished.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let spare = finished.len() - threshold;
        actions.extend(finished.into_iter().take(spare).flat_map(delete));
    }
    actions
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "pod-garbage-collector", false);
    let pods = shell.informers.cache::<Pod>();
    let nodes = shell.informers.cache::<Node>();
    let all = ObjectKey::new("", "");
    // What can make a pod garbage: its node goes, it is deleted without a node, it finishes.
    let key = all.clone();
    let queue = controller.queue.clone();
    shell.follow(&nodes, move |event| {
        if !matches!(event, skiff_client::Event::Applied { .. }) {
            queue.add_after(key.clone(), QUARANTINE + Duration::from_secs(1));
        }
    });
    let key = all.clone();
    shell.watch(&pods, &controller.queue, move |pod, old| {
        let homeless = node_of(pod).is_none() && pod.metadata.deletion_timestamp.is_some();
        let finished = is_terminal(pod) && old.is_none_or(|o| !is_terminal(o));
        if homeless || finished {
            vec![key.clone()]
        } else {
            Vec::new()
        }
    });
    let gone: Arc<parking_lot::Mutex<std::collections::BTreeMap<String, std::time::Instant>>> =
        Arc::default();
    let ready = {
        let (pods, nodes) = (pods.clone(), nodes.clone());
        async move {
            pods.synced().await;
            nodes.synced().await;
        }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work("podgc", controller.queue.clone(), ready, move |key| {
        let (shell, me, gone) = (this.clone(), me.clone(), gone.clone());
        let (pods, nodes) = (pods.clone(), nodes.clone());
        async move {
            let names: BTreeSet<String> = nodes
                .list()
                .iter()
                .filter_map(|n| n.metadata.name.clone())
                .collect();
            let pods = pods.list();
            let missing: BTreeSet<String> = pods
                .iter()
                .filter_map(|p| node_of(p))
                .filter(|n| !names.contains(*n))
                .map(String::from)
                .collect();
            let lost = {
                let mut gone = gone.lock();
                gone.retain(|n, _| missing.contains(n));
                for n in &missing {
                    gone.entry(n.clone())
                        .or_insert_with(std::time::Instant::now);
                }
                gone.iter()
                    .filter(|(_, t)| t.elapsed() >= QUARANTINE)
                    .map(|(n, _)| n.clone())
                    .collect::<BTreeSet<_>>()
            };
            if missing.len() > lost.len() {
                me.queue.add_after(key.clone(), QUARANTINE);
            }
            // A node that the cache lacks is asked for once more before its pods are given up (upstream's
            // discoverDeletedNodes).
            let mut gone_for_good = BTreeSet::new();
            for name in lost {
                let request = http::Request::get(NODES.path("", &name))
                    .body(Vec::new())
                    .map_err(kube::Error::HttpError)?;
                let found = shell
                    .client()
                    .request::<crate::action::Answer>(request)
                    .await;
                if skiff_client::not_found_is_none(found)?.is_none() {
                    gone_for_good.insert(name);
                }
            }
            for action in reconcile(&pods, &names, &gone_for_good, TERMINATED_THRESHOLD) {
                execute(shell.client(), &action).await?;
            }
            Ok(())
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, deleted: bool) -> Arc<Pod> {
        let mut v = json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}});
        if deleted {
            v["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Arc::new(serde_json::from_value(v).expect("a pod"))
    }

    #[test]
    fn pods_of_lost_nodes_homeless_deleted_pods_and_old_finished_ones_go() {
        let nodes = BTreeSet::from(["a".to_string()]);
        let lost = BTreeSet::from(["gone".to_string()]);
        let pods = [
            pod("fine", "a", "Running", false),
            pod("lost", "gone", "Running", false),
            pod("maybe", "new", "Running", false),
            pod("homeless", "", "Pending", true),
            pod("done1", "a", "Succeeded", false),
            pod("done2", "a", "Failed", false),
        ];
        let names: Vec<String> = reconcile(&pods, &nodes, &lost, 1)
            .into_iter()
            .filter_map(|a| match a {
                Action::Delete {
                    name,
                    grace_seconds: Some(0),
                    ..
                } => Some(name),
                _ => None,
            })
            .collect();
        assert_eq!(names, ["lost", "homeless", "done1"]);
    }
}
