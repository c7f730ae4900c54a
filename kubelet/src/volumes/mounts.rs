//! The mounts of one container: volumeMounts, /etc/hosts, the termination log (upstream kubelet_pods.go makeMounts).
//! Owns files it makes for that below the pod's directory. Blocking: volumes may be on file systems that are slow.

use super::place::{PRIVATE, Place};
use super::work::Closed;
use super::{Mounted, subpath};
use crate::kuberuntime::container::propagation;
use crate::kuberuntime::expansion::expand;
use crate::kuberuntime::hosts;
use crate::pod::spec;
use k8s_cri::v1::{ImageSpec, Mount};
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use skiff_beneath::Attributes;
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The node's /etc/hosts is read up to here.
const HOSTS: u64 = 1 << 20;

/// Everything but the container itself.
pub struct Inputs {
    /// Where the pod's files are.
    pub place: Place,
    /// `cluster.local`
    pub cluster_domain: String,
    /// By volume name.
    pub volumes: Arc<HashMap<String, Mounted>>,
    /// The container's environment, for subPathExpr.
    pub env: Vec<(String, String)>,
    /// status.podIPs
    pub pod_ips: Vec<String>,
    /// Restart count.
    pub attempt: u32,
}

/// The mounts; makes subpath binds, the hosts file and the termination log.
///
/// # Errors
/// What CreateContainerConfigError shows.
pub fn make(
    pod: &Pod,
    c: &Container,
    inputs: &Inputs,
    closed: &Closed,
) -> Result<Vec<Mount>, String> {
    let mut out = Vec::new();
    for (i, m) in c.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = inputs.volumes.get(&m.name) else {
            return Err(format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                m.name, c.name
            ));
        };
        let sub_path = sub_path(m, &inputs.env)?;
        let container_path = if m.mount_path.starts_with('/') {
            m.mount_path.clone()
        } else {
            format!("/{}", m.mount_path)
        };
        let mut mount = Mount {
            container_path,
            // What the kubelet writes no container may change, whatever the pod says (CVE-2017-1002102).
            readonly: m.read_only.unwrap_or(false) || volume.read_only || volume.ours,
            propagation: propagation(m.mount_propagation.as_deref()),
            recursive_read_only: recursive_read_only(m)?,
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
            let target = Path::new("volume-subpaths")
                .join(&m.name)
                .join(&c.name)
                .join(i.to_string());
            inputs
                .place
                .pod()
                .map_err(|e| e.to_string())
                .and_then(|pod| {
                    subpath::bind(&volume.path, &sub_path, &pod, &target, !volume.read_only)
                })
                .map_err(|e| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                        m.name, c.name
                    )
                })?;
            let bound = inputs.place.path().join(target);
            mount.host_path = bound.to_string_lossy().into_owned();
        }
        out.push(mount);
    }
    // What hung may have hung for longer than the pod was there.
    if closed.is() {
        return Err("the pod's volumes are being removed".into());
    }
    let taken = |path: &str| {
        c.volume_mounts
            .iter()
            .flatten()
            .any(|m| m.mount_path == path)
    };
    if !taken("/etc/hosts") {
        let path = hosts_file(pod, inputs).map_err(|e| format!("etc-hosts: {e}"))?;
        out.push(Mount {
            container_path: "/etc/hosts".into(),
            host_path: path.to_string_lossy().into_owned(),
            ..Mount::default()
        });
    }
    let message = c
        .termination_message_path
        .clone()
        .filter(|p| !p.is_empty())
        .unwrap_or_else(|| "/dev/termination-log".into());
    if !taken(&message) {
        let path = termination_log(&c.name, inputs)
            .map_err(|e| format!("file of the termination message: {e}"))?;
        out.push(Mount {
            container_path: message,
            host_path: path.to_string_lossy().into_owned(),
            ..Mount::default()
        });
    }
    Ok(out)
}

/// subPath, or what subPathExpr comes to.
fn sub_path(m: &VolumeMount, env: &[(String, String)]) -> Result<String, String> {
    let Some(expr) = m.sub_path_expr.as_deref().filter(|e| !e.is_empty()) else {
        return Ok(m.sub_path.clone().unwrap_or_default());
    };
    let missing = std::cell::RefCell::new(None);
    let text = expand(expr, |n| {
        let found = env.iter().find(|(k, _)| k == n).map(|(_, v)| v.clone());
        if found.is_none() {
            *missing.borrow_mut() = Some(n.to_string());
        }
        found
    });
    match missing.into_inner() {
        None => Ok(text),
        Some(n) => Err(format!(
            "failed to expand subPathExpr of volumeMount \"{}\": missing value for \"{n}\"",
            m.name
        )),
    }
}

/// Whether what is mounted below is read-only too (upstream resolveRecursiveReadOnly). Every runtime that this kubelet
/// knows can do it or says in its own words that it cannot.
fn recursive_read_only(m: &VolumeMount) -> Result<bool, String> {
    let wanted = match m.recursive_read_only.as_deref() {
        None | Some("Disabled") => return Ok(false),
        Some(wanted @ ("IfPossible" | "Enabled")) => wanted,
        Some(other) => {
            return Err(format!(
                "volume \"{}\": unknown recursiveReadOnly {other:?}",
                m.name
            ));
        }
    };
    if !m.read_only.unwrap_or(false) {
        return Err(format!(
            "volume \"{}\" requested recursive read-only mode, but it is not read-only",
            m.name
        ));
    }
    match m.mount_propagation.as_deref() {
        None | Some("None") => Ok(true),
        Some(mode) => Err(format!(
            "volume \"{}\" requested recursive read-only mode ({wanted}), but it is not compatible with propagation {mode:?}",
            m.name
        )),
    }
}

