//! Owns the start of the server: what its predecessor left is adopted if it lives, recorded as ended if it died, and
//! removed if it never came to be. The rule for every step elsewhere: a kill at any moment leaves a state that this
//! file brings back in order.

use super::{
    Container, ContainerRecord, ContainerState, Phase, Runtime, Sandbox, SandboxRecord, containers,
    sandbox,
};
use crate::PodNetworkStatus;
use crate::container::spec::Started;
use crate::shim::client::Shim;
use crate::shim::protocol::Held;
use crate::{state, sys};
use k8s_cri::v1;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

pub(super) async fn adopt(runtime: &Arc<Runtime>) -> io::Result<()> {
    let mut live = Vec::new();
    let mut held: HashMap<String, Held> = HashMap::new();
    for (id, dir) in subdirs(&runtime.config.state.join("sandboxes"))? {
        let record = state::read_json::<SandboxRecord>(&dir.join("sandbox.json")).unwrap_or_else(|e| {
            tracing::warn!(sandbox = %id, error = %e, "unreadable sandbox record: the sandbox is removed");
            None
        });
        let s = record
            .and_then(|r| Sandbox::from_record(r, &dir))
            .map(Arc::new);
        let Some(s) = s.filter(|s| s.state.lock().phase != Phase::Creating) else {
            discard(runtime, &dir).await;
            continue;
        };
        let was_ready = s.state.lock().phase == Phase::Ready;
        match (was_ready, s.shim.subscribe().await) {
            (true, Ok((pid, containers, events))) => {
                s.state.lock().pid = pid;
                // Its maker may have been killed before it did this.
                runtime.place_shim(pid);
                held.extend(containers.into_iter().map(|h| (h.id.clone(), h)));
                live.push((s.clone(), events));
            }
            (_, answer) => {
                if answer.is_ok() {
                    // Killed in the middle of a stop.
                    let _ = s.shim.shutdown().await;
                }
                s.state.lock().phase = Phase::Stopped;
                let _ = sys::umount_detach(&dir.join("shm"));
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
        if let Err(why) = adopt_container(runtime, &id, &dir, &held) {
            tracing::warn!(container = %id, why, "container record removed");
            runtime.clean_container(&id);
        }
    }
    clean_leftovers(runtime)?;
    // Only now may ends be told: every container has its place.
    for (s, events) in live {
        runtime.watch(&s, events);
    }
    Ok(())
}

/// Removes a sandbox that never became ready, or whose record cannot be read.
async fn discard(runtime: &Arc<Runtime>, dir: &Path) {
    let _ = Shim::at(dir).shutdown().await;
    if let Ok(Some(r)) = state::read_json::<SandboxRecord>(&dir.join("sandbox.json"))
        && let Some(s) = Sandbox::from_record(r, dir)
    {
        let _ = runtime
            .config
            .network
            .detach(runtime.network_request(&s))
            .await;
    }
    if let Err(e) = sandbox::remove_files(dir) {
        tracing::warn!(path = %dir.display(), error = %e, "cannot remove a half-made sandbox");
    }
}

fn adopt_container(
    runtime: &Arc<Runtime>,
    id: &str,
    dir: &Path,
    held: &HashMap<String, Held>,
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
            if exited.is_none() {
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
