//! RBAC as a pure function: rules and bindings in, decision out (`plugin/pkg/auth/authorizer/rbac`). Owns matching and
//! aggregation; where the objects come from is the API server's business. Objects are the JSON of
//! `rbac.authorization.k8s.io/v1`.

use serde_json::{Value, json};

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct User<'a> {
    /// User name; service accounts are `system:serviceaccount:<namespace>:<name>`.
    pub name: &'a str,
    /// Groups, `system:authenticated` included.
    pub groups: &'a [String],
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// `get`, `list`, `create`...; of other paths the HTTP method in lower case.
    pub verb: &'a str,
    /// Namespace, empty for cluster-wide requests.
    pub namespace: &'a str,
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural; empty when the request is for a path that is no resource.
    pub resource: &'a str,
    /// Subresource, may be empty.
    pub subresource: &'a str,
    /// Object name, may be empty.
    pub name: &'a str,
    /// The path of a request that is for no resource.
    pub path: &'a str,
}

/// The RBAC objects, as the caller's cache has them.
pub trait Policy {
    /// Calls `f` with each ClusterRoleBinding until it gives false.
    fn cluster_role_bindings(&self, f: &mut dyn FnMut(&Value) -> bool);
    /// The same with each RoleBinding of a namespace.
    fn role_bindings(&self, namespace: &str, f: &mut dyn FnMut(&Value) -> bool);
    /// Calls `f` with that ClusterRole, if it is there.
    fn cluster_role(&self, name: &str, f: &mut dyn FnMut(&Value));
    /// The same with that Role.
    fn role(&self, namespace: &str, name: &str, f: &mut dyn FnMut(&Value));
}

/// Everything in lists; what tests and small callers use.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// ClusterRoleBindings.
    pub cluster_role_bindings: Vec<Value>,
    /// RoleBindings of all namespaces.
    pub role_bindings: Vec<Value>,
    /// ClusterRoles.
    pub cluster_roles: Vec<Value>,
    /// Roles of all namespaces.
    pub roles: Vec<Value>,
}

impl Policy for Objects {
    fn cluster_role_bindings(&self, f: &mut dyn FnMut(&Value) -> bool) {
        let _ = self.cluster_role_bindings.iter().all(f);
    }
    fn role_bindings(&self, namespace: &str, f: &mut dyn FnMut(&Value) -> bool) {
        let _ = self
            .role_bindings
            .iter()
            .filter(|b| crate::meta::namespace(b) == namespace)
            .all(f);
    }
    fn cluster_role(&self, name: &str, f: &mut dyn FnMut(&Value)) {
        if let Some(r) = self
            .cluster_roles
            .iter()
            .find(|r| crate::meta::name(r) == name)
        {
            f(r);
        }
    }
    fn role(&self, namespace: &str, name: &str, f: &mut dyn FnMut(&Value)) {
        if let Some(r) = self
            .roles
            .iter()
            .find(|r| crate::meta::namespace(r) == namespace && crate::meta::name(r) == name)
        {
            f(r);
        }
    }
}

fn list<'a>(v: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    v.get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or("")
}

