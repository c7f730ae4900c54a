//! CronJob controller: makes a Job whenever the schedule says so (pkg/controller/cronjob). One timer for each cron job;
//! nothing wakes up in between.

use crate::action::{Action, CRONJOBS, JOBS};
use crate::job::decide::{has_condition, is_finished};
use crate::model::{controller_of, controller_ref, merge_difference, owner_key, rfc3339};
use crate::shell::{Controller, Shell};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};
use skiff_api::kinds::batch::schedule::{self, Schedule, Spec};
use skiff_client::{Cache, ObjectKey};
use std::sync::Arc;
use std::time::Duration;

/// Annotation of a job: the time that it was made for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

fn has(mask: u64, n: i8) -> bool {
    u32::try_from(n).is_ok_and(|n| n < 64 && mask & (1 << n) != 0)
}

fn day_matches(s: &Schedule, date: Date) -> bool {
    if !has(s.month, date.month()) {
        return false;
    }
    let day = has(s.day, date.day());
    let weekday = has(s.weekday, date.weekday().to_sunday_zero_offset());
    // Where both are given, either will do (as in cron).
    if s.any_day || s.any_weekday {
        day && weekday
    } else {
        day || weekday
    }
}

/// The first time after `after`; None if there is none within five years (29 February on a Monday, say).
pub fn next(spec: &Spec, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let s = match spec {
        Spec::Every(text) => {
            // Whole seconds, at least one (robfig/cron's Every).
            let every: SignedDuration = text.parse().ok()?;
            let seconds = every.as_secs().max(1);
            return Timestamp::from_second(after.as_second().checked_add(seconds)?).ok();
        }
        Spec::Fields(s) => s,
    };
    let local = zone.to_datetime(after);
    let mut date = local.date();
    for _ in 0..366 * 5 {
        if day_matches(s, date) {
            for hour in (0..24).filter(|h| has(s.hour, *h)) {
                // Hours that are past are left out; an hour of slack for clocks that are put back.
                if date == local.date() && hour < local.hour().saturating_sub(2) {
                    continue;
                }
                for minute in (0..60).filter(|m| has(s.minute, *m)) {
                    let at = DateTime::from_parts(date, jiff::civil::time(hour, minute, 0, 0));
                    let Ok(at) = zone.to_ambiguous_zoned(at).compatible() else {
                        continue;
                    };
                    if at.timestamp() > after {
                        return Some(at.timestamp());
                    }
                }
            }
        }
        date = date.checked_add(1.day()).ok()?;
    }
    None
}

/// The last time in (from, now]. Windows that grow keep the search short however long nobody looked.
pub fn latest(spec: &Spec, zone: &TimeZone, from: Timestamp, now: Timestamp) -> Option<Timestamp> {
    const HOUR: i64 = 3600;
    if let Spec::Every(text) = spec {
        let every = text.parse::<SignedDuration>().ok()?.as_secs().max(1);
        let n = (now.as_second() - from.as_second()) / every;
        return (n > 0)
            .then(|| Timestamp::from_second(from.as_second() + n * every).ok())
            .flatten();
    }
    for window in [
        HOUR,
        25 * HOUR,
        32 * 24 * HOUR,
        366 * 24 * HOUR,
        i64::MAX / 4,
    ] {
        let start = now.as_second().saturating_sub(window).max(from.as_second());
        let mut at = next(spec, zone, Timestamp::from_second(start).ok()?);
        let mut last = None;
        while let Some(t) = at.filter(|t| *t <= now) {
            last = Some(t);
            at = next(spec, zone, t);
        }
        if last.is_some() || start == from.as_second() {
            return last;
        }
    }
    None
}

/// What a sync sees.
pub struct Observed<'a> {
    /// The cron job.
    pub cron: &'a CronJob,
    /// The jobs that it controls.
    pub jobs: &'a [Arc<Job>],
}

fn delete(job: &Job) -> Action {
    Action::delete(JOBS, &job.metadata)
}

fn reference(job: &Job) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name,
        "namespace": job.metadata.namespace, "uid": job.metadata.uid})
}

