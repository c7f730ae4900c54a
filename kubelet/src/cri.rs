//! The road to the runtime: CRI v1 over a Unix socket. Owns the connection, deadlines and error texts; knows nothing
//! of pods.

use hyper_util::rt::TokioIo;
use k8s_cri::v1;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status, Streaming};

/// Upstream's runtimeRequestTimeout.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Largest message, as upstream's.
const MAX_MESSAGE: usize = 16 << 20;

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{call}: {message}")]
pub struct CriError {
    /// Name of the call.
    pub call: &'static str,
    /// gRPC code.
    pub code: Code,
    /// The runtime's words.
    pub message: String,
}

impl CriError {
    /// The runtime does not have the thing.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
    /// The runtime does not offer the call.
    pub fn is_unimplemented(&self) -> bool {
        self.code == Code::Unimplemented
    }
}

type Result<T> = std::result::Result<T, CriError>;

/// A runtime. Cheap to clone.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

async fn within<T>(
    call: &'static str,
    limit: Duration,
    future: impl Future<Output = std::result::Result<Response<T>, Status>>,
) -> Result<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(Ok(r)) => Ok(r.into_inner()),
        Ok(Err(s)) => Err(CriError {
            call,
            code: s.code(),
            message: s.message().to_string(),
        }),
        Err(_) => Err(CriError {
            call,
            code: Code::DeadlineExceeded,
            message: format!("the runtime did not answer within {} s", limit.as_secs()),
        }),
    }
}

async fn connect(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    // sun_path holds 108 bytes: a longer path is reached through its directory's descriptor.
    if path.as_os_str().len() < 108 {
        return Ok(TokioIo::new(UnixStream::connect(&path).await?));
    }
    let name = path.file_name().unwrap_or_default();
    let dir = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    Ok(TokioIo::new(UnixStream::connect(short).await?))
}

