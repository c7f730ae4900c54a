//! Owns the container runtime: a CRI v1 server on a Unix socket, image store, shims, containers. It knows none of
//! Skiff's other crates: crictl and upstream's CRI tests talk to it as well as the kubelet does.
//!
//! Map: `cri` answers calls and keeps the tables; `shim` is the process that holds one pod; `container` turns a
//! container's description into a process (the crate skiff-cgroup limits, counts and kills); `images` stores, pulls and builds
//! (its RUN steps are containers made by `build_step`);
//! `streaming` carries exec, attach and port-forward; `sys` is where system calls are made.

pub mod build_step;
pub mod container;
mod cri;
pub mod images;
pub mod shim;
pub mod state;
pub mod streaming;
pub mod sys;

pub use cri::describe_holder;
pub use skiff_cgroup as cgroup;

use images::cri::CriImageService;
use images::pull::Puller;
use images::registries::Registries;
use images::{ImageError, ImageStore};
use k8s_cri::v1::image_service_server::ImageServiceServer;
use k8s_cri::v1::runtime_service_server::RuntimeServiceServer;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// What the runtime is started with. All directories are made when missing.
#[derive(Clone)]
pub struct Config {
    /// Containers' writable layers (`containers/<id>`, and `trash/<id>` while they are removed).
    pub root: PathBuf,
    /// Records of sandboxes and containers, shims' sockets, compiled seccomp filters.
    pub state: PathBuf,
    /// The image store. On the same file system as `root` or not.
    pub images: PathBuf,
    /// The CRI socket.
    pub socket: PathBuf,
    /// Cgroup of everything of this data directory (`/skiff`, `/skiff-1a2b3c4d`). Containers go where the request's
    /// cgroup_parent says, and without one to `<cgroup_parent>/pods`.
    pub cgroup_parent: String,
    /// The operator accepts that this machine cannot limit containers' devices (`skiff_cgroup::check`).
    pub accept_missing_isolation: bool,
    /// k3s' registries.yaml; it need not exist.
    pub registries: PathBuf,
    /// Program of the shims; it is run as `<shim_exe> shim DIR` and must call [`shim_main`] then.
    pub shim_exe: PathBuf,
    /// The pod network.
    pub network: Arc<dyn PodNetwork>,
}

impl Config {
    /// The layout below `dir` (`<data-dir>/agent/runtime`), with no pod network.
    pub fn new(dir: &Path, cgroup_parent: &str) -> Self {
        Self {
            root: dir.to_path_buf(),
            state: dir.join("state"),
            images: dir.join("images"),
            socket: dir.join("cri.sock"),
            cgroup_parent: cgroup_parent.to_string(),
            accept_missing_isolation: false,
            registries: PathBuf::from("/etc/skiff/registries.yaml"),
            shim_exe: PathBuf::from("/proc/self/exe"),
            network: Arc::new(NoNetwork),
        }
    }

    fn shim_cgroup(&self) -> String {
        format!("{}/shims", self.cgroup_parent)
    }
}

/// A port of the pod that the node should answer on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPortMapping {
    /// TCP, UDP or SCTP.
    pub protocol: String,
    pub container_port: u16,
    /// 0: none wished.
    pub host_port: u16,
    /// None: every address of the node.
    pub host_ip: Option<IpAddr>,
}

/// What a pod network is told about a pod.
#[derive(Clone, Debug)]
pub struct PodNetworkRequest {
    pub sandbox_id: String,
    /// The pod's network namespace, valid as long as its shim lives; `lo` is already up. At detach it may be gone,
    /// and with it every interface in it.
    pub netns: PathBuf,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub hostname: String,
    pub port_mappings: Vec<PodPortMapping>,
    pub annotations: BTreeMap<String, String>,
}

/// What the pod got.
#[derive(Clone, Debug, Default)]
pub struct PodNetworkStatus {
    /// The primary address first.
    pub ips: Vec<IpAddr>,
}

/// Gives pods their network. Called for pods that do not use the node's.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync {
    /// Connects the namespace. On an error nothing may be left behind.
    async fn attach(&self, request: PodNetworkRequest) -> Result<PodNetworkStatus, String>;
    /// Takes everything back. Must succeed for pods it does not know.
    async fn detach(&self, request: PodNetworkRequest) -> Result<(), String>;
    /// At start, for each pod that still runs: its addresses are in use.
    async fn restore(
        &self,
        request: PodNetworkRequest,
        status: PodNetworkStatus,
    ) -> Result<(), String>;
    /// Whether pods can be connected now; the reason if not (the node's NetworkReady condition).
    async fn ready(&self) -> Result<(), String>;
    /// Whether pods get their addresses from this network (CRI's UpdateRuntimeConfig); why not if not.
    fn takes_cidr(&self, cidr: &str) -> Result<(), String> {
        Err(format!(
            "{cidr:?} cannot be set: the pod network of this runtime has no addresses to choose"
        ))
    }
}

/// A pod network with nothing but loopback.
pub struct NoNetwork;

