//! ObjectMeta on untyped objects: accessors, generated names, and the rules that hold for every kind
//! (`k8s.io/apimachinery/pkg/api/validation/objectmeta.go`). Pure; randomness and time are inputs.

use crate::field::FieldError;
use crate::names::{
    NameRule, is_dns1123_label, is_dns1123_subdomain, is_fully_qualified_name, is_qualified_name,
    is_valid_label_value,
};
use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// `metadata`, Null when missing.
pub fn metadata(o: &Value) -> &Value {
    o.get("metadata").unwrap_or(&NULL)
}

/// A string of metadata, empty when missing.
pub fn text<'a>(o: &'a Value, key: &str) -> &'a str {
    metadata(o).get(key).and_then(Value::as_str).unwrap_or("")
}

/// `metadata.name`.
pub fn name(o: &Value) -> &str {
    text(o, "name")
}

/// `metadata.namespace`, empty for cluster-wide objects.
pub fn namespace(o: &Value) -> &str {
    text(o, "namespace")
}

/// `metadata.uid`.
pub fn uid(o: &Value) -> &str {
    text(o, "uid")
}

/// `metadata.resourceVersion` as a number; none when missing, empty or no number.
pub fn resource_version(o: &Value) -> Option<u64> {
    text(o, "resourceVersion").parse().ok()
}

/// `metadata.generation`, 0 when missing.
pub fn generation(o: &Value) -> i64 {
    metadata(o)
        .get("generation")
        .and_then(Value::as_i64)
        .unwrap_or(0)
}

/// `metadata.labels`, Null when missing.
pub fn labels(o: &Value) -> &Value {
    metadata(o).get("labels").unwrap_or(&NULL)
}

/// An annotation.
pub fn annotation<'a>(o: &'a Value, key: &str) -> Option<&'a str> {
    metadata(o).get("annotations")?.get(key)?.as_str()
}

/// Has it a deletionTimestamp?
pub fn deleting(o: &Value) -> bool {
    !text(o, "deletionTimestamp").is_empty()
}

