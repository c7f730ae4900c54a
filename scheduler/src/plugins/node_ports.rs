//! NodePorts: host ports must be free.

use crate::framework::{Cycle, Refusal, refuse};
use crate::snapshot::{NodeInfo, PodInfo};

/// Refuses a node where one of the pod's host ports is taken.
pub fn filter(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    if !pod.host_ports.is_empty() && node.port_conflict(pod) {
        refuse("node(s) didn't have free ports for the requested pod ports")
    } else {
        Vec::new()
    }
}
