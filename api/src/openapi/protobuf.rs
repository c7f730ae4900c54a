//! The v2 document in gnostic's protobuf form (`openapi.v2.Document`), which client-go's discovery client asks for and
//! takes alone. Owns that mapping; the document itself is made by the parent.

use serde_json::{Map, Value};

/// The media type that clients accept.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push((n as u8) | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }
    fn bytes(&mut self, field: u32, bytes: &[u8]) -> &mut Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }
    /// A string field; proto3 leaves empty ones out.
    fn text(&mut self, field: u32, v: Option<&Value>) -> &mut Self {
        match v.and_then(Value::as_str) {
            Some(s) if !s.is_empty() => self.bytes(field, s.as_bytes()),
            _ => self,
        }
    }
    fn truth(&mut self, field: u32, v: Option<&Value>) -> &mut Self {
        if v.and_then(Value::as_bool) == Some(true) {
            self.varint(u64::from(field) << 3);
            self.0.push(1);
        }
        self
    }
    /// Each string of a list.
    fn texts(&mut self, field: u32, v: Option<&Value>) -> &mut Self {
        for s in v.and_then(Value::as_array).into_iter().flatten() {
            if let Some(s) = s.as_str() {
                self.bytes(field, s.as_bytes());
            }
        }
        self
    }
    fn message(&mut self, field: u32, m: &Message) -> &mut Self {
        self.bytes(field, &m.0)
    }
    /// `vendor_extension`: every `x-` key as NamedAny, its value as YAML (JSON is YAML).
    fn extensions(&mut self, field: u32, of: &Value) -> &mut Self {
        for (k, v) in entries(of).filter(|(k, _)| k.starts_with("x-")) {
            let named = named(k, &any(v));
            self.message(field, &named);
        }
        self
    }
}

fn entries(v: &Value) -> impl Iterator<Item = (&String, &Value)> {
    v.as_object().into_iter().flat_map(Map::iter)
}

/// `Any` with its YAML text.
fn any(v: &Value) -> Message {
    let mut m = Message::default();
    m.bytes(2, v.to_string().as_bytes());
    m
}

/// `NamedX { name = 1; value = 2; }`
fn named(name: &str, value: &Message) -> Message {
    let mut m = Message::default();
    m.bytes(1, name.as_bytes()).message(2, value);
    m
}

fn schema(v: &Value) -> Message {
    let mut m = Message::default();
    m.text(1, v.get("$ref"))
        .text(2, v.get("format"))
        .text(4, v.get("description"));
    if let Some(d) = v.get("default") {
        m.message(5, &any(d));
    }
    m.texts(19, v.get("required"));
    for e in v
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        m.message(20, &any(e));
    }
    match v.get("additionalProperties") {
        Some(Value::Bool(b)) => {
            let mut item = Message::default();
            item.truth(2, Some(&Value::Bool(*b)));
            m.message(21, &item);
        }
        Some(s) => {
            let mut item = Message::default();
            item.message(1, &schema(s));
            m.message(21, &item);
        }
        None => {}
    }
    if let Some(Value::String(t)) = v.get("type") {
        let mut item = Message::default();
        item.bytes(1, t.as_bytes());
        m.message(22, &item);
    }
    if let Some(items) = v.get("items") {
        let mut item = Message::default();
        item.message(1, &schema(items));
        m.message(23, &item);
    }
    if let Some(p) = v.get("properties") {
        let mut properties = Message::default();
        for (k, x) in entries(p) {
            properties.message(1, &named(k, &schema(x)));
        }
        m.message(25, &properties);
    }
    m.extensions(31, v);
    m
}

/// `ParametersItem { Parameter parameter = 1; }`
fn parameter(v: &Value) -> Message {
    let mut p = Message::default();
    let place = v.get("in").and_then(Value::as_str).unwrap_or("");
    let mut inner = Message::default();
    if place == "body" {
        inner
            .text(1, v.get("description"))
            .text(2, v.get("name"))
            .text(3, v.get("in"))
            .truth(4, v.get("required"));
        if let Some(s) = v.get("schema") {
            inner.message(5, &schema(s));
        }
        p.message(1, &inner);
    } else {
        inner
            .truth(1, v.get("required"))
            .text(2, v.get("in"))
            .text(3, v.get("description"))
            .text(4, v.get("name"));
        // Query parameters have one field more before the type.
        let (kind, unique, member) = if place == "path" {
            (5, 19, 4)
        } else {
            (6, 20, 3)
        };
        inner
            .text(kind, v.get("type"))
            .truth(unique, v.get("uniqueItems"));
        let mut non_body = Message::default();
        non_body.message(member, &inner);
        p.message(2, &non_body);
    }
    let mut item = Message::default();
    item.message(1, &p);
    item
}

