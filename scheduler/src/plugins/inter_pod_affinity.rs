//! InterPodAffinity: pods that want, or refuse, to share a topology domain (a node, a zone) with others.

use crate::framework::{Cycle, Refusal, refuse};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use k8s_openapi::api::core::v1::PodAffinityTerm;
use skiff_client::labels;
use std::collections::{BTreeMap, HashMap};

/// A topology domain: key and value of a node label.
type Domain = (String, String);

/// What was worked out once for the pod.
#[derive(Debug, Default)]
pub struct Prepared {
    /// For each required affinity term, the domains that hold a matching pod.
    wanted: Vec<(PodAffinityTerm, HashMap<Domain, i64>)>,
    /// No pod anywhere matches the required terms, but the pod matches them itself: it may be the first.
    first: bool,
    /// Domains refused by this pod's own anti-affinity.
    refused: HashMap<Domain, i64>,
    /// Domains refused by the anti-affinity of pods that are there.
    refused_by_others: HashMap<Domain, i64>,
    /// Weights of preferred terms by domain (anti-affinity negative), both ways.
    preferred: HashMap<Domain, i64>,
}

/// Does a term of `owner` select `other`? Namespaces default to the owner's own. A namespaceSelector that is empty
/// selects all; one that selects by labels is not resolved here (namespaces are not watched) and selects none.
fn selects(term: &PodAffinityTerm, owner: &PodInfo, other: &PodInfo) -> bool {
    let named = term.namespaces.as_deref().unwrap_or(&[]);
    let everywhere = term.namespace_selector.as_ref().is_some_and(|s| {
        s.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
            && s.match_expressions.as_ref().is_none_or(Vec::is_empty)
    });
    let here = if everywhere {
        true
    } else if named.is_empty() && term.namespace_selector.is_none() {
        owner.key.namespace == other.key.namespace
    } else {
        named.contains(&other.key.namespace)
    };
    here && labels::matches(
        term.label_selector.as_ref(),
        other.pod.metadata.labels.as_ref(),
    )
}

fn required(pod: &PodInfo, anti: bool) -> Vec<PodAffinityTerm> {
    let affinity = pod.pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let terms = if anti {
        affinity
            .and_then(|a| a.pod_anti_affinity.as_ref())
            .and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .clone()
            })
    } else {
        affinity
            .and_then(|a| a.pod_affinity.as_ref())
            .and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .clone()
            })
    };
    terms.unwrap_or_default()
}

/// Preferred terms with their weights; those of anti-affinity are negative.
fn preferred(pod: &PodInfo) -> Vec<(i64, PodAffinityTerm)> {
    let Some(affinity) = pod.pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else {
        return Vec::new();
    };
    let with = affinity
        .pod_affinity
        .iter()
        .flat_map(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
        })
        .map(|t| (i64::from(t.weight), t.pod_affinity_term.clone()));
    let against = affinity
        .pod_anti_affinity
        .iter()
        .flat_map(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
        })
        .map(|t| (-i64::from(t.weight), t.pod_affinity_term.clone()));
    with.chain(against).collect()
}

fn has_affinity(pod: &PodInfo) -> bool {
    pod.pod
        .spec
        .as_ref()
        .and_then(|s| s.affinity.as_ref())
        .is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some())
}

fn domain(node: &NodeInfo, key: &str) -> Option<Domain> {
    node.labels().get(key).map(|v| (key.to_string(), v.clone()))
}

