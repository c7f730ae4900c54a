//! A small request does not become a large one, what is stored can be read again, and what is stored without effect says so.

use crate::harness::*;
use serde_json::{Value, json};

const APPLY: &str = "application/apply-patch+yaml";

/// A kind with free JSON in it and no limit of its own.
fn revision(name: &str, data: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": name}, "revision": 1, "data": {"x": data}})
}

fn too_large(a: &Answer) {
    assert_eq!(
        (a.code, a.reason()),
        (413, "RequestEntityTooLarge"),
        "{}",
        &a.text[..a.text.len().min(500)]
    );
    assert!(
        a.message().starts_with("etcdserver: request is too large"),
        "{}",
        a.message()
    );
}

#[test]
fn an_object_is_not_larger_than_upstreams_on_whichever_way_it_grows() {
    run(async {
        namespace("n-size").await;
        let all = "/apis/apps/v1/namespaces/n-size/controllerrevisions";
        let big = |n: usize| "x".repeat(n);
        too_large(&post(all, revision("a", big(1_600_000).into())).await);
        too_large(
            &post(
                &format!("{all}?dryRun=All"),
                revision("a", big(1_600_000).into()),
            )
            .await,
        );
        let apply = |query: &str, body: Value| {
            let path = format!("{all}/a?fieldManager=m{query}");
            async move { ask("PATCH", &path, &[("content-type", APPLY)], body.to_string()).await }
        };
        too_large(&apply("", revision("a", big(1_600_000).into())).await);
        assert_eq!(get(&format!("{all}/a")).await.code, 404);
        let deployments = "/apis/apps/v1/namespaces/n-size/deployments";
        let args: Vec<String> = (0..10).map(|i| format!("{i}{}", big(100_000))).collect();
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i", "args": args}]}}}});
        let a = post(deployments, deployment.clone()).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let path = format!("{deployments}/d");
        let mut grown = deployment.clone();
        grown["spec"]["template"]["spec"]["containers"][0]["command"] = json!([big(600_000)]);
        too_large(&put(&path, grown.clone()).await);
        too_large(&put(&format!("{path}?dryRun=All"), grown).await);
        too_large(&patch(MERGE, &path, json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i", "args": args, "command": [big(600_000)]}]}}}})).await);
        too_large(&patch(STRATEGIC, &path, json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "command": [big(600_000)]}]}}}})).await);
        let copy = json!([{"op": "copy", "from": "/spec/template/spec/containers/0/args", "path": "/spec/template/spec/containers/0/command"}]);
        too_large(&patch(JSON_PATCH, &path, copy).await);
        let status = json!({"status": {"conditions": [{"type": "A", "status": "True", "message": big(600_000)}]}});
        too_large(&patch(MERGE, &format!("{path}/status"), status).await);
        // Scaling makes it hardly larger.
        assert_eq!(
            patch(
                MERGE,
                &format!("{path}/scale"),
                json!({"spec": {"replicas": 3}})
            )
            .await
            .code,
            200
        );
    });
}

#[test]
fn an_object_at_the_limit_can_be_deleted_and_shrunk() {
    run(async {
        namespace("n-full").await;
        let all = "/apis/apps/v1/namespaces/n-full/controllerrevisions";
        let mut r = revision("a", "".into());
        r["metadata"]["finalizers"] = json!(["example.com/hold"]);
        let small = post(all, r.clone()).await;
        assert_eq!(small.code, 201, "{}", small.text);
        // All that is not its data has fewer bytes than this; twenty are left.
        let rest = small.text.len() + 20;
        r["metadata"]["name"] = "b".into();
        let mut n = 1536 * 1024 - rest + 200;
        loop {
            r["data"]["x"] = "x".repeat(n).into();
            match post(all, r.clone()).await.code {
                201 => break,
                413 => n -= 20,
                other => panic!("{other}"),
            }
        }
        let path = format!("{all}/b");
        let a = delete(&path, Value::Null).await;
        assert_eq!(a.code, 200, "{}", &a.text[..a.text.len().min(300)]);
        let a = patch(
            JSON_PATCH,
            &path,
            json!([{"op": "remove", "path": "/metadata/finalizers"}]),
        )
        .await;
        assert_eq!(a.code, 200, "{}", &a.text[..a.text.len().min(300)]);
        assert_eq!(get(&path).await.code, 404);
    });
}