#[async_trait::async_trait]
impl PodNetwork for NoNetwork {
    async fn attach(&self, _: PodNetworkRequest) -> Result<PodNetworkStatus, String> {
        Ok(PodNetworkStatus {
            ips: vec![IpAddr::from([127, 0, 0, 1])],
        })
    }
    async fn detach(&self, _: PodNetworkRequest) -> Result<(), String> {
        Ok(())
    }
    async fn restore(&self, _: PodNetworkRequest, _: PodNetworkStatus) -> Result<(), String> {
        Ok(())
    }
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Why the runtime cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the CRI server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

fn io_error(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_string();
    move |source| Error::Io { what, source }
}

/// A runtime that answers on its socket.
pub struct Running {
    task: tokio::task::JoinHandle<Result<(), Error>>,
    store: ImageStore,
}

impl Running {
    /// The image store it serves from, for imports in the same process.
    pub fn images(&self) -> &ImageStore {
        &self.store
    }

    /// Waits until it has stopped.
    pub async fn join(self) -> Result<(), Error> {
        self.task.await.unwrap_or_else(|e| {
            Err(Error::Io {
                what: "the CRI server".into(),
                source: io::Error::other(e),
            })
        })
    }
}

/// The CRI socket: for this user alone, and never open to others, not even for a moment.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    if !dir.exists() {
        state::private_dir(dir)?;
    }
    let listener = shim::socket::listen(path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// The connections of this process's own user; whoever else got hold of the socket is turned away.
fn own_connections(
    listener: UnixListener,
) -> impl tokio_stream::Stream<Item = io::Result<tokio::net::UnixStream>> {
    use futures::StreamExt;
    tokio_stream::wrappers::UnixListenerStream::new(listener).filter_map(|s| {
        std::future::ready(match s {
            Ok(s) => match shim::socket::check_peer(&s) {
                Ok(()) => Some(Ok(s)),
                Err(e) => {
                    tracing::warn!(error = %e, "a connection to the CRI socket is refused");
                    None
                }
            },
            Err(e) => Some(Err(e)),
        })
    })
}

/// Adopts what runs and starts to answer. Returns when the socket takes calls; stops when cancelled, leaving
/// containers running.
pub async fn start(config: Config, cancel: CancellationToken) -> Result<Running, Error> {
    let images = config.images.clone();
    let registries_file = config.registries.clone();
    let (store, registries) = tokio::task::spawn_blocking(move || {
        state::private_dir(&images).map_err(io_error(format!("make {}", images.display())))?;
        Ok::<_, Error>((
            ImageStore::open(&images)?,
            Registries::load(&registries_file)?,
        ))
    })
    .await
    .map_err(|e| Error::Io {
        what: "open the image store".into(),
        source: io::Error::other(e),
    })??;
    let socket = config.socket.clone();
    let state = config.state.clone();
    let runtime = cri::Runtime::open(config, store.clone(), cancel.clone())
        .await
        .map_err(io_error(format!(
            "open the runtime's state in {}",
            state.display()
        )))?;
    let streams =
        streaming::StreamServer::start(Arc::new(cri::Backend(runtime.clone())), cancel.clone())
            .await
            .map_err(io_error("listen for streams on 127.0.0.1"))?;
    runtime.set_streaming(streams);
    let listener = bind(&socket).map_err(io_error(format!("listen on {}", socket.display())))?;
    let image_service = CriImageService::new(store.clone(), Puller::new(store.clone(), registries));
    // Names of images and environments may be long; 16 MiB of exec output is the largest answer.
    let limit = 64 << 20;
    let ended = cancel.clone();
    let server = tonic::transport::Server::builder()
        .add_service(
            RuntimeServiceServer::new(cri::service(runtime))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .add_service(ImageServiceServer::new(image_service).max_decoding_message_size(limit))
        .serve_with_incoming_shutdown(own_connections(listener), async move {
            cancel.cancelled().await
        });
    let task = tokio::spawn(async move {
        // Calls under way get a moment; a client that keeps its connection open must not keep the socket open.
        let late = async {
            ended.cancelled().await;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        };
        tokio::select! {
            r = server => r?,
            () = late => {}
        }
        Ok(())
    });
    Ok(Running { task, store })
}

/// [`start`], then waits for the end.
pub async fn serve(config: Config, cancel: CancellationToken) -> Result<(), Error> {
    start(config, cancel).await?.join().await
}

/// `skiff shim ARGS...`: never returns. Must be called before any thread is started.
pub fn shim_main(args: &[OsString]) -> ! {
    shim::main(args)
}

/// Ends every shim and container of this data directory and removes their mounts, cgroups and records. Images stay
/// unless the caller removes the directory. The server must not be running.
pub async fn reset(config: &Config) -> Result<(), Error> {
    let sandboxes = config.state.join("sandboxes");
    if let Ok(entries) = std::fs::read_dir(&sandboxes) {
        for e in entries.flatten() {
            let dir = e.path();
            let shim = shim::client::Shim::at(&dir);
            if let Err(e) = shim.shutdown().await {
                tracing::warn!(dir = %dir.display(), error = %e, "a shim does not end in order and is killed");
                shim.kill_process();
            }
            sys::umount_detach(&dir.join("shm"))
                .map_err(io_error(format!("unmount {}", dir.join("shm").display())))?;
        }
    }
    let cgroups = cgroup::Hierarchies::detect().map_err(io_error("read /proc/self/mountinfo"))?;
    let parent = config.cgroup_parent.clone();
    cgroups.kill_tree(&parent);
    cgroups
        .remove(&parent)
        .map_err(io_error(format!("remove the cgroup {parent}")))?;
    for dir in [
        &config.state,
        &config.root.join("containers"),
        &config.root.join("trash"),
    ] {
        state::remove_dir(dir).map_err(io_error(format!("remove {}", dir.display())))?;
    }
    let _ = std::fs::remove_file(&config.socket);
    Ok(())
}
