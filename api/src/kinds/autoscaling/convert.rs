//! `autoscaling/v1` horizontal pod autoscalers to `v2` and back (pkg/apis/autoscaling/v1/conversion.go): what v1 has no
//! field for travels in annotations.

use crate::kinds::util::*;
use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn is_cpu_utilization(m: &Value, key: &str) -> bool {
    text(m, "type") == "Resource"
        && text(m, "resource.name") == "cpu"
        && has(m, &format!("resource.{key}.averageUtilization"))
}

/// The fields of a metric in v1's annotations: target (or current) is spread over the metric itself.
fn flat(m: &Value, key: &str, prefix: &str) -> Value {
    let kind = text(m, "type");
    let field = source_key(kind);
    let source = at(m, field);
    let target = at(source, key);
    let mut out = Map::new();
    for (from, to) in [("name", "name"), ("container", "container")] {
        if let Some(v) = source.get(from) {
            out.insert(to.into(), v.clone());
        }
    }
    if let Some(metric) = source.get("metric") {
        out.insert("metricName".into(), at(metric, "name").clone());
        if has(metric, "selector") {
            let k = if kind == "External" {
                "metricSelector"
            } else {
                "selector"
            };
            out.insert(k.into(), at(metric, "selector").clone());
        }
    }
    if let Some(object) = source.get("describedObject") {
        out.insert("target".into(), object.clone());
    }
    for (from, to) in [
        ("averageUtilization", "AverageUtilization"),
        (
            "averageValue",
            if kind == "Object" {
                "averageValue"
            } else {
                "AverageValue"
            },
        ),
        ("value", "Value"),
    ] {
        if let Some(v) = target.get(from).filter(|v| !v.is_null()) {
            let name = if to == "averageValue" {
                to.to_string()
            } else {
                format!("{prefix}{to}")
            };
            out.insert(name, v.clone());
        }
    }
    json!({"type": kind, field: out})
}

/// The other way round.
fn nested(m: &Value, key: &str, prefix: &str) -> Value {
    let kind = text(m, "type");
    let field = source_key(kind);
    let source = at(m, field);
    let mut out = Map::new();
    for k in ["name", "container"] {
        if let Some(v) = source.get(k) {
            out.insert(k.into(), v.clone());
        }
    }
    if let Some(metric) = source.get("metricName") {
        let mut one = json!({"name": metric});
        let selector = if kind == "External" {
            at(source, "metricSelector")
        } else {
            at(source, "selector")
        };
        if !selector.is_null() {
            put(&mut one, "selector", selector.clone());
        }
        out.insert("metric".into(), one);
    }
    if let Some(object) = source.get("target") {
        out.insert("describedObject".into(), object.clone());
    }
    let mut target = Map::new();
    let found = |name: &str| {
        source
            .get(format!("{prefix}{name}").as_str())
            .filter(|v| !v.is_null())
            .cloned()
    };
    if let Some(v) = found("AverageUtilization") {
        target.insert("type".into(), "Utilization".into());
        target.insert("averageUtilization".into(), v);
    } else if let Some(v) = found("AverageValue").or_else(|| source.get("averageValue").cloned()) {
        target.insert("type".into(), "AverageValue".into());
        target.insert("averageValue".into(), v);
    } else if let Some(v) = found("Value") {
        target.insert("type".into(), "Value".into());
        target.insert("value".into(), v);
    }
    if key == "current" {
        target.shift_remove("type");
    }
    out.insert(key.into(), Value::Object(target));
    json!({"type": kind, field: out})
}

fn source_key(kind: &str) -> &'static str {
    match kind {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        _ => "external",
    }
}

fn annotate(v: &mut Value, key: &str, what: &Value) {
    if let Some(a) = object(v, "metadata").and_then(|m| object(m, "annotations")) {
        put(a, key, what.to_string());
    }
}

/// Takes an annotation's JSON out of the object; none when it is missing or is no JSON.
fn unannotate(v: &mut Value, key: &str) -> Option<Value> {
    let raw = at(v, "metadata.annotations")
        .get(key)?
        .as_str()?
        .to_string();
    if let Some(m) = at_mut(v, "metadata") {
        if let Some(a) = at_mut(m, "annotations") {
            drop_key(a, key);
        }
        if is_empty(at(m, "annotations")) {
            drop_key(m, "annotations");
        }
    }
    serde_json::from_str(&raw).ok()
}

