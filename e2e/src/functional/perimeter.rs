//! The node's server and the API server as a stranger, a certificate of the cluster, and a service account see them.

use super::IMAGE;
use crate::framework::{Cluster, eventually, output};
use anyhow::{Context, Result, bail, ensure};
use std::io::BufRead;
use std::process::Stdio;
use std::time::Duration;

/// Code and body of a request to the node's server.
fn ask(c: &Cluster, node: &str, with: &[&str], path: &str) -> Result<(u16, String)> {
    let said = output(
        c.inside("curl")
            .args(["-sk", "--max-time", "10", "-w", "\n%{http_code}"])
            .args(with)
            .arg(format!("https://{node}:10250{path}")),
    )?;
    let (body, code) = said.rsplit_once('\n').context("no code")?;
    Ok((code.parse()?, body.to_string()))
}

fn node_ip(c: &Cluster) -> Result<(String, String)> {
    let nodes = c.json(&["get", "nodes"])?;
    let node = &nodes["items"][0];
    let name = node["metadata"]["name"].as_str().context("no node")?;
    let ip = node["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|a| a["type"] == "InternalIP")
        .and_then(|a| a["address"].as_str())
        .context("no address")?;
    Ok((name.to_string(), ip.to_string()))
}

/// :10250 knows nobody without a credential, and everybody with one as far as RBAC goes.
pub fn node_server(c: &Cluster) -> Result<()> {
    let ns = c.scratch("perimeter")?;
    let (node, ip) = node_ip(c)?;
    for path in ["/pods", "/healthz", "/metrics", "/configz", "/exec/a/b/c"] {
        let a = ask(c, &ip, &[], path)?;
        ensure!(a == (401, "Unauthorized".into()), "{path}: {a:?}");
        let a = ask(c, &ip, &["-H", "Authorization: Bearer nonsense"], path)?;
        ensure!(a.0 == 401, "{path}: {a:?}");
    }
    let tls = c.data_dir.join("server/tls");
    let file = |name: &str| tls.join(name).display().to_string();
    let (cert, key) = (file("client-admin.crt"), file("client-admin.key"));
    let admin = ["--cert", cert.as_str(), "--key", key.as_str()];
    for path in ["/pods", "/runningpods/", "/healthz", "/configz", "/metrics"] {
        let a = ask(c, &ip, &admin, path)?;
        ensure!(a.0 == 200, "{path}: {a:?}");
    }
    // A service account: nothing, until it is given something, and then that alone.
    let account = format!("system:serviceaccount:{}:default", ns.name);
    let token = ns.kubectl(&["create", "token", "default"])?;
    let header = format!("Authorization: Bearer {}", token.trim());
    let bearer = ["-H", header.as_str()];
    let a = ask(c, &ip, &bearer, "/metrics/resource")?;
    let refused =
        format!("Forbidden (user={account}, verb=get, resource=nodes, subresource(s)=[metrics])");
    ensure!(a == (403, refused), "{a:?}");
    let role = format!("perimeter-{}", ns.name);
    c.kubectl(&[
        "create",
        "clusterrole",
        &role,
        "--verb=get",
        "--resource=nodes/metrics,nodes/proxy",
    ])?;
    let bound = c.kubectl(&[
        "create",
        "clusterrolebinding",
        &role,
        &format!("--clusterrole={role}"),
        &format!("--serviceaccount={}:default", ns.name),
    ]);
    let checked = bound.and_then(|_| {
        eventually(Duration::from_secs(20), || {
            let a = ask(c, &ip, &bearer, "/metrics/resource")?;
            ensure!(a.0 == 200, "{a:?}");
            Ok(())
        })?;
        let a = ask(c, &ip, &bearer, "/stats/summary")?;
        ensure!(a.0 == 403, "{a:?}");
        // get of nodes/proxy runs nothing, also not over a WebSocket.
        let exec = format!("/exec/{}/none/c?command=id&output=1", ns.name);
        let mut socket = bearer.to_vec();
        socket.extend([
            "-H",
            "Connection: Upgrade",
            "-H",
            "Upgrade: websocket",
            "-H",
            "Sec-WebSocket-Version: 13",
            "-H",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]);
        let a = ask(c, &ip, &socket, &exec)?;
        ensure!(a.0 == 403 && a.1.contains("verb=create"), "{a:?}");
        Ok(())
    });
    c.kubectl(&["delete", "clusterrole,clusterrolebinding", &role])?;
    checked?;
    // What the API server is to this server, is nobody to the API.
    let (cert, key) = (
        file("client-kube-apiserver.crt"),
        file("client-kube-apiserver.key"),
    );
    let port = c.api_port()?;
    let said = output(
        c.inside("curl")
            .args(["-sk", "--cert", &cert, "--key", &key])
            .arg(format!("https://127.0.0.1:{port}/api/v1/secrets")),
    )?;
    ensure!(
        said.contains("User \\\"kube-apiserver-kubelet-client\\\" cannot list resource"),
        "{said}"
    );
    let proxied = c.kubectl(&[
        "get",
        "--raw",
        &format!("/api/v1/nodes/{node}/proxy/healthz"),
    ])?;
    ensure!(proxied == "ok", "{proxied}");
    Ok(())
}

/// A stream ends when the account whose token opened it is gone.
pub fn streams_end_with_their_credential(c: &Cluster) -> Result<()> {
    let ns = c.scratch("perimeter-streams")?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: {IMAGE}\n    command: [sh, -c, 'echo begun; sleep 1000']\n"
    ))?;
    ns.wait_pod("p")?;
    ns.kubectl(&["create", "serviceaccount", "leaver"])?;
    let account = format!("--serviceaccount={}:leaver", ns.name);
    ns.kubectl(&[
        "create",
        "rolebinding",
        "leaver",
        "--clusterrole=admin",
        &account,
    ])?;
    let token = ns.kubectl(&["create", "token", "leaver"])?;
    let (token, port) = (token.trim().to_string(), c.api_port()?);
    let mut follow = c
        .inside("curl")
        .args(["-skN", "--max-time", "60", "-H"])
        .arg(format!("Authorization: Bearer {token}"))
        .arg(format!(
            "https://127.0.0.1:{port}/api/v1/namespaces/{}/pods/p/log?follow=true",
            ns.name
        ))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = std::io::BufReader::new(follow.stdout.take().context("no output")?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    ensure!(line == "begun\n", "{line}");
    ns.kubectl(&["delete", "serviceaccount", "leaver"])?;
    let ended = eventually(Duration::from_secs(10), || match follow.try_wait()? {
        Some(_) => Ok(()),
        None => bail!("the log is still followed"),
    });
    if ended.is_err() {
        follow.kill()?;
        follow.wait()?;
    }
    ended
}
