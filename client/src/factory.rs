//! One cache for each kind and scope, shared by every component of a process, so that a cluster in one process
//! decodes each object once. Owns the map from type to cache only.

use crate::cache::{Cache, Kind, Scope};
use kube::Client;
use parking_lot::Mutex;
use skiff_supervise::Supervisor;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

type Slots = HashMap<(TypeId, Scope), Box<dyn Any + Send + Sync>>;

/// Hands out shared caches. Cheap to clone.
#[derive(Clone)]
pub struct Informers {
    /// What feeds the caches.
    reader: Client,
    client: Client,
    supervisor: Supervisor,
    slots: Arc<Mutex<Slots>>,
}

impl Informers {
    /// Caches that are fed through this client until the supervisor's stop.
    pub fn new(client: Client, supervisor: Supervisor) -> Self {
        Self {
            reader: client.clone(),
            client,
            supervisor,
            slots: Arc::default(),
        }
    }

    /// The same caches for a component that does everything else under its own name.
    #[must_use]
    pub fn acting_as(&self, client: Client) -> Self {
        Self {
            client,
            ..self.clone()
        }
    }

    /// The client for whatever is not in a cache, and for writing.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Who runs the caches, and whatever else a component does in the background.
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
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
                    self.reader.clone(),
                    scope,
                    self.supervisor.stop().clone(),
                    &self.supervisor,
                ))
            });
        match slot.downcast_ref::<Cache<K>>() {
            Some(cache) => cache.clone(),
            // The key holds the type, so this cannot be; a fresh cache is right in any case.
            None => Cache::start(
                self.reader.clone(),
                Scope::default(),
                self.supervisor.stop().clone(),
                &self.supervisor,
            ),
        }
    }
}
