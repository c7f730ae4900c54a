//! NodeRestriction (plugin/pkg/admission/noderestriction): a kubelet changes its own node, its own pods and its own lease,
//! nothing else, and makes pods that open nothing. Reads the store, changes nothing.

use super::{find, text};
use crate::auth::UserInfo;
use crate::auth::authorization::{Attributes, Decision};
use crate::auth::node::references::{self, Kind, MIRROR};
use crate::auth::node::{LEASES, node_of};
use crate::{App, Operation, Write};
use serde_json::Value;
use skiff_api::status::Status;

type Answer = Result<(), String>;

/// Refuses what is not the node's own.
///
/// # Errors
/// 403.
pub fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    let Some(node) = node_of(write.user) else {
        return Ok(());
    };
    admit(app, node, write).map_err(|why| super::forbidden(write, &why))
}

/// The same for a subresource of pods that is not stored through the registry (`binding`, `eviction`).
///
/// # Errors
/// 403.
pub fn pod_subresource(
    app: &App,
    user: &UserInfo,
    namespace: &str,
    name: &str,
    subresource: &str,
) -> Result<(), Status> {
    let Some(node) = node_of(user) else {
        return Ok(());
    };
    let why = if node.is_empty() {
        unknown(user)
    } else if subresource != "eviction" {
        format!(
            "unexpected pod subresource {subresource:?}, only 'status' and 'eviction' are allowed"
        )
    } else {
        match find(app, "core/pods", namespace, name) {
            None => return Err(Status::not_found("", "pods", name)),
            Some(pod) if on(&pod) == node => return Ok(()),
            Some(_) => {
                format!("node {node} can only evict pods with spec.nodeName set to itself")
            }
        }
    };
    Err(Status::forbidden("", "pods", name, &why))
}

fn unknown(user: &UserInfo) -> String {
    format!("could not determine node from user {:?}", user.name)
}

fn on(pod: &Value) -> &str {
    text(pod, &["spec", "nodeName"])
}

fn admit(app: &App, node: &str, write: &Write<'_>) -> Answer {
    if node.is_empty() {
        return Err(unknown(write.user));
    }
    let name = match write.name {
        "" => text(&write.object, &["metadata", "name"]),
        name => name,
    };
    match (&*write.row.group, &*write.row.plural) {
        ("", "pods") => match write.subresource {
            "" => pod(app, node, write),
            "status" => pod_status(node, write),
            other => Err(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            )),
        },
        ("", "nodes") => itself(node, name, write),
        ("", "persistentvolumeclaims") => claim(node, write),
        ("coordination.k8s.io", "leases") if write.namespace != LEASES => Err(format!(
            "can only access leases in the {LEASES:?} system namespace"
        )),
        ("coordination.k8s.io", "leases") if name != node => {
            Err("can only access node lease with the same name as the requesting node".into())
        }
        ("storage.k8s.io", "csinodes") if name != node => {
            Err("can only access CSINode with the same name as the requesting node".into())
        }
        _ => Ok(()),
    }
}

fn pod(app: &App, node: &str, write: &Write<'_>) -> Answer {
    match write.operation {
        Operation::Create => mirror_pod(app, node, &write.object),
        Operation::Delete if write.old.as_ref().map_or("", on) == node => Ok(()),
        Operation::Delete => Err(format!(
            "node {node:?} can only delete pods with spec.nodeName set to itself"
        )),
        Operation::Update | Operation::Connect => Err(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            name_of(write.operation)
        )),
    }
}

