//! Replication controllers (SetDefaults_ReplicationController, ValidateReplicationController).

use super::pod_validate;
use crate::field::FieldError;
use crate::kinds::apps::workload;
use crate::kinds::util::*;
use crate::resource::{Column, SelectableField, Strategy};
use serde_json::Value;

/// SetDefaults_ReplicationController: selector and labels follow the template's labels.
pub fn default(rc: &mut Value) {
    let template_labels = at(rc, "spec.template.metadata.labels").clone();
    if let Some(spec) = object(rc, "spec") {
        unset(spec, "replicas", 1);
        // Here the template is a pointer upstream: it stays away when it is not given.
        if has(spec, "template") {
            workload::default_template(spec);
        }
        if !is_empty(&template_labels) && is_empty(at(spec, "selector")) {
            put(spec, "selector", template_labels.clone());
        }
    }
    if !is_empty(&template_labels)
        && is_empty(at(rc, "metadata.labels"))
        && let Some(m) = at_mut(rc, "metadata")
    {
        put(m, "labels", template_labels);
    }
}

fn validate(rc: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(rc, "spec");
    let path = Path::new("spec");
    non_negative(spec, "minReadySeconds", &path, &mut errs);
    let selector = at(spec, "selector");
    if is_empty(selector) {
        errs.push(FieldError::required(path.child("selector"), ""));
    }
    non_negative(spec, "replicas", &path, &mut errs);
    let template = at(spec, "template");
    let tp = path.child("template");
    if template.is_null() {
        errs.push(FieldError::required(tp, ""));
        return errs;
    }
    let labels = at(template, "metadata.labels");
    if !is_empty(selector)
        && !entries(spec, "selector").all(|(k, v)| labels.get(k.as_str()) == Some(v))
    {
        let mp = tp.child("metadata");
        errs.push(FieldError::invalid(
            mp.child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    pod_validate::template(template, &tp, &mut errs);
    workload::always_restarts(template, &tp, "ReplicationController", &mut errs);
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: workload::zero_status,
        validate,
        generation: true,
        ..Strategy::default()
    }
}

/// Fields of selectors.
pub fn fields() -> Vec<SelectableField> {
    vec![field("status.replicas", |r| {
        int0(r, "status.replicas").to_string()
    })]
}

/// The columns of `kubectl get replicationcontrollers`.
pub fn columns() -> Vec<Column> {
    let mut list = vec![
        col_name(),
        col_int("Desired", 0, |r, _| int0(r, "spec.replicas").into()),
        col_int("Current", 0, |r, _| int0(r, "status.replicas").into()),
        col_int("Ready", 0, |r, _| int0(r, "status.readyReplicas").into()),
        col_age(),
    ];
    list.extend(workload::template_columns());
    list.push(col("Selector", 1, |r, _| {
        labels(at(r, "spec.selector")).into()
    }));
    list
}
