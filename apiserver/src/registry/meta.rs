//! Generic rules of metadata on create, update and delete, the same for every kind (upstream's rest.BeforeCreate,
//! BeforeUpdate, BeforeDelete and registry/generic/registry/store.go). Pure: time, uid and name suffix are inputs.

use super::options::Options;
use serde_json::{Map, Value};
use skiff_api::resource::Resource;
use skiff_api::status::Status;

use skiff_api::meta::{self, deleting};

pub use skiff_api::meta::text;

/// Finalizer of foreground deletion: dependents go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of orphaning: dependents stay.
pub const ORPHAN: &str = "orphan";

/// The object's metadata, made when it is missing.
///
/// # Errors
/// 400 when it is there and no object, or when the whole is no object.
pub fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    let Some(map) = object.as_object_mut() else {
        return Err(Status::bad_request(
            "the object provided is unrecognized (must be of type object)",
        ));
    };
    let slot = map.entry("metadata").or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut()
        .ok_or_else(|| Status::bad_request("metadata must be an object"))
}

/// The finalizers.
fn finalizers(object: &Value) -> Vec<&str> {
    meta::finalizers(object).collect()
}

fn grace(object: &Value) -> Option<i64> {
    object
        .get("metadata")?
        .get("deletionGracePeriodSeconds")?
        .as_i64()
}

fn set_grace(m: &mut Map<String, Value>, timestamp: &str, seconds: i64) {
    m.insert("deletionTimestamp".into(), timestamp.into());
    m.insert("deletionGracePeriodSeconds".into(), seconds.into());
}

fn bump_generation(m: &mut Map<String, Value>) {
    if let Some(g) = m
        .get("generation")
        .and_then(Value::as_i64)
        .filter(|g| *g > 0)
    {
        m.insert("generation".into(), (g + 1).into());
    }
}

/// Drops what is not kept: selfLink, and null entries of metadata.
fn strip(m: &mut Map<String, Value>) {
    m.retain(|k, v| !(v.is_null() || k == "selfLink"));
}

/// Forgets who owns which field.
pub fn drop_managed_fields(object: &mut Value) {
    if let Some(m) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        m.shift_remove("managedFields");
    }
}

/// Is it known who owns which field? It is from an object's first server-side apply on: before that nobody asks, and
/// keeping it would double every object.
pub fn has_managed_fields(object: &Value) -> bool {
    object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array)
        .is_some_and(|l| !l.is_empty())
}

/// Sets or checks the namespace (rest.EnsureObjectNamespaceMatchesRequestNamespace).
///
/// # Errors
/// 400 when they differ.
pub fn match_namespace(row: &Resource, object: &mut Value, namespace: &str) -> Result<(), Status> {
    in_namespace(row.namespaced(), object, namespace)
}

/// The same for objects that have no row of their own (bodies of subresources).
///
/// # Errors
/// 400 when they differ.
pub fn in_namespace(namespaced: bool, object: &mut Value, namespace: &str) -> Result<(), Status> {
    let m = metadata(object)?;
    let given = m.get("namespace").and_then(Value::as_str).unwrap_or("");
    if !namespaced {
        m.shift_remove("namespace");
    } else if given.is_empty() {
        m.insert("namespace".into(), namespace.into());
    } else if given != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Checks name and namespace of a PUT or PATCH against the URL (handlers.checkName).
///
/// # Errors
/// 400 when they differ or the name is missing.
pub fn check_name(
    row: &Resource,
    object: &Value,
    name: &str,
    namespace: &str,
) -> Result<(), Status> {
    let given = text(object, "name");
    if given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let ns = text(object, "namespace");
    if row.namespaced() && !ns.is_empty() && ns != namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({ns}) does not match the namespace on the request ({namespace})"
        )));
    }
    Ok(())
}

