//! Answers: values and bytes in the negotiated encoding, Status errors. Knows no kind.

use super::negotiate::{Accept, Encoding};
use ::http::{HeaderValue, Response, StatusCode, header};
use axum::body::Body;
use bytes::Bytes;
use serde_json::Value;
use skiff_api::status::Status;

/// An answer whose bytes are ready.
pub fn bytes(code: u16, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut r = Response::new(body.into());
    *r.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let h = r.headers_mut();
    h.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    h.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    r
}

/// A value's bytes in an encoding.
pub fn encode(value: &Value, encoding: Encoding) -> Bytes {
    let out = match encoding {
        Encoding::Json => serde_json::to_vec(value).map_err(|e| e.to_string()),
        Encoding::PrettyJson => serde_json::to_vec_pretty(value).map_err(|e| e.to_string()),
        Encoding::Yaml => serde_saphyr::to_string(value)
            .map(String::into_bytes)
            .map_err(|e| e.to_string()),
    };
    match out {
        Ok(b) => b.into(),
        // A Value always encodes; if the YAML writer disagrees, JSON is YAML too.
        Err(_) => value.to_string().into(),
    }
}

/// A value.
pub fn value(code: u16, accept: Accept, value: &Value) -> Response<Body> {
    bytes(code, accept.content_type(), encode(value, accept.encoding))
}

/// JSON bytes, re-encoded only when the client wants indentation or YAML.
pub fn json_bytes(code: u16, accept: Accept, body: Bytes) -> Response<Body> {
    if accept.encoding == Encoding::Json {
        return bytes(code, "application/json", body);
    }
    match serde_json::from_slice::<Value>(&body) {
        Ok(v) => value(code, accept, &v),
        Err(_) => bytes(code, "application/json", body),
    }
}

/// An error.
pub fn status(status: &Status, accept: Accept) -> Response<Body> {
    let mut r = value(status.code, accept, &status.to_value());
    if let Some(s) = status
        .details
        .get("retryAfterSeconds")
        .and_then(Value::as_u64)
    {
        r.headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(s));
    }
    if status.code == 401 {
        r.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"kubernetes\""),
        );
    }
    r
}

/// Adds `Warning: 299 - "..."` headers (RFC 7234), one each; texts are cut and escaped so that they are valid headers.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for w in warnings.iter().take(64) {
        let clean: String = w
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| {
                if c == '"' || c == '\\' {
                    vec!['\\', c]
                } else {
                    vec![c]
                }
            })
            .take(1024)
            .collect();
        if let Ok(v) = HeaderValue::from_bytes(format!("299 - \"{clean}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_become_valid_headers() {
        let mut r = bytes(200, "application/json", "{}");
        warn(&mut r, &["unknown field \"spec.x\"\n".to_string()]);
        assert_eq!(
            r.headers()[header::WARNING],
            "299 - \"unknown field \\\"spec.x\\\"\""
        );
    }
}
