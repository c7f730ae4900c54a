//! One cache for each kind and scope, shared by every component of a process, so that a cluster in one process
//! decodes each object once. Owns the map from type to cache only.

use crate::cache::{Cache, Kind, Scope};
use kube::Client;
use parking_lot::Mutex;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

type Slots = HashMap<(TypeId, Scope), Box<dyn Any + Send + Sync>>;

/// Hands out shared caches. Cheap to clone.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    stop: CancellationToken,
    slots: Arc<Mutex<Slots>>,
}

impl Informers {
    /// Caches that are fed through this client until the token ends them.
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        Self {
            client,
            stop,
            slots: Arc::default(),
        }
    }

    /// The client below.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The cache of all objects of a kind; started at the first call.
    pub fn cache<K: Kind>(&self) -> Cache<K> {
        self.scoped(Scope::default())
    }

    /// The cache of the objects that a scope selects; started at the first call with that scope.
    pub fn scoped<K: Kind>(&self, scope: Scope) -> Cache<K> {
        let mut slots = self.slots.lock();
        let slot = slots
            .entry((TypeId::of::<K>(), scope.clone()))
            .or_insert_with(|| {
                Box::new(Cache::<K>::start(
                    self.client.clone(),
                    scope,
                    self.stop.clone(),
                ))
            });
        match slot.downcast_ref::<Cache<K>>() {
            Some(cache) => cache.clone(),
            // The key holds the type, so this cannot be; a fresh cache is right in any case.
            None => Cache::start(self.client.clone(), Scope::default(), self.stop.clone()),
        }
    }
}
