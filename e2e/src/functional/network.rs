//! Pods, Services and names.

use super::IMAGE;
use crate::framework::{Cluster, Scratch, eventually, output};
use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

fn server(ns: &Scratch, name: &str) -> Result<()> {
    ns.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: {IMAGE}
    command: [sh, -c, 'mkdir /tmp/w; hostname > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w']
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
"
    ))?;
    ns.wait_pod(name)
}

pub fn api_from_pod(c: &Cluster) -> Result<()> {
    let ns = c.scratch("apipod")?;
    ns.apply("apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r}\nrules: [{apiGroups: [''], resources: [pods], verbs: [get]}]\n---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: r}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}\nsubjects: [{kind: ServiceAccount, name: default, namespace: apipod}]\n")?;
    server(&ns, "p")?;
    // Once by kubectl with what the pod holds, which shows what is refused; once from inside the pod.
    let dir = "/var/run/secrets/kubernetes.io/serviceaccount";
    let token = ns.kubectl(&["exec", "p", "--", "cat", &format!("{dir}/token")])?;
    let ca = ns.kubectl(&["exec", "p", "--", "cat", &format!("{dir}/ca.crt")])?;
    let namespace = ns.kubectl(&["exec", "p", "--", "cat", &format!("{dir}/namespace")])?;
    ensure!(namespace == ns.name, "{namespace}");
    let work = std::env::temp_dir().join(format!("skiff-e2e-ca-{}", std::process::id()));
    std::fs::write(&work, ca)?;
    let mut command = c.inside(crate::framework::kubectl_path());
    command
        .args([
            "--kubeconfig",
            "/dev/null",
            "--server",
            "https://10.43.0.1",
            "--token",
            &token,
            "--certificate-authority",
        ])
        .arg(&work)
        .args(["-n", &ns.name, "get", "pod", "p", "-o", "name"]);
    let got = output(&mut command);
    let mut denied = c.inside(crate::framework::kubectl_path());
    denied
        .args([
            "--kubeconfig",
            "/dev/null",
            "--server",
            "https://10.43.0.1",
            "--token",
            &token,
            "--certificate-authority",
        ])
        .arg(&work)
        .args(["-n", &ns.name, "get", "secrets"]);
    let refused = output(&mut denied);
    let _ = std::fs::remove_file(&work);
    ensure!(got? == "pod/p\n");
    let text = format!("{:#}", refused.err().context("secrets were readable")?);
    ensure!(
        text.contains(&format!("system:serviceaccount:{}:default", ns.name))
            && text.contains("Forbidden"),
        "{text}"
    );
    // The way from the pod itself: TLS to the Service's name, checked against the CA that is mounted there.
    let script = format!(
        "curl -sS -m 5 --cacert {dir}/ca.crt -H \"Authorization: Bearer $(cat {dir}/token)\" \
         https://kubernetes.default.svc/api/v1/namespaces/{}/pods/p",
        ns.name
    );
    let seen = ns.kubectl(&["exec", "p", "--", "sh", "-c", &script])?;
    let object: serde_json::Value = serde_json::from_str(&seen).with_context(|| seen.clone())?;
    ensure!(object["metadata"]["name"] == "p", "{seen}");
    Ok(())
}

pub fn dns(c: &Cluster) -> Result<()> {
    let ns = c.scratch("dns")?;
    server(&ns, "p")?;
    ns.apply("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: p}, ports: [{port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: head}\nspec: {clusterIP: None, selector: {app: p}, ports: [{port: 80, targetPort: 8080}]}\n")?;
    let ip = ns.json(&["get", "service", "web"])?["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?
        .to_string();
    let pod_ip = ns.json(&["get", "pod", "p"])?["status"]["podIP"]
        .as_str()
        .context("no podIP")?
        .to_string();
    let lookup = |name: &str, want: &str| {
        eventually(Duration::from_secs(10), || {
            let text = ns.kubectl(&["exec", "p", "--", "nslookup", name])?;
            if text.contains(want) {
                Ok(())
            } else {
                bail!("{name}: {text}")
            }
        })
    };
    lookup(&format!("web.{}.svc.cluster.local", ns.name), &ip)?;
    lookup(&format!("head.{}.svc.cluster.local", ns.name), &pod_ip)?;
    lookup("kubernetes.default.svc.cluster.local", "10.43.0.1")?;
    ensure!(
        ns.kubectl(&[
            "exec",
            "p",
            "--",
            "nslookup",
            "none.default.svc.cluster.local"
        ])
        .is_err()
    );
    // Search domains: the short name works in programs.
    let page = ns.kubectl(&["exec", "p", "--", "curl", "-sS", "-m", "3", "http://web/"])?;
    ensure!(page == "p\n", "{page}");
    Ok(())
}

pub fn services(c: &Cluster) -> Result<()> {
    let ns = c.scratch("services")?;
    server(&ns, "one")?;
    server(&ns, "two")?;
    ns.apply("apiVersion: v1\nkind: Service\nmetadata: {name: one}\nspec: {type: NodePort, selector: {app: one}, ports: [{port: 80, targetPort: 8080, nodePort: 31080}]}\n")?;
    let service = ns.json(&["get", "service", "one"])?;
    let ip = service["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?
        .to_string();
    let node = c.json(&["get", "node", "node-1"])?["status"]["addresses"][0]["address"]
        .as_str()
        .context("no address")?
        .to_string();
    let from_pod = |pod: &str, url: &str| {
        eventually(Duration::from_secs(10), || {
            ns.kubectl(&["exec", pod, "--", "curl", "-sS", "-m", "2", url])
        })
    };
    ensure!(from_pod("two", &format!("http://{ip}/"))? == "one\n");
    // Hairpin: the pod reaches itself through its Service.
    ensure!(from_pod("one", &format!("http://{ip}/"))? == "one\n");
    ensure!(from_pod("two", &format!("http://{node}:31080/"))? == "one\n");
    let mut host = c.inside("curl");
    host.args(["-sS", "-m", "2"])
        .arg(format!("http://{node}:31080/"));
    ensure!(output(&mut host)? == "one\n");
    // The endpoint moves: the Service follows.
    ns.kubectl(&[
        "patch",
        "service",
        "one",
        "-p",
        "{\"spec\":{\"selector\":{\"app\":\"two\"}}}",
    ])?;
    eventually(Duration::from_secs(10), || {
        let page = from_pod("two", &format!("http://{ip}/"))?;
        if page == "two\n" {
            Ok(())
        } else {
            bail!("{page}")
        }
    })
}

pub fn no_endpoints(c: &Cluster) -> Result<()> {
    let ns = c.scratch("nobody")?;
    ns.apply("apiVersion: v1\nkind: Service\nmetadata: {name: nobody}\nspec: {selector: {app: none}, ports: [{port: 80}]}\n")?;
    let ip = ns.json(&["get", "service", "nobody"])?["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?
        .to_string();
    eventually(Duration::from_secs(10), || {
        let mut host = c.inside("curl");
        host.args(["-sS", "-m", "3"]).arg(format!("http://{ip}/"));
        let text = format!("{:#}", output(&mut host).err().context("it answered")?);
        if text.contains("refused") || text.contains("reset") || text.contains("after 0 ms") {
            Ok(())
        } else {
            bail!("{text}")
        }
    })
}
