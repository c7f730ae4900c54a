//! The life of one pod as data: `step(events, now) -> commands`. Owns every decision about a pod's sandbox and
//! containers; does no I/O and reads no clock. The rules are upstream's kuberuntime computePodActions and
//! pod_workers (syncing, terminating, terminated).

use super::spec::{self, Role};
use super::view::{ContainerView, RunState, RuntimeView, SandboxView, time};
use super::{plan, status};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus, ResourceRequirements};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use super::types::{
    Command, End, Event, Failure, Kill, Op, ProbeKey, ProbeKind, Resize, ResizePending, Slot,
    Stage, StartError,
};

/// Everything the kubelet knows of one pod.
#[derive(Debug, Clone)]
pub struct PodState {
    /// As the API has it.
    pub pod: Arc<Pod>,
    /// The API no longer has it.
    pub gone: bool,
    /// What the runtime has; None until it was asked.
    pub view: Option<RuntimeView>,
    /// Where the pod stands.
    pub stage: Stage,
    /// Why it ends.
    pub end: Option<End>,
    /// Volumes.
    pub volumes: Op,
    /// The volumes were mounted once since the start of this process.
    pub mounted_once: bool,
    /// Sources changed while volumes were being mounted.
    pub remount: bool,
    /// Making of the sandbox.
    pub sandbox: Op,
    /// Sandboxes being stopped or removed; after a failure with the time of the next try.
    pub sandbox_ops: BTreeMap<String, Option<Timestamp>>,
    /// By container name.
    pub slots: BTreeMap<String, Slot>,
    /// The container that is being started, and whether the start was called off.
    pub starting: Option<(String, bool)>,
    /// Containers being stopped, by id.
    pub killing: BTreeMap<String, Kill>,
    /// Containers being removed.
    pub removing: BTreeSet<String>,
    /// Verdicts, by container id.
    pub probes: BTreeMap<(String, ProbeKind), bool>,
    /// Probes that were asked for.
    pub probing: BTreeSet<ProbeKey>,
    /// The status written last.
    pub status: Option<PodStatus>,
    /// Final clean up.
    pub clean_up: Op,
    /// DeletePod was commanded.
    pub delete_sent: bool,
    /// Once it has ended, its dead containers are not worth their space.
    pub reclaim: bool,
    /// When the kubelet first saw the pod.
    pub start_time: Timestamp,
    /// Next time at which something is to be done.
    pub wake_at: Option<Timestamp>,
    /// Addresses of the node, first one of each family.
    pub host_ips: Vec<String>,
    /// `name://` of the runtime.
    pub id_prefix: String,
    /// Last IPs of the pod, kept in the status when the sandbox is gone.
    pub last_ips: Vec<String>,
}

/// Annotation of a pod that makes the state machine of a test build panic.
#[cfg(test)]
pub const POISON: &str = "test/poison";

impl PodState {
    /// A pod that has just been seen.
    pub fn new(pod: Arc<Pod>, host_ips: Vec<String>, runtime: &str, now: Timestamp) -> Self {
        let start_time = pod
            .status
            .as_ref()
            .and_then(|s| s.start_time.as_ref())
            .map_or(now, |t| t.0);
        let last_ips = pod
            .status
            .as_ref()
            .and_then(|s| s.pod_ips.as_ref())
            .map(|ips| ips.iter().map(|i| i.ip.clone()).collect())
            .unwrap_or_default();
        Self {
            pod,
            gone: false,
            view: None,
            stage: Stage::Syncing,
            end: None,
            volumes: Op::default(),
            mounted_once: false,
            remount: false,
            sandbox: Op::default(),
            sandbox_ops: BTreeMap::new(),
            slots: BTreeMap::new(),
            starting: None,
            killing: BTreeMap::new(),
            removing: BTreeSet::new(),
            probes: BTreeMap::new(),
            probing: BTreeSet::new(),
            status: None,
            clean_up: Op::default(),
            delete_sent: false,
            reclaim: false,
            start_time,
            wake_at: None,
            host_ips,
            id_prefix: format!("{runtime}://"),
            last_ips,
        }
    }