fn name_of(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// A pod that a node may make: a mirror of one of its own files, which refers to nothing of the API.
fn mirror_pod(app: &App, node: &str, pod: &Value) -> Answer {
    if !references::is_mirror(pod) {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if on(pod) != node {
        return Err(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    owned_by(app, node, pod)?;
    let mut found = None;
    references::of_pod(pod, &mut |kind, _| {
        found.get_or_insert(kind);
    });
    let clusters_trust = pod
        .pointer("/spec/volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|v| v.pointer("/projected/sources")?.as_array())
        .flatten()
        .find_map(|s| {
            [
                "clusterTrustBundle",
                "podCertificate",
                "serviceAccountToken",
            ]
            .into_iter()
            .find(|k| s.get(k).is_some_and(|v| !v.is_null()))
        });
    // A claim made of a template belongs to the pod as much as one that is named.
    let claims = pod
        .pointer("/spec/resourceClaims")
        .and_then(Value::as_array)
        .is_some_and(|l| !l.is_empty());
    let what = match (found, clusters_trust) {
        (Some(Kind::ServiceAccount), _) => "a service account",
        (Some(Kind::Secret), _) => "secrets",
        (Some(Kind::ConfigMap), _) => "configmaps",
        (Some(Kind::Claim), _) => "persistentvolumeclaims",
        (Some(Kind::ResourceClaim), _) => "resourceclaims",
        (None, _) if claims => "resourceclaims",
        (None, Some("clusterTrustBundle")) => "clustertrustbundles",
        (None, Some("podCertificate")) => "podcertificates",
        (None, Some(_)) => "a service account",
        (None, None) => return Ok(()),
    };
    Err(format!(
        "node {node:?} can not create pods that reference {what}"
    ))
}

fn owned_by(app: &App, node: &str, pod: &Value) -> Answer {
    let owners = pod
        .pointer("/metadata/ownerReferences")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let owner = match owners {
        [one] => one,
        [] => {
            return Err(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            return Err(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    let is = |k: &str| owner.get(k).and_then(Value::as_bool).unwrap_or(false);
    if text(owner, &["apiVersion"]) != "v1"
        || text(owner, &["kind"]) != "Node"
        || text(owner, &["name"]) != node
    {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if !is("controller") {
        return Err(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if is("blockOwnerDeletion") {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let Some(this) = find(app, "core/nodes", "", node) else {
        return Err(format!(
            "error looking up node {node} to verify uid: nodes {node:?} not found"
        ));
    };
    let (uid, given) = (text(&this, &["metadata", "uid"]), text(owner, &["uid"]));
    if uid != given {
        return Err(format!(
            "node {node} UID mismatch: expected {given} got {uid}"
        ));
    }
    Ok(())
}

/// Two values of an optional field; none, null and empty are the same.
fn same(new: &Value, old: &Value, pointer: &str) -> bool {
    let of = |v: &Value| -> Option<Value> {
        v.pointer(pointer)
            .filter(|v| match v {
                Value::Null => false,
                Value::Array(a) => !a.is_empty(),
                Value::Object(o) => !o.is_empty(),
                _ => true,
            })
            .cloned()
    };
    of(new) == of(old)
}

fn pod_status(node: &str, write: &Write<'_>) -> Answer {
    let (Operation::Update, Some(old)) = (write.operation, write.old.as_ref()) else {
        return Err(format!(
            "unexpected operation {:?}",
            name_of(write.operation)
        ));
    };
    if on(old) != node {
        return Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if !same(&write.object, old, "/metadata/labels") {
        return Err(format!(
            "node {node:?} cannot update labels through pod status"
        ));
    }
    for claims in ["resourceClaimStatuses", "extendedResourceClaimStatus"] {
        if !same(&write.object, old, &format!("/status/{claims}")) {
            return Err(format!(
                "node {node:?} cannot update resource claim statuses"
            ));
        }
    }
    Ok(())
}

fn itself(node: &str, name: &str, write: &Write<'_>) -> Answer {
    if name != node {
        return Err(format!(
            "node {node:?} is not allowed to modify node {name:?}"
        ));
    }
    let none = Value::Null;
    let new = &write.object;
    match (write.operation, write.old.as_ref()) {
        (Operation::Create, _) => {
            if !same(new, &none, "/spec/configSource") {
                return Err(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                ));
            }
            if !same(new, &none, "/metadata/ownerReferences") {
                return Err(format!(
                    "node {node:?} is not allowed to set ownerReferences"
                ));
            }
            let forbidden = forbidden_labels(new, &none);
            if !forbidden.is_empty() {
                return Err(format!(
                    "node {node:?} is not allowed to set the following labels: {forbidden}"
                ));
            }
        }
        (Operation::Update, Some(old)) => {
            if !same(new, &none, "/spec/configSource") && !same(new, old, "/spec/configSource") {
                return Err(format!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if !same(new, old, "/spec/taints") {
                return Err(format!("node {node:?} is not allowed to modify taints"));
            }
            let forbidden = forbidden_labels(new, old);
            if !forbidden.is_empty() {
                return Err(format!("is not allowed to modify labels: {forbidden}"));
            }
            // An owner that is not there would have the garbage collector delete the node, and with it its taints.
            if !same(new, old, "/metadata/ownerReferences") {
                return Err(format!(
                    "node {node:?} is not allowed to modify ownerReferences"
                ));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Kubernetes' labels that a kubelet may set on its own node (k8s.io/kubelet/pkg/apis).
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

/// Is `prefix` this domain or below it?
fn within(prefix: &str, domain: &str) -> bool {
    prefix
        .strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// May a node not have this label as it likes? Such labels would bring privileged pods to it.
pub fn is_forbidden(label: &str) -> bool {
    let prefix = label.split_once('/').map_or("", |(p, _)| p);
    let any = |domains: &[&str]| domains.iter().any(|d| within(prefix, d));
    if any(&["node-restriction.kubernetes.io"]) {
        return true;
    }
    any(&["kubernetes.io", "k8s.io"])
        && !KUBELET_LABELS.contains(&label)
        && !any(&["kubelet.kubernetes.io", "node.kubernetes.io"])
}

/// Forbidden labels that differ, sorted.
fn forbidden_labels(new: &Value, old: &Value) -> String {
    let labels = |v: &Value| v.pointer("/metadata/labels").cloned().unwrap_or_default();
    let (new, old) = (labels(new), labels(old));
    let mut keys: Vec<&str> = [&new, &old]
        .into_iter()
        .filter_map(Value::as_object)
        .flat_map(|m| m.keys())
        .map(String::as_str)
        .filter(|k| new.get(k) != old.get(k) && is_forbidden(k))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys.join(", ")
}

/// A kubelet that expanded a volume says so in its claim's status, and nothing else.
fn claim(node: &str, write: &Write<'_>) -> Answer {
    if write.subresource != "status" {
        return Err("may only update PVC status".into());
    }
    let (Operation::Update, Some(old)) = (write.operation, write.old.as_ref()) else {
        return Err(format!(
            "unexpected operation {:?}",
            name_of(write.operation)
        ));
    };
    let rest = |v: &Value| {
        let mut v = v.clone();
        if let Some(m) = v.get_mut("metadata").and_then(Value::as_object_mut) {
            m.retain(|k, _| k != "resourceVersion" && k != "managedFields");
        }
        if let Some(s) = v.get_mut("status").and_then(Value::as_object_mut) {
            s.retain(|k, _| {
                !matches!(
                    k.as_str(),
                    "capacity" | "conditions" | "allocatedResources" | "allocatedResourceStatuses"
                )
            });
        }
        v
    };
    if rest(old) != rest(&write.object) {
        return Err(format!(
            "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
        ));
    }
    Ok(())
}

/// A token that a node asks for has to be for a pod that runs on it, and for an audience that the pod uses.
///
/// # Errors
/// 403; 404 when the pod is not there.
pub fn token(
    app: &App,
    user: &UserInfo,
    namespace: &str,
    account: &str,
    spec: &Value,
) -> Result<(), Status> {
    let Some(node) = node_of(user) else {
        return Ok(());
    };
    let refuse = |why: &str| Err(Status::forbidden("", "serviceaccounts", account, why));
    if node.is_empty() {
        return refuse(&unknown(user));
    }
    let bound = spec.get("boundObjectRef").unwrap_or(&Value::Null);
    let (name, uid) = (text(bound, &["name"]), text(bound, &["uid"]));
    if text(bound, &["apiVersion"]) != "v1" || text(bound, &["kind"]) != "Pod" || name.is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if uid.is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let Some(pod) = find(app, "core/pods", namespace, name) else {
        return Err(Status::not_found("", "pods", name));
    };
    if uid != text(&pod, &["metadata", "uid"]) {
        return refuse(&format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if on(&pod) != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    let audience = match spec.get("audiences").and_then(Value::as_array) {
        None => "",
        Some(l) => match l.as_slice() {
            [] => "",
            [one] => one.as_str().unwrap_or(""),
            _ => return refuse("node may only request 0 or 1 audiences"),
        },
    };
    if uses_audience(app, &pod, audience) {
        return Ok(());
    }
    let asked = Attributes {
        user,
        verb: "request-serviceaccounts-token-audience",
        namespace,
        group: "",
        version: "v1",
        resource: audience,
        subresource: "",
        name: account,
        path: "",
        is_resource: true,
        fields: &[],
    };
    if matches!(app.auth.decide(app, &asked), Decision::Allow(_)) {
        return Ok(());
    }
    refuse(&format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        user.name
    ))
}

/// Does a volume of the pod need a token for this audience: a projected one, or one of a CSI driver that asks for it?
fn uses_audience(app: &App, pod: &Value, audience: &str) -> bool {
    let items = |v: &Value, p: &str| -> Vec<Value> {
        v.pointer(p)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let (namespace, name) = (
        text(pod, &["metadata", "namespace"]),
        text(pod, &["metadata", "name"]),
    );
    let driver_of = |claim: &str| -> Option<String> {
        let claim = find(app, "core/persistentvolumeclaims", namespace, claim)?;
        let volume = find(
            app,
            "core/persistentvolumes",
            "",
            text(&claim, &["spec", "volumeName"]),
        )?;
        Some(text(&volume, &["spec", "csi", "driver"]).to_string())
    };
    items(pod, "/spec/volumes").iter().any(|v| {
        let projected = items(v, "/projected/sources").iter().any(|s| {
            s.get("serviceAccountToken")
                .filter(|t| t.is_object())
                .is_some_and(|t| text(t, &["audience"]) == audience)
        });
        if projected {
            return true;
        }
        let driver = if v.get("ephemeral").is_some_and(Value::is_object) {
            driver_of(&format!("{name}-{}", text(v, &["name"])))
        } else if v.get("persistentVolumeClaim").is_some() {
            driver_of(text(v, &["persistentVolumeClaim", "claimName"]))
        } else {
            Some(text(v, &["csi", "driver"]).to_string())
        };
        driver
            .filter(|d| !d.is_empty())
            .and_then(|d| find(app, "storage.k8s.io/csidrivers", "", &d))
            .is_some_and(|d| {
                items(&d, "/spec/tokenRequests")
                    .iter()
                    .any(|r| text(r, &["audience"]) == audience)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_of_kubernetes_are_not_the_nodes_to_choose_but_a_few() {
        for free in [
            "team",
            "example.com/x",
            "notkubernetes.io/x",
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
            "node.kubernetes.io/anything",
            "x.kubelet.kubernetes.io/y",
        ] {
            assert!(!is_forbidden(free), "{free}");
        }
        for kept in [
            "kubernetes.io/role",
            "node-role.kubernetes.io/control-plane",
            "node-restriction.kubernetes.io/x",
            "a.node-restriction.kubernetes.io/x",
            "example.k8s.io/x",
            "k8s.io/x",
        ] {
            assert!(is_forbidden(kept), "{kept}");
        }
        let l = |v: Value| json!({"metadata": {"labels": v}});
        let (a, b) = (
            l(json!({"k8s.io/a": "1", "x": "1"})),
            l(json!({"k8s.io/b": "1"})),
        );
        assert_eq!(forbidden_labels(&a, &b), "k8s.io/a, k8s.io/b");
        assert_eq!(forbidden_labels(&a, &a), "");
    }
}
