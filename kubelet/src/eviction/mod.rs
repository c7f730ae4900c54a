//! Pods end when the node runs short (upstream pkg/kubelet/eviction), and when they use more local storage than they
//! may. Owns the loop and the pressure conditions; a pod's end is its worker's.

pub mod local_storage;
pub mod rank;
pub mod signals;
pub mod usage;

use crate::gc;
use crate::kubelet::Kubelet;
use crate::node::status::{Pressure, node_reference};
use crate::pod::spec;
use crate::pod::state::Event;
use crate::pod::worker::Msg;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use rank::Candidate;
use signals::{Resource, Short};
use skiff_client::recorder::EventType;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use usage::Measured;

/// How often the node is looked at (upstream's housekeeping: ten seconds).
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a pressure is shown after it has gone (eviction-pressure-transition-period).
const TRANSITION: Duration = Duration::from_secs(300);
/// How long an evicted pod's end is waited for before another one goes (upstream podCleanupTimeout).
const CLEAN_UP: Duration = Duration::from_secs(30);
/// Hard thresholds leave no grace.
const GRACE: i64 = 1;

/// Where images are, once the runtime has said so, and whether that is a disk of its own.
#[derive(Default)]
struct ImageFs {
    path: Option<PathBuf>,
    dedicated: bool,
}

/// Looks after the node until the kubelet stops.
pub async fn run(k: Arc<Kubelet>, tell: Arc<watch::Sender<Pressure>>) {
    let mut seen: [Option<Instant>; 3] = [None; 3];
    let mut going: Option<(String, Instant)> = None;
    let mut images = ImageFs::default();
    loop {
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if images.path.is_none() {
            images = image_fs(&k).await;
        }
        let short = look(&k, images.path.as_deref()).await;
        let now = Instant::now();
        let is = signals::pressure(&short);
        for (at, yes) in seen.iter_mut().zip([is.memory, is.disk, is.pid]) {
            if yes {
                *at = Some(now);
            }
        }
        let shown = |i: usize| seen[i].is_some_and(|t| now.duration_since(t) < TRANSITION);
        let pressure = Pressure {
            memory: shown(0),
            disk: shown(1),
            pid: shown(2),
        };
        tell.send_if_modified(|p| {
            let changed = *p != pressure;
            *p = pressure;
            changed
        });
        // Whoever is beyond its own limits goes before anybody who is not.
        if beyond_limits(&k, images.dedicated).await {
            continue;
        }
        // One pod at a time, and time for its end to show.
        if going
            .as_ref()
            .is_some_and(|(uid, at)| now.duration_since(*at) < CLEAN_UP && !ended(&k, uid))
        {
            continue;
        }
        going = None;
        let Some(worst) = short.first() else { continue };
        k.recorder.event(
            &node_reference(&k.config.node_name),
            EventType::Warning,
            "EvictionThresholdMet",
            format!("Attempting to reclaim {}", worst.signal.resource().name()),
        );
        if reclaim(&k, worst, images.path.as_deref()).await {
            continue;
        }
        going = evict(&k, worst, images.dedicated)
            .await
            .map(|uid| (uid, now));
    }
}

async fn image_fs(k: &Kubelet) -> ImageFs {
    let info = k.cri.image_fs_info().await.ok();
    let point = info
        .and_then(|i| i.image_filesystems.into_iter().next()?.fs_id)
        .map(|f| PathBuf::from(f.mountpoint));
    let device = |p: &Path| rustix::fs::stat(p).map(|s| s.st_dev).ok();
    ImageFs {
        dedicated: point
            .as_ref()
            .is_some_and(|p| device(p) != device(&k.config.root_dir)),
        path: point,
    }
}

async fn look(k: &Arc<Kubelet>, images: Option<&Path>) -> Vec<Short> {
    let (this, images) = (k.clone(), images.map(Path::to_path_buf));
    let observed =
        tokio::task::spawn_blocking(move || signals::observe(&this, images.as_deref())).await;
    signals::met(&k.config.eviction_hard, &observed.unwrap_or_default())
}

