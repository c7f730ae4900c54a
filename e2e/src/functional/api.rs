//! The API as clients see it.

use super::IMAGE;
use crate::framework::{Cluster, eventually, output};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

fn refused(c: &Cluster, yaml: &str) -> Result<String> {
    let e = c
        .kubectl_with(&["create", "-f", "-"], yaml)
        .err()
        .with_context(|| format!("accepted: {yaml}"))?;
    Ok(format!("{e:#}"))
}

pub fn bad_objects(c: &Cluster) -> Result<()> {
    for (yaml, part) in [
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name, namespace: default}\n",
            "a lowercase RFC 1123 subdomain",
        ),
        (
            "apiVersion: v1\nkind: Nothing\nmetadata: {name: a}\n",
            "no matches for kind \"Nothing\"",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: default}\nspec: {replicas: many}\n",
            "replicas",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: default}\nspec: {containers: []}\n",
            "spec.containers: Required value",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: default}\nspec: {ports: [{port: 99999}]}\n",
            "spec.ports[0].port: Invalid value: 99999",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: no-such-place}\n",
            "namespaces \"no-such-place\" not found",
        ),
    ] {
        let text = refused(c, yaml)?;
        ensure!(text.contains(part), "{part:?} is not in: {text}");
    }
    Ok(())
}

