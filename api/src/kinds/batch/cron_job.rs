//! Cron jobs (SetDefaults_CronJob, ValidateCronJob, printCronJob).

use super::{job, schedule};
use crate::field::FieldError;
use crate::kinds::apps::workload;
use crate::kinds::core::pod;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::{Value, json};

/// Names of cron jobs leave room for the 11 characters that job names add.
const MAX_NAME: usize = 52;

/// SetDefaults_CronJob. The job template's own defaults come when a job is made from it.
pub fn default(c: &mut Value) {
    let Some(spec) = object(c, "spec") else {
        return;
    };
    zero(spec, "concurrencyPolicy", "Allow");
    unset(spec, "suspend", false);
    unset(spec, "successfulJobsHistoryLimit", 3);
    unset(spec, "failedJobsHistoryLimit", 1);
    if let Some(s) = object(spec, "jobTemplate").and_then(|t| object(t, "spec")) {
        workload::default_template(s);
    }
}

fn validate(c: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(c, "spec");
    let path = Path::new("spec");
    let cron = text(spec, "schedule");
    if cron.is_empty() {
        errs.push(FieldError::required(path.child("schedule"), ""));
    } else if cron.contains("TZ") {
        errs.push(FieldError::invalid(
            path.child("schedule"),
            cron,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ));
    } else if let Err(why) = schedule::parse(cron) {
        errs.push(FieldError::invalid(path.child("schedule"), cron, why));
    }
    non_negative(spec, "startingDeadlineSeconds", &path, &mut errs);
    one_of(
        spec,
        "concurrencyPolicy",
        &["Allow", "Forbid", "Replace"],
        &path,
        &mut errs,
    );
    non_negative(spec, "successfulJobsHistoryLimit", &path, &mut errs);
    non_negative(spec, "failedJobsHistoryLimit", &path, &mut errs);
    if let Some(zone) = at(spec, "timeZone").as_str() {
        if zone.is_empty() {
            errs.push(FieldError::invalid(
                path.child("timeZone"),
                "",
                "timeZone must be nil or non-empty string",
            ));
        } else if zone.eq_ignore_ascii_case("local") {
            errs.push(FieldError::invalid(
                path.child("timeZone"),
                zone,
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ));
        } else if !check_zone(zone) {
            errs.push(FieldError::invalid(
                path.child("timeZone"),
                zone,
                format!("unknown time zone {zone}"),
            ));
        }
    }
    let tp = path.child("jobTemplate");
    let template = at(spec, "jobTemplate");
    let sp = tp.child("spec");
    if truth(template, "spec.manualSelector") {
        errs.push(FieldError::not_supported(
            sp.child("manualSelector"),
            true,
            &["nil", "false"],
        ));
    }
    if has(template, "spec.selector") {
        errs.push(FieldError::invalid(
            sp.child("selector"),
            at(template, "spec.selector").clone(),
            "`selector` will be auto-generated",
        ));
    }
    job::spec_rules(at(template, "spec"), &sp, &mut errs);
    let name = name(c);
    if name.len() > MAX_NAME {
        errs.push(FieldError::invalid(
            "metadata.name",
            name,
            format!("must be no more than {MAX_NAME} characters"),
        ));
    }
    errs
}

/// Is it a name of the time zone database? The machine's database is asked, as upstream does; a machine without one is
/// content with the form of the name.
fn check_zone(zone: &str) -> bool {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'.'))
    };
    zone.split('/').all(good)
        && (zone == "UTC"
            || jiff::tz::db().is_definitively_empty()
            || jiff::tz::TimeZone::get(zone).is_ok())
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, c| put(c, "status", json!({})),
        validate,
        warnings: |c| {
            let mut out = Vec::new();
            let path = "spec.jobTemplate.spec.template.spec";
            pod::template_warnings(at(c, path), path, &mut out);
            out
        },
        generation: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get cronjobs`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Schedule", 0, |c, _| text(c, "spec.schedule").into()),
        col("Timezone", 0, |c, _| {
            pod::or_none(text(c, "spec.timeZone")).into()
        }),
        col_bool("Suspend", 0, |c, _| {
            match at(c, "spec.suspend").as_bool() {
                Some(true) => "True",
                Some(false) => "False",
                None => "<unset>",
            }
            .into()
        }),
        col_int("Active", 0, |c, _| items(c, "status.active").len().into()),
        col("Last Schedule", 0, |c, now| {
            match text(c, "status.lastScheduleTime") {
                "" => "<none>".into(),
                t => age(t, now).into(),
            }
        }),
        col_age(),
        col("Containers", 1, |c, _| {
            workload::containers(at(c, "spec.jobTemplate.spec.template.spec")).into()
        }),
        col("Images", 1, |c, _| {
            workload::images(at(c, "spec.jobTemplate.spec.template.spec")).into()
        }),
        col("Selector", 1, |c, _| {
            workload::selector_text(at(c, "spec.jobTemplate.spec.selector")).into()
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_checked() {
        let mut c = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * *", "jobTemplate": {"spec": {"template":
            {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x:1"}]}}}}}});
        default(&mut c);
        assert_eq!(
            validate(&c)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            [
                "spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]"
            ]
        );
        c["spec"]["schedule"] = "*/5 * * * *".into();
        assert!(validate(&c).is_empty());
        assert_eq!(c["spec"]["concurrencyPolicy"], "Allow");
    }
}
