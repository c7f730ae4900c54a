//! May a user do something. Owns the order of the authorizers (system:masters, node, RBAC) and the decoded RBAC objects,
//! which follow the store: they are brought up to date by whoever asks next, so a rule holds from the moment it is written.

use super::{Auth, MASTERS, UserInfo};
use crate::App;
use crate::admission::text;
use crate::http::path::RequestInfo;
use crate::store::{Entry, Event, Range, Watch};
use parking_lot::RwLock;
use serde_json::{Value, json};
use skiff_api::selector::Selector;
use skiff_api::status::Status;
use std::collections::HashMap;
use std::sync::Arc;

/// What somebody wants to do (upstream's authorizer.Attributes).
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// e.g. `get`
    pub verb: &'a str,
    /// Empty for all or none.
    pub namespace: &'a str,
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Empty for none.
    pub subresource: &'a str,
    /// Empty for all.
    pub name: &'a str,
    /// Of a request that is for no resource.
    pub path: &'a str,
    /// Whether it is for a resource.
    pub is_resource: bool,
}

impl<'a> Attributes<'a> {
    /// Of a request.
    pub fn of_request(user: &'a UserInfo, i: &'a RequestInfo) -> Self {
        Self {
            user,
            verb: i.verb,
            namespace: &i.namespace,
            group: &i.group,
            version: &i.version,
            resource: &i.resource,
            subresource: &i.subresource,
            name: &i.name,
            path: &i.path,
            is_resource: i.is_resource,
        }
    }
}

/// What an authorizer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes, and why.
    Allow(String),
    /// Not by any rule; why (usually empty).
    NoOpinion(String),
}

/// 403 in upstream's words (k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go).
pub fn forbidden(a: &Attributes<'_>, why: &str) -> Status {
    let user = &a.user.name;
    let message = if a.is_resource {
        let mut resource = a.resource.to_string();
        if !a.subresource.is_empty() {
            resource = format!("{resource}/{}", a.subresource);
        }
        let wher = if a.namespace.is_empty() {
            "at the cluster scope".to_string()
        } else {
            format!("in the namespace {:?}", a.namespace)
        };
        format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?} {wher}",
            a.verb, a.group
        )
    } else {
        format!("User {user:?} cannot {} path {:?}", a.verb, a.path)
    };
    let message = if why.is_empty() {
        message
    } else {
        format!("{message}: {why}")
    };
    if a.is_resource {
        Status::forbidden(a.group, a.resource, a.name, &message)
    } else {
        Status {
            details: json!({}),
            ..Status::new(403, "Forbidden", format!("forbidden: {message}"))
        }
    }
}

pub(super) fn decide(auth: &Auth, app: &App, a: &Attributes<'_>) -> Decision {
    if a.user.in_group(MASTERS) {
        return Decision::Allow(String::new());
    }
    if let Some(node) = node_of(a.user)
        && node_may(app, node, a)
    {
        return Decision::Allow(String::new());
    }
    auth.rbac.decide(a)
}

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
fn node_may(app: &App, node: &str, a: &Attributes<'_>) -> bool {
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

fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

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

    fn entry(key: &str, v: &Value) -> Entry {
        Entry {
            key: key.into(),
            value: v.to_string().into(),
            revision: 1,
            attributes: crate::store::Attributes::default(),
        }
    }

    fn ask<'a>(
        user: &'a UserInfo,
        verb: &'a str,
        ns: &'a str,
        resource: &'a str,
        sub: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        Attributes {
            user,
            verb,
            namespace: ns,
            group: "",
            version: "v1",
            resource,
            subresource: sub,
            name,
            path: "",
            is_resource: true,
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

    #[test]
    fn refusals_are_worded_as_upstreams() {
        let u = UserInfo::new("jane", &[]);
        let s = forbidden(&ask(&u, "list", "a", "pods", "", ""), "");
        assert_eq!(
            s.message,
            r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "a""#
        );
        let s = forbidden(
            &Attributes {
                path: "/metrics",
                is_resource: false,
                ..ask(&u, "get", "", "", "", "")
            },
            "",
        );
        assert_eq!(
            s.message,
            r#"forbidden: User "jane" cannot get path "/metrics""#
        );
    }

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
