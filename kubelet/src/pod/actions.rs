//! What the commands of the state machine do: volumes, sandboxes, starts and stops of containers, as calls of the
//! runtime. Owns no state and decides nothing that outlives the call.

use super::manager;
use super::spec::{self, Role};
use super::state::{ResizePending, StartError};
use super::termination_message;
use super::view::{ContainerView, RunState, RuntimeView, SandboxView};
use crate::cri::CriError;
use crate::kubelet::Kubelet;
use crate::kuberuntime::env::Sources;
use crate::kuberuntime::{self, container, env, resources, services};
use crate::node::{admission, unsupported};
use crate::prober::check::Target;
use crate::volumes::place::Place;
use crate::volumes::work::{self, Lane};
use crate::volumes::{self, mounts, tear_down};
use crate::{cgroups, labels, lifecycle, logs};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements, Secret};
use kube::api::Api;
use skiff_client::recorder::EventType;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Asks the runtime for everything it has of a pod. What ended before is not asked for again.
///
/// # Errors
/// The runtime did not answer.
pub async fn look(
    k: &Kubelet,
    uid: &str,
    before: Option<&RuntimeView>,
) -> Result<RuntimeView, CriError> {
    let cri = &k.cri;
    let filter = HashMap::from([(labels::POD_UID.to_string(), uid.to_string())]);
    let (sandboxes, containers) = tokio::try_join!(
        cri.list_pod_sandbox(filter.clone()),
        cri.list_containers(filter)
    )?;
    let mut out = RuntimeView::default();
    for s in sandboxes {
        let ready = s.state == k8s_cri::v1::PodSandboxState::SandboxReady as i32;
        let known = before
            .and_then(|b| b.sandboxes.iter().find(|k| k.id == s.id))
            .filter(|k| k.ready == ready && (!k.ips.is_empty() || !ready));
        match known {
            Some(k) => out.sandboxes.push(k.clone()),
            None => match cri.pod_sandbox_status(&s.id).await {
                Ok(r) => out.sandboxes.extend(r.status.map(SandboxView::from_cri)),
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            },
        }
    }
    for c in containers {
        let state = k8s_cri::v1::ContainerState::try_from(c.state).ok();
        let known = before
            .and_then(|b| b.containers.iter().find(|k| k.id == c.id))
            .filter(|k| {
                matches!(
                    (k.state, state),
                    (
                        RunState::Exited,
                        Some(k8s_cri::v1::ContainerState::ContainerExited)
                    ) | (
                        RunState::Running,
                        Some(k8s_cri::v1::ContainerState::ContainerRunning)
                    )
                )
            });
        if let Some(k) = known {
            out.containers.push(k.clone());
            continue;
        }
        match cri.container_status(&c.id).await {
            Ok(status) => {
                let mut one = ContainerView::from_cri(status, c.pod_sandbox_id);
                termination_message::fill(&mut one, uid, k).await;
                out.containers.push(one);
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out.sorted())
}

/// The running container whose processes an ephemeral container is to see.
pub fn target_of(pod: &Pod, name: &str, view: Option<&RuntimeView>) -> Option<String> {
    let target = spec::ephemeral_containers(pod)
        .iter()
        .find(|c| c.name == name)?
        .target_container_name
        .as_deref()
        .filter(|t| !t.is_empty())?;
    view?
        .latest(target)
        .filter(|c| c.state == RunState::Running)
        .map(|c| c.id.clone())
}

/// Mounts the pod's volumes, or brings them up to date.
pub async fn mount_volumes(
    k: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    ips: &[String],
) -> Result<Option<Timestamp>, String> {
    let uid = spec::uid(pod);
    if spec::spec(pod).volumes.as_ref().is_none_or(Vec::is_empty) {
        return Ok(None);
    }
    let notify = k.notify(uid);
    let cx = volumes::Context {
        config: &k.config,
        client: &k.client,
        objects: &k.objects,
        tokens: &k.tokens,
        notify: &notify,
        addresses: &k.addresses(pod, ips),
        allocatable: &k.capacity.allocatable,
        now: Timestamp::now(),
    };
    let done = k.volumes.mount_all(pod, &cx).await?;
    for warning in done.warnings {
        k.note(pod, EventType::Warning, "AlreadyMountedVolume", &warning);
    }
    Ok(done.refresh)
}

/// Makes the pod's cgroup and sandbox.
pub async fn make_sandbox(k: &Arc<Kubelet>, pod: &Arc<Pod>, attempt: u32) -> Result<(), String> {
    let resolv_conf = std::fs::read_to_string(&k.config.resolv_conf).unwrap_or_default();
    let (config, warning) = kuberuntime::sandbox::config(pod, attempt, &k.config, &resolv_conf)?;
    if let Some(warning) = warning {
        k.note(pod, EventType::Warning, "DNSConfigForming", &warning);
    }
    logs::make_dir(&k.config.pod_logs_dir, Path::new(&config.log_directory))
        .map_err(|e| format!("{}: {e}", config.log_directory))?;
    cgroups::weigh_classes(k, "")
        .await
        .map_err(|e| format!("QoS cgroup: {e}"))?;
    pod_cgroup(k, pod).await?;
    let handler = match spec::spec(pod)
        .runtime_class_name
        .as_deref()
        .filter(|c| !c.is_empty())
    {
        Some(class) => {
            let api: Api<k8s_openapi::api::node::v1::RuntimeClass> = Api::all(k.client.clone());
            api.get(class)
                .await
                .map_err(|e| {
                    format!("failed to get sandbox runtime: RuntimeClass \"{class}\": {e}")
                })?
                .handler
        }
        None => String::new(),
    };
    k.cri
        .run_pod_sandbox(config, &handler)
        .await
        .map_err(|e| e.message)?;
    Ok(())
}

/// Makes the pod's cgroup or brings it up to date, off the async threads.
async fn pod_cgroup(k: &Arc<Kubelet>, pod: &Arc<Pod>) -> Result<(), String> {
    let (k, pod) = (k.clone(), pod.clone());
    tokio::task::spawn_blocking(move || k.cgroups.ensure_pod(&pod))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| format!("pod cgroup: {e}"))
}

/// The start of one container.
pub struct Start {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Container's name.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// The sandbox to start it in.
    pub sandbox: String,
    /// That sandbox's attempt.
    pub sandbox_attempt: u32,
    /// status.podIPs
    pub ips: Vec<String>,
    /// The container whose processes it is to see.
    pub target_id: Option<String>,
}

fn error(reason: &str, message: impl Into<String>) -> StartError {
    StartError {
        reason: reason.into(),
        message: message.into(),
        image: None,
    }
}

impl Start {
    /// Gets the image, makes and starts the container, runs its postStart hook. None: called off.
    pub async fn run(
        &self,
        k: &Arc<Kubelet>,
        cancel: &CancellationToken,
    ) -> Option<Result<(), StartError>> {
        let (role, c) = spec::container(&self.pod, &self.name)?;
        let image = tokio::select! {
            () = cancel.cancelled() => return None,
            image = self.image(k, &c) => image,
        };
        let image = match image {
            Ok(i) => i,
            Err(e) => return Some(Err(e)),
        };
        if cancel.is_cancelled() {
            return None;
        }
        Some(self.create_and_start(k, role, &c, image, cancel).await)
    }

    async fn image(
        &self,
        k: &Arc<Kubelet>,
        c: &Container,
    ) -> Result<crate::images::Present, StartError> {
        let mut secrets: Vec<Arc<Secret>> = Vec::new();
        for r in spec::spec(&self.pod).image_pull_secrets.iter().flatten() {
            let api: Api<Secret> = Api::namespaced(k.client.clone(), spec::namespace(&self.pod));
            match api.get(&r.name).await {
                Ok(s) => secrets.push(Arc::new(s)),
                Err(e) => k.note(
                    &self.pod,
                    EventType::Warning,
                    "FailedToRetrieveImagePullSecret",
                    &format!("Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed: {e}", r.name),
                ),
            }
        }
        let sandbox_config = self.sandbox_config(k).ok();
        // Images that are mounted as volumes must be there too.
        let mounted = k.volumes.of(spec::uid(&self.pod));
        for m in c.volume_mounts.iter().flatten() {
            if let Some(image) = mounted.get(&m.name).and_then(|v| v.image.clone()) {
                let policy = spec::spec(&self.pod)
                    .volumes
                    .iter()
                    .flatten()
                    .find(|v| v.name == m.name)
                    .and_then(|v| v.image.as_ref())
                    .and_then(|i| i.pull_policy.clone());
                k.images
                    .ensure(
                        &image,
                        policy.as_deref(),
                        &secrets,
                        sandbox_config.clone(),
                        |reason, message| {
                            self.note(k, reason, &message);
                        },
                    )
                    .await?;
            }
        }
        let image = c.image.as_deref().unwrap_or_default();
        let present = k
            .images
            .ensure(
                image,
                c.image_pull_policy.as_deref(),
                &secrets,
                sandbox_config,
                |reason, message| {
                    self.note(k, reason, &message);
                },
            )
            .await?;
        self.note(k, "Pulled", &present.message);
        Ok(present)
    }

    fn note(&self, k: &Kubelet, reason: &str, message: &str) {
        let kind = match reason {
            "Failed" | "InspectFailed" | "ErrImageNeverPull" => EventType::Warning,
            _ => EventType::Normal,
        };
        k.note_container(&self.pod, &self.name, kind, reason, message);
    }

    fn sandbox_config(&self, k: &Kubelet) -> Result<k8s_cri::v1::PodSandboxConfig, String> {
        let resolv_conf = std::fs::read_to_string(&k.config.resolv_conf).unwrap_or_default();
        kuberuntime::sandbox::config(&self.pod, self.sandbox_attempt, &k.config, &resolv_conf)
            .map(|(c, _)| c)
    }

    /// Volumes may be on file systems that do not answer: that is waited for elsewhere, and not for ever.
    async fn mounts(
        &self,
        k: &Arc<Kubelet>,
        c: &Container,
        env: &[(String, String)],
    ) -> Result<Vec<k8s_cri::v1::Mount>, String> {
        let uid = spec::uid(&self.pod);
        let inputs = mounts::Inputs {
            place: Place::new(&k.config, uid),
            cluster_domain: k.config.cluster_domain.clone(),
            volumes: k.volumes.of(uid),
            env: env.to_vec(),
            pod_ips: self.ips.clone(),
            attempt: self.attempt,
        };
        let (pod, c) = (self.pod.clone(), c.clone());
        let job = move |closed: &work::Closed| {
            let made = mounts::make(&pod, &c, &inputs, closed);
            tear_down::if_late(&inputs.place, closed);
            made
        };
        let made = k.volumes.work.run(uid, Lane::Mount, work::MOUNT, job);
        made.await.map_err(|e| format!("volume mounts: {e}"))?
    }

    async fn create_and_start(
        &self,
        k: &Arc<Kubelet>,
        role: Role,
        c: &Container,
        image: crate::images::Present,
        cancel: &CancellationToken,
    ) -> Result<(), StartError> {
        let pod = &self.pod;
        let uid = spec::uid(pod);
        let config_error = |m: String| error("CreateContainerConfigError", m);
        // Ephemeral containers come after the pod was admitted.
        let at = format!("spec.{}{{{}}}", role.field(), c.name);
        let refusal = match role {
            Role::Ephemeral => unsupported::ephemeral(&at, c),
            _ => unsupported::container(&at, c),
        };
        if let Some((_, message)) = refusal {
            return Err(config_error(message));
        }
        let sandbox_config = self.sandbox_config(k).map_err(config_error)?;

        let notify = k.notify(uid);
        let (maps, secrets) = env::references(c);
        let mut sources = Sources::default();
        for name in maps {
            let found = k
                .objects
                .config_map(uid, spec::namespace(pod), &name, &notify)
                .await
                .map_err(config_error)?;
            sources.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = k
                .objects
                .secret(uid, spec::namespace(pod), &name, &notify)
                .await
                .map_err(config_error)?;
            sources.secrets.insert(name, found);
        }
        if tokio::time::timeout(Duration::from_secs(10), k.services.synced())
            .await
            .is_err()
        {
            return Err(config_error(
                "services have not yet been read at least once, cannot construct envvars".into(),
            ));
        }
        let links = spec::spec(pod).enable_service_links.unwrap_or(true);
        let services = services::service_env(&k.services.list(), spec::namespace(pod), links);
        let addresses = k.addresses(pod, &self.ips);
        let env = env::environment(
            pod,
            c,
            &sources,
            &services,
            &addresses,
            &k.capacity.allocatable,
        )
        .map_err(config_error)?;

        let mounts = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            m = self.mounts(k, c, &env) => m.map_err(config_error)?,
        };
        let groups = k.volumes.groups(uid);
        let mut config = container::config(
            pod,
            c,
            role,
            container::Inputs {
                attempt: self.attempt,
                image_ref: image.reference,
                image_user: image.user,
                env,
                services,
                mounts,
                node_memory: k.capacity.memory,
                target_id: self.target_id.clone(),
            },
            &k.config,
        )
        .map_err(config_error)?;
        container::join_groups(&mut config, &groups);
        let log_dir = Path::new(&sandbox_config.log_directory).join(&self.name);
        logs::make_dir(&k.config.pod_logs_dir, &log_dir).map_err(|e| {
            error(
                "CreateContainerError",
                format!("{}: {e}", log_dir.display()),
            )
        })?;
        if cancel.is_cancelled() {
            return Ok(());
        }
        let id = k
            .cri
            .create_container(&self.sandbox, config, sandbox_config)
            .await
            .map_err(|e| error("CreateContainerError", e.message))?;
        self.note(k, "Created", "Container created");
        k.cri
            .start_container(&id)
            .await
            .map_err(|e| error("RunContainerError", e.message))?;
        self.note(k, "Started", "Container started");

        if let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            // Others may see that the container runs while its hook does.
            let ip = addresses.pod.first().cloned().unwrap_or_default();
            let target = Target::new(c, &id, &ip);
            let result = tokio::select! {
                () = cancel.cancelled() => Ok(()),
                r = lifecycle::run(&k.cri, hook, &id, &target) => r,
            };
            if let Err(message) = result {
                k.note_container(
                    pod,
                    &self.name,
                    EventType::Warning,
                    "FailedPostStartHook",
                    "PostStartHook failed",
                );
                let text = "FailedPostStartHook";
                let _ = kill(
                    k,
                    pod,
                    &id,
                    &self.name,
                    spec::grace_period(pod),
                    true,
                    text,
                    &ip,
                )
                .await;
                return Err(error("PostStartHookError", message));
            }
        }
        Ok(())
    }
}

