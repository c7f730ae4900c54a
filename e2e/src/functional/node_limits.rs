//! What the node gives to pods and what it refuses: nothing is run with less than it was promised, and nothing takes more.

use super::IMAGE;
use crate::framework::{Cluster, Scratch, eventually};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn pod(name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|l| format!("  {l}\n")).collect();
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{spec}")
        .replace("IMAGE", IMAGE)
}

fn until(ns: &Scratch, name: &str, what: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(Duration::from_secs(60), || {
        let p = ns.json(&["get", "pod", name])?;
        if good(&p) {
            Ok(p)
        } else {
            bail!("{what}: {}", p["status"])
        }
    })
}

/// Pods that ask for what this node cannot give, or must not.
pub fn refused(c: &Cluster) -> Result<()> {
    let ns = c.scratch("refused")?;
    let run = "containers: [{name: c, image: IMAGE, command: [sleep, '1000']}]";
    let sysctl =
        |name: &str| format!("{run}\nsecurityContext: {{sysctls: [{{name: {name}, value: '1'}}]}}");
    for (name, spec, reason) in [
        ("unsafe", sysctl("kernel.msgmax"), "SysctlForbidden"),
        ("node-level", sysctl("vm.swappiness"), "SysctlForbidden"),
        ("slashes", sysctl("kernel/core_pattern"), "SysctlForbidden"),
        (
            "host-net",
            format!("hostNetwork: true\n{}", sysctl("net.ipv4.tcp_syncookies")),
            "SysctlForbidden",
        ),
        (
            "host-ipc",
            format!("hostIPC: true\n{}", sysctl("kernel.shm_rmid_forced")),
            "SysctlForbidden",
        ),
        (
            "label",
            format!("{run}\nsecurityContext: {{seLinuxOptions: {{type: spc_t}}}}"),
            "SELinux",
        ),
        (
            "profile",
            "containers: [{name: c, image: IMAGE, securityContext: {appArmorProfile: {type: RuntimeDefault}}}]".into(),
            "AppArmor",
        ),
        ("users", format!("hostUsers: false\n{run}"), "UnsupportedPodSpec"),
        (
            "unmasked",
            "hostUsers: false\ncontainers: [{name: c, image: IMAGE, securityContext: {procMount: Unmasked}}]".into(),
            "UnsupportedPodSpec",
        ),
    ] {
        ns.apply(&pod(name, &spec))?;
        let p = until(&ns, name, "failed", |p| p["status"]["phase"] == "Failed")?;
        ensure!(p["status"]["reason"] == reason, "{name}: {}", p["status"]);
        ensure!(p["status"]["containerStatuses"].is_null(), "{name}: {}", p["status"]);
    }
    // Without a user namespace the API itself says no.
    let unmasked = "containers: [{name: c, image: IMAGE, securityContext: {procMount: Unmasked}}]";
    let e = ns
        .apply(&pod("x", unmasked))
        .err()
        .context("procMount Unmasked was let in")?;
    ensure!(format!("{e:#}").contains("hostUsers"), "{e:#}");
    // And what is safe has its effect.
    ns.apply(&pod("safe", &sysctl("net.ipv4.tcp_syncookies")))?;
    ns.wait_pod("safe")
}

/// The directory of a pod's cgroup in the hierarchy of a controller.
fn cgroup(controller: &str, class: &str, uid: &str) -> Result<PathBuf> {
    let v1 = PathBuf::from("/sys/fs/cgroup").join(controller);
    let root = if v1.is_dir() {
        v1
    } else {
        "/sys/fs/cgroup".into()
    };
    for e in std::fs::read_dir(&root)?.flatten() {
        let dir = e
            .path()
            .join("kubepods")
            .join(class)
            .join(format!("pod{uid}"));
        if dir.is_dir() {
            return Ok(dir);
        }
    }
    bail!("no cgroup of pod {uid} below {}", root.display())
}

fn read(dir: &std::path::Path, files: [&str; 2]) -> Result<String> {
    let found = files.iter().map(|f| dir.join(f)).find(|f| f.exists());
    let file = found.with_context(|| format!("{} has none of {files:?}", dir.display()))?;
    Ok(std::fs::read_to_string(file)?.trim().to_string())
}

