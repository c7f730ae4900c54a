//! Nobody grants more than they have: roles and bindings are only written by those who hold all of their rules, or the
//! verbs `escalate` (roles) and `bind` (bindings) on them. Upstream's policybased storages of rbac; pure but for the look-up.

use super::authorization::{Attributes, Decision};
use super::rbac::Rule;
use super::{MASTERS, UserInfo};
use crate::admission::text;
use crate::{App, Operation, Write};
use serde_json::Value;
use skiff_api::status::Status;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Refuses roles and bindings that grant more than the writer has.
///
/// # Errors
/// 403 naming the rules that are missing, 404 when a binding's role is not there.
pub fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    if write.row.group != GROUP
        || write.operation == Operation::Delete
        || write.user.in_group(MASTERS)
    {
        return Ok(());
    }
    if write
        .old
        .as_ref()
        .is_some_and(|old| only_for_collection(old, &write.object))
    {
        return Ok(());
    }
    let may = |verb: &str, resource: &str, name: &str| {
        let a = Attributes {
            user: write.user,
            verb,
            namespace: write.namespace,
            group: GROUP,
            version: "v1",
            resource,
            subresource: "",
            name,
            path: "",
            is_resource: true,
            fields: &[],
        };
        matches!(app.auth.decide(app, &a), Decision::Allow(_))
    };
    let granted: Vec<Rule> = match &*write.row.plural {
        plural @ ("roles" | "clusterroles") => {
            if may(
                "escalate",
                plural,
                text(&write.object, &["metadata", "name"]),
            ) {
                return Ok(());
            }
            let mut rules: Vec<Rule> = write
                .object
                .get("rules")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(Rule::of)
                .collect();
            let sums = |o: &Value| o.get("aggregationRule").is_some_and(|a| !a.is_null());
            if sums(&write.object) || write.old.as_ref().is_some_and(sums) {
                // Whoever aggregates could get anything.
                rules.extend(Rule::everything());
            }
            rules
        }
        "rolebindings" | "clusterrolebindings" => {
            let (kind, name) = (
                text(&write.object, &["roleRef", "kind"]),
                text(&write.object, &["roleRef", "name"]),
            );
            let cluster = kind == "ClusterRole";
            let plural = if cluster { "clusterroles" } else { "roles" };
            if may("bind", plural, name) {
                return Ok(());
            }
            app.auth
                .rbac
                .rules_of_role(cluster, write.namespace, name)
                .ok_or_else(|| Status::not_found(GROUP, plural, name))?
        }
        _ => return Ok(()),
    };
    let mine = app.auth.rbac.rules_of(write.user, write.namespace);
    let missing = uncovered(&mine, &granted);
    if missing.is_empty() {
        return Ok(());
    }
    Err(crate::admission::forbidden(
        write,
        &refusal(write.user, &missing),
    ))
}

/// Does the change touch nothing but what the garbage collector needs to delete the object in the end? Every other one is
/// checked, of labels and annotations, too: a label can make a role part of another.
fn only_for_collection(old: &Value, new: &Value) -> bool {
    const FREE: [&str; 4] = [
        "ownerReferences",
        "finalizers",
        "managedFields",
        "resourceVersion",
    ];
    let stripped = |v: &Value| {
        let mut v = v.clone();
        if let Some(m) = v.get_mut("metadata").and_then(Value::as_object_mut) {
            m.retain(|k, _| !FREE.contains(&k.as_str()));
        }
        v
    };
    stripped(old) == stripped(new)
}

fn refusal(user: &UserInfo, missing: &[Rule]) -> String {
    let list = |l: &[String]| {
        l.iter()
            .map(|s| format!("{s:?}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let shown: Vec<String> = missing
        .iter()
        .map(|r| {
            let mut parts = Vec::new();
            for (k, l) in [
                ("APIGroups", &r.groups),
                ("Resources", &r.resources),
                ("ResourceNames", &r.names),
                ("NonResourceURLs", &r.urls),
                ("Verbs", &r.verbs),
            ] {
                if !l.is_empty() {
                    parts.push(format!("{k}:[{}]", list(l)));
                }
            }
            format!("{{{}}}", parts.join(", "))
        })
        .collect();
    format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        list(&user.groups),
        shown.join("\n")
    )
}

/// The single permissions of `granted` that no rule of `mine` has.
fn uncovered(mine: &[Rule], granted: &[Rule]) -> Vec<Rule> {
    let one = |s: &str| vec![s.to_string()];
    let mut missing = Vec::new();
    for rule in granted {
        for verb in &rule.verbs {
            for url in &rule.urls {
                let held = mine.iter().any(|m| {
                    has(&m.verbs, verb)
                        && m.urls.iter().any(|u| {
                            u == "*"
                                || u == url
                                || u.strip_suffix('*').is_some_and(|p| url.starts_with(p))
                        })
                });
                if !held {
                    missing.push(Rule {
                        verbs: one(verb),
                        urls: one(url),
                        ..Rule::default()
                    });
                }
            }
            for group in &rule.groups {
                for resource in &rule.resources {
                    let names: Vec<Option<&String>> = if rule.names.is_empty() {
                        vec![None]
                    } else {
                        rule.names.iter().map(Some).collect()
                    };
                    for name in names {
                        let held = mine.iter().any(|m| {
                            has(&m.verbs, verb)
                                && has(&m.groups, group)
                                && (has(&m.resources, resource)
                                    || resource.split_once('/').is_some_and(|(_, sub)| {
                                        m.resources
                                            .iter()
                                            .any(|r| r.strip_prefix("*/") == Some(sub))
                                    }))
                                && (m.names.is_empty() || name.is_some_and(|n| m.names.contains(n)))
                        });
                        if !held {
                            missing.push(Rule {
                                verbs: one(verb),
                                groups: one(group),
                                resources: one(resource),
                                names: name.map(|n| one(n)).unwrap_or_default(),
                                ..Rule::default()
                            });
                        }
                    }
                }
            }
        }
    }
    missing
}

fn has(list: &[String], x: &str) -> bool {
    list.iter().any(|v| v == "*" || v == x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn r(v: Value) -> Rule {
        Rule::of(&v)
    }

    #[test]
    fn a_rule_is_covered_when_each_of_its_permissions_is() {
        let mine = [
            r(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]})),
            r(json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["*/scale"]})),
            r(
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}),
            ),
            r(json!({"verbs": ["get"], "nonResourceURLs": ["/metrics/*"]})),
        ];
        let ok = |v: Value| uncovered(&mine, &[r(v)]).is_empty();
        assert!(ok(
            json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"]})
        ));
        assert!(ok(
            json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["deployments/scale"]})
        ));
        assert!(ok(
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]})
        ));
        assert!(!ok(
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]})
        ));
        assert!(!ok(
            json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]})
        ));
        assert!(ok(
            json!({"verbs": ["get"], "nonResourceURLs": ["/metrics/x"]})
        ));
        assert!(!ok(json!({"verbs": ["get"], "nonResourceURLs": ["/*"]})));
    }
}
