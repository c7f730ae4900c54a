//! Events: one object with two JSON forms, `v1` (stored) and `events.k8s.io/v1`; the conversion between both, printer
//! columns and selectable fields (pkg/apis/events/v1/conversion.go, ValidateEvent, printEvent).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, SelectableField, Strategy};
use serde_json::Value;

/// Names of the same field in `v1` and in `events.k8s.io/v1`.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(v: &mut Value, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(map) = v.as_object_mut() else { return };
    for (from, to) in pairs {
        if let Some(x) = map.shift_remove(from) {
            map.insert(to.to_string(), x);
        }
    }
}

/// `events.k8s.io/v1` to `v1`.
pub fn to_core(v: &mut Value) {
    rename(v, RENAMED.iter().map(|(core, new)| (*new, *core)));
    put(v, "apiVersion", "v1");
}

/// `v1` to `events.k8s.io/v1`.
pub fn from_core(v: &mut Value) {
    rename(v, RENAMED.iter().copied());
    put(v, "apiVersion", "events.k8s.io/v1");
}

/// Rules of `v1` (legacyValidateEvent). Upstream names the fields as `v1` does, whatever was sent.
fn validate(e: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let namespace = text(e, "metadata.namespace");
    let theirs = text(either(e, "involvedObject", "regarding"), "namespace");
    let mismatch = || {
        FieldError::invalid(
            "involvedObject.namespace",
            theirs,
            "does not match event.namespace",
        )
    };
    if !has(e, "eventTime") {
        // Events of cluster-scoped objects live in default.
        let good = if theirs.is_empty() {
            matches!(namespace, "" | "default")
        } else {
            namespace == theirs
        };
        if !good {
            errs.push(mismatch());
        }
        return errs;
    }
    if theirs.is_empty() && !matches!(namespace, "default" | "kube-system") {
        errs.push(mismatch());
    }
    let controller = either(e, "reportingComponent", "reportingController")
        .as_str()
        .unwrap_or("");
    let cp = Path::new("reportingController");
    if controller.is_empty() {
        errs.push(FieldError::required(cp, ""));
    }
    check::qualified_name(controller, &cp, &mut errs);
    for (key, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let s = text(e, key);
        if s.is_empty() {
            errs.push(FieldError::required(key, ""));
        }
        if s.len() > max {
            errs.push(FieldError::invalid(
                key,
                "",
                format!("can have at most {max} characters"),
            ));
        }
    }
    if either(e, "message", "note").as_str().unwrap_or("").len() > 1024 {
        errs.push(FieldError::invalid(
            "message",
            "",
            "can have at most 1024 characters",
        ));
    }
    errs
}

/// Rules of `events.k8s.io/v1` on top. An event in the old shape may be sent back as it is.
fn validate_new(e: &Value) -> Vec<FieldError> {
    let mut errs = validate(e);
    let series = at(e, "series");
    if !series.is_null() {
        if int0(series, "count") < 2 {
            errs.push(FieldError::invalid(
                "series.count",
                "",
                "should be at least 2",
            ));
        }
        if !has(series, "lastObservedTime") {
            errs.push(FieldError::required("series.lastObservedTime", ""));
        }
    }
    if has(e, "deprecatedFirstTimestamp") {
        return errs;
    }
    if !has(e, "eventTime") {
        errs.push(FieldError::required("eventTime", ""));
    }
    let kind = text(e, "type");
    if !matches!(kind, "Normal" | "Warning") {
        errs.push(FieldError::invalid(
            "type",
            "",
            format!("has invalid value: {kind}"),
        ));
    }
    errs
}

/// Nothing but the series of an `events.k8s.io/v1` event changes.
fn validate_new_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    for key in [
        "regarding",
        "deprecatedSource",
        "reason",
        "note",
        "deprecatedFirstTimestamp",
        "deprecatedLastTimestamp",
        "deprecatedCount",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingController",
        "reportingInstance",
    ] {
        let (n, o) = (at(new, key), at(old, key));
        if !equal(n, o) {
            errs.push(FieldError::invalid(key, n.clone(), "field is immutable"));
        }
    }
    errs
}

/// The strategy of `v1`.
pub fn strategy() -> Strategy {
    Strategy {
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        allow_create_on_update: true,
        ..Strategy::default()
    }
}

/// The strategy of `events.k8s.io/v1`.
pub fn strategy_new() -> Strategy {
    Strategy {
        validate: validate_new,
        validate_update: validate_new_update,
        ..strategy()
    }
}

/// Fields of selectors of `v1`.
pub fn fields() -> Vec<SelectableField> {
    vec![
        field("involvedObject.kind", |e| {
            text(e, "involvedObject.kind").into()
        }),
        field("involvedObject.namespace", |e| {
            text(e, "involvedObject.namespace").into()
        }),
        field("involvedObject.name", |e| {
            text(e, "involvedObject.name").into()
        }),
        field("involvedObject.uid", |e| {
            text(e, "involvedObject.uid").into()
        }),
        field("involvedObject.apiVersion", |e| {
            text(e, "involvedObject.apiVersion").into()
        }),
        field("involvedObject.resourceVersion", |e| {
            text(e, "involvedObject.resourceVersion").into()
        }),
        field("involvedObject.fieldPath", |e| {
            text(e, "involvedObject.fieldPath").into()
        }),
        field("reason", |e| text(e, "reason").into()),
        field("reportingComponent", |e| {
            text(e, "reportingComponent").into()
        }),
        field("source", |e| match text(e, "source.component") {
            "" => text(e, "reportingComponent").into(),
            s => s.into(),
        }),
        field("type", |e| text(e, "type").into()),
    ]
}

