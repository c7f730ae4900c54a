//! Jobs (SetDefaults_Job, the job strategy's generated selector, ValidateJob and its update rules, printJob).

use crate::field::FieldError;
use crate::kinds::apps::workload;
use crate::kinds::check;
use crate::kinds::core::{pod, pod_validate};
use crate::kinds::util::*;
use crate::resource::{Column, Context, SelectableField, Strategy};
use serde_json::{Value, json};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const UID_LABEL_OLD: &str = "controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
const NAME_LABEL_OLD: &str = "job-name";

/// SetDefaults_Job.
pub fn default(job: &mut Value) {
    if let Some(spec) = object(job, "spec") {
        if !has(spec, "completions") && !has(spec, "parallelism") {
            unset(spec, "completions", 1);
        }
        unset(spec, "parallelism", 1);
        let limit = if has(spec, "backoffLimitPerIndex") {
            i64::from(i32::MAX)
        } else {
            6
        };
        unset(spec, "backoffLimit", limit);
        unset(spec, "completionMode", "NonIndexed");
        unset(spec, "suspend", false);
        unset(spec, "manualSelector", false);
        let replacement = if has(spec, "podFailurePolicy") {
            "Failed"
        } else {
            "TerminatingOrFailed"
        };
        unset(spec, "podReplacementPolicy", replacement);
        for rule in items_mut(spec, "podFailurePolicy.rules") {
            for c in items_mut(rule, "onPodConditions") {
                zero(c, "status", "True");
            }
        }
        workload::default_template(spec);
    }
    labels_from_template(job);
}

/// A job without labels has those of its template.
fn labels_from_template(job: &mut Value) {
    let template = at(job, "spec.template.metadata.labels").clone();
    if !is_empty(&template)
        && is_empty(at(job, "metadata.labels"))
        && let Some(m) = at_mut(job, "metadata")
    {
        put(m, "labels", template);
    }
}

/// Empties the status and, unless the user brings a selector, labels the pods with the job's uid and selects on that.
/// The registry has given uid and name before.
fn prepare_create(c: &Context, job: &mut Value) {
    workload::empty_status(c, job);
    if truth(job, "spec.manualSelector") {
        return;
    }
    let uid = text(job, "metadata.uid").to_string();
    let name = name(job).to_string();
    let Some(spec) = at_mut(job, "spec") else {
        return;
    };
    if let Some(labels) = object(spec, "template")
        .and_then(|t| object(t, "metadata"))
        .and_then(|m| object(m, "labels"))
    {
        for (k, v) in [
            (UID_LABEL, &uid),
            (UID_LABEL_OLD, &uid),
            (NAME_LABEL, &name),
            (NAME_LABEL_OLD, &name),
        ] {
            unset(labels, k, v.as_str());
        }
    }
    if let Some(labels) = object(spec, "selector").and_then(|s| object(s, "matchLabels")) {
        unset(labels, UID_LABEL, uid.as_str());
    }
    // Upstream defaults again when the object is read back: that is where such jobs get their labels from.
    labels_from_template(job);
}

