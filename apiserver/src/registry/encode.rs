//! The bytes of objects: the stored form, the full form, and resourceVersions in between. Pure.
//!
//! Stored: `{"metadata":{...},...}` without apiVersion, kind and resourceVersion, metadata first. In memory the store has
//! put `"resourceVersion":"N",` after the first 13 bytes; such bytes are a list's item as they are (items of built-in
//! lists carry no kind upstream, either), and with the row's head before them they are the object.

use super::table::Row;
use crate::App;
use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};
use skiff_api::decode;
use skiff_api::status::Status;

/// What every stored object begins with.
pub const OPENING: &[u8] = b"{\"metadata\":{";

/// The stored form of an object.
///
/// # Errors
/// 500 when it cannot be encoded, which no Value does.
pub fn stored(object: &Value) -> Result<Bytes, Status> {
    let empty = Map::new();
    let map = object.as_object().unwrap_or(&empty);
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(OPENING);
    let mut first = true;
    for (k, v) in map
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&empty)
    {
        if k != "resourceVersion" {
            member(&mut out, &mut first, k, v)?;
        }
    }
    out.push(b'}');
    first = false;
    for (k, v) in map {
        if k != "metadata" && k != "kind" && k != "apiVersion" {
            member(&mut out, &mut first, k, v)?;
        }
    }
    out.push(b'}');
    Ok(out.into())
}

/// How large a stored object may be: etcd's default limit of a request, which is upstream's.
pub const MAX_OBJECT: usize = 1536 * 1024;

/// The stored form of an object that is created or changed; `before` is the length of what it takes the place of. Every way on
/// which an object can grow ends here. One that is too large already may shrink.
///
/// # Errors
/// 413 when it is too large.
pub fn bounded(row: &Row, object: &Value, before: usize) -> Result<Bytes, Status> {
    let bytes = stored(object)?;
    if bytes.len() > MAX_OBJECT.max(before) {
        return Err(Status::object_too_large(
            &row.group,
            &row.plural,
            super::meta::text(object, "name"),
            bytes.len(),
            MAX_OBJECT,
        ));
    }
    Ok(bytes)
}

/// Any value's JSON.
///
/// # Errors
/// 500 when it cannot be encoded, which no Value does.
pub fn json(v: &Value) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(v).map_err(Status::internal)
}

/// An object of a row whose storage holds another version, in that version, and read as its type again: a conversion takes
/// parts out of annotations, which are free text.
///
/// # Errors
/// 400 when what was converted is not of the stored type.
pub fn to_stored(app: &App, row: &Row, object: &mut Value) -> Result<(), Status> {
    if row.stored {
        return Ok(());
    }
    (row.to_stored)(object);
    if let Some(stored) = app.table.stored(&row.storage) {
        let (typed, _) = decode::convert(
            std::mem::take(object),
            &decode::Expect::row(&stored),
            decode::Strictness::Ignore,
        )?;
        *object = typed;
    }
    Ok(())
}

fn member(out: &mut Vec<u8>, first: &mut bool, key: &str, value: &Value) -> Result<(), Status> {
    if !std::mem::take(first) {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, key).map_err(Status::internal)?;
    out.push(b':');
    serde_json::to_writer(&mut *out, value).map_err(Status::internal)
}

/// A stored object's Value, with the row's kind and apiVersion in front.
///
/// # Errors
/// 500 when the stored bytes are no JSON object: the store is damaged.
pub fn decode(row: &Row, bytes: &[u8]) -> Result<Value, Status> {
    let mut full = BytesMut::with_capacity(row.head.len() + bytes.len());
    full.extend_from_slice(&row.head);
    full.extend_from_slice(bytes.get(1..).unwrap_or(b"}"));
    serde_json::from_slice(&full)
        .map_err(|e| Status::internal(format!("stored {} cannot be decoded: {e}", row.kind)))
}

/// A stored object's full JSON.
pub fn full(row: &Row, bytes: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(row.head.len() + bytes.len());
    out.extend_from_slice(&row.head);
    out.extend_from_slice(bytes.get(1..).unwrap_or(b"}"));
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stored_objects_begin_with_metadata_and_carry_no_version() {
        let o = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "b"}, "metadata": {"resourceVersion": "7", "name": "x"}});
        let bytes = stored(&o).unwrap_or_default();
        assert_eq!(&bytes[..], br#"{"metadata":{"name":"x"},"data":{"a":"b"}}"#);
        let t = super::super::table::Table::new(skiff_api::kinds::builtin());
        let row = t.get("", "v1", "configmaps").expect("row");
        assert_eq!(
            decode(&row, &bytes),
            Ok(
                json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}, "data": {"a": "b"}})
            )
        );
        assert_eq!(
            &full(&row, &bytes)[..],
            br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{"a":"b"}}"#
        );
    }
}