/// Cgroups of pods, of their classes and of all pods together.
pub fn cgroups(c: &Cluster) -> Result<()> {
    let ns = c.scratch("cgroups")?;
    ns.apply(&pod(
        "p",
        "resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: '1', memory: 64Mi}}
containers: [{name: c, image: IMAGE, command: [sleep, '1000']}]",
    ))?;
    ns.wait_pod("p")?;
    let p = ns.json(&["get", "pod", "p"])?;
    let uid = p["metadata"]["uid"].as_str().context("a uid")?;
    let memory = cgroup("memory", "burstable", uid)?;
    let limit = ["memory.limit_in_bytes", "memory.max"];
    ensure!(
        read(&memory, limit)? == (64 << 20).to_string(),
        "the pod's own limit"
    );
    let class = memory.parent().context("a class")?;
    let all = class.parent().context("kubepods")?;
    let node = c.json(&["get", "nodes"])?;
    let capacity = node["items"][0]["status"]["capacity"]["memory"]
        .as_str()
        .context("memory")?;
    let kib: u64 = capacity.trim_end_matches("Ki").parse()?;
    let held = read(all, limit)?.parse::<u64>()?;
    // The kernel counts pages.
    ensure!(
        held.abs_diff(kib << 10) < 4096,
        "kubepods is held to {held} of {capacity}"
    );
    let pids = cgroup("pids", "burstable", uid)?;
    let all = pids.ancestors().nth(2).context("kubepods")?;
    ensure!(read(all, ["pids.max", "pids.max"])?.parse::<u64>()? > 0);
    let cpu = cgroup("cpu", "burstable", uid)?;
    let shares = ["cpu.shares", "cpu.weight"];
    let class = cpu.parent().context("a class")?;
    let with = read(class, shares)?.parse::<u64>()?;
    ensure!(
        with >= if class.join("cpu.shares").exists() {
            102
        } else {
            17
        },
        "burstable weighs {with}"
    );
    let best = class.parent().context("kubepods")?.join("besteffort");
    ensure!(
        read(&best, shares)?.parse::<u64>()? <= 2,
        "best effort weighs next to nothing"
    );
    ns.kubectl(&["delete", "pod", "p", "--grace-period=1"])?;
    eventually(Duration::from_secs(20), || {
        ensure!(!cpu.exists(), "{} is left", cpu.display());
        Ok(())
    })
}

/// A pod that fills an emptyDir beyond its limit goes; its neighbour with the same volume stays.
pub fn empty_dir_limit(c: &Cluster) -> Result<()> {
    let ns = c.scratch("fills")?;
    let spec = |mib: u32| {
        format!(
            "restartPolicy: Never
terminationGracePeriodSeconds: 1
volumes: [{{name: v, emptyDir: {{sizeLimit: 2Mi}}}}]
containers:
- name: c
  image: IMAGE
  command: [sh, -c, 'dd if=/dev/zero of=/v/f bs=1M count={mib}; sleep 1000']
  volumeMounts: [{{name: v, mountPath: /v}}]"
        )
    };
    ns.apply(&pod("fills", &spec(8)))?;
    ns.apply(&pod("keeps", &spec(1)))?;
    let p = until(&ns, "fills", "evicted", |p| {
        p["status"]["phase"] == "Failed"
    })?;
    ensure!(p["status"]["reason"] == "Evicted", "{}", p["status"]);
    ensure!(
        p["status"]["message"] == "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\". ",
        "{}",
        p["status"]["message"]
    );
    let p = ns.json(&["get", "pod", "keeps"])?;
    ensure!(p["status"]["phase"] == "Running", "{}", p["status"]);
    Ok(())
}

/// A container behind an init container that failed never ran, and says so.
pub fn never_ran(c: &Cluster) -> Result<()> {
    let ns = c.scratch("never-ran")?;
    ns.apply(&pod(
        "p",
        "restartPolicy: Never
initContainers: [{name: i, image: IMAGE, command: [sh, -c, 'exit 3']}]
containers: [{name: c, image: IMAGE, command: [sleep, '1000']}]",
    ))?;
    let p = until(&ns, "p", "failed", |p| p["status"]["phase"] == "Failed")?;
    let state = &p["status"]["containerStatuses"][0]["state"];
    ensure!(state["waiting"]["reason"] == "PodInitializing", "{state}");
    Ok(())
}

/// lifecycle.stopSignal ends a container that does not hear SIGTERM.
pub fn stop_signal(c: &Cluster) -> Result<()> {
    let ns = c.scratch("signal")?;
    let spec = "os: {name: linux}
terminationGracePeriodSeconds: 60
containers:
- name: c
  image: IMAGE
  command: [sh, -c, \"trap '' TERM; trap 'exit 0' USR1; while :; do sleep 0.1; done\"]
  lifecycle: {stopSignal: SIGUSR1}";
    ns.apply(&pod("p", spec))?;
    ns.wait_pod("p")?;
    let status = ns.json(&["get", "pod", "p"])?;
    ensure!(
        status["status"]["containerStatuses"][0]["stopSignal"] == "SIGUSR1",
        "{status}"
    );
    let begun = Instant::now();
    ns.kubectl(&["delete", "pod", "p"])?;
    ensure!(
        begun.elapsed() < Duration::from_secs(30),
        "it was killed after its grace"
    );
    let without = spec.replace("os: {name: linux}\n", "");
    let e = ns
        .apply(&pod("q", &without))
        .err()
        .context("a stopSignal without os.name was let in")?;
    ensure!(format!("{e:#}").contains("spec.os.name"), "{e:#}");
    Ok(())
}