/// Ended jobs beyond the limits, the oldest first.
fn history(o: &Observed, actions: &mut Vec<Action>) {
    let spec = &o.cron.spec;
    for (condition, limit) in [
        ("Complete", spec.successful_jobs_history_limit),
        ("Failed", spec.failed_jobs_history_limit),
    ] {
        let Some(limit) = limit else { continue };
        let mut ended: Vec<&Arc<Job>> = o
            .jobs
            .iter()
            .filter(|j| has_condition(j, condition) && j.metadata.deletion_timestamp.is_none())
            .collect();
        ended.sort_by_key(|j| {
            let start = j.status.as_ref().and_then(|s| s.start_time.as_ref());
            (start.map(|t| t.0), j.metadata.name.clone())
        });
        let spare = ended
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        actions.extend(ended.into_iter().take(spare).map(|j| delete(j)));
    }
}

/// What to do.
pub fn reconcile(o: &Observed, now: Timestamp) -> Vec<Action> {
    let cron = o.cron;
    let meta = &cron.metadata;
    let spec = &cron.spec;
    let old = serde_json::to_value(&cron.status)
        .ok()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    let mut status = old.clone();
    let mut actions = Vec::new();
    history(o, &mut actions);
    let known: Vec<&str> = old["active"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|r| r["uid"].as_str())
        .collect();
    let mut active: Vec<&Arc<Job>> = Vec::new();
    for job in o.jobs {
        if !is_finished(job) {
            active.push(job);
        } else if known.iter().any(|u| crate::model::is_uid(&job.metadata, u)) {
            let how = if has_condition(job, "Complete") {
                "Complete"
            } else {
                "Failed"
            };
            let name = job.metadata.name.as_deref().unwrap_or_default();
            actions.push(Action::Event {
                warning: false,
                reason: "SawCompletedJob",
                message: format!("Saw completed job: {name}, condition: {how}"),
            });
        }
        let done = job.status.as_ref().and_then(|s| s.completion_time.as_ref());
        if let Some(t) = done.filter(|_| has_condition(job, "Complete")) {
            let text = rfc3339(t.0);
            if status["lastSuccessfulTime"]
                .as_str()
                .is_none_or(|s| *s < *text)
            {
                status["lastSuccessfulTime"] = text.into();
            }
        }
    }
    let mut references: Vec<Value> = active.iter().map(|j| reference(j)).collect();
    if meta.deletion_timestamp.is_none() && spec.suspend != Some(true) {
        match zone_of(spec.time_zone.as_deref())
            .and_then(|z| Ok((schedule::parse(&spec.schedule)?, z)))
        {
            Err(why) => actions.push(Action::Event {
                warning: true,
                reason: "UnparseableSchedule",
                message: format!("unparseable schedule: {:?} : {why}", spec.schedule),
            }),
            Ok((times, zone)) => {
                due(
                    o,
                    &times,
                    &zone,
                    now,
                    &active,
                    &mut references,
                    &mut status,
                    &mut actions,
                );
                if let Some(t) = next(&times, &zone, now) {
                    let wait = t.as_millisecond() - now.as_millisecond();
                    // A little late rather than early, as upstream.
                    let wait = u64::try_from(wait).unwrap_or(0) + 100;
                    actions.push(Action::After(Duration::from_millis(wait)));
                }
            }
        }
    }
    if references.is_empty() {
        status.as_object_mut().map(|s| s.remove("active"));
    } else {
        status["active"] = references.into();
    }
    if let Some(patch) = merge_difference(&old, &status) {
        actions.push(Action::Patch {
            kind: CRONJOBS,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            subresource: "status",
            patch: json!({"metadata": {"uid": meta.uid}, "status": patch}),
        });
    }
    actions
}

fn zone_of(name: Option<&str>) -> Result<TimeZone, String> {
    match name {
        None => Ok(TimeZone::system()),
        Some("UTC") => Ok(TimeZone::UTC),
        Some(name) => TimeZone::get(name).map_err(|e| format!("unknown time zone {name}: {e}")),
    }
}

