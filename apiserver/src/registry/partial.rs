//! Subresources of an object's own kind that change one part of it: namespaces/finalize, pods/ephemeralcontainers,
//! pods/resize. Pure.

use serde_json::{Map, Value};
use skiff_api::field::FieldError;
use skiff_api::kinds::core::pod;

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

/// What the subresource refuses; pods' rules are theirs.
pub fn validate(subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    match subresource {
        "ephemeralcontainers" => pod::validate_ephemeral_containers(new, old),
        "resize" => pod::validate_resize(new, old),
        _ => Vec::new(),
    }
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
}