fn rules(role: &Value) -> impl Iterator<Item = &Value> {
    role.get("rules")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Does one rule allow the request?
pub fn rule_allows(rule: &Value, a: &Attributes<'_>) -> bool {
    let any = |key: &str, want: &str| list(rule, key).any(|x| x == "*" || x == want);
    if !any("verbs", a.verb) {
        return false;
    }
    if a.resource.is_empty() {
        return list(rule, "nonResourceURLs").any(|p| {
            p == "*"
                || p == a.path
                || p.strip_suffix('*')
                    .is_some_and(|prefix| a.path.starts_with(prefix))
        });
    }
    let names = list(rule, "resourceNames").collect::<Vec<_>>();
    any("apiGroups", a.group)
        && resource_matches(rule, a)
        && (names.is_empty() || names.contains(&a.name))
}

/// `*`, `pods`, `pods/log`, `*/log`; a bare `pods` is not its subresources.
fn resource_matches(rule: &Value, a: &Attributes<'_>) -> bool {
    list(rule, "resources").any(|r| {
        if r == "*" {
            return true;
        }
        match r.split_once('/') {
            None => a.subresource.is_empty() && r == a.resource,
            Some((left, sub)) => {
                sub == a.subresource && !sub.is_empty() && (left == "*" || left == a.resource)
            }
        }
    })
}

/// Is the user one of a binding's subjects? `namespace` is the binding's, for service accounts that name none.
pub fn subject_matches(binding: &Value, user: &User<'_>, namespace: &str) -> bool {
    let subjects = binding.get("subjects").and_then(Value::as_array);
    subjects.into_iter().flatten().any(|s| {
        let name = text(s, "name");
        match text(s, "kind") {
            "User" => name == user.name,
            "Group" => user.groups.iter().any(|g| g == name),
            "ServiceAccount" => {
                let ns = match text(s, "namespace") {
                    "" => namespace,
                    ns => ns,
                };
                !ns.is_empty()
                    && user
                        .name
                        .strip_prefix("system:serviceaccount:")
                        .and_then(|rest| rest.split_once(':'))
                        .is_some_and(|(n, sa)| n == ns && sa == name)
            }
            _ => false,
        }
    })
}

/// Calls `f` with every rule that applies to the user in the namespace (empty: cluster-wide rules only) and where it
/// comes from, until `f` gives false.
fn visit_rules(
    policy: &dyn Policy,
    user: &User<'_>,
    namespace: &str,
    f: &mut dyn FnMut(&Value, &dyn Fn() -> String) -> bool,
) {
    let mut more = true;
    policy.cluster_role_bindings(&mut |b| {
        if subject_matches(b, user, "") {
            let role = text(&b["roleRef"], "name");
            let source = || {
                format!(
                    "ClusterRoleBinding {:?} of ClusterRole {role:?}",
                    crate::meta::name(b)
                )
            };
            policy.cluster_role(role, &mut |r| {
                more = more && rules(r).all(|rule| f(rule, &source));
            });
        }
        more
    });
    if !more || namespace.is_empty() {
        return;
    }
    policy.role_bindings(namespace, &mut |b| {
        if subject_matches(b, user, namespace) {
            let (kind, role) = (text(&b["roleRef"], "kind"), text(&b["roleRef"], "name"));
            let source = || {
                format!(
                    "RoleBinding \"{}/{namespace}\" of {kind} {role:?}",
                    crate::meta::name(b)
                )
            };
            let mut visit = |r: &Value| {
                more = more && rules(r).all(|rule| f(rule, &source));
            };
            match kind {
                "ClusterRole" => policy.cluster_role(role, &mut visit),
                "Role" => policy.role(namespace, role, &mut visit),
                _ => {}
            }
        }
        more
    });
}

/// Is the request allowed? The text says by which binding (upstream's `RBAC: allowed by ...`); none is no opinion,
/// which with RBAC alone is a refusal.
pub fn allowed(policy: &dyn Policy, user: &User<'_>, a: &Attributes<'_>) -> Option<String> {
    // Upstream's escape hatch; it does not depend on objects that could be deleted.
    if user.groups.iter().any(|g| g == "system:masters") {
        return Some(String::new());
    }
    let mut answer = None;
    visit_rules(policy, user, a.namespace, &mut |rule, source| {
        if rule_allows(rule, a) {
            let who = format!("{} to {}", source(), subject(user));
            answer = Some(format!("RBAC: allowed by {who}"));
        }
        answer.is_none()
    });
    answer
}

fn subject(user: &User<'_>) -> String {
    match user
        .name
        .strip_prefix("system:serviceaccount:")
        .and_then(|r| r.split_once(':'))
    {
        Some((ns, name)) => format!("ServiceAccount \"{name}/{ns}\""),
        None => format!("User {:?}", user.name),
    }
}

/// The text of a 403, as upstream words it: `User "x" cannot list resource "pods" in API group "" at the cluster scope`.
pub fn forbidden_text(user: &User<'_>, a: &Attributes<'_>) -> String {
    if a.resource.is_empty() {
        return format!("User {:?} cannot {} path {:?}", user.name, a.verb, a.path);
    }
    let resource = if a.subresource.is_empty() {
        a.resource.to_string()
    } else {
        format!("{}/{}", a.resource, a.subresource)
    };
    let place = if a.namespace.is_empty() {
        "at the cluster scope".to_string()
    } else {
        format!("in the namespace {:?}", a.namespace)
    };
    format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
        user.name, a.verb, a.group
    )
}

