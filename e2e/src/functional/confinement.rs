//! What a pod can ask for to become the node, and a profile of the node's that it may ask for.

use super::IMAGE;
use crate::framework::{Cluster, eventually};
use anyhow::{Result, bail, ensure};
use serde_json::Value;
use std::time::Duration;

/// A pod of one container; `pod` and `container` are more fields of the specs, in flow style.
fn pod(name: &str, pod: &str, container: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec: {{terminationGracePeriodSeconds: 1, restartPolicy: Never, {pod}containers: [{{name: c, image: {IMAGE}, command: [sleep, '1000'], {container}}}]}}
"
    )
}

pub fn refusals(c: &Cluster) -> Result<()> {
    let ns = c.scratch("becomes-the-node")?;
    let unmasked = ns.apply(&pod(
        "unmasked",
        "",
        "securityContext: {procMount: Unmasked}",
    ));
    let said = format!("{:?}", unmasked.err());
    ensure!(said.contains("`hostUsers` must be false"), "{said}");
    let dir = c.data_dir.join("agent/kubelet/seccomp/team");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(
        dir.join("no-chmod.json"),
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#,
    )?;
    std::fs::write(
        dir.join("bad.json"),
        r#"{"defaultAction":"SCMP_ACT_DANCE"}"#,
    )?;
    let local = |file: &str| {
        format!(
            "securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: {file}}}}}, "
        )
    };
    let volume = |at: &str| format!("volumeMounts: [{{name: v, mountPath: {at}}}]");
    let with_volume = "volumes: [{name: v, emptyDir: {}}], ";
    ns.apply(&pod("local", &local("team/no-chmod.json"), ""))?;
    ns.apply(&pod("bad", &local("team/bad.json"), ""))?;
    ns.apply(&pod("gone", &local("team/gone.json"), ""))?;
    ns.apply(&pod("proc", with_volume, &volume("/proc")))?;
    ns.apply(&pod("proc-sys", with_volume, &volume("/proc/sys/kernel")))?;
    ns.apply(&pod("dev", with_volume, &volume("/dev")))?;
    for (name, want) in [
        ("bad", "SCMP_ACT_DANCE"),
        ("gone", "gone.json"),
        ("proc", "inside /proc"),
        ("proc-sys", "inside /proc"),
    ] {
        eventually(Duration::from_secs(40), || {
            let p = ns.json(&["get", "pod", name])?;
            let waiting = &p["status"]["containerStatuses"][0]["state"]["waiting"];
            let told = |v: &Value| v.as_str().is_some_and(|m| m.contains(want));
            if waiting["reason"] == "CreateContainerError" && told(&waiting["message"]) {
                Ok(())
            } else {
                bail!("{name}: {}", p["status"])
            }
        })?;
    }
    ns.wait_pod("local")?;
    let run = |pod: &str, script: &str| ns.kubectl(&["exec", pod, "--", "sh", "-c", script]);
    let said = run("local", "chmod 700 /tmp 2>&1; grep Seccomp: /proc/1/status")?;
    ensure!(
        said.contains("Permission denied") && said.contains("Seccomp:\t2"),
        "{said}"
    );
    ns.wait_pod("dev")?;
    let said = run("dev", "ls /dev | tr '\\n' ' '; stat -c %t:%T /proc/keys")?;
    ensure!(
        !said.contains("zero") && said.ends_with("1:3\n"),
        "devices on a volume at /dev, or a mask that is none: {said}"
    );
    Ok(())
}

/// Containers that share their processes, one of which may trace: it sees pid 1 and its neighbours as confined as itself.
pub fn shared_processes(c: &Cluster) -> Result<()> {
    let ns = c.scratch("shared-processes")?;
    ns.apply(&pod(
        "p",
        "shareProcessNamespace: true, ",
        "securityContext: {capabilities: {add: [SYS_PTRACE]}, seccompProfile: {type: RuntimeDefault}}",
    ))?;
    ns.wait_pod("p")?;
    let look = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status | tr -d '\\t'; ls /proc/1/root/; \
        for i in 1 2 3 4 5 6 7 8; do echo 1 > /proc/1/root/proc/sys/vm/swappiness; done 2>&1 | sort -u";
    let said = ns.kubectl(&["exec", "p", "--", "sh", "-c", look])?;
    for part in [
        "CapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1\nSeccomp:2\np\n",
        "nonexistent directory",
    ] {
        ensure!(said.contains(part), "{part:?} is not in {said}");
    }
    Ok(())
}
