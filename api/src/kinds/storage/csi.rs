//! CSI drivers, CSI nodes and volume attachments (pkg/apis/storage): defaults, the rules users meet, columns.

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::{Value, json};

/// SetDefaults_CSIDriver.
fn default_driver(d: &mut Value) {
    let Some(spec) = object(d, "spec") else {
        return;
    };
    unset(spec, "attachRequired", true);
    unset(spec, "podInfoOnMount", false);
    unset(spec, "storageCapacity", false);
    unset(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if items(spec, "volumeLifecycleModes").is_empty() {
        put(spec, "volumeLifecycleModes", json!(["Persistent"]));
    }
    unset(spec, "requiresRepublish", false);
    unset(spec, "seLinuxMount", false);
}

fn validate_driver(d: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let path = Path::new("spec");
    let spec = at(d, "spec");
    one_of(
        spec,
        "fsGroupPolicy",
        &["File", "None", "ReadWriteOnceWithFSType"],
        &path,
        &mut errs,
    );
    let mp = path.child("volumeLifecycleModes");
    for m in items(spec, "volumeLifecycleModes") {
        let m = m.as_str().unwrap_or("");
        if !matches!(m, "Persistent" | "Ephemeral") {
            errs.push(FieldError::not_supported(
                mp,
                m,
                &["Ephemeral", "Persistent"],
            ));
        }
    }
    errs
}

fn validate_driver_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    for key in ["attachRequired", "volumeLifecycleModes"] {
        immutable(
            at(new, "spec"),
            at(old, "spec"),
            key,
            &Path::new("spec"),
            &mut errs,
        );
    }
    errs
}

/// The strategy of CSI drivers.
pub fn driver_strategy() -> Strategy {
    Strategy {
        default: default_driver,
        validate: validate_driver,
        validate_update: validate_driver_update,
        generation: true,
        ..node_strategy()
    }
}

/// The columns of `kubectl get csidrivers`.
pub fn driver_columns() -> Vec<Column> {
    vec![
        col_name(),
        col_bool("AttachRequired", 0, |d, _| {
            at(d, "spec.attachRequired")
                .as_bool()
                .unwrap_or(true)
                .into()
        }),
        col_bool("PodInfoOnMount", 0, |d, _| {
            truth(d, "spec.podInfoOnMount").into()
        }),
        col_bool("StorageCapacity", 0, |d, _| {
            truth(d, "spec.storageCapacity").into()
        }),
        col("TokenRequests", 0, |d, _| {
            let list: Vec<&str> = items(d, "spec.tokenRequests")
                .iter()
                .map(|t| text(t, "audience"))
                .collect();
            if list.is_empty() {
                "<unset>".into()
            } else {
                list.join(",").into()
            }
        }),
        col_bool("RequiresRepublish", 0, |d, _| {
            truth(d, "spec.requiresRepublish").into()
        }),
        col("Modes", 0, |d, _| {
            let list: Vec<&str> = items(d, "spec.volumeLifecycleModes")
                .iter()
                .filter_map(Value::as_str)
                .collect();
            if list.is_empty() {
                "Persistent".into()
            } else {
                list.join(",").into()
            }
        }),
        col_age(),
    ]
}

fn validate_node(n: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let path = Path::new("spec");
    let dp = path.child("drivers");
    let drivers = items(n, "spec.drivers");
    for (i, d) in drivers.iter().enumerate() {
        let p = dp.index(i);
        let name = require(d, "name", &p, &mut errs);
        require(d, "nodeID", &p, &mut errs);
        if drivers[..i].iter().any(|o| text(o, "name") == name) && !name.is_empty() {
            errs.push(FieldError::duplicate(p.child("name"), name));
        }
    }
    errs
}

/// The strategy of CSI nodes.
pub fn node_strategy() -> Strategy {
    Strategy {
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate: validate_node,
        allow_unconditional_update: false,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get csinodes`.
pub fn node_columns() -> Vec<Column> {
    vec![
        col_name(),
        col_int("Drivers", 0, |n, _| items(n, "spec.drivers").len().into()),
        col_age(),
    ]
}

fn validate_attachment(a: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let path = Path::new("spec");
    let attacher = require(at(a, "spec"), "attacher", &path, &mut errs);
    if !attacher.is_empty() {
        check::dns_subdomain(attacher, &path.child("attacher"), &mut errs);
    }
    require(at(a, "spec"), "nodeName", &path, &mut errs);
    let sp = path.child("source");
    let inline = has(a, "spec.source.inlineVolumeSpec");
    let pv = text(a, "spec.source.persistentVolumeName");
    if !inline && pv.is_empty() {
        errs.push(FieldError::required(
            sp,
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ));
    }
    if inline && !pv.is_empty() {
        errs.push(FieldError::forbidden(
            sp,
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ));
    }
    errs
}

fn validate_attachment_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if equal(at(new, "spec"), at(old, "spec")) {
        return Vec::new();
    }
    vec![FieldError::invalid(
        "spec",
        at(new, "spec").clone(),
        "field is immutable",
    )]
}

/// The strategy of volume attachments.
pub fn attachment_strategy() -> Strategy {
    Strategy {
        prepare_create: |_, a| put(a, "status", json!({"attached": false})),
        validate: validate_attachment,
        validate_update: validate_attachment_update,
        allow_unconditional_update: false,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get volumeattachments`.
pub fn attachment_columns() -> Vec<Column> {
    vec![
        col_name(),
        Column {
            format: "name",
            ..col("Attacher", 0, |a, _| text(a, "spec.attacher").into())
        },
        col("PV", 0, |a, _| {
            text(a, "spec.source.persistentVolumeName").into()
        }),
        col("Node", 0, |a, _| text(a, "spec.nodeName").into()),
        col_bool("Attached", 0, |a, _| truth(a, "status.attached").into()),
        col_age(),
    ]
}