/// ValidateJobSpec without the selector (cron jobs have none yet).
pub fn spec_rules(spec: &Value, path: &Path<'_>, errs: &mut Errors) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(spec, key, path, errs);
    }
    let indexed = text(spec, "completionMode") == "Indexed";
    if let Some(mode) = at(spec, "completionMode").as_str()
        && !matches!(mode, "Indexed" | "NonIndexed")
    {
        errs.push(FieldError::not_supported(
            path.child("completionMode"),
            mode,
            &["NonIndexed", "Indexed"],
        ));
    }
    if indexed {
        match int(spec, "completions") {
            None => errs.push(FieldError::required(
                path.child("completions"),
                "when completion mode is Indexed",
            )),
            Some(n) if n > 0 && int0(spec, "parallelism") > 100_000 => {
                errs.push(FieldError::invalid(
                    path.child("parallelism"),
                    int0(spec, "parallelism"),
                    "must be less than or equal to 100000 when completion mode is Indexed",
                ))
            }
            Some(_) => {}
        }
    }
    for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
        if has(spec, key) && !indexed {
            errs.push(FieldError::invalid(
                path.child(key),
                int0(spec, key),
                "requires indexed completion mode",
            ));
        }
    }
    one_of(
        spec,
        "podReplacementPolicy",
        &["Failed", "TerminatingOrFailed"],
        path,
        errs,
    );
    let tp = path.child("template");
    let template = at(spec, "template");
    if has(spec, "podFailurePolicy") {
        let pp = path.child("podFailurePolicy");
        if text(template, "spec.restartPolicy") != "Never" {
            errs.push(FieldError::invalid(
                pp,
                text(template, "spec.restartPolicy"),
                "only \"Never\" restart policy is supported when podFailurePolicy is specified",
            ));
        }
        let rp = pp.child("rules");
        for (i, rule) in items(spec, "podFailurePolicy.rules").iter().enumerate() {
            let ip = rp.index(i);
            require(rule, "action", &ip, errs);
            one_of(
                rule,
                "action",
                &["Count", "FailIndex", "FailJob", "Ignore"],
                &ip,
                errs,
            );
            let exits = has(rule, "onExitCodes");
            if exits && !is_empty(at(rule, "onPodConditions")) {
                errs.push(FieldError::invalid(
                    ip,
                    Value::Null,
                    "specifying both OnExitCodes and OnPodConditions is not supported",
                ));
            }
            if !exits && is_empty(at(rule, "onPodConditions")) {
                errs.push(FieldError::invalid(
                    ip,
                    Value::Null,
                    "specifying one of OnExitCodes and OnPodConditions is required",
                ));
            }
            if exits {
                let ep = ip.child("onExitCodes");
                one_of(
                    at(rule, "onExitCodes"),
                    "operator",
                    &["In", "NotIn"],
                    &ep,
                    errs,
                );
                if items(rule, "onExitCodes.values").is_empty() {
                    errs.push(FieldError::invalid(
                        ep.child("values"),
                        json!([]),
                        "at least one value is required",
                    ));
                }
            }
        }
    }
    pod_validate::template(template, &tp, errs);
    if !matches!(text(template, "spec.restartPolicy"), "OnFailure" | "Never") {
        errs.push(FieldError::required(
            tp.child("spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        ));
    }
}

fn validate(job: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(job, "spec");
    let path = Path::new("spec");
    let selector = at(spec, "selector");
    let sp = path.child("selector");
    if !truth(spec, "manualSelector") && !selector.is_null() {
        let uid = text(job, "metadata.uid");
        let only_uid = entries(selector, "matchLabels").count() == 1
            && is_empty(at(selector, "matchExpressions"));
        let labels = at(selector, "matchLabels");
        let value = labels
            .get(UID_LABEL)
            .or_else(|| labels.get(UID_LABEL_OLD))
            .and_then(Value::as_str);
        let generated = only_uid && value == Some(uid);
        if !uid.is_empty() && !generated {
            errs.push(FieldError::invalid(
                sp,
                selector.clone(),
                "`selector` not auto-generated",
            ));
        }
    }
    if selector.is_null() {
        errs.push(FieldError::required(sp, ""));
    } else {
        check::label_selector(selector, &sp, &mut errs);
        let labels = at(spec, "template.metadata.labels");
        if !check::selector_matches(selector, labels) {
            errs.push(FieldError::invalid(
                path.child("template.metadata.labels"),
                labels.clone(),
                "`selector` does not match template `labels`",
            ));
        }
    }
    spec_rules(spec, &path, &mut errs);
    errs
}

/// ValidateJobSpecUpdate: the template may change only in what steers scheduling, and only while the job is suspended and
/// has not started.
fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let (ns, os) = (at(new, "spec"), at(old, "spec"));
    let path = Path::new("spec");
    let elastic =
        text(ns, "completionMode") == "Indexed" && int(ns, "completions") == int(ns, "parallelism");
    if !(elastic && has(os, "completions")) {
        immutable(ns, os, "completions", &path, &mut errs);
    }
    immutable(ns, os, "selector", &path, &mut errs);
    let mut template = at(ns, "template").clone();
    let old_template = at(os, "template");
    if truth(os, "suspend") && !has(old, "status.startTime") {
        if let Some(spec) = at_mut(&mut template, "spec") {
            for key in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                carry(spec, at(old_template, "spec"), key);
            }
        }
        if let Some(meta) = at_mut(&mut template, "metadata") {
            for key in ["annotations", "labels"] {
                carry(meta, at(old_template, "metadata"), key);
            }
        }
    }
    if !equal(&template, old_template) {
        errs.push(FieldError::invalid(
            path.child("template"),
            at(ns, "template").clone(),
            "field is immutable",
        ));
    }
    for key in [
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(ns, os, key, &path, &mut errs);
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create,
        validate,
        validate_update,
        warnings: |job| {
            let mut out = Vec::new();
            pod::template_warnings(
                at(job, "spec.template.spec"),
                "spec.template.spec",
                &mut out,
            );
            out
        },
        generation: true,
        ..Strategy::default()
    }
}

