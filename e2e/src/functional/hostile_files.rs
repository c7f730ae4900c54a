//! What a pod can try with its files: to write where the kubelet writes, to show it something else than a file, to fill
//! its memory, to make it wait. None of it may reach the node or hold anybody else up.

use super::IMAGE;
use crate::framework::{Cluster, Scratch, eventually};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A restricted pod tries what once made root write outside of the volume, and reads what its group may.
pub fn read_only(c: &Cluster) -> Result<()> {
    let ns = c.scratch("kubelets-files")?;
    ns.apply(&format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: m}}
data: {{a.txt: one}}
---
apiVersion: v1
kind: Secret
metadata: {{name: s}}
stringData: {{key: hush}}
---
apiVersion: v1
kind: Pod
metadata: {{name: p, labels: {{x: why}}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsUser: 1000, runAsNonRoot: true, fsGroup: 2000, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: c
    image: {IMAGE}
    command: [sleep, '1000']
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
    volumeMounts:
    - {{name: m, mountPath: /m, readOnly: false}}
    - {{name: s, mountPath: /s}}
    - {{name: j, mountPath: /j}}
    - {{name: d, mountPath: /d}}
    - {{name: m, mountPath: /single, subPath: a.txt}}
    - {{name: m, mountPath: /sub, subPathExpr: ..data}}
    - {{name: e, mountPath: /e}}
    - {{name: r, mountPath: /r}}
  volumes:
  - {{name: m, configMap: {{name: m}}}}
  - {{name: s, secret: {{secretName: s, defaultMode: 0400}}}}
  - name: j
    projected:
      sources:
      - secret: {{name: s, items: [{{key: key, path: sub/key, mode: 0440}}]}}
      - serviceAccountToken: {{path: token}}
  - {{name: d, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}
  - {{name: e, emptyDir: {{}}}}
  - {{name: r, emptyDir: {{medium: Memory}}}}
"
    ))?;
    ns.wait_pod("p")?;
    let run = |script: &str| ns.kubectl(&["exec", "p", "--", "sh", "-c", script]);
    let tried = run("for d in /m /s /j /d /sub; do
           echo x > $d/new; mkdir $d/dir; mv $d/..data $d/x; ln -s .. $d/..9; rm -rf $d/..data $d/..2*
         done 2>/dev/null; echo x > /single; echo tried")?;
    ensure!(tried.ends_with("tried\n"), "{tried}");
    let mounts = run("cat /proc/mounts")?;
    for at in ["/m", "/s", "/j", "/d", "/single", "/sub"] {
        let line = mounts
            .lines()
            .find(|l| l.split(' ').nth(1) == Some(at))
            .with_context(|| format!("{at} is not mounted: {mounts}"))?;
        ensure!(line.contains(" ro"), "{line}");
    }
    let left = run("ls -a /m /s /j /d | grep -v '^\\.\\.2' | tr '\\n' ' '")?;
    ensure!(!left.contains("new") && !left.contains("dir"), "{left}");
    let of = |path: &str| run(&format!("stat -L -c '%a %g' {path}"));
    for (path, want) in [
        ("/m/a.txt", "644 2000"),
        ("/s/key", "440 2000"),
        ("/j/sub/key", "440 2000"),
        ("/j/token", "640 2000"),
        ("/d/labels", "644 2000"),
        ("/e", "2777 2000"),
        ("/r", "3777 2000"),
    ] {
        let got = of(path)?;
        ensure!(got.trim() == want, "{path}: {got}");
    }
    ensure!(run("cat /s/key /j/sub/key /single")? == "hushhushone");
    ns.kubectl(&[
        "patch",
        "configmap",
        "m",
        "-p",
        "{\"data\":{\"a.txt\":\"two\"}}",
    ])?;
    eventually(Duration::from_secs(20), || {
        let now = run("cat /m/a.txt")?;
        if now == "two" { Ok(()) } else { bail!("{now}") }
    })
}

fn last_words(ns: &Scratch<'_>, pod: &str) -> Result<String> {
    eventually(Duration::from_secs(30), || {
        let pod = ns.json(&["get", "pod", pod])?;
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        ensure!(ended.is_object(), "it runs: {}", pod["status"]);
        Ok(ended["message"].as_str().unwrap_or_default().to_string())
    })
}

/// The file of the last words is a FIFO, a link, a device, endless; the log ends without a newline.
pub fn messages(c: &Cluster) -> Result<()> {
    let ns = c.scratch("last-words")?;
    ns.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: log}}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: {IMAGE}
    command: [sh, -c, 'printf DONE; exit 1']
    terminationMessagePolicy: FallbackToLogsOnError
