//! The words of the pod's state machine: what happens ([`Event`]), what is to be done ([`Command`]), and what is
//! remembered between the two. Owns no rules but those of [`Op`].

use super::backoff::Backoff;
use super::view::RuntimeView;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus, ResourceRequirements};
use std::collections::BTreeSet;
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
        /// The node is short, and it is not the pod's own doing (the condition DisruptionTarget).
        disruption: bool,
    },
    /// The disk is full: what is left of a pod that has ended is given up.
    Reclaim,
    /// The resources of a running container were changed to these, or why not.
    Resized(String, Result<Box<ResourceRequirements>, ResizePending>),
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
    /// Wait no longer for volumes that are being mounted: a file system may never answer.
    CancelVolumes,
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
    /// See whether the node has room for the container's changed resources; then change the running container's
    /// limits, unless it is to be restarted for that.
    Resize {
        /// The runtime's id.
        id: String,
        /// Container's name.
        name: String,
        /// Its resizePolicy wants a restart.
        restart: bool,
    },
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

/// A change of resources that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResizePending {
    /// Infeasible, Deferred or Error.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A change of resources.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resize {
    /// What the run of this id has now.
    pub applied: Option<(String, ResourceRequirements)>,
    /// What is being applied.
    pub busy: Option<ResourceRequirements>,
    /// It could not be applied: why, for which resources, and when to try again.
    pub pending: Option<(ResizePending, ResourceRequirements, Timestamp)>,
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
    /// Changes of its resources while it runs.
    pub resize: Resize,
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
    /// The node ended it, being short.
    pub disruption: bool,
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
    /// Nobody waits for what is under way any more.
    pub called_off: bool,
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
        self.called_off = false;
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
