//! Who may do what: anonymous requests, tokens, RBAC, impersonation, reviews, node restrictions.

use crate::harness::*;
use axum::body::Body;
use serde_json::{Value, json};
use skiff_apiserver::auth::UserInfo;
use tower::ServiceExt;

/// A request over no connection: authenticated by its headers alone.
pub async fn plain(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut r = http::Request::builder().method(method).uri(path);
    for (k, v) in headers {
        r = r.header(*k, *v);
    }
    let r = r.body(Body::from(body.to_string())).expect("request");
    read(skiff_apiserver::http::handle(server().app(), r, None).await).await
}

pub async fn as_user(
    user: &UserInfo,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> Answer {
    let mut r = http::Request::builder().method(method).uri(path);
    for (k, v) in headers {
        r = r.header(*k, *v);
    }
    let text = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let r = r.body(Body::from(text)).expect("request");
    read(
        server()
            .service(user.clone())
            .oneshot(r)
            .await
            .expect("infallible"),
    )
    .await
}

async fn namespace(name: &str) {
    let a = post(
        "/api/v1/namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
    )
    .await;
    assert_eq!(a.code, 201, "{}", a.text);
    let a = post(
        &format!("/api/v1/namespaces/{name}/serviceaccounts"),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
    )
    .await;
    assert!(matches!(a.code, 201 | 409), "{}", a.text);
}

#[test]
fn anonymous_gets_health_and_version_and_nothing_else() {
    run(async {
        for path in ["/livez", "/readyz", "/healthz", "/version"] {
            assert_eq!(plain("GET", path, &[], "").await.code, 200, "{path}");
        }
        for path in [
            "/api",
            "/apis",
            "/metrics",
            "/openapi/v2",
            "/api/v1/namespaces",
            "/readyz/etcd",
        ] {
            let a = plain("GET", path, &[], "").await;
            assert_eq!((a.code, a.reason()), (403, "Forbidden"), "{path}");
        }
        let a = plain("GET", "/api/v1/namespaces/default/secrets", &[], "").await;
        assert_eq!(
            a.message(),
            "secrets is forbidden: User \"system:anonymous\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\""
        );
        let a = plain("GET", "/livez", &[("authorization", "Bearer nonsense")], "").await;
        assert_eq!((a.code, a.reason()), (401, "Unauthorized"));
    });
}

#[test]
fn service_account_tokens_work_until_what_they_are_bound_to_is_gone() {
    run(async {
        namespace("tokens").await;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let a = post("/api/v1/namespaces/tokens/pods", pod).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let uid = a.body["metadata"]["uid"].as_str().expect("uid").to_string();
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}}});
        let a = post(
            "/api/v1/namespaces/tokens/serviceaccounts/default/token",
            request,
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        let token = format!(
            "Bearer {}",
            a.body["status"]["token"].as_str().expect("token")
        );
        let auth = [("authorization", token.as_str())];
        let who = plain(
            "POST",
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &auth,
            r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#,
        )
        .await;
        assert_eq!(who.code, 201, "{}", who.text);
        let user = &who.body["status"]["userInfo"];
        assert_eq!(user["username"], "system:serviceaccount:tokens:default");
        assert_eq!(
            user["extra"]["authentication.kubernetes.io/pod-name"],
            json!(["p"])
        );
        assert_eq!(
            plain("GET", "/api/v1/namespaces/tokens/pods", &auth, "")
                .await
                .code,
            403
        );
        // A token review says the same.
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": &token[7..]}});
        let a = post("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
        assert_eq!(
            (
                &a.body["status"]["authenticated"],
                &a.body["status"]["user"]["username"]
            ),
            (&json!(true), &json!("system:serviceaccount:tokens:default")),
            "{}",
            a.text
        );
        // RBAC holds from the moment it is written.
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "v"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "tokens"}]});
        assert_eq!(
            post(
                "/apis/rbac.authorization.k8s.io/v1/namespaces/tokens/rolebindings",
                binding
            )
            .await
            .code,
            201
        );
        assert_eq!(
            plain("GET", "/api/v1/namespaces/tokens/pods", &auth, "")
                .await
                .code,
            200
        );
        assert_eq!(
            plain("GET", "/api/v1/namespaces/tokens/secrets", &auth, "")
                .await
                .code,
            403
        );
        assert_eq!(
            plain("GET", "/api/v1/namespaces/default/pods", &auth, "")
                .await
                .code,
            403
        );
        let a = delete(
            "/api/v1/namespaces/tokens/pods/p",
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}),
        )
        .await;
        assert_eq!(a.code, 200, "{}", a.text);
        assert_eq!(
            plain("GET", "/api/v1/namespaces/tokens/pods", &auth, "")
                .await
                .code,
            401,
            "the pod is gone"
        );
    });
}

