//! `serviceaccounts/token`: makes tokens (TokenRequest). Owns the rules of upstream's TokenREST; keys and claims are
//! `auth::tokens`'.

use crate::admission::{find, namespace_lifecycle, node_restriction, text};
use crate::auth::tokens::{Bound, ISSUER, MAX_SECONDS, MIN_SECONDS, Ref};
use crate::http::{Answer, Request, negotiate, respond};
use crate::registry::{self, input};
use crate::{App, Operation, Write};
use serde_json::{Value, json};
use skiff_api::decode::Expect;
use skiff_api::field::FieldError;
use skiff_api::status::Status;
use std::sync::Arc;

/// POST of a TokenRequest.
///
/// # Errors
/// 400, 403, 404, 409, 422.
pub async fn create(app: &Arc<App>, mut request: Request) -> Answer {
    let accept = negotiate::accept(&request.parts.headers, None, false)?;
    let expect = Expect::gvk("authentication.k8s.io", "v1", "TokenRequest");
    let posted = input::posted(&mut request, expect, true).await?;
    let mut object = posted.object;
    let (namespace, name) = (request.info.namespace.as_str(), request.info.name.as_str());
    let account = find(app, "core/serviceaccounts", namespace, name)
        .ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
    let given = text(&object, &["metadata", "name"]);
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(format!(
            "metadata.name: Invalid value: {given:?}: must match the service account name if specified"
        )));
    }
    let row = app
        .table
        .get("", "v1", "serviceaccounts")
        .ok_or_else(Status::no_route)?;
    namespace_lifecycle::admit(
        app,
        &Write {
            operation: Operation::Create,
            row: &row,
            subresource: "token",
            namespace,
            name,
            object: Value::Null,
            old: None,
            user: &request.user,
            dry_run: posted.dry_run,
        },
    )?;
    let spec = object.get("spec").cloned().unwrap_or_else(|| json!({}));
    let (real, wanted) = (
        text(&account, &["metadata", "uid"]),
        text(&object, &["metadata", "uid"]),
    );
    if !wanted.is_empty() && wanted != real {
        return Err(Status::conflict(
            "",
            "serviceaccounts",
            name,
            &format!(
                "the UID in the token request ({wanted}) does not match the UID of the service account ({real})"
            ),
        ));
    }
    node_restriction::token(app, &request.user, namespace, name, &spec)?;
    let mut audiences: Vec<String> = spec
        .get("audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(String::from)
        .collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.into());
    }
    let seconds = spec
        .get("expirationSeconds")
        .and_then(Value::as_i64)
        .unwrap_or(3600);
    let invalid = |why: &str| {
        let e = FieldError::invalid("spec.expirationSeconds", seconds, why);
        Err(Status::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            "",
            &[e],
        ))
    };
    if seconds < MIN_SECONDS {
        return invalid("may not specify a duration less than 10 minutes");
    }
    if seconds > MAX_SECONDS {
        return invalid("may not specify a duration larger than 2^32 seconds");
    }
    let reference = spec.get("boundObjectRef").filter(|v| v.is_object());
    let bound = match reference {
        Some(r) => bind(app, namespace, name, r)?,
        None => Bound::default(),
    };
    let now = jiff::Timestamp::now().as_second();
    let account = Ref {
        name: name.into(),
        uid: text(&account, &["metadata", "uid"]).into(),
    };
    let id = uuid::Uuid::new_v4().to_string();
    let (token, expires) = app
        .auth
        .tokens
        .issue(
            namespace,
            account,
            bound,
            audiences.clone(),
            seconds,
            now,
            id,
        )
        .map_err(|e| Status::internal(format!("failed to generate token: {e}")))?;
    let mut out = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": registry::time(now)},
        "spec": {"audiences": audiences, "expirationSeconds": seconds},
    });
    if let Some(r) = object
        .get_mut("spec")
        .and_then(|s| s.get_mut("boundObjectRef"))
        .map(Value::take)
    {
        out["spec"]["boundObjectRef"] = r;
    }
    out["status"] = json!({"token": token, "expirationTimestamp": registry::time(expires)});
    let mut answer = respond::value(201, accept, &out);
    respond::warn(&mut answer, &posted.warnings);
    Ok(answer)
}

/// The object that the token is bound to, checked.
fn bind(app: &App, namespace: &str, account: &str, r: &Value) -> Result<Bound, Status> {
    let (kind, version, name, uid) = (
        text(r, &["kind"]),
        text(r, &["apiVersion"]),
        text(r, &["name"]),
        text(r, &["uid"]),
    );
    let found = |storage: &str, ns: &str| -> Result<(Value, Ref), Status> {
        let plural = storage.rsplit('/').next().unwrap_or(storage);
        let o = find(app, storage, ns, name).ok_or_else(|| Status::not_found("", plural, name))?;
        let real = text(&o, &["metadata", "uid"]).to_string();
        if !uid.is_empty() && uid != real {
            return Err(Status::conflict(
                "",
                plural,
                name,
                &format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
                ),
            ));
        }
        Ok((
            o,
            Ref {
                name: name.into(),
                uid: real,
            },
        ))
    };
    let mut bound = Bound::default();
    match (version, kind) {
        ("v1", "Pod") => {
            let (pod, r) = found("core/pods", namespace)?;
            if text(&pod, &["spec", "serviceAccountName"]) != account {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            let node = text(&pod, &["spec", "nodeName"]);
            if !node.is_empty() {
                let uid = find(app, "core/nodes", "", node)
                    .map(|n| text(&n, &["metadata", "uid"]).to_string())
                    .unwrap_or_default();
                bound.node = Some(Ref {
                    name: node.into(),
                    uid,
                });
            }
            bound.pod = Some(r);
        }
        ("v1", "Secret") => bound.secret = Some(found("core/secrets", namespace)?.1),
        ("v1", "Node") => bound.node = Some(found("core/nodes", "")?.1),
        _ => {
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {version}, Kind={kind}"
            )));
        }
    }
    Ok(bound)
}
