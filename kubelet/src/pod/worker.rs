//! One worker for each pod: feeds the state machine and carries out what it commands. Owns tasks and channels; every
//! decision is `state`'s.

use super::actions::{Start, clean_up, kill, look, make_sandbox, mount_volumes, resize, target_of};
use super::spec;
use super::state::{Command, Event, PodState, ResizePending, Stage, StartError};
use super::status_manager::StatusWriter;
use super::view::{RuntimeView, time};
use crate::kubelet::Kubelet;
use crate::logs;
use crate::prober::Probers;
use crate::volumes::tear_down;
use crate::volumes::work::{self, Lane};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use skiff_client::recorder::EventType;
use skiff_supervise::panic_text;
use std::panic::AssertUnwindSafe;
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
    mounting: Option<CancellationToken>,
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
            status: StatusWriter::new(kubelet.client.clone(), kubelet.supervisor().clone(), pod),
            kubelet,
            state,
            tx,
            rx,
            published,
            changed,
            fresh,
            probers: Probers::default(),
            start: None,
            mounting: None,
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
                match look(&self.kubelet, &uid, self.state.view.as_ref()).await {
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

    /// Carries something out that ends with an event; if it panics, with the event that says it failed, so that it is
    /// tried again as any other failure is. `look`: what the runtime has changed by it.
    fn spawn(
        &self,
        look: bool,
        failed: impl FnOnce(String) -> Event + Send + 'static,
        future: impl Future<Output = Event> + Send + 'static,
    ) {
        let tx = self.tx.clone();
        let pod = spec::name(&self.state.pod).to_string();
        tokio::spawn(async move {
            let event = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(event) => event,
                Err(panic) => {
                    let text = panic_text(panic.as_ref());
                    tracing::error!(pod, "a command of the pod panicked: {text}");
                    failed(format!("internal error: {text}"))
                }
            };
            let _ = tx.send(if look {
                Msg::Done(event)
            } else {
                Msg::Event(event)
            });
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
                let cancel = CancellationToken::new();
                self.mounting = Some(cancel.clone());
                self.spawn(false, |e| Event::Volumes(Err(e)), async move {
                    Event::Volumes(tokio::select! {
                        () = cancel.cancelled() => Err("called off: the pod ends".into()),
                        r = mount_volumes(&k, &pod, &ips) => r,
                    })
                });
            }
            Command::MakeSandbox { attempt } => {
                self.spawn(true, |e| Event::SandboxMade(Err(e)), async move {
                    Event::SandboxMade(make_sandbox(&k, &pod, attempt).await)
                })
            }
            Command::StopSandbox(id) => {
                let of = id.clone();
                self.spawn(true, |e| Event::SandboxDone(of, Err(e)), async move {
                    let result = k.cri.stop_pod_sandbox(&id).await;
                    Event::SandboxDone(id, result.map_err(|e| e.to_string()))
                })
            }
            Command::RemoveSandbox(id) => {
                let of = id.clone();
                self.spawn(true, |e| Event::SandboxDone(of, Err(e)), async move {
                    let result = k.cri.remove_pod_sandbox(&id).await;
                    Event::SandboxDone(id, result.map_err(|e| e.to_string()))
                })
            }
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
                let of = name.clone();
                let failed = |message| {
                    let error = StartError {
                        reason: "CreateContainerError".into(),
                        message,
                        image: None,
                    };
                    Event::Started(of, Some(Err(error)))
                };
                self.spawn(true, failed, async move {
                    let result = job.run(&k, &cancel).await;
                    Event::Started(name, result)
                });
            }
            Command::CancelVolumes => {
                if let Some(cancel) = &self.mounting {
                    cancel.cancel();
                }
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
                let of = id.clone();
                self.spawn(true, |e| Event::Killed(of, Err(e)), async move {
                    let result = kill(&k, &pod, &id, &name, grace, pre_stop, &message, &ip).await;
                    Event::Killed(id, result)
                });
            }
            Command::Resize { id, name, restart } => {
                let of = name.clone();
                let failed = |message| {
                    let pending = ResizePending {
                        reason: "Error".into(),
                        message,
                    };
                    Event::Resized(of, Err(pending))
                };
                self.spawn(true, failed, async move {
                    let result = resize(&k, &pod, &id, &name, restart).await;
                    Event::Resized(name, result)
                })
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
                        Ok(()) => logs::rotate::remove(&k.config.pod_logs_dir, log.into()).await,
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
                self.spawn(false, |e| Event::CleanedUp(Err(e)), async move {
                    Event::CleanedUp(clean_up(&k, &pod, all).await)
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
                tokio::spawn(async move {
                    k.volumes.work.settle(&uid).await;
                    let job = move |_: &work::Closed| {
                        if let Err(e) = tear_down::remove(&dir) {
                            tracing::warn!(error = %e, "a pod's directory could not be removed");
                        }
                        tear_down::remove(&logs)
                    };
                    let lane = Lane::TearDown;
                    match k.volumes.work.run(&uid, lane, work::TEAR_DOWN, job).await {
                        Ok(Ok(())) => {}
                        Ok(Err(e)) => {
                            tracing::warn!(error = %e, "a pod's logs could not be removed")
                        }
                        Err(e) => {
                            tracing::warn!(uid, error = %e, "a pod's directory could not be removed")
                        }
                    }
                    k.volumes.work.forget(&uid);
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
