//! What a path, a token and a certificate open, and when they stop to.

use crate::access::{as_user, plain};
use crate::harness::*;
use serde_json::{Value, json};
use skiff_apiserver::auth::UserInfo;
use std::time::Duration;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Gives a user a role of these rules in a namespace.
pub async fn grant(namespace: &str, user: &str, rules: Value) {
    let name = user.replace(':', "-");
    let base = format!("{RBAC}/namespaces/{namespace}");
    let role = json!({"metadata": {"name": name}, "rules": rules});
    let a = post(&format!("{base}/roles"), role).await;
    assert_eq!(a.code, 201, "{}", a.text);
    let binding = json!({"metadata": {"name": name}, "roleRef": {"kind": "Role", "name": name, "apiGroup": "rbac.authorization.k8s.io"},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}]});
    let a = post(&format!("{base}/rolebindings"), binding).await;
    assert_eq!(a.code, 201, "{}", a.text);
}

#[test]
fn a_role_of_one_namespace_opens_nothing_outside_of_it() {
    run(async {
        namespace("path-tenant").await;
        namespace("path-other").await;
        grant(
            "path-tenant",
            "tenant",
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]),
        )
        .await;
        let a = post(
            "/api/v1/nodes",
            json!({"metadata": {"name": "path-node"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}}),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        let tenant = UserInfo::new("tenant", &[]);
        let here = "/api/v1/namespaces/path-tenant";
        let review = json!({"spec": {"token": "x"}});
        let access =
            json!({"spec": {"user": "x", "nonResourceAttributes": {"path": "/", "verb": "get"}}});
        for (method, path, body) in [
            ("GET", format!("{here}/namespaces/path-other"), Value::Null),
            (
                "DELETE",
                format!("{here}/namespaces/path-other"),
                Value::Null,
            ),
            ("GET", format!("{here}/namespaces"), Value::Null),
            ("GET", format!("{here}/nodes"), Value::Null),
            ("GET", format!("{here}/nodes/path-node"), Value::Null),
            (
                "GET",
                format!("{here}/nodes/path-node/proxy/pods"),
                Value::Null,
            ),
            (
                "POST",
                format!("{here}/nodes/path-node/proxy/run/a/b/c"),
                Value::Null,
            ),
            ("GET", format!("{here}/nodes/path-node/status"), Value::Null),
            (
                "POST",
                "/apis/authentication.k8s.io/v1/namespaces/path-tenant/tokenreviews".into(),
                review,
            ),
            (
                "POST",
                "/apis/authorization.k8s.io/v1/namespaces/path-tenant/subjectaccessreviews".into(),
                access,
            ),
            (
                "GET",
                format!("{RBAC}/namespaces/path-tenant/clusterroles/cluster-admin"),
                Value::Null,
            ),
            // A name with a slash in it is no way to another namespace's object.
            (
                "GET",
                "/api/v1/namespaces/path-tenant/pods/..%2Fpath-other%2Fp".into(),
                Value::Null,
            ),
        ] {
            let a = as_user(&tenant, method, &path, &[], body).await;
            assert_eq!(a.code, 404, "{method} {path}: {}", a.text);
        }
        // Not even an administrator has them there.
        let local = json!({"spec": {"user": "x", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
        let path = "/apis/authorization.k8s.io/v1/localsubjectaccessreviews";
        assert_eq!(post(path, local).await.code, 404);
        assert_eq!(get("/api/v1/namespaces/path-other").await.code, 200);
        // What is theirs is still there.
        for path in [
            here.to_string(),
            format!("{here}/pods"),
            format!("{here}/serviceaccounts/default"),
        ] {
            let a = as_user(&tenant, "GET", &path, &[], Value::Null).await;
            assert_eq!(a.code, 200, "{path}: {}", a.text);
        }
        assert_eq!(
            delete("/api/v1/nodes/path-node", Value::Null).await.code,
            200
        );
    });
}

#[test]
fn the_old_watch_path_only_watches() {
    run(async {
        namespace("watchpath").await;
        let a = post("/api/v1/namespaces/watchpath/pods", pod("p")).await;
        assert_eq!(a.code, 201, "{}", a.text);
        grant(
            "watchpath",
            "watcher",
            json!([{"verbs": ["watch"], "apiGroups": [""], "resources": ["*"]}]),
        )
        .await;
        let watcher = UserInfo::new("watcher", &[]);
        let base = "/api/v1/watch/namespaces/watchpath/pods/p";
        for (method, path) in [
            ("GET", format!("{base}/exec?command=ls")),
            ("GET", format!("{base}/log")),
            ("GET", format!("{base}/proxy/")),
            ("POST", format!("{base}/eviction")),
        ] {
            let a = as_user(&watcher, method, &path, &[], Value::Null).await;
            assert_eq!(a.code, 404, "{method} {path}: {}", a.text);
        }
        let a = as_user(&watcher, "DELETE", base, &[], Value::Null).await;
        assert_eq!(a.code, 405, "{}", a.text);
        assert_eq!(get("/api/v1/namespaces/watchpath/pods/p").await.code, 200);
    });
}

pub async fn token(namespace: &str, spec: Value) -> String {
    let a = post(
        &format!("/api/v1/namespaces/{namespace}/serviceaccounts/default/token"),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}),
    )
    .await;
    assert_eq!(a.code, 201, "{}", a.text);
    a.body["status"]["token"]
        .as_str()
        .expect("token")
        .to_string()
}

