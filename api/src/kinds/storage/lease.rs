//! Leases (ValidateLease, printLease).

use crate::field::FieldError;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

fn validate(l: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let path = Path::new("spec");
    let spec = at(l, "spec");
    if let Some(n) = int(spec, "leaseDurationSeconds").filter(|n| *n <= 0) {
        errs.push(FieldError::invalid(
            path.child("leaseDurationSeconds"),
            n,
            "must be greater than 0",
        ));
    }
    if let Some(n) = int(spec, "leaseTransitions").filter(|n| *n < 0) {
        errs.push(FieldError::invalid(
            path.child("leaseTransitions"),
            n,
            "must be greater than or equal to 0",
        ));
    }
    if has(spec, "preferredHolder") && text(spec, "strategy").is_empty() {
        errs.push(FieldError::forbidden(
            path.child("preferredHolder"),
            "may only be specified when `strategy` is defined",
        ));
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        allow_create_on_update: true,
        allow_unconditional_update: false,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get leases`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Holder", 0, |l, _| text(l, "spec.holderIdentity").into()),
        col_age(),
    ]
}