/// Runs the preStop hook and stops a container, both within the grace.
#[allow(clippy::too_many_arguments)]
pub async fn kill(
    k: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    id: &str,
    name: &str,
    grace: i64,
    pre_stop: bool,
    message: &str,
    ip: &str,
) -> Result<(), String> {
    let begun = tokio::time::Instant::now();
    if pre_stop {
        k.note_container(pod, name, EventType::Normal, "Killing", message);
        let container = spec::container(pod, name).map(|(_, c)| c);
        let hook = container
            .as_ref()
            .and_then(|c| c.lifecycle.as_ref()?.pre_stop.clone());
        if let (Some(hook), Some(c)) = (hook, container)
            && grace > 0
        {
            let target = Target::new(&c, id, ip);
            let limit = Duration::from_secs(grace as u64);
            let result =
                tokio::time::timeout(limit, lifecycle::run(&k.cri, &hook, id, &target)).await;
            if let Ok(Err(e)) = result {
                tracing::debug!(container = name, error = %e, "preStop hook failed");
                k.note_container(
                    pod,
                    name,
                    EventType::Warning,
                    "FailedPreStopHook",
                    "PreStopHook failed",
                );
            }
        }
    }
    let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(0);
    // A hook that used the whole grace leaves the process two seconds (upstream minimumGracePeriodInSeconds).
    let left = if used == 0 {
        grace
    } else {
        (grace - used).max(2)
    };
    k.cri.stop_container(id, left).await.map_err(|e| e.message)
}