/// v2 to v1.
pub fn to_v1(v: &mut Value) {
    put(v, "apiVersion", "autoscaling/v1");
    let (mut cpu, mut others) = (None, Vec::new());
    for m in items(v, "spec.metrics") {
        if cpu.is_none() && is_cpu_utilization(m, "target") {
            cpu = Some(at(m, "resource.target.averageUtilization").clone());
        } else {
            others.push(flat(m, "target", "target"));
        }
    }
    let behavior = at(v, "spec.behavior").clone();
    if let Some(spec) = at_mut(v, "spec") {
        drop_key(spec, "metrics");
        drop_key(spec, "behavior");
        if let Some(n) = cpu {
            put(spec, "targetCPUUtilizationPercentage", n);
        }
    }
    if !others.is_empty() {
        annotate(v, METRICS, &Value::Array(others));
    }
    if !behavior.is_null() {
        annotate(v, BEHAVIOR, &behavior);
    }
    let (mut cpu, mut others) = (None, Vec::new());
    for m in items(v, "status.currentMetrics") {
        if cpu.is_none() && is_cpu_utilization(m, "current") {
            cpu = Some(at(m, "resource.current.averageUtilization").clone());
        }
        others.push(flat(m, "current", "current"));
    }
    let conditions = at(v, "status.conditions").clone();
    if let Some(status) = at_mut(v, "status") {
        drop_key(status, "currentMetrics");
        drop_key(status, "conditions");
        if let Some(n) = cpu {
            put(status, "currentCPUUtilizationPercentage", n);
        }
        unset(status, "currentReplicas", 0);
    }
    if !others.is_empty() {
        annotate(v, CURRENT, &Value::Array(others));
    }
    if !is_empty(&conditions) {
        annotate(v, CONDITIONS, &conditions);
    }
}

/// v1 to v2.
pub fn to_v2(v: &mut Value) {
    put(v, "apiVersion", "autoscaling/v2");
    let metrics = unannotate(v, METRICS);
    let behavior = unannotate(v, BEHAVIOR);
    let current = unannotate(v, CURRENT);
    let conditions = unannotate(v, CONDITIONS);
    if let Some(spec) = at_mut(v, "spec") {
        let mut list = Vec::new();
        let cpu = at(spec, "targetCPUUtilizationPercentage").clone();
        drop_key(spec, "targetCPUUtilizationPercentage");
        if !cpu.is_null() {
            list.push(json!({"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": cpu}}}));
        }
        if let Some(Value::Array(others)) = &metrics {
            list.extend(others.iter().map(|m| nested(m, "target", "target")));
        }
        if !list.is_empty() {
            put(spec, "metrics", list);
        }
        if let Some(b) = behavior.filter(Value::is_object) {
            put(spec, "behavior", b);
        }
    }
    if let Some(status) = at_mut(v, "status") {
        let cpu = at(status, "currentCPUUtilizationPercentage").clone();
        drop_key(status, "currentCPUUtilizationPercentage");
        let mut list: Vec<Value> = match &current {
            Some(Value::Array(all)) => all
                .iter()
                .map(|m| nested(m, "current", "current"))
                .collect(),
            _ => Vec::new(),
        };
        if !cpu.is_null() && !list.iter().any(|m| is_cpu_utilization(m, "current")) {
            list.insert(
                0,
                json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": cpu}}}),
            );
        }
        if !list.is_empty() {
            put(status, "currentMetrics", list);
        }
        if let Some(c) = conditions.filter(Value::is_array) {
            put(status, "conditions", c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_survives_the_way_through_v1() {
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"},
                "minReplicas": 1, "maxReplicas": 5,
                "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "Value", "value": "3"}}},
                ],
                "behavior": {"scaleDown": {"selectPolicy": "Max"}},
            },
            "status": {"desiredReplicas": 0, "currentReplicas": 2},
        });
        let mut v = v2.clone();
        to_v1(&mut v);
        assert_eq!(v["apiVersion"], "autoscaling/v1");
        assert_eq!(v["spec"]["targetCPUUtilizationPercentage"], 50);
        assert!(v["spec"].get("metrics").is_none());
        to_v2(&mut v);
        assert_eq!(v, v2);
    }
}
