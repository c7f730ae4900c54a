//! PodTopologySpread: like pods are spread evenly over domains (nodes, zones).

use super::{node_affinity, taint_toleration};
use crate::framework::{Cycle, Refusal, refuse};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use skiff_client::labels;
use std::collections::BTreeMap;

/// One constraint with how many matching pods each domain holds.
#[derive(Debug)]
struct Counted {
    constraint: TopologySpreadConstraint,
    counts: BTreeMap<String, i64>,
    matches_self: bool,
}

impl Counted {
    /// The smallest count; zero while there are fewer domains than minDomains.
    fn least(&self) -> i64 {
        let least = self.counts.values().copied().min().unwrap_or(0);
        let domains = i64::try_from(self.counts.len()).unwrap_or(i64::MAX);
        if self
            .constraint
            .min_domains
            .is_some_and(|m| domains < i64::from(m))
        {
            0
        } else {
            least
        }
    }
}

/// What was worked out once for the pod.
#[derive(Debug, Default)]
pub struct Prepared {
    hard: Vec<Counted>,
    soft: Vec<Counted>,
}

/// Does a node count for a constraint? By default it must match the pod's node selector and affinity; taints count
/// only under `nodeTaintsPolicy: Honor`.
fn counts(constraint: &TopologySpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    let affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    (!affinity || node_affinity::required_matches(pod, node))
        && (!taints
            || node
                .node
                .spec
                .iter()
                .flat_map(|s| s.taints.iter().flatten())
                .all(|t| t.effect == "PreferNoSchedule" || taint_toleration::tolerated(pod, t)))
}

/// Counts matching pods for each constraint. Costs nothing for a pod without constraints.
pub fn prepare(pod: &PodInfo, snapshot: &Snapshot) -> Prepared {
    let mut p = Prepared::default();
    let constraints = pod
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.topology_spread_constraints.as_deref())
        .unwrap_or(&[]);
    for constraint in constraints {
        let mut selector = constraint.label_selector.clone();
        if let (Some(s), Some(keys)) = (&mut selector, &constraint.match_label_keys) {
            // matchLabelKeys: the pod's own values of these keys are part of the selector.
            for key in keys {
                if let Some(v) = pod.labels().get(key) {
                    s.match_labels
                        .get_or_insert_default()
                        .insert(key.clone(), v.clone());
                }
            }
        }
        let mut by_domain = BTreeMap::new();
        for node in snapshot
            .nodes()
            .iter()
            .filter(|n| counts(constraint, pod, n))
        {
            let Some(value) = node.labels().get(&constraint.topology_key) else {
                continue;
            };
            let here = node
                .pods
                .iter()
                .filter(|o| {
                    o.key.namespace == pod.key.namespace
                        && o.pod.metadata.deletion_timestamp.is_none()
                        && labels::matches(selector.as_ref(), o.pod.metadata.labels.as_ref())
                })
                .count();
            *by_domain.entry(value.clone()).or_insert(0) += i64::try_from(here).unwrap_or(i64::MAX);
        }
        let counted = Counted {
            matches_self: labels::matches(selector.as_ref(), pod.pod.metadata.labels.as_ref()),
            constraint: constraint.clone(),
            counts: by_domain,
        };
        if constraint.when_unsatisfiable == "DoNotSchedule" {
            p.hard.push(counted);
        } else {
            p.soft.push(counted);
        }
    }
    p
}

/// Refuses nodes where a domain would have too many more pods than the emptiest.
pub fn filter(cycle: &Cycle, _: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    for c in &cycle.spread.hard {
        let Some(value) = node.labels().get(&c.constraint.topology_key) else {
            return refuse(
                "node(s) didn't match pod topology spread constraints (missing required label)",
            );
        };
        let here = c.counts.get(value).copied().unwrap_or(0) + i64::from(c.matches_self);
        if here - c.least() > i64::from(c.constraint.max_skew) {
            return refuse("node(s) didn't match pod topology spread constraints");
        }
    }
    Vec::new()
}

/// How many matching pods are in the node's domains, for ScheduleAnyway constraints.
pub fn score(cycle: &Cycle, _: &PodInfo, node: &NodeInfo) -> i64 {
    cycle
        .spread
        .soft
        .iter()
        .filter_map(|c| c.counts.get(node.labels().get(&c.constraint.topology_key)?))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{node, pod, snapshot};
    use serde_json::json;

    #[test]
    fn a_domain_may_not_be_more_than_max_skew_ahead() {
        let zone = |name: &str, z: &str| node(name, json!({"metadata": {"labels": {"zone": z}}}));
        let mut s = snapshot(&[
            zone("a", "1"),
            zone("b", "1"),
            zone("c", "2"),
            node("d", json!({})),
        ]);
        let web = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
             "labelSelector": {"matchLabels": {"app": "web"}}}]}});
        s.set_pod(pod("w1", web.clone()), "a");
        let p = pod("w2", web);
        let c = Cycle::new(&p, &s);
        let fits = |n: &str| filter(&c, &p, s.node(n).expect("node")).is_empty();
        assert!(!fits("a") && !fits("b") && fits("c"));
        assert!(!fits("d"), "no label, no domain");
    }
}
