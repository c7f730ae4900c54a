//! Small reading and defaulting helpers over `serde_json::Value` that every kind's rules share: typed look-ups that never
//! fail on odd shapes, "set when unset", lazily written field paths, Go's semantic equality. Knows no kind.

use crate::field::FieldError;
use crate::resource::{Cell, Column, SelectableField};
use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// The value at a dotted path (`spec.template.spec`), Null when any part is missing. Keys with dots: use `get`.
pub fn at<'a>(v: &'a Value, path: &str) -> &'a Value {
    let mut v = v;
    for key in path.split('.') {
        match v.get(key) {
            Some(x) => v = x,
            None => return &NULL,
        }
    }
    v
}

/// The value at a dotted path, to be changed; none when a part is missing or null.
pub fn at_mut<'a>(v: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut v = v;
    for key in path.split('.') {
        v = v.get_mut(key)?;
    }
    if v.is_null() { None } else { Some(v) }
}

/// The string at a dotted path; empty when missing (Go's zero value).
pub fn text<'a>(v: &'a Value, path: &str) -> &'a str {
    at(v, path).as_str().unwrap_or("")
}

/// The number at a dotted path; none when missing.
pub fn int(v: &Value, path: &str) -> Option<i64> {
    at(v, path).as_i64()
}

/// The number at a dotted path; 0 when missing.
pub fn int0(v: &Value, path: &str) -> i64 {
    int(v, path).unwrap_or(0)
}

/// The boolean at a dotted path; false when missing.
pub fn truth(v: &Value, path: &str) -> bool {
    at(v, path).as_bool().unwrap_or(false)
}

/// The items of the list at a dotted path; none when missing.
pub fn items<'a>(v: &'a Value, path: &str) -> &'a [Value] {
    at(v, path).as_array().map_or(&[], Vec::as_slice)
}

/// The items of the list under `key`, to be changed.
pub fn items_mut<'a>(v: &'a mut Value, path: &str) -> &'a mut [Value] {
    match at_mut(v, path) {
        Some(Value::Array(a)) => a.as_mut_slice(),
        _ => &mut [],
    }
}

/// The entries of the object at a dotted path; none when missing.
pub fn entries<'a>(v: &'a Value, path: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(v, path).as_object().into_iter().flatten()
}

/// Is there something but null at the dotted path?
pub fn has(v: &Value, path: &str) -> bool {
    !at(v, path).is_null()
}

/// Nothing, or what Go's omitempty would leave out of a list, map or string.
pub fn is_empty(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// The object under `key`, made when missing or null; none when something else is there or `v` is no object.
pub fn object<'a>(v: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = v.as_object_mut()?;
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.is_object().then_some(slot)
}

/// Sets `key` when it is missing or null (a nil pointer in Go).
pub fn unset(v: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = v.as_object_mut() {
        let slot = map.entry(key).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value.into();
        }
    }
}

/// Sets `key` when it is missing, null, "" or 0 (Go's zero value of a plain field).
pub fn zero(v: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = v.as_object_mut() {
        let slot = map.entry(key).or_insert(Value::Null);
        let is_zero = match slot {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Number(n) => n.as_f64() == Some(0.0),
            _ => false,
        };
        if is_zero {
            *slot = value.into();
        }
    }
}

/// Sets `key`, whatever is there.
pub fn put(v: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = v.as_object_mut() {
        map.insert(key.to_string(), value.into());
    }
}

/// Removes `key`.
pub fn drop_key(v: &mut Value, key: &str) {
    if let Some(map) = v.as_object_mut() {
        map.shift_remove(key);
    }
}

/// Copies `key` from `old`, or removes it when `old` has none.
pub fn carry(new: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(x) => put(new, key, x.clone()),
        None => drop_key(new, key),
    }
}

/// The name in metadata.
pub fn name(v: &Value) -> &str {
    text(v, "metadata.name")
}

/// Keys whose values are Go maps: for them an empty object and none are the same.
const MAPS: &[&str] = &[
    "labels",
    "annotations",
    "nodeSelector",
    "selector",
    "matchLabels",
    "limits",
    "requests",
    "data",
    "binaryData",
    "overhead",
    "parameters",
    "capacity",
    "hard",
];
/// Keys whose values are maps of quantities.
const QUANTITIES: &[&str] = &["limits", "requests", "overhead", "capacity", "hard"];

/// Go's `apiequality.Semantic.DeepEqual` as far as untyped JSON allows: null, none, empty lists and empty strings are
/// the same, so are empty and missing maps; quantities compare by value.
pub fn equal(a: &Value, b: &Value) -> bool {
    equal_under("", a, b)
}

fn blank(key: &str, v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty() && MAPS.contains(&key),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn equal_under(key: &str, a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let quantities = QUANTITIES.contains(&key);
            let same = |k: &str, p: &Value, q: &Value| {
                if quantities {
                    p == q || crate::quantity::equal(p, q)
                } else {
                    equal_under(k, p, q)
                }
            };
            x.iter().all(|(k, p)| same(k, p, y.get(k).unwrap_or(&NULL)))
                && y.iter()
                    .all(|(k, q)| x.contains_key(k) || same(k, &NULL, q))
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(p, q)| equal_under("", p, q))
        }
        (Value::Number(x), Value::Number(y)) => x.as_f64() == y.as_f64(),
        _ => a == b || (blank(key, a) && blank(key, b)),
    }
}

