//! Facts about pods and owners that several controllers need. Pure; time comes in as an argument.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use skiff_client::ObjectKey;
use std::time::Duration;

/// The owner that manages an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true))
}

/// The key of the managing owner, if it is of this kind.
pub fn owner_key(meta: &ObjectMeta, kind: &str) -> Option<ObjectKey> {
    let owner = controller_of(meta).filter(|o| o.kind == kind)?;
    Some(ObjectKey::new(
        meta.namespace.clone().unwrap_or_default(),
        owner.name.clone(),
    ))
}

/// An ownerReference that makes `meta`'s object the manager.
pub fn controller_ref(api_version: &str, kind: &str, meta: &ObjectMeta) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind,
        "name": meta.name, "uid": meta.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// Is this the uid of the object?
pub fn is_uid(meta: &ObjectMeta, uid: &str) -> bool {
    meta.uid.as_deref() == Some(uid)
}

/// Seconds since the epoch.
pub fn seconds(t: Timestamp) -> i64 {
    t.as_second()
}

/// RFC 3339 with seconds, as the API writes times.
pub fn rfc3339(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// status.phase, `Pending` when unset.
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

/// Succeeded or failed: it will not run again.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor being deleted (upstream's IsPodActive).
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

fn condition<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    pod.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == name)
}

/// The Ready condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when it is ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")
        .filter(|c| c.status == "True")
        .and_then(|c| c.last_transition_time.as_ref())
        .map(|t| t.0)
}

/// Ready for at least `min_ready` seconds.
pub fn is_available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    is_ready(pod)
        && (min_ready == 0
            || ready_since(pod).is_some_and(|t| seconds(now) >= seconds(t) + i64::from(min_ready)))
}

/// How long until a ready pod becomes available; None when it is, or is not ready.
pub fn until_available(pod: &Pod, min_ready: i32, now: Timestamp) -> Option<Duration> {
    if min_ready == 0 || is_available(pod, min_ready, now) {
        return None;
    }
    let left = seconds(ready_since(pod)?) + i64::from(min_ready) - seconds(now);
    Some(Duration::from_secs(u64::try_from(left.max(1)).unwrap_or(1)))
}

/// Containers' restarts, the largest.
fn restarts(pod: &Pod) -> i32 {
    pod.status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0)
}

/// Sorts pods so that those to delete first come first (upstream's ActivePodsWithRanks): without a node, pending,
/// not ready, lower pod-deletion-cost, ready for a shorter time, restarted more, younger.
pub fn deletion_order(a: &Pod, b: &Pod) -> std::cmp::Ordering {
    let node = |p: &Pod| {
        p.spec
            .as_ref()
            .and_then(|s| s.node_name.as_ref())
            .is_some_and(|n| !n.is_empty())
    };
    let rank = |p: &Pod| match phase(p) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |p: &Pod| {
        p.metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"))
            .and_then(|v| v.parse::<i32>().ok())
            .unwrap_or(0)
    };
    let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
    node(a)
        .cmp(&node(b))
        .then(rank(a).cmp(&rank(b)))
        .then(is_ready(a).cmp(&is_ready(b)))
        .then(cost(a).cmp(&cost(b)))
        .then(ready_since(b).cmp(&ready_since(a)))
        .then(restarts(b).cmp(&restarts(a)))
        .then(created(b).cmp(&created(a)))
        .then(a.metadata.name.cmp(&b.metadata.name))
}

/// A pod made from a template: its labels, annotations, finalizers and spec, under a name and an owner.
pub fn pod_from(template: &PodTemplateSpec, name: &str, owner: Value) -> Value {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut metadata = json!({"name": name, "ownerReferences": [owner]});
    if let Some(labels) = &meta.labels {
        metadata["labels"] = json!(labels);
    }
    if let Some(annotations) = &meta.annotations {
        metadata["annotations"] = json!(annotations);
    }
    if let Some(finalizers) = &meta.finalizers {
        metadata["finalizers"] = json!(finalizers);
    }
    json!({"metadata": metadata, "spec": template.spec})
}

/// Characters of generated names: no vowels, nothing that looks like another (upstream's rand.String).
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `base` and five characters made from a random number, cut to 63 characters as generateName does.
pub fn generated_name(base: &str, mut random: u64) -> String {
    let mut suffix = String::with_capacity(5);
    for _ in 0..5 {
        let n = ALPHABET.len() as u64;
        suffix.push(char::from(
            ALPHABET[usize::try_from(random % n).unwrap_or(0)],
        ));
        random /= n;
    }
    let mut base = base.to_string();
    base.truncate(58);
    format!("{base}{suffix}")
}

