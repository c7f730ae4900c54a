//! create, update, patch, delete, deletecollection.

use crate::harness::*;
use serde_json::{Value, json};

#[test]
fn create_fills_in_what_the_server_owns() {
    run(async {
        let ns = namespace("w-create").await;
        let a = post(&format!("{ns}/configmaps"), config_map("a")).await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert!(
            a.text
                .starts_with(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"#),
            "{}",
            a.text
        );
        let m = &a.body["metadata"];
        assert_eq!(
            (&m["name"], &m["namespace"]),
            (&json!("a"), &json!("w-create"))
        );
        for k in ["uid", "creationTimestamp", "resourceVersion"] {
            assert!(m[k].as_str().is_some_and(|s| !s.is_empty()), "{k}");
        }
        let again = post(&format!("{ns}/configmaps"), config_map("a")).await;
        assert_eq!(
            (again.code, again.reason(), again.message()),
            (409, "AlreadyExists", "configmaps \"a\" already exists")
        );
        assert_eq!(get(&format!("{ns}/configmaps/a")).await.text, a.text);
    });
}

#[test]
fn generated_names_are_unique() {
    run(async {
        let ns = namespace("w-generate").await;
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let a = post(
                &format!("{ns}/configmaps"),
                json!({"metadata": {"generateName": "x-"}}),
            )
            .await;
            assert_eq!(a.code, 201, "{}", a.text);
            names.insert(
                a.body["metadata"]["name"]
                    .as_str()
                    .unwrap_or("")
                    .to_string(),
            );
        }
        assert_eq!(names.len(), 20);
        assert!(names.iter().all(|n| n.starts_with("x-") && n.len() == 7));
    });
}

