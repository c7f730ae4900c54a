//! Every body is read as its type: subresources, reviews, options. And what a request may do that is not its verb: an update
//! or apply that creates.

use crate::harness::*;
use serde_json::{Value, json};
use skiff_apiserver::auth::UserInfo;
use tower::ServiceExt;

const APPLY: &str = "application/apply-patch+yaml";

async fn as_user(user: &str, method: &str, path: &str, kind: &str, body: Value) -> Answer {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(axum::body::Body::from(body.to_string()))
        .expect("a request");
    let service = server().service(UserInfo::new(user, &[]));
    read(service.oneshot(request).await.expect("infallible")).await
}

/// Gives a user some verbs on some resources in a namespace.
async fn grant(ns: &str, user: &str, groups: &[&str], resources: &[&str], verbs: &[&str]) {
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}");
    let a = post(
        &format!("{rbac}/roles"),
        json!({"metadata": {"name": user}, "rules": [{"apiGroups": groups, "resources": resources, "verbs": verbs}]}),
    )
    .await;
    assert_eq!(a.code, 201, "{}", a.text);
    let a = post(
        &format!("{rbac}/rolebindings"),
        json!({"metadata": {"name": user}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "Role", "name": user, "apiGroup": "rbac.authorization.k8s.io"}}),
    )
    .await;
    assert_eq!(a.code, 201, "{}", a.text);
}

#[test]
fn an_update_or_apply_that_creates_needs_the_right_to_create() {
    run(async {
        namespace("b-create").await;
        let groups = ["", "coordination.k8s.io"];
        let resources = ["endpoints", "leases", "configmaps"];
        grant(
            "b-create",
            "changer",
            &groups,
            &resources,
            &["update", "patch"],
        )
        .await;
        grant(
            "b-create",
            "maker",
            &groups,
            &resources,
            &["update", "patch", "create"],
        )
        .await;
        let leases = "/apis/coordination.k8s.io/v1/namespaces/b-create/leases";
        let lease = |n: &str| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": n}, "spec": {}});
        let endpoints = "/api/v1/namespaces/b-create/endpoints";
        let endpoint =
            |n: &str| json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": n}});
        let maps = "/api/v1/namespaces/b-create/configmaps";
        for query in ["", "?dryRun=All"] {
            let a = as_user(
                "changer",
                "PUT",
                &format!("{leases}/a{query}"),
                "application/json",
                lease("a"),
            )
            .await;
            assert_eq!((a.code, a.reason()), (403, "Forbidden"), "{}", a.text);
            assert!(
                a.message().contains("cannot create resource \"leases\""),
                "{}",
                a.text
            );
            let a = as_user(
                "changer",
                "PUT",
                &format!("{endpoints}/a{query}"),
                "application/json",
                endpoint("a"),
            )
            .await;
            assert_eq!(a.code, 403, "{}", a.text);
        }
        for query in [
            "fieldManager=m",
            "fieldManager=m&force=true",
            "fieldManager=m&dryRun=All",
        ] {
            let a = as_user(
                "changer",
                "PATCH",
                &format!("{maps}/a?{query}"),
                APPLY,
                config_map("a"),
            )
            .await;
            assert_eq!(a.code, 403, "{}", a.text);
            assert!(
                a.message()
                    .contains("cannot create resource \"configmaps\""),
                "{}",
                a.text
            );
        }
        // What is there may be changed.
        post(maps, config_map("b")).await;
        let a = as_user(
            "changer",
            "PATCH",
            &format!("{maps}/b?fieldManager=m&force=true"),
            APPLY,
            config_map("b"),
        )
        .await;
        assert_eq!(a.code, 200, "{}", a.text);
        for (path, kind, body, method) in [
            (format!("{leases}/a"), "application/json", lease("a"), "PUT"),
            (
                format!("{endpoints}/a"),
                "application/json",
                endpoint("a"),
                "PUT",
            ),
            (
                format!("{maps}/a?fieldManager=m"),
                APPLY,
                config_map("a"),
                "PATCH",
            ),
        ] {
            let a = as_user("maker", method, &path, kind, body).await;
            assert_eq!(a.code, 201, "{}", a.text);
        }
        // A namespace that is applied is a cluster-wide create.
        let ns =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b-create-2"}});
        let a = as_user(
            "maker",
            "PATCH",
            "/api/v1/namespaces/b-create-2?fieldManager=m",
            APPLY,
            ns,
        )
        .await;
        assert_eq!(a.code, 403, "{}", a.text);
    });
}

