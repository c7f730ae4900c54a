//! kill -9 of every process at any moment: the server, a pod's shim, an import, a build, a reset. `SKIFF_CHAOS_CYCLES` says how
//! often (`make chaos`: 200), `SKIFF_CHAOS_SEED` repeats a run.

use crate::framework::{Cluster, eventually, leftovers, output, skiff};
use crate::functional::IMAGE;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Chance that can be repeated (splitmix64).
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let seed = std::env::var("SKIFF_CHAOS_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .or_else(|| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
                u64::try_from(now.as_nanos() & u128::from(u64::MAX)).ok()
            })
            .unwrap_or(1);
        println!("SKIFF_CHAOS_SEED={seed}");
        Self(seed)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }
    fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most)));
    }
}

fn cycles(few: u64) -> u64 {
    let asked = std::env::var("SKIFF_CHAOS_CYCLES").ok();
    asked.and_then(|s| s.parse().ok()).unwrap_or(few)
}

fn kill(pid: u32) {
    let _ = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

fn shims(c: &Cluster) -> Vec<u32> {
    leftovers::processes(&c.data_dir)
        .into_iter()
        .filter(|(_, line)| line.contains(" shim "))
        .map(|(pid, _)| pid)
        .collect()
}

/// What must be true after each cycle, whatever was killed.
struct Expected {
    /// Names and versions of what was acknowledged.
    acknowledged: BTreeMap<String, u64>,
    replicas: u64,
}

fn create(c: &Cluster, name: &str) -> Option<u64> {
    let made = c.kubectl(&[
        "-n",
        "default",
        "create",
        "configmap",
        name,
        "-o",
        "jsonpath={.metadata.resourceVersion}",
    ]);
    made.ok()?.trim().parse().ok()
}

impl Expected {
    fn holds(&self, c: &Cluster) -> Result<()> {
        let list = c.json(&["-n", "default", "get", "configmaps"])?;
        let there: BTreeMap<&str, u64> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|i| {
                let version = i["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
                Some((i["metadata"]["name"].as_str()?, version))
            })
            .collect();
        for (name, version) in &self.acknowledged {
            ensure!(
                there.get(name.as_str()) == Some(version),
                "{name} was acknowledged at {version} and is {:?}",
                there.get(name.as_str())
            );
        }
        eventually(Duration::from_secs(90), || {
            let d = c.json(&["get", "deployment", "web"])?;
            let s = &d["status"];
            ensure!(
                s["observedGeneration"] == d["metadata"]["generation"]
                    && s["readyReplicas"].as_u64().unwrap_or(0) == self.replicas
                    && s["replicas"].as_u64().unwrap_or(0) == self.replicas,
                "{s}"
            );
            // Every pod that is there answers, and has a shim; nothing else has one.
            let pods = c.json(&["get", "pods", "-l", "app=web"])?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            ensure!(pods.len() as u64 == self.replicas, "{} pods", pods.len());
            let running = shims(c).len() as u64;
            ensure!(
                running == self.replicas,
                "{running} shims for {} pods",
                self.replicas
            );
            for p in &pods {
                let name = p["metadata"]["name"].as_str().context("a name")?;
                ensure!(c.kubectl(&["exec", name, "--", "echo", "hi"])? == "hi\n");
            }
            Ok(())
        })
    }
}

/// An import of an archive, or a build, that runs while others are killed.
fn image_work(c: &Cluster, archive: &PathBuf, n: u64) -> Result<Child> {
    let mut command = Command::new(skiff()?);
    if n % 2 == 0 {
        command
            .args(["image", "import", "--data-dir"])
            .arg(&c.data_dir)
            .arg(archive);
    } else {
        let context = archive.with_file_name("context");
        std::fs::create_dir_all(&context)?;
        std::fs::write(
            context.join("Dockerfile"),
            format!("FROM {IMAGE}\nRUN echo {n} > /made && sleep 0.2\n"),
        )?;
        command
            .args(["image", "build", "--network", "none", "--data-dir"])
            .arg(&c.data_dir)
            .args(["-t", "chaos.test/made:v1"])
            .arg(context);
    }
    Ok(command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?)
}

pub fn every_process_at_any_moment() -> Result<()> {
    let mut chance = Chance::new();
    let mut c = Cluster::start(&[])?;
    c.build_busybox(IMAGE)?;
    let archive = c.kubeconfig.with_file_name("image.tar");
    output(
        Command::new(skiff()?)
            .args(["image", "save", "--data-dir"])
            .arg(&c.data_dir)
            .arg(IMAGE)
            .arg("-f")
            .arg(&archive),
    )?;
    c.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 2\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - {{name: c, image: '{IMAGE}', command: [sleep, '100000']}}\n"
    ))?;
    let mut expected = Expected {
        acknowledged: BTreeMap::new(),
        replicas: 2,
    };
    expected.holds(&c)?;
    for cycle in 0..cycles(8) {
        let what = chance.below(6);
        let mut images = (what >= 3)
            .then(|| image_work(&c, &archive, cycle))
            .transpose()?;
        let wanted = 1 + chance.below(4);
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            let writer = s.spawn(|| {
                let mut made = Vec::new();
                for n in 0..50 {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("c{cycle}-{n}");
                    made.extend(create(&c, &name).map(|version| (name, version)));
                }
                made
            });
            let _ = c.kubectl(&[
                "scale",
                "deployment",
                "web",
                &format!("--replicas={wanted}"),
            ]);
            chance.pause(700);
            let victims = shims(&c);
            let victim = victims
                .get(usize::try_from(chance.below(victims.len() as u64)).unwrap_or(0))
                .copied();
            if matches!(what, 0 | 2 | 4)
                && let Some(pid) = victim
            {
                kill(pid);
            }
            if matches!(what, 1 | 2 | 3 | 5)
                && let Some(pid) = c.pid()
            {
                chance.pause(100);
                kill(pid);
            }
            if let Some(i) = &images {
                chance.pause(200);
                kill(i.id());
            }
            done.store(true, Ordering::Relaxed);
            if let Ok(made) = writer.join() {
                expected.acknowledged.extend(made);
            }
        });
        if let Some(i) = &mut images {
            let _ = i.wait();
        }
        if matches!(what, 1 | 2 | 3 | 5) {
            c.kill_9();
            chance.pause(300);
            c.launch()?;
        }
        let told = || format!("cycle {cycle} (what {what}, {wanted} replicas)");
        c.wait_ready().with_context(told)?;
        // Whether the scaling was taken is not known: say it again.
        c.kubectl(&[
            "scale",
            "deployment",
            "web",
            &format!("--replicas={wanted}"),
        ])
        .with_context(told)?;
        expected.replicas = wanted;
        expected.holds(&c).map_err(|e| {
            let log = std::fs::read_to_string(c.log_path()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let pods = c.kubectl(&["describe", "pods"]).unwrap_or_default();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            e.context(format!("{}\n{}\n{pods}", told(), tail.join("\n")))
        })?;
    }
    c.kubectl(&["delete", "deployment", "web", "--timeout=60s"])?;
    eventually(Duration::from_secs(60), || {
        ensure!(shims(&c).is_empty(), "a pod that is gone has a shim");
        Ok(())
    })?;
    c.finish()
}

/// A reset that is cut off at any moment leaves what the next one can finish.
pub fn a_reset() -> Result<()> {
    let mut chance = Chance::new();
    for cycle in 0..cycles(8).div_ceil(8) {
        let mut c = Cluster::start(&[])?;
        c.build_busybox(IMAGE)?;
        for n in 0..3 {
            c.apply(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}}}\nspec:\n  containers:\n  - {{name: c, image: '{IMAGE}', command: [sleep, '100000']}}\n"
            ))?;
        }
        c.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "pod",
            "--all",
            "--timeout=60s",
        ])?;
        c.kill_9();
        let mut reset = c
            .inside(skiff()?)
            .args(["reset", "--data-dir"])
            .arg(&c.data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        chance.pause(300);
        kill(reset.id());
        let _ = reset.wait();
        output(
            c.inside(skiff()?)
                .args(["reset", "--data-dir"])
                .arg(&c.data_dir),
        )
        .with_context(|| format!("cycle {cycle}: the second reset"))?;
        let left = leftovers::of(&c.data_dir, &c.netns);
        if !left.is_empty() {
            bail!("cycle {cycle}: left behind: {}", left.join("\n"));
        }
        c.finish()?;
    }
    Ok(())
}
