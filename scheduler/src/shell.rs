//! The scheduler's I/O: watches pods and nodes, asks [`crate::schedule`], binds, reports. One task owns all state;
//! bindings and reports are sent in parallel.

use crate::queue::{Change, SchedulingQueue};
use crate::schedule::{FitError, schedule};
use crate::snapshot::{PodInfo, Snapshot};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::Status;
use skiff_client::recorder::EventType;
use skiff_client::{Event, Informers, ObjectKey, Recorder};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pods with this spec.schedulerName are ours (upstream: `default-scheduler`).
    pub scheduler_name: String,
    /// How many bindings may be on their way at once.
    pub parallel_binds: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            parallel_binds: 64,
        }
    }
}

struct Bound {
    key: ObjectKey,
    uid: String,
    error: Option<kube::Error>,
}

struct Shell {
    config: Config,
    informers: Informers,
    recorder: Recorder,
    queue: SchedulingQueue,
    snapshot: Snapshot,
    start: usize,
    binds: Arc<Semaphore>,
    bound_tx: mpsc::UnboundedSender<Bound>,
}

/// Schedules pods until the token ends it.
pub async fn run(informers: Informers, config: Config, stop: CancellationToken) {
    let nodes = informers.cache::<Node>();
    let pods = informers.cache::<Pod>();
    tokio::select! {
        () = stop.cancelled() => return,
        () = async { nodes.synced().await; pods.synced().await } => {}
    }
    let (bound_tx, mut bound_rx) = mpsc::unbounded_channel();
    let mut node_events = nodes.subscribe();
    let mut pod_events = pods.subscribe();
    let mut shell = Shell {
        recorder: Recorder::new(informers.client().clone(), &config.scheduler_name, ""),
        binds: Arc::new(Semaphore::new(config.parallel_binds)),
        config,
        informers,
        queue: SchedulingQueue::default(),
        snapshot: Snapshot::default(),
        start: 0,
        bound_tx,
    };
    loop {
        while let Ok(e) = node_events.try_recv() {
            shell.guarded(|s| s.node_event(e));
        }
        while let Ok(e) = pod_events.try_recv() {
            shell.guarded(|s| s.pod_event(e));
        }
        while let Ok(b) = bound_rx.try_recv() {
            shell.bound(b);
        }
        let now = Instant::now();
        if let Some(pod) = shell.queue.pop(now) {
            if !shell.guarded(|s| s.schedule_one(&pod, now)) {
                // Later, and behind the others.
                shell.snapshot.remove_pod(&pod.uid);
                shell.queue.retry(&pod.key, now);
            }
            tokio::task::yield_now().await;
            continue;
        }
        let due = shell.queue.next_due(now);
        let sleep = async {
            match due {
                Some(t) => tokio::time::sleep_until(t.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            e = node_events.recv() => match e { Some(e) => { shell.guarded(|s| s.node_event(e)); } None => return },
            e = pod_events.recv() => match e { Some(e) => { shell.guarded(|s| s.pod_event(e)); } None => return },
            b = bound_rx.recv() => if let Some(b) = b { shell.bound(b) },
            () = sleep => {}
        }
    }
}

/// What of a node matters here: a heartbeat changes none of it.
fn node_differs(a: &Node, b: &Node) -> bool {
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    a.spec != b.spec || a.metadata.labels != b.metadata.labels || allocatable(a) != allocatable(b)
}

/// What of a waiting pod matters here: our own note in its status does not.
fn pod_differs(a: &Pod, b: &Pod) -> bool {
    a.spec != b.spec || a.metadata.labels != b.metadata.labels || a.metadata.uid != b.metadata.uid
}

fn finished(pod: &Pod) -> bool {
    matches!(
        pod.status.as_ref().and_then(|s| s.phase.as_deref()),
        Some("Succeeded" | "Failed")
    )
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .filter(|n| !n.is_empty())
}

impl Shell {
    /// Does one thing about one object. One that makes it panic is told and passed over, so that it holds up nobody else.
    fn guarded(&mut self, work: impl FnOnce(&mut Self)) -> bool {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(self))) {
            Ok(()) => true,
            Err(panic) => {
                let why = skiff_supervise::panic_text(panic.as_ref());
                self.informers
                    .supervisor()
                    .note("scheduler", "decision", why);
                false
            }
        }
    }

    fn node_event(&mut self, event: Event<Node>) {
        match event {
            Event::Applied { new, old } => {
                let changed = old.is_none_or(|old| node_differs(&old, &new));
                self.snapshot.set_node(new);
                if changed {
                    self.queue.changed(Change::Node, Instant::now());
                }
            }
            Event::Deleted(node) => self
                .snapshot
                .remove_node(node.metadata.name.as_deref().unwrap_or_default()),
            Event::Synced => {}
        }
    }

    fn pod_event(&mut self, event: Event<Pod>) {
        let now = Instant::now();
        match event {
            Event::Applied { new, old } => {
                let key = ObjectKey::of(&*new);
                let uid = new.metadata.uid.clone().unwrap_or_default();
                if let Some(old) = &old
                    && old.metadata.uid != new.metadata.uid
                {
                    self.gone(old, now);
                }
                if finished(&new) {
                    self.queue.remove(&key);
                    if self.snapshot.remove_pod(&uid) {
                        self.queue.changed(Change::PodGone, now);
                    }
                } else if let Some(node) = node_of(&new) {
                    let news = old.is_none_or(|o| node_of(&o).is_none() || pod_differs(&o, &new));
                    self.queue.remove(&key);
                    if news || self.snapshot.place_of(&uid) != Some(node) {
                        self.snapshot
                            .set_pod(Arc::new(PodInfo::new(new.clone())), node);
                        self.queue.changed(Change::PodPlaced, now);
                    }
                } else if self.ours(&new) {
                    let news = old.is_none_or(|o| pod_differs(&o, &new));
                    if news && self.snapshot.place_of(&uid).is_none() {
                        self.queue.add(Arc::new(PodInfo::new(new)), now);
                    }
                } else {
                    self.queue.remove(&key);
                }
            }
            Event::Deleted(pod) => self.gone(&pod, now),
            Event::Synced => {}
        }
    }

    fn gone(&mut self, pod: &Pod, now: Instant) {
        self.queue.remove(&ObjectKey::of(pod));
        if self
            .snapshot
            .remove_pod(pod.metadata.uid.as_deref().unwrap_or_default())
        {
            self.queue.changed(Change::PodGone, now);
        }
    }

    fn ours(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        let name = spec
            .scheduler_name
            .as_deref()
            .unwrap_or("default-scheduler");
        name == self.config.scheduler_name
            && pod.metadata.deletion_timestamp.is_none()
            && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
    }

    fn schedule_one(&mut self, pod: &Arc<PodInfo>, now: Instant) {
        match schedule(&self.snapshot, pod, self.start, rand::random()) {
            Ok(placement) => {
                self.start = self.start.wrapping_add(placement.evaluated)
                    % self.snapshot.nodes().len().max(1);
                // Assumed: counted at once, so that the next pod sees what is left.
                self.snapshot.set_pod(pod.clone(), &placement.node);
                self.bind(pod.clone(), placement.node);
            }
            Err(why) => {
                tracing::debug!(pod = %pod.key, %why, "no node for a pod");
                self.queue.failed(&pod.key, why.plugins.clone(), now);
                self.report(pod.clone(), &why);
            }
        }
    }

    fn bind(&self, pod: Arc<PodInfo>, node: String) {
        let client = self.informers.client().clone();
        let recorder = self.recorder.clone();
        let tx = self.bound_tx.clone();
        let permits = self.binds.clone();
        tokio::spawn(async move {
            let _permit = permits.acquire().await;
            let binding = Binding {
                metadata: ObjectMeta {
                    name: Some(pod.key.name.clone()),
                    namespace: Some(pod.key.namespace.clone()),
                    uid: Some(pod.uid.clone()),
                    ..ObjectMeta::default()
                },
                target: ObjectReference {
                    kind: Some("Node".into()),
                    name: Some(node.clone()),
                    ..ObjectReference::default()
                },
            };
            let api: Api<Pod> = Api::namespaced(client, &pod.key.namespace);

            let sent: Result<Status, _> = api
                .create_subresource("binding", &pod.key.name, &PostParams::default(), &binding)
                .await;
            let error = match sent {
                Ok(_) => {
                    let text = format!("Successfully assigned {} to {node}", pod.key);
                    recorder.event(&*pod.pod, EventType::Normal, "Scheduled", text);
                    None
                }
                Err(e) => {
                    // A pod that is gone or bound meanwhile needs no note.
                    if !skiff_client::is_code(&e, 404) && !skiff_client::is_code(&e, 409) {
                        let text = format!("binding rejected: {e}");
                        recorder.event(&*pod.pod, EventType::Warning, "FailedScheduling", text);
                    }
                    Some(e)
                }
            };
            let _ = tx.send(Bound {
                key: pod.key.clone(),
                uid: pod.uid.clone(),
                error,
            });
        });
    }

    fn bound(&mut self, b: Bound) {
        let Some(error) = b.error else { return };
        tracing::debug!(pod = %b.key, %error, "a binding failed");
        let now = Instant::now();
        // The watch knows best: only undo what is still only assumed.
        let truth = self
            .informers
            .cache::<Pod>()
            .get(&b.key.namespace, &b.key.name);
        if truth
            .as_deref()
            .is_some_and(|p| p.metadata.uid.as_deref() == Some(&b.uid) && node_of(p).is_some())
        {
            return;
        }
        self.snapshot.remove_pod(&b.uid);
        self.queue.changed(Change::PodGone, now);
        if truth.is_some() && !skiff_client::is_code(&error, 404) {
            self.queue.retry(&b.key, now);
        } else {
            self.queue.remove(&b.key);
        }
    }

    fn report(&self, pod: Arc<PodInfo>, why: &FitError) {
        let message = why.to_string();
        self.recorder.event(
            &*pod.pod,
            EventType::Warning,
            "FailedScheduling",
            message.clone(),
        );
        let known = pod
            .pod
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| {
                c.type_ == "PodScheduled"
                    && c.status == "False"
                    && c.message.as_deref() == Some(&message)
            });
        let truth = self
            .informers
            .cache::<Pod>()
            .get(&pod.key.namespace, &pod.key.name);
        let known = known
            || truth
                .iter()
                .flat_map(|p| p.status.iter())
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|c| {
                    c.type_ == "PodScheduled"
                        && c.status == "False"
                        && c.message.as_deref() == Some(&message)
                });
        if known {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.informers.client().clone(), &pod.key.namespace);
        tokio::spawn(async move {
            let condition = serde_json::json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastProbeTime": null, "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "observedGeneration": pod.pod.metadata.generation,
            }]}});
            let sent = api
                .patch_status(
                    &pod.key.name,
                    &PatchParams::default(),
                    &Patch::Strategic(&condition),
                )
                .await;
            if let Err(e) = sent
                && !skiff_client::is_code(&e, 404)
            {
                tracing::debug!(pod = %pod.key, error = %e, "the PodScheduled condition could not be written");
            }
        });
    }
}