#[test]
fn bodies_of_subresources_and_reviews_are_read_as_their_type() {
    run(async {
        let ns = namespace("b-types").await;
        post(&format!("{ns}/pods"), pod("p")).await;
        let reviews = "/apis/authorization.k8s.io/v1";
        let token = format!("{ns}/serviceaccounts/default/token");
        for (path, body) in [
            (token.clone(), json!({"spec": {"audiences": [1]}})),
            (token.clone(), json!({"spec": {"audiences": "a"}})),
            (
                token.clone(),
                json!({"spec": {"audiences": ["a"], "expirationSeconds": "3600"}}),
            ),
            (token.clone(), json!({"spec": {"boundObjectRef": []}})),
            (token.clone(), json!({"spec": 1})),
            (token.clone(), json!({"kind": "Pod", "apiVersion": "v1"})),
            (
                token.clone(),
                json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v9"}),
            ),
            (
                format!("{ns}/pods/p/binding"),
                json!({"metadata": {"labels": {"a": 1}}, "target": {"name": "n"}}),
            ),
            (
                format!("{ns}/pods/p/binding"),
                json!({"metadata": {"annotations": ["a"]}, "target": {"name": "n"}}),
            ),
            (
                format!("{ns}/pods/p/binding"),
                json!({"target": {"name": 1}}),
            ),
            (format!("{ns}/pods/p/binding"), json!({"target": "n"})),
            (
                format!("{ns}/bindings"),
                json!({"metadata": {"name": "p", "labels": {"a": null, "b": {}}}, "target": {"name": "n"}}),
            ),
            (
                format!("{ns}/pods/p/binding"),
                json!({"kind": "Eviction", "apiVersion": "policy/v1", "target": {"name": "n"}}),
            ),
            (
                format!("{ns}/pods/p/eviction"),
                json!({"deleteOptions": {"gracePeriodSeconds": "0"}}),
            ),
            (
                format!("{ns}/pods/p/eviction"),
                json!({"deleteOptions": {"preconditions": {"uid": 1}}}),
            ),
            (
                format!("{ns}/pods/p/eviction"),
                json!({"deleteOptions": [1]}),
            ),
            (
                format!("{ns}/pods/p/eviction"),
                json!({"kind": "Binding", "apiVersion": "v1"}),
            ),
            (
                "/apis/authentication.k8s.io/v1/tokenreviews".into(),
                json!({"spec": {"token": 1}}),
            ),
            (
                "/apis/authentication.k8s.io/v1/tokenreviews".into(),
                json!({"spec": {"token": "x", "audiences": {"a": 1}}}),
            ),
            (
                format!("{reviews}/subjectaccessreviews"),
                json!({"spec": {"user": "u", "groups": "system:masters"}}),
            ),
            (
                format!("{reviews}/subjectaccessreviews"),
                json!({"spec": {"user": "u", "resourceAttributes": {"verb": 1}}}),
            ),
            (
                format!("{reviews}/subjectaccessreviews"),
                json!({"spec": {"user": "u", "extra": {"a": "b"}, "nonResourceAttributes": {"path": "/"}}}),
            ),
            (
                format!("{reviews}/selfsubjectaccessreviews"),
                json!({"spec": {"resourceAttributes": "x"}}),
            ),
            (
                format!("{reviews}/selfsubjectrulesreviews"),
                json!({"spec": {"namespace": 1}}),
            ),
            (
                format!("{reviews}/namespaces/b-types/localsubjectaccessreviews"),
                json!({"spec": {"user": "u", "resourceAttributes": []}}),
            ),
        ] {
            let a = post(&path, body.clone()).await;
            assert_eq!(
                (a.code, a.reason()),
                (400, "BadRequest"),
                "{path} {body}: {}",
                a.text
            );
        }
        let a = post(&token, json!({"spec": {"audiences": [1]}})).await;
        assert_eq!(
            a.message(),
            "TokenRequest in version \"v1\" cannot be handled as a TokenRequest: json: cannot unmarshal number into Go struct field TokenRequestSpec.spec.audiences of type string"
        );
        let maps = format!("{ns}/configmaps");
        post(&maps, config_map("m")).await;
        for body in [
            json!({"gracePeriodSeconds": "0"}),
            json!({"preconditions": []}),
            json!({"preconditions": {"uid": 7}}),
            json!({"dryRun": "All"}),
            json!({"orphanDependents": "yes"}),
            json!({"kind": "ConfigMap", "apiVersion": "v1"}),
            json!([1]),
        ] {
            let a = delete(&format!("{maps}/m"), body.clone()).await;
            assert_eq!(a.code, 400, "{body}: {}", a.text);
            let a = delete(&maps, body.clone()).await;
            assert_eq!(a.code, 400, "{body}: {}", a.text);
        }
        assert_eq!(get(&format!("{maps}/m")).await.code, 200);
        let options = json!({"kind": "DeleteOptions", "apiVersion": "apps/v1", "preconditions": {"uid": "other"}});
        assert_eq!(delete(&maps, options).await.code, 409);
        assert_eq!(
            delete(
                &format!("{maps}/m"),
                json!({"kind": "DeleteOptions", "apiVersion": "v1"})
            )
            .await
            .code,
            200
        );
        assert_eq!(
            get(&format!("{ns}/pods/p")).await.body["spec"].get("nodeName"),
            None
        );
    });
}

