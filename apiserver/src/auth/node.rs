//! Upstream's node authorizer, simplified: a kubelet reads what the pods of its node refer to. Owns who a node is; what nodes
//! may change is limited by the admission plugin NodeRestriction.

use super::UserInfo;
use super::authorization::{Attributes, list};
use crate::App;
use crate::admission::text;
use crate::store::{Entry, Range};
use serde_json::Value;

/// The node that a user is.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    if user.in_group("system:nodes") {
        user.name.strip_prefix("system:node:")
    } else {
        None
    }
}

/// Upstream's node authorizer, simplified: what pods of the node refer to may be read, by name; everything else that
/// kubelets need is in the cluster role `system:node`, limited by the admission plugin NodeRestriction.
pub(super) fn node_may(app: &App, node: &str, a: &Attributes<'_>) -> bool {
    if !a.is_resource {
        return false;
    }
    let reads = matches!(a.verb, "get" | "list" | "watch");
    match (a.group, a.resource, a.subresource) {
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "")
            if reads && !a.namespace.is_empty() =>
        {
            pods_of(app, node, a.namespace)
                .any(|pod| a.name.is_empty() || refers(&pod, a.resource, a.name))
        }
        ("", "persistentvolumes", "") => reads,
        ("", "serviceaccounts", "token") => {
            a.verb == "create"
                && pods_of(app, node, a.namespace)
                    .any(|p| text(&p, &["spec", "serviceAccountName"]) == a.name)
        }
        ("coordination.k8s.io", "leases", "") if a.namespace == "kube-node-lease" => {
            a.verb == "create"
                || (a.name == node && matches!(a.verb, "get" | "update" | "patch" | "delete"))
        }
        _ => false,
    }
}

fn pods_of<'a>(app: &'a App, node: &'a str, namespace: &str) -> impl Iterator<Item = Value> + 'a {
    let prefix = format!("/core/pods/{namespace}/");
    let mine = |e: &Entry| e.attributes.field("spec.nodeName") == Some(node);
    let entries = app
        .store
        .range(&Range {
            prefix: &prefix,
            filter: Some(&mine),
            ..Range::default()
        })
        .map(|p| p.entries)
        .unwrap_or_default();
    entries
        .into_iter()
        .filter_map(|e| serde_json::from_slice(&e.value).ok())
}

/// Does a pod refer to the secret, config map or claim of that name?
fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if resource == "secrets"
        && list(spec, "imagePullSecrets")
            .iter()
            .any(|r| text(r, &["name"]) == name)
    {
        return true;
    }
    let (source, key, env) = match resource {
        "secrets" => ("secret", "secretName", "secretKeyRef"),
        "configmaps" => ("configMap", "name", "configMapKeyRef"),
        _ => ("persistentVolumeClaim", "claimName", ""),
    };
    let in_volume = list(spec, "volumes").iter().any(|v| {
        text(v, &[source, key]) == name
            || (resource == "persistentvolumeclaims"
                && v.get("ephemeral").is_some()
                && format!(
                    "{}-{}",
                    text(pod, &["metadata", "name"]),
                    text(v, &["name"])
                ) == name)
            || v.get("projected").is_some_and(|p| {
                list(p, "sources")
                    .iter()
                    .any(|s| text(s, &[source, "name"]) == name)
            })
            || [
                "csi",
                "flexVolume",
                "cephfs",
                "rbd",
                "iscsi",
                "scaleIO",
                "storageos",
            ]
            .iter()
            .any(|k| {
                resource == "secrets"
                    && (text(v, &[k, "secretRef", "name"]) == name
                        || text(v, &[k, "nodePublishSecretRef", "name"]) == name)
            })
    });
    let from = format!("{source}Ref");
    in_volume
        || ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .flat_map(|k| list(spec, k))
            .any(|c| {
                list(c, "env")
                    .iter()
                    .any(|e| !env.is_empty() && text(e, &["valueFrom", env, "name"]) == name)
                    || list(c, "envFrom")
                        .iter()
                        .any(|e| text(e, &[&from, "name"]) == name)
            })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_refers_to_what_it_mounts_and_reads() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "root"}}]}}, {"name": "s", "secret": {"secretName": "tls"}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "pw"}}}], "envFrom": [{"configMapRef": {"name": "cfg"}}]}],
        }});
        assert!(refers(&pod, "configmaps", "root") && refers(&pod, "configmaps", "cfg"));
        assert!(refers(&pod, "secrets", "tls") && refers(&pod, "secrets", "pw"));
        assert!(!refers(&pod, "secrets", "root"));
    }
}