#[test]
fn bad_requests_get_upstreams_status() {
    run(async {
        let ns = namespace("w-bad").await;
        let cms = format!("{ns}/configmaps");
        post(&cms, config_map("there")).await;
        let big =
            json!({"metadata": {"name": "big"}, "data": {"x": "y".repeat(3_200_000)}}).to_string();
        for (what, method, path, content, body, code, reason, text) in [
            (
                "broken JSON",
                "POST",
                cms.clone(),
                "application/json",
                "{".to_string(),
                400,
                "BadRequest",
                "",
            ),
            (
                "no object",
                "POST",
                cms.clone(),
                "application/json",
                "[]".into(),
                400,
                "BadRequest",
                "",
            ),
            (
                "wrong kind",
                "POST",
                cms.clone(),
                "application/json",
                pod("p").to_string(),
                400,
                "BadRequest",
                "",
            ),
            (
                "wrong version",
                "POST",
                cms.clone(),
                "application/json",
                json!({"apiVersion": "v9", "kind": "ConfigMap", "metadata": {"name": "x"}})
                    .to_string(),
                400,
                "BadRequest",
                "",
            ),
            (
                "wrong type",
                "POST",
                cms.clone(),
                "application/json",
                json!({"metadata": {"name": "x"}, "data": 5}).to_string(),
                400,
                "BadRequest",
                "",
            ),
            (
                "bad name",
                "POST",
                cms.clone(),
                "application/json",
                config_map("A_b").to_string(),
                422,
                "Invalid",
                "ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\"",
            ),
            (
                "no name",
                "POST",
                cms.clone(),
                "application/json",
                json!({"data": {}}).to_string(),
                422,
                "Invalid",
                "name or generateName is required",
            ),
            (
                "other namespace",
                "POST",
                cms.clone(),
                "application/json",
                json!({"metadata": {"name": "x", "namespace": "default"}}).to_string(),
                400,
                "BadRequest",
                "the namespace of the provided object does not match the namespace sent on the request",
            ),
            (
                "too large",
                "POST",
                cms.clone(),
                "application/json",
                big,
                413,
                "RequestEntityTooLarge",
                "",
            ),
            (
                "protobuf",
                "POST",
                cms.clone(),
                "application/vnd.kubernetes.protobuf",
                "k9s".into(),
                400,
                "BadRequest",
                "protobuf",
            ),
            (
                "unknown form",
                "POST",
                cms.clone(),
                "text/plain",
                "x".into(),
                415,
                "UnsupportedMediaType",
                "",
            ),
            (
                "version on create",
                "POST",
                cms.clone(),
                "application/json",
                json!({"metadata": {"name": "x", "resourceVersion": "5"}}).to_string(),
                400,
                "BadRequest",
                "resourceVersion should not be set on objects to be created",
            ),
            (
                "missing namespace",
                "POST",
                "/api/v1/namespaces/nowhere/configmaps".into(),
                "application/json",
                config_map("x").to_string(),
                404,
                "NotFound",
                "namespaces \"nowhere\" not found",
            ),
            (
                "PUT other name",
                "PUT",
                format!("{cms}/there"),
                "application/json",
                config_map("here").to_string(),
                400,
                "BadRequest",
                "the name of the object (here) does not match the name on the URL (there)",
            ),
            (
                "PUT other namespace",
                "PUT",
                format!("{cms}/there"),
                "application/json",
                json!({"metadata": {"name": "there", "namespace": "x"}}).to_string(),
                400,
                "BadRequest",
                "the namespace of the object (x) does not match the namespace on the request (w-bad)",
            ),
            (
                "PUT nothing",
                "PUT",
                format!("{cms}/nothing"),
                "application/json",
                config_map("nothing").to_string(),
                404,
                "NotFound",
                "configmaps \"nothing\" not found",
            ),
            (
                "PUT collection",
                "PUT",
                cms.clone(),
                "application/json",
                "{}".into(),
                405,
                "MethodNotAllowed",
                "",
            ),
            (
                "POST over all namespaces",
                "POST",
                "/api/v1/configmaps".into(),
                "application/json",
                config_map("x").to_string(),
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ),
            (
                "unknown resource",
                "POST",
                "/api/v1/namespaces/default/widgets".into(),
                "application/json",
                "{}".into(),
                404,
                "NotFound",
                "the server could not find the requested resource",
            ),
            (
                "unknown dryRun",
                "POST",
                format!("{cms}?dryRun=Some"),
                "application/json",
                config_map("x").to_string(),
                422,
                "Invalid",
                "dryRun",
            ),
            (
                "apply without a manager",
                "PATCH",
                format!("{cms}/there"),
                "application/apply-patch+yaml",
                "{}".into(),
                422,
                "Invalid",
                "fieldManager: Required value: is required for apply patch",
            ),
            (
                "unknown patch",
                "PATCH",
                format!("{cms}/there"),
                "application/json",
                "{}".into(),
                415,
                "UnsupportedMediaType",
                "",
            ),
            (
                "patch of nothing",
                "PATCH",
                format!("{cms}/nothing"),
                MERGE,
                "{}".into(),
                404,
                "NotFound",
                "",
            ),
            (
                "broken patch",
                "PATCH",
                format!("{cms}/there"),
                JSON_PATCH,
                "{".into(),
                400,
                "BadRequest",
                "",
            ),
            (
                "broken YAML",
                "POST",
                cms.clone(),
                "application/yaml",
                "a: [".into(),
                400,
                "BadRequest",
                "",
            ),
        ] {
            let a = ask(method, &path, &[("content-type", content)], body).await;
            assert_eq!(
                (a.code, a.reason()),
                (code, reason),
                "{what}: {}",
                &a.text[..a.text.len().min(500)]
            );
            assert!(a.message().contains(text), "{what}: {}", a.message());
            assert_eq!(
                (&a.body["kind"], &a.body["status"], &a.body["code"]),
                (&json!("Status"), &json!("Failure"), &json!(code)),
                "{what}"
            );
        }
    });
}

#[test]
fn updates_compare_versions_and_skip_what_changes_nothing() {
    run(async {
        let ns = namespace("w-update").await;
        let path = format!("{ns}/configmaps/a");
        let a = post(&format!("{ns}/configmaps"), config_map("a")).await;
        let first = a.version();
        let same = put(&path, a.body.clone()).await;
        assert_eq!(
            (same.code, same.version()),
            (200, first.clone()),
            "{}",
            same.text
        );
        let mut changed = a.body.clone();
        changed["data"]["a"] = "c".into();
        let b = put(&path, changed.clone()).await;
        assert_eq!(b.code, 200, "{}", b.text);
        assert_ne!(b.version(), first);
        changed["data"]["a"] = "d".into();
        let stale = put(&path, changed.clone()).await;
        assert_eq!((stale.code, stale.reason()), (409, "Conflict"));
        assert_eq!(
            stale.message(),
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
        );
        changed["metadata"]
            .as_object_mut()
            .map(|m| m.remove("resourceVersion"));
        let forced = put(&path, changed.clone()).await;
        assert_eq!((forced.code, &forced.body["data"]["a"]), (200, &json!("d")));
        changed["metadata"]["uid"] = "other".into();
        assert_eq!(put(&path, changed).await.code, 409);
    });
}

