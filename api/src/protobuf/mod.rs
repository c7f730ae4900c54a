//! Kubernetes' protobuf bodies to JSON objects. Since 1.32 kubectl's typed commands (create, auth can-i, drain...) send
//! protobuf and do not fall back when it is refused. Owns the mapping of messages to JSON (embedded structs, quantities,
//! times, int-or-string, raw extensions); types come from the schema facts, tags from `tags.txt`
//! (`api/xtask/protobuf.py`). Reads only: answers are JSON, which such clients accept. Never panics, whatever comes in.

use crate::decode::MAX_ITEMS;
use crate::schema::{self, Type, TypeDef};
use crate::status::Status;
use crate::time;
use base64::Engine;
use serde_json::{Map, Value};
use std::sync::OnceLock;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

static TAGS: &str = include_str!("tags.txt");

/// How deep messages may lie in each other.
const DEPTH: usize = 64;

/// The lines of the table by message name.
fn lines() -> &'static [(&'static str, &'static str)] {
    static LINES: OnceLock<Vec<(&'static str, &'static str)>> = OnceLock::new();
    LINES.get_or_init(|| {
        let mut v: Vec<_> = TAGS
            .lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| l.split_once(' '))
            .collect();
        v.sort_unstable();
        v
    })
}

/// The JSON name (or `+message`) of a message's tag.
fn field_of(line: &'static str, tag: u64) -> Option<&'static str> {
    let mut words = line.split(' ');
    while let (Some(t), Some(name)) = (words.next(), words.next()) {
        if t.parse() == Ok(tag) {
            return Some(name);
        }
    }
    None
}

fn line_of(message: &str) -> Option<&'static str> {
    let all = lines();
    all.binary_search_by(|(name, _)| (*name).cmp(message))
        .ok()
        .map(|i| all[i].1)
}

/// A value as it lies on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

fn broken(what: &str) -> Status {
    Status::bad_request(format!("the body is no valid protobuf message: {what}"))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Status> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes
            .split_first()
            .ok_or_else(|| broken("it ends within a number"))?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(broken("a number has more than 64 bits"))
}

fn take<'a>(bytes: &mut &'a [u8], n: u64) -> Result<&'a [u8], Status> {
    let n = usize::try_from(n)
        .ok()
        .filter(|n| *n <= bytes.len())
        .ok_or_else(|| broken("it ends within a field"))?;
    let (head, rest) = bytes.split_at(n);
    *bytes = rest;
    Ok(head)
}

/// The next field: tag and value.
fn next<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u64, Wire<'a>)>, Status> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let key = varint(bytes)?;
    let wire = match key & 7 {
        0 => Wire::Varint(varint(bytes)?),
        1 => Wire::Fixed64(u64::from_le_bytes(
            take(bytes, 8)?.try_into().unwrap_or_default(),
        )),
        2 => {
            let n = varint(bytes)?;
            Wire::Bytes(take(bytes, n)?)
        }
        5 => Wire::Fixed32(u32::from_le_bytes(
            take(bytes, 4)?.try_into().unwrap_or_default(),
        )),
        other => return Err(broken(&format!("wire type {other} is not known"))),
    };
    Ok(Some((key >> 3, wire)))
}

/// All fields of a message that have a tag, as bytes.
fn bytes_of(mut message: &[u8], tag: u64) -> Result<Vec<&[u8]>, Status> {
    let mut out = Vec::new();
    while let Some((t, wire)) = next(&mut message)? {
        if let (true, Wire::Bytes(b)) = (t == tag, wire) {
            out.push(b);
        }
    }
    Ok(out)
}

fn number_of(mut message: &[u8], tag: u64) -> Result<i64, Status> {
    let mut out = 0;
    while let Some((t, wire)) = next(&mut message)? {
        if let (true, Wire::Varint(v)) = (t == tag, wire) {
            out = v.cast_signed();
        }
    }
    Ok(out)
}

fn text(bytes: &[u8]) -> Result<String, Status> {
    std::str::from_utf8(bytes)
        .map(str::to_string)
        .map_err(|_| broken("a string is not UTF-8"))
}

