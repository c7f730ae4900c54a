//! Whole clusters on disks that fail: a file system whose disk stops taking writes, and one without space.

use crate::framework::{Cluster, eventually, output};
use crate::functional::IMAGE;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Mounts that go with the test, the last one first.
struct Mounts {
    root: PathBuf,
    mounted: Vec<PathBuf>,
    loops: Vec<String>,
}

impl Mounts {
    fn new(name: &str) -> Result<Self> {
        let root =
            std::env::temp_dir().join(format!("skiff-e2e-disk-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&root)?;
        Ok(Self {
            root,
            mounted: Vec::new(),
            loops: Vec::new(),
        })
    }

    fn mount(&mut self, kind: &str, options: &str, what: &str, at: &str) -> Result<PathBuf> {
        let at = self.root.join(at);
        std::fs::create_dir_all(&at)?;
        output(
            Command::new("mount")
                .args(["-t", kind, "-o", options, what])
                .arg(&at),
        )?;
        self.mounted.push(at.clone());
        Ok(at)
    }

    fn unmount(&mut self) -> Result<()> {
        if let Some(at) = self.mounted.pop() {
            output(Command::new("umount").arg(at))?;
        }
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let lazily = |at: &Path| {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        };
        // The file system of the loop device, the device, what its file is on.
        let inner = self.mounted.split_off(self.mounted.len().min(1));
        inner.iter().rev().for_each(|m| lazily(m));
        for l in &self.loops {
            let _ = Command::new("losetup").args(["-d", l]).status();
        }
        self.mounted.iter().for_each(|m| lazily(m));
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Fills a file system to the last byte.
fn fill(dir: &Path) -> Result<PathBuf> {
    use std::io::Write;
    let path = dir.join("filler");
    let mut file = std::fs::File::create(&path)?;
    for size in [1 << 20, 4096] {
        let block = vec![1u8; size];
        while file.write_all(&block).is_ok() {}
    }
    Ok(path)
}

fn create(c: &Cluster, name: &str) -> Result<u64> {
    let version = c.kubectl(&[
        "-n",
        "default",
        "create",
        "configmap",
        name,
        &format!("--from-literal=a={}", "x".repeat(3000)),
        "-o",
        "jsonpath={.metadata.resourceVersion}",
    ])?;
    Ok(version.trim().parse()?)
}

/// A disk that loses what it was given and says so at the sync: an ext4 on a loop device whose file cannot grow.
pub fn a_failed_sync_ends_the_server() -> Result<()> {
    let mut m = Mounts::new("sync")?;
    let under = m.mount("tmpfs", "size=24m", "tmpfs", "under")?;
    let image = under.join("disk.img");
    std::fs::File::create(&image)?.set_len(256 << 20)?;
    output(
        Command::new("mkfs.ext4")
            .args([
                "-q",
                "-E",
                "lazy_itable_init=1,lazy_journal_init=1",
                "-J",
                "size=4",
            ])
            .arg(&image),
    )
    .context("e2fsprogs is needed")?;
    let device = output(Command::new("losetup").args(["-f", "--show"]).arg(&image))?;
    let device = device.trim().to_string();
    m.loops.push(device.clone());
    let disk = m.mount("ext4", "rw", &device, "disk")?;

    let mut c = Cluster::prepare(&["--disable-agent", "--node-ip", "127.0.0.1"])?;
    c.data_dir = disk.join("d");
    c.launch()?;
    c.wait_api()?;
    let mut acknowledged = BTreeMap::new();
    for i in 0..20 {
        let name = format!("before-{i}");
        acknowledged.insert(name.clone(), create(&c, &name)?);
    }
    let filler = fill(&under)?;
    let end = Instant::now() + Duration::from_secs(60);
    let mut n = 0;
    let status = loop {
        ensure!(Instant::now() < end, "the server did not notice");
        if let Some(status) = c.ended()? {
            break status;
        }
        let name = format!("during-{n}");
        n += 1;
        if let Ok(version) = create(&c, &name) {
            acknowledged.insert(name, version);
        }
    };
    ensure!(status.code() == Some(1), "{status}");
    let log = std::fs::read_to_string(c.log_path())?;
    let lines: Vec<&str> = log.lines().filter(|l| l.starts_with("skiff: ")).collect();
    ensure!(
        lines.len() == 1 && lines[0].contains("skiff.redb failed") && lines[0].contains("sync"),
        "{log}"
    );
    // The disk is well again.
    m.unmount()?;
    std::fs::remove_file(filler)?;
    m.mount("ext4", "rw", &device, "disk")?;
    c.launch()?;
    c.wait_api()?;
    let list = c.json(&["-n", "default", "get", "configmaps"])?;
    let there: BTreeMap<&str, &str> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|i| {
            let m = &i["metadata"];
            Some((m["name"].as_str()?, m["resourceVersion"].as_str()?))
        })
        .collect();
    for (name, version) in &acknowledged {
        ensure!(
            there.get(name.as_str()) == Some(&version.to_string().as_str()),
            "{name} of version {version} was acknowledged: {:?}",
            there.get(name.as_str())
        );
    }
    create(&c, "after")?;
    c.finish()
}

/// Everything of a cluster on one disk, which becomes full.
pub fn a_full_disk_refuses_growth() -> Result<()> {
    let mut m = Mounts::new("full")?;
    let disk = m.mount("tmpfs", "size=160m", "tmpfs", "disk")?;
    let mut c = Cluster::prepare(&[])?;
    c.data_dir = disk.join("d");
    c.launch()?;
    c.wait_ready()?;
    c.build_busybox(IMAGE)?;
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: c, image: '{IMAGE}', command: [sleep, '1000']}}\n"
        )
    };
    c.apply(&pod("one"))?;
    c.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=30s"])?;
    let mut made = Vec::new();
    for i in 0..30 {
        let name = format!("kept-{i}");
        create(&c, &name)?;
        made.push(name);
    }
    let filler = fill(&disk)?;
    let mut refusal = String::new();
    for i in 0..2000 {
        let name = format!("more-{i}");
        match create(&c, &name) {
            Ok(_) => made.push(name),
            Err(e) => {
                refusal = format!("{e:#}");
                break;
            }
        }
    }
    ensure!(
        refusal.contains("is full: free some space"),
        "the refusal: {refusal}"
    );
    let check = |c: &Cluster| c.kubectl(&["get", "--raw", "/readyz/datastore-space"]);
    let unready = check(&c)
        .err()
        .map(|e| format!("{e:#}"))
        .unwrap_or_default();
    ensure!(
        unready.contains("is full"),
        "/readyz/datastore-space: {unready}"
    );
    ensure!(c.kubectl(&["get", "--raw", "/livez"])?.trim() == "ok");
    // Reads, and deletes: also that of a pod, which takes some small updates.
    ensure!(c.json(&["get", "configmap", &made[0]])?["data"]["a"].is_string());
    let (gone, kept) = made.split_at(made.len() / 2);
    for name in gone {
        c.kubectl(&["delete", "configmap", name])
            .context("a delete on a full disk")?;
    }
    c.kubectl(&["delete", "pod", "one", "--timeout=60s"])?;
    // A crash on the full disk.
    c.kill_9();
    c.launch()?;
    eventually(Duration::from_secs(30), || {
        c.json(&["get", "configmap", &kept[0]])
    })?;
    for name in gone {
        ensure!(
            c.kubectl(&["get", "configmap", name]).is_err(),
            "{name} is back"
        );
    }
    std::fs::remove_file(filler)?;
    eventually(Duration::from_secs(30), || {
        check(&c)?;
        create(&c, "again")
    })?;
    for name in kept {
        c.json(&["get", "configmap", name])?;
    }
    // The node comes back, and pods run.
    c.wait_ready()?;
    c.apply(&pod("two"))?;
    eventually(Duration::from_secs(120), || {
        let phase = &c.json(&["get", "pod", "two"])?["status"];
        if phase["phase"] != "Running" {
            bail!("{phase}");
        }
        Ok(())
    })?;
    c.finish()
}

