//! Owns the start of the server: what its predecessor left is adopted if it lives, recorded as ended if it died, and
//! removed if it never came to be. The rule for every step elsewhere: a kill at any moment leaves a state that this
//! file brings back in order.

use super::sandbox::Listening;
use super::{
    Container, ContainerRecord, ContainerState, Phase, Runtime, Sandbox, SandboxRecord, blocking,
    containers, internal, sandbox,
};
use crate::PodNetworkStatus;
use crate::container::spec::Started;
use crate::shim::client::{Shim, ShimError};
use crate::shim::protocol::Held;
use crate::{state, sys};
use k8s_cri::v1;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

fn subdirs(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut out = Vec::new();
    for e in std::fs::read_dir(dir)? {
        let e = e?;
        if let Ok(name) = e.file_name().into_string() {
            out.push((name, e.path()));
        }
    }
    Ok(out)
}

/// What became of a sandbox's shim.
enum Found {
    Lives(Listening, Vec<Held>),
    /// It was to end already.
    ToEnd,
    Gone,
}

/// Looks for the shim of a sandbox on record. It returns soon, also when the shim is stuck: the start of a server must not
/// wait for one pod.
async fn find_shim(s: &Arc<Sandbox>) -> Found {
    let ready = s.state.lock().phase == Phase::Ready;
    let mut subscription = match s.shim.subscribe().await {
        Ok(subscription) => subscription,
        Err(ShimError::Stuck(_)) if lives(s).await => {
            return if ready {
                Found::Lives(Listening::NotYet, Vec::new())
            } else {
                Found::ToEnd
            };
        }
        Err(_) => return Found::Gone,
    };
    if !ready {
        return Found::ToEnd;
    }
    match subscription.answer_soon().await {
        Ok((pid, held)) => {
            s.state.lock().pid = pid;
            Found::Lives(Listening::Answered(subscription.events()), held)
        }
        // A child of a dead shim can hold the socket open without ever answering.
        Err(ShimError::Stuck(_)) if lives(s).await => {
            tracing::warn!(sandbox = %s.id, "the sandbox's shim does not answer; its containers are taken over as they were");
            Found::Lives(Listening::Asked(subscription), Vec::new())
        }
        Err(_) => Found::Gone,
    }
}

/// Whether the shim's process is there; notes its pid.
async fn lives(s: &Arc<Sandbox>) -> bool {
    let shim = s.shim.clone();
    let found = tokio::task::spawn_blocking(move || shim.processes()).await;
    let pid = found.unwrap_or_default().first().copied();
    if let Some(pid) = pid {
        s.state.lock().pid = pid;
    }
    pid.is_some()
}

pub(super) async fn adopt(runtime: &Arc<Runtime>) -> io::Result<()> {
    let mut live = Vec::new();
    // Containers that a shim says it holds; None for shims that have not said anything.
    let mut held: HashMap<String, Held> = HashMap::new();
    let mut silent: HashSet<String> = HashSet::new();
    let mut records = Vec::new();
    for (id, dir) in subdirs(&runtime.config.state.join("sandboxes"))? {
        let record = state::read_json::<SandboxRecord>(&dir.join("sandbox.json")).unwrap_or_else(|e| {
            tracing::warn!(sandbox = %id, error = %e, "unreadable sandbox record: the sandbox is removed");
            None
        });
        let s = record
            .and_then(|r| Sandbox::from_record(r, &dir))
            .map(Arc::new);
        match s {
            Some(s) if s.state.lock().phase != Phase::Creating => records.push(s),
            s => discard(runtime, &dir, s).await,
        }
    }
    let found = futures::future::join_all(records.iter().map(find_shim)).await;
    for (s, found) in records.into_iter().zip(found) {
        let was_ready = s.state.lock().phase == Phase::Ready;
        match found {
            Found::Lives(listening, containers) => {
                // Its maker may have been killed before it did this.
                runtime.place_shim(s.state.lock().pid);
                if !matches!(listening, Listening::Answered(_)) {
                    silent.insert(s.id.clone());
                }
                held.extend(containers.into_iter().map(|h| (h.id.clone(), h)));
                live.push((s.clone(), listening));
            }
            // Killed in the middle of a stop, which is brought to its end; whoever asks for it again waits.
            Found::ToEnd => {
                let (runtime, s) = (runtime.clone(), s.clone());
                let alone = s.lock.clone().write_owned().await;
                let end = async move {
                    if let Err(e) = runtime.stop_alone(&s).await {
                        tracing::warn!(sandbox = %s.id, error = %e, "a sandbox does not end");
                    }
                    drop(alone);
                };
                soon(end).await;
            }
            Found::Gone => {
                s.state.lock().phase = Phase::Stopped;
                let _ = sys::umount_detach(&s.dir.join("shm"));
                if was_ready {
                    let _ = s.save();
                    let _ = runtime
                        .config
                        .network
                        .detach(runtime.network_request(&s))
                        .await;
                }
            }
        }
        let mut t = runtime.tables.lock();
        if let Some(m) = &s.config.metadata {
            t.names.insert(sandbox::sandbox_name(m));
        }
        t.sandboxes.insert(s.id.clone(), s);
    }
    for (s, _) in &live {
        if s.host_network() {
            continue;
        }
        let status = PodNetworkStatus {
            ips: s.state.lock().ips.clone(),
        };
        if let Err(e) = runtime
            .config
            .network
            .restore(runtime.network_request(s), status)
            .await
        {
            tracing::warn!(sandbox = %s.id, error = %e, "the pod network did not take the sandbox back");
        }
    }
    for (id, dir) in subdirs(&runtime.config.state.join("containers"))? {
        if let Err(why) = adopt_container(runtime, &id, &dir, &held, &silent) {
            tracing::warn!(container = %id, why, "container record removed");
            runtime.clean_container(&id);
        }
    }
    clean_leftovers(runtime)?;
    // Only now may ends be told: every container has its place.
    for (s, listening) in live {
        runtime.watch(&s, listening);
    }
    Ok(())
}

