//! Label and field selectors: parsing with upstream's error texts (`k8s.io/apimachinery/pkg/labels`, `.../fields`) and
//! matching. Pure; knows no store and no kind.

use crate::field::FieldError;
use crate::names::{is_qualified_name, is_valid_label_value};
use crate::resource::{Resource, SelectableField};
use crate::status::Status;
use serde_json::Value;
use std::borrow::Cow;

/// How long the text of a selector may be, and how many requirements it may have: every object of a collection is asked, and
/// a watch keeps it for as long as it lives. Upstream's bound is its server's on headers (1 MiB).
const MAX_TEXT: usize = 64 * 1024;
const MAX_REQUIREMENTS: usize = 1000;

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `k in (a, b)`, `k=a`.
    In,
    /// `k notin (a, b)`, `k!=a`: true also when the label is missing.
    NotIn,
    /// `k`.
    Exists,
    /// `!k`.
    DoesNotExist,
    /// `k>1`.
    Gt,
    /// `k<1`.
    Lt,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Comparison.
    pub op: Op,
    /// Values, sorted; empty for Exists and DoesNotExist.
    pub values: Vec<String>,
}

impl Requirement {
    /// The values are sorted.
    fn has(&self, value: &str) -> bool {
        self.values
            .binary_search_by(|x| x.as_str().cmp(value))
            .is_ok()
    }
    fn matches(&self, value: Option<&str>) -> bool {
        match self.op {
            Op::In => value.is_some_and(|v| self.has(v)),
            Op::NotIn => value.is_none_or(|v| !self.has(v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::Gt | Op::Lt => {
                let have = value.and_then(|v| v.parse::<i64>().ok());
                let want = self.values.first().and_then(|v| v.parse::<i64>().ok());
                match (have, want) {
                    (Some(h), Some(w)) => {
                        (self.op == Op::Gt && h > w) || (self.op == Op::Lt && h < w)
                    }
                    _ => false,
                }
            }
        }
    }
}

/// A label selector; all requirements must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }
    /// Matches no object.
    pub fn nothing() -> Self {
        Self {
            nothing: true,
            ..Self::default()
        }
    }
    /// Matches every object?
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
    /// Matches no object?
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }
    /// The requirements.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Parses the string form `a=b,c!=d,e in (x,y),!f,g notin (z)`. The error is upstream's text, without
    /// `unable to parse requirement` wrapped around by callers.
    pub fn parse(text: &str) -> Result<Self, String> {
        bounded(text)?;
        Parser::new(text).parse()
    }

    /// Of a plain map as in Service.spec.selector: null or empty selects nothing there, so callers check first; here
    /// empty is everything.
    pub fn from_map(map: &Value) -> Self {
        let mut requirements: Vec<Requirement> = map
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| Requirement {
                key: k.clone(),
                op: Op::In,
                values: vec![v.as_str().unwrap_or("").to_string()],
            })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self {
            requirements,
            nothing: false,
        }
    }

    /// Of a `LabelSelector` object: null selects nothing, an empty one everything (upstream's LabelSelectorAsSelector).
    pub fn from_value(v: &Value) -> Result<Self, String> {
        if v.is_null() {
            return Ok(Self::nothing());
        }
        let mut s = Self::from_map(v.get("matchLabels").unwrap_or(&Value::Null));
        for e in v
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = |k: &str| e.get(k).and_then(Value::as_str).unwrap_or("");
            let op = match text("operator") {
                "In" => Op::In,
                "NotIn" => Op::NotIn,
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let mut values: Vec<String> = e
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|v| v.as_str().unwrap_or("").to_string())
                .collect();
            values.sort();
            s.requirements.push(requirement(text("key"), op, values)?);
        }
        Ok(s)
    }

    /// Of a list of node selector requirements (`matchExpressions` of a NodeSelectorTerm), where Gt and Lt exist too.
    pub fn from_node_expressions(list: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for e in list.as_array().into_iter().flatten() {
            let text = |k: &str| e.get(k).and_then(Value::as_str).unwrap_or("");
            let op = match text("operator") {
                "In" => Op::In,
                "NotIn" => Op::NotIn,
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                "Gt" => Op::Gt,
                "Lt" => Op::Lt,
                other => return Err(format!("{other:?} is not a valid node selector operator")),
            };
            let values = e
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|v| v.as_str().unwrap_or("").to_string())
                .collect();
            requirements.push(requirement(text("key"), op, values)?);
        }
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// Does it match the labels (`metadata.labels`, null when there are none)?
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_by(|k| labels.get(k).and_then(Value::as_str))
    }

    /// Does it match labels that are looked up by a function?
    pub fn matches_by<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Does it match the object's labels?
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(object.pointer("/metadata/labels").unwrap_or(&Value::Null))
    }
}