/// A stable hash of a value in the letters of generated names (pod-template-hash).
pub fn safe_hash(value: &Value, collisions: i32) -> String {
    // FNV-1a of 32 bits over the canonical JSON; maps of serde_json keep their order, so sort them.
    fn feed(v: &Value, h: &mut u32) {
        let mut eat = |bytes: &[u8]| {
            for b in bytes {
                *h = (*h ^ u32::from(*b)).wrapping_mul(16_777_619);
            }
        };
        match v {
            Value::Object(map) => {
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort();
                eat(b"{");
                for k in keys {
                    let mut sub = *h;
                    for b in k.as_bytes() {
                        sub = (sub ^ u32::from(*b)).wrapping_mul(16_777_619);
                    }
                    *h = sub;
                    feed(&map[k], h);
                }
            }
            Value::Array(items) => {
                eat(b"[");
                for i in items {
                    feed(i, h);
                }
            }
            other => eat(other.to_string().as_bytes()),
        }
    }
    let mut h = 2_166_136_261u32;
    feed(value, &mut h);
    if collisions > 0 {
        feed(&Value::from(collisions), &mut h);
    }
    h.to_string()
        .bytes()
        .map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()]))
        .collect()
}

/// Sets a condition in a list, keeping its transition time when its status did not change. True when it changed.
pub fn set_condition(
    conditions: &mut Vec<Value>,
    name: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
    with_update_time: bool,
) -> bool {
    let at = conditions.iter().position(|c| c["type"] == name);
    let mut fresh = json!({"type": name, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": rfc3339(now)});
    if let Some(i) = at {
        let old = &conditions[i];
        if old["status"] == status
            && old["reason"] == reason
            && old["message"].as_str().unwrap_or("") == message
        {
            return false;
        }
        if old["status"] == status {
            fresh["lastTransitionTime"] = old["lastTransitionTime"].clone();
        }
    }
    if with_update_time {
        fresh["lastUpdateTime"] = rfc3339(now).into();
    }
    if message.is_empty() {
        fresh.as_object_mut().map(|o| o.remove("message"));
    }
    match at {
        Some(i) => conditions[i] = fresh,
        None => conditions.push(fresh),
    }
    true
}

/// The merge patch (RFC 7386) that makes `new` of `old`; None when they are the same.
pub fn merge_difference(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return Some(new.clone());
    };
    let mut patch = serde_json::Map::new();
    for (k, v) in after {
        match before.get(k) {
            Some(b) => {
                if let Some(d) = merge_difference(b, v) {
                    patch.insert(k.clone(), d);
                }
            }
            None => {
                patch.insert(k.clone(), v.clone());
            }
        }
    }
    for k in before.keys().filter(|k| !after.contains_key(*k)) {
        patch.insert(k.clone(), Value::Null);
    }
    // Maps that differ in the order of their keys alone are the same.
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(v: Value) -> Pod {
        serde_json::from_value(v).expect("a pod")
    }

    #[test]
    fn pods_without_a_node_go_first_and_ready_ones_last() {
        let mut pods = [
            pod(
                json!({"metadata": {"name": "ready"}, "spec": {"containers": [], "nodeName": "n"}, "status":
                {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
            ),
            pod(
                json!({"metadata": {"name": "starting"}, "spec": {"containers": [], "nodeName": "n"}, "status": {"phase": "Running"}}),
            ),
            pod(json!({"metadata": {"name": "homeless"}, "spec": {"containers": []}})),
        ];
        pods.sort_by(deletion_order);
        let names: Vec<_> = pods
            .iter()
            .filter_map(|p| p.metadata.name.as_deref())
            .collect();
        assert_eq!(names, ["homeless", "starting", "ready"]);
    }

    #[test]
    fn generated_names_fit_and_differ() {
        assert_eq!(generated_name("a-", 0), "a-bbbbb");
        assert_ne!(generated_name("a-", 1), generated_name("a-", 2));
        assert_eq!(generated_name(&"x".repeat(80), 7).len(), 63);
    }

    #[test]
    fn the_hash_does_not_depend_on_the_order_of_keys() {
        assert_eq!(
            safe_hash(&json!({"a": 1, "b": [2]}), 0),
            safe_hash(&json!({"b": [2], "a": 1}), 0)
        );
        assert_ne!(
            safe_hash(&json!({"a": 1}), 0),
            safe_hash(&json!({"a": 1}), 1)
        );
        assert_ne!(
            safe_hash(&json!({"a": 1}), 0),
            safe_hash(&json!({"a": 2}), 0)
        );
    }
}
