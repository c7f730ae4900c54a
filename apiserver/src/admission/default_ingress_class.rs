//! DefaultIngressClass: an ingress that names no class gets the default one. Reads ingress classes, changes the ingress.

use super::list;
use crate::{App, Operation, Write};
use serde_json::Value;
use skiff_api::status::Status;

/// Sets `spec.ingressClassName` on create.
///
/// # Errors
/// None so far.
pub fn admit(app: &App, write: &mut Write<'_>) -> Result<(), Status> {
    if write.operation != Operation::Create || !super::is(write, "networking.k8s.io", "ingresses") {
        return Ok(());
    }
    let asked = write
        .object
        .pointer("/spec/ingressClassName")
        .is_some_and(|v| !v.is_null());
    if asked
        || write.object["metadata"]["annotations"]
            .get("kubernetes.io/ingress.class")
            .is_some()
    {
        return Ok(());
    }
    let classes = list(app, "networking.k8s.io/ingressclasses", "");
    if let Some(name) = super::default_storage_class::newest(
        classes,
        &["ingressclass.kubernetes.io/is-default-class"],
    ) && let Some(spec) = write.object.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.insert("ingressClassName".into(), name.into());
    }
    Ok(())
}
