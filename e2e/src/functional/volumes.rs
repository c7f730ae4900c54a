//! Environment and volumes.

use super::IMAGE;
use crate::framework::{Cluster, eventually};
use anyhow::{Result, bail, ensure};
use std::time::Duration;

pub fn environment(c: &Cluster) -> Result<()> {
    let ns = c.scratch("env")?;
    ns.apply(&format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: m}}
data: {{color: red, size: big}}
---
apiVersion: v1
kind: Secret
metadata: {{name: s}}
stringData: {{password: hush}}
---
apiVersion: v1
kind: Pod
metadata: {{name: p, labels: {{tier: front}}}}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: {IMAGE}
    command: [sh, -c, 'echo \"$COLOR $MAP_size $PASSWORD $NAME $TIER $CPU $BOTH\"']
    resources: {{limits: {{cpu: 500m}}}}
    envFrom: [{{prefix: MAP_, configMapRef: {{name: m}}}}]
    env:
    - {{name: COLOR, valueFrom: {{configMapKeyRef: {{name: m, key: color}}}}}}
    - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: s, key: password}}}}}}
    - {{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
    - {{name: TIER, valueFrom: {{fieldRef: {{fieldPath: \"metadata.labels['tier']\"}}}}}}
    - {{name: CPU, valueFrom: {{resourceFieldRef: {{resource: limits.cpu, divisor: 1m}}}}}}
    - {{name: BOTH, value: $(COLOR)-$(NAME)}}
"
    ))?;
    let log = eventually(Duration::from_secs(20), || {
        let log = ns.kubectl(&["logs", "p"])?;
        if log.is_empty() {
            bail!("no log yet")
        } else {
            Ok(log)
        }
    })?;
    ensure!(log == "red big hush p front 500 red-p\n", "{log:?}");
    Ok(())
}

pub fn files(c: &Cluster) -> Result<()> {
    let ns = c.scratch("files")?;
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
  containers:
  - name: c
    image: {IMAGE}
    command: [sleep, '1000']
    volumeMounts:
    - {{name: m, mountPath: /m}}
    - {{name: s, mountPath: /s}}
    - {{name: d, mountPath: /d}}
    - {{name: m, mountPath: /single, subPath: a.txt}}
  volumes:
  - {{name: m, configMap: {{name: m}}}}
  - {{name: s, secret: {{secretName: s, defaultMode: 0400}}}}
  - name: d
    projected:
      sources:
      - downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}
      - serviceAccountToken: {{path: token, expirationSeconds: 3600}}
      - configMap: {{name: m, items: [{{key: a.txt, path: sub/b.txt}}]}}
"
    ))?;
    ns.wait_pod("p")?;
    let read = |path: &str| ns.kubectl(&["exec", "p", "--", "cat", path]);
    ensure!(read("/m/a.txt")? == "one");
    ensure!(read("/single")? == "one");
    ensure!(read("/s/key")? == "hush");
    ensure!(
        ns.kubectl(&["exec", "p", "--", "stat", "-L", "-c", "%a", "/s/key"])?
            .trim()
            == "400"
    );
    ensure!(read("/d/labels")?.trim() == "x=\"why\"");
    ensure!(read("/d/sub/b.txt")? == "one");
    ensure!(read("/d/token")?.split('.').count() == 3);
    ns.kubectl(&[
        "patch",
        "configmap",
        "m",
        "-p",
        "{\"data\":{\"a.txt\":\"two\"}}",
    ])?;
    eventually(Duration::from_secs(20), || {
        let now = read("/m/a.txt")?;
        if now == "two" { Ok(()) } else { bail!("{now}") }
    })
}

pub fn empty_dir(c: &Cluster) -> Result<()> {
    let ns = c.scratch("empty")?;
    ns.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: p}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: v, emptyDir: {{}}}}, {{name: r, emptyDir: {{medium: Memory, sizeLimit: 8Mi}}}}]
  containers:
  - {{name: a, image: {IMAGE}, command: [sh, -c, 'echo hi > /v/f; sleep 1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}
  - {{name: b, image: {IMAGE}, command: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /w}}, {{name: r, mountPath: /r}}]}}
"
    ))?;
    ns.wait_pod("p")?;
    eventually(Duration::from_secs(5), || {
        let text = ns.kubectl(&["exec", "p", "-c", "b", "--", "cat", "/w/f"])?;
        if text == "hi\n" {
            Ok(())
        } else {
            bail!("{text}")
        }
    })?;
    let mounts = ns.kubectl(&["exec", "p", "-c", "b", "--", "grep", " /r ", "/proc/mounts"])?;
    ensure!(
        mounts.starts_with("tmpfs") && mounts.contains("size=8192k"),
        "{mounts}"
    );
    Ok(())
}

pub fn host_path(c: &Cluster) -> Result<()> {
    let ns = c.scratch("hostpath")?;
    let dir = std::env::temp_dir().join(format!("skiff-e2e-hostpath-{}", std::process::id()));
    ns.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: p}}
spec:
  restartPolicy: Never
  volumes: [{{name: v, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]
  containers:
  - {{name: a, image: {IMAGE}, command: [sh, -c, 'echo hi > /v/f'], volumeMounts: [{{name: v, mountPath: /v}}]}}
",
        dir.display()
    ))?;
    let read = eventually(Duration::from_secs(20), || {
        Ok(std::fs::read_to_string(dir.join("f"))?)
    });
    let _ = std::fs::remove_dir_all(&dir);
    ensure!(read? == "hi\n");
    Ok(())
}
