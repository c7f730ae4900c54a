//! `/openapi/v2` and `/openapi/v3`: the documents are made by the api crate from schema facts and the resource table when
//! they are asked for. They are megabytes and asked for rarely (kubectl keeps them on disk by their hash), so nothing is kept.

use super::{Answer, respond, with_etag};
use crate::App;
use crate::registry::table::Row;
use ::http::{HeaderMap, HeaderValue, Response, header};
use axum::body::Body;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use skiff_api::status::Status;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows by their path below `/openapi/v3/`, e.g. `api/v1`, `apis/apps/v1`.
fn by_path(app: &App) -> BTreeMap<String, Vec<Arc<Row>>> {
    let mut map: BTreeMap<String, Vec<Arc<Row>>> = BTreeMap::new();
    for row in app.table.rows() {
        let path = if row.group.is_empty() {
            format!("api/{}", row.version)
        } else {
            format!("apis/{}/{}", row.group, row.version)
        };
        map.entry(path).or_default().push(row);
    }
    map
}

/// Names a document without making it: the program's version and the rows decide its content.
fn hash(path: &str, rows: &[Arc<Row>]) -> String {
    let mut h = Sha256::new();
    h.update(env!("CARGO_PKG_VERSION"));
    h.update(path);
    for r in rows {
        h.update(r.plural.as_bytes());
        h.update(r.schema.as_bytes());
        for s in &r.subresources {
            h.update(s.name.as_bytes());
        }
    }
    h.finalize().iter().map(|b| format!("{b:02X}")).collect()
}

/// `/openapi/v3`
pub fn v3_index(app: &App) -> Response<Body> {
    let mut paths = Map::new();
    for (path, rows) in by_path(app) {
        let url = format!("/openapi/v3/{path}?hash={}", hash(&path, &rows));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    respond::bytes(
        200,
        "application/json",
        Value::to_string(&json!({"paths": paths})),
    )
}

/// Does the client take JSON at all? (client-go's old v2 client takes protobuf alone.)
fn takes_json(headers: &HeaderMap) -> bool {
    match headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()) {
        None | Some("") => true,
        Some(v) => v.split(',').any(|c| {
            matches!(
                c.split(';').next().map(str::trim),
                Some("application/json" | "*/*" | "application/*")
            )
        }),
    }
}

/// `/openapi/v3/{path}`
///
/// # Errors
/// 404 of a group version that is not served, 406 for protobuf alone.
pub fn v3(app: &App, path: &str, query: &str, headers: &HeaderMap) -> Answer {
    let all = by_path(app);
    let rows = all.get(path).ok_or_else(Status::no_route)?;
    if !takes_json(headers) {
        return Err(super::negotiate::not_acceptable());
    }
    let hash = hash(path, rows);
    let etag = format!("\"{hash}\"");
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains(&etag));
    let mut r = if known {
        respond::bytes(304, "application/json", Body::empty())
    } else {
        let rows: Vec<_> = rows.iter().map(|r| &***r).collect();
        respond::bytes(
            200,
            "application/json",
            Value::to_string(&skiff_api::openapi::v3(&rows)),
        )
    };
    if let Ok(v) = HeaderValue::from_str(&etag) {
        r.headers_mut().insert(header::ETAG, v);
    }
    r.headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    if query
        .split('&')
        .any(|p| p.strip_prefix("hash=") == Some(hash.as_str()))
    {
        // A document that was asked for by its hash never changes: kubectl keeps it on disk and does not ask again.
        r.headers_mut().insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, immutable, max-age=31536000"),
        );
    }
    Ok(r)
}

/// `/openapi/v2`, as JSON or as the gnostic protobuf that client-go asks for.
///
/// # Errors
/// 406 for anything else.
pub fn v2(app: &App, headers: &HeaderMap) -> Answer {
    let protobuf = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|c| V2_PROTOBUF.contains(&c.trim())));
    if !protobuf && !takes_json(headers) {
        return Err(super::negotiate::not_acceptable());
    }
    let rows = app.table.rows();
    let rows: Vec<_> = rows.iter().map(|r| &***r).collect();
    let document = skiff_api::openapi::v2(&rows);
    if protobuf {
        return Ok(with_etag(
            headers,
            skiff_api::openapi::protobuf::encode(&document).into(),
            V2_PROTOBUF[0],
        ));
    }
    Ok(with_etag(
        headers,
        document.to_string().into(),
        "application/json",
    ))
}

/// Media types of the v2 document in protobuf; the second is the older name.
const V2_PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
];
