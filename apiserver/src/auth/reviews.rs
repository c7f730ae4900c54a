//! The kinds that ask about users: SelfSubjectReview, TokenReview and the SubjectAccessReview family. Owns their answers;
//! stores nothing.

use super::authorization::{Attributes, Decision};
use super::rbac::Rule;
use super::{UserInfo, authentication};
use crate::App;
use crate::admission::text;
use crate::http::negotiate;
use crate::http::{Answer, Request, respond};
use crate::registry::input;
use crate::registry::table::Row;
use serde_json::{Map, Value, json};
use skiff_api::decode::Expect;
use skiff_api::field::FieldError;
use skiff_api::selector::FieldSelector;
use skiff_api::status::Status;
use std::sync::Arc;

/// POST of a review.
///
/// # Errors
/// 400 and 422 for what is malformed.
pub async fn create(app: &Arc<App>, row: &Arc<Row>, mut request: Request) -> Answer {
    let accept = negotiate::accept(&request.parts.headers, None, true)?;
    let posted = input::posted(&mut request, Expect::row(row), row.namespaced()).await?;
    let mut object = posted.object;
    check_metadata(row, &object)?;
    let spec = object.get("spec").cloned().unwrap_or_else(|| json!({}));
    let user = request.user.clone();
    let status = match &*row.kind {
        "SelfSubjectReview" => json!({"userInfo": shown(&user)}),
        "TokenReview" => token_review(app, &spec)?,
        "SelfSubjectAccessReview" => access(app, row, &user, &spec)?,
        "SubjectAccessReview" => access(app, row, &subject(row, &spec)?, &spec)?,
        "LocalSubjectAccessReview" => {
            let ns = text(&spec, &["resourceAttributes", "namespace"]);
            let mut errors = Vec::new();
            if ns != request.info.namespace {
                errors.push(FieldError::invalid(
                    "spec.resourceAttributes.namespace",
                    ns,
                    "must match metadata.namespace",
                ));
            }
            if spec.get("nonResourceAttributes").is_some() {
                errors.push(FieldError::invalid(
                    "spec.nonResourceAttributes",
                    spec["nonResourceAttributes"].clone(),
                    "disallowed on this kind of request",
                ));
            }
            if !errors.is_empty() {
                return Err(Status::invalid(&row.group, &row.kind, "", &errors));
            }
            access(app, row, &subject(row, &spec)?, &spec)?
        }
        "SelfSubjectRulesReview" => {
            let ns = text(&spec, &["namespace"]);
            if ns.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            rules(app, &user, ns)
        }
        other => return Err(Status::not_implemented(other)),
    };
    let mut out = Map::new();
    out.insert("kind".into(), row.kind.as_ref().into());
    out.insert("apiVersion".into(), row.api_version().into());
    let metadata = object
        .get_mut("metadata")
        .map(Value::take)
        .filter(Value::is_object);
    out.insert("metadata".into(), metadata.unwrap_or_else(|| json!({})));
    if &*row.kind != "SelfSubjectReview" {
        out.insert("spec".into(), spec);
    }
    out.insert("status".into(), status);
    let mut answer = respond::value(201, accept, &Value::Object(out));
    respond::warn(&mut answer, &posted.warnings);
    Ok(answer)
}

/// Reviews are no objects: they have no metadata (ValidateSubjectAccessReview and its kin).
fn check_metadata(row: &Row, object: &Value) -> Result<(), Status> {
    let (rule, text): (fn(&str) -> bool, _) = match &*row.kind {
        "SubjectAccessReview" | "SelfSubjectAccessReview" => (|_| false, "must be empty"),
        "LocalSubjectAccessReview" => (|k| k == "namespace", "must be empty except for namespace"),
        _ => return Ok(()),
    };
    let metadata = object.get("metadata").and_then(Value::as_object);
    let wrong = metadata
        .into_iter()
        .flatten()
        .any(|(k, _)| k != "managedFields" && !rule(k));
    if wrong {
        let e = FieldError::invalid("metadata", object["metadata"].clone(), text);
        return Err(Status::invalid(&row.group, &row.kind, "", &[e]));
    }
    Ok(())
}

/// UserInfo as the API shows it.
pub fn shown(user: &UserInfo) -> Value {
    let mut m = Map::new();
    m.insert("username".into(), user.name.as_str().into());
    if !user.uid.is_empty() {
        m.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        m.insert("groups".into(), user.groups.clone().into());
    }
    if !user.extra.is_empty() {
        m.insert("extra".into(), json!(user.extra));
    }
    Value::Object(m)
}

