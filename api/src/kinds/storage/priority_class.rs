//! Priority classes (SetDefaults_PriorityClass, ValidatePriorityClass, printPriorityClass).

use crate::field::FieldError;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// The highest priority a user may define.
const HIGHEST_USER: i64 = 1_000_000_000;

/// The classes that the system brings, with their values.
const SYSTEM: &[(&str, i64)] = &[
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

/// SetDefaults_PriorityClass.
pub fn default(c: &mut Value) {
    unset(c, "preemptionPolicy", "PreemptLowerPriority");
}

fn validate(c: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let value = int0(c, "value");
    if name(c).starts_with("system-") {
        if !SYSTEM.contains(&(name(c), value)) {
            errs.push(FieldError::forbidden(
                "metadata.name",
                "priority class names with 'system-' prefix are reserved for system use only. error: value or name is not one of the system's",
            ));
        }
    } else if value > HIGHEST_USER {
        errs.push(FieldError::forbidden(
            "value",
            format!("maximum allowed value of a user defined priority is {HIGHEST_USER}"),
        ));
    }
    let policy = text(c, "preemptionPolicy");
    if !policy.is_empty() && !matches!(policy, "PreemptLowerPriority" | "Never") {
        errs.push(FieldError::not_supported(
            "preemptionPolicy",
            policy,
            &["PreemptLowerPriority", "Never"],
        ));
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    if int0(new, "value") != int0(old, "value") {
        errs.push(FieldError::forbidden(
            "value",
            "may not be changed in an update.",
        ));
    }
    if text(new, "preemptionPolicy") != text(old, "preemptionPolicy") {
        errs.push(FieldError::invalid(
            "preemptionPolicy",
            text(new, "preemptionPolicy"),
            "field is immutable",
        ));
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        validate_update,
        generation: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get priorityclasses`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col_int("Value", 0, |c, _| int0(c, "value").into()),
        col_bool("Global-Default", 0, |c, _| truth(c, "globalDefault").into()),
        col_age(),
        col("PreemptionPolicy", 0, |c, _| {
            text(c, "preemptionPolicy").into()
        }),
    ]
}
