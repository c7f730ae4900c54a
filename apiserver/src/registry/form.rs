//! The forms of an answer: the object's stored bytes, another encoding of them, PartialObjectMetadata, Table. Only the
//! first is made without decoding.

use super::{Call, encode, table::Row};
use crate::App;
use crate::http::negotiate::{Encoding, Form};
use crate::http::{Answer, body::Chunks, respond};
use crate::store::Entry;
use axum::body::Body;
use serde_json::{Value, json};
use skiff_api::status::Status;
use skiff_api::table::{self as api, IncludeObject};
use std::collections::VecDeque;

/// A stored entry as a Value of this row's version, resourceVersion included.
///
/// # Errors
/// 500 when the store is damaged.
pub fn value_of(app: &App, row: &Row, entry: &Entry) -> Result<Value, Status> {
    if row.stored {
        return encode::decode(row, &entry.value);
    }
    let stored = app
        .table
        .stored(&row.storage)
        .ok_or_else(|| Status::internal(format!("no row stores {}", row.storage)))?;
    let mut v = encode::decode(&stored, &entry.value)?;
    (row.from_stored)(&mut v);
    if let Some(m) = v.as_object_mut() {
        m.insert("kind".into(), row.kind.as_ref().into());
        m.insert("apiVersion".into(), row.api_version().into());
    }
    Ok(v)
}

/// An entry in the form that was asked for.
///
/// # Errors
/// 500 when the store is damaged.
pub fn object(call: &Call, code: u16, entry: &Entry) -> Answer {
    if call.row.stored && call.accept.form == Form::Object && call.accept.encoding == Encoding::Json
    {
        let chunks = VecDeque::from([
            call.row.head.clone(),
            entry.value.slice(1.min(entry.value.len())..),
        ]);
        return Ok(respond::bytes(
            code,
            "application/json",
            Body::new(Chunks::new(chunks)),
        ));
    }
    value(call, code, &value_of(&call.app, &call.row, entry)?)
}

/// A full object (resourceVersion included) in the form that was asked for.
///
/// # Errors
/// None today; the type allows forms that fail.
pub fn value(call: &Call, code: u16, v: &Value) -> Answer {
    let shown = match call.accept.form {
        Form::Object => return Ok(respond::value(code, call.accept, v)),
        Form::Partial { v1beta1 } => partial(v, v1beta1),
        Form::Table { v1beta1 } => {
            let metadata = json!({"resourceVersion": super::meta::text(v, "resourceVersion")});
            table(
                &call.row,
                std::slice::from_ref(v),
                metadata,
                v1beta1,
                &call.options.include_object,
                true,
            )
        }
    };
    Ok(respond::value(code, call.accept, &shown))
}

/// Tables and metadata forms are made as v1; the beta differs in its name alone.
fn versioned(mut v: Value, v1beta1: bool) -> Value {
    if v1beta1 {
        v["apiVersion"] = "meta.k8s.io/v1beta1".into();
    }
    v
}

/// PartialObjectMetadata of an object.
pub fn partial(v: &Value, v1beta1: bool) -> Value {
    versioned(api::partial_object_metadata(v), v1beta1)
}

/// PartialObjectMetadataList.
pub fn partial_list(items: &[Value], metadata: Value, v1beta1: bool) -> Value {
    let items: Vec<Value> = items.iter().map(|v| partial(v, v1beta1)).collect();
    let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items});
    versioned(list, v1beta1)
}

/// A Table of objects. `include` is the request's includeObject; `headers` is false on the second and later events of a
/// watch, as upstream.
pub fn table(
    row: &Row,
    items: &[Value],
    metadata: Value,
    v1beta1: bool,
    include: &str,
    headers: bool,
) -> Value {
    let now = jiff::Timestamp::now().as_second();
    let include = IncludeObject::parse(include).unwrap_or_default();
    versioned(
        api::table(row, items, metadata, include, headers, now),
        v1beta1,
    )
}
