//! The decision: a pure function of the snapshot, the pod, a starting point and a seed. No I/O, no clock.

use crate::framework::{Cycle, Refusal, normalize};
use crate::plugins::{FILTERS, SCORES};
use crate::snapshot::{PodInfo, Snapshot};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Why no node did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FitError {
    /// How many nodes there are.
    pub nodes: usize,
    /// Reasons, with how many nodes gave each.
    pub reasons: BTreeMap<Cow<'static, str>, usize>,
    /// Plugins that refused, for deciding which events may help.
    pub plugins: Vec<&'static str>,
}

impl std::fmt::Display for FitError {
    /// As upstream's FitError: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available", self.nodes)?;
        let mut all: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, n)| format!("{n} {reason}"))
            .collect();
        all.sort();
        if all.is_empty() {
            f.write_str(".")
        } else {
            write!(f, ": {}.", all.join(", "))
        }
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The node.
    pub node: String,
    /// How many nodes were looked at; the next pod starts after them.
    pub evaluated: usize,
}

/// Nodes that are enough to choose among: all below 100, else a share that falls with the size of the cluster, never
/// fewer than 100 (upstream's numFeasibleNodesToFind).
pub fn enough_nodes(total: usize) -> usize {
    if total <= 100 {
        return total;
    }
    let percent = 50usize.saturating_sub(total / 125).max(5);
    (total * percent / 100).max(100)
}

/// The node for a pod. `start` is where looking at nodes begins (so that all get their turn), `seed` chooses among
/// equals.
///
/// # Errors
/// A [`FitError`] when no node does.
pub fn schedule(
    snapshot: &Snapshot,
    pod: &PodInfo,
    start: usize,
    seed: u64,
) -> Result<Placement, FitError> {
    let nodes = snapshot.nodes();
    let cycle = Cycle::new(pod, snapshot);
    let enough = enough_nodes(nodes.len());
    let mut feasible = Vec::new();
    let mut failed = FitError {
        nodes: nodes.len(),
        reasons: BTreeMap::new(),
        plugins: Vec::new(),
    };
    let mut evaluated = 0;
    for i in 0..nodes.len() {
        let node = &nodes[(start + i) % nodes.len()];
        evaluated += 1;
        match first_refusal(&cycle, pod, node) {
            None => {
                feasible.push(node);
                if feasible.len() >= enough {
                    break;
                }
            }
            Some((plugin, refusals)) => {
                for r in refusals {
                    *failed.reasons.entry(r.reason).or_default() += 1;
                }
                if !failed.plugins.contains(&plugin) {
                    failed.plugins.push(plugin);
                }
            }
        }
    }
    let best = match feasible.len() {
        0 => return Err(failed),
        1 => feasible[0],
        _ => {
            let mut totals = vec![0i64; feasible.len()];
            for plugin in SCORES {
                let mut scores: Vec<i64> = feasible
                    .iter()
                    .map(|n| (plugin.score)(&cycle, pod, n))
                    .collect();
                normalize(plugin.normalize, &mut scores);
                for (t, s) in totals.iter_mut().zip(scores) {
                    *t += s * plugin.weight;
                }
            }
            let top = totals.iter().copied().max().unwrap_or(0);
            let equals: Vec<usize> = (0..totals.len()).filter(|i| totals[*i] == top).collect();
            let pick = usize::try_from(seed % equals.len() as u64).unwrap_or(0);
            feasible[equals[pick]]
        }
    };
    Ok(Placement {
        node: best.name.clone(),
        evaluated,
    })
}

fn first_refusal(
    cycle: &Cycle,
    pod: &PodInfo,
    node: &crate::snapshot::NodeInfo,
) -> Option<(&'static str, Vec<Refusal>)> {
    FILTERS.iter().find_map(|p| {
        let refusals = (p.filter)(cycle, pod, node);
        (!refusals.is_empty()).then_some((p.name, refusals))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{node, pod, snapshot};
    use serde_json::json;

    #[test]
    fn the_message_counts_each_reason() {
        let s = snapshot(&[
            node("a", json!({"spec": {"unschedulable": true}})),
            node(
                "b",
                json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}),
            ),
            node("c", json!({})),
        ]);
        let p = pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "9"}}}]}}),
        );
        let e = schedule(&s, &p, 0, 0).expect_err("nothing fits");
        assert_eq!(
            e.to_string(),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable."
        );
        assert_eq!(
            schedule(&Snapshot::default(), &p, 0, 0)
                .expect_err("none")
                .to_string(),
            "no nodes available to schedule pods"
        );
    }

    #[test]
    fn the_emptier_node_is_chosen_and_the_seed_decides_among_equals() {
        let mut s = snapshot(&[node("a", json!({})), node("b", json!({}))]);
        let p = pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]}}),
        );
        let seen: std::collections::BTreeSet<String> = (0..4)
            .map(|seed| schedule(&s, &p, 0, seed).expect("fits").node)
            .collect();
        assert_eq!(seen.len(), 2);
        s.set_pod(pod("other", json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "2Gi"}}}]}})), "a");
        for seed in 0..4 {
            assert_eq!(schedule(&s, &p, 0, seed).expect("fits").node, "b");
        }
    }

    #[test]
    fn large_clusters_look_at_a_share_of_the_nodes() {
        assert_eq!(enough_nodes(50), 50);
        assert_eq!(enough_nodes(101), 100);
        assert_eq!(enough_nodes(1000), 420);
        assert_eq!(enough_nodes(10_000), 500);
    }
}
