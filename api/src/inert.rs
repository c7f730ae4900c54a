//! What is accepted and does nothing yet: one table of kinds and one of fields, with the sentence that a client is told in a
//! `Warning:` header. Whoever makes a line untrue removes it. Pure; knows no HTTP.

use crate::resource::Resource;
use serde_json::Value;

/// Kinds that nothing acts on, by `group/plural` as they are stored.
const KINDS: &[(&str, &str)] = &[
    (
        "autoscaling/horizontalpodautoscalers",
        "nothing scales by a HorizontalPodAutoscaler yet: it is stored and has no effect",
    ),
    (
        "core/endpoints",
        "Endpoints are not mirrored to EndpointSlices yet: those of a Service without a selector have no effect; create EndpointSlices",
    ),
    (
        "core/persistentvolumeclaims",
        "claims are not bound or provisioned yet: unless something else binds it, pods that use this claim do not start",
    ),
    (
        "core/persistentvolumes",
        "persistent volumes are not bound, provisioned or reclaimed yet: this volume is stored and nothing gives it to a claim",
    ),
    (
        "core/podtemplates",
        "nothing acts on a PodTemplate: it is stored and has no effect",
    ),
    (
        "networking.k8s.io/ingresses",
        "no ingress controller is built in yet: an Ingress has no effect unless one is installed in the cluster",
    ),
    (
        "networking.k8s.io/networkpolicies",
        "network policies are not enforced yet: this one is stored and traffic is not restricted by it",
    ),
    (
        "storage.k8s.io/csidrivers",
        "CSI drivers are not supported yet: this object has no effect",
    ),
    (
        "storage.k8s.io/storageclasses",
        "volumes are not provisioned yet: a StorageClass has no effect unless a provisioner is installed in the cluster",
    ),
    (
        "storage.k8s.io/volumeattachments",
        "volumes are not attached yet: this object has no effect",
    ),
];