/// Changes a running container's limits, if the node has room for what the pod now asks for.
pub async fn resize(
    k: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    id: &str,
    name: &str,
    restart: bool,
) -> Result<Box<ResourceRequirements>, ResizePending> {
    let pending = |reason: &str, message: String| {
        k.note(
            pod,
            EventType::Warning,
            &format!("Resize{reason}"),
            &message,
        );
        Err(ResizePending {
            reason: reason.into(),
            message,
        })
    };
    let others = manager::active(k, spec::uid(pod));
    if let Some(lack) = admission::lacks(pod, &k.capacity.allocatable, &others) {
        let (what, requested, capacity) = (lack.what, lack.requested, lack.capacity);
        if requested > capacity {
            return pending(
                "Infeasible",
                format!(
                    "Node didn't have enough capacity: {what}, requested: {requested}, capacity: {capacity}"
                ),
            );
        }
        return pending(
            "Deferred",
            format!("Node didn't have enough resource: {what}"),
        );
    }
    let Some((_, c)) = spec::container(pod, name) else {
        return pending("Error", format!("container {name} not found"));
    };
    let wanted = Box::new(c.resources.clone().unwrap_or_default());
    // The pod's cgroup grows before its containers', and shrinks after them: what cannot be shrunk yet can be then.
    let _ = pod_cgroup(k, pod).await;
    if restart {
        let message = format!("Container {name} resize requires restart");
        kill(
            k,
            pod,
            id,
            name,
            spec::grace_period(pod),
            true,
            &message,
            "",
        )
        .await
        .or_else(|e| pending("Error", e).map(|_: Box<ResourceRequirements>| ()))?;
        return Ok(wanted);
    }
    let limits = resources::container(pod, &c, k.capacity.memory);
    if let Err(e) = k.cri.update_container_resources(id, limits).await {
        return pending("Error", e.message);
    }
    if let Err(e) = pod_cgroup(k, pod).await {
        return pending("Error", e);
    }
    if let Err(e) = cgroups::weigh_classes(k, "").await {
        tracing::warn!(error = %e, "the cgroups of the QoS classes could not be brought up to date");
    }
    k.note_container(
        pod,
        name,
        EventType::Normal,
        "ResizeCompleted",
        "Pod resize completed",
    );
    Ok(wanted)
}

