//! What a small body must not become: deep, long, or large by its aliases.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn pod() -> Expect<'static> {
    Expect::gvk("", "v1", "Pod")
}

fn revision() -> Expect<'static> {
    Expect::gvk("apps", "v1", "ControllerRevision")
}

fn json_body(text: &str, e: &Expect<'_>) -> Result<Value, Status> {
    decode(text.as_bytes(), "application/json", e, Strictness::Warn).map(|(v, _)| v)
}

fn yaml(text: &str, e: &Expect<'_>) -> Result<Value, Status> {
    decode(text.as_bytes(), "application/yaml", e, Strictness::Warn).map(|(v, _)| v)
}

fn nested(levels: usize) -> String {
    format!(
        r#"{{"metadata":{{"name":"a"}},"data":{}1{}}}"#,
        r#"{"a":"#.repeat(levels),
        "}".repeat(levels)
    )
}

#[test]
fn free_json_is_as_deep_as_every_reader_of_a_list_can_follow() {
    let deepest = json_body(&nested(MAX_DEPTH - 1), &revision()).expect("taken");
    let list = json!({"items": [{"object": deepest}]}).to_string();
    assert!(serde_json::from_str::<Value>(&list).is_ok());
    let e = json_body(&nested(MAX_DEPTH), &revision()).unwrap_err();
    assert!(
        e.code == 400 && e.message.contains("exceeded max depth"),
        "{e}"
    );
    // Lists, YAML and objects that are there already (patches) count alike.
    let lists = format!(
        r#"{{"data":{{"l":{}{}}}}}"#,
        "[".repeat(MAX_DEPTH),
        "]".repeat(MAX_DEPTH)
    );
    assert_eq!(json_body(&lists, &revision()).map_err(|e| e.code), Err(400));
    assert_eq!(
        yaml(&nested(MAX_DEPTH), &revision()).map_err(|e| e.code),
        Err(400)
    );
    let block = |levels: usize| {
        let lines: String = (1..levels)
            .map(|i| format!("{}a:\n", " ".repeat(i)))
            .collect();
        format!("data:\n{lines}{}b: 1\n", " ".repeat(levels))
    };
    // On a stack as small as a server's threads have.
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let body = (block(MAX_DEPTH - 2), block(MAX_DEPTH + 10));
    let read = small.spawn(move || (yaml(&body.0, &revision()), yaml(&body.1, &revision())));
    let (taken, refused) = read.expect("a thread").join().expect("no overflow");
    assert!(taken.is_ok(), "{taken:?}");
    assert_eq!(refused.map_err(|e| e.code), Err(400));
    let mut v = json!(1);
    for _ in 0..MAX_DEPTH {
        v = json!({"a": v});
    }
    let e = convert(json!({"data": v}), &revision(), Strictness::Warn).unwrap_err();
    assert_eq!(e.code, 400);
}

#[test]
fn a_list_has_at_most_ten_thousand_items() {
    let of = |n: usize| {
        format!(
            r#"{{"spec":{{"containers":[{}]}}}}"#,
            vec!["{}"; n].join(",")
        )
    };
    assert!(json_body(&of(MAX_ITEMS), &pod()).is_ok());
    let e = json_body(&of(MAX_ITEMS + 1), &pod()).unwrap_err();
    assert!(
        e.code == 400 && e.message.contains("at most 10000 items"),
        "{e}"
    );
    let free = format!(
        r#"{{"data":{{"l":[{}]}}}}"#,
        vec!["0"; MAX_ITEMS + 1].join(",")
    );
    assert_eq!(json_body(&free, &revision()).map_err(|e| e.code), Err(400));
}

#[test]
fn aliases_are_followed_and_not_further_than_a_body_may_be_long() {
    let small = "metadata: {name: &n web}\ndata: {a: *n, b: *n}\n";
    let maps = Expect::gvk("", "v1", "ConfigMap");
    assert_eq!(
        yaml(small, &maps).expect("read")["data"],
        json!({"a": "web", "b": "web"})
    );
    // Ten lists of ten, nine deep.
    let mut laughs =
        String::from("data:\n  a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for i in 1..10 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        laughs.push_str(&format!("  a{i}: &a{i} [{refs}]\n"));
    }
    // One long text, many times: few nodes, many bytes.
    let long = format!(
        "metadata:\n  name: a\n  annotations:\n    k: &l {}\ndata:\n{}",
        "x".repeat(100_000),
        (0..90).map(|i| format!("  k{i}: *l\n")).collect::<String>()
    );
    // The same with keys: a long key in a map that is named again and again.
    let keys = format!(
        "data:\n  m: &m {{? {} : 1}}\n  l: [{}]\n",
        "y".repeat(100_000),
        vec!["*m"; 90].join(", ")
    );
    for (body, expect) in [
        (&laughs, revision()),
        (&laughs, maps),
        (&long, maps),
        (&keys, revision()),
    ] {
        let e = yaml(body, &expect).unwrap_err();
        assert_eq!(e.code, 400, "{e}");
        assert!(yaml_to_value(body).is_err());
    }
}

