//! What all parts of the kubelet share: configuration, the API, the runtime, volumes, and the pods' workers. Owns
//! references only; no decisions.

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cri::Cri;
use crate::gc;
use crate::images::Images;
use crate::kuberuntime::fields::Addresses;
use crate::node::status::Pressure;
use crate::node::{Capacity, sysctls};
use crate::objects::{Notify, Objects};
use crate::pod::spec;
use crate::pod::worker::Handle;
use crate::volumes::{Volumes, tokens::Tokens};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use parking_lot::Mutex;
use skiff_client::recorder::{EventType, Recorder, reference};
use skiff_client::{Cache, Informers, Scope};
use skiff_supervise::Supervisor;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One kubelet.
pub struct Kubelet {
    /// What it was told.
    pub config: Config,
    /// The API.
    pub client: kube::Client,
    /// Shared caches.
    pub informers: Informers,
    /// The runtime.
    pub cri: Cri,
    /// Images for containers.
    pub images: Images,
    /// ConfigMaps and Secrets in use.
    pub objects: Objects,
    /// Volumes that are mounted.
    pub volumes: Volumes,
    /// Tokens of service accounts.
    pub tokens: Tokens,
    /// Events.
    pub recorder: Recorder,
    /// Pods bound to this node.
    pub pods: Cache<Pod>,
    /// All Services (for environment variables).
    pub services: Cache<Service>,
    /// What the node has.
    pub capacity: Capacity,
    /// Name of the runtime, the scheme of container ids.
    pub runtime_name: String,
    /// Version of the runtime.
    pub runtime_version: String,
    /// When images were used last.
    pub image_use: gc::LastUsed,
    /// Cgroups of pods.
    pub cgroups: Cgroups,
    /// The sysctls that pods may set.
    pub sysctls: sysctls::Allowed,
    /// What the node is short of, as the eviction loop sees it.
    pub pressure: watch::Receiver<Pressure>,
    /// Workers by uid of their pod.
    pub workers: Mutex<HashMap<String, Handle>>,
    /// Ends everything.
    pub stop: CancellationToken,
}

impl Kubelet {
    /// Keeps the kubelet's tasks.
    pub fn supervisor(&self) -> &Supervisor {
        self.informers.supervisor()
    }

    /// The cache that has this node's Node.
    pub fn nodes(&self) -> Cache<Node> {
        if self.config.shared_caches {
            return self.informers.cache::<Node>();
        }
        self.informers.scoped::<Node>(Scope {
            fields: Some(format!("metadata.name={}", self.config.node_name)),
            ..Scope::default()
        })
    }

    /// Notes an event about a pod.
    pub fn note(&self, pod: &Pod, kind: EventType, reason: &str, message: &str) {
        self.recorder.event(pod, kind, reason, message);
    }

    /// Notes an event about a container of a pod.
    pub fn note_container(
        &self,
        pod: &Pod,
        container: &str,
        kind: EventType,
        reason: &str,
        message: &str,
    ) {
        let mut about = reference(pod);
        if let Some((role, c)) = spec::container(pod, container) {
            about.field_path = Some(format!("spec.{}{{{}}}", role.field(), c.name));
        }
        self.recorder.about(about, kind, reason, message);
    }

    /// Addresses of the node and of a pod.
    pub fn addresses(&self, pod: &Pod, pod_ips: &[String]) -> Addresses {
        let host = self.config.host_ips();
        Addresses {
            pod: if spec::host_network(pod) {
                host.clone()
            } else {
                pod_ips.to_vec()
            },
            host,
        }
    }

    /// Something that wakes a pod's worker when one of its sources changes.
    pub fn notify(self: &Arc<Self>, uid: &str) -> Notify {
        let kubelet = Arc::downgrade(self);
        let uid = uid.to_string();
        Arc::new(move || {
            if let Some(k) = kubelet.upgrade()
                && let Some(handle) = k.workers.lock().get(&uid)
            {
                handle.send(crate::pod::worker::Msg::Event(
                    crate::pod::state::Event::SourcesChanged,
                ));
            }
        })
    }
}
