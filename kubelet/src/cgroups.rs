//! Cgroups above the containers' own: `<root>/kubepods/[burstable|besteffort/]pod<uid>` (upstream pkg/kubelet/cm
//! pod_container_manager_linux.go, qos_container_manager_linux.go, node_container_manager_linux.go). Owns their
//! directories and limits; containers' below them are the runtime's.

use crate::config::Config;
use crate::kubelet::Kubelet;
use crate::kuberuntime::resources::{cgroup_parent, pod_cgroup, pod_request};
use crate::node::Capacity;
use crate::node::status::node_reference;
use crate::pod::manager;
use crate::pod::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use skiff_cgroup::cpu::{MIN_SHARES, PERIOD, milli_to_shares};
use skiff_cgroup::stats::{self, Stats};
use skiff_cgroup::{Hierarchies, Resources};
use skiff_client::recorder::EventType;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How often what should be is written again, whoever may have changed it (upstream: one minute).
const AGAIN: Duration = Duration::from_secs(60);

/// The node's cgroups for pods.
pub struct Cgroups {
    hierarchies: Hierarchies,
    /// `<root>/kubepods`
    top: String,
    root: String,
    /// All pods together.
    node: Resources,
    /// pids.max of each pod; not set unless positive.
    pod_pids: i64,
    /// What was written last to the classes' cgroups.
    applied: Mutex<HashMap<String, Resources>>,
}

/// Limits of all pods together: allocatable without what evictions keep free, for evictions must come first (upstream
/// getNodeAllocatableInternalAbsolute). Pure.
pub fn node_limits(capacity: &Capacity) -> Resources {
    let e = &capacity.enforced;
    Resources {
        cpu_shares: milli_to_shares(quantity::milli_of(Some(e), "cpu")),
        memory_limit: quantity::value_of(Some(e), "memory"),
        pids_limit: quantity::value_of(Some(e), "pid"),
        ..Resources::default()
    }
}

/// Shares of the burstable class: what its pods ask for together. Pure.
pub fn burstable_shares<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> i64 {
    let burstable = pods
        .into_iter()
        .filter(|p| spec::qos_class(p) == "Burstable");
    let sum = burstable
        .map(|p| pod_request(p, "cpu"))
        .fold(0_i64, i64::saturating_add);
    milli_to_shares(sum)
}

/// Limits of one pod. What is not limited is said too: a resize may have taken a limit away. Pure.
fn pod_limits(pod: &Pod, pids: i64, existed: bool) -> Resources {
    let wanted = pod_cgroup(pod);
    let or_none = |v: i64| if v == 0 && existed { -1 } else { v };
    Resources {
        cpu_shares: wanted.shares,
        cpu_quota: or_none(wanted.quota),
        cpu_period: if wanted.quota > 0 { PERIOD } else { 0 },
        memory_limit: or_none(wanted.memory),
        pids_limit: pids.max(0),
        ..Resources::default()
    }
}

impl Cgroups {
    /// Looks at the machine; changes nothing yet.
    ///
    /// # Errors
    /// /proc/self/mountinfo cannot be read.
    pub fn new(config: &Config, capacity: &Capacity) -> io::Result<Self> {
        let root = config.cgroup_root.trim_end_matches('/').to_string();
        Ok(Self {
            hierarchies: Hierarchies::detect()?,
            top: format!("{root}/kubepods"),
            root,
            node: node_limits(capacity),
            pod_pids: config.pod_pids_limit,
            applied: Mutex::default(),
        })
    }

    /// Makes the classes' cgroups and limits all pods together.
    ///
    /// # Errors
    /// The file system's, with the file: memory that is in use already cannot be forbidden, say.
    pub fn enforce_node(&self) -> io::Result<()> {
        let h = &self.hierarchies;
        for class in ["burstable", "besteffort"] {
            h.create(&format!("{}/{class}", self.top))?;
        }
        // A machine that lacks a controller was accepted at the start; no pod asked for this.
        let has = |c: &str| h.controls(c, &self.top);
        let mut limits = self.node.clone();
        if !has("memory") {
            limits.memory_limit = 0;
        }
        if !has("pids") {
            limits.pids_limit = 0;
        }
        h.apply(&self.top, &limits)
    }