/// Waits a moment for the work; what takes longer goes on by itself.
async fn soon(work: impl Future<Output = ()> + Send + 'static) {
    let _ = tokio::time::timeout(Duration::from_secs(1), tokio::spawn(work)).await;
}

/// Removes a sandbox that never became ready, or whose record cannot be read.
async fn discard(runtime: &Arc<Runtime>, dir: &Path, known: Option<Arc<Sandbox>>) {
    let (runtime, dir) = (runtime.clone(), dir.to_path_buf());
    soon(async move {
        let gone = match known {
            Some(s) => runtime.discard(&s).await,
            None => {
                let shim = Shim::at(&dir);
                if shim.shutdown().await.is_err() {
                    let shim = shim.clone();
                    let _ = tokio::task::spawn_blocking(move || shim.kill_process()).await;
                }
                let dir = dir.clone();
                blocking(move || sandbox::remove_files(&dir).map_err(internal("remove it"))).await
            }
        };
        if let Err(e) = gone {
            tracing::warn!(path = %dir.display(), error = %e, "cannot remove a half-made sandbox");
        }
    })
    .await;
}

fn adopt_container(
    runtime: &Arc<Runtime>,
    id: &str,
    dir: &Path,
    held: &HashMap<String, Held>,
    silent: &HashSet<String>,
) -> Result<(), String> {
    let text = |e: io::Error| e.to_string();
    let record: ContainerRecord = state::read_json(&dir.join("container.json"))
        .map_err(text)?
        .ok_or("it was being made or removed")?;
    if !runtime
        .tables
        .lock()
        .sandboxes
        .contains_key(&record.sandbox_id)
    {
        return Err("its sandbox is gone".into());
    }
    let started: Option<Started> = state::read_json(&dir.join("started.json")).unwrap_or_default();
    let mut exited = state::read_json(&dir.join("exit.json")).unwrap_or_default();
    let mut now = ContainerState::default();
    match (held.get(id), &started) {
        (Some(h), s) => {
            // The shim's own word counts more than its files.
            (now.pid, now.started_at) =
                (h.pid, s.as_ref().map_or_else(sys::now_ns, |s| s.started_at));
            exited = None;
        }
        (None, Some(s)) => {
            (now.pid, now.started_at) = (s.pid, s.started_at);
            // A shim that is stuck tells the end later, if there was one.
            if exited.is_none() && !silent.contains(&record.sandbox_id) {
                let e = crate::shim::unknown_exit(sys::now_ns());
                let _ = state::write_json(&dir.join("exit.json"), &e);
                exited = Some(e);
            }
        }
        (None, None) => {}
    }
    let ended = exited.is_some();
    now.exited = exited;
    let cgroup = record.cgroup.clone();
    let c = Container::from_record(id, record, now).ok_or("its request is unreadable")?;
    if ended {
        runtime.cgroups.kill(&cgroup);
        let runtime = runtime.clone();
        tokio::task::spawn_blocking(move || runtime.cgroups.remove(&cgroup));
    }
    let mut t = runtime.tables.lock();
    if let Some(m) = &c.config.metadata {
        t.names
            .insert(containers::container_name(&c.sandbox_id(), m));
    }
    t.containers.insert(id.to_string(), Arc::new(c));
    Ok(())
}

/// Writable layers and image holds whose container has no record.
fn clean_leftovers(runtime: &Arc<Runtime>) -> io::Result<()> {
    let known = |name: &str| {
        let id = name.get(..64).unwrap_or(name);
        runtime.tables.lock().containers.contains_key(id)
    };
    for (_, dir) in subdirs(&runtime.config.root.join("trash"))? {
        tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir));
    }
    for (id, _) in subdirs(&runtime.config.root.join("containers"))? {
        if !known(&id) {
            runtime.clean_container(&id);
        }
    }
    // Image builds hold under names of their own; a container's is its id.
    let ours = |h: &str| h.len() >= 64 && h.as_bytes()[..64].iter().all(u8::is_ascii_hexdigit);
    for h in runtime.images.holders().map_err(io::Error::other)? {
        if ours(&h) && !known(&h) {
            let _ = runtime.images.release(&h);
        }
    }
    Ok(())
}

impl Runtime {
    /// Sandboxes and containers by state, for logs and tests.
    pub(crate) fn summary(&self) -> (usize, usize) {
        let ready = self
            .all_sandboxes()
            .iter()
            .filter(|s| s.cri_state() == v1::PodSandboxState::SandboxReady)
            .count();
        let running = self
            .all_containers()
            .iter()
            .filter(|c| c.state.borrow().running())
            .count();
        (ready, running)
    }
}