/// Prepares the metadata of a new object, after its namespace is set. The name is made of generateName and
/// `random` when none is given.
///
/// # Errors
/// 400 when a resourceVersion is given, 422 when there is no name at all.
pub fn before_create(
    row: &Resource,
    object: &mut Value,
    now: &str,
    uid: &str,
    random: [u8; 5],
) -> Result<(), Status> {
    let m = metadata(object)?;
    strip(m);
    if m.get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|v| !v.is_empty() && v != "0")
    {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for k in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        m.shift_remove(k);
    }
    m.insert("uid".into(), uid.into());
    m.insert("creationTimestamp".into(), now.into());
    if row.strategy.generation {
        m.insert("generation".into(), 1.into());
    }
    if m.get("name")
        .and_then(Value::as_str)
        .unwrap_or("")
        .is_empty()
        && let Some(prefix) = m
            .get("generateName")
            .and_then(Value::as_str)
            .filter(|p| !p.is_empty())
    {
        let name = meta::generate_name(prefix, random);
        m.insert("name".into(), name.into());
    }
    tidy(m);
    Ok(())
}

/// Upstream's order of ObjectMeta's fields, so that stored objects read the same.
const ORDER: [&str; 12] = [
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
];

/// Puts metadata in upstream's order and drops empty maps and lists, as Go's omitempty does.
pub fn tidy(m: &mut Map<String, Value>) {
    let mut old = std::mem::take(m);
    for k in ORDER {
        if let Some(v) = old.shift_remove(k) {
            m.insert(k.into(), v);
        }
    }
    m.extend(old);
    m.retain(|_, v| match v {
        Value::Null => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        _ => true,
    });
}

/// Carries over what an update may not change, before validation. `new` has its name and namespace checked.
///
/// # Errors
/// 400 when metadata is no object.
pub fn before_update(new: &mut Value, old: &Value) -> Result<(), Status> {
    let empty = Map::new();
    let o = old
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let m = metadata(new)?;
    strip(m);
    for k in ["namespace", "generation", "resourceVersion"] {
        match o.get(k) {
            Some(v) => m.insert(k.into(), v.clone()),
            None => m.shift_remove(k),
        };
    }
    // These may be left out; when they are given and differ, validation says so.
    for k in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
    ] {
        if !m.contains_key(k)
            && let Some(v) = o.get(k)
        {
            m.insert(k.into(), v.clone());
        }
    }
    tidy(m);
    Ok(())
}

/// Counts the generation when anything but metadata and status changed.
pub fn count_generation(row: &Resource, new: &mut Value, old: &Value) {
    if !row.strategy.generation {
        return;
    }
    let rest = |v: &Value| -> Map<String, Value> {
        v.as_object()
            .map(|m| {
                m.iter()
                    .filter(|(k, _)| {
                        !["metadata", "status", "kind", "apiVersion"].contains(&k.as_str())
                    })
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            })
            .unwrap_or_default()
    };
    let mut changed = rest(new) != rest(old);
    // Deployments copy annotations to their ReplicaSets, so the controller must see their change as one of the spec.
    if row.plural == "deployments" && row.group == "apps" {
        let annotations = |v: &Value| {
            v.get("metadata")
                .and_then(|m| m.get("annotations"))
                .cloned()
        };
        changed |= annotations(new) != annotations(old);
    }
    let old_generation = old
        .get("metadata")
        .and_then(|m| m.get("generation"))
        .and_then(Value::as_i64)
        .unwrap_or(0);
    if changed && let Ok(m) = metadata(new) {
        let had = m.contains_key("generation");
        m.insert("generation".into(), (old_generation + 1).into());
        if !had {
            tidy(m);
        }
    }
}

/// What a DELETE does to an object.
#[derive(Debug, PartialEq)]
pub enum Deletion {
    /// Remove it now.
    Now,
    /// Write this instead: deletion has begun (or its grace is shorter, or its finalizers are other ones).
    Mark(Value),
    /// It is being deleted already; nothing changes.
    Pending,
}

