//! Replica sets (SetDefaults_ReplicaSet, ValidateReplicaSet, printReplicaSet).

use super::workload;
use crate::field::FieldError;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// SetDefaults_ReplicaSet.
pub fn default(rs: &mut Value) {
    let Some(spec) = object(rs, "spec") else {
        return;
    };
    unset(spec, "replicas", 1);
    workload::default_template(spec);
}

fn validate(rs: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(rs, "spec");
    let path = Path::new("spec");
    non_negative(spec, "replicas", &path, &mut errs);
    non_negative(spec, "minReadySeconds", &path, &mut errs);
    // Upstream says deployment here as well.
    workload::selector_and_template(spec, "deployment", &path, &mut errs);
    workload::always_restarts(
        at(spec, "template"),
        &path.child("template"),
        "ReplicaSet",
        &mut errs,
    );
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    immutable(
        at(new, "spec"),
        at(old, "spec"),
        "selector",
        &Path::new("spec"),
        &mut errs,
    );
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: workload::zero_status,
        validate,
        validate_update,
        warnings: workload::warnings,
        generation: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get replicasets`.
pub fn columns() -> Vec<Column> {
    let mut list = vec![
        col_name(),
        col_int("Desired", 0, |r, _| int0(r, "spec.replicas").into()),
        col_int("Current", 0, |r, _| int0(r, "status.replicas").into()),
        col_int("Ready", 0, |r, _| int0(r, "status.readyReplicas").into()),
        col_age(),
    ];
    list.extend(workload::template_columns());
    list.push(workload::selector_column());
    list
}
