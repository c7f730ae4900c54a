//! What the kinds with a pod template share: template defaults, the match of selector and template, int-or-percent
//! values, columns about the template. Belongs to no kind.

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::core::{pod, pod_spec, pod_validate};
use crate::kinds::util::*;
use crate::resource::{Column, Context};
use serde_json::{Value, json};

/// Defaults of `template` below a workload's spec. Template and spec are structs upstream: they are always there.
pub fn default_template(spec: &mut Value) {
    if let Some(s) = object(spec, "template").and_then(|t| object(t, "spec")) {
        pod_spec::default(s);
    }
}

/// A new object has no status but the counters that are always written.
pub fn zero_status(_: &Context, v: &mut Value) {
    put(v, "status", json!({"replicas": 0}));
}

/// A new object has an empty status.
pub fn empty_status(_: &Context, v: &mut Value) {
    put(v, "status", json!({}));
}

/// Names of the containers of a pod spec.
pub fn containers(spec: &Value) -> String {
    items(spec, "containers")
        .iter()
        .map(|c| text(c, "name"))
        .collect::<Vec<_>>()
        .join(",")
}

/// Images of the containers of a pod spec.
pub fn images(spec: &Value) -> String {
    items(spec, "containers")
        .iter()
        .map(|c| text(c, "image"))
        .collect::<Vec<_>>()
        .join(",")
}

/// The wide columns `Containers` and `Images` of `spec.template`.
pub fn template_columns() -> Vec<Column> {
    vec![
        col("Containers", 1, |v, _| {
            containers(at(v, "spec.template.spec")).into()
        }),
        col("Images", 1, |v, _| {
            images(at(v, "spec.template.spec")).into()
        }),
    ]
}

/// The wide column `Selector` of a label selector at `spec.selector`.
pub fn selector_column() -> Column {
    col("Selector", 1, |v, _| {
        selector_text(at(v, "spec.selector")).into()
    })
}

/// metav1.FormatLabelSelector: `a=b,c in (d,e),!f`, sorted by key; `<none>` when empty.
pub fn selector_text(s: &Value) -> String {
    let mut parts: Vec<(String, String)> = entries(s, "matchLabels")
        .map(|(k, v)| (k.clone(), format!("{k}={}", v.as_str().unwrap_or(""))))
        .collect();
    for e in items(s, "matchExpressions") {
        let key = text(e, "key");
        let mut values: Vec<&str> = items(e, "values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        parts.push((
            key.to_string(),
            match text(e, "operator") {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "DoesNotExist" => format!("!{key}"),
                _ => key.to_string(),
            },
        ));
    }
    if parts.is_empty() {
        return "<none>".into();
    }
    parts.sort();
    parts
        .into_iter()
        .map(|(_, p)| p)
        .collect::<Vec<_>>()
        .join(",")
}

/// The rules of `selector` and `template` together: both are there, the selector selects something and matches the
/// template's labels. `what` is how upstream calls the kind in the text.
pub fn selector_and_template(spec: &Value, what: &str, path: &Path<'_>, errs: &mut Errors) {
    let selector = at(spec, "selector");
    let sp = path.child("selector");
    let mut usable = false;
    if selector.is_null() {
        errs.push(FieldError::required(sp, ""));
        // No selector selects nothing, not even the template.
        usable = true;
    } else {
        let before = errs.len();
        check::label_selector(selector, &sp, errs);
        if is_empty(at(selector, "matchLabels")) && is_empty(at(selector, "matchExpressions")) {
            errs.push(FieldError::invalid(
                sp,
                selector.clone(),
                format!("empty selector is invalid for {what}"),
            ));
        } else {
            usable = errs.len() == before;
        }
    }
    let template = at(spec, "template");
    let tp = path.child("template");
    if template.is_null() {
        errs.push(FieldError::required(tp, ""));
        return;
    }
    let labels = at(template, "metadata.labels");
    if usable && (selector.is_null() || !check::selector_matches(selector, labels)) {
        let mp = tp.child("metadata");
        errs.push(FieldError::invalid(
            mp.child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    pod_validate::template(template, &tp, errs);
}

/// Pods of controllers that replace them restart always and have no deadline.
pub fn always_restarts(template: &Value, path: &Path<'_>, kind: &str, errs: &mut Errors) {
    let sp = path.child("spec");
    let policy = text(template, "spec.restartPolicy");
    if policy != "Always" && !policy.is_empty() {
        errs.push(FieldError::not_supported(
            sp.child("restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if has(template, "spec.activeDeadlineSeconds") {
        errs.push(FieldError::forbidden(
            sp.child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        ));
    }
}

/// ValidatePositiveIntOrPercent.
pub fn int_or_percent(v: &Value, path: &Path<'_>, errs: &mut Errors) {
    match v {
        Value::String(s) => {
            let digits = s.strip_suffix('%').unwrap_or("");
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                errs.push(FieldError::invalid(
                    path,
                    s.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                ));
            }
        }
        Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => {
            errs.push(FieldError::invalid(
                path,
                v.clone(),
                "must be greater than or equal to 0",
            ));
        }
        _ => {}
    }
}

/// IsNotMoreThan100Percent.
pub fn at_most_100_percent(v: &Value, path: &Path<'_>, errs: &mut Errors) {
    if percent(v).is_some_and(|p| p > 100) {
        errs.push(FieldError::invalid(
            path,
            v.clone(),
            "must not be greater than 100%",
        ));
    }
}

/// The number of an int-or-percent, percent signs aside; none when it is neither.
pub fn number(v: &Value) -> Option<i64> {
    v.as_i64().or_else(|| percent(v))
}

fn percent(v: &Value) -> Option<i64> {
    v.as_str()?.strip_suffix('%')?.parse().ok()
}

/// Warnings of the template's pod spec.
pub fn warnings(v: &Value) -> Vec<String> {
    let mut out = Vec::new();
    pod::template_warnings(at(v, "spec.template.spec"), "spec.template.spec", &mut out);
    out
}

/// `kind/name`-style text of the controller that owns the object: `deployment.apps/web`; `<none>` without one.
pub fn controller_text(v: &Value) -> String {
    let Some(owner) = items(v, "metadata.ownerReferences")
        .iter()
        .find(|o| truth(o, "controller"))
    else {
        return "<none>".into();
    };
    let kind = text(owner, "kind").to_lowercase();
    match text(owner, "apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "name")),
        None => format!("{kind}/{}", text(owner, "name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_kubectl_shows_them() {
        assert_eq!(
            selector_text(
                &json!({"matchLabels": {"b": "1", "a": "2"}, "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "DoesNotExist"}]})
            ),
            "a=2,b=1,c in (x,y),!d"
        );
        assert_eq!(selector_text(&json!({})), "<none>");
    }
}