/// The uid and resourceVersion preconditions of DeleteOptions.
///
/// # Errors
/// 409 when one does not hold.
pub fn check_preconditions(
    row: &Resource,
    object: &Value,
    o: &Options,
    revision: &str,
) -> Result<(), Status> {
    let conflict = |why: String| {
        Err(Status::conflict(
            &row.group,
            &row.plural,
            text(object, "name"),
            &why,
        ))
    };
    if let Some(uid) = &o.precondition_uid
        && uid != text(object, "uid")
    {
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            text(object, "uid")
        ));
    }
    if let Some(rv) = &o.precondition_resource_version
        && rv != revision
    {
        return conflict(format!(
            "the ResourceVersion in the precondition ({rv}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
        ));
    }
    Ok(())
}

/// Seconds of grace of this deletion, None for kinds without graceful deletion (podStrategy.CheckGracefulDelete).
fn grace_of(row: &Resource, object: &Value, asked: Option<i64>) -> Option<i64> {
    if !(row.group.is_empty() && row.plural == "pods") {
        return None;
    }
    let at = |p: &str| object.pointer(p);
    let mut period = asked.unwrap_or_else(|| {
        at("/spec/terminationGracePeriodSeconds")
            .and_then(Value::as_i64)
            .unwrap_or(0)
    });
    if at("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or("")
        .is_empty()
    {
        period = 0;
    }
    if matches!(
        at("/status/phase").and_then(Value::as_str),
        Some("Succeeded" | "Failed")
    ) {
        period = 0;
    }
    Some(if period < 0 { 1 } else { period })
}

/// The finalizers of garbage collection that this deletion leaves on the object, None when they stay as they are.
fn gc_finalizers(row: &Resource, object: &Value, o: &Options) -> Option<Vec<String>> {
    if row.storage == "core/events" {
        // Upstream: events are not garbage collected.
        return None;
    }
    let existing = finalizers(object);
    let policy = o.propagation_policy.as_deref();
    let orphan = match (o.orphan_dependents, policy) {
        (Some(x), _) => x,
        (None, Some("Orphan")) => true,
        (None, Some(_)) => false,
        (None, None) => {
            existing.contains(&ORPHAN)
                || (!existing.contains(&FOREGROUND)
                    && matches!(
                        (row.group.as_ref(), row.plural.as_ref()),
                        ("", "replicationcontrollers") | ("batch", "jobs")
                    ))
        }
    };
    let foreground = match (o.orphan_dependents, policy) {
        (Some(_), _) => false,
        (None, Some(p)) => p == "Foreground",
        (None, None) => existing.contains(&FOREGROUND),
    };
    let mut new: Vec<String> = existing
        .iter()
        .filter(|f| **f != ORPHAN && **f != FOREGROUND)
        .map(ToString::to_string)
        .collect();
    if orphan {
        new.push(ORPHAN.into());
    }
    if foreground {
        new.push(FOREGROUND.into());
    }
    let mut a: Vec<&str> = new.iter().map(String::as_str).collect();
    let mut b = existing;
    a.sort_unstable();
    b.sort_unstable();
    (a != b).then_some(new)
}

/// Decides what a DELETE does. `now` and `add` make RFC 3339 times: the present, and a time moved by seconds.
pub fn before_delete(
    row: &Resource,
    object: &Value,
    o: &Options,
    now: &str,
    add: fn(&str, i64) -> String,
) -> Deletion {
    let asked = grace_of(row, object, o.grace_period_seconds);
    let mut new = object.clone();
    let mut graceful = false;
    if deleting(object) {
        if let Some(current) = grace(object) {
            match asked.filter(|_| o.grace_period_seconds.is_some() || asked == Some(0)) {
                Some(period) if period < current => {
                    let begun = add(text(object, "deletionTimestamp"), period - current);
                    if let Ok(m) = metadata(&mut new) {
                        set_grace(m, &begun, period);
                        tidy(m);
                    }
                    graceful = true;
                }
                _ if asked.is_some() && current > 0 => return Deletion::Pending,
                _ => {}
            }
        }
    } else if let Some(period) = asked {
        let at = add(now, period);
        if let Ok(m) = metadata(&mut new) {
            set_grace(m, &at, period);
            bump_generation(m);
            tidy(m);
        }
        graceful = true;
    }
    if let Some(list) = gc_finalizers(row, object, o)
        && let Ok(m) = metadata(&mut new)
    {
        m.insert("finalizers".into(), list.into());
        tidy(m);
    }
    let pending = !finalizers(&new).is_empty() || has_spec_finalizers(row, &new);
    if !pending {
        return match grace(&new) {
            Some(g) if graceful && g > 0 => Deletion::Mark(new),
            _ => Deletion::Now,
        };
    }
    if !deleting(&new)
        && let Ok(m) = metadata(&mut new)
    {
        set_grace(m, now, 0);
        bump_generation(m);
        tidy(m);
    }
    if row.group.is_empty() && row.plural == "namespaces" {
        // namespace registry's Delete: the phase says it, too.
        if !new["status"].is_object() {
            new["status"] = Value::Object(Map::new());
        }
        new["status"]["phase"] = "Terminating".into();
        if let Some(m) = new.get_mut("metadata").and_then(Value::as_object_mut) {
            m.shift_remove("deletionGracePeriodSeconds");
        }
    }
    if new == *object {
        Deletion::Pending
    } else {
        Deletion::Mark(new)
    }
}

/// Namespaces have finalizers in their spec, too.
fn has_spec_finalizers(row: &Resource, object: &Value) -> bool {
    row.group.is_empty()
        && row.plural == "namespaces"
        && object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty())
}