    /// Takes in what happened and says what to do. [`PodState::wake_at`] says when to call again with
    /// [`Event::Tick`] if nothing happens before.
    pub fn step(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        now: Timestamp,
    ) -> Vec<Command> {
        #[cfg(test)]
        if self
            .pod
            .metadata
            .annotations
            .iter()
            .flatten()
            .any(|(k, _)| k == POISON)
        {
            panic!("the pod is poison");
        }
        let mut commands = Vec::new();
        for event in events {
            self.apply(event, now, &mut commands);
        }
        self.wake_at = None;
        plan::plan(self, now, &mut commands);
        if self.view.is_some() && !self.gone {
            let status = status::generate(self, now);
            if self.status.as_ref() != Some(&status) {
                self.status = Some(status.clone());
                // The status goes out before the pod is deleted for good.
                let at = commands
                    .iter()
                    .position(|c| matches!(c, Command::DeletePod | Command::Forget))
                    .unwrap_or(commands.len());
                commands.insert(at, Command::WriteStatus(Box::new(status)));
            }
        }
        commands
    }

    /// Wants to be called at this time, if not before.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }

    /// Deleted, or to be deleted, from the API.
    pub fn deleting(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// The sandbox that containers run in now.
    pub fn current_sandbox(&self) -> Option<&SandboxView> {
        let s = self.view.as_ref()?.sandboxes.first()?;
        let has_network = spec::host_network(&self.pod) || !s.ips.is_empty();
        (s.ready && has_network && !self.sandbox_ops.contains_key(&s.id)).then_some(s)
    }

    /// The newest run of a container.
    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.view.as_ref()?.latest(name)
    }

    /// Has the startup probe of this run succeeded (or is there none)?
    pub fn started(&self, run: &ContainerView) -> bool {
        if run.state != RunState::Running {
            return false;
        }
        match spec::container(&self.pod, &run.name) {
            Some((_, c)) if c.startup_probe.is_some() => self
                .probes
                .get(&(run.id.clone(), ProbeKind::Startup))
                .copied()
                .unwrap_or(false),
            _ => self.starting.as_ref().is_none_or(|(n, _)| *n != run.name),
        }
    }

    /// Does this run answer its readiness probe (or has it none)?
    pub fn ready(&self, run: &ContainerView) -> bool {
        if !self.started(run) {
            return false;
        }
        match spec::container(&self.pod, &run.name) {
            Some((Role::Ephemeral | Role::Init, _)) => false,
            Some((_, c)) if c.readiness_probe.is_some() => self
                .probes
                .get(&(run.id.clone(), ProbeKind::Readiness))
                .copied()
                .unwrap_or(false),
            _ => true,
        }
    }

    /// Seconds that containers get to end, all told.
    pub fn grace(&self) -> i64 {
        let own = spec::grace_period(&self.pod);
        let mut grace = 0;
        if self.pod.metadata.deletion_timestamp.is_some() {
            grace = self.pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        }
        if let Some(over) = self.end.as_ref().and_then(|e| e.grace) {
            grace = if grace == 0 {
                over.max(1)
            } else {
                grace.min(over)
            };
        }
        if grace == 0 {
            grace = own;
        }
        grace.max(1)
    }

    /// Is something being done that will change the status soon?
    pub fn under_way(&self) -> bool {
        let ends = matches!(self.stage, Stage::Terminating | Stage::Terminated);
        ends || self.starting.is_some() || self.sandbox.busy || self.volumes.busy
    }

    /// Begins to end the pod, once.
    pub fn begin_end(
        &mut self,
        failed: Option<(String, String)>,
        grace: Option<i64>,
        now: Timestamp,
    ) {
        let end = self.end.get_or_insert_with(End::default);
        end.since.get_or_insert(now);
        if end.failed.is_none() && self.stage < Stage::Terminated {
            end.failed = failed;
        }
        if grace.is_some() {
            end.grace = grace;
        }
        if self.stage == Stage::Syncing {
            self.stage = Stage::Terminating;
        }
    }

