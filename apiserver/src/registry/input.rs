//! From a request's body to an object that is decoded and defaulted, and the validation that every kind shares. Decoding
//! itself and the kinds' rules are the api crate's.

use super::options::Options;
use super::table::Row;
use super::{Call, meta as rules};
use crate::http::{body, negotiate};
use ::http::HeaderMap;
use axum::body::Body;
use bytes::Bytes;
use serde_json::Value;
use skiff_api::decode::{self, Expect, Strictness};
use skiff_api::field::FieldError;
use skiff_api::status::Status;
use skiff_api::{meta, names, protobuf};

/// Reads the request's body.
///
/// # Errors
/// 413, 400.
pub async fn body_of(headers: &HeaderMap, slot: &mut Body) -> Result<Bytes, Status> {
    body::read(headers, std::mem::take(slot)).await
}

/// What unknown fields do in this request.
pub fn strictness(call: &Call) -> Strictness {
    Strictness::parse(&call.options.field_validation).unwrap_or_default()
}

fn content_type(headers: &HeaderMap) -> &str {
    match negotiate::media_type(headers) {
        "" | "*/*" => "application/json",
        other => other,
    }
}

/// A body as its type (the kind of a resource, of a subresource, a review, DeleteOptions), with its warnings: JSON, YAML or
/// protobuf. There is no other way to read a body.
///
/// # Errors
/// 400, 415.
pub fn typed(
    headers: &HeaderMap,
    bytes: &[u8],
    expect: &Expect<'_>,
    strictness: Strictness,
) -> Result<(Value, Vec<String>), Status> {
    if negotiate::media_type(headers) == protobuf::MEDIA_TYPE {
        // Go's encoder knows the fields: there are none to warn about.
        return decode::convert(protobuf::decode(bytes)?, expect, Strictness::Ignore);
    }
    decode::decode(bytes, content_type(headers), expect, strictness)
}

/// The body of a POST on a subresource or review, read as its type, in its namespace.
///
/// # Errors
/// 400, 413, 415, 422.
pub async fn posted(
    request: &mut crate::http::Request,
    expect: Expect<'_>,
    namespaced: bool,
) -> Result<Posted, Status> {
    let options = Options::parse(request.query())?;
    let bytes = request.read_body().await?;
    let strictness = Strictness::parse(&options.field_validation).unwrap_or_default();
    let (mut object, warnings) = typed(&request.parts.headers, &bytes, &expect, strictness)?;
    rules::in_namespace(namespaced, &mut object, &request.info.namespace)?;
    Ok(Posted {
        object,
        warnings,
        dry_run: options.dry_run,
    })
}

/// What was posted.
pub struct Posted {
    /// The object.
    pub object: Value,
    /// Unknown and duplicate fields.
    pub warnings: Vec<String>,
    /// `dryRun=All`
    pub dry_run: bool,
}

/// An object of the row's kind, with its warnings: decoded by its schema and defaulted.
///
/// # Errors
/// 400, 415.
pub fn object(call: &Call, bytes: &[u8]) -> Result<(Value, Vec<String>), Status> {
    let (mut object, warnings) = typed(
        &call.headers,
        bytes,
        &Expect::row(&call.row),
        strictness(call),
    )?;
    rules::metadata(&mut object)?;
    (call.row.strategy.default)(&mut object);
    Ok((object, warnings))
}

/// The same for a patched object.
///
/// # Errors
/// 400.
pub fn finish(call: &Call, object: Value) -> Result<(Value, Vec<String>), Status> {
    let (mut object, warnings) =
        decode::convert(object, &Expect::row(&call.row), strictness(call))?;
    rules::metadata(&mut object)?;
    (call.row.strategy.default)(&mut object);
    Ok((object, warnings))
}

/// What a name of this kind may look like.
fn name_rule(row: &Row) -> names::NameRule {
    match (row.group.as_ref(), row.plural.as_ref()) {
        ("rbac.authorization.k8s.io", _) => names::name_is_path_segment,
        ("", "namespaces" | "services") => names::name_is_dns_label,
        _ => names::name_is_dns_subdomain,
    }
}

/// Errors of the metadata; `old` on updates.
pub fn validate_metadata(row: &Row, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, row.namespaced(), name_rule(row));
    if let Some(old) = old {
        errors.extend(meta::validate_update(new, old));
    }
    errors
}

/// Errors of the whole object; `old` on updates.
pub fn validate(row: &Row, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = validate_metadata(row, new, old);
    errors.extend((row.strategy.validate)(new));
    if let Some(old) = old {
        errors.extend((row.strategy.validate_update)(new, old));
    }
    errors
}
