//! The decisions, as tables of what is seen and what is done.

use super::decide::{Observed, TRACKING, reconcile};
use crate::action::Action;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::sync::Arc;

fn job(spec: Value, status: Value) -> Job {
    let mut v = json!({"metadata": {"name": "j", "namespace": "ns", "uid": "u"}, "status": status,
        "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 1, "selector": {"matchLabels": {"j": "j"}},
            "template": {"metadata": {"labels": {"j": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}}});
    for (k, x) in spec.as_object().into_iter().flatten() {
        v["spec"][k] = x.clone();
    }
    serde_json::from_value(v).expect("a job")
}

fn pod(name: &str, phase: &str, held: bool, index: Option<&str>) -> Arc<Pod> {
    let finalizers: Vec<&str> = held.then_some(TRACKING).into_iter().collect();
    let mut v = json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"j": "j"}, "finalizers": finalizers,
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true}]},
        "status": {"phase": phase}});
    if let Some(i) = index {
        v["metadata"]["annotations"][super::indexed::INDEX] = i.into();
    }
    Arc::new(serde_json::from_value(v).expect("a pod"))
}

/// (what is done in short, the status patch)
fn act(job: &Job, pods: &[Arc<Pod>], at: i64) -> (Vec<String>, Value) {
    let mut status = Value::Null;
    let mut n = 0;
    let o = Observed {
        job,
        pods,
        caught_up: true,
    };
    let actions = reconcile(&o, Timestamp::from_second(at).expect("a time"), &mut || {
        n += 1;
        n
    });
    let text = actions.into_iter().map(|a| match a {
        Action::Create { object, .. } => {
            format!(
                "create {}",
                object["metadata"]["name"].as_str().unwrap_or_default()
            )
        }
        Action::Delete { name, .. } => format!("delete {name}"),
        Action::Patch {
            subresource: "status",
            patch,
            ..
        } => {
            status = patch["status"].clone();
            "status".into()
        }
        Action::Patch { name, .. } => format!("untrack {name}"),
        Action::After(d) => format!("after {}", d.as_secs()),
        Action::Event { reason, .. } => format!("event {reason}"),
        other => format!("{other:?}"),
    });
    (text.collect(), status)
}

#[test]
fn a_new_job_starts_and_makes_its_pods() {
    let (done, status) = act(
        &job(json!({"parallelism": 2, "completions": 3}), json!(null)),
        &[],
        0,
    );
    assert_eq!(done, ["status", "create j-cbbbb", "create j-dbbbb"]);
    assert_eq!(status["startTime"], "1970-01-01T00:00:00Z");
}

#[test]
fn an_ended_pod_is_named_then_let_go_then_counted_and_then_the_job_completes() {
    let start = json!({"startTime": "1970-01-01T00:00:00Z", "active": 1});
    let (done, status) = act(
        &job(json!({}), start.clone()),
        &[pod("p", "Succeeded", true, None)],
        0,
    );
    assert_eq!(done, ["status", "untrack p"]);
    assert_eq!(status["uncountedTerminatedPods"]["succeeded"], json!(["p"]));
    assert_eq!(status["conditions"][0]["type"], "SuccessCriteriaMet");
    let mut before = start;
    before["uncountedTerminatedPods"] = json!({"succeeded": ["p"]});
    before["conditions"] = status["conditions"].clone();
    let (done, status) = act(
        &job(json!({}), before.clone()),
        &[pod("p", "Succeeded", true, None)],
        0,
    );
    assert_eq!(
        done.last().map(String::as_str),
        Some("untrack p"),
        "the finalizer is still seen"
    );
    assert_eq!(status["succeeded"], Value::Null);
    let (done, status) = act(
        &job(json!({}), before),
        &[pod("p", "Succeeded", false, None)],
        0,
    );
    assert_eq!(done, ["status", "event Completed"]);
    assert_eq!(status["succeeded"], 1);
    assert_eq!(status["conditions"][1]["type"], "Complete");
}

