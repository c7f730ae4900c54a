//! The bytes of objects: the stored form, the full form, and resourceVersions in between. Pure.
//!
//! Stored: `{"metadata":{...},...}` without apiVersion, kind and resourceVersion, metadata first. In memory the store has
//! put `"resourceVersion":"N",` after the first 13 bytes; such bytes are a list's item as they are (items of built-in
//! lists carry no kind upstream, either), and with the row's head before them they are the object.

use super::table::Row;
use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};
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
