//! JSON patch (RFC 6902).

use crate::status::Status;
use serde_json::Value;

/// Applies the patch of a request body to the current object.
pub fn apply(current: &Value, patch: &[u8]) -> Result<Value, Status> {
    let ops: json_patch::Patch =
        serde_json::from_slice(patch).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut doc = current.clone();
    json_patch::patch(&mut doc, &ops).map_err(|e| Status::bad_request(e.to_string()))?;
    Ok(doc)
}