    fn apply(&mut self, event: Event, now: Timestamp, commands: &mut Vec<Command>) {
        match event {
            Event::Tick => {}
            Event::Pod(pod) => {
                let (old, new) = (&self.pod.metadata, &pod.metadata);
                let changed = old.labels != new.labels || old.annotations != new.annotations;
                self.pod = pod;
                if changed && spec::has_downward_volume(&self.pod) {
                    self.sources_changed(now);
                }
            }
            Event::Gone => self.gone = true,
            Event::Runtime(view) => {
                if self.view.is_none() {
                    self.adopt_verdicts(&view);
                }
                let alive: BTreeSet<&str> = view.alive().map(|c| c.id.as_str()).collect();
                self.probes.retain(|(id, _), _| alive.contains(id.as_str()));
                if let Some(s) = view.sandboxes.first().filter(|s| !s.ips.is_empty()) {
                    self.last_ips = s.ips.clone();
                }
                self.removing
                    .retain(|id| view.containers.iter().any(|c| c.id == *id));
                self.view = Some(view);
            }
            Event::Volumes(Ok(refresh)) => {
                self.volumes
                    .succeed(if self.remount { Some(now) } else { refresh });
                self.remount = false;
                self.mounted_once = true;
            }
            Event::Volumes(Err(message)) => {
                // One event for each new message, not for each try.
                if self.volumes.message != message && self.stage == Stage::Syncing {
                    commands.push(Command::Note {
                        warning: true,
                        reason: "FailedMount",
                        message: message.clone(),
                        container: None,
                    });
                }
                // Upstream's back-off of volume operations: 500 ms doubling to 2 min 2 s.
                self.volumes.fail(message, now, 500, 122_000);
                if std::mem::take(&mut self.remount) {
                    self.volumes.again_at = Some(now);
                }
            }
            Event::SourcesChanged => self.sources_changed(now),
            Event::SandboxMade(Ok(())) => self.sandbox.succeed(None),
            Event::SandboxMade(Err(message)) => {
                commands.push(Command::Note {
                    warning: true,
                    reason: "FailedCreatePodSandBox",
                    message: format!("Failed to create pod sandbox: {message}"),
                    container: None,
                });
                self.sandbox.fail(message, now, 1_000, 15_000);
            }
            Event::SandboxDone(id, Ok(())) => {
                self.sandbox_ops.remove(&id);
            }
            Event::SandboxDone(id, Err(message)) => {
                tracing::warn!(pod = %spec::name(&self.pod), error = %message, "sandbox could not be stopped or removed; trying again");
                self.sandbox_ops.insert(id, after(now, 5));
            }
            Event::Started(name, result) => {
                self.starting = None;
                self.note_started(&name, result, now, commands);
            }
            Event::Killed(id, Ok(())) => {
                self.killing.remove(&id);
            }
            Event::Killed(id, Err(message)) => {
                commands.push(Command::Note {
                    warning: true,
                    reason: "FailedKillPod",
                    message: format!("error killing pod: {message}"),
                    container: None,
                });
                if let Some(kill) = self.killing.get_mut(&id) {
                    kill.retry_at = after(now, 2);
                }
            }
            Event::Probe(key, good) => {
                self.probes.insert((key.id, key.kind), good);
            }
            Event::Evict {
                reason,
                message,
                grace,
                disruption,
            } => {
                if self.end.is_none() {
                    self.begin_end(Some((reason, message)), grace, now);
                    if let Some(end) = &mut self.end {
                        end.disruption = disruption;
                    }
                }
            }
            Event::Reclaim => self.reclaim = true,
            Event::Resized(name, result) => self.resized(&name, result, now),
            Event::CleanedUp(Ok(())) => self.clean_up.succeed(None),
            Event::CleanedUp(Err(message)) => {
                tracing::warn!(pod = %spec::name(&self.pod), error = %message, "the pod could not be cleaned up; trying again");
                self.clean_up.fail(message, now, 1_000, 60_000);
            }
        }
    }

