//! Field paths and field errors, as `k8s.io/apimachinery/pkg/util/validation/field` has them. Pure values.

use serde_json::Value;

/// What is wrong with a field; the text is what follows the path in a Status message.
#[derive(Debug, Clone, PartialEq)]
pub enum ErrorType {
    /// `Required value`
    Required,
    /// `Invalid value: <value>`
    Invalid,
    /// `Unsupported value: <value>: supported values: ...`
    NotSupported,
    /// `Duplicate value: <value>`
    Duplicate,
    /// `Forbidden`
    Forbidden,
    /// `Not found: <value>`
    NotFound,
    /// `Too long: may not be more than N bytes`
    TooLong,
    /// `Too many: <n>: must have at most N items`
    TooMany,
    /// `Internal error`
    Internal,
}

/// One cause of a 422 Invalid Status.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What kind of error.
    pub kind: ErrorType,
    /// Dotted path, e.g. `spec.template.spec.containers[0].name`.
    pub field: String,
    /// The offending value (Null when there is none to show).
    pub value: Value,
    /// Explanation after the value; may be empty.
    pub detail: String,
}

impl FieldError {
    /// A value that must be given and is not.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorType::Required,
            field: field.into(),
            value: Value::Null,
            detail: detail.into(),
        }
    }
    /// A value that breaks a rule.
    pub fn invalid(
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind: ErrorType::Invalid,
            field: field.into(),
            value: value.into(),
            detail: detail.into(),
        }
    }
    /// A value outside an enumeration; the choices are shown in the order given (upstream sorts where it has a set).
    pub fn not_supported(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        Self {
            kind: ErrorType::NotSupported,
            field: field.into(),
            value: value.into(),
            detail: format!("supported values: {}", list.join(", ")),
        }
    }
    /// A key given twice.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            kind: ErrorType::Duplicate,
            field: field.into(),
            value: value.into(),
            detail: String::new(),
        }
    }
    /// A field that may not be set (here, now).
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorType::Forbidden,
            field: field.into(),
            value: Value::Null,
            detail: detail.into(),
        }
    }
    /// A reference to something that is not there.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            kind: ErrorType::NotFound,
            field: field.into(),
            value: value.into(),
            detail: String::new(),
        }
    }

    /// The cause's `reason`, e.g. `FieldValueInvalid`.
    pub fn reason(&self) -> &'static str {
        match self.kind {
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::Internal => "InternalError",
        }
    }

    /// The text without the path: `Invalid value: "x": must be y`.
    pub fn body(&self) -> String {
        let shown = cut(match &self.value {
            Value::String(s) => format!("{s:?}"),
            other => other.to_string(),
        });
        let head = match self.kind {
            ErrorType::Required => "Required value".to_string(),
            ErrorType::Forbidden => "Forbidden".to_string(),
            ErrorType::Internal => "Internal error".to_string(),
            ErrorType::TooLong => "Too long".to_string(),
            ErrorType::Invalid => format!("Invalid value: {shown}"),
            ErrorType::NotSupported => format!("Unsupported value: {shown}"),
            ErrorType::Duplicate => format!("Duplicate value: {shown}"),
            ErrorType::NotFound => format!("Not found: {shown}"),
            ErrorType::TooMany => format!("Too many: {shown}"),
        };
        if self.detail.is_empty() {
            head
        } else {
            format!("{head}: {}", self.detail)
        }
    }
}

/// How much of a value an error shows: the value is the client's own, and there may be many errors about it.
const SHOWN: usize = 4096;

fn cut(mut text: String) -> String {
    if text.len() > SHOWN {
        let mut end = SHOWN;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Upstream's empty path is shown as an empty index.
        let field = if self.field.is_empty() {
            "[]"
        } else {
            &self.field
        };
        write!(f, "{field}: {}", self.body())
    }
}
