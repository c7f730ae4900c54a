//! Rules about failed pods: podFailurePolicy, when a pod ended, and how long the next one waits. Pure.

use crate::model::phase;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// First pause after a failure, doubled by each that follows, in seconds (upstream: 10 s up to 10 min).
const BACKOFF: i64 = 10;
const MAX_BACKOFF: i64 = 600;

/// What a failed pod means for its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It counts towards backoffLimit.
    Count,
    /// It does not.
    Ignore,
    /// The job has failed, for this reason.
    FailJob(String),
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|s| {
        let init = s.init_container_statuses.iter().flatten();
        s.container_statuses.iter().flatten().chain(init)
    })
}

/// What the job's podFailurePolicy says of a failed pod: the first rule that matches decides.
pub fn verdict(job: &Job, pod: &Pod) -> Verdict {
    let policy = job
        .spec
        .as_ref()
        .and_then(|s| s.pod_failure_policy.as_ref());
    let rules = policy.map(|p| p.rules.as_slice()).unwrap_or_default();
    for (i, rule) in rules.iter().enumerate() {
        let Some(why) = matching(rule, pod) else {
            continue;
        };
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailJob" => Verdict::FailJob(format!(
                "{why} for pod {namespace}/{name} matching FailJob rule at index {i}"
            )),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matching(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    if let Some(exit) = &rule.on_exit_codes {
        return statuses(pod)
            .filter(|c| exit.container_name.as_ref().is_none_or(|n| *n == c.name))
            .find_map(|c| {
                let code = c.state.as_ref()?.terminated.as_ref()?.exit_code;
                let listed = exit.values.contains(&code);
                // Upstream: a container that succeeded matches no rule.
                let hit = code != 0 && (exit.operator == "In") == listed;
                hit.then(|| format!("Container {} failed with exit code {code}", c.name))
            });
    }
    let conditions = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    for c in conditions {
        let hit = rule
            .on_pod_conditions
            .iter()
            .flatten()
            .any(|p| p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status);
        if hit {
            return Some(format!("Pod has condition {} {}", c.type_, c.status));
        }
    }
    None
}

/// When a pod ended, as well as it is known.
pub fn finished_at(pod: &Pod) -> Option<Timestamp> {
    statuses(pod)
        .filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|t| t.0)
        .max()
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0))
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

/// Seconds that the next pod must wait, for the failures since the last success.
pub fn backoff<'a>(pods: impl Iterator<Item = &'a Pod> + Clone, now: Timestamp) -> Option<i64> {
    let last_success = pods
        .clone()
        .filter(|p| phase(p) == "Succeeded")
        .filter_map(finished_at)
        .max();
    let failures: Vec<Timestamp> = pods
        .filter(|p| phase(p) == "Failed")
        .filter_map(finished_at)
        .filter(|t| last_success.is_none_or(|s| *t > s))
        .collect();
    let last = failures.iter().max()?;
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(16).min(16);
    let pause = (BACKOFF << doublings).min(MAX_BACKOFF);
    let left = last.as_second() + pause - now.as_second();
    (left > 0).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(rules: Value) -> Job {
        serde_json::from_value(
            json!({"spec": {"template": {}, "podFailurePolicy": {"rules": rules}}}),
        )
        .expect("a job")
    }

    fn failed(code: i32, at: i64) -> Pod {
        let at = Timestamp::from_second(at).expect("a time").to_string();
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "status": {"phase": "Failed",
            "conditions": [{"type": "DisruptionTarget", "status": "True"}], "containerStatuses": [{"name": "c", "image": "",
            "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code, "finishedAt": at}}}]}}))
        .expect("a pod")
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let j = job(json!([
            {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}},
            {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [1, 7]}},
            {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        ]));
        assert_eq!(verdict(&j, &failed(7, 0)), Verdict::Ignore);
        assert_eq!(verdict(&j, &failed(1, 0)), Verdict::Count);
        assert_eq!(
            verdict(&j, &failed(42, 0)),
            Verdict::FailJob("Container c failed with exit code 42 for pod ns/p matching FailJob rule at index 1".into())
        );
    }

    #[test]
    fn pauses_double_with_failures() {
        let now = Timestamp::from_second(100).expect("a time");
        let left = |pods: &[Pod]| backoff(pods.iter(), now);
        assert_eq!(left(&[]), None);
        assert_eq!(left(&[failed(1, 95)]), Some(5));
        assert_eq!(left(&[failed(1, 80), failed(1, 95)]), Some(15));
        assert_eq!(left(&[failed(1, 50)]), None);
    }
}
