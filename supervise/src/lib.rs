//! Background work that cannot end in silence: each task has a name, is started again after a panic or a failure, and
//! shows its state. Owns starting, restarting and telling; must not know what the tasks do. Upstream's counterpart is
//! `wait.Until` with `HandleCrash`; the restart of whole processes, which upstream leaves to systemd, has to happen
//! inside one process here.

mod backoff;

pub use backoff::Backoff;

use futures::FutureExt;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// So long must a restarted task run before it counts as well again.
pub const SETTLED: Duration = Duration::from_secs(10);

/// Starts background work and remembers how it fares. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

struct Inner {
    stop: CancellationToken,
    tasks: TaskTracker,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    running: BTreeMap<u64, Entry>,
    /// Restarts by group; they outlive the tasks.
    restarts: BTreeMap<&'static str, u64>,
    failure: Option<String>,
}

struct Entry {
    group: &'static str,
    key: String,
    fault: Option<String>,
}

/// How one group of tasks fares: those of one name, which are many where there is one for each pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The group's name, such as `kubelet/pod`.
    pub group: &'static str,
    /// Why it is not well: the panic or the error of the lasting task that failed and has not settled since.
    pub fault: Result<(), String>,
    /// The same of transient tasks, by key. They do not make the group unwell: one poisoned pod must not take its node
    /// or the server out of service.
    pub degraded: Vec<String>,
    /// How often its tasks were started again.
    pub restarts: u64,
}

/// What a task's run came to.
enum Outcome {
    /// It is done, and needs no other run.
    Done,
    /// It panicked, failed, or ended although it should not have.
    Fault(String),
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.health()).finish()
    }
}

