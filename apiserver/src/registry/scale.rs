//! The `scale` subresource: an `autoscaling/v1` Scale seen through a workload's spec.replicas.

use super::update::update_object_as;
use super::{Call, Written, form, input, meta};
use crate::http::{Answer, respond};
use serde_json::{Value, json};
use skiff_api::decode::{self, Expect};
use skiff_api::field::FieldError;
use skiff_api::status::Status;

/// What the body is.
fn expect() -> Expect<'static> {
    Expect::gvk("autoscaling", "v1", "Scale")
}

/// The Scale of a workload.
pub fn scale_of(v: &Value) -> Value {
    let mut metadata =
        json!({"name": meta::text(v, "name"), "namespace": meta::text(v, "namespace")});
    for k in ["uid", "resourceVersion", "creationTimestamp"] {
        let t = meta::text(v, k);
        if !t.is_empty() {
            metadata[k] = t.into();
        }
    }
    let count = |p: &str| v.pointer(p).and_then(Value::as_i64).unwrap_or(0);
    let mut status = json!({"replicas": count("/status/replicas")});
    let selector = selector_text(v.pointer("/spec/selector").unwrap_or(&Value::Null));
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": count("/spec/replicas")},
        "status": status,
    })
}

/// A label selector (or a replication controller's plain map) as text, as metav1.FormatLabelSelector writes it.
fn selector_text(selector: &Value) -> String {
    let Some(map) = selector.as_object() else {
        return String::new();
    };
    let plain = !map.contains_key("matchLabels") && !map.contains_key("matchExpressions");
    let mut parts = Vec::new();
    let labels = if plain {
        Some(map)
    } else {
        selector.get("matchLabels").and_then(Value::as_object)
    };
    for (k, v) in labels.into_iter().flatten() {
        parts.push((k.clone(), format!("{k}={}", v.as_str().unwrap_or(""))));
    }
    for e in selector
        .get("matchExpressions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let key = e["key"].as_str().unwrap_or("");
        let mut values: Vec<&str> = e["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match e["operator"].as_str().unwrap_or("") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_string(),
            "DoesNotExist" => format!("!{key}"),
            _ => continue,
        };
        parts.push((key.to_string(), text));
    }
    parts.sort();
    parts
        .into_iter()
        .map(|(_, t)| t)
        .collect::<Vec<_>>()
        .join(",")
}

fn current(call: &Call) -> Result<Value, Status> {
    let entry = call
        .app
        .store
        .get(&call.key())
        .ok_or_else(|| call.not_found())?;
    form::value_of(&call.app, &call.row, &entry)
}

/// GET.
///
/// # Errors
/// 404.
pub fn get(call: &Call) -> Answer {
    Ok(respond::value(200, call.accept, &scale_of(&current(call)?)))
}

/// Puts a Scale's replicas into the workload; the Scale's uid and resourceVersion are preconditions.
fn apply(call: &Call, current: &Value, scale: &Value) -> Result<Value, Status> {
    let wrong = |errors: &[FieldError]| Status::invalid("autoscaling", "Scale", &call.name, errors);
    let replicas = scale
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    if replicas < 0 {
        return Err(wrong(&[FieldError::invalid(
            "spec.replicas",
            replicas,
            "must be greater than or equal to 0",
        )]));
    }
    let mut new = current.clone();
    if !new["spec"].is_object() {
        new["spec"] = json!({});
    }
    new["spec"]["replicas"] = replicas.into();
    for k in ["uid", "resourceVersion"] {
        let given = meta::text(scale, k);
        if !given.is_empty() {
            new["metadata"][k] = given.into();
        }
    }
    Ok(new)
}

/// PUT.
///
/// # Errors
/// 400, 404, 409, 422.
pub async fn update(call: &Call, body: &[u8]) -> Answer {
    let (scale, strict) = input::typed(&call.headers, body, &expect(), input::strictness(call))?;
    meta::check_name(&call.row, &scale, &call.name, &call.namespace)?;
    let given = meta::text(&scale, "resourceVersion").to_string();
    let mut warnings = Vec::new();
    let written = update_object_as(
        &call.target(),
        Some(&call.manager()),
        &mut warnings,
        !given.is_empty(),
        |old| apply(call, old, &scale),
    )
    .await?;
    warnings.extend(strict);
    answer(call, &written, &warnings)
}

/// PATCH: `change` makes the new Scale of the current one.
///
/// # Errors
/// 400, 404, 409, 422.
pub async fn patch(call: &Call, change: impl Fn(&Value) -> Result<Value, Status>) -> Answer {
    let mut warnings = Vec::new();
    let mut strict = Vec::new();
    let written = update_object_as(
        &call.target(),
        Some(&call.manager()),
        &mut warnings,
        false,
        |old| {
            let patched = change(&scale_of(old))?;
            let (scale, w) = decode::convert(patched, &expect(), input::strictness(call))?;
            strict = w;
            meta::check_name(&call.row, &scale, &call.name, &call.namespace)?;
            apply(call, old, &scale)
        },
    )
    .await?;
    warnings.extend(strict);
    answer(call, &written, &warnings)
}

fn answer(call: &Call, written: &Written, warnings: &[String]) -> Answer {
    let v = match written {
        Written::Stored(e) | Written::Deleted(e) => form::value_of(&call.app, &call.row, e)?,
        Written::Dry(v) => v.clone(),
    };
    let mut r = respond::value(200, call.accept, &scale_of(&v));
    respond::warn(&mut r, warnings);
    Ok(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_upstream_writes_them() {
        let s = json!({"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(&s), "a=1,b=2,c in (x,y),!d");
        assert_eq!(selector_text(&json!({"app": "x"})), "app=x");
    }
}
