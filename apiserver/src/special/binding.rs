//! `pods/binding` and `bindings`: a pod is given its node, once. Owns the rules of upstream's BindingREST; writes the pod
//! straight into the store, for this is the hottest write of a busy scheduler.

use crate::admission::{self, node_restriction, text};
use crate::auth::node::references::MIRROR;
use crate::http::{Answer, Request, negotiate, respond};
use crate::registry::table::Row;
use crate::registry::{self, encode, form, input};
use crate::{App, Operation, Write, store};
use serde_json::{Map, Value, json};
use skiff_api::decode::Expect;
use skiff_api::field::FieldError;
use skiff_api::status::Status;
use skiff_api::{meta, names};
use std::sync::Arc;

/// POST of a Binding.
///
/// # Errors
/// 400, 404, 409 when the pod has a node or is ending, 422.
pub async fn create(app: &Arc<App>, mut request: Request) -> Answer {
    let accept = negotiate::accept(&request.parts.headers, None, false)?;
    let posted = input::posted(&mut request, Expect::gvk("", "v1", "Binding"), true).await?;
    let binding = posted.object;
    let given = text(&binding, &["metadata", "name"]);
    let name = if request.info.name.is_empty() {
        given
    } else {
        &request.info.name
    };
    let namespace = request.info.namespace.as_str();
    if name.is_empty() {
        return Err(Status::bad_request("name is required"));
    }
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    node_restriction::pod_subresource(app, &request.user, namespace, name, "binding")?;
    let row = app
        .table
        .get("", "v1", "pods")
        .ok_or_else(Status::no_route)?;
    admission::namespace_lifecycle::admit(
        app,
        &Write {
            operation: Operation::Create,
            row: &row,
            subresource: "binding",
            namespace,
            name,
            object: Value::Null,
            old: None,
            user: &request.user,
            dry_run: posted.dry_run,
        },
    )?;
    let errors = validate(&binding);
    if !errors.is_empty() {
        return Err(Status::invalid("", "Binding", name, &errors));
    }
    assign(app, &row, namespace, name, &binding, posted.dry_run).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    let mut answer = respond::value(201, accept, &status);
    respond::warn(&mut answer, &posted.warnings);
    Ok(answer)
}

/// ValidatePodBinding, and beyond it the rules of what is copied into the pod: a pod must not get through a binding what it
/// could not have been created with.
fn validate(binding: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = text(binding, &["target", "kind"]);
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported(
            "target.kind",
            kind,
            &["Node", "<empty>"],
        ));
    }
    let node = text(binding, &["target", "name"]);
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    } else {
        for why in names::is_dns1123_subdomain(node) {
            errors.push(FieldError::invalid("target.name", node, why));
        }
    }
    let part = |k: &str| binding["metadata"].get(k).unwrap_or(&Value::Null);
    errors.extend(meta::validate_labels(part("labels"), "metadata.labels"));
    errors.extend(meta::validate_annotations(
        part("annotations"),
        "metadata.annotations",
    ));
    if part("annotations").get(MIRROR).is_some() {
        errors.push(FieldError::forbidden(
            format!("metadata.annotations[{MIRROR}]"),
            "may not add mirror pod annotation",
        ));
    }
    errors
}

async fn assign(
    app: &Arc<App>,
    row: &Row,
    namespace: &str,
    name: &str,
    binding: &Value,
    dry_run: bool,
) -> Result<(), Status> {
    let node = text(binding, &["target", "name"]);
    let key = row.key(namespace, name);
    let conflict = |why: String| Status::conflict("", "pods/binding", name, &why);
    loop {
        let entry = app
            .store
            .get(&key)
            .ok_or_else(|| Status::not_found("", "pods", name))?;
        let mut pod = form::value_of(app, row, &entry)?;
        let uid = text(binding, &["metadata", "uid"]);
        if !uid.is_empty() && uid != text(&pod, &["metadata", "uid"]) {
            return Err(conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                text(&pod, &["metadata", "uid"])
            )));
        }
        let version = text(binding, &["metadata", "resourceVersion"]);
        if !version.is_empty() && version != entry.revision.to_string() {
            return Err(conflict(registry::update::MODIFIED.into()));
        }
        apply(&mut pod, name, binding, node, &registry::now()).map_err(conflict)?;
        // Together with what the pod has, annotations may be too many.
        let annotations = pod["metadata"].get("annotations").unwrap_or(&Value::Null);
        let errors = meta::validate_annotations(annotations, "metadata.annotations");
        if !errors.is_empty() {
            return Err(Status::invalid("", "Pod", name, &errors));
        }
        let bytes = encode::bounded(row, &pod, entry.value.len())?;
        if dry_run {
            return Ok(());
        }
        match app
            .store
            .write(
                key.clone(),
                store::Expect::Revision(entry.revision),
                Some(bytes),
            )
            .await
        {
            Ok(_) => return Ok(()),
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.status()),
        }
    }
}

