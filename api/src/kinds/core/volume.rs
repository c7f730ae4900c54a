//! Volumes of a pod spec: defaults and validation (pkg/apis/core/v1/defaults.go, validateVolumes and validateVolumeSource
//! of pkg/apis/core/validation). Does not know whether an object that a volume names exists.

use super::persistent_volume_claim as claim;
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use serde_json::{Value, json};

/// Every volume source upstream has; a volume names exactly one.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

/// The mode of files when none is given: 0644.
const DEFAULT_MODE: i64 = 0o644;

const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

/// SetDefaults_Volume and the defaults of each source.
pub fn default(v: &mut Value) {
    let Some(map) = v.as_object() else { return };
    if !SOURCES
        .iter()
        .any(|s| map.get(*s).is_some_and(|x| !x.is_null()))
    {
        put(v, "emptyDir", json!({}));
    }
    sources(v);
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(s) = at_mut(v, key) {
            unset(s, "defaultMode", DEFAULT_MODE);
        }
    }
    for item in items_mut(v, "downwardAPI.items") {
        downward_item(item);
    }
    for s in items_mut(v, "projected.sources") {
        for item in items_mut(s, "downwardAPI.items") {
            downward_item(item);
        }
        if let Some(t) = at_mut(s, "serviceAccountToken") {
            unset(t, "expirationSeconds", 3600);
        }
    }
    if let Some(e) = at_mut(v, "ephemeral.volumeClaimTemplate.spec") {
        claim::default_spec(e);
    }
    if let Some(i) = at_mut(v, "image") {
        let policy = super::pod_spec::pull_policy(text(i, "reference"));
        zero(i, "pullPolicy", policy);
    }
}

/// Defaults of the sources that persistent volumes have too.
pub fn sources(v: &mut Value) {
    if let Some(h) = at_mut(v, "hostPath") {
        unset(h, "type", "");
    }
    if let Some(i) = at_mut(v, "iscsi") {
        zero(i, "iscsiInterface", "default");
    }
    if let Some(r) = at_mut(v, "rbd") {
        zero(r, "pool", "rbd");
        zero(r, "user", "admin");
        zero(r, "keyring", "/etc/ceph/keyring");
    }
    if let Some(a) = at_mut(v, "azureDisk") {
        unset(a, "cachingMode", "ReadWrite");
        unset(a, "kind", "Shared");
        unset(a, "fsType", "ext4");
        unset(a, "readOnly", false);
    }
    if let Some(s) = at_mut(v, "scaleIO") {
        zero(s, "storageMode", "ThinProvisioned");
        zero(s, "fsType", "xfs");
    }
}

fn downward_item(item: &mut Value) {
    if let Some(f) = at_mut(item, "fieldRef") {
        zero(f, "apiVersion", "v1");
    }
    if let Some(r) = at_mut(item, "resourceFieldRef") {
        unset(r, "divisor", "0");
    }
}

/// ValidateVolumes: names are labels and unique, each volume has exactly one source and the source is well-formed.
pub fn validate(volumes: &[Value], path: &Path<'_>, errs: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, v) in volumes.iter().enumerate() {
        let p = path.index(i);
        let before = errs.len();
        source(v, &p, errs);
        let name = text(v, "name");
        if name.is_empty() {
            errs.push(FieldError::required(p.child("name"), ""));
        } else {
            check::dns_label(name, &p.child("name"), errs);
        }
        if seen.contains(&name) {
            errs.push(FieldError::duplicate(p.child("name"), name));
        }
        if errs.len() == before {
            seen.push(name);
        }
    }
}