/// A new file for each attempt, writable for whoever the container runs as.
fn termination_log(container: &str, inputs: &Inputs) -> io::Result<PathBuf> {
    let relative = Path::new("containers").join(container);
    let name = inputs.attempt.to_string();
    let dir = inputs.place.pod()?.make_dirs(&relative, PRIVATE)?;
    dir.remove_file(&name)?;
    let everybody = Attributes {
        mode: 0o666,
        ..Attributes::default()
    };
    dir.write_new(&name, b"", everybody)?;
    Ok(inputs.place.path().join(relative).join(name))
}

/// The file is the containers' to write, in place: it is bind mounted into those that run.
fn hosts_file(pod: &Pod, inputs: &Inputs) -> io::Result<PathBuf> {
    let mut node = None;
    if spec::host_network(pod) {
        let mut text = Vec::new();
        if let Ok(f) = fs::File::open("/etc/hosts") {
            f.take(HOSTS).read_to_end(&mut text)?;
        }
        node = Some(String::from_utf8_lossy(&text).into_owned());
    }
    let text = hosts::hosts_file(
        pod,
        &inputs.pod_ips,
        &inputs.cluster_domain,
        node.as_deref(),
    );
    let dir = inputs.place.pod()?;
    let name = "etc-hosts";
    if !dir
        .read(name, text.len())
        .is_ok_and(|now| now == text.as_bytes())
    {
        let attributes = Attributes {
            mode: 0o644,
            ..Attributes::default()
        };
        dir.overwrite(name, text.as_bytes(), attributes)?;
    }
    Ok(inputs.place.path().join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::os::unix::fs::PermissionsExt;

    fn setting(tmp: &Path, volumes: &[(&str, Mounted)]) -> (Pod, Inputs) {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "c", "volumeMounts": [
                {"name": "map", "mountPath": "/map", "readOnly": false},
                {"name": "map", "mountPath": "/key", "subPath": "key"},
                {"name": "empty", "mountPath": "/empty"}]}]}
        }))
        .unwrap();
        let mut config = Config::new("n", tmp);
        config.root_dir = tmp.to_path_buf();
        let volumes = volumes
            .iter()
            .map(|(n, m)| (n.to_string(), m.clone()))
            .collect();
        let inputs = Inputs {
            place: Place::new(&config, "u"),
            cluster_domain: "cluster.local".into(),
            volumes: Arc::new(volumes),
            env: Vec::new(),
            pod_ips: vec!["10.42.0.9".into()],
            attempt: 0,
        };
        (pod, inputs)
    }

    #[test]
    fn what_the_kubelet_writes_is_read_only_for_every_container() {
        let tmp = tempfile::tempdir().unwrap();
        let map = tmp.path().join("map");
        fs::create_dir(&map).unwrap();
        let ours = Mounted {
            ours: true,
            ..Mounted::at(map)
        };
        let empty = Mounted::at(tmp.path().join("empty"));
        let (pod, inputs) = setting(tmp.path(), &[("map", ours), ("empty", empty)]);
        let got = make(
            &pod,
            &spec::containers(&pod)[0],
            &inputs,
            &Closed::default(),
        );
        super::super::tear_down::remove(&inputs.place.path()).unwrap();
        let read_only: Vec<(String, bool)> = got
            .unwrap()
            .into_iter()
            .map(|m| (m.container_path, m.readonly))
            .collect();
        let want = [
            ("/map", true),
            ("/key", true),
            ("/empty", false),
            ("/etc/hosts", false),
            ("/dev/termination-log", false),
        ]
        .map(|(p, r)| (p.to_string(), r));
        assert_eq!(read_only, want);
    }

    #[test]
    fn a_hosts_file_that_a_container_has_filled_is_written_anew_without_being_read() {
        let tmp = tempfile::tempdir().unwrap();
        let (pod, inputs) = setting(tmp.path(), &[]);
        let path = hosts_file(&pod, &inputs).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("10.42.0.9\tp\n"));
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 42).unwrap();
        hosts_file(&pod, &inputs).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        let log = termination_log("c", &inputs).unwrap();
        assert_eq!(
            fs::metadata(&log).unwrap().permissions().mode() & 0o777,
            0o666
        );
    }

    #[test]
    fn recursive_read_only_is_done_or_refused() {
        let get = |v: serde_json::Value| {
            let mut m = serde_json::json!({"name": "v", "mountPath": "/v"});
            m.as_object_mut()
                .unwrap()
                .extend(v.as_object().unwrap().clone());
            recursive_read_only(&serde_json::from_value(m).unwrap())
        };
        use serde_json::json;
        assert_eq!(get(json!({})), Ok(false));
        for how in ["Enabled", "IfPossible"] {
            assert_eq!(
                get(json!({"readOnly": true, "recursiveReadOnly": how})),
                Ok(true)
            );
            assert!(get(json!({"recursiveReadOnly": how})).is_err());
            let propagated = json!({"readOnly": true, "recursiveReadOnly": how, "mountPropagation": "HostToContainer"});
            assert!(get(propagated).is_err());
        }
        assert!(get(json!({"readOnly": true, "recursiveReadOnly": "Perhaps"})).is_err());
    }
}
