//! ResourceQuota: refuses creates that exceed a namespace's quotas. Counts what is in the store, exactly, plus what was
//! admitted a moment ago and is not there yet. `status.used` is the quota controller's, not ours.

use super::{find, list, text};
use crate::{App, Operation, Write};
use parking_lot::Mutex;
use serde_json::Value;
use skiff_api::kinds::core::resources::{self, Amounts};
use skiff_api::quantity::{Format, Quantity};
use skiff_api::status::Status;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long an admitted object that never appears in the store (its write failed later) is counted.
const PENDING: Duration = Duration::from_secs(5);

struct Pending {
    at: Instant,
    namespace: String,
    row: (String, String),
    object: Value,
}

/// Objects on their way from admission to the store, by key.
#[derive(Default)]
pub struct Quota(Mutex<HashMap<String, Pending>>);

fn one(n: i64) -> Quantity {
    Quantity::new(n, Format::DecimalSI)
}

/// Amounts of an object, by the names quotas use.
fn usage(group: &str, plural: &str, o: &Value) -> Amounts {
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
fn scoped(quota: &Value) -> bool {
    let any = |p: &str| {
        quota
            .pointer(p)
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty())
    };
    any("/spec/scopes") || any("/spec/scopeSelector/matchExpressions")
}

/// Does a quota with scopes look at this object? Only pods have scopes.
fn in_scope(quota: &Value, plural: &str, o: &Value) -> bool {
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

/// `limits.cpu=1,pods=1`
fn pretty(a: &Amounts, keys: &[&String]) -> String {
    let mut l: Vec<String> = keys
        .iter()
        .map(|k| format!("{k}={}", a.get(*k).copied().unwrap_or_default()))
        .collect();
    l.sort();
    l.join(",")
}

/// Refuses a create (or growth on update) that exceeds a quota.
///
/// # Errors
/// 403 naming the quota, what was asked for, used and allowed.
pub async fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    let ns = write.namespace;
    if write.operation == Operation::Delete
        || ns.is_empty()
        || !write.subresource.is_empty()
        || !write.row.namespaced()
    {
        return Ok(());
    }
    let (group, plural) = (&*write.row.group, &*write.row.plural);
    let growing = matches!(
        (group, plural),
        ("", "services" | "persistentvolumeclaims" | "pods")
    );
    if (write.operation == Operation::Update && !growing)
        || app.store.count(&format!("/core/resourcequotas/{ns}/")) == 0
    {
        return Ok(());
    }
    let mut delta = usage(group, plural, &write.object);
    if let Some(old) = &write.old {
        for (k, q) in usage(group, plural, old) {
            delta.entry(k).and_modify(|x| x.sub(&q)).or_insert_with(|| {
                let mut z = one(0);
                z.sub(&q);
                z
            });
        }
    }
    let key = write.row.key(ns, write.name);
    let quotas = list(app, "core/resourcequotas", ns);
    // From counting to remembering nobody else may count.
    let mut pending = app.admission.quota.0.lock();
    pending.retain(|k, p| p.at.elapsed() < PENDING && app.store.get(k).is_none());
    let mut reasons = Vec::new();
    for q in &quotas {
        if !in_scope(q, plural, &write.object) {
            continue;
        }
        let name = text(q, &["metadata", "name"]);
        let hard: Amounts = q
            .pointer("/spec/hard")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?)))
            .collect();
        if plural == "pods" && group.is_empty() && write.operation == Operation::Create {
            let missing = must_specify(&hard, &write.object["spec"]);
            if !missing.is_empty() {
                reasons.push(format!("failed quota: {name}: must specify {missing}"));
                continue;
            }
        }
        let concerned: Vec<&String> = hard
            .keys()
            .filter(|k| delta.get(*k).is_some_and(|d| d.sign() > 0))
            .collect();
        if concerned.is_empty() {
            continue;
        }
        let mut used = Amounts::new();
        let mut count = |o: &Value| {
            if in_scope(q, plural, o) {
                for (k, x) in usage(group, plural, o) {
                    used.entry(k).and_modify(|s| s.add(&x)).or_insert(x);
                }
            }
        };
        // Plain counts need no object decoded; pods do, for those that have ended do not count.
        let counted = usage(group, plural, &Value::Null);
        let plain =
            plural != "pods" && !scoped(q) && concerned.iter().all(|k| counted.contains_key(*k));
        if !plain {
            list(app, &write.row.storage, ns)
                .iter()
                .for_each(&mut count);
        }
        pending
            .values()
            .filter(|p| p.namespace == ns && p.row.0 == group && p.row.1 == plural)
            .for_each(|p| count(&p.object));
        if plain {
            let n = i64::try_from(app.store.count(&write.row.collection(ns))).unwrap_or(i64::MAX);
            for k in counted.keys() {
                used.entry(k.clone()).or_default().add(&one(n));
            }
        }
        let exceeded: Vec<&String> = concerned
            .into_iter()
            .filter(|k| {
                let mut sum = used.get(*k).copied().unwrap_or_default();
                if let Some(d) = delta.get(*k) {
                    sum.add(d);
                }
                hard.get(*k).is_some_and(|h| sum > *h)
            })
            .collect();
        if !exceeded.is_empty() {
            reasons.push(format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                pretty(&delta, &exceeded),
                pretty(&used, &exceeded),
                pretty(&hard, &exceeded)
            ));
        }
    }
    if let Some(first) = reasons.first() {
        return Err(super::forbidden(write, first));
    }
    if write.operation == Operation::Create
        && !write.dry_run
        && !quotas.is_empty()
        && find(app, &write.row.storage, ns, write.name).is_none()
    {
        let row = (group.to_string(), plural.to_string());
        pending.insert(
            key,
            Pending {
                at: Instant::now(),
                namespace: ns.into(),
                row,
                object: write.object.clone(),
            },
        );
    }
    Ok(())
}

