//! Persistent volume claims (SetDefaults_PersistentVolumeClaim, ValidatePersistentVolumeClaim and its update rules,
//! printPersistentVolumeClaim).

use super::resources;
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Context, SelectableField, Strategy};
use serde_json::{Value, json};

/// The access modes there are.
pub const ACCESS_MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

/// Defaults of a claim's spec (also in templates).
pub fn default_spec(spec: &mut Value) {
    unset(spec, "volumeMode", "Filesystem");
    // A struct, not a pointer, upstream: it is always shown.
    unset(spec, "resources", json!({}));
}

/// Defaults of a claim.
pub fn default(pvc: &mut Value) {
    if let Some(status) = object(pvc, "status") {
        zero(status, "phase", "Pending");
    }
    if let Some(spec) = object(pvc, "spec") {
        default_spec(spec);
        // dataSource and dataSourceRef are one field under two names, when the first is what dataSource can name.
        if !has(spec, "dataSourceRef") && has(spec, "dataSource") {
            let source = at(spec, "dataSource").clone();
            put(spec, "dataSourceRef", source);
        } else if !has(spec, "dataSource") && has(spec, "dataSourceRef") {
            let reference = at(spec, "dataSourceRef").clone();
            if text(&reference, "namespace").is_empty() {
                put(spec, "dataSource", reference);
            }
        }
    }
}

/// ValidatePersistentVolumeClaimSpec.
pub fn validate_spec(spec: &Value, path: &Path<'_>, errs: &mut Errors) {
    let modes = items(spec, "accessModes");
    let mp = path.child("accessModes");
    if modes.is_empty() {
        errs.push(FieldError::required(
            mp,
            "at least 1 access mode is required",
        ));
    }
    access_modes(modes, &mp, errs);
    check::label_selector(at(spec, "selector"), &path.child("selector"), errs);
    let rp = path.child("resources");
    match at(spec, "resources.requests").get("storage") {
        Some(q) if !q.is_null() => {
            let sp = rp.child("requests");
            resources::quantity_value("storage", q, &sp.key("storage"), errs);
            if check::quantity(q).is_some_and(|q| q.is_zero()) {
                errs.push(FieldError::invalid(
                    sp.key("storage"),
                    q.clone(),
                    "must be greater than zero",
                ));
            }
        }
        _ => errs.push(FieldError::required(rp.key("storage"), "")),
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        check::dns_subdomain(class, &path.child("storageClassName"), errs);
    }
    one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errs);
    for key in ["dataSource", "dataSourceRef"] {
        let source = at(spec, key);
        if source.is_null() {
            continue;
        }
        let dp = path.child(key);
        require(source, "name", &dp, errs);
        let kind = require(source, "kind", &dp, errs);
        if text(source, "apiGroup").is_empty()
            && !kind.is_empty()
            && kind != "PersistentVolumeClaim"
        {
            errs.push(FieldError::invalid(
                dp,
                kind,
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ));
        }
    }
}

/// Access modes, of claims and of volumes.
pub fn access_modes(modes: &[Value], path: &Path<'_>, errs: &mut Errors) {
    for m in modes {
        let m = m.as_str().unwrap_or("");
        if !ACCESS_MODES.contains(&m) {
            errs.push(FieldError::not_supported(path, m, ACCESS_MODES));
        }
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        errs.push(FieldError::forbidden(
            path,
            "may not use ReadWriteOncePod with other access modes",
        ));
    }
}

fn prepare_create(_: &Context, pvc: &mut Value) {
    put(pvc, "status", json!({"phase": "Pending"}));
}