/// Makes the job that is due, if one is and the policy allows it.
#[allow(clippy::too_many_arguments)]
fn due(
    o: &Observed,
    times: &Spec,
    zone: &TimeZone,
    now: Timestamp,
    active: &[&Arc<Job>],
    references: &mut Vec<Value>,
    status: &mut Value,
    actions: &mut Vec<Action>,
) {
    let meta = &o.cron.metadata;
    let spec = &o.cron.spec;
    let last = o
        .cron
        .status
        .as_ref()
        .and_then(|s| s.last_schedule_time.as_ref());
    let mut from = last
        .or(meta.creation_timestamp.as_ref())
        .map_or(now, |t| t.0);
    if let Some(deadline) = spec.starting_deadline_seconds {
        let oldest = Timestamp::from_second(now.as_second().saturating_sub(deadline));
        from = oldest.map_or(from, |t| from.max(t));
    }
    let Some(at) = latest(times, zone, from, now) else {
        return;
    };
    let name = meta.name.as_deref().unwrap_or_default();
    let job_name = format!("{name}-{}", at.as_second() / 60);
    let there = |j: &&Arc<Job>| j.metadata.name.as_deref() == Some(job_name.as_str());
    if o.jobs.iter().any(|j| there(&j)) {
        status["lastScheduleTime"] = rfc3339(at).into();
        return;
    }
    if spec.concurrency_policy.as_deref() == Some("Forbid") && !active.is_empty() {
        actions.push(Action::Event {
            warning: false,
            reason: "JobAlreadyActive",
            message: "Not starting job because prior execution is running and concurrency policy is Forbid".into(),
        });
        return;
    }
    if spec.concurrency_policy.as_deref() == Some("Replace") {
        for job in active {
            actions.push(delete(job));
            let name = job.metadata.name.as_deref().unwrap_or_default();
            actions.push(Action::Event {
                warning: false,
                reason: "SuccessfulDelete",
                message: format!("Deleted job {name}"),
            });
        }
        references.clear();
    }
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(
        SCHEDULED.into(),
        at.to_zoned(zone.clone())
            .strftime("%Y-%m-%dT%H:%M:%S%:z")
            .to_string(),
    );
    let object = json!({
        "metadata": {"name": job_name, "labels": template.labels, "annotations": annotations,
            "ownerReferences": [controller_ref("batch/v1", "CronJob", meta)]},
        "spec": spec.job_template.spec,
    });
    actions.push(Action::Create {
        kind: JOBS,
        namespace: meta.namespace.clone().unwrap_or_default(),
        object,
    });
    actions.push(Action::Event {
        warning: false,
        reason: "SuccessfulCreate",
        message: format!("Created job {job_name}"),
    });
    // The reference to the new job comes with its own event, when its uid is known.
    status["lastScheduleTime"] = rfc3339(at).into();
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let me = Controller::new(shell, "cronjob-controller", false);
    let crons = shell.informers.cache::<CronJob>();
    let jobs = shell.informers.cache::<Job>();
    shell.watch(&crons, &me.queue, |c, old| {
        // Its own status is no news.
        if old.is_some_and(|o| {
            o.spec == c.spec && o.metadata.deletion_timestamp == c.metadata.deletion_timestamp
        }) {
            return Vec::new();
        }
        vec![ObjectKey::of(c)]
    });
    shell.watch(&jobs, &me.queue, |job, _| {
        owner_key(&job.metadata, "CronJob").into_iter().collect()
    });
    let ready = {
        let (crons, jobs) = (crons.clone(), jobs.clone());
        async move {
            crons.synced().await;
            jobs.synced().await;
        }
    };
    let this = shell.clone();
    shell.work("cronjob", me.queue.clone(), ready, move |key| {
        let (shell, me, crons, jobs) = (this.clone(), me.clone(), crons.clone(), jobs.clone());
        async move { sync(&shell, &me, &crons, &jobs, &key).await }
    });
}

