//! Owns the life of a sandbox: directory, shim, network, and back. Each step leaves something that a restart can clean.

use super::{
    Phase, Runtime, Sandbox, SandboxRecord, SandboxState, blocking, decode_pb, encode_pb, fields,
    internal, stats,
};
use crate::container::build::sandbox_namespaces;
use crate::container::spec::{Exited, Started};
use crate::container::sysctl;
use crate::shim::client::{Event, Events, Shim, ShimError, Subscription};
use crate::shim::protocol::ShimConfig;
use crate::{state, sys};
use k8s_cri::v1;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tonic::Status;

const NODE: i32 = v1::NamespaceMode::Node as i32;

/// The name that must be unique (containerd's format).
pub(super) fn sandbox_name(m: &v1::PodSandboxMetadata) -> String {
    format!("{}_{}_{}_{}", m.name, m.namespace, m.uid, m.attempt)
}

/// /etc/resolv.conf of the pod; None means the node's.
fn resolv_conf(dns: Option<&v1::DnsConfig>) -> Option<String> {
    let dns = dns?;
    let mut out = String::new();
    if !dns.searches.is_empty() {
        out.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for s in &dns.servers {
        out.push_str(&format!("nameserver {s}\n"));
    }
    if !dns.options.is_empty() {
        out.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    (!out.is_empty()).then_some(out)
}

/// The pod's kernel settings.
fn sysctls(config: &v1::PodSandboxConfig) -> Result<BTreeMap<String, String>, String> {
    let ns = sandbox_namespaces(config);
    let asked = config.linux.iter().flat_map(|l| &l.sysctls);
    sysctl::of_pod(asked, ns.network == NODE, ns.ipc == NODE)
}

/// Writes the files that the pod's containers share.
fn make_files(
    dir: &Path,
    config: &v1::PodSandboxConfig,
    hostname: &str,
    host_ipc: bool,
) -> Result<(), Status> {
    state::write_visible(&dir.join("hostname"), format!("{hostname}\n").as_bytes())
        .map_err(internal("write the pod's host name"))?;
    let resolv = resolv_conf(config.dns_config.as_ref())
        .unwrap_or_else(|| std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    state::write_visible(&dir.join("resolv.conf"), resolv.as_bytes())
        .map_err(internal("write the pod's resolv.conf"))?;
    if !host_ipc {
        let shm = dir.join("shm");
        state::private_dir(&shm).map_err(internal("make the pod's /dev/shm"))?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        sys::mount("shm", &shm, "tmpfs", flags, "mode=1777,size=65536k")
            .map_err(internal("mount the pod's /dev/shm"))?;
    }
    if !config.log_directory.is_empty() {
        make_log_dir(Path::new(&config.log_directory)).map_err(internal(format!(
            "make the log directory {}",
            config.log_directory
        )))?;
    }
    Ok(())
}

/// The caller may have made it, with the rights it wants; made here, it is private.
fn make_log_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// Removes a sandbox's directory with its mount. Not there is fine.
pub(super) fn remove_files(dir: &Path) -> std::io::Result<()> {
    sys::umount_detach(&dir.join("shm"))?;
    state::remove_dir(dir)
}

impl Sandbox {
    pub(super) fn from_record(r: SandboxRecord, dir: &Path) -> Option<Self> {
        Some(Self {
            config: decode_pb(&r.config)?,
            id: r.id,
            dir: dir.to_path_buf(),
            runtime_handler: r.runtime_handler,
            created_at: r.created_at,
            shim: Shim::at(dir),
            state: Mutex::new(SandboxState {
                phase: r.phase,
                ips: r.ips,
                pid: 0,
            }),
            lock: Arc::default(),
            watcher: Mutex::new(None),
            cpu: Mutex::new(stats::CpuSample::default()),
        })
    }

    pub(super) fn save(&self) -> std::io::Result<()> {
        let s = self.state.lock().clone();
        let record = SandboxRecord {
            id: self.id.clone(),
            config: encode_pb(&self.config),
            created_at: self.created_at,
            phase: s.phase,
            ips: s.ips,
            runtime_handler: self.runtime_handler.clone(),
        };
        state::write_json(&self.dir.join("sandbox.json"), &record)
    }

    pub(super) fn check_ready(&self) -> Result<(), Status> {
        if self.state.lock().phase == Phase::Ready {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "sandbox {} is not running",
            self.id
        )))
    }

    pub(super) fn host_network(&self) -> bool {
        sandbox_namespaces(&self.config).network == NODE
    }
}

impl Runtime {
    pub(super) async fn run_sandbox(
        self: Arc<Self>,
        request: v1::RunPodSandboxRequest,
    ) -> Result<String, Status> {
        fields::run_pod_sandbox(&request)?;
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("the sandbox config is missing"))?;
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Status::invalid_argument("the sandbox metadata is missing"))?;
        // Before anything is made.
        sysctls(&config).map_err(Status::invalid_argument)?;
        let reservation = self.reserve(sandbox_name(&metadata))?;
        self.warm_cgroups();
        let id = state::new_id();
        let dir = self.config.state.join("sandboxes").join(&id);
        let record = SandboxRecord {
            id: id.clone(),
            config: encode_pb(&config),
            created_at: sys::now_ns(),
            phase: Phase::Creating,
            ips: vec![],
            runtime_handler: request.runtime_handler,
        };
        let sandbox = Sandbox::from_record(record, &dir)
            .ok_or_else(|| Status::internal("the sandbox record is unreadable"))?;
        let sandbox = Arc::new(sandbox);
        match self.bring_up(&sandbox).await {
            Ok(listening) => {
                self.tables
                    .lock()
                    .sandboxes
                    .insert(id.clone(), sandbox.clone());
                reservation.keep();
                self.watch(&sandbox, listening);
                self.tell(&sandbox, &id, v1::ContainerEventType::ContainerCreatedEvent);
                self.tell(&sandbox, &id, v1::ContainerEventType::ContainerStartedEvent);
                Ok(id)
            }
            Err(e) => {
                // What cannot be taken down now keeps its record, and the next start takes it down.
                if let Err(e) = self.discard(&sandbox).await {
                    tracing::warn!(sandbox = %id, error = %e, "a sandbox that failed to start is not gone yet");
                }
                Err(e)
            }
        }
    }

    /// Takes down a sandbox that no table knows, with its files.
    pub(super) async fn discard(&self, s: &Arc<Sandbox>) -> Result<(), Status> {
        self.tear_down(s).await?;
        let dir = s.dir.clone();
        blocking(move || remove_files(&dir).map_err(internal("remove the sandbox"))).await
    }

    async fn bring_up(&self, sandbox: &Arc<Sandbox>) -> Result<Listening, Status> {
        let s = sandbox.clone();
        let exe = self.config.shim_exe.clone();
        let ns = sandbox_namespaces(&s.config);
        let host_network = ns.network == NODE;
        let shim_config = ShimConfig {
            sandbox_id: s.id.clone(),
            hostname: s.config.hostname.clone(),
            host_network,
            host_ipc: ns.ipc == NODE,
            share_pid: ns.pid == v1::NamespaceMode::Pod as i32,
            sysctls: sysctls(&s.config).map_err(Status::invalid_argument)?,
            cgroup_mounts: self.cgroups.mounts().into_iter().map(Into::into).collect(),
            tied: false,
        };
        // Pods on the node's network have the node's name.
        let hostname = if host_network {
            self.node_hostname.clone()
        } else {
            s.config.hostname.clone()
        };
        let pid = blocking(move || {
            state::private_dir(&s.dir).map_err(internal("make the sandbox directory"))?;
            s.save().map_err(internal("write the sandbox record"))?;
            make_files(&s.dir, &s.config, &hostname, shim_config.host_ipc)?;
            let (_, pid) = Shim::spawn(&s.dir, &exe, &shim_config)
                .map_err(|e| Status::internal(format!("start the sandbox: {e}")))?;
            Ok(pid)
        })
        .await?;
        sandbox.state.lock().pid = pid;
        self.place_shim(pid);
        if !host_network {
            let status = self
                .config
                .network
                .attach(self.network_request(sandbox))
                .await
                .map_err(|e| {
                    Status::unknown(format!(
                        "failed to setup network for sandbox {:?}: {e}",
                        sandbox.id
                    ))
                })?;
            sandbox.state.lock().ips = status.ips;
        }
        let talk = |e| Status::internal(format!("talk to the sandbox's shim: {e}"));
        let mut subscription = sandbox.shim.subscribe().await.map_err(talk)?;
        subscription.answer_soon().await.map_err(talk)?;
        sandbox.state.lock().phase = Phase::Ready;
        sandbox
            .save()
            .map_err(internal("write the sandbox record"))?;
        Ok(Listening::Answered(subscription.events()))
    }

    /// Moves a shim out of the server's cgroup, so that stopping the server's service does not stop it. In the
    /// background: on v1 a move waits for a grace period of the kernel.
    pub(super) fn place_shim(&self, pid: i32) {
        let files = self.shim_cgroup.clone();
        tokio::task::spawn_blocking(move || {
            for f in files {
                if let Err(e) = std::fs::write(&f, pid.to_string())
                    && e.raw_os_error() != Some(libc::ESRCH)
                {
                    tracing::warn!(path = %f.display(), error = %e, "cannot move a shim to its cgroup");
                }
            }
        });
    }

    /// Makes the cgroup moves of the coming start cheap. The first move after a quiet time waits 10 to 20 ms for a grace
    /// period (v1 has no way to fork into a cgroup); moves right after it do not wait. A move of this process to where it
    /// already is pays that price now, beside the work that comes before the start.
    pub(super) fn warm_cgroups(&self) {
        use std::sync::atomic::Ordering;
        let Some(file) = self.cgroups.own_procs_file() else {
            return;
        };
        if self.warming.swap(true, Ordering::AcqRel) {
            return;
        }
        let warming = self.warming.clone();
        tokio::task::spawn_blocking(move || {
            let _ = std::fs::write(file, "0");
            warming.store(false, Ordering::Release);
        });
    }

    /// Listens to the shim until it is gone, and records what it says.
    pub(super) fn watch(self: &Arc<Self>, sandbox: &Arc<Sandbox>, listening: Listening) {
        let (runtime, s) = (self.clone(), sandbox.clone());
        let pid = s.state.lock().pid;
        let task = tokio::spawn(async move {
            // The socket tells the end of the shim, unless a child that hangs between fork and execve holds it open.
            tokio::select! {
                () = runtime.listen(&s, listening) => {}
                () = process_end(pid) => {}
            }
            runtime.shim_gone(&s).await;
        });
        *sandbox.watcher.lock() = Some(task);
    }

    async fn listen(self: &Arc<Self>, s: &Arc<Sandbox>, listening: Listening) {
        let mut events = match listening {
            Listening::Answered(events) => events,
            Listening::Asked(subscription) => match self.caught_up(s, subscription).await {
                Some(events) => events,
                None => return,
            },
            Listening::NotYet => loop {
                match s.shim.subscribe().await {
                    Ok(subscription) => match self.caught_up(s, subscription).await {
                        Some(events) => break events,
                        None => return,
                    },
                    Err(ShimError::Stuck(_)) => {}
                    Err(_) => return,
                }
            },
        };
        while let Ok(event) = events.next().await {
            match event {
                Event::Started { id, started } => {
                    if let Ok(c) = self.container(&id) {
                        self.container_started(s, &c, started);
                    }
                }
                Event::Exited { id, exited } => self.container_ended(s, &id, exited),
            }
        }
    }

    /// A shim that was stuck when the server started says what it holds; what ended meanwhile is recorded now.
    async fn caught_up(
        self: &Arc<Self>,
        s: &Arc<Sandbox>,
        mut subscription: Subscription,
    ) -> Option<Events> {
        let (_, held) = subscription.answer().await.ok()?;
        for c in self.containers_of(&s.id) {
            let (dir, running) = (
                c.record.lock().spec.state_dir.clone(),
                c.state.borrow().running(),
            );
            match held.iter().find(|h| h.id == c.id) {
                Some(h) => {
                    let started = state::read_json(&dir.join("started.json")).ok().flatten();
                    let started = started.unwrap_or(Started {
                        pid: h.pid,
                        started_at: sys::now_ns(),
                    });
                    self.container_started(s, &c, started);
                }
                None if running => self.container_ended(s, &c.id, recorded_end(&dir)),
                None => {}
            }
        }
        Some(subscription.events())
    }

    /// The shim is gone, by a stop or by force. Whatever it held has ended with it.
    async fn shim_gone(self: &Arc<Self>, s: &Arc<Sandbox>) {
        for c in self.containers_of(&s.id) {
            if c.state.borrow().running() {
                let record = c.record.lock().clone();
                let cgroups = self.cgroups.clone();
                let ended = blocking(move || {
                    cgroups.kill(&record.cgroup);
                    Ok(recorded_end(&record.spec.state_dir))
                });
                if let Ok(exited) = ended.await {
                    self.container_ended(s, &c.id, exited);
                }
            }
        }
        let was_ready =
            std::mem::replace(&mut s.state.lock().phase, Phase::Stopped) == Phase::Ready;
        if was_ready {
            if let Err(e) = s.save() {
                tracing::warn!(sandbox = %s.id, error = %e, "cannot record that the sandbox stopped");
            }
            self.tell(s, &s.id, v1::ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Ends the shim, by force when it does not answer. An error: it answers, or is there, and what it holds does not die.
    async fn end_shim(&self, s: &Arc<Sandbox>) -> Result<(), Status> {
        let Err(e) = s.shim.shutdown().await else {
            return Ok(());
        };
        if s.shim.answers().await {
            return Err(Status::deadline_exceeded(format!(
                "the containers of sandbox {} do not end although they were killed",
                s.id
            )));
        }
        tracing::warn!(sandbox = %s.id, error = %e, "the sandbox's shim did not end in order and is killed");
        let cgroups: Vec<String> = self
            .containers_of(&s.id)
            .iter()
            .map(|c| c.record.lock().cgroup.clone())
            .collect();
        let (hierarchies, shim) = (self.cgroups.clone(), s.shim.clone());
        let id = s.id.clone();
        blocking(move || {
            for c in &cgroups {
                hierarchies.kill(c);
            }
            shim.kill_process();
            if shim.lives() {
                return Err(Status::deadline_exceeded(format!(
                    "the shim of sandbox {id} does not end although it was killed"
                )));
            }
            Ok(())
        })
        .await
    }

    /// Ends the shim and gives back network and mount. Used for sandboxes in any phase, also half-made ones.
    async fn tear_down(&self, s: &Arc<Sandbox>) -> Result<(), Status> {
        self.end_shim(s).await?;
        if !s.host_network()
            && let Err(e) = self.config.network.detach(self.network_request(s)).await
        {
            tracing::warn!(sandbox = %s.id, error = %e, "the pod network was not given back");
        }
        let shm = s.dir.join("shm");
        if let Err(e) = sys::umount_detach(&shm) {
            tracing::warn!(path = %shm.display(), error = %e, "cannot unmount the pod's /dev/shm");
        }
        Ok(())
    }

    /// Containers that are on their way up or in their grace period are not waited for.
    async fn alone<'a>(&self, s: &'a Sandbox) -> tokio::sync::RwLockWriteGuard<'a, ()> {
        for c in self.containers_of(&s.id) {
            c.want_stop(tokio::time::Instant::now());
        }
        s.lock.write().await
    }

    pub(super) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        // Not there is fine: CRI wants the call idempotent.
        let Ok(s) = self.sandbox(id) else {
            return Ok(());
        };
        let _alone = self.alone(&s).await;
        self.stop_alone(&s).await
    }

    /// Needs the sandbox's lock.
    pub(super) async fn stop_alone(self: &Arc<Self>, s: &Arc<Sandbox>) -> Result<(), Status> {
        // Removed while the lock was waited for.
        if !s.dir.exists() {
            return Ok(());
        }
        self.tear_down(s).await?;
        let watcher = s.watcher.lock().take();
        if let Some(w) = watcher {
            let _ = w.await;
        }
        s.state.lock().phase = Phase::Stopped;
        s.save().map_err(internal("write the sandbox record"))
    }

    pub(super) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let Ok(s) = self.sandbox(id) else {
            return Ok(());
        };
        let _alone = self.alone(&s).await;
        self.stop_alone(&s).await?;
        for c in self.containers_of(&s.id) {
            self.remove_container(&c.id).await?;
        }
        let dir = s.dir.clone();
        blocking(move || remove_files(&dir).map_err(internal(format!("remove {}", dir.display()))))
            .await?;
        {
            let mut t = self.tables.lock();
            if t.sandboxes.remove(&s.id).is_none() {
                return Ok(());
            }
            if let Some(m) = &s.config.metadata {
                t.names.remove(&sandbox_name(m));
            }
        }
        self.tell(&s, &s.id, v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }
}

/// How far listening to a shim has come.
pub(super) enum Listening {
    Answered(Events),
    /// It was asked and is silent: stopped, or starved.
    Asked(Subscription),
    /// It lives and takes no connections.
    NotYet,
}

/// The end of a container that its shim wrote down, or one that says that nobody knows.
fn recorded_end(state_dir: &Path) -> Exited {
    let file = state_dir.join("exit.json");
    state::read_json(&file).ok().flatten().unwrap_or_else(|| {
        let e = crate::shim::unknown_exit(sys::now_ns());
        let _ = state::write_json(&file, &e);
        e
    })
}

/// Returns when the process is gone; never for one that is not known.
async fn process_end(pid: i32) {
    if pid > 0 {
        match sys::pidfd_open(pid).and_then(sys::async_fd) {
            Ok(fd) => {
                let _ = fd.readable().await;
                return;
            }
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return,
            Err(_) => {}
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_settings_become_resolv_conf_lines() {
        let dns = v1::DnsConfig {
            servers: vec!["10.43.0.10".into()],
            searches: vec![
                "default.svc.cluster.local".into(),
                "svc.cluster.local".into(),
            ],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns)).unwrap(),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(Some(&v1::DnsConfig::default())), None);
    }
}
