//! Owns the CRI RuntimeService: the tables of sandboxes and containers and every call on them. Processes are the shims'
//! business, file systems and images those of `container` and `images`; what is here decides, records and tells.

mod adopt;
mod containers;
mod exec;
pub(crate) mod fields;
mod sandbox;
mod service;
mod stats;
mod status;
mod stream;

pub(crate) use stream::Backend;

use crate::cgroup::Hierarchies;
use crate::container::spec::{ContainerSpec, Exited};
use crate::images::ImageStore;
use crate::shim::client::Shim;
use crate::state;
use crate::{Config, PodNetworkRequest, PodPortMapping};
use k8s_cri::v1;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tonic::Status;

/// A sandbox's life. Only `Ready` has a shim; the others exist so that a restart knows what to clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Phase {
    Creating,
    Ready,
    Stopped,
}

/// `sandbox.json`. The request is kept as protobuf, which newer and older versions both read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxRecord {
    pub id: String,
    /// Base64 of the encoded PodSandboxConfig.
    pub config: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub phase: Phase,
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    #[serde(default)]
    pub runtime_handler: String,
}

/// What changes in a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct SandboxState {
    pub phase: Phase,
    pub ips: Vec<IpAddr>,
    /// The shim's process.
    pub pid: i32,
}

pub(crate) struct Sandbox {
    pub id: String,
    pub dir: PathBuf,
    pub config: v1::PodSandboxConfig,
    pub runtime_handler: String,
    pub created_at: i64,
    pub shim: Shim,
    pub state: Mutex<SandboxState>,
    /// Held alone by stop and remove, and together by creates and starts of containers, so that none of these finds a
    /// sandbox that goes away under it. It comes before any container's lock.
    pub lock: Arc<tokio::sync::RwLock<()>>,
    /// Listens to the shim; ends with it.
    pub watcher: Mutex<Option<tokio::task::JoinHandle<()>>>,
    cpu: Mutex<stats::CpuSample>,
}

/// `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerRecord {
    pub sandbox_id: String,
    /// Base64 of the encoded ContainerConfig.
    pub config: String,
    pub created_at: i64,
    /// What CRI calls image_ref: the digested name, else the id.
    pub image_ref: String,
    pub image_id: String,
    /// The image's tag, for people.
    pub image_name: String,
    pub stop_signal: i32,
    pub cgroup: String,
    pub device_rules_all: bool,
    pub spec: ContainerSpec,
    /// Limits set by UpdateContainerResources; base64 of the encoded message.
    #[serde(default)]
    pub resources: Option<String>,
}

/// What changes in a container.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerState {
    pub pid: i32,
    pub started_at: i64,
    pub exited: Option<Exited>,
}

impl ContainerState {
    fn running(&self) -> bool {
        self.started_at > 0 && self.exited.is_none()
    }

    fn cri(&self) -> v1::ContainerState {
        match self {
            Self {
                exited: Some(_), ..
            } => v1::ContainerState::ContainerExited,
            Self {
                started_at: 1.., ..
            } => v1::ContainerState::ContainerRunning,
            _ => v1::ContainerState::ContainerCreated,
        }
    }
}

pub(crate) struct Container {
    pub id: String,
    pub config: v1::ContainerConfig,
    pub record: Mutex<ContainerRecord>,
    pub state: watch::Sender<ContainerState>,
    /// Whether the started event was sent; it must come before the stopped one.
    pub announced: Mutex<bool>,
    /// One start, stop, update or remove at a time.
    pub lock: tokio::sync::Mutex<()>,
    /// When it must be over with the container. A later request can only bring it forward: it does not wait behind the
    /// grace period of the one that has the lock.
    stop_by: watch::Sender<Option<Instant>>,
    cpu: Mutex<stats::CpuSample>,
}

impl Container {
    fn sandbox_id(&self) -> String {
        self.record.lock().sandbox_id.clone()
    }

    /// Whoever has the lock now is to be done with the container by then.
    fn want_stop(&self, by: Instant) {
        self.stop_by.send_if_modified(|old| {
            let sooner = old.is_none_or(|o| by < o);
            if sooner {
                *old = Some(by);
            }
            sooner
        });
    }

