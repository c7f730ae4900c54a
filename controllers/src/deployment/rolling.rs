//! How many pods each ReplicaSet of a deployment may have: the arithmetic of maxSurge and maxUnavailable, of scaling
//! in the middle of a rollout, and of which old set shrinks first (deployment/{rolling,sync}.go). Pure.

use super::{available, wanted};
use crate::action::{Action, REPLICASETS};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use std::collections::BTreeMap;

/// Annotation with the deployment's replicas, by which a set tells that the deployment was scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation with the replicas and the surge.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// spec.replicas.
pub fn replicas(d: &Deployment) -> i32 {
    d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn scaled(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(s)) => {
            let percent = s.trim_end_matches('%').parse::<i64>().unwrap_or(0);
            let product = i64::from(total) * percent;
            let n = if up {
                (product + 99) / 100
            } else {
                product / 100
            };
            i32::try_from(n).unwrap_or(0)
        }
        None => scaled(Some(&IntOrString::String("25%".into())), total, up),
    }
}

fn is_recreate(d: &Deployment) -> bool {
    d.spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.type_.as_deref())
        == Some("Recreate")
}

/// (maxSurge, maxUnavailable) as numbers: surge rounds up, unavailable down; both zero means one unavailable.
pub fn bounds(d: &Deployment) -> (i32, i32) {
    if is_recreate(d) {
        return (0, 0);
    }
    let r = d
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.rolling_update.as_ref());
    let total = replicas(d);
    let surge = scaled(r.and_then(|r| r.max_surge.as_ref()), total, true);
    let unavailable = scaled(r.and_then(|r| r.max_unavailable.as_ref()), total, false);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable.min(total))
    }
}

/// Annotations of every set.
pub fn annotations(d: &Deployment) -> BTreeMap<String, String> {
    BTreeMap::from([
        (DESIRED.to_string(), replicas(d).to_string()),
        (MAX.to_string(), (replicas(d) + bounds(d).0).to_string()),
    ])
}

/// Scales a set and tells of it; nothing when it has that many already and its annotations are right.
pub fn scale_to(d: &Deployment, set: &ReplicaSet, to: i32) -> Vec<Action> {
    let from = wanted(set);
    let notes = annotations(d);
    let right = notes
        .iter()
        .all(|(k, v)| set.metadata.annotations.as_ref().and_then(|a| a.get(k)) == Some(v));
    if from == to && right {
        return Vec::new();
    }
    let name = set.metadata.name.clone().unwrap_or_default();
    let mut patch = json!({"metadata": {"uid": set.metadata.uid, "annotations": notes}});
    let mut actions = Vec::new();
    if from != to {
        patch["spec"] = json!({"replicas": to});
        let way = if to > from { "up" } else { "down" };
        actions.push(Action::Event {
            warning: false,
            reason: "ScalingReplicaSet",
            message: format!("Scaled {way} replica set {name} from {from} to {to}"),
        });
    }
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    actions.insert(
        0,
        Action::Patch {
            kind: REPLICASETS,
            namespace,
            name,
            subresource: "",
            patch,
        },
    );
    actions
}

/// Was the deployment scaled since the sets were last touched?
pub fn is_scaling(d: &Deployment, sets: &[&ReplicaSet]) -> bool {
    sets.iter().filter(|s| wanted(s) > 0).any(|s| {
        s.metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(DESIRED))
            .and_then(|v| v.parse::<i32>().ok())
            .is_some_and(|n| n != replicas(d))
    })
}