#[test]
fn long_keys_are_not_repeated_by_each_strict_error() {
    let unknown: Vec<String> = (0..100).map(|i| format!(r#""u{i}":1"#)).collect();
    let body = format!(
        r#"{{"status":{{"allocatedResources":{{}},"containerStatuses":[{{"allocatedResources":{{"{}":"1"}},{}}}]}}}}"#,
        "k".repeat(100_000),
        unknown.join(",")
    );
    let (_, warnings) = decode(body.as_bytes(), "", &pod(), Strictness::Warn).expect("read");
    assert_eq!(warnings.len(), 100);
    let deep = format!(
        r#"{{"metadata":{{"labels":{{"a":"b"}}}},"{}":1}}"#,
        "k".repeat(100_000)
    );
    let (_, warnings) = decode(deep.as_bytes(), "", &pod(), Strictness::Warn).expect("read");
    assert!(warnings.iter().all(|w| w.len() <= 1024));
}

#[test]
fn nulls_become_what_readers_take() {
    let secrets = Expect::gvk("", "v1", "Secret");
    let v = json_body(r#"{"metadata":{"name":"a"},"data":{"k":null}}"#, &secrets).expect("read");
    assert_eq!(v["data"], json!({"k": ""}));
    let budgets = Expect::gvk("policy", "v1", "PodDisruptionBudget");
    let v = json_body(
        r#"{"status":{"disruptedPods":{"a":null,"b":"2024-01-01T00:00:00Z"}}}"#,
        &budgets,
    )
    .expect("read");
    assert_eq!(
        v["status"]["disruptedPods"],
        json!({"b": "2024-01-01T00:00:00Z"})
    );
    let services = Expect::gvk("", "v1", "Service");
    let body = r#"{"status":{"conditions":[{"type":"A"},{"type":"B","lastTransitionTime":null}]}}"#;
    let v = json_body(body, &services).expect("read");
    for c in v["status"]["conditions"].as_array().into_iter().flatten() {
        assert_eq!(c["lastTransitionTime"], "0001-01-01T00:00:00Z");
    }
    let v = json_body(r#"{"status":{"conditions":[null]}}"#, &services).expect("read");
    assert_eq!(
        v["status"]["conditions"][0],
        json!({"lastTransitionTime": "0001-01-01T00:00:00Z"})
    );
    let (v, _) = decode_applied(body.as_bytes(), &services, Strictness::Warn).expect("read");
    assert_eq!(v["status"]["conditions"][0], json!({"type": "A"}));
    let reviews = Expect::gvk("authorization.k8s.io", "v1", "SubjectAccessReview");
    let v = json_body(r#"{"spec":{"extra":{"a":null}}}"#, &reviews).expect("read");
    assert_eq!(v["spec"]["extra"], json!({"a": []}));
}

#[test]
fn an_object_inside_of_another_is_of_the_kind_that_its_place_says() {
    let sets = Expect::gvk("apps", "v1", "StatefulSet");
    let body = r#"{"spec":{"volumeClaimTemplates":[{"kind":"Pod","apiVersion":"x/y","metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}}"#;
    let v = json_body(body, &sets).expect("read");
    assert_eq!(
        v["spec"]["volumeClaimTemplates"],
        json!([{"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": "a"}}, {"metadata": {"name": "b"}}])
    );
}

#[test]
fn times_that_no_component_can_hold_are_refused() {
    let leases = Expect::gvk("coordination.k8s.io", "v1", "Lease");
    for (time, taken) in [
        ("2024-01-01T00:00:00.000000Z", true),
        ("9999-12-30T21:59:59.000000Z", true),
        ("9999-12-31T23:59:59.999999Z", false),
        ("0000-01-01T00:00:00.000000+23:59", false),
    ] {
        let body = json!({"spec": {"renewTime": time}}).to_string();
        assert_eq!(json_body(&body, &leases).is_ok(), taken, "{time}");
    }
}

#[test]
fn other_versions_are_taken_where_they_are_read_the_same() {
    let any = Expect::gvk("", "v1", "DeleteOptions").also(Also::Any);
    for (version, taken) in [("v1", true), ("apps/v1", true), ("nowhere/v1", false)] {
        let body = json!({"apiVersion": version, "kind": "DeleteOptions"}).to_string();
        let got = json_body(&body, &any);
        assert_eq!(got.is_ok(), taken, "{version}: {got:?}");
    }
    let e = Expect::gvk("policy", "v1", "Eviction").also(Also::Version("policy", "v1beta1"));
    let old = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction"}).to_string();
    assert_eq!(
        json_body(&old, &e).expect("read")["apiVersion"],
        "policy/v1"
    );
    let wrong = json!({"apiVersion": "policy/v1beta1", "kind": "Pod"}).to_string();
    assert!(json_body(&wrong, &e).is_err());
}

proptest! {
    #[test]
    fn whatever_is_read_is_within_the_bounds(levels in 0usize..140, width in 1usize..40, in_yaml in any::<bool>()) {
        let leaf = vec!["1"; width].join(",");
        let body = format!("{{\"data\":{{\"l\":{}{leaf}{}}}}}", "[".repeat(levels + 1), "]".repeat(levels + 1));
        let got = if in_yaml { yaml(&body, &revision()) } else { json_body(&body, &revision()) };
        // The leaves are one level below their list.
        prop_assert_eq!(got.is_ok(), levels + 3 <= MAX_DEPTH, "{}", levels);
    }
}
