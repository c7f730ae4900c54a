//! Jobs, cron jobs, the other kinds of workloads, quotas and disruption budgets.

use super::IMAGE;
use crate::framework::{Cluster, Scratch, eventually};
use anyhow::{Result, bail, ensure};
use serde_json::Value;
use std::time::Duration;

/// A template's spec with one container.
fn pod(restart: &str, command: &str) -> String {
    format!(
        "{{restartPolicy: {restart}, terminationGracePeriodSeconds: 1, \
         containers: [{{name: c, image: \"{IMAGE}\", command: [sh, -c, \"{command}\"]}}]}}"
    )
}

fn job(name: &str, spec: &str, command: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec: {{{spec}, template: {{spec: {}}}}}\n",
        pod("Never", command)
    )
}

fn workload(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: w}}\nspec: {{{spec}, selector: {{matchLabels: {{app: w}}}}, \
         template: {{metadata: {{labels: {{app: w}}}}, spec: {}}}}}\n",
        pod("Always", "exec sleep 1000")
    )
}

fn wait(ns: &Scratch, condition: &str, what: &str) -> Result<()> {
    let condition = format!("--for=condition={condition}");
    ns.kubectl(&["wait", &condition, "--timeout=60s", what])
        .map(|_| ())
}

fn names(ns: &Scratch) -> Result<Vec<String>> {
    let pods = ns.json(&["get", "pods"])?;
    let items = pods["items"].as_array().into_iter().flatten();
    Ok(items
        .filter_map(|p| p["metadata"]["name"].as_str().map(String::from))
        .collect())
}

/// Waits until a field of an object is as it should be.
fn field(ns: &Scratch, what: &str, path: &str, want: Value) -> Result<()> {
    eventually(Duration::from_secs(60), || {
        let o = ns.json(&["get", what])?;
        let have = o.pointer(path).cloned().unwrap_or_default();
        if have != want {
            bail!("{what} {path} is {have}, not {want}");
        }
        Ok(())
    })
}

pub fn jobs(c: &Cluster) -> Result<()> {
    let ns = c.scratch("jobs")?;
    ns.apply(&job("many", "parallelism: 2, completions: 3", "true"))?;
    ns.apply(&job(
        "indexed",
        "completionMode: Indexed, parallelism: 2, completions: 2",
        "echo index $JOB_COMPLETION_INDEX",
    ))?;
    ns.apply(&job("bad", "backoffLimit: 0", "exit 3"))?;
    ns.apply(&job("late", "activeDeadlineSeconds: 1", "sleep 1000"))?;
    wait(&ns, "complete", "job/many")?;
    wait(&ns, "complete", "job/indexed")?;
    wait(&ns, "failed", "job/bad")?;
    wait(&ns, "failed", "job/late")?;
    let status = ns.json(&["get", "job/many"])?["status"].clone();
    ensure!(status["succeeded"] == 3, "{status}");
    let status = ns.json(&["get", "job/indexed"])?["status"].clone();
    ensure!(status["completedIndexes"] == "0,1", "{status}");
    let logs = ns.kubectl(&["logs", "-l", "job-name=indexed"])?;
    ensure!(
        logs.contains("index 0") && logs.contains("index 1"),
        "{logs}"
    );
    let status = ns.json(&["get", "job/late"])?["status"].clone();
    ensure!(status.to_string().contains("DeadlineExceeded"), "{status}");
    // No pod is held back by the finalizer.
    ns.kubectl(&["delete", "jobs", "--all"])?;
    eventually(Duration::from_secs(30), || {
        let left = names(&ns)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

pub fn stateful_set(c: &Cluster) -> Result<()> {
    let ns = c.scratch("stateful")?;
    ns.apply(&workload("StatefulSet", "replicas: 2, serviceName: w"))?;
    ns.kubectl(&["rollout", "status", "statefulset/w", "--timeout=60s"])?;
    ensure!(names(&ns)? == ["w-0", "w-1"], "{:?}", names(&ns));
    ns.kubectl(&["set", "env", "statefulset/w", "A=1"])?;
    ns.kubectl(&["rollout", "status", "statefulset/w", "--timeout=60s"])?;
    let pods = ns.json(&["get", "pods"])?;
    let env = "/spec/containers/0/env/0/name";
    let mut items = pods["items"].as_array().into_iter().flatten();
    ensure!(items.all(|p| p.pointer(env).is_some()), "{pods}");
    ns.kubectl(&["scale", "statefulset/w", "--replicas=1"])?;
    eventually(Duration::from_secs(30), || {
        let left = names(&ns)?;
        ensure!(left == ["w-0"], "{left:?}");
        Ok(())
    })
}

pub fn daemon_set(c: &Cluster) -> Result<()> {
    let ns = c.scratch("daemon")?;
    ns.apply(&workload("DaemonSet", "minReadySeconds: 0"))?;
    ns.kubectl(&["rollout", "status", "daemonset/w", "--timeout=60s"])?;
    let first = names(&ns)?;
    ensure!(first.len() == 1, "{first:?}");
    ns.kubectl(&["set", "env", "daemonset/w", "A=1"])?;
    ns.kubectl(&["rollout", "status", "daemonset/w", "--timeout=60s"])?;
    field(&ns, "daemonset/w", "/status/numberAvailable", 1.into())
}

pub fn quota(c: &Cluster) -> Result<()> {
    let ns = c.scratch("quota")?;
    ns.apply(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: q}\nspec: {hard: {configmaps: \"3\", pods: \"1\"}}\n",
    )?;
    // Every namespace has kube-root-ca.crt.
    field(&ns, "quota/q", "/status/used/configmaps", "1".into())?;
    ns.kubectl(&["create", "configmap", "a"])?;
    field(&ns, "quota/q", "/status/used/configmaps", "2".into())?;
    ns.kubectl(&["delete", "configmap", "a"])?;
    field(&ns, "quota/q", "/status/used/configmaps", "1".into())?;
    ns.apply(&workload("Deployment", "replicas: 2"))?;
    field(&ns, "quota/q", "/status/used/pods", "1".into())
}

pub fn budget(c: &Cluster) -> Result<()> {
    let ns = c.scratch("budget")?;
    ns.apply(&workload("Deployment", "replicas: 2"))?;
    ns.apply(
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: b}\n\
         spec: {maxUnavailable: 1, selector: {matchLabels: {app: w}}}\n",
    )?;
    field(&ns, "pdb/b", "/status/disruptionsAllowed", 1.into())?;
    field(&ns, "pdb/b", "/status/expectedPods", 2.into())?;
    ns.kubectl(&["scale", "deployment/w", "--replicas=1"])?;
    field(&ns, "pdb/b", "/status/expectedPods", 1.into())
}
