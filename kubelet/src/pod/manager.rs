//! Which pods have workers: those that the API binds to this node. Owns admission of new ones, adoption after a
//! restart, and the end of what no pod claims (upstream kubelet.go syncLoop, HandlePodCleanups).

use super::spec;
use super::state::Event as PodEvent;
use super::worker::{Msg, Worker};
use crate::kubelet::Kubelet;
use crate::labels;
use crate::node::admission;
use crate::volumes::tear_down;
use crate::volumes::work::{self, Lane};
use k8s_openapi::api::core::v1::{Node, Pod};
use skiff_client::Event;
use skiff_client::recorder::EventType;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Follows the API until the kubelet stops.
pub async fn run(k: Arc<Kubelet>, mut events: mpsc::UnboundedReceiver<Event<Pod>>) {
    // Pods that have a sandbox were admitted before this process began.
    let mut had = loop {
        match k.cri.list_pod_sandbox(HashMap::new()).await {
            Ok(all) => {
                break all
                    .into_iter()
                    .filter_map(|s| s.labels.get(labels::POD_UID).cloned())
                    .collect::<HashSet<_>>();
            }
            Err(e) => {
                tracing::warn!(error = %e, "the runtime does not answer; trying again");
                tokio::select! {
                    () = k.stop.cancelled() => return,
                    () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {}
                }
            }
        }
    };
    loop {
        let event = tokio::select! {
            () = k.stop.cancelled() => return,
            event = events.recv() => event,
        };
        match event {
            None => return,
            Some(Event::Applied { new, old }) => {
                if let Some(old) = old.filter(|o| o.metadata.uid != new.metadata.uid) {
                    // Deleted and made again under the same name while the watch was down.
                    gone(&k, &old);
                }
                if spec::spec(&new).node_name.as_deref() == Some(k.config.node_name.as_str()) {
                    applied(&k, new, &had);
                }
            }
            Some(Event::Deleted(pod)) => gone(&k, &pod),
            Some(Event::Synced) => {
                // A manager in the place of one that panicked did not hear of pods that went.
                for pod in known(&k) {
                    let now = k.pods.get(spec::namespace(&pod), spec::name(&pod));
                    if now.is_none_or(|n| n.metadata.uid != pod.metadata.uid) {
                        gone(&k, &pod);
                    }
                }
                clean_orphans(&k, &had);
                had.clear();
            }
        }
    }
}

fn known(k: &Kubelet) -> Vec<Arc<Pod>> {
    let workers = k.workers.lock();
    workers
        .values()
        .map(|h| h.published.lock().pod.clone())
        .collect()
}

fn gone(k: &Arc<Kubelet>, pod: &Pod) {
    let handle = k.workers.lock().get(spec::uid(pod)).cloned();
    if let Some(h) = handle {
        h.send(Msg::Event(PodEvent::Gone));
    }
}

fn applied(k: &Arc<Kubelet>, pod: Arc<Pod>, had: &HashSet<String>) {
    let uid = spec::uid(&pod).to_string();
    let known = k.workers.lock().get(&uid).cloned();
    if let Some(h) = known {
        h.send(Msg::Event(PodEvent::Pod(pod)));
        return;
    }
    let refused = if had.contains(&uid)
        || spec::is_terminal(&pod)
        || pod.metadata.deletion_timestamp.is_some()
    {
        None
    } else {
        admit(k, &pod)
    };
    if let Some((reason, message)) = &refused {
        k.note(&pod, EventType::Warning, reason, message);
    }
    start(k, pod, !had.contains(&uid), refused);
}

/// Runs a pod's worker. One that panics is made anew out of what the API and the runtime have; the pod's containers go on
/// meanwhile.
pub(crate) fn start(
    k: &Arc<Kubelet>,
    pod: Arc<Pod>,
    fresh: bool,
    refused: Option<(String, String)>,
) {
    let mut first = Some(enter(k, &pod, fresh, &refused));
    let key = format!("{}/{}", spec::namespace(&pod), spec::name(&pod));
    let kubelet = k.clone();
    k.supervisor().spawn_transient("kubelet/pod", key, move || {
        let worker = first
            .take()
            .unwrap_or_else(|| again(&kubelet, &pod, &refused));
        async move {
            worker.run().await;
            Ok::<_, std::convert::Infallible>(())
        }
    });
}

/// Makes a worker, and lets it be found.
fn enter(
    k: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    fresh: bool,
    refused: &Option<(String, String)>,
) -> Worker {
    let (worker, handle) = Worker::new(k.clone(), pod.clone(), fresh);
    if let Some((reason, message)) = refused {
        handle.send(Msg::Event(PodEvent::Evict {
            reason: reason.clone(),
            message: format!("Pod was rejected: {message}"),
            grace: None,
            disruption: false,
        }));
    }
    k.workers.lock().insert(spec::uid(pod).to_string(), handle);
    worker
}

/// A worker in the place of one that panicked. What the other did not hear of is told: the pod as it is now.
fn again(k: &Arc<Kubelet>, pod: &Arc<Pod>, refused: &Option<(String, String)>) -> Worker {
    let worker = enter(k, pod, false, refused);
    if k.pods.is_synced() {
        match k.pods.get(spec::namespace(pod), spec::name(pod)) {
            Some(now) if now.metadata.uid == pod.metadata.uid => {
                let handle = k.workers.lock().get(spec::uid(pod)).cloned();
                if let Some(h) = handle {
                    h.send(Msg::Event(PodEvent::Pod(now)));
                }
            }
            _ => gone(k, pod),
        }
    }
    worker
}