    /// Weighs the classes against each other: burstable by what its pods ask for, best effort next to nothing.
    ///
    /// # Errors
    /// The file system's, with the file.
    pub fn weigh_classes(&self, burstable: i64, again: bool) -> io::Result<()> {
        for (class, cpu_shares) in [("burstable", burstable), ("besteffort", MIN_SHARES)] {
            let path = format!("{}/{class}", self.top);
            let wanted = Resources {
                cpu_shares,
                ..Resources::default()
            };
            if again || self.applied.lock().get(&path) != Some(&wanted) {
                self.hierarchies.create(&path)?;
                self.hierarchies.apply(&path, &wanted)?;
                self.applied.lock().insert(path, wanted);
            }
        }
        Ok(())
    }

    /// Makes a pod's cgroup, or brings its limits up to date.
    ///
    /// # Errors
    /// The file system's, with the file; a limit that this machine cannot keep.
    pub fn ensure_pod(&self, pod: &Pod) -> io::Result<()> {
        let path = cgroup_parent(&self.root, pod);
        let h = &self.hierarchies;
        let existed = h.dir("memory", &path).is_some_and(|d| d.exists())
            || h.dir("cpu", &path).is_some_and(|d| d.exists());
        let wanted = pod_limits(pod, self.pod_pids, existed);
        h.create(&path)?;
        h.apply(&path, &wanted)
    }

    /// Removes a pod's cgroups, whatever its class, in every hierarchy. Fine when there are none.
    ///
    /// # Errors
    /// A cgroup that still has processes.
    pub fn remove_pod(&self, uid: &str) -> io::Result<()> {
        for class in ["", "burstable/", "besteffort/"] {
            let path = format!("{}/{class}pod{uid}", self.top);
            self.hierarchies.remove(&path)?;
        }
        Ok(())
    }

    /// What a pod uses.
    pub fn pod_stats(&self, pod: &Pod) -> Stats {
        stats::read(&self.hierarchies, &cgroup_parent(&self.root, pod))
    }

    /// Bytes of memory that all pods together may still take, and the most they may have; None where nothing limits
    /// them.
    pub fn pods_memory(&self) -> Option<(i64, i64)> {
        let limit = self.node.memory_limit;
        let used = stats::read(&self.hierarchies, &self.top).working_set?;
        (limit > 0).then(|| (limit - i64::try_from(used).unwrap_or(i64::MAX), limit))
    }
}

/// Brings the classes up to date with the pods of the moment. Files are written off the async threads.
///
/// # Errors
/// The file system's, with the file.
pub async fn weigh_classes(k: &Arc<Kubelet>, but: &str) -> Result<(), String> {
    let pods = manager::active(k, but);
    let shares = burstable_shares(pods.iter().map(Arc::as_ref));
    let k = k.clone();
    tokio::task::spawn_blocking(move || k.cgroups.weigh_classes(shares, false))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())
}

