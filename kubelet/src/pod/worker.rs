//! One worker for each pod: feeds the state machine and carries out what it commands. Owns tasks and channels; every
//! decision is `state`'s.

use super::spec::{self, Role};
use super::state::{Command, Event, PodState, Stage, StartError};
use super::status_manager::StatusWriter;
use super::view::{ContainerView, RunState, RuntimeView, SandboxView, time};
use super::{termination_message, view};
use crate::cri::{Cri, CriError};
use crate::kubelet::Kubelet;
use crate::kuberuntime::env::Sources;
use crate::kuberuntime::{self, container, env, services};
use crate::prober::Probers;
use crate::prober::check::Target;
use crate::volumes::{self, mounts, tear_down};
use crate::{cgroups, labels, lifecycle, logs};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Secret};
use kube::api::Api;
use parking_lot::Mutex;
use skiff_client::recorder::EventType;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What a worker can be told.
#[derive(Debug)]
pub enum Msg {
    /// Something happened.
    Event(Event),
    /// The runtime has news of the pod.
    Look,
    /// A command was carried out: look at the runtime first, then take the event in.
    Done(Event),
}

/// The way to a worker.
pub type Sender = mpsc::UnboundedSender<Msg>;

/// What others may know of a pod.
#[derive(Debug, Clone)]
pub struct Published {
    /// As the API has it.
    pub pod: Arc<Pod>,
    /// What the runtime has.
    pub view: RuntimeView,
    /// The status of the moment.
    pub status: Option<PodStatus>,
    /// Has the pod ended?
    pub ended: bool,
}

/// A worker as others see it.
#[derive(Clone)]
pub struct Handle {
    tx: Sender,
    /// What is known of the pod.
    pub published: Arc<Mutex<Published>>,
    /// Counts the changes of what is known.
    pub changes: watch::Receiver<u64>,
}

impl Handle {
    /// Tells the worker something; a worker that has ended does not hear it.
    pub fn send(&self, msg: Msg) {
        let _ = self.tx.send(msg);
    }
}