/// `metadata.finalizers`.
pub fn finalizers(o: &Value) -> impl Iterator<Item = &str> {
    metadata(o)
        .get("finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// `metadata.ownerReferences`.
pub fn owner_references(o: &Value) -> &[Value] {
    metadata(o)
        .get("ownerReferences")
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The owner that controls the object.
pub fn controller(o: &Value) -> Option<&Value> {
    owner_references(o)
        .iter()
        .find(|r| r.get("controller").and_then(Value::as_bool) == Some(true))
}

/// `metadata`, made when missing; none when the object is no JSON object.
pub fn metadata_mut(o: &mut Value) -> Option<&mut Map<String, Value>> {
    let map = o.as_object_mut()?;
    let slot = map.entry("metadata").or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut()
}

/// Sets a key of metadata; null removes it.
pub fn set(o: &mut Value, key: &str, value: impl Into<Value>) {
    let value = value.into();
    if let Some(m) = metadata_mut(o) {
        if value.is_null() {
            m.shift_remove(key);
        } else {
            m.insert(key.to_string(), value);
        }
    }
}

/// Upstream's alphabet of generated names: no vowels, no look-alikes.
const ALPHANUMS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A generated name: the base, cut to 58 bytes, and five characters chosen by the random bytes.
pub fn generate_name(base: &str, random: [u8; 5]) -> String {
    let mut cut = base.len().min(63 - random.len());
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut s = base[..cut].to_string();
    s.extend(
        random
            .iter()
            .map(|b| ALPHANUMS[*b as usize % ALPHANUMS.len()] as char),
    );
    s
}

/// Upstream's `rand.SafeEncodeString`: hashes as they appear in names.
pub fn safe_encode(text: &str) -> String {
    text.bytes()
        .map(|b| ALPHANUMS[b as usize % ALPHANUMS.len()] as char)
        .collect()
}

const ANNOTATIONS_MAX: usize = 256 * 1024;

/// `ValidateLabels`.
pub fn validate_labels(labels: &Value, path: &str) -> Vec<FieldError> {
    let mut errs = Vec::new();
    for (k, v) in labels.as_object().into_iter().flatten() {
        let wrong = is_qualified_name(k);
        if !wrong.is_empty() {
            errs.push(FieldError::invalid(path, k.as_str(), wrong.join("; ")));
        }
        let value = v.as_str().unwrap_or("");
        let wrong = is_valid_label_value(value);
        if !wrong.is_empty() {
            errs.push(FieldError::invalid(path, value, wrong.join("; ")));
        }
    }
    errs
}

/// `ValidateAnnotations`: qualified keys (compared in lower case), 256 KiB in all.
pub fn validate_annotations(annotations: &Value, path: &str) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let mut total = 0;
    for (k, v) in annotations.as_object().into_iter().flatten() {
        let wrong = is_qualified_name(&k.to_lowercase());
        if !wrong.is_empty() {
            errs.push(FieldError::invalid(path, k.as_str(), wrong.join("; ")));
        }
        total += k.len() + v.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        errs.push(too_long(path, ANNOTATIONS_MAX));
    }
    errs
}

fn too_long(path: &str, max: usize) -> FieldError {
    FieldError {
        kind: crate::field::ErrorType::TooLong,
        field: path.to_string(),
        value: Value::Null,
        detail: format!("may not be more than {max} bytes"),
    }
}

fn validate_finalizers(finalizers: &Value, path: &str) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let (mut orphan, mut foreground) = (false, false);
    for f in finalizers.as_array().into_iter().flatten() {
        let f = f.as_str().unwrap_or("");
        for msg in is_qualified_name(f) {
            errs.push(FieldError::invalid(path, f, msg));
        }
        orphan |= f == "orphan";
        foreground |= f == "foregroundDeletion";
        let standard = ["orphan", "foregroundDeletion", "kubernetes"].contains(&f);
        if !f.contains('/') && !standard && !f.is_empty() {
            errs.push(FieldError::invalid(
                path,
                f,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    if orphan && foreground {
        errs.push(FieldError::invalid(
            path,
            finalizers.clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errs
}

fn validate_owner_references(refs: &Value, path: &str) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let mut controllers = 0;
    let mut first = String::new();
    for (i, r) in refs.as_array().into_iter().flatten().enumerate() {
        let at = format!("{path}[{i}]");
        let s = |k: &str| r.get(k).and_then(Value::as_str).unwrap_or("");
        let (group, version) = s("apiVersion")
            .split_once('/')
            .unwrap_or(("", s("apiVersion")));
        if version.is_empty() {
            errs.push(FieldError::invalid(
                format!("{at}.apiVersion"),
                s("apiVersion"),
                "version must not be empty",
            ));
        }
        if s("kind").is_empty() {
            errs.push(FieldError::invalid(
                format!("{at}.kind"),
                "",
                "must not be empty",
            ));
        }
        if s("name").is_empty() {
            errs.push(FieldError::invalid(
                format!("{at}.name"),
                "",
                "must not be empty",
            ));
        }
        if s("uid").is_empty() {
            errs.push(FieldError::invalid(
                format!("{at}.uid"),
                "",
                "must not be empty",
            ));
        }
        if group.is_empty() && s("kind") == "Event" {
            errs.push(FieldError::invalid(
                at.as_str(),
                r.clone(),
                format!(
                    "{}, Kind=Event is disallowed from being an owner",
                    s("apiVersion")
                ),
            ));
        }
        if r.get("controller").and_then(Value::as_bool) == Some(true) {
            controllers += 1;
            if controllers == 1 {
                first = s("name").to_string();
            } else {
                // Upstream shows the list with each of them; a long list would make an error of its square.
                if controllers > 2 {
                    continue;
                }
                errs.push(FieldError::invalid(
                    path,
                    refs.clone(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                        s("name")
                    ),
                ));
            }
        }
    }
    errs
}

/// `ValidateObjectMeta`: errors of metadata at `metadata`, for create and (with `validate_update`) update.
pub fn validate(o: &Value, namespaced: bool, rule: NameRule) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let m = metadata(o);
    let generate = text(o, "generateName");
    if !generate.is_empty() {
        for msg in rule(generate, true) {
            errs.push(FieldError::invalid("metadata.generateName", generate, msg));
        }
    }
    let name = name(o);
    if name.is_empty() {
        errs.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        for msg in rule(name, false) {
            errs.push(FieldError::invalid("metadata.name", name, msg));
        }
    }
    let ns = namespace(o);
    if namespaced {
        if ns.is_empty() {
            errs.push(FieldError::required("metadata.namespace", ""));
        } else {
            for msg in is_dns1123_label(ns) {
                errs.push(FieldError::invalid("metadata.namespace", ns, msg));
            }
        }
    } else if !ns.is_empty() {
        errs.push(FieldError::forbidden(
            "metadata.namespace",
            "not allowed on this type",
        ));
    }
    if generation(o) < 0 {
        errs.push(FieldError::invalid(
            "metadata.generation",
            generation(o),
            "must be greater than or equal to 0",
        ));
    }
    let part = |k: &str| m.get(k).unwrap_or(&NULL);
    errs.extend(validate_labels(part("labels"), "metadata.labels"));
    errs.extend(validate_annotations(
        part("annotations"),
        "metadata.annotations",
    ));
    errs.extend(validate_owner_references(
        part("ownerReferences"),
        "metadata.ownerReferences",
    ));
    errs.extend(validate_finalizers(
        part("finalizers"),
        "metadata.finalizers",
    ));
    errs
}

/// `ValidateObjectMetaUpdate`: what may not change. The registry first carries over the server's own fields (uid,
/// creationTimestamp, deletionTimestamp, generation...) where the new object leaves them out.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    if deleting(old) {
        let had: Vec<&str> = finalizers(old).collect();
        let extra: Vec<String> = finalizers(new)
            .filter(|f| !had.contains(f))
            .map(|f| format!("{f:?}"))
            .collect();
        if !extra.is_empty() {
            errs.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    extra.join(", ")
                ),
            ));
        }
    }
    if text(new, "resourceVersion").is_empty() {
        errs.push(FieldError::invalid(
            "metadata.resourceVersion",
            "",
            "must be specified for an update",
        ));
    }
    if generation(new) < generation(old) {
        errs.push(FieldError::invalid(
            "metadata.generation",
            generation(new),
            "must not be decremented",
        ));
    }
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let n = metadata(new).get(key).unwrap_or(&NULL);
        let o = metadata(old).get(key).unwrap_or(&NULL);
        let blank = |v: &Value| v.is_null() || v.as_str() == Some("");
        if n != o && !(blank(n) && blank(o)) {
            errs.push(FieldError::invalid(
                format!("metadata.{key}"),
                n.clone(),
                "field is immutable",
            ));
        }
    }
    errs
}