"
    ))?;
    for (name, make) in [
        ("fifo", "mkfifo /e/words"),
        ("device", "mknod /e/words c 1 5"),
        ("disk", "mknod /e/words b 254 0"),
        (
            "endless",
            "dd if=/dev/zero of=/e/words bs=1 count=0 seek=1000000M",
        ),
        ("directory", "mkdir /e/words"),
    ] {
        ns.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  volumes: [{{name: e, emptyDir: {{}}}}]
  initContainers:
  - {{name: i, image: {IMAGE}, command: [sh, -c, '{make}'], volumeMounts: [{{name: e, mountPath: /e}}]}}
  containers:
  - name: c
    image: {IMAGE}
    command: ['true']
    volumeMounts: [{{name: e, mountPath: /dev/termination-log, subPath: words}}]
"
        ))?;
    }
    ensure!(last_words(&ns, "log")? == "DONE");
    ensure!(ns.kubectl(&["logs", "log"])? == "DONE");
    for name in ["fifo", "device", "disk", "directory"] {
        let words = last_words(&ns, name)?;
        ensure!(
            words.starts_with("Error on reading termination log"),
            "{name}: {words:?}"
        );
    }
    let endless = last_words(&ns, "endless")?;
    ensure!(endless.len() <= 4096, "{}", endless.len());
    ns.kubectl(&["delete", "pod", "--all", "--timeout=30s"])?;
    Ok(())
}

fn memory(c: &Cluster, key: &str) -> Result<u64> {
    let pid = c.pid().context("no server")?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    text.lines()
        .find_map(|l| {
            l.strip_prefix(key)?
                .trim_start_matches(':')
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("no {key}"))
}

/// A container makes what the kubelet reads as large as it can; the server's memory does not follow.
pub fn large(c: &Cluster) -> Result<()> {
    let ns = c.scratch("large-files")?;
    ns.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: p}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: {IMAGE}
    command:
    - sh
    - -c
    - |
      [ -e /e/again ] && exec sleep 1000
      touch /e/again
      head -c 30000000 /dev/zero | tr '\\0' x
      dd if=/dev/zero of=/etc/hosts bs=1 count=0 seek=1G
      dd if=/dev/zero of=/dev/termination-log bs=1 count=0 seek=1G
      exit 1
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts: [{{name: e, mountPath: /e}}]
  volumes: [{{name: e, emptyDir: {{}}}}]
"
    ))?;
    ns.wait_pod("p")?;
    let before = memory(c, "VmRSS")?;
    let pid = c.pid().context("no server")?;
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let hosts = eventually(Duration::from_secs(60), || {
        let pod = ns.json(&["get", "pod", "p"])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 1, "{status}");
        let words = status["lastState"]["terminated"]["message"].as_str();
        ensure!(words.is_some_and(|w| w.len() <= 4096), "{words:?}");
        ns.kubectl(&["exec", "p", "--", "cat", "/etc/hosts"])
    })?;
    ensure!(hosts.len() < 4096 && hosts.contains("\tp\n"), "{hosts:?}");
    let log = ns.kubectl(&["logs", "p", "--previous"])?;
    ensure!(log.len() >= 20_000_000, "{}", log.len());
    let most = memory(c, "VmHWM")?;
    ensure!(most < before + (40 << 10), "{before} kB before, {most} kB");
    Ok(())
}

fn pod_dir(c: &Cluster, pod: &Value) -> PathBuf {
    c.data_dir
        .join("agent/kubelet/pods")
        .join(pod["metadata"]["uid"].as_str().unwrap_or("none"))
}