/// Removes volumes and cgroups (with `all`, everything) of a pod that has ended.
pub async fn clean_up(k: &Arc<Kubelet>, pod: &Arc<Pod>, all: bool) -> Result<(), String> {
    let uid = spec::uid(pod).to_string();
    k.objects.release(&uid);
    k.tokens.forget(&uid);
    k.volumes.forget(&uid);
    let dir = k.config.pod_dir(&uid);
    let this = k.clone();
    if let Err(e) = cgroups::weigh_classes(k, &uid).await {
        tracing::warn!(error = %e, "the cgroups of the QoS classes could not be brought up to date");
    }
    let pod_uid = uid.clone();
    k.volumes.work.settle(&uid).await;
    let job = move |_: &work::Closed| {
        if all {
            tear_down::remove(&dir)?;
        } else {
            // Termination messages stay until the pod is deleted.
            tear_down::remove(&dir.join("volume-subpaths"))?;
            tear_down::remove(&dir.join("volumes"))?;
        }
        this.cgroups
            .remove_pod(&pod_uid)
            .map_err(|e| format!("pod cgroup: {e}"))
    };
    let done = k
        .volumes
        .work
        .run(&uid, Lane::TearDown, work::TEAR_DOWN, job);
    done.await.map_err(|e| format!("volumes: {e}"))?
}
