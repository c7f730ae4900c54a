//! DefaultStorageClass: a claim that names no class gets the default one. Reads storage classes, changes the claim.

use super::{list, text};
use crate::{App, Operation, Write};
use serde_json::Value;
use skiff_api::status::Status;

const MARKS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// Sets `spec.storageClassName` on create.
///
/// # Errors
/// None so far.
pub fn admit(app: &App, write: &mut Write<'_>) -> Result<(), Status> {
    if write.operation != Operation::Create || !super::is(write, "", "persistentvolumeclaims") {
        return Ok(());
    }
    let asked = write
        .object
        .pointer("/spec/storageClassName")
        .is_some_and(|v| !v.is_null());
    let annotated = write.object["metadata"]["annotations"]
        .get("volume.beta.kubernetes.io/storage-class")
        .is_some();
    if asked || annotated {
        return Ok(());
    }
    if let Some(name) = newest(list(app, "storage.k8s.io/storageclasses", ""), &MARKS)
        && let Some(spec) = write.object.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.insert("storageClassName".into(), name.into());
    }
    Ok(())
}

/// The newest of the classes that are marked as default; of two equally old ones the first by name.
pub(super) fn newest(classes: Vec<Value>, marks: &[&str]) -> Option<String> {
    let mut defaults: Vec<Value> = classes
        .into_iter()
        .filter(|c| {
            marks.iter().any(|m| {
                c["metadata"]["annotations"].get(*m).and_then(Value::as_str) == Some("true")
            })
        })
        .collect();
    defaults.sort_by(|a, b| {
        let key = |v: &Value| text(v, &["metadata", "creationTimestamp"]).to_string();
        key(b)
            .cmp(&key(a))
            .then_with(|| text(a, &["metadata", "name"]).cmp(text(b, &["metadata", "name"])))
    });
    defaults
        .first()
        .map(|c| text(c, &["metadata", "name"]).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_class_wins() {
        let class = |n: &str, at: &str, d: &str| json!({"metadata": {"name": n, "creationTimestamp": at, "annotations": {MARKS[0]: d}}});
        let l = vec![
            class("a", "2024-01-01T00:00:00Z", "true"),
            class("c", "2025-01-01T00:00:00Z", "true"),
            class("b", "2025-01-01T00:00:00Z", "true"),
            class("z", "2026-01-01T00:00:00Z", "false"),
        ];
        assert_eq!(newest(l, &MARKS).as_deref(), Some("b"));
        assert_eq!(newest(vec![], &MARKS), None);
    }
}