#[test]
fn json_patches_are_bounded() {
    run(async {
        let ns = namespace("n-patch").await;
        post(&format!("{ns}/configmaps"), config_map("m")).await;
        let path = format!("{ns}/configmaps/m");
        let ops = vec![json!({"op": "test", "path": "/data/a", "value": "b"}); 10_001];
        let a = patch(JSON_PATCH, &path, ops[1..].to_vec().into()).await;
        assert_eq!(a.code, 200, "{}", a.text);
        let a = patch(JSON_PATCH, &path, ops.into()).await;
        assert_eq!(
            (a.code, a.reason()),
            (413, "RequestEntityTooLarge"),
            "{}",
            a.text
        );
        assert_eq!(
            a.message(),
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
        let mut doubling = vec![json!({"op": "add", "path": "/data/k", "value": "x".repeat(1000)})];
        for i in 0..30 {
            doubling.push(json!({"op": "copy", "from": "/data", "path": format!("/data/c{i}")}));
        }
        let a = patch(JSON_PATCH, &path, doubling.into()).await;
        assert!(
            a.code == 422 && a.text.contains("accumulated size increase of copy"),
            "{}",
            a.text
        );
        let revisions = "/apis/apps/v1/namespaces/n-patch/controllerrevisions";
        post(revisions, revision("r", json!({"a": {}}))).await;
        let mut deep = Vec::new();
        for _ in 0..3000 {
            deep.push(json!({"op": "add", "path": "/data/x/b", "value": {}}));
            deep.push(json!({"op": "move", "from": "/data/x/a", "path": "/data/x/b/a"}));
            deep.push(json!({"op": "move", "from": "/data/x/b", "path": "/data/x/a"}));
        }
        let a = patch(JSON_PATCH, &format!("{revisions}/r"), deep.into()).await;
        assert!(matches!(a.code, 400 | 422), "{}", a.text);
    });
}

#[test]
fn depth_and_aliases_are_bounded_on_every_way_in() {
    run(async {
        let ns = namespace("n-deep").await;
        let revisions = "/apis/apps/v1/namespaces/n-deep/controllerrevisions";
        let mut v = json!(1);
        for _ in 0..120 {
            v = json!({"a": v});
        }
        let deep = revision("r", v).to_string();
        assert_eq!(ask("POST", revisions, &[], deep.clone()).await.code, 400);
        let apply = ask(
            "PATCH",
            &format!("{revisions}/r?fieldManager=m"),
            &[("content-type", APPLY)],
            deep,
        )
        .await;
        assert_eq!(apply.code, 400, "{}", apply.text);
        let mut v = json!(1);
        for _ in 0..97 {
            v = json!({"a": v});
        }
        let a = post(revisions, revision("r", v.clone())).await;
        assert_eq!(a.code, 201, "{}", a.text);
        // Merging below what is there makes it deeper.
        let a = patch(
            JSON_PATCH,
            &format!("{revisions}/r"),
            json!([{"op": "add", "path": "/data/x/b", "value": {"a": {"a": {"a": v}}}}]),
        )
        .await;
        assert!(matches!(a.code, 400 | 422), "{}", a.text);
        let a = patch(
            MERGE,
            &format!("{revisions}/r"),
            json!({"data": {"x": {"b": {"a": {"a": v}}}}}),
        )
        .await;
        assert_eq!(a.code, 400, "{}", a.text);
        assert!(serde_json::from_str::<Value>(&get(revisions).await.text).is_ok());

        let mut laughs = String::from(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\ndata:\n  a: &a [l, l, l, l, l, l, l, l, l]\n",
        );
        for (one, other) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            laughs.push_str(&format!("  {other}: &{other} [*{one}, *{one}, *{one}, *{one}, *{one}, *{one}, *{one}, *{one}, *{one}]\n"));
        }
        let long = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: y}}\ndata:\n  a: &l {}\n{}",
            "x".repeat(50_000),
            (0..90).map(|i| format!("  k{i}: *l\n")).collect::<String>()
        );
        for body in [laughs, long] {
            let maps = format!("{ns}/configmaps");
            let a = ask(
                "POST",
                &maps,
                &[("content-type", "application/yaml")],
                body.clone(),
            )
            .await;
            assert_eq!(a.code, 400, "{}", a.text);
            for kind in [APPLY, MERGE, STRATEGIC, JSON_PATCH] {
                post(&maps, config_map("y")).await;
                let a = ask(
                    "PATCH",
                    &format!("{maps}/y?fieldManager=m"),
                    &[("content-type", kind)],
                    body.clone(),
                )
                .await;
                assert_eq!(a.code, 400, "{kind}: {}", a.text);
            }
            let a = ask(
                "DELETE",
                &format!("{maps}/y"),
                &[("content-type", "application/yaml")],
                body,
            )
            .await;
            assert_eq!(a.code, 400, "{}", a.text);
        }
    });
}

