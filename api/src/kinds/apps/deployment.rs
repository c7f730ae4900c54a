//! Deployments (SetDefaults_Deployment, ValidateDeployment, printDeployment).

use super::workload;
use crate::field::FieldError;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;
#[cfg(test)]
use serde_json::json;

/// SetDefaults_Deployment.
pub fn default(d: &mut Value) {
    let Some(spec) = object(d, "spec") else {
        return;
    };
    unset(spec, "replicas", 1);
    workload::default_template(spec);
    if let Some(strategy) = object(spec, "strategy") {
        zero(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object(strategy, "rollingUpdate")
        {
            unset(rolling, "maxUnavailable", "25%");
            unset(rolling, "maxSurge", "25%");
        }
    }
    unset(spec, "revisionHistoryLimit", 10);
    unset(spec, "progressDeadlineSeconds", 600);
}

/// ValidateDeployment.
fn validate(d: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(d, "spec");
    let path = Path::new("spec");
    non_negative(spec, "replicas", &path, &mut errs);
    workload::selector_and_template(spec, "deployment", &path, &mut errs);
    workload::always_restarts(
        at(spec, "template"),
        &path.child("template"),
        "ReplicaSet",
        &mut errs,
    );
    strategy_rules(at(spec, "strategy"), &path.child("strategy"), &mut errs);
    non_negative(spec, "minReadySeconds", &path, &mut errs);
    non_negative(spec, "revisionHistoryLimit", &path, &mut errs);
    if let Some(deadline) = int(spec, "progressDeadlineSeconds") {
        non_negative(spec, "progressDeadlineSeconds", &path, &mut errs);
        if deadline <= int0(spec, "minReadySeconds") {
            errs.push(FieldError::invalid(
                path.child("progressDeadlineSeconds"),
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }
    errs
}

fn strategy_rules(s: &Value, path: &Path<'_>, errs: &mut Errors) {
    let rolling = at(s, "rollingUpdate");
    let rp = path.child("rollingUpdate");
    match text(s, "type") {
        "Recreate" => {
            if !rolling.is_null() {
                errs.push(FieldError::forbidden(
                    rp,
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        "RollingUpdate" => {
            if rolling.is_null() {
                errs.push(FieldError::required(
                    rp,
                    "this should be defaulted and never be nil",
                ));
                return;
            }
            let (unavailable, surge) = (at(rolling, "maxUnavailable"), at(rolling, "maxSurge"));
            workload::int_or_percent(unavailable, &rp.child("maxUnavailable"), errs);
            workload::int_or_percent(surge, &rp.child("maxSurge"), errs);
            if workload::number(unavailable) == Some(0) && workload::number(surge) == Some(0) {
                errs.push(FieldError::invalid(
                    rp.child("maxUnavailable"),
                    unavailable.clone(),
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
            workload::at_most_100_percent(unavailable, &rp.child("maxUnavailable"), errs);
        }
        _ => one_of(s, "type", &["Recreate", "RollingUpdate"], path, errs),
    }
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
        prepare_create: workload::empty_status,
        validate,
        validate_update,
        warnings: workload::warnings,
        generation: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get deployments`.
pub fn columns() -> Vec<Column> {
    let mut list = vec![
        col_name(),
        col("Ready", 0, |d, _| {
            format!(
                "{}/{}",
                int0(d, "status.readyReplicas"),
                int0(d, "spec.replicas")
            )
            .into()
        }),
        col("Up-to-date", 0, |d, _| {
            int0(d, "status.updatedReplicas").into()
        }),
        col("Available", 0, |d, _| {
            int0(d, "status.availableReplicas").into()
        }),
        col_age(),
    ];
    list.extend(workload::template_columns());
    list.push(workload::selector_column());
    list
}

/// A deployment with nothing but what must be given; used by tests of several kinds.
#[cfg(test)]
pub fn minimal() -> Value {
    json!({
        "metadata": {"name": "web", "creationTimestamp": "2023-11-14T22:13:10Z"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "nginx:1"}]},
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut d = minimal();
        change(&mut d);
        default(&mut d);
        validate(&d).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_minimal_deployment_gets_upstreams_defaults_and_is_valid() {
        let mut d = minimal();
        default(&mut d);
        assert!(validate(&d).is_empty(), "{:?}", validate(&d));
        let spec = &d["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(spec["revisionHistoryLimit"], 10);
        assert_eq!(spec["progressDeadlineSeconds"], 600);
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            errors(|d| d["spec"]["selector"]["matchLabels"]["app"] = "other".into()),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"
            ]
        );
        assert_eq!(
            errors(|d| d["spec"]["template"]["spec"]["restartPolicy"] = "Never".into()),
            [
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""
            ]
        );
        assert_eq!(
            errors(|d| d["spec"]["strategy"] =
                json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}})),
            [
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"
            ]
        );
        assert_eq!(
            errors(|d| d["spec"]["replicas"] = json!(-1)),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
        assert_eq!(
            errors(|d| d["spec"] = json!({}))[0],
            "spec.selector: Required value"
        );
    }

    #[test]
    fn the_selector_does_not_change() {
        let old = minimal();
        let mut new = minimal();
        new["spec"]["selector"]["matchLabels"]["b"] = "c".into();
        assert!(
            validate_update(&new, &old)[0]
                .to_string()
                .ends_with("field is immutable")
        );
        assert!(validate_update(&old, &old).is_empty());
    }

    #[test]
    fn columns_show_counts() {
        let mut d = minimal();
        default(&mut d);
        d["status"] = json!({"readyReplicas": 1, "updatedReplicas": 1});
        assert_eq!(
            crate::kinds::tests::cells(&columns(), &d, 1_700_000_000),
            [
                json!("web"),
                json!("1/1"),
                json!(1),
                json!(0),
                json!("10s"),
                json!("c"),
                json!("nginx:1"),
                json!("app=web")
            ]
        );
    }
}