/// Enforces what the node gives to pods, and writes the classes' weights again now and then, until the kubelet stops.
pub async fn run(k: Arc<Kubelet>) {
    let node = node_reference(&k.config.node_name);
    let mut enforced = !k.config.enforce_node_allocatable;
    loop {
        let shares = burstable_shares(manager::active(&k, "").iter().map(Arc::as_ref));
        let (this, first) = (k.clone(), !enforced);
        let result = tokio::task::spawn_blocking(move || {
            let node = if first {
                this.cgroups.enforce_node()
            } else {
                Ok(())
            };
            (node, this.cgroups.weigh_classes(shares, true))
        })
        .await;
        match result {
            Ok((Ok(()), _)) if first => {
                enforced = true;
                k.recorder.event(
                    &node,
                    EventType::Normal,
                    "NodeAllocatableEnforced",
                    "Updated Node Allocatable limit across pods",
                );
            }
            Ok((Err(e), _)) => k.recorder.event(
                &node,
                EventType::Warning,
                "FailedNodeAllocatableEnforcement",
                format!("Failed to update Node Allocatable Limits: {e}"),
            ),
            Ok((_, Err(e))) => {
                tracing::warn!(error = %e, "the cgroups of the QoS classes could not be brought up to date");
            }
            Ok(_) => {}
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => return,
        }
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn pod(uid: &str, resources: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"uid": uid}, "spec": {"containers": [
            {"name": "c", "resources": resources}]}}),
        )
        .unwrap()
    }

    #[test]
    fn the_burstable_class_weighs_what_its_pods_ask_for_and_no_others() {
        let a = pod("a", serde_json::json!({"requests": {"cpu": "500m"}}));
        let b = pod(
            "b",
            serde_json::json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "1"}}),
        );
        let both = serde_json::json!({"cpu": "2", "memory": "1Mi"});
        let guaranteed = pod("g", serde_json::json!({"requests": both, "limits": both}));
        let best_effort = pod("e", serde_json::json!({}));
        assert_eq!(burstable_shares([&a, &b, &guaranteed, &best_effort]), 768);
        assert_eq!(burstable_shares([&guaranteed]), MIN_SHARES);
    }

    #[test]
    fn a_limit_that_a_resize_takes_away_is_taken_away() {
        let limited = pod(
            "a",
            serde_json::json!({"limits": {"cpu": "1", "memory": "1Mi"}}),
        );
        let free = pod("a", serde_json::json!({"requests": {"cpu": "1"}}));
        let first = pod_limits(&limited, 7, false);
        assert_eq!(
            (first.cpu_quota, first.memory_limit, first.pids_limit),
            (PERIOD, 1 << 20, 7)
        );
        let fresh = pod_limits(&free, -1, false);
        assert_eq!(
            (fresh.cpu_quota, fresh.memory_limit, fresh.pids_limit),
            (0, 0, 0)
        );
        let later = pod_limits(&free, -1, true);
        assert_eq!((later.cpu_quota, later.memory_limit), (-1, -1));
    }

    #[test]
    fn pods_and_classes_get_their_limits_in_real_cgroups() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: making cgroups needs root");
            return;
        }
        let root = format!("/skiff-test-kubelet-{}", std::process::id());
        let mut config = Config::new("n", std::path::Path::new("/nowhere"));
        config.cgroup_root = root.clone();
        config.pod_pids_limit = 50;
        let quantities = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(k, v)| ((*k).to_string(), Quantity((*v).to_string())))
                .collect()
        };
        let capacity = Capacity {
            enforced: quantities(&[("cpu", "1500m"), ("memory", "512Mi"), ("pid", "1000")]),
            ..Capacity::default()
        };
        let c = Cgroups::new(&config, &capacity).unwrap();
        let h = c.hierarchies.clone();
        if !["cpu", "memory", "pids"].iter().all(|n| h.controls(n, "")) {
            eprintln!("SKIPPED: this machine lacks a controller");
            return;
        }
        let read = |controller: &str, path: &str, v1: &str, v2: &str| {
            let dir = h
                .dir(controller, &format!("{root}/kubepods{path}"))
                .unwrap();
            let file = dir.join(if h.is_v2() { v2 } else { v1 });
            std::fs::read_to_string(file).unwrap().trim().to_string()
        };
        let memory = |path: &str| read("memory", path, "memory.limit_in_bytes", "memory.max");
        let pids = |path: &str| read("pids", path, "pids.max", "pids.max");
        let cpu = |path: &str| read("cpu", path, "cpu.shares", "cpu.weight");
        let shares = |n: i64| {
            if h.is_v2() {
                skiff_cgroup::cpu::weight(n).to_string()
            } else {
                n.to_string()
            }
        };
        c.enforce_node().unwrap();
        assert_eq!(
            (memory(""), pids(""), cpu("")),
            ((512_i64 << 20).to_string(), "1000".into(), shares(1536))
        );
        let limits = serde_json::json!({"requests": {"cpu": "100m"}, "limits": {"memory": "32Mi"}});
        let p = pod("x", limits);
        c.ensure_pod(&p).unwrap();
        c.weigh_classes(burstable_shares([&p]), false).unwrap();
        assert_eq!(cpu("/burstable"), shares(102));
        assert_eq!(cpu("/besteffort"), shares(2));
        assert_eq!(memory("/burstable/podx"), (32_i64 << 20).to_string());
        assert_eq!(pids("/burstable/podx"), "50");
        let p = pod("x", serde_json::json!({"requests": {"cpu": "100m"}}));
        c.ensure_pod(&p).unwrap();
        assert_ne!(
            memory("/burstable/podx"),
            (32_i64 << 20).to_string(),
            "the limit is gone"
        );
        c.remove_pod("x").unwrap();
        assert!(
            !h.dir("memory", &format!("{root}/kubepods/burstable/podx"))
                .unwrap()
                .exists()
        );
        h.remove(&root).unwrap();
    }
}
