//! DefaultTolerationSeconds: pods stay five minutes on nodes that are not ready or not reachable, unless they say
//! otherwise. Pure.

use crate::Write;
use serde_json::{Value, json};

const SECONDS: i64 = 300;

/// Adds the two tolerations.
pub fn admit(write: &mut Write<'_>) {
    if !super::is(write, "", "pods") {
        return;
    }
    let Some(spec) = write.object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let tolerates = |list: &[Value], key: &str| {
        list.iter().any(|t| {
            let (k, e) = (super::text(t, &["key"]), super::text(t, &["effect"]));
            (k == key || k.is_empty()) && (e == "NoExecute" || e.is_empty())
        })
    };
    let current = spec
        .get("tolerations")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let missing: Vec<Value> = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .into_iter()
        .filter(|k| !tolerates(current, k))
        .map(|k| json!({"key": k, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}))
        .collect();
    if missing.is_empty() {
        return;
    }
    let list = spec.entry("tolerations").or_insert(Value::Null);
    if list.is_null() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(missing);
    }
}