#[test]
fn a_connection_ends_with_what_its_token_rests_on() {
    run(async {
        namespace("sessions").await;
        let a = post("/api/v1/namespaces/sessions/pods", pod("p")).await;
        let uid = a.body["metadata"]["uid"].clone();
        let bound = token(
            "sessions",
            json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}}),
        )
        .await;
        let free = token("sessions", json!({})).await;
        let app = server().app();
        let credential = |token: String| async move {
            let parts = http::Request::builder()
                .header("authorization", format!("Bearer {token}"))
                .body(())
                .expect("request")
                .into_parts()
                .0;
            app.auth.authenticate(app, &parts).await.expect("known")
        };
        let (bound, free) = (credential(bound).await, credential(free).await);
        let mut first = app.auth.session(app, &bound).expect("it can end");
        let mut second = app.auth.session(app, &free).expect("it can end");
        assert!(first.is_valid() && second.is_valid());
        // Another pod of the same name is not the one.
        let gone = json!({"gracePeriodSeconds": 0});
        let a = delete("/api/v1/namespaces/sessions/pods/p", gone).await;
        assert_eq!(a.code, 200, "{}", a.text);
        let a = post("/api/v1/namespaces/sessions/pods", pod("p")).await;
        assert_eq!(a.code, 201, "{}", a.text);
        tokio::time::timeout(Duration::from_secs(5), first.ended())
            .await
            .expect("the session of the pod's token ends");
        assert!(!first.is_valid() && !app.auth.still_valid(app, &bound));
        assert!(second.is_valid() && app.auth.still_valid(app, &free));
        // One that is opened too late ends at once.
        let mut late = app.auth.session(app, &bound).expect("it can end");
        late.ended().await;
        let path = "/api/v1/namespaces/sessions/serviceaccounts/default";
        let a = delete(path, Value::Null).await;
        assert_eq!(a.code, 200, "{}", a.text);
        tokio::time::timeout(Duration::from_secs(5), second.ended())
            .await
            .expect("the session of the account's token ends");
    });
}

#[test]
fn the_token_of_an_account_that_was_made_again_is_worth_nothing() {
    run(async {
        namespace("reborn").await;
        let old = token("reborn", json!({})).await;
        let header = format!("Bearer {old}");
        let auth = [("authorization", header.as_str())];
        assert_eq!(plain("GET", "/api", &auth, "").await.code, 200);
        let path = "/api/v1/namespaces/reborn/serviceaccounts";
        let a = delete(&format!("{path}/default"), Value::Null).await;
        assert_eq!(a.code, 200, "{}", a.text);
        assert_eq!(plain("GET", "/api", &auth, "").await.code, 401);
        let a = post(path, json!({"metadata": {"name": "default"}})).await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert_eq!(plain("GET", "/api", &auth, "").await.code, 401);
    });
}

