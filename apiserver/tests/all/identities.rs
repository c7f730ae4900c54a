//! Whom one may be taken for, and what rights on single names open.

use crate::access::as_user;
use crate::credentials::grant;
use crate::harness::*;
use crate::rights::role_writer;
use serde_json::{Value, json};
use skiff_apiserver::auth::UserInfo;

#[test]
fn impersonation_is_allowed_part_by_part() {
    run(async {
        let more = json!([
            {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["jane"]},
            {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"]},
            {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["sa"]},
            {"verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["uids"], "resourceNames": ["u1"]},
            {"verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/team"], "resourceNames": ["boats"]},
        ]);
        let user = role_writer("impersonator", more).await;
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let with = async |h: &[(&str, &str)]| as_user(&user, "POST", path, h, body.clone()).await;
        let jane = ("impersonate-user", "jane");
        let dev = ("impersonate-group", "dev");
        for ok in [
            vec![jane],
            vec![jane, dev],
            vec![
                jane,
                dev,
                ("impersonate-uid", "u1"),
                ("impersonate-extra-team", "boats"),
            ],
            vec![("impersonate-user", "system:serviceaccount:ns:sa")],
        ] {
            let a = with(&ok).await;
            assert_eq!(a.code, 201, "{ok:?}: {}", a.text);
            assert_eq!(a.body["status"]["userInfo"]["username"], ok[0].1);
        }
        for no in [
            vec![("impersonate-user", "john")],
            vec![("impersonate-user", "system:admin")],
            vec![("impersonate-user", "system:serviceaccount:ns:other")],
            vec![jane, ("impersonate-group", "system:masters")],
            vec![jane, dev, ("impersonate-group", "system:masters")],
            vec![jane, ("impersonate-group", "system:nodes")],
            vec![jane, ("impersonate-uid", "u2")],
            vec![
                jane,
                ("impersonate-extra-team", "boats"),
                ("impersonate-extra-team", "planes"),
            ],
            vec![jane, ("impersonate-extra-other", "boats")],
        ] {
            let a = with(&no).await;
            assert_eq!(a.code, 403, "{no:?}: {}", a.text);
        }
        for wrong in [
            vec![dev],
            vec![("impersonate-uid", "u1")],
            vec![("impersonate-extra-team", "boats")],
        ] {
            assert_eq!(with(&wrong).await.code, 500, "{wrong:?}");
        }
        // A name that cannot be read is no reason to go on as oneself.
        for (key, v) in [
            ("impersonate-user", &b"jan\xe9"[..]),
            ("impersonate-group", b"\xff"),
            ("impersonate-extra-team", b"\xff"),
        ] {
            use tower::ServiceExt;
            let mut r = http::Request::builder().method("GET").uri("/version");
            r = r.header("impersonate-user", "jane");
            let value = http::HeaderValue::from_bytes(v).expect("bytes");
            let r = r
                .header(key, value)
                .body(axum::body::Body::empty())
                .expect("request");
            let a = server()
                .service(UserInfo::new("boss", &["system:masters"]))
                .oneshot(r)
                .await
                .expect("infallible");
            assert!(
                key == "impersonate-user" && a.status() == 400 || a.status() == 400,
                "{key}: {}",
                a.status()
            );
        }
    });
}

#[test]
fn a_right_on_one_name_opens_lists_and_watches_of_that_name() {
    run(async {
        let ns = namespace("onename").await;
        for n in ["a", "b"] {
            assert_eq!(
                post(&format!("{ns}/configmaps"), config_map(n)).await.code,
                201
            );
        }
        grant("onename", "one-name", json!([{"verbs": ["get", "list", "watch", "deletecollection"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"]}])).await;
        let user = UserInfo::new("one-name", &[]);
        let all = format!("{ns}/configmaps");
        let a = as_user(
            &user,
            "GET",
            &format!("{all}?fieldSelector=metadata.name%3Da"),
            &[],
            Value::Null,
        )
        .await;
        assert_eq!((a.code, a.names()), (200, vec!["a"]), "{}", a.text);
        let watch = format!("{all}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Da");
        let r = http::Request::builder()
            .uri(watch)
            .body(axum::body::Body::empty())
            .expect("request");
        let r = tower::ServiceExt::oneshot(server().service(user.clone()), r)
            .await
            .expect("infallible");
        assert_eq!(r.status(), 200);
        for q in [
            "",
            "?fieldSelector=metadata.name%3Db",
            "?fieldSelector=metadata.name!%3Db",
            "?fieldSelector=metadata.name%3Da,metadata.name%3Db",
            "?watch=1",
        ] {
            assert_eq!(
                as_user(&user, "GET", &format!("{all}{q}"), &[], Value::Null)
                    .await
                    .code,
                403,
                "{q}"
            );
        }
        assert_eq!(
            as_user(&user, "DELETE", &all, &[], Value::Null).await.code,
            403
        );
        // A review of the same question answers the same.
        let review = |name: &str| json!({"spec": {"resourceAttributes": {"namespace": "onename", "verb": "list", "resource": "configmaps", "name": name}}});
        for (name, allowed) in [("a", true), ("", false)] {
            let a = as_user(
                &user,
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                &[],
                review(name),
            )
            .await;
            assert_eq!(a.body["status"]["allowed"], allowed, "{}", a.text);
        }
    });
}

#[test]
fn reviews_know_field_selectors_and_say_what_nodes_lack() {
    run(async {
        let node = UserInfo::new("system:node:reviewed", &["system:nodes"]);
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let ask = |selector: Value| {
            let node = node.clone();
            async move {
                let body = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "fieldSelector": selector}}});
                as_user(&node, "POST", path, &[], body).await
            }
        };
        for (selector, allowed) in [
            (json!({"rawSelector": "spec.nodeName=reviewed"}), true),
            (
                json!({"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["reviewed"]}]}),
                true,
            ),
            (json!({"rawSelector": "spec.nodeName!=reviewed"}), false),
            (
                json!({"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["reviewed", "x"]}]}),
                false,
            ),
            (
                json!({"requirements": [{"key": "spec.nodeName", "operator": "NotIn", "values": ["reviewed"]}]}),
                false,
            ),
            (Value::Null, false),
        ] {
            let a = ask(selector.clone()).await;
            assert_eq!(
                (a.code, &a.body["status"]["allowed"]),
                (201, &json!(allowed)),
                "{selector}: {}",
                a.text
            );
        }
        let both = json!({"rawSelector": "a=b", "requirements": [{"key": "a", "operator": "In", "values": ["b"]}]});
        assert_eq!(ask(both).await.code, 422);
        assert_eq!(ask(json!({})).await.code, 422);
    });
}