/// Compute resources that a quota limits must be given by every container.
fn must_specify(hard: &Amounts, spec: &Value) -> String {
    let mut out = Vec::new();
    for key in hard.keys() {
        let (field, resource) = match key.as_str() {
            "cpu" | "memory" => ("requests", key.as_str()),
            "requests.cpu" | "requests.memory" => ("requests", &key[9..]),
            "limits.cpu" | "limits.memory" => ("limits", &key[7..]),
            _ => continue,
        };
        if spec
            .pointer(&format!("/resources/{field}/{resource}"))
            .is_some()
        {
            continue;
        }
        let lacking: Vec<&str> = ["initContainers", "containers"]
            .iter()
            .flat_map(|k| spec.get(k).and_then(Value::as_array).into_iter().flatten())
            .filter(|c| {
                c.pointer(&format!("/resources/{field}/{resource}"))
                    .is_none()
            })
            .map(|c| text(c, &["name"]))
            .collect();
        if !lacking.is_empty() {
            out.push(format!("{key} for: {}", lacking.join(",")));
        }
    }
    out.sort();
    out.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_use_what_their_containers_ask_for_until_they_end() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}}},
            {"name": "b", "resources": {"requests": {"cpu": "150m"}}}]}});
        let u = usage("", "pods", &pod);
        assert_eq!(u["requests.cpu"].milli_value(), 250);
        assert_eq!(u["cpu"].milli_value(), 250);
        assert_eq!(u["limits.cpu"].milli_value(), 200);
        assert_eq!(u["pods"].value(), 1);
        pod["status"] = json!({"phase": "Succeeded"});
        assert!(!usage("", "pods", &pod).contains_key("pods"));
    }

    #[test]
    fn scopes_choose_the_pods_a_quota_counts() {
        let best = json!({"spec": {"containers": [{"name": "a"}]}});
        let quota = |s: &str| json!({"spec": {"scopes": [s]}});
        assert!(in_scope(&quota("BestEffort"), "pods", &best));
        assert!(!in_scope(&quota("NotBestEffort"), "pods", &best));
        assert!(in_scope(&quota("NotTerminating"), "pods", &best));
        assert!(!in_scope(&quota("BestEffort"), "services", &best));
        let q = json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        assert!(
            in_scope(&q, "pods", &json!({"spec": {"priorityClassName": "high"}}))
                && !in_scope(&q, "pods", &best)
        );
    }

    #[test]
    fn limited_compute_resources_must_be_given() {
        let hard: Amounts = [("limits.cpu".to_string(), one(1))].into();
        assert_eq!(
            must_specify(&hard, &json!({"containers": [{"name": "a"}]})),
            "limits.cpu for: a"
        );
    }
}