#[test]
fn unknown_fields_of_subresources_are_warned_of_or_refused() {
    run(async {
        let ns = namespace("b-strict").await;
        post(&format!("{ns}/pods"), pod("p")).await;
        let all = "/apis/apps/v1/namespaces/b-strict/deployments";
        let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        assert_eq!(post(all, deployment).await.code, 201);
        let scale = json!({"metadata": {"name": "d"}, "spec": {"replicas": 0, "extra": 1}});
        for (method, path, kind, body, field) in [
            (
                "POST",
                format!("{ns}/serviceaccounts/default/token"),
                "application/json",
                json!({"spec": {"audience": ["a"]}}),
                "spec.audience",
            ),
            (
                "POST",
                format!("{ns}/pods/p/eviction?dryRun=All"),
                "application/json",
                json!({"deleteOptions": {"grace": 1}}),
                "deleteOptions.grace",
            ),
            (
                "POST",
                format!("{ns}/pods/p/binding?dryRun=All"),
                "application/json",
                json!({"target": {"name": "n"}, "node": "n"}),
                "node",
            ),
            (
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".into(),
                "application/json",
                json!({"spec": {"nonResourceAttributes": {"paths": "/"}}}),
                "spec.nonResourceAttributes.paths",
            ),
            (
                "PUT",
                format!("{all}/d/scale"),
                "application/json",
                scale.clone(),
                "spec.extra",
            ),
            (
                "PATCH",
                format!("{all}/d/scale"),
                MERGE,
                json!({"spec": {"extra": 1}}),
                "spec.extra",
            ),
            (
                "PATCH",
                format!("{all}/d/status"),
                MERGE,
                json!({"status": {"extra": 1}}),
                "status.extra",
            ),
            (
                "PATCH",
                format!("{ns}/pods/p/resize"),
                MERGE,
                json!({"spec": {"extra": 1}}),
                "spec.extra",
            ),
            (
                "PATCH",
                format!("{ns}/pods/p/ephemeralcontainers"),
                MERGE,
                json!({"spec": {"extra": 1}}),
                "spec.extra",
            ),
        ] {
            let and = if path.contains('?') { "&" } else { "?" };
            let ask = |query: &str| {
                let (path, body) = (format!("{path}{query}"), body.to_string());
                async move { ask(method, &path, &[("content-type", kind)], body).await }
            };
            let said = format!("unknown field \"{field}\"");
            let a = ask("").await;
            assert!(matches!(a.code, 200 | 201), "{path}: {}", a.text);
            let warning = a
                .headers
                .get("warning")
                .and_then(|v| v.to_str().ok())
                .unwrap_or("");
            assert!(
                warning.contains(&said.replace('"', "\\\"")),
                "{path}: {warning}"
            );
            let a = ask(&format!("{and}fieldValidation=Ignore")).await;
            assert!(
                matches!(a.code, 200 | 201) && a.headers.get("warning").is_none(),
                "{path}: {}",
                a.text
            );
            let a = ask(&format!("{and}fieldValidation=Strict")).await;
            assert!(
                a.code == 400 && a.message().contains(&said),
                "{path}: {}",
                a.text
            );
        }
        // Wrong types and kinds of a Scale, by PUT and by patch.
        let put_scale = |spec: Value| json!({"metadata": {"name": "d"}, "spec": spec});
        let path = format!("{all}/d/scale");
        for body in [
            put_scale(json!({"replicas": "1"})),
            put_scale(json!({"replicas": 1.5})),
            put_scale(json!({"replicas": 3_000_000_000u64})),
            json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}}),
            json!({"metadata": {"name": "other"}, "spec": {"replicas": 1}}),
            json!({"metadata": {"name": "d", "namespace": "other"}, "spec": {"replicas": 1}}),
        ] {
            let a = put(&path, body.clone()).await;
            assert_eq!(a.code, 400, "{body}: {}", a.text);
        }
        for body in [
            json!({"spec": {"replicas": "1"}}),
            json!({"kind": "Deployment"}),
            json!({"metadata": {"name": "other"}}),
        ] {
            let a = patch(MERGE, &path, body.clone()).await;
            assert_eq!(a.code, 400, "{body}: {}", a.text);
        }
        let a = patch(
            JSON_PATCH,
            &path,
            json!([{"op": "replace", "path": "/spec/replicas", "value": [1]}]),
        )
        .await;
        assert_eq!(a.code, 400, "{}", a.text);
    });
}