#[test]
fn token_requests_are_checked() {
    run(async {
        namespace("tokenreq").await;
        let path = "/api/v1/namespaces/tokenreq/serviceaccounts/default/token";
        let ask = |spec: Value| {
            post(
                path,
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}),
            )
        };
        let a = ask(json!({"expirationSeconds": 60})).await;
        assert_eq!(
            (a.code, a.body["details"]["causes"][0]["field"].as_str()),
            (422, Some("spec.expirationSeconds")),
            "{}",
            a.text
        );
        let a = ask(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "none"}}))
            .await;
        assert_eq!(a.code, 404);
        let a = ask(json!({"boundObjectRef": {"kind": "Deployment", "apiVersion": "apps/v1", "name": "none"}})).await;
        assert_eq!(a.code, 400);
        let a = ask(json!({"audiences": ["vault"]})).await;
        assert_eq!(a.code, 201);
        let token = format!(
            "Bearer {}",
            a.body["status"]["token"].as_str().expect("token")
        );
        assert_eq!(
            plain("GET", "/version", &[("authorization", &token)], "")
                .await
                .code,
            401,
            "it is for somebody else"
        );
        assert_eq!(
            post(
                "/api/v1/namespaces/tokenreq/serviceaccounts/none/token",
                json!({"spec": {}})
            )
            .await
            .code,
            404
        );
    });
}

#[test]
fn impersonation_is_for_those_who_may() {
    run(async {
        let admin = UserInfo::new("boss", &["system:masters"]);
        let nobody = UserInfo::new("nobody", &[]);
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let h = [
            ("impersonate-user", "jane"),
            ("impersonate-group", "dev"),
            ("impersonate-extra-team%2fname", "boats"),
        ];
        let a = as_user(&admin, "POST", path, &h, body.clone()).await;
        let u = &a.body["status"]["userInfo"];
        assert_eq!(
            (&u["username"], &u["groups"], &u["extra"]),
            (
                &json!("jane"),
                &json!(["dev", "system:authenticated"]),
                &json!({"team/name": ["boats"]})
            ),
            "{}",
            a.text
        );
        let a = as_user(&nobody, "POST", path, &h, body.clone()).await;
        assert_eq!(a.code, 403);
        assert_eq!(
            a.message(),
            "users \"jane\" is forbidden: User \"nobody\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
        );
        let a = as_user(
            &admin,
            "POST",
            path,
            &[("impersonate-user", "system:serviceaccount:ns:sa")],
            body,
        )
        .await;
        assert_eq!(
            a.body["status"]["userInfo"]["groups"],
            json!([
                "system:serviceaccounts",
                "system:serviceaccounts:ns",
                "system:authenticated"
            ])
        );
    });
}

#[test]
fn access_reviews_answer_for_oneself_and_for_others() {
    run(async {
        let jane = UserInfo::new("jane", &[]);
        let spec = json!({"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}});
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
        let a = as_user(
            &jane,
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &[],
            body,
        )
        .await;
        assert_eq!(
            (a.code, &a.body["status"]["allowed"]),
            (201, &json!(false)),
            "{}",
            a.text
        );
        let mut other = spec.clone();
        other["groups"] = json!(["system:masters"]);
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": other});
        assert_eq!(
            as_user(
                &jane,
                "POST",
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                &[],
                body.clone()
            )
            .await
            .code,
            403
        );
        let a = post("/apis/authorization.k8s.io/v1/subjectaccessreviews", body).await;
        assert_eq!(a.body["status"]["allowed"], true, "{}", a.text);
        let a = post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            json!({"spec": {"user": "x"}}),
        )
        .await;
        assert_eq!(a.code, 422);
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
        let a = as_user(
            &jane,
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            &[],
            body,
        )
        .await;
        assert!(
            a.body["status"]["resourceRules"]
                .as_array()
                .is_some_and(|r| !r.is_empty()),
            "{}",
            a.text
        );
        assert_eq!(a.body["status"]["incomplete"], false);
    });
}

#[test]
fn nobody_grants_more_than_they_have() {
    run(async {
        namespace("escalate").await;
        let g = "/apis/rbac.authorization.k8s.io/v1/namespaces/escalate";
        let role = |name: &str, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules});
        let bind = |role: &str| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"generateName": "b-"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "local"}]})
        };
        let local = UserInfo::new("local", &[]);
        assert_eq!(
            post(&format!("{g}/rolebindings"), bind("admin")).await.code,
            201
        );
        let a = as_user(
            &local,
            "POST",
            &format!("{g}/roles"),
            &[],
            role(
                "ok",
                json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]),
            ),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        let a = as_user(
            &local,
            "POST",
            &format!("{g}/roles"),
            &[],
            role(
                "no",
                json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]),
            ),
        )
        .await;
        assert_eq!(a.code, 403, "{}", a.text);
        assert!(
            a.message()
                .contains("attempting to grant RBAC permissions not currently held"),
            "{}",
            a.message()
        );
        let a = as_user(
            &local,
            "POST",
            &format!("{g}/rolebindings"),
            &[],
            bind("cluster-admin"),
        )
        .await;
        assert_eq!(a.code, 403, "{}", a.text);
        let a = as_user(
            &local,
            "POST",
            &format!("{g}/rolebindings"),
            &[],
            bind("view"),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
    });
}

