//! The part of kubectl's JSONPath that printer columns and scale paths use: fields, indices, wildcards, filters on
//! equality. Pure.

use serde_json::Value;

/// One step of a path.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Wildcard,
    /// `[?(@.type=="Ready")]`
    Filter(Vec<String>, bool, String),
}

fn parse(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}');
    rest = rest.strip_prefix('$').unwrap_or(rest);
    while !rest.is_empty() {
        if let Some(r) = rest.strip_prefix('[') {
            let end = closing(r)?;
            steps.push(bracket(r.get(..end)?)?);
            rest = &r[end + 1..];
        } else {
            let r = rest.strip_prefix('.').unwrap_or(rest);
            let (name, after) = field(r);
            if name == "*" {
                steps.push(Step::Wildcard);
            } else if !name.is_empty() {
                steps.push(Step::Field(name));
            } else if after.len() == r.len() && !r.starts_with('[') {
                return None;
            }
            rest = after;
        }
    }
    Some(steps)
}

/// A field name up to the next dot or bracket; a backslash keeps a dot.
fn field(s: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = s.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => {
                if let Some((_, n)) = chars.next() {
                    name.push(n);
                }
            }
            '.' | '[' => return (name, &s[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket that is open closes, quotes aside.
fn closing(s: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in s.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, ']') => return Some(i),
            _ => {}
        }
    }
    None
}

fn unquote(s: &str) -> String {
    let s = s.trim();
    for q in ['\'', '"'] {
        if let Some(inner) = s.strip_prefix(q).and_then(|r| r.strip_suffix(q)) {
            return inner.to_string();
        }
    }
    s.to_string()
}

fn bracket(s: &str) -> Option<Step> {
    let s = s.trim();
    if s == "*" {
        return Some(Step::Wildcard);
    }
    if let Ok(i) = s.parse::<i64>() {
        return Some(Step::Index(i));
    }
    if let Some(f) = s.strip_prefix("?(").and_then(|r| r.strip_suffix(')')) {
        let (left, equals, right) = match f.split_once("==") {
            Some((l, r)) => (l, true, r),
            None => {
                let (l, r) = f.split_once("!=")?;
                (l, false, r)
            }
        };
        let keys = left
            .trim()
            .strip_prefix('@')?
            .split('.')
            .filter(|k| !k.is_empty())
            .map(str::to_string)
            .collect();
        return Some(Step::Filter(keys, equals, unquote(right)));
    }
    Some(Step::Field(unquote(s)))
}

/// The text of a scalar as a comparison sees it.
fn plain(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Every value that the path finds; none when the path cannot be read or finds nothing.
pub fn find<'a>(path: &str, object: &'a Value) -> Vec<&'a Value> {
    let Some(steps) = parse(path) else {
        return Vec::new();
    };
    let mut found = vec![object];
    for step in &steps {
        let mut next = Vec::new();
        for v in found {
            match step {
                Step::Field(name) => next.extend(v.get(name)),
                Step::Index(i) => {
                    if let Some(a) = v.as_array() {
                        let i = if *i < 0 { a.len() as i64 + i } else { *i };
                        next.extend(usize::try_from(i).ok().and_then(|i| a.get(i)));
                    }
                }
                Step::Wildcard => match v {
                    Value::Array(a) => next.extend(a),
                    Value::Object(o) => next.extend(o.values()),
                    _ => {}
                },
                Step::Filter(keys, equals, want) => {
                    next.extend(v.as_array().into_iter().flatten().filter(|item| {
                        let have = keys.iter().try_fold(*item, |v, k| v.get(k));
                        have.is_some_and(|h| (plain(h) == *want) == *equals)
                    }))
                }
            }
        }
        found = next;
    }
    found
}

/// Is the text a path that this module can follow?
pub fn valid(path: &str) -> bool {
    parse(path).is_some()
}

/// A table cell of a CRD column: null when nothing is found; dates become ages, as upstream.
pub fn cell(path: &str, object: &Value, kind: &str, now: i64) -> Value {
    let found = find(path, object);
    let Some(first) = found.first() else {
        return Value::Null;
    };
    match kind {
        "date" => match first.as_str().and_then(crate::time::parse_rfc3339) {
            Some(t) => crate::time::human_duration(now - t).into(),
            None => "<invalid>".into(),
        },
        "integer" | "number" if first.is_number() => (*first).clone(),
        "boolean" if first.is_boolean() => (*first).clone(),
        "string" => {
            let all: Vec<String> = found.iter().map(|v| plain(v)).collect();
            all.join(" ").into()
        }
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn printer_columns_find_their_values() {
        let o = json!({"spec": {"a": [{"n": 1}, {"n": 2}]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}, "metadata": {"annotations": {"x.io/y": "z"}}});
        let at = |p: &str| cell(p, &o, "string", 0);
        assert_eq!(at(".spec.a[1].n"), "2");
        assert_eq!(at(".spec.a[-1].n"), "2");
        assert_eq!(at(".spec.a[*].n"), "1 2");
        assert_eq!(
            at("{.status.conditions[?(@.type==\"Ready\")].status}"),
            "True"
        );
        assert_eq!(at(".metadata.annotations.x\\.io/y"), "z");
        assert_eq!(at(".metadata.annotations['x.io/y']"), "z");
        assert_eq!(at(".nothing.there"), Value::Null);
        assert_eq!(cell(".spec.a[0].n", &o, "integer", 0), 1);
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(p in "[.\\[\\]a-c*?@()='\"\\\\é0-9-]{0,30}") {
            find(&p, &json!({"a": [1, {"b": 2}], "é": 1}));
        }
    }
}