    /// Returns when the time that [`want_stop`](Self::want_stop) gave is over; never without a wish.
    async fn stop_due(&self) {
        let mut wish = self.stop_by.subscribe();
        loop {
            let by = *wish.borrow_and_update();
            let due = async {
                match by {
                    Some(t) => tokio::time::sleep_until(t).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => return,
                r = wish.changed() => if r.is_err() { return },
            }
        }
    }
}

#[derive(Default)]
struct Tables {
    sandboxes: HashMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    /// Names in use, also by calls under way.
    names: HashSet<String>,
}

/// The runtime. Shared by all calls.
pub struct Runtime {
    pub(crate) config: Config,
    pub(crate) cgroups: Hierarchies,
    pub(crate) images: ImageStore,
    tables: Mutex<Tables>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
    shim_cgroup: Vec<PathBuf>,
    /// A warm-up of cgroup moves is under way.
    warming: Arc<std::sync::atomic::AtomicBool>,
    /// The server stops; streams end.
    cancel: tokio_util::sync::CancellationToken,
    node_hostname: String,
    streaming: std::sync::OnceLock<Arc<dyn StreamUrls>>,
}

/// What the streaming server gives out: one-time addresses for prepared requests.
pub(crate) trait StreamUrls: Send + Sync {
    fn exec(&self, r: v1::ExecRequest) -> Result<String, Status>;
    fn attach(&self, r: v1::AttachRequest) -> Result<String, Status>;
    fn port_forward(&self, r: v1::PortForwardRequest) -> Result<String, Status>;
}

/// Frees a reserved name unless the thing that has it came to life.
struct Reservation<'a> {
    runtime: &'a Runtime,
    name: Option<String>,
}

impl Reservation<'_> {
    fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(n) = &self.name {
            self.runtime.tables.lock().names.remove(n);
        }
    }
}

/// Makes the runtime's directories, and narrows what an older version left open to other users: records, sockets, and the
/// way to containers' writable layers (the layers themselves keep the modes that containers gave them).
fn make_private(config: &Config) -> std::io::Result<()> {
    for d in ["sandboxes", "containers", "seccomp"] {
        state::private_dir(&config.state.join(d))?;
    }
    for d in ["containers", "trash"] {
        state::private_dir(&config.root.join(d))?;
        state::narrow(&config.root.join(d), 1)?;
    }
    state::narrow(&config.root, 1)?;
    state::narrow(&config.state, 4)
}

/// What people call the container that holds an image (`namespace/pod/container (id)`), from its record below `state`: no
/// server need run. The holder's name if there is no record.
pub fn describe_holder(state: &std::path::Path, holder: &str) -> String {
    let id = holder.get(..64).unwrap_or(holder);
    let short = id.get(..12).unwrap_or(id);
    let file = state.join("containers").join(id).join("container.json");
    let record = state::read_json::<ContainerRecord>(&file).ok().flatten();
    let Some(config) = record.and_then(|r| decode_pb::<v1::ContainerConfig>(&r.config)) else {
        return short.to_string();
    };
    // The kubelet's labels say whose it is.
    let mut parts: Vec<&str> = ["namespace", "name"]
        .iter()
        .filter_map(|l| config.labels.get(&format!("io.kubernetes.pod.{l}")))
        .map(String::as_str)
        .collect();
    let name = config.metadata.as_ref().map_or("", |m| m.name.as_str());
    parts.push(name);
    format!("{} ({short})", parts.join("/"))
}

/// The service that tonic serves.
pub(crate) fn service(runtime: Arc<Runtime>) -> impl v1::runtime_service_server::RuntimeService {
    service::Service(runtime)
}

pub(crate) fn internal(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Status {
    let what = what.to_string();
    move |e| Status::internal(format!("{what}: {e}"))
}

/// Runs blocking work; a panic in it becomes an error of the call.
pub(crate) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(f)
        .await
        .unwrap_or_else(|e| Err(Status::internal(format!("internal task failed: {e}"))))
}

pub(crate) fn encode_pb<M: prost::Message>(m: &M) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(m.encode_to_vec())
}

pub(crate) fn decode_pb<M: prost::Message + Default>(s: &str) -> Option<M> {
    use base64::Engine;
    M::decode(
        base64::engine::general_purpose::STANDARD
            .decode(s)
            .ok()?
            .as_slice(),
    )
    .ok()
}

impl Runtime {
    /// Opens state and images, and adopts what runs. Blocking work happens here once.
    pub(crate) async fn open(
        config: Config,
        images: ImageStore,
        cancel: tokio_util::sync::CancellationToken,
    ) -> std::io::Result<Arc<Self>> {
        let cgroups = Hierarchies {
            lenient: config.accept_missing_isolation,
            ..Hierarchies::detect()?
        };
        make_private(&config)?;
        let shim_cgroup = cgroups.create_for_shims(&config.shim_cgroup()).unwrap_or_else(|e| {
            tracing::warn!(error = %e, "shims stay in the server's cgroup: stopping its service may stop the containers");
            Vec::new()
        });
        if crate::container::exec::lacks_sys_resource() {
            tracing::warn!("no CAP_SYS_RESOURCE: negative oom_score_adj values are clamped to 0");
        }
        let node_hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_string();
        let runtime = Arc::new(Self {
            config,
            cgroups,
            images,
            tables: Mutex::default(),
            events: broadcast::channel(4096).0,
            shim_cgroup,
            warming: Arc::default(),
            cancel,
            node_hostname,
            streaming: std::sync::OnceLock::new(),
        });
        // The filter of nearly every container; compiled once in the life of a data directory, beside everything else.
        let plain = runtime.clone();
        tokio::task::spawn_blocking(move || plain.warm_seccomp());
        let plain = runtime.clone();
        tokio::task::spawn_blocking(move || {
            let c = &plain.config;
            crate::build_step::sweep(&plain.cgroups, &c.cgroup_parent, &c.images);
        });
        adopt::adopt(&runtime).await?;
        Ok(runtime)
    }