/// When a field's line holds.
enum When {
    /// It is there and not empty.
    Given,
    /// It has this value.
    Is(&'static str),
}
use When::{Given, Is};

/// Fields that nothing acts on: stored kind, path (`[]` goes into each item of a list), when, sentence.
const FIELDS: &[(&str, &str, When, &str)] = &[
    (
        "apps/statefulsets",
        "spec.persistentVolumeClaimRetentionPolicy.whenScaled",
        Is("Delete"),
        "claims are not deleted when the set is scaled down yet",
    ),
    (
        "apps/statefulsets",
        "spec.volumeClaimTemplates",
        Given,
        "claims are not bound or provisioned yet: unless something else binds them, pods of this set do not start",
    ),
    (
        "batch/jobs",
        "spec.backoffLimitPerIndex",
        Given,
        "failures are not counted for each index yet",
    ),
    (
        "batch/jobs",
        "spec.maxFailedIndexes",
        Given,
        "failures are not counted for each index yet",
    ),
    (
        "batch/cronjobs",
        "spec.jobTemplate.spec.backoffLimitPerIndex",
        Given,
        "failures are not counted for each index yet",
    ),
    (
        "batch/cronjobs",
        "spec.jobTemplate.spec.maxFailedIndexes",
        Given,
        "failures are not counted for each index yet",
    ),
    (
        "core/services",
        "spec.type",
        Is("LoadBalancer"),
        "no load balancer is built in yet: the Service gets node ports, and no address unless a controller in the cluster gives it one",
    ),
    (
        "scheduling.k8s.io/priorityclasses",
        "preemptionPolicy",
        Is("PreemptLowerPriority"),
        "pods are not preempted yet: the priority orders the scheduling queue alone",
    ),
];

/// The same for the spec of a pod, wherever one is.
const POD_FIELDS: &[(&str, When, &str)] = &[
    (
        "resourceClaims",
        Given,
        "dynamic resources are not allocated yet: pods with claims do not get them",
    ),
    (
        "volumes[].ephemeral",
        Given,
        "claims are not made for ephemeral volumes yet: pods with one do not start",
    ),
];

/// Where stored kinds have a pod's spec.
const POD_SPECS: &[(&str, &str)] = &[
    ("apps/daemonsets", "spec.template.spec"),
    ("apps/deployments", "spec.template.spec"),
    ("apps/replicasets", "spec.template.spec"),
    ("apps/statefulsets", "spec.template.spec"),
    ("batch/cronjobs", "spec.jobTemplate.spec.template.spec"),
    ("batch/jobs", "spec.template.spec"),
    ("core/pods", "spec"),
    ("core/replicationcontrollers", "spec.template.spec"),
];

/// The sentences about an object of this row that is created or changed.
pub fn warnings(row: &Resource, object: &Value) -> Vec<String> {
    let storage = row.storage.as_ref();
    let mut out: Vec<String> = KINDS
        .iter()
        .filter(|(kind, _)| *kind == storage)
        .map(|(_, why)| (*why).to_string())
        .collect();
    for (kind, path, when, why) in FIELDS {
        if *kind == storage && holds(object, path, when) {
            out.push(format!("{path}: {why}"));
        }
    }
    for (_, spec) in POD_SPECS.iter().filter(|(kind, _)| *kind == storage) {
        for (path, when, why) in POD_FIELDS {
            let path = format!("{spec}.{path}");
            if holds(object, &path, when) {
                out.push(format!("{path}: {why}"));
            }
        }
    }
    out
}

fn holds(v: &Value, path: &str, when: &When) -> bool {
    let Some((head, rest)) = path.split_once('.').or(if path.is_empty() {
        None
    } else {
        Some((path, ""))
    }) else {
        return match when {
            Given => match v {
                Value::Null => false,
                Value::Array(a) => !a.is_empty(),
                Value::Object(o) => !o.is_empty(),
                Value::String(s) => !s.is_empty(),
                Value::Bool(_) | Value::Number(_) => true,
            },
            Is(text) => v.as_str() == Some(text),
        };
    };
    match head.strip_suffix("[]") {
        Some(list) => v
            .get(list)
            .and_then(Value::as_array)
            .is_some_and(|l| l.iter().any(|x| holds(x, rest, when))),
        None => v.get(head).is_some_and(|x| holds(x, rest, when)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{self, Type};
    use serde_json::json;

    fn row(storage: &str) -> Resource {
        crate::kinds::builtin()
            .into_iter()
            .find(|r| r.storage == storage)
            .expect("a row of that storage")
    }

    #[test]
    fn every_line_names_a_kind_and_a_field_that_are_there() {
        for (kind, why) in KINDS {
            let _ = row(kind);
            assert!(why.is_ascii() && !why.contains('"'), "{why}");
        }
        let mut paths: Vec<(&str, String)> = FIELDS
            .iter()
            .map(|(kind, path, ..)| (*kind, (*path).to_string()))
            .collect();
        for (kind, spec) in POD_SPECS {
            paths.extend(
                POD_FIELDS
                    .iter()
                    .map(|(path, ..)| (*kind, format!("{spec}.{path}"))),
            );
        }
        for (kind, path) in paths {
            let mut def = schema::lookup(&row(kind).schema);
            for part in path.split('.') {
                let name = part.trim_end_matches("[]");
                let field = def.field(name).unwrap_or_else(|| panic!("{kind} {path}"));
                let ty = match field.ty {
                    Type::List(t) => *t,
                    t => t,
                };
                if let Type::Ref(id) = ty {
                    def = id.get();
                }
            }
        }
    }

    #[test]
    fn kinds_that_nothing_acts_on_say_so_and_others_are_silent() {
        for (kind, _) in KINDS {
            assert_eq!(warnings(&row(kind), &json!({})).len(), 1, "{kind}");
        }
        for kind in ["core/pods", "core/configmaps", "apps/deployments"] {
            assert!(warnings(&row(kind), &json!({"spec": {}})).is_empty());
        }
    }

    #[test]
    fn fields_that_nothing_acts_on_say_so_where_they_are_given() {
        let service = row("core/services");
        assert!(warnings(&service, &json!({"spec": {"type": "ClusterIP"}})).is_empty());
        let w = warnings(&service, &json!({"spec": {"type": "LoadBalancer"}}));
        assert_eq!(w.len(), 1);
        assert!(w[0].starts_with("spec.type: "), "{w:?}");
        let pod = json!({"spec": {"volumes": [{"name": "a"}, {"name": "b", "ephemeral": {"volumeClaimTemplate": {}}}]}});
        assert_eq!(warnings(&row("core/pods"), &pod).len(), 1);
        let job = json!({"spec": {"backoffLimitPerIndex": 0}});
        assert_eq!(warnings(&row("batch/jobs"), &job).len(), 1);
        let cron = json!({"spec": {"jobTemplate": {"spec": {"backoffLimitPerIndex": 1}}}});
        assert_eq!(warnings(&row("batch/cronjobs"), &cron).len(), 1);
        let claims = json!({"spec": {"template": {"spec": {"resourceClaims": [{"name": "a"}]}}}});
        assert_eq!(warnings(&row("apps/deployments"), &claims).len(), 1);
        let set =
            |v: &str| json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": v}}});
        assert_eq!(warnings(&row("apps/statefulsets"), &set("Delete")).len(), 1);
        assert!(warnings(&row("apps/statefulsets"), &set("Retain")).is_empty());
    }
}