/// All of these pods, measured beside each other.
async fn measured(k: &Arc<Kubelet>, pods: Vec<Arc<Pod>>) -> Vec<(Arc<Pod>, Measured)> {
    let mut containers = usage::containers(k).await;
    let jobs = pods.into_iter().map(|pod| {
        let found = containers.remove(spec::uid(&pod)).unwrap_or_default();
        async move {
            let m = usage::of_pod(k, &pod, found).await;
            (pod, m)
        }
    });
    // A few at a time: each has a thread.
    futures::stream::iter(jobs)
        .buffered(4)
        .collect::<Vec<_>>()
        .await
}

fn ended(k: &Kubelet, uid: &str) -> bool {
    let handle = k.workers.lock().get(uid).cloned();
    handle.is_none_or(|h| h.published.lock().ended)
}

/// Gives back what no pod needs: containers of pods that have ended, and images that nothing uses. True when the node is
/// no longer short of anything.
async fn reclaim(k: &Arc<Kubelet>, worst: &Short, images: Option<&Path>) -> bool {
    match worst.signal.resource() {
        Resource::EphemeralStorage | Resource::Inodes => {}
        Resource::Memory | Resource::Pids => return false,
    }
    let done: Vec<_> = k
        .workers
        .lock()
        .values()
        .filter(|h| h.published.lock().ended)
        .cloned()
        .collect();
    for h in done {
        h.send(Msg::Event(Event::Reclaim));
    }
    if let Err(e) = gc::delete_unused(k).await {
        tracing::warn!(error = %e, "unused images could not be removed although the disk is full");
    }
    look(k, images).await.is_empty()
}

/// Ends one pod; its uid.
async fn evict(k: &Arc<Kubelet>, worst: &Short, dedicated: bool) -> Option<String> {
    let candidates = measured(k, alive(k))
        .await
        .into_iter()
        .map(|(pod, m)| Candidate {
            pod,
            usage: m.usage,
        })
        .collect();
    let first = rank::rank(candidates, worst, dedicated)
        .into_iter()
        .next()?;
    let message = rank::message(&first, worst);
    tracing::warn!(pod = %spec::name(&first.pod), "evicting a pod: the node is low on {}", worst.signal.resource().name());
    end(k, &first.pod, message, true);
    Some(spec::uid(&first.pod).to_string())
}

/// Pods that have not ended.
fn alive(k: &Kubelet) -> Vec<Arc<Pod>> {
    k.workers
        .lock()
        .values()
        .filter_map(|h| {
            let p = h.published.lock();
            (!p.ended && !spec::is_terminal(&p.pod)).then(|| p.pod.clone())
        })
        .collect()
}

fn end(k: &Kubelet, pod: &Pod, message: String, disruption: bool) {
    k.note(pod, EventType::Warning, "Evicted", &message);
    let handle = k.workers.lock().get(spec::uid(pod)).cloned();
    if let Some(h) = handle {
        h.send(Msg::Event(Event::Evict {
            reason: "Evicted".into(),
            message,
            grace: Some(GRACE),
            disruption,
        }));
    }
}

/// Ends pods that use more local storage than they may; true when there was one. Nothing is measured when no pod has a
/// limit.
async fn beyond_limits(k: &Arc<Kubelet>, dedicated: bool) -> bool {
    let pods: Vec<Arc<Pod>> = alive(k)
        .into_iter()
        .filter(|p| local_storage::limited(p) && !spec::is_critical(p))
        .collect();
    if pods.is_empty() {
        return false;
    }
    let mut some = false;
    for (pod, m) in measured(k, pods).await {
        if let Some(message) = local_storage::beyond(&pod, &m.limited, &m.usage, dedicated) {
            end(k, &pod, message, false);
            some = true;
        }
    }
    some
}
