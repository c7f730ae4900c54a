//! Logs, exec, cp, port-forward: everything that streams through the API server to the runtime.

use super::IMAGE;
use crate::framework::{Cluster, Scratch, eventually, output};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

fn sleeper(ns: &Scratch, script: &str) -> Result<()> {
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: {IMAGE}\n    command: [sh, -c, '{script}']\n"
    ))?;
    ns.wait_pod("p")
}

pub fn logs(c: &Cluster) -> Result<()> {
    let ns = c.scratch("logs")?;
    sleeper(
        &ns,
        "i=0; while [ $i -lt 5 ]; do i=$((i+1)); echo line $i; done; [ -e /tmp/x ] || { sleep 2; exit 1; }",
    )?;
    eventually(Duration::from_secs(10), || {
        let all = ns.kubectl(&["logs", "p"])?;
        if all.lines().count() == 5 {
            Ok(())
        } else {
            bail!("{all}")
        }
    })?;
    ensure!(ns.kubectl(&["logs", "p", "--tail=2"])? == "line 4\nline 5\n");
    let stamped = ns.kubectl(&["logs", "p", "--timestamps", "--tail=1"])?;
    ensure!(
        stamped.contains('T') && stamped.ends_with("Z line 5\n"),
        "{stamped}"
    );
    // The container ends: follow ends with it, and previous has its log.
    let followed = ns.kubectl(&["logs", "-f", "p"])?;
    ensure!(followed.ends_with("line 5\n"), "{followed}");
    eventually(Duration::from_secs(20), || {
        let previous = ns.kubectl(&["logs", "--previous", "p"])?;
        if previous.lines().count() == 5 {
            Ok(())
        } else {
            bail!("{previous}")
        }
    })
}

pub fn exec(c: &Cluster) -> Result<()> {
    let ns = c.scratch("exec")?;
    sleeper(&ns, "sleep 1000")?;
    ensure!(ns.kubectl(&["exec", "p", "--", "echo", "hello"])? == "hello\n");
    let echoed = c.kubectl_with(
        &["-n", &ns.name, "exec", "-i", "p", "--", "cat"],
        "in and out",
    )?;
    ensure!(echoed == "in and out", "{echoed:?}");
    let mut failing = c.kubectl_command();
    let o = failing
        .args([
            "-n",
            &ns.name,
            "exec",
            "p",
            "--",
            "sh",
            "-c",
            "echo oops >&2; exit 42",
        ])
        .stdin(Stdio::null())
        .output()?;
    ensure!(o.status.code() == Some(42), "{o:?}");
    ensure!(String::from_utf8_lossy(&o.stderr).contains("oops"), "{o:?}");
    let none = ns.kubectl(&["exec", "p", "--", "no-such-program"]);
    ensure!(none.is_err());
    // A terminal, by way of script(1).
    let mut tty = c.inside("script");
    tty.args(["-qec"])
        .arg(format!(
            "{} --kubeconfig {} -n {} exec -it p -- tty",
            crate::framework::kubectl_path().display(),
            c.kubeconfig.display(),
            ns.name
        ))
        .arg("/dev/null");
    let text = output(&mut tty)?;
    ensure!(text.contains("/dev/pts/"), "{text:?}");
    Ok(())
}

pub fn cp(c: &Cluster) -> Result<()> {
    let ns = c.scratch("cp")?;
    sleeper(&ns, "sleep 1000")?;
    let dir = std::env::temp_dir().join(format!("skiff-e2e-cp-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(dir.join("in"), &content)?;
    let (from, to) = (dir.join("in"), dir.join("out"));
    ns.kubectl(&["cp", &from.to_string_lossy(), "p:/tmp/f"])?;
    ns.kubectl(&["cp", "p:/tmp/f", &to.to_string_lossy()])?;
    let back = std::fs::read(&to)?;
    let _ = std::fs::remove_dir_all(&dir);
    ensure!(
        back == content,
        "{} bytes went, {} came back",
        content.len(),
        back.len()
    );
    Ok(())
}

pub fn port_forward(c: &Cluster) -> Result<()> {
    let ns = c.scratch("forward")?;
    sleeper(
        &ns,
        "mkdir /tmp/w; echo forwarded > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w",
    )?;
    let mut child = c
        .kubectl_command()
        .args(["-n", &ns.name, "port-forward", "pod/p", ":8080"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let result = (|| {
        let mut line = String::new();
        // Kept open: kubectl writes a line for each connection and would die of a closed pipe.
        let mut out = BufReader::new(child.stdout.take().context("no stdout")?);
        out.read_line(&mut line)?;
        let port: u16 = line
            .split("127.0.0.1:")
            .nth(1)
            .and_then(|r| r.split(' ').next())
            .and_then(|p| p.parse().ok())
            .with_context(|| format!("no port in {line:?}"))?;
        for _ in 0..3 {
            let mut get = c.inside("curl");
            get.args(["-sS", "-m", "3"])
                .arg(format!("http://127.0.0.1:{port}/"));
            let page = eventually(Duration::from_secs(5), || output(&mut get))?;
            ensure!(page == "forwarded\n", "{page}");
        }
        Ok(())
    })();
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let _ = child.wait();
    result
}
