//! NamespaceLifecycle: objects are only created in namespaces that are there and are not ending; the cluster's own
//! namespaces stay. Reads the store, changes nothing.

use super::text;
use crate::{App, Operation, Write};
use serde_json::json;
use skiff_api::status::Status;

/// Namespaces that nobody may delete.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Refuses creates in a namespace that is missing or ending.
///
/// # Errors
/// 403, 404.
pub fn admit(app: &App, write: &Write<'_>) -> Result<(), Status> {
    if write.operation != Operation::Create || write.namespace.is_empty() || !write.row.namespaced()
    {
        return Ok(());
    }
    let ns = write.namespace;
    let Some(entry) = app.store.get(&format!("/core/namespaces/{ns}")) else {
        return Err(Status::not_found("", "namespaces", ns));
    };
    // The field is kept beside the entry, so that a create costs no decoding.
    let terminating = entry.attributes.field("status.phase") == Some("Terminating");
    if !terminating {
        return Ok(());
    }
    let why =
        format!("unable to create new content in namespace {ns} because it is being terminated");
    let mut status = super::forbidden(write, &why);
    status.details["causes"] = json!([{
        "reason": "NamespaceTerminating", "message": format!("namespace {ns} is being terminated"), "field": "metadata.namespace",
    }]);
    Err(status)
}

/// Refuses the deletion of the cluster's own namespaces, and looks again at the namespace just before the write.
///
/// # Errors
/// 403, 404.
pub fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    if write.operation == Operation::Delete
        && super::is(write, "", "namespaces")
        && IMMORTAL.contains(&write.name)
        && write
            .old
            .as_ref()
            .is_some_and(|o| text(o, &["metadata", "deletionTimestamp"]).is_empty())
    {
        return Err(Status::forbidden(
            "",
            "namespaces",
            write.name,
            "this namespace may not be deleted",
        ));
    }
    admit(app, write)
}