fn source(v: &Value, path: &Path<'_>, errs: &mut Errors) {
    let mut count = 0;
    for key in SOURCES {
        let s = at(v, key);
        if s.is_null() {
            continue;
        }
        count += 1;
        let p = path.child(key);
        if count > 1 {
            errs.push(FieldError::forbidden(
                p,
                "may not specify more than 1 volume type",
            ));
            continue;
        }
        one_source(key, s, &p, errs);
    }
    if count == 0 {
        errs.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn one_source(key: &str, s: &Value, p: &Path<'_>, errs: &mut Errors) {
    match key {
        "emptyDir" => {
            let limit = at(s, "sizeLimit");
            if !limit.is_null() && check::quantity(limit).is_some_and(|q| q.sign() < 0) {
                errs.push(FieldError::forbidden(
                    p.child("sizeLimit"),
                    "SizeLimit field must be a valid resource quantity",
                ));
            }
        }
        "hostPath" => host_path(s, p, errs),
        "gitRepo" => {
            require(s, "repository", p, errs);
            let dir = text(s, "directory");
            if !dir.is_empty() {
                local_descending_path(dir, &p.child("directory"), errs);
            }
        }
        "secret" => {
            require(s, "secretName", p, errs);
            files(s, p, errs);
        }
        "configMap" => {
            require(s, "name", p, errs);
            files(s, p, errs);
        }
        "nfs" => {
            require(s, "server", p, errs);
            let path = require(s, "path", p, errs);
            if !path.is_empty() && !path.starts_with('/') {
                errs.push(FieldError::invalid(
                    p.child("path"),
                    path,
                    "must be an absolute path",
                ));
            }
        }
        "persistentVolumeClaim" => {
            require(s, "claimName", p, errs);
        }
        "downwardAPI" => {
            mode(s, "defaultMode", p, errs);
            downward_items(items(s, "items"), &p.child("items"), errs);
        }
        "projected" => projected(s, p, errs),
        "csi" => {
            require(s, "driver", p, errs);
            let secret = at(s, "nodePublishSecretRef");
            if !secret.is_null() {
                require(secret, "name", &p.child("nodePublishSecretRef"), errs);
            }
        }
        "ephemeral" => {
            let template = at(s, "volumeClaimTemplate");
            if template.is_null() {
                errs.push(FieldError::required(p.child("volumeClaimTemplate"), ""));
            } else {
                let tp = p.child("volumeClaimTemplate");
                claim::validate_spec(at(template, "spec"), &tp.child("spec"), errs);
            }
        }
        "image" => {
            one_of(
                s,
                "pullPolicy",
                &["Always", "IfNotPresent", "Never"],
                p,
                errs,
            );
        }
        "iscsi" => {
            require(s, "targetPortal", p, errs);
            require(s, "iqn", p, errs);
        }
        _ => {}
    }
}

/// ValidateHostPathVolumeSource; used for persistent volumes as well.
pub fn host_path(s: &Value, p: &Path<'_>, errs: &mut Errors) {
    let path = require(s, "path", p, errs);
    if path.split('/').any(|part| part == "..") {
        errs.push(FieldError::invalid(
            p.child("path"),
            path,
            "must not contain '..'",
        ));
    }
    one_of(s, "type", HOST_PATH_TYPES, p, errs);
}

/// Default mode and items of a secret or a configmap.
fn files(s: &Value, p: &Path<'_>, errs: &mut Errors) {
    mode(s, "defaultMode", p, errs);
    for (i, item) in items(s, "items").iter().enumerate() {
        let list = p.child("items");
        let ip = list.index(i);
        require(item, "key", &ip, errs);
        let path = require(item, "path", &ip, errs);
        local_non_reserved_path(path, &ip.child("path"), errs);
        mode(item, "mode", &ip, errs);
    }
}

fn mode(s: &Value, key: &str, p: &Path<'_>, errs: &mut Errors) {
    if let Some(m) = int(s, key).filter(|m| !(0..=0o777).contains(m)) {
        errs.push(FieldError::invalid(
            p.child(key),
            m,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
}

/// A relative path that never climbs.
pub fn local_descending_path(path: &str, p: &Path<'_>, errs: &mut Errors) {
    if path.starts_with('/') {
        errs.push(FieldError::invalid(p, path, "must be a relative path"));
    }
    if path.split('/').any(|part| part == "..") {
        errs.push(FieldError::invalid(p, path, "must not contain '..'"));
    }
}

/// As above, and it does not start with `..`, which the atomic writer keeps for itself.
fn local_non_reserved_path(path: &str, p: &Path<'_>, errs: &mut Errors) {
    local_descending_path(path, p, errs);
    if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        errs.push(FieldError::invalid(p, path, "must not start with '..'"));
    }
}

const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

fn downward_items(list: &[Value], path: &Path<'_>, errs: &mut Errors) {
    for (i, item) in list.iter().enumerate() {
        let p = path.index(i);
        let file = require(item, "path", &p, errs);
        local_non_reserved_path(file, &p.child("path"), errs);
        let field_ref = at(item, "fieldRef");
        let resource_ref = at(item, "resourceFieldRef");
        if !field_ref.is_null() {
            super::env::object_field(field_ref, DOWNWARD_FIELDS, &p.child("fieldRef"), errs);
            if !resource_ref.is_null() {
                errs.push(FieldError::invalid(
                    p,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                ));
            }
        } else if !resource_ref.is_null() {
            super::env::resource_field(resource_ref, true, &p.child("resourceFieldRef"), errs);
        } else {
            errs.push(FieldError::required(
                p,
                "one of fieldRef and resourceFieldRef is required",
            ));
        }
        mode(item, "mode", &p, errs);
    }
}

const PROJECTIONS: &[&str] = &[
    "secret",
    "configMap",
    "downwardAPI",
    "serviceAccountToken",
    "clusterTrustBundle",
    "podCertificate",
];

fn projected(s: &Value, p: &Path<'_>, errs: &mut Errors) {
    mode(s, "defaultMode", p, errs);
    let list = p.child("sources");
    let mut paths: Vec<&str> = Vec::new();
    for (i, source) in items(s, "sources").iter().enumerate() {
        let sp = list.index(i);
        let mut count = 0;
        for kind in PROJECTIONS {
            let proj = at(source, kind);
            if proj.is_null() {
                continue;
            }
            count += 1;
            let pp = sp.child(kind);
            if count > 1 {
                errs.push(FieldError::forbidden(
                    pp,
                    "may not specify more than 1 volume type",
                ));
                continue;
            }
            let conflict = |path: &'_ str, at: String, errs: &mut Errors| {
                // Two sources may not write the same file.
                if !path.is_empty() && paths.contains(&path) {
                    errs.push(FieldError::invalid(at, path, "conflicting duplicate paths"));
                }
            };
            match *kind {
                "secret" | "configMap" => {
                    require(proj, "name", &pp, errs);
                    for (j, item) in items(proj, "items").iter().enumerate() {
                        let il = pp.child("items");
                        let ip = il.index(j);
                        require(item, "key", &ip, errs);
                        let path = require(item, "path", &ip, errs);
                        local_non_reserved_path(path, &ip.child("path"), errs);
                        mode(item, "mode", &ip, errs);
                        conflict(path, String::from(&pp), errs);
                    }
                }
                "downwardAPI" => {
                    downward_items(items(proj, "items"), &pp.child("items"), errs);
                    for item in items(proj, "items") {
                        conflict(text(item, "path"), String::from(&pp), errs);
                    }
                }
                "serviceAccountToken" => {
                    let seconds = int0(proj, "expirationSeconds");
                    if seconds < 600 {
                        errs.push(FieldError::invalid(
                            pp.child("expirationSeconds"),
                            seconds,
                            "may not specify a duration less than 10 minutes",
                        ));
                    }
                    if seconds > 1 << 32 {
                        errs.push(FieldError::invalid(
                            pp.child("expirationSeconds"),
                            seconds,
                            "may not specify a duration larger than 2^32 seconds",
                        ));
                    }
                    let path = require(proj, "path", &pp, errs);
                    local_non_reserved_path(path, &pp.child("path"), errs);
                    conflict(path, String::from(&pp), errs);
                }
                _ => {}
            }
            match *kind {
                "serviceAccountToken" => paths.push(text(proj, "path")),
                _ => paths.extend(items(proj, "items").iter().map(|i| text(i, "path"))),
            }
        }
        if count == 0 {
            errs.push(FieldError::required(sp, "must specify a volume type"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(v: Value) -> Vec<String> {
        let list = [v];
        let mut errs = Vec::new();
        validate(&list, &Path::new("spec.volumes"), &mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_without_a_source_is_an_empty_dir() {
        let mut v = json!({"name": "a"});
        default(&mut v);
        assert_eq!(v, json!({"name": "a", "emptyDir": {}}));
    }

    #[test]
    fn sources_get_their_defaults() {
        let mut v = json!({"name": "a", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}});
        default(&mut v);
        assert_eq!(v["projected"]["defaultMode"], 420);
        assert_eq!(
            v["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
            3600
        );
    }

    #[test]
    fn bad_volumes_are_named() {
        assert_eq!(
            errors(json!({"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}})),
            ["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"]
        );
        assert_eq!(
            errors(json!({"name": "a", "configMap": {"defaultMode": 600}})),
            [
                "spec.volumes[0].configMap.name: Required value",
                "spec.volumes[0].configMap.defaultMode: Invalid value: 600: must be a number between 0 and 0777 (octal), both inclusive",
            ]
        );
        assert_eq!(
            errors(json!({"name": "a", "hostPath": {"path": "/a/../b"}})),
            ["spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"]
        );
    }
}
