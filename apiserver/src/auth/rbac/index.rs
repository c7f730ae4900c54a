//! RBAC objects in memory, by the names they are asked for: bindings by scope and subject, rules by role. Owns how they
//! follow the store; decides nothing.

use super::rule::Rule;
use crate::admission::text;
use crate::auth::UserInfo;
use crate::auth::authorization::list;
use crate::store::{Entry, Event, Range, Store, Watch};
use serde_json::Value;
use skiff_api::selector::Selector;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// The rules of one role, shared by whoever asks.
pub type Rules = Arc<[Rule]>;

/// A cluster role: its rules, and of an aggregating one the selectors of those whose rules are its rules, too.
#[derive(Debug)]
struct ClusterRole {
    rules: Rules,
    labels: Value,
    sum_of: Vec<Selector>,
    /// All that it grants, computed when somebody asks; forgotten when any cluster role changes.
    all: OnceLock<Arc<[Rules]>>,
}

/// What a binding points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleRef {
    /// A cluster role.
    Cluster(String),
    /// A role of the binding's namespace.
    Role(String),
}

/// A binding.
#[derive(Debug)]
pub struct Binding {
    /// Its name.
    pub name: String,
    /// Empty for cluster role bindings.
    pub namespace: String,
    /// Its role.
    pub role: RoleRef,
    subjects: Vec<Subject>,
}

impl std::fmt::Display for Binding {
    /// As upstream explains a decision.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, ns) = (&self.name, &self.namespace);
        match (&self.role, ns.is_empty()) {
            (RoleRef::Cluster(n), true) => {
                write!(f, "ClusterRoleBinding {name:?} of ClusterRole {n:?}")
            }
            (RoleRef::Cluster(n), false) => {
                let shown = format!("{name}/{ns}");
                write!(f, "RoleBinding {shown:?} of ClusterRole {n:?}")
            }
            (RoleRef::Role(n), _) => {
                let shown = format!("{name}/{ns}");
                write!(f, "RoleBinding {shown:?} of Role {n:?}")
            }
        }
    }
}

/// Whom a binding is for; a service account is the user of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
}

impl Subject {
    fn of(v: &Value, namespace: &str) -> Option<Self> {
        let name = text(v, &["name"]);
        match text(v, &["kind"]) {
            "User" => Some(Self::User(name.into())),
            "Group" => Some(Self::Group(name.into())),
            "ServiceAccount" => {
                let ns = match text(v, &["namespace"]) {
                    "" => namespace,
                    ns => ns,
                };
                (!ns.is_empty()).then(|| Self::User(format!("system:serviceaccount:{ns}:{name}")))
            }
            _ => None,
        }
    }
}

/// The bindings of one namespace, or the cluster-wide ones.
#[derive(Default)]
struct Scope {
    by_name: HashMap<String, Arc<Binding>>,
    users: HashMap<String, Vec<Arc<Binding>>>,
    groups: HashMap<String, Vec<Arc<Binding>>>,
}

impl Scope {
    fn put(&mut self, binding: Arc<Binding>) {
        self.remove(&binding.name);
        for s in &binding.subjects {
            let list = match s {
                Subject::User(n) => self.users.entry(n.clone()).or_default(),
                Subject::Group(n) => self.groups.entry(n.clone()).or_default(),
            };
            if !list.iter().any(|b| Arc::ptr_eq(b, &binding)) {
                list.push(binding.clone());
            }
        }
        self.by_name.insert(binding.name.clone(), binding);
    }

    fn remove(&mut self, name: &str) {
        let Some(old) = self.by_name.remove(name) else {
            return;
        };
        for s in &old.subjects {
            let (map, n) = match s {
                Subject::User(n) => (&mut self.users, n),
                Subject::Group(n) => (&mut self.groups, n),
            };
            if let Some(list) = map.get_mut(n) {
                list.retain(|b| !Arc::ptr_eq(b, &old));
                if list.is_empty() {
                    map.remove(n);
                }
            }
        }
    }

    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Arc<Binding>> {
        let groups = user.groups.iter().filter_map(|g| self.groups.get(g));
        self.users
            .get(&user.name)
            .into_iter()
            .chain(groups)
            .flatten()
    }
}

const STORAGES: [&str; 4] = [
    "/rbac.authorization.k8s.io/clusterroles/",
    "/rbac.authorization.k8s.io/roles/",
    "/rbac.authorization.k8s.io/clusterrolebindings/",
    "/rbac.authorization.k8s.io/rolebindings/",
];

/// All RBAC objects.
#[derive(Default)]
pub struct Objects {
    cluster_roles: HashMap<String, ClusterRole>,
    /// By namespace, then name.
    roles: HashMap<String, HashMap<String, Rules>>,
    /// By namespace; cluster-wide ones under the empty one.
    bindings: HashMap<String, Scope>,
    watches: Vec<Watch>,
    store: Option<Arc<dyn Store>>,
}

