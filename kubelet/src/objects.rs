//! ConfigMaps and Secrets that pods of this node use: each is watched alone, and only while a pod needs it (the
//! node's rights reach no further). Owns the watches and who is told of changes; knows nothing of what is done with
//! the objects.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use parking_lot::Mutex;
use skiff_client::cache::Kind;
use skiff_client::{Cache, Event, Scope};
use skiff_supervise::Supervisor;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long a first answer of the API is waited for.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Told when an object that a pod uses has changed.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

struct Watched<K> {
    cache: Cache<K>,
    stop: CancellationToken,
    users: Arc<Mutex<HashMap<String, Notify>>>,
}

struct Watches<K> {
    by_name: Mutex<HashMap<(String, String), Watched<K>>>,
}

impl<K: Kind> Watches<K> {
    fn new() -> Self {
        Self {
            by_name: Mutex::new(HashMap::new()),
        }
    }

    fn add(
        &self,
        objects: &Objects,
        uid: &str,
        namespace: &str,
        name: &str,
        notify: &Notify,
    ) -> Cache<K> {
        let mut all = self.by_name.lock();
        let watched = all
            .entry((namespace.to_string(), name.to_string()))
            .or_insert_with(|| {
                let stop = objects.stop.child_token();
                let scope = Scope {
                    namespace: Some(namespace.to_string()),
                    fields: Some(format!("metadata.name={name}")),
                    labels: None,
                };
                let cache = Cache::start(
                    objects.client.clone(),
                    scope,
                    stop.clone(),
                    &objects.supervisor,
                );
                let users: Arc<Mutex<HashMap<String, Notify>>> = Arc::default();
                let (heard, told, end) = (cache.clone(), users.clone(), stop.clone());
                let key = format!("{namespace}/{name}");
                objects
                    .supervisor
                    .spawn_transient("kubelet/objects", key, move || {
                        let run = tell(heard.subscribe(), told.clone(), end.clone());
                        async move {
                            run.await;
                            Ok::<_, std::convert::Infallible>(())
                        }
                    });
                Watched { cache, stop, users }
            });
        watched.users.lock().insert(uid.to_string(), notify.clone());
        watched.cache.clone()
    }

    fn keep(&self, uid: &str, namespace: &str, names: &BTreeSet<String>) {
        self.by_name.lock().retain(|(ns, name), watched| {
            let mut users = watched.users.lock();
            if users.contains_key(uid) && !(ns == namespace && names.contains(name)) {
                users.remove(uid);
            }
            let unused = users.is_empty();
            drop(users);
            if unused {
                watched.stop.cancel();
            }
            !unused
        });
    }
}

async fn tell<K>(
    mut events: mpsc::UnboundedReceiver<Event<K>>,
    users: Arc<Mutex<HashMap<String, Notify>>>,
    stop: CancellationToken,
) {
    let mut synced = false;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.recv() => event,
        };
        match event {
            None => return,
            Some(Event::Synced) => synced = true,
            // What is there at first is no change.
            Some(_) if !synced => {}
            Some(_) => {
                let users: Vec<Notify> = users.lock().values().cloned().collect();
                for notify in users {
                    notify();
                }
            }
        }
    }
}

/// All watches of single objects.
pub struct Objects {
    client: kube::Client,
    supervisor: Supervisor,
    stop: CancellationToken,
    config_maps: Watches<ConfigMap>,
    secrets: Watches<Secret>,
}

impl Objects {
    /// No watches yet.
    pub fn new(client: kube::Client, supervisor: Supervisor, stop: CancellationToken) -> Self {
        Self {
            client,
            supervisor,
            stop,
            config_maps: Watches::new(),
            secrets: Watches::new(),
        }
    }

    /// The ConfigMap (None: it does not exist), watched for this pod from now on.
    ///
    /// # Errors
    /// The API did not answer.
    pub async fn config_map(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
        notify: &Notify,
    ) -> Result<Option<Arc<ConfigMap>>, String> {
        let cache = self.config_maps.add(self, uid, namespace, name, notify);
        first(&cache, namespace, name, "configmap").await
    }

    /// The Secret (None: it does not exist), watched for this pod from now on.
    ///
    /// # Errors
    /// The API did not answer.
    pub async fn secret(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
        notify: &Notify,
    ) -> Result<Option<Arc<Secret>>, String> {
        let cache = self.secrets.add(self, uid, namespace, name, notify);
        first(&cache, namespace, name, "secret").await
    }

    /// The pod needs nothing any more.
    pub fn release(&self, uid: &str) {
        self.config_maps.keep(uid, "", &BTreeSet::new());
        self.secrets.keep(uid, "", &BTreeSet::new());
    }
}

async fn first<K: Kind>(
    cache: &Cache<K>,
    namespace: &str,
    name: &str,
    kind: &str,
) -> Result<Option<Arc<K>>, String> {
    if tokio::time::timeout(FIRST_ANSWER, cache.synced())
        .await
        .is_err()
    {
        return Err(format!(
            "failed to sync {kind} cache: timed out waiting for {kind} \"{namespace}/{name}\""
        ));
    }
    Ok(cache.get(namespace, name))
}
