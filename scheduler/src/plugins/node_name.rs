//! NodeName: a pod that names its node goes nowhere else.

use crate::framework::{Cycle, Refusal, refuse};
use crate::snapshot::{NodeInfo, PodInfo};

/// Refuses every node but the one in spec.nodeName.
pub fn filter(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    match pod.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) {
        Some(name) if !name.is_empty() && name != node.name => {
            refuse("node(s) didn't match the requested node name")
        }
        _ => Vec::new(),
    }
}