/// Decodes a body (`k8s\0` and a `runtime.Unknown`) to an object with apiVersion and kind.
///
/// # Errors
/// 400 when it is no such message or of a kind that is not known.
pub fn decode(body: &[u8]) -> Result<Value, Status> {
    let Some(unknown) = body.strip_prefix(b"k8s\0") else {
        return Err(broken("it does not begin with the Kubernetes prefix"));
    };
    let type_meta = bytes_of(unknown, 1)?.pop().unwrap_or_default();
    let api_version = text(bytes_of(type_meta, 1)?.pop().unwrap_or_default())?;
    let kind = text(bytes_of(type_meta, 2)?.pop().unwrap_or_default())?;
    let raw = bytes_of(unknown, 2)?.pop().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let def = schema::by_gvk(group, version, &kind)
        .or_else(|| {
            (kind == "DeleteOptions")
                .then(|| schema::by_gvk("", "v1", "DeleteOptions"))
                .flatten()
        })
        .ok_or_else(|| {
            Status::bad_request(format!(
                "no kind \"{kind}\" is registered for version \"{api_version}\" in protobuf"
            ))
        })?;
    let mut out = Map::new();
    out.insert("kind".into(), kind.into());
    out.insert("apiVersion".into(), api_version.into());
    message(def, raw, &mut out, DEPTH)?;
    Ok(Value::Object(out))
}

fn message(
    def: &'static TypeDef,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Status> {
    let name = def.name.strip_prefix("io.k8s.").unwrap_or(def.name);
    let line = line_of(name).unwrap_or("");
    fields(def, line, bytes, out, depth)
}

