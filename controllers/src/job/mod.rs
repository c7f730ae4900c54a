//! Job controller: runs pods until enough have succeeded (pkg/controller/job). This part gathers and starts; the
//! decisions are in [`decide`]. backoffLimitPerIndex is not carried out yet.

pub mod decide;
pub mod indexed;
pub mod policy;
#[cfg(test)]
mod tests;

use crate::model::{controller_of, owner_key};
use crate::shell::{Controller, Shell};
use decide::{Observed, reconcile, tracked, untrack};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use skiff_client::{Cache, ObjectKey, labels};

/// Label that names a pod's job.
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

/// Starts the controller.
pub fn start(shell: &Shell) {
    let me = Controller::new(shell, "job-controller", true);
    let jobs = shell.informers.cache::<Job>();
    let pods = shell.informers.cache::<Pod>();
    shell.watch(&jobs, &me.queue, |job, _| vec![ObjectKey::of(job)]);
    let (all, pending) = (jobs.clone(), me.pending.clone());
    shell.watch(&pods, &me.queue, move |pod, old| {
        keys_of(pod, old, &all, &pending)
    });
    let ready = {
        let (jobs, pods) = (jobs.clone(), pods.clone());
        async move {
            jobs.synced().await;
            pods.synced().await;
        }
    };
    let this = shell.clone();
    shell.work("job", me.queue.clone(), ready, move |key| {
        let (shell, me, jobs, pods) = (this.clone(), me.clone(), jobs.clone(), pods.clone());
        async move { sync(&shell, &me, &jobs, &pods, &key).await }
    });
}

fn keys_of(
    pod: &Pod,
    old: Option<&Pod>,
    jobs: &Cache<Job>,
    pending: &crate::shell::Pending,
) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(key) = owner_key(&pod.metadata, "Job") {
        pending.seen(&key, pod.metadata.name.as_deref().unwrap_or_default());
        keys.push(key);
    } else if controller_of(&pod.metadata).is_none() {
        let pod_labels = pod.metadata.labels.as_ref();
        if let Some(name) = pod_labels
            .and_then(|l| l.get(JOB_NAME))
            .filter(|_| tracked(pod))
        {
            keys.push(ObjectKey::new(namespace, name));
        }
        for job in jobs.list_namespace(namespace) {
            let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
            if labels::matches(selector, pod_labels) {
                keys.push(ObjectKey::of(&*job));
            }
        }
    }
    let was = old.and_then(|o| owner_key(&o.metadata, "Job"));
    keys.extend(was.filter(|k| !keys.contains(k)));
    keys
}

async fn sync(
    shell: &Shell,
    me: &Controller,
    jobs: &Cache<Job>,
    pods: &Cache<Pod>,
    key: &ObjectKey,
) -> Result<(), kube::Error> {
    let all = pods.list_namespace(&key.namespace);
    let job = jobs.get(&key.namespace, &key.name);
    let uid = job.as_ref().and_then(|j| j.metadata.uid.clone());
    // Pods of a job that is gone are let go: nobody is left to count them.
    for pod in all.iter().filter(|p| tracked(p)) {
        let owner = controller_of(&pod.metadata);
        let name = owner.map(|o| o.name.as_str()).or_else(|| {
            let l = pod.metadata.labels.as_ref()?;
            l.get(JOB_NAME).map(String::as_str)
        });
        let ours = owner.is_none_or(|o| o.kind == "Job") && name == Some(key.name.as_str());
        let alive = owner.is_some_and(|o| Some(&o.uid) == uid.as_ref())
            || (owner.is_none() && job.is_some());
        if ours && !alive {
            crate::action::execute(shell.client(), &untrack(pod)).await?;
        }
    }
    let Some(job) = job else {
        me.pending.forget(key);
        return Ok(());
    };
    let caught_up = me
        .pending
        .caught_up_with(key, uid.as_deref().unwrap_or_default(), &all);
    let observed = Observed {
        job: &job,
        pods: &all,
        caught_up,
    };
    let actions = reconcile(&observed, Timestamp::now(), &mut rand::random);
    shell.run_actions(me, key, &*job, actions).await
}