#[test]
fn a_dry_run_answers_and_changes_nothing() {
    run(async {
        let ns = namespace("w-dry").await;
        let cms = format!("{ns}/configmaps");
        let a = post(&format!("{cms}?dryRun=All"), config_map("a")).await;
        assert_eq!(
            (a.code, &a.body["metadata"]["name"]),
            (201, &json!("a")),
            "{}",
            a.text
        );
        assert_eq!(get(&format!("{cms}/a")).await.code, 404);
        let real = post(&cms, config_map("a")).await;
        let p = patch(
            MERGE,
            &format!("{cms}/a?dryRun=All"),
            json!({"data": {"x": "y"}}),
        )
        .await;
        assert_eq!((p.code, &p.body["data"]["x"]), (200, &json!("y")));
        assert_eq!(
            delete(&format!("{cms}/a?dryRun=All"), Value::Null)
                .await
                .code,
            200
        );
        assert_eq!(
            delete(&format!("{cms}/a"), json!({"dryRun": ["All"]}))
                .await
                .code,
            200
        );
        assert_eq!(get(&format!("{cms}/a")).await.text, real.text);
    });
}

#[test]
fn patches_of_every_kind_apply() {
    run(async {
        let ns = namespace("w-patch").await;
        let path = format!("{ns}/configmaps/a");
        post(&format!("{ns}/configmaps"), config_map("a")).await;
        let a = patch(
            MERGE,
            &path,
            json!({"data": {"a": null, "b": "1"}, "metadata": {"labels": {"x": "y"}}}),
        )
        .await;
        assert_eq!(
            (a.code, &a.body["data"], &a.body["metadata"]["labels"]["x"]),
            (200, &json!({"b": "1"}), &json!("y")),
            "{}",
            a.text
        );
        let a = patch(JSON_PATCH, &path, json!([{"op": "test", "path": "/data/b", "value": "1"}, {"op": "replace", "path": "/data/b", "value": "2"}])).await;
        assert_eq!(
            (a.code, &a.body["data"]["b"]),
            (200, &json!("2")),
            "{}",
            a.text
        );
        let a = patch(
            JSON_PATCH,
            &path,
            json!([{"op": "test", "path": "/data/b", "value": "1"}]),
        )
        .await;
        assert_eq!(a.code, 422, "{}", a.text);
        let a = patch(
            MERGE,
            &path,
            json!({"metadata": {"resourceVersion": "1"}, "data": {"b": "3"}}),
        )
        .await;
        assert_eq!((a.code, a.reason()), (409, "Conflict"), "{}", a.text);
        post(&format!("{ns}/pods"), pod("p")).await;
        let a = patch(
            STRATEGIC,
            &format!("{ns}/pods/p"),
            json!({"spec": {"containers": [{"name": "c", "image": "j"}]}}),
        )
        .await;
        assert_eq!(
            (a.code, &a.body["spec"]["containers"][0]["image"]),
            (200, &json!("j")),
            "{}",
            a.text
        );
    });
}

#[test]
fn concurrent_patches_are_all_kept() {
    run(async {
        let ns = namespace("w-race").await;
        post(&format!("{ns}/configmaps"), config_map("a")).await;
        let tasks: Vec<_> = (0..16)
            .map(|i| {
                let path = format!("{ns}/configmaps/a");
                tokio::spawn(async move {
                    patch(MERGE, &path, json!({"data": {format!("k{i}"): "v"}}))
                        .await
                        .code
                })
            })
            .collect();
        for t in tasks {
            assert_eq!(t.await.ok(), Some(200));
        }
        let a = get(&format!("{ns}/configmaps/a")).await;
        assert_eq!(a.body["data"].as_object().map(|d| d.len()), Some(17));
    });
}

#[test]
fn deletes_answer_as_upstream() {
    run(async {
        let ns = namespace("w-delete").await;
        let made = post(&format!("{ns}/configmaps"), config_map("a")).await;
        let uid = made.body["metadata"]["uid"].clone();
        let path = format!("{ns}/configmaps/a");
        let wrong = delete(&path, json!({"preconditions": {"uid": "x"}})).await;
        assert_eq!(
            (wrong.code, wrong.reason()),
            (409, "Conflict"),
            "{}",
            wrong.text
        );
        let a = delete(
            &path,
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}),
        )
        .await;
        assert_eq!(
            (
                a.code,
                &a.body["status"],
                &a.body["details"]["name"],
                &a.body["details"]["kind"]
            ),
            (200, &json!("Success"), &json!("a"), &json!("configmaps")),
            "{}",
            a.text
        );
        let a = delete(&path, Value::Null).await;
        assert_eq!((a.code, a.message()), (404, "configmaps \"a\" not found"));
        // Pods answer with themselves.
        post(&format!("{ns}/pods"), pod("p")).await;
        let a = delete(&format!("{ns}/pods/p"), Value::Null).await;
        assert_eq!((a.code, &a.body["kind"]), (200, &json!("Pod")));
        assert_eq!(get(&format!("{ns}/pods/p")).await.code, 404);
        assert_eq!(
            delete(&path, json!({"propagationPolicy": "Sideways"}))
                .await
                .code,
            422
        );
    });
}

