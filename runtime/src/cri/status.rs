//! Owns what the runtime says about sandboxes and containers: statuses, list entries, events, filters.

use super::{Container, ContainerState, Phase, Runtime, Sandbox, decode_pb};
use crate::sys;
use k8s_cri::v1;
use std::collections::HashMap;

/// CRI's label selector: every pair must match.
pub(super) fn labels_match(
    selector: &HashMap<String, String>,
    labels: &HashMap<String, String>,
) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

impl Sandbox {
    pub(super) fn cri_state(&self) -> v1::PodSandboxState {
        match self.state.lock().phase {
            Phase::Ready => v1::PodSandboxState::SandboxReady,
            _ => v1::PodSandboxState::SandboxNotready,
        }
    }

    pub(super) fn status(&self) -> v1::PodSandboxStatus {
        let ips: Vec<String> = self
            .state
            .lock()
            .ips
            .iter()
            .map(ToString::to_string)
            .collect();
        let options = crate::container::build::sandbox_namespaces(&self.config);
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.cri_state() as i32,
            created_at: self.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: ips.first().cloned().unwrap_or_default(),
                additional_ips: ips
                    .iter()
                    .skip(1)
                    .map(|ip| v1::PodIp { ip: ip.clone() })
                    .collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace {
                    options: Some(options),
                }),
            }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }

    pub(super) fn entry(&self) -> v1::PodSandbox {
        v1::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.cri_state() as i32,
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }
}

impl Container {
    /// The limits in force: those of the last update, else of the request.
    pub(super) fn resources(&self) -> Option<v1::LinuxContainerResources> {
        let record = self.record.lock();
        record
            .resources
            .as_deref()
            .and_then(decode_pb)
            .or_else(|| self.config.linux.as_ref().and_then(|l| l.resources.clone()))
    }

    pub(super) fn status(&self) -> v1::ContainerStatus {
        let state = self.state.borrow().clone();
        let resources = self.resources();
        let record = self.record.lock();
        let (reason, message) = reason(&state);
        let e = state.exited.as_ref();
        let p = &record.spec.process;
        v1::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: state.cri() as i32,
            created_at: record.created_at,
            started_at: state.started_at,
            finished_at: e.map_or(0, |e| e.finished_at),
            exit_code: e.map_or(0, |e| e.exit_code),
            image: Some(self.image_spec(&record.image_name)),
            image_ref: record.image_ref.clone(),
            reason,
            message,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: record
                .spec
                .log_path
                .as_ref()
                .map(|p| p.display().to_string())
                .unwrap_or_default(),
            resources: resources.map(|r| v1::ContainerResources {
                linux: Some(r),
                windows: None,
            }),
            image_id: record.image_id.clone(),
            user: Some(v1::ContainerUser {
                linux: Some(v1::LinuxContainerUser {
                    uid: i64::from(p.uid),
                    gid: i64::from(p.gid),
                    supplemental_groups: p.groups.iter().map(|g| i64::from(*g)).collect(),
                }),
            }),
        }
    }

    fn image_spec(&self, name: &str) -> v1::ImageSpec {
        v1::ImageSpec {
            image: name.to_string(),
            ..self.config.image.clone().unwrap_or_default()
        }
    }

    pub(super) fn entry(&self) -> v1::Container {
        let record = self.record.lock();
        v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: record.sandbox_id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: record.image_ref.clone(),
            state: self.state.borrow().cri() as i32,
            created_at: record.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: record.image_id.clone(),
        }
    }
}

/// CRI's words for why a container is as it is.
fn reason(state: &ContainerState) -> (String, String) {
    let Some(e) = &state.exited else {
        return Default::default();
    };
    let reason = match e {
        _ if !e.reason.is_empty() => &e.reason,
        _ if e.oom_killed => "OOMKilled",
        _ if e.exit_code == 0 => "Completed",
        _ => "Error",
    };
    (reason.to_string(), e.message.clone())
}

impl Runtime {
    /// Tells everybody who listens. `id` is a container's, or the sandbox's for events of its own (as containerd does).
    pub(super) fn tell(&self, sandbox: &Sandbox, id: &str, kind: v1::ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let event = v1::ContainerEventResponse {
            container_id: id.to_string(),
            container_event_type: kind as i32,
            created_at: sys::now_ns(),
            pod_sandbox_status: Some(sandbox.status()),
            containers_statuses: self
                .containers_of(&sandbox.id)
                .iter()
                .map(|c| c.status())
                .collect(),
        };
        let _ = self.events.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::Exited;

    #[test]
    fn reasons_are_completed_error_oomkilled_or_what_was_recorded() {
        let of = |exit_code, oom_killed, why: &str| {
            let exited = Some(Exited {
                exit_code,
                finished_at: 1,
                oom_killed,
                reason: why.into(),
                message: String::new(),
            });
            reason(&ContainerState {
                pid: 0,
                started_at: 1,
                exited,
            })
            .0
        };
        assert_eq!(
            [
                of(0, false, ""),
                of(3, false, ""),
                of(137, true, ""),
                of(128, false, "StartError")
            ],
            ["Completed", "Error", "OOMKilled", "StartError"]
        );
    }
}