/// How many pods the new set should have, as far as the surge allows.
pub fn new_set_replicas(d: &Deployment, new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> i32 {
    let have = new.map_or(0, wanted);
    if is_recreate(d) {
        return replicas(d);
    }
    let current: i32 = have + old.iter().map(|s| wanted(s)).sum::<i32>();
    let most = replicas(d) + bounds(d).0;
    if current >= most {
        have
    } else {
        have + (most - current).min(replicas(d) - have).max(0)
    }
}

/// Scales the new set up, or down when it has too many.
pub fn new_set(d: &Deployment, new: &ReplicaSet, old: &[&ReplicaSet]) -> Vec<Action> {
    let want = replicas(d);
    if wanted(new) == want {
        return Vec::new();
    }
    let to = if wanted(new) > want {
        want
    } else {
        new_set_replicas(d, Some(new), old)
    };
    if to == wanted(new) {
        Vec::new()
    } else {
        scale_to(d, new, to)
    }
}

/// Scales old sets down as far as availability allows: first what is not available anyway, then the oldest.
pub fn old_sets(d: &Deployment, new: &ReplicaSet, old: &[&ReplicaSet]) -> Vec<Action> {
    let old_total: i32 = old.iter().map(|s| wanted(s)).sum();
    if old_total == 0 {
        return Vec::new();
    }
    let all = old_total + wanted(new);
    let least = replicas(d) - bounds(d).1;
    let new_unavailable = wanted(new) - available(new);
    let mut budget = all - least - new_unavailable;
    if budget <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = old.iter().map(|s| wanted(s)).collect();
    for (set, size) in old.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).max(0).min(budget);
        *size -= unhealthy;
        budget -= unhealthy;
    }
    let available_total: i32 = available(new) + old.iter().map(|s| available(s)).sum::<i32>();
    let mut spare = available_total - least;
    for (set, size) in old.iter().zip(&mut sizes) {
        let healthy = (*size).min(available(set)).min(spare.max(0));
        *size -= healthy;
        spare -= healthy;
    }
    old.iter()
        .zip(&sizes)
        .filter(|(s, size)| wanted(s) != **size)
        .flat_map(|(s, size)| scale_to(d, s, *size))
        .collect()
}

/// Spreads a change of spec.replicas: to the only set with pods, or, in the middle of a rollout, over all sets in
/// proportion to their sizes (upstream's `scale`).
pub fn scale(d: &Deployment, new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> Vec<Action> {
    let active: Vec<&ReplicaSet> = old
        .iter()
        .copied()
        .chain(new)
        .filter(|s| wanted(s) > 0)
        .collect();
    let total = replicas(d);
    match active.as_slice() {
        [] => {
            // Nothing has pods: the new set, else the latest old one, takes them.
            new.or_else(|| old.last().copied())
                .map_or_else(Vec::new, |s| scale_to(d, s, total))
        }
        [only] => scale_to(d, only, total),
        several => {
            let saturated = new.is_some_and(|n| wanted(n) == total && available(n) == total);
            if saturated {
                return old
                    .iter()
                    .filter(|s| wanted(s) > 0)
                    .flat_map(|s| scale_to(d, s, 0))
                    .collect();
            }
            proportionally(d, several)
        }
    }
}

fn proportionally(d: &Deployment, sets: &[&ReplicaSet]) -> Vec<Action> {
    let current: i32 = sets.iter().map(|s| wanted(s)).sum();
    let allowed = if replicas(d) > 0 {
        replicas(d) + bounds(d).0
    } else {
        0
    };
    let mut left = allowed - current;
    let grow = left > 0;
    let mut order: Vec<&ReplicaSet> = sets.to_vec();
    // Larger sets first; among equals the newer when growing and the older when shrinking.
    order.sort_by(|a, b| {
        let by_size = wanted(b).cmp(&wanted(a));
        let by_age = super::sets::age(a).cmp(&super::sets::age(b));
        by_size.then(if grow { by_age.reverse() } else { by_age })
    });
    let mut sizes: Vec<i32> = Vec::new();
    for set in &order {
        let was = set
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(MAX))
            .and_then(|v| v.parse::<i32>().ok())
            .filter(|n| *n > 0)
            .unwrap_or(current);
        let size = f64::from(wanted(set));
        #[allow(clippy::cast_possible_truncation)]
        let share = (size * f64::from(allowed) / f64::from(was)).round() as i32 - wanted(set);
        let change = if allowed == 0 {
            -wanted(set)
        } else if grow {
            share.clamp(0, left)
        } else {
            share.clamp(left, 0)
        };
        left -= change;
        sizes.push((wanted(set) + change).max(0));
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + left).max(0);
    }
    order
        .iter()
        .zip(sizes)
        .flat_map(|(s, size)| scale_to(d, s, size))
        .collect()
}
