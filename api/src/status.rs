//! `metav1.Status` errors: one type that every API error becomes, with the code, reason, details and causes that
//! client-go expects (k8s.io/apimachinery/pkg/api/errors). Pure values.

use crate::field::FieldError;
use serde_json::{Value, json};

/// An API error; serialises to a `v1.Status` with status Failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// HTTP code.
    pub code: u16,
    /// `metav1.StatusReason`, e.g. `NotFound`.
    pub reason: &'static str,
    /// Human text.
    pub message: String,
    /// `details` (name, group, kind, uid, causes, retryAfterSeconds); Null when there are none.
    pub details: Value,
    /// `metadata.continue` of a 410: a token with which the rest of a list can be had, though not of one state.
    pub continue_token: String,
}

/// Group and plural resource name as messages show them: `deployments.apps "web"`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_string()
    } else {
        format!("{resource}.{group}")
    }
}

/// How many errors of an object a Status names: a list of a million wrong items must not become a larger answer.
const MAX_CAUSES: usize = 100;

fn details(name: &str, group: &str, kind: &str) -> Value {
    let mut d = serde_json::Map::new();
    if !name.is_empty() {
        d.insert("name".into(), name.into());
    }
    if !group.is_empty() {
        d.insert("group".into(), group.into());
    }
    if !kind.is_empty() {
        d.insert("kind".into(), kind.into());
    }
    Value::Object(d)
}

impl Status {
    /// A Status with no details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
            continue_token: String::new(),
        }
    }
    /// 404 of an object.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self {
            details: details(name, group, resource),
            ..Self::new(
                404,
                "NotFound",
                format!("{} {name:?} not found", qualified(group, resource)),
            )
        }
    }
    /// 404 of a path that is no resource.
    pub fn no_route() -> Self {
        Self {
            details: json!({}),
            ..Self::new(
                404,
                "NotFound",
                "the server could not find the requested resource",
            )
        }
    }
    /// 409 on create.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self {
            details: details(name, group, resource),
            ..Self::new(
                409,
                "AlreadyExists",
                format!("{} {name:?} already exists", qualified(group, resource)),
            )
        }
    }
    /// 409 on update: resourceVersion or uid precondition did not hold.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        Self {
            details: details(name, group, resource),
            ..Self::new(
                409,
                "Conflict",
                format!(
                    "Operation cannot be fulfilled on {} {name:?}: {why}",
                    qualified(group, resource)
                ),
            )
        }
    }
    /// 422 with causes; `kind` is the Kind, not the plural.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let more = errors.len().saturating_sub(MAX_CAUSES);
        let errors = &errors[..errors.len() - more];
        let mut shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        if more > 0 {
            shown.push(format!("and {more} more errors"));
        }
        let text = if shown.len() == 1 {
            shown[0].clone()
        } else {
            format!("[{}]", shown.join(", "))
        };
        let mut d = details(name, group, kind);
        d["causes"] = errors
            .iter()
            .map(|e| json!({"reason": e.reason(), "message": e.body(), "field": e.field}))
            .collect();
        Self {
            details: d,
            ..Self::new(
                422,
                "Invalid",
                format!("{} {name:?} is invalid: {text}", qualified(group, kind)),
            )
        }
    }
    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }
    /// 403 of a request on a resource; `why` is the text after the colon.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!(
                "{} {name:?} is forbidden: {why}",
                qualified(group, resource)
            )
        };
        Self {
            details: details(name, group, resource),
            ..Self::new(403, "Forbidden", message)
        }
    }
    /// 405.
    pub fn method_not_allowed(message: impl Into<String>) -> Self {
        Self {
            details: json!({}),
            ..Self::new(405, "MethodNotAllowed", message)
        }
    }
    /// 410 with reason Expired: a resourceVersion or continue token that is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }
    /// 413 of an object that is too large for the store; the text is what etcd says, which clients look for.
    pub fn object_too_large(
        group: &str,
        resource: &str,
        name: &str,
        size: usize,
        limit: usize,
    ) -> Self {
        Self {
            details: details(name, group, resource),
            ..Self::new(
                413,
                "RequestEntityTooLarge",
                format!(
                    "etcdserver: request is too large: {} {name:?} would have {size} bytes, the limit is {limit}",
                    qualified(group, resource)
                ),
            )
        }
    }
    /// 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }
    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }
    /// 429 with a Retry-After (seconds).
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        Self {
            details: json!({"retryAfterSeconds": retry_after}),
            ..Self::new(429, "TooManyRequests", message)
        }
    }
    /// 500. The message names the thing; it never carries a backtrace.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let message = message.to_string();
        Self {
            details: json!({"causes": [{"message": message}]}),
            ..Self::new(
                500,
                "InternalError",
                format!("Internal error occurred: {message}"),
            )
        }
    }
    /// 501: Skiff does not have this yet; the message says what.
    pub fn not_implemented(what: impl std::fmt::Display) -> Self {
        Self::new(
            501,
            "NotImplemented",
            format!("{what} is not there yet in Skiff"),
        )
    }
    /// 503.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// The wire form.
    pub fn to_value(&self) -> Value {
        let mut v = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason,
        });
        if !self.details.is_null() {
            v["details"] = self.details.clone();
        }
        if !self.continue_token.is_empty() {
            v["metadata"]["continue"] = self.continue_token.as_str().into();
        }
        v["code"] = self.code.into();
        v
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Status {}
