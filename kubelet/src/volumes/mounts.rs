//! The mounts of one container: volumeMounts, /etc/hosts, the termination log (upstream kubelet_pods.go makeMounts).
//! Owns files it makes for that below the pod's directory.

use super::{Mounted, subpath};
use crate::config::Config;
use crate::kuberuntime::container::propagation;
use crate::kuberuntime::expansion::expand;
use crate::kuberuntime::hosts;
use crate::pod::spec;
use k8s_cri::v1::{ImageSpec, Mount};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Everything but the container itself.
pub struct Inputs<'a> {
    /// The kubelet's configuration.
    pub config: &'a Config,
    /// By volume name.
    pub volumes: &'a HashMap<String, Mounted>,
    /// The container's environment, for subPathExpr.
    pub env: &'a [(String, String)],
    /// status.podIPs
    pub pod_ips: &'a [String],
    /// Restart count.
    pub attempt: u32,
}

/// The mounts; makes subpath binds, the hosts file and the termination log.
///
/// # Errors
/// What CreateContainerConfigError shows.
pub fn make(pod: &Pod, c: &Container, inputs: &Inputs<'_>) -> Result<Vec<Mount>, String> {
    let uid = spec::uid(pod);
    let mut out = Vec::new();
    for (i, m) in c.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = inputs.volumes.get(&m.name) else {
            return Err(format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                m.name, c.name
            ));
        };
        let sub_path = match m.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            Some(expr) => {
                let missing = std::cell::RefCell::new(None);
                let text = expand(expr, |n| {
                    let found = inputs
                        .env
                        .iter()
                        .find(|(k, _)| k == n)
                        .map(|(_, v)| v.clone());
                    if found.is_none() {
                        *missing.borrow_mut() = Some(n.to_string());
                    }
                    found
                });
                if let Some(n) = missing.into_inner() {
                    return Err(format!(
                        "failed to expand subPathExpr of volumeMount \"{}\": missing value for \"{n}\"",
                        m.name
                    ));
                }
                text
            }
            None => m.sub_path.clone().unwrap_or_default(),
        };
        let read_only = m.read_only.unwrap_or(false) || volume.read_only;
        let container_path = if m.mount_path.starts_with('/') {
            m.mount_path.clone()
        } else {
            format!("/{}", m.mount_path)
        };
        let mut mount = Mount {
            container_path,
            readonly: read_only,
            propagation: propagation(m.mount_propagation.as_deref()),
            recursive_read_only: read_only && m.recursive_read_only.as_deref() == Some("Enabled"),
            ..Mount::default()
        };
        if let Some(image) = &volume.image {
            if !sub_path.is_empty() {
                return Err(format!(
                    "volumeMount \"{}\": subPath of image volumes is not supported by this kubelet",
                    m.name
                ));
            }
            mount.image = Some(ImageSpec {
                image: image.clone(),
                ..ImageSpec::default()
            });
            mount.readonly = true;
        } else if sub_path.is_empty() {
            mount.host_path = volume.path.to_string_lossy().into_owned();
        } else {
            let target = inputs
                .config
                .pod_dir(uid)
                .join("volume-subpaths")
                .join(&m.name)
                .join(&c.name)
                .join(i.to_string());
            let bound =
                subpath::bind(&volume.path, &sub_path, &target, volume.read_only).map_err(|e| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                        m.name, c.name
                    )
                })?;
            mount.host_path = bound.to_string_lossy().into_owned();
        }
        out.push(mount);
    }
    let taken = |path: &str| {
        c.volume_mounts
            .iter()
            .flatten()
            .any(|m| m.mount_path == path)
    };
    if !taken("/etc/hosts") {
        out.push(Mount {
            container_path: "/etc/hosts".into(),
            host_path: hosts_file(pod, inputs)?.to_string_lossy().into_owned(),
            ..Mount::default()
        });
    }
    let message = c
        .termination_message_path
        .clone()
        .filter(|p| !p.is_empty())
        .unwrap_or_else(|| "/dev/termination-log".into());
    if !taken(&message) {
        let dir = inputs.config.container_dir(uid, &c.name);
        let path = dir.join(inputs.attempt.to_string());
        let io = |e: std::io::Error| format!("{}: {e}", path.display());
        fs::create_dir_all(&dir).map_err(io)?;
        fs::write(&path, b"").map_err(io)?;
        // Containers run as anybody.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(io)?;
        out.push(Mount {
            container_path: message,
            host_path: path.to_string_lossy().into_owned(),
            ..Mount::default()
        });
    }
    Ok(out)
}

fn hosts_file(pod: &Pod, inputs: &Inputs<'_>) -> Result<PathBuf, String> {
    let path = inputs.config.pod_dir(spec::uid(pod)).join("etc-hosts");
    let io = |e: std::io::Error| format!("{}: {e}", path.display());
    let node = if spec::host_network(pod) {
        Some(fs::read_to_string("/etc/hosts").unwrap_or_default())
    } else {
        None
    };
    let text = hosts::hosts_file(
        pod,
        inputs.pod_ips,
        &inputs.config.cluster_domain,
        node.as_deref(),
    );
    if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io)?;
        }
        // In place: the file is bind mounted into containers that run.
        fs::write(&path, text).map_err(io)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(io)?;
    }
    Ok(path)
}
