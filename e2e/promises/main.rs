//! The figures behind the promises: starts clusters, measures, prints. Judges nothing: machines differ and are noisy.
//! `make bench` runs it over the release binary. An argument is a filter: `start`, `memory`, `pods`, `api`.

mod load;
mod memory;

use anyhow::{Context, Result};
use skiff_e2e::framework::{Cluster, skiff};
use std::time::{Duration, Instant};

const IMAGE: &str = "bench.skiff/busybox:1";

fn main() -> Result<()> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let wanted = |name: &str| filter.is_empty() || name.contains(&filter);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let size = std::fs::metadata(skiff()?)?.len();
    row("binary size", &format!("{:.1} MB", mega(size)), "40 MB");
    if wanted("start") {
        start()?;
    }
    if wanted("memory") || wanted("pods") {
        let cluster = Cluster::start(&[])?;
        cluster.build_busybox(IMAGE)?;
        if wanted("memory") {
            idle(&cluster)?;
        }
        if wanted("pods") {
            load::inside(&cluster, |client| load::pods(client, IMAGE))?;
            let held = memory::total(&cluster)?;
            row(
                "memory of each shim (PSS)",
                &format!("{:.2} MB", mega(held.each_shim() * 1024)),
                "1.5 MB",
            );
            cluster.kubectl(&[
                "-n",
                "default",
                "delete",
                "pods",
                "--all",
                "--grace-period=0",
                "--force",
            ])?;
        }
        cluster.finish()?;
    }
    if wanted("memory") {
        let cluster = Cluster::start(&[])?;
        load::inside(&cluster, |client| load::config_maps(client, 10_000))?;
        std::thread::sleep(Duration::from_secs(5));
        row(
            "memory with 10,000 ConfigMaps of 1 KiB",
            &memory::total(&cluster)?.to_string(),
            "60 MB",
        );
        cluster.finish()?;
    }
    if wanted("api") {
        let cluster = Cluster::start(&[])?;
        load::inside(&cluster, load::api)?;
        cluster.finish()?;
    }
    Ok(())
}

/// One figure: what, measured, promised.
fn row(what: &str, figure: &str, promise: &str) {
    println!("{what:<44} {figure:>28}   promised {promise}");
}

#[allow(clippy::cast_precision_loss)]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// From the process's start to an answer of /readyz, and to the node's Ready condition.
fn start() -> Result<()> {
    let (mut api, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let mut c = Cluster::prepare(&[])?;
        let begun = Instant::now();
        c.launch()?;
        let node = c.netns.clone();
        let port = std::thread::spawn(move || -> Result<Duration> {
            // A TLS answer: curl is cheaper than kubectl, whose own start is a tenth of a second.
            loop {
                let o = std::process::Command::new("nsenter")
                    .arg(format!("--net=/run/netns/{node}"))
                    .args([
                        "curl",
                        "-sk",
                        "-o",
                        "/dev/null",
                        "-w",
                        "%{http_code}",
                        "https://127.0.0.1:6443/readyz",
                    ])
                    .output()
                    .context("curl")?;
                if o.stdout == b"200" {
                    return Ok(begun.elapsed());
                }
                if begun.elapsed() > Duration::from_secs(60) {
                    anyhow::bail!("the API does not answer");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let answered = port
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        load::inside(&c, load::node_ready)?;
        ready.push(begun.elapsed());
        api.push(answered);
        c.finish()?;
    }
    row(
        "start to API answering (median of 5)",
        &format!("{:.2?}", median(api)),
        "0.3 s",
    );
    row(
        "start to node Ready (median of 5)",
        &format!("{:.2?}", median(ready)),
        "1 s",
    );
    Ok(())
}

/// A cluster with nothing to do.
fn idle(cluster: &Cluster) -> Result<()> {
    std::thread::sleep(Duration::from_secs(20));
    let before = memory::cpu_seconds(cluster)?;
    let window = Duration::from_secs(30);
    std::thread::sleep(window);
    let share = (memory::cpu_seconds(cluster)? - before) / window.as_secs_f64() * 100.0;
    row(
        "memory of an idle node, all processes",
        &memory::total(cluster)?.to_string(),
        "40 MB",
    );
    row(
        "CPU of an idle node",
        &format!("{share:.2} % of a core"),
        "0.5 %",
    );
    Ok(())
}