#[test]
fn a_token_dies_with_the_secret_or_node_it_is_bound_to() {
    run(async {
        let ns = namespace("bound").await;
        let a = post(
            &format!("{ns}/secrets"),
            json!({"metadata": {"name": "bound"}}),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        let a = post("/api/v1/nodes", json!({"metadata": {"name": "bound"}})).await;
        assert_eq!(a.code, 201, "{}", a.text);
        for (kind, path) in [
            ("Secret", format!("{ns}/secrets/bound")),
            ("Node", "/api/v1/nodes/bound".into()),
        ] {
            let spec =
                json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": "bound"}});
            let token = token("bound", spec).await;
            let header = format!("Bearer {token}");
            let auth = [("authorization", header.as_str())];
            assert_eq!(plain("GET", "/api", &auth, "").await.code, 200, "{kind}");
            let a = delete(&path, Value::Null).await;
            assert_eq!(a.code, 200, "{}", a.text);
            assert_eq!(plain("GET", "/api", &auth, "").await.code, 401, "{kind}");
            let review = json!({"spec": {"token": token}});
            let a = post("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
            assert!(a.body["status"]["authenticated"].is_null(), "{}", a.text);
        }
        // The uid that was asked for has to be the account's and the object's.
        let path = format!("{ns}/serviceaccounts/default/token");
        let a = post(
            &path,
            json!({"metadata": {"uid": "other"}, "spec": {"audiences": []}}),
        )
        .await;
        assert_eq!(a.code, 409, "{}", a.text);
    });
}

#[test]
fn a_token_is_good_for_its_audiences_alone() {
    run(async {
        namespace("audiences").await;
        let token = token("audiences", json!({"audiences": ["vault", "db"]})).await;
        let header = format!("Bearer {token}");
        let auth = [("authorization", header.as_str())];
        assert_eq!(plain("GET", "/api", &auth, "").await.code, 401);
        let review = async |audiences: Value| {
            let body = json!({"spec": {"token": token, "audiences": audiences}});
            let a = post("/apis/authentication.k8s.io/v1/tokenreviews", body).await;
            a.body["status"].clone()
        };
        let s = review(json!(["db", "x"])).await;
        assert_eq!(
            (&s["authenticated"], &s["audiences"]),
            (&json!(true), &json!(["db"]))
        );
        for none in [json!(["x"]), json!([])] {
            let s = review(none).await;
            assert!(
                s["authenticated"].is_null() && s["user"] == json!({}),
                "{s}"
            );
        }
    });
}

/// Prints what one authorization costs with many bindings: `cargo test -p skiff-apiserver --test all -- --ignored
/// --nocapture authorization_costs`.
#[test]
#[ignore = "a measurement"]
fn what_an_authorization_costs_with_5000_bindings() {
    run(async {
        use skiff_apiserver::auth::authorization::Decision;
        use skiff_apiserver::http::path::RequestInfo;
        let handle = another_server().await;
        let app = handle.app().clone();
        let send = |path: String, body: Value| {
            let handle = &handle;
            async move {
                let r = send_to(handle, "POST", &path, &[], body.to_string()).await;
                assert_eq!(r.status(), 201, "{path}");
            }
        };
        let subject = |i: usize| json!([{"kind": "User", "name": format!("user-{i}"), "apiGroup": "rbac.authorization.k8s.io"}]);
        for i in 0..50 {
            send(
                "/api/v1/namespaces".into(),
                json!({"metadata": {"name": format!("n{i}")}}),
            )
            .await;
        }
        let work = (0..5000).map(|i| {
            let role = json!({"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"});
            let body = json!({"metadata": {"name": format!("b{i}")}, "roleRef": role, "subjects": subject(i)});
            if i % 2 == 0 {
                send(format!("{RBAC}/clusterrolebindings"), body)
            } else {
                send(format!("{RBAC}/namespaces/n{}/rolebindings", i % 50), body)
            }
        });
        use futures::StreamExt;
        futures::stream::iter(work)
            .buffer_unordered(32)
            .collect::<()>()
            .await;
        for (what, user, ns, expected) in [
            ("cluster-wide binding", "user-4998", "n1", true),
            ("binding of the namespace", "user-4949", "n49", true),
            ("nobody", "nobody", "n49", false),
        ] {
            let user = UserInfo::new(user, &["dev", "ops"]);
            let path = format!("/api/v1/namespaces/{ns}/pods/p");
            let info = RequestInfo::parse(&http::Method::GET, &path, "");
            let asked = skiff_apiserver::auth::authorization::Attributes::of_request(&user, &info);
            // What was written since the last question is taken in first.
            let _ = app.auth.decide(&app, &asked);
            let begun = std::time::Instant::now();
            let times = 2000;
            for _ in 0..times {
                let d = app.auth.decide(&app, &asked);
                assert_eq!(matches!(d, Decision::Allow(_)), expected, "{what}");
            }
            println!(
                "{what}: {:.2} us",
                begun.elapsed().as_secs_f64() * 1e6 / f64::from(times)
            );
        }
    });
}
