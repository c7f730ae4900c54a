//! Pod disruption budgets (ValidatePodDisruptionBudget, printPodDisruptionBudget).

use crate::field::FieldError;
use crate::kinds::apps::workload;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Context, Strategy};
use serde_json::{Value, json};

fn prepare_create(_: &Context, p: &mut Value) {
    let status = json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
    put(p, "status", status);
}

fn validate(p: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(p, "spec");
    let path = Path::new("spec");
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        errs.push(FieldError::invalid(
            path,
            spec.clone(),
            "minAvailable and maxUnavailable cannot be both set",
        ));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        let v = at(spec, key);
        if !v.is_null() {
            workload::int_or_percent(v, &path.child(key), &mut errs);
            workload::at_most_100_percent(v, &path.child(key), &mut errs);
        }
    }
    check::label_selector(at(spec, "selector"), &path.child("selector"), &mut errs);
    one_of(
        spec,
        "unhealthyPodEvictionPolicy",
        &["AlwaysAllow", "IfHealthyBudget"],
        &path,
        &mut errs,
    );
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        prepare_create,
        validate,
        generation: true,
        allow_unconditional_update: false,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get poddisruptionbudgets`.
pub fn columns() -> Vec<Column> {
    fn or_na(v: &Value) -> Value {
        if v.is_null() {
            "N/A".into()
        } else {
            int_or_string(v).into()
        }
    }
    vec![
        col_name(),
        col("Min Available", 0, |p, _| or_na(at(p, "spec.minAvailable"))),
        col("Max Unavailable", 0, |p, _| {
            or_na(at(p, "spec.maxUnavailable"))
        }),
        col_int("Allowed Disruptions", 0, |p, _| {
            int0(p, "status.disruptionsAllowed").into()
        }),
        col_age(),
    ]
}
