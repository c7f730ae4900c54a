//! Decoded RBAC objects, which follow the store: they are brought up to date by whoever asks next, so a rule holds from the
//! moment it is written. Owns what the rules mean; writes nothing.

use super::UserInfo;
use super::authorization::{Attributes, Decision, list};
use crate::App;
use crate::admission::text;
use crate::store::{Entry, Event, Range, Watch};
use parking_lot::RwLock;
use serde_json::Value;
use skiff_api::selector::Selector;
use skiff_api::status::Status;
use std::collections::HashMap;
use std::sync::Arc;

/// One rule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Verbs or `*`.
    pub verbs: Vec<String>,
    /// API groups or `*`.
    pub groups: Vec<String>,
    /// Resources, `pods/log`, `*/scale` or `*`.
    pub resources: Vec<String>,
    /// Names; empty for all.
    pub names: Vec<String>,
    /// Paths, `*` at the end for anything.
    pub urls: Vec<String>,
}

fn strings(v: &Value, key: &str) -> Vec<String> {
    list(v, key)
        .iter()
        .filter_map(Value::as_str)
        .map(String::from)
        .collect()
}

impl Rule {
    /// Of a PolicyRule.
    pub fn of(v: &Value) -> Self {
        Self {
            verbs: strings(v, "verbs"),
            groups: strings(v, "apiGroups"),
            resources: strings(v, "resources"),
            names: strings(v, "resourceNames"),
            urls: strings(v, "nonResourceURLs"),
        }
    }

    /// Upstream's RuleAllows.
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        let has = |l: &[String], x: &str| l.iter().any(|v| v == "*" || v == x);
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.is_resource {
            return self.urls.iter().any(|u| {
                u == "*"
                    || u == a.path
                    || u.strip_suffix('*').is_some_and(|p| a.path.starts_with(p))
            });
        }
        let resource = self.resources.iter().any(|r| {
            r == "*"
                || match r.split_once('/') {
                    None => a.subresource.is_empty() && r == a.resource,
                    Some((res, sub)) => {
                        !a.subresource.is_empty()
                            && sub == a.subresource
                            && (res == "*" || res == a.resource)
                    }
                }
        });
        has(&self.groups, a.group)
            && resource
            && (self.names.is_empty() || self.names.iter().any(|n| n == a.name))
    }
}

type Rules = Arc<[Rule]>;

/// A cluster role: its rules, and of an aggregating one the selectors of those whose rules are its rules, too.
#[derive(Debug)]
struct ClusterRole {
    rules: Rules,
    labels: Value,
    sum_of: Vec<Selector>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RoleRef {
    Cluster(String),
    Role(String),
}

#[derive(Debug, Clone)]
struct Binding {
    name: String,
    /// Empty for cluster role bindings.
    namespace: String,
    role: RoleRef,
    subjects: Vec<Subject>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    Account(String, String),
}

impl Subject {
    fn of(v: &Value, namespace: &str) -> Option<Self> {
        let name = text(v, &["name"]).to_string();
        match text(v, &["kind"]) {
            "User" => Some(Self::User(name)),
            "Group" => Some(Self::Group(name)),
            "ServiceAccount" => {
                let ns = text(v, &["namespace"]);
                Some(Self::Account(
                    if ns.is_empty() {
                        namespace.into()
                    } else {
                        ns.into()
                    },
                    name,
                ))
            }
            _ => None,
        }
    }
    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Self::User(n) => *n == user.name,
            Self::Group(g) => user.in_group(g),
            Self::Account(ns, n) => {
                user.name
                    .strip_prefix("system:serviceaccount:")
                    .and_then(|r| r.split_once(':'))
                    == Some((ns, n))
            }
        }
    }
}

#[derive(Default)]
struct Objects {
    cluster_roles: HashMap<String, ClusterRole>,
    roles: HashMap<(String, String), Rules>,
    cluster_bindings: HashMap<String, Binding>,
    /// By namespace, then name.
    bindings: HashMap<String, HashMap<String, Binding>>,
    watches: Vec<Watch>,
    store: Option<Arc<dyn crate::store::Store>>,
}

