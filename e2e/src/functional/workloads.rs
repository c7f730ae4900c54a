//! Deployments, namespaces, scheduling.

use super::IMAGE;
use crate::framework::{Cluster, Scratch, eventually};
use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

fn web(replicas: u32, text: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {IMAGE}
        command: [sh, -c, \"mkdir /tmp/www; echo {text} > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www\"]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: http}}]
"
    )
}

fn rolled_out(ns: &Scratch) -> Result<()> {
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .map(|_| ())
        .map_err(|e| {
            e.context(
                ns.kubectl(&["describe", "deployments,replicasets,pods"])
                    .unwrap_or_default(),
            )
        })
}

fn ask(cluster: &Cluster, ns: &Scratch) -> Result<String> {
    let service = ns.json(&["get", "service", "web"])?;
    let ip = service["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?
        .to_string();
    let mut command = cluster.inside("curl");
    command
        .args(["-sS", "-m", "2"])
        .arg(format!("http://{ip}/"));
    crate::framework::output(&mut command)
}

pub fn deployment_and_service(c: &Cluster) -> Result<()> {
    let ns = c.scratch("hello")?;
    ns.apply(&web(2, "one"))?;
    rolled_out(&ns)?;
    let page = eventually(Duration::from_secs(10), || ask(c, &ns))?;
    ensure!(page.trim() == "one", "{page}");
    let slices = ns.json(&[
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=web",
    ])?;
    ensure!(
        slices["items"][0]["endpoints"].as_array().map(Vec::len) == Some(2),
        "{slices}"
    );
    Ok(())
}

pub fn rollout_and_undo(c: &Cluster) -> Result<()> {
    let ns = c.scratch("rollout")?;
    ns.apply(&web(2, "one"))?;
    rolled_out(&ns)?;
    ns.apply(&web(2, "two"))?;
    rolled_out(&ns)?;
    eventually(Duration::from_secs(10), || {
        let page = ask(c, &ns)?;
        if page.trim() == "two" {
            Ok(())
        } else {
            bail!("{page}")
        }
    })?;
    let history = ns.kubectl(&["rollout", "history", "deployment/web"])?;
    ensure!(
        history
            .lines()
            .filter(|l| l.starts_with(['1', '2']))
            .count()
            == 2,
        "{history}"
    );
    ns.kubectl(&["rollout", "undo", "deployment/web"])?;
    rolled_out(&ns)?;
    eventually(Duration::from_secs(10), || {
        let page = ask(c, &ns)?;
        if page.trim() == "one" {
            Ok(())
        } else {
            bail!("{page}")
        }
    })
}

pub fn scale(c: &Cluster) -> Result<()> {
    let ns = c.scratch("scale")?;
    ns.apply(&web(1, "x"))?;
    rolled_out(&ns)?;
    for n in ["4", "0"] {
        ns.kubectl(&["scale", "deployment/web", &format!("--replicas={n}")])?;
        eventually(Duration::from_secs(30), || {
            let pods = ns.json(&["get", "pods"])?;
            let have = pods["items"].as_array().map_or(0, Vec::len);
            if have.to_string() == n {
                Ok(())
            } else {
                bail!("{have} pods, not {n}")
            }
        })?;
    }
    Ok(())
}

pub fn cascade(c: &Cluster) -> Result<()> {
    let ns = c.scratch("cascade")?;
    ns.apply(&web(2, "x"))?;
    rolled_out(&ns)?;
    ns.kubectl(&["delete", "deployment", "web", "--timeout=30s"])?;
    eventually(Duration::from_secs(30), || {
        let left = ns.kubectl(&["get", "replicasets,pods", "-o", "name"])?;
        if left.trim().is_empty() {
            Ok(())
        } else {
            bail!("still there: {left}")
        }
    })
}

pub fn namespace_deletion(c: &Cluster) -> Result<()> {
    let ns = c.scratch("doomed")?;
    ns.apply(&web(1, "x"))?;
    ns.kubectl(&["create", "configmap", "m", "--from-literal=a=b"])?;
    rolled_out(&ns)?;
    c.kubectl(&["delete", "namespace", "doomed", "--timeout=40s"])?;
    ensure!(c.kubectl(&["get", "namespace", "doomed"]).is_err());
    Ok(())
}

pub fn unschedulable(c: &Cluster) -> Result<()> {
    let ns = c.scratch("nowhere")?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: big}}\nspec:\n  nodeSelector: {{disk: none}}\n  containers:\n  - {{name: c, image: {IMAGE}, command: [sleep, '1000']}}\n"
    ))?;
    eventually(Duration::from_secs(20), || {
        let pod = ns.json(&["get", "pod", "big"])?;
        let text = pod["status"]["conditions"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_string();
        if text.starts_with(
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector",
        ) {
            Ok(())
        } else {
            bail!("{}", pod["status"])
        }
    })?;
    // A label that makes it fit is seen at once.
    c.kubectl(&["label", "node", "node-1", "disk=none"])?;
    let placed = ns.wait_pod("big");
    c.kubectl(&["label", "node", "node-1", "disk-"])?;
    placed
}
