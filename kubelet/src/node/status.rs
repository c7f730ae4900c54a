//! Registration and status of the Node (upstream kubelet_node_status.go, nodestatus setters). Written when it changes
//! and every five minutes. Owns capacity, conditions, addresses, nodeInfo and images of the object.

use super::capacity::{architecture, system_info};
use crate::kubelet::Kubelet;
use crate::parts;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use skiff_client::is_code;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often the status is written though nothing changed (nodeStatusReportFrequency).
const REPORT: Duration = Duration::from_secs(300);
/// How often the runtime is asked how it is, besides when its connection changes.
const CHECK: Duration = Duration::from_secs(10);
/// Images in the status, the largest first.
const MAX_IMAGES: usize = 50;

/// Memory, disk and process pressure, as the eviction manager sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Too little memory.
    pub memory: bool,
    /// Too little disk.
    pub disk: bool,
    /// Too few process ids.
    pub pid: bool,
}

/// Registers the node, then keeps its status true until the kubelet stops. `poke` wakes it when the runtime's
/// connection changed.
pub async fn run(
    k: Arc<Kubelet>,
    mut poke: watch::Receiver<u64>,
    mut pressure: watch::Receiver<Pressure>,
) {
    // What the object said before this process began: times of conditions go on from there.
    let before = loop {
        match register(&k).await {
            Ok(status) => break status,
            Err(e) => tracing::debug!(error = %e, "the node could not be registered; trying again"),
        }
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    };
    // Each start, not only the first: it is how `kubectl describe node` tells that the kubelet was restarted.
    k.recorder.event(
        &node_reference(&k.config.node_name),
        skiff_client::recorder::EventType::Normal,
        "Starting",
        "Starting kubelet.",
    );
    let mut written: Option<NodeStatus> = None;
    let mut was_ready = before.as_ref().is_some_and(is_ready);
    let mut written_at = tokio::time::Instant::now();
    loop {
        let now = Timestamp::now();
        let pressed = *pressure.borrow_and_update();
        let (fresh, ready) = compute(&k, pressed, written.as_ref().or(before.as_ref()), now).await;
        let changed = written.as_ref().is_none_or(|w| differs(w, &fresh));
        let mut failed = false;
        if changed || written_at.elapsed() >= REPORT {
            let mut status = fresh;
            for c in status.conditions.iter_mut().flatten() {
                c.last_heartbeat_time = Some(Time(second(now)));
            }
            match write(&k, &status).await {
                Ok(()) => {
                    if ready && !was_ready {
                        was_ready = true;
                        k.recorder.event(
                            &node_reference(&k.config.node_name),
                            skiff_client::recorder::EventType::Normal,
                            "NodeReady",
                            format!("Node {} status is now: NodeReady", k.config.node_name),
                        );
                    } else {
                        was_ready = ready;
                    }
                    written = Some(status);
                    written_at = tokio::time::Instant::now();
                }
                Err(e) if is_code(&e, 404) => {
                    // Somebody deleted the node: it comes back (upstream re-registers only after a restart).
                    let _ = register(&k).await;
                    failed = true;
                }
                Err(e) => {
                    tracing::debug!(error = %e, "the node's status could not be written; trying again");
                    failed = true;
                }
            }
        }
        let wait = match (ready, failed) {
            (_, true) => Duration::from_millis(500),
            // Nearly there: the first seconds after the start.
            (false, _) => Duration::from_millis(100),
            (true, _) => CHECK,
        };
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            r = poke.changed() => if r.is_err() { return },
            r = pressure.changed() => if r.is_err() { return },
        }
    }
}

fn labels(k: &Kubelet) -> BTreeMap<String, String> {
    let mut out = k.config.node_labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", k.config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        out.insert(key.into(), value.into());
    }
    out
}

/// Makes the Node, or brings its labels up to date; the status it had.
async fn register(k: &Arc<Kubelet>) -> Result<Option<NodeStatus>, kube::Error> {
    let api: Api<Node> = Api::all(k.client.clone());
    let node = Node {
        metadata: ObjectMeta {
            name: Some(k.config.node_name.clone()),
            labels: Some(labels(k)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!k.config.node_taints.is_empty()).then(|| k.config.node_taints.clone()),
            ..NodeSpec::default()
        }),
        status: None,
    };
    match api.create(&PostParams::default(), &node).await {
        Ok(_) => {
            tracing::info!(node = %k.config.node_name, "registered the node");
            Ok(None)
        }
        Err(e) if is_code(&e, 409) => {
            let have = api.get(&k.config.node_name).await?;
            let old = have.metadata.labels.unwrap_or_default();
            let wanted = labels(k);
            if wanted.iter().any(|(key, v)| old.get(key) != Some(v)) {
                let patch = serde_json::json!({"metadata": {"labels": wanted}});
                api.patch(
                    &k.config.node_name,
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await?;
            }
            Ok(have.status)
        }
        Err(e) => Err(e),
    }
}

