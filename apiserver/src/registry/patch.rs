//! `patch`: JSON patch, merge patch and strategic merge patch over the object as the client sees it. Server-side apply is
//! not there yet and answers 415.

use super::update::update_object;
use super::{Call, input, scale};
use crate::http::{Answer, negotiate};
use serde_json::Value;
use skiff_api::status::Status;

/// The media types of patches.
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const SUPPORTED: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

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
        Kind::Strategic => skiff_api::patch::strategic::apply(current, body, skiff_api::schema::lookup(schema)),
    }
}

/// PATCH of an object or a subresource.
///
/// # Errors
/// Every refusal of the request.
pub async fn patch(call: &Call, body: &[u8]) -> Answer {
    let kind = kind(call)?;
    if call.subresource == "scale" {
        return scale::patch(call, |scale| apply(kind, body, scale, "io.k8s.api.autoscaling.v1.Scale")).await;
    }
    let mut warnings = Vec::new();
    let mut strict = Vec::new();
    let written = update_object(&call.target(), &mut warnings, false, |current| {
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
    })
    .await?;
    warnings.extend(strict);
    written.answer(call, 200, &warnings)
}
