//! PodSecurity: a namespace's labels say which Pod Security Standard its pods must meet, and which one a client is told of.
//! Owns who is asked about and when (upstream's pod-security-admission/admission); the standards are
//! `skiff_api::pod_security`'s. There are no exemptions, and an unlabelled namespace allows everything, as upstream's defaults.

use super::{find, text};
use crate::{App, Operation, Write};
use serde_json::Value;
use skiff_api::field::FieldError;
use skiff_api::pod_security::{self as standards, Level, PREFIX, Policies, Policy};
use skiff_api::status::Status;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How many pods of a namespace are looked at, and for how long, when its labels become stricter.
const MAX_PODS: usize = 3000;
const MAX_TIME: Duration = Duration::from_secs(1);

/// Where kinds that make pods have the pod's template.
const TEMPLATES: [(&str, &str); 8] = [
    ("apps/daemonsets", "/spec/template"),
    ("apps/deployments", "/spec/template"),
    ("apps/replicasets", "/spec/template"),
    ("apps/statefulsets", "/spec/template"),
    ("batch/cronjobs", "/spec/jobTemplate/spec/template"),
    ("batch/jobs", "/spec/template"),
    ("core/podtemplates", "/template"),
    ("core/replicationcontrollers", "/spec/template"),
];

/// Refuses pods that their namespace does not allow and labels that mean nothing; warns of templates whose pods would be
/// refused and of pods that are there already.
///
/// # Errors
/// 403 naming what breaks the namespace's standard; 422 for labels.
pub fn validate(app: &App, write: &Write<'_>, warnings: &mut Vec<String>) -> Result<(), Status> {
    if !matches!(write.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let storage = write.row.storage.as_ref();
    match storage {
        "core/namespaces" if write.subresource.is_empty() => {
            return namespace(app, write, warnings);
        }
        "core/pods" => {
            // Of the pod's parts that are written apart, these two change what its containers are.
            let part = matches!(write.subresource, "" | "ephemeralcontainers" | "resize");
            if !part || unchanged(write) {
                return Ok(());
            }
        }
        _ if !write.subresource.is_empty() => return Ok(()),
        _ => {}
    }
    let template = TEMPLATES.iter().find(|(kind, _)| *kind == storage);
    if storage != "core/pods" && template.is_none() {
        return Ok(());
    }
    let policies = of_namespace(app, write.namespace);
    let warn = |metadata: &Value, spec: &Value, warnings: &mut Vec<String>| {
        let broken = standards::violations(policies.warn, metadata, spec);
        if !broken.is_empty() {
            warnings.push(format!(
                "would violate PodSecurity {:?}: {}",
                policies.warn.to_string(),
                standards::shown(&broken)
            ));
        }
    };
    if let Some((_, path)) = template {
        if let Some(pod) = write.object.pointer(path) {
            warn(&pod["metadata"], &pod["spec"], warnings);
        }
        return Ok(());
    }
    let (metadata, spec) = (&write.object["metadata"], &write.object["spec"]);
    let broken = standards::violations(policies.enforce, metadata, spec);
    if !broken.is_empty() {
        let why = format!(
            "violates PodSecurity {:?}: {}",
            policies.enforce.to_string(),
            standards::shown(&broken)
        );
        return Err(super::forbidden(write, &why));
    }
    warn(metadata, spec, warnings);
    Ok(())
}

/// An update that leaves alone what the standards look at: a pod that was let in earlier must still be finalized, labelled
/// and so on.
fn unchanged(write: &Write<'_>) -> bool {
    let Some(old) = &write.old else { return false };
    let annotations = |v: &Value| -> BTreeMap<String, Value> {
        v.pointer("/metadata/annotations")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter(|(k, _)| k.starts_with("container.apparmor.security.beta.kubernetes.io/"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    write.object["spec"] == old["spec"] && annotations(&write.object) == annotations(old)
}

/// The policies of a namespace that is there; its labels are kept beside it, so that nothing is decoded.
fn of_namespace(app: &App, name: &str) -> Policies {
    let entry = app.store.get(&format!("/core/namespaces/{name}"));
    standards::policies(|k| entry.as_ref().and_then(|e| e.attributes.label(k))).0
}

fn of_object(object: &Value) -> (Policies, Vec<FieldError>) {
    let labels = object.pointer("/metadata/labels");
    standards::policies(|k| labels?.get(k)?.as_str())
}

fn labels(object: &Value) -> BTreeMap<&String, &Value> {
    object
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(k, _)| k.starts_with(PREFIX))
        .collect()
}

fn namespace(app: &App, write: &Write<'_>, warnings: &mut Vec<String>) -> Result<(), Status> {
    let now = labels(&write.object);
    if write.old.as_ref().is_some_and(|o| labels(o) == now) || now.is_empty() {
        return Ok(());
    }
    let (policies, errors) = of_object(&write.object);
    let name = text(&write.object, &["metadata", "name"]);
    if !errors.is_empty() {
        return Err(Status::invalid("", "Namespace", name, &errors));
    }
    if policies.audit.level > Level::Privileged {
        warnings.push(format!(
            "{PREFIX}audit: there is no audit log yet: what breaks this level is not recorded"
        ));
    }
    let before = write.old.as_ref().map(|o| of_object(o).0.enforce);
    if before.is_some_and(|b| b != policies.enforce && policies.enforce.level >= b.level) {
        warnings.extend(existing(app, name, policies.enforce));
    }
    Ok(())
}

/// What the pods that are there break of a policy; pods with the same owner and the same faults are one line.
fn existing(app: &App, namespace: &str, policy: Policy) -> Vec<String> {
    if policy.level == Level::Privileged {
        return Vec::new();
    }
    let prefix = format!("/core/pods/{namespace}/");
    let page = app.store.range(&crate::store::Range {
        prefix: &prefix,
        limit: MAX_PODS,
        ..Default::default()
    });
    let begun = Instant::now();
    let mut lines: BTreeMap<(String, String), (String, usize)> = BTreeMap::new();
    for entry in page.map(|p| p.entries).unwrap_or_default() {
        if begun.elapsed() > MAX_TIME {
            break;
        }
        let Some(pod) = find(app, "core/pods", namespace, entry.name()) else {
            continue;
        };
        let broken = standards::violations(policy, &pod["metadata"], &pod["spec"]);
        if broken.is_empty() {
            continue;
        }
        let reasons: Vec<&str> = broken.iter().map(|v| v.reason).collect();
        let owner = skiff_api::meta::controller(&pod)
            .map_or_else(|| entry.name().to_string(), |o| text(o, &["uid"]).into());
        lines
            .entry((owner, reasons.join(", ")))
            .or_insert_with(|| (entry.name().to_string(), 0))
            .1 += 1;
    }
    if lines.is_empty() {
        return Vec::new();
    }
    let mut out = vec![format!(
        "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {:?}",
        policy.to_string()
    )];
    let mut pods: Vec<String> = lines
        .into_iter()
        .map(|((_, reasons), (pod, n))| match n {
            1 => format!("{pod}: {reasons}"),
            2 => format!("{pod} (and 1 other pod): {reasons}"),
            n => format!("{pod} (and {} other pods): {reasons}", n - 1),
        })
        .collect();
    pods.sort();
    out.extend(pods);
    out
}
