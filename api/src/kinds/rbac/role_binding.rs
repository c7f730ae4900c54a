//! Role bindings and cluster role bindings (SetDefaults_Subject, ValidateRoleBinding, printRoleBinding).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Defaults of the role reference and of the subjects.
pub fn default(b: &mut Value) {
    if let Some(r) = at_mut(b, "roleRef") {
        zero(r, "apiGroup", GROUP);
    }
    for s in items_mut(b, "subjects") {
        if matches!(text(s, "kind"), "User" | "Group") {
            zero(s, "apiGroup", GROUP);
        }
    }
}

fn rules(b: &Value, cluster: bool) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let rp = Path::new("roleRef");
    let r = at(b, "roleRef");
    if text(r, "apiGroup") != GROUP {
        errs.push(FieldError::not_supported(
            rp.child("apiGroup"),
            text(r, "apiGroup"),
            &[GROUP],
        ));
    }
    let kind = text(r, "kind");
    if cluster && kind != "ClusterRole" {
        errs.push(FieldError::not_supported(
            rp.child("kind"),
            kind,
            &["ClusterRole"],
        ));
    } else if !cluster && !matches!(kind, "Role" | "ClusterRole") {
        errs.push(FieldError::not_supported(
            rp.child("kind"),
            kind,
            &["Role", "ClusterRole"],
        ));
    }
    let name = text(r, "name");
    if name.is_empty() {
        errs.push(FieldError::required(rp.child("name"), ""));
    } else {
        check::path_segment(name, &rp.child("name"), &mut errs);
    }
    let sp = Path::new("subjects");
    for (i, s) in items(b, "subjects").iter().enumerate() {
        let p = sp.index(i);
        let name = require(s, "name", &p, &mut errs);
        match text(s, "kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    check::dns_subdomain(name, &p.child("name"), &mut errs);
                }
                if !text(s, "apiGroup").is_empty() {
                    errs.push(FieldError::not_supported(
                        p.child("apiGroup"),
                        text(s, "apiGroup"),
                        &[""],
                    ));
                }
                if cluster || text(s, "namespace").is_empty() {
                    require(s, "namespace", &p, &mut errs);
                }
            }
            "User" | "Group" => {
                if text(s, "apiGroup") != GROUP {
                    errs.push(FieldError::not_supported(
                        p.child("apiGroup"),
                        text(s, "apiGroup"),
                        &[GROUP],
                    ));
                }
            }
            other => errs.push(FieldError::not_supported(
                p.child("kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if equal(at(new, "roleRef"), at(old, "roleRef")) {
        return Vec::new();
    }
    vec![FieldError::invalid(
        "roleRef",
        at(new, "roleRef").clone(),
        "cannot change roleRef",
    )]
}

/// The strategy of role bindings.
pub fn strategy() -> Strategy {
    Strategy {
        name: crate::names::name_is_path_segment,
        default,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate: |b| rules(b, false),
        validate_update,
        allow_create_on_update: true,
        ..Strategy::default()
    }
}

/// The strategy of cluster role bindings.
pub fn cluster_strategy() -> Strategy {
    Strategy {
        validate: |b| rules(b, true),
        ..strategy()
    }
}

fn subjects(b: &Value, kind: &str) -> Value {
    items(b, "subjects")
        .iter()
        .filter(|s| text(s, "kind") == kind)
        .map(|s| match (kind, text(s, "namespace")) {
            ("ServiceAccount", ns) => format!("{ns}/{}", text(s, "name")),
            _ => text(s, "name").to_string(),
        })
        .collect::<Vec<_>>()
        .join(", ")
        .into()
}

/// The columns of both.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Role", 0, |b, _| {
            format!("{}/{}", text(b, "roleRef.kind"), text(b, "roleRef.name")).into()
        }),
        col_age(),
        col("Users", 1, |b, _| subjects(b, "User")),
        col("Groups", 1, |b, _| subjects(b, "Group")),
        col("ServiceAccounts", 1, |b, _| subjects(b, "ServiceAccount")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_role_of_a_binding_stays() {
        let mut b = json!({"roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        default(&mut b);
        assert!(rules(&b, true).is_empty(), "{:?}", rules(&b, true));
        assert_eq!(subjects(&b, "ServiceAccount"), "n/s");
        let mut new = b.clone();
        new["roleRef"]["name"] = "edit".into();
        assert!(
            validate_update(&new, &b)[0]
                .to_string()
                .ends_with("cannot change roleRef")
        );
    }
}
