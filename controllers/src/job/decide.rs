//! The decisions of the Job controller: which pods to make and remove, how ended pods are counted, when the job ends.
//! Pure. Pods carry a finalizer until they are counted: first the status names them, then the finalizer goes, then the
//! status counts them, so that none is lost and none counted twice, wherever we are interrupted.

use super::indexed::{self, INDEX};
use super::policy::{Verdict, backoff, verdict};
use crate::action::{Action, JOBS, PODS};
use crate::claim;
use crate::model::{
    controller_of, controller_ref, deletion_order, generated_name, is_active, is_ready,
    is_terminal, merge_difference, phase, pod_from, rfc3339, set_condition,
};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use skiff_client::labels;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The finalizer of pods that are not yet counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Pods made or removed in one sync at the most (upstream).
const BURST: usize = 500;
/// Pods named in uncountedTerminatedPods at the most (upstream).
const MAX_UNCOUNTED: usize = 500;

/// What a sync sees.
pub struct Observed<'a> {
    /// The job.
    pub job: &'a Job,
    /// The pods of its namespace.
    pub pods: &'a [Arc<Pod>],
    /// The cache shows all that was asked for: pods may be created and deleted.
    pub caught_up: bool,
}

/// Has the pod the finalizer?
pub fn tracked(pod: &Pod) -> bool {
    let mut all = pod.metadata.finalizers.iter().flatten();
    all.any(|f| f == TRACKING)
}

/// The action that lets a pod go.
pub fn untrack(pod: &Pod) -> Action {
    claim::unfinalize(PODS, &pod.metadata, TRACKING)
}

/// Has a condition of the job this type, and is it true?
pub fn has_condition(job: &Job, name: &str) -> bool {
    let mut all = job
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    all.any(|c| c.type_ == name && c.status == "True")
}

/// Complete or failed.
pub fn is_finished(job: &Job) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

fn remove(pod: &Pod) -> Action {
    Action::delete_any_version(PODS, &pod.metadata, None)
}

/// One sync in the making.
struct Sync<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    now: Timestamp,
    mine: Vec<&'a Pod>,
    status: Value,
    conditions: Vec<Value>,
    /// Pods to let go once the status is written.
    counted: Vec<&'a Pod>,
    before: Vec<Action>,
    after: Vec<Action>,
}

impl<'a> Sync<'a> {
    fn indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn completions(&self) -> Option<u32> {
        self.spec.completions.map(|n| u32::try_from(n).unwrap_or(0))
    }

    fn completed_indexes(&self) -> BTreeSet<u32> {
        let text = self.status["completedIndexes"].as_str().unwrap_or_default();
        indexed::parse(text, self.completions().unwrap_or(0))
    }

    fn number(&self, key: &str) -> i64 {
        self.status[key].as_i64().unwrap_or(0)
    }

    fn uncounted(&self, key: &str) -> Vec<Value> {
        let list = self
            .status
            .pointer(&format!("/uncountedTerminatedPods/{key}"));
        list.and_then(Value::as_array).cloned().unwrap_or_default()
    }

    /// All that succeeded or failed, written down or not.
    fn total(&self, key: &str) -> i64 {
        if key == "succeeded" && self.indexed() {
            return i64::try_from(self.completed_indexes().len()).unwrap_or(i64::MAX);
        }
        let more = i64::try_from(self.uncounted(key).len()).unwrap_or(i64::MAX);
        self.number(key).saturating_add(more)
    }

    fn set(&mut self, name: &str, status: &str, reason: &str, message: &str) -> bool {
        // Upstream writes no condition that says that something never was.
        if status == "False" && self.conditions.iter().all(|c| c["type"] != name) {
            return false;
        }
        let now = self.now;
        let changed = set_condition(
            &mut self.conditions,
            name,
            status,
            reason,
            message,
            now,
            false,
        );
        if changed {
            for c in self.conditions.iter_mut().filter(|c| c["type"] == name) {
                c["lastProbeTime"] = rfc3339(now).into();
            }
        }
        changed
    }

    fn is(&self, name: &str) -> bool {
        self.conditions
            .iter()
            .any(|c| c["type"] == name && c["status"] == "True")
    }

