//! The one place where controllers touch the world: it feeds queues from caches, runs workers, executes actions and
//! remembers what was asked for but is not yet seen (upstream's expectations). Decides nothing about objects.

use crate::Config;
use crate::action::{Action, execute, note, text};
use crate::model::controller_of;
use futures::FutureExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use parking_lot::Mutex;
use skiff_client::cache::Kind;
use skiff_client::{Cache, Event, Informers, ObjectKey, Queue, Recorder};
use skiff_supervise::{Supervisor, panic_text};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What every controller gets. Cheap to clone.
#[derive(Clone)]
pub struct Shell {
    /// Shared caches.
    pub informers: Informers,
    /// Settings.
    pub config: Arc<Config>,
    stop: CancellationToken,
}

impl Shell {
    /// A shell over shared caches.
    pub fn new(informers: Informers, config: Config, stop: CancellationToken) -> Self {
        Self {
            informers,
            config: Arc::new(config),
            stop,
        }
    }

    /// Ends when the shell does.
    pub fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The API.
    pub fn client(&self) -> &Client {
        self.informers.client()
    }

    /// An event recorder under a controller's upstream name.
    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client().clone(), component, "")
    }

    /// Puts the keys that `map` gives for each change into the queue. An object that makes `map` panic is told and
    /// passed over: the others still come.
    pub fn watch<K: Kind>(
        &self,
        cache: &Cache<K>,
        queue: &Queue<ObjectKey>,
        map: impl Fn(&K, Option<&K>) -> Vec<ObjectKey> + Send + 'static,
    ) {
        let queue = queue.clone();
        let supervisor = self.informers.supervisor().clone();
        self.follow(cache, move |event| {
            let keys = |new: &K, old: Option<&K>| {
                std::panic::catch_unwind(AssertUnwindSafe(|| map(new, old))).unwrap_or_else(|p| {
                    supervisor.note(GROUP, &ObjectKey::of(new).to_string(), panic_text(&*p));
                    Vec::new()
                })
            };
            let keys = match &event {
                Event::Synced => Vec::new(),
                Event::Applied { new, old } => keys(new, old.as_deref()),
                Event::Deleted(o) => keys(o, None),
            };
            for key in keys {
                queue.add(key);
            }
        });
    }

    /// Calls `each` for what is in a cache and for every change after that, until the shell ends.
    pub fn follow<K: Kind>(
        &self,
        cache: &Cache<K>,
        mut each: impl FnMut(Event<K>) + Send + 'static,
    ) {
        let mut events = cache.subscribe();
        let stop = self.stop.clone();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    e = events.recv() => e,
                };
                match event {
                    None => return,
                    Some(e) => each(e),
                }
            }
        });
    }

    /// Runs workers that sync keys until the shell ends. `ready` comes first (caches have synced). A sync that fails or
    /// panics comes back with a growing delay.
    pub fn work<R, S, F>(&self, name: &'static str, queue: Queue<ObjectKey>, ready: R, sync: S)
    where
        R: Future<Output = ()> + Send + 'static,
        S: Fn(ObjectKey) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), kube::Error>> + Send,
    {
        let workers = self.config.workers.max(1);
        let supervisor = self.informers.supervisor().clone();
        let ready = ready.shared();
        self.informers
            .supervisor()
            .spawn_transient(GROUP, name, move || {
                let mut running = tokio::task::JoinSet::new();
                for _ in 0..workers {
                    let (ready, queue, sync) = (ready.clone(), queue.clone(), sync.clone());
                    let supervisor = supervisor.clone();
                    running.spawn(async move {
                        ready.await;
                        while let Some(key) = queue.get().await {
                            worked(&supervisor, name, &queue, &key, sync.clone()).await;
                            queue.done(&key);
                        }
                    });
                }
                async move {
                    match running.join_next().await {
                        Some(Err(e)) => Err(e.to_string()),
                        _ => Err("a worker ended".to_string()),
                    }
                }
            });
    }

    /// Does actions in order, the creations in batches that double while they succeed (upstream's slowStartBatch), so
    /// that a quota that refuses one does not see hundreds. Stops at the first failure.
    ///
    /// # Errors
    /// The first failure.
    pub async fn run_actions<K: kube::Resource<DynamicType = ()>>(
        &self,
        controller: &Controller,
        key: &ObjectKey,
        about: &K,
        actions: Vec<Action>,
    ) -> Result<(), kube::Error> {
        let client = self.client();
        let mut batch = 1;
        let mut at = 0;
        while at < actions.len() {
            let creates = actions[at..]
                .iter()
                .take(batch)
                .take_while(|a| matches!(a, Action::Create { .. }))
                .count();
            if creates > 1 {
                let group = &actions[at..at + creates];
                for a in group {
                    controller.pending.expect(key, a);
                }
                let done =
                    futures::future::join_all(group.iter().map(|a| execute(client, a))).await;
                let mut first = None;
                for (a, result) in group.iter().zip(done) {
                    if let Err(e) = self.outcome(controller, key, about, a, result) {
                        first = first.or(Some(e));
                    }
                }
                if let Some(e) = first {
                    return Err(e);
                }
                at += creates;
                batch *= 2;
                continue;
            }
            let action = &actions[at];
            note(&controller.recorder, about, action);
            if let Action::After(delay) = action {
                controller.queue.add_after(key.clone(), *delay);
            } else {
                controller.pending.expect(key, action);
                let result = execute(client, action).await;
                self.outcome(controller, key, about, action, result)?;
                if matches!(action, Action::Create { .. }) {
                    batch *= 2;
                }
            }
            at += 1;
        }
        Ok(())
    }

    fn outcome<K: kube::Resource<DynamicType = ()>>(
        &self,
        controller: &Controller,
        key: &ObjectKey,
        about: &K,
        action: &Action,
        result: Result<Option<crate::action::Answer>, kube::Error>,
    ) -> Result<(), kube::Error> {
        let Err(e) = result else {
            if let (Action::Create { kind, object, .. }, true) = (action, controller.tells_of_pods)
                && kind.plural == "pods"
            {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let event = Action::Event {
                    warning: false,
                    reason: "SuccessfulCreate",
                    message: format!("Created pod: {name}"),
                };
                note(&controller.recorder, about, &event);
            }
            if let (Action::Delete { kind, name, .. }, true) = (action, controller.tells_of_pods)
                && kind.plural == "pods"
            {
                let event = Action::Event {
                    warning: false,
                    reason: "SuccessfulDelete",
                    message: format!("Deleted pod: {name}"),
                };
                note(&controller.recorder, about, &event);
            }
            return Ok(());
        };
        controller.pending.failed(key, action);
        if let (Action::Create { kind, .. }, true) = (action, controller.tells_of_pods)
            && kind.plural == "pods"
        {
            let event = Action::Event {
                warning: true,
                reason: "FailedCreate",
                message: format!("Error creating: {}", text(&e)),
            };
            note(&controller.recorder, about, &event);
        }
        Err(e)
    }
}

