//! Upstream's node authorizer (plugin/pkg/auth/authorizer/node): what a kubelet may do with objects that concern its node.
//! Owns who a node is and the rules; what belongs to a node is [`graph`]'s, what it may write in detail is limited by the
//! admission plugin NodeRestriction.

pub mod graph;
pub mod references;

use super::authorization::{Allowed, Attributes, Decision};
use super::rbac::Rule;
use super::{Auth, UserInfo};
use crate::App;
use graph::Graph;
use parking_lot::RwLock;
use references::Kind;
use skiff_api::status::Status;
use std::sync::LazyLock;

/// Namespace of the nodes' leases.
pub const LEASES: &str = "kube-node-lease";

/// The node that a user is: Some("") for one who is of the group but has no node's name.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    if user.in_group("system:nodes") {
        user.name.strip_prefix("system:node:")
    } else {
        None
    }
}

/// What belongs to the nodes, always up to date with the store.
#[derive(Default)]
pub struct Nodes(RwLock<Graph>);

impl Nodes {
    /// Reads all objects; from then on every question sees what has been written before it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn follow(&self, app: &App) -> Result<(), Status> {
        let followed = self.0.write().follow(app.store.clone());
        followed.map_err(|e| e.status())
    }

    fn with<T>(&self, f: impl FnOnce(&Graph) -> T) -> T {
        {
            let g = self.0.read();
            if !g.pending() {
                return f(&g);
            }
        }
        let mut g = self.0.write();
        g.catch_up();
        f(&g)
    }
}

/// The rules of `system:node` for what is the same for every node. They hold without a binding.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    use crate::bootstrap::role_rules::{ROLES, rules};
    let role = ROLES.iter().find(|r| r.name == "system:node");
    let rules = role.map(|r| rules(r.rules)).unwrap_or_default();
    rules.iter().map(Rule::of).collect()
});

const READS: [&str; 3] = ["get", "list", "watch"];

/// What the node authorizer says.
pub(super) fn decide(auth: &Auth, _: &App, a: &Attributes<'_>) -> Decision {
    let Some(node) = node_of(a.user) else {
        return Decision::NoOpinion(String::new());
    };
    if node.is_empty() {
        return Decision::NoOpinion(format!("unknown node for user {:?}", a.user.name));
    }
    match may(&auth.nodes, node, a) {
        Ok(()) => Decision::Allow(Allowed::Node),
        Err(why) => Decision::NoOpinion(why),
    }
}

type Answer = Result<(), String>;

fn no(why: &str) -> Answer {
    Err(why.into())
}

fn unrelated(node: &str) -> Answer {
    Err(format!(
        "no relationship found between node '{node}' and this object"
    ))
}

fn may(nodes: &Nodes, node: &str, a: &Attributes<'_>) -> Answer {
    if a.is_resource {
        match (a.group, a.resource) {
            ("", "secrets") => return read(nodes, node, a, Kind::Secret),
            ("", "configmaps") => return read(nodes, node, a, Kind::ConfigMap),
            ("", "persistentvolumeclaims") if a.subresource == "status" => {
                if !matches!(a.verb, "update" | "patch") {
                    return no("can only get/update/patch this type");
                }
                return related(node, a, |n| {
                    nodes.with(|g| g.reaches(node, Kind::Claim, a.namespace, n))
                });
            }
            ("", "persistentvolumeclaims") => {
                return get(node, a, |n| {
                    nodes.with(|g| g.reaches(node, Kind::Claim, a.namespace, n))
                });
            }
            ("", "persistentvolumes") => {
                return get(node, a, |n| nodes.with(|g| g.reaches_volume(node, n)));
            }
            ("resource.k8s.io", "resourceclaims") => {
                return get(node, a, |n| {
                    nodes.with(|g| g.reaches(node, Kind::ResourceClaim, a.namespace, n))
                });
            }
            ("storage.k8s.io", "volumeattachments") => {
                return get(node, a, |n| nodes.with(|g| g.has_attachment(node, n)));
            }
            ("", "serviceaccounts") => return service_account(nodes, node, a),
            ("coordination.k8s.io", "leases") => return lease(node, a),
            ("storage.k8s.io", "csinodes") => return own(node, a, "a CSINode", "CSINode"),
            ("", "nodes") => return itself(node, a),
            ("", "pods") => return pod(nodes, node, a),
            _ => {}
        }
    }
    if RULES.iter().any(|r| r.allows(a)) {
        Ok(())
    } else {
        no("")
    }
}

