//! Validation of a container's environment and of references to fields and resources, which downward API volumes use as
//! well (ValidateEnv, ValidateEnvFrom, validateObjectFieldSelector of pkg/apis/core/validation).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use serde_json::Value;

fn env_name(name: &str, path: &Path<'_>, errs: &mut Errors) {
    if !name.chars().all(|c| (' '..='~').contains(&c) && c != '=') {
        errs.push(FieldError::invalid(
            path,
            name,
            "a valid environment variable name must consist only of printable ASCII characters other than '='",
        ));
    }
}

/// ValidateEnv.
pub fn env(list: &[Value], path: &Path<'_>, errs: &mut Errors) {
    for (i, e) in list.iter().enumerate() {
        let p = path.index(i);
        let name = text(e, "name");
        if name.is_empty() {
            errs.push(FieldError::required(p.child("name"), ""));
        } else {
            env_name(name, &p.child("name"), errs);
        }
        let from = at(e, "valueFrom");
        if !from.is_null() {
            value_from(
                from,
                !text(e, "value").is_empty(),
                &p.child("valueFrom"),
                errs,
            );
        }
    }
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn value_from(from: &Value, has_value: bool, p: &Path<'_>, errs: &mut Errors) {
    let mut count = 0;
    let field = at(from, "fieldRef");
    if !field.is_null() {
        count += 1;
        object_field(field, ENV_FIELDS, &p.child("fieldRef"), errs);
    }
    let resource = at(from, "resourceFieldRef");
    if !resource.is_null() {
        count += 1;
        resource_field(resource, false, &p.child("resourceFieldRef"), errs);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        let r = at(from, key);
        if !r.is_null() {
            count += 1;
            let rp = p.child(key);
            let k = text(r, "key");
            if k.is_empty() {
                errs.push(FieldError::required(rp.child("key"), ""));
            } else {
                check::config_map_key(k, &rp.child("key"), errs);
            }
        }
    }
    let file = at(from, "fileKeyRef");
    if !file.is_null() {
        count += 1;
        let fp = p.child("fileKeyRef");
        for key in ["key", "volumeName", "path"] {
            require(file, key, &fp, errs);
        }
    }
    if count == 0 {
        errs.push(FieldError::invalid(
            p,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ));
    } else if has_value {
        errs.push(FieldError::invalid(
            p,
            "",
            "may not be specified when `value` is not empty",
        ));
    } else if count > 1 {
        errs.push(FieldError::invalid(
            p,
            "",
            "may not have more than one field specified at a time",
        ));
    }
}

/// Fields of a pod that a fieldRef can name at all (the pod's field label conversion).
const POD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.labels",
    "metadata.annotations",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "spec.hostNetwork",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];

/// validateObjectFieldSelector: `metadata.labels['key']` and annotations likewise, or one of `allowed`.
pub fn object_field(f: &Value, allowed: &[&str], p: &Path<'_>, errs: &mut Errors) {
    if text(f, "apiVersion").is_empty() {
        errs.push(FieldError::required(p.child("apiVersion"), ""));
        return;
    }
    let field = text(f, "fieldPath");
    if field.is_empty() {
        errs.push(FieldError::required(p.child("fieldPath"), ""));
        return;
    }
    let fp = p.child("fieldPath");
    if let Some((base, rest)) = field.split_once("['") {
        let key = rest.strip_suffix("']");
        match (base, key) {
            ("metadata.annotations", Some(key)) => {
                check::qualified_name(&key.to_lowercase(), &fp, errs);
            }
            ("metadata.labels", Some(key)) => check::qualified_name(key, &fp, errs),
            _ => errs.push(FieldError::invalid(
                fp,
                field,
                format!("error converting fieldPath: field label not supported: {field}"),
            )),
        }
        return;
    }
    if !POD_FIELDS.contains(&field) {
        errs.push(FieldError::invalid(
            fp,
            field,
            format!("error converting fieldPath: field label not supported: {field}"),
        ));
    } else if !allowed.contains(&field) {
        errs.push(FieldError::not_supported(fp, field, allowed));
    }
}

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// validateContainerResourceFieldSelector; in a volume the container must be named.
pub fn resource_field(f: &Value, volume: bool, p: &Path<'_>, errs: &mut Errors) {
    if volume && text(f, "containerName").is_empty() {
        errs.push(FieldError::required(p.child("containerName"), ""));
        return;
    }
    let resource = text(f, "resource");
    if resource.is_empty() {
        errs.push(FieldError::required(p.child("resource"), ""));
        return;
    }
    let huge =
        resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if !RESOURCE_FIELDS.contains(&resource) && !huge {
        errs.push(FieldError::not_supported(
            p.child("resource"),
            resource,
            RESOURCE_FIELDS,
        ));
        return;
    }
    let divisor = match at(f, "divisor") {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string(),
        _ => return,
    };
    let (choices, text): (&[&str], &str) = if resource.ends_with(".cpu") {
        (
            &["0", "1m", "1"],
            "only divisor's values 1m and 1 are supported with the cpu resource",
        )
    } else {
        (
            &[
                "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi",
                "1Ei",
            ],
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with this resource",
        )
    };
    if !choices.contains(&divisor.as_str()) {
        errs.push(FieldError::invalid(p.child("divisor"), divisor, text));
    }
}

/// ValidateEnvFrom.
pub fn env_from(list: &[Value], path: &Path<'_>, errs: &mut Errors) {
    for (i, e) in list.iter().enumerate() {
        let p = path.index(i);
        let prefix = text(e, "prefix");
        if !prefix.is_empty() {
            env_name(prefix, &p.child("prefix"), errs);
        }
        let mut count = 0;
        for key in ["configMapRef", "secretRef"] {
            let r = at(e, key);
            if !r.is_null() {
                count += 1;
                require(r, "name", &p.child(key), errs);
            }
        }
        if count == 0 {
            errs.push(FieldError::invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ));
        } else if count > 1 {
            errs.push(FieldError::invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            ));
        }
    }
}