/// The name of all controllers' background work.
const GROUP: &str = "controllers";

async fn worked<S, F>(
    supervisor: &Supervisor,
    name: &'static str,
    queue: &Queue<ObjectKey>,
    key: &ObjectKey,
    sync: S,
) where
    S: Fn(ObjectKey) -> F,
    F: Future<Output = Result<(), kube::Error>>,
{
    // `sync` is called inside, so that a panic before its first await is caught too.
    match skiff_supervise::caught(async { sync(key.clone()).await }).await {
        Ok(Ok(())) => queue.forget(key),
        Ok(Err(e)) => {
            // Conflicts are the way of optimistic concurrency, not worth a word.
            tracing::debug!(controller = name, %key, error = %text(&e), "sync failed; trying again");
            queue.add_rate_limited(key.clone());
        }
        Err(panic) => {
            supervisor.note(GROUP, &format!("{name} {key}"), &panic);
            queue.add_rate_limited(key.clone());
        }
    }
}

/// An object that is there already, or a namespace that is going away or gone, is no failure of who wanted to make it.
/// Everything else is: a quota or a missing right refuses with 403 too.
///
/// # Errors
/// Every other error.
pub fn unless_there(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(s)) if is_there(&s) || is_going(&s) => Ok(()),
        other => other,
    }
}

