//! Cgroups of pods: `<root>/kubepods/[burstable|besteffort/]pod<uid>` with the pod's own limits (upstream pkg/kubelet/cm
//! pod_container_manager_linux.go). Owns pods' directories; containers' below them are the runtime's.

use crate::kuberuntime::resources::{cgroup_parent, pod_cgroup};
use k8s_openapi::api::core::v1::Pod;
use skiff_cgroup::cpu::{MIN_SHARES, PERIOD};
use skiff_cgroup::{Hierarchies, Resources};
use std::io;
use std::sync::OnceLock;

/// The hierarchies of this machine.
fn hierarchies() -> io::Result<&'static Hierarchies> {
    static FOUND: OnceLock<Hierarchies> = OnceLock::new();
    if let Some(h) = FOUND.get() {
        return Ok(h);
    }
    let h = Hierarchies::detect()?;
    Ok(FOUND.get_or_init(|| h))
}

/// Makes a pod's cgroup with its limits.
///
/// # Errors
/// The file system's error, with the file; a limit that this machine cannot keep.
pub fn ensure_pod(root: &str, pod: &Pod) -> io::Result<()> {
    let h = hierarchies()?;
    let parent = cgroup_parent(root, pod);
    let limits = pod_cgroup(pod);
    let best_effort = format!("{}/kubepods/besteffort", root.trim_end_matches('/'));
    h.create(&parent)?;
    if parent.starts_with(&best_effort) {
        // All best-effort pods together weigh next to nothing.
        let least = Resources {
            cpu_shares: MIN_SHARES,
            ..Resources::default()
        };
        h.apply(&best_effort, &least)?;
    }
    h.apply(
        &parent,
        &Resources {
            cpu_shares: limits.shares,
            cpu_quota: limits.quota,
            cpu_period: if limits.quota > 0 { PERIOD } else { 0 },
            memory_limit: limits.memory,
            ..Resources::default()
        },
    )
}

/// Removes a pod's cgroups, whatever its class, in every hierarchy. Fine when there are none.
///
/// # Errors
/// A cgroup that still has processes.
pub fn remove_pod(root: &str, uid: &str) -> io::Result<()> {
    let h = hierarchies()?;
    let root = root.trim_end_matches('/');
    for class in ["", "burstable/", "besteffort/"] {
        h.remove(&format!("{root}/kubepods/{class}pod{uid}"))?;
    }
    Ok(())
}