/// A field path that is written out only when an error needs it (a valid object costs no allocation).
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The path of a top-level field (may be dotted: `spec.template`).
    pub fn new(field: &'a str) -> Self {
        Self {
            parent: None,
            segment: Segment::Field(field),
        }
    }
    /// A field below.
    pub fn child(&'a self, field: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            segment: Segment::Field(field),
        }
    }
    /// A list item below.
    pub fn index(&'a self, i: usize) -> Path<'a> {
        Path {
            parent: Some(self),
            segment: Segment::Index(i),
        }
    }
    /// A map entry below.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            segment: Segment::Key(key),
        }
    }
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(p) = self.parent {
            p.fmt(f)?;
        }
        match self.segment {
            Segment::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Segment::Field(name) => f.write_str(name),
            Segment::Index(i) => write!(f, "[{i}]"),
            Segment::Key(k) => write!(f, "[{k}]"),
        }
    }
}

impl From<&Path<'_>> for String {
    fn from(p: &Path<'_>) -> String {
        p.to_string()
    }
}
impl From<Path<'_>> for String {
    fn from(p: Path<'_>) -> String {
        p.to_string()
    }
}

/// The list that validation fills.
pub type Errors = Vec<FieldError>;

/// Requires a non-empty string under `key` and gives it.
pub fn require<'a>(v: &'a Value, key: &str, path: &Path<'_>, errs: &mut Errors) -> &'a str {
    let s = text(v, key);
    if s.is_empty() {
        errs.push(FieldError::required(path.child(key), ""));
    }
    s
}

/// Requires the string under `key` to be one of `choices` when it is set.
pub fn one_of(v: &Value, key: &str, choices: &[&str], path: &Path<'_>, errs: &mut Errors) {
    let s = text(v, key);
    if !s.is_empty() && !choices.contains(&s) {
        errs.push(FieldError::not_supported(path.child(key), s, choices));
    }
}

/// Requires the number under `key` to be 0 or more when it is set.
pub fn non_negative(v: &Value, key: &str, path: &Path<'_>, errs: &mut Errors) {
    if let Some(n) = int(v, key).filter(|n| *n < 0) {
        errs.push(FieldError::invalid(
            path.child(key),
            n,
            "must be greater than or equal to 0",
        ));
    }
}

/// Upstream's `ValidateImmutableField`.
pub fn immutable(new: &Value, old: &Value, key: &str, path: &Path<'_>, errs: &mut Errors) {
    if !equal_under(key, at(new, key), at(old, key)) {
        errs.push(FieldError::invalid(
            path.child(key),
            at(new, key).clone(),
            "field is immutable",
        ));
    }
}

/// A string column.
pub fn col(name: &'static str, priority: i32, cell: fn(&Value, i64) -> Value) -> Column {
    Column {
        name: name.into(),
        kind: "string",
        format: "",
        priority,
        cell: Cell::Fn(cell),
    }
}

/// An integer column.
pub fn col_int(name: &'static str, priority: i32, cell: fn(&Value, i64) -> Value) -> Column {
    Column {
        kind: "integer",
        ..col(name, priority, cell)
    }
}

/// A boolean column.
pub fn col_bool(name: &'static str, priority: i32, cell: fn(&Value, i64) -> Value) -> Column {
    Column {
        kind: "boolean",
        ..col(name, priority, cell)
    }
}

/// The column `Name`.
pub fn col_name() -> Column {
    Column {
        format: "name",
        ..col("Name", 0, |o, _| name(o).into())
    }
}

/// The column `Age`.
pub fn col_age() -> Column {
    col("Age", 0, |o, now| {
        age(text(o, "metadata.creationTimestamp"), now).into()
    })
}

/// The column `Created At` (RBAC and limit ranges show the time itself).
pub fn col_created_at() -> Column {
    col("Created At", 0, |o, _| {
        text(o, "metadata.creationTimestamp").into()
    })
}

/// How long ago an RFC 3339 time was, as kubectl shows it; `<unknown>` when there is none.
pub fn age(time: &str, now: i64) -> String {
    match crate::time::parse_rfc3339(time) {
        Some(t) => crate::time::human_duration(now - t),
        None => "<unknown>".to_string(),
    }
}

/// `key=value,key=value` sorted by key; `<none>` when empty (upstream's labels.FormatLabels).
pub fn labels(v: &Value) -> String {
    let mut list: Vec<String> = v
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, x)| format!("{k}={}", x.as_str().unwrap_or("")))
        .collect();
    if list.is_empty() {
        return "<none>".to_string();
    }
    list.sort();
    list.join(",")
}

/// A selectable field.
pub fn field(name: &'static str, get: fn(&Value) -> String) -> SelectableField {
    SelectableField {
        name: name.into(),
        get,
    }
}

/// An int-or-string as text: `25%`, `3`; empty when unset.
pub fn int_or_string(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_are_written_as_upstream_writes_them() {
        let root = Path::new("spec.template.spec");
        let c = root.child("containers");
        let i = c.index(2);
        assert_eq!(
            i.child("name").to_string(),
            "spec.template.spec.containers[2].name"
        );
        assert_eq!(Path::new("data").key("a.b").to_string(), "data[a.b]");
    }

    #[test]
    fn equality_ignores_how_emptiness_is_written() {
        assert!(equal(
            &json!({"a": [], "labels": {}}),
            &json!({"b": null, "c": ""})
        ));
        assert!(!equal(&json!({"emptyDir": {}}), &json!({})));
        assert!(!equal(&json!({"a": 1}), &json!({"a": 2})));
    }

    #[test]
    fn quantities_are_equal_by_value() {
        assert!(equal(
            &json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
            &json!({"limits": {"cpu": "1000m", "memory": "1024Mi"}})
        ));
        assert!(!equal(
            &json!({"limits": {"cpu": "1"}}),
            &json!({"limits": {"cpu": "2"}})
        ));
    }
}
