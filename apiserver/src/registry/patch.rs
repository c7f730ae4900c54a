//! `patch`: JSON patch, merge patch and strategic merge patch over the object as the client sees it, and server-side apply.

use super::update::{ignored, update_object, update_object_as};
use super::{Call, create, input, meta, now, scale};
use crate::http::{Answer, negotiate};
use serde_json::Value;
use skiff_api::decode::{self, Expect, Strictness};
use skiff_api::patch::apply as ssa;
use skiff_api::schema;
use skiff_api::status::Status;

/// The media types of patches.
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const SUPPORTED: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// How a patch is applied.
#[derive(Clone, Copy)]
enum Kind {
    Json,
    Merge,
    Strategic,
}

fn kind(call: &Call) -> Result<Kind, Status> {
    match negotiate::media_type(&call.headers) {
        JSON_PATCH => Ok(Kind::Json),
        MERGE_PATCH => Ok(Kind::Merge),
        STRATEGIC => Ok(Kind::Strategic),
        other => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: {SUPPORTED} (got {other:?})"
        ))),
    }
}

/// The patched object. `schema` is the definition's name, for merge keys.
fn apply(kind: Kind, body: &[u8], current: &Value, schema: &str) -> Result<Value, Status> {
    match kind {
        Kind::Json => skiff_api::patch::json::apply(current, body),
        Kind::Merge => skiff_api::patch::merge::apply(current, body),
        Kind::Strategic => {
            skiff_api::patch::strategic::apply(current, body, skiff_api::schema::lookup(schema))
        }
    }
}

/// PATCH of an object or a subresource.
///
/// # Errors
/// Every refusal of the request.
pub async fn patch(call: &Call, body: &[u8]) -> Answer {
    let wrong = ssa::validate_field_manager(
        &call.options.field_manager,
        negotiate::media_type(&call.headers) == APPLY,
    );
    if !wrong.is_empty() {
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &wrong));
    }
    if negotiate::media_type(&call.headers) == APPLY && call.subresource != "scale" {
        return apply_configuration(call, body).await;
    }
    if call.options.force {
        let e = skiff_api::field::FieldError::forbidden(
            "force",
            "may not be specified for non-apply patch",
        );
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[e]));
    }
    let kind = kind(call)?;
    if call.subresource == "scale" {
        return scale::patch(call, |scale| {
            apply(kind, body, scale, "io.k8s.api.autoscaling.v1.Scale")
        })
        .await;
    }
    let mut warnings = Vec::new();
    let mut strict = Vec::new();
    let written = update_object_as(
        &call.target(),
        Some(&call.manager()),
        &mut warnings,
        false,
        |current| {
            let new = apply(kind, body, current, &call.row.schema)?;
            for k in ["kind", "apiVersion"] {
                if new[k] != current[k] {
                    return Err(Status::bad_request(format!(
                        "the {k} in the patch ({}) does not match the object's ({})",
                        new[k], current[k]
                    )));
                }
            }
            let (object, w) = input::finish(call, new)?;
            strict = w;
            Ok(object)
        },
    )
    .await?;
    warnings.extend(strict);
    written.answer(call, 200, &warnings)
}

/// Server-side apply: the body is what its manager wants; an object that is not there is made.
async fn apply_configuration(call: &Call, body: &[u8]) -> Answer {
    let strictness = Strictness::parse(&call.options.field_validation).unwrap_or_default();
    let (mut applied, mut warnings) =
        decode::decode_applied(body, &Expect::row(&call.row), strictness)?;
    let metadata = meta::metadata(&mut applied)?;
    if metadata
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or("")
        .is_empty()
    {
        metadata.insert("name".into(), call.name.as_str().into());
    }
    meta::check_name(&call.row, &applied, &call.name, &call.namespace)?;
    meta::match_namespace(&call.row, &mut applied, &call.namespace)?;
    let schema = schema::find(&call.row.schema);
    let api_version = call.row.api_version();
    let now = now();
    let request = ssa::Request {
        manager: &call.options.field_manager,
        api_version: &api_version,
        subresource: &call.subresource,
        now: &now,
        ignored: ignored(&call.row, &call.subresource),
    };
    let target = call.target();
    loop {
        if call.app.store.get(&call.key()).is_none() {
            if !call.subresource.is_empty() {
                return Err(call.not_found());
            }
            let uid = meta::text(&applied, "uid");
            if !uid.is_empty() {
                let why = format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                );
                return Err(Status::conflict(
                    &call.row.group,
                    &call.row.plural,
                    &call.name,
                    &why,
                ));
            }
            create::may_create(call).await?;
            let mut object =
                ssa::apply(&Value::Null, &applied, schema, &request, call.options.force)?;
            (call.row.strategy.default)(&mut object);
            match create::create_object(&target, object, &mut warnings).await {
                // Somebody else made it in between.
                Err(e) if e.reason == "AlreadyExists" => continue,
                written => return written?.answer(call, 201, &warnings),
            }
        }
        let written = update_object(&target, &mut warnings, false, |current| {
            let mut object = ssa::apply(current, &applied, schema, &request, call.options.force)?;
            if call.subresource == "status" {
                // A condition that is new and was given in part is completed.
                object = decode::convert(object, &Expect::row(&call.row), Strictness::Ignore)?.0;
            }
            (call.row.strategy.default)(&mut object);
            Ok(object)
        })
        .await;
        match written {
            // Somebody else removed it in between.
            Err(e) if e.code == 404 && call.subresource.is_empty() => {}
            written => return written?.answer(call, 200, &warnings),
        }
    }
}
