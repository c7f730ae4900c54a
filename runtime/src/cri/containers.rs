//! Owns the life of a container: create, start, stop, remove, update. Create only records; everything that can fail in
//! the kernel happens at start, as with containerd, so that its errors reach the user as StartContainer's.

use super::{
    Container, ContainerRecord, ContainerState, Reservation, Runtime, Sandbox, blocking, decode_pb,
    encode_pb, fields, internal, stats,
};
use crate::cgroup::{Resources, devices};
use crate::container::build::{self, Inputs};
use crate::container::confine::{self, SeccompWish};
use crate::container::seccomp;
use crate::container::seccomp_profile::Subject;
use crate::container::spec::{Exited, PidMode, Started};
use crate::images::lower::Lower;
use crate::images::rootfs::{OverlayOptions, overlay_fd, parse_signal, read_in_root};
use crate::images::{ImageError, ImageRootfs};
use crate::shim::client::ShimError;
use crate::{state, sys};
use k8s_cri::v1;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// containerd's exit code and reason for a container whose process never ran.
const START_ERROR_CODE: i32 = 128;
const START_ERROR: &str = "StartError";
/// Annotation with the signal that ends a container, instead of its image's (CRI's ContainerConfig.stop_signal of 1.33).
const STOP_SIGNAL: &str = "io.kubernetes.container.stopSignal";

/// Names are unique within a sandbox.
pub(super) fn container_name(sandbox: &str, m: &v1::ContainerMetadata) -> String {
    format!("{}_{}_{sandbox}", m.name, m.attempt)
}

fn image_error(e: ImageError) -> Status {
    let message = e.to_string();
    match e {
        ImageError::NotFound(_) => Status::not_found(message),
        _ => Status::internal(message),
    }
}

/// /etc/passwd and /etc/group as the stacked layers show them. Plain files are read straight from their layer; only an
/// image that has links there costs a mount.
fn user_files(layers: &[PathBuf]) -> Result<(String, String), Status> {
    let merged = match layers {
        [one] => {
            return read_user_files(
                &std::fs::File::open(one)
                    .map_err(internal(format!("open the layer {}", one.display())))?
                    .into(),
            );
        }
        many => Lower::open(many).map_err(image_error)?,
    };
    let read = |name: &str| -> Result<Option<String>, Status> {
        let path = [b"etc".to_vec(), name.as_bytes().to_vec()];
        match merged.find(&path).map_err(image_error)? {
            Some(f) if f.stat.st_mode & libc::S_IFMT == libc::S_IFREG => {
                read_in_root(&f.dir, name).map_err(image_error)
            }
            // Not there, or /etc itself is a link.
            _ => Ok(None),
        }
    };
    if let (Some(passwd), Some(group)) = (read("passwd")?, read("group")?) {
        return Ok((passwd, group));
    }
    let options = OverlayOptions {
        read_only: true,
        ..OverlayOptions::default()
    };
    read_user_files(&overlay_fd(layers, None, options).map_err(image_error)?)
}

fn read_user_files(root: &OwnedFd) -> Result<(String, String), Status> {
    let read = |p| {
        read_in_root(root, p)
            .map(Option::unwrap_or_default)
            .map_err(image_error)
    };
    Ok((read("etc/passwd")?, read("etc/group")?))
}