/// After an update: is this object, whose deletion had begun, done for? (ShouldDeleteDuringUpdate)
pub fn delete_during_update(row: &Resource, new: &Value, old: &Value) -> bool {
    if !deleting(old) || !finalizers(new).is_empty() || has_spec_finalizers(row, new) {
        return false;
    }
    let was_pending = !finalizers(old).is_empty() || has_spec_finalizers(row, old);
    was_pending && grace(old).unwrap_or(0) == 0
}

/// Kinds whose DELETE answers with the object instead of a Status (upstream: ReturnDeletedObject).
pub fn returns_object(row: &Resource) -> bool {
    matches!(
        row.storage.as_ref(),
        "core/pods"
            | "core/services"
            | "core/serviceaccounts"
            | "core/persistentvolumes"
            | "core/persistentvolumeclaims"
            | "core/podtemplates"
            | "core/resourcequotas"
            | "storage.k8s.io/storageclasses"
            | "storage.k8s.io/volumeattachments"
            | "storage.k8s.io/csinodes"
            | "storage.k8s.io/csidrivers"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(group: &str, plural: &str) -> Resource {
        skiff_api::kinds::builtin()
            .into_iter()
            .find(|r| r.group == group && r.plural == plural)
            .expect("row")
    }

    fn add(t: &str, s: i64) -> String {
        format!("{t}{s:+}")
    }

    fn delete(plural: &str, object: Value, o: Options) -> Deletion {
        before_delete(&row("", plural), &object, &o, "now", add)
    }

    #[test]
    fn pods_on_nodes_get_their_grace_and_others_go_at_once() {
        let running = json!({"metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        match delete("pods", running.clone(), Options::default()) {
            Deletion::Mark(v) => {
                assert_eq!(v["metadata"]["deletionTimestamp"], "now+30");
                assert_eq!(v["metadata"]["deletionGracePeriodSeconds"], 30);
                assert_eq!(v["metadata"]["generation"], 2);
            }
            other => panic!("{other:?}"),
        }
        let zero = Options {
            grace_period_seconds: Some(0),
            ..Options::default()
        };
        assert_eq!(delete("pods", running, zero), Deletion::Now);
        assert_eq!(
            delete(
                "pods",
                json!({"metadata": {}, "spec": {"terminationGracePeriodSeconds": 30}}),
                Options::default()
            ),
            Deletion::Now
        );
        let done = json!({"metadata": {}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Succeeded"}});
        assert_eq!(delete("pods", done, Options::default()), Deletion::Now);
    }

    #[test]
    fn grace_may_only_become_shorter() {
        let going = json!({"metadata": {"deletionTimestamp": "t", "deletionGracePeriodSeconds": 30}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let ask = |s| Options {
            grace_period_seconds: Some(s),
            ..Options::default()
        };
        assert_eq!(
            delete("pods", going.clone(), Options::default()),
            Deletion::Pending
        );
        assert_eq!(delete("pods", going.clone(), ask(60)), Deletion::Pending);
        match delete("pods", going.clone(), ask(5)) {
            Deletion::Mark(v) => assert_eq!(v["metadata"]["deletionTimestamp"], "t-25"),
            other => panic!("{other:?}"),
        }
        assert_eq!(delete("pods", going, ask(0)), Deletion::Now);
    }

    #[test]
    fn finalizers_hold_an_object_and_policies_add_theirs() {
        match delete(
            "configmaps",
            json!({"metadata": {"finalizers": ["x/y"]}}),
            Options::default(),
        ) {
            Deletion::Mark(v) => assert_eq!(v["metadata"]["deletionGracePeriodSeconds"], 0),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            delete("configmaps", json!({"metadata": {}}), Options::default()),
            Deletion::Now
        );
        let foreground = Options {
            propagation_policy: Some("Foreground".into()),
            ..Options::default()
        };
        match delete("configmaps", json!({"metadata": {}}), foreground) {
            Deletion::Mark(v) => {
                assert_eq!(v["metadata"]["finalizers"], json!(["foregroundDeletion"]))
            }
            other => panic!("{other:?}"),
        }
        // Replication controllers orphan by default, as ever.
        match delete(
            "replicationcontrollers",
            json!({"metadata": {}}),
            Options::default(),
        ) {
            Deletion::Mark(v) => assert_eq!(v["metadata"]["finalizers"], json!(["orphan"])),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn namespaces_terminate_in_two_phases() {
        let ns = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let marked = match delete("namespaces", ns, Options::default()) {
            Deletion::Mark(v) => v,
            other => panic!("{other:?}"),
        };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(
            delete("namespaces", marked.clone(), Options::default()),
            Deletion::Pending
        );
        let mut done = marked.clone();
        done["spec"]["finalizers"] = json!([]);
        assert!(delete_during_update(&row("", "namespaces"), &done, &marked));
        assert_eq!(
            delete("namespaces", done, Options::default()),
            Deletion::Now
        );
    }

    #[test]
    fn generated_names_keep_within_63_characters() {
        let r = row("", "configmaps");
        let mut o = json!({"metadata": {"generateName": "x".repeat(70)}});
        assert_eq!(before_create(&r, &mut o, "now", "uid", [0; 5]), Ok(()));
        assert_eq!(text(&o, "name").len(), 63);
        assert!(text(&o, "name").ends_with("xbbbbb"));
    }

    #[test]
    fn generation_counts_changes_of_the_spec_only() {
        let r = row("apps", "replicasets");
        let old = json!({"metadata": {"generation": 3}, "spec": {"replicas": 1}, "status": {}});
        let mut new = old.clone();
        new["status"]["replicas"] = 1.into();
        count_generation(&r, &mut new, &old);
        assert_eq!(new["metadata"]["generation"], 3);
        new["spec"]["replicas"] = 2.into();
        count_generation(&r, &mut new, &old);
        assert_eq!(new["metadata"]["generation"], 4);
    }
}