fn is_there(s: &kube::core::Status) -> bool {
    s.code == 409 && s.reason == "AlreadyExists"
}

fn is_going(s: &kube::core::Status) -> bool {
    s.details.as_ref().is_some_and(|d| {
        s.code == 404 && d.kind == "namespaces"
            || d.causes.iter().any(|c| c.reason == "NamespaceTerminating")
    })
}

/// One running controller: its queue, its events and what it has asked for.
#[derive(Clone)]
pub struct Controller {
    /// Keys to sync.
    pub queue: Queue<ObjectKey>,
    /// Events under its name.
    pub recorder: Recorder,
    /// What it has asked for and not yet seen.
    pub pending: Arc<Pending>,
    /// Creations and deletions of pods are told as events (SuccessfulCreate...).
    pub tells_of_pods: bool,
}

impl Controller {
    /// A controller under its upstream event source name.
    pub fn new(shell: &Shell, component: &str, tells_of_pods: bool) -> Self {
        Self {
            queue: Queue::new(),
            recorder: shell.recorder(component),
            pending: Arc::default(),
            tells_of_pods,
        }
    }
}

/// How long something that was asked for may stay unseen before it is forgotten (upstream: 5 minutes).
const FORGET: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
struct Waiting {
    /// Names of created pods that no cache has shown.
    creates: HashMap<String, Instant>,
    /// Uids of deleted pods that a cache still shows as not deleted.
    deletes: HashMap<String, Instant>,
}

/// Pods that were created or deleted but that the cache does not yet show so. Names are chosen by us, so that each is
/// known before the API answers.
#[derive(Debug, Default)]
pub struct Pending {
    by_owner: Mutex<BTreeMap<ObjectKey, Waiting>>,
}

impl Pending {
    pub(crate) fn expect(&self, key: &ObjectKey, action: &Action) {
        let now = Instant::now();
        match action {
            Action::Create { kind, object, .. } if kind.plural == "pods" => {
                if let Some(name) = object["metadata"]["name"].as_str() {
                    let mut all = self.by_owner.lock();
                    all.entry(key.clone())
                        .or_default()
                        .creates
                        .insert(name.to_string(), now);
                }
            }
            Action::Delete { kind, uid, .. } if kind.plural == "pods" => {
                let mut all = self.by_owner.lock();
                all.entry(key.clone())
                    .or_default()
                    .deletes
                    .insert(uid.clone(), now);
            }
            _ => {}
        }
    }

    pub(crate) fn failed(&self, key: &ObjectKey, action: &Action) {
        let mut all = self.by_owner.lock();
        let Some(w) = all.get_mut(key) else { return };
        match action {
            Action::Create { object, .. } => {
                if let Some(name) = object["metadata"]["name"].as_str() {
                    w.creates.remove(name);
                }
            }
            Action::Delete { uid, .. } => {
                w.deletes.remove(uid);
            }
            _ => {}
        }
    }

