//! Role-based access control: what bindings and roles allow. The objects follow the store and are brought up to date by
//! whoever asks next, so a rule holds from the moment it is written. Writes nothing.

pub mod aggregation;
mod index;
mod rule;

pub use index::{Binding, RoleRef};
pub use rule::Rule;

use super::UserInfo;
use super::authorization::{Allowed, Attributes, Decision};
use crate::App;
use index::Objects;
use parking_lot::RwLock;
use skiff_api::status::Status;
use std::collections::HashSet;
use std::sync::Arc;

/// The RBAC objects in memory.
#[derive(Default)]
pub struct Rbac(RwLock<Objects>);

impl Rbac {
    /// Reads all objects; from then on every question sees what has been written before it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn follow(&self, app: &App) -> Result<(), Status> {
        let followed = self.0.write().follow(app.store.clone());
        followed.map_err(|e| e.status())
    }

    fn with<T>(&self, f: impl FnOnce(&Objects) -> T) -> T {
        {
            let o = self.0.read();
            if !o.pending() {
                return f(&o);
            }
        }
        let mut o = self.0.write();
        o.catch_up();
        f(&o)
    }

    /// What RBAC says.
    pub fn decide(&self, a: &Attributes<'_>) -> Decision {
        self.with(|o| {
            let allows = |b: &&Arc<Binding>| {
                let mut rules = o.rules(b).iter().flat_map(|l| l.iter());
                rules.any(|r| r.allows(a))
            };
            match o.of(a.user, a.namespace).find(allows) {
                Some(b) => Decision::Allow(Allowed::Rbac(b.clone())),
                None => Decision::NoOpinion(String::new()),
            }
        })
    }

    /// All rules of a user in a namespace (cluster-wide ones included), each binding's once.
    pub fn rules_of(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        self.with(|o| {
            let mut seen = HashSet::new();
            o.of(user, namespace)
                .filter(|b| seen.insert(Arc::as_ptr(b)))
                .flat_map(|b| o.rules(b))
                .flat_map(|r| r.to_vec())
                .collect()
        })
    }

    /// The rules of a role; for the check that nobody grants more than they have.
    pub fn rules_of_role(&self, cluster: bool, namespace: &str, name: &str) -> Option<Vec<Rule>> {
        self.with(|o| {
            if cluster {
                o.cluster_role(name)
                    .map(|l| l.iter().flat_map(|r| r.to_vec()).collect())
            } else {
                o.role(namespace, name).map(|r| r.to_vec())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::authorization::ask;
    use crate::store::Entry;
    use serde_json::{Value, json};

    fn entry(key: &str, v: &Value) -> Entry {
        Entry {
            key: key.into(),
            value: v.to_string().into(),
            revision: 1,
            attributes: crate::store::Attributes::default(),
        }
    }

    #[test]
    fn rules_allow_as_upstreams_do() {
        let r = |v: Value| Rule::of(&v);
        let u = UserInfo::new("u", &[]);
        let pods = r(
            json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"]}),
        );
        assert!(pods.allows(&ask(&u, "get", "a", "pods", "", "x")));
        assert!(pods.allows(&ask(&u, "get", "a", "pods", "log", "x")));
        assert!(pods.allows(&ask(&u, "get", "a", "deployments", "scale", "x")));
        assert!(!pods.allows(&ask(&u, "get", "a", "pods", "exec", "x")));
        assert!(!pods.allows(&ask(&u, "create", "a", "pods", "", "")));
        let one = r(
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["x"]}),
        );
        assert!(one.allows(&ask(&u, "get", "a", "pods", "exec", "x")));
        assert!(!one.allows(&ask(&u, "get", "a", "pods", "", "y")));
        let urls = r(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]}));
        let path = |p| Attributes {
            path: p,
            is_resource: false,
            ..ask(&u, "get", "", "", "", "")
        };
        assert!(
            urls.allows(&path("/healthz"))
                && urls.allows(&path("/apis/apps"))
                && !urls.allows(&path("/healthz/ping"))
        );
    }

    #[test]
    fn bindings_hold_in_their_namespace_and_for_their_subjects() {
        let mut o = Objects::default();
        let role = json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        o.put(&entry(
            "/rbac.authorization.k8s.io/clusterroles/reader",
            &role,
        ));
        let bind = |subject: Value| json!({"roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": [subject]});
        o.put(&entry(
            "/rbac.authorization.k8s.io/rolebindings/a/b",
            &bind(json!({"kind": "ServiceAccount", "name": "sa"})),
        ));
        o.put(&entry(
            "/rbac.authorization.k8s.io/clusterrolebindings/c",
            &bind(json!({"kind": "Group", "name": "ops"})),
        ));
        let rbac = Rbac(RwLock::new(o));
        let sa = UserInfo::new("system:serviceaccount:a:sa", &[]);
        let ops = UserInfo::new("jane", &["ops"]);
        let may = |u: &UserInfo, ns: &str| {
            matches!(
                rbac.decide(&ask(u, "get", ns, "pods", "", "x")),
                Decision::Allow(_)
            )
        };
        assert!(
            may(&sa, "a")
                && !may(&sa, "b")
                && may(&ops, "b")
                && !may(&UserInfo::new("joe", &[]), "a")
        );
        rbac.0.write().remove(&entry(
            "/rbac.authorization.k8s.io/clusterrolebindings/c",
            &Value::Null,
        ));
        assert!(!may(&ops, "b"));
    }
}