const STORAGES: [&str; 4] = [
    "/rbac.authorization.k8s.io/clusterroles/",
    "/rbac.authorization.k8s.io/roles/",
    "/rbac.authorization.k8s.io/clusterrolebindings/",
    "/rbac.authorization.k8s.io/rolebindings/",
];

impl Objects {
    fn reload(&mut self) -> Result<(), crate::store::Error> {
        let Some(store) = self.store.clone() else {
            return Ok(());
        };
        *self = Self {
            store: Some(store.clone()),
            ..Self::default()
        };
        for prefix in STORAGES {
            let page = store.range(&Range {
                prefix,
                ..Range::default()
            })?;
            for e in &page.entries {
                self.put(e);
            }
            self.watches.push(store.watch(prefix, page.revision)?);
        }
        Ok(())
    }

    fn pending(&self) -> bool {
        self.watches.iter().any(|w| w.progress().is_none())
    }

    fn catch_up(&mut self) {
        let mut watches = std::mem::take(&mut self.watches);
        let mut fell_off = false;
        for w in &mut watches {
            loop {
                match w.ready() {
                    Ok(events) if events.is_empty() => break,
                    Ok(events) => events.iter().for_each(|e| self.event(e)),
                    Err(_) => {
                        fell_off = true;
                        break;
                    }
                }
            }
        }
        self.watches = watches;
        if fell_off && let Err(e) = self.reload() {
            tracing::warn!(error = %e, "RBAC rules could not be read again");
        }
    }

    fn event(&mut self, e: &Event) {
        if e.deleted {
            self.remove(&e.entry)
        } else {
            self.put(&e.entry)
        }
    }

    fn put(&mut self, e: &Entry) {
        let Ok(v) = serde_json::from_slice::<Value>(&e.value) else {
            return;
        };
        let (name, ns) = (e.name().to_string(), e.namespace().to_string());
        let rules = || list(&v, "rules").iter().map(Rule::of).collect::<Rules>();
        let binding = || Binding {
            name: name.clone(),
            namespace: ns.clone(),
            role: match text(&v, &["roleRef", "kind"]) {
                "ClusterRole" => RoleRef::Cluster(text(&v, &["roleRef", "name"]).into()),
                _ => RoleRef::Role(text(&v, &["roleRef", "name"]).into()),
            },
            subjects: list(&v, "subjects")
                .iter()
                .filter_map(|s| Subject::of(s, &ns))
                .collect(),
        };
        match STORAGES.iter().position(|p| e.key.starts_with(p)) {
            Some(0) => {
                let selectors = v
                    .get("aggregationRule")
                    .map_or(&[][..], |a| list(a, "clusterRoleSelectors"));
                let sum_of = selectors
                    .iter()
                    .filter_map(|s| Selector::from_value(s).ok())
                    .collect();
                let labels = v.pointer("/metadata/labels").cloned().unwrap_or_default();
                self.cluster_roles.insert(
                    name,
                    ClusterRole {
                        rules: rules(),
                        labels,
                        sum_of,
                    },
                );
            }
            Some(1) => {
                self.roles.insert((ns, name), rules());
            }
            Some(2) => {
                self.cluster_bindings.insert(name.clone(), binding());
            }
            Some(3) => {
                let b = binding();
                self.bindings
                    .entry(ns.clone())
                    .or_default()
                    .insert(name.clone(), b);
            }
            _ => {}
        }
    }

    fn remove(&mut self, e: &Entry) {
        let (name, ns) = (e.name(), e.namespace());
        match STORAGES.iter().position(|p| e.key.starts_with(p)) {
            Some(0) => drop(self.cluster_roles.remove(name)),
            Some(1) => drop(self.roles.remove(&(ns.to_string(), name.to_string()))),
            Some(2) => drop(self.cluster_bindings.remove(name)),
            Some(3) => {
                if let Some(l) = self.bindings.get_mut(ns) {
                    l.remove(name);
                    if l.is_empty() {
                        self.bindings.remove(ns);
                    }
                }
            }
            _ => {}
        }
    }

