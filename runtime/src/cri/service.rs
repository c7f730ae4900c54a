//! Owns the gRPC face of the runtime: one method for each call of RuntimeService, each a few lines over `Runtime`.

use super::status::labels_match;
use super::{Phase, Runtime, blocking};
use crate::sys;
use futures::StreamExt;
use k8s_cri::v1::runtime_service_server::RuntimeService;
use k8s_cri::v1::{self, *};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

/// The service that tonic serves.
pub(crate) struct Service(pub Arc<Runtime>);

type Reply<T> = Result<Response<T>, Status>;

fn ok<T>(t: T) -> Reply<T> {
    Ok(Response::new(t))
}

/// Runs a call to its end even if the caller goes away: a future that is dropped between two steps would leave a half-made
/// sandbox or container that no table knows.
async fn detached<T: Send + 'static>(
    call: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(call)
        .await
        .unwrap_or_else(|e| Err(Status::internal(format!("internal task failed: {e}"))))
}

fn info(verbose: bool, value: impl FnOnce() -> serde_json::Value) -> HashMap<String, String> {
    if verbose {
        HashMap::from([("info".to_string(), value().to_string())])
    } else {
        HashMap::new()
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<VersionRequest>) -> Reply<VersionResponse> {
        ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "skiff".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(
        &self,
        r: Request<RunPodSandboxRequest>,
    ) -> Reply<RunPodSandboxResponse> {
        ok(RunPodSandboxResponse {
            pod_sandbox_id: detached(self.0.clone().run_sandbox(r.into_inner())).await?,
        })
    }

    async fn stop_pod_sandbox(
        &self,
        r: Request<StopPodSandboxRequest>,
    ) -> Reply<StopPodSandboxResponse> {
        let (runtime, id) = (self.0.clone(), r.into_inner().pod_sandbox_id);
        detached(async move { runtime.stop_sandbox(&id).await }).await?;
        ok(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<RemovePodSandboxRequest>,
    ) -> Reply<RemovePodSandboxResponse> {
        let (runtime, id) = (self.0.clone(), r.into_inner().pod_sandbox_id);
        detached(async move { runtime.remove_sandbox(&id).await }).await?;
        ok(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<PodSandboxStatusRequest>,
    ) -> Reply<PodSandboxStatusResponse> {
        let r = r.into_inner();
        let s = self.0.sandbox(&r.pod_sandbox_id)?;
        let pid = s.state.lock().pid;
        ok(PodSandboxStatusResponse {
            status: Some(s.status()),
            info: info(
                r.verbose,
                || serde_json::json!({"pid": pid, "netns": format!("/proc/{pid}/ns/net")}),
            ),
            containers_statuses: self
                .0
                .containers_of(&s.id)
                .iter()
                .map(|c| c.status())
                .collect(),
            timestamp: sys::now_ns(),
        })
    }

    async fn list_pod_sandbox(
        &self,
        r: Request<ListPodSandboxRequest>,
    ) -> Reply<ListPodSandboxResponse> {
        let f = r.into_inner().filter.unwrap_or_default();
        let items = self
            .0
            .all_sandboxes()
            .iter()
            .filter(|s| f.id.is_empty() || s.id.starts_with(&f.id))
            .filter(|s| {
                f.state
                    .as_ref()
                    .is_none_or(|want| want.state == s.cri_state() as i32)
            })
            .filter(|s| labels_match(&f.label_selector, &s.config.labels))
            .map(|s| s.entry())
            .collect();
        ok(ListPodSandboxResponse { items })
    }

    async fn create_container(
        &self,
        r: Request<CreateContainerRequest>,
    ) -> Reply<CreateContainerResponse> {
        ok(CreateContainerResponse {
            container_id: detached(self.0.clone().create_container(r.into_inner())).await?,
        })
    }

    async fn start_container(
        &self,
        r: Request<StartContainerRequest>,
    ) -> Reply<StartContainerResponse> {
        let (runtime, id) = (self.0.clone(), r.into_inner().container_id);
        detached(async move { runtime.start_container(&id).await }).await?;
        ok(StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        r: Request<StopContainerRequest>,
    ) -> Reply<StopContainerResponse> {
        let r = r.into_inner();
        self.0.stop_container(&r.container_id, r.timeout).await?;
        ok(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        r: Request<RemoveContainerRequest>,
    ) -> Reply<RemoveContainerResponse> {
        let (runtime, id) = (self.0.clone(), r.into_inner().container_id);
        detached(async move { runtime.remove_container(&id).await }).await?;
        ok(RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        r: Request<ListContainersRequest>,
    ) -> Reply<ListContainersResponse> {
        let f = r.into_inner().filter.unwrap_or_default();
        let containers = self
            .0
            .all_containers()
            .iter()
            .filter(|c| f.id.is_empty() || c.id.starts_with(&f.id))
            .filter(|c| {
                f.state
                    .as_ref()
                    .is_none_or(|want| want.state == c.state.borrow().cri() as i32)
            })
            .filter(|c| {
                f.pod_sandbox_id.is_empty() || c.sandbox_id().starts_with(&f.pod_sandbox_id)
            })
            .filter(|c| labels_match(&f.label_selector, &c.config.labels))
            .map(|c| c.entry())
            .collect();
        ok(ListContainersResponse { containers })
    }

    async fn container_status(
        &self,
        r: Request<ContainerStatusRequest>,
    ) -> Reply<ContainerStatusResponse> {
        let r = r.into_inner();
        let c = self.0.container(&r.container_id)?;
        let details = || {
            let record = c.record.lock();
            serde_json::json!({
                "pid": c.state.borrow().pid,
                "sandboxID": record.sandbox_id,
                "cgroup": record.cgroup,
                "spec": record.spec,
            })
        };
        ok(ContainerStatusResponse {
            status: Some(c.status()),
            info: info(r.verbose, details),
        })
    }

    async fn update_container_resources(
        &self,
        r: Request<UpdateContainerResourcesRequest>,
    ) -> Reply<UpdateContainerResourcesResponse> {
        let (runtime, r) = (self.0.clone(), r.into_inner());
        detached(async move { runtime.update_resources(r).await }).await?;
        ok(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        r: Request<ReopenContainerLogRequest>,
    ) -> Reply<ReopenContainerLogResponse> {
        let (c, s) = self.0.running(&r.into_inner().container_id)?;
        s.shim
            .reopen_log(&c.id)
            .await
            .map_err(|e| Status::internal(e.to_string()))?;
        ok(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, r: Request<ExecSyncRequest>) -> Reply<ExecSyncResponse> {
        ok(self.0.exec_sync(r.into_inner()).await?)
    }

    async fn exec(&self, r: Request<ExecRequest>) -> Reply<ExecResponse> {
        let mut r = r.into_inner();
        // Errors about the container belong to this call, not to the stream.
        r.container_id = self.0.running(&r.container_id)?.0.id.clone();
        ok(ExecResponse {
            url: self.0.streaming()?.exec(r)?,
        })
    }

    async fn attach(&self, r: Request<AttachRequest>) -> Reply<AttachResponse> {
        let mut r = r.into_inner();
        r.container_id = self.0.running(&r.container_id)?.0.id.clone();
        ok(AttachResponse {
            url: self.0.streaming()?.attach(r)?,
        })
    }

    async fn port_forward(&self, r: Request<PortForwardRequest>) -> Reply<PortForwardResponse> {
        let mut r = r.into_inner();
        let s = self.0.sandbox(&r.pod_sandbox_id)?;
        if s.state.lock().phase != Phase::Ready {
            return Err(Status::failed_precondition(format!(
                "sandbox {} is not running",
                s.id
            )));
        }
        r.pod_sandbox_id = s.id.clone();
        ok(PortForwardResponse {
            url: self.0.streaming()?.port_forward(r)?,
        })
    }

    async fn container_stats(
        &self,
        r: Request<ContainerStatsRequest>,
    ) -> Reply<ContainerStatsResponse> {
        let (runtime, c) = (
            self.0.clone(),
            self.0.container(&r.into_inner().container_id)?,
        );
        let stats = blocking(move || Ok(runtime.container_stats(&c))).await?;
        ok(ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(
        &self,
        r: Request<ListContainerStatsRequest>,
    ) -> Reply<ListContainerStatsResponse> {
        let (runtime, f) = (self.0.clone(), r.into_inner().filter);
        let stats = blocking(move || {
            let running = runtime.filter_containers(f);
            Ok(running
                .iter()
                .filter(|c| c.state.borrow().running())
                .map(|c| runtime.container_stats(c))
                .collect())
        })
        .await?;
        ok(ListContainerStatsResponse { stats })
    }

    async fn pod_sandbox_stats(
        &self,
        r: Request<PodSandboxStatsRequest>,
    ) -> Reply<PodSandboxStatsResponse> {
        let (runtime, s) = (
            self.0.clone(),
            self.0.sandbox(&r.into_inner().pod_sandbox_id)?,
        );
        let stats = blocking(move || Ok(runtime.sandbox_stats(&s))).await?;
        ok(PodSandboxStatsResponse { stats: Some(stats) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        r: Request<ListPodSandboxStatsRequest>,
    ) -> Reply<ListPodSandboxStatsResponse> {
        let (runtime, f) = (self.0.clone(), r.into_inner().filter.unwrap_or_default());
        let stats = blocking(move || {
            Ok(runtime
                .all_sandboxes()
                .iter()
                .filter(|s| s.state.lock().phase == Phase::Ready)
                .filter(|s| f.id.is_empty() || s.id.starts_with(&f.id))
                .filter(|s| labels_match(&f.label_selector, &s.config.labels))
                .map(|s| runtime.sandbox_stats(s))
                .collect())
        })
        .await?;
        ok(ListPodSandboxStatsResponse { stats })
    }

    async fn update_runtime_config(
        &self,
        r: Request<UpdateRuntimeConfigRequest>,
    ) -> Reply<UpdateRuntimeConfigResponse> {
        // The pod network has its addresses from the start; it says whether these are they.
        for cidr in super::fields::runtime_config(&r.into_inner()) {
            self.0.config.network.takes_cidr(&cidr).map_err(|e| {
                Status::failed_precondition(format!("network_config.pod_cidr: {e}"))
            })?;
        }
        ok(UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, r: Request<StatusRequest>) -> Reply<StatusResponse> {
        let network = self.0.config.network.ready().await;
        let condition = |kind: &str, status: Result<(), String>| RuntimeCondition {
            r#type: kind.into(),
            status: status.is_ok(),
            reason: if status.is_ok() {
                String::new()
            } else {
                format!("{}NotReady", kind.trim_end_matches("Ready"))
            },
            message: status.err().unwrap_or_default(),
        };
        let features = RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: false,
        };
        let handler = |name: &str| RuntimeHandler {
            name: name.into(),
            features: Some(features),
        };
        let (sandboxes, containers) = self.0.summary();
        let v2 = self.0.cgroups.is_v2();
        ok(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", Ok(())),
                    condition("NetworkReady", network),
                ],
            }),
            info: info(
                r.into_inner().verbose,
                || serde_json::json!({"readySandboxes": sandboxes, "runningContainers": containers, "cgroupV2": v2}),
            ),
            runtime_handlers: vec![handler(""), handler("skiff")],
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
            }),
        })
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Reply<CheckpointContainerResponse> {
        Err(Status::unimplemented(
            "checkpoints are not supported by this runtime",
        ))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        // A listener that falls thousands of events behind must list again; ending the stream tells it so.
        let stopped = self.0.cancel.clone().cancelled_owned();
        let stream = BroadcastStream::new(self.0.events.subscribe())
            .take_until(Box::pin(stopped))
            .map(|e| {
                e.map_err(|e| {
                    Status::data_loss(format!("the listener was too slow: {e}; list again"))
                })
            });
        ok(Box::pin(stream))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Reply<ListMetricDescriptorsResponse> {
        Err(Status::unimplemented(
            "metrics over CRI are not supported by this runtime: use the stats calls",
        ))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Reply<ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented(
            "metrics over CRI are not supported by this runtime: use the stats calls",
        ))
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Reply<RuntimeConfigResponse> {
        ok(RuntimeConfigResponse {
            linux: Some(v1::LinuxRuntimeConfiguration {
                cgroup_driver: CgroupDriver::Cgroupfs as i32,
            }),
        })
    }
}