/// One object that belongs to the node, by its name.
fn related(node: &str, a: &Attributes<'_>, reaches: impl Fn(&str) -> bool) -> Answer {
    if a.name.is_empty() {
        return no("No Object name found");
    }
    if reaches(a.name) {
        Ok(())
    } else {
        unrelated(node)
    }
}

fn get(node: &str, a: &Attributes<'_>, reaches: impl Fn(&str) -> bool) -> Answer {
    if a.verb != "get" {
        return no("can only get individual resources of this type");
    }
    if !a.subresource.is_empty() {
        return no("cannot get subresource");
    }
    related(node, a, reaches)
}

/// Secrets and config maps: kubelets watch single ones.
fn read(nodes: &Nodes, node: &str, a: &Attributes<'_>, kind: Kind) -> Answer {
    if !READS.contains(&a.verb) {
        return no("can only read resources of this type");
    }
    if !a.subresource.is_empty() {
        return no("cannot read subresource");
    }
    if a.namespace.is_empty() {
        return no("can only read namespaced object of this type");
    }
    related(node, a, |n| {
        nodes.with(|g| g.reaches(node, kind, a.namespace, n))
    })
}

fn service_account(nodes: &Nodes, node: &str, a: &Attributes<'_>) -> Answer {
    let reaches = |n: &str| nodes.with(|g| g.reaches(node, Kind::ServiceAccount, a.namespace, n));
    // Kubelets look at the account's annotations when an image's credentials depend on it.
    if a.verb == "get" && a.subresource.is_empty() {
        return related(node, a, reaches);
    }
    if a.verb != "create" || a.name.is_empty() {
        return no("can only create tokens for individual service accounts");
    }
    if a.subresource != "token" {
        return no("can only create token subresource of serviceaccount");
    }
    related(node, a, reaches)
}

/// An object with the node's own name. The name of one that is created is admission's to check.
fn own(node: &str, a: &Attributes<'_>, what: &str, short: &str) -> Answer {
    if !matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Err(format!(
            "can only get, create, update, patch, or delete {what}"
        ));
    }
    if !a.subresource.is_empty() {
        return Err(format!("cannot authorize {short} subresources"));
    }
    if a.verb != "create" && a.name != node {
        return Err(format!(
            "can only access {short} with the same name as the requesting node"
        ));
    }
    Ok(())
}

fn lease(node: &str, a: &Attributes<'_>) -> Answer {
    let answer = own(node, a, "a node lease", "node lease");
    if answer.is_ok() && a.namespace != LEASES {
        return Err(format!(
            "can only access leases in the {LEASES:?} system namespace"
        ));
    }
    answer
}

/// Its own Node; also before it is there.
fn itself(node: &str, a: &Attributes<'_>) -> Answer {
    match (a.subresource, a.verb) {
        // Which one is admission's to check.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if a.name == node => Ok(()),
        ("", "get" | "list" | "watch") if a.name.is_empty() => Err(format!(
            "node '{node}' cannot read all nodes, only its own Node object"
        )),
        ("", "get" | "list" | "watch") => Err(format!(
            "node '{node}' cannot read '{}', only its own Node object",
            a.name
        )),
        _ => no(""),
    }
}