async fn sync(
    shell: &Shell,
    me: &Controller,
    crons: &Cache<CronJob>,
    jobs: &Cache<Job>,
    key: &ObjectKey,
) -> Result<(), kube::Error> {
    let Some(cron) = crons.get(&key.namespace, &key.name) else {
        return Ok(());
    };
    let mut mine = jobs.list_namespace(&key.namespace);
    mine.retain(|j| {
        controller_of(&j.metadata).is_some_and(|o| crate::model::is_uid(&cron.metadata, &o.uid))
    });
    let observed = Observed {
        cron: &cron,
        jobs: &mine,
    };
    let actions = reconcile(&observed, Timestamp::now());
    match shell.run_actions(me, key, &*cron, actions).await {
        // The job is there and our cache does not show it yet: its own event brings us back.
        Err(e) if skiff_client::is_code(&e, 409) => {
            me.queue.add_after(key.clone(), Duration::from_secs(1));
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn spec(text: &str) -> Spec {
        schedule::parse(text).expect("a schedule")
    }

    #[test]
    fn times_follow_the_schedule() {
        for (schedule, after, want) in [
            (
                "*/5 * * * *",
                "2026-01-01T00:00:00Z",
                "2026-01-01T00:05:00Z",
            ),
            ("0 0 1 * *", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
            ("30 9 * * 1", "2026-01-01T00:00:00Z", "2026-01-05T09:30:00Z"),
            ("0 0 13 * 5", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@every 90s", "2026-01-01T00:00:00Z", "2026-01-01T00:01:30Z"),
            (
                "59 23 31 12 *",
                "2026-12-31T23:59:00Z",
                "2027-12-31T23:59:00Z",
            ),
        ] {
            let got = next(&spec(schedule), &TimeZone::UTC, t(after));
            assert_eq!(got, Some(t(want)), "{schedule}");
        }
        assert_eq!(
            next(
                &spec("0 0 31 2 *"),
                &TimeZone::UTC,
                t("2026-01-01T00:00:00Z")
            ),
            None
        );
    }

    #[test]
    fn the_zone_counts() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let got = next(&spec("0 8 * * *"), &zone, t("2026-07-01T00:00:00Z"));
        assert_eq!(got, Some(t("2026-07-01T06:00:00Z")));
    }

    #[test]
    fn the_latest_time_is_found_however_long_nobody_looked() {
        let now = t("2026-06-15T12:00:30Z");
        let from = t("2020-01-01T00:00:00Z");
        for (schedule, want) in [
            ("* * * * *", "2026-06-15T12:00:00Z"),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z"),
            ("0 0 * * 0", "2026-06-14T00:00:00Z"),
        ] {
            assert_eq!(
                latest(&spec(schedule), &TimeZone::UTC, from, now),
                Some(t(want)),
                "{schedule}"
            );
        }
        assert_eq!(
            latest(
                &spec("0 * * * *"),
                &TimeZone::UTC,
                t("2026-06-15T12:00:00Z"),
                now
            ),
            None
        );
    }

    fn cron(extra: Value) -> CronJob {
        let mut v = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "* * * * *", "timeZone": "UTC", "successfulJobsHistoryLimit": 1, "jobTemplate": {"spec": {"template": {}}}}});
        for (k, x) in extra.as_object().into_iter().flatten() {
            v["spec"][k] = x.clone();
        }
        serde_json::from_value(v).expect("a cron job")
    }

    fn job(name: &str, condition: &str) -> Arc<Job> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status": {"startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": condition, "status": "True"}]}}))
            .expect("a job"),
        )
    }

    fn act(cron: &CronJob, jobs: &[Arc<Job>], now: &str) -> Vec<String> {
        let text = |a: Action| match a {
            Action::Create { object, .. } => {
                format!(
                    "create {}",
                    object["metadata"]["name"].as_str().unwrap_or_default()
                )
            }
            Action::Delete { name, .. } => format!("delete {name}"),
            Action::Event { reason, .. } => reason.to_string(),
            Action::Patch { .. } => "status".into(),
            Action::After(d) => format!("after {}", d.as_millis()),
            other => format!("{other:?}"),
        };
        let o = Observed { cron, jobs };
        reconcile(&o, t(now)).into_iter().map(text).collect()
    }

    #[test]
    fn a_job_is_made_when_it_is_due_and_the_next_is_waited_for() {
        assert_eq!(
            act(&cron(json!({})), &[], "2026-01-01T00:00:45Z"),
            ["after 15100"]
        );
        assert_eq!(
            act(&cron(json!({})), &[], "2026-01-01T00:01:00Z"),
            [
                "create c-29453761",
                "SuccessfulCreate",
                "after 60100",
                "status"
            ]
        );
        let suspended = cron(json!({"suspend": true}));
        assert!(act(&suspended, &[], "2026-01-01T00:01:00Z").is_empty());
    }

    #[test]
    fn the_policy_says_what_becomes_of_a_job_that_still_runs() {
        let running = [job("r", "Suspended")];
        let forbid = cron(json!({"concurrencyPolicy": "Forbid"}));
        assert_eq!(
            act(&forbid, &running, "2026-01-01T00:01:00Z")[0],
            "JobAlreadyActive"
        );
        let replace = cron(json!({"concurrencyPolicy": "Replace"}));
        let done = act(&replace, &running, "2026-01-01T00:01:00Z");
        assert_eq!(
            done[..3],
            ["delete r", "SuccessfulDelete", "create c-29453761"]
        );
    }

    #[test]
    fn old_jobs_beyond_the_limit_go() {
        let ended = [job("a", "Complete"), job("b", "Complete")];
        let done = act(
            &cron(json!({"suspend": true})),
            &ended,
            "2026-01-01T00:01:00Z",
        );
        assert_eq!(done, ["delete a"]);
    }
}