fn admit(k: &Arc<Kubelet>, pod: &Pod) -> Option<(String, String)> {
    let others = active(k, spec::uid(pod));
    let node: Option<Arc<Node>> = k.nodes().get("", &k.config.node_name);
    let machine = admission::Machine {
        node: node.as_deref(),
        allocatable: &k.capacity.allocatable,
        max_pods: k.config.max_pods,
        sysctls: &k.sysctls,
        pressure: *k.pressure.borrow(),
    };
    admission::admit(pod, &machine, &others)
}

/// Pods that use the node now, but for one.
pub fn active(k: &Kubelet, but: &str) -> Vec<Arc<Pod>> {
    k.workers
        .lock()
        .values()
        .filter_map(|h| {
            let p = h.published.lock();
            let counts = !p.ended && !spec::is_terminal(&p.pod) && spec::uid(&p.pod) != but;
            counts.then(|| p.pod.clone())
        })
        .collect()
}

/// Ends sandboxes and removes directories of pods that the API does not know (any more).
fn clean_orphans(k: &Arc<Kubelet>, had: &HashSet<String>) {
    let mut known: HashSet<String> = k.workers.lock().keys().cloned().collect();
    // A pod that is there and cannot be read goes on running as it does.
    known.extend(k.pods.broken().into_iter().map(|b| b.uid));
    for uid in had.iter().filter(|u| !known.contains(*u)) {
        let (k, uid) = (k.clone(), uid.clone());
        tokio::spawn(async move {
            match end_orphan(&k, &uid).await {
                Ok(()) => tracing::info!(uid, "ended a pod that the API does not know"),
                Err(e) => {
                    tracing::warn!(uid, error = %e, "a pod that the API does not know could not be ended")
                }
            }
        });
    }
    remove_orphaned_dirs(k, &known, had);
}

async fn end_orphan(k: &Arc<Kubelet>, uid: &str) -> Result<(), String> {
    let filter = HashMap::from([(labels::POD_UID.to_string(), uid.to_string())]);
    let containers = k
        .cri
        .list_containers(filter.clone())
        .await
        .map_err(|e| e.to_string())?;
    let stops = containers
        .into_iter()
        .filter(|c| c.state == k8s_cri::v1::ContainerState::ContainerRunning as i32)
        .map(|c| {
            let grace = c
                .annotations
                .get(labels::POD_TERMINATION_GRACE)
                .and_then(|g| g.parse().ok())
                .unwrap_or(30);
            async move { k.cri.stop_container(&c.id, grace).await }
        });
    for r in futures::future::join_all(stops).await {
        r.map_err(|e| e.to_string())?;
    }
    for s in k
        .cri
        .list_pod_sandbox(filter)
        .await
        .map_err(|e| e.to_string())?
    {
        k.cri
            .stop_pod_sandbox(&s.id)
            .await
            .map_err(|e| e.to_string())?;
        k.cri
            .remove_pod_sandbox(&s.id)
            .await
            .map_err(|e| e.to_string())?;
    }
    let (dir, this, uid) = (k.config.pod_dir(uid), k.clone(), uid.to_string());
    let logs = k.config.pod_logs_dir.clone();
    let pod_uid = uid.clone();
    let job = move |_: &work::Closed| {
        tear_down::remove(&dir)?;
        this.cgroups
            .remove_pod(&pod_uid)
            .map_err(|e| e.to_string())?;
        remove_logs(&logs, |u| u == pod_uid);
        Ok(())
    };
    let work = &k.volumes.work;
    let done = work.run(&uid, Lane::TearDown, work::TEAR_DOWN, job).await;
    work.forget(&uid);
    done.map_err(|e| e.to_string())?
}

/// Each is removed by itself: one that hangs holds up no other.
fn remove_orphaned_dirs(k: &Arc<Kubelet>, known: &HashSet<String>, had: &HashSet<String>) {
    let unclaimed = |uid: &str| {
        !known.contains(uid) && !had.contains(uid) && !k.workers.lock().contains_key(uid)
    };
    let pods = k.config.root_dir.join("pods");
    for entry in std::fs::read_dir(&pods).into_iter().flatten().flatten() {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if !unclaimed(&uid) {
            continue;
        }
        let (k, dir) = (k.clone(), entry.path());
        tokio::spawn(async move {
            let job = move |_: &work::Closed| tear_down::remove(&dir);
            let work = &k.volumes.work;
            let lane = Lane::TearDown;
            let gone = work.run(&uid, lane, work::TEAR_DOWN, job).await;
            if let Err(e) = gone.map_err(|e| e.to_string()).and_then(|r| r) {
                tracing::warn!(uid, error = %e, "directory of a pod that is gone could not be removed");
            }
            work.forget(&uid);
            let _ = k.cgroups.remove_pod(&uid);
        });
    }
    let (this, known, had) = (k.clone(), known.clone(), had.clone());
    tokio::task::spawn_blocking(move || {
        remove_logs(&this.config.pod_logs_dir, |uid| {
            !known.contains(uid) && !had.contains(uid) && !this.workers.lock().contains_key(uid)
        });
    });
}

fn remove_logs(dir: &std::path::Path, which: impl Fn(&str) -> bool) {
    tear_down::remove_entries(dir, |name| {
        name.to_string_lossy()
            .rsplit_once('_')
            .is_some_and(|(_, uid)| which(uid))
    });
}
