//! What the kubelet is told at start. Owns plain data and the paths derived from it.

use crate::eviction::signals::{self, Threshold};
use crate::quantity;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Everything the kubelet needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// metadata.name of the Node.
    pub node_name: String,
    /// Addresses of the node, the preferred family first; status.addresses and status.hostIPs of pods.
    pub node_ips: Vec<IpAddr>,
    /// `<data-dir>/agent/kubelet`: pods/<uid>/volumes and so on, as upstream's --root-dir.
    pub root_dir: PathBuf,
    /// `<data-dir>/agent/logs/pods`, as upstream's /var/log/pods.
    pub pod_logs_dir: PathBuf,
    /// Unix socket of the CRI runtime.
    pub cri_socket: PathBuf,
    /// Nameservers of pods with dnsPolicy ClusterFirst.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Where the HTTPS server listens; port 10250 by default.
    pub listen: SocketAddr,
    /// Serving certificate chain, PEM.
    pub tls_cert_pem: Vec<u8>,
    /// Its key, PEM.
    pub tls_key_pem: Vec<u8>,
    /// CA of the clients that may call the HTTPS server, PEM.
    pub client_ca_pem: Vec<u8>,
    /// Cgroup above `kubepods`, e.g. `/skiff`; empty for the root.
    pub cgroup_root: String,
    /// Kept for the system, by resource; `pid` counts processes (upstream --system-reserved).
    pub system_reserved: BTreeMap<String, Quantity>,
    /// Kept for Skiff itself (upstream --kube-reserved).
    pub kube_reserved: BTreeMap<String, Quantity>,
    /// Hold all pods together to what is not reserved (upstream --enforce-node-allocatable=pods).
    pub enforce_node_allocatable: bool,
    /// Processes of one pod; no limit unless positive (upstream --pod-max-pids, -1).
    pub pod_pids_limit: i64,
    /// What must be left of memory and disks before pods are evicted (upstream --eviction-hard).
    pub eviction_hard: Vec<Threshold>,
    /// How many pods fit (110).
    pub max_pods: i64,
    /// resolv.conf of the node, the base of pods' DNS settings.
    pub resolv_conf: PathBuf,
    /// Labels the Node is registered with besides the well-known ones.
    pub node_labels: BTreeMap<String, String>,
    /// Taints the Node is registered with.
    pub node_taints: Vec<Taint>,
    /// Containers without a seccomp profile get RuntimeDefault rather than Unconfined (upstream seccompDefault).
    pub seccomp_default: bool,
    /// Sysctls that pods may set besides the safe ones: names, or prefixes that end with `*` (upstream
    /// --allowed-unsafe-sysctls).
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Images are collected above this percentage of the image file system (85) ...
    pub image_gc_high_percent: u8,
    /// ... down to this one (80).
    pub image_gc_low_percent: u8,
    /// A container's log is rotated at this size (10 MiB).
    pub container_log_max_size: u64,
    /// Log files kept for each container (5).
    pub container_log_max_files: usize,
    /// In one process with the control plane: use the caches of all pods and nodes that its components have anyway,
    /// rather than watches of this node's objects alone. An agent that reaches the API over HTTPS sets it to false.
    pub shared_caches: bool,
    /// status.nodeInfo.kubeletVersion, e.g. `v1.36.0+skiff`.
    pub version: String,
}

impl Config {
    /// Defaults for a node whose state is below `data_dir`.
    pub fn new(node_name: impl Into<String>, data_dir: &Path) -> Self {
        let agent = data_dir.join("agent");
        Self {
            node_name: node_name.into(),
            node_ips: Vec::new(),
            root_dir: agent.join("kubelet"),
            pod_logs_dir: agent.join("logs/pods"),
            cri_socket: agent.join("runtime/cri.sock"),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 10250)),
            tls_cert_pem: Vec::new(),
            tls_key_pem: Vec::new(),
            client_ca_pem: Vec::new(),
            cgroup_root: "/skiff".into(),
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            enforce_node_allocatable: true,
            pod_pids_limit: -1,
            eviction_hard: signals::defaults(),
            max_pods: 110,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            node_labels: BTreeMap::new(),
            node_taints: Vec::new(),
            seccomp_default: false,
            allowed_unsafe_sysctls: Vec::new(),
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            shared_caches: true,
            version: "v1.36.0+skiff".into(),
        }
    }

    /// What is kept from pods, all told.
    pub fn reserved(&self) -> BTreeMap<String, Quantity> {
        let mut out = self.system_reserved.clone();
        for (name, q) in &self.kube_reserved {
            let sum = quantity::milli_of(Some(&self.system_reserved), name)
                .saturating_add(quantity::milli_of(Some(&self.kube_reserved), name));
            let both = self.system_reserved.contains_key(name);
            let q = if both {
                Quantity(format!("{sum}m"))
            } else {
                q.clone()
            };
            out.insert(name.clone(), q);
        }
        out
    }

    /// `seccomp`: localhost profiles of pods are files below.
    pub fn seccomp_dir(&self) -> PathBuf {
        self.root_dir.join("seccomp")
    }

    /// `pods/<uid>`
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// `pods/<uid>/volumes/<plugin>/<name>`, with upstream's escaped plugin name.
    pub fn volume_dir(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pod_dir(uid)
            .join("volumes")
            .join(plugin.replace('/', "~"))
            .join(name)
    }

    /// `pods/<uid>/containers/<name>`
    pub fn container_dir(&self, uid: &str, container: &str) -> PathBuf {
        self.pod_dir(uid).join("containers").join(container)
    }

    /// `<ns>_<pod>_<uid>` in the logs' directory.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs_dir.join(format!("{namespace}_{name}_{uid}"))
    }

    /// Addresses of the node: the first of each family.
    pub fn host_ips(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for v4 in [
            self.node_ips.first().is_none_or(IpAddr::is_ipv4),
            self.node_ips.first().is_some_and(IpAddr::is_ipv6),
        ] {
            if let Some(ip) = self.node_ips.iter().find(|ip| ip.is_ipv4() == v4) {
                out.push(ip.to_string());
            }
        }
        out
    }
}