/// Counts matching pods in every domain. Costs nothing where neither this pod nor any other has affinity terms.
pub fn prepare(pod: &PodInfo, snapshot: &Snapshot) -> Prepared {
    let mut p = Prepared::default();
    let own = has_affinity(pod);
    let with = required(pod, false);
    let against = required(pod, true);
    let liked = preferred(pod);
    p.wanted = with.into_iter().map(|t| (t, HashMap::new())).collect();
    for node in snapshot.nodes() {
        for other in &node.pods {
            if own {
                for (term, found) in &mut p.wanted {
                    if selects(term, pod, other)
                        && let Some(d) = domain(node, &term.topology_key)
                    {
                        *found.entry(d).or_default() += 1;
                    }
                }
                for term in &against {
                    if selects(term, pod, other)
                        && let Some(d) = domain(node, &term.topology_key)
                    {
                        *p.refused.entry(d).or_default() += 1;
                    }
                }
                for (weight, term) in &liked {
                    if selects(term, pod, other)
                        && let Some(d) = domain(node, &term.topology_key)
                    {
                        *p.preferred.entry(d).or_default() += weight;
                    }
                }
            }
            if has_affinity(other) {
                for term in required(other, true) {
                    if selects(&term, other, pod)
                        && let Some(d) = domain(node, &term.topology_key)
                    {
                        *p.refused_by_others.entry(d).or_default() += 1;
                    }
                }
                for (weight, term) in preferred(other) {
                    if selects(&term, other, pod)
                        && let Some(d) = domain(node, &term.topology_key)
                    {
                        *p.preferred.entry(d).or_default() += weight;
                    }
                }
            }
        }
    }
    p.first = p
        .wanted
        .iter()
        .all(|(term, found)| found.is_empty() && selects(term, pod, pod));
    p
}

/// Refuses nodes in the wrong domains.
pub fn filter(cycle: &Cycle, _: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    let p = &cycle.inter_pod;
    let near = |term: &PodAffinityTerm, found: &HashMap<Domain, i64>| {
        domain(node, &term.topology_key).is_some_and(|d| p.first || found.contains_key(&d))
    };
    if !p.wanted.iter().all(|(t, found)| near(t, found)) {
        return refuse("node(s) didn't match pod affinity rules");
    }
    let hit = |domains: &HashMap<Domain, i64>| {
        domains.keys().any(|(k, v)| node.labels().get(k) == Some(v))
    };
    if hit(&p.refused) {
        return refuse("node(s) didn't match pod anti-affinity rules");
    }
    if hit(&p.refused_by_others) {
        return refuse("node(s) didn't satisfy existing pods anti-affinity rules");
    }
    Vec::new()
}

/// The weights of the preferred terms that hold here.
pub fn score(cycle: &Cycle, _: &PodInfo, node: &NodeInfo) -> i64 {
    cycle
        .inter_pod
        .preferred
        .iter()
        .filter(|((k, v), _)| node.labels().get(k) == Some(v))
        .map(|(_, w)| w)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{node, pod, snapshot};
    use serde_json::json;

    fn term(kind: &str) -> serde_json::Value {
        json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}})
    }

    #[test]
    fn affinity_follows_and_anti_affinity_flees_both_ways() {
        let mut s = snapshot(&[node("a", json!({})), node("b", json!({}))]);
        s.set_pod(
            pod("web", json!({"metadata": {"labels": {"app": "web"}}})),
            "a",
        );
        let follower = pod("f", term("podAffinity"));
        let c = Cycle::new(&follower, &s);
        assert!(filter(&c, &follower, s.node("a").expect("a")).is_empty());
        assert!(!filter(&c, &follower, s.node("b").expect("b")).is_empty());
        let hermit = pod("h", term("podAntiAffinity"));
        let c = Cycle::new(&hermit, &s);
        assert!(!filter(&c, &hermit, s.node("a").expect("a")).is_empty());
        assert!(filter(&c, &hermit, s.node("b").expect("b")).is_empty());
        s.set_pod(hermit, "b");
        let web = pod("w2", json!({"metadata": {"labels": {"app": "web"}}}));
        let c = Cycle::new(&web, &s);
        assert!(
            !filter(&c, &web, s.node("b").expect("b")).is_empty(),
            "the hermit was there first"
        );
    }

    #[test]
    fn the_first_of_a_group_that_wants_itself_may_go_anywhere() {
        let s = snapshot(&[node("a", json!({}))]);
        let mut v = term("podAffinity");
        v["metadata"] = json!({"labels": {"app": "web"}});
        let p = pod("first", v);
        assert!(filter(&Cycle::new(&p, &s), &p, &s.nodes()[0]).is_empty());
        let stranger = pod("stranger", term("podAffinity"));
        assert!(!filter(&Cycle::new(&stranger, &s), &stranger, &s.nodes()[0]).is_empty());
    }
}