#[test]
fn names_and_namespaces_of_posted_subresources_must_be_those_of_the_path() {
    run(async {
        let ns = namespace("b-names").await;
        post(&format!("{ns}/pods"), pod("p")).await;
        for (sub, body) in [
            ("pods/p/binding", json!({"target": {"name": "n"}})),
            ("pods/p/eviction", json!({})),
            ("serviceaccounts/default/token", json!({})),
        ] {
            let path = format!("{ns}/{sub}");
            let with = |metadata: Value| {
                let mut b = body.clone();
                b["metadata"] = metadata;
                b
            };
            for metadata in [json!({"namespace": "other"}), json!({"name": "other"})] {
                let a = post(&path, with(metadata)).await;
                assert_eq!(a.code, 400, "{path}: {}", a.text);
            }
        }
        let local = "/apis/authorization.k8s.io/v1/namespaces/b-names/localsubjectaccessreviews";
        let spec = json!({"user": "u", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "b-names"}});
        let review = |metadata: Value| json!({"metadata": metadata, "spec": spec});
        assert_eq!(post(local, review(json!({}))).await.code, 201);
        assert_eq!(
            post(local, review(json!({"namespace": "b-names"})))
                .await
                .code,
            201
        );
        assert_eq!(
            post(local, review(json!({"namespace": "other"})))
                .await
                .code,
            400
        );
        assert_eq!(post(local, review(json!({"name": "x"}))).await.code, 422);
        let a = post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            review(json!({"name": "x"})),
        )
        .await;
        assert_eq!(a.code, 422, "{}", a.text);
    });
}

#[test]
fn a_binding_gives_a_pod_nothing_that_it_could_not_be_created_with() {
    run(async {
        let ns = namespace("b-bind").await;
        post(&format!("{ns}/pods"), pod("p")).await;
        let path = format!("{ns}/pods/p/binding");
        for body in [
            json!({"metadata": {"labels": {"a": "no label!"}}, "target": {"name": "n"}}),
            json!({"metadata": {"labels": {"-": "x"}}, "target": {"name": "n"}}),
            json!({"metadata": {"annotations": {"a b": "x"}}, "target": {"name": "n"}}),
            json!({"metadata": {"annotations": {"a": "x".repeat(300_000)}}, "target": {"name": "n"}}),
            json!({"target": {"name": "../n"}}),
            json!({"target": {"name": "n", "kind": "Pod"}}),
            json!({"target": {}}),
        ] {
            let a = post(&path, body).await;
            assert_eq!((a.code, a.reason()), (422, "Invalid"), "{}", a.text);
        }
        let p = get(&format!("{ns}/pods/p")).await;
        for metadata in [json!({"uid": "other"}), json!({"resourceVersion": "1"})] {
            let a = post(
                &path,
                json!({"metadata": metadata, "target": {"name": "n"}}),
            )
            .await;
            assert_eq!(a.code, 409, "{}", a.text);
        }
        // Annotations that are valid alone and too many together.
        let mut heavy = pod("heavy");
        heavy["metadata"]["annotations"] = json!({"a": "x".repeat(200_000)});
        assert_eq!(post(&format!("{ns}/pods"), heavy).await.code, 201);
        let a = post(
            &format!("{ns}/pods/heavy/binding"),
            json!({"metadata": {"annotations": {"b": "x".repeat(100_000)}}, "target": {"name": "n"}}),
        )
        .await;
        assert_eq!(a.code, 422, "{}", a.text);
        let a = post(&path, json!({"metadata": {"uid": p.body["metadata"]["uid"]}, "target": {"kind": "Node", "name": "n"}})).await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert_eq!(
            post(&path, json!({"target": {"name": "m"}})).await.code,
            409
        );
    });
}

