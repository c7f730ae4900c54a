//! Stateful sets (SetDefaults_StatefulSet, ValidateStatefulSet and its update rules, printStatefulSet).

use super::workload;
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::core::persistent_volume_claim as claim;
use crate::kinds::util::*;
use crate::resource::{Column, Context, Strategy};
use serde_json::{Value, json};

/// SetDefaults_StatefulSet.
pub fn default(s: &mut Value) {
    let Some(spec) = object(s, "spec") else {
        return;
    };
    zero(spec, "podManagementPolicy", "OrderedReady");
    if let Some(update) = object(spec, "updateStrategy") {
        if text(update, "type").is_empty() {
            zero(update, "type", "RollingUpdate");
            unset(update, "rollingUpdate", json!({}));
        }
        if text(update, "type") == "RollingUpdate"
            && let Some(rolling) = at_mut(update, "rollingUpdate")
        {
            unset(rolling, "partition", 0);
        }
    }
    if let Some(retention) = object(spec, "persistentVolumeClaimRetentionPolicy") {
        zero(retention, "whenDeleted", "Retain");
        zero(retention, "whenScaled", "Retain");
    }
    unset(spec, "replicas", 1);
    unset(spec, "revisionHistoryLimit", 10);
    workload::default_template(spec);
    for t in items_mut(spec, "volumeClaimTemplates") {
        zero(t, "apiVersion", "v1");
        zero(t, "kind", "PersistentVolumeClaim");
        claim::default(t);
    }
}

fn prepare_create(_: &Context, s: &mut Value) {
    put(s, "status", json!({"replicas": 0, "availableReplicas": 0}));
}

fn validate(s: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(s, "spec");
    let path = Path::new("spec");
    match text(spec, "podManagementPolicy") {
        "" => errs.push(FieldError::required(path.child("podManagementPolicy"), "")),
        "OrderedReady" | "Parallel" => {}
        other => errs.push(FieldError::invalid(
            path.child("podManagementPolicy"),
            other,
            "must be 'OrderedReady' or 'Parallel'",
        )),
    }
    let up = path.child("updateStrategy");
    let rolling = at(spec, "updateStrategy.rollingUpdate");
    match text(spec, "updateStrategy.type") {
        "" => errs.push(FieldError::required(up, "")),
        "OnDelete" => {
            if !rolling.is_null() {
                errs.push(FieldError::invalid(
                    up.child("rollingUpdate"),
                    rolling.clone(),
                    "only allowed for updateStrategy 'RollingUpdate'",
                ));
            }
        }
        "RollingUpdate" => {
            let rp = up.child("rollingUpdate");
            non_negative(rolling, "partition", &rp, &mut errs);
            workload::int_or_percent(
                at(rolling, "maxUnavailable"),
                &rp.child("maxUnavailable"),
                &mut errs,
            );
        }
        other => errs.push(FieldError::invalid(
            up,
            json!({"type": other}),
            "must be 'RollingUpdate' or 'OnDelete'",
        )),
    }
    let cp = path.child("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        one_of(
            at(spec, "persistentVolumeClaimRetentionPolicy"),
            key,
            &["Delete", "Retain"],
            &cp,
            &mut errs,
        );
    }
    non_negative(spec, "replicas", &path, &mut errs);
    non_negative(spec, "minReadySeconds", &path, &mut errs);
    non_negative(spec, "revisionHistoryLimit", &path, &mut errs);
    non_negative(
        at(spec, "ordinals"),
        "start",
        &path.child("ordinals"),
        &mut errs,
    );
    let service = text(spec, "serviceName");
    if !service.is_empty() {
        check::dns1035_label(service, &path.child("serviceName"), &mut errs);
    }
    // The pods get a volume for each claim template: mounts may name those.
    let mut with_claims = spec.clone();
    if let Some(pod) = at_mut(&mut with_claims, "template.spec") {
        let mut volumes = items(pod, "volumes").to_vec();
        for t in items(spec, "volumeClaimTemplates") {
            volumes.retain(|v| text(v, "name") != name(t));
            volumes.push(json!({"name": name(t), "persistentVolumeClaim": {"claimName": name(t)}}));
        }
        put(pod, "volumes", volumes);
    }
    workload::selector_and_template(&with_claims, "statefulset", &path, &mut errs);
    workload::always_restarts(
        at(spec, "template"),
        &path.child("template"),
        "StatefulSet",
        &mut errs,
    );
    errs
}

/// Fields of the spec that may change.
const MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut munged = at(new, "spec").clone();
    for key in MUTABLE {
        carry(&mut munged, at(old, "spec"), key);
    }
    if equal(&munged, at(old, "spec")) {
        return Vec::new();
    }
    vec![FieldError::forbidden(
        "spec",
        "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
    )]
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

/// The columns of `kubectl get statefulsets`.
pub fn columns() -> Vec<Column> {
    let mut list = vec![
        col_name(),
        col("Ready", 0, |s, _| {
            format!(
                "{}/{}",
                int0(s, "status.readyReplicas"),
                int0(s, "spec.replicas")
            )
            .into()
        }),
        col_age(),
    ];
    list.extend(workload::template_columns());
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::apps::deployment;

    #[test]
    fn defaults_and_update_rules_are_upstreams() {
        let mut s = deployment::minimal();
        s["spec"]["serviceName"] = "web".into();
        s["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
        s["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/d"}]);
        default(&mut s);
        assert!(validate(&s).is_empty(), "{:?}", validate(&s));
        assert_eq!(
            s["spec"]["updateStrategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
        );
        assert_eq!(
            s["spec"]["persistentVolumeClaimRetentionPolicy"],
            json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
        );
        let mut new = s.clone();
        new["spec"]["replicas"] = 3.into();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = "nginx:2".into();
        assert!(validate_update(&new, &s).is_empty());
        new["spec"]["serviceName"] = "other".into();
        assert_eq!(validate_update(&new, &s).len(), 1);
    }
}
