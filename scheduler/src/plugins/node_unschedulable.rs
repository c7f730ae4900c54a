//! NodeUnschedulable: cordoned nodes take only pods that tolerate it.

use super::taint_toleration::tolerated;
use crate::framework::{Cycle, Refusal, refuse};
use crate::snapshot::{NodeInfo, PodInfo};
use k8s_openapi::api::core::v1::Taint;

/// Refuses a node with spec.unschedulable.
pub fn filter(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    let cordoned = node
        .node
        .spec
        .as_ref()
        .and_then(|s| s.unschedulable)
        .unwrap_or(false);
    if !cordoned {
        return Vec::new();
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if tolerated(pod, &taint) {
        Vec::new()
    } else {
        refuse("node(s) were unschedulable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{node, pod, snapshot};
    use serde_json::json;

    #[test]
    fn a_cordoned_node_takes_only_pods_that_tolerate_it() {
        let s = snapshot(&[node("a", json!({"spec": {"unschedulable": true}}))]);
        let plain = pod("p", json!({}));
        let tolerant = pod(
            "q",
            json!({"spec": {"tolerations": [
            {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}}),
        );
        assert_eq!(
            filter(&Cycle::new(&plain, &s), &plain, &s.nodes()[0]).len(),
            1
        );
        assert!(filter(&Cycle::new(&tolerant, &s), &tolerant, &s.nodes()[0]).is_empty());
    }
}