/// Fields of selectors.
pub fn fields() -> Vec<SelectableField> {
    vec![field("status.successful", |j| {
        int0(j, "status.succeeded").to_string()
    })]
}

fn state(job: &Value) -> &'static str {
    let is = |kind: &str| {
        items(job, "status.conditions")
            .iter()
            .any(|c| text(c, "type") == kind && text(c, "status") == "True")
    };
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if has(job, "metadata.deletionTimestamp") {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// The columns of `kubectl get jobs`.
pub fn columns() -> Vec<Column> {
    let mut list = vec![
        col_name(),
        col("Status", 0, |j, _| state(j).into()),
        col("Completions", 0, |j, _| {
            let done = int0(j, "status.succeeded");
            match (int(j, "spec.completions"), int0(j, "spec.parallelism")) {
                (Some(n), _) => format!("{done}/{n}"),
                (None, p) if p > 1 => format!("{done}/1 of {p}"),
                _ => format!("{done}/1"),
            }
            .into()
        }),
        col("Duration", 0, |j, now| {
            let Some(start) = check::time(text(j, "status.startTime")) else {
                return "".into();
            };
            let end = check::time(text(j, "status.completionTime")).unwrap_or(now);
            check::human_duration(end - start).into()
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

    fn created() -> Value {
        let c = Context {
            now: String::new(),
            user: String::new(),
        };
        let mut job = json!({
            "metadata": {"name": "pi", "uid": "u-1", "creationTimestamp": "2023-11-14T22:13:10Z"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "perl:5"}]}}},
        });
        default(&mut job);
        prepare_create(&c, &mut job);
        job
    }

    #[test]
    fn a_minimal_job_gets_defaults_labels_and_a_selector() {
        let job = created();
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}})
        );
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"]["job-name"],
            "pi"
        );
        assert_eq!(job["spec"]["completions"], 1);
        assert_eq!(job["spec"]["backoffLimit"], 6);
        assert_eq!(job["spec"]["podReplacementPolicy"], "TerminatingOrFailed");
        assert!(validate(&job).is_empty(), "{:?}", validate(&job));
    }

    #[test]
    fn a_job_cannot_restart_always_and_its_template_stays() {
        let mut job = created();
        job["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        assert_eq!(
            validate(&job)[0].to_string(),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        );
        assert_eq!(validate_update(&job, &created())[0].field, "spec.template");
        let mut more = created();
        more["spec"]["parallelism"] = 3.into();
        assert!(validate_update(&more, &created()).is_empty());
    }

    #[test]
    fn columns_show_state_and_duration() {
        let mut job = created();
        job["status"] = json!({"startTime": "2023-11-14T22:13:10Z", "completionTime": "2023-11-14T22:13:15Z",
            "succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]});
        assert_eq!(
            crate::kinds::tests::cells(&columns(), &job, 1_700_000_000)[..5],
            ["pi", "Complete", "1/1", "5s", "10s"]
        );
    }
}
