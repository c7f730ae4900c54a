//! Namespaces (pkg/registry/core/namespace, SetDefaults_Namespace). Deletion and finalization are the API server's work.

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Context, SelectableField, Strategy};
use serde_json::{Value, json};

/// SetDefaults_Namespace: the label that carries the name, and the phase.
pub fn default(ns: &mut Value) {
    let name = text(ns, "metadata.name").to_string();
    if !name.is_empty()
        && let Some(labels) = at_mut(ns, "metadata").and_then(|m| object(m, "labels"))
    {
        put(labels, "kubernetes.io/metadata.name", name);
    }
    if let Some(status) = object(ns, "status") {
        zero(status, "phase", "Active");
    }
}

fn prepare_create(_: &Context, ns: &mut Value) {
    put(ns, "status", json!({"phase": "Active"}));
    let Some(spec) = object(ns, "spec") else {
        return;
    };
    let mut list = items(spec, "finalizers").to_vec();
    if !list.iter().any(|f| f == "kubernetes") {
        list.push("kubernetes".into());
    }
    put(spec, "finalizers", list);
}

fn prepare_update(_: &Context, new: &mut Value, old: &Value) {
    // Finalizers of the spec change through finalize alone.
    match at(old, "spec").get("finalizers").cloned() {
        Some(f) => {
            if let Some(spec) = object(new, "spec") {
                put(spec, "finalizers", f);
            }
        }
        None => {
            if let Some(spec) = at_mut(new, "spec") {
                drop_key(spec, "finalizers");
            }
        }
    }
    carry(new, old, "status");
}

fn validate(ns: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let sp = Path::new("spec");
    let list = sp.child("finalizers");
    for (i, f) in items(ns, "spec.finalizers").iter().enumerate() {
        let f = f.as_str().unwrap_or("");
        check::qualified_name(f, &list.index(i), &mut errs);
        if !f.contains('/') && f != "kubernetes" && f != "orphan" {
            errs.push(FieldError::invalid(
                list.index(i),
                f,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        name: crate::names::name_is_dns_label,
        default,
        prepare_create,
        prepare_update,
        validate,
        ..Strategy::default()
    }
}

/// Fields of selectors.
pub fn fields() -> Vec<SelectableField> {
    vec![field("status.phase", |n| text(n, "status.phase").into())]
}

/// The columns of `kubectl get namespaces`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Status", 0, |n, _| text(n, "status.phase").into()),
        col_age(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_active_labelled_and_finalized_by_kubernetes() {
        let c = Context {
            now: String::new(),
            user: String::new(),
        };
        let mut ns = json!({"metadata": {"name": "a"}});
        default(&mut ns);
        prepare_create(&c, &mut ns);
        assert_eq!(
            ns,
            json!({
                "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
                "status": {"phase": "Active"}, "spec": {"finalizers": ["kubernetes"]},
            })
        );
        let mut update = json!({"metadata": {"name": "a"}, "spec": {}});
        prepare_update(&c, &mut update, &ns);
        assert_eq!(update["spec"], json!({"finalizers": ["kubernetes"]}));
    }
}
