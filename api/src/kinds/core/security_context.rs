//! Validation of security contexts: of containers, and the parts that pods share with them (ValidateSecurityContext,
//! ValidateSeccompProfileField, ValidateAppArmorProfileField of pkg/apis/core/validation).

use super::volume;
use crate::field::FieldError;
use crate::kinds::util::*;
use serde_json::Value;

/// ValidateSecurityContext.
pub fn container(s: &Value, p: &Path<'_>, errs: &mut Errors) {
    if s.is_null() {
        return;
    }
    user_id(s, "runAsUser", p, errs);
    user_id(s, "runAsGroup", p, errs);
    one_of(s, "procMount", &["Default", "Unmasked"], p, errs);
    seccomp(at(s, "seccompProfile"), &p.child("seccompProfile"), errs);
    app_armor(at(s, "appArmorProfile"), &p.child("appArmorProfile"), errs);
    if at(s, "allowPrivilegeEscalation") == &Value::Bool(false) {
        if truth(s, "privileged") {
            errs.push(FieldError::invalid(
                p,
                s.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ));
        }
        if items(s, "capabilities.add")
            .iter()
            .any(|c| c == "CAP_SYS_ADMIN")
        {
            errs.push(FieldError::invalid(
                p,
                s.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            ));
        }
    }
}

/// A user or group id: 0 to 2^31-1.
pub fn user_id(s: &Value, key: &str, p: &Path<'_>, errs: &mut Errors) {
    if let Some(id) = int(s, key) {
        id_range(id, &p.child(key), errs);
    }
}

/// The range of user and group ids.
pub fn id_range(id: i64, p: &Path<'_>, errs: &mut Errors) {
    if !(0..=2_147_483_647).contains(&id) {
        errs.push(FieldError::invalid(
            p,
            id,
            "must be between 0 and 2147483647, inclusive",
        ));
    }
}

/// ValidateSeccompProfileField.
pub fn seccomp(s: &Value, p: &Path<'_>, errs: &mut Errors) {
    if s.is_null() {
        return;
    }
    let kind = require(s, "type", p, errs);
    let local = text(s, "localhostProfile");
    if has(s, "localhostProfile") && kind != "Localhost" {
        errs.push(FieldError::invalid(
            p.child("localhostProfile"),
            local,
            "can only be set when seccomp type is Localhost",
        ));
    }
    if kind == "Localhost" {
        if has(s, "localhostProfile") {
            volume::local_descending_path(local, &p.child("localhostProfile"), errs);
        } else {
            errs.push(FieldError::required(
                p.child("localhostProfile"),
                "must be set when seccomp type is Localhost",
            ));
        }
    }
    one_of(
        s,
        "type",
        &["Localhost", "RuntimeDefault", "Unconfined"],
        p,
        errs,
    );
}

/// ValidateAppArmorProfileField.
pub fn app_armor(s: &Value, p: &Path<'_>, errs: &mut Errors) {
    if s.is_null() {
        return;
    }
    let kind = require(s, "type", p, errs);
    let local = text(s, "localhostProfile");
    match kind {
        "Localhost" if local.trim().is_empty() => errs.push(FieldError::required(
            p.child("localhostProfile"),
            "must be set when AppArmor type is Localhost",
        )),
        "RuntimeDefault" | "Unconfined" if has(s, "localhostProfile") => {
            errs.push(FieldError::invalid(
                p.child("localhostProfile"),
                local,
                "can only be set when AppArmor type is Localhost",
            ));
        }
        _ => {}
    }
    one_of(
        s,
        "type",
        &["Localhost", "RuntimeDefault", "Unconfined"],
        p,
        errs,
    );
}

/// ValidatePodSecurityContext.
pub fn pod(spec: &Value, path: &Path<'_>, errs: &mut Errors) {
    let s = at(spec, "securityContext");
    let p = path.child("securityContext");
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        user_id(s, key, &p, errs);
    }
    let groups = p.child("supplementalGroups");
    for (i, g) in items(s, "supplementalGroups").iter().enumerate() {
        if let Some(g) = g.as_i64() {
            id_range(g, &groups.index(i), errs);
        }
    }
    if truth(spec, "shareProcessNamespace") && truth(spec, "hostPID") {
        errs.push(FieldError::invalid(
            path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    let sysctls = p.child("sysctls");
    let mut names: Vec<&str> = Vec::new();
    for (i, c) in items(s, "sysctls").iter().enumerate() {
        let ip = sysctls.index(i);
        let name = text(c, "name");
        if name.is_empty() {
            errs.push(FieldError::required(ip.child("name"), ""));
        } else if !valid_sysctl(name) {
            errs.push(FieldError::invalid(
                ip.child("name"),
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9]$",
            ));
        } else if names.contains(&name) {
            errs.push(FieldError::duplicate(ip.child("name"), name));
        }
        names.push(name);
    }
    one_of(
        s,
        "fsGroupChangePolicy",
        &["Always", "OnRootMismatch"],
        &p,
        errs,
    );
    one_of(
        s,
        "supplementalGroupsPolicy",
        &["Merge", "Strict"],
        &p,
        errs,
    );
    seccomp(at(s, "seccompProfile"), &p.child("seccompProfile"), errs);
    app_armor(at(s, "appArmorProfile"), &p.child("appArmorProfile"), errs);
}

fn valid_sysctl(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_')
                })
        })
}
