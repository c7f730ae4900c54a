//! PersistentVolumeClaimResize: a claim may only grow when its class allows it. Reads storage classes, changes nothing.

use super::{find, text};
use crate::{App, Operation, Write};
use serde_json::Value;
use skiff_api::quantity::compare;
use skiff_api::status::Status;

/// Refuses growth that the class does not allow.
///
/// # Errors
/// 403.
pub fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    if write.operation != Operation::Update || !super::is(write, "", "persistentvolumeclaims") {
        return Ok(());
    }
    let Some(old) = &write.old else { return Ok(()) };
    let size = |v: &Value| {
        v.pointer("/spec/resources/requests/storage")
            .cloned()
            .unwrap_or(Value::Null)
    };
    let (new_size, old_size) = (size(&write.object), size(old));
    if new_size.is_null()
        || old_size.is_null()
        || !compare(&new_size, &old_size).is_some_and(std::cmp::Ordering::is_gt)
    {
        return Ok(());
    }
    if text(old, &["status", "phase"]) != "Bound" {
        return Err(super::forbidden(
            write,
            "Only bound persistent volume claims can be expanded",
        ));
    }
    let class = text(&write.object, &["spec", "storageClassName"]);
    let allowed = !class.is_empty()
        && find(app, "storage.k8s.io/storageclasses", "", class)
            .is_some_and(|c| c["allowVolumeExpansion"] == true);
    if allowed {
        return Ok(());
    }
    Err(super::forbidden(
        write,
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    ))
}