#[test]
fn resize_and_ephemeral_containers_are_validated_and_counted_as_the_pod_is() {
    run(async {
        let ns = namespace("b-resize").await;
        let sized = |name: &str, cpu: &str| {
            let mut p = pod(name);
            p["spec"]["containers"][0]["resources"] =
                json!({"requests": {"cpu": cpu, "memory": "10Mi"}});
            p
        };
        assert_eq!(
            post(&format!("{ns}/pods"), sized("p", "100m")).await.code,
            201
        );
        let path = format!("{ns}/pods/p/resize");
        let to = |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        let a = patch(STRATEGIC, &path, to(json!({"requests": {"cpu": "200m"}}))).await;
        assert_eq!(
            (
                a.code,
                &a.body["spec"]["containers"][0]["resources"]["requests"]["cpu"]
            ),
            (200, &json!("200m")),
            "{}",
            a.text
        );
        for resources in [
            // Another QoS class; less than nothing; more requested than allowed; something that is not resizable.
            json!({"limits": {"cpu": "200m", "memory": "10Mi"}}),
            json!({"requests": {"cpu": "-1"}}),
            json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            json!({"requests": {"ephemeral-storage": "1Gi"}}),
            json!({"requests": {"cpu": null}}),
        ] {
            let a = patch(STRATEGIC, &path, to(resources.clone())).await;
            assert_eq!(
                (a.code, a.reason()),
                (422, "Invalid"),
                "{resources}: {}",
                a.text
            );
        }
        let a = patch(STRATEGIC, &path, to(json!({"requests": {"cpu": "much"}}))).await;
        assert_eq!(a.code, 400, "{}", a.text);
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "500m"}}});
        assert_eq!(post(&format!("{ns}/resourcequotas"), quota).await.code, 201);
        let a = patch(STRATEGIC, &path, to(json!({"requests": {"cpu": "600m"}}))).await;
        assert!(
            a.code == 403 && a.message().contains("exceeded quota: q"),
            "{}",
            a.text
        );
        assert_eq!(
            patch(STRATEGIC, &path, to(json!({"requests": {"cpu": "400m"}})))
                .await
                .code,
            200
        );
        let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "450m"}, "min": {"cpu": "50m"}}]}});
        assert_eq!(post(&format!("{ns}/limitranges"), range).await.code, 201);
        let a = patch(STRATEGIC, &path, to(json!({"requests": {"cpu": "10m"}}))).await;
        assert!(
            a.code == 403 && a.message().contains("minimum cpu usage per Container"),
            "{}",
            a.text
        );

        let debug = format!("{ns}/pods/p/ephemeralcontainers");
        let with = |c: Value| json!({"spec": {"ephemeralContainers": [c]}});
        for c in [
            json!({"name": "c", "image": "i"}),
            json!({"name": "Not A Name", "image": "i"}),
            json!({"name": "d"}),
            json!({"name": "d", "image": "i", "targetContainerName": "nobody"}),
            json!({"name": "d", "image": "i", "volumeMounts": [{"name": "nowhere", "mountPath": "/x"}]}),
            json!({"name": "d", "image": "i", "securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
            json!({"name": "d", "image": "i", "resources": {"limits": {"cpu": "1"}}}),
            json!({"name": "d", "image": "i", "imagePullPolicy": "Sometimes"}),
            json!({"name": "d", "image": "i", "env": [{"name": "", "value": "x"}]}),
        ] {
            let a = patch(STRATEGIC, &debug, with(c.clone())).await;
            assert_eq!((a.code, a.reason()), (422, "Invalid"), "{c}: {}", a.text);
        }
        assert_eq!(
            patch(STRATEGIC, &debug, with(json!({"name": "d", "image": "i"})))
                .await
                .code,
            200
        );
    });
}

#[test]
fn nothing_is_bound_evicted_or_given_a_token_in_a_namespace_that_ends() {
    run(async {
        let ns = namespace("b-ending").await;
        let mut p = pod("p");
        p["metadata"]["finalizers"] = json!(["example.com/hold"]);
        post(&format!("{ns}/pods"), p).await;
        assert_eq!(delete(&ns, Value::Null).await.code, 200);
        for (sub, body) in [
            ("pods/p/binding", json!({"target": {"name": "n"}})),
            ("pods/p/eviction", json!({})),
            ("serviceaccounts/default/token", json!({})),
        ] {
            let a = post(&format!("{ns}/{sub}"), body).await;
            assert!(
                a.code == 403 && a.message().contains("because it is being terminated"),
                "{sub}: {}",
                a.text
            );
        }
    });
}
