//! What objects use of a namespace's quotas (pkg/quota/v1/evaluator/core). Admission enforces and the quota controller
//! reports by this same arithmetic; it decides nothing.

use super::resources::{self, Amounts};
use crate::quantity::{Format, Quantity};
use serde_json::Value;

/// A text in an object, empty when it is not there.
fn text<'a>(o: &'a Value, path: &[&str]) -> &'a str {
    path.iter()
        .try_fold(o, |v, k| v.get(*k))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// A plain count.
pub fn one(n: i64) -> Quantity {
    Quantity::new(n, Format::DecimalSI)
}

/// Amounts of an object, by the names quotas use.
pub fn usage(group: &str, plural: &str, o: &Value) -> Amounts {
    let mut u = Amounts::new();
    let qualified = if group.is_empty() {
        plural.to_string()
    } else {
        format!("{plural}.{group}")
    };
    let put = |u: &mut Amounts, k: &str, q: Quantity| {
        u.entry(k.to_string())
            .and_modify(|x| x.add(&q))
            .or_insert(q);
    };
    match (group, plural) {
        ("", "pods") => {
            if matches!(text(o, &["status", "phase"]), "Succeeded" | "Failed") {
                put(&mut u, "count/pods", one(1));
                return u;
            }
            put(&mut u, "pods", one(1));
            let spec = &o["spec"];
            for (k, q) in resources::pod_requests(spec) {
                if matches!(k.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                    put(&mut u, &k, q);
                }
                put(&mut u, &format!("requests.{k}"), q);
            }
            for (k, q) in resources::pod_limits(spec) {
                put(&mut u, &format!("limits.{k}"), q);
            }
        }
        ("", "services") => {
            put(&mut u, "services", one(1));
            let ports = o
                .pointer("/spec/ports")
                .and_then(Value::as_array)
                .map_or(0, Vec::len) as i64;
            match text(o, &["spec", "type"]) {
                "NodePort" => put(&mut u, "services.nodeports", one(ports)),
                "LoadBalancer" => {
                    put(&mut u, "services.loadbalancers", one(1));
                    if o.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
                    {
                        put(&mut u, "services.nodeports", one(ports));
                    }
                }
                _ => {}
            }
        }
        ("", "persistentvolumeclaims") => {
            put(&mut u, "persistentvolumeclaims", one(1));
            let class = text(o, &["spec", "storageClassName"]).to_string();
            if let Some(q) = o
                .pointer("/spec/resources/requests/storage")
                .and_then(|v| Quantity::from_value(v).ok())
            {
                put(&mut u, "requests.storage", q);
                if !class.is_empty() {
                    put(
                        &mut u,
                        &format!("{class}.storageclass.storage.k8s.io/requests.storage"),
                        q,
                    );
                }
            }
            if !class.is_empty() {
                put(
                    &mut u,
                    &format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"),
                    one(1),
                );
            }
        }
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            put(&mut u, plural, one(1))
        }
        _ => {}
    }
    put(&mut u, &format!("count/{qualified}"), one(1));
    u
}

/// Has the quota scopes?
pub fn scoped(quota: &Value) -> bool {
    let any = |p: &str| {
        quota
            .pointer(p)
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty())
    };
    any("/spec/scopes") || any("/spec/scopeSelector/matchExpressions")
}

/// Does a quota with scopes look at this object? Only pods have scopes.
pub fn in_scope(quota: &Value, plural: &str, o: &Value) -> bool {
    let scopes = quota
        .pointer("/spec/scopes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let mut wanted: Vec<(&str, &str, Vec<&str>)> =
        scopes.map(|s| (s, "Exists", Vec::new())).collect();
    for e in quota
        .pointer("/spec/scopeSelector/matchExpressions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let values = e["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        wanted.push((text(e, &["scopeName"]), text(e, &["operator"]), values));
    }
    if wanted.is_empty() {
        return true;
    }
    if plural != "pods" {
        return false;
    }
    let spec = &o["spec"];
    let best_effort = || resources::qos_class(spec) == "BestEffort";
    let terminating = spec
        .get("activeDeadlineSeconds")
        .is_some_and(|v| !v.is_null());
    wanted.iter().all(|(scope, operator, values)| match *scope {
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "PriorityClass" => {
            let class = text(spec, &["priorityClassName"]);
            match *operator {
                "In" => values.contains(&class),
                "NotIn" => !values.contains(&class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"].iter().any(|k| {
            let a = spec.pointer(&format!("/affinity/{k}"));
            a.is_some_and(|a| {
                a.to_string().contains("\"namespaces\"")
                    || a.to_string().contains("\"namespaceSelector\"")
            })
        }),
        _ => false,
    })
}
