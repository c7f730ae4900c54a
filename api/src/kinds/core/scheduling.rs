//! Validation of what steers a pod to a node: node selectors, affinity, tolerations, topology spread (validateAffinity,
//! ValidateTolerations, validateTopologySpreadConstraints of pkg/apis/core/validation).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use serde_json::Value;
use std::collections::HashSet;

/// validateAffinity.
pub fn affinity(a: &Value, path: &Path<'_>, errs: &mut Errors) {
    let node = at(a, "nodeAffinity");
    if !node.is_null() {
        let np = path.child("nodeAffinity");
        let required = at(node, "requiredDuringSchedulingIgnoredDuringExecution");
        if !required.is_null() {
            node_selector(
                required,
                &np.child("requiredDuringSchedulingIgnoredDuringExecution"),
                errs,
            );
        }
        let pp = np.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in items(node, "preferredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .enumerate()
        {
            let ip = pp.index(i);
            weight(term, &ip, errs);
            node_selector_term(at(term, "preference"), &ip.child("preference"), errs);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let aff = at(a, kind);
        if aff.is_null() {
            continue;
        }
        let ap = path.child(kind);
        let rp = ap.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in items(aff, "requiredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .enumerate()
        {
            pod_term(term, &rp.index(i), errs);
        }
        let pp = ap.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in items(aff, "preferredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .enumerate()
        {
            let ip = pp.index(i);
            weight(term, &ip, errs);
            pod_term(
                at(term, "podAffinityTerm"),
                &ip.child("podAffinityTerm"),
                errs,
            );
        }
    }
}

fn weight(term: &Value, path: &Path<'_>, errs: &mut Errors) {
    let w = int0(term, "weight");
    if !(1..=100).contains(&w) {
        errs.push(FieldError::invalid(
            path.child("weight"),
            w,
            "must be in the range 1-100",
        ));
    }
}

/// ValidateNodeSelector.
pub fn node_selector(s: &Value, path: &Path<'_>, errs: &mut Errors) {
    let tp = path.child("nodeSelectorTerms");
    let terms = items(s, "nodeSelectorTerms");
    if terms.is_empty() {
        errs.push(FieldError::required(
            tp,
            "must have at least one node selector term",
        ));
    }
    for (i, t) in terms.iter().enumerate() {
        node_selector_term(t, &tp.index(i), errs);
    }
}

fn node_selector_term(t: &Value, path: &Path<'_>, errs: &mut Errors) {
    let ep = path.child("matchExpressions");
    for (i, r) in items(t, "matchExpressions").iter().enumerate() {
        let p = ep.index(i);
        let values = items(r, "values");
        match text(r, "operator") {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errs.push(FieldError::required(
                        p.child("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    ));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errs.push(FieldError::forbidden(
                        p.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ));
                }
            }
            "Gt" | "Lt" => {
                if values.len() != 1 {
                    errs.push(FieldError::required(
                        p.child("values"),
                        "must be specified single value when `operator` is 'Lt' or 'Gt'",
                    ));
                }
            }
            other => errs.push(FieldError::invalid(
                p.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        check::qualified_name(text(r, "key"), &p.child("key"), errs);
        let vp = p.child("values");
        for (j, v) in values.iter().enumerate() {
            check::label_value(v.as_str().unwrap_or(""), &vp.index(j), errs);
        }
    }
    let fp = path.child("matchFields");
    for (i, r) in items(t, "matchFields").iter().enumerate() {
        let p = fp.index(i);
        let values = items(r, "values");
        match text(r, "operator") {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    errs.push(FieldError::required(
                        p.child("values"),
                        "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                    ));
                }
            }
            other => errs.push(FieldError::invalid(
                p.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = text(r, "key");
        if key == "metadata.name" {
            for (j, v) in values.iter().enumerate() {
                let vp = p.child("values");
                check::dns_subdomain(v.as_str().unwrap_or(""), &vp.index(j), errs);
            }
        } else {
            errs.push(FieldError::invalid(
                p.child("key"),
                key,
                "not a valid field selector key",
            ));
        }
    }
}

fn pod_term(t: &Value, path: &Path<'_>, errs: &mut Errors) {
    check::label_selector(at(t, "labelSelector"), &path.child("labelSelector"), errs);
    check::label_selector(
        at(t, "namespaceSelector"),
        &path.child("namespaceSelector"),
        errs,
    );
    let np = path.child("namespaces");
    for (i, ns) in items(t, "namespaces").iter().enumerate() {
        check::dns_label(ns.as_str().unwrap_or(""), &np.index(i), errs);
    }
    let key = text(t, "topologyKey");
    if key.is_empty() {
        errs.push(FieldError::required(
            path.child("topologyKey"),
            "can not be empty",
        ));
    } else {
        check::qualified_name(key, &path.child("topologyKey"), errs);
    }
}

/// The effects a taint can have.
pub const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// ValidateTolerations.
pub fn tolerations(list: &[Value], path: &Path<'_>, errs: &mut Errors) {
    for (i, t) in list.iter().enumerate() {
        let p = path.index(i);
        let (key, operator, value, effect) = (
            text(t, "key"),
            text(t, "operator"),
            text(t, "value"),
            text(t, "effect"),
        );
        if !key.is_empty() {
            check::qualified_name(key, &p.child("key"), errs);
        }
        if key.is_empty() && operator != "Exists" {
            errs.push(FieldError::invalid(
                p.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if has(t, "tolerationSeconds") && effect != "NoExecute" {
            errs.push(FieldError::invalid(
                p.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator {
            "" | "Equal" => {
                let wrong = crate::names::is_valid_label_value(value);
                if !wrong.is_empty() {
                    errs.push(FieldError::invalid(
                        p.child("operator"),
                        value,
                        wrong.join(";"),
                    ));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errs.push(FieldError::invalid(
                        p.child("operator"),
                        value,
                        "value must be empty when `operator` is 'Exists'",
                    ));
                }
            }
            other => errs.push(FieldError::not_supported(
                p.child("operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        one_of(t, "effect", TAINT_EFFECTS, &p, errs);
    }
}

/// validateTopologySpreadConstraints.
pub fn topology_spread(list: &[Value], path: &Path<'_>, errs: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, c) in list.iter().enumerate() {
        let p = path.index(i);
        let skew = int0(c, "maxSkew");
        if skew <= 0 {
            errs.push(FieldError::invalid(
                p.child("maxSkew"),
                skew,
                "must be greater than zero",
            ));
        }
        let key = text(c, "topologyKey");
        if key.is_empty() {
            errs.push(FieldError::required(
                p.child("topologyKey"),
                "can not be empty",
            ));
        } else {
            check::qualified_name(key, &p.child("topologyKey"), errs);
        }
        let when = text(c, "whenUnsatisfiable");
        if when.is_empty() {
            errs.push(FieldError::required(p.child("whenUnsatisfiable"), ""));
        }
        one_of(
            c,
            "whenUnsatisfiable",
            &["DoNotSchedule", "ScheduleAnyway"],
            &p,
            errs,
        );
        if !seen.insert((key, when)) {
            errs.push(FieldError::duplicate(
                p.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{key}, {when}}}"),
            ));
        }
        if let Some(n) = int(c, "minDomains") {
            if n <= 0 {
                errs.push(FieldError::invalid(
                    p.child("minDomains"),
                    n,
                    "must be greater than zero",
                ));
            }
            if when != "DoNotSchedule" {
                errs.push(FieldError::invalid(
                    p.child("minDomains"),
                    n,
                    format!(
                        "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}"
                    ),
                ));
            }
        }
        one_of(c, "nodeAffinityPolicy", &["Honor", "Ignore"], &p, errs);
        one_of(c, "nodeTaintsPolicy", &["Honor", "Ignore"], &p, errs);
        check::label_selector(at(c, "labelSelector"), &p.child("labelSelector"), errs);
    }
}
