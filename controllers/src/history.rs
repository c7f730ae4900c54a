//! ControllerRevisions: the templates that stateful and daemon sets had (pkg/controller/history). Pure.

use crate::action::{Action, CONTROLLERREVISIONS};
use crate::model::{controller_of, controller_ref, is_uid, merge_difference, safe_hash};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Label of pods: the revision that they were made of.
pub const REVISION: &str = "controller-revision-hash";

/// The revision that stands for the template as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Its name.
    pub name: String,
    /// The hash in its name.
    pub hash: String,
    /// What makes it the newest one, if it is not yet.
    pub action: Option<Action>,
}

/// Revisions of an owner, the oldest first.
pub fn owned<'a>(
    all: &'a [Arc<ControllerRevision>],
    owner: &ObjectMeta,
) -> Vec<&'a ControllerRevision> {
    let mut mine: Vec<&ControllerRevision> = all
        .iter()
        .map(Arc::as_ref)
        .filter(|r| controller_of(&r.metadata).is_some_and(|o| is_uid(owner, &o.uid)))
        .collect();
    mine.sort_by_key(|r| (r.revision, r.metadata.name.clone()));
    mine
}

/// What a revision holds of a template: the patch that `kubectl rollout undo` applies.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut t = json!(template);
    t["$patch"] = "replace".into();
    json!({"spec": {"template": t}})
}

/// The template that a revision holds.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut t = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    t.as_object_mut()?.remove("$patch");
    serde_json::from_value(t).ok()
}

/// Finds or makes the revision of the template.
pub fn update(
    owner: (&str, &str, &ObjectMeta),
    template: &PodTemplateSpec,
    labels: Option<&BTreeMap<String, String>>,
    collisions: i32,
    revisions: &[&ControllerRevision],
) -> Update {
    let (api_version, kind, meta) = owner;
    let data = data_of(template);
    let newest = revisions.last().map_or(0, |r| r.revision);
    let same = revisions.iter().rev().find(|r| {
        // Compared as templates: what is stored may be written in other ways.
        template_of(r).is_some_and(|t| merge_difference(&json!(t), &json!(template)).is_none())
    });
    let hash_of = |r: &ControllerRevision| {
        let labels = r.metadata.labels.as_ref();
        let label = labels.and_then(|l| {
            l.get(REVISION)
                .or_else(|| l.get("controller.kubernetes.io/hash"))
        });
        label.cloned().unwrap_or_default()
    };
    if let Some(r) = same {
        // An older template again (an undo): it becomes the newest.
        let action = (r.revision < newest).then(|| Action::Patch {
            kind: CONTROLLERREVISIONS,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: r.metadata.name.clone().unwrap_or_default(),
            subresource: "",
            patch: json!({"revision": newest + 1}),
        });
        return Update {
            name: r.metadata.name.clone().unwrap_or_default(),
            hash: hash_of(r),
            action,
        };
    }
    let hash = safe_hash(&data, collisions);
    let name = format!("{}-{hash}", meta.name.as_deref().unwrap_or_default());
    let mut all = labels.cloned().unwrap_or_default();
    all.insert(REVISION.into(), hash.clone());
    all.insert("controller.kubernetes.io/hash".into(), hash.clone());
    let object = json!({
        "metadata": {"name": name, "labels": all, "ownerReferences": [controller_ref(api_version, kind, meta)]},
        "data": data, "revision": newest + 1,
    });
    Update {
        name,
        hash,
        action: Some(Action::Create {
            kind: CONTROLLERREVISIONS,
            namespace: meta.namespace.clone().unwrap_or_default(),
            object,
        }),
    }
}

/// Deletes revisions that nothing uses, the oldest first, down to the limit.
pub fn truncate(
    revisions: &[&ControllerRevision],
    used: &BTreeSet<String>,
    limit: usize,
) -> Vec<Action> {
    let spare: Vec<&&ControllerRevision> = revisions
        .iter()
        .filter(|r| !used.contains(r.metadata.name.as_deref().unwrap_or_default()))
        .collect();
    let n = spare.len().saturating_sub(limit);
    let delete = |r: &&ControllerRevision| Action::delete(CONTROLLERREVISIONS, &r.metadata);
    spare.into_iter().take(n).map(delete).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": image}]}}))
            .expect("a template")
    }

    #[test]
    fn a_template_that_was_there_before_becomes_the_newest_again() {
        let meta = ObjectMeta {
            name: Some("s".into()),
            uid: Some("u".into()),
            ..ObjectMeta::default()
        };
        let owner = ("apps/v1", "StatefulSet", &meta);
        let mut kept = Vec::new();
        for image in ["a", "b"] {
            let refs: Vec<&ControllerRevision> = kept.iter().collect();
            let u = update(owner, &template(image), None, 0, &refs);
            let Some(Action::Create { object, .. }) = u.action else {
                panic!("not made: {u:?}")
            };
            assert_eq!(object["metadata"]["name"], u.name.as_str());
            let mut r: ControllerRevision = serde_json::from_value(object).expect("a revision");
            r.metadata.uid = Some(image.into());
            kept.push(r);
        }
        let refs: Vec<&ControllerRevision> = kept.iter().collect();
        assert_eq!(update(owner, &template("b"), None, 0, &refs).action, None);
        let back = update(owner, &template("a"), None, 0, &refs);
        assert_eq!(Some(&back.name), kept[0].metadata.name.as_ref());
        assert!(
            matches!(back.action, Some(Action::Patch { ref patch, .. }) if patch["revision"] == 3)
        );
        assert_eq!(template_of(&kept[0]), Some(template("a")));
        let used = BTreeSet::from([back.name]);
        assert_eq!(truncate(&refs, &used, 0).len(), 1);
    }
}
