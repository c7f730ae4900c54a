//! `pods/eviction`: a delete that asks the pod's disruption budget first. Owns the rules of upstream's EvictionREST.

use crate::admission::{list, namespace_lifecycle, node_restriction, text};
use crate::http::{Answer, Request, negotiate, respond};
use crate::registry::options::Options;
use crate::registry::{self, Target, delete, encode, form, input};
use crate::{App, Operation, Write, store};
use serde_json::{Value, json};
use skiff_api::decode::{Also, Expect};
use skiff_api::selector::Selector;
use skiff_api::status::Status;
use std::sync::Arc;

const STORAGE: &str = "policy/poddisruptionbudgets";

/// POST of an Eviction.
///
/// # Errors
/// 400, 404, 429 when the budget does not allow it.
pub async fn create(app: &Arc<App>, mut request: Request) -> Answer {
    let accept = negotiate::accept(&request.parts.headers, None, false)?;
    let expect = Expect::gvk("policy", "v1", "Eviction").also(Also::Version("policy", "v1beta1"));
    let posted = input::posted(&mut request, expect, true).await?;
    let eviction = posted.object;
    let (namespace, name) = (request.info.namespace.clone(), request.info.name.clone());
    let given = text(&eviction, &["metadata", "name"]);
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    node_restriction::pod_subresource(app, &request.user, &namespace, &name, "eviction")?;
    let mut options = Options::default();
    if let Some(o) = eviction.get("deleteOptions").filter(|o| o.is_object()) {
        options.merge_delete_body(o)?;
    }
    options.dry_run |= posted.dry_run;
    options.check_delete()?;
    let row = app
        .table
        .get("", "v1", "pods")
        .ok_or_else(Status::no_route)?;
    namespace_lifecycle::admit(
        app,
        &Write {
            operation: Operation::Create,
            row: &row,
            subresource: "eviction",
            namespace: &namespace,
            name: &name,
            object: Value::Null,
            old: None,
            user: &request.user,
            dry_run: options.dry_run,
        },
    )?;
    let pod = registry::read(app, &row, &namespace, &name)?;
    let phase = text(&pod, &["status", "phase"]);
    // What has ended, has not begun or is ending anyway disturbs nobody.
    let free = matches!(phase, "Succeeded" | "Failed" | "Pending")
        || !text(&pod, &["metadata", "deletionTimestamp"]).is_empty();
    if !free {
        let budgets: Vec<Value> = list(app, STORAGE, &namespace)
            .into_iter()
            .filter(|b| covers(b, &pod))
            .collect();
        match budgets.as_slice() {
            [] => {}
            [one] => {
                spend(
                    app,
                    &namespace,
                    text(one, &["metadata", "name"]),
                    &pod,
                    options.dry_run,
                )
                .await?
            }
            _ => {
                return Err(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        }
    }
    // The pod that was looked at, and no other of its name.
    if options.precondition_uid.is_none() {
        options.precondition_uid = Some(text(&pod, &["metadata", "uid"]).into());
    }
    let target = Target {
        app,
        row: &row,
        namespace: &namespace,
        name: &name,
        subresource: "",
        user: &request.user,
        dry_run: options.dry_run,
    };
    delete::delete_object(&target, &options).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    let mut answer = respond::value(201, accept, &status);
    respond::warn(&mut answer, &posted.warnings);
    Ok(answer)
}

fn covers(budget: &Value, pod: &Value) -> bool {
    let Some(selector) = budget.pointer("/spec/selector").filter(|s| !s.is_null()) else {
        return false;
    };
    // An empty selector of policy/v1 selects every pod.
    Selector::from_value(selector).is_ok_and(|s| s.matches_object(pod))
}

fn ready(pod: &Value) -> bool {
    pod.pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn refused(why: String) -> Status {
    let mut s = Status::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        10,
    );
    s.details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}]});
    s
}

