//! JSON merge patch (RFC 7386).

use crate::status::Status;
use serde_json::Value;

/// Applies the patch of a request body to the current object; 400 when it is no JSON object.
pub fn apply(current: &Value, patch: &[u8]) -> Result<Value, Status> {
    let patch = super::parse(patch)?;
    if !patch.is_object() {
        return Err(Status::bad_request(
            "Invalid JSON Patch: a merge patch must be an object",
        ));
    }
    let mut doc = current.clone();
    json_patch::merge(&mut doc, &patch);
    Ok(doc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nulls_remove_and_lists_are_replaced() {
        let got = apply(
            &json!({"a": {"b": 1, "c": 2}, "l": [1, 2]}),
            br#"{"a":{"b":null,"d":3},"l":[9]}"#,
        );
        assert_eq!(got, Ok(json!({"a": {"c": 2, "d": 3}, "l": [9]})));
        assert_eq!(apply(&json!({}), b"[]").unwrap_err().code, 400);
    }
}
