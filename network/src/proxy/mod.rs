//! The Service proxy: watches Services and EndpointSlices and keeps one nft table as they say. Owns the table
//! `skiff`; must not touch pods, other tables, or the cluster DNS address.
//!
//! [`plan`] says what one Service asks for, [`rules`] what that changes among all of them, [`program`] tells the
//! kernel. Differences from kube-proxy (nftables mode), on purpose: node ports answer on every address of the node,
//! loopback included (as its iptables mode does); clients of a node port whose endpoint is on this node keep their
//! address under either policy; session affinity is kept for each address of a Service by itself.

pub mod health;
pub mod plan;
pub mod program;
pub mod rules;

use crate::{Cidr, netlink};
use health::HealthPorts;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use plan::Node;
use program::Programmer;
use rules::Rules;
use skiff_client::{Event, Informers, ObjectKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the proxy needs to know.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// This node's name, as endpoints' nodeName has it.
    pub node_name: String,
    /// Every node's pods: their packets are not masqueraded and may use every endpoint.
    pub cluster_cidr: Cidr,
    /// Cluster IPs: packets to those that no Service has are refused.
    pub service_cidr: Cidr,
    /// The cluster DNS address, where our DNS server listens itself.
    pub cluster_dns: Option<Ipv4Addr>,
    /// Name of the nft table (`skiff`).
    pub table: String,
    /// How long to gather changes before they go to the kernel together.
    pub gather: Duration,
}

impl ProxyConfig {
    /// The defaults of design.md.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            cluster_cidr: Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 16),
            service_cidr: Cidr::new(Ipv4Addr::new(10, 43, 0, 0), 16),
            cluster_dns: Some(Ipv4Addr::new(10, 43, 0, 10)),
            table: "skiff".into(),
            gather: Duration::from_millis(3),
        }
    }
}

/// Why the proxy failed.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The background task was cancelled.
    #[error("the work was cancelled because the process is stopping")]
    Cancelled,
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Which Service a slice belongs to.
fn owner(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(
        slice.metadata.namespace.clone().unwrap_or_default(),
        name.clone(),
    ))
}

/// What a Service wants that changed.
pub struct Change {
    /// Which Service.
    pub key: ObjectKey,
    /// Its rules.
    pub rules: Vec<plan::Rule>,
    /// Its health check node port, and how many endpoints it has here.
    pub health: Option<(u16, usize)>,
}

/// Services with their slices, and which of them have changed.
#[derive(Default)]
pub struct Tracker {
    services: HashMap<ObjectKey, Arc<Service>>,
    slices: HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>,
    dirty: BTreeSet<ObjectKey>,
}

impl Tracker {
    /// A Service came, changed or went.
    pub fn service(&mut self, event: Event<Service>) {
        match event {
            Event::Applied { new, .. } => {
                let key = ObjectKey::of(&*new);
                self.services.insert(key.clone(), new);
                self.dirty.insert(key);
            }
            Event::Deleted(old) => {
                let key = ObjectKey::of(&*old);
                self.services.remove(&key);
                self.dirty.insert(key);
            }
            Event::Synced => {}
        }
    }

    /// A slice came, changed or went.
    pub fn slice(&mut self, event: Event<EndpointSlice>) {
        let (new, old) = match event {
            Event::Applied { new, old } => (Some(new), old),
            Event::Deleted(old) => (None, Some(old)),
            Event::Synced => return,
        };
        // A slice may be given to another Service by its label.
        if let Some(old) = old
            && let Some(key) = owner(&old)
        {
            if let Some(slices) = self.slices.get_mut(&key) {
                slices.remove(old.metadata.name.as_deref().unwrap_or(""));
                if slices.is_empty() {
                    self.slices.remove(&key);
                }
            }
            self.dirty.insert(key);
        }
        if let Some(new) = new
            && let Some(key) = owner(&new)
        {
            let name = new.metadata.name.clone().unwrap_or_default();
            self.slices
                .entry(key.clone())
                .or_default()
                .insert(name, new);
            self.dirty.insert(key);
        }
    }

