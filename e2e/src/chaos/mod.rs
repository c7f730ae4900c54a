//! Tests that kill, refuse and break: each makes clusters of its own.

mod disk;
mod kill;

use crate::framework::{Cluster, eventually, leftovers, output, skiff};
use crate::functional::IMAGE;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A test.
pub type Test = fn() -> Result<()>;

/// Every test, by a name that says what must be.
pub const TESTS: &[(&str, Test)] = &[
    (
        "kill_9_while_8_clients_write_loses_nothing_acknowledged",
        acknowledged_writes_survive,
    ),
    (
        "containers_outlive_the_server_and_are_adopted",
        containers_are_adopted,
    ),
    (
        "a_failed_sync_ends_the_server_and_the_next_start_reads_what_the_disk_holds",
        disk::a_failed_sync_ends_the_server,
    ),
    (
        "a_full_disk_refuses_growth_lets_deletes_pass_and_goes_on_once_there_is_space",
        disk::a_full_disk_refuses_growth,
    ),
    (
        "a_full_quota_refuses_growth_lets_deletes_pass_and_clears_itself",
        disk::a_quota_refuses_growth,
    ),
    (
        "watches_resume_where_they_were_after_a_restart",
        disk::watches_resume,
    ),
    (
        "kill_9_of_any_process_at_any_moment_loses_nothing",
        kill::every_process_at_any_moment,
    ),
    ("a_reset_that_is_killed_can_be_run_again", kill::a_reset),
    (
        "what_hinders_a_start_is_one_line_with_the_mend",
        refused_starts,
    ),
];