/// Drops what Go's encoder would leave out of metadata: empty strings, lists and maps, nulls.
pub fn compact(o: &mut Value) {
    if let Some(Value::Object(m)) = o.get_mut("metadata") {
        m.retain(|_, v| match v {
            Value::Null => false,
            Value::String(s) => !s.is_empty(),
            Value::Array(a) => !a.is_empty(),
            Value::Object(o) => !o.is_empty(),
            Value::Number(n) => n.as_f64() != Some(0.0) || n.is_f64(),
            Value::Bool(_) => true,
        });
    }
}

/// The errors of a namespace's name in a request path or body.
pub fn validate_namespace_name(ns: &str) -> Vec<String> {
    is_dns1123_label(ns)
}

/// A field manager's name or a finalizer that must have a domain; kept here for callers that validate single strings.
pub fn validate_domain_name(s: &str) -> Vec<String> {
    if s.contains('/') {
        is_qualified_name(s)
    } else if s.contains('.') {
        is_fully_qualified_name(s)
    } else {
        is_dns1123_subdomain(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::name_is_dns_subdomain;
    use serde_json::json;

    #[test]
    fn generated_names_keep_to_63_bytes() {
        assert_eq!(generate_name("web-", [0, 1, 2, 26, 27]), "web-bcd9b");
        assert_eq!(generate_name(&"a".repeat(100), [0; 5]).len(), 63);
        generate_name(&"é".repeat(100), [0; 5]);
    }

    #[test]
    fn metadata_is_checked_as_upstream_checks_it() {
        let errs = validate(
            &json!({"metadata": {"name": "A", "labels": {"-a": "ok"}, "annotations": {"big": "x".repeat(300_000)}, "finalizers": ["foo"],
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "a"}]}}),
            true,
            name_is_dns_subdomain,
        );
        let fields: Vec<&str> = errs.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "metadata.namespace",
                "metadata.labels",
                "metadata.annotations",
                "metadata.ownerReferences[0].uid",
                "metadata.finalizers"
            ]
        );
        assert!(validate(&json!({"metadata": {"name": "a", "namespace": "b", "finalizers": ["example.com/x"]}}), true, name_is_dns_subdomain).is_empty());
    }

    #[test]
    fn updates_may_not_change_identity() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5"}});
        let new = json!({"metadata": {"name": "a", "uid": "2", "resourceVersion": "5"}});
        assert_eq!(
            validate_update(&new, &old)[0].to_string(),
            "metadata.uid: Invalid value: \"2\": field is immutable"
        );
        assert!(validate_update(&old, &old).is_empty());
        let dying = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5", "deletionTimestamp": "2024-01-01T00:00:00Z", "finalizers": ["a/b"]}});
        let mut more = dying.clone();
        more["metadata"]["finalizers"] = json!(["a/b", "c/d"]);
        assert_eq!(
            validate_update(&more, &dying)[0].to_string(),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}"
        );
    }
}
