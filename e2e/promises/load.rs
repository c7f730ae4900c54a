//! Load from inside a cluster's network namespace: pods one after another and at once, and requests of 32 clients over
//! TLS. The clients run on the same cores as the server, so figures are lower bounds.

use super::{median, row};
use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use skiff_e2e::framework::Cluster;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: usize = 32;

/// Runs a load on threads inside the cluster's network namespace.
///
/// # Errors
/// The namespace cannot be entered, or the load failed.
pub fn inside<F, R>(cluster: &Cluster, load: F) -> Result<()>
where
    F: FnOnce(Client) -> R + Send,
    R: Future<Output = Result<()>>,
{
    let netns = std::fs::File::open(format!("/run/netns/{}", cluster.netns))?;
    let path = cluster.kubeconfig.clone();
    std::thread::scope(|s| {
        s.spawn(move || {
            // Threads made from here on are inside as well.
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&netns),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
                .block_on(async {
                    let end = Instant::now() + Duration::from_secs(30);
                    while !path.exists() && Instant::now() < end {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    let kubeconfig = Kubeconfig::read_from(&path)?;
                    let config =
                        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                            .await?;
                    load(Client::try_from(config)?).await
                })
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the load panicked"))?
    })
}

/// Waits for the first node to be Ready, by watching.
pub async fn node_ready(client: Client) -> Result<()> {
    let api: Api<Node> = Api::all(client);
    let stream = api.watch(&WatchParams::default().timeout(60), "0").await?;
    let mut stream = stream.boxed();
    while let Some(event) = stream.try_next().await? {
        if let WatchEvent::Added(n) | WatchEvent::Modified(n) = event
            && n.status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|c| c.type_ == "Ready" && c.status == "True")
        {
            return Ok(());
        }
    }
    bail!("the node is not Ready within 60 s")
}

fn ready(p: &Pod) -> bool {
    p.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

fn pod(name: &str, image: &str) -> Result<Pod> {
    Ok(serde_json::from_value(
        json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": image, "command": ["sleep", "100000"]}]}}),
    )?)
}

/// 20 pods one after another, then 20 at once: create to Ready.
pub async fn pods(client: Client, image: &str) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client, "default");
    let mut events = api
        .watch(&WatchParams::default().timeout(280), "0")
        .await?
        .boxed();
    let mut times = Vec::new();
    for n in 0..20 {
        let name = format!("one-{n}");
        let begun = Instant::now();
        api.create(&PostParams::default(), &pod(&name, image)?)
            .await?;
        loop {
            let event = events.try_next().await?.context("the watch ended")?;
            if let WatchEvent::Added(p) | WatchEvent::Modified(p) = event
                && p.metadata.name.as_deref() == Some(&name)
                && ready(&p)
            {
                break;
            }
        }
        times.push(begun.elapsed());
    }
    let worst = times.iter().max().copied().unwrap_or_default();
    row(
        "pod created to Ready, one after another",
        &format!("{:.1?} (worst {worst:.1?})", median(times)),
        "60 ms",
    );
    for n in 0..20 {
        api.delete(&format!("one-{n}"), &DeleteParams::default())
            .await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let begun = Instant::now();
    let creations = (0..20).map(|n| {
        let api = api.clone();
        async move {
            api.create(&PostParams::default(), &pod(&format!("many-{n}"), image)?)
                .await?;
            Ok::<_, anyhow::Error>(())
        }
    });
    futures::future::try_join_all(creations).await?;
    let mut up = std::collections::BTreeSet::new();
    while up.len() < 20 {
        let event = events.try_next().await?.context("the watch ended")?;
        if let WatchEvent::Added(p) | WatchEvent::Modified(p) = event {
            let name = p.metadata.name.clone().unwrap_or_default();
            if name.starts_with("many-") && ready(&p) {
                up.insert(name);
            }
        }
    }
    row(
        "20 pods at once, all Ready",
        &format!("{:.2?}", begun.elapsed()),
        "1.0 s",
    );
    Ok(())
}

fn map(name: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(
        json!({"metadata": {"name": name}, "data": {"a": "x".repeat(1024)}}),
    )?)
}

/// Creates ConfigMaps of 1 KiB.
pub async fn config_maps(client: Client, count: usize) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    futures::stream::iter((0..count).map(|n| {
        let api = api.clone();
        async move {
            api.create(&PostParams::default(), &map(&format!("m-{n}"))?)
                .await?;
            Ok::<_, anyhow::Error>(())
        }
    }))
    .buffer_unordered(CLIENTS)
    .try_collect::<Vec<()>>()
    .await?;
    Ok(())
}

async fn rate<F, R>(seconds: u64, work: F) -> Result<f64>
where
    F: Fn(u64) -> R + Send + Sync + 'static,
    R: Future<Output = Result<()>> + Send,
{
    let count = Arc::new(AtomicU64::new(0));
    let work = Arc::new(work);
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (count, work) = (count.clone(), work.clone());
        clients.spawn(async move {
            while Instant::now() < end {
                work(count.fetch_add(1, Ordering::Relaxed)).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

async fn get(client: &Client, path: &str) -> Result<u64> {
    let request = http::Request::get(path).body(kube::client::Body::empty())?;
    let response = client.send(request).await?;
    if !response.status().is_success() {
        bail!("{path}: {}", response.status());
    }
    Ok(response.into_body().collect().await?.to_bytes().len() as u64)
}

/// create, get and list, with 32 clients.
pub async fn api(client: Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let creates = {
        let maps = maps.clone();
        rate(5, move |n| {
            let maps = maps.clone();
            async move {
                maps.create(&PostParams::default(), &map(&format!("c-{n}"))?)
                    .await?;
                Ok(())
            }
        })
        .await?
    };
    row(
        "create, 1 KiB, 32 clients, durable",
        &format!("{creates:.0}/s"),
        "10,000/s",
    );
    let gets = {
        let client = client.clone();
        rate(5, move |_| {
            let client = client.clone();
            async move {
                get(&client, "/api/v1/namespaces/default/configmaps/c-1")
                    .await
                    .map(|_| ())
            }
        })
        .await?
    };
    row("GET, 32 clients", &format!("{gets:.0}/s"), "30,000/s");
    let bytes = Arc::new(AtomicU64::new(0));
    let lists = {
        let (client, bytes) = (client.clone(), bytes.clone());
        rate(5, move |_| {
            let (client, bytes) = (client.clone(), bytes.clone());
            async move {
                let n = get(&client, "/api/v1/namespaces/default/configmaps?limit=3000").await?;
                bytes.fetch_add(n, Ordering::Relaxed);
                Ok(())
            }
        })
        .await?
    };
    #[allow(clippy::cast_precision_loss)]
    let mb = bytes.load(Ordering::Relaxed) as f64 / 1e6 / 5.0;
    row(
        "LIST of up to 3,000 objects, 32 clients",
        &format!("{lists:.1}/s, {mb:.0} MB/s"),
        "1 GB/s",
    );
    Ok(())
}