impl Supervisor {
    /// A supervisor whose tasks end with the token; an essential task that ends cancels it.
    pub fn new(stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            stop,
            tasks: TaskTracker::new(),
            state: Mutex::default(),
        }))
    }

    /// The token that ends everything.
    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Runs what `make` gives until the stop; whenever it panics, fails or ends before that, again after a back-off.
    /// The future is dropped at the stop: what must be put away first belongs into [`Supervisor::spawn_essential`].
    pub fn spawn<F, Fut, E>(&self, group: &'static str, mut make: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        self.restarting(group, String::new(), move || {
            // Boxed: such futures are large, and each layer around them would hold them anew on the stack.
            let run = Box::pin(make());
            async move {
                match run.await {
                    Ok(()) => Outcome::Fault("it ended although nobody asked it to".into()),
                    Err(e) => Outcome::Fault(e.to_string()),
                }
            }
        });
    }

    /// Like [`Supervisor::spawn`] for work that comes to an end: `Ok` is its end. `key` tells the tasks of one group
    /// apart, such as a pod's UID.
    pub fn spawn_transient<F, Fut, E>(
        &self,
        group: &'static str,
        key: impl Into<String>,
        mut make: F,
    ) where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        self.restarting(group, key.into(), move || {
            // Boxed: such futures are large, and each layer around them would hold them anew on the stack.
            let run = Box::pin(make());
            async move {
                match run.await {
                    Ok(()) => Outcome::Done,
                    Err(e) => Outcome::Fault(e.to_string()),
                }
            }
        });
    }

    /// Runs work that the process cannot do without: its end before the stop, by whatever cause, is told by
    /// [`Supervisor::failure`] and stops everything. It is not dropped at the stop but has to watch for it.
    pub fn spawn_essential<Fut, E>(&self, group: &'static str, run: Fut)
    where
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let id = self.enter(group, String::new());
        let this = self.clone();
        let run = Box::pin(run);
        self.0.tasks.spawn(async move {
            let ended = AssertUnwindSafe(run).catch_unwind().await;
            this.essential_ended(id, group, ended.map(|r| r.map_err(|e| e.to_string())));
        });
    }

    /// [`Supervisor::spawn_essential`] for a thread of the system.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn spawn_essential_thread<E: Display>(
        &self,
        group: &'static str,
        run: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let id = self.enter(group, String::new());
        let this = self.clone();
        let started = std::thread::Builder::new()
            .name(group.rsplit('/').next().unwrap_or(group).into())
            .spawn(move || {
                let ended = std::panic::catch_unwind(AssertUnwindSafe(run));
                this.essential_ended(id, group, ended.map(|r| r.map_err(|e| e.to_string())));
            });
        if started.is_err() {
            self.leave(id);
        }
        started
    }

    /// Tells of a panic that was caught where it happened ([`caught`]), so that the work around it goes on: it counts as
    /// a restart and is shown for a while.
    pub fn note(&self, group: &'static str, key: &str, fault: &str) {
        tracing::error!(task = group, key, "a background task panicked: {fault}");
        let id = self.enter(group, key.to_string());
        self.faulty(id, group, fault.to_string());
        let this = self.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = this.0.stop.cancelled() => {}
                () = tokio::time::sleep(SETTLED) => {}
            }
            this.leave(id);
        });
    }

    /// Says that the process cannot go on, and stops everything. The first reason stands.
    pub fn fail(&self, why: impl Into<String>) {
        let why = why.into();
        let mut state = self.0.state.lock();
        if state.failure.is_none() {
            tracing::error!("{why}");
            state.failure = Some(why);
        }
        drop(state);
        self.0.stop.cancel();
    }

    /// Why everything was stopped; None when it was asked for, or goes on.
    pub fn failure(&self) -> Option<String> {
        self.0.state.lock().failure.clone()
    }

    /// The groups that have tasks or had restarts, by name.
    pub fn health(&self) -> Vec<Health> {
        let state = self.0.state.lock();
        let fresh = |group| Health {
            group,
            fault: Ok(()),
            degraded: Vec::new(),
            restarts: state.restarts.get(group).copied().unwrap_or(0),
        };
        let mut groups: BTreeMap<&'static str, Health> =
            state.restarts.keys().map(|g| (*g, fresh(*g))).collect();
        for entry in state.running.values() {
            let health = groups
                .entry(entry.group)
                .or_insert_with(|| fresh(entry.group));
            match &entry.fault {
                None => {}
                Some(e) if entry.key.is_empty() => health.fault = Err(e.clone()),
                Some(e) => health.degraded.push(format!("{}: {e}", entry.key)),
            }
        }
        groups.into_values().collect()
    }

    /// Are all groups well whose names start so? A node's lease asks for `kubelet/`.
    ///
    /// # Errors
    /// What is not well, and why.
    pub fn well(&self, prefix: &str) -> Result<(), String> {
        let faults: Vec<String> = self
            .health()
            .into_iter()
            .filter(|h| h.group.starts_with(prefix))
            .filter_map(|h| h.fault.err().map(|e| format!("{}: {e}", h.group)))
            .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("; "))
        }
    }

    /// The groups in the Prometheus text form.
    pub fn metrics(&self) -> String {
        let health = self.health();
        let mut out = String::from(
            "# HELP skiff_task_restarts_total Restarts of background tasks after a panic or a failure.\n\
             # TYPE skiff_task_restarts_total counter\n",
        );
        for h in &health {
            let _ = writeln!(
                out,
                "skiff_task_restarts_total{{task=\"{}\"}} {}",
                h.group, h.restarts
            );
        }
        out.push_str("# HELP skiff_task_up Whether the lasting task of the group is well.\n# TYPE skiff_task_up gauge\n");
        for h in &health {
            let _ = writeln!(
                out,
                "skiff_task_up{{task=\"{}\"}} {}",
                h.group,
                u8::from(h.fault.is_ok())
            );
        }
        out
    }

    /// Resolves when every task has ended; call it after the stop.
    pub async fn ended(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn restarting<F, Fut>(&self, group: &'static str, key: String, mut make: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let id = self.enter(group, key.clone());
        let this = self.clone();
        let task = async move {
            let mut backoff = Backoff::default();
            loop {
                let begun = Instant::now();
                // `make` is called inside, so that its panic is caught too. On the heap: a large run would be moved
                // through every frame of the spawning thread's stack.
                let run = AssertUnwindSafe(Box::pin(async { make().await })).catch_unwind();
                let outcome = this.watched(id, run).await;
                let fault = match outcome {
                    Ok(Outcome::Done) => break,
                    Ok(Outcome::Fault(e)) => e,
                    Err(panic) => format!("it panicked: {}", panic_text(panic.as_ref())),
                };
                if this.0.stop.is_cancelled() {
                    break;
                }
                let pause = backoff.next(begun.elapsed());
                tracing::error!(task = group, key, restart_in = ?pause, "a background task failed: {fault}");
                this.faulty(id, group, fault);
                tokio::time::sleep(pause).await;
            }
        };
        let this = self.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = this.0.stop.cancelled() => {}
                () = task => {}
            }
            this.leave(id);
        });
    }

    /// Waits for a run; one that lasts clears the fault of the one before.
    async fn watched<T>(&self, id: u64, run: impl Future<Output = T>) -> T {
        tokio::pin!(run);
        let faulty = |s: &State| s.running.get(&id).is_some_and(|e| e.fault.is_some());
        if faulty(&self.0.state.lock()) {
            tokio::select! {
                out = &mut run => return out,
                () = tokio::time::sleep(SETTLED) => {}
            }
            if let Some(entry) = self.0.state.lock().running.get_mut(&id) {
                entry.fault = None;
            }
        }
        run.await
    }

    fn essential_ended(
        &self,
        id: u64,
        group: &'static str,
        ended: Result<Result<(), String>, Box<dyn Any + Send>>,
    ) {
        let stopping = self.0.stop.is_cancelled();
        let why = match ended {
            Ok(Ok(())) if stopping => None,
            Ok(Ok(())) => Some(format!("{group} ended although nobody asked it to")),
            Ok(Err(e)) if e.starts_with(group) => Some(e),
            Ok(Err(e)) => Some(format!("{group}: {e}")),
            Err(panic) => Some(format!("{group} panicked: {}", panic_text(panic.as_ref()))),
        };
        match why {
            None => self.leave(id),
            Some(why) => {
                if let Some(entry) = self.0.state.lock().running.get_mut(&id) {
                    entry.fault = Some(why.clone());
                }
                self.fail(why);
            }
        }
    }

    fn enter(&self, group: &'static str, key: String) -> u64 {
        let mut state = self.0.state.lock();
        let id = state.next;
        state.next += 1;
        state.running.insert(
            id,
            Entry {
                group,
                key,
                fault: None,
            },
        );
        id
    }

    fn leave(&self, id: u64) {
        self.0.state.lock().running.remove(&id);
    }

    fn faulty(&self, id: u64, group: &'static str, fault: String) {
        let mut state = self.0.state.lock();
        *state.restarts.entry(group).or_default() += 1;
        if let Some(entry) = state.running.get_mut(&id) {
            entry.fault = Some(fault);
        }
    }
}

/// Runs one piece of work of a loop that has to go on; its panic becomes an error.
///
/// # Errors
/// What the panic said.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .map_err(|panic| panic_text(panic.as_ref()).to_string())
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests;