#[test]
fn bodies_lists_and_selectors_are_bounded() {
    run(async {
        let ns = namespace("n-list").await;
        let maps = format!("{ns}/configmaps");
        let a = ask(
            "POST",
            &maps,
            &[("content-encoding", "gzip")],
            config_map("z").to_string(),
        )
        .await;
        assert_eq!(
            (a.code, a.reason()),
            (415, "UnsupportedMediaType"),
            "{}",
            a.text
        );
        let a = ask(
            "POST",
            &format!("{ns}/pods/p/binding"),
            &[("content-encoding", "gzip")],
            "{}",
        )
        .await;
        assert_eq!(a.code, 415, "{}", a.text);
        let a = ask("POST", &maps, &[], " ".repeat(3 * 1024 * 1024 + 1)).await;
        assert_eq!(
            (a.code, a.message()),
            (413, "Request entity too large: limit is 3145728")
        );
        let mut p = pod("p");
        p["spec"]["containers"] = vec![json!({"name": "c"}); 10_001].into();
        let a = post(&format!("{ns}/pods"), p.clone()).await;
        assert!(
            a.code == 400 && a.message().contains("at most 10000 items"),
            "{}",
            a.message()
        );
        p["spec"]["containers"] = vec![json!({"name": ""}); 9_000].into();
        let a = post(&format!("{ns}/pods"), p).await;
        assert_eq!(a.code, 422);
        assert_eq!(
            a.body["details"]["causes"].as_array().map(Vec::len),
            Some(100)
        );
        assert!(a.text.len() < 100_000);
        let mut m = config_map("o");
        m["metadata"]["ownerReferences"] = (0..5000)
            .map(|i| json!({"apiVersion": "v1", "kind": "Pod", "name": format!("p{i}"), "uid": format!("u{i}"), "controller": true}))
            .collect::<Vec<_>>()
            .into();
        let a = post(&maps, m).await;
        assert!(a.code == 422 && a.text.len() < 100_000, "{}", a.text.len());
        for query in [
            format!("labelSelector={}", vec!["a"; 1001].join(",")),
            format!("watch=true&labelSelector={}", vec!["a"; 1001].join(",")),
        ] {
            assert_eq!(
                get(&format!("{maps}?{query}")).await.code,
                400,
                "{}",
                &query[..40]
            );
        }
        assert_eq!(
            ask(
                "DELETE",
                &format!("{maps}?labelSelector={}", vec!["a"; 1001].join(",")),
                &[],
                ""
            )
            .await
            .code,
            400
        );
        for token in [
            "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiIuLi9zZWNyZXRzL2EifQ",
            "AAAA",
            "e30",
        ] {
            assert_eq!(
                get(&format!("{maps}?limit=1&continue={token}")).await.code,
                400,
                "{token}"
            );
        }
    });
}