/// A seccomp profile's text: a regular file of at most 1 MiB.
fn read_profile(p: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    const LIMIT: u64 = 1 << 20;
    let file = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(p)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LIMIT {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

fn make_dir(p: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().mode(0o755).create(p)?;
    // The root of the overlay takes the mode of its upper directory; a strict umask must not reach the container.
    std::fs::set_permissions(p, std::fs::Permissions::from_mode(0o755))
}

impl Container {
    pub(super) fn from_record(
        id: &str,
        record: ContainerRecord,
        state: ContainerState,
    ) -> Option<Self> {
        Some(Self {
            id: id.to_string(),
            config: decode_pb(&record.config)?,
            announced: Mutex::new(state.started_at > 0),
            record: Mutex::new(record),
            state: watch::Sender::new(state),
            lock: tokio::sync::Mutex::new(()),
            stop_by: watch::Sender::new(None),
            cpu: Mutex::new(stats::CpuSample::default()),
        })
    }

    fn save(&self) -> std::io::Result<()> {
        let r = self.record.lock();
        state::write_json(&r.spec.state_dir.join("container.json"), &*r)
    }

    /// Waits until the container has ended.
    pub(super) async fn ended(&self) {
        let mut rx = self.state.subscribe();
        let _ = rx.wait_for(|s| s.exited.is_some()).await;
    }
}

impl Runtime {
    pub(super) fn holder(id: &str, n: Option<usize>) -> String {
        n.map_or_else(|| id.to_string(), |n| format!("{id}-v{n}"))
    }

    pub(super) async fn create_container(
        self: Arc<Self>,
        request: v1::CreateContainerRequest,
    ) -> Result<String, Status> {
        fields::create_container(&request)?;
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("the container config is missing"))?;
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Status::invalid_argument("the container metadata is missing"))?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        // Until the container is in the table: a removal of the sandbox would not see it before.
        let _stays = sandbox.lock.read().await;
        sandbox.check_ready()?;
        let name = container_name(&sandbox.id, &metadata);
        let reservation = self.reserve(name)?;
        self.warm_cgroups();
        let id = state::new_id();
        let (runtime, s, new) = (self.clone(), sandbox.clone(), id.clone());
        let result = blocking(move || {
            runtime.make_container(&new, &s, config).inspect_err(|_| {
                runtime.clean_container(&new);
            })
        })
        .await;
        self.created(&sandbox, reservation, Arc::new(result?));
        Ok(id)
    }

    fn created(&self, sandbox: &Sandbox, reservation: Reservation<'_>, c: Arc<Container>) {
        self.tables
            .lock()
            .containers
            .insert(c.id.clone(), c.clone());
        reservation.keep();
        self.tell(
            sandbox,
            &c.id,
            v1::ContainerEventType::ContainerCreatedEvent,
        );
    }

    /// Removes the files and holds of a container that is in no table.
    pub(super) fn clean_container(&self, id: &str) {
        let dir = self.config.state.join("containers").join(id);
        if let Err(e) = state::remove_dir(&dir) {
            tracing::warn!(path = %dir.display(), error = %e, "cannot remove a container's directory");
        }
        // A writable layer can be large: it is put aside at once and removed beside the call.
        let (layer, trash) = (
            self.config.root.join("containers").join(id),
            self.config.root.join("trash").join(id),
        );
        if std::fs::rename(&layer, &trash).is_ok() {
            tokio::task::spawn_blocking(move || {
                if let Err(e) = std::fs::remove_dir_all(&trash) {
                    tracing::warn!(path = %trash.display(), error = %e, "cannot remove a container's writable layer");
                }
            });
        }
        let holders = self.images.holders().unwrap_or_default();
        for h in holders.iter().filter(|h| h.starts_with(id)) {
            if let Err(e) = self.images.release(h) {
                tracing::warn!(holder = %h, error = %e, "cannot release an image");
            }
        }
    }

    fn make_container(
        &self,
        id: &str,
        sandbox: &Sandbox,
        config: v1::ContainerConfig,
    ) -> Result<Container, Status> {
        let wanted = config
            .image
            .as_ref()
            .map(|i| i.image.clone())
            .unwrap_or_default();
        let held: ImageRootfs = self.images.hold(&wanted, id).map_err(image_error)?;
        let mut image_mounts = Vec::new();
        for (n, m) in config.mounts.iter().enumerate() {
            image_mounts.push(match m.image.as_ref().filter(|i| !i.image.is_empty()) {
                Some(i) => Some(
                    self.images
                        .hold(&i.image, &Self::holder(id, Some(n)))
                        .map_err(image_error)?
                        .lowerdirs,
                ),
                None => None,
            });
        }
        let (passwd, group) = user_files(&held.lowerdirs)?;
        let mut nodes = Vec::new();
        if build::is_privileged(&config) {
            build::look_up_devices(Path::new("/dev"), Path::new("/dev"), &mut nodes)
                .map_err(Status::invalid_argument)?;
        }
        for d in &config.devices {
            let (host, inside) = (Path::new(&d.host_path), build::clean(&d.container_path));
            build::look_up_devices(host, &inside, &mut nodes).map_err(Status::invalid_argument)?;
        }
        let dir = self.config.root.join("containers").join(id);
        let state_dir = self.config.state.join("containers").join(id);
        let privileged = build::is_privileged(&config);
        let built = build::build(Inputs {
            id,
            config: &config,
            sandbox: &sandbox.config,
            image: &held.config.config,
            layers: held.lowerdirs.clone(),
            image_mounts,
            passwd: &passwd,
            group: &group,
            dir: dir.clone(),
            state_dir: state_dir.clone(),
            sandbox_dir: &sandbox.dir,
            devices: nodes,
            node_hostname: &self.node_hostname,
        })
        .map_err(Status::invalid_argument)?;
        let mut spec = built.spec;
        if let PidMode::Target(target) = &spec.pid {
            // The target is named by a full or short id; the shim knows only full ones.
            spec.pid = PidMode::Target(self.container(target)?.id.clone());
        }
        (spec.process.seccomp, spec.process.seccomp_flags) =
            self.seccomp_file(&config, spec.process.caps.bounding)?;
        let parent = sandbox
            .config
            .linux
            .as_ref()
            .map(|l| l.cgroup_parent.clone())
            .filter(|p| !p.is_empty());
        let cgroup = format!(
            "{}/{id}",
            parent.unwrap_or_else(|| format!("{}/pods", self.config.cgroup_parent))
        );
        spec.cgroup_procs = self.cgroups.procs_files(&cgroup);
        spec.oom_file = self.cgroups.oom_file(&cgroup);
        spec.kill_file = self.cgroups.kill_file(&cgroup);

        state::private_dir(&dir).map_err(internal("make the container's directory"))?;
        for d in ["upper", "work", "rootfs"] {
            make_dir(&dir.join(d)).map_err(internal("make the container's root directory"))?;
        }
        state::private_dir(&state_dir).map_err(internal("make the container's state directory"))?;
        let digests = |v: &Vec<String>| v.first().cloned();
        let stop_signal = match config.annotations.get(STOP_SIGNAL) {
            Some(s) => parse_signal(s)
                .ok_or_else(|| Status::invalid_argument(format!("{s:?} is not a signal")))?,
            None => parse_signal(&held.config.config.stop_signal).unwrap_or(libc::SIGTERM),
        };
        let record = ContainerRecord {
            sandbox_id: sandbox.id.clone(),
            config: encode_pb(&config),
            created_at: sys::now_ns(),
            image_ref: digests(&held.image.repo_digests)
                .unwrap_or_else(|| held.image.id.to_string()),
            image_id: held.image.id.to_string(),
            image_name: digests(&held.image.repo_tags).unwrap_or(wanted),
            stop_signal,
            cgroup,
            device_rules_all: privileged,
            spec,
            resources: None,
        };
        // The extra rules are kept apart because only the start needs them.
        state::write_json(
            &state_dir.join("devices.json"),
            &rules_to_json(&built.device_rules),
        )
        .map_err(internal("write the device rules"))?;
        let c = Container::from_record(id, record, ContainerState::default())
            .ok_or_else(|| Status::internal("the container record is unreadable"))?;
        c.save().map_err(internal("write the container record"))?;
        Ok(c)
    }

    /// The compiled filter's file, made when it is first wanted, and the flags to load it with.
    fn seccomp_file(
        &self,
        config: &v1::ContainerConfig,
        bounding: u64,
    ) -> Result<(Option<PathBuf>, u32), Status> {
        match confine::seccomp_wish(&build::security(config)).map_err(Status::invalid_argument)? {
            SeccompWish::Unconfined => Ok((None, 0)),
            SeccompWish::Default => Ok((Some(self.default_seccomp(bounding)?), 0)),
            SeccompWish::File(p) => {
                let wrong = |e: &dyn std::fmt::Display| {
                    Status::invalid_argument(format!("seccomp profile {}: {e}", p.display()))
                };
                let json = read_profile(&p).map_err(|e| wrong(&e))?;
                let (program, flags) =
                    seccomp::compile_json(&json, Subject::here(bounding)).map_err(|e| wrong(&e))?;
                // By what comes out: what a profile means depends on the container and the node.
                let digest: String = Sha256::digest(&program)
                    .iter()
                    .map(|b| format!("{b:02x}"))
                    .collect();
                Ok((Some(self.compiled(&digest, || Ok(program))?), flags))
            }
        }
    }

    fn default_seccomp(&self, bounding: u64) -> Result<PathBuf, Status> {
        let key = format!("default-{}-{bounding:x}", env!("CARGO_PKG_VERSION"));
        self.compiled(&key, || seccomp::compile_default(bounding))
    }

    fn compiled(
        &self,
        key: &str,
        compile: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<PathBuf, Status> {
        let path = self.config.state.join("seccomp").join(format!("{key}.bpf"));
        if !path.exists() {
            let program = compile().map_err(Status::invalid_argument)?;
            state::write(&path, &program).map_err(internal("write the seccomp filter"))?;
        }
        Ok(path)
    }

    /// Compiles the default profile for a container that asks for no capabilities.
    pub(super) fn warm_seccomp(&self) {
        if let Ok(caps) = crate::container::caps::sets(&[], &[], &[], false) {
            let _ = self.default_seccomp(caps.bounding);
        }
    }

    pub(super) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let c = self.container(id)?;
        let sandbox = self.sandbox(&c.sandbox_id())?;
        let _stays = sandbox.lock.read().await;
        let _one = c.lock.lock().await;
        self.still_there(&c)?;
        sandbox.check_ready()?;
        if c.state.borrow().started_at > 0 || c.state.borrow().exited.is_some() {
            let state = c.state.borrow().cri().as_str_name();
            return Err(Status::failed_precondition(format!(
                "container {id} is in {state} state: it can be started once"
            )));
        }
        let record = c.record.lock().clone();
        let result = match self.prepare_cgroup(&c, &record).await {
            Ok(()) => self.run_by_shim(&sandbox, &c, &record).await,
            Err(e) => Err(e),
        };
        match result {
            Ok(started) => {
                self.container_started(&sandbox, &c, started);
                Ok(())
            }
            Err(e) => {
                let exited = Exited {
                    exit_code: START_ERROR_CODE,
                    finished_at: sys::now_ns(),
                    oom_killed: false,
                    reason: START_ERROR.into(),
                    message: e.message().to_string(),
                };
                let _ = state::write_json(&record.spec.state_dir.join("exit.json"), &exited);
                self.container_ended(&sandbox, &c.id, exited);
                Err(e)
            }
        }
    }

    /// Has the shim run the container. A start that takes too long, or that is stopped before its program runs, is killed:
    /// nothing may come to life after its failure was told.
    async fn run_by_shim(
        &self,
        sandbox: &Sandbox,
        c: &Container,
        record: &ContainerRecord,
    ) -> Result<Started, Status> {
        let id = &c.id;
        let (late, error) = tokio::select! {
            biased;
            r = sandbox.shim.start(&record.spec) => match r {
                Ok((pid, started_at)) => return Ok(Started { pid, started_at }),
                Err(ShimError::Failed(m)) => (false, Status::unknown(format!(
                    "failed to start the container: unable to start container process: {m}"
                ))),
                Err(e @ ShimError::Stuck(_)) => {
                    (true, Status::deadline_exceeded(format!("start container {id}: {e}")))
                }
                Err(e) => (false, Status::unknown(format!("start container {id}: {e}"))),
            },
            () = c.stop_due() => (true, Status::aborted(format!(
                "start container {id}: it was stopped before its program ran"
            ))),
        };
        if late {
            let asked = sandbox.shim.kill(id, libc::SIGKILL, true).await;
            if matches!(asked, Err(ShimError::Stuck(_) | ShimError::Failed(_))) {
                let (cgroups, cgroup) = (self.cgroups.clone(), record.cgroup.clone());
                let _ = tokio::task::spawn_blocking(move || cgroups.kill(&cgroup)).await;
            }
        }
        Err(error)
    }

    async fn prepare_cgroup(
        self: &Arc<Self>,
        c: &Arc<Container>,
        record: &ContainerRecord,
    ) -> Result<(), Status> {
        let (runtime, cgroup, state_dir) = (
            self.clone(),
            record.cgroup.clone(),
            record.spec.state_dir.clone(),
        );
        let resources = c
            .resources()
            .as_ref()
            .map(cgroup_resources)
            .unwrap_or_default();
        let rules = if record.device_rules_all {
            devices::all_rules()
        } else {
            state::read_json(&state_dir.join("devices.json"))
                .ok()
                .flatten()
                .map(rules_from_json)
                .unwrap_or_else(devices::default_rules)
        };
        blocking(move || {
            let go = || -> std::io::Result<()> {
                runtime.cgroups.create(&cgroup)?;
                runtime.cgroups.apply(&cgroup, &resources)?;
                runtime.cgroups.apply_devices(&cgroup, &rules)
            };
            go().map_err(internal(format!("set up the cgroup {cgroup}")))
        })
        .await
    }

    /// Records the start and tells it, before any end of the same container is told.
    pub(super) fn container_started(&self, sandbox: &Sandbox, c: &Container, s: Started) {
        let mut announced = c.announced.lock();
        // A start that was given up may still say that it ran; its end has been told.
        if *announced || c.state.borrow().exited.is_some() {
            return;
        }
        *announced = true;
        c.state.send_modify(|state| {
            state.pid = s.pid;
            state.started_at = s.started_at;
        });
        self.tell(
            sandbox,
            &c.id,
            v1::ContainerEventType::ContainerStartedEvent,
        );
    }

    /// Records an end, frees the cgroup, and tells it.
    pub(super) fn container_ended(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        id: &str,
        exited: Exited,
    ) {
        let Ok(c) = self.container(id) else { return };
        if c.state.borrow().exited.is_some() {
            return;
        }
        let record = c.record.lock().clone();
        if exited.reason.is_empty()
            && let Ok(Some(s)) =
                state::read_json::<Started>(&record.spec.state_dir.join("started.json"))
        {
            // A short-lived container can end before the answer to its start was read.
            self.container_started(sandbox, &c, s);
        }
        c.state.send_modify(|state| state.exited = Some(exited));
        self.tell(
            sandbox,
            &c.id,
            v1::ContainerEventType::ContainerStoppedEvent,
        );
        let runtime = self.clone();
        tokio::task::spawn_blocking(move || runtime.remove_cgroup(&record.cgroup));
    }

    fn remove_cgroup(&self, cgroup: &str) {
        if let Err(e) = self.cgroups.remove(cgroup) {
            tracing::warn!(cgroup, error = %e, "cannot remove a container's cgroup");
        }
    }

    pub(super) async fn stop_container(
        self: &Arc<Self>,
        id: &str,
        timeout: i64,
    ) -> Result<(), Status> {
        let Ok(c) = self.container(id) else {
            return Ok(());
        };
        // Longer than anybody waits, and short enough to be added to a time.
        let timeout = timeout.clamp(0, 1 << 30) as u64;
        let by = Instant::now() + Duration::from_secs(timeout);
        c.want_stop(by);
        let _one = c.lock.lock().await;
        // Whoever had the lock may have found nothing to stop, and dropped the wish.
        c.want_stop(by);
        self.stop_locked(&c).await
    }

    /// Needs the container's lock. Its time is what `want_stop` said.
    async fn stop_locked(self: &Arc<Self>, c: &Arc<Container>) -> Result<(), Status> {
        if !c.state.borrow().running() {
            // One that was never started may still be.
            c.stop_by.send_replace(None);
            return Ok(());
        }
        let sandbox = self.sandbox(&c.sandbox_id())?;
        let mut by_shim = true;
        if c.stop_by.borrow().is_some_and(|by| by > Instant::now()) {
            let signal = c.record.lock().stop_signal;
            by_shim = self.signal(&sandbox, c, signal, true).await?;
            tokio::select! {
                biased;
                () = c.ended() => return Ok(()),
                () = c.stop_due() => {}
            }
        }
        let by_shim = self.signal(&sandbox, c, libc::SIGKILL, by_shim).await?;
        let ended = async {
            if by_shim {
                c.ended().await;
            } else {
                self.end_without_shim(&sandbox, c).await;
            }
        };
        // A process in uninterruptible sleep cannot be killed; the caller tries again later (containerd waits as long).
        tokio::time::timeout(Duration::from_secs(120), ended)
            .await
            .map_err(|_| {
                Status::deadline_exceeded(format!(
                    "container {} does not end although it was killed",
                    c.id
                ))
            })
    }

    /// Signals the first process, or for SIGKILL everything; false if the shim had to be passed over, as it is at once when
    /// `by_shim` is false.
    async fn signal(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        c: &Arc<Container>,
        signal: i32,
        by_shim: bool,
    ) -> Result<bool, Status> {
        let kill = signal == libc::SIGKILL;
        if by_shim {
            match sandbox.shim.kill(&c.id, signal, kill).await {
                // It ended in between, or the whole shim did: both end up in the state.
                Ok(()) | Err(ShimError::NotRunning(_) | ShimError::Gone(_)) => return Ok(true),
                Err(e @ ShimError::Stuck(_)) => {
                    tracing::warn!(container = %c.id, error = %e, "a container is signalled without its shim");
                }
                Err(e) => {
                    return Err(Status::internal(format!("stop container {}: {e}", c.id)));
                }
            }
        }
        let (runtime, cgroup, pid) = (
            self.clone(),
            c.record.lock().cgroup.clone(),
            c.state.borrow().pid,
        );
        blocking(move || {
            if kill {
                runtime.cgroups.kill(&cgroup);
            } else if runtime.cgroup_holds(&cgroup, pid) {
                // A shim that is stuck has not reaped it: the number is still its own.
                let _ = sys::kill(pid, signal);
            }
            Ok(false)
        })
        .await
    }

    /// For every process of the container; what it starts later inherits it. One that has just ended is fine, and a value
    /// that needs a right which is lacking was warned of at the start.
    fn set_oom_score_adj(&self, cgroup: &str, value: i64) {
        let Some(file) = self.cgroups.procs_files(cgroup).into_iter().next() else {
            return;
        };
        for pid in std::fs::read_to_string(file).unwrap_or_default().lines() {
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), value.to_string());
        }
    }

    fn cgroup_holds(&self, cgroup: &str, pid: i32) -> bool {
        let line = pid.to_string();
        self.cgroups
            .procs_files(cgroup)
            .first()
            .is_some_and(|f| std::fs::read_to_string(f).is_ok_and(|t| t.lines().any(|l| l == line)))
    }

    /// Waits until nothing of the container is left in its cgroup, and records the end that its shim does not tell.
    async fn end_without_shim(self: &Arc<Self>, sandbox: &Arc<Sandbox>, c: &Arc<Container>) {
        let (cgroup, dir) = {
            let r = c.record.lock();
            (r.cgroup.clone(), r.spec.state_dir.clone())
        };
        let files = self.cgroups.procs_files(&cgroup);
        loop {
            let files = files.clone();
            let left = tokio::task::spawn_blocking(move || {
                files
                    .iter()
                    .any(|f| std::fs::read_to_string(f).is_ok_and(|t| !t.trim().is_empty()))
            });
            if !left.await.unwrap_or(false) {
                break;
            }
            tokio::select! {
                () = c.ended() => return,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
        let exited = Exited {
            exit_code: 128 + libc::SIGKILL,
            finished_at: sys::now_ns(),
            oom_killed: false,
            reason: String::new(),
            message: "killed without its shim, which does not answer".into(),
        };
        let _ = state::write_json(&dir.join("exit.json"), &exited);
        self.container_ended(sandbox, &c.id, exited);
    }

    pub(super) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let Ok(c) = self.container(id) else {
            return Ok(());
        };
        c.want_stop(Instant::now());
        // From the stop on to the end: a start in between would run a container without a record.
        let _one = c.lock.lock().await;
        if self.still_there(&c).is_err() {
            return Ok(());
        }
        self.stop_locked(&c).await?;
        let record = c.record.lock().clone();
        let (runtime, id) = (self.clone(), c.id.clone());
        blocking(move || {
            // The record goes first: what is left of a container without one is cleaned at the next start.
            let dir = &record.spec.state_dir;
            match std::fs::remove_file(dir.join("container.json")) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(internal("remove the container's record")(e));
                }
                _ => {}
            }
            runtime.remove_cgroup(&record.cgroup);
            runtime.clean_container(&id);
            Ok(())
        })
        .await?;
        let sandbox_id = c.sandbox_id();
        {
            let mut t = self.tables.lock();
            t.containers.remove(&c.id);
            if let Some(m) = &c.config.metadata {
                t.names.remove(&container_name(&sandbox_id, m));
            }
        }
        if let Ok(s) = self.sandbox(&sandbox_id) {
            self.tell(&s, &c.id, v1::ContainerEventType::ContainerDeletedEvent);
        }
        Ok(())
    }

    pub(super) async fn update_resources(
        self: &Arc<Self>,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<(), Status> {
        fields::update_resources(&request)?;
        let c = self.container(&request.container_id)?;
        let Some(new) = request.linux else {
            return Ok(());
        };
        let _one = c.lock.lock().await;
        self.still_there(&c)?;
        if c.state.borrow().exited.is_some() {
            return Err(Status::failed_precondition(format!(
                "container {} has ended",
                c.id
            )));
        }
        let merged = merge(c.resources().unwrap_or_default(), new.clone());
        if c.state.borrow().running() {
            let (runtime, cgroup) = (self.clone(), c.record.lock().cgroup.clone());
            blocking(move || {
                runtime
                    .cgroups
                    .apply(&cgroup, &cgroup_resources(&new))
                    .map_err(internal(format!("update the cgroup {cgroup}")))?;
                if new.oom_score_adj != 0 {
                    runtime.set_oom_score_adj(&cgroup, new.oom_score_adj);
                }
                Ok(())
            })
            .await?;
        }
        c.record.lock().resources = Some(encode_pb(&merged));
        c.save().map_err(internal("write the container record"))
    }
}

