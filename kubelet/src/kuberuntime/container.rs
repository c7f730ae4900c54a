//! The CRI configuration of a container (upstream kuberuntime_container.go generateContainerConfig). Pure: mounts and
//! environment come in.

use super::expansion::expand;
use super::{env, resources, security};
use crate::config::Config;
use crate::labels;
use crate::pod::spec::{self, Role};
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, Device, ImageSpec, KeyValue, LinuxContainerConfig, Mount,
    MountPropagation,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;

/// Termination messages longer than this are cut.
pub const MAX_TERMINATION_MESSAGE: usize = 4096;

/// Everything that had to be looked up for a container.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Restart count.
    pub attempt: u32,
    /// Image reference to run, as the runtime names it.
    pub image_ref: String,
    /// Who the image runs as.
    pub image_user: security::ImageUser,
    /// Name and value.
    pub env: Vec<(String, String)>,
    /// Variables of Services (they are in `env` too, but expansion looks at both).
    pub services: Vec<(String, String)>,
    /// Volume mounts, /etc/hosts and the termination log.
    pub mounts: Vec<Mount>,
    /// Memory of the node in bytes.
    pub node_memory: i64,
    /// The container whose processes an ephemeral container is to see.
    pub target_id: Option<String>,
}

/// The configuration.
///
/// # Errors
/// What CreateContainerConfigError shows.
pub fn config(
    pod: &Pod,
    c: &Container,
    role: Role,
    inputs: Inputs,
    config: &Config,
) -> Result<ContainerConfig, String> {
    let words = |list: Option<&Vec<String>>| -> Vec<String> {
        list.into_iter()
            .flatten()
            .map(|w| expand(w, |n| env::lookup(&inputs.env, &inputs.services, n)))
            .collect()
    };
    let mut security = security::container(
        pod,
        c,
        &inputs.image_user,
        (config.seccomp_default, &config.seccomp_dir()),
        inputs.target_id.as_deref(),
    )?;
    // A command that replaces the image's keeps the image's user; nothing to do here.
    if security.run_as_user.is_some() {
        security.run_as_username.clear();
    }
    let mut resources = resources::container(pod, c, inputs.node_memory);
    if role == Role::Ephemeral {
        resources.memory_limit_in_bytes = 0;
    }
    let image = c.image.clone().unwrap_or_default();
    let message_path = c
        .termination_message_path
        .clone()
        .filter(|p| !p.is_empty())
        .unwrap_or_else(|| "/dev/termination-log".into());
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: c.name.clone(),
            attempt: inputs.attempt,
        }),
        image: Some(ImageSpec {
            image: inputs.image_ref.clone(),
            user_specified_image: image,
            ..ImageSpec::default()
        }),
        command: words(c.command.as_ref()),
        args: words(c.args.as_ref()),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        envs: inputs
            .env
            .iter()
            .map(|(key, value)| KeyValue {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        devices: Vec::<Device>::new(),
        labels: HashMap::from([
            (labels::POD_NAME.into(), spec::name(pod).into()),
            (labels::POD_NAMESPACE.into(), spec::namespace(pod).into()),
            (labels::POD_UID.into(), spec::uid(pod).into()),
            (labels::CONTAINER_NAME.into(), c.name.clone()),
        ]),
        annotations: {
            let mut a = HashMap::from([
                (labels::HASH.to_string(), spec::container_hash(c)),
                (labels::RESTART_COUNT.into(), inputs.attempt.to_string()),
                (labels::TERMINATION_MESSAGE_PATH.into(), message_path),
                (
                    labels::TERMINATION_MESSAGE_POLICY.into(),
                    c.termination_message_policy
                        .clone()
                        .unwrap_or_else(|| "File".into()),
                ),
                (
                    labels::POD_TERMINATION_GRACE.into(),
                    spec::grace_period(pod).to_string(),
                ),
            ]);
            if let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
                && let Ok(json) = serde_json::to_string(hook)
            {
                a.insert(labels::PRE_STOP.into(), json);
            }
            if let Some(signal) = c.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()) {
                a.insert(labels::STOP_SIGNAL.into(), signal);
            }
            a
        },
        mounts: inputs.mounts,
        log_path: format!("{}/{}.log", c.name, inputs.attempt),
        stdin: c.stdin.unwrap_or(false),
        stdin_once: c.stdin_once.unwrap_or(false),
        tty: c.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(security),
        }),
        ..ContainerConfig::default()
    })
}

/// Adds supplementary groups that volumes bring along.
pub fn join_groups(config: &mut ContainerConfig, groups: &[i64]) {
    let Some(security) = config
        .linux
        .as_mut()
        .and_then(|l| l.security_context.as_mut())
    else {
        return;
    };
    for group in groups {
        if !security.supplemental_groups.contains(group) {
            security.supplemental_groups.push(*group);
        }
    }
}

/// CRI's word for a mount propagation.
pub fn propagation(mode: Option<&str>) -> i32 {
    (match mode {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    }) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_see_the_environment() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i:1", "command": ["sh", "-c", "echo $(A) $$(A) $(NO)"],
                "args": ["$(S)"], "stdin": true}]}
        }))
        .unwrap();
        let inputs = Inputs {
            attempt: 3,
            image_ref: "sha256:1".into(),
            env: vec![("A".into(), "1".into())],
            services: vec![("S".into(), "2".into())],
            ..Inputs::default()
        };
        let cfg = Config::new("n1", std::path::Path::new("/d"));
        let got = config(
            &pod,
            &spec::containers(&pod)[0],
            Role::Regular,
            inputs,
            &cfg,
        )
        .unwrap();
        assert_eq!(got.command, ["sh", "-c", "echo 1 $(A) $(NO)"]);
        assert_eq!(got.args, ["2"]);
        assert_eq!(got.log_path, "c/3.log");
        assert_eq!(got.annotations[labels::RESTART_COUNT], "3");
        assert!(got.stdin && !got.tty);
        let mut got = got;
        join_groups(&mut got, &[7, 7]);
        let security = got.linux.unwrap().security_context.unwrap();
        assert_eq!(security.supplemental_groups, [7]);
    }
}
