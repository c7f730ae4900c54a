//! Nodes (SetDefaults_NodeStatus, ValidateNode, printNode).

use super::scheduling::TAINT_EFFECTS;
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, SelectableField, Strategy};
use serde_json::Value;

/// SetDefaults_NodeStatus: allocatable is the capacity when it is not given. `podCIDR` and the first of `podCIDRs` are one
/// (conversion of v1 nodes).
pub fn default(node: &mut Value) {
    if let Some(spec) = at_mut(node, "spec") {
        let one = text(spec, "podCIDR").to_string();
        let first = items(spec, "podCIDRs")
            .first()
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_string();
        if one.is_empty() && !first.is_empty() {
            put(spec, "podCIDR", first);
        } else if !one.is_empty() && one != first {
            put(spec, "podCIDRs", vec![Value::from(one)]);
        }
    }
    let Some(status) = at_mut(node, "status") else {
        return;
    };
    if let Some(capacity) = status.get("capacity").filter(|c| !c.is_null()).cloned() {
        unset(status, "allocatable", capacity);
    }
}

fn validate(node: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let sp = Path::new("spec");
    let tp = sp.child("taints");
    let taints = items(node, "spec.taints");
    for (i, t) in taints.iter().enumerate() {
        let p = tp.index(i);
        check::qualified_name(text(t, "key"), &p.child("key"), &mut errs);
        check::label_value(text(t, "value"), &p.child("value"), &mut errs);
        if text(t, "effect").is_empty() {
            errs.push(FieldError::required(p.child("effect"), ""));
        }
        one_of(t, "effect", TAINT_EFFECTS, &p, &mut errs);
        let same =
            |o: &Value| text(o, "key") == text(t, "key") && text(o, "effect") == text(t, "effect");
        if taints[..i].iter().any(same) {
            let mut e = FieldError::duplicate(p, t.clone());
            e.detail = "taints must be unique by key and effect pair".into();
            errs.push(e);
        }
    }
    let cidrs = sp.child("podCIDRs");
    for (i, c) in items(node, "spec.podCIDRs").iter().enumerate() {
        check::cidr(c.as_str().unwrap_or(""), &cidrs.index(i), &mut errs);
    }
    let st = Path::new("status");
    for key in ["capacity", "allocatable"] {
        let kp = st.child(key);
        for (name, q) in entries(at(node, "status"), key) {
            super::resources::quantity_value(name, q, &kp.key(name), &mut errs);
        }
    }
    let ap = st.child("addresses");
    let addresses = items(node, "status.addresses");
    for (i, a) in addresses.iter().enumerate() {
        if addresses[..i].iter().any(|o| equal(o, a)) {
            errs.push(FieldError::duplicate(ap.index(i), a.clone()));
        }
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    for key in ["podCIDR", "providerID"] {
        let (n, o) = (text(at(new, "spec"), key), text(at(old, "spec"), key));
        if !o.is_empty() && n != o {
            errs.push(FieldError::forbidden(
                format!("spec.{key}"),
                "node updates may not change podCIDR except from \"\" to valid"
                    .replace("podCIDR", key),
            ));
        }
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        // A kubelet registers with its status in place.
        prepare_create: |_, _| {},
        validate,
        validate_update,
        ..Strategy::default()
    }
}

/// Fields of selectors.
pub fn fields() -> Vec<SelectableField> {
    vec![field("spec.unschedulable", |n| {
        truth(n, "spec.unschedulable").to_string()
    })]
}

/// The columns of `kubectl get nodes`.
pub fn columns() -> Vec<Column> {
    fn address(n: &Value, kind: &str) -> Value {
        items(n, "status.addresses")
            .iter()
            .find(|a| text(a, "type") == kind)
            .map_or("<none>", |a| text(a, "address"))
            .into()
    }
    fn known(n: &Value, key: &str) -> Value {
        match text(at(n, "status.nodeInfo"), key) {
            "" => "<unknown>".into(),
            s => s.into(),
        }
    }
    vec![
        col_name(),
        col("Status", 0, |n, _| status(n).into()),
        col("Roles", 0, |n, _| roles(n).into()),
        col_age(),
        col("Version", 0, |n, _| {
            text(n, "status.nodeInfo.kubeletVersion").into()
        }),
        col("Internal-IP", 1, |n, _| address(n, "InternalIP")),
        col("External-IP", 1, |n, _| address(n, "ExternalIP")),
        col("OS-Image", 1, |n, _| known(n, "osImage")),
        col("Kernel-Version", 1, |n, _| known(n, "kernelVersion")),
        col("Container-Runtime", 1, |n, _| {
            known(n, "containerRuntimeVersion")
        }),
    ]
}

fn status(n: &Value) -> String {
    let mut words = match items(n, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == "Ready")
    {
        Some(c) if text(c, "status") == "True" => vec!["Ready"],
        Some(_) => vec!["NotReady"],
        None => vec!["Unknown"],
    };
    if truth(n, "spec.unschedulable") {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(n: &Value) -> String {
    let mut out: Vec<&str> = Vec::new();
    for (k, v) in entries(n, "metadata.labels") {
        if let Some(role) = k.strip_prefix("node-role.kubernetes.io/") {
            if !role.is_empty() {
                out.push(role);
            }
        } else if k == "kubernetes.io/role" {
            out.extend(v.as_str().filter(|s| !s.is_empty()));
        }
    }
    out.sort_unstable();
    out.dedup();
    if out.is_empty() {
        "<none>".into()
    } else {
        out.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_prints_its_state_and_roles() {
        let node = json!({
            "metadata": {"name": "n", "creationTimestamp": "2023-11-14T22:13:10Z",
                "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "a"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.36.0"},
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
        });
        assert_eq!(
            crate::kinds::tests::cells(&columns(), &node, 1_700_000_000),
            [
                "n",
                "Ready,SchedulingDisabled",
                "a,control-plane",
                "10s",
                "v1.36.0",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]
        );
    }

    #[test]
    fn taints_are_checked() {
        let errs = validate(
            &json!({"spec": {"taints": [{"key": "a", "effect": "Never"}, {"key": "b", "effect": "NoSchedule"},
            {"key": "b", "effect": "NoSchedule"}]}}),
        );
        assert_eq!(errs[0].field, "spec.taints[0].effect");
        assert_eq!(errs[1].field, "spec.taints[2]");
    }
}