/// The `status` of a SelfSubjectRulesReview: what the user may do in a namespace.
pub fn rules_review(policy: &dyn Policy, user: &User<'_>, namespace: &str) -> Value {
    let mut resource_rules: Vec<Value> = Vec::new();
    let mut other_rules: Vec<Value> = Vec::new();
    let mut add = |rule: &Value| {
        let part = |k: &str| {
            rule.get(k)
                .cloned()
                .filter(|v| !v.as_array().is_some_and(Vec::is_empty))
        };
        let filled = |keys: &[&str]| -> Value {
            Value::Object(
                keys.iter()
                    .filter_map(|k| Some(((*k).to_string(), part(k)?)))
                    .collect(),
            )
        };
        if list(rule, "resources").next().is_some() {
            resource_rules.push(filled(&[
                "verbs",
                "apiGroups",
                "resources",
                "resourceNames",
            ]));
        }
        if list(rule, "nonResourceURLs").next().is_some() {
            other_rules.push(filled(&["verbs", "nonResourceURLs"]));
        }
    };
    if user.groups.iter().any(|g| g == "system:masters") {
        add(&json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        add(&json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    visit_rules(policy, user, namespace, &mut |rule, _| {
        add(rule);
        true
    });
    json!({"incomplete": false, "resourceRules": resource_rules, "nonResourceRules": other_rules})
}

/// The rules of a ClusterRole with an `aggregationRule`: those of every other ClusterRole that a selector matches,
/// without repeats; none when the role aggregates nothing (upstream's clusterroleaggregation controller).
pub fn aggregated_rules<'a>(
    role: &Value,
    all: impl IntoIterator<Item = &'a Value>,
) -> Option<Value> {
    let selectors: Vec<crate::selector::Selector> = role
        .pointer("/aggregationRule/clusterRoleSelectors")?
        .as_array()?
        .iter()
        .filter_map(|s| crate::selector::Selector::from_value(s).ok())
        .collect();
    let mut sources: Vec<&Value> = all
        .into_iter()
        .filter(|r| crate::meta::name(r) != crate::meta::name(role))
        .filter(|r| selectors.iter().any(|s| s.matches_object(r)))
        .collect();
    sources.sort_by_key(|r| crate::meta::name(r).to_string());
    let mut out: Vec<Value> = Vec::new();
    for rule in sources.into_iter().flat_map(rules) {
        if !out.contains(rule) {
            out.push(rule.clone());
        }
    }
    Some(out.into())
}

/// Do the holder's rules cover every rule that is to be granted? Gives those that are not covered (escalation check of
/// roles and bindings): each wanted combination of verb, group, resource and name must be allowed by one held rule.
pub fn not_covered(held: &[Value], wanted: &Value) -> Vec<Value> {
    let mut missing = Vec::new();
    for rule in wanted.as_array().into_iter().flatten() {
        let mut all = true;
        for verb in list(rule, "verbs") {
            for path in list(rule, "nonResourceURLs") {
                all &= held.iter().any(|h| {
                    list(h, "verbs").any(|v| v == "*" || v == verb)
                        && list(h, "nonResourceURLs").any(|p| {
                            p == "*"
                                || p == path
                                || p.strip_suffix('*')
                                    .is_some_and(|prefix| path.starts_with(prefix))
                        })
                });
            }
            for group in list(rule, "apiGroups") {
                for resource in list(rule, "resources") {
                    let mut names: Vec<&str> = list(rule, "resourceNames").collect();
                    if names.is_empty() {
                        names.push("");
                    }
                    let (plural, sub) = resource.split_once('/').unwrap_or((resource, ""));
                    for name in names {
                        all &= held
                            .iter()
                            .any(|h| covers(h, verb, group, plural, sub, name));
                    }
                }
            }
        }
        if !all {
            missing.push(rule.clone());
        }
    }
    missing
}

fn covers(held: &Value, verb: &str, group: &str, resource: &str, sub: &str, name: &str) -> bool {
    let a = Attributes {
        verb,
        namespace: "",
        group,
        resource,
        subresource: sub,
        name,
        path: "",
    };
    // A wildcard is wanted as such: only a wildcard covers it, which comparing it literally does.
    rule_allows(held, &a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Objects {
        Objects {
            cluster_roles: vec![
                json!({"metadata": {"name": "view", "labels": {"agg": "edit"}}, "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]}),
                json!({"metadata": {"name": "edit"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"agg": "edit"}}]}, "rules": []}),
                json!({"metadata": {"name": "health"}, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz/*", "/version"]}]}),
            ],
            roles: vec![
                json!({"metadata": {"name": "one", "namespace": "a"}, "rules": [{"verbs": ["update"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"]}]}),
            ],
            cluster_role_bindings: vec![
                json!({"metadata": {"name": "h"}, "roleRef": {"kind": "ClusterRole", "name": "health"}, "subjects": [{"kind": "Group", "name": "system:authenticated"}]}),
            ],
            role_bindings: vec![
                json!({"metadata": {"name": "v", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "ServiceAccount", "name": "sa"}]}),
                json!({"metadata": {"name": "o", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "one"}, "subjects": [{"kind": "User", "name": "eve"}]}),
            ],
        }
    }

    fn ask(
        user: &str,
        verb: &str,
        namespace: &str,
        group: &str,
        resource: &str,
        name: &str,
    ) -> Option<String> {
        let groups = ["system:authenticated".to_string()];
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        allowed(
            &policy(),
            &User {
                name: user,
                groups: &groups,
            },
            &Attributes {
                verb,
                namespace,
                group,
                resource,
                subresource,
                name,
                path: "",
            },
        )
    }

    #[test]
    fn bindings_give_rules_in_their_namespace_only() {
        let sa = "system:serviceaccount:a:sa";
        assert_eq!(
            ask(sa, "get", "a", "", "pods", "x").as_deref(),
            Some(
                "RBAC: allowed by RoleBinding \"v/a\" of ClusterRole \"view\" to ServiceAccount \"sa/a\""
            )
        );
        assert!(ask(sa, "get", "a", "", "pods/log", "x").is_some());
        assert!(ask(sa, "get", "a", "", "pods/exec", "x").is_none());
        assert!(ask(sa, "get", "b", "", "pods", "x").is_none());
        assert!(ask(sa, "get", "", "", "pods", "").is_none());
        assert!(ask("system:serviceaccount:b:sa", "get", "a", "", "pods", "x").is_none());
        assert!(ask("eve", "update", "a", "apps", "deployments", "web").is_some());
        assert!(ask("eve", "update", "a", "apps", "deployments", "db").is_none());
        assert!(ask("eve", "update", "a", "apps", "deployments/scale", "web").is_none());
    }

    #[test]
    fn paths_match_with_wildcards_at_the_end() {
        let groups = ["system:authenticated".to_string()];
        let user = User {
            name: "x",
            groups: &groups,
        };
        let path = |p: &str| {
            allowed(
                &policy(),
                &user,
                &Attributes {
                    verb: "get",
                    namespace: "",
                    group: "",
                    resource: "",
                    subresource: "",
                    name: "",
                    path: p,
                },
            )
            .is_some()
        };
        assert!(
            path("/healthz/etcd") && path("/version") && !path("/versions") && !path("/metrics")
        );
        let masters = ["system:masters".to_string()];
        assert!(
            allowed(
                &Objects::default(),
                &User {
                    name: "r",
                    groups: &masters
                },
                &Attributes {
                    verb: "delete",
                    namespace: "",
                    group: "",
                    resource: "nodes",
                    subresource: "",
                    name: "",
                    path: ""
                }
            )
            .is_some()
        );
    }

    #[test]
    fn refusals_are_worded_as_upstream_words_them() {
        let user = User {
            name: "eve",
            groups: &[],
        };
        let a = Attributes {
            verb: "list",
            namespace: "",
            group: "apps",
            resource: "deployments",
            subresource: "",
            name: "",
            path: "",
        };
        assert_eq!(
            forbidden_text(&user, &a),
            "User \"eve\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope"
        );
    }

    #[test]
    fn reviews_and_aggregation_collect_rules() {
        let groups = ["system:authenticated".to_string()];
        let got = rules_review(
            &policy(),
            &User {
                name: "system:serviceaccount:a:sa",
                groups: &groups,
            },
            "a",
        );
        assert_eq!(
            got["resourceRules"][0]["resources"],
            json!(["pods", "pods/log"])
        );
        assert_eq!(
            got["nonResourceRules"][0]["nonResourceURLs"],
            json!(["/healthz/*", "/version"])
        );
        let p = policy();
        let agg = aggregated_rules(&p.cluster_roles[1], &p.cluster_roles).expect("aggregates");
        assert_eq!(agg, p.cluster_roles[0]["rules"]);
        assert_eq!(
            aggregated_rules(&p.cluster_roles[0], &p.cluster_roles),
            None
        );
    }

    #[test]
    fn nobody_grants_more_than_they_hold() {
        let held = [json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]})];
        let rule = |verbs: Value, resources: Value| json!([{"verbs": verbs, "apiGroups": [""], "resources": resources}]);
        assert!(not_covered(&held, &rule(json!(["get"]), json!(["pods"]))).is_empty());
        assert_eq!(
            not_covered(&held, &rule(json!(["get", "delete"]), json!(["pods"]))).len(),
            1
        );
        assert_eq!(
            not_covered(&held, &rule(json!(["*"]), json!(["pods"]))).len(),
            1
        );
        assert_eq!(
            not_covered(&held, &rule(json!(["get"]), json!(["*"]))).len(),
            1
        );
        assert!(
            not_covered(
                &[json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})],
                &rule(json!(["*"]), json!(["*", "pods/log"]))
            )
            .is_empty()
        );
    }
}
