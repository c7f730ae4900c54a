//! ResourceQuota: refuses creates that exceed a namespace's quotas. Counts what is in the store, exactly, plus what was
//! admitted a moment ago and is not there yet. `status.used` is the quota controller's, not ours.

use super::{find, list, text};
use crate::{App, Operation, Write};
use parking_lot::Mutex;
use serde_json::Value;
use skiff_api::kinds::core::quota::{in_scope, one, scoped, usage};
use skiff_api::kinds::core::resources::Amounts;
use skiff_api::quantity::Quantity;
use skiff_api::status::Status;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long an admitted object that never appears in the store (its write failed later) is counted.
const PENDING: Duration = Duration::from_secs(5);

/// How often a refusal is looked at again because something was stored meanwhile.
const TRIES: u32 = 32;

struct Pending {
    at: Instant,
    namespace: String,
    row: (String, String),
    object: Value,
}

/// Objects on their way from admission to the store, by key.
#[derive(Default)]
pub struct Quota(Mutex<HashMap<String, Pending>>);

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
    // A resize asks for more without being an update of the pod.
    let counted = write.subresource.is_empty() || super::is_resize(write);
    if write.operation == Operation::Delete || ns.is_empty() || !counted || !write.row.namespaced()
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
    let mut tries = 0;
    let reasons = loop {
        let before = app.store.revision();
        pending.retain(|k, p| p.at.elapsed() < PENDING && app.store.get(k).is_none());
        let reasons = refusals(app, write, (group, plural), &quotas, &delta, &pending);
        // What was stored since the pending were looked through was counted twice: never too little, but perhaps too
        // much. A refusal must not rest on that.
        tries += 1;
        if reasons.is_empty() || app.store.revision() == before || tries == TRIES {
            break reasons;
        }
    };
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

/// Why each quota refuses what is asked for; counts what is stored and what is pending.
fn refusals(
    app: &App,
    write: &Write<'_>,
    (group, plural): (&str, &str),
    quotas: &[Value],
    delta: &Amounts,
    pending: &HashMap<String, Pending>,
) -> Vec<String> {
    let ns = write.namespace;
    let mut reasons = Vec::new();
    for q in quotas {
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
                pretty(delta, &exceeded),
                pretty(&used, &exceeded),
                pretty(&hard, &exceeded)
            ));
        }
    }
    reasons
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
