//! Runtime classes (ValidateRuntimeClass, printRuntimeClass).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::core::{resources, scheduling};
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

fn validate(c: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    check::dns_label(text(c, "handler"), &Path::new("handler"), &mut errs);
    let op = Path::new("overhead");
    let fp = op.child("podFixed");
    for (name, q) in entries(c, "overhead.podFixed") {
        resources::quantity_value(name, q, &fp.key(name), &mut errs);
    }
    let sp = Path::new("scheduling");
    check::labels(
        at(c, "scheduling.nodeSelector"),
        &sp.child("nodeSelector"),
        &mut errs,
    );
    scheduling::tolerations(
        items(c, "scheduling.tolerations"),
        &sp.child("tolerations"),
        &mut errs,
    );
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if text(new, "handler") == text(old, "handler") {
        return Vec::new();
    }
    vec![FieldError::invalid(
        "handler",
        text(new, "handler"),
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
        allow_unconditional_update: false,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get runtimeclasses`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Handler", 0, |c, _| text(c, "handler").into()),
        col_age(),
    ]
}
