//! A cache of one kind, kept current by list and watch (client-go's reflector and informer). Owns the list+watch
//! loop and the fan-out of changes; must not decide anything about the objects.

use crate::lenient::{self, Broken, Event as Observed, Item};
use futures::StreamExt;
use kube::Client;
use kube::core::params::{ListParams, WatchParams};
use kube::core::request::Request;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use skiff_supervise::Supervisor;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// metadata.name
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
    /// The key of an object.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One change of the cache, in the order of the watch.
#[derive(Debug)]
pub enum Event<K> {
    /// The object is there; `old` is what the cache held before.
    Applied {
        /// The object now.
        new: Arc<K>,
        /// The object before, None when it is new to the cache.
        old: Option<Arc<K>>,
    },
    /// The object is gone; this was its last known state.
    Deleted(Arc<K>),
    /// Everything that was there when the subscription began has been delivered.
    Synced,
}

impl<K> Clone for Event<K> {
    fn clone(&self) -> Self {
        match self {
            Event::Applied { new, old } => Event::Applied {
                new: new.clone(),
                old: old.clone(),
            },
            Event::Deleted(o) => Event::Deleted(o.clone()),
            Event::Synced => Event::Synced,
        }
    }
}

/// What a cache watches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Only this namespace; None for all.
    pub namespace: Option<String>,
    /// Label selector.
    pub labels: Option<String>,
    /// Field selector.
    pub fields: Option<String>,
}

struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    /// What is there and cannot be read in its present state. Its last state that could be read stays among the objects:
    /// somebody who was told that it is gone would delete what belongs to it.
    broken: BTreeMap<ObjectKey, Broken>,
    subscribers: Vec<mpsc::UnboundedSender<Event<K>>>,
    synced: bool,
}

impl<K> State<K> {
    fn tell(&mut self, event: &Event<K>) {
        self.subscribers.retain(|s| s.send(event.clone()).is_ok());
    }
}

struct Inner<K> {
    state: RwLock<State<K>>,
    synced: watch::Sender<bool>,
}

/// A shared, read-only view of one kind. Cheap to clone.
pub struct Cache<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

/// Bounds that every cached kind meets.
pub trait Kind:
    kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static
{
}
impl<K> Kind for K where
    K: kube::Resource<DynamicType = ()>
        + DeserializeOwned
        + Clone
        + fmt::Debug
        + Send
        + Sync
        + 'static
{
}

