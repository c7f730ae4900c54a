//! Roles and cluster roles (ValidateRole and ValidateClusterRole of pkg/apis/rbac/validation).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

fn rules(role: &Value, namespaced: bool, errs: &mut Errors) {
    let rp = Path::new("rules");
    for (i, rule) in items(role, "rules").iter().enumerate() {
        let p = rp.index(i);
        if items(rule, "verbs").is_empty() {
            errs.push(FieldError::required(
                p.child("verbs"),
                "verbs must contain at least one value",
            ));
        }
        let urls = at(rule, "nonResourceURLs");
        if !is_empty(urls) {
            if namespaced {
                errs.push(FieldError::invalid(
                    p.child("nonResourceURLs"),
                    urls.clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|k| !is_empty(at(rule, k)))
            {
                errs.push(FieldError::invalid(
                    p.child("nonResourceURLs"),
                    urls.clone(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        if items(rule, "apiGroups").is_empty() {
            errs.push(FieldError::required(
                p.child("apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if items(rule, "resources").is_empty() {
            errs.push(FieldError::required(
                p.child("resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}

/// The strategy of roles.
pub fn strategy() -> Strategy {
    Strategy {
        name: crate::names::name_is_path_segment,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate: |r| {
            let mut errs = Vec::new();
            rules(r, true, &mut errs);
            errs
        },
        allow_create_on_update: true,
        ..Strategy::default()
    }
}

/// The strategy of cluster roles, which can also gather the rules of others.
pub fn cluster_strategy() -> Strategy {
    Strategy {
        validate: |r| {
            let mut errs = Vec::new();
            rules(r, false, &mut errs);
            if has(r, "aggregationRule") {
                let ap = Path::new("aggregationRule");
                let sp = ap.child("clusterRoleSelectors");
                let list = items(r, "aggregationRule.clusterRoleSelectors");
                if list.is_empty() {
                    errs.push(FieldError::required(
                        sp,
                        "at least one clusterRoleSelector required if aggregationRule is non-nil",
                    ));
                }
                for (i, s) in list.iter().enumerate() {
                    check::label_selector(s, &sp.index(i), &mut errs);
                }
            }
            errs
        },
        ..strategy()
    }
}

/// The columns of both.
pub fn columns() -> Vec<Column> {
    vec![col_name(), col_created_at()]
}
