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

/// How much all warnings of an answer may have; beyond it each is cut (upstream's truncateAtTotalRunes and
/// truncateItemRunes, k8s.io/apiserver/pkg/endpoints/filters/warning.go).
const WARNINGS_TOTAL: usize = 4 * 1024;
const WARNING_CUT: usize = 256;

/// Adds `Warning: 299 - "..."` headers (RFC 7234), one each. Texts that are there already are left out, and what is too much
/// in all is cut.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let headers = response.headers();
    let mut texts: Vec<String> = Vec::new();
    for w in warnings {
        let text: String = w.chars().filter(|c| !c.is_control()).collect();
        let there = headers
            .get_all(header::WARNING)
            .iter()
            .any(|v| v.as_bytes() == quoted(&text).as_bytes());
        if !text.is_empty() && !there && !texts.contains(&text) {
            texts.push(text);
        }
    }
    let before: usize = headers
        .get_all(header::WARNING)
        .iter()
        .map(HeaderValue::len)
        .sum();
    let total: usize = texts.iter().map(|t| t.chars().count()).sum();
    let cut = before + total > WARNINGS_TOTAL;
    let mut left = WARNINGS_TOTAL.saturating_sub(before);
    for mut text in texts {
        if cut {
            text = text.chars().take(WARNING_CUT).collect();
        }
        let Some(rest) = left.checked_sub(text.chars().count()) else {
            return;
        };
        left = rest;
        if let Ok(v) = HeaderValue::from_bytes(quoted(&text).as_bytes()) {
            response.headers_mut().append(header::WARNING, v);
        }
    }
}

/// A warn-value with its text as a quoted string.
fn quoted(text: &str) -> String {
    format!(
        "299 - \"{}\"",
        text.replace('\\', "\\\\").replace('"', "\\\"")
    )
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

    fn warned(warnings: &[String]) -> Vec<String> {
        let mut r = bytes(200, "application/json", "{}");
        warn(&mut r, warnings);
        r.headers()
            .get_all(header::WARNING)
            .iter()
            .filter_map(|v| std::str::from_utf8(v.as_bytes()).ok().map(String::from))
            .collect()
    }

    #[test]
    fn warnings_are_said_once_and_are_bounded_in_all() {
        assert_eq!(warned(&["a".into(), "a".into(), "b".into()]).len(), 2);
        let one = warned(&["x".repeat(3000)]);
        assert_eq!(one[0].len(), 3000 + 8);
        let many: Vec<String> = (0..100)
            .map(|i| format!("{i} {}", "x".repeat(1000)))
            .collect();
        let got = warned(&many);
        assert_eq!(got.len(), 16);
        assert!(got.iter().all(|w| w.len() <= 256 + 8));
        let mut r = bytes(200, "application/json", "{}");
        warn(&mut r, &["a".into()]);
        warn(&mut r, &["a".into(), "\\ \"q\"".into()]);
        assert_eq!(r.headers().get_all(header::WARNING).iter().count(), 2);
    }
}
