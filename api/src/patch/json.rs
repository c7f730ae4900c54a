//! JSON patch (RFC 6902).

use crate::decode::MAX_DEPTH;
use crate::status::Status;
use json_patch::PatchOperation;
use serde_json::Value;
use serde_json::value::RawValue;

/// Upstream's limit of operations in a patch.
const MAX_OPERATIONS: usize = 10_000;

/// How many bytes all `copy` operations of a patch may add (upstream's JSONPatchMaxCopyBytes).
const MAX_COPY: usize = 3 * 1024 * 1024;

/// How many values and list items a patch may look at or shift: some tenths of a second. Ten thousand operations on a long
/// list would take minutes.
const MAX_WORK: usize = 20_000_000;

/// Applies the patch of a request body to the current object. 400 when it is no JSON patch, 413 when it has too many
/// operations or moves too much, 422 when an operation does not apply.
pub fn apply(current: &Value, patch: &[u8]) -> Result<Value, Status> {
    // They are counted before they are read: an empty one is three bytes long.
    let count = serde_json::from_slice::<Vec<&RawValue>>(patch).map_or(0, |ops| ops.len());
    if count > MAX_OPERATIONS {
        return Err(too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
        )));
    }
    let parsed = super::parse(patch)?;
    let ops: json_patch::Patch = serde_json::from_value(parsed)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    let mut doc = current.clone();
    let mut cost = Cost::default();
    for (i, op) in ops.0.iter().enumerate() {
        cost.charge(&doc, op)?;
        json_patch::patch_unsafe(&mut doc, std::slice::from_ref(op)).map_err(|mut e| {
            e.operation = i;
            super::unprocessable(e)
        })?;
    }
    Ok(doc)
}

fn too_large(why: String) -> Status {
    Status::new(
        413,
        "RequestEntityTooLarge",
        format!("Request entity too large: {why}"),
    )
}

/// What a patch has cost so far.
#[derive(Default)]
struct Cost {
    copied: usize,
    work: usize,
}

impl Cost {
    /// Counts an operation before it is done. The document is never deeper than [`MAX_DEPTH`] levels, so that walking it does
    /// not overflow the stack.
    fn charge(&mut self, doc: &Value, op: &PatchOperation) -> Result<(), Status> {
        let path = op.path().to_string();
        self.shift(doc, &path)?;
        let (moved, copies) = match op {
            PatchOperation::Add(a) => (Some(&a.value), false),
            PatchOperation::Replace(r) => (Some(&r.value), false),
            PatchOperation::Move(m) => {
                self.shift(doc, m.from.as_str())?;
                (doc.pointer(m.from.as_str()), false)
            }
            PatchOperation::Copy(c) => (doc.pointer(c.from.as_str()), true),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => (None, false),
        };
        // What is not there, the operation itself complains of.
        let Some(moved) = moved else { return Ok(()) };
        let mut size = Size::default();
        size.add(moved, 0);
        self.spend(size.values)?;
        if size.depth + path.matches('/').count() > MAX_DEPTH {
            return Err(super::unprocessable("exceeded max depth"));
        }
        if copies {
            self.copied += size.bytes;
            if self.copied > MAX_COPY {
                return Err(super::unprocessable(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit {MAX_COPY}",
                    self.copied
                )));
            }
        }
        Ok(())
    }

    /// Inserting into and removing from a list shifts what follows.
    fn shift(&mut self, doc: &Value, path: &str) -> Result<(), Status> {
        let parent = path.rfind('/').map_or("", |i| &path[..i]);
        let items = doc
            .pointer(parent)
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        self.spend(items / 8 + 1)
    }

    fn spend(&mut self, work: usize) -> Result<(), Status> {
        self.work += work;
        if self.work > MAX_WORK {
            return Err(too_large(
                "the operations of the JSON patch move too much".into(),
            ));
        }
        Ok(())
    }
}

/// How large a value is.
#[derive(Default)]
struct Size {
    values: usize,
    /// About what its JSON has.
    bytes: usize,
    /// Levels below it.
    depth: usize,
}

