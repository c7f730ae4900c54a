//! Secrets (ValidateSecret, printSecret). `stringData` is input only: it is merged into `data` before anything else.

use super::config_map::{MAX_SIZE, decoded_len, immutable_object, too_long};
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, SelectableField, Strategy};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// SetDefaults_Secret, after Convert_v1_Secret_To_core_Secret merged stringData.
pub fn default(secret: &mut Value) {
    if let Some(Value::Object(plain)) = secret.get("stringData").cloned() {
        drop_key(secret, "stringData");
        if !plain.is_empty()
            && let Some(data) = object(secret, "data")
        {
            for (k, v) in plain {
                put(data, &k, STANDARD.encode(v.as_str().unwrap_or("")));
            }
        }
    }
    zero(secret, "type", "Opaque");
}

fn decoded<'a>(secret: &'a Value, key: &str) -> Option<&'a str> {
    at(secret, "data").get(key).and_then(Value::as_str)
}

fn validate(secret: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let dp = Path::new("data");
    let mut size = 0;
    for (k, v) in entries(secret, "data") {
        check::config_map_key(k, &dp.key(k), &mut errs);
        let encoded = v.as_str().unwrap_or("");
        size += decoded_len(encoded);
    }
    if size > MAX_SIZE {
        errs.push(too_long(&dp));
    }
    let require_keys = |keys: &[&str], errs: &mut Errors| {
        for k in keys {
            if decoded(secret, k).is_none() {
                errs.push(FieldError::required(dp.key(k), ""));
            }
        }
    };
    match text(secret, "type") {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            let given = at(secret, "metadata.annotations")
                .get(annotation)
                .and_then(Value::as_str);
            if given.is_none_or(str::is_empty) {
                let p = Path::new("metadata.annotations");
                errs.push(FieldError::required(p.key(annotation), ""));
            }
        }
        "kubernetes.io/dockercfg" => json_key(secret, ".dockercfg", &dp, &mut errs),
        "kubernetes.io/dockerconfigjson" => json_key(secret, ".dockerconfigjson", &dp, &mut errs),
        "kubernetes.io/basic-auth"
            if decoded(secret, "username").is_none() && decoded(secret, "password").is_none() =>
        {
            require_keys(&["username", "password"], &mut errs);
        }
        "kubernetes.io/ssh-auth" if decoded(secret, "ssh-privatekey").is_none_or(str::is_empty) => {
            errs.push(FieldError::required(dp.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => require_keys(&["tls.crt", "tls.key"], &mut errs),
        _ => {}
    }
    errs
}

fn json_key(secret: &Value, key: &str, dp: &Path<'_>, errs: &mut Errors) {
    let Some(encoded) = decoded(secret, key) else {
        errs.push(FieldError::required(dp.key(key), ""));
        return;
    };
    let parsed = STANDARD
        .decode(encoded)
        .map_err(|e| e.to_string())
        .and_then(|b| serde_json::from_slice::<Value>(&b).map_err(|e| e.to_string()));
    if let Err(why) = parsed {
        errs.push(FieldError::invalid(
            dp.key(key),
            "<secret contents redacted>",
            why,
        ));
    }
}

fn prepare_update(_: &crate::resource::Context, new: &mut Value, old: &Value) {
    // An empty type in an update keeps the old one; the default is already in when it was not given at all.
    if text(new, "type").is_empty() {
        carry(new, old, "type");
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    if text(new, "type") != text(old, "type") {
        errs.push(FieldError::invalid(
            "type",
            text(new, "type"),
            "field is immutable",
        ));
    }
    immutable_object(new, old, &["data"], &mut errs);
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, _| {},
        prepare_update,
        validate,
        validate_update,
        ..Strategy::default()
    }
}

/// Fields of selectors.
pub fn fields() -> Vec<SelectableField> {
    vec![field("type", |s| text(s, "type").into())]
}

/// The columns of `kubectl get secrets`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Type", 0, |s, _| text(s, "type").into()),
        col("Data", 0, |s, _| entries(s, "data").count().into()),
        col_age(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn string_data_moves_into_data_and_wins() {
        let mut s = json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "hello"}});
        default(&mut s);
        assert_eq!(
            s,
            json!({"data": {"a": "aGVsbG8=", "b": "eQ=="}, "type": "Opaque"})
        );
    }

    #[test]
    fn typed_secrets_need_their_keys() {
        let fields = |s: Value| {
            validate(&s)
                .iter()
                .map(|e| e.field.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            fields(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})),
            ["data[tls.key]"]
        );
        assert_eq!(
            fields(json!({"type": "kubernetes.io/ssh-auth"})),
            ["data[ssh-privatekey]"]
        );
        assert_eq!(
            fields(json!({"type": "kubernetes.io/service-account-token"})),
            ["metadata.annotations[kubernetes.io/service-account.name]"]
        );
        assert!(fields(json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}})).is_empty());
    }

    #[test]
    fn the_type_does_not_change() {
        assert_eq!(
            validate_update(&json!({"type": "b"}), &json!({"type": "a"}))[0].to_string(),
            "type: Invalid value: \"b\": field is immutable"
        );
    }
}
