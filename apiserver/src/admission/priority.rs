//! Priority: gives pods the number of their priority class, and keeps the default class unique. Reads priority classes.

use super::{find, list, text};
use crate::{App, Operation, Write};
use serde_json::{Value, json};
use skiff_api::status::Status;

const CLASSES: &str = "scheduling.k8s.io/priorityclasses";

/// Sets `spec.priority`, `spec.preemptionPolicy` and, from the default class, `spec.priorityClassName` of new pods.
///
/// # Errors
/// 403 when the class is missing or the pod gives another number.
pub fn admit(app: &App, write: &mut Write<'_>) -> Result<(), Status> {
    if write.operation != Operation::Create || !super::is(write, "", "pods") {
        return Ok(());
    }
    let name = text(&write.object, &["spec", "priorityClassName"]).to_string();
    let (name, value, policy) = if name.is_empty() {
        match default_class(app) {
            Some(c) => (
                text(&c, &["metadata", "name"]).to_string(),
                number(&c),
                policy(&c),
            ),
            None => (String::new(), 0, None),
        }
    } else {
        let Some(c) = find(app, CLASSES, "", &name) else {
            return Err(super::forbidden(
                write,
                &format!("no PriorityClass with name {name} was found"),
            ));
        };
        (name, number(&c), policy(&c))
    };
    let given = write.object["spec"]["priority"].as_i64();
    if let Some(given) = given.filter(|g| *g != value) {
        return Err(super::forbidden(
            write,
            &format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            ),
        ));
    }
    let policy = policy.unwrap_or_else(|| "PreemptLowerPriority".into());
    let asked = text(&write.object, &["spec", "preemptionPolicy"]);
    if !asked.is_empty() && asked != policy {
        return Err(super::forbidden(
            write,
            &format!(
                "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            ),
        ));
    }
    if let Some(spec) = write.object.get_mut("spec").and_then(Value::as_object_mut) {
        if !name.is_empty() {
            spec.insert("priorityClassName".into(), name.into());
        }
        spec.insert("priority".into(), json!(value));
        spec.insert("preemptionPolicy".into(), policy.into());
    }
    Ok(())
}

fn number(class: &Value) -> i64 {
    class["value"].as_i64().unwrap_or(0)
}

fn policy(class: &Value) -> Option<String> {
    class["preemptionPolicy"].as_str().map(String::from)
}

/// The default class; of several the one with the lowest value, as upstream.
fn default_class(app: &App) -> Option<Value> {
    list(app, CLASSES, "")
        .into_iter()
        .filter(|c| c["globalDefault"] == true)
        .min_by_key(number)
}

/// Refuses a second default class.
///
/// # Errors
/// 403.
pub fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    if write.operation == Operation::Delete
        || !super::is(write, "scheduling.k8s.io", "priorityclasses")
    {
        return Ok(());
    }
    if write.object["globalDefault"] != true {
        return Ok(());
    }
    match default_class(app) {
        Some(c) if text(&c, &["metadata", "name"]) != write.name => Err(super::forbidden(
            write,
            &format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                text(&c, &["metadata", "name"])
            ),
        )),
        _ => Ok(()),
    }
}
