//! JSON merge patch (RFC 7386).

use crate::status::Status;
use serde_json::Value;

/// Applies the patch of a request body to the current object.
pub fn apply(current: &Value, patch: &[u8]) -> Result<Value, Status> {
    let patch: Value =
        serde_json::from_slice(patch).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut doc = current.clone();
    json_patch::merge(&mut doc, &patch);
    Ok(doc)
}
