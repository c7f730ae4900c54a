//! TaintNodesByCondition: a new node gets `node.kubernetes.io/not-ready:NoSchedule`, so that nothing is scheduled on it
//! before the node lifecycle controller has seen it ready. Pure.

use crate::{Operation, Write};
use serde_json::{Value, json};

/// Adds the taint.
pub fn admit(write: &mut Write<'_>) {
    if write.operation != Operation::Create || !super::is(write, "", "nodes") {
        return;
    }
    let Some(spec) = write
        .object
        .as_object_mut()
        .map(|o| o.entry("spec").or_insert_with(|| json!({})))
    else {
        return;
    };
    if spec.is_null() {
        *spec = json!({});
    }
    let Some(spec) = spec.as_object_mut() else {
        return;
    };
    let taints = spec.entry("taints").or_insert(Value::Null);
    if taints.is_null() {
        *taints = json!([]);
    }
    if let Some(list) = taints.as_array_mut()
        && !list
            .iter()
            .any(|t| t["key"] == "node.kubernetes.io/not-ready" && t["effect"] == "NoSchedule")
    {
        list.push(json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}));
    }
}
