//! The patch formats. Pure functions over objects; each says with which Status it fails, as the API server's
//! `handlers/patch.go` does.

pub mod apply;
pub mod fieldset;
pub mod json;
pub mod merge;
pub mod strategic;

use crate::status::Status;
use serde_json::{Value, json};

/// 422 of a patch that cannot be applied; the cause says why (upstream's GenericServerResponse).
fn unprocessable(why: impl std::fmt::Display) -> Status {
    Status {
        details: json!({"causes": [{"reason": "UnexpectedServerResponse", "message": why.to_string(), "field": "patch"}]}),
        ..Status::new(
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
    }
}

/// The patch's bytes as JSON; YAML is taken too, as kubectl's users write both.
fn parse(patch: &[u8]) -> Result<Value, Status> {
    let json = match crate::decode::json_to_value(patch) {
        Ok(v) => return Ok(v),
        Err(e) => e,
    };
    if patch.trim_ascii_start().starts_with(b"{") || patch.trim_ascii_start().starts_with(b"[") {
        return Err(Status::bad_request(format!("error decoding patch: {json}")));
    }
    let text = std::str::from_utf8(patch)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    crate::decode::yaml_to_value(text)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))
}