fn pod(nodes: &Nodes, node: &str, a: &Attributes<'_>) -> Answer {
    let mine = |n: &str| nodes.with(|g| g.has_pod(node, a.namespace, n));
    match (a.subresource, a.verb) {
        ("", "get") => related(node, a, mine),
        ("", "list" | "watch") => {
            let scoped = |(k, v): &(String, String)| k == "spec.nodeName" && v == node;
            if a.fields.iter().any(scoped) {
                Ok(())
            } else if !a.name.is_empty() {
                related(node, a, mine)
            } else {
                no("can only list/watch pods with spec.nodeName field selector")
            }
        }
        // Of mirror pods, of its own pods: admission checks.
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
            Ok(())
        }
        _ => no(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::authorization::ask;
    use crate::store::{Attributes as Stored, Entry};
    use serde_json::json;

    fn nodes() -> Nodes {
        let mut g = Graph::default();
        let pod = json!({"metadata": {"name": "p", "uid": "1"}, "spec": {"nodeName": "one", "serviceAccountName": "sa",
            "containers": [{"envFrom": [{"secretRef": {"name": "mine"}}, {"configMapRef": {"name": "conf"}}]}]}});
        g.put(&Entry {
            key: "/core/pods/ns/p".into(),
            value: pod.to_string().into(),
            revision: 1,
            attributes: Stored::new(std::iter::empty(), [("spec.nodeName", "one")].into_iter()),
        });
        Nodes(RwLock::new(g))
    }

    #[test]
    fn a_node_reads_by_name_what_its_pods_refer_to() {
        let nodes = nodes();
        let one = UserInfo::new("system:node:one", &["system:nodes"]);
        let may = |verb: &str, ns: &str, resource: &str, sub: &str, name: &str| {
            super::may(&nodes, "one", &ask(&one, verb, ns, resource, sub, name)).is_ok()
        };
        for verb in READS {
            assert!(may(verb, "ns", "secrets", "", "mine"), "{verb}");
            assert!(may(verb, "ns", "configmaps", "", "conf"), "{verb}");
            assert!(!may(verb, "ns", "secrets", "", ""), "{verb}");
            assert!(!may(verb, "ns", "secrets", "", "other"), "{verb}");
            assert!(!may(verb, "", "secrets", "", "mine"), "{verb}");
            assert!(!may(verb, "ns", "persistentvolumes", "", ""), "{verb}");
            assert!(may(verb, "", "nodes", "", "one"), "{verb}");
            assert!(!may(verb, "", "nodes", "", "two"), "{verb}");
            assert!(!may(verb, "", "nodes", "", ""), "{verb}");
        }
        for verb in ["create", "update", "patch", "delete", "deletecollection"] {
            assert!(!may(verb, "ns", "secrets", "", "mine"), "{verb}");
        }
        assert!(may("create", "ns", "serviceaccounts", "token", "sa"));
        assert!(!may("create", "ns", "serviceaccounts", "token", "default"));
        assert!(may("get", "ns", "pods", "", "p"));
        assert!(!may("get", "ns", "pods", "", "q"));
        assert!(!may("list", "ns", "pods", "", ""));
        assert!(may("list", "ns", "pods", "", "p"));
        for (verb, sub) in [
            ("create", "exec"),
            ("create", "binding"),
            ("update", "ephemeralcontainers"),
            ("get", "log"),
            ("patch", ""),
        ] {
            assert!(!may(verb, "ns", "pods", sub, "p"), "{verb} pods/{sub}");
        }
        let fields = [("spec.nodeName".to_string(), "one".to_string())];
        let all = Attributes {
            fields: &fields,
            ..ask(&one, "watch", "", "pods", "", "")
        };
        assert!(super::may(&nodes, "one", &all).is_ok());
        assert!(super::may(&nodes, "two", &all).is_err());
        let lease = |verb: &'static str, ns: &'static str, name: &'static str| Attributes {
            group: "coordination.k8s.io",
            ..ask(&one, verb, ns, "leases", "", name)
        };
        assert!(super::may(&nodes, "one", &lease("patch", LEASES, "one")).is_ok());
        assert!(super::may(&nodes, "one", &lease("patch", LEASES, "two")).is_err());
        assert!(super::may(&nodes, "one", &lease("get", "kube-system", "one")).is_err());
        assert!(super::may(&nodes, "one", &lease("list", LEASES, "")).is_err());
    }

    #[test]
    fn who_is_of_the_group_without_a_nodes_name_is_no_node() {
        let nodes = |n: &str, g: &[&str]| node_of(&UserInfo::new(n, g)).map(String::from);
        assert_eq!(
            nodes("system:node:a", &["system:nodes"]).as_deref(),
            Some("a")
        );
        assert_eq!(
            nodes("system:node:", &["system:nodes"]).as_deref(),
            Some("")
        );
        assert_eq!(nodes("jane", &["system:nodes"]), None);
        assert_eq!(nodes("system:node:a", &[]), None);
    }
}