fn token_review(app: &Arc<App>, spec: &Value) -> Result<Value, Status> {
    let token = text(spec, &["token"]);
    if token.is_empty() {
        return Err(Status::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences: Vec<String> = spec
        .get("audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(String::from)
        .collect();
    let found = if super::tokens::Tokens::is_ours(token) {
        authentication::review(&app.auth, app, token, &audiences)
    } else if audiences.is_empty() {
        authentication::of_token(&app.auth, app, token)
            .map(|c| (c, vec![super::tokens::ISSUER.to_string()]))
    } else {
        Err("an unknown token".into())
    };
    Ok(match found {
        Ok((c, good)) => json!({"authenticated": true, "user": shown(&c.user), "audiences": good}),
        Err(why) => json!({"user": {}, "error": why}),
    })
}

fn subject(row: &Row, spec: &Value) -> Result<UserInfo, Status> {
    let strings = |v: &Value| {
        v.as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let user = UserInfo {
        name: text(spec, &["user"]).into(),
        uid: text(spec, &["uid"]).into(),
        groups: spec.get("groups").map(strings).unwrap_or_default(),
        extra: spec
            .get("extra")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), strings(v)))
            .collect(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let e = FieldError::invalid(
            "spec.user",
            "",
            "at least one of user or group must be specified",
        );
        return Err(Status::invalid(&row.group, &row.kind, "", &[e]));
    }
    Ok(user)
}

/// What the field selector of a question asks for exactly (resourceAttributes.fieldSelector: a text or requirements).
fn selected(row: &Row, r: &Value) -> Result<Vec<(String, String)>, Status> {
    for kind in ["fieldSelector", "labelSelector"] {
        let Some(s) = r.get(kind).filter(|s| s.is_object()) else {
            continue;
        };
        let path = format!("spec.resourceAttributes.{kind}");
        let raw = text(s, &["rawSelector"]);
        let some = s
            .get("requirements")
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty());
        let e = match (raw.is_empty(), some) {
            (false, true) => FieldError::invalid(
                format!("{path}.rawSelector"),
                raw,
                "may not specified at the same time as requirements",
            ),
            (true, false) => FieldError::required(
                format!("{path}.requirements"),
                format!("when {path} is specified, requirements or rawSelector is required"),
            ),
            _ => continue,
        };
        return Err(Status::invalid(&row.group, &row.kind, "", &[e]));
    }
    let Some(s) = r.get("fieldSelector") else {
        return Ok(Vec::new());
    };
    let raw = text(s, &["rawSelector"]);
    if !raw.is_empty() {
        // What is no selector asks for everything: nothing is granted on the strength of it.
        return Ok(FieldSelector::exact_terms(raw).unwrap_or_default());
    }
    let requirements = s.get("requirements").and_then(Value::as_array);
    Ok(requirements
        .into_iter()
        .flatten()
        .filter(|q| text(q, &["operator"]) == "In")
        .filter_map(|q| match q.get("values")?.as_array()?.as_slice() {
            [one] => Some((text(q, &["key"]).to_string(), one.as_str()?.to_string())),
            _ => None,
        })
        .collect())
}

fn access(app: &Arc<App>, row: &Row, user: &UserInfo, spec: &Value) -> Result<Value, Status> {
    let (resource, path) = (
        spec.get("resourceAttributes").filter(|v| v.is_object()),
        spec.get("nonResourceAttributes").filter(|v| v.is_object()),
    );
    let fields = match resource {
        Some(r) => selected(row, r)?,
        None => Vec::new(),
    };
    let a = match (resource, path) {
        (Some(r), None) => Attributes {
            user,
            verb: text(r, &["verb"]),
            namespace: text(r, &["namespace"]),
            group: text(r, &["group"]),
            version: text(r, &["version"]),
            resource: text(r, &["resource"]),
            subresource: text(r, &["subresource"]),
            name: text(r, &["name"]),
            path: "",
            is_resource: true,
            fields: &fields,
        },
        (None, Some(p)) => Attributes {
            user,
            verb: text(p, &["verb"]),
            namespace: "",
            group: "",
            version: "",
            resource: "",
            subresource: "",
            name: "",
            path: text(p, &["path"]),
            is_resource: false,
            fields: &[],
        },
        (Some(_), Some(_)) => {
            let e = FieldError::invalid(
                "spec.nonResourceAttributes",
                Value::Null,
                "cannot be specified in combination with resourceAttributes",
            );
            return Err(Status::invalid(&row.group, &row.kind, "", &[e]));
        }
        (None, None) => {
            let e = FieldError::invalid(
                "spec.resourceAttributes",
                Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            );
            return Err(Status::invalid(&row.group, &row.kind, "", &[e]));
        }
    };
    Ok(match app.auth.decide(app, &a) {
        Decision::Allow(by) => match by.to_string() {
            why if why.is_empty() => json!({"allowed": true}),
            why => json!({"allowed": true, "reason": why}),
        },
        Decision::NoOpinion(why) if why.is_empty() => json!({"allowed": false}),
        Decision::NoOpinion(why) => json!({"allowed": false, "reason": why}),
    })
}

fn rules(app: &Arc<App>, user: &UserInfo, namespace: &str) -> Value {
    let mut all = app.auth.rbac.rules_of(user, namespace);
    if user.in_group(super::MASTERS) {
        for (i, rule) in Rule::everything().into_iter().enumerate() {
            if !all.contains(&rule) {
                all.insert(i.min(all.len()), rule);
            }
        }
    }
    let mut resources = Vec::new();
    let mut paths = Vec::new();
    for r in all {
        if r.urls.is_empty() {
            let mut v = json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
            if !r.names.is_empty() {
                v["resourceNames"] = r.names.into();
            }
            resources.push(v);
        } else {
            paths.push(json!({"verbs": r.verbs, "nonResourceURLs": r.urls}));
        }
    }
    let incomplete = super::node::node_of(user).is_some();
    let mut status =
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete});
    if incomplete {
        status["evaluationError"] = "node authorizer does not support user rule resolution".into();
    }
    status
}