    fn event(&mut self, warning: bool, reason: &'static str, message: impl Into<String>) {
        self.after.push(Action::Event {
            warning,
            reason,
            message: message.into(),
        });
    }

    /// Ended pods: names new ones in the status, counts those whose finalizer is gone.
    fn count(&mut self) {
        let ending = self.job.metadata.deletion_timestamp.is_some()
            || self.is("FailureTarget")
            || self.is("SuccessCriteriaMet");
        let only_failed = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        let held: BTreeSet<&str> = self
            .mine
            .iter()
            .filter(|p| tracked(p))
            .filter_map(|p| p.metadata.uid.as_deref())
            .collect();
        for key in ["succeeded", "failed"] {
            let (left, gone): (Vec<Value>, Vec<Value>) = self
                .uncounted(key)
                .into_iter()
                .partition(|u| u.as_str().is_some_and(|u| held.contains(u)));
            let n = i64::try_from(gone.len()).unwrap_or(i64::MAX);
            if n > 0 {
                self.status[key] = self.number(key).saturating_add(n).into();
            }
            self.status["uncountedTerminatedPods"][key] = left.into();
        }
        let mut done = self.completed_indexes();
        let completions = self.completions().unwrap_or(0);
        let mut room = MAX_UNCOUNTED
            .saturating_sub(self.uncounted("succeeded").len() + self.uncounted("failed").len());
        let tracked_pods: Vec<&Pod> = self.mine.iter().copied().filter(|p| tracked(p)).collect();
        for pod in tracked_pods {
            let uid = json!(pod.metadata.uid.clone().unwrap_or_default());
            let known = |s: &Self, key: &str| s.uncounted(key).contains(&uid);
            if known(self, "succeeded") || known(self, "failed") {
                self.counted.push(pod);
                continue;
            }
            if room == 0 {
                break;
            }
            if phase(pod) == "Succeeded" {
                if self.indexed() {
                    done.extend(indexed::of(pod).filter(|i| *i < completions));
                } else {
                    self.note_uncounted("succeeded", uid);
                    room -= 1;
                }
                self.counted.push(pod);
                continue;
            }
            // A pod that is being deleted may never get to say that it failed.
            let deleted = pod.metadata.deletion_timestamp.is_some();
            if !(phase(pod) == "Failed" || (deleted && !only_failed) || (ending && deleted)) {
                continue;
            }
            let verdict = if phase(pod) == "Failed" {
                verdict(self.job, pod)
            } else {
                Verdict::Count
            };
            match verdict {
                Verdict::Ignore => {}
                Verdict::Count => {
                    self.note_uncounted("failed", uid);
                    room -= 1;
                }
                Verdict::FailJob(why) => {
                    self.note_uncounted("failed", uid);
                    room -= 1;
                    if !self.is("FailureTarget") && !self.is("SuccessCriteriaMet") {
                        self.set("FailureTarget", "True", "PodFailurePolicy", &why);
                    }
                }
            }
            self.counted.push(pod);
        }
        if self.indexed() {
            let n = done.len();
            let text = indexed::format(&done);
            if text.is_empty() {
                self.status
                    .as_object_mut()
                    .map(|s| s.remove("completedIndexes"));
            } else {
                self.status["completedIndexes"] = text.into();
            }
            self.status["succeeded"] = n.into();
        }
    }

    fn note_uncounted(&mut self, key: &str, uid: Value) {
        let mut list = self.uncounted(key);
        list.push(uid);
        self.status["uncountedTerminatedPods"][key] = list.into();
    }

    /// The first rule of successPolicy that is met: the job has succeeded before all indexes have.
    fn success_rule(&self) -> Option<usize> {
        let done = self.completed_indexes();
        let completions = self.completions().unwrap_or(0);
        let rules = &self.spec.success_policy.as_ref()?.rules;
        rules.iter().position(|r| {
            let enough = r.succeeded_count.and_then(|n| usize::try_from(n).ok());
            match &r.succeeded_indexes {
                Some(text) => {
                    let wanted = indexed::parse(text, completions);
                    let have = wanted.intersection(&done).count();
                    have >= enough.unwrap_or(wanted.len())
                }
                None => enough.is_some_and(|n| done.len() >= n),
            }
        })
    }

