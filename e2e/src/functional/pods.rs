//! The life of a pod.

use super::IMAGE;
use crate::framework::{Cluster, Scratch, eventually};
use anyhow::{Result, bail, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

fn pod(name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|l| format!("  {l}\n")).collect();
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{spec}")
        .replace("IMAGE", IMAGE)
}

fn until(ns: &Scratch, name: &str, what: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(Duration::from_secs(40), || {
        let p = ns.json(&["get", "pod", name])?;
        if good(&p) {
            Ok(p)
        } else {
            bail!("{what}: {}", p["status"])
        }
    })
}

fn events(ns: &Scratch, reason: &str) -> Result<String> {
    eventually(Duration::from_secs(20), || {
        let text = ns.kubectl(&[
            "get",
            "events",
            "--field-selector",
            &format!("reason={reason}"),
            "-o",
            "jsonpath={.items[*].message}",
        ])?;
        if text.trim().is_empty() {
            bail!("no event {reason}")
        } else {
            Ok(text)
        }
    })
}

pub fn crash_loop(c: &Cluster) -> Result<()> {
    let ns = c.scratch("crash")?;
    ns.apply(&pod(
        "p",
        "containers:\n- {name: c, image: IMAGE, command: [sh, -c, 'echo bye; exit 3']}",
    ))?;
    let p = until(&ns, "p", "restarted once and waiting", |p| {
        let s = &p["status"]["containerStatuses"][0];
        s["restartCount"].as_i64() >= Some(1)
            && s["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    ensure!(
        p["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 3,
        "{}",
        p["status"]
    );
    events(&ns, "BackOff").map(|_| ())
}

pub fn init_containers(c: &Cluster) -> Result<()> {
    let ns = c.scratch("init")?;
    ns.apply(&pod(
        "p",
        "volumes: [{name: v, emptyDir: {}}]
initContainers:
- {name: one, image: IMAGE, command: [sh, -c, 'echo one >> /v/log'], volumeMounts: [{name: v, mountPath: /v}]}
- {name: two, image: IMAGE, command: [sh, -c, 'echo two >> /v/log'], volumeMounts: [{name: v, mountPath: /v}]}
containers:
- {name: c, image: IMAGE, command: [sh, -c, 'cat /v/log; sleep 1000'], volumeMounts: [{name: v, mountPath: /v}]}",
    ))?;
    ns.wait_pod("p")?;
    let log = ns.kubectl(&["logs", "p", "-c", "c"])?;
    ensure!(log == "one\ntwo\n", "{log:?}");
    Ok(())
}

pub fn liveness(c: &Cluster) -> Result<()> {
    let ns = c.scratch("alive")?;
    ns.apply(&pod(
        "p",
        "terminationGracePeriodSeconds: 1
containers:
- name: c
  image: IMAGE
  command: [sh, -c, 'touch /tmp/ok; sleep 3; rm /tmp/ok; sleep 1000']
  livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}",
    ))?;
    until(&ns, "p", "restarted", |p| {
        p["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
    })?;
    events(&ns, "Unhealthy").map(|_| ())
}

pub fn readiness(c: &Cluster) -> Result<()> {
    let ns = c.scratch("ready")?;
    ns.apply(&pod(
        "p",
        "containers:
- name: c
  image: IMAGE
  command: [sh, -c, 'sleep 1000']
  readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1}",
    ))?;
    let ready = |p: &Value| p["status"]["containerStatuses"][0]["ready"] == true;
    until(&ns, "p", "running", |p| {
        p["status"]["phase"] == "Running" && !ready(p)
    })?;
    ns.kubectl(&["exec", "p", "--", "touch", "/tmp/ok"])?;
    until(&ns, "p", "ready", ready)?;
    ns.kubectl(&["exec", "p", "--", "rm", "/tmp/ok"])?;
    until(&ns, "p", "no longer ready", |p| !ready(p)).map(|_| ())
}

pub fn exit_codes(c: &Cluster) -> Result<()> {
    let ns = c.scratch("ends")?;
    for (name, code, phase) in [("good", 0, "Succeeded"), ("bad", 7, "Failed")] {
        ns.apply(&pod(name, &format!("restartPolicy: Never\ncontainers:\n- {{name: c, image: IMAGE, command: [sh, -c, 'echo last words > /dev/termination-log; exit {code}']}}")))?;
        let p = until(&ns, name, phase, |p| p["status"]["phase"] == phase)?;
        let t = &p["status"]["containerStatuses"][0]["state"]["terminated"];
        ensure!(
            t["exitCode"] == code && t["message"] == "last words\n",
            "{t}"
        );
    }
    Ok(())
}

pub fn termination(c: &Cluster) -> Result<()> {
    let ns = c.scratch("ending")?;
    let work = std::env::temp_dir().join(format!("skiff-e2e-hook-{}", std::process::id()));
    std::fs::create_dir_all(&work)?;
    ns.apply(&pod(
        "p",
        &format!(
            "terminationGracePeriodSeconds: 20
volumes: [{{name: v, hostPath: {{path: {}}}}}]
containers:
- name: c
  image: IMAGE
  command: [sh, -c, 'trap \"echo term >> /v/log; exit 0\" TERM; while true; do sleep 0.1; done']
  volumeMounts: [{{name: v, mountPath: /v}}]
  lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo hook >> /v/log']}}}}}}",
            work.display()
        ),
    ))?;
    ns.wait_pod("p")?;
    let begun = Instant::now();
    ns.kubectl(&["delete", "pod", "p", "--timeout=15s"])?;
    let took = begun.elapsed();
    let log = std::fs::read_to_string(work.join("log")).unwrap_or_default();
    let _ = std::fs::remove_dir_all(&work);
    ensure!(log == "hook\nterm\n", "{log:?}");
    ensure!(
        took < Duration::from_secs(10),
        "a pod that ends at once is gone at once: {took:?}"
    );
    Ok(())
}

pub fn oom(c: &Cluster) -> Result<()> {
    let ns = c.scratch("oom")?;
    ns.apply(&pod(
        "p",
        "restartPolicy: Never
containers:
- name: c
  image: IMAGE
  command: [sh, -c, 'x=a; while true; do x=$x$x; done']
  resources: {limits: {memory: 24Mi}}",
    ))?;
    let p = until(&ns, "p", "failed", |p| p["status"]["phase"] == "Failed")?;
    let t = &p["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(t["reason"] == "OOMKilled" && t["exitCode"] == 137, "{t}");
    Ok(())
}

pub fn security(c: &Cluster) -> Result<()> {
    let ns = c.scratch("security")?;
    ns.apply(&pod(
        "p",
        "restartPolicy: Never
securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, seccompProfile: {type: RuntimeDefault}}
containers:
- name: c
  image: IMAGE
  command: [sh, -c, 'id -u; id -g; grep -E \"^(CapEff|NoNewPrivs|Seccomp):\" /proc/self/status; touch /x 2>&1; hostname']
  securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}",
    ))?;
    until(&ns, "p", "ended", |p| p["status"]["phase"] == "Succeeded")?;
    let log = ns.kubectl(&["logs", "p"])?;
    for part in [
        "1234\n",
        "2345\n",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Read-only file system",
        "\np\n",
    ] {
        ensure!(log.contains(part), "{part:?} is not in:\n{log}");
    }
    Ok(())
}

pub fn missing_image(c: &Cluster) -> Result<()> {
    let ns = c.scratch("image")?;
    ns.apply(&pod(
        "never",
        "containers:\n- {name: c, image: 'test.skiff/none:1', imagePullPolicy: Never}",
    ))?;
    ns.apply(&pod(
        "pull",
        "containers:\n- {name: c, image: '127.0.0.1:9/none:1'}",
    ))?;
    let reason =
        |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    until(&ns, "never", "ErrImageNeverPull", |p| {
        reason(p) == "ErrImageNeverPull"
    })?;
    until(&ns, "pull", "ImagePullBackOff", |p| {
        reason(p) == "ImagePullBackOff" || reason(p) == "ErrImagePull"
    })?;
    let text = events(&ns, "Failed")?;
    ensure!(text.contains("127.0.0.1:9/none:1"), "{text}");
    Ok(())
}