/// Upstream's setPodNodeAndMetadata and the PodScheduled condition.
fn apply(
    pod: &mut Value,
    name: &str,
    binding: &Value,
    node: &str,
    now: &str,
) -> Result<(), String> {
    if !text(pod, &["metadata", "deletionTimestamp"]).is_empty() {
        return Err(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let has = text(pod, &["spec", "nodeName"]);
    if !has.is_empty() {
        return Err(format!("pod {name} is already assigned to node {has:?}"));
    }
    if pod
        .pointer("/spec/schedulingGates")
        .and_then(Value::as_array)
        .is_some_and(|g| !g.is_empty())
    {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Err("the pod has no spec".into());
    };
    spec.insert("nodeName".into(), node.into());
    for key in ["annotations", "labels"] {
        let add = binding
            .pointer(&format!("/metadata/{key}"))
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        if !add.is_empty()
            && let Some(m) = pod["metadata"].as_object_mut()
        {
            let slot = m.entry(key).or_insert_with(|| Value::Object(Map::new()));
            if let Some(slot) = slot.as_object_mut() {
                slot.extend(add);
            }
        }
    }
    let generation = pod.pointer("/metadata/generation").cloned();
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let conditions = &mut pod["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else {
        return Ok(());
    };
    let mut condition = json!({"type": "PodScheduled"});
    if let Some(g) = generation {
        condition["observedGeneration"] = g;
    }
    condition["status"] = "True".into();
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = now.into();
    match list.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(c) => {
            if c["status"] == "True" {
                condition["lastTransitionTime"] = c["lastTransitionTime"].clone();
            }
            *c = condition;
        }
        None => list.push(condition),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_carries_nothing_that_a_pod_may_not_have() {
        let of = |target: Value, metadata: Value| -> Vec<String> {
            validate(&json!({"metadata": metadata, "target": target}))
                .into_iter()
                .map(|e| e.field)
                .collect()
        };
        let node = json!({"kind": "Node", "name": "n"});
        assert!(of(node.clone(), json!({"labels": {"a": "b"}})).is_empty());
        assert_eq!(of(json!({}), json!({})), ["target.name"]);
        assert_eq!(of(json!({"name": "N/.."}), json!({})), ["target.name"]);
        assert_eq!(
            of(json!({"kind": "Pod", "name": "n"}), json!({})),
            ["target.kind"]
        );
        assert_eq!(
            of(node.clone(), json!({"labels": {"a": "not valid!"}})),
            ["metadata.labels"]
        );
        let long = json!({"annotations": {"a": "x".repeat(300_000)}});
        assert_eq!(of(node, long), ["metadata.annotations"]);
    }

    #[test]
    fn a_pod_is_bound_once_with_its_condition_and_the_bindings_annotations() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}});
        let b = json!({"metadata": {"annotations": {"a": "b"}}});
        apply(&mut pod, "p", &b, "n1", "2026-01-01T00:00:00Z").expect("bound");
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
        assert_eq!(
            pod["status"]["conditions"],
            json!([{"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        );
        assert_eq!(
            apply(&mut pod, "p", &b, "n2", "x"),
            Err("pod p is already assigned to node \"n1\"".into())
        );
        let mut ending = json!({"metadata": {"deletionTimestamp": "x"}, "spec": {}});
        assert!(apply(&mut ending, "p", &b, "n", "x").is_err());
        let mut gated = json!({"metadata": {}, "spec": {"schedulingGates": [{"name": "g"}]}});
        assert!(apply(&mut gated, "p", &b, "n", "x").is_err());
    }
}
