//! Deletes jobs some time after they have ended (pkg/controller/ttlafterfinished).

use crate::action::{Action, JOBS};
use crate::job::decide::is_finished;
use crate::shell::{Controller, Shell};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use skiff_client::ObjectKey;
use std::time::Duration;

/// When a job ended.
pub fn finished_at(job: &Job) -> Option<Timestamp> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
        .and_then(|c| c.last_transition_time.as_ref())
        .map(|t| t.0)
}

/// What to do.
pub fn reconcile(job: &Job, now: Timestamp) -> Vec<Action> {
    let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
    let (Some(ttl), Some(end)) = (ttl, finished_at(job)) else {
        return Vec::new();
    };
    if job.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let left = end.as_second() + i64::from(ttl) - now.as_second();
    match u64::try_from(left) {
        Ok(left) if left > 0 => vec![Action::After(Duration::from_secs(left))],
        _ => vec![Action::delete(JOBS, &job.metadata)],
    }
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let me = Controller::new(shell, "ttl-after-finished-controller", false);
    let jobs = shell.informers.cache::<Job>();
    shell.watch(&jobs, &me.queue, |job, _| {
        let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
        if ttl.is_some() && is_finished(job) {
            vec![ObjectKey::of(job)]
        } else {
            Vec::new()
        }
    });
    let ready = {
        let jobs = jobs.clone();
        async move { jobs.synced().await }
    };
    let this = shell.clone();
    shell.work("ttl-after-finished", me.queue.clone(), ready, move |key| {
        let (shell, me, jobs) = (this.clone(), me.clone(), jobs.clone());
        async move {
            let Some(job) = jobs.get(&key.namespace, &key.name) else {
                return Ok(());
            };
            let actions = reconcile(&job, Timestamp::now());
            shell.run_actions(&me, &key, &*job, actions).await
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_ended_job_is_deleted_when_its_time_is_over() {
        let mut v = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {}, "ttlSecondsAfterFinished": 5}, "status":
            {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "1970-01-01T00:00:10Z"}]}});
        let act = |v: &serde_json::Value, at: i64| {
            let job: Job = serde_json::from_value(v.clone()).expect("a job");
            reconcile(&job, Timestamp::from_second(at).expect("a time"))
        };
        assert_eq!(act(&v, 12), [Action::After(Duration::from_secs(3))]);
        assert!(matches!(act(&v, 15).as_slice(), [Action::Delete { .. }]));
        v["status"] = json!({});
        assert!(act(&v, 15).is_empty());
    }
}
