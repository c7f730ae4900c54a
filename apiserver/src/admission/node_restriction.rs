//! NodeRestriction: a kubelet changes its own node, its own pods and its own lease, nothing else. Reads the store, changes
//! nothing.

use super::{find, text};
use crate::auth::node::node_of;
use crate::{App, Operation, Write};
use skiff_api::status::Status;

/// Refuses what is not the node's own.
///
/// # Errors
/// 403.
pub fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    let Some(node) = node_of(write.user) else {
        return Ok(());
    };
    let refuse = |why: String| Err(super::forbidden(write, &why));
    let object = &write.object;
    match (&*write.row.group, &*write.row.plural, write.subresource) {
        ("", "pods", "") => match write.operation {
            Operation::Create => {
                if object
                    .pointer("/metadata/annotations")
                    .is_none_or(|a| a.get("kubernetes.io/config.mirror").is_none())
                {
                    return refuse(format!(
                        "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                    ));
                }
                if text(object, &["spec", "nodeName"]) != node {
                    return refuse(format!(
                        "node {node:?} can only create pods with spec.nodeName set to itself"
                    ));
                }
                Ok(())
            }
            Operation::Delete => {
                let on = write
                    .old
                    .as_ref()
                    .map_or("", |o| text(o, &["spec", "nodeName"]));
                if on == node {
                    Ok(())
                } else {
                    refuse(format!(
                        "node {node:?} can only delete pods with spec.nodeName set to itself"
                    ))
                }
            }
            _ => refuse(format!(
                "unexpected operation, node {node:?} can only create and delete mirror pods"
            )),
        },
        ("", "pods", "status") => {
            let on = write
                .old
                .as_ref()
                .map_or("", |o| text(o, &["spec", "nodeName"]));
            if on != node {
                return refuse(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            let labels =
                |v: &serde_json::Value| v.pointer("/metadata/labels").cloned().unwrap_or_default();
            if write
                .old
                .as_ref()
                .is_some_and(|o| labels(o) != labels(object))
            {
                return refuse(format!(
                    "node {node:?} can not update labels through pod status"
                ));
            }
            Ok(())
        }
        ("", "pods", "eviction") => {
            let on = find(app, "core/pods", write.namespace, write.name)
                .map(|p| text(&p, &["spec", "nodeName"]).to_string());
            if on.as_deref() == Some(node) {
                Ok(())
            } else {
                refuse(format!(
                    "node {node:?} can only evict pods with spec.nodeName set to itself"
                ))
            }
        }
        ("", "nodes", _) => {
            let name = if write.name.is_empty() {
                text(object, &["metadata", "name"])
            } else {
                write.name
            };
            if name != node {
                return refuse(format!(
                    "node {node:?} is not allowed to modify node {name:?}"
                ));
            }
            if write.operation == Operation::Update {
                let old = write
                    .old
                    .as_ref()
                    .map(|o| o.pointer("/spec/taints").cloned().unwrap_or_default())
                    .unwrap_or_default();
                if object.pointer("/spec/taints").cloned().unwrap_or_default() != old {
                    return refuse(format!("node {node:?} is not allowed to modify taints"));
                }
            }
            let protected = |v: Option<&serde_json::Value>| -> Vec<(String, serde_json::Value)> {
                v.and_then(|o| o.pointer("/metadata/labels"))
                    .and_then(serde_json::Value::as_object)
                    .into_iter()
                    .flatten()
                    .filter(|(k, _)| {
                        k.split('/').next().is_some_and(|p| {
                            p == "node-restriction.kubernetes.io"
                                || p.ends_with(".node-restriction.kubernetes.io")
                        })
                    })
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            };
            if write.operation != Operation::Delete
                && protected(Some(object)) != protected(write.old.as_ref())
            {
                return refuse(format!(
                    "is not allowed to modify labels of the node-restriction.kubernetes.io prefix (node {node:?})"
                ));
            }
            Ok(())
        }
        ("coordination.k8s.io", "leases", _) => {
            let name = if write.name.is_empty() {
                text(object, &["metadata", "name"])
            } else {
                write.name
            };
            if write.namespace == "kube-node-lease" && name != node {
                return refuse(format!(
                    "can only access node lease with the same name as the requesting node ({node})"
                ));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
