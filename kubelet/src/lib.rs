//! The node agent: runs the pods that the API binds to this node, through any CRI v1 runtime. Owns the pods' state
//! machine, volumes, probes, status, logs, the Node object and the node's HTTPS server. Must not know how containers
//! are made (that is the runtime, behind its socket) or how pods reach each other (network).

pub mod args;
pub mod cgroups;
pub mod config;
pub mod cri;
pub mod eviction;
pub mod gc;
pub mod images;
pub mod kubelet;
pub mod kuberuntime;
pub mod labels;
pub mod lifecycle;
pub mod logs;
pub mod node;
pub mod objects;
mod parts;
pub mod pod;
pub mod prober;
pub mod quantity;
pub mod server;
pub mod volumes;

pub use config::Config;
pub use kubelet::Kubelet;

use crate::cri::Cri;
use k8s_openapi::api::core::v1::{Pod, Service};
use skiff_client::{Informers, Recorder, Scope};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Why the kubelet could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory that it needs.
    #[error("kubelet: {path}: {source}")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The HTTPS server.
    #[error("kubelet: {0}")]
    Server(String),
    /// A setting that cannot be right.
    #[error("kubelet: {0}")]
    Config(String),
}

/// Runs a kubelet until `stop`; containers go on after that. Registers the node at once and reports it ready when the
/// runtime says so.
///
/// # Errors
/// A directory that cannot be made, certificates that cannot be used, a port that is taken. Everything later is
/// tried again and shown in the node's or the pods' status.
pub async fn run(
    informers: Informers,
    config: Config,
    stop: CancellationToken,
) -> Result<(), Error> {
    for dir in [&config.root_dir, &config.pod_logs_dir] {
        std::fs::create_dir_all(dir).map_err(|source| Error::Directory {
            path: dir.display().to_string(),
            source,
        })?;
    }
    volumes::place::close(&config).map_err(|source| Error::Directory {
        path: config.root_dir.display().to_string(),
        source,
    })?;
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let sysctls = node::sysctls::Allowed::new(&release, &config.allowed_unsafe_sysctls)
        .map_err(Error::Config)?;
    let (press, pressure) = watch::channel(node::status::Pressure::default());
    let listener = server::bind(&config).await.map_err(Error::Server)?;
    let client = informers.client().clone();
    let pods = if config.shared_caches {
        informers.cache::<Pod>()
    } else {
        informers.scoped::<Pod>(Scope {
            fields: Some(format!("spec.nodeName={}", config.node_name)),
            ..Scope::default()
        })
    };
    let capacity = node::capacity::read(&config.root_dir, config.max_pods, &config.reserved());
    let cgroups = cgroups::Cgroups::new(&config, &capacity).map_err(|source| Error::Directory {
        path: "/proc/self/mountinfo".into(),
        source,
    })?;
    let cri = Cri::new(&config.cri_socket);
    let Some(version) = runtime_version(&cri, &stop).await else {
        return Ok(());
    };
    let kubelet = Arc::new(Kubelet {
        images: images::Images::new(cri.clone()),
        objects: objects::Objects::new(
            client.clone(),
            informers.supervisor().clone(),
            stop.clone(),
        ),
        volumes: volumes::Volumes::default(),
        tokens: volumes::tokens::Tokens::default(),
        recorder: Recorder::new(client.clone(), "kubelet", &config.node_name),
        services: informers.cache::<Service>(),
        image_use: gc::LastUsed::default(),
        cgroups,
        capacity,
        runtime_name: version.runtime_name,
        runtime_version: version.runtime_version,
        sysctls,
        pressure: pressure.clone(),
        workers: parking_lot::Mutex::default(),
        pods: pods.clone(),
        client,
        informers,
        cri,
        config,
        stop: stop.clone(),
    });
    let _ = kubelet.nodes();

    let (poke, poked) = watch::channel(0u64);
    let (poke, press) = (Arc::new(poke), Arc::new(press));
    let listener = Arc::new(parking_lot::Mutex::new(Some(listener)));
    parts::keep(&kubelet, "kubelet/server", move |k| {
        let first = listener.lock().take();
        Box::pin(async move {
            let listener = match first {
                Some(l) => l,
                None => server::bind(&k.config).await?,
            };
            Box::pin(server::run(k, listener)).await;
            Ok(())
        })
    });
    parts::keep(&kubelet, "kubelet/status", move |k| {
        parts::boxed(node::status::run(k, poked.clone(), pressure.clone()))
    });
    parts::keep(&kubelet, "kubelet/events", move |k| {
        let poke = poke.clone();
        parts::boxed(pod::pleg::run(k, move || poke.send_modify(|n| *n += 1)))
    });
    parts::keep(&kubelet, "kubelet/eviction", move |k| {
        parts::boxed(eviction::run(k, press.clone()))
    });
    parts::keep(&kubelet, "kubelet/pods", |k| {
        let pods = k.pods.subscribe();
        parts::boxed(pod::manager::run(k, pods))
    });
    parts::keep(&kubelet, "kubelet/lease", |k| {
        parts::boxed(node::lease::run(k))
    });
    parts::keep(&kubelet, "kubelet/logs", |k| {
        parts::boxed(logs::rotate::run(k))
    });
    parts::keep(&kubelet, "kubelet/images", |k| parts::boxed(gc::run(k)));
    parts::keep(&kubelet, "kubelet/cgroups", |k| {
        parts::boxed(cgroups::run(k))
    });
    stop.cancelled().await;
    Ok(())
}

/// Waits for the runtime's first answer; None when the kubelet is stopped before.
async fn runtime_version(
    cri: &Cri,
    stop: &CancellationToken,
) -> Option<k8s_cri::v1::VersionResponse> {
    let mut said = false;
    let mut wait = Duration::from_millis(10);
    loop {
        match cri.version().await {
            Ok(v) => return Some(v),
            Err(e) if !said && wait > Duration::from_secs(1) => {
                tracing::warn!(error = %e, "waiting for the container runtime");
                said = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(2)),
        }
    }
}
