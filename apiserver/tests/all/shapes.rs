//! Objects of every kind, of the right types and otherwise random: whatever comes in, the answer is no 500.

use crate::harness::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use skiff_api::schema::{self, Type, TypeDef};

/// A value of a type; `depth` limits how far structs go down.
fn value(rng: &mut StdRng, ty: Type, depth: usize) -> Value {
    let word = |rng: &mut StdRng| -> Value {
        const WORDS: [&str; 14] = [
            "",
            "a",
            "web",
            "A_b",
            "x.y/z",
            "1",
            "25%",
            "100m",
            "-1",
            "10.0.0.1",
            "2026-01-01T00:00:00Z",
            "Always",
            "ClusterIP",
            "é\u{0}\"\\",
        ];
        WORDS[rng.random_range(0..WORDS.len())].into()
    };
    let number = |rng: &mut StdRng| -> i64 {
        [0, 1, -1, 5, 80, 65_536, i64::from(i32::MAX)][rng.random_range(0..7)]
    };
    match ty {
        Type::String | Type::Bytes => word(rng),
        Type::Int32 | Type::Int64 => number(rng).into(),
        Type::Bool => rng.random::<bool>().into(),
        Type::Double => 0.5.into(),
        Type::Quantity => ["1", "100m", "1Gi", "0", "-1"][rng.random_range(0..5)].into(),
        Type::Time => "2026-01-01T00:00:00Z".into(),
        Type::MicroTime => "2026-01-01T00:00:00.000000Z".into(),
        Type::IntOrString => {
            if rng.random() {
                number(rng).into()
            } else {
                word(rng)
            }
        }
        Type::Any | Type::Object => json!({"k": 1}),
        Type::Map(t) => {
            let mut m = Map::new();
            for _ in 0..rng.random_range(0..3) {
                let k = word(rng).as_str().unwrap_or("").to_string();
                m.insert(k, value(rng, *t, depth));
            }
            m.into()
        }
        Type::List(t) => (0..rng.random_range(0..3))
            .map(|_| value(rng, *t, depth))
            .collect(),
        Type::Ref(id) => {
            let def = id.get();
            match def.scalar {
                Some(t) => value(rng, t, depth),
                None if depth == 0 => json!({}),
                None => object(rng, def, depth - 1),
            }
        }
    }
}

fn object(rng: &mut StdRng, def: &'static TypeDef, depth: usize) -> Value {
    let mut m = Map::new();
    let dense = rng.random_range(0..3);
    for f in def.fields.iter() {
        // Mostly few fields, so that what is there gets further than the first required one that is missing.
        let there = f.required || rng.random_range(0..4) < dense;
        if there && rng.random_range(0..20) > 0 {
            let v = if !f.choices().is_empty() && rng.random_range(0..4) > 0 {
                f.choices()[rng.random_range(0..f.choices().len())].into()
            } else {
                value(rng, f.ty, depth)
            };
            m.insert(f.name.into(), v);
        }
    }
    m.into()
}

#[test]
fn random_objects_of_every_kind_are_answered() {
    run(async {
        let ns = "shapes";
        namespace(ns).await;
        let mut rng = StdRng::seed_from_u64(36);
        let (mut stored, mut asked) = (0, 0);
        for row in server().app().table.rows() {
            let Some(def) = schema::find(&row.schema).filter(|_| row.verbs.contains(&"create"))
            else {
                continue;
            };
            let base = if row.group.is_empty() {
                "/api/v1".to_string()
            } else {
                format!("/apis/{}/{}", row.group, row.version)
            };
            let path = if row.namespaced() {
                format!("{base}/namespaces/{ns}/{}", row.plural)
            } else {
                format!("{base}/{}", row.plural)
            };
            if row.plural == "namespaces" {
                continue;
            }
            for i in 0..40 {
                let mut o = object(&mut rng, def, 6);
                o["metadata"] = json!({"name": format!("o{i}"), "labels": {"i": "1"}});
                for k in ["kind", "apiVersion"] {
                    o.as_object_mut().map(|m| m.remove(k));
                }
                let text = o.to_string();
                let a = ask("POST", &path, &[], text.clone()).await;
                asked += 1;
                // 501 says clearly what is not there yet.
                assert!(a.code < 500 || a.code == 501, "{path}: {}\n{text}", a.text);
                if a.code != 201 || !row.verbs.contains(&"update") {
                    continue;
                }
                stored += 1;
                let one = format!("{path}/o{i}");
                // What was given out can be put back and is the same then.
                let read = get(&one).await;
                let back = ask("PUT", &one, &[], read.text.clone()).await;
                assert_eq!(
                    (back.code, back.version()),
                    (200, read.version()),
                    "{one}: {}\n{}",
                    back.text,
                    read.text
                );
                let mut other = object(&mut rng, def, 6);
                other["metadata"] = json!({"name": format!("o{i}")});
                for k in ["kind", "apiVersion"] {
                    other.as_object_mut().map(|m| m.remove(k));
                }
                let a = ask("PUT", &one, &[], other.to_string()).await;
                assert!(a.code < 500, "{one}: {}\n{other}", a.text);
                for kind in [MERGE, STRATEGIC] {
                    let a = ask("PATCH", &one, &[("content-type", kind)], other.to_string()).await;
                    assert!(a.code < 500, "{one} {kind}: {}\n{other}", a.text);
                }
                for s in &row.subresources {
                    if s.verbs.contains(&"update") && s.kind == row.kind {
                        let a =
                            ask("PUT", &format!("{one}/{}", s.name), &[], other.to_string()).await;
                        assert!(a.code < 500, "{one}/{}: {}\n{other}", s.name, a.text);
                    }
                }
                for accept in [
                    "application/json;as=Table;v=v1;g=meta.k8s.io",
                    "application/yaml",
                ] {
                    let a = ask("GET", &one, &[("accept", accept)], "").await;
                    assert!(a.code < 500, "{one}: {}", a.text);
                }
                let a = delete(&one, Value::Null).await;
                assert!(a.code < 500, "{one}: {}", a.text);
            }
        }
        // Enough of them are good, or this tests little.
        assert!(stored * 10 > asked, "{stored} of {asked} were stored");
    });
}