/// Events about nodes carry the node's name as uid, as upstream's kubelet writes them.
pub fn node_reference(name: &str) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(name.into()),
            ..ObjectMeta::default()
        },
        ..Node::default()
    }
}

async fn write(k: &Kubelet, status: &NodeStatus) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(k.client.clone());
    let patch = serde_json::json!({"status": status});
    api.patch_status(
        &k.config.node_name,
        &PatchParams::default(),
        &Patch::Strategic(&patch),
    )
    .await?;
    Ok(())
}

fn is_ready(status: &NodeStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The status, and whether the node is ready.
async fn compute(
    k: &Kubelet,
    pressure: Pressure,
    before: Option<&NodeStatus>,
    now: Timestamp,
) -> (NodeStatus, bool) {
    let mut problems = Vec::new();
    let mut handlers = Vec::new();
    let mut features = None;
    match k.cri.status().await {
        Ok(s) => {
            handlers = s.runtime_handlers;
            features = s.features;
            let conditions = s.status.map(|s| s.conditions).unwrap_or_default();
            for (kind, what) in [
                ("RuntimeReady", "container runtime"),
                ("NetworkReady", "container runtime network"),
            ] {
                match conditions.iter().find(|c| c.r#type == kind) {
                    Some(c) if c.status => {}
                    Some(c) => problems.push(format!(
                        "{what} not ready: {kind}=false reason:{} message:{}",
                        c.reason, c.message
                    )),
                    None => problems.push(format!(
                        "{what} not ready: the runtime says nothing of {kind}"
                    )),
                }
            }
        }
        Err(e) => problems.push(format!("container runtime is down: {e}")),
    }
    if !k.pods.is_synced() {
        problems.push("the pods of this node are not known yet".into());
    }
    if let Err(e) = parts::well(k.supervisor()) {
        problems.push(format!("a part of the kubelet is down: {e}"));
    }
    let ready = problems.is_empty();
    let condition = |kind: &str, status: bool, reason: &str, message: String| {
        let status = if status { "True" } else { "False" };
        let since = before
            .and_then(|b| b.conditions.as_ref())
            .and_then(|c| c.iter().find(|c| c.type_ == kind && c.status == status))
            .and_then(|c| c.last_transition_time.clone())
            .unwrap_or(Time(second(now)));
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_heartbeat_time: Some(Time(second(now))),
            last_transition_time: Some(since),
        }
    };
    let pressed = |kind: &str, yes: bool, bad: (&str, &str), good: (&str, &str)| {
        let (reason, message) = if yes { bad } else { good };
        condition(kind, yes, reason, message.into())
    };
    let conditions = vec![
        pressed(
            "MemoryPressure",
            pressure.memory,
            (
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
            (
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
        ),
        pressed(
            "DiskPressure",
            pressure.disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressed(
            "PIDPressure",
            pressure.pid,
            (
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
            (
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
        ),
        if ready {
            condition(
                "Ready",
                true,
                "KubeletReady",
                "kubelet is posting ready status".into(),
            )
        } else {
            condition("Ready", false, "KubeletNotReady", problems.join(", "))
        },
    ];
    let mut addresses: Vec<NodeAddress> = k
        .config
        .host_ips()
        .into_iter()
        .map(|address| NodeAddress {
            address,
            type_: "InternalIP".into(),
        })
        .collect();
    addresses.push(NodeAddress {
        address: k.config.node_name.clone(),
        type_: "Hostname".into(),
    });
    let status = NodeStatus {
        addresses: Some(addresses),
        capacity: Some(k.capacity.capacity.clone()),
        allocatable: Some(k.capacity.allocatable.clone()),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(k.config.listen.port()),
            }),
        }),
        node_info: Some(system_info(
            &k.config.version,
            &format!(
                "{}://{}",
                k.runtime_name,
                k.runtime_version.trim_start_matches('v')
            ),
        )),
        images: Some(images(k).await),
        runtime_handlers: (!handlers.is_empty()).then(|| {
            handlers
                .into_iter()
                .map(|h| NodeRuntimeHandler {
                    name: Some(h.name),
                    features: h.features.map(|f| NodeRuntimeHandlerFeatures {
                        recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                        user_namespaces: Some(f.user_namespaces),
                    }),
                })
                .collect()
        }),
        features: features.map(|f| NodeFeatures {
            supplemental_groups_policy: Some(f.supplemental_groups_policy),
        }),
        ..NodeStatus::default()
    };
    (status, ready)
}

async fn images(k: &Kubelet) -> Vec<ContainerImage> {
    let mut all = k.cri.list_images().await.unwrap_or_default();
    all.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    all.truncate(MAX_IMAGES);
    all.into_iter()
        .map(|i| {
            let mut names = i.repo_digests;
            names.extend(i.repo_tags);
            names.truncate(5);
            ContainerImage {
                names: Some(names),
                size_bytes: i64::try_from(i.size).ok(),
            }
        })
        .collect()
}

fn second(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// Different in anything but heartbeats.
fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
        }
        s
    };
    still(a) != still(b)
}