pub fn watch(c: &Cluster) -> Result<()> {
    let ns = c.scratch("watch")?;
    let mut child = c
        .kubectl_command()
        .args([
            "-n",
            &ns.name,
            "get",
            "configmaps",
            "--watch-only",
            "--output-watch-events",
            "-o",
            "jsonpath={.type} {.object.metadata.name} {.object.data.n}{\"\\n\"}",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_millis(700));
    let result = (|| {
        ns.kubectl(&["create", "configmap", "m", "--from-literal=n=0"])?;
        for n in 1..5 {
            ns.kubectl(&[
                "patch",
                "configmap",
                "m",
                "-p",
                &format!("{{\"data\":{{\"n\":\"{n}\"}}}}"),
            ])?;
        }
        ns.kubectl(&["delete", "configmap", "m"])?;
        let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let seen: Vec<String> = lines
            .map_while(Result::ok)
            .filter(|l| l.contains(" m "))
            .take(6)
            .collect();
        let want = [
            "ADDED m 0",
            "MODIFIED m 1",
            "MODIFIED m 2",
            "MODIFIED m 3",
            "MODIFIED m 4",
            "DELETED m 4",
        ];
        ensure!(seen == want, "{seen:?}");
        Ok(())
    })();
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let _ = child.wait();
    result
}

pub fn pages(c: &Cluster) -> Result<()> {
    let ns = c.scratch("pages")?;
    for n in 0..7 {
        ns.kubectl(&["create", "configmap", &format!("m{n}")])?;
    }
    let raw = |query: &str| -> Result<serde_json::Value> {
        let path = format!("/api/v1/namespaces/{}/configmaps?{query}", ns.name);
        Ok(serde_json::from_str(&c.kubectl(&["get", "--raw", &path])?)?)
    };
    let first = raw("limit=3")?;
    let version = first["metadata"]["resourceVersion"].clone();
    let next = first["metadata"]["continue"]
        .as_str()
        .context("no continue")?
        .to_string();
    ns.kubectl(&["create", "configmap", "m35"])?;
    let second = raw(&format!("limit=3&continue={next}"))?;
    let names: Vec<_> = second["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|i| i["metadata"]["name"].clone())
        .collect();
    ensure!(
        second["metadata"]["resourceVersion"] == version,
        "pages are of one revision"
    );
    ensure!(!names.iter().any(|n| n == "m35"), "{names:?}");
    Ok(())
}

pub fn conflicts(c: &Cluster) -> Result<()> {
    let ns = c.scratch("conflicts")?;
    ns.kubectl(&["create", "configmap", "m", "--from-literal=a=1"])?;
    let mut old = ns.json(&["get", "configmap", "m"])?;
    ns.kubectl(&["patch", "configmap", "m", "-p", "{\"data\":{\"a\":\"2\"}}"])?;
    old["data"]["a"] = "3".into();
    let e = c
        .kubectl_with(&["-n", &ns.name, "replace", "-f", "-"], &old.to_string())
        .err()
        .context("replaced")?;
    ensure!(
        format!("{e:#}").contains("the object has been modified"),
        "{e:#}"
    );
    let again = c.kubectl_with(
        &["-n", &ns.name, "create", "-f", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n",
    );
    ensure!(format!("{:#}", again.err().context("created twice")?).contains("already exists"));
    Ok(())
}

pub fn kubectl_verbs(c: &Cluster) -> Result<()> {
    let nodes = c.kubectl(&["get", "nodes", "-o", "wide"])?;
    for column in [
        "NAME",
        "STATUS",
        "ROLES",
        "AGE",
        "VERSION",
        "INTERNAL-IP",
        "OS-IMAGE",
        "KERNEL-VERSION",
        "CONTAINER-RUNTIME",
    ] {
        ensure!(nodes.contains(column), "{column} is not in {nodes}");
    }
    let explained = c.kubectl(&["explain", "deployment.spec.strategy"])?;
    ensure!(explained.contains("rollingUpdate"), "{explained}");
    let resources = c.kubectl(&["api-resources"])?;
    ensure!(
        resources
            .lines()
            .any(|l| l.starts_with("pods ") && l.contains("po")),
        "{resources}"
    );
    let ns = c.scratch("verbs")?;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: one}\n";
    ns.apply(yaml)?;
    let mut diff = c.kubectl_command();
    diff.args(["-n", &ns.name, "diff", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = diff.spawn()?;
    std::io::Write::write_all(
        &mut child.stdin.take().context("no stdin")?,
        yaml.replace("one", "two").as_bytes(),
    )?;
    let o = child.wait_with_output()?;
    ensure!(
        o.status.code() == Some(1) && String::from_utf8_lossy(&o.stdout).contains("+  a: two"),
        "{o:?}"
    );
    ensure!(ns.kubectl(&["auth", "can-i", "create", "pods"])?.trim() == "yes");
    ns.kubectl(&["label", "configmap", "m", "x=y"])?;
    ns.kubectl(&["annotate", "configmap", "m", "x=y"])?;
    ensure!(ns.kubectl(&["get", "configmaps", "-l", "x=y", "-o", "name"])? == "configmap/m\n");
    ensure!(ns.kubectl(&["describe", "configmap", "m"])?.contains("one"));
    eventually(Duration::from_secs(5), || {
        let all = c.kubectl(&["cluster-info"])?;
        if all.contains("control plane") {
            Ok(())
        } else {
            bail!("{all}")
        }
    })
}

pub fn anonymous(c: &Cluster) -> Result<()> {
    let code = |path: &str| {
        let mut curl = c.inside("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}"])
            .arg(format!("https://127.0.0.1:6443{path}"));
        output(&mut curl)
    };
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        ensure!(code(path)? == "200", "{path}: {}", code(path)?);
    }
    for path in ["/api/v1/pods", "/apis", "/openapi/v2"] {
        ensure!(code(path)? == "403", "{path}: {}", code(path)?);
    }
    Ok(())
}

pub fn too_large(c: &Cluster) -> Result<()> {
    let big = "x".repeat(3 * 1024 * 1024 + 1);
    let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big", "namespace": "default"}, "data": {"a": big}});
    let e = c
        .kubectl_with(&["create", "-f", "-"], &object.to_string())
        .err()
        .context("accepted")?;
    let text = format!("{e:#}");
    ensure!(
        text.contains("too large"),
        "{}",
        &text[text.len().saturating_sub(300)..]
    );
    Ok(())
}

/// kubectl with an input: whether it went well, and what it said on standard error.
fn said(c: &Cluster, args: &[&str], input: &str) -> Result<(bool, String)> {
    let mut child = c
        .kubectl_command()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(input.as_bytes())?;
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    Ok((out.status.success(), text))
}

pub fn warnings(c: &Cluster) -> Result<()> {
    let ns = c.scratch("warnings")?;
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n";
    for args in [
        &["apply", "-f", "-"][..],
        &["apply", "--server-side", "--force-conflicts", "-f", "-"],
    ] {
        let (ok, text) = said(c, &[&["-n", &ns.name], args].concat(), policy)?;
        ensure!(
            ok && text.contains("Warning: network policies are not enforced yet"),
            "{args:?}: {text}"
        );
    }
    ns.kubectl(&[
        "label",
        "namespace",
        &ns.name,
        "pod-security.kubernetes.io/enforce=baseline",
    ])?;
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, securityContext: {privileged: true}}]}\n";
    let (ok, text) = said(c, &["-n", &ns.name, "apply", "-f", "-"], pod)?;
    ensure!(
        !ok && text.contains("violates PodSecurity \"baseline:latest\": privileged"),
        "{text}"
    );
    Ok(())
}

