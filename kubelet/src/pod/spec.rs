//! Questions about a pod's spec that many modules ask. Pure; owns no state.

use crate::quantity;
use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, Pod, PodSpec, ResourceRequirements,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Which list of the spec a container is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs to its end before the next.
    Init,
    /// An init container with restartPolicy Always: runs along with the pod.
    Sidecar,
    /// spec.containers
    Regular,
    /// spec.ephemeralContainers
    Ephemeral,
}

impl Role {
    /// Part of an event's fieldPath.
    pub fn field(self) -> &'static str {
        match self {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Regular => "containers",
            Role::Ephemeral => "ephemeralContainers",
        }
    }
}

/// The spec; an empty one when the object has none (the API never lets that through).
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec
        .as_ref()
        .unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// metadata.uid
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}
/// metadata.name
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}
/// metadata.namespace
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// Does this init container run along with the pod?
pub fn is_sidecar(c: &Container) -> bool {
    c.restart_policy.as_deref() == Some("Always")
}

/// spec.initContainers
pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}
/// spec.containers
pub fn containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}
/// spec.ephemeralContainers
pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod)
        .ephemeral_containers
        .as_deref()
        .unwrap_or_default()
}

/// The container of a name, whichever list it is in. Ephemeral ones come as plain containers (they have the same
/// fields but targetContainerName).
pub fn container(pod: &Pod, name: &str) -> Option<(Role, Container)> {
    if let Some(c) = init_containers(pod).iter().find(|c| c.name == name) {
        let role = if is_sidecar(c) {
            Role::Sidecar
        } else {
            Role::Init
        };
        return Some((role, c.clone()));
    }
    if let Some(c) = containers(pod).iter().find(|c| c.name == name) {
        return Some((Role::Regular, c.clone()));
    }
    ephemeral_containers(pod)
        .iter()
        .find(|c| c.name == name)
        .map(|c| (Role::Ephemeral, ephemeral_as_container(c)))
}

/// An ephemeral container with the fields of a container.
pub fn ephemeral_as_container(c: &EphemeralContainer) -> Container {
    Container {
        args: c.args.clone(),
        command: c.command.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        image: c.image.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        name: c.name.clone(),
        resources: c.resources.clone(),
        security_context: c.security_context.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        tty: c.tty,
        volume_devices: c.volume_devices.clone(),
        volume_mounts: c.volume_mounts.clone(),
        working_dir: c.working_dir.clone(),
        ..Container::default()
    }
}

/// Does a volume show the pod's labels or annotations?
pub fn has_downward_volume(pod: &Pod) -> bool {
    spec(pod).volumes.iter().flatten().any(|v| {
        v.downward_api.is_some()
            || v.projected
                .iter()
                .flat_map(|p| p.sources.iter().flatten())
                .any(|s| s.downward_api.is_some())
    })
}

/// Always, OnFailure or Never.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// Is the pod on the node's network?
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// Does the node keep it whatever happens? (upstream IsCriticalPod)
pub fn is_critical(pod: &Pod) -> bool {
    spec(pod).priority.is_some_and(|p| p >= 2_000_000_000)
}

/// Seconds that the pod's containers get to end; 30 unless said.
pub fn grace_period(pod: &Pod) -> i64 {
    spec(pod).termination_grace_period_seconds.unwrap_or(30)
}

/// Has the pod ended for good, as far as its status says?
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(
        pod.status.as_ref().and_then(|s| s.phase.as_deref()),
        Some("Succeeded" | "Failed")
    )
}

/// What makes a running container out of date: its name and image (upstream 1.31+ hashes only these two).
pub fn container_hash(c: &Container) -> String {
    let mut h = Sha256::new();
    h.update(c.name.as_bytes());
    h.update([0]);
    h.update(c.image.as_deref().unwrap_or_default().as_bytes());
    let digest = h.finalize();
    digest[..4].iter().map(|b| format!("{b:02x}")).collect()
}

/// Request and limit of one resource, in thousandths.
pub fn amounts(r: &ResourceRequirements, name: &str) -> (i64, i64) {
    (
        quantity::milli_of(r.requests.as_ref(), name),
        quantity::milli_of(r.limits.as_ref(), name),
    )
}

/// Guaranteed, Burstable or BestEffort (upstream's ComputePodQOS; cpu and memory count, pod-level resources win).
pub fn qos_class(pod: &Pod) -> &'static str {
    if let Some(class) = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        match class {
            "Guaranteed" => return "Guaranteed",
            "Burstable" => return "Burstable",
            "BestEffort" => return "BestEffort",
            _ => {}
        }
    }
    let mut requests: BTreeMap<&str, i64> = BTreeMap::new();
    let mut limits: BTreeMap<&str, i64> = BTreeMap::new();
    let mut guaranteed = true;
    let pod_level = spec(pod).resources.as_ref();
    let lists: Vec<_> = match pod_level {
        Some(r) if r.requests.is_some() || r.limits.is_some() => vec![Some(r)],
        _ => containers(pod)
            .iter()
            .chain(init_containers(pod))
            .map(|c| c.resources.as_ref())
            .collect(),
    };
    for r in lists {
        let mut limited = 0;
        for name in ["cpu", "memory"] {
            let request = quantity::milli_of(r.and_then(|r| r.requests.as_ref()), name);
            let limit = quantity::milli_of(r.and_then(|r| r.limits.as_ref()), name);
            if request > 0 {
                *requests.entry(name).or_default() += request;
            }
            if limit > 0 {
                *limits.entry(name).or_default() += limit;
                limited += 1;
            }
        }
        if limited != 2 {
            guaranteed = false;
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    // The API defaults requests to limits, so absent requests with limits mean equal ones.
    let equal = requests.iter().all(|(k, v)| limits.get(k) == Some(v));
    if guaranteed && equal {
        "Guaranteed"
    } else {
        "Burstable"
    }
}
