//! The status of a deployment: counts, and the conditions Available, Progressing and ReplicaFailure that
//! `kubectl rollout status` and `kubectl wait` read (deployment/{progress,sync}.go). Pure.

use super::{available, rolling, wanted};
use crate::action::{Action, DEPLOYMENTS};
use crate::model::{seconds, set_condition};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};
use std::time::Duration;

struct Counts {
    total: i32,
    updated: i32,
    ready: i32,
    available: i32,
    unavailable: i32,
    terminating: i32,
}

fn counts(new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> Counts {
    let all = || old.iter().copied().chain(new);
    let sum = |f: &dyn Fn(&ReplicaSet) -> i32| all().map(f).sum::<i32>();
    let total = sum(&|s| s.status.as_ref().map_or(0, |st| st.replicas));
    let available = sum(&available);
    let wanted_total = sum(&wanted);
    Counts {
        total,
        updated: new
            .and_then(|s| s.status.as_ref())
            .map_or(0, |s| s.replicas),
        ready: sum(&|s| {
            s.status
                .as_ref()
                .and_then(|st| st.ready_replicas)
                .unwrap_or(0)
        }),
        available,
        unavailable: (wanted_total - available).max(0),
        terminating: sum(&|s| {
            s.status
                .as_ref()
                .and_then(|st| st.terminating_replicas)
                .unwrap_or(0)
        }),
    }
}

/// Every wanted pod is of the current template and available, and no old one is left.
pub fn complete(d: &Deployment, new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> bool {
    let c = counts(new, old);
    let want = rolling::replicas(d);
    c.updated == want
        && c.total == want
        && c.available == want
        && d.status
            .as_ref()
            .and_then(|s| s.observed_generation)
            .unwrap_or(0)
            >= d.metadata.generation.unwrap_or(0)
}

fn deadline(d: &Deployment) -> Option<i64> {
    // Upstream: the largest integer means no deadline.
    d.spec
        .as_ref()
        .and_then(|s| s.progress_deadline_seconds)
        .filter(|n| *n != i32::MAX)
        .map(i64::from)
}

fn progressing(d: &Deployment) -> Option<Value> {
    let conditions = d.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|c| c.type_ == "Progressing")
        .map(|c| json!(c))
}

fn updated_at(condition: &Value) -> Option<i64> {
    let text = condition["lastUpdateTime"].as_str()?;
    text.parse::<Timestamp>().ok().map(seconds)
}

/// When the progress deadline is to be looked at again: None when there is nothing to wait for.
pub fn progress_due(d: &Deployment, now: Timestamp) -> Option<Duration> {
    let deadline = deadline(d)?;
    let condition = progressing(d)?;
    if condition["reason"] == "NewReplicaSetAvailable"
        || condition["reason"] == "ProgressDeadlineExceeded"
    {
        return None;
    }
    let left = updated_at(&condition)? + deadline - seconds(now) + 1;
    Some(Duration::from_secs(u64::try_from(left.max(1)).unwrap_or(1)))
}

/// The status patch, if the status is to change.
pub fn patch(
    d: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    now: Timestamp,
) -> Option<Action> {
    let c = counts(new, old);
    let before = json!(d.status.clone().unwrap_or_default());
    let mut conditions: Vec<Value> = before["conditions"].as_array().cloned().unwrap_or_default();
    let want = rolling::replicas(d);
    let (_, max_unavailable) = rolling::bounds(d);
    let mut set = |name: &str, yes: bool, reason: &str, message: &str| {
        set_condition(
            &mut conditions,
            name,
            if yes { "True" } else { "False" },
            reason,
            message,
            now,
            true,
        )
    };
    if c.available >= want - max_unavailable {
        set(
            "Available",
            true,
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        );
    } else {
        set(
            "Available",
            false,
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        );
    }
    if let (Some(deadline), false) = (
        deadline(d),
        d.spec.as_ref().and_then(|s| s.paused).unwrap_or(false),
    ) {
        let condition = progressing(d);
        let number = |k: &str| before[k].as_i64().unwrap_or(0);
        let name = new.and_then(|s| s.metadata.name.clone());
        let subject = name.as_ref().map_or_else(
            || {
                format!(
                    "Deployment {:?}",
                    d.metadata.name.as_deref().unwrap_or_default()
                )
            },
            |n| format!("ReplicaSet {n:?}"),
        );
        let observed = before["observedGeneration"].as_i64().unwrap_or(0)
            >= d.metadata.generation.unwrap_or(0);
        let done = c.updated == want
            && c.total == want
            && c.available == want
            && new.is_some()
            && observed;
        let old_total = |total: i64, updated: i64| total - updated;
        let moved = i64::from(c.updated) > number("updatedReplicas")
            || old_total(c.total.into(), c.updated.into())
                < old_total(number("replicas"), number("updatedReplicas"))
            || i64::from(c.ready) > number("readyReplicas")
            || i64::from(c.available) > number("availableReplicas");
        let settled = condition
            .as_ref()
            .is_some_and(|k| k["reason"] == "NewReplicaSetAvailable");
        let stale = settled
            && !done
            && new.is_some_and(|s| {
                // A rollout of another template has begun.
                s.metadata.name.as_deref().is_some_and(|n| {
                    condition.as_ref().is_some_and(|k| {
                        !k["message"]
                            .as_str()
                            .unwrap_or("")
                            .contains(&format!("{n:?}"))
                    })
                })
            });
        if done {
            set(
                "Progressing",
                true,
                "NewReplicaSetAvailable",
                &format!("{subject} has successfully progressed."),
            );
        } else if condition.is_none() || stale || (new.is_none() && settled) {
            let (reason, verb) = if new.is_none() {
                ("NewReplicaSetCreated", "created")
            } else {
                ("ReplicaSetUpdated", "is progressing")
            };
            let message = if new.is_none() {
                "Created new replica set".to_string()
            } else {
                format!("{subject} {verb}.")
            };
            set("Progressing", true, reason, &message);
        } else if moved && !settled {
            conditions.retain(|k| k["type"] != "Progressing");
            let mut fresh = json!({"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
                "message": format!("{subject} is progressing."),
                "lastUpdateTime": crate::model::rfc3339(now), "lastTransitionTime": crate::model::rfc3339(now)});
            if let Some(k) = condition.as_ref().filter(|k| k["status"] == "True") {
                fresh["lastTransitionTime"] = k["lastTransitionTime"].clone();
            }
            conditions.push(fresh);
        } else if let Some(k) = condition
            && !settled
            && k["status"] == "True"
            && updated_at(&k).is_some_and(|t| seconds(now) > t + deadline)
        {
            set_condition(
                &mut conditions,
                "Progressing",
                "False",
                "ProgressDeadlineExceeded",
                &format!("{subject} has timed out progressing."),
                now,
                true,
            );
        }
    }
    let failure = old
        .iter()
        .copied()
        .chain(new)
        .flat_map(|s| {
            s.status
                .iter()
                .flat_map(|st| st.conditions.iter().flatten())
        })
        .find(|k| k.type_ == "ReplicaFailure" && k.status == "True");
    match failure {
        Some(k) => {
            set_condition(
                &mut conditions,
                "ReplicaFailure",
                "True",
                k.reason.as_deref().unwrap_or("FailedCreate"),
                k.message.as_deref().unwrap_or(""),
                now,
                true,
            );
        }
        None => conditions.retain(|k| k["type"] != "ReplicaFailure"),
    }
    let fresh = json!({
        "observedGeneration": d.metadata.generation.unwrap_or(0),
        "replicas": c.total, "updatedReplicas": c.updated, "readyReplicas": c.ready,
        "availableReplicas": c.available, "unavailableReplicas": c.unavailable,
        "terminatingReplicas": c.terminating,
        "conditions": conditions,
    });
    let number = |v: &Value, k: &str| v[k].as_i64().unwrap_or(0);
    let same = fresh.as_object().into_iter().flatten().all(|(k, v)| {
        if k == "conditions" {
            before[k].as_array().cloned().unwrap_or_default()
                == v.as_array().cloned().unwrap_or_default()
        } else {
            number(&before, k) == v.as_i64().unwrap_or(0)
        }
    });
    (!same).then(|| Action::Patch {
        kind: DEPLOYMENTS,
        namespace: d.metadata.namespace.clone().unwrap_or_default(),
        name: d.metadata.name.clone().unwrap_or_default(),
        subresource: "status",
        patch: json!({"metadata": {"uid": d.metadata.uid}, "status": fresh}),
    })
}