/// The whole server under a quota.
pub fn a_quota_refuses_growth() -> Result<()> {
    let mut c = Cluster::prepare(&[
        "--disable-agent",
        "--node-ip",
        "127.0.0.1",
        "--datastore-quota-bytes",
        "16777216",
    ])?;
    c.launch()?;
    c.wait_api()?;
    let big = "y".repeat(900_000);
    let object = |n: usize| {
        format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {{\"name\": \"big-{n}\"}}, \"data\": {{\"a\": \"{big}\"}}}}"
        )
    };
    let mut n = 0;
    let refusal = loop {
        ensure!(n < 40, "40 MB fit into 16 MiB");
        match c.kubectl_with(&["create", "-f", "-"], &object(n)) {
            Ok(_) => n += 1,
            Err(e) => break format!("{e:#}"),
        }
    };
    ensure!(
        refusal.contains("etcdserver: mvcc: database space exceeded")
            && refusal.contains("--datastore-quota-bytes"),
        "{refusal}"
    );
    ensure!(n > 5, "only {n} MB fit into 16 MiB");
    ensure!(c.kubectl(&["get", "--raw", "/readyz"]).is_err());
    for i in 0..n {
        c.kubectl(&["delete", "configmap", &format!("big-{i}")])?;
    }
    eventually(Duration::from_secs(10), || {
        c.kubectl(&["get", "--raw", "/readyz"])
    })?;
    c.kubectl_with(&["create", "-f", "-"], &object(0))?;
    c.finish()
}

/// A client that watched before a restart gets what it missed after it, and no 410.
pub fn watches_resume() -> Result<()> {
    let mut c = Cluster::prepare(&["--disable-agent", "--node-ip", "127.0.0.1"])?;
    c.launch()?;
    c.wait_api()?;
    let from = create(&c, "one")?;
    c.kubectl(&["-n", "default", "label", "configmap", "one", "a=b"])?;
    create(&c, "two")?;
    c.kubectl(&["-n", "default", "delete", "configmap", "two"])?;
    for clean in [true, false] {
        if clean {
            c.terminate()?;
        } else {
            c.kill_9();
        }
        c.launch()?;
        c.wait_api()?;
        let path = format!(
            "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=1&resourceVersion={from}"
        );
        let seen = c
            .kubectl_command()
            .args(["get", "--raw", &path])
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&seen.stdout).into_owned();
        let got: Vec<String> = text
            .lines()
            .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
            .map(|e| {
                let name = e["object"]["metadata"]["name"].as_str().unwrap_or("");
                format!("{} {name}", e["type"].as_str().unwrap_or(""))
            })
            .filter(|e| !e.contains("kube-root-ca.crt"))
            .collect();
        ensure!(
            got == ["MODIFIED one", "ADDED two", "DELETED two"],
            "{got:?}: {text}"
        );
    }
    c.finish()
}
