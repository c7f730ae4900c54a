//! LimitRanger: default requests and limits of containers, and the bounds of a namespace's LimitRange objects on
//! containers, pods and claims. Reads limit ranges, changes pods.

use super::{is, list, text};
use crate::{App, Operation, Write};
use serde_json::{Map, Value, json};
use skiff_api::kinds::core::resources;
use skiff_api::quantity::Quantity;
use skiff_api::status::Status;

fn ranges(app: &App, write: &Write<'_>) -> Vec<Value> {
    let prefix = format!("/core/limitranges/{}/", write.namespace);
    if write.namespace.is_empty() || app.store.count(&prefix) == 0 {
        return Vec::new();
    }
    list(app, "core/limitranges", write.namespace)
}

fn items(range: &Value) -> impl Iterator<Item = &Value> {
    range
        .pointer("/spec/limits")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Fills in what containers of new pods leave out.
///
/// # Errors
/// None so far.
pub fn admit(app: &App, write: &mut Write<'_>) -> Result<(), Status> {
    if write.operation != Operation::Create || !is(write, "", "pods") {
        return Ok(());
    }
    for range in ranges(app, write) {
        default(&range, &mut write.object);
    }
    Ok(())
}

fn default(range: &Value, pod: &mut Value) {
    let mut limits = Map::new();
    let mut requests = Map::new();
    for item in items(range).filter(|i| text(i, &["type"]) == "Container") {
        let amounts = |k: &str| {
            item.get(k)
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default()
        };
        limits.extend(amounts("default"));
        requests.extend(amounts("defaultRequest"));
    }
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    let mut said = Vec::new();
    for (key, kind) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        for c in pod["spec"]
            .get_mut(key)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let name = text(c, &["name"]).to_string();
            let Some(c) = c.as_object_mut() else { continue };
            let resources = c.entry("resources").or_insert_with(|| json!({}));
            for (what, defaults) in [("limits", &limits), ("requests", &requests)] {
                let mut set = Vec::new();
                let Some(r) = resources.as_object_mut() else {
                    continue;
                };
                let slot = r.entry(what).or_insert_with(|| json!({}));
                if let Some(slot) = slot.as_object_mut() {
                    for (k, v) in defaults {
                        if !slot.contains_key(k) {
                            slot.insert(k.clone(), v.clone());
                            set.push(k.as_str());
                        }
                    }
                }
                if slot.as_object().is_some_and(Map::is_empty) {
                    r.shift_remove(what);
                }
                if !set.is_empty() {
                    set.sort_unstable();
                    said.push(format!(
                        "{} {} for {kind} {name}",
                        set.join(", "),
                        what.trim_end_matches('s')
                    ));
                }
            }
        }
    }
    if !said.is_empty()
        && let Some(m) = pod.get_mut("metadata").and_then(Value::as_object_mut)
    {
        let a = m.entry("annotations").or_insert_with(|| json!({}));
        if a.is_null() {
            *a = json!({});
        }
        if let Some(a) = a.as_object_mut() {
            a.insert(
                "kubernetes.io/limit-ranger".into(),
                format!("LimitRanger plugin set: {}", said.join("; ")).into(),
            );
        }
    }
}

fn amounts(v: Option<&Value>) -> resources::Amounts {
    v.and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(k, q)| Some((k.clone(), Quantity::from_value(q).ok()?)))
        .collect()
}

/// Refuses what is out of bounds.
///
/// # Errors
/// 403 with one text for each bound that does not hold.
pub fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    let mut errors = Vec::new();
    let sized = write.operation == Operation::Create && is(write, "", "pods");
    if sized || super::is_resize(write) {
        for r in ranges(app, write) {
            check_pod(&r, &write.object, &mut errors);
        }
    } else if write.operation != Operation::Delete && is(write, "", "persistentvolumeclaims") {
        for r in ranges(app, write) {
            for item in items(&r).filter(|i| text(i, &["type"]) == "PersistentVolumeClaim") {
                let requests = amounts(write.object.pointer("/spec/resources/requests"));
                bounds(
                    item,
                    "PersistentVolumeClaim",
                    &requests,
                    &resources::Amounts::new(),
                    &mut errors,
                );
            }
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(super::forbidden(write, one)),
        many => Err(super::forbidden(write, &format!("[{}]", many.join(", ")))),
    }
}

