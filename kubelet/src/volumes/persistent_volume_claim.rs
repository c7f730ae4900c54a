//! persistentVolumeClaim volumes, for volumes that are a directory of this node (hostPath and local). Owns the lookup of
//! claim and volume, and fsGroup on local ones; other kinds of volumes are refused with a clear message.

use super::place::{PRIVATE, Place};
use super::{Context, Mounted, host_path, ownership};
use crate::pod::spec;
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimVolumeSource, PersistentVolumeSpec, Pod,
};
use kube::api::Api;
use skiff_beneath::Root;
use std::fs;
use std::path::{Path, PathBuf};

/// Upstream's name of the local plugin. A directory of it in the pod's volumes says that the pod has the volume.
pub const LOCAL: &str = "kubernetes.io/local-volume";

/// Annotation of a PersistentVolume: a group that may use it.
const GID: &str = "pv.beta.kubernetes.io/gid";

/// What a claim stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// A hostPath volume: never given to fsGroup.
    HostPath(HostPathVolumeSource, bool),
    /// A local volume.
    Local(Local),
}

/// A local volume and how the pod wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Name of the PersistentVolume.
    pub volume: String,
    /// Where it is.
    pub path: PathBuf,
    /// Not to be written by this pod.
    pub read_only: bool,
    /// fsGroup
    pub group: Option<u32>,
    /// fsGroupChangePolicy is OnRootMismatch.
    pub on_root_mismatch: bool,
}

/// Looks the claim up; also the group that its volume's annotation names.
///
/// # Errors
/// A claim that does not exist or is not bound, or a volume of another kind.
pub async fn find(
    pod: &Pod,
    source: &PersistentVolumeClaimVolumeSource,
    group: Option<u32>,
    cx: &Context<'_>,
) -> Result<(Found, Option<i64>), String> {
    let name = &source.claim_name;
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(cx.client.clone(), spec::namespace(pod));
    let claim = claims
        .get(name)
        .await
        .map_err(|e| format!("error getting PVC {}/{name}: {e}", spec::namespace(pod)))?;
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.clone())
        .filter(|v| !v.is_empty());
    let (true, Some(volume)) = (bound, volume) else {
        return Err(format!("PVC {}/{name} is not bound", spec::namespace(pod)));
    };
    let volumes: Api<PersistentVolume> = Api::all(cx.client.clone());
    let pv = volumes
        .get(&volume)
        .await
        .map_err(|e| format!("error getting PV {volume}: {e}"))?;
    let policy = spec::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.fs_group_change_policy.as_deref());
    let gid = pv
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(GID))
        .and_then(|g| g.parse::<u32>().ok())
        .map(i64::from);
    let found = read(
        volume,
        &pv.spec.unwrap_or_default(),
        source.read_only.unwrap_or(false),
        group,
        policy == Some("OnRootMismatch"),
    )?;
    Ok((found, gid))
}

/// What the volume's spec says. Pure.
fn read(
    volume: String,
    spec: &PersistentVolumeSpec,
    read_only: bool,
    group: Option<u32>,
    on_root_mismatch: bool,
) -> Result<Found, String> {
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!(
            "PersistentVolume {volume}: volumeMode Block is not supported by this kubelet"
        ));
    }
    if spec.mount_options.as_ref().is_some_and(|o| !o.is_empty()) {
        return Err(format!(
            "PersistentVolume {volume}: mount options are not supported for this volume type"
        ));
    }
    if let Some(path) = &spec.host_path {
        return Ok(Found::HostPath(path.clone(), read_only));
    }
    if let Some(local) = &spec.local {
        return Ok(Found::Local(Local {
            path: PathBuf::from(&local.path),
            volume,
            read_only,
            group,
            on_root_mismatch,
        }));
    }
    Err(format!(
        "PersistentVolume {volume} is neither hostPath nor local; this kubelet supports no other volume plugin"
    ))
}