impl<K: Kind> Cache<K> {
    /// Starts the list+watch loop; it ends with the token, or with the supervisor's stop.
    pub fn start(
        client: Client,
        scope: Scope,
        stop: CancellationToken,
        supervisor: &Supervisor,
    ) -> Self {
        let cache = Self::detached();
        let this = cache.clone();
        supervisor.spawn_transient("cache", K::kind(&()), move || {
            let (this, client, scope, stop) =
                (this.clone(), client.clone(), scope.clone(), stop.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = this.run(client, scope) => {}
                }
                Ok::<(), std::convert::Infallible>(())
            }
        });
        cache
    }

    /// A cache that nothing feeds but [`Cache::apply`], [`Cache::remove`] and [`Cache::mark_synced`]: for tests of
    /// pure code and for components fed by other means.
    pub fn detached() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: RwLock::new(State {
                    objects: BTreeMap::new(),
                    broken: BTreeMap::new(),
                    subscribers: Vec::new(),
                    synced: false,
                }),
                synced: watch::Sender::new(false),
            }),
        }
    }

    /// Resolves once the first list is in the cache.
    pub async fn synced(&self) {
        let mut rx = self.inner.synced.subscribe();
        let _ = rx.wait_for(|s| *s).await;
    }

    /// Has the first list arrived?
    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// The object, if the cache has it.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.inner
            .state
            .read()
            .objects
            .get(&ObjectKey::new(namespace, name))
            .cloned()
    }

    /// Every object, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.state.read().objects.values().cloned().collect()
    }

    /// Every object of a namespace, by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.inner.state.read();
        state
            .objects
            .range(ObjectKey::new(namespace, "")..)
            .take_while(|(k, _)| k.namespace == namespace)
            .map(|(_, v)| v.clone())
            .collect()
    }

    /// Objects that `keep` accepts, without cloning the rest.
    pub fn filter(&self, mut keep: impl FnMut(&K) -> bool) -> Vec<Arc<K>> {
        self.inner
            .state
            .read()
            .objects
            .values()
            .filter(|o| keep(o))
            .cloned()
            .collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.inner.state.read().objects.len()
    }

    /// Is it empty?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is there and cannot be read: such an object is missing here, or shown as it last was. Whoever concludes from
    /// an object's absence that it is gone must look here first.
    pub fn broken(&self) -> Vec<Broken> {
        self.inner.state.read().broken.values().cloned().collect()
    }

    /// Is the object there, read or not?
    pub fn knows(&self, namespace: &str, name: &str) -> bool {
        let key = ObjectKey::new(namespace, name);
        let state = self.inner.state.read();
        state.objects.contains_key(&key) || state.broken.contains_key(&key)
    }

    /// Every object that is there now (as `Applied` with no old), then `Synced`, then changes in order. The channel is
    /// unbounded: a subscriber must keep up (put keys into a [`crate::Queue`]) or drop the receiver.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Event<K>> {
        let (tx, rx) = mpsc::unbounded_channel();
        let mut state = self.inner.state.write();
        for new in state.objects.values() {
            let _ = tx.send(Event::Applied {
                new: new.clone(),
                old: None,
            });
        }
        if state.synced {
            let _ = tx.send(Event::Synced);
        }
        state.subscribers.push(tx);
        rx
    }

    /// Puts an object in. Events carry resourceVersions that only grow, so an unchanged one is no event.
    pub fn apply(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let key = ObjectKey::of(&object);
        let new = Arc::new(object);
        let mut state = self.inner.state.write();
        state.broken.remove(&key);
        let old = state.objects.insert(key, new.clone());
        if let (Some(old), Some(rv)) = (&old, &new.meta().resource_version)
            && old.meta().resource_version.as_ref() == Some(rv)
        {
            return;
        }
        state.tell(&Event::Applied { new, old });
    }

    /// Takes an object out; `last` is its final state where the watch gave one.
    pub fn remove(&self, key: &ObjectKey, last: Option<K>) {
        let mut state = self.inner.state.write();
        state.broken.remove(key);
        let Some(old) = state.objects.remove(key) else {
            return;
        };
        let last = last.map_or(old, Arc::new);
        state.tell(&Event::Deleted(last));
    }

    /// The first list is complete.
    pub fn mark_synced(&self) {
        let mut state = self.inner.state.write();
        if !state.synced {
            state.synced = true;
            state.tell(&Event::Synced);
            self.inner.synced.send_replace(true);
        }
    }

    /// Notes an object that is there and cannot be read, and says so once for each of its versions, without a word of what
    /// is in it.
    pub fn apply_broken(&self, broken: Broken) {
        let mut state = self.inner.state.write();
        if state.broken.get(&broken.key) == Some(&broken) {
            return;
        }
        let another = state.objects.get(&broken.key).is_some_and(|o| {
            let uid = o.meta().uid.as_deref().unwrap_or_default();
            !broken.uid.is_empty() && broken.uid != uid
        });
        if another && let Some(gone) = state.objects.remove(&broken.key) {
            // What was known by this name is gone: this is a new object.
            state.tell(&Event::Deleted(gone));
        }
        let kept = state.objects.contains_key(&broken.key);
        tracing::error!(
            kind = %K::kind(&()),
            namespace = broken.key.namespace,
            name = broken.key.name,
            resource_version = broken.version,
            why = broken.why,
            last_good_state_stays = kept,
            "an object cannot be read and is left out"
        );
        state.broken.insert(broken.key.clone(), broken);
    }

    fn apply_item(&self, item: Item<K>) {
        match item {
            Ok(object) => self.apply(object),
            Err(broken) => self.apply_broken(broken),
        }
    }

    fn replace(&self, items: Vec<Item<K>>) {
        let fresh: std::collections::BTreeSet<ObjectKey> = items
            .iter()
            .map(|i| i.as_ref().map_or_else(|b| b.key.clone(), ObjectKey::of))
            .collect();
        let gone: Vec<ObjectKey> = {
            let state = self.inner.state.read();
            state
                .objects
                .keys()
                .chain(state.broken.keys())
                .filter(|k| !fresh.contains(*k))
                .cloned()
                .collect()
        };
        for key in gone {
            self.remove(&key, None);
        }
        for item in items {
            self.apply_item(item);
        }
        self.mark_synced();
    }

    async fn run(&self, client: Client, scope: Scope) {
        let mut failures = 0u32;
        loop {
            match self.list_and_watch(&client, &scope, &mut failures).await {
                Ok(()) => {}
                Err(e) => {
                    failures = (failures + 1).min(8);
                    let wait = backoff(failures, rand::random::<f64>());
                    tracing::debug!(kind = %K::kind(&()), error = %e, ?wait, "list and watch failed; trying again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn list_and_watch(
        &self,
        client: &Client,
        scope: &Scope,
        failures: &mut u32,
    ) -> Result<(), kube::Error> {
        let url = K::url_path(&(), scope.namespace.as_deref());
        let list = ListParams {
            label_selector: scope.labels.clone(),
            field_selector: scope.fields.clone(),
            ..ListParams::default()
        };
        let request = Request::new(&url)
            .list(&list)
            .map_err(kube::Error::BuildRequest)?;
        let listed = lenient::list::<K>(client, request).await?;
        let mut version = listed.version;
        self.replace(listed.items);
        *failures = 0;
        loop {
            let params = WatchParams {
                label_selector: scope.labels.clone(),
                field_selector: scope.fields.clone(),
                bookmarks: true,
                ..WatchParams::default()
            };
            let request = Request::new(&url)
                .watch(&params, &version)
                .map_err(kube::Error::BuildRequest)?;
            let stream = lenient::watch::<K>(client, request).await?;
            let mut stream = std::pin::pin!(stream);
            let mut seen = false;
            while let Some(event) = stream.next().await {
                let event = event?;
                seen = true;
                let seen_version = match event {
                    Observed::Applied(item) => {
                        let v = version_of(&item);
                        self.apply_item(item);
                        v
                    }
                    Observed::Deleted(item) => {
                        let v = version_of(&item);
                        match item {
                            Ok(last) => self.remove(&ObjectKey::of(&last), Some(last)),
                            Err(broken) => self.remove(&broken.key, None),
                        }
                        v
                    }
                    Observed::Bookmark(v) => Some(v),
                    // 410: the version is too old to continue from: list again at once.
                    Observed::Error(status) if status.code == 410 => return Ok(()),
                    Observed::Error(status) => return Err(kube::Error::Api(status)),
                };
                version = seen_version.filter(|v| !v.is_empty()).unwrap_or(version);
            }
            if !seen {
                // An end with nothing said: do not spin on a server that is going away.
                tokio::time::sleep(backoff(1, rand::random::<f64>())).await;
            }
        }
    }
}

fn version_of<K: kube::Resource>(item: &Item<K>) -> Option<String> {
    match item {
        Ok(o) => o.meta().resource_version.clone(),
        Err(broken) => Some(broken.version.clone()),
    }
}

/// 0.2 s doubled by each failure up to 30 s, with up to a half of jitter (`jitter` is in 0..1).
fn backoff(failures: u32, jitter: f64) -> Duration {
    let base = 0.1 * f64::from(1u32 << failures.min(9));
    Duration::from_secs_f64((base * (1.0 + jitter / 2.0)).min(30.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn map(name: &str, version: &str) -> ConfigMap {
        let mut m = ConfigMap::default();
        m.metadata.namespace = Some("ns".into());
        m.metadata.name = Some(name.into());
        m.metadata.resource_version = Some(version.into());
        m
    }

    #[test]
    fn a_subscriber_sees_what_is_there_then_synced_then_changes() {
        let cache = Cache::<ConfigMap>::detached();
        cache.apply(map("a", "1"));
        cache.mark_synced();
        let mut rx = cache.subscribe();
        cache.apply(map("a", "2"));
        cache.remove(&ObjectKey::new("ns", "a"), None);
        assert!(matches!(
            rx.try_recv(),
            Ok(Event::Applied { old: None, .. })
        ));
        assert!(matches!(rx.try_recv(), Ok(Event::Synced)));
        assert!(matches!(
            rx.try_recv(),
            Ok(Event::Applied { old: Some(_), .. })
        ));
        assert!(matches!(rx.try_recv(), Ok(Event::Deleted(_))));
        assert!(rx.try_recv().is_err());
    }

    #[test]
    fn a_new_list_removes_what_is_no_longer_in_it() {
        let cache = Cache::<ConfigMap>::detached();
        cache.replace(vec![Ok(map("a", "1")), Ok(map("b", "1"))]);
        let mut rx = cache.subscribe();
        while rx.try_recv().is_ok() {}
        cache.replace(vec![Ok(map("b", "1")), Ok(map("c", "4"))]);
        let mut seen = Vec::new();
        while let Ok(e) = rx.try_recv() {
            seen.push(match e {
                Event::Applied { new, .. } => format!("+{}", ObjectKey::of(&*new)),
                Event::Deleted(o) => format!("-{}", ObjectKey::of(&*o)),
                Event::Synced => "synced".into(),
            });
        }
        assert_eq!(seen, ["-ns/a", "+ns/c"]);
    }

    fn broken(name: &str, version: &str) -> Broken {
        Broken {
            key: ObjectKey::new("ns", name),
            version: version.into(),
            uid: String::new(),
            why: "a value is not of its field's type, at line 1 column 7".into(),
        }
    }

    #[test]
    fn an_object_that_becomes_unreadable_stays_as_it_was_until_it_is_gone() {
        let cache = Cache::<ConfigMap>::detached();
        cache.replace(vec![Ok(map("a", "1")), Err(broken("b", "1"))]);
        let mut rx = cache.subscribe();
        while rx.try_recv().is_ok() {}
        assert!(cache.get("ns", "b").is_none() && cache.knows("ns", "b"));
        // Known, then broken by a watch and by a list: nobody is told that it is gone.
        cache.apply_item(Err(broken("a", "2")));
        cache.replace(vec![Err(broken("a", "2")), Err(broken("b", "1"))]);
        assert!(rx.try_recv().is_err());
        assert!(cache.get("ns", "a").is_some());
        assert_eq!(cache.broken().len(), 2);
        // Another object of that name is another object.
        let other = Broken {
            uid: "other".into(),
            ..broken("a", "2")
        };
        cache.apply_item(Err(other));
        assert!(matches!(rx.try_recv(), Ok(Event::Deleted(_))));
        assert!(cache.get("ns", "a").is_none() && cache.knows("ns", "a"));
        cache.apply_item(Ok(map("a", "2")));
        assert!(matches!(rx.try_recv(), Ok(Event::Applied { .. })));
        cache.apply_item(Err(broken("a", "2")));
        // It can be read again.
        cache.apply_item(Ok(map("b", "3")));
        assert!(matches!(
            rx.try_recv(),
            Ok(Event::Applied { old: None, .. })
        ));
        assert_eq!(cache.broken(), [broken("a", "2")]);
        // It is gone, and so is what was only known as broken.
        cache.apply_item(Err(broken("c", "4")));
        cache.replace(vec![Ok(map("b", "3"))]);
        assert!(matches!(rx.try_recv(), Ok(Event::Deleted(_))));
        assert!(rx.try_recv().is_err());
        assert!(cache.broken().is_empty() && !cache.knows("ns", "c"));
    }

    #[tokio::test]
    async fn one_unreadable_object_does_not_stop_a_cache() {
        const LIST: &str = r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[
            {"metadata":{"namespace":"ns","name":"a","resourceVersion":"1"}},
            {"metadata":{"namespace":"ns","name":"bad","resourceVersion":"2","labels":{"a":1}}},
            {"metadata":{"namespace":"ns","name":"b","resourceVersion":"3"}}]}"#;
        const WATCH: &str = concat!(
            r#"{"type":"MODIFIED","object":{"metadata":{"namespace":"ns","name":"a","resourceVersion":"6"},"data":["x"]}}"#,
            "\n",
            r#"{"type":"ADDED","object":{"metadata":{"namespace":"ns","name":"c","resourceVersion":"7"}}}"#,
            "\n"
        );
        let watches = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let service = tower::service_fn(move |r: http::Request<kube::client::Body>| {
            let watches = watches.clone();
            async move {
                let watch = r.uri().query().is_some_and(|q| q.contains("watch=true"));
                let body = if !watch {
                    LIST
                } else if watches.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                    assert!(
                        r.uri()
                            .query()
                            .is_some_and(|q| q.contains("resourceVersion=5"))
                    );
                    WATCH
                } else {
                    std::future::pending().await
                };
                let body = kube::client::Body::from(body.as_bytes().to_vec());
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            }
        });
        let stop = CancellationToken::new();
        let cache = Cache::<ConfigMap>::start(
            Client::new(service, "default"),
            Scope::default(),
            stop.clone(),
            &Supervisor::new(stop.clone()),
        );
        let mut rx = cache.subscribe();
        let mut seen = Vec::new();
        while let Some(e) = rx.recv().await {
            if let Event::Applied { new, .. } = e {
                seen.push(ObjectKey::of(&*new).name);
                if seen.last().is_some_and(|n| n == "c") {
                    break;
                }
            }
        }
        assert_eq!(seen, ["a", "b", "c"]);
        // What became unreadable is as it was.
        let a = cache.get("ns", "a").expect("a");
        assert_eq!(a.metadata.resource_version.as_deref(), Some("1"));
        let broken: Vec<String> = cache.broken().into_iter().map(|b| b.key.name).collect();
        assert_eq!(broken, ["a", "bad"]);
        stop.cancel();
    }

    #[test]
    fn backoff_grows_and_is_bounded() {
        assert!(backoff(1, 0.0) < backoff(3, 0.0));
        assert!(backoff(99, 1.0) <= Duration::from_secs(30));
    }
}