fn operation(v: &Value) -> Message {
    let mut m = Message::default();
    m.texts(1, v.get("tags"))
        .text(3, v.get("description"))
        .text(5, v.get("operationId"))
        .texts(6, v.get("produces"))
        .texts(7, v.get("consumes"));
    for p in v
        .get("parameters")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        m.message(8, &parameter(p));
    }
    let mut responses = Message::default();
    for (code, r) in v.get("responses").into_iter().flat_map(entries) {
        let mut response = Message::default();
        response.text(1, r.get("description"));
        if let Some(s) = r.get("schema") {
            let mut item = Message::default();
            item.message(1, &schema(s));
            response.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &response);
        responses.message(1, &named(code, &value));
    }
    m.message(9, &responses)
        .texts(10, v.get("schemes"))
        .extensions(13, v);
    m
}

fn path_item(v: &Value) -> Message {
    let mut m = Message::default();
    for (verb, field) in [
        ("get", 2),
        ("put", 3),
        ("post", 4),
        ("delete", 5),
        ("patch", 8),
    ] {
        if let Some(op) = v.get(verb) {
            m.message(field, &operation(op));
        }
    }
    for p in v
        .get("parameters")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        m.message(9, &parameter(p));
    }
    m.extensions(10, v);
    m
}

/// The document of [`super::v2`] as bytes.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut m = Message::default();
    m.text(1, document.get("swagger"));
    let mut info = Message::default();
    info.text(1, document.pointer("/info/title"))
        .text(2, document.pointer("/info/version"));
    m.message(2, &info);
    let mut paths = Message::default();
    for (path, item) in document.get("paths").into_iter().flat_map(entries) {
        paths.message(2, &named(path, &path_item(item)));
    }
    m.message(8, &paths);
    let mut definitions = Message::default();
    for (name, d) in document.get("definitions").into_iter().flat_map(entries) {
        definitions.message(1, &named(name, &schema(d)));
    }
    m.message(9, &definitions);
    for requirement in document
        .get("security")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let mut r = Message::default();
        for (name, _) in entries(requirement) {
            r.message(1, &named(name, &Message::default()));
        }
        m.message(12, &r);
    }
    let mut security = Message::default();
    for (name, s) in document
        .get("securityDefinitions")
        .into_iter()
        .flat_map(entries)
    {
        let mut key = Message::default();
        key.text(1, s.get("type"))
            .text(2, s.get("name"))
            .text(3, s.get("in"))
            .text(4, s.get("description"));
        let mut item = Message::default();
        item.message(2, &key);
        security.message(1, &named(name, &item));
    }
    m.message(13, &security);
    m.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The fields of a message: number and bytes of each length-delimited field.
    fn fields(mut b: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        let varint = |b: &mut &[u8]| {
            let (mut n, mut shift) = (0u64, 0);
            loop {
                let x = b[0];
                *b = &b[1..];
                n |= u64::from(x & 0x7f) << shift;
                shift += 7;
                if x & 0x80 == 0 {
                    return n;
                }
            }
        };
        while !b.is_empty() {
            let tag = varint(&mut b);
            if tag & 7 == 0 {
                out.push((tag >> 3, varint(&mut b).to_be_bytes().to_vec()));
            } else {
                let n = varint(&mut b) as usize;
                out.push((tag >> 3, b[..n].to_vec()));
                b = &b[n..];
            }
        }
        out
    }

    #[test]
    fn the_whole_document_is_well_formed() {
        let rows = crate::kinds::builtin();
        let rows: Vec<_> = rows.iter().collect();
        let doc = super::super::v2(&rows);
        let top = fields(&encode(&doc));
        let definitions = &top.iter().find(|(n, _)| *n == 9).expect("definitions").1;
        let all = fields(definitions);
        assert_eq!(
            all.len(),
            doc["definitions"].as_object().map_or(0, Map::len)
        );
        let pod = all
            .iter()
            .map(|(_, b)| fields(b))
            .find(|f| f[0].1 == b"io.k8s.api.core.v1.Pod")
            .expect("pod");
        let pod = fields(&pod[1].1);
        let extension = fields(&pod.iter().find(|(n, _)| *n == 31).expect("gvk").1);
        assert_eq!(extension[0].1, b"x-kubernetes-group-version-kind");
        let paths = fields(&top.iter().find(|(n, _)| *n == 8).expect("paths").1);
        assert_eq!(paths.len(), doc["paths"].as_object().map_or(0, Map::len));
    }

    #[test]
    fn parameters_are_told_apart_by_place() {
        let q = parameter(
            &json!({"name": "dryRun", "in": "query", "type": "string", "uniqueItems": true}),
        );
        let inner = fields(&fields(&fields(&fields(&q.0)[0].1)[0].1)[0].1);
        assert_eq!(inner[0], (2, b"query".to_vec()));
        assert_eq!(inner[2], (6, b"string".to_vec()));
    }
}