/// Makes it ready. A local volume is given to the pod's fsGroup when no other pod of the node has it (upstream
/// local.go); the second value says so when another pod has it with another group.
///
/// # Errors
/// A path that is not there or no directory, or the file system's error.
pub fn mount(place: &Place, found: &Found) -> Result<(Mounted, Option<String>), String> {
    let local = match found {
        Found::HostPath(source, read_only) => {
            let mounted = Mounted {
                read_only: *read_only,
                ..Mounted::at(host_path::mount(source)?)
            };
            return Ok((mounted, None));
        }
        Found::Local(local) => local,
    };
    let shown = local.path.display();
    let kind = fs::metadata(&local.path)
        .map_err(|_| format!("local volume {}: path {shown} does not exist", local.volume))?;
    if !kind.is_dir() {
        return Err(format!(
            "local volume {}: {shown} is no directory; block devices are not supported by this kubelet",
            local.volume
        ));
    }
    let mounted = Mounted {
        read_only: local.read_only,
        ..Mounted::at(local.path.clone())
    };
    let fail = |e: std::io::Error| format!("local volume {}: {e}", local.volume);
    let ours = place.volumes(LOCAL).map_err(fail)?;
    if ours.stat_at(Path::new(&local.volume)).is_ok() {
        return Ok((mounted, None));
    }
    let mut warning = None;
    if let Some(group) = local.group.filter(|_| !local.read_only) {
        let root = Root::open(&local.path).map_err(fail)?;
        let now = root.stat().map_err(fail)?.st_gid;
        if place
            .others_with(LOCAL, &local.volume)
            .map_err(fail)?
            .is_empty()
        {
            ownership::apply(&root, group, local.on_root_mismatch)
                .map_err(|e| format!("applyFSGroup failed for vol {}: {e}", local.volume))?;
        } else if now != group {
            warning = Some(format!(
                "The requested fsGroup is {group}, but the volume {} has GID {now}. The volume may not be shareable.",
                local.volume
            ));
        }
    }
    // Only after the walk has come to its end.
    ours.make_dir(&local.volume, PRIVATE).map_err(fail)?;
    Ok((mounted, warning))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_local_volume_is_given_to_its_first_pods_group_and_a_host_path_never() {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = Config::new("n", tmp.path());
        config.root_dir = tmp.path().join("kubelet");
        let path = tmp.path().join("disk");
        for d in [&config.root_dir, &path] {
            fs::create_dir(d).unwrap();
        }
        let file = path.join("f");
        fs::write(&file, "").unwrap();
        let local = |group| {
            Found::Local(Local {
                volume: "pv".into(),
                path: path.clone(),
                read_only: false,
                group: Some(group),
                on_root_mismatch: false,
            })
        };
        let group = || fs::metadata(&file).unwrap().gid();
        let first = Place::new(&config, "u1");
        let host = HostPathVolumeSource {
            path: path.to_string_lossy().into_owned(),
            type_: None,
        };
        mount(&first, &Found::HostPath(host, false)).unwrap();
        let before = group();
        assert_ne!(before, 7);
        let (mounted, warning) = mount(&first, &local(7)).unwrap();
        assert_eq!((mounted.path.as_path(), warning), (path.as_path(), None));
        assert_eq!(group(), 7);
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o664
        );
        // Brought up to date while the container runs: nothing is changed under its feet.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        mount(&first, &local(7)).unwrap();
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let second = Place::new(&config, "u2");
        let (_, warning) = mount(&second, &local(8)).unwrap();
        assert!(warning.unwrap().contains("requested fsGroup is 8"));
        assert_eq!(group(), 7);
        for p in [&first, &second] {
            super::super::tear_down::remove(&p.path()).unwrap();
        }
        assert!(file.exists(), "the user's data stays");
        mount(&second, &local(8)).unwrap();
        assert_eq!(group(), 8);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let spec = |v: serde_json::Value| serde_json::from_value(v).unwrap();
        let get = |v| read("pv".into(), &spec(v), false, None, false).unwrap_err();
        let local = serde_json::json!({"path": "/x"});
        let block = serde_json::json!({"volumeMode": "Block", "local": local});
        assert!(get(block).contains("volumeMode Block"));
        let options = serde_json::json!({"mountOptions": ["ro"], "local": local});
        assert!(get(options).contains("mount options"));
        let nfs = serde_json::json!({"nfs": {"server": "s", "path": "/"}});
        assert!(get(nfs).contains("neither hostPath nor local"));
    }
}
