//! Persistent volumes (SetDefaults_PersistentVolume, ValidatePersistentVolume, printPersistentVolume).

use super::persistent_volume_claim::{
    access_modes, attributes_class, modes_short, phase, storage_class, volume_mode,
};
use super::{resources, scheduling, volume};
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Context, SelectableField, Strategy};
use serde_json::{Value, json};

const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// SetDefaults_PersistentVolume.
pub fn default(pv: &mut Value) {
    if let Some(status) = object(pv, "status") {
        zero(status, "phase", "Pending");
    }
    if let Some(spec) = object(pv, "spec") {
        zero(spec, "persistentVolumeReclaimPolicy", "Retain");
        unset(spec, "volumeMode", "Filesystem");
        volume::sources(spec);
    }
}

fn prepare_create(c: &Context, pv: &mut Value) {
    put(
        pv,
        "status",
        json!({"phase": "Pending", "lastPhaseTransitionTime": c.now}),
    );
}

fn prepare_status_update(c: &Context, new: &mut Value, old: &Value) {
    crate::resource::only_status(c, new, old);
    if text(new, "status.phase") != text(old, "status.phase")
        && let Some(status) = at_mut(new, "status")
    {
        put(status, "lastPhaseTransitionTime", c.now.clone());
    }
}

fn validate(pv: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(pv, "spec");
    let path = Path::new("spec");
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        errs.push(FieldError::required(path.child("accessModes"), ""));
    }
    access_modes(modes, &path.child("accessModes"), &mut errs);
    let cp = path.child("capacity");
    if is_empty(at(spec, "capacity")) {
        errs.push(FieldError::required(cp, ""));
    } else if !has(spec, "capacity.storage") || entries(spec, "capacity").count() > 1 {
        errs.push(FieldError::not_supported(
            cp,
            at(spec, "capacity").clone(),
            &["storage"],
        ));
    }
    for (k, q) in entries(spec, "capacity") {
        resources::quantity_value(k, q, &cp.key(k), &mut errs);
        if check::quantity(q).is_some_and(|q| q.is_zero()) {
            errs.push(FieldError::invalid(
                cp.key(k),
                q.clone(),
                "must be greater than zero",
            ));
        }
    }
    one_of(
        spec,
        "persistentVolumeReclaimPolicy",
        &["Delete", "Recycle", "Retain"],
        &path,
        &mut errs,
    );
    if has(spec, "nodeAffinity") {
        let np = path.child("nodeAffinity");
        let required = at(spec, "nodeAffinity.required");
        if required.is_null() {
            errs.push(FieldError::required(
                np.child("required"),
                "must specify required node constraints",
            ));
        } else {
            scheduling::node_selector(required, &np.child("required"), &mut errs);
        }
    }
    let given: Vec<&&str> = SOURCES.iter().filter(|s| has(spec, s)).collect();
    match given.as_slice() {
        [] => errs.push(FieldError::required(path, "must specify a volume type")),
        [_] => {}
        [_, more @ ..] => {
            for m in more {
                errs.push(FieldError::forbidden(
                    path.child(m),
                    "may not specify more than 1 volume type",
                ));
            }
        }
    }
    if has(spec, "hostPath") {
        volume::host_path(at(spec, "hostPath"), &path.child("hostPath"), &mut errs);
        if text(spec, "hostPath.path") == "/"
            && text(spec, "persistentVolumeReclaimPolicy") == "Recycle"
        {
            errs.push(FieldError::forbidden(
                path.child("persistentVolumeReclaimPolicy"),
                "may not be 'recycle' for a hostPath mount of '/'",
            ));
        }
    }
    if has(spec, "local") {
        let lp = path.child("local");
        require(at(spec, "local"), "path", &lp, &mut errs);
        if !has(spec, "nodeAffinity") {
            errs.push(FieldError::required(
                path.child("nodeAffinity"),
                "Local volume requires node affinity",
            ));
        }
    }
    if has(spec, "nfs") {
        let np = path.child("nfs");
        require(at(spec, "nfs"), "server", &np, &mut errs);
        let p = require(at(spec, "nfs"), "path", &np, &mut errs);
        if !p.is_empty() && !p.starts_with('/') {
            errs.push(FieldError::invalid(
                np.child("path"),
                p,
                "must be an absolute path",
            ));
        }
    }
    if has(spec, "csi") {
        let cp = path.child("csi");
        require(at(spec, "csi"), "driver", &cp, &mut errs);
        require(at(spec, "csi"), "volumeHandle", &cp, &mut errs);
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        check::dns_subdomain(class, &path.child("storageClassName"), &mut errs);
    }
    one_of(
        spec,
        "volumeMode",
        &["Block", "Filesystem"],
        &path,
        &mut errs,
    );
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let (ns, os) = (at(new, "spec"), at(old, "spec"));
    let changed = SOURCES.iter().any(|s| !equal(at(ns, s), at(os, s)));
    if changed {
        errs.push(FieldError::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation\n",
        ));
    }
    immutable(ns, os, "volumeMode", &Path::new("spec"), &mut errs);
    if has(os, "nodeAffinity") {
        immutable(ns, os, "nodeAffinity", &Path::new("spec"), &mut errs);
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create,
        prepare_status_update,
        validate,
        validate_update,
        ..Strategy::default()
    }
}

/// Fields of selectors.
pub fn fields() -> Vec<SelectableField> {
    vec![field("name", |p| name(p).into())]
}

/// The columns of `kubectl get persistentvolumes`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Capacity", 0, |p, _| {
            int_or_string(at(p, "spec.capacity.storage")).into()
        }),
        col("Access Modes", 0, |p, _| {
            modes_short(items(p, "spec.accessModes")).into()
        }),
        col("Reclaim Policy", 0, |p, _| {
            text(p, "spec.persistentVolumeReclaimPolicy").into()
        }),
        col("Status", 0, |p, _| phase(p)),
        col("Claim", 0, |p, _| {
            if !has(p, "spec.claimRef") {
                return "".into();
            }
            format!(
                "{}/{}",
                text(p, "spec.claimRef.namespace"),
                text(p, "spec.claimRef.name")
            )
            .into()
        }),
        col("StorageClass", 0, |p, _| storage_class(p).into()),
        col("VolumeAttributesClass", 0, |p, _| attributes_class(p)),
        col("Reason", 0, |p, _| text(p, "status.reason").into()),
        col_age(),
        col("VolumeMode", 1, |p, _| volume_mode(p)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_one_source_a_size_and_a_mode() {
        let mut pv = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/x"}}});
        default(&mut pv);
        assert_eq!(pv["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(pv["spec"]["hostPath"]["type"], "");
        assert!(validate(&pv).is_empty(), "{:?}", validate(&pv));
        let fields: Vec<String> = validate(&json!({"spec": {}}))
            .iter()
            .map(|e| e.field.clone())
            .collect();
        assert_eq!(fields, ["spec.accessModes", "spec.capacity", "spec"]);
    }
}
