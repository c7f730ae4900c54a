//! `pods/binding` and `bindings`: a pod is given its node, once. Owns the rules of upstream's BindingREST; writes the pod
//! straight into the store, for this is the hottest write of a busy scheduler.

use crate::App;
use crate::admission::{is_dry_run, node_restriction, text};
use crate::http::{Answer, Request, negotiate, respond};
use crate::registry::{self, encode, form};
use crate::store::Expect;
use serde_json::{Map, Value, json};
use skiff_api::field::FieldError;
use skiff_api::status::Status;
use std::sync::Arc;

/// POST of a Binding.
///
/// # Errors
/// 400, 404, 409 when the pod has a node or is ending, 422.
pub async fn create(app: &Arc<App>, mut request: Request) -> Answer {
    let accept = negotiate::accept(&request.parts.headers, None, false)?;
    let dry_run = is_dry_run(request.query());
    let body = request.read_body().await?;
    let binding = registry::input::any(&request.parts.headers, &body)?;
    let given = text(&binding, &["metadata", "name"]);
    let name = if request.info.name.is_empty() {
        given
    } else {
        &request.info.name
    };
    let namespace = request.info.namespace.as_str();
    let invalid = |e: FieldError| Err(Status::invalid("", "Binding", name, &[e]));
    if name.is_empty() {
        return Err(Status::bad_request("name is required"));
    }
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    node_restriction::pod_subresource(app, &request.user, namespace, name, "binding")?;
    let ns = text(&binding, &["metadata", "namespace"]);
    if !ns.is_empty() && ns != namespace {
        return Err(Status::bad_request(
            "namespace in URL does not match namespace in Binding object",
        ));
    }
    let kind = text(&binding, &["target", "kind"]);
    if !kind.is_empty() && kind != "Node" {
        return invalid(FieldError::not_supported(
            "target.kind",
            kind,
            &["Node", "<empty>"],
        ));
    }
    let node = text(&binding, &["target", "name"]);
    if node.is_empty() {
        return invalid(FieldError::required("target.name", ""));
    }
    assign(app, namespace, name, &binding, node, dry_run).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::value(201, accept, &status))
}

async fn assign(
    app: &Arc<App>,
    namespace: &str,
    name: &str,
    binding: &Value,
    node: &str,
    dry_run: bool,
) -> Result<(), Status> {
    let row = app
        .table
        .get("", "v1", "pods")
        .ok_or_else(Status::no_route)?;
    let key = row.key(namespace, name);
    let conflict = |why: String| Status::conflict("", "pods/binding", name, &why);
    loop {
        let entry = app
            .store
            .get(&key)
            .ok_or_else(|| Status::not_found("", "pods", name))?;
        let mut pod = form::value_of(app, &row, &entry)?;
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
        if dry_run {
            return Ok(());
        }
        match app
            .store
            .write(
                key.clone(),
                Expect::Revision(entry.revision),
                Some(encode::stored(&pod)?),
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
