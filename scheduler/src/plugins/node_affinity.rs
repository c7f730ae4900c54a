//! NodeAffinity: nodeSelector and node affinity, required and preferred.

use crate::framework::{Cycle, Refusal, refuse};
use crate::snapshot::{NodeInfo, PodInfo};
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

fn requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or(&[]);
    let integer = |v: Option<&str>| v.and_then(|v| v.parse::<i64>().ok());
    match r.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|w| w != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => integer(value)
            .zip(integer(values.first().map(String::as_str)))
            .is_some_and(|(a, b)| a > b),
        "Lt" => integer(value)
            .zip(integer(values.first().map(String::as_str)))
            .is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

/// Does a term match? All its requirements must; a term without any matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or(&[]);
    let fields = term.match_fields.as_deref().unwrap_or(&[]);
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|r| requirement(r, node.labels().get(&r.key).map(String::as_str)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && requirement(r, Some(&node.name)))
}

/// Does a node selector match? One of its terms must.
pub fn selector_matches(selector: &NodeSelector, node: &NodeInfo) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|t| term_matches(t, node))
}

/// nodeSelector and the required node affinity of a pod.
pub fn required_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = pod.pod.spec.as_ref() else {
        return true;
    };
    let by_label = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(k, v)| node.labels().get(k).is_some_and(|have| have == v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    by_label && required.is_none_or(|s| selector_matches(s, node))
}

/// Refuses nodes that the pod's selector or required affinity leaves out.
pub fn filter(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    if required_matches(pod, node) {
        Vec::new()
    } else {
        refuse("node(s) didn't match Pod's node affinity/selector")
    }
}

/// The weights of the preferred terms that match.
pub fn score(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> i64 {
    pod.pod
        .spec
        .iter()
        .filter_map(|s| s.affinity.as_ref()?.node_affinity.as_ref())
        .flat_map(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
        })
        .filter(|p| term_matches(&p.preference, node))
        .map(|p| i64::from(p.weight))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{node, pod, snapshot};
    use serde_json::json;

    #[test]
    fn operators_of_a_requirement() {
        let s = snapshot(&[node(
            "a",
            json!({"metadata": {"labels": {"zone": "z1", "gen": "7"}}}),
        )]);
        for (expression, expected) in [
            (
                json!({"key": "zone", "operator": "In", "values": ["z1", "z2"]}),
                true,
            ),
            (
                json!({"key": "zone", "operator": "NotIn", "values": ["z1"]}),
                false,
            ),
            (
                json!({"key": "none", "operator": "NotIn", "values": ["z1"]}),
                true,
            ),
            (json!({"key": "zone", "operator": "Exists"}), true),
            (json!({"key": "zone", "operator": "DoesNotExist"}), false),
            (
                json!({"key": "gen", "operator": "Gt", "values": ["6"]}),
                true,
            ),
            (
                json!({"key": "gen", "operator": "Lt", "values": ["6"]}),
                false,
            ),
            (
                json!({"key": "zone", "operator": "Gt", "values": ["6"]}),
                false,
            ),
        ] {
            let p = pod(
                "p",
                json!({"spec": {"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution":
                    {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}}}),
            );
            assert_eq!(
                required_matches(&p, &s.nodes()[0]),
                expected,
                "{expression}"
            );
        }
    }

    #[test]
    fn node_selector_and_affinity_must_both_match_and_an_empty_term_matches_nothing() {
        let s = snapshot(&[node("a", json!({"metadata": {"labels": {"x": "1"}}}))]);
        let p = pod("p", json!({"spec": {"nodeSelector": {"x": "1"}}}));
        assert!(required_matches(&p, &s.nodes()[0]));
        let p = pod(
            "p",
            json!({"spec": {"nodeSelector": {"x": "1"}, "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}}}}),
        );
        assert!(!required_matches(&p, &s.nodes()[0]));
    }
}
