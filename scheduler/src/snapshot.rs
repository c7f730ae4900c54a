//! The scheduler's view of nodes and the pods on them, kept current in place: each change costs what it touches. Owns
//! counting; decides nothing and does no I/O.

use crate::resources::{Resources, pod_requests};
use k8s_openapi::api::core::v1::{Node, Pod};
use skiff_client::ObjectKey;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A port taken on a node: address, protocol, number.
pub type HostPort = (String, String, i32);

/// A pod with what scheduling needs of it worked out once.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// The object.
    pub pod: Arc<Pod>,
    /// Namespace and name.
    pub key: ObjectKey,
    /// metadata.uid
    pub uid: String,
    /// What it needs.
    pub requests: Resources,
    /// What it counts as in scores.
    pub nonzero: Resources,
    /// Host ports it takes.
    pub host_ports: Vec<HostPort>,
}

impl PodInfo {
    /// Works a pod out.
    pub fn new(pod: Arc<Pod>) -> Self {
        let spec = pod.spec.as_ref();
        let host_ports = spec
            .into_iter()
            .flat_map(|s| {
                s.containers
                    .iter()
                    .chain(s.init_containers.iter().flatten())
            })
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|p| {
                let port = p.host_port.filter(|n| *n > 0)?;
                let ip = p
                    .host_ip
                    .clone()
                    .filter(|i| !i.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".into());
                Some((ip, p.protocol.clone().unwrap_or_else(|| "TCP".into()), port))
            })
            .collect();
        Self {
            key: ObjectKey::of(&*pod),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            requests: pod_requests(&pod, false),
            nonzero: pod_requests(&pod, true),
            host_ports,
            pod,
        }
    }

    /// Labels, empty when there are none.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        self.pod.metadata.labels.as_ref().unwrap_or(&EMPTY)
    }
}

/// A node, what it offers and what is taken.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The object.
    pub node: Arc<Node>,
    /// metadata.name
    pub name: String,
    /// status.allocatable
    pub allocatable: Resources,
    /// How many pods fit.
    pub max_pods: i64,
    /// The sum of what its pods need.
    pub requested: Resources,
    /// The sum of what its pods count as in scores.
    pub nonzero: Resources,
    /// Its pods.
    pub pods: Vec<Arc<PodInfo>>,
    /// Images on it with their sizes in bytes.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    fn new(node: Arc<Node>) -> Self {
        let mut info = Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            node: node.clone(),
            allocatable: Resources::default(),
            max_pods: 0,
            requested: Resources::default(),
            nonzero: Resources::default(),
            pods: Vec::new(),
            images: HashMap::new(),
        };
        info.set(node);
        info
    }

    fn set(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        self.allocatable = allocatable.map(Resources::from_list).unwrap_or_default();
        self.max_pods = allocatable
            .and_then(|a| a.get("pods"))
            .and_then(|q| q.0.parse::<skiff_api::quantity::Quantity>().ok())
            .map_or(0, |q| q.value());
        self.images = status
            .and_then(|s| s.images.as_ref())
            .into_iter()
            .flatten()
            .flat_map(|i| {
                let size = i.size_bytes.unwrap_or(0);
                i.names.iter().flatten().map(move |n| (n.clone(), size))
            })
            .collect();
        self.node = node;
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.nonzero.add(&pod.nonzero);
        self.pods.push(pod);
    }

    fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|p| p.uid == uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.sub(&pod.requests);
        self.nonzero.sub(&pod.nonzero);
        Some(pod)
    }

    /// Labels, empty when there are none.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        self.node.metadata.labels.as_ref().unwrap_or(&EMPTY)
    }

    /// Is one of the pod's host ports taken? The any-address conflicts with every address.
    pub fn port_conflict(&self, pod: &PodInfo) -> bool {
        let clash = |a: &HostPort, b: &HostPort| {
            a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || a.0 == "0.0.0.0" || b.0 == "0.0.0.0")
        };
        pod.host_ports.iter().any(|want| {
            self.pods
                .iter()
                .flat_map(|p| &p.host_ports)
                .any(|have| clash(want, have))
        })
    }
}

/// All nodes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    /// Pods whose node is not known (yet), by node name: counted as soon as it is.
    homeless: HashMap<String, Vec<Arc<PodInfo>>>,
    /// Where each pod is counted, by uid.
    places: HashMap<String, String>,
}

