//! Storage classes (SetDefaults_StorageClass, ValidateStorageClass, printStorageClass).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// SetDefaults_StorageClass.
pub fn default(c: &mut Value) {
    unset(c, "reclaimPolicy", "Delete");
    unset(c, "volumeBindingMode", "Immediate");
}

fn validate(c: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let provisioner = text(c, "provisioner");
    let pp = Path::new("provisioner");
    if provisioner.is_empty() {
        errs.push(FieldError::required(pp, provisioner));
    } else {
        check::qualified_name(&provisioner.to_lowercase(), &pp, &mut errs);
    }
    let params = Path::new("parameters");
    let mut size = 0;
    for (k, v) in entries(c, "parameters") {
        if k.is_empty() {
            errs.push(FieldError::invalid(
                params,
                k.as_str(),
                "field can not be empty.",
            ));
        }
        size += k.len() + v.as_str().map_or(0, str::len);
    }
    if size > 256 * 1024 {
        errs.push(FieldError {
            kind: crate::field::ErrorType::TooLong,
            field: params.to_string(),
            value: Value::Null,
            detail: "may not be more than 262144 bytes".into(),
        });
    }
    for (key, choices) in [
        ("reclaimPolicy", ["Delete", "Retain"]),
        ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"]),
    ] {
        let v = text(c, key);
        if !choices.contains(&v) {
            errs.push(FieldError::not_supported(key, v, &choices));
        }
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    for (key, why) in [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
        ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
    ] {
        let (n, o) = (at(new, key), at(old, key));
        if n != o && !(is_empty(n) && is_empty(o)) {
            errs.push(FieldError::forbidden(key, why));
        }
    }
    let mode = "volumeBindingMode";
    if text(new, mode) != text(old, mode) {
        errs.push(FieldError::invalid(
            mode,
            text(new, mode),
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
        ..Strategy::default()
    }
}

/// The columns of `kubectl get storageclasses`; the default class is marked at its name.
pub fn columns() -> Vec<Column> {
    let mut first = col("Name", 0, |c, _| {
        let default = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ]
        .iter()
        .any(|k| check::annotation(c, k) == Some("true"));
        if default {
            format!("{} (default)", name(c)).into()
        } else {
            name(c).into()
        }
    });
    first.format = "name";
    vec![
        first,
        col("Provisioner", 0, |c, _| text(c, "provisioner").into()),
        col("ReclaimPolicy", 0, |c, _| match text(c, "reclaimPolicy") {
            "" => "Delete".into(),
            s => s.into(),
        }),
        col("VolumeBindingMode", 0, |c, _| {
            match text(c, "volumeBindingMode") {
                "" => "Immediate".into(),
                s => s.into(),
            }
        }),
        col("AllowVolumeExpansion", 0, |c, _| {
            truth(c, "allowVolumeExpansion").into()
        }),
        col_age(),
    ]
}