    /// What each Service that changed since the last call wants now.
    pub fn changes(&mut self, node: &Node) -> Vec<Change> {
        std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|key| {
                let Some(service) = self.services.get(&key) else {
                    return Change {
                        key,
                        rules: Vec::new(),
                        health: None,
                    };
                };
                let slices: Vec<Arc<EndpointSlice>> = self
                    .slices
                    .get(&key)
                    .into_iter()
                    .flat_map(|s| s.values().cloned())
                    .collect();
                Change {
                    rules: plan::plan(service, &slices, node),
                    health: plan::health(service, &slices, node),
                    key,
                }
            })
            .collect()
    }
}

/// What the kernel side works on, moved to a blocking thread and back.
struct Kernel {
    rules: Rules,
    programmer: Programmer,
    /// The table is what `rules` says.
    current: bool,
}

impl Kernel {
    fn sync(&mut self, changes: Vec<Change>) -> Result<(), ProxyError> {
        let diff = self
            .rules
            .update(changes.into_iter().map(|c| (c.key, c.rules)));
        if self.current && diff.is_empty() && diff.lost.is_empty() && diff.gained.is_empty() {
            return Ok(());
        }
        let result = if self.current {
            self.programmer.apply(&diff).or_else(|e| {
                // Somebody has taken the table away or changed it: a whole load brings it back.
                tracing::warn!(error = %e, "an nft transaction was refused; loading the whole table");
                self.programmer.replace(&self.rules)
            })
        } else {
            self.programmer.replace(&self.rules)
        };
        self.current = result.is_ok();
        result
    }
}

/// Runs the proxy until the token ends it. The table stays then, so that connections go on while the server is
/// stopped; a table that an earlier process left is replaced in one transaction once the first lists are there.
/// Must be called in the network namespace it is to program.
///
/// # Errors
/// When the kernel has no nf_tables. Later refusals are logged and tried again.
pub async fn run(
    informers: Informers,
    config: ProxyConfig,
    stop: CancellationToken,
) -> Result<(), ProxyError> {
    let services = informers.cache::<Service>();
    let slices = informers.cache::<EndpointSlice>();
    run_on(services, slices, config, stop).await
}

/// [`run`] on caches fed by any means.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    services: skiff_client::Cache<Service>,
    slices: skiff_client::Cache<EndpointSlice>,
    config: ProxyConfig,
    stop: CancellationToken,
) -> Result<(), ProxyError> {
    let node = Node {
        name: config.node_name.clone(),
        cluster_dns: config.cluster_dns,
    };
    let mut kernel = Kernel {
        rules: Rules::new(),
        programmer: Programmer::new(config.clone())?,
        current: false,
    };
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { services.synced().await; slices.synced().await } => {}
    }
    let mut service_events = services.subscribe();
    let mut slice_events = slices.subscribe();
    let mut tracker = Tracker::default();
    let mut health_ports = HealthPorts::default();
    let mut retry = Duration::from_millis(500);
    loop {
        while let Ok(event) = service_events.try_recv() {
            tracker.service(event);
        }
        while let Ok(event) = slice_events.try_recv() {
            tracker.slice(event);
        }
        let changes = tracker.changes(&node);
        for change in &changes {
            health_ports.set(&change.key, change.health);
        }
        let (back, result) = tokio::task::spawn_blocking(move || {
            let result = kernel.sync(changes);
            (kernel, result)
        })
        .await
        .map_err(|_| ProxyError::Cancelled)?;
        kernel = back;
        let again = match result {
            Ok(()) => {
                retry = Duration::from_millis(500);
                None
            }
            Err(e) => {
                tracing::warn!(error = %e, again_in = ?retry, "the Service rules could not be loaded");
                retry = (retry * 2).min(Duration::from_secs(30));
                Some(retry)
            }
        };
        let timer = async {
            match again {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = service_events.recv() => match event {
                Some(event) => tracker.service(event),
                None => return Ok(()),
            },
            event = slice_events.recv() => match event {
                Some(event) => tracker.slice(event),
                None => return Ok(()),
            },
            () = timer => {}
        }
        // Changes come in groups (a Service and its slice, a rollout): one transaction for those of a moment.
        tokio::time::sleep(config.gather).await;
    }
}

/// Removes the proxy's table (`skiff reset`). One that is not there is no error.
///
/// # Errors
/// EPERM when a running process owns it.
pub fn cleanup(table: &str) -> Result<(), ProxyError> {
    Ok(netlink::Socket::netfilter()?.remove_table(table)?)
}