/// A container leaves a tree deeper than any path, with FIFOs and immutable files where it may make those.
pub fn trees(c: &Cluster) -> Result<()> {
    let ns = c.scratch("deep-trees")?;
    ns.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: p}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 2000}}
  containers:
  - name: c
    image: {IMAGE}
    command:
    - sh
    - -c
    - |
      cd /e; mkfifo f; ln -s / l; i=0; d=$(head -c 250 /dev/zero | tr '\\0' d)
      while [ $i -lt 150 ]; do mkdir $d; cd -P $d; mkfifo f; i=$((i+1)); done 2>/dev/null
      touch /e/done; exec sleep 1000
    volumeMounts: [{{name: e, mountPath: /e}}]
  volumes: [{{name: e, emptyDir: {{sizeLimit: 1Gi}}}}]
"
    ))?;
    ns.wait_pod("p")?;
    let pod = ns.json(&["get", "pod", "p"])?;
    let dir = pod_dir(c, &pod);
    let volume = dir.join("volumes/kubernetes.io~empty-dir/e");
    eventually(Duration::from_secs(30), || {
        ensure!(volume.join("done").exists(), "the tree is not made");
        Ok(())
    })?;
    ensure!(deep(&volume)?, "the tree is not deep");
    ns.kubectl(&["delete", "pod", "p", "--timeout=30s"])?;
    eventually(Duration::from_secs(10), || {
        ensure!(!dir.exists(), "{} is left", dir.display());
        Ok(())
    })
}

/// More and longer names than a path can have.
fn deep(volume: &Path) -> Result<bool> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut here = openat(CWD, volume, flags, Mode::empty())?;
    let name = "d".repeat(250);
    for _ in 0..150 {
        match openat(&here, &*name, flags, Mode::empty()) {
            Ok(next) => here = next,
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// A FUSE file system whose daemon never answers, not even to the first question.
struct Hung {
    daemon: Child,
    dir: PathBuf,
}

impl Hung {
    fn mount(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let script = "exec 7<>/dev/fuse && mount -i -n -t fuse -o fd=7,rootmode=40000,user_id=0,group_id=0 hang \"$0\" && \
                      echo mounted && exec sleep 1000";
        let mut daemon = Command::new("bash")
            .args(["-c", script])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let out = daemon.stdout.take().context("no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut said)?;
        let hung = Self {
            daemon,
            dir: dir.to_path_buf(),
        };
        ensure!(said == "mounted\n", "FUSE cannot be mounted here");
        Ok(hung)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Whoever waits gets an error now.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&self.dir, flags);
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Pods on a dead file system wait by themselves; others start, the node answers, and the hung ones can be deleted.
pub fn hung_mount(c: &Cluster) -> Result<()> {
    let ns = c.scratch("hung-mount")?;
    let dir = std::env::temp_dir().join(format!("skiff-e2e-hung-{}", std::process::id()));
    let hung = Hung::mount(&dir)?;
    let at = dir.display();
    let pod = |name: &str, volume: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: v, {volume}}}]
  containers: [{{name: c, image: {IMAGE}, command: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}]
---
"
        )
    };
    let mut all = String::new();
    for n in 0..6 {
        let volume = format!("hostPath: {{path: {at}/sub, type: Directory}}");
        all.push_str(&pod(&format!("hung-{n}"), &volume));
    }
    ns.apply(&all)?;
    eventually(Duration::from_secs(20), || {
        let pods = ns.json(&["get", "pods"])?;
        let seen = |p: &Value| p["status"]["hostIP"].is_string();
        let count = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|p| seen(p))
            .count();
        ensure!(count == 6, "{count} of 6 are at the kubelet");
        Ok(())
    })?;
    ns.apply(&pod("fine", "emptyDir: {medium: Memory}"))?;
    ns.wait_pod("fine")?;
    let stats = c.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"])?;
    ensure!(stats.contains("\"nodeName\""), "{stats}");
    ns.kubectl(&["delete", "pod", "hung-0", "hung-1", "fine", "--timeout=30s"])?;
    let node = c.json(&["get", "node", "node-1"])?;
    ensure!(node["metadata"]["name"] == "node-1");
    drop(hung);
    ns.kubectl(&["delete", "pod", "--all", "--timeout=30s"])?;
    Ok(())
}