/// Takes one disruption of the budget.
async fn spend(
    app: &Arc<App>,
    namespace: &str,
    name: &str,
    pod: &Value,
    dry_run: bool,
) -> Result<(), Status> {
    let row = app.table.stored(STORAGE).ok_or_else(Status::no_route)?;
    let key = row.key(namespace, name);
    loop {
        let Some(entry) = app.store.get(&key) else {
            return Ok(());
        };
        let mut budget = form::value_of(app, &row, &entry)?;
        if !decide(&mut budget, pod, &registry::now())? || dry_run {
            return Ok(());
        }
        let bytes = encode::bounded(&row, &budget, entry.value.len())?;
        match app
            .store
            .write(
                key.clone(),
                store::Expect::Revision(entry.revision),
                Some(bytes),
            )
            .await
        {
            Ok(_) => return Ok(()),
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.status()),
        }
    }
}

/// Upstream's checkAndDecrement; true when the budget was changed.
fn decide(budget: &mut Value, pod: &Value, now: &str) -> Result<bool, Status> {
    let int = |v: &Value, p: &str| v.pointer(p).and_then(Value::as_i64).unwrap_or(0);
    let name = text(budget, &["metadata", "name"]).to_string();
    let (current, desired) = (
        int(budget, "/status/currentHealthy"),
        int(budget, "/status/desiredHealthy"),
    );
    if !ready(pod) {
        // A pod that is not ready does not count as healthy: taking it away disturbs nobody if the rest is healthy.
        let always = text(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
        if always || (current >= desired && desired > 0) {
            return Ok(false);
        }
    }
    if int(budget, "/status/observedGeneration") < int(budget, "/metadata/generation") {
        let mut s = refused(format!(
            "The disruption budget {name} is still being processed by the server."
        ));
        s.details["retryAfterSeconds"] = 10.into();
        return Err(s);
    }
    let allowed = int(budget, "/status/disruptionsAllowed");
    if allowed < 0 {
        return Err(Status::forbidden(
            "policy",
            "poddisruptionbudgets",
            &name,
            "pdb disruptions allowed is negative",
        ));
    }
    let disrupted = budget
        .pointer("/status/disruptedPods")
        .and_then(Value::as_object)
        .map_or(0, serde_json::Map::len);
    if disrupted > 2000 {
        return Err(Status::forbidden(
            "policy",
            "poddisruptionbudgets",
            &name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if allowed == 0 {
        // No Retry-After: nobody knows when a pod will be healthy.
        return Err(refused(format!(
            "The disruption budget {name} needs {desired} healthy pods and has {current} currently"
        )));
    }
    budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if !budget["status"]["disruptedPods"].is_object() {
        budget["status"]["disruptedPods"] = json!({});
    }
    budget["status"]["disruptedPods"][text(pod, &["metadata", "name"])] = now.into();
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_until_it_is_used_up() {
        let pod = json!({"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let mut b = json!({"metadata": {"name": "b", "generation": 1}, "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 3, "desiredHealthy": 2}});
        assert_eq!(decide(&mut b, &pod, "now"), Ok(true));
        assert_eq!(b["status"]["disruptedPods"]["p"], "now");
        let e = decide(&mut b, &pod, "now").unwrap_err();
        assert_eq!(
            (e.code, e.details["causes"][0]["message"].as_str()),
            (
                429,
                Some("The disruption budget b needs 2 healthy pods and has 3 currently")
            )
        );
        let sick = json!({"metadata": {"name": "p"}});
        assert_eq!(decide(&mut b, &sick, "now"), Ok(false));
        b["metadata"]["generation"] = 2.into();
        assert!(decide(&mut b, &pod, "now").is_err());
    }

    #[test]
    fn an_empty_selector_covers_every_pod_and_none_covers_no_pod() {
        let pod = json!({"metadata": {"labels": {"a": "b"}}});
        assert!(covers(&json!({"spec": {"selector": {}}}), &pod));
        assert!(covers(
            &json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
            &pod
        ));
        assert!(!covers(&json!({"spec": {}}), &pod));
    }
}
