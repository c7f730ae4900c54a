//! The ReplicaSets of a deployment: which one is of the current template, what it is called, which revision it is,
//! which old ones may go. Pure.

use super::{rolling, wanted};
use crate::action::{Action, DEPLOYMENTS, REPLICASETS};
use crate::model::{controller_of, controller_ref, safe_hash};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Label that tells the pods of one template from those of another.
pub const HASH: &str = "pod-template-hash";
/// Annotation that counts the templates of a deployment.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotations that kubectl and this controller keep on the deployment alone.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    rolling::DESIRED,
    rolling::MAX,
    "deprecated.deployment.rollback.to",
];

/// Age for sorting: oldest first, by name among equals.
pub fn age(set: &ReplicaSet) -> (Option<jiff::Timestamp>, String) {
    (
        set.metadata.creation_timestamp.as_ref().map(|t| t.0),
        set.metadata.name.clone().unwrap_or_default(),
    )
}

fn plain(template: Option<&PodTemplateSpec>) -> Value {
    let mut v = json!(template);
    if let Some(labels) = v["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH);
        if labels.is_empty() {
            v["metadata"].as_object_mut().map(|m| m.remove("labels"));
        }
    }
    if v["metadata"]
        .as_object()
        .is_some_and(serde_json::Map::is_empty)
    {
        v.as_object_mut().map(|m| m.remove("metadata"));
    }
    v
}

/// The set of the current template (the oldest, if several are) and the others. `sets` is sorted by age.
pub fn split<'a>(
    d: &Deployment,
    sets: &[&'a ReplicaSet],
) -> (Option<&'a ReplicaSet>, Vec<&'a ReplicaSet>) {
    let want = plain(d.spec.as_ref().map(|s| &s.template));
    let new = sets
        .iter()
        .copied()
        .find(|s| plain(s.spec.as_ref().and_then(|s| s.template.as_ref())) == want);
    let old = sets
        .iter()
        .copied()
        .filter(|s| new.is_none_or(|n| !std::ptr::eq(*s, n)))
        .collect();
    (new, old)
}

fn annotations(set: &ReplicaSet) -> BTreeMap<String, String> {
    set.metadata.annotations.clone().unwrap_or_default()
}