    /// Why the job has failed by now, if it has.
    fn failure(&mut self) -> Option<(&'static str, String)> {
        let limit = i64::from(self.spec.backoff_limit.unwrap_or(6));
        let mut restarts: i64 = 0;
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure") {
            for pod in self.mine.iter().filter(|p| is_active(p)) {
                let status = pod.status.iter();
                restarts += status
                    .flat_map(|s| {
                        let init = s.init_container_statuses.iter().flatten();
                        s.container_statuses.iter().flatten().chain(init)
                    })
                    .map(|c| i64::from(c.restart_count))
                    .sum::<i64>();
            }
        }
        let restarted = restarts > 0 && restarts >= limit;
        if self.total("failed") > limit || restarted {
            return Some((
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit".into(),
            ));
        }
        let deadline = self.spec.active_deadline_seconds?;
        if self.spec.suspend == Some(true) {
            return None;
        }
        let start: Timestamp = self.status["startTime"].as_str()?.parse().ok()?;
        let left = start.as_second() + deadline - self.now.as_second();
        if left <= 0 {
            return Some((
                "DeadlineExceeded",
                "Job was active longer than specified deadline".into(),
            ));
        }
        let left = u64::try_from(left).unwrap_or(1);
        self.after.push(Action::After(Duration::from_secs(left)));
        None
    }

    /// Makes and removes pods so that as many run as should.
    fn manage(&mut self, active: &[&'a Pod], random: &mut dyn FnMut() -> u64) {
        let parallelism = u32::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0) as usize;
        let suspended = self.spec.suspend == Some(true);
        let succeeded = usize::try_from(self.total("succeeded")).unwrap_or(0);
        let wanted = match self.completions() {
            _ if suspended => 0,
            None if succeeded > 0 => active.len().min(parallelism),
            None => parallelism,
            Some(n) => (n as usize).saturating_sub(succeeded).min(parallelism),
        };
        let completions = self.completions().unwrap_or(0);
        let done = self.completed_indexes();
        let mut order: Vec<&Pod> = active.to_vec();
        order.sort_by(|a, b| deletion_order(a, b));
        let mut spare: Vec<&Pod> = Vec::new();
        let mut taken = BTreeSet::new();
        if self.indexed() {
            // Best first: a second pod of an index, and pods of indexes that are not to run, go.
            let mut keep = Vec::new();
            for pod in order.iter().rev() {
                match indexed::of(pod) {
                    Some(i) if i < completions && !done.contains(&i) && taken.insert(i) => {
                        keep.push((i, *pod))
                    }
                    _ => spare.push(pod),
                }
            }
            keep.sort_by_key(|(i, _)| *i);
            spare.extend(keep.iter().skip(wanted).map(|(_, p)| *p));
        } else {
            spare.extend(order.iter().take(active.len().saturating_sub(wanted)));
        }
        for pod in spare.iter().take(BURST) {
            // Pods that we remove are no failures: they are let go uncounted.
            if tracked(pod) {
                self.before.push(untrack(pod));
            }
            self.before.push(remove(pod));
        }
        let staying = active.len() - spare.len();
        let mut missing = wanted.saturating_sub(staying);
        let going: Vec<&Pod> = self
            .mine
            .iter()
            .copied()
            .filter(|p| p.metadata.deletion_timestamp.is_some() && !is_terminal(p))
            .collect();
        let only_failed = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        if only_failed {
            missing = missing.saturating_sub(going.len());
            taken.extend(going.iter().filter_map(|p| indexed::of(p)));
        }
        if missing == 0 || !spare.is_empty() {
            return;
        }
        if let Some(left) = backoff(self.mine.iter().copied(), self.now) {
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(1));
            self.after.push(Action::After(left));
            return;
        }
        let mut free = (0..completions).filter(|i| !done.contains(i) && !taken.contains(i));
        for _ in 0..missing.min(BURST) {
            let index = if self.indexed() {
                match free.next() {
                    Some(i) => Some(i),
                    None => break,
                }
            } else {
                None
            };
            self.after.push(Action::Create {
                kind: PODS,
                namespace: self.job.metadata.namespace.clone().unwrap_or_default(),
                object: new_pod(self.job, self.spec, index, random()),
            });
        }
    }
}

