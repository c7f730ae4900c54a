//! The runtime's events on their way to pods' workers (upstream pkg/kubelet/pleg, evented). Owns the event stream,
//! a slow safety look at everything, and a fast one for runtimes without events.

use super::worker::Msg;
use crate::cri::CriError;
use crate::kubelet::Kubelet;
use crate::labels;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How often everything is looked at although events should have told (upstream's evented relist: 300 s).
const SAFETY: Duration = Duration::from_secs(300);
/// How often a runtime without events is looked at (upstream's generic PLEG).
const POLL: Duration = Duration::from_secs(1);

/// Uid of the pod and state, by id of sandbox or container.
type Seen = HashMap<String, (String, i32)>;

/// Runs until the kubelet stops. `runtime_changed` is called when the stream begins or breaks.
pub async fn run(k: Arc<Kubelet>, runtime_changed: impl Fn() + Send) {
    let mut seen = Seen::new();
    loop {
        let result = tokio::select! {
            () = k.stop.cancelled() => return,
            r = follow(&k, &mut seen, &runtime_changed) => r,
        };
        runtime_changed();
        match result {
            Err(e) if e.is_unimplemented() => {
                tracing::info!("the runtime has no events; it is looked at every second");
                loop {
                    tokio::select! {
                        () = k.stop.cancelled() => return,
                        () = tokio::time::sleep(POLL) => {}
                    }
                    if let Err(e) = relist(&k, &mut seen).await {
                        tracing::debug!(error = %e, "the runtime does not answer");
                    }
                }
            }
            Err(e) => {
                tracing::debug!(error = %e, "the runtime's events broke off; connecting again")
            }
            Ok(()) => {}
        }
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

async fn follow(
    k: &Arc<Kubelet>,
    seen: &mut Seen,
    runtime_changed: &impl Fn(),
) -> Result<(), CriError> {
    let mut stream = k.cri.events().await?;
    // What happened while nobody listened.
    relist(k, seen).await?;
    runtime_changed();
    let mut safety = tokio::time::interval(SAFETY);
    safety.tick().await;
    loop {
        tokio::select! {
            _ = safety.tick() => relist(k, seen).await?,
            event = stream.message() => {
                let event = event.map_err(|s| CriError {
                    call: "GetContainerEvents",
                    code: s.code(),
                    message: s.message().to_string(),
                })?;
                let Some(event) = event else { return Ok(()) };
                let uid = event
                    .pod_sandbox_status
                    .as_ref()
                    .and_then(|s| s.metadata.as_ref())
                    .map(|m| m.uid.clone())
                    .or_else(|| seen.get(&event.container_id).map(|(u, _)| u.clone()))
                    .or_else(|| owner(k, &event.container_id));
                match uid {
                    Some(uid) => tell(k, &uid),
                    None => relist(k, seen).await?,
                }
            }
        }
    }
}

fn tell(k: &Kubelet, uid: &str) {
    let handle = k.workers.lock().get(uid).cloned();
    if let Some(h) = handle {
        h.send(Msg::Look);
    }
}

fn owner(k: &Kubelet, id: &str) -> Option<String> {
    let workers = k.workers.lock();
    workers
        .iter()
        .find(|(_, h)| {
            let p = h.published.lock();
            p.view.containers.iter().any(|c| c.id == id)
                || p.view.sandboxes.iter().any(|s| s.id == id)
        })
        .map(|(uid, _)| uid.clone())
}

/// Looks at everything and wakes the pods of what has changed.
async fn relist(k: &Arc<Kubelet>, seen: &mut Seen) -> Result<(), CriError> {
    let (sandboxes, containers) = tokio::try_join!(
        k.cri.list_pod_sandbox(HashMap::new()),
        k.cri.list_containers(HashMap::new())
    )?;
    let mut now = Seen::new();
    for s in sandboxes {
        if let Some(uid) = s.labels.get(labels::POD_UID) {
            now.insert(s.id, (uid.clone(), s.state));
        }
    }
    for c in containers {
        if let Some(uid) = c.labels.get(labels::POD_UID) {
            now.insert(c.id, (uid.clone(), c.state));
        }
    }
    let mut changed: Vec<&str> = Vec::new();
    for (id, (uid, state)) in &now {
        if seen.get(id).is_none_or(|(_, s)| s != state) {
            changed.push(uid);
        }
    }
    for (id, (uid, _)) in seen.iter() {
        if !now.contains_key(id) {
            changed.push(uid);
        }
    }
    changed.sort_unstable();
    changed.dedup();
    for uid in changed {
        tell(k, uid);
    }
    *seen = now;
    Ok(())
}
