//! Subresources of an object's own kind that change one part of it: namespaces/finalize, pods/ephemeralcontainers,
//! pods/resize. Pure.

use serde_json::{Map, Value};
use skiff_api::field::FieldError;

/// Takes from `new` only what the subresource may change; the rest is `old`'s.
pub fn prepare(subresource: &str, new: &mut Value, old: &Value) {
    let given = std::mem::replace(new, old.clone());
    let spec = given.get("spec").unwrap_or(&Value::Null);
    if !new["spec"].is_object() {
        new["spec"] = Value::Object(Map::new());
    }
    match subresource {
        "finalize" => {
            set(&mut new["spec"], "finalizers", spec.get("finalizers"));
            // Upstream's namespace finalize takes the metadata's finalizers, too.
            set(
                &mut new["metadata"],
                "finalizers",
                given.pointer("/metadata/finalizers"),
            );
        }
        "ephemeralcontainers" => set(
            &mut new["spec"],
            "ephemeralContainers",
            spec.get("ephemeralContainers"),
        ),
        "resize" => {
            for list in ["containers", "initContainers"] {
                let Some(Value::Array(containers)) = new["spec"].get_mut(list) else {
                    continue;
                };
                for c in containers {
                    let wanted = spec
                        .get(list)
                        .and_then(Value::as_array)
                        .and_then(|l| l.iter().find(|n| n["name"] == c["name"]));
                    if let Some(n) = wanted {
                        set(c, "resources", n.get("resources"));
                        set(c, "resizePolicy", n.get("resizePolicy"));
                    }
                }
            }
        }
        _ => {}
    }
}

fn set(object: &mut Value, key: &str, value: Option<&Value>) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    match value.filter(|v| !v.is_null()) {
        Some(v) => {
            map.insert(key.into(), v.clone());
        }
        None => {
            map.shift_remove(key);
        }
    }
}

/// What the subresource refuses.
pub fn validate(subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = |v: &Value, p: &str| {
        v.pointer(p)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    if subresource == "ephemeralcontainers" {
        let (new_list, old_list) = (
            list(new, "/spec/ephemeralContainers"),
            list(old, "/spec/ephemeralContainers"),
        );
        // ValidatePodEphemeralContainersUpdate: they may be added, never changed or removed.
        for o in &old_list {
            match new_list.iter().find(|n| n["name"] == o["name"]) {
                None => errors.push(FieldError::forbidden(
                    "spec.ephemeralContainers",
                    format!(
                        "existing ephemeral containers {} may not be removed",
                        o["name"]
                    ),
                )),
                Some(n) if n != o => errors.push(FieldError::forbidden(
                    "spec.ephemeralContainers",
                    format!(
                        "existing ephemeral containers {} may not be changed",
                        o["name"]
                    ),
                )),
                Some(_) => {}
            }
        }
        let taken: Vec<Value> = ["/spec/containers", "/spec/initContainers"]
            .iter()
            .flat_map(|p| list(new, p))
            .map(|c| c["name"].clone())
            .collect();
        for (i, n) in new_list.iter().enumerate() {
            let path = |f: &str| format!("spec.ephemeralContainers[{i}].{f}");
            let name = n["name"].as_str().unwrap_or("");
            if name.is_empty() {
                errors.push(FieldError::required(path("name"), ""));
            } else if taken.contains(&n["name"])
                || new_list[..i].iter().any(|o| o["name"] == n["name"])
            {
                errors.push(FieldError::duplicate(path("name"), name));
            }
            if n["image"].as_str().unwrap_or("").is_empty() {
                errors.push(FieldError::required(path("image"), ""));
            }
            for f in [
                "ports",
                "livenessProbe",
                "readinessProbe",
                "startupProbe",
                "lifecycle",
                "resources",
                "resizePolicy",
            ] {
                let there = match n.get(f) {
                    Some(Value::Object(o)) => !o.is_empty(),
                    Some(Value::Array(a)) => !a.is_empty(),
                    Some(v) => !v.is_null(),
                    None => false,
                };
                if there {
                    errors.push(FieldError::forbidden(
                        path(f),
                        "cannot be set for an Ephemeral Container",
                    ));
                }
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finalize_changes_finalizers_and_nothing_else() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
        let mut new =
            json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"finalizers": []}});
        prepare("finalize", &mut new, &old);
        assert_eq!(
            new,
            json!({"metadata": {"name": "a"}, "spec": {"finalizers": []}, "status": {"phase": "Terminating"}})
        );
    }

    #[test]
    fn ephemeral_containers_are_only_added() {
        let old = json!({"spec": {"containers": [{"name": "c"}], "ephemeralContainers": [{"name": "d", "image": "i"}]}});
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] =
            json!([{"name": "d", "image": "i"}, {"name": "e", "image": "i"}]);
        assert_eq!(validate("ephemeralcontainers", &new, &old), vec![]);
        new["spec"]["ephemeralContainers"] = json!([{"name": "c", "image": "i"}]);
        assert_eq!(validate("ephemeralcontainers", &new, &old).len(), 2);
    }
}
