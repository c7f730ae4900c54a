//! JSON patch (RFC 6902).

use crate::status::Status;
use serde_json::Value;

/// Upstream's limit of operations in a patch.
const MAX_OPERATIONS: usize = 10_000;

/// Applies the patch of a request body to the current object. 400 when it is no JSON patch, 413 when it has too many
/// operations, 422 when an operation does not apply.
pub fn apply(current: &Value, patch: &[u8]) -> Result<Value, Status> {
    let ops: json_patch::Patch = serde_json::from_value(super::parse(patch)?)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if ops.0.len() > MAX_OPERATIONS {
        return Err(Status::new(
            413,
            "RequestEntityTooLarge",
            format!(
                "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                ops.0.len()
            ),
        ));
    }
    let mut doc = current.clone();
    json_patch::patch(&mut doc, &ops).map_err(super::unprocessable)?;
    Ok(doc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_apply_in_order() {
        let got = apply(
            &json!({"spec": {"replicas": 1, "paused": true}}),
            br#"[{"op":"test","path":"/spec/replicas","value":1},{"op":"replace","path":"/spec/replicas","value":3},{"op":"remove","path":"/spec/paused"}]"#,
        );
        assert_eq!(got, Ok(json!({"spec": {"replicas": 3}})));
    }

    #[test]
    fn what_does_not_apply_is_a_422_that_says_why() {
        let e = apply(
            &json!({"a": 1}),
            br#"[{"op":"test","path":"/a","value":2}]"#,
        )
        .unwrap_err();
        assert_eq!((e.code, e.reason), (422, "Invalid"));
        assert!(
            e.details["causes"][0]["message"]
                .as_str()
                .is_some_and(|m| m.contains("/a"))
        );
        assert_eq!(apply(&json!({}), b"{}").unwrap_err().code, 400);
        assert_eq!(apply(&json!({}), b"[").unwrap_err().code, 400);
        assert_eq!(
            apply(&json!({}), br#"[{"op":"remove","path":"/x"}]"#)
                .unwrap_err()
                .code,
            422
        );
        assert_eq!(
            apply(
                &json!({"a": 1}),
                br#"[{"op":"add","path":"/b/c","value":1}]"#
            )
            .unwrap_err()
            .code,
            422
        );
        let many = format!(
            "[{}]",
            vec![r#"{"op":"test","path":"","value":1}"#; 10_001].join(",")
        );
        assert_eq!(apply(&json!({}), many.as_bytes()).unwrap_err().code, 413);
    }
}