impl Size {
    fn add(&mut self, v: &Value, depth: usize) {
        self.values += 1;
        self.depth = self.depth.max(depth);
        self.bytes += match v {
            Value::String(s) => s.len() + 3,
            Value::Array(_) | Value::Object(_) => 3,
            Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        };
        match v {
            Value::Array(a) => a.iter().for_each(|x| self.add(x, depth + 1)),
            Value::Object(o) => {
                for (k, x) in o {
                    self.bytes += k.len() + 4;
                    self.add(x, depth + 1);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
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

    #[test]
    fn copies_are_bounded_by_what_they_add() {
        // Doubling: twenty operations would make a terabyte of a megabyte.
        let doc = json!({"a": {"x": "y".repeat(1000)}});
        let ops: Vec<Value> = (0..40)
            .map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/c{i}")}))
            .collect();
        let e = apply(&doc, Value::from(ops).to_string().as_bytes()).unwrap_err();
        let why = e.details["causes"][0]["message"].as_str().unwrap_or("");
        assert!(
            e.code == 422 && why.contains("accumulated size increase of copy"),
            "{e:?}"
        );
        // Copying and removing again leaves a small object and costs the same.
        let mut ops = Vec::new();
        for _ in 0..4000 {
            ops.push(json!({"op": "copy", "from": "/a", "path": "/b"}));
            ops.push(json!({"op": "remove", "path": "/b"}));
        }
        assert_eq!(
            apply(&doc, Value::from(ops).to_string().as_bytes()).map_err(|e| e.code),
            Err(422)
        );
        let few = br#"[{"op":"copy","from":"/a","path":"/b"}]"#;
        assert_eq!(apply(&doc, few).expect("applied")["b"], doc["a"]);
    }

    #[test]
    fn no_sequence_of_operations_makes_a_document_deep() {
        // Each step puts the whole below a fresh map: one level with each pair of operations.
        let mut ops = vec![json!({"op": "add", "path": "/a", "value": {}})];
        for _ in 0..3000 {
            ops.push(json!({"op": "add", "path": "/b", "value": {}}));
            ops.push(json!({"op": "move", "from": "/a", "path": "/b/a"}));
            ops.push(json!({"op": "move", "from": "/b", "path": "/a"}));
        }
        let e = apply(&json!({}), Value::from(ops).to_string().as_bytes()).unwrap_err();
        assert_eq!(e.code, 422);
        assert_eq!(e.details["causes"][0]["message"], "exceeded max depth");
        let copies: Vec<Value> = (0..200)
            .map(|_| json!({"op": "copy", "from": "/a", "path": "/a/a"}))
            .collect();
        assert_eq!(
            apply(
                &json!({"a": {}}),
                Value::from(copies).to_string().as_bytes()
            )
            .map_err(|e| e.code),
            Err(422)
        );
    }

    #[test]
    fn many_operations_on_a_long_list_are_too_much() {
        let doc = json!({"l": vec![0; 300_000]});
        let ops = vec![json!({"op": "add", "path": "/l/0", "value": 1}); 10_000];
        assert_eq!(
            apply(&doc, Value::from(ops).to_string().as_bytes()).map_err(|e| e.code),
            Err(413)
        );
        // A value inside of a patch is bounded as a body is.
        let deep = format!(
            r#"[{{"op":"add","path":"/d","value":{}{}}}]"#,
            "[".repeat(110),
            "]".repeat(110)
        );
        assert_eq!(apply(&doc, deep.as_bytes()).map_err(|e| e.code), Err(400));
        let moves = vec![json!({"op": "move", "from": "/l", "path": "/l"}); 10_000];
        assert_eq!(
            apply(&doc, Value::from(moves).to_string().as_bytes()).map_err(|e| e.code),
            Err(413)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_a_patch_makes_is_neither_deep_nor_large(
            steps in prop::collection::vec((0u8..4, 0usize..4, 0usize..4, 1usize..4), 0..40)
        ) {
            let place = |i: usize, n: usize| ["/a", "/b", "/c", "/l/0"][i].to_string() + &"/a".repeat(n);
            let ops: Vec<Value> = steps
                .iter()
                .map(|(op, from, to, deep)| match op {
                    0 => json!({"op": "add", "path": place(*to, 0), "value": {"a": {"a": [1]}}}),
                    1 => json!({"op": "copy", "from": place(*from, 0), "path": place(*to, *deep)}),
                    2 => json!({"op": "move", "from": place(*from, 0), "path": place(*to, *deep)}),
                    _ => json!({"op": "copy", "from": "", "path": place(*to, *deep)}),
                })
                .collect();
            let body = Value::from(ops).to_string();
            let mut doc = json!({"a": {"a": {}}, "b": {"a": {}}, "c": {"a": {}}, "l": [{}]});
            // One after another, so that those which do not apply do not end it.
            for op in serde_json::from_str::<Vec<Value>>(&body).expect("json") {
                if let Ok(next) = apply(&doc, json!([op]).to_string().as_bytes()) {
                    let mut size = Size::default();
                    size.add(&next, 0);
                    prop_assert!(size.depth <= MAX_DEPTH);
                    if size.bytes < 5_000 {
                        doc = next;
                    }
                }
            }
            if let Ok(all) = apply(&json!({"a": {}, "b": {}, "c": {}, "l": [{}]}), body.as_bytes()) {
                let mut size = Size::default();
                size.add(&all, 0);
                prop_assert!(size.depth <= MAX_DEPTH && size.bytes <= MAX_COPY + body.len() + 100);
            }
        }
    }
}
