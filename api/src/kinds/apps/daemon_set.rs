//! Daemon sets (SetDefaults_DaemonSet, ValidateDaemonSet, printDaemonSet).

use super::workload;
use crate::field::FieldError;
use crate::kinds::util::*;
use crate::resource::{Column, Context, Strategy};
use serde_json::{Value, json};

/// SetDefaults_DaemonSet.
pub fn default(ds: &mut Value) {
    let Some(spec) = object(ds, "spec") else {
        return;
    };
    workload::default_template(spec);
    if let Some(update) = object(spec, "updateStrategy") {
        zero(update, "type", "RollingUpdate");
        if text(update, "type") == "RollingUpdate"
            && let Some(rolling) = object(update, "rollingUpdate")
        {
            unset(rolling, "maxUnavailable", 1);
            unset(rolling, "maxSurge", 0);
        }
    }
    unset(spec, "revisionHistoryLimit", 10);
}

fn prepare_create(_: &Context, ds: &mut Value) {
    let status = json!({
        "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
    });
    put(ds, "status", status);
}

fn validate(ds: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(ds, "spec");
    let path = Path::new("spec");
    workload::selector_and_template(spec, "daemonset", &path, &mut errs);
    workload::always_restarts(
        at(spec, "template"),
        &path.child("template"),
        "DaemonSet",
        &mut errs,
    );
    non_negative(spec, "minReadySeconds", &path, &mut errs);
    let up = path.child("updateStrategy");
    let update = at(spec, "updateStrategy");
    match text(update, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = at(update, "rollingUpdate");
            let rp = up.child("rollingUpdate");
            if rolling.is_null() {
                errs.push(FieldError::required(rp, ""));
            } else {
                let (unavailable, surge) = (at(rolling, "maxUnavailable"), at(rolling, "maxSurge"));
                workload::int_or_percent(unavailable, &rp.child("maxUnavailable"), &mut errs);
                workload::int_or_percent(surge, &rp.child("maxSurge"), &mut errs);
                workload::at_most_100_percent(unavailable, &rp.child("maxUnavailable"), &mut errs);
                workload::at_most_100_percent(surge, &rp.child("maxSurge"), &mut errs);
                let some = |v: &Value| workload::number(v).is_some_and(|n| n != 0);
                if some(unavailable) && some(surge) {
                    errs.push(FieldError::invalid(
                        rp.child("maxSurge"),
                        surge.clone(),
                        "may not be set when maxUnavailable is non-zero",
                    ));
                } else if !some(unavailable) && !some(surge) {
                    errs.push(FieldError::required(
                        rp.child("maxUnavailable"),
                        "cannot be 0 when maxSurge is 0",
                    ));
                }
            }
        }
        other => errs.push(FieldError::not_supported(
            up.child("type"),
            other,
            &["RollingUpdate", "OnDelete"],
        )),
    }
    non_negative(spec, "revisionHistoryLimit", &path, &mut errs);
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    immutable(
        at(new, "spec"),
        at(old, "spec"),
        "selector",
        &Path::new("spec"),
        &mut errs,
    );
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create,
        validate,
        validate_update,
        warnings: workload::warnings,
        generation: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get daemonsets`.
pub fn columns() -> Vec<Column> {
    let mut list = vec![
        col_name(),
        col_int("Desired", 0, |d, _| {
            int0(d, "status.desiredNumberScheduled").into()
        }),
        col_int("Current", 0, |d, _| {
            int0(d, "status.currentNumberScheduled").into()
        }),
        col_int("Ready", 0, |d, _| int0(d, "status.numberReady").into()),
        col_int("Up-to-date", 0, |d, _| {
            int0(d, "status.updatedNumberScheduled").into()
        }),
        col_int("Available", 0, |d, _| {
            int0(d, "status.numberAvailable").into()
        }),
        col("Node Selector", 0, |d, _| {
            labels(at(d, "spec.template.spec.nodeSelector")).into()
        }),
        col_age(),
    ];
    list.extend(workload::template_columns());
    list.push(workload::selector_column());
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::apps::deployment;

    #[test]
    fn surge_and_unavailable_exclude_each_other() {
        let mut ds = deployment::minimal();
        default(&mut ds);
        assert!(validate(&ds).is_empty(), "{:?}", validate(&ds));
        ds["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] = 1.into();
        assert_eq!(
            validate(&ds)[0].to_string(),
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"
        );
    }
}