    /// Has the cache caught up? `pods` are those it shows: (name, uid, being deleted). Created pods count as seen by
    /// name; a pod that was created and is gone again is told by [`Pending::seen`].
    pub fn caught_up<'a>(
        &self,
        key: &ObjectKey,
        pods: impl Iterator<Item = (&'a str, &'a str, bool)>,
    ) -> bool {
        let mut all = self.by_owner.lock();
        let Some(w) = all.get_mut(key) else {
            return true;
        };
        let mut still = std::collections::HashSet::new();
        for (name, uid, deleting) in pods {
            w.creates.remove(name);
            if !deleting && w.deletes.contains_key(uid) {
                still.insert(uid.to_string());
            }
        }
        w.deletes
            .retain(|uid, since| still.contains(uid) && since.elapsed() < FORGET);
        w.creates.retain(|_, since| since.elapsed() < FORGET);
        if w.creates.is_empty() && w.deletes.is_empty() {
            all.remove(key);
            return true;
        }
        false
    }

    /// [`Pending::caught_up`] over the pods of a cache that this owner (by uid) manages.
    pub fn caught_up_with(&self, key: &ObjectKey, owner_uid: &str, pods: &[Arc<Pod>]) -> bool {
        let mine = pods
            .iter()
            .map(|p| &p.metadata)
            .filter(|m| controller_of(m).is_some_and(|o| o.uid == owner_uid));
        self.caught_up(
            key,
            mine.map(|m| {
                (
                    m.name.as_deref().unwrap_or_default(),
                    m.uid.as_deref().unwrap_or_default(),
                    m.deletion_timestamp.is_some(),
                )
            }),
        )
    }

    /// A pod of this owner was seen by the watch (perhaps only as it went).
    pub fn seen(&self, key: &ObjectKey, name: &str) {
        if let Some(w) = self.by_owner.lock().get_mut(key) {
            w.creates.remove(name);
        }
    }

    /// The owner is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.by_owner.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::PODS;
    use serde_json::json;

    #[test]
    fn only_what_is_there_or_going_is_no_failure() {
        let refused = |code: u16, reason: &str, kind: &str, cause: &str| {
            let status: kube::core::Status = serde_json::from_value(json!({
                "status": "Failure", "code": code, "reason": reason, "message": "m",
                "details": {"kind": kind, "causes": [{"reason": cause}]}}))
            .expect("a status");
            unless_there(Err(kube::Error::Api(Box::new(status)))).is_err()
        };
        assert!(!refused(409, "AlreadyExists", "persistentvolumeclaims", ""));
        assert!(!refused(
            403,
            "Forbidden",
            "configmaps",
            "NamespaceTerminating"
        ));
        assert!(!refused(404, "NotFound", "namespaces", ""));
        assert!(
            refused(403, "Forbidden", "persistentvolumeclaims", ""),
            "a quota"
        );
        assert!(refused(404, "NotFound", "persistentvolumeclaims", ""));
        assert!(refused(409, "Conflict", "persistentvolumeclaims", ""));
    }

    fn create(name: &str) -> Action {
        Action::Create {
            kind: PODS,
            namespace: "ns".into(),
            object: json!({"metadata": {"name": name}}),
        }
    }

    #[test]
    fn a_created_pod_is_awaited_until_the_cache_shows_it() {
        let p = Pending::default();
        let key = ObjectKey::new("ns", "rs");
        p.expect(&key, &create("a"));
        assert!(!p.caught_up(&key, std::iter::empty()));
        assert!(p.caught_up(&key, [("a", "1", false)].into_iter()));
        p.expect(&key, &create("b"));
        p.failed(&key, &create("b"));
        assert!(
            p.caught_up(&key, std::iter::empty()),
            "a refused creation is not awaited"
        );
        p.expect(&key, &create("c"));
        p.seen(&key, "c");
        assert!(p.caught_up(&key, std::iter::empty()), "it came and went");
    }

    #[test]
    fn a_deleted_pod_is_awaited_until_the_cache_shows_it_going() {
        let p = Pending::default();
        let key = ObjectKey::new("ns", "rs");
        let delete = Action::Delete {
            kind: PODS,
            namespace: "ns".into(),
            name: "a".into(),
            uid: "1".into(),
            version: String::new(),
            grace_seconds: None,
        };
        p.expect(&key, &delete);
        assert!(!p.caught_up(&key, [("a", "1", false)].into_iter()));
        assert!(p.caught_up(&key, [("a", "1", true)].into_iter()));
    }
}