    /// What probes had found out of runs that go on, before this process began: a restart of the kubelet makes no pod
    /// unready (upstream ChangeContainerStatusOnKubeletRestart, off).
    fn adopt_verdicts(&mut self, view: &RuntimeView) {
        let status = self.pod.status.clone().unwrap_or_default();
        let old = status
            .init_container_statuses
            .into_iter()
            .chain(status.container_statuses)
            .flatten();
        for c in old {
            let Some(run) = view.alive().find(|r| {
                c.container_id.as_deref() == Some(&format!("{}{}", self.id_prefix, r.id))
            }) else {
                continue;
            };
            if c.started == Some(true) {
                self.probes
                    .insert((run.id.clone(), ProbeKind::Startup), true);
            }
            if c.ready {
                self.probes
                    .insert((run.id.clone(), ProbeKind::Readiness), true);
            }
        }
    }

    /// Volumes are to be brought up to date, and what waits for a missing object may be tried again.
    fn sources_changed(&mut self, now: Timestamp) {
        if self.volumes.busy {
            self.remount = true;
        } else if self.volumes.done || self.volumes.failures > 0 {
            self.volumes.again_at = Some(now);
        }
        for slot in self.slots.values_mut() {
            if let Some(f) = &mut slot.failure
                && f.error.reason == "CreateContainerConfigError"
            {
                f.retry_at = now;
            }
        }
    }

    fn resized(
        &mut self,
        name: &str,
        result: Result<Box<ResourceRequirements>, ResizePending>,
        now: Timestamp,
    ) {
        let id = self.latest(name).map(|r| r.id.clone());
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        let wanted = slot.resize.busy.take().unwrap_or_default();
        match (result, id) {
            (Ok(applied), Some(id)) => {
                slot.resize.applied = Some((id, *applied));
                slot.resize.pending = None;
            }
            (Ok(_), None) => slot.resize = Resize::default(),
            (Err(pending), _) => {
                // Room may come when another pod goes; nothing tells of that, so it is looked for now and then.
                let again = after(now, 60).unwrap_or(now);
                slot.resize.pending = Some((pending, wanted, again));
            }
        }
    }

    fn note_started(
        &mut self,
        name: &str,
        result: Option<Result<(), StartError>>,
        now: Timestamp,
        commands: &mut Vec<Command>,
    ) {
        let left_dead = self
            .latest(name)
            .is_some_and(|r| r.state == RunState::Exited);
        let slot = self.slots.entry(name.to_string()).or_default();
        match result {
            None => {}
            Some(Ok(())) => {
                slot.failure = None;
                slot.image.reset();
                slot.crash_until = None;
            }
            Some(Err(error)) => {
                let delay = if error.image.is_some() && error.reason.starts_with("ErrImagePull") {
                    slot.image.next(now, now);
                    slot.image.delay()
                } else if left_dead && error.reason == "RunContainerError" {
                    // What was made and could not run has ended: its restarts are delayed as a crash's are.
                    SignedDuration::ZERO
                } else {
                    // Upstream tries again with the next sync of the pod, some ten seconds later.
                    SignedDuration::from_secs(10)
                };
                commands.push(Command::Note {
                    warning: true,
                    reason: "Failed",
                    message: format!("Error: {}", error_text(&error)),
                    container: Some(name.to_string()),
                });
                slot.noted = false;
                slot.failure = Some(Failure {
                    error,
                    at: now,
                    retry_at: now.checked_add(delay).unwrap_or(now),
                });
            }
        }
    }

    /// When a run ended, for the restart delays.
    pub fn finished_at(run: &ContainerView) -> Timestamp {
        if run.finished_at > 0 {
            time(run.finished_at)
        } else {
            run.finished()
        }
    }
}

/// Upstream's event says the bare reason for image errors and the message for others.
fn error_text(e: &StartError) -> &str {
    if e.image.is_some() {
        &e.reason
    } else {
        &e.message
    }
}

fn after(now: Timestamp, seconds: i64) -> Option<Timestamp> {
    now.checked_add(SignedDuration::from_secs(seconds)).ok()
}
