//! persistentVolumeClaim volumes, for volumes that are a path of this node (hostPath and local). Owns the lookup of
//! claim and volume; other kinds of volumes are refused with a clear message.

use super::{Context, host_path};
use crate::pod::spec;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod,
};
use kube::api::Api;
use std::path::PathBuf;

/// The path, and whether it is read-only.
///
/// # Errors
/// A claim that does not exist or is not bound, or a volume of another kind.
pub async fn mount(
    pod: &Pod,
    source: &PersistentVolumeClaimVolumeSource,
    cx: &Context<'_>,
) -> Result<(PathBuf, bool), String> {
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
    let pv_spec = pv.spec.unwrap_or_default();
    let read_only = source.read_only.unwrap_or(false);
    if let Some(path) = &pv_spec.host_path {
        return Ok((host_path::mount(path)?, read_only));
    }
    if let Some(local) = &pv_spec.local {
        let path = PathBuf::from(&local.path);
        if !path.exists() {
            return Err(format!(
                "local volume {volume}: path {} does not exist",
                local.path
            ));
        }
        return Ok((path, read_only));
    }
    Err(format!(
        "PersistentVolume {volume} is neither hostPath nor local; this kubelet supports no other volume plugin"
    ))
}