    pub(crate) fn set_streaming(&self, s: Arc<dyn StreamUrls>) {
        let _ = self.streaming.set(s);
    }

    fn streaming(&self) -> Result<&Arc<dyn StreamUrls>, Status> {
        self.streaming
            .get()
            .ok_or_else(|| Status::unavailable("the streaming server is not running"))
    }

    fn reserve(&self, name: String) -> Result<Reservation<'_>, Status> {
        if !self.tables.lock().names.insert(name.clone()) {
            return Err(Status::already_exists(format!(
                "name {name:?} is in use: remove what has it first"
            )));
        }
        Ok(Reservation {
            runtime: self,
            name: Some(name),
        })
    }

    /// A sandbox by id or by a prefix that only one has (crictl's short ids).
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Status> {
        let t = self.tables.lock();
        if let Some(s) = t.sandboxes.get(id) {
            return Ok(s.clone());
        }
        let mut found = t
            .sandboxes
            .iter()
            .filter(|(k, _)| !id.is_empty() && k.starts_with(id));
        match (found.next(), found.next()) {
            (Some((_, s)), None) => Ok(s.clone()),
            _ => Err(Status::not_found(format!("sandbox {id:?}: not found"))),
        }
    }

    /// A container by id or unique prefix.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Status> {
        let t = self.tables.lock();
        if let Some(c) = t.containers.get(id) {
            return Ok(c.clone());
        }
        let mut found = t
            .containers
            .iter()
            .filter(|(k, _)| !id.is_empty() && k.starts_with(id));
        match (found.next(), found.next()) {
            (Some((_, c)), None) => Ok(c.clone()),
            _ => Err(Status::not_found(format!("container {id:?}: not found"))),
        }
    }

    /// A running container with its sandbox.
    pub(crate) fn running(&self, id: &str) -> Result<(Arc<Container>, Arc<Sandbox>), Status> {
        let c = self.container(id)?;
        if !c.state.borrow().running() {
            let state = c.state.borrow().cri().as_str_name();
            return Err(Status::failed_precondition(format!(
                "container {} is in {state} state",
                c.id
            )));
        }
        let s = self.sandbox(&c.sandbox_id())?;
        Ok((c, s))
    }

    /// Fails if the container was removed while its lock was waited for.
    fn still_there(&self, c: &Arc<Container>) -> Result<(), Status> {
        match self.tables.lock().containers.get(&c.id) {
            Some(now) if Arc::ptr_eq(now, c) => Ok(()),
            _ => Err(Status::not_found(format!(
                "container {:?}: not found",
                c.id
            ))),
        }
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let t = self.tables.lock();
        t.containers
            .values()
            .filter(|c| c.record.lock().sandbox_id == sandbox)
            .cloned()
            .collect()
    }

    fn all_containers(&self) -> Vec<Arc<Container>> {
        self.tables.lock().containers.values().cloned().collect()
    }

    fn all_sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.tables.lock().sandboxes.values().cloned().collect()
    }

    /// The request that the pod network got and gets for this sandbox.
    pub(crate) fn network_request(&self, s: &Sandbox) -> PodNetworkRequest {
        let m = s.config.metadata.clone().unwrap_or_default();
        PodNetworkRequest {
            sandbox_id: s.id.clone(),
            netns: PathBuf::from(format!("/proc/{}/ns/net", s.state.lock().pid)),
            namespace: m.namespace,
            name: m.name,
            uid: m.uid,
            hostname: s.config.hostname.clone(),
            port_mappings: s
                .config
                .port_mappings
                .iter()
                .map(|p| PodPortMapping {
                    protocol: v1::Protocol::try_from(p.protocol)
                        .unwrap_or(v1::Protocol::Tcp)
                        .as_str_name()
                        .into(),
                    container_port: p.container_port as u16,
                    host_port: p.host_port as u16,
                    host_ip: p.host_ip.parse().ok(),
                })
                .collect(),
            annotations: s.config.annotations.clone().into_iter().collect(),
        }
    }
}