impl Cri {
    /// A runtime that listens on a socket. It is connected to with the first call, and again whenever it was lost.
    pub fn new(socket: &Path) -> Self {
        let socket = socket.to_path_buf();
        let channel = Endpoint::from_static("http://cri.invalid")
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| connect(socket.clone())));
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        }
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<v1::VersionResponse> {
        let request = v1::VersionRequest {
            version: "0.1.0".into(),
        };
        within(
            "Version",
            Duration::from_secs(10),
            self.runtime.clone().version(request),
        )
        .await
    }

    /// Conditions RuntimeReady and NetworkReady.
    pub async fn status(&self) -> Result<v1::StatusResponse> {
        let request = v1::StatusRequest { verbose: false };
        within(
            "Status",
            Duration::from_secs(10),
            self.runtime.clone().status(request),
        )
        .await
    }

    /// Tells the runtime the node's pod CIDR.
    pub async fn update_runtime_config(&self, pod_cidr: &str) -> Result<()> {
        let request = v1::UpdateRuntimeConfigRequest {
            runtime_config: Some(v1::RuntimeConfig {
                network_config: Some(v1::NetworkConfig {
                    pod_cidr: pod_cidr.into(),
                }),
            }),
        };
        within(
            "UpdateRuntimeConfig",
            TIMEOUT,
            self.runtime.clone().update_runtime_config(request),
        )
        .await?;
        Ok(())
    }

    /// Makes and starts a sandbox; its id.
    pub async fn run_pod_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        handler: &str,
    ) -> Result<String> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler.into(),
        };
        // Upstream doubles its timeout for this call: the network may be slow.
        let r = within(
            "RunPodSandbox",
            TIMEOUT * 2,
            self.runtime.clone().run_pod_sandbox(request),
        )
        .await?;
        Ok(r.pod_sandbox_id)
    }

    /// Stops a sandbox and everything in it; fine when it is gone.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        fine_when_gone(
            within(
                "StopPodSandbox",
                TIMEOUT,
                self.runtime.clone().stop_pod_sandbox(request),
            )
            .await,
        )
    }

    /// Removes a sandbox with its containers; fine when it is gone.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        fine_when_gone(
            within(
                "RemovePodSandbox",
                TIMEOUT,
                self.runtime.clone().remove_pod_sandbox(request),
            )
            .await,
        )
    }

    /// Status of a sandbox (and of its containers, where the runtime offers that).
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatusResponse> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        within(
            "PodSandboxStatus",
            TIMEOUT,
            self.runtime.clone().pod_sandbox_status(request),
        )
        .await
    }

    /// Sandboxes with all of these labels.
    pub async fn list_pod_sandbox(
        &self,
        labels: HashMap<String, String>,
    ) -> Result<Vec<v1::PodSandbox>> {
        let request = v1::ListPodSandboxRequest {
            filter: Some(v1::PodSandboxFilter {
                label_selector: labels,
                ..v1::PodSandboxFilter::default()
            }),
        };
        let r = within(
            "ListPodSandbox",
            TIMEOUT,
            self.runtime.clone().list_pod_sandbox(request),
        )
        .await?;
        Ok(r.items)
    }

    /// Makes a container; its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let r = within(
            "CreateContainer",
            TIMEOUT,
            self.runtime.clone().create_container(request),
        )
        .await?;
        Ok(r.container_id)
    }

    /// Starts a container.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = v1::StartContainerRequest {
            container_id: id.into(),
        };
        within(
            "StartContainer",
            TIMEOUT,
            self.runtime.clone().start_container(request),
        )
        .await?;
        Ok(())
    }

    /// Stops a container: its stop signal, and SIGKILL after `timeout` seconds; fine when it is gone.
    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<()> {
        let request = v1::StopContainerRequest {
            container_id: id.into(),
            timeout,
        };
        let limit = TIMEOUT + Duration::from_secs(timeout.max(0) as u64);
        fine_when_gone(
            within(
                "StopContainer",
                limit,
                self.runtime.clone().stop_container(request),
            )
            .await,
        )
    }

    /// Removes a dead container; fine when it is gone.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = v1::RemoveContainerRequest {
            container_id: id.into(),
        };
        fine_when_gone(
            within(
                "RemoveContainer",
                TIMEOUT,
                self.runtime.clone().remove_container(request),
            )
            .await,
        )
    }

    /// Containers with all of these labels.
    pub async fn list_containers(
        &self,
        labels: HashMap<String, String>,
    ) -> Result<Vec<v1::Container>> {
        let request = v1::ListContainersRequest {
            filter: Some(v1::ContainerFilter {
                label_selector: labels,
                ..v1::ContainerFilter::default()
            }),
        };
        let r = within(
            "ListContainers",
            TIMEOUT,
            self.runtime.clone().list_containers(request),
        )
        .await?;
        Ok(r.containers)
    }

    /// Status of a container.
    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        let r = within(
            "ContainerStatus",
            TIMEOUT,
            self.runtime.clone().container_status(request),
        )
        .await?;
        r.status.ok_or(CriError {
            call: "ContainerStatus",
            code: Code::NotFound,
            message: format!("the runtime gave no status of container {id}"),
        })
    }

    /// Opens a container's log anew after a rotation.
    pub async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let request = v1::ReopenContainerLogRequest {
            container_id: id.into(),
        };
        within(
            "ReopenContainerLog",
            TIMEOUT,
            self.runtime.clone().reopen_container_log(request),
        )
        .await?;
        Ok(())
    }

    /// Runs a command in a container; output and exit code.
    pub async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: Duration,
    ) -> Result<v1::ExecSyncResponse> {
        let request = v1::ExecSyncRequest {
            container_id: id.into(),
            cmd,
            timeout: timeout.as_secs() as i64,
        };
        let limit = if timeout.is_zero() {
            TIMEOUT
        } else {
            timeout + Duration::from_secs(5)
        };
        within("ExecSync", limit, self.runtime.clone().exec_sync(request)).await
    }

    /// URL at which a command can be run in a container with streams.
    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String> {
        Ok(within("Exec", TIMEOUT, self.runtime.clone().exec(request))
            .await?
            .url)
    }

    /// URL at which a container's streams can be had.
    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String> {
        Ok(
            within("Attach", TIMEOUT, self.runtime.clone().attach(request))
                .await?
                .url,
        )
    }

    /// URL at which ports of a sandbox can be reached.
    pub async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String> {
        Ok(within(
            "PortForward",
            TIMEOUT,
            self.runtime.clone().port_forward(request),
        )
        .await?
        .url)
    }

    /// What happens to containers, as it happens.
    pub async fn events(&self) -> Result<Streaming<v1::ContainerEventResponse>> {
        within(
            "GetContainerEvents",
            TIMEOUT,
            self.runtime
                .clone()
                .get_container_events(v1::GetEventsRequest {}),
        )
        .await
    }

    /// Usage of all containers.
    pub async fn list_container_stats(&self) -> Result<Vec<v1::ContainerStats>> {
        let request = v1::ListContainerStatsRequest { filter: None };
        let r = within(
            "ListContainerStats",
            TIMEOUT,
            self.runtime.clone().list_container_stats(request),
        )
        .await?;
        Ok(r.stats)
    }

    /// Usage of all sandboxes.
    pub async fn list_pod_sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>> {
        let request = v1::ListPodSandboxStatsRequest { filter: None };
        let r = within(
            "ListPodSandboxStats",
            TIMEOUT,
            self.runtime.clone().list_pod_sandbox_stats(request),
        )
        .await?;
        Ok(r.stats)
    }

    /// Changes a running container's limits.
    pub async fn update_container_resources(
        &self,
        id: &str,
        linux: v1::LinuxContainerResources,
    ) -> Result<()> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(linux),
            ..v1::UpdateContainerResourcesRequest::default()
        };
        within(
            "UpdateContainerResources",
            TIMEOUT,
            self.runtime.clone().update_container_resources(request),
        )
        .await?;
        Ok(())
    }

    /// An image, if it is there.
    pub async fn image_status(&self, image: v1::ImageSpec) -> Result<Option<v1::Image>> {
        let request = v1::ImageStatusRequest {
            image: Some(image),
            verbose: false,
        };
        match within(
            "ImageStatus",
            TIMEOUT,
            self.images.clone().image_status(request),
        )
        .await
        {
            Ok(r) => Ok(r.image),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Pulls an image; its reference. No deadline: layers may be large; the caller may drop the future.
    pub async fn pull_image(
        &self,
        image: v1::ImageSpec,
        auth: Option<v1::AuthConfig>,
        sandbox_config: Option<v1::PodSandboxConfig>,
    ) -> Result<String> {
        let request = v1::PullImageRequest {
            image: Some(image),
            auth,
            sandbox_config,
        };
        let day = Duration::from_secs(86_400);
        Ok(
            within("PullImage", day, self.images.clone().pull_image(request))
                .await?
                .image_ref,
        )
    }

    /// All images.
    pub async fn list_images(&self) -> Result<Vec<v1::Image>> {
        let request = v1::ListImagesRequest { filter: None };
        Ok(within(
            "ListImages",
            TIMEOUT,
            self.images.clone().list_images(request),
        )
        .await?
        .images)
    }

    /// Removes an image; fine when it is gone.
    pub async fn remove_image(&self, image: &str) -> Result<()> {
        let request = v1::RemoveImageRequest {
            image: Some(v1::ImageSpec {
                image: image.into(),
                ..v1::ImageSpec::default()
            }),
        };
        fine_when_gone(
            within(
                "RemoveImage",
                TIMEOUT,
                self.images.clone().remove_image(request),
            )
            .await,
        )
    }

    /// Where images are, and how much they use.
    pub async fn image_fs_info(&self) -> Result<v1::ImageFsInfoResponse> {
        within(
            "ImageFsInfo",
            TIMEOUT,
            self.images.clone().image_fs_info(v1::ImageFsInfoRequest {}),
        )
        .await
    }
}

fn fine_when_gone<T>(result: Result<T>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}