#[test]
fn finalizers_hold_an_object_until_they_are_gone() {
    run(async {
        let ns = namespace("w-final").await;
        let path = format!("{ns}/configmaps/a");
        post(
            &format!("{ns}/configmaps"),
            json!({"metadata": {"name": "a", "finalizers": ["x.io/y"]}}),
        )
        .await;
        let a = delete(&path, Value::Null).await;
        assert_eq!(
            (a.code, &a.body["kind"]),
            (200, &json!("ConfigMap")),
            "{}",
            a.text
        );
        let held = get(&path).await;
        assert!(
            held.body["metadata"]["deletionTimestamp"].is_string(),
            "{}",
            held.text
        );
        let more = patch(
            MERGE,
            &path,
            json!({"metadata": {"finalizers": ["x.io/y", "x.io/z"]}}),
        )
        .await;
        assert_eq!(more.code, 422, "{}", more.text);
        let a = patch(MERGE, &path, json!({"metadata": {"finalizers": null}})).await;
        assert_eq!(a.code, 200, "{}", a.text);
        assert_eq!(get(&path).await.code, 404);
        // Foreground deletion waits for the garbage collector.
        post(&format!("{ns}/configmaps"), config_map("b")).await;
        delete(
            &format!("{ns}/configmaps/b"),
            json!({"propagationPolicy": "Foreground"}),
        )
        .await;
        let b = get(&format!("{ns}/configmaps/b")).await;
        assert_eq!(
            b.body["metadata"]["finalizers"],
            json!(["foregroundDeletion"])
        );
    });
}

#[test]
fn collections_are_deleted_by_selector() {
    run(async {
        let ns = namespace("w-many").await;
        for (n, l) in [("a", "x"), ("b", "x"), ("c", "y")] {
            post(
                &format!("{ns}/configmaps"),
                json!({"metadata": {"name": n, "labels": {"l": l}}}),
            )
            .await;
        }
        let a = delete(&format!("{ns}/configmaps?labelSelector=l%3Dx"), Value::Null).await;
        assert_eq!(
            (a.code, &a.body["kind"], a.names()),
            (200, &json!("ConfigMapList"), vec!["a", "b"]),
            "{}",
            a.text
        );
        assert_eq!(get(&format!("{ns}/configmaps")).await.names(), vec!["c"]);
        assert_eq!(delete("/api/v1/configmaps", Value::Null).await.code, 405);
        assert_eq!(delete("/api/v1/namespaces", Value::Null).await.code, 405);
    });
}

#[test]
fn namespaces_go_in_two_phases() {
    run(async {
        let ns = namespace("w-phases").await;
        let a = get(&ns).await;
        assert_eq!(
            (&a.body["status"]["phase"], &a.body["spec"]["finalizers"]),
            (&json!("Active"), &json!(["kubernetes"])),
            "{}",
            a.text
        );
        assert_eq!(
            a.body["metadata"]["labels"]["kubernetes.io/metadata.name"],
            "w-phases"
        );
        let a = delete(&ns, Value::Null).await;
        assert_eq!(
            (a.code, &a.body["status"]["phase"]),
            (200, &json!("Terminating")),
            "{}",
            a.text
        );
        let refused = post(&format!("{ns}/configmaps"), config_map("late")).await;
        assert_eq!(
            (refused.code, refused.reason()),
            (403, "Forbidden"),
            "{}",
            refused.text
        );
        let mut body = a.body.clone();
        body["spec"]["finalizers"] = json!([]);
        let a = put(&format!("{ns}/finalize"), body).await;
        assert_eq!(a.code, 200, "{}", a.text);
        assert_eq!(get(&ns).await.code, 404);
    });
}

