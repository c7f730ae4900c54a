//! Ingress classes (SetDefaults_IngressClass, ValidateIngressClass, printIngressClass).

use crate::field::FieldError;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// SetDefaults_IngressClass.
pub fn default(c: &mut Value) {
    if let Some(p) = at_mut(c, "spec.parameters") {
        unset(p, "scope", "Cluster");
    }
}

fn validate(c: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let path = Path::new("spec");
    let controller = text(c, "spec.controller");
    let cp = path.child("controller");
    if controller.is_empty() {
        errs.push(FieldError::required(cp, ""));
    } else {
        if controller.len() > 250 {
            errs.push(FieldError {
                kind: crate::field::ErrorType::TooLong,
                field: cp.to_string(),
                value: Value::Null,
                detail: "may not be more than 250 bytes".into(),
            });
        }
        if controller
            .split_once('/')
            .is_none_or(|(domain, rest)| domain.is_empty() || rest.is_empty())
        {
            errs.push(FieldError::invalid(
                cp,
                controller,
                "must be a domain-prefixed path (such as \"acme.io/foo\")",
            ));
        }
    }
    let parameters = at(c, "spec.parameters");
    if !parameters.is_null() {
        let pp = path.child("parameters");
        require(parameters, "kind", &pp, &mut errs);
        require(parameters, "name", &pp, &mut errs);
        one_of(
            parameters,
            "scope",
            &["Cluster", "Namespace"],
            &pp,
            &mut errs,
        );
        let namespaced = text(parameters, "scope") == "Namespace";
        let ns = text(parameters, "namespace");
        if namespaced && ns.is_empty() {
            errs.push(FieldError::required(
                pp.child("namespace"),
                "`parameters.scope` is set to 'Namespace'",
            ));
        }
        if !namespaced && !ns.is_empty() {
            errs.push(FieldError::forbidden(
                pp.child("namespace"),
                "`parameters.scope` is set to 'Cluster'",
            ));
        }
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    immutable(
        at(new, "spec"),
        at(old, "spec"),
        "controller",
        &Path::new("spec"),
        &mut errs,
    );
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        validate_update,
        generation: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get ingressclasses`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Controller", 0, |c, _| text(c, "spec.controller").into()),
        col("Parameters", 0, |c, _| {
            let p = at(c, "spec.parameters");
            if p.is_null() {
                return "<none>".into();
            }
            match text(p, "apiGroup") {
                "" => format!("{}/{}", text(p, "kind"), text(p, "name")),
                g => format!("{}.{g}/{}", text(p, "kind"), text(p, "name")),
            }
            .into()
        }),
        col_age(),
    ]
}