pub fn bad_binding(c: &Cluster) -> Result<()> {
    let ns = c.scratch("bad-binding")?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: waits}}\nspec: {{schedulerName: nobody, containers: [{{name: c, image: '{IMAGE}', command: [sleep, '1000']}}]}}\n"
    ))?;
    let path = format!("/api/v1/namespaces/{}/pods/waits/binding", ns.name);
    let binding = r#"{"apiVersion":"v1","kind":"Binding","metadata":{"name":"waits","labels":{"a":1}},"target":{"kind":"Node","name":"n"}}"#;
    let (ok, text) = said(c, &["create", "--raw", &path, "-f", "-"], binding)?;
    ensure!(!ok && text.contains("cannot unmarshal number"), "{text}");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: goes}}\nspec: {{containers: [{{name: c, image: '{IMAGE}', command: [sleep, '1000']}}]}}\n"
    ))?;
    ns.wait_pod("goes")
}

/// Each part acts under its own name with upstream's rights, the kubelet through the node authorizer: nothing that it
/// had to do was refused, and what is not its own is.
pub fn rights_of_parts(c: &Cluster) -> Result<()> {
    let log = std::fs::read_to_string(c.log_path())?;
    let refused: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("a part of this server was refused"))
        .collect();
    if !refused.is_empty() {
        bail!("refused: {}", refused.join("\n"));
    }
    let nodes = c.json(&["get", "nodes"])?;
    let node = nodes["items"][0]["metadata"]["name"]
        .as_str()
        .context("a node")?;
    let user = format!("--as=system:node:{node}");
    let may = |verb: &str, what: &str, more: &[&str]| -> Result<bool> {
        let mut args = vec![
            "auth",
            "can-i",
            verb,
            what,
            &user,
            "--as-group=system:nodes",
        ];
        args.extend(more);
        let mut command = c.kubectl_command();
        let said = command.args(&args).output()?;
        Ok(String::from_utf8_lossy(&said.stdout).trim() == "yes")
    };
    let own = format!("nodes/{node}");
    if !may("get", &own, &[])? || !may("create", "events", &[])? {
        bail!("the node lacks what it needs");
    }
    for (verb, what, subresource) in [
        ("list", "secrets", ""),
        ("get", "secrets/none", ""),
        ("list", "pods", ""),
        ("list", "nodes", ""),
        ("create", "pods/none", "exec"),
        ("delete", &own, ""),
    ] {
        // kubectl reads `pods/exec` as the pod named exec.
        let subresource = format!("--subresource={subresource}");
        if may(verb, what, &["-n", "kube-system", &subresource])? {
            bail!("a node may {verb} {what}");
        }
    }
    Ok(())
}
