//! Admission: what is changed or refused beyond a kind's own rules. Owns the order of the plugins; each plugin is a file
//! with upstream's name and plain functions. Writes nothing itself.
//!
//! Absent on purpose for now: webhooks, ValidatingAdmissionPolicy, CertificateApproval and its kin.

pub mod default_ingress_class;
pub mod default_storage_class;
pub mod default_toleration_seconds;
pub mod limit_ranger;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod persistent_volume_claim_resize;
pub mod pod_security;
pub mod priority;
pub mod resource_quota;
pub mod runtime_class;
pub mod service_account;
pub mod storage_object_in_use_protection;
pub mod taint_nodes_by_condition;

use crate::{App, Operation, Write};
use serde_json::Value;
use skiff_api::status::Status;
use std::sync::Arc;

/// What the plugins remember between writes.
#[derive(Default)]
pub struct Admission {
    /// Namespaces that were deleted a moment ago or whose quota is being counted.
    pub quota: resource_quota::Quota,
}

/// Lets every mutating plugin change `write.object`, in upstream's recommended order, before the object is validated.
///
/// # Errors
/// 403 and what else a plugin answers.
pub async fn mutate(
    app: &Arc<App>,
    write: &mut Write<'_>,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let _ = &warnings;
    namespace_lifecycle::admit(app, write)?;
    if write.operation == Operation::Delete {
        return Ok(());
    }
    taint_nodes_by_condition::admit(write);
    limit_ranger::admit(app, write)?;
    service_account::admit(app, write).await?;
    priority::admit(app, write)?;
    runtime_class::admit(app, write)?;
    default_toleration_seconds::admit(write);
    default_storage_class::admit(app, write)?;
    default_ingress_class::admit(app, write)?;
    storage_object_in_use_protection::admit(write);
    Ok(())
}

/// Lets every validating plugin look at the finished object (or at a delete) just before it is stored.
///
/// # Errors
/// 403 and what else a plugin answers.
pub async fn validate(
    app: &Arc<App>,
    write: &Write<'_>,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    namespace_lifecycle::validate(app, write)?;
    node_restriction::validate(app, write)?;
    crate::auth::escalation::validate(app, write)?;
    limit_ranger::validate(app, write)?;
    service_account::validate(app, write)?;
    priority::validate(app, write)?;
    persistent_volume_claim_resize::validate(app, write)?;
    pod_security::validate(app, write, warnings)?;
    resource_quota::validate(app, write).await
}

/// True for writes of the main resource of this kind.
pub(crate) fn is(write: &Write<'_>, group: &str, plural: &str) -> bool {
    write.subresource.is_empty() && write.row.group == group && write.row.plural == plural
}

/// True for the update of a pod's resources.
pub(crate) fn is_resize(write: &Write<'_>) -> bool {
    write.operation == Operation::Update
        && write.subresource == "resize"
        && write.row.storage == "core/pods"
}

/// 403 with upstream's form: `pods "x" is forbidden: why`.
pub(crate) fn forbidden(write: &Write<'_>, why: &str) -> Status {
    let name = if write.name.is_empty() {
        text(&write.object, &["metadata", "name"])
    } else {
        write.name
    };
    Status::forbidden(&write.row.group, &write.row.plural, name, why)
}

/// A string inside of an object; empty when there is none.
pub(crate) fn text<'a>(v: &'a Value, path: &[&str]) -> &'a str {
    let mut v = v;
    for p in path {
        match v.get(p) {
            Some(x) => v = x,
            None => return "",
        }
    }
    v.as_str().unwrap_or("")
}

/// All objects of a kind, decoded, in a namespace (all namespaces when empty).
pub(crate) fn list(app: &App, storage: &str, namespace: &str) -> Vec<Value> {
    let Some(row) = app.table.stored(storage) else {
        return Vec::new();
    };
    let prefix = row.collection(namespace);
    let page = app.store.range(&crate::store::Range {
        prefix: &prefix,
        ..Default::default()
    });
    page.map(|p| {
        p.entries
            .iter()
            .filter_map(|e| serde_json::from_slice(&e.value).ok())
            .collect()
    })
    .unwrap_or_default()
}

/// One object, decoded.
pub(crate) fn find(app: &App, storage: &str, namespace: &str, name: &str) -> Option<Value> {
    let row = app.table.stored(storage)?;
    let entry = app.store.get(&row.key(namespace, name))?;
    serde_json::from_slice(&entry.value).ok()
}