/// The revision a set carries, 0 for none.
pub fn revision(set: &ReplicaSet) -> i64 {
    annotations(set)
        .get(REVISION)
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

fn copied_annotations(d: &Deployment) -> BTreeMap<String, String> {
    let mut all = d.metadata.annotations.clone().unwrap_or_default();
    all.retain(|k, _| !NOT_COPIED.contains(&k.as_str()));
    all
}

/// The hash of the current template.
pub fn template_hash(d: &Deployment) -> String {
    let collisions = d
        .status
        .as_ref()
        .and_then(|s| s.collision_count)
        .unwrap_or(0);
    safe_hash(&plain(d.spec.as_ref().map(|s| &s.template)), collisions)
}

/// Creates the new set, or keeps its annotations and minReadySeconds right; keeps the deployment's revision right.
pub fn ensure_new(d: &Deployment, new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> Vec<Action> {
    let Some(spec) = &d.spec else {
        return Vec::new();
    };
    let namespace = d.metadata.namespace.clone().unwrap_or_default();
    let next = old.iter().map(|s| revision(s)).max().unwrap_or(0) + 1;
    let mut actions = Vec::new();
    let revision_now = match new {
        Some(set) => {
            let mut want = annotations(set);
            want.extend(copied_annotations(d));
            let have = revision(set);
            let revision = have.max(next);
            if have != 0 && have < next {
                let history = want.get(REVISION_HISTORY).cloned().unwrap_or_default();
                let history = if history.is_empty() {
                    have.to_string()
                } else {
                    format!("{history},{have}")
                };
                want.insert(REVISION_HISTORY.into(), history);
            }
            want.insert(REVISION.into(), revision.to_string());
            want.extend(rolling::annotations(d));
            let mut patch = json!({});
            if want != annotations(set) {
                patch["metadata"] = json!({"annotations": want});
            }
            let min_ready = set
                .spec
                .as_ref()
                .and_then(|s| s.min_ready_seconds)
                .unwrap_or(0);
            if min_ready != spec.min_ready_seconds.unwrap_or(0) {
                patch["spec"] = json!({"minReadySeconds": spec.min_ready_seconds.unwrap_or(0)});
            }
            if patch.as_object().is_some_and(|p| !p.is_empty()) {
                patch["metadata"]["uid"] = json!(set.metadata.uid);
                actions.push(Action::Patch {
                    kind: REPLICASETS,
                    namespace: namespace.clone(),
                    name: set.metadata.name.clone().unwrap_or_default(),
                    subresource: "",
                    patch,
                });
            }
            revision
        }
        None => {
            let hash = template_hash(d);
            let name = format!("{}-{hash}", d.metadata.name.as_deref().unwrap_or_default());
            let mut template = json!(spec.template);
            template["metadata"]["labels"][HASH] = hash.clone().into();
            let mut selector = json!(spec.selector);
            selector["matchLabels"][HASH] = hash.into();
            let mut notes = copied_annotations(d);
            notes.insert(REVISION.into(), next.to_string());
            notes.extend(rolling::annotations(d));
            let replicas = rolling::new_set_replicas(d, None, old);
            let object = json!({
                "metadata": {
                    "name": name, "annotations": notes, "labels": template["metadata"]["labels"],
                    "ownerReferences": [controller_ref("apps/v1", "Deployment", &d.metadata)],
                },
                "spec": {"replicas": replicas, "minReadySeconds": spec.min_ready_seconds.unwrap_or(0),
                    "selector": selector, "template": template},
            });
            actions.push(Action::Create {
                kind: REPLICASETS,
                namespace: namespace.clone(),
                object,
            });
            if replicas > 0 {
                actions.push(Action::Event {
                    warning: false,
                    reason: "ScalingReplicaSet",
                    message: format!("Scaled up replica set {name} from 0 to {replicas}"),
                });
            }
            next
        }
    };
    let have = d
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(REVISION));
    if have != Some(&revision_now.to_string()) {
        actions.push(Action::Patch {
            kind: DEPLOYMENTS,
            namespace,
            name: d.metadata.name.clone().unwrap_or_default(),
            // With the status, as upstream: a change of annotations alone would count the generation.
            subresource: "status",
            patch: json!({"metadata": {"uid": d.metadata.uid, "annotations": {REVISION: revision_now.to_string()}}}),
        });
    }
    actions
}

/// Deletes old sets without pods beyond spec.revisionHistoryLimit, oldest revisions first.
pub fn clean_up(d: &Deployment, old: &[&ReplicaSet]) -> Vec<Action> {
    let limit = d
        .spec
        .as_ref()
        .and_then(|s| s.revision_history_limit)
        .unwrap_or(10);
    let Ok(limit) = usize::try_from(limit) else {
        return Vec::new();
    };
    if old.len() <= limit {
        return Vec::new();
    }
    let mut sets = old.to_vec();
    sets.sort_by_key(|s| (revision(s), age(s)));
    sets.iter()
        .take(old.len() - limit)
        .filter(|s| {
            let status = s.status.as_ref();
            wanted(s) == 0
                && status.is_none_or(|st| st.replicas == 0)
                && status.and_then(|st| st.observed_generation).unwrap_or(0)
                    >= s.metadata.generation.unwrap_or(0)
                && s.metadata.deletion_timestamp.is_none()
        })
        .map(|s| Action::delete(REPLICASETS, &s.metadata))
        .collect()
}

/// Is there a set of the name that the new one would get, with another owner or another template?
pub fn collides(d: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    let name = format!(
        "{}-{}",
        d.metadata.name.as_deref().unwrap_or_default(),
        template_hash(d)
    );
    let want = plain(d.spec.as_ref().map(|s| &s.template));
    sets.iter().any(|s| {
        s.metadata.name.as_deref() == Some(&name)
            && (controller_of(&s.metadata)
                .is_none_or(|o| Some(o.uid.as_str()) != d.metadata.uid.as_deref())
                || plain(s.spec.as_ref().and_then(|x| x.template.as_ref())) != want)
    })
}

/// Counts a collision.
pub fn count_collision(d: &Deployment) -> Action {
    let n = d
        .status
        .as_ref()
        .and_then(|s| s.collision_count)
        .unwrap_or(0)
        + 1;
    Action::Patch {
        kind: DEPLOYMENTS,
        namespace: d.metadata.namespace.clone().unwrap_or_default(),
        name: d.metadata.name.clone().unwrap_or_default(),
        subresource: "status",
        patch: json!({"metadata": {"uid": d.metadata.uid}, "status": {"collisionCount": n}}),
    }
}