#[test]
fn a_conversion_brings_nothing_into_the_store_that_is_not_of_its_type() {
    run(async {
        namespace("n-convert").await;
        let all = "/apis/autoscaling/v1/namespaces/n-convert/horizontalpodautoscalers";
        let hpa = |annotation: &str, text: &str| {
            json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "h", "annotations": {format!("autoscaling.alpha.kubernetes.io/{annotation}"): text}},
                "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}})
        };
        for (annotation, text) in [
            (
                "metrics",
                r#"[{"type":"Resource","resource":{"name":1,"targetAverageValue":"1"}}]"#,
            ),
            (
                "metrics",
                r#"[{"type":"Pods","pods":{"metricName":{"a":1},"targetAverageValue":"1"}}]"#,
            ),
            (
                "metrics",
                r#"[{"type":"Resource","resource":{"name":"cpu","targetAverageValue":"much"}}]"#,
            ),
            ("behavior", r#"{"scaleDown":"never"}"#),
            ("conditions", r#"[{"type":7}]"#),
        ] {
            for query in ["", "?dryRun=All"] {
                let a = post(&format!("{all}{query}"), hpa(annotation, text)).await;
                // Conditions belong to the status, which a create drops.
                assert!(
                    matches!(a.code, 400 | 422) || (annotation == "conditions" && a.code == 201),
                    "{annotation} {text}: {}",
                    a.text
                );
                ask("DELETE", &format!("{all}/h"), &[], "").await;
            }
        }
        let a = post(all, hpa("x", "y")).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let a = patch(MERGE, &format!("{all}/h"), json!({"metadata": {"annotations": {"autoscaling.alpha.kubernetes.io/metrics": r#"[{"type":"Resource","resource":{"name":1,"targetAverageValue":"1"}}]"#}}})).await;
        assert!(matches!(a.code, 400 | 422), "{}", a.text);
    });
}

fn warnings(a: &Answer) -> Vec<String> {
    a.headers
        .get_all("warning")
        .iter()
        .filter_map(|v| v.to_str().ok().map(String::from))
        .collect()
}

#[test]
fn what_is_stored_without_effect_says_so() {
    run(async {
        namespace("n-inert").await;
        let policies = "/apis/networking.k8s.io/v1/namespaces/n-inert/networkpolicies";
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"podSelector": {}}});
        let said = |a: &Answer| {
            let w = warnings(a);
            assert!(matches!(a.code, 200 | 201), "{}", a.text);
            assert_eq!(w.len(), 1, "{w:?}");
            assert!(
                w[0].starts_with("299 - \"network policies are not enforced yet")
                    && w[0].ends_with('"'),
                "{w:?}"
            );
        };
        said(&post(&format!("{policies}?dryRun=All"), policy.clone()).await);
        said(&post(policies, policy.clone()).await);
        said(&put(&format!("{policies}/p"), policy.clone()).await);
        for kind in [MERGE, STRATEGIC] {
            said(
                &patch(
                    kind,
                    &format!("{policies}/p"),
                    json!({"metadata": {"labels": {"a": kind.len().to_string()}}}),
                )
                .await,
            );
        }
        said(
            &patch(
                JSON_PATCH,
                &format!("{policies}/p"),
                json!([{"op": "add", "path": "/metadata/labels/x", "value": "y"}]),
            )
            .await,
        );
        for name in ["p", "q"] {
            let mut body = policy.clone();
            body["metadata"]["name"] = name.into();
            said(
                &ask(
                    "PATCH",
                    &format!("{policies}/{name}?fieldManager=m&force=true"),
                    &[("content-type", APPLY)],
                    body.to_string(),
                )
                .await,
            );
        }
        assert!(warnings(&get(&format!("{policies}/p")).await).is_empty());
        let services = "/api/v1/namespaces/n-inert/services";
        let service = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
        let a = post(
            services,
            service(json!({"ports": [{"port": 80}], "type": "LoadBalancer", "extra": 1})),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert_eq!(warnings(&a).len(), 2, "{:?}", warnings(&a));
        for (path, body) in [
            (
                "/apis/networking.k8s.io/v1/namespaces/n-inert/ingresses",
                json!({"metadata": {"name": "i"}, "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
            ),
            (
                "/apis/autoscaling/v2/namespaces/n-inert/horizontalpodautoscalers",
                json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}),
            ),
            (
                "/api/v1/namespaces/n-inert/persistentvolumeclaims",
                json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
            ),
            (
                "/apis/batch/v1/namespaces/n-inert/jobs",
                json!({"metadata": {"name": "j"}, "spec": {"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 1,
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}),
            ),
        ] {
            let a = post(path, body).await;
            assert_eq!(a.code, 201, "{path}: {}", a.text);
            assert_eq!(warnings(&a).len(), 1, "{path}: {:?}", warnings(&a));
        }
        let a = post("/api/v1/namespaces/n-inert/configmaps", config_map("quiet")).await;
        assert!(warnings(&a).is_empty());
    });
}
