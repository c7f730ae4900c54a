//! The life of one pod as data: `step(events, now) -> commands`. Owns every decision about a pod's sandbox and
//! containers; does no I/O and reads no clock. The rules are upstream's kuberuntime computePodActions and
//! pod_workers (syncing, terminating, terminated).

use super::backoff::Backoff;
use super::spec::{self, Role};
use super::view::{ContainerView, RunState, RuntimeView, SandboxView, time};
use super::{plan, status};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds the other two back until it succeeds.
    Startup,
    /// Failure restarts the container.
    Liveness,
    /// Failure takes the pod out of Services.
    Readiness,
}

impl ProbeKind {
    /// As messages name it.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// One probe of one run of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeKey {
    /// Container's name.
    pub container: String,
    /// The runtime's id.
    pub id: String,
    /// Which.
    pub kind: ProbeKind,
}

/// Why a container could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    /// As `status.containerStatuses[].state.waiting.reason` shows it.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The image, when getting it was what failed.
    pub image: Option<String>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The pod as the API has it now.
    Pod(Arc<Pod>),
    /// The API no longer has it.
    Gone,
    /// What the runtime has now.
    Runtime(RuntimeView),
    /// The pod's volumes are there (with the time at which some need a refresh), or why not.
    Volumes(Result<Option<Timestamp>, String>),
    /// An object that volumes or environment come from has changed.
    SourcesChanged,
    /// The sandbox was made, or why not.
    SandboxMade(Result<(), String>),
    /// A sandbox was stopped or removed (or that failed).
    SandboxDone(String, Result<(), String>),
    /// A container was started, or why not. None: the start was called off.
    Started(String, Option<Result<(), StartError>>),
    /// The stopping of a container ended.
    Killed(String, Result<(), String>),
    /// A probe's verdict changed.
    Probe(ProbeKey, bool),
    /// The node wants the pod to end: reason, message, grace.
    Evict {
        /// status.reason
        reason: String,
        /// status.message
        message: String,
        /// Seconds; None for the pod's own.
        grace: Option<i64>,
    },
    /// Volumes and cgroups are gone, or why not.
    CleanedUp(Result<(), String>),
    /// Time has passed.
    Tick,
}

/// What to do. Commands that take time answer with an [`Event`].
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Mount (or bring up to date) the pod's volumes.
    MountVolumes,
    /// Make a sandbox.
    MakeSandbox {
        /// How many were made before.
        attempt: u32,
    },
    /// Stop a sandbox and everything in it.
    StopSandbox(String),
    /// Remove a stopped sandbox with its containers.
    RemoveSandbox(String),
    /// Get the image, make and start a container, run its postStart hook.
    Start {
        /// Container's name.
        name: String,
        /// Restart count.
        attempt: u32,
        /// The sandbox to start it in.
        sandbox: String,
    },
    /// Call off the start that is under way, if it still waits for an image.
    CancelStart,
    /// Run the preStop hook and stop a container.
    Kill {
        /// The runtime's id.
        id: String,
        /// Container's name.
        name: String,
        /// Seconds for hook and process together.
        grace: i64,
        /// Run the preStop hook? Not again when a stop is only hurried up.
        pre_stop: bool,
        /// Message of the Killing event.
        message: String,
    },
    /// Remove a dead container and its log.
    RemoveContainer(String),
    /// Exactly these probes are to run.
    Probes(BTreeSet<ProbeKey>),
    /// The pod's status is now this.
    WriteStatus(Box<PodStatus>),
    /// Unmount volumes, remove the pod's cgroups.
    CleanUp,
    /// Once the status is written: delete the pod from the API for good.
    DeletePod,
    /// Note an event; `container` for the fieldPath.
    Note {
        /// Warning rather than Normal.
        warning: bool,
        /// Event's reason.
        reason: &'static str,
        /// Event's message.
        message: String,
        /// The container it is about.
        container: Option<String>,
    },
    /// Nothing is left of the pod: forget it.
    Forget,
}

/// A container that could not be started.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What went wrong.
    pub error: StartError,
    /// When.
    pub at: Timestamp,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// What is remembered of each container by name.
#[derive(Debug, Clone, Default)]
pub struct Slot {
    /// The last start failed.
    pub failure: Option<Failure>,
    /// Delays of restarts.
    pub crash: Backoff,
    /// Delays of pulls.
    pub image: Backoff,
    /// In CrashLoopBackOff: until when.
    pub crash_until: Option<Timestamp>,
    /// A BackOff event was noted for this delay.
    pub noted: bool,
}

/// Why the pod ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct End {
    /// When it began.
    pub since: Option<Timestamp>,
    /// status.reason and status.message, with phase Failed.
    pub failed: Option<(String, String)>,
    /// Seconds, when not the pod's own.
    pub grace: Option<i64>,
}

/// Where the pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is to run.
    Syncing,
    /// Its containers are being stopped.
    Terminating,
    /// Containers and sandbox have stopped; volumes go.
    Terminated,
    /// Nothing of it is left but dead containers and logs.
    Finished,
}

/// State of something that one command does, again and again until it succeeds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Op {
    /// Under way.
    pub busy: bool,
    /// Done.
    pub done: bool,
    /// Failures in a row.
    pub failures: u32,
    /// Not before this time (after a failure), or once more at this time (when done).
    pub again_at: Option<Timestamp>,
    /// Why it failed last.
    pub message: String,
}

impl Op {
    /// It is under way now.
    pub fn begin(&mut self) {
        self.busy = true;
        self.again_at = None;
    }
    /// It succeeded; maybe it is to be done again later.
    pub fn succeed(&mut self, again_at: Option<Timestamp>) {
        *self = Self {
            done: true,
            again_at,
            ..Self::default()
        };
    }
    /// It failed: the delay doubles from `first` to `longest` milliseconds.
    pub fn fail(&mut self, message: String, now: Timestamp, first: i64, longest: i64) {
        self.busy = false;
        self.message = message;
        let delay = first
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        self.failures += 1;
        self.again_at = Some(
            now.checked_add(SignedDuration::from_millis(delay))
                .unwrap_or(now),
        );
    }
    /// Is it to be started now?
    pub fn due(&self, now: Timestamp) -> bool {
        !self.busy
            && match self.again_at {
                Some(at) => at <= now,
                None => !self.done,
            }
    }
}

/// A container that is being stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Kill {
    /// Seconds it was given.
    pub grace: i64,
    /// The stop failed: try again then.
    pub retry_at: Option<Timestamp>,
}

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
                if self.volumes.message != message {
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
            } => {
                if self.end.is_none() {
                    self.begin_end(Some((reason, message)), grace, now);
                }
            }
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