fn acknowledged_writes_survive() -> Result<()> {
    let mut c = Cluster::prepare(&["--disable-agent", "--node-ip", "127.0.0.1"])?;
    c.launch()?;
    c.wait_api()?;
    let mut acknowledged: BTreeMap<String, Option<u64>> = BTreeMap::new();
    let mut last_version = 0;
    for round in 0..3 {
        let stop = AtomicBool::new(false);
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for writer in 0..8 {
                let (c, stop, seen) = (&c, &stop, &seen);
                s.spawn(move || {
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let name = format!("w{round}-{writer}-{n}");
                        let made = c.kubectl(&[
                            "-n",
                            "default",
                            "create",
                            "configmap",
                            &name,
                            "-o",
                            "jsonpath={.metadata.resourceVersion}",
                        ]);
                        let Some(version) = made.ok().and_then(|v| v.trim().parse::<u64>().ok())
                        else {
                            continue;
                        };
                        let mut state = (name.clone(), Some(version));
                        if n % 3 == 0 {
                            // A delete without an answer may have happened or not: it says nothing.
                            match c.kubectl(&["-n", "default", "delete", "configmap", &name]) {
                                Ok(_) => state.1 = None,
                                Err(_) => continue,
                            }
                        }
                        if let Ok(mut all) = seen.lock() {
                            all.push(state);
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_secs(3));
            if let Some(pid) = c.pid() {
                let _ = Command::new("kill")
                    .args(["-KILL", &pid.to_string()])
                    .status();
            }
            stop.store(true, Ordering::Relaxed);
        });
        c.kill_9();
        let written = seen.into_inner().unwrap_or_default();
        ensure!(
            written.len() > 8,
            "only {} writes were acknowledged",
            written.len()
        );
        last_version = written
            .iter()
            .filter_map(|(_, v)| *v)
            .max()
            .unwrap_or(0)
            .max(last_version);
        acknowledged.extend(written);
        c.launch()?;
        c.wait_api()?;
        let list = c.json(&["-n", "default", "get", "configmaps"])?;
        let raw: serde_json::Value = serde_json::from_str(&c.kubectl(&[
            "get",
            "--raw",
            "/api/v1/namespaces/default/configmaps",
        ])?)?;
        let version: u64 = raw["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|v| v.parse().ok())
            .context("no version")?;
        ensure!(
            version >= last_version,
            "the version went back: {version} after {last_version}"
        );
        let there: BTreeMap<String, u64> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|i| {
                let v = i["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
                Some((i["metadata"]["name"].as_str()?.to_string(), v))
            })
            .collect();
        for (name, state) in &acknowledged {
            match (state, there.get(name)) {
                (Some(v), Some(w)) => ensure!(v == w, "{name} was version {v} and is {w}"),
                (Some(_), None) => bail!("{name} was acknowledged and is gone"),
                (None, Some(_)) => bail!("{name} was deleted and is back"),
                (None, None) => {}
            }
        }
    }
    c.finish()
}

fn containers_are_adopted() -> Result<()> {
    let mut c = Cluster::start(&[])?;
    c.build_busybox(IMAGE)?;
    c.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: stays}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: c, image: '{IMAGE}', command: [sleep, '1000']}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: ends}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: c, image: '{IMAGE}', command: [sh, -c, 'sleep 4; exit 5']}}\n"
    ))?;
    c.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/stays",
        "pod/ends",
        "--timeout=30s",
    ])?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", c.pid().context("a pid")?))?;
    let files: Vec<&str> = limits
        .lines()
        .find(|l| l.starts_with("Max open files"))
        .context("no limit")?
        .split_whitespace()
        .collect();
    ensure!(
        files[3] == files[4] || files[3] == "1048576",
        "{files:?}: the soft limit is not raised"
    );
    let id = |c: &Cluster| -> Result<String> {
        Ok(
            c.json(&["get", "pod", "stays"])?["status"]["containerStatuses"][0]["containerID"]
                .as_str()
                .context("no id")?
                .to_string(),
        )
    };
    let before = id(&c)?;
    c.kill_9();
    ensure!(
        leftovers::processes(&c.data_dir)
            .iter()
            .filter(|(_, l)| l.contains("shim"))
            .count()
            == 2,
        "the shims run on"
    );
    std::thread::sleep(Duration::from_secs(5));
    c.launch()?;
    c.wait_ready()?;
    eventually(Duration::from_secs(20), || {
        let p = c.json(&["get", "pod", "ends"])?;
        let code = &p["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"];
        if p["status"]["phase"] == "Failed" && *code == 5 {
            Ok(())
        } else {
            bail!("{}", p["status"])
        }
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let pod = c.json(&["get", "pod", "stays"])?;
    ensure!(
        id(&c)? == before,
        "the container was replaced: {}",
        pod["status"]
    );
    ensure!(
        pod["status"]["containerStatuses"][0]["restartCount"] == 0,
        "{}",
        pod["status"]
    );
    ensure!(c.kubectl(&["exec", "stays", "--", "echo", "hi"])? == "hi\n");
    c.finish()
}

fn refused_starts() -> Result<()> {
    let c = Cluster::prepare(&[])?;
    let run = |program: &mut Command| -> Result<String> {
        let o = program.stdin(Stdio::null()).output()?;
        ensure!(
            o.status.code() == Some(1),
            "exit code {:?}: {}",
            o.status.code(),
            String::from_utf8_lossy(&o.stderr)
        );
        let text = String::from_utf8_lossy(&o.stderr).into_owned();
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("skiff: ")).collect();
        ensure!(lines.len() == 1, "not one line: {text}");
        Ok(lines[0].to_string())
    };
    let base = || -> Result<Command> {
        let mut s = c.inside(skiff()?);
        s.args([
            "server",
            "--config",
            "/dev/null",
            "--disable-agent",
            "--node-ip",
            "127.0.0.1",
            "--write-kubeconfig",
        ])
        .arg(&c.kubeconfig);
        Ok(s)
    };
    let mut taken = c
        .inside("busybox")
        .args(["nc", "-l", "-p", "6443"])
        .stdin(Stdio::null())
        .spawn()?;
    std::thread::sleep(Duration::from_millis(300));
    let port = run(base()?.arg("--data-dir").arg(&c.data_dir));
    let _ = taken.kill();
    let _ = taken.wait();
    let port = port?;
    ensure!(
        port.contains("6443") && port.contains("--https-listen-port"),
        "{port}"
    );
    let dir = run(base()?.args(["--data-dir", "/proc/none"]))?;
    ensure!(
        dir.contains("/proc/none") && dir.contains("--data-dir"),
        "{dir}"
    );
    let mut nobody = Command::new("setpriv");
    nobody
        .args(["--reuid=65534", "--clear-groups"])
        .arg(skiff()?)
        .args([
            "server",
            "--config",
            "/dev/null",
            "--data-dir",
            "/tmp/skiff-e2e-nobody",
        ]);
    let root = run(&mut nobody)?;
    ensure!(root.contains("root"), "{root}");
    // `ip netns exec` gives a /sys of its own, without the cgroup mounts.
    let bare = run(Command::new("ip")
        .args(["netns", "exec", &c.netns])
        .arg(skiff()?)
        .args(["server", "--config", "/dev/null", "--data-dir"])
        .arg(&c.data_dir))?;
    ensure!(
        bare.contains("cgroups") && bare.contains("--allow-missing-isolation"),
        "{bare}"
    );
    let flag = run(base()?
        .args(["--disable", "nonsense"])
        .arg("--data-dir")
        .arg(&c.data_dir))?;
    ensure!(flag.contains("nonsense"), "{flag}");
    let version = output(Command::new(skiff()?).arg("version"))?;
    ensure!(version.starts_with("skiff v"), "{version}");
    c.finish()
}