#[test]
fn nodes_touch_only_what_is_theirs() {
    run(async {
        namespace("nodes").await;
        let one = UserInfo::new("system:node:one", &["system:nodes"]);
        let node = |n: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": n}});
        let a = as_user(&one, "POST", "/api/v1/nodes", &[], node("two")).await;
        assert_eq!(a.code, 403, "{}", a.text);
        let a = as_user(&one, "POST", "/api/v1/nodes", &[], node("one")).await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert_eq!(
            a.body["spec"]["taints"],
            json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
        );
        let secret =
            |n: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": n}});
        for n in ["mine", "other"] {
            assert_eq!(
                post("/api/v1/namespaces/nodes/secrets", secret(n))
                    .await
                    .code,
                201
            );
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "s", "secret": {"secretName": "mine"}}]}});
        assert_eq!(post("/api/v1/namespaces/nodes/pods", pod).await.code, 201);
        assert_eq!(
            as_user(
                &one,
                "GET",
                "/api/v1/namespaces/nodes/secrets/mine",
                &[],
                Value::Null
            )
            .await
            .code,
            403,
            "not scheduled yet"
        );
        let bind = |n: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": n}});
        let a = post("/api/v1/namespaces/nodes/pods/p/binding", bind("one")).await;
        assert_eq!(
            (a.code, a.body["status"].as_str()),
            (201, Some("Success")),
            "{}",
            a.text
        );
        let a = post("/api/v1/namespaces/nodes/pods/p/binding", bind("two")).await;
        assert_eq!((a.code, a.reason()), (409, "Conflict"));
        assert!(
            a.message()
                .contains("pod p is already assigned to node \"one\""),
            "{}",
            a.message()
        );
        let p = get("/api/v1/namespaces/nodes/pods/p").await;
        assert_eq!(p.body["spec"]["nodeName"], "one");
        assert!(p.body["status"]["conditions"].as_array().is_some_and(|c| {
            c.iter()
                .any(|c| c["type"] == "PodScheduled" && c["status"] == "True")
        }));
        assert_eq!(
            as_user(
                &one,
                "GET",
                "/api/v1/namespaces/nodes/secrets/mine",
                &[],
                Value::Null
            )
            .await
            .code,
            200
        );
        assert_eq!(
            as_user(
                &one,
                "GET",
                "/api/v1/namespaces/nodes/secrets/other",
                &[],
                Value::Null
            )
            .await
            .code,
            403
        );
        let two = UserInfo::new("system:node:two", &["system:nodes"]);
        assert_eq!(
            as_user(
                &two,
                "DELETE",
                "/api/v1/namespaces/nodes/pods/p",
                &[],
                Value::Null
            )
            .await
            .code,
            403
        );
        let status = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Running"}});
        let patch = [("content-type", "application/merge-patch+json")];
        assert_eq!(
            as_user(
                &two,
                "PATCH",
                "/api/v1/namespaces/nodes/pods/p/status",
                &patch,
                status.clone()
            )
            .await
            .code,
            403
        );
        assert_eq!(
            as_user(
                &one,
                "PATCH",
                "/api/v1/namespaces/nodes/pods/p/status",
                &patch,
                status
            )
            .await
            .code,
            200
        );
    });
}

#[test]
fn a_rule_holds_from_the_moment_it_is_written_until_it_is_deleted() {
    run(async {
        namespace("fresh").await;
        for i in 0..20 {
            let u = UserInfo::new(&format!("user-{i}"), &[]);
            let path = "/api/v1/namespaces/fresh/configmaps";
            assert_eq!(as_user(&u, "GET", path, &[], Value::Null).await.code, 403);
            let b = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": format!("b{i}")},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": format!("user-{i}")}]});
            assert_eq!(
                post(
                    "/apis/rbac.authorization.k8s.io/v1/namespaces/fresh/rolebindings",
                    b
                )
                .await
                .code,
                201
            );
            assert_eq!(as_user(&u, "GET", path, &[], Value::Null).await.code, 200);
            assert_eq!(
                delete(
                    &format!(
                        "/apis/rbac.authorization.k8s.io/v1/namespaces/fresh/rolebindings/b{i}"
                    ),
                    Value::Null
                )
                .await
                .code,
                200
            );
            assert_eq!(as_user(&u, "GET", path, &[], Value::Null).await.code, 403);
        }
    });
}

#[test]
fn a_websocket_exec_needs_the_right_to_create() {
    run(async {
        namespace("wsexec").await;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(post("/api/v1/namespaces/wsexec/pods", pod).await.code, 201);
        let g = "/apis/rbac.authorization.k8s.io/v1/namespaces/wsexec";
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/exec"]}]});
        assert_eq!(post(&format!("{g}/roles"), role).await.code, 201);
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "r"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "reader"}]});
        assert_eq!(post(&format!("{g}/rolebindings"), binding).await.code, 201);
        let reader = UserInfo::new("reader", &[]);
        let h = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let a = as_user(
            &reader,
            "GET",
            "/api/v1/namespaces/wsexec/pods/p/exec?command=ls",
            &h,
            Value::Null,
        )
        .await;
        assert_eq!(
            (
                a.code,
                a.message().contains("cannot create resource \"pods/exec\"")
            ),
            (403, true),
            "{}",
            a.text
        );
    });
}
