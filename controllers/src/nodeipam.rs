//! Node IPAM: each node gets a /24 of the cluster's pod addresses (pkg/controller/nodeipam, range allocator).

use crate::action::{Action, NODES};
use crate::shell::{Controller, Shell};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use skiff_client::ObjectKey;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// `10.42.0.0/16` as a number and a prefix length.
pub fn parse(cidr: &str) -> Option<(u32, u32)> {
    let (address, bits) = cidr.split_once('/')?;
    let bits: u32 = bits.parse().ok().filter(|b| *b <= 32)?;
    let address: Ipv4Addr = address.parse().ok()?;
    let mask = if bits == 0 {
        0
    } else {
        u32::MAX << (32 - bits)
    };
    Some((u32::from(address) & mask, bits))
}

/// The first free /24 (or the whole range, if it is smaller).
pub fn next_free(cluster: &str, taken: &BTreeSet<String>) -> Option<String> {
    let (base, bits) = parse(cluster)?;
    let size = bits.max(24);
    let count = 1u32.checked_shl(size - bits)?;
    (0..count)
        .map(|i| format!("{}/{size}", Ipv4Addr::from(base + (i << (32 - size)))))
        .find(|c| !taken.contains(c))
}

/// What to do for a node.
pub fn reconcile(node: &Node, cluster: &str, taken: &BTreeSet<String>) -> Vec<Action> {
    let have = node
        .spec
        .as_ref()
        .and_then(|s| s.pod_cidr.as_deref())
        .is_some_and(|c| !c.is_empty());
    if have || node.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    match next_free(cluster, taken) {
        Some(cidr) => vec![Action::Patch {
            kind: NODES,
            namespace: String::new(),
            name: node.metadata.name.clone().unwrap_or_default(),
            subresource: "",
            patch: json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}),
        }],
        None => vec![Action::Event {
            warning: true,
            reason: "CIDRNotAvailable",
            message: format!("No /24 is left in {cluster} for the pods of this node"),
        }],
    }
}

/// Starts the controller. One worker: an address range given twice would be a disaster.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "cidrAllocator", false);
    let nodes = shell.informers.cache::<Node>();
    shell.watch(&nodes, &controller.queue, |n, old| {
        if old.is_none() {
            vec![ObjectKey::of(n)]
        } else {
            Vec::new()
        }
    });
    let ready = {
        let nodes = nodes.clone();
        async move { nodes.synced().await }
    };
    let given: std::sync::Arc<tokio::sync::Mutex<BTreeSet<String>>> = std::sync::Arc::default();
    let (this, me) = (shell.clone(), controller.clone());
    shell.work("nodeipam", controller.queue.clone(), ready, move |key| {
        let (shell, me, nodes, given) = (this.clone(), me.clone(), nodes.clone(), given.clone());
        async move {
            let mut given = given.lock().await;
            let Some(node) = nodes.get("", &key.name) else {
                return Ok(());
            };
            let taken: BTreeSet<String> = nodes
                .list()
                .iter()
                .filter_map(|n| n.spec.as_ref()?.pod_cidr.clone())
                .chain(given.iter().cloned())
                .collect();
            let actions = reconcile(&node, &shell.config.cluster_cidr, &taken);
            for a in &actions {
                if let Action::Patch { patch, .. } = a
                    && let Some(c) = patch["spec"]["podCIDR"].as_str()
                {
                    given.insert(c.to_string());
                }
            }
            shell.run_actions(&me, &key, &*node, actions).await?;
            given.retain(|c| taken.contains(c) || nodes.list().len() < 4096);
            Ok(())
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_once_and_run_out() {
        let mut taken = BTreeSet::new();
        assert_eq!(
            next_free("10.42.0.0/16", &taken).as_deref(),
            Some("10.42.0.0/24")
        );
        taken.insert("10.42.0.0/24".to_string());
        assert_eq!(
            next_free("10.42.0.0/16", &taken).as_deref(),
            Some("10.42.1.0/24")
        );
        assert_eq!(next_free("10.42.0.0/24", &taken), None);
        assert_eq!(
            next_free("10.9.9.0/28", &taken).as_deref(),
            Some("10.9.9.0/28")
        );
        assert_eq!(next_free("nonsense", &taken), None);
    }
}