/// A pod of the job.
fn new_pod(job: &Job, spec: &JobSpec, index: Option<u32>, random: u64) -> Value {
    let base = job.metadata.name.clone().unwrap_or_default();
    let prefix = index.map_or_else(|| format!("{base}-"), |i| format!("{base}-{i}-"));
    let owner = controller_ref("batch/v1", "Job", &job.metadata);
    let mut pod = pod_from(&spec.template, &generated_name(&prefix, random), owner);
    let mut finalizers = pod["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    finalizers.push(TRACKING.into());
    pod["metadata"]["finalizers"] = finalizers.into();
    let Some(i) = index else { return pod };
    pod["metadata"]["annotations"][INDEX] = i.to_string().into();
    pod["metadata"]["labels"][INDEX] = i.to_string().into();
    if pod["spec"]["hostname"]
        .as_str()
        .unwrap_or_default()
        .is_empty()
    {
        pod["spec"]["hostname"] = format!("{base}-{i}").into();
    }
    let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef":
        {"fieldPath": format!("metadata.labels['{INDEX}']")}}});
    for key in ["containers", "initContainers"] {
        for c in pod["spec"][key].as_array_mut().into_iter().flatten() {
            let mut env = c["env"].as_array().cloned().unwrap_or_default();
            if env.iter().all(|e| e["name"] != "JOB_COMPLETION_INDEX") {
                env.push(variable.clone());
                c["env"] = env.into();
            }
        }
    }
    pod
}

/// What to do. `random` gives names.
pub fn reconcile(o: &Observed, now: Timestamp, random: &mut dyn FnMut() -> u64) -> Vec<Action> {
    let job = o.job;
    let Some(spec) = &job.spec else {
        return Vec::new();
    };
    let managed_by = spec.managed_by.as_deref();
    if managed_by.is_some_and(|m| m != "kubernetes.io/job-controller") {
        return Vec::new();
    }
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let deleting = job.metadata.deletion_timestamp.is_some();
    let mut claims = Vec::new();
    let mut mine: Vec<&Pod> = Vec::new();
    for pod in o.pods.iter().map(Arc::as_ref) {
        let matches = labels::matches(spec.selector.as_ref(), pod.metadata.labels.as_ref());
        match controller_of(&pod.metadata) {
            Some(owner) if owner.uid == uid => {
                if matches || deleting {
                    mine.push(pod);
                } else {
                    claims.push(claim::release(PODS, &pod.metadata, uid, Some(TRACKING)));
                }
            }
            None if matches && !deleting && is_active(pod) && !is_finished(job) => {
                claims.push(claim::adopt(
                    PODS,
                    &pod.metadata,
                    JOBS,
                    &job.metadata,
                    Some(TRACKING),
                ));
                mine.push(pod);
            }
            _ => {}
        }
    }
    if is_finished(job) {
        claims.extend(mine.iter().filter(|p| tracked(p)).map(|p| untrack(p)));
        return claims;
    }
    let old = serde_json::to_value(&job.status)
        .ok()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    let mut s = Sync {
        job,
        spec,
        now,
        mine,
        conditions: old["conditions"].as_array().cloned().unwrap_or_default(),
        status: old.clone(),
        counted: Vec::new(),
        before: claims,
        after: Vec::new(),
    };
    let suspended = spec.suspend == Some(true);
    if s.status.get("startTime").is_none_or(Value::is_null) && !suspended {
        s.status["startTime"] = rfc3339(now).into();
    }
    s.count();
    let active: Vec<&Pod> = s.mine.iter().copied().filter(|p| is_active(p)).collect();
    if !s.is("FailureTarget")
        && !s.is("SuccessCriteriaMet")
        && let Some((reason, message)) = s.failure()
    {
        s.set("FailureTarget", "True", reason, &message);
    }
    let succeeded = s.total("succeeded");
    let complete = match spec.completions {
        None => succeeded > 0 && active.is_empty(),
        Some(n) => succeeded >= i64::from(n),
    };
    if complete && !s.is("FailureTarget") && !suspended {
        let message = "Reached expected number of succeeded pods";
        s.set("SuccessCriteriaMet", "True", "CompletionsReached", message);
    }
    if let Some(rule) = s.success_rule()
        && !s.is("FailureTarget")
        && !s.is("SuccessCriteriaMet")
        && !suspended
    {
        let message = format!("Matched rules at index {rule}");
        s.set("SuccessCriteriaMet", "True", "SuccessPolicy", &message);
    }
    let ending = s.is("FailureTarget") || s.is("SuccessCriteriaMet");
    let terminating = s
        .mine
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_some() && !is_terminal(p))
        .count();
    if ending {
        if o.caught_up {
            s.before.extend(active.iter().map(|p| remove(p)));
        }
        s.finish(&active, terminating);
    } else if !deleting {
        if o.caught_up {
            s.manage(&active, random);
        }
        if suspended {
            if s.set("Suspended", "True", "JobSuspended", "Job suspended") {
                s.event(false, "Suspended", "Job suspended");
            }
        } else if s.set("Suspended", "False", "JobResumed", "Job resumed") {
            s.status["startTime"] = rfc3339(now).into();
            s.event(false, "Resumed", "Job resumed");
        }
    }
    s.status["active"] = active.len().into();
    s.status["ready"] = active.iter().filter(|p| is_ready(p)).count().into();
    s.status["terminating"] = terminating.into();
    s.write(&old)
}

