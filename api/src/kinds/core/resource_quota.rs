//! Resource quotas (ValidateResourceQuota, printResourceQuota). Enforcing them is admission's work.

use super::resources;
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

const STANDARD: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
];

fn validate(rq: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let sp = Path::new("spec");
    let hp = sp.child("hard");
    for (k, q) in entries(rq, "spec.hard") {
        check::qualified_name(k, &hp.key(k), &mut errs);
        if !k.contains('/')
            && !STANDARD.contains(&k.as_str())
            && !k.starts_with("hugepages-")
            && !k.starts_with("requests.hugepages-")
            && !k.starts_with("count")
        {
            errs.push(FieldError::invalid(
                hp.key(k),
                k.as_str(),
                "must be a standard resource type or fully qualified",
            ));
            errs.push(FieldError::invalid(
                hp.key(k),
                k.as_str(),
                "must be a standard resource for quota",
            ));
        }
        resources::quantity_value(k, q, &hp.key(k), &mut errs);
    }
    let scopes = sp.child("scopes");
    let list = items(rq, "spec.scopes");
    for s in list {
        let s = s.as_str().unwrap_or("");
        if !SCOPES.contains(&s) {
            errs.push(FieldError::invalid(
                scopes,
                at(rq, "spec.scopes").clone(),
                "unsupported scope",
            ));
        }
    }
    for (a, b) in [
        ("BestEffort", "NotBestEffort"),
        ("Terminating", "NotTerminating"),
    ] {
        if list.iter().any(|s| s == a) && list.iter().any(|s| s == b) {
            errs.push(FieldError::invalid(
                scopes,
                at(rq, "spec.scopes").clone(),
                "conflicting scopes",
            ));
        }
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let set = |v: &Value| {
        let mut l: Vec<String> = items(v, "spec.scopes").iter().map(int_or_string).collect();
        l.sort();
        l
    };
    if set(new) != set(old) {
        errs.push(FieldError::invalid(
            "spec.scopes",
            at(new, "spec.scopes").clone(),
            "field is immutable",
        ));
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        validate,
        validate_update,
        ..Strategy::default()
    }
}

/// `cpu: 0/2, pods: 1/10` for the resources that are limits, or those that are not.
fn used(rq: &Value, limits: bool) -> Value {
    let mut list: Vec<(&String, &Value)> = entries(rq, "status.hard").collect();
    list.sort_by_key(|(k, _)| k.as_str());
    list.into_iter()
        .filter(|(k, _)| k.contains("limits") == limits)
        .map(|(k, hard)| {
            let used = at(rq, "status.used")
                .get(k.as_str())
                .map(int_or_string)
                .unwrap_or_else(|| "0".into());
            format!("{k}: {used}/{}", int_or_string(hard))
        })
        .collect::<Vec<_>>()
        .join(", ")
        .into()
}

/// The columns of `kubectl get resourcequotas`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Request", 0, |q, _| used(q, false)),
        col("Limit", 0, |q, _| used(q, true)),
        col_age(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn usage_is_shown_in_two_columns() {
        let q = json!({"metadata": {"name": "q", "creationTimestamp": "2023-11-14T22:13:10Z"}, "status": {
            "hard": {"pods": "10", "limits.cpu": "2", "cpu": "1"}, "used": {"pods": "3"}}});
        assert_eq!(
            crate::kinds::tests::cells(&columns(), &q, 1_700_000_000),
            ["q", "cpu: 0/1, pods: 3/10", "limits.cpu: 0/2", "10s"]
        );
    }
}
