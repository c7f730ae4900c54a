//! TaintToleration: NoSchedule and NoExecute taints keep pods away that do not tolerate them; PreferNoSchedule taints
//! make a node less liked.

use crate::framework::{Cycle, Refusal};
use crate::snapshot::{NodeInfo, PodInfo};
use k8s_openapi::api::core::v1::Taint;
use skiff_client::taints::covers;
use std::borrow::Cow;

/// Does the pod tolerate this taint?
pub fn tolerated(pod: &PodInfo, taint: &Taint) -> bool {
    pod.pod
        .spec
        .iter()
        .flat_map(|s| s.tolerations.iter().flatten())
        .any(|t| covers(t, taint))
}

fn taints(node: &NodeInfo) -> impl Iterator<Item = &Taint> {
    node.node
        .spec
        .iter()
        .flat_map(|s| s.taints.iter().flatten())
}

/// Refuses a node with a NoSchedule or NoExecute taint that the pod does not tolerate.
pub fn filter(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    taints(node)
        .filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute")
        .find(|t| !tolerated(pod, t))
        .map(|t| {
            vec![Refusal {
                reason: Cow::Owned(format!(
                    "node(s) had untolerated taint {{{}: {}}}",
                    t.key,
                    t.value.as_deref().unwrap_or("")
                )),
            }]
        })
        .unwrap_or_default()
}

/// How many PreferNoSchedule taints the pod does not tolerate.
pub fn score(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> i64 {
    let n = taints(node)
        .filter(|t| t.effect == "PreferNoSchedule" && !tolerated(pod, t))
        .count();
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Toleration;
    use serde_json::json;

    #[test]
    fn tolerations_cover_taints_as_upstream_has_it() {
        let taint: Taint =
            serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"}))
                .expect("t");
        for (toleration, expected) in [
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "j", "operator": "Exists"}), false),
            (
                json!({"key": "k", "value": "v", "effect": "NoExecute"}),
                false,
            ),
            (
                json!({"key": "k", "value": "v", "effect": "NoSchedule"}),
                true,
            ),
        ] {
            let t: Toleration = serde_json::from_value(toleration.clone()).expect("t");
            assert_eq!(covers(&t, &taint), expected, "{toleration}");
        }
    }
}
