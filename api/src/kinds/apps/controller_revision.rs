//! Controller revisions (ValidateControllerRevision, printControllerRevision).

use super::workload;
use crate::field::FieldError;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

fn validate(r: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    if int0(r, "revision") < 0 {
        errs.push(FieldError::invalid(
            "revision",
            int0(r, "revision"),
            "must be greater than or equal to 0",
        ));
    }
    if !has(r, "data") {
        errs.push(FieldError::required("data", "data is mandatory"));
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if at(new, "data") == at(old, "data") {
        return Vec::new();
    }
    vec![FieldError::invalid(
        "data",
        at(new, "data").clone(),
        "field is immutable",
    )]
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        validate_update,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get controllerrevisions`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Controller", 0, |r, _| workload::controller_text(r).into()),
        col("Revision", 0, |r, _| int0(r, "revision").into()),
        col_age(),
    ]
}
