//! Horizontal pod autoscalers (SetDefaults_HorizontalPodAutoscaler of v2 and v1, ValidateHorizontalPodAutoscaler,
//! printHorizontalPodAutoscaler).

use super::convert;
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Context, Strategy};
use serde_json::{Value, json};

/// SetDefaults_HorizontalPodAutoscaler of v2: at least one replica, 80 % of the requested cpu, full behavior where some
/// is given.
pub fn default(h: &mut Value) {
    let Some(spec) = object(h, "spec") else {
        return;
    };
    if !spec.is_object() {
        return;
    }
    unset(spec, "minReplicas", 1);
    if items(spec, "metrics").is_empty() {
        put(
            spec,
            "metrics",
            json!([{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    if let Some(behavior) = at_mut(spec, "behavior").filter(|b| b.is_object()) {
        if let Some(up) = object(behavior, "scaleUp") {
            unset(up, "stabilizationWindowSeconds", 0);
            unset(up, "selectPolicy", "Max");
            unset(
                up,
                "policies",
                json!([{"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15}]),
            );
        }
        if let Some(down) = object(behavior, "scaleDown") {
            unset(down, "selectPolicy", "Max");
            unset(
                down,
                "policies",
                json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]),
            );
        }
    }
}

/// The one default of v1.
fn default_v1(h: &mut Value) {
    if let Some(spec) = object(h, "spec") {
        unset(spec, "minReplicas", 1);
    }
}

fn prepare_create(_: &Context, h: &mut Value) {
    put(h, "status", json!({"desiredReplicas": 0}));
}

fn prepare_create_v1(_: &Context, h: &mut Value) {
    put(
        h,
        "status",
        json!({"currentReplicas": 0, "desiredReplicas": 0}),
    );
}

fn validate(h: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(h, "spec");
    let path = Path::new("spec");
    let (min, max) = (int(spec, "minReplicas"), int0(spec, "maxReplicas"));
    if let Some(n) = min.filter(|n| *n < 1) {
        errs.push(FieldError::invalid(
            path.child("minReplicas"),
            n,
            "must be greater than or equal to 1",
        ));
    }
    if max < 1 {
        errs.push(FieldError::invalid(
            path.child("maxReplicas"),
            max,
            "must be greater than 0",
        ));
    }
    if min.is_some_and(|m| max < m) {
        errs.push(FieldError::invalid(
            path.child("maxReplicas"),
            max,
            "must be greater than or equal to `minReplicas`",
        ));
    }
    let rp = path.child("scaleTargetRef");
    for key in ["kind", "name"] {
        let s = require(at(spec, "scaleTargetRef"), key, &rp, &mut errs);
        if !s.is_empty() {
            check::path_segment(s, &rp.child(key), &mut errs);
        }
    }
    let mp = path.child("metrics");
    for (i, m) in items(spec, "metrics").iter().enumerate() {
        metric(m, &mp.index(i), &mut errs);
    }
    let bp = path.child("behavior");
    for key in ["scaleUp", "scaleDown"] {
        rules(at(at(spec, "behavior"), key), &bp.child(key), &mut errs);
    }
    errs
}

const KINDS: &[(&str, &str)] = &[
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("External", "external"),
];

fn metric(m: &Value, p: &Path<'_>, errs: &mut Errors) {
    let kind = text(m, "type");
    if kind.is_empty() {
        errs.push(FieldError::required(
            p.child("type"),
            "must specify a metric source type",
        ));
        return;
    }
    let Some((_, field)) = KINDS.iter().find(|(k, _)| *k == kind) else {
        let names: Vec<&str> = KINDS.iter().map(|(k, _)| *k).collect();
        errs.push(FieldError::not_supported(p.child("type"), kind, &names));
        return;
    };
    for (_, other) in KINDS {
        if other != field && has(m, other) {
            errs.push(FieldError::forbidden(
                p.child(other),
                "must populate the given metric source only",
            ));
        }
    }
    let source = at(m, field);
    let sp = p.child(field);
    if source.is_null() {
        errs.push(FieldError::required(
            sp,
            "must populate information for the given metric source",
        ));
        return;
    }
    if matches!(kind, "Resource" | "ContainerResource") {
        if text(source, "name").is_empty() {
            errs.push(FieldError::required(
                sp.child("name"),
                "must specify a resource name",
            ));
        }
    } else if text(source, "metric.name").is_empty() {
        errs.push(FieldError::required(
            sp.child("metric.name"),
            "must specify a metric name",
        ));
    }
    if kind == "ContainerResource" && text(source, "container").is_empty() {
        errs.push(FieldError::required(
            sp.child("container"),
            "must specify a container",
        ));
    }
    let target = at(source, "target");
    let tp = sp.child("target");
    let t = text(target, "type");
    if t.is_empty() {
        errs.push(FieldError::required(
            tp.child("type"),
            "must specify a metric target type",
        ));
    } else if !matches!(t, "Utilization" | "Value" | "AverageValue") {
        errs.push(FieldError::invalid(
            tp.child("type"),
            t,
            "must be either Utilization, Value, or AverageValue",
        ));
    }
    if int(target, "averageUtilization").is_some_and(|n| n < 1) {
        errs.push(FieldError::invalid(
            tp.child("averageUtilization"),
            int0(target, "averageUtilization"),
            "must be greater than 0",
        ));
    }
    for key in ["value", "averageValue"] {
        let v = at(target, key);
        if !v.is_null() && check::quantity(v).is_none_or(|q| q.sign() <= 0) {
            errs.push(FieldError::invalid(
                tp.child(key),
                v.clone(),
                "must be positive",
            ));
        }
    }
    if !["value", "averageValue", "averageUtilization"]
        .iter()
        .any(|k| has(target, k))
    {
        errs.push(FieldError::required(
            tp.child("averageUtilization"),
            "must set either a target raw value or a target utilization",
        ));
    }
}

fn rules(r: &Value, p: &Path<'_>, errs: &mut Errors) {
    if r.is_null() {
        return;
    }
    if let Some(n) = int(r, "stabilizationWindowSeconds") {
        if n < 0 {
            errs.push(FieldError::invalid(
                p.child("stabilizationWindowSeconds"),
                n,
                "must be greater than or equal to zero",
            ));
        }
        if n > 3600 {
            errs.push(FieldError::invalid(
                p.child("stabilizationWindowSeconds"),
                n,
                "must be less than or equal to 3600",
            ));
        }
    }
    one_of(r, "selectPolicy", &["Disabled", "Max", "Min"], p, errs);
    let list = p.child("policies");
    if items(r, "policies").is_empty() {
        errs.push(FieldError::required(
            list,
            "must specify at least one Policy",
        ));
    }
    for (i, policy) in items(r, "policies").iter().enumerate() {
        let ip = list.index(i);
        one_of(policy, "type", &["Percent", "Pods"], &ip, errs);
        if int0(policy, "value") <= 0 {
            errs.push(FieldError::invalid(
                ip.child("value"),
                int0(policy, "value"),
                "must be greater than zero",
            ));
        }
        let period = int0(policy, "periodSeconds");
        if period <= 0 {
            errs.push(FieldError::invalid(
                ip.child("periodSeconds"),
                period,
                "must be greater than zero",
            ));
        }
        if period > 1800 {
            errs.push(FieldError::invalid(
                ip.child("periodSeconds"),
                period,
                "must be less than or equal to 1800",
            ));
        }
    }
}

/// The strategy of v2.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create,
        validate,
        ..Strategy::default()
    }
}

/// The strategy of v1: its objects are validated as what they are in v2.
pub fn strategy_v1() -> Strategy {
    Strategy {
        default: default_v1,
        prepare_create: prepare_create_v1,
        validate: |h| {
            let mut v2 = h.clone();
            convert::to_v2(&mut v2);
            validate(&v2)
        },
        ..Strategy::default()
    }
}

/// `cpu: 10%/50%, memory: <unknown>/1Gi + 1 more...`
fn targets(h: &Value) -> String {
    const MAX: usize = 2;
    let specs = items(h, "spec.metrics");
    if specs.is_empty() {
        return "<none>".into();
    }
    let current = items(h, "status.currentMetrics");
    let shown: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(i, m)| target(m, current.get(i)))
        .collect();
    let head = shown
        .iter()
        .take(MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if shown.len() > MAX {
        format!("{head} + {} more...", shown.len() - MAX)
    } else {
        head
    }
}

fn target(m: &Value, current: Option<&Value>) -> String {
    let Some((_, field)) = KINDS.iter().find(|(k, _)| *k == text(m, "type")) else {
        return "<unknown type>".into();
    };
    let source = at(m, field);
    let now = current.map_or(&Value::Null, |c| at(at(c, field), "current"));
    let wanted = at(source, "target");
    let show = |key: &str, percent: bool, suffix: &str| -> Option<String> {
        let want = wanted.get(key).filter(|v| !v.is_null())?;
        let unit = if percent { "%" } else { "" };
        let have = match now.get(key).filter(|v| !v.is_null()) {
            Some(v) => format!("{}{unit}", int_or_string(v)),
            None => "<unknown>".into(),
        };
        Some(format!("{have}/{}{unit}{suffix}", int_or_string(want)))
    };
    let average = if matches!(*field, "object" | "external") {
        " (avg)"
    } else {
        ""
    };
    let body = show("averageUtilization", true, "")
        .or_else(|| show("averageValue", false, average))
        .or_else(|| show("value", false, ""))
        .unwrap_or_else(|| "<unknown>/<auto>".into());
    match *field {
        "resource" | "containerResource" => format!("{}: {body}", text(source, "name")),
        _ => body,
    }
}

/// The columns of `kubectl get horizontalpodautoscalers`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Reference", 0, |h, _| {
            format!(
                "{}/{}",
                text(h, "spec.scaleTargetRef.kind"),
                text(h, "spec.scaleTargetRef.name")
            )
            .into()
        }),
        col("Targets", 0, |h, _| targets(h).into()),
        col("MinPods", 0, |h, _| {
            int(h, "spec.minReplicas").map_or("<unset>".into(), |n| n.to_string().into())
        }),
        col("MaxPods", 0, |h, _| int0(h, "spec.maxReplicas").into()),
        col("Replicas", 0, |h, _| {
            int0(h, "status.currentReplicas").into()
        }),
        col_age(),
    ]
}

/// The same columns for v1's form.
pub fn columns_v1() -> Vec<Column> {
    let mut list = columns();
    if let Some(c) = list.iter_mut().find(|c| c.name == "Targets") {
        *c = col("Targets", 0, |h, _| {
            let mut v2 = h.clone();
            convert::to_v2(&mut v2);
            targets(&v2).into()
        });
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_autoscaler_aims_at_80_percent_cpu() {
        let mut h = json!({"metadata": {"name": "h", "creationTimestamp": "2023-11-14T22:13:10Z"},
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 3}});
        default(&mut h);
        assert!(validate(&h).is_empty(), "{:?}", validate(&h));
        assert_eq!(
            crate::kinds::tests::cells(&columns(), &h, 1_700_000_000),
            [
                json!("h"),
                json!("Deployment/web"),
                json!("cpu: <unknown>/80%"),
                json!("1"),
                json!(3),
                json!(0),
                json!("10s")
            ]
        );
    }

    #[test]
    fn v1_is_validated_through_v2() {
        let h = json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 3, "maxReplicas": 2}});
        assert_eq!(
            (strategy_v1().validate)(&h)[0].to_string(),
            "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`"
        );
    }
}
