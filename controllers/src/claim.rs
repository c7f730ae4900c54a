//! Taking and giving back what has no owner, or another's labels (pkg/controller/controller_ref_manager.go). Pure: the
//! actions replace whole lists of an object's metadata, so each carries the version that its list was made from, and an
//! adoption also asks that the owner, as the API has it now, is there and stays.

use crate::action::{Action, Kind};
use crate::model::controller_ref;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

fn patch(
    kind: Kind,
    meta: &ObjectMeta,
    owners: Option<Vec<Value>>,
    finalizers: Option<Vec<&str>>,
) -> Action {
    let mut metadata = json!({"uid": meta.uid, "resourceVersion": meta.resource_version});
    if let Some(o) = owners {
        metadata["ownerReferences"] = o.into();
    }
    if let Some(f) = finalizers {
        metadata["finalizers"] = json!(f);
    }
    Action::Patch {
        kind,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        subresource: "",
        patch: json!({"metadata": metadata}),
    }
}

fn finalizers<'a>(meta: &'a ObjectMeta, but: &str) -> Vec<&'a str> {
    meta.finalizers
        .iter()
        .flatten()
        .map(String::as_str)
        .filter(|f| *f != but)
        .collect()
}

fn owners(meta: &ObjectMeta, but: &str) -> Vec<Value> {
    meta.owner_references
        .iter()
        .flatten()
        .filter(|o| o.uid != but)
        .map(|o| json!(o))
        .collect()
}

/// Makes `owner` the manager of an object that has none, and adds a finalizer where one is given.
pub fn adopt(
    kind: Kind,
    meta: &ObjectMeta,
    owner_kind: Kind,
    owner: &ObjectMeta,
    finalizer: Option<&str>,
) -> Action {
    let uid = owner.uid.clone().unwrap_or_default();
    let mut all = owners(meta, &uid);
    all.push(controller_ref(
        &owner_kind.api_version(),
        owner_kind.kind,
        owner,
    ));
    let with = finalizer.map(|f| {
        let mut list = finalizers(meta, f);
        list.push(f);
        list
    });
    Action::Adopt {
        owner_kind,
        owner: owner.name.clone().unwrap_or_default(),
        owner_uid: uid,
        patch: Box::new(patch(kind, meta, Some(all), with)),
    }
}

/// Takes the owner away from an object, and a finalizer with it where one is given.
pub fn release(kind: Kind, meta: &ObjectMeta, owner_uid: &str, finalizer: Option<&str>) -> Action {
    let left = finalizer.map(|f| finalizers(meta, f));
    patch(kind, meta, Some(owners(meta, owner_uid)), left)
}

/// Takes a finalizer away from an object.
pub fn unfinalize(kind: Kind, meta: &ObjectMeta, finalizer: &str) -> Action {
    patch(kind, meta, None, Some(finalizers(meta, finalizer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{PODS, REPLICASETS};

    fn meta(v: Value) -> ObjectMeta {
        serde_json::from_value(v).expect("metadata")
    }

    #[test]
    fn lists_are_replaced_only_in_the_version_that_they_were_read_in() {
        let pod = meta(
            json!({"name": "p", "namespace": "ns", "uid": "p1", "resourceVersion": "7",
            "finalizers": ["a", "b"], "ownerReferences": [
                {"apiVersion": "v1", "kind": "X", "name": "x", "uid": "x1"},
                {"apiVersion": "v1", "kind": "Y", "name": "y", "uid": "y1"}]}),
        );
        let owner = meta(json!({"name": "rs", "namespace": "ns", "uid": "r1"}));
        let of = |a: Action| match a {
            Action::Patch { patch, .. } => patch["metadata"].clone(),
            Action::Adopt {
                patch,
                owner,
                owner_uid,
                ..
            } => match *patch {
                Action::Patch { patch, .. } => {
                    assert_eq!((owner.as_str(), owner_uid.as_str()), ("rs", "r1"));
                    patch["metadata"].clone()
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        let adopted = of(adopt(PODS, &pod, REPLICASETS, &owner, Some("c")));
        let released = of(release(PODS, &pod, "x1", Some("a")));
        let freed = of(unfinalize(PODS, &pod, "a"));
        for m in [&adopted, &released, &freed] {
            assert_eq!(
                (&m["uid"], &m["resourceVersion"]),
                (&json!("p1"), &json!("7"))
            );
        }
        assert_eq!(adopted["ownerReferences"][2]["uid"], "r1");
        assert_eq!(adopted["finalizers"], json!(["a", "b", "c"]));
        assert_eq!(
            released["ownerReferences"],
            json!([{"apiVersion": "v1", "kind": "Y", "name": "y", "uid": "y1"}])
        );
        assert_eq!(released["finalizers"], json!(["b"]));
        assert_eq!(freed["finalizers"], json!(["b"]));
        assert!(freed.get("ownerReferences").is_none());
    }
}