impl Objects {
    /// Follows this store from now on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn follow(&mut self, store: Arc<dyn Store>) -> Result<(), crate::store::Error> {
        self.store = Some(store);
        self.reload()
    }

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

    /// True when something was written that is not in here yet.
    pub fn pending(&self) -> bool {
        self.watches.iter().any(|w| w.progress().is_none())
    }

    /// Takes in what was written.
    pub fn catch_up(&mut self) {
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

    /// Takes in an object.
    pub fn put(&mut self, e: &Entry) {
        let Ok(v) = serde_json::from_slice::<Value>(&e.value) else {
            // What cannot be read grants nothing.
            return self.remove(e);
        };
        let (name, ns) = (e.name().to_string(), e.namespace().to_string());
        let rules = || list(&v, "rules").iter().map(Rule::of).collect::<Rules>();
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
                let role = ClusterRole {
                    rules: rules(),
                    labels,
                    sum_of,
                    all: OnceLock::new(),
                };
                self.cluster_roles.insert(name, role);
                self.forget_sums();
            }
            Some(1) => {
                self.roles.entry(ns).or_default().insert(name, rules());
            }
            Some(2 | 3) => {
                let role = match text(&v, &["roleRef", "kind"]) {
                    "ClusterRole" => RoleRef::Cluster(text(&v, &["roleRef", "name"]).into()),
                    _ => RoleRef::Role(text(&v, &["roleRef", "name"]).into()),
                };
                let subjects = list(&v, "subjects")
                    .iter()
                    .filter_map(|s| Subject::of(s, &ns))
                    .collect();
                let binding = Arc::new(Binding {
                    name,
                    namespace: ns.clone(),
                    role,
                    subjects,
                });
                self.bindings.entry(ns).or_default().put(binding);
            }
            _ => {}
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, e: &Entry) {
        let (name, ns) = (e.name(), e.namespace());
        match STORAGES.iter().position(|p| e.key.starts_with(p)) {
            Some(0) => {
                self.cluster_roles.remove(name);
                self.forget_sums();
            }
            Some(1) => {
                if let Some(l) = self.roles.get_mut(ns) {
                    l.remove(name);
                    if l.is_empty() {
                        self.roles.remove(ns);
                    }
                }
            }
            Some(2 | 3) => {
                if let Some(scope) = self.bindings.get_mut(ns) {
                    scope.remove(name);
                    if scope.by_name.is_empty() {
                        self.bindings.remove(ns);
                    }
                }
            }
            _ => {}
        }
    }

    fn forget_sums(&mut self) {
        for r in self.cluster_roles.values_mut() {
            if !r.sum_of.is_empty() {
                r.all = OnceLock::new();
            }
        }
    }

    /// A role's rules; none when it is not there.
    pub fn role(&self, namespace: &str, name: &str) -> Option<&Rules> {
        self.roles.get(namespace)?.get(name)
    }

    /// A cluster role's rules; of an aggregating one those of the roles it selects, and so on (admin selects edit, which
    /// selects view), from the moment they are written: its object's own rules follow later. None when it is not there.
    pub fn cluster_role(&self, name: &str) -> Option<&[Rules]> {
        let role = self.cluster_roles.get(name)?;
        Some(role.all.get_or_init(|| {
            if role.sum_of.is_empty() {
                return [role.rules.clone()].into();
            }
            let mut seen = vec![name];
            let mut next = 0;
            let mut out = Vec::new();
            while let Some(name) = seen.get(next).copied() {
                next += 1;
                let Some(role) = self.cluster_roles.get(name) else {
                    continue;
                };
                if role.sum_of.is_empty() {
                    out.push(role.rules.clone());
                }
                for (n, r) in &self.cluster_roles {
                    if role.sum_of.iter().any(|s| s.matches(&r.labels))
                        && !seen.contains(&n.as_str())
                    {
                        seen.push(n);
                    }
                }
            }
            out.into()
        }))
    }

    /// The rules that a binding gives.
    pub fn rules(&self, b: &Binding) -> &[Rules] {
        match &b.role {
            RoleRef::Cluster(n) => self.cluster_role(n).unwrap_or(&[]),
            RoleRef::Role(n) => self.role(&b.namespace, n).map_or(&[], std::slice::from_ref),
        }
    }

    /// Every binding that concerns the user, cluster-wide ones first. One that names the user twice comes twice.
    pub fn of<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Binding>> {
        let local = if namespace.is_empty() {
            None
        } else {
            self.bindings.get(namespace)
        };
        self.bindings
            .get("")
            .into_iter()
            .chain(local)
            .flat_map(|s| s.of(user))
    }
}