/// Asks the runtime for everything it has of a pod. What ended before is not asked for again.
///
/// # Errors
/// The runtime did not answer.
pub async fn look(
    cri: &Cri,
    uid: &str,
    before: Option<&RuntimeView>,
) -> Result<RuntimeView, CriError> {
    let filter = HashMap::from([(labels::POD_UID.to_string(), uid.to_string())]);
    let (sandboxes, containers) = tokio::try_join!(
        cri.list_pod_sandbox(filter.clone()),
        cri.list_containers(filter)
    )?;
    let mut out = RuntimeView::default();
    for s in sandboxes {
        let ready = s.state == k8s_cri::v1::PodSandboxState::SandboxReady as i32;
        let known = before
            .and_then(|b| b.sandboxes.iter().find(|k| k.id == s.id))
            .filter(|k| k.ready == ready && (!k.ips.is_empty() || !ready));
        match known {
            Some(k) => out.sandboxes.push(k.clone()),
            None => match cri.pod_sandbox_status(&s.id).await {
                Ok(r) => out.sandboxes.extend(r.status.map(SandboxView::from_cri)),
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            },
        }
    }
    for c in containers {
        let state = k8s_cri::v1::ContainerState::try_from(c.state).ok();
        let known = before
            .and_then(|b| b.containers.iter().find(|k| k.id == c.id))
            .filter(|k| {
                matches!(
                    (k.state, state),
                    (
                        RunState::Exited,
                        Some(k8s_cri::v1::ContainerState::ContainerExited)
                    ) | (
                        RunState::Running,
                        Some(k8s_cri::v1::ContainerState::ContainerRunning)
                    )
                )
            });
        if let Some(k) = known {
            out.containers.push(k.clone());
            continue;
        }
        match cri.container_status(&c.id).await {
            Ok(status) => {
                let mut one = ContainerView::from_cri(status, c.pod_sandbox_id);
                termination_message::fill(&mut one);
                out.containers.push(one);
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out.sorted())
}

/// A worker that has not begun to run.
pub struct Worker {
    kubelet: Arc<Kubelet>,
    state: PodState,
    tx: Sender,
    rx: mpsc::UnboundedReceiver<Msg>,
    published: Arc<Mutex<Published>>,
    changed: watch::Sender<u64>,
    fresh: bool,
    status: Arc<StatusWriter>,
    probers: Probers,
    start: Option<CancellationToken>,
}

impl Worker {
    /// For a pod that has just been seen. `fresh`: the runtime is known to have nothing of it, and is not asked.
    pub fn new(kubelet: Arc<Kubelet>, pod: Arc<Pod>, fresh: bool) -> (Self, Handle) {
        let (tx, rx) = mpsc::unbounded_channel();
        let published = Arc::new(Mutex::new(Published {
            pod: pod.clone(),
            view: RuntimeView::default(),
            status: None,
            ended: false,
        }));
        let (changed, changes) = watch::channel(0);
        let handle = Handle {
            tx: tx.clone(),
            published: published.clone(),
            changes,
        };
        let state = PodState::new(
            pod.clone(),
            kubelet.config.host_ips(),
            &kubelet.runtime_name,
            Timestamp::now(),
        );
        let worker = Self {
            status: StatusWriter::new(kubelet.client.clone(), pod),
            kubelet,
            state,
            tx,
            rx,
            published,
            changed,
            fresh,
            probers: Probers::default(),
            start: None,
        };
        (worker, handle)
    }

    /// Runs until nothing is left of the pod, or the kubelet stops (containers go on then).
    pub async fn run(mut self) {
        let uid = spec::uid(&self.state.pod).to_string();
        let stop = self.kubelet.stop.clone();
        let mut looking = !self.fresh;
        let mut first = self.fresh.then(|| Event::Runtime(RuntimeView::default()));
        let mut held: Vec<Event> = Vec::new();
        let mut look_again: Option<tokio::time::Instant> = None;
        loop {
            let mut events: Vec<Event> = first.take().into_iter().collect();
            if !looking && events.is_empty() {
                let wake = self.state.wake_at.map(|at| {
                    let left = at.duration_since(Timestamp::now());
                    tokio::time::Instant::now() + Duration::try_from(left).unwrap_or_default()
                });
                let due = [wake, look_again].into_iter().flatten().min();
                tokio::select! {
                    () = stop.cancelled() => break,
                    msg = self.rx.recv() => match msg {
                        Some(msg) => take(msg, &mut events, &mut held, &mut looking),
                        None => break,
                    },
                    () = sleep_until(due), if due.is_some() => {
                        if look_again.is_some_and(|at| at <= tokio::time::Instant::now()) {
                            looking = true;
                        }
                        events.push(Event::Tick);
                    }
                }
            }
            while let Ok(msg) = self.rx.try_recv() {
                take(msg, &mut events, &mut held, &mut looking);
            }
            if looking {
                looking = false;
                look_again = None;
                match look(&self.kubelet.cri, &uid, self.state.view.as_ref()).await {
                    Ok(view) => {
                        events.push(Event::Runtime(view));
                        events.append(&mut held);
                    }
                    Err(e) => {
                        tracing::warn!(pod = %spec::name(&self.state.pod), error = %e, "the runtime does not answer; trying again");
                        look_again = Some(tokio::time::Instant::now() + Duration::from_secs(1));
                    }
                }
            }
            tracing::trace!(
                pod = spec::name(&self.state.pod),
                count = events.len(),
                "step"
            );
            let gone = self.state.gone || events.iter().any(|e| matches!(e, Event::Gone));
            if gone {
                self.status.forget();
            }
            let commands = self.state.step(events, Timestamp::now());
            {
                let mut p = self.published.lock();
                p.pod = self.state.pod.clone();
                p.view = self.state.view.clone().unwrap_or_default();
                p.status = self.state.status.clone();
                p.ended = self.state.stage >= Stage::Terminated;
            }
            self.changed.send_modify(|n| *n += 1);
            let mut done = false;
            for command in commands {
                done |= self.carry_out(command);
            }
            if done {
                break;
            }
        }
        self.kubelet
            .workers
            .lock()
            .retain(|_, h| !Arc::ptr_eq(&h.published, &self.published));
    }

    /// Spawns something that ends with an event.
    fn spawn(&self, future: impl Future<Output = Event> + Send + 'static) {
        let tx = self.tx.clone();
        tokio::spawn(async move {
            let event = future.await;
            let _ = tx.send(Msg::Done(event));
        });
    }

    /// True when the worker has nothing more to do.
    fn carry_out(&mut self, command: Command) -> bool {
        let k = self.kubelet.clone();
        let pod = self.state.pod.clone();
        match &command {
            Command::WriteStatus(s) => {
                tracing::trace!(pod = spec::name(&pod), phase = ?s.phase, "status");
            }
            other => tracing::trace!(pod = spec::name(&pod), command = ?other, "next"),
        }
        match command {
            Command::MountVolumes => {
                let ips = self.state.last_ips.clone();
                let tx = self.tx.clone();
                tokio::spawn(async move {
                    let result = mount_volumes(&k, &pod, &ips).await;
                    let _ = tx.send(Msg::Event(Event::Volumes(result)));
                });
            }
            Command::MakeSandbox { attempt } => {
                self.spawn(async move { Event::SandboxMade(make_sandbox(&k, &pod, attempt).await) })
            }
            Command::StopSandbox(id) => self.spawn(async move {
                let result = k.cri.stop_pod_sandbox(&id).await.map_err(|e| e.to_string());
                Event::SandboxDone(id, result)
            }),
            Command::RemoveSandbox(id) => self.spawn(async move {
                let result = k
                    .cri
                    .remove_pod_sandbox(&id)
                    .await
                    .map_err(|e| e.to_string());
                Event::SandboxDone(id, result)
            }),
            Command::Start {
                name,
                attempt,
                sandbox,
            } => {
                let cancel = CancellationToken::new();
                self.start = Some(cancel.clone());
                let sandbox_attempt = self
                    .state
                    .view
                    .as_ref()
                    .and_then(|v| v.sandboxes.iter().find(|s| s.id == sandbox))
                    .map_or(0, |s| s.attempt);
                let job = Start {
                    target_id: target_of(&pod, &name, self.state.view.as_ref()),
                    pod,
                    name: name.clone(),
                    attempt,
                    sandbox,
                    sandbox_attempt,
                    ips: self.state.last_ips.clone(),
                };
                self.spawn(async move {
                    let result = job.run(&k, &cancel).await;
                    Event::Started(name, result)
                });
            }
            Command::CancelStart => {
                if let Some(cancel) = &self.start {
                    cancel.cancel();
                }
            }
            Command::Kill {
                id,
                name,
                grace,
                pre_stop,
                message,
            } => {
                let ip = self.state.last_ips.first().cloned().unwrap_or_default();
                self.spawn(async move {
                    let result = kill(&k, &pod, &id, &name, grace, pre_stop, &message, &ip).await;
                    Event::Killed(id, result)
                });
            }
            Command::RemoveContainer(id) => {
                let log = self
                    .state
                    .view
                    .as_ref()
                    .and_then(|v| v.containers.iter().find(|c| c.id == id))
                    .map(|c| c.log_path.clone())
                    .unwrap_or_default();
                let tx = self.tx.clone();
                tokio::spawn(async move {
                    match k.cri.remove_container(&id).await {
                        Ok(()) => logs::rotate::remove(std::path::Path::new(&log)),
                        Err(e) => {
                            tracing::debug!(error = %e, "a dead container could not be removed")
                        }
                    }
                    let _ = tx.send(Msg::Look);
                });
            }
            Command::Probes(wanted) => {
                let ip = if spec::host_network(&pod) {
                    self.state.host_ips.first().cloned()
                } else {
                    self.state.last_ips.first().cloned()
                };
                let view = self.state.view.clone().unwrap_or_default();
                self.probers.set(
                    &k,
                    &pod,
                    &wanted,
                    &ip.unwrap_or_default(),
                    |id| {
                        let run = view.containers.iter().find(|c| c.id == id);
                        run.map_or_else(Timestamp::now, |r| time(r.started_at))
                    },
                    &self.tx,
                );
            }
            Command::WriteStatus(status) => self.status.write(&status, !self.state.under_way()),
            Command::CleanUp => {
                let all = self.state.deleting();
                let tx = self.tx.clone();
                tokio::spawn(async move {
                    let result = clean_up(&k, &pod, all).await;
                    let _ = tx.send(Msg::Event(Event::CleanedUp(result)));
                });
            }
            Command::DeletePod => self.status.delete(),
            Command::Note {
                warning,
                reason,
                message,
                container,
            } => {
                let kind = if warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                };
                match container {
                    Some(c) => k.note_container(&pod, &c, kind, reason, &message),
                    None => k.note(&pod, kind, reason, &message),
                }
            }
            Command::Forget => {
                let uid = spec::uid(&pod).to_string();
                let logs = k
                    .config
                    .pod_log_dir(spec::namespace(&pod), spec::name(&pod), &uid);
                let dir = k.config.pod_dir(&uid);
                k.volumes.forget(&uid);
                tokio::task::spawn_blocking(move || {
                    if let Err(e) = tear_down::remove_pod_dir(&dir) {
                        tracing::warn!(error = %e, "a pod's directory could not be removed");
                    }
                    let _ = std::fs::remove_dir_all(logs);
                });
                return true;
            }
        }
        false
    }
}

fn take(msg: Msg, events: &mut Vec<Event>, held: &mut Vec<Event>, looking: &mut bool) {
    match msg {
        Msg::Event(e) => events.push(e),
        Msg::Look => *looking = true,
        Msg::Done(e) => {
            *looking = true;
            held.push(e);
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The running container whose processes an ephemeral container is to see.
fn target_of(pod: &Pod, name: &str, view: Option<&RuntimeView>) -> Option<String> {
    let target = spec::ephemeral_containers(pod)
        .iter()
        .find(|c| c.name == name)?
        .target_container_name
        .as_deref()
        .filter(|t| !t.is_empty())?;
    view?
        .latest(target)
        .filter(|c| c.state == RunState::Running)
        .map(|c| c.id.clone())
}

async fn mount_volumes(
    k: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    ips: &[String],
) -> Result<Option<Timestamp>, String> {
    let uid = spec::uid(pod);
    if spec::spec(pod).volumes.as_ref().is_none_or(Vec::is_empty) {
        return Ok(None);
    }
    let notify = k.notify(uid);
    let cx = volumes::Context {
        config: &k.config,
        client: &k.client,
        objects: &k.objects,
        tokens: &k.tokens,
        notify: &notify,
        addresses: &k.addresses(pod, ips),
        allocatable: &k.capacity.allocatable,
        now: Timestamp::now(),
    };
    k.volumes.mount_all(pod, &cx).await
}

async fn make_sandbox(k: &Arc<Kubelet>, pod: &Arc<Pod>, attempt: u32) -> Result<(), String> {
    let resolv_conf = std::fs::read_to_string(&k.config.resolv_conf).unwrap_or_default();
    let (config, warning) = kuberuntime::sandbox::config(pod, attempt, &k.config, &resolv_conf)?;
    if let Some(warning) = warning {
        k.note(pod, EventType::Warning, "DNSConfigForming", &warning);
    }
    std::fs::create_dir_all(&config.log_directory)
        .map_err(|e| format!("{}: {e}", config.log_directory))?;
    cgroups::ensure_pod(&k.config.cgroup_root, pod).map_err(|e| format!("pod cgroup: {e}"))?;
    let handler = match spec::spec(pod)
        .runtime_class_name
        .as_deref()
        .filter(|c| !c.is_empty())
    {
        Some(class) => {
            let api: Api<k8s_openapi::api::node::v1::RuntimeClass> = Api::all(k.client.clone());
            api.get(class)
                .await
                .map_err(|e| {
                    format!("failed to get sandbox runtime: RuntimeClass \"{class}\": {e}")
                })?
                .handler
        }
        None => String::new(),
    };
    k.cri
        .run_pod_sandbox(config, &handler)
        .await
        .map_err(|e| e.message)?;
    Ok(())
}

/// The start of one container.
struct Start {
    pod: Arc<Pod>,
    name: String,
    attempt: u32,
    sandbox: String,
    sandbox_attempt: u32,
    ips: Vec<String>,
    target_id: Option<String>,
}

fn error(reason: &str, message: impl Into<String>) -> StartError {
    StartError {
        reason: reason.into(),
        message: message.into(),
        image: None,
    }
}

impl Start {
    async fn run(
        &self,
        k: &Arc<Kubelet>,
        cancel: &CancellationToken,
    ) -> Option<Result<(), StartError>> {
        let (role, c) = spec::container(&self.pod, &self.name)?;
        let image = tokio::select! {
            () = cancel.cancelled() => return None,
            image = self.image(k, &c) => image,
        };
        let image = match image {
            Ok(i) => i,
            Err(e) => return Some(Err(e)),
        };
        if cancel.is_cancelled() {
            return None;
        }
        Some(self.create_and_start(k, role, &c, image, cancel).await)
    }

    async fn image(
        &self,
        k: &Arc<Kubelet>,
        c: &Container,
    ) -> Result<crate::images::Present, StartError> {
        let mut secrets: Vec<Arc<Secret>> = Vec::new();
        for r in spec::spec(&self.pod).image_pull_secrets.iter().flatten() {
            let api: Api<Secret> = Api::namespaced(k.client.clone(), spec::namespace(&self.pod));
            match api.get(&r.name).await {
                Ok(s) => secrets.push(Arc::new(s)),
                Err(e) => k.note(
                    &self.pod,
                    EventType::Warning,
                    "FailedToRetrieveImagePullSecret",
                    &format!("Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed: {e}", r.name),
                ),
            }
        }
        let sandbox_config = self.sandbox_config(k).ok();
        // Images that are mounted as volumes must be there too.
        let mounted = k.volumes.of(spec::uid(&self.pod));
        for m in c.volume_mounts.iter().flatten() {
            if let Some(image) = mounted.get(&m.name).and_then(|v| v.image.clone()) {
                let policy = spec::spec(&self.pod)
                    .volumes
                    .iter()
                    .flatten()
                    .find(|v| v.name == m.name)
                    .and_then(|v| v.image.as_ref())
                    .and_then(|i| i.pull_policy.clone());
                k.images
                    .ensure(
                        &image,
                        policy.as_deref(),
                        &secrets,
                        sandbox_config.clone(),
                        |reason, message| {
                            self.note(k, reason, &message);
                        },
                    )
                    .await?;
            }
        }
        let image = c.image.as_deref().unwrap_or_default();
        let present = k
            .images
            .ensure(
                image,
                c.image_pull_policy.as_deref(),
                &secrets,
                sandbox_config,
                |reason, message| {
                    self.note(k, reason, &message);
                },
            )
            .await?;
        self.note(k, "Pulled", &present.message);
        Ok(present)
    }

    fn note(&self, k: &Kubelet, reason: &str, message: &str) {
        let kind = match reason {
            "Failed" | "InspectFailed" | "ErrImageNeverPull" => EventType::Warning,
            _ => EventType::Normal,
        };
        k.note_container(&self.pod, &self.name, kind, reason, message);
    }

    fn sandbox_config(&self, k: &Kubelet) -> Result<k8s_cri::v1::PodSandboxConfig, String> {
        let resolv_conf = std::fs::read_to_string(&k.config.resolv_conf).unwrap_or_default();
        kuberuntime::sandbox::config(&self.pod, self.sandbox_attempt, &k.config, &resolv_conf)
            .map(|(c, _)| c)
    }

    async fn create_and_start(
        &self,
        k: &Arc<Kubelet>,
        role: Role,
        c: &Container,
        image: crate::images::Present,
        cancel: &CancellationToken,
    ) -> Result<(), StartError> {
        let pod = &self.pod;
        let uid = spec::uid(pod);
        let config_error = |m: String| error("CreateContainerConfigError", m);
        let sandbox_config = self.sandbox_config(k).map_err(config_error)?;

        let notify = k.notify(uid);
        let (maps, secrets) = env::references(c);
        let mut sources = Sources::default();
        for name in maps {
            let found = k
                .objects
                .config_map(uid, spec::namespace(pod), &name, &notify)
                .await
                .map_err(config_error)?;
            sources.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = k
                .objects
                .secret(uid, spec::namespace(pod), &name, &notify)
                .await
                .map_err(config_error)?;
            sources.secrets.insert(name, found);
        }
        if tokio::time::timeout(Duration::from_secs(10), k.services.synced())
            .await
            .is_err()
        {
            return Err(config_error(
                "services have not yet been read at least once, cannot construct envvars".into(),
            ));
        }
        let links = spec::spec(pod).enable_service_links.unwrap_or(true);
        let services = services::service_env(&k.services.list(), spec::namespace(pod), links);
        let addresses = k.addresses(pod, &self.ips);
        let env = env::environment(
            pod,
            c,
            &sources,
            &services,
            &addresses,
            &k.capacity.allocatable,
        )
        .map_err(config_error)?;

        let mounts = mounts::make(
            pod,
            c,
            &mounts::Inputs {
                config: &k.config,
                volumes: &k.volumes.of(uid),
                env: &env,
                pod_ips: &self.ips,
                attempt: self.attempt,
            },
        )
        .map_err(config_error)?;
        let config = container::config(
            pod,
            c,
            role,
            container::Inputs {
                attempt: self.attempt,
                image_ref: image.reference,
                image_user: image.user,
                env,
                services,
                mounts,
                node_memory: k.capacity.memory,
                target_id: self.target_id.clone(),
            },
            &k.config,
        )
        .map_err(config_error)?;
        let log_dir = std::path::Path::new(&sandbox_config.log_directory).join(&self.name);
        std::fs::create_dir_all(&log_dir).map_err(|e| {
            error(
                "CreateContainerError",
                format!("{}: {e}", log_dir.display()),
            )
        })?;
        if cancel.is_cancelled() {
            return Ok(());
        }
        let id = k
            .cri
            .create_container(&self.sandbox, config, sandbox_config)
            .await
            .map_err(|e| error("CreateContainerError", e.message))?;
        self.note(k, "Created", "Container created");
        k.cri
            .start_container(&id)
            .await
            .map_err(|e| error("RunContainerError", e.message))?;
        self.note(k, "Started", "Container started");

        if let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            // Others may see that the container runs while its hook does.
            let ip = addresses.pod.first().cloned().unwrap_or_default();
            let target = Target::new(c, &id, &ip);
            let result = tokio::select! {
                () = cancel.cancelled() => Ok(()),
                r = lifecycle::run(&k.cri, hook, &id, &target) => r,
            };
            if let Err(message) = result {
                k.note_container(
                    pod,
                    &self.name,
                    EventType::Warning,
                    "FailedPostStartHook",
                    "PostStartHook failed",
                );
                let text = "FailedPostStartHook";
                let _ = kill(
                    k,
                    pod,
                    &id,
                    &self.name,
                    spec::grace_period(pod),
                    true,
                    text,
                    &ip,
                )
                .await;
                return Err(error("PostStartHookError", message));
            }
        }
        Ok(())
    }
}

/// Runs the preStop hook and stops a container, both within the grace.
#[allow(clippy::too_many_arguments)]
async fn kill(
    k: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    id: &str,
    name: &str,
    grace: i64,
    pre_stop: bool,
    message: &str,
    ip: &str,
) -> Result<(), String> {
    let begun = tokio::time::Instant::now();
    if pre_stop {
        k.note_container(pod, name, EventType::Normal, "Killing", message);
        let container = spec::container(pod, name).map(|(_, c)| c);
        let hook = container
            .as_ref()
            .and_then(|c| c.lifecycle.as_ref()?.pre_stop.clone());
        if let (Some(hook), Some(c)) = (hook, container)
            && grace > 0
        {
            let target = Target::new(&c, id, ip);
            let limit = Duration::from_secs(grace as u64);
            let result =
                tokio::time::timeout(limit, lifecycle::run(&k.cri, &hook, id, &target)).await;
            if let Ok(Err(e)) = result {
                tracing::debug!(container = name, error = %e, "preStop hook failed");
                k.note_container(
                    pod,
                    name,
                    EventType::Warning,
                    "FailedPreStopHook",
                    "PreStopHook failed",
                );
            }
        }
    }
    let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(0);
    // A hook that used the whole grace leaves the process two seconds (upstream minimumGracePeriodInSeconds).
    let left = if used == 0 {
        grace
    } else {
        (grace - used).max(2)
    };
    k.cri.stop_container(id, left).await.map_err(|e| e.message)
}

async fn clean_up(k: &Arc<Kubelet>, pod: &Arc<Pod>, all: bool) -> Result<(), String> {
    let uid = spec::uid(pod).to_string();
    k.objects.release(&uid);
    k.tokens.forget(&uid);
    k.volumes.forget(&uid);
    let dir = k.config.pod_dir(&uid);
    let root = k.config.cgroup_root.clone();
    tokio::task::spawn_blocking(move || {
        if all {
            tear_down::remove_pod_dir(&dir)?;
        } else {
            // Termination messages stay until the pod is deleted.
            tear_down::remove_pod_dir(&dir.join("volume-subpaths"))?;
            tear_down::remove_pod_dir(&dir.join("volumes"))?;
        }
        cgroups::remove_pod(&root, &uid).map_err(|e| format!("pod cgroup: {e}"))
    })
    .await
    .map_err(|e| e.to_string())?
}

/// The time of a container's start, for others.
pub fn started_at(run: &ContainerView) -> Timestamp {
    view::time(run.started_at)
}