impl Snapshot {
    /// The nodes, in no order that means anything.
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|i| &self.nodes[*i])
    }

    /// Adds or replaces a node; its pods stay counted.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        if let Some(i) = self.index.get(&name) {
            self.nodes[*i].set(node);
            return;
        }
        let mut info = NodeInfo::new(node);
        for pod in self.homeless.remove(&name).unwrap_or_default() {
            info.add(pod);
        }
        self.index.insert(name, self.nodes.len());
        self.nodes.push(info);
    }

    /// Removes a node; pods still bound to it are remembered in case it comes back.
    pub fn remove_node(&mut self, name: &str) {
        let Some(i) = self.index.remove(name) else {
            return;
        };
        let info = self.nodes.swap_remove(i);
        if let Some(moved) = self.nodes.get(i) {
            self.index.insert(moved.name.clone(), i);
        }
        if !info.pods.is_empty() {
            self.homeless.insert(info.name, info.pods);
        }
    }

    /// Counts a pod on a node, in place of where it was counted before.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        self.places.insert(pod.uid.clone(), node.to_string());
        match self.index.get(node) {
            Some(i) => self.nodes[*i].add(pod),
            None => self.homeless.entry(node.to_string()).or_default().push(pod),
        }
    }

    /// Stops counting a pod. True when it was counted.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(node) = self.places.remove(uid) else {
            return false;
        };
        match self.index.get(&node) {
            Some(i) => {
                self.nodes[*i].remove(uid);
            }
            None => {
                if let Some(pods) = self.homeless.get_mut(&node) {
                    pods.retain(|p| p.uid != uid);
                    if pods.is_empty() {
                        self.homeless.remove(&node);
                    }
                }
            }
        }
        true
    }

    /// Where a pod is counted.
    pub fn place_of(&self, uid: &str) -> Option<&str> {
        self.places.get(uid).map(String::as_str)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use serde_json::{Value, json};

    /// A node with 4 CPUs, 8 GiB and room for 110 pods, merged with `extra`.
    pub fn node(name: &str, extra: Value) -> Arc<Node> {
        let mut v = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
        merge(&mut v, extra);
        Arc::new(serde_json::from_value(v).expect("a node"))
    }

    /// A pod with one container, merged with `extra`.
    pub fn pod(name: &str, extra: Value) -> Arc<PodInfo> {
        let mut v = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"containers": [{"name": "c"}]}});
        merge(&mut v, extra);
        Arc::new(PodInfo::new(Arc::new(
            serde_json::from_value(v).expect("a pod"),
        )))
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(a), Value::Object(b)) => {
                for (k, v) in b {
                    merge(a.entry(k).or_insert(Value::Null), v);
                }
            }
            (a, b) => *a = b,
        }
    }

    /// A snapshot of these nodes.
    pub fn snapshot(nodes: &[Arc<Node>]) -> Snapshot {
        let mut s = Snapshot::default();
        for n in nodes {
            s.set_node(n.clone());
        }
        s
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_added_and_taken_away_leaves_nothing() {
        let mut s = snapshot(&[node("a", json!({}))]);
        let p = pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "x.io/y": "2"}}}]}}),
        );
        s.set_pod(p.clone(), "a");
        assert_eq!(s.nodes()[0].requested.milli_cpu, 1000);
        s.set_pod(p, "a");
        assert_eq!(s.nodes()[0].requested.milli_cpu, 1000, "counted once");
        assert!(s.remove_pod("p"));
        assert_eq!(s.nodes()[0].requested.milli_cpu, 0);
        assert!(!s.remove_pod("p"));
    }

    #[test]
    fn pods_of_a_node_that_comes_later_are_counted_then() {
        let mut s = Snapshot::default();
        s.set_pod(pod("p", json!({})), "late");
        s.set_node(node("late", json!({})));
        assert_eq!(s.nodes()[0].pods.len(), 1);
        s.remove_node("late");
        s.set_node(node("late", json!({})));
        assert_eq!(s.nodes()[0].pods.len(), 1);
    }

    #[test]
    fn host_ports_clash_by_protocol_and_address() {
        let ports = |ip: &str, proto: &str| {
            pod(
                "x",
                json!({"spec": {"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": proto}]}]}}),
            )
        };
        let mut s = snapshot(&[node("a", json!({}))]);
        s.set_pod(ports("127.0.0.1", "TCP"), "a");
        assert!(s.nodes()[0].port_conflict(&ports("", "TCP")));
        assert!(s.nodes()[0].port_conflict(&ports("127.0.0.1", "TCP")));
        assert!(!s.nodes()[0].port_conflict(&ports("127.0.0.2", "TCP")));
        assert!(!s.nodes()[0].port_conflict(&ports("", "UDP")));
    }
}