fn validate(pvc: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    validate_spec(at(pvc, "spec"), &Path::new("spec"), &mut errs);
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let (ns, os) = (at(new, "spec"), at(old, "spec"));
    let mut munged = ns.clone();
    // The binder sets the volume once.
    if text(os, "volumeName").is_empty() {
        carry(&mut munged, os, "volumeName");
    }
    // A claim without a class may get the default class.
    if !has(os, "storageClassName") {
        carry(&mut munged, os, "storageClassName");
    }
    carry(&mut munged, os, "volumeAttributesClassName");
    let storage = |s: &Value| {
        at(s, "resources.requests")
            .get("storage")
            .and_then(check::quantity)
    };
    let bound = text(old, "status.phase") == "Bound";
    if bound {
        carry(&mut munged, os, "resources");
    }
    if !equal(&munged, os) {
        errs.push(FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n",
        ));
    }
    if let (Some(n), Some(o)) = (storage(ns), storage(os))
        && bound
        && n < o
    {
        let granted = at(old, "status.capacity")
            .get("storage")
            .and_then(check::quantity);
        // A claim whose expansion failed may go back, down to what it has.
        if granted.is_none_or(|g| n <= g) {
            errs.push(FieldError::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            ));
        }
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create,
        validate,
        validate_update,
        ..Strategy::default()
    }
}

/// Fields of selectors.
pub fn fields() -> Vec<SelectableField> {
    vec![field("name", |p| name(p).into())]
}

/// `RWO,ROX`: access modes in short, in upstream's order.
pub fn modes_short(modes: &[Value]) -> String {
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .iter()
    .filter(|(long, _)| modes.iter().any(|m| m == long))
    .map(|(_, short)| *short)
    .collect::<Vec<_>>()
    .join(",")
}

/// The class of a claim or a volume: the old annotation first.
pub fn storage_class(o: &Value) -> String {
    match at(o, "metadata.annotations")
        .get("volume.beta.kubernetes.io/storage-class")
        .and_then(Value::as_str)
    {
        Some(s) => s.to_string(),
        None => text(o, "spec.storageClassName").to_string(),
    }
}

/// The class of attributes; `<unset>` when none.
pub fn attributes_class(o: &Value) -> Value {
    match text(o, "spec.volumeAttributesClassName") {
        "" => "<unset>".into(),
        s => s.into(),
    }
}

/// The phase, or `Terminating`.
pub fn phase(o: &Value) -> Value {
    if has(o, "metadata.deletionTimestamp") {
        "Terminating".into()
    } else {
        text(o, "status.phase").into()
    }
}

/// The volume mode; `<unset>` when none.
pub fn volume_mode(o: &Value) -> Value {
    match text(o, "spec.volumeMode") {
        "" => "<unset>".into(),
        s => s.into(),
    }
}

/// The columns of `kubectl get persistentvolumeclaims`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Status", 0, |p, _| phase(p)),
        col("Volume", 0, |p, _| text(p, "spec.volumeName").into()),
        col("Capacity", 0, |p, _| {
            if text(p, "spec.volumeName").is_empty() {
                return "".into();
            }
            int_or_string(at(p, "status.capacity.storage")).into()
        }),
        col("Access Modes", 0, |p, _| {
            if text(p, "spec.volumeName").is_empty() {
                return "".into();
            }
            modes_short(items(p, "status.accessModes")).into()
        }),
        col("StorageClass", 0, |p, _| storage_class(p).into()),
        col("VolumeAttributesClass", 0, |p, _| attributes_class(p)),
        col_age(),
        col("VolumeMode", 1, |p, _| volume_mode(p)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(size: &str) -> Value {
        let mut c = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
        default(&mut c);
        c
    }

    #[test]
    fn a_claim_needs_a_mode_and_a_size() {
        assert!(validate(&claim("1Gi")).is_empty());
        let fields: Vec<String> = validate(&json!({"spec": {}}))
            .iter()
            .map(|e| e.field.clone())
            .collect();
        assert_eq!(fields, ["spec.accessModes", "spec.resources[storage]"]);
    }

    #[test]
    fn the_spec_of_a_claim_stays_but_the_binder_names_the_volume() {
        let old = claim("1Gi");
        let mut new = old.clone();
        new["spec"]["volumeName"] = "v".into();
        assert!(validate_update(&new, &old).is_empty());
        assert_eq!(validate_update(&claim("2Gi"), &old).len(), 1);
        let mut bound = old.clone();
        bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        assert!(validate_update(&claim("2Gi"), &bound).is_empty());
        assert_eq!(validate_update(&claim("500Mi"), &bound).len(), 1);
    }
}