#[test]
fn unknown_fields_warn_and_strictly_refuse() {
    run(async {
        let ns = namespace("w-strict").await;
        let body = json!({"metadata": {"name": "a"}, "data": {}, "nonsense": 1});
        let a = post(&format!("{ns}/configmaps"), body.clone()).await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert_eq!(
            a.headers.get("warning").and_then(|v| v.to_str().ok()),
            Some("299 - \"unknown field \\\"nonsense\\\"\"")
        );
        assert!(!a.text.contains("nonsense"));
        let mut again = body;
        again["metadata"]["name"] = "b".into();
        let a = post(&format!("{ns}/configmaps?fieldValidation=Strict"), again).await;
        assert_eq!((a.code, a.reason()), (400, "BadRequest"), "{}", a.text);
        assert!(
            a.message()
                .contains("strict decoding error: unknown field \"nonsense\""),
            "{}",
            a.text
        );
    });
}

#[test]
fn put_creates_where_upstream_lets_it() {
    run(async {
        let ns = namespace("w-putnew").await;
        let a = put(
            &format!("{ns}/services/s"),
            json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert!(
            a.body["spec"]["clusterIP"]
                .as_str()
                .is_some_and(|ip| ip.starts_with("10.43.")),
            "{}",
            a.text
        );
    });
}

#[test]
fn yaml_goes_in_and_comes_out() {
    run(async {
        let ns = namespace("w-yaml").await;
        let a = ask(
            "POST",
            &format!("{ns}/configmaps"),
            &[
                ("content-type", "application/yaml"),
                ("accept", "application/yaml"),
            ],
            "metadata:\n  name: why\ndata:\n  k: \"1\"\n",
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert!(a.text.contains("kind: ConfigMap\n"), "{}", a.text);
    });
}

#[test]
fn what_kubectl_sends_in_protobuf_is_understood() {
    run(async {
        // `kubectl create namespace`, 1.32 and newer.
        let body = "k8s\0\n\x0f\n\x02v1\x12\tNamespace\x12\x1c\n\x14\n\x04demo\x12\0\x1a\0\"\0*\x002\08\0B\0\x12\0\x1a\x02\n\0\x1a\0\"\0";
        let a = ask(
            "POST",
            "/api/v1/namespaces?fieldValidation=Strict",
            &[
                ("content-type", "application/vnd.kubernetes.protobuf"),
                (
                    "accept",
                    "application/vnd.kubernetes.protobuf,application/json",
                ),
            ],
            body,
        )
        .await;
        assert_eq!(
            (a.code, &a.body["metadata"]["name"]),
            (201, &json!("demo")),
            "{}",
            a.text
        );
    });
}

#[test]
fn server_side_apply_creates_owns_and_conflicts() {
    run(async {
        let ns = namespace("w-apply").await;
        let path = format!("{ns}/configmaps/a");
        let apply = async |manager: &str, force: bool, body: Value| {
            ask(
                "PATCH",
                &format!("{path}?fieldManager={manager}&force={force}"),
                &[("content-type", "application/apply-patch+yaml")],
                body.to_string(),
            )
            .await
        };
        let of = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
        let a = apply("one", false, of(json!({"x": "1", "y": "1"}))).await;
        assert_eq!(
            (a.code, &a.body["metadata"]["managedFields"][0]["manager"]),
            (201, &json!("one")),
            "{}",
            a.text
        );
        let same = apply("one", false, of(json!({"x": "1", "y": "1"}))).await;
        assert_eq!(
            (same.code, same.version()),
            (200, a.version()),
            "{}",
            same.text
        );
        let b = apply("two", false, of(json!({"x": "2"}))).await;
        assert_eq!(
            (b.code, b.reason(), b.message()),
            (
                409,
                "Conflict",
                "Apply failed with 1 conflict: conflict with \"one\": .data.x"
            ),
            "{}",
            b.text
        );
        let b = apply("two", true, of(json!({"x": "2"}))).await;
        assert_eq!(
            (b.code, &b.body["data"]),
            (200, &json!({"x": "2", "y": "1"})),
            "{}",
            b.text
        );
        // What a manager leaves out goes, if nobody else owns it.
        let c = apply("one", false, of(json!({}))).await;
        assert_eq!(
            (c.code, &c.body["data"]),
            (200, &json!({"x": "2"})),
            "{}",
            c.text
        );
        // Other writes are recorded from now on.
        let p = patch(
            MERGE,
            &format!("{path}?fieldManager=three"),
            json!({"data": {"z": "3"}}),
        )
        .await;
        assert!(
            p.body["metadata"]["managedFields"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|m| m["manager"] == "three"),
            "{}",
            p.text
        );
        // An object that was never applied carries none.
        let plain = post(&format!("{ns}/configmaps"), config_map("plain")).await;
        assert!(plain.body["metadata"].get("managedFields").is_none());
    });
}