    fn rules(&self, b: &Binding) -> Vec<Rules> {
        match &b.role {
            RoleRef::Cluster(n) => self.cluster_rules(n),
            RoleRef::Role(n) => self
                .roles
                .get(&(b.namespace.clone(), n.clone()))
                .cloned()
                .into_iter()
                .collect(),
        }
    }

    /// A cluster role's own rules and, in place of upstream's aggregation controller, those of the roles it selects, and so
    /// on (admin selects edit, which selects view).
    fn cluster_rules(&self, name: &str) -> Vec<Rules> {
        let mut seen = vec![name];
        let mut next = 0;
        let mut out = Vec::new();
        while let Some(name) = seen.get(next).copied() {
            next += 1;
            let Some(role) = self.cluster_roles.get(name) else {
                continue;
            };
            out.push(role.rules.clone());
            if !role.sum_of.is_empty() {
                let more = self
                    .cluster_roles
                    .iter()
                    .filter(|(_, r)| role.sum_of.iter().any(|s| s.matches(&r.labels)))
                    .map(|(n, _)| n.as_str());
                for n in more {
                    if !seen.contains(&n) {
                        seen.push(n);
                    }
                }
            }
        }
        out
    }

    /// Every binding that concerns the user, cluster-wide ones first.
    fn of<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Binding, Vec<Rules>)> {
        let local = self
            .bindings
            .get(namespace)
            .into_iter()
            .flat_map(HashMap::values);
        self.cluster_bindings
            .values()
            .chain(local)
            .filter(|b| b.subjects.iter().any(|s| s.is(user)))
            .map(|b| (b, self.rules(b)))
    }
}

/// The RBAC objects in memory.
#[derive(Default)]
pub struct Rbac(RwLock<Objects>);

impl Rbac {
    /// Reads all objects; from then on every question sees what has been written before it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn follow(&self, app: &App) -> Result<(), Status> {
        let mut o = self.0.write();
        o.store = Some(app.store.clone());
        o.reload().map_err(|e| e.status())
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
            for (b, rules) in o.of(a.user, a.namespace) {
                if rules.iter().flat_map(|l| l.iter()).any(|r| r.allows(a)) {
                    let (kind, of) = match (&b.role, b.namespace.is_empty()) {
                        (RoleRef::Cluster(n), true) => {
                            ("ClusterRoleBinding", format!("ClusterRole {n:?}"))
                        }
                        (RoleRef::Cluster(n), false) => {
                            ("RoleBinding", format!("ClusterRole {n:?}"))
                        }
                        (RoleRef::Role(n), _) => ("RoleBinding", format!("Role {n:?}")),
                    };
                    let shown = if b.namespace.is_empty() {
                        b.name.clone()
                    } else {
                        format!("{}/{}", b.name, b.namespace)
                    };
                    return Decision::Allow(format!("RBAC: allowed by {kind} {shown:?} of {of}"));
                }
            }
            Decision::NoOpinion(String::new())
        })
    }

    /// All rules of a user in a namespace (cluster-wide ones included).
    pub fn rules_of(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        self.with(|o| {
            o.of(user, namespace)
                .flat_map(|(_, l)| l)
                .flat_map(|r| r.to_vec())
                .collect()
        })
    }

    /// The rules of a role; for the check that nobody grants more than they have.
    pub fn rules_of_role(&self, cluster: bool, namespace: &str, name: &str) -> Option<Vec<Rule>> {
        self.with(|o| {
            if cluster {
                o.cluster_roles.contains_key(name).then(|| {
                    o.cluster_rules(name)
                        .iter()
                        .flat_map(|r| r.to_vec())
                        .collect()
                })
            } else {
                o.roles
                    .get(&(namespace.into(), name.into()))
                    .map(|r| r.to_vec())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::authorization::ask;
    use serde_json::json;

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