fn check_pod(range: &Value, pod: &Value, errors: &mut Vec<String>) {
    let spec = &pod["spec"];
    for item in items(range) {
        match text(item, &["type"]) {
            "Container" => {
                for key in ["containers", "initContainers"] {
                    for c in spec
                        .get(key)
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                    {
                        let (requests, limits) = (
                            amounts(c.pointer("/resources/requests")),
                            amounts(c.pointer("/resources/limits")),
                        );
                        bounds(item, "Container", &requests, &limits, errors);
                    }
                }
            }
            "Pod" => bounds(
                item,
                "Pod",
                &resources::of_containers(spec, "requests"),
                &resources::of_containers(spec, "limits"),
                errors,
            ),
            _ => {}
        }
    }
}

fn bounds(
    item: &Value,
    kind: &str,
    requests: &resources::Amounts,
    limits: &resources::Amounts,
    errors: &mut Vec<String>,
) {
    for (k, min) in amounts(item.get("min")) {
        match (requests.get(&k), limits.get(&k)) {
            (None, _) => errors.push(format!(
                "minimum {k} usage per {kind} is {min}.  No request is specified"
            )),
            (Some(r), _) if *r < min => errors.push(format!(
                "minimum {k} usage per {kind} is {min}, but request is {r}"
            )),
            (_, Some(l)) if *l < min => errors.push(format!(
                "minimum {k} usage per {kind} is {min}, but limit is {l}"
            )),
            _ => {}
        }
    }
    for (k, max) in amounts(item.get("max")) {
        if kind == "PersistentVolumeClaim" {
            if let Some(r) = requests.get(&k).filter(|r| **r > max) {
                errors.push(format!(
                    "maximum {k} usage per {kind} is {max}, but request is {r}"
                ));
            }
            continue;
        }
        match (requests.get(&k), limits.get(&k)) {
            (_, None) => errors.push(format!(
                "maximum {k} usage per {kind} is {max}.  No limit is specified"
            )),
            (_, Some(l)) if *l > max => errors.push(format!(
                "maximum {k} usage per {kind} is {max}, but limit is {l}"
            )),
            (Some(r), _) if *r > max => errors.push(format!(
                "maximum {k} usage per {kind} is {max}, but request is {r}"
            )),
            _ => {}
        }
    }
    for (k, ratio) in amounts(item.get("maxLimitRequestRatio")) {
        match (requests.get(&k).filter(|r| !r.is_zero()), limits.get(&k).filter(|l| !l.is_zero())) {
            (None, _) => errors.push(format!("{k} max limit to request ratio per {kind} is {ratio}, but no request is specified or request is 0")),
            (_, None) => errors.push(format!("{k} max limit to request ratio per {kind} is {ratio}, but no limit is specified or limit is 0")),
            (Some(r), Some(l)) => {
                let have = l.as_f64() / r.as_f64();
                if have > ratio.as_f64() {
                    errors.push(format!("{k} max limit to request ratio per {kind} is {ratio}, but provided ratio is {have:.6}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_the_defaults_they_lack_and_it_is_noted() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "500m"}}]}});
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}}]}});
        default(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}})
        );
        assert_eq!(
            pod["spec"]["containers"][1]["resources"]["limits"]["cpu"],
            "2"
        );
        assert_eq!(
            pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
            "LimitRanger plugin set: cpu limit for container a; cpu request for container a"
        );
    }

    #[test]
    fn bounds_are_worded_as_upstreams() {
        let range = json!({"spec": {"limits": [{"type": "Container", "min": {"memory": "64Mi"}, "max": {"memory": "1Gi"}}]}});
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "2Gi"}}}]}});
        let mut e = Vec::new();
        check_pod(&range, &pod, &mut e);
        assert_eq!(
            e,
            [
                "minimum memory usage per Container is 64Mi, but request is 32Mi",
                "maximum memory usage per Container is 1Gi, but limit is 2Gi"
            ]
        );
    }
}