#[test]
fn too_many_failures_end_the_job_once_all_pods_are_gone() {
    let before = json!({"startTime": "1970-01-01T00:00:00Z", "failed": 1});
    let spec = json!({"parallelism": 2, "completions": 2});
    let pods = [
        pod("bad", "Failed", true, None),
        pod("good", "Running", true, None),
    ];
    let (done, status) = act(&job(spec, before), &pods, 0);
    assert_eq!(done, ["delete good", "status", "untrack bad"]);
    assert_eq!(status["conditions"][0]["reason"], "BackoffLimitExceeded");
    let after = json!({"startTime": "1970-01-01T00:00:00Z", "failed": 2, "conditions": status["conditions"]});
    let (done, status) = act(&job(json!({}), after), &[], 0);
    assert_eq!(done, ["status", "event BackoffLimitExceeded"]);
    assert_eq!(status["conditions"][1]["type"], "Failed");
}

#[test]
fn a_deadline_ends_the_job() {
    let before = json!({"startTime": "1970-01-01T00:00:00Z", "active": 1});
    let spec = json!({"activeDeadlineSeconds": 10});
    let pods = [pod("p", "Running", true, None)];
    assert!(
        act(&job(spec.clone(), before.clone()), &pods, 4)
            .0
            .contains(&"after 6".to_string())
    );
    let (done, status) = act(&job(spec, before), &pods, 10);
    assert_eq!(done, ["delete p", "status"]);
    assert_eq!(status["conditions"][0]["reason"], "DeadlineExceeded");
}

#[test]
fn a_suspended_job_lets_its_pods_go_uncounted_and_resumes() {
    let spec = json!({"suspend": true});
    let before = json!({"startTime": "1970-01-01T00:00:00Z"});
    let (done, status) = act(&job(spec, before), &[pod("p", "Running", true, None)], 0);
    assert_eq!(done, ["untrack p", "delete p", "status", "event Suspended"]);
    let resumed = job(json!({}), json!({"conditions": status["conditions"]}));
    let (done, status) = act(&resumed, &[], 7);
    assert_eq!(done, ["status", "create j-cbbbb", "event Resumed"]);
    assert_eq!(status["startTime"], "1970-01-01T00:00:07Z");
}

#[test]
fn indexed_jobs_run_every_index_once() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 4});
    let before =
        json!({"startTime": "1970-01-01T00:00:00Z", "completedIndexes": "0", "succeeded": 1});
    let pods = [
        pod("b", "Running", true, Some("1")),
        pod("c", "Succeeded", true, Some("2")),
    ];
    let (done, status) = act(&job(spec, before), &pods, 0);
    assert_eq!(done, ["status", "untrack c", "create j-3-cbbbb"]);
    assert_eq!(
        (&status["completedIndexes"], &status["succeeded"]),
        (&json!("0,2"), &json!(2))
    );
}

#[test]
fn a_job_that_did_nothing_new_writes_nothing() {
    let before = json!({"startTime": "1970-01-01T00:00:00Z", "active": 1, "ready": 0, "terminating": 0,
        "uncountedTerminatedPods": {}});
    assert!(
        act(
            &job(json!({}), before),
            &[pod("p", "Running", true, None)],
            0
        )
        .0
        .is_empty()
    );
}

#[test]
fn a_success_policy_ends_the_job_before_every_index_has_succeeded() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2,
        "successPolicy": {"rules": [{"succeededIndexes": "1"}, {"succeededCount": 1, "succeededIndexes": "0-1"}]}});
    let before = json!({"startTime": "1970-01-01T00:00:00Z"});
    let pods = [
        pod("a", "Succeeded", true, Some("0")),
        pod("b", "Running", true, Some("1")),
    ];
    let (done, status) = act(&job(spec, before), &pods, 0);
    assert_eq!(done, ["delete b", "status", "untrack a"]);
    let c = &status["conditions"][0];
    assert_eq!(
        (&c["type"], &c["reason"], &c["message"]),
        (
            &json!("SuccessCriteriaMet"),
            &json!("SuccessPolicy"),
            &json!("Matched rules at index 1")
        )
    );
}