impl Sync<'_> {
    /// The last condition, once every pod has ended and is counted.
    fn finish(&mut self, active: &[&Pod], terminating: usize) {
        let open = self.mine.iter().any(|p| tracked(p))
            || !self.uncounted("succeeded").is_empty()
            || !self.uncounted("failed").is_empty();
        if open || !active.is_empty() || terminating > 0 {
            return;
        }
        let of = |name: &str| {
            let c = self.conditions.iter().find(|c| c["type"] == name);
            let text = |k: &str| {
                let v = c.and_then(|c| c[k].as_str());
                v.unwrap_or_default().to_string()
            };
            (text("reason"), text("message"))
        };
        if self.is("SuccessCriteriaMet") {
            let (reason, message) = of("SuccessCriteriaMet");
            self.set("Complete", "True", &reason, &message);
            self.status["completionTime"] = rfc3339(self.now).into();
            self.event(false, "Completed", "Job completed");
            return;
        }
        let (reason, message) = of("FailureTarget");
        self.set("Failed", "True", &reason, &message);
        let reason = match reason.as_str() {
            "DeadlineExceeded" => "DeadlineExceeded",
            "PodFailurePolicy" => "PodFailurePolicy",
            _ => "BackoffLimitExceeded",
        };
        self.event(true, reason, message);
    }

    /// Status, then finalizers, then new pods.
    fn write(mut self, old: &Value) -> Vec<Action> {
        // Zero is absent, as Go writes it; `ready` and `terminating` are pointers there and are always written.
        for key in ["active", "succeeded", "failed"] {
            if self.number(key) == 0 {
                self.status.as_object_mut().map(|s| s.remove(key));
            }
        }
        if let Some(u) = self.status["uncountedTerminatedPods"].as_object_mut() {
            u.retain(|_, v| v.as_array().is_some_and(|l| !l.is_empty()));
        }
        if !self.conditions.is_empty() {
            self.status["conditions"] = self.conditions.clone().into();
        }
        let mut actions = self.before;
        if let Some(patch) = merge_difference(old, &self.status) {
            let meta = &self.job.metadata;
            actions.push(Action::Patch {
                kind: JOBS,
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                subresource: "status",
                // The revision: counts must not be made from a status that is no longer there.
                patch: json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
                    "status": patch}),
            });
        }
        actions.extend(self.counted.iter().map(|p| untrack(p)));
        actions.extend(self.after);
        actions
    }
}