/// What CRI asks of a container's cgroup.
fn cgroup_resources(r: &v1::LinuxContainerResources) -> Resources {
    Resources {
        cpu_shares: r.cpu_shares,
        cpu_quota: r.cpu_quota,
        cpu_period: r.cpu_period,
        memory_limit: r.memory_limit_in_bytes,
        memory_swap_limit: r.memory_swap_limit_in_bytes,
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        pids_limit: 0,
        hugepages: r
            .hugepage_limits
            .iter()
            .map(|h| (h.page_size.clone(), h.limit))
            .collect(),
        unified: r.unified.clone().into_iter().collect(),
    }
}

/// Fields that the update says replace the old ones.
fn merge(
    old: v1::LinuxContainerResources,
    new: v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let n = |old: i64, new: i64| if new == 0 { old } else { new };
    let s = |old: String, new: String| if new.is_empty() { old } else { new };
    let mut unified = old.unified;
    unified.extend(new.unified);
    v1::LinuxContainerResources {
        cpu_period: n(old.cpu_period, new.cpu_period),
        cpu_quota: n(old.cpu_quota, new.cpu_quota),
        cpu_shares: n(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: n(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        oom_score_adj: n(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: s(old.cpuset_cpus, new.cpuset_cpus),
        cpuset_mems: s(old.cpuset_mems, new.cpuset_mems),
        hugepage_limits: if new.hugepage_limits.is_empty() {
            old.hugepage_limits
        } else {
            new.hugepage_limits
        },
        unified,
        memory_swap_limit_in_bytes: n(
            old.memory_swap_limit_in_bytes,
            new.memory_swap_limit_in_bytes,
        ),
    }
}

type RuleJson = (char, Option<u32>, Option<u32>, String);

fn rules_to_json(rules: &[devices::Rule]) -> Vec<RuleJson> {
    rules
        .iter()
        .map(|r| (r.kind, r.major, r.minor, r.access.clone()))
        .collect()
}

fn rules_from_json(rules: Vec<RuleJson>) -> Vec<devices::Rule> {
    rules
        .into_iter()
        .map(|(kind, major, minor, access)| devices::Rule {
            kind,
            major,
            minor,
            access,
        })
        .collect()
}