/// The canonical string form, as `scale.status.selector` has it.
impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let values = r.values.join(",");
            match r.op {
                Op::In if r.values.len() == 1 => write!(f, "{}={values}", r.key)?,
                Op::In => write!(f, "{} in ({values})", r.key)?,
                Op::NotIn if r.values.len() == 1 => write!(f, "{}!={values}", r.key)?,
                Op::NotIn => write!(f, "{} notin ({values})", r.key)?,
                Op::Exists => write!(f, "{}", r.key)?,
                Op::DoesNotExist => write!(f, "!{}", r.key)?,
                Op::Gt => write!(f, "{}>{values}", r.key)?,
                Op::Lt => write!(f, "{}<{values}", r.key)?,
            }
        }
        Ok(())
    }
}

fn bounded(text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT {
        return Err(format!(
            "the selector has {} bytes, it may not have more than {MAX_TEXT}",
            text.len()
        ));
    }
    Ok(())
}

fn too_many() -> String {
    format!("a selector may not have more than {MAX_REQUIREMENTS} requirements")
}

/// Checks a requirement as upstream's `labels.NewRequirement`.
fn requirement(key: &str, op: Op, mut values: Vec<String>) -> Result<Requirement, String> {
    let mut errs: Vec<FieldError> = Vec::new();
    let wrong = is_qualified_name(key);
    if !wrong.is_empty() {
        errs.push(FieldError::invalid("key", key, wrong.join("; ")));
    }
    let listed = Value::from(values.clone());
    match op {
        Op::In | Op::NotIn if values.is_empty() => errs.push(FieldError::invalid(
            "values",
            listed,
            "for 'in', 'notin' operators, values set can't be empty",
        )),
        Op::Exists | Op::DoesNotExist if !values.is_empty() => errs.push(FieldError::invalid(
            "values",
            listed,
            "values set must be empty for exists and does not exist",
        )),
        Op::Gt | Op::Lt if values.len() != 1 => errs.push(FieldError::invalid(
            "values",
            listed,
            "for 'Gt', 'Lt' operators, exactly one value is required",
        )),
        Op::Gt | Op::Lt if values[0].parse::<i64>().is_err() => errs.push(FieldError::invalid(
            "values[0]",
            values[0].clone(),
            "for 'Gt', 'Lt' operators, the value must be an integer",
        )),
        _ => {}
    }
    for (i, v) in values.iter().enumerate() {
        let wrong = is_valid_label_value(v);
        if !wrong.is_empty() {
            errs.push(FieldError::invalid(
                format!("values[{i}][{key}]"),
                v.as_str(),
                wrong.join("; "),
            ));
        }
    }
    if let [one] = &errs[..] {
        return Err(one.to_string());
    }
    if !errs.is_empty() {
        let all: Vec<String> = errs.iter().map(ToString::to_string).collect();
        return Err(format!("[{}]", all.join(", ")));
    }
    values.sort();
    Ok(Requirement {
        key: key.to_string(),
        op,
        values,
    })
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'a> {
    End,
    Word(&'a str),
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
    Bad(&'a str),
}

/// Upstream's label selector grammar: two-token look-ahead, `in` and `notin` are words where values are expected.
struct Parser<'a> {
    tokens: Vec<(Token<'a>, &'a str)>,
    at: usize,
}

const SPECIAL: &[u8] = b"=!(),<>";

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        let mut tokens = Vec::new();
        let mut i = 0;
        while i < bytes.len() {
            let start = i;
            let c = bytes[i];
            if b" \t\r\n".contains(&c) {
                i += 1;
            } else if SPECIAL.contains(&c) {
                // The longest symbol, as upstream's lexer: `==`, `!=`, or one character.
                let two = text.get(i..i + 2);
                let (token, len) = match (c, two) {
                    (_, Some("==")) => (Token::DoubleEquals, 2),
                    (_, Some("!=")) => (Token::NotEquals, 2),
                    (b'=', _) => (Token::Equals, 1),
                    (b'!', _) => (Token::Not, 1),
                    (b'(', _) => (Token::Open, 1),
                    (b')', _) => (Token::Close, 1),
                    (b',', _) => (Token::Comma, 1),
                    (b'<', _) => (Token::Less, 1),
                    (b'>', _) => (Token::Greater, 1),
                    _ => (Token::Bad(&text[i..]), 1),
                };
                i += len;
                tokens.push((token, &text[start..i]));
            } else {
                while i < bytes.len()
                    && !SPECIAL.contains(&bytes[i])
                    && !b" \t\r\n".contains(&bytes[i])
                {
                    i += 1;
                }
                let word = &text[start..i];
                let token = match word {
                    "in" => Token::In,
                    "notin" => Token::NotIn,
                    _ => Token::Word(word),
                };
                tokens.push((token, word));
            }
        }
        Self { tokens, at: 0 }
    }

    /// `as_value`: `in` and `notin` are plain words here.
    fn peek(&self, as_value: bool) -> (Token<'a>, &'a str) {
        match self.tokens.get(self.at) {
            Some((Token::In | Token::NotIn, lit)) if as_value => (Token::Word(lit), lit),
            Some((t, lit)) => (t.clone(), lit),
            None => (Token::End, ""),
        }
    }
    fn next(&mut self, as_value: bool) -> (Token<'a>, &'a str) {
        let t = self.peek(as_value);
        self.at += 1;
        t
    }

    fn parse(mut self) -> Result<Selector, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek(true) {
                (Token::Word(_) | Token::Not, _) => {
                    let r = self
                        .requirement()
                        .map_err(|e| format!("unable to parse requirement: {e}"))?;
                    requirements.push(r);
                    if requirements.len() > MAX_REQUIREMENTS {
                        return Err(too_many());
                    }
                    match self.next(false) {
                        (Token::End, _) => break,
                        (Token::Comma, _) => {
                            let (t2, lit2) = self.peek(true);
                            if !matches!(t2, Token::Word(_) | Token::Not) {
                                return Err(format!(
                                    "found '{lit2}', expected: identifier after ','"
                                ));
                            }
                        }
                        (_, lit) => {
                            return Err(format!("found '{lit}', expected: ',' or 'end of string'"));
                        }
                    }
                }
                (Token::End, _) => break,
                (_, lit) => {
                    return Err(format!(
                        "found '{lit}', expected: !, identifier, or 'end of string'"
                    ));
                }
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector {
            requirements,
            nothing: false,
        })
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut op = None;
        if self.peek(true).0 == Token::Not {
            self.at += 1;
            op = Some(Op::DoesNotExist);
        }
        let (token, key) = self.next(true);
        if !matches!(token, Token::Word(_)) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let wrong = is_qualified_name(key);
        if !wrong.is_empty() {
            return Err(FieldError::invalid("key", key, wrong.join("; ")).to_string());
        }
        if matches!(self.peek(true).0, Token::End | Token::Comma) {
            return requirement(key, op.unwrap_or(Op::Exists), Vec::new());
        }
        let (token, lit) = self.next(false);
        let op = match token {
            Token::In => Op::In,
            Token::Equals | Token::DoubleEquals => Op::In,
            Token::NotIn => Op::NotIn,
            Token::NotEquals => Op::NotIn,
            Token::Greater => Op::Gt,
            Token::Less => Op::Lt,
            _ => {
                return Err(format!(
                    "found '{lit}', expected: in, notin, =, ==, !=, gt, lt"
                ));
            }
        };
        let values = if matches!(token, Token::In | Token::NotIn) {
            self.values()?
        } else {
            vec![self.exact_value()?]
        };
        requirement(key, op, values)
    }

    fn exact_value(&mut self) -> Result<String, String> {
        match self.peek(true) {
            (Token::End | Token::Comma, _) => Ok(String::new()),
            (Token::Word(w), _) => {
                self.at += 1;
                Ok(w.to_string())
            }
            (_, lit) => Err(format!("found '{lit}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let (token, lit) = self.next(true);
        if token != Token::Open {
            return Err(format!("found '{lit}' expected: '('"));
        }
        let mut values = Vec::new();
        if self.peek(true).0 == Token::Close {
            self.at += 1;
            return Ok(vec![String::new()]);
        }
        loop {
            match self.next(true) {
                (Token::Word(w), _) => {
                    values.push(w.to_string());
                    match self.next(true) {
                        (Token::Comma, _) => match self.peek(true) {
                            (Token::Close, _) => {
                                values.push(String::new());
                                self.at += 1;
                                break;
                            }
                            (Token::Comma, _) => {
                                values.push(String::new());
                                self.at += 1;
                            }
                            _ => {}
                        },
                        (Token::Close, _) => break,
                        (_, lit) => return Err(format!("found '{lit}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    values.push(String::new());
                    if self.peek(true).0 == Token::Close {
                        values.push(String::new());
                        self.at += 1;
                        break;
                    }
                }
                (Token::Close, _) => break,
                (_, lit) => return Err(format!("found '{lit}', expected: ',', ')' or identifier")),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

/// Upstream's `ValidateLabelSelector` of a `LabelSelector` object at `path`.
pub fn validate_label_selector(v: &Value, path: &str) -> Vec<FieldError> {
    let mut errs = Vec::new();
    for (k, x) in v
        .get("matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let wrong = is_qualified_name(k);
        if !wrong.is_empty() {
            errs.push(FieldError::invalid(
                format!("{path}.matchLabels"),
                k.as_str(),
                wrong.join("; "),
            ));
        }
        let value = x.as_str().unwrap_or("");
        for msg in is_valid_label_value(value) {
            errs.push(FieldError::invalid(
                format!("{path}.matchLabels"),
                value,
                msg,
            ));
        }
    }
    for (i, e) in v
        .get("matchExpressions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = format!("{path}.matchExpressions[{i}]");
        let values: Vec<&str> = e
            .get("values")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|v| v.as_str().unwrap_or(""))
            .collect();
        let op = e.get("operator").and_then(Value::as_str).unwrap_or("");
        match op {
            "In" | "NotIn" if values.is_empty() => errs.push(FieldError::required(
                format!("{at}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errs.push(FieldError::forbidden(
                format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errs.push(FieldError::invalid(
                format!("{at}.operator"),
                op,
                "not a valid selector operator",
            )),
        }
        let key = e.get("key").and_then(Value::as_str).unwrap_or("");
        let wrong = is_qualified_name(key);
        if !wrong.is_empty() {
            errs.push(FieldError::invalid(
                format!("{at}.key"),
                key,
                wrong.join("; "),
            ));
        }
        for (j, value) in values.iter().enumerate() {
            for msg in is_valid_label_value(value) {
                errs.push(FieldError::invalid(
                    format!("{at}.values[{j}]"),
                    *value,
                    msg,
                ));
            }
        }
    }
    errs
}

/// One condition of a field selector.
#[derive(Clone)]
pub struct FieldRequirement {
    /// Field name, e.g. `spec.nodeName`.
    pub field: String,
    /// True for `=` and `==`, false for `!=`.
    pub equals: bool,
    /// The value.
    pub value: String,
    get: Option<fn(&Value) -> String>,
}

/// A field selector, resolved against a row.
#[derive(Clone, Default)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl std::fmt::Debug for FieldSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FieldSelector({self})")
    }
}

impl std::fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(
                f,
                "{comma}{}{}{}",
                r.field,
                if r.equals { "=" } else { "!=" },
                r.value
            )?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let bytes = term.as_bytes();
    for i in 0..bytes.len() {
        let rest = &bytes[i..];
        if rest.starts_with(b"!=") {
            return Some((&term[..i], false, &term[i + 2..]));
        }
        if rest.starts_with(b"==") {
            return Some((&term[..i], true, &term[i + 2..]));
        }
        if rest.starts_with(b"=") {
            return Some((&term[..i], true, &term[i + 1..]));
        }
    }
    None
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(n @ ('\\' | ',' | '=')) => out.push(n),
                Some(n) => {
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{n}"
                    ));
                }
                None => {
                    return Err("invalid field selector: invalid escape sequence: \\".to_string());
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {c}"
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

impl FieldSelector {
    /// Parses `metadata.name=web,status.phase!=Running` for a kind; 400 with upstream's texts when a term is wrong or
    /// the kind does not select by that field.
    pub fn parse(text: &str, row: &Resource) -> Result<Self, Status> {
        Self::parse_fields(text, &row.fields)
    }

    /// The same, for a list of fields.
    pub fn parse_fields(text: &str, fields: &[SelectableField]) -> Result<Self, Status> {
        bounded(text).map_err(Status::bad_request)?;
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(Status::bad_request(too_many()));
            }
            if term.is_empty() {
                continue;
            }
            let Some((name, equals, value)) = split_term(term) else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            let value = unescape(value).map_err(Status::bad_request)?;
            let get = fields.iter().find(|f| f.name == name).map(|f| f.get);
            if get.is_none() && name != "metadata.name" && name != "metadata.namespace" {
                return Err(Status::bad_request(format!(
                    "field label not supported: {name}"
                )));
            }
            requirements.push(FieldRequirement {
                field: name.to_string(),
                equals,
                value,
                get,
            });
        }
        Ok(Self { requirements })
    }

    /// Field and value of every term that asks for one value exactly, whatever the kind; None when the text is no
    /// selector. For authorization, which comes before the kind is known.
    pub fn exact_terms(text: &str) -> Option<Vec<(String, String)>> {
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|t| !t.is_empty()) {
            let (name, equals, value) = split_term(term)?;
            let value = unescape(value).ok()?;
            if equals {
                terms.push((name.to_string(), value));
            }
        }
        Some(terms)
    }

    /// Matches every object?
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// The name that `metadata.name=` asks for: such a list is a get.
    pub fn name(&self) -> Option<&str> {
        self.exact("metadata.name")
    }

    /// The value that a field must have exactly.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| r.equals && r.field == field)
            .map(|r| r.value.as_str())
    }

    /// Does it match the object?
    pub fn matches(&self, object: &Value) -> bool {
        self.requirements.iter().all(|r| {
            let have: Cow<'_, str> = match r.get {
                Some(get) => get(object).into(),
                None => {
                    let key = r.field.rsplit('.').next().unwrap_or("");
                    object["metadata"][key].as_str().unwrap_or("").into()
                }
            };
            (have == r.value) == r.equals
        })
    }

    /// Does it match values that are looked up by field name?
    pub fn matches_by<'a>(&self, get: impl Fn(&str) -> Cow<'a, str>) -> bool {
        self.requirements
            .iter()
            .all(|r| (get(&r.field) == r.value) == r.equals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn m(text: &str, labels: Value) -> bool {
        Selector::parse(text).expect("selector").matches(&labels)
    }

    #[test]
    fn the_string_form_selects_as_upstream() {
        let l = json!({"app": "web", "tier": "front"});
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("x!=y", true),
            ("app", true),
            ("!app", false),
            ("!x", true),
            ("app in (web, db)", true),
            ("app in (db)", false),
            ("app notin (db),tier=front", true),
            ("x notin (a)", true),
            ("x in ()", false),
            ("in in (in)", false),
            ("app=", false),
            (" app = web , tier = front ", true),
            ("tier>1", false),
        ] {
            assert_eq!(m(text, l.clone()), want, "{text}");
        }
        assert!(m("n>3,n<5", json!({"n": "4"})));
    }

    #[test]
    fn wrong_selectors_get_upstreams_texts() {
        for (text, want) in [
            ("a=b,", "found '', expected: identifier after ','"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                ",",
                "found ',', expected: !, identifier, or 'end of string'",
            ),
            (
                "a in",
                "unable to parse requirement: found '' expected: '('",
            ),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            (
                "!=a",
                "found '!=', expected: !, identifier, or 'end of string'",
            ),
        ] {
            assert_eq!(Selector::parse(text).err().as_deref(), Some(want), "{text}");
        }
        assert!(Selector::parse("a=-b").err().is_some_and(|e| e.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label must be")));
    }

    #[test]
    fn label_selector_objects_become_selectors() {
        let s = Selector::from_value(&json!({"matchLabels": {"b": "1", "a": "2"}, "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["y", "x"]}, {"key": "d", "operator": "Exists"}]})).expect("selector");
        assert_eq!(s.to_string(), "a=2,b=1,c notin (x,y),d");
        assert!(
            Selector::from_value(&Value::Null)
                .expect("none")
                .is_nothing()
        );
        assert!(
            Selector::from_value(&json!({}))
                .expect("all")
                .is_everything()
        );
        assert!(
            Selector::from_value(&json!({"matchExpressions": [{"key": "c", "operator": "Gt"}]}))
                .is_err()
        );
        assert_eq!(
            validate_label_selector(
                &json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
                "spec.selector"
            )
            .len(),
            1
        );
    }

    #[test]
    fn field_selectors_check_the_kinds_fields() {
        let fields = vec![SelectableField {
            name: "spec.nodeName".into(),
            get: |v| v["spec"]["nodeName"].as_str().unwrap_or("").to_string(),
        }];
        let f = |t: &str| FieldSelector::parse_fields(t, &fields);
        let o = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}});
        assert!(
            f("spec.nodeName=n1,metadata.name!=b")
                .expect("ok")
                .matches(&o)
        );
        assert!(!f("spec.nodeName!=n1").expect("ok").matches(&o));
        assert_eq!(f("metadata.name=a").expect("ok").name(), Some("a"));
        assert_eq!(
            f("spec.foo=1").err().map(|s| s.message),
            Some("field label not supported: spec.foo".into())
        );
        assert_eq!(
            f("foo").err().map(|s| s.message),
            Some("invalid selector: 'foo'; can't understand 'foo'".into())
        );
    }

    #[test]
    fn selectors_are_bounded_in_length_and_requirements() {
        let many = vec!["a"; 1001].join(",");
        assert!(Selector::parse(&many).unwrap_err().contains("1000"));
        assert!(Selector::parse(&vec!["a"; 1000].join(",")).is_ok());
        let long = format!("a in ({})", vec!["bbbbbbbbb"; 7000].join(","));
        assert!(Selector::parse(&long).unwrap_err().contains("65536"));
        let fields = |text: &str| FieldSelector::parse_fields(text, &[]).map_err(|e| e.code);
        assert_eq!(
            fields(&vec!["metadata.name!=a"; 1001].join(",")).err(),
            Some(400)
        );
        assert_eq!(
            fields(&format!("metadata.name={}", "x".repeat(70_000))).err(),
            Some(400)
        );
        let set: Vec<String> = (0..5000).map(|i| format!("v{i}")).collect();
        let s = Selector::parse(&format!("a in ({})", set.join(","))).expect("read");
        assert!(s.matches(&serde_json::json!({"a": "v4999"})));
        assert!(!s.matches(&serde_json::json!({"a": "v5000"})));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(s in "[-a-z!=(),<> /.é\\\\]{0,40}") {
            if let Ok(sel) = Selector::parse(&s) {
                prop_assert_eq!(Selector::parse(&sel.to_string()).ok(), Some(sel));
            }
            let _ = FieldSelector::parse_fields(&s, &[]);
        }
    }
}
