//! RuntimeClass: a pod's runtime class must exist; its overhead and scheduling constraints become the pod's. Reads runtime
//! classes, changes pods.

use super::{find, text};
use crate::{App, Operation, Write};
use serde_json::{Value, json};
use skiff_api::status::Status;

/// Applies the class to new pods.
///
/// # Errors
/// 403 when it is missing or contradicts the pod.
pub fn admit(app: &App, write: &mut Write<'_>) -> Result<(), Status> {
    if write.operation != Operation::Create || !super::is(write, "", "pods") {
        return Ok(());
    }
    let name = text(&write.object, &["spec", "runtimeClassName"]).to_string();
    let overhead = write
        .object
        .pointer("/spec/overhead")
        .filter(|v| v.as_object().is_some_and(|o| !o.is_empty()))
        .cloned();
    if name.is_empty() {
        if overhead.is_some() {
            return Err(super::forbidden(
                write,
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ));
        }
        return Ok(());
    }
    let Some(class) = find(app, "node.k8s.io/runtimeclasses", "", &name) else {
        return Err(super::forbidden(
            write,
            &format!("pod rejected: RuntimeClass {name:?} not found"),
        ));
    };
    let fixed = class
        .pointer("/overhead/podFixed")
        .filter(|v| v.is_object())
        .cloned();
    match (&overhead, &fixed) {
        (Some(o), Some(f)) if o != f => {
            return Err(super::forbidden(
                write,
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ));
        }
        (Some(_), None) => {
            return Err(super::forbidden(
                write,
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ));
        }
        _ => {}
    }
    let selector = class
        .pointer("/scheduling/nodeSelector")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    for (k, v) in &selector {
        if write.object["spec"]["nodeSelector"]
            .get(k)
            .is_some_and(|mine| mine != v)
        {
            return Err(super::forbidden(
                write,
                &format!("pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{k}] = {v}"),
            ));
        }
    }
    let Some(spec) = write.object.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    if let Some(f) = fixed {
        spec.insert("overhead".into(), f);
    }
    if !selector.is_empty() {
        let mine = spec.entry("nodeSelector").or_insert_with(|| json!({}));
        if let Some(m) = mine.as_object_mut() {
            m.extend(selector);
        }
    }
    let tolerations = class
        .pointer("/scheduling/tolerations")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if !tolerations.is_empty() {
        let mine = spec.entry("tolerations").or_insert_with(|| json!([]));
        if let Some(m) = mine.as_array_mut() {
            for t in tolerations {
                if !m.contains(&t) {
                    m.push(t);
                }
            }
        }
    }
    Ok(())
}
