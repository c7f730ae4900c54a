//! ConfigMaps (ValidateConfigMap, printConfigMap).

use crate::field::{ErrorType, FieldError};
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// The largest sum of the sizes of all values: 1 MiB.
pub const MAX_SIZE: usize = 1024 * 1024;

/// `Too long: may not be more than 1048576 bytes`.
pub fn too_long(path: &Path<'_>) -> FieldError {
    FieldError {
        kind: ErrorType::TooLong,
        field: path.to_string(),
        value: Value::Null,
        detail: format!("may not be more than {MAX_SIZE} bytes"),
    }
}

/// How many bytes base64 text stands for.
pub fn decoded_len(s: &str) -> usize {
    let pad = s.bytes().rev().take_while(|b| *b == b'=').count();
    (s.len() / 4 * 3).saturating_sub(pad)
}

fn validate(cm: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let mut size = 0;
    let data = Path::new("data");
    for (k, v) in entries(cm, "data") {
        check::config_map_key(k, &data.key(k), &mut errs);
        if !at(cm, "binaryData")
            .get(k.as_str())
            .unwrap_or(&Value::Null)
            .is_null()
        {
            errs.push(FieldError::invalid(
                data.key(k),
                k.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
        size += v.as_str().map_or(0, str::len);
    }
    let binary = Path::new("binaryData");
    for (k, v) in entries(cm, "binaryData") {
        check::config_map_key(k, &binary.key(k), &mut errs);
        size += v.as_str().map_or(0, decoded_len);
    }
    if size > MAX_SIZE {
        // Upstream gives the empty path here.
        errs.push(too_long(&Path::new("")));
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    immutable_object(new, old, &["data", "binaryData"], &mut errs);
    errs
}

/// Objects with `immutable: true` keep it and their content (configmaps and secrets).
pub fn immutable_object(new: &Value, old: &Value, keys: &[&'static str], errs: &mut Errors) {
    if !truth(old, "immutable") {
        return;
    }
    if !truth(new, "immutable") {
        errs.push(FieldError::forbidden(
            "immutable",
            "field is immutable when `immutable` is set",
        ));
    }
    for key in keys {
        let (n, o) = (at(new, key), at(old, key));
        if n != o && !(is_empty(n) && is_empty(o)) {
            errs.push(FieldError::forbidden(
                *key,
                "field is immutable when `immutable` is set",
            ));
        }
    }
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

/// The columns of `kubectl get configmaps`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Data", 0, |c, _| {
            (entries(c, "data").count() + entries(c, "binaryData").count()).into()
        }),
        col_age(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_and_size_are_checked() {
        assert!(validate(&json!({"data": {"a.b-c_D": "x"}})).is_empty());
        assert_eq!(
            validate(&json!({"data": {"a/b": "x"}}))[0].field,
            "data[a/b]"
        );
        assert!(
            validate(&json!({"data": {"..": "x"}}))[0]
                .body()
                .contains("must not be '..'")
        );
        assert_eq!(
            validate(&json!({"data": {"a": "x".repeat(MAX_SIZE + 1)}}))[0].body(),
            "Too long: may not be more than 1048576 bytes"
        );
    }

    #[test]
    fn an_immutable_configmap_stays() {
        let old = json!({"immutable": true, "data": {"a": "b"}});
        assert!(validate_update(&old, &old).is_empty());
        assert_eq!(
            validate_update(&json!({"immutable": true, "data": {"a": "c"}}), &old)[0].to_string(),
            "data: Forbidden: field is immutable when `immutable` is set"
        );
    }
}
