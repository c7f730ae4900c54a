//! The bootstrap RBAC objects: made when missing, and given back rules and subjects that were taken from them (upstream's
//! rbac/bootstrap-roles hook), unless `rbac.authorization.kubernetes.io/autoupdate` is "false".

use super::role_rules::{BINDINGS, CONTROLLERS, ROLES, Role, rules};
use super::{make, put};
use crate::App;
use crate::admission::{find, text};
use futures::StreamExt;
use serde_json::{Value, json};
use skiff_api::status::Status;
use std::sync::Arc;

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

fn object(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {AUTOUPDATE: "true"}},
    })
}

fn cluster_role(r: &Role, name: &str) -> Value {
    let mut o = object("ClusterRole", name);
    for to in r.aggregate_to {
        o["metadata"]["labels"][format!("{GROUP}/aggregate-to-{to}")] = "true".into();
    }
    o["rules"] = rules(r.rules).into();
    o
}

/// A role that is the sum of others; its rules are written too, for those who look at the object.
fn sum(name: &str, of: &[&str]) -> Value {
    let mut o = object("ClusterRole", name);
    let label = |to: &str| json!({"matchLabels": {format!("{GROUP}/aggregate-to-{to}"): "true"}});
    o["aggregationRule"] = json!({"clusterRoleSelectors": [label(name)]});
    for to in of {
        o["metadata"]["labels"][format!("{GROUP}/aggregate-to-{to}")] = "true".into();
    }
    // In the order of the names of what is selected, as the aggregation would write them: nothing to mend at the start.
    let parts: &[&str] = match name {
        "admin" => &["edit", "view", "admin"],
        "edit" => &["edit", "view"],
        _ => &["view"],
    };
    let all: Vec<Value> = parts
        .iter()
        .flat_map(|part| ROLES.iter().filter(|r| r.aggregate_to.contains(part)))
        .flat_map(|r| rules(r.rules))
        .collect();
    o["rules"] = all.into();
    o
}

fn subject(s: &str) -> Value {
    match s.split_once(':') {
        Some(("group", n)) => json!({"kind": "Group", "apiGroup": GROUP, "name": n}),
        Some(("account", rest)) => {
            let (ns, n) = rest.split_once(':').unwrap_or(("kube-system", rest));
            json!({"kind": "ServiceAccount", "name": n, "namespace": ns})
        }
        Some((_, n)) => json!({"kind": "User", "apiGroup": GROUP, "name": n}),
        None => Value::Null,
    }
}

fn binding(name: &str, subjects: &[&str]) -> Value {
    let mut o = object("ClusterRoleBinding", name);
    o["roleRef"] = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": name});
    o["subjects"] = subjects.iter().map(|s| subject(s)).collect();
    o
}

/// Every bootstrap object.
fn all() -> Vec<Value> {
    let mut l: Vec<Value> = ROLES.iter().map(|r| cluster_role(r, r.name)).collect();
    l.push(sum("admin", &[]));
    l.push(sum("edit", &["admin"]));
    l.push(sum("view", &["edit"]));
    for (role, subjects) in BINDINGS {
        l.push(binding(role, subjects));
    }
    for r in CONTROLLERS {
        let name = format!("system:controller:{}", r.name);
        l.push(cluster_role(r, &name));
        let account = format!("account:kube-system:{}", r.name);
        l.push(binding(
            &name,
            &[&account, "user:system:kube-controller-manager"],
        ));
    }
    l
}

/// Lists an object's missing items; true when something was added.
fn complete(have: &mut Value, want: &Value, key: &str) -> bool {
    let mut changed = false;
    for item in want[key].as_array().into_iter().flatten() {
        let Some(map) = have.as_object_mut() else {
            return false;
        };
        let list = map.entry(key).or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        if let Some(l) = list.as_array_mut()
            && !l.contains(item)
        {
            l.push(item.clone());
            changed = true;
        }
    }
    changed
}

/// Takes back what earlier versions gave: nodes had `system:node` by a binding, and so read every pod and every node.
fn take_back(have: &mut Value) -> bool {
    if text(have, &["metadata", "name"]) != "system:node"
        || text(have, &["roleRef", "name"]) != "system:node"
    {
        return false;
    }
    let Some(subjects) = have.get_mut("subjects").and_then(Value::as_array_mut) else {
        return false;
    };
    let before = subjects.len();
    subjects.retain(|s| text(s, &["kind"]) != "Group" || text(s, &["name"]) != "system:nodes");
    subjects.len() != before
}

/// Makes and mends them, all at once so that they share the store's commits.
///
/// # Errors
/// When one cannot be written.
pub async fn ensure(app: &Arc<App>) -> Result<(), Status> {
    let jobs = all().into_iter().map(|want| async move {
        let (kind, name) = (text(&want, &["kind"]), text(&want, &["metadata", "name"]));
        let plural = if kind == "ClusterRole" {
            "clusterroles"
        } else {
            "clusterrolebindings"
        };
        let Some(mut have) = find(app, &format!("{GROUP}/{plural}"), "", name) else {
            return make(app, GROUP, "v1", plural, "", want).await;
        };
        if have["metadata"]["annotations"]
            .get(AUTOUPDATE)
            .and_then(Value::as_str)
            == Some("false")
        {
            return Ok(());
        }
        let changed = complete(&mut have, &want, "rules")
            | complete(&mut have, &want, "subjects")
            | take_back(&mut have);
        if !changed {
            return Ok(());
        }
        let name = name.to_string();
        put(app, GROUP, "v1", plural, "", &name, move |current| {
            complete(current, &want, "rules");
            complete(current, &want, "subjects");
            take_back(current);
        })
        .await
    });
    let results: Vec<Result<(), Status>> = futures::stream::iter(jobs)
        .buffer_unordered(64)
        .collect()
        .await;
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_from_an_object_comes_back_and_what_was_added_stays() {
        let want = json!({"rules": [1, 2]});
        let mut have = json!({"rules": [2, 3]});
        assert!(complete(&mut have, &want, "rules"));
        assert_eq!(have["rules"], json!([2, 3, 1]));
        assert!(!complete(&mut have, &want, "rules"));
        assert!(!complete(&mut have, &want, "subjects"));
    }

    #[test]
    fn nodes_lose_the_binding_that_earlier_versions_made() {
        let mut b = binding("system:node", &["group:system:nodes", "user:kept"]);
        assert!(take_back(&mut b) && !take_back(&mut b));
        assert_eq!(b["subjects"], json!([subject("user:kept")]));
        assert!(!take_back(&mut binding("other", &["group:system:nodes"])));
    }

    #[test]
    fn admin_is_the_sum_of_edit_and_view() {
        let s = sum("admin", &[]).to_string();
        assert!(s.contains("rolebindings") && s.contains("pods/exec") && s.contains("pods/log"));
        assert!(!sum("view", &[]).to_string().contains("secrets"));
    }
}