/// Reads a message's fields into `out`. `line` is of the message or of a struct embedded in it, `def` of the message.
fn fields(
    def: &'static TypeDef,
    line: &'static str,
    mut bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Status> {
    if depth == 0 {
        return Err(broken("it is nested too deeply"));
    }
    while let Some((tag, wire)) = next(&mut bytes)? {
        let Some(name) = field_of(line, tag) else {
            continue;
        };
        if let Some(embedded) = name.strip_prefix('+') {
            if let (Wire::Bytes(b), Some(inner)) = (wire, line_of(&format!("{embedded}*"))) {
                fields(def, inner, b, out, depth - 1)?;
            }
            continue;
        }
        let Some(field) = def.field(name) else {
            continue;
        };
        match field.ty {
            Type::List(item) => {
                let slot = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = slot else { continue };
                // An empty message is two bytes long and a value of many.
                if list.len() > MAX_ITEMS {
                    return Err(Status::bad_request(format!(
                        "Too many: a list must have at most {MAX_ITEMS} items"
                    )));
                }
                match (wire, *item) {
                    // Packed numbers.
                    (Wire::Bytes(mut packed), Type::Int32 | Type::Int64 | Type::Bool) => {
                        while !packed.is_empty() && list.len() <= MAX_ITEMS {
                            list.push(scalar(*item, varint(&mut packed)?));
                        }
                    }
                    _ => list.push(value(*item, wire, depth)?),
                }
            }
            Type::Map(item) => {
                let Wire::Bytes(entry) = wire else { continue };
                let key = text(bytes_of(entry, 1)?.pop().unwrap_or_default())?;
                let inner = bytes_of(entry, 2)?.pop().unwrap_or_default();
                let v = match *item {
                    // Named list types (ExtraValue) are messages with their items under tag 1.
                    Type::List(t) => {
                        let items: Result<Vec<Value>, Status> = bytes_of(inner, 1)?
                            .into_iter()
                            .map(|b| value(*t, Wire::Bytes(b), depth))
                            .collect();
                        items?.into()
                    }
                    t => value(t, Wire::Bytes(inner), depth)?,
                };
                let slot = out.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = slot {
                    map.insert(key, v);
                }
            }
            ty => {
                let v = value(ty, wire, depth)?;
                // Go writes fields that are no pointers even when they are empty; JSON leaves them out. An empty string that
                // means something is known: "no storage class".
                let empty = match &v {
                    Value::Null => true,
                    Value::String(s) => s.is_empty() && name != "storageClassName",
                    Value::Bool(false) => is_plain(def, field),
                    Value::Number(n) => n.as_i64() == Some(0) && is_plain(def, field),
                    _ => false,
                };
                if !empty {
                    out.insert(name.into(), v);
                }
            }
        }
    }
    Ok(())
}

/// Is a number or boolean no pointer in Go and marked omitempty? Its zero is on the wire though nobody set it, and is not in
/// JSON; the zero of a pointer (`replicas`) means something. Neither the schema nor the tags tell them apart.
fn is_plain(def: &TypeDef, field: &schema::Field) -> bool {
    const PLAIN: [&str; 33] = [
        "active",
        "authenticated",
        "availableReplicas",
        "chapAuthDiscovery",
        "chapAuthSession",
        "count",
        "currentReplicas",
        "denied",
        "failed",
        "failureThreshold",
        "fullyLabeledReplicas",
        "generation",
        "globalDefault",
        "healthCheckNodePort",
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "hostPort",
        "initialDelaySeconds",
        "minReadySeconds",
        "nodePort",
        "number",
        "observedGeneration",
        "paused",
        "periodSeconds",
        "publishNotReadyAddresses",
        "readOnly",
        "stdin",
        "stdinOnce",
        "succeeded",
        "successThreshold",
        "tty",
        "unschedulable",
    ];
    !field.required
        && (PLAIN.binary_search(&field.name).is_ok()
            || (field.name == "timeoutSeconds" && def.name.ends_with(".Probe")))
}

fn scalar(ty: Type, v: u64) -> Value {
    match ty {
        Type::Bool => (v != 0).into(),
        Type::Int32 => i64::from(v.cast_signed() as i32).into(),
        _ => v.cast_signed().into(),
    }
}

fn value(ty: Type, wire: Wire<'_>, depth: usize) -> Result<Value, Status> {
    let bytes = match wire {
        Wire::Varint(v) => return Ok(scalar(ty, v)),
        Wire::Fixed64(v) => {
            return Ok(
                serde_json::Number::from_f64(f64::from_bits(v)).map_or(Value::Null, Value::Number)
            );
        }
        Wire::Fixed32(v) => {
            return Ok(serde_json::Number::from_f64(f64::from(f32::from_bits(v)))
                .map_or(Value::Null, Value::Number));
        }
        Wire::Bytes(b) => b,
    };
    Ok(match ty {
        Type::Bytes => base64::engine::general_purpose::STANDARD
            .encode(bytes)
            .into(),
        Type::Quantity => text(bytes_of(bytes, 1)?.pop().unwrap_or_default())?.into(),
        Type::Time | Type::MicroTime => {
            if bytes.is_empty() {
                // Go's zero time.
                return Ok(Value::Null);
            }
            let (seconds, nanos) = (number_of(bytes, 1)?, number_of(bytes, 2)?);
            let mut s = time::format_rfc3339(seconds);
            if ty == Type::MicroTime {
                s.truncate(s.len().saturating_sub(1));
                s.push_str(&format!(".{:06}Z", nanos.clamp(0, 999_999_999) / 1000));
            }
            s.into()
        }
        Type::IntOrString => match number_of(bytes, 1)? {
            1 => text(bytes_of(bytes, 3)?.pop().unwrap_or_default())?.into(),
            _ => number_of(bytes, 2)?.into(),
        },
        Type::Any | Type::Object => match bytes_of(bytes, 1)?.pop() {
            Some(raw) if !raw.is_empty() => serde_json::from_slice(raw)
                .map_err(|e| broken(&format!("a raw value is no JSON: {e}")))?,
            _ => Value::Null,
        },
        Type::Ref(id) => {
            let def = id.get();
            if let Some(scalar) = def.scalar {
                return value(scalar, wire, depth);
            }
            let mut out = Map::new();
            message(def, bytes, &mut out, depth - 1)?;
            Value::Object(out)
        }
        _ => text(bytes)?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Writes a length-delimited field.
    fn f(tag: u64, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![(tag << 3 | 2) as u8, bytes.len() as u8];
        if tag > 15 {
            out = vec![
                ((tag << 3 | 2) & 0x7f | 0x80) as u8,
                (tag >> 4) as u8,
                bytes.len() as u8,
            ];
        }
        out.extend_from_slice(bytes);
        out
    }
    fn n(tag: u64, v: u8) -> Vec<u8> {
        vec![(tag << 3) as u8, v]
    }
    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [f(1, api_version.as_bytes()), f(2, kind.as_bytes())].concat();
        [b"k8s\0".to_vec(), f(1, &meta), f(2, raw)].concat()
    }

    #[test]
    fn what_kubectl_sends_for_create_namespace_is_read() {
        let hex = "6b3873000a0f0a02763112094e616d657370616365121c0a140a0464656d6f12001a0022002a0032003800420012001a020a001a002200";
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .filter_map(|i| u8::from_str_radix(&hex[i..i + 2], 16).ok())
            .collect();
        assert_eq!(
            decode(&bytes),
            Ok(
                json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "demo"}, "spec": {}, "status": {}})
            )
        );
    }

    #[test]
    fn embedded_structs_quantities_and_bytes_become_json() {
        let container = [
            f(1, b"c"),
            f(8, &f(1, &[f(1, b"cpu"), f(2, &f(1, b"100m"))].concat())),
            f(
                10,
                &[
                    f(
                        1,
                        &f(
                            2,
                            &[
                                f(1, b"/healthz"),
                                f(2, &[n(1, 0), n(2, 80), f(3, b"")].concat()),
                            ]
                            .concat(),
                        ),
                    ),
                    n(2, 5),
                ]
                .concat(),
            ),
        ]
        .concat();
        let volume = [f(1, b"v"), f(2, &f(2, b""))].concat();
        let pod = [
            f(
                1,
                &[f(1, b"p"), f(11, &[f(1, b"app"), f(2, b"x")].concat())].concat(),
            ),
            f(2, &[f(1, &volume), f(2, &container)].concat()),
        ]
        .concat();
        assert_eq!(
            decode(&body("v1", "Pod", &pod)),
            Ok(
                json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "labels": {"app": "x"}}, "spec": {
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": 80}, "initialDelaySeconds": 5}}]}})
            )
        );
        let secret = f(2, &[f(1, b"k"), f(2, b"hi")].concat());
        assert_eq!(
            decode(&body("v1", "Secret", &secret)).map(|v| v["data"].clone()),
            Ok(json!({"k": "aGk="}))
        );
    }

    #[test]
    fn zeros_that_go_writes_unasked_are_left_out_and_those_of_pointers_are_kept() {
        // Container: stdin 16, tty 18; PodSpec: hostNetwork 11; Deployment: replicas 1, paused 7, minReadySeconds 5.
        let container = [f(1, b"c"), vec![0x80, 1, 0], vec![0x90, 1, 1]].concat();
        let pod = [f(2, &container), n(11, 0)].concat();
        let template = f(3, &f(2, &pod));
        let spec = [n(1, 0), template, n(5, 0), n(7, 0)].concat();
        assert_eq!(
            decode(&body("apps/v1", "Deployment", &f(2, &spec))).map(|v| v["spec"].clone()),
            Ok(
                json!({"replicas": 0, "template": {"spec": {"containers": [{"name": "c", "tty": true}]}}})
            )
        );
    }

    #[test]
    fn empty_messages_do_not_make_a_list_without_end() {
        let containers = f(2, b"").repeat(20_000);
        // The spec's length takes three bytes.
        let n = containers.len();
        let mut pod = vec![(2 << 3 | 2) as u8];
        pod.extend([
            (n & 0x7f | 0x80) as u8,
            (n >> 7 & 0x7f | 0x80) as u8,
            (n >> 14) as u8,
        ]);
        pod.extend(containers);
        let n = pod.len();
        let meta = [f(1, b"v1"), f(2, b"Pod")].concat();
        let mut whole = [b"k8s\0".to_vec(), f(1, &meta), vec![(2 << 3 | 2) as u8]].concat();
        whole.extend([
            (n & 0x7f | 0x80) as u8,
            (n >> 7 & 0x7f | 0x80) as u8,
            (n >> 14) as u8,
        ]);
        whole.extend(pod);
        let e = decode(&whole).unwrap_err();
        assert!(e.message.contains("at most 10000"), "{e}");
    }

    #[test]
    fn every_message_of_the_table_is_a_definition() {
        for (name, _) in lines() {
            if !name.ends_with('*') {
                assert!(schema::find(&format!("io.k8s.{name}")).is_some(), "{name}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&raw);
            let _ = decode(&body("v1", "Pod", &raw[..raw.len().min(120)]));
        }
    }
}
