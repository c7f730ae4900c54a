//! Server-side apply: field ownership in `metadata.managedFields`, conflicts, and what happens to fields that a manager
//! gives up. Pure functions over objects, schema and time; follows apimachinery's `util/managedfields` and
//! structured-merge-diff's `merge/update.go`. Storing the result is the caller's business.

use super::fieldset::{self, Set, Shape};
use crate::field::FieldError;
use crate::meta;
use crate::schema::TypeDef;
use crate::status::Status;
use serde_json::{Map, Value, json};

/// Who writes, when and through what.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Field manager, e.g. `kubectl`.
    pub manager: &'a str,
    /// `apps/v1`.
    pub api_version: &'a str,
    /// Subresource of the request, empty for the object itself.
    pub subresource: &'a str,
    /// Now, RFC 3339 with seconds.
    pub now: &'a str,
    /// Top-level fields that this endpoint does not write: `status` on the object itself when it has a status
    /// subresource, `spec` on that subresource.
    pub ignored: &'a [&'a str],
}

/// The most Update entries that are kept; older ones are folded together (upstream's capManagersManager).
const MAX_UPDATE_MANAGERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// One entry of managedFields.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    applies: bool,
    api_version: String,
    subresource: String,
    time: String,
    set: Set,
}

impl Entry {
    /// The same writer? Appliers are the same in every version (upstream's BuildManagerIdentifier).
    fn is(&self, r: &Request<'_>, applies: bool) -> bool {
        self.manager == r.manager
            && self.applies == applies
            && self.subresource == r.subresource
            && (applies || self.api_version == r.api_version)
    }

    /// As conflicts show it.
    fn shown(&self) -> String {
        let mut s = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            s.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applies {
            s.push_str(&format!(" using {}", self.api_version));
            if !self.time.is_empty() {
                s.push_str(&format!(" at {}", self.time));
            }
        }
        s
    }

    fn read(v: &Value) -> Option<Self> {
        let text = |k: &str| v.get(k).and_then(Value::as_str).unwrap_or("").to_string();
        let operation = text("operation");
        if text("fieldsType") != "FieldsV1" || (operation != "Apply" && operation != "Update") {
            return None;
        }
        Some(Self {
            manager: text("manager"),
            applies: operation == "Apply",
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            set: Set::from_json(v.get("fieldsV1")?),
        })
    }

    fn write(&self) -> Value {
        let mut m = Map::new();
        let mut put = |k: &str, v: Value| m.insert(k.to_string(), v);
        put("apiVersion", self.api_version.as_str().into());
        put("fieldsType", "FieldsV1".into());
        put("fieldsV1", self.set.to_json());
        put("manager", self.manager.as_str().into());
        put(
            "operation",
            if self.applies { "Apply" } else { "Update" }.into(),
        );
        if !self.subresource.is_empty() {
            put("subresource", self.subresource.as_str().into());
        }
        if !self.time.is_empty() {
            put("time", self.time.as_str().into());
        }
        Value::Object(m)
    }
}

/// The entries of an object; none when one of them cannot be read (upstream gives up on all of them then).
fn read(o: &Value) -> Vec<Entry> {
    let list = meta::metadata(o)
        .get("managedFields")
        .and_then(Value::as_array);
    let read: Option<Vec<Entry>> = list.into_iter().flatten().map(Entry::read).collect();
    read.unwrap_or_default()
}

fn write(o: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.set.is_empty());
    entries.sort_by(|a, b| {
        (
            !a.applies,
            &a.time,
            &a.manager,
            &a.api_version,
            &a.subresource,
        )
            .cmp(&(
                !b.applies,
                &b.time,
                &b.manager,
                &b.api_version,
                &b.subresource,
            ))
    });
    let list: Vec<Value> = entries.iter().map(Entry::write).collect();
    meta::set(
        o,
        "managedFields",
        if list.is_empty() {
            Value::Null
        } else {
            list.into()
        },
    );
}