/// Fields of selectors of `events.k8s.io/v1`; they read that form of the object.
pub fn fields_new() -> Vec<SelectableField> {
    vec![
        field("regarding.kind", |e| text(e, "regarding.kind").into()),
        field("regarding.namespace", |e| {
            text(e, "regarding.namespace").into()
        }),
        field("regarding.name", |e| text(e, "regarding.name").into()),
        field("regarding.uid", |e| text(e, "regarding.uid").into()),
        field("regarding.apiVersion", |e| {
            text(e, "regarding.apiVersion").into()
        }),
        field("regarding.resourceVersion", |e| {
            text(e, "regarding.resourceVersion").into()
        }),
        field("regarding.fieldPath", |e| {
            text(e, "regarding.fieldPath").into()
        }),
        field("reason", |e| text(e, "reason").into()),
        field("reportingController", |e| {
            text(e, "reportingController").into()
        }),
        field("type", |e| text(e, "type").into()),
    ]
}

/// The value under the name of either form.
fn either<'a>(e: &'a Value, core: &str, new: &str) -> &'a Value {
    match at(e, core) {
        Value::Null => at(e, new),
        v => v,
    }
}

fn first_seen(e: &Value, now: i64) -> String {
    let first = either(e, "firstTimestamp", "deprecatedFirstTimestamp")
        .as_str()
        .unwrap_or("");
    age(
        if first.is_empty() {
            text(e, "eventTime")
        } else {
            first
        },
        now,
    )
}

fn last_seen(e: &Value, now: i64) -> String {
    if has(e, "series") {
        return age(text(e, "series.lastObservedTime"), now);
    }
    let last = either(e, "lastTimestamp", "deprecatedLastTimestamp")
        .as_str()
        .unwrap_or("");
    if last.is_empty() {
        first_seen(e, now)
    } else {
        age(last, now)
    }
}

/// The columns of `kubectl get events`, of both forms.
pub fn columns() -> Vec<Column> {
    vec![
        col("Last Seen", 0, |e, now| last_seen(e, now).into()),
        col("Type", 0, |e, _| text(e, "type").into()),
        col("Reason", 0, |e, _| text(e, "reason").into()),
        col("Object", 0, |e, _| {
            let o = either(e, "involvedObject", "regarding");
            let kind = text(o, "kind").to_lowercase();
            match text(o, "name") {
                "" => kind.into(),
                name => format!("{kind}/{name}").into(),
            }
        }),
        col("Subobject", 1, |e, _| {
            text(either(e, "involvedObject", "regarding"), "fieldPath").into()
        }),
        col("Source", 1, |e, _| {
            let source = either(e, "source", "deprecatedSource");
            let first_of = |a: &str, b: &str| {
                if a.is_empty() {
                    b.to_string()
                } else {
                    a.to_string()
                }
            };
            let component = first_of(
                text(source, "component"),
                either(e, "reportingComponent", "reportingController")
                    .as_str()
                    .unwrap_or(""),
            );
            let host = first_of(text(source, "host"), text(e, "reportingInstance"));
            if host.is_empty() {
                component.into()
            } else {
                format!("{component}, {host}").into()
            }
        }),
        col("Message", 0, |e, _| {
            either(e, "message", "note")
                .as_str()
                .unwrap_or("")
                .trim()
                .into()
        }),
        col("First Seen", 1, |e, now| first_seen(e, now).into()),
        col("Count", 1, |e, _| {
            let n = if has(e, "series") {
                int0(e, "series.count")
            } else {
                either(e, "count", "deprecatedCount").as_i64().unwrap_or(0)
            };
            n.max(1).into()
        }),
        Column {
            priority: 1,
            ..col_name()
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_convert_and_back() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "a"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "a"}, "message": "m", "reason": "R",
            "source": {"component": "kubelet"}, "firstTimestamp": "2023-11-14T22:13:10Z", "count": 3,
            "reportingComponent": "kubelet", "reportingInstance": "n1",
        });
        let mut v = core.clone();
        from_core(&mut v);
        assert_eq!(v["apiVersion"], "events.k8s.io/v1");
        assert_eq!(v["regarding"]["name"], "p");
        assert_eq!(v["note"], "m");
        assert_eq!(v["deprecatedCount"], 3);
        assert_eq!(v["reportingController"], "kubelet");
        assert_eq!(
            crate::kinds::tests::cells(&columns(), &v, 1_700_000_000),
            crate::kinds::tests::cells(&columns(), &core, 1_700_000_000)
        );
        to_core(&mut v);
        assert_eq!(v, core);
    }

    #[test]
    fn an_event_lives_with_its_object() {
        let e =
            |ns: &str| json!({"metadata": {"namespace": ns}, "involvedObject": {"namespace": "a"}});
        assert!(validate(&e("a")).is_empty());
        assert_eq!(
            validate(&e("b"))[0].to_string(),
            "involvedObject.namespace: Invalid value: \"a\": does not match event.namespace"
        );
    }
}