/// Fields of metadata that belong to nobody (upstream's stripMeta).
const NOBODYS: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

fn strip(set: Set, r: &Request<'_>) -> Set {
    let mut set = set.without(&["apiVersion", "kind"]).without(r.ignored);
    if let Some(m) = set.children.remove("f:metadata") {
        let mut m = m.without(NOBODYS);
        m.member = false;
        if !m.is_empty() {
            set.children.insert("f:metadata".into(), m);
        }
    }
    set
}

/// What an update changed.
struct Comparison {
    added: Set,
    modified: Set,
    removed: Set,
}

fn compare(old: &Value, new: &Value, shape: Shape, r: &Request<'_>) -> Comparison {
    let before = strip(fieldset::fields_of(old, shape), r);
    let after = strip(fieldset::fields_of(new, shape), r);
    Comparison {
        added: after.clone().difference(&before),
        removed: before.difference(&after),
        modified: strip(fieldset::modified(old, new, shape), r),
    }
}

/// Takes changed fields from all other managers, or says who owns them.
fn settle(
    entries: &mut [Entry],
    own: impl Fn(&Entry) -> bool,
    change: &Comparison,
    force: bool,
) -> Result<(), Status> {
    let changed = change.modified.clone().union(&change.added);
    let mut conflicts: Vec<(String, Vec<String>)> = Vec::new();
    for e in entries.iter_mut().filter(|e| !own(e)) {
        let overlap = e.set.intersection(&changed);
        if !overlap.is_empty() {
            if force {
                e.set = std::mem::take(&mut e.set).difference(&overlap);
            } else {
                conflicts.push((e.shown(), overlap.paths()));
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(conflict(conflicts));
    }
    for e in entries.iter_mut().filter(|e| !own(e)) {
        e.set = std::mem::take(&mut e.set).difference(&change.removed);
    }
    Ok(())
}

fn conflict(mut conflicts: Vec<(String, Vec<String>)>) -> Status {
    conflicts.sort();
    let all: Vec<(&str, &str)> = conflicts
        .iter()
        .flat_map(|(m, paths)| paths.iter().map(move |p| (m.as_str(), p.as_str())))
        .collect();
    let message = if let [(manager, path)] = all[..] {
        format!("Apply failed with 1 conflict: conflict with {manager}: {path}")
    } else {
        let mut lines = Vec::new();
        for (m, paths) in &conflicts {
            lines.push(format!("conflicts with {m}:"));
            lines.extend(paths.iter().map(|p| format!("- {p}")));
        }
        format!(
            "Apply failed with {} conflicts: {}",
            all.len(),
            lines.join("\n")
        )
    };
    let causes: Vec<Value> = all
        .iter()
        .map(|(m, p)| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {m}"), "field": p}))
        .collect();
    Status {
        details: json!({"causes": causes}),
        ..Status::new(409, "Conflict", message)
    }
}

/// Applies a configuration. `live` is the stored object, Null when it does not exist yet; `applied` is the decoded
/// request body (unknown fields dropped, no defaults). Gives the object to be defaulted, validated and stored,
/// managedFields included; when nothing changes it equals `live`.
///
/// # Errors
/// 400 when the body carries managedFields, 409 with a cause for each field that another manager owns with another
/// value (unless `force`).
pub fn apply(
    live: &Value,
    applied: &Value,
    schema: Option<&'static TypeDef>,
    r: &Request<'_>,
    force: bool,
) -> Result<Value, Status> {
    if meta::metadata(applied)
        .get("managedFields")
        .is_some_and(|v| !v.is_null())
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let shape = Shape::object(schema);
    let mut entries = read(live);
    if entries.is_empty() && live.is_object() {
        // What was there before anybody applied belongs to a manager of its own.
        let set = strip(fieldset::fields_of(live, shape), r);
        entries.push(Entry {
            manager: BEFORE_FIRST_APPLY.into(),
            applies: false,
            api_version: r.api_version.into(),
            subresource: String::new(),
            time: r.now.into(),
            set,
        });
    }
    let own = |e: &Entry| e.is(r, true);
    let set = strip(fieldset::fields_of(applied, shape), r);
    let last = entries.iter().find(|e| own(e)).cloned();
    let mut mine = last.clone().unwrap_or_else(|| Entry {
        manager: r.manager.into(),
        applies: true,
        api_version: r.api_version.into(),
        subresource: r.subresource.into(),
        time: r.now.into(),
        set: Set::default(),
    });
    mine.set = set;
    mine.api_version = r.api_version.into();
    if last
        .as_ref()
        .is_some_and(|l| l.set != mine.set || l.api_version != mine.api_version)
    {
        mine.time = r.now.into();
    }
    entries.retain(|e| !own(e));
    entries.push(mine);
    let mut object = fieldset::merge(live, applied, shape);
    if let Some(last) = last {
        let kept = entries
            .iter()
            .fold(Set::default(), |all, e| all.union(&e.set));
        fieldset::remove(&mut object, shape, &last.set, &kept);
    }
    let empty = json!({});
    let change = compare(
        if live.is_object() { live } else { &empty },
        &object,
        shape,
        r,
    );
    settle(&mut entries, own, &change, force)?;
    write(&mut object, entries);
    Ok(object)
}

/// Records what a create, update or patch changed as owned by its manager (operation Update). `live` is the stored
/// object, Null on create; `new` is the object as it will be stored, defaults included. A client that sends
/// managedFields itself replaces them (an empty entry clears them), one that leaves them out keeps the stored ones.
pub fn track_update(
    live: &Value,
    new: &mut Value,
    schema: Option<&'static TypeDef>,
    r: &Request<'_>,
) {
    let shape = Shape::object(schema);
    let given = meta::metadata(new)
        .get("managedFields")
        .and_then(Value::as_array);
    let reset = given.is_some_and(|g| matches!(&g[..], [Value::Object(o)] if o.is_empty()));
    let mut entries = if reset {
        Vec::new()
    } else if r.subresource.is_empty() && given.is_some() {
        let own = read(new);
        if own.is_empty() { read(live) } else { own }
    } else {
        read(live)
    };
    let before = entries.clone();
    let own = |e: &Entry| e.is(r, false);
    let empty = json!({});
    let change = compare(if live.is_object() { live } else { &empty }, new, shape, r);
    // With force there is no conflict to report.
    let _ = settle(&mut entries, own, &change, true);
    let i = match entries.iter().position(own) {
        Some(i) => i,
        None => {
            entries.push(Entry {
                manager: r.manager.into(),
                applies: false,
                api_version: r.api_version.into(),
                subresource: r.subresource.into(),
                time: r.now.into(),
                set: Set::default(),
            });
            entries.len() - 1
        }
    };
    let e = &mut entries[i];
    e.set = std::mem::take(&mut e.set)
        .difference(&change.removed)
        .union(&change.modified)
        .union(&change.added);
    // The time tells when the entry last changed, so that a write which changes nothing stays none.
    if !before.contains(e) {
        e.time = r.now.into();
    }
    cap(&mut entries, r);
    write(new, entries);
}

/// Folds the oldest Update entries into one when there are too many.
fn cap(entries: &mut Vec<Entry>, r: &Request<'_>) {
    let updates = |es: &[Entry]| {
        es.iter()
            .filter(|e| !e.applies && !e.set.is_empty())
            .count()
    };
    if updates(entries) <= MAX_UPDATE_MANAGERS {
        return;
    }
    let mut old: Vec<Entry> = entries.iter().filter(|e| !e.applies).cloned().collect();
    entries.retain(|e| e.applies);
    old.sort_by(|a, b| a.time.cmp(&b.time));
    let fold = old.len() - (MAX_UPDATE_MANAGERS - 1);
    let mut ancient = Entry {
        manager: ANCIENT.into(),
        applies: false,
        api_version: r.api_version.into(),
        subresource: String::new(),
        time: String::new(),
        set: Set::default(),
    };
    for e in old.drain(..fold) {
        ancient.set = std::mem::take(&mut ancient.set).union(&e.set);
        ancient.time = ancient.time.max(e.time);
    }
    entries.push(ancient);
    entries.extend(old);
}

/// The manager of a request that names none: its User-Agent up to the first slash, 128 characters at most.
pub fn default_manager(user_agent: &str) -> String {
    user_agent
        .split('/')
        .next()
        .unwrap_or("")
        .chars()
        .filter(|c| !c.is_control())
        .take(128)
        .collect()
}

/// Errors of the query parameter `fieldManager` (upstream's ValidateFieldManager); `apply` requires one.
pub fn validate_field_manager(manager: &str, apply: bool) -> Vec<FieldError> {
    let mut errs = Vec::new();
    if apply && manager.is_empty() {
        errs.push(FieldError::required(
            "fieldManager",
            "is required for apply patch",
        ));
    }
    if manager.chars().count() > 128 {
        errs.push(FieldError {
            kind: crate::field::ErrorType::TooLong,
            field: "fieldManager".into(),
            value: Value::Null,
            detail: "may not be more than 128 bytes".into(),
        });
    }
    if let Some((i, c)) = manager.char_indices().find(|(_, c)| c.is_control()) {
        errs.push(FieldError::invalid(
            "fieldManager",
            manager,
            format!("invalid character {c:?} (at position {i})"),
        ));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::lookup;
    use proptest::prelude::*;

    const NOW: &str = "2024-01-01T00:00:00Z";
    const LATER: &str = "2024-01-02T00:00:00Z";

    fn request<'a>(manager: &'a str, now: &'a str) -> Request<'a> {
        Request {
            manager,
            api_version: "apps/v1",
            subresource: "",
            now,
            ignored: &["status"],
        }
    }
    fn deployment() -> Option<&'static TypeDef> {
        Some(lookup("io.k8s.api.apps.v1.Deployment"))
    }
    fn object(spec: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "d"}, "spec": spec})
    }
    fn applied(live: &Value, spec: Value, manager: &str, force: bool) -> Result<Value, Status> {
        apply(
            live,
            &object(spec),
            deployment(),
            &request(manager, LATER),
            force,
        )
    }
    fn owners(o: &Value) -> Vec<(String, String, Value)> {
        read(o)
            .iter()
            .map(|e| {
                (
                    e.manager.clone(),
                    if e.applies { "Apply" } else { "Update" }.to_string(),
                    e.set.to_json(),
                )
            })
            .collect()
    }

    #[test]
    fn the_first_apply_owns_what_it_says() {
        let o = applied(&Value::Null, json!({"replicas": 1}), "m", false).expect("applied");
        assert_eq!(o["spec"], json!({"replicas": 1}));
        assert_eq!(
            o["metadata"]["managedFields"],
            json!([{"apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}, "manager": "m", "operation": "Apply", "time": LATER}])
        );
        assert_eq!(
            applied(&o, json!({"replicas": 1}), "m", false),
            Ok(o.clone())
        );
    }

    #[test]
    fn another_managers_value_is_a_conflict_unless_forced() {
        let one = applied(
            &Value::Null,
            json!({"replicas": 1, "paused": true}),
            "one",
            false,
        )
        .expect("applied");
        let e = applied(&one, json!({"replicas": 2}), "two", false).unwrap_err();
        assert_eq!((e.code, e.reason), (409, "Conflict"));
        assert_eq!(
            e.message,
            "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas"
        );
        assert_eq!(
            e.details["causes"],
            json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.replicas"}])
        );
        // The same value is shared.
        let both = applied(&one, json!({"replicas": 1}), "two", false).expect("shared");
        assert_eq!(owners(&both).len(), 2);
        let forced = applied(&one, json!({"replicas": 2}), "two", true).expect("forced");
        assert_eq!(forced["spec"], json!({"replicas": 2, "paused": true}));
        assert_eq!(
            owners(&forced),
            [
                (
                    "one".into(),
                    "Apply".into(),
                    json!({"f:spec": {"f:paused": {}}})
                ),
                (
                    "two".into(),
                    "Apply".into(),
                    json!({"f:spec": {"f:replicas": {}}})
                ),
            ]
        );
    }

    #[test]
    fn fields_given_up_are_removed_unless_another_owns_them() {
        let containers = |names: &[&str]| -> Value {
            names
                .iter()
                .map(|n| json!({"name": n, "image": "i"}))
                .collect()
        };
        let spec =
            |names: &[&str]| json!({"template": {"spec": {"containers": containers(names)}}});
        let one = applied(&Value::Null, spec(&["a", "b"]), "one", false).expect("applied");
        let mut live = one.clone();
        // The server defaults a field of each; nobody owns it.
        for i in 0..2 {
            live["spec"]["template"]["spec"]["containers"][i]["imagePullPolicy"] = "Always".into();
        }
        let next = applied(&live, spec(&["b"]), "one", false).expect("applied");
        assert_eq!(
            next["spec"]["template"]["spec"]["containers"],
            json!([{"name": "b", "image": "i", "imagePullPolicy": "Always"}])
        );
        let shared = applied(
            &live,
            json!({"template": {"spec": {"containers": [{"name": "a", "tty": true}]}}}),
            "two",
            false,
        )
        .expect("shared");
        let next = applied(&shared, spec(&["b"]), "one", false).expect("applied");
        assert_eq!(
            next["spec"]["template"]["spec"]["containers"],
            json!([{"name": "a", "imagePullPolicy": "Always", "tty": true}, {"name": "b", "image": "i", "imagePullPolicy": "Always"}])
        );
        let none = applied(&live, json!({"replicas": 1}), "one", false).expect("applied");
        assert_eq!(none["spec"], json!({"replicas": 1}));
    }

    #[test]
    fn updates_are_tracked_and_take_ownership() {
        let one = applied(&Value::Null, json!({"replicas": 1}), "one", false).expect("applied");
        let mut new = one.clone();
        new["spec"]["replicas"] = 5.into();
        new["status"] = json!({"replicas": 5});
        track_update(
            &one,
            &mut new,
            deployment(),
            &request("kubectl-scale", LATER),
        );
        assert_eq!(
            owners(&new),
            [(
                "kubectl-scale".into(),
                "Update".into(),
                json!({"f:spec": {"f:replicas": {}}})
            )]
        );
        let e = applied(&new, json!({"replicas": 1}), "one", false).unwrap_err();
        assert_eq!(
            e.message,
            "Apply failed with 1 conflict: conflict with \"kubectl-scale\" using apps/v1 at 2024-01-02T00:00:00Z: .spec.replicas"
        );
        // A write that changes nothing changes no entry.
        let mut same = new.clone();
        track_update(
            &new,
            &mut same,
            deployment(),
            &request("kubectl-scale", "2025-01-01T00:00:00Z"),
        );
        assert_eq!(same, new);
        // A client that does not know managedFields keeps them; an empty entry clears them.
        let mut without = new.clone();
        meta::set(&mut without, "managedFields", Value::Null);
        track_update(&new, &mut without, deployment(), &request("x", LATER));
        assert_eq!(without, new);
        let mut cleared = new.clone();
        meta::set(&mut cleared, "managedFields", json!([{}]));
        track_update(&new, &mut cleared, deployment(), &request("x", LATER));
        assert!(cleared["metadata"].get("managedFields").is_none());
    }

    #[test]
    fn what_was_there_before_the_first_apply_has_an_owner() {
        let live = object(json!({"replicas": 3}));
        let e = applied(&live, json!({"replicas": 1}), "one", false).unwrap_err();
        assert!(e.message.starts_with(
            "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1"
        ));
        assert_eq!(
            applied(&live, json!({"replicas": 3}), "one", false).map(|o| owners(&o).len()),
            Ok(2)
        );
    }

    #[test]
    fn many_updaters_are_folded() {
        let mut live = object(json!({}));
        for i in 0..15 {
            let mut new = live.clone();
            meta::set(&mut new, "labels", json!({format!("l{i}"): "x"}));
            for j in 0..i {
                new["metadata"]["labels"][format!("l{j}")] = "x".into();
            }
            let now = format!("2024-01-01T00:00:{i:02}Z");
            track_update(
                &live,
                &mut new,
                deployment(),
                &request(&format!("m{i}"), &now),
            );
            live = new;
        }
        let o = owners(&live);
        assert_eq!(o.len(), MAX_UPDATE_MANAGERS);
        assert_eq!(o[0].0, ANCIENT);
    }

    #[test]
    fn managed_fields_may_not_be_applied() {
        let mut o = object(json!({}));
        o["metadata"]["managedFields"] = json!([{"manager": "x"}]);
        let e = apply(&Value::Null, &o, deployment(), &request("m", NOW), false).unwrap_err();
        assert_eq!(e.message, "metadata.managedFields must be nil");
        assert_eq!(
            validate_field_manager("", true)[0].to_string(),
            "fieldManager: Required value: is required for apply patch"
        );
        assert_eq!(default_manager("kubectl/v1.36.0 (linux/amd64)"), "kubectl");
    }

    #[test]
    fn objects_without_a_schema_merge_entry_by_entry() {
        let live = json!({"metadata": {"name": "x"}, "spec": {"a": {"b": 1, "c": 2}, "l": [1]}});
        let got = apply(
            &live,
            &json!({"spec": {"a": {"b": 3}, "l": [2]}}),
            None,
            &request("m", NOW),
            true,
        )
        .expect("applied");
        assert_eq!(got["spec"], json!({"a": {"b": 3, "c": 2}, "l": [2]}));
    }

    fn any_spec() -> impl Strategy<Value = Value> {
        let container = (
            "[ab]",
            prop::option::of("[xy]"),
            prop::option::of(any::<bool>()),
        )
            .prop_map(|(n, image, tty)| {
                let mut c = json!({"name": n});
                if let Some(i) = image {
                    c["image"] = i.into();
                }
                if let Some(t) = tty {
                    c["tty"] = t.into();
                }
                c
            });
        (
            prop::option::of(0..3i32),
            prop::collection::vec(container, 0..3),
        )
            .prop_map(|(r, mut cs)| {
                cs.dedup_by(|a, b| a["name"] == b["name"]);
                if cs.len() == 3 {
                    cs.pop();
                }
                // An empty list is owned by nobody, so what happens to it depends on its surroundings, also upstream.
                cs.push(json!({"name": "z"}));
                let mut s = json!({"template": {"spec": {"containers": cs}}});
                if let Some(r) = r {
                    s["replicas"] = r.into();
                }
                s
            })
    }

    proptest! {
        #[test]
        fn applying_twice_is_applying_once_and_the_applied_values_are_there(a in any_spec(), b in any_spec(), c in any_spec()) {
            let mut live = Value::Null;
            for (m, spec) in [("one", &a), ("two", &b), ("one", &c)] {
                live = applied(&live, spec.clone(), m, true).expect("forced");
                prop_assert_eq!(applied(&live, spec.clone(), m, false), Ok(live.clone()));
                let merged = fieldset::merge(&live, &object(spec.clone()), Shape::object(deployment()));
                prop_assert_eq!(&merged["spec"], &live["spec"]);
            }
        }
    }
}
