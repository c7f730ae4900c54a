//! status, scale, finalize, ephemeralcontainers, graceful deletion of pods.

use crate::harness::*;
use serde_json::{Value, json};

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[test]
fn status_and_spec_are_written_apart() {
    run(async {
        namespace("s-status").await;
        let all = "/apis/apps/v1/namespaces/s-status/deployments";
        let mut body = deployment();
        body["status"] = json!({"replicas": 9});
        let a = post(all, body).await;
        assert_eq!(
            (a.code, &a.body["metadata"]["generation"]),
            (201, &json!(1)),
            "{}",
            a.text
        );
        assert_ne!(a.body["status"]["replicas"], 9);
        let path = format!("{all}/d");
        let s = patch(
            MERGE,
            &format!("{path}/status"),
            json!({"metadata": {"annotations": {"deployment.kubernetes.io/revision": "1"}},
                "spec": {"replicas": 7}, "status": {"replicas": 2, "observedGeneration": 1}}),
        )
        .await;
        assert_eq!(
            (
                s.code,
                &s.body["spec"]["replicas"],
                &s.body["status"]["replicas"],
                &s.body["metadata"]["generation"]
            ),
            (200, &json!(2), &json!(2), &json!(1)),
            "{}",
            s.text
        );
        assert_eq!(
            s.body["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
            "1"
        );
        let u = patch(
            MERGE,
            &path,
            json!({"spec": {"replicas": 3}, "status": {"replicas": 0}}),
        )
        .await;
        assert_eq!(
            (
                &u.body["spec"]["replicas"],
                &u.body["status"]["replicas"],
                &u.body["metadata"]["generation"]
            ),
            (&json!(3), &json!(2), &json!(2)),
            "{}",
            u.text
        );
        assert_eq!(
            get(&format!("{path}/status")).await.body["kind"],
            "Deployment"
        );
        assert_eq!(get(&format!("{path}/nothing")).await.code, 404);
        assert_eq!(post(&format!("{path}/status"), json!({})).await.code, 405);
        let wrong = patch(
            MERGE,
            &path,
            json!({"spec": {"selector": {"matchLabels": {"app": "x"}}}}),
        )
        .await;
        assert_eq!(
            (wrong.code, wrong.reason()),
            (422, "Invalid"),
            "{}",
            wrong.text
        );
    });
}

#[test]
fn scale_is_a_view_of_replicas() {
    run(async {
        namespace("s-scale").await;
        let all = "/apis/apps/v1/namespaces/s-scale/deployments";
        post(all, deployment()).await;
        let path = format!("{all}/d/scale");
        let a = get(&path).await;
        assert_eq!(
            (
                &a.body["kind"],
                &a.body["spec"]["replicas"],
                &a.body["status"]["selector"]
            ),
            (&json!("Scale"), &json!(2), &json!("app=d")),
            "{}",
            a.text
        );
        let mut body = a.body.clone();
        body["spec"]["replicas"] = 5.into();
        let b = put(&path, body.clone()).await;
        assert_eq!(
            (b.code, &b.body["spec"]["replicas"]),
            (200, &json!(5)),
            "{}",
            b.text
        );
        assert_eq!(put(&path, body).await.code, 409);
        let c = patch(MERGE, &path, json!({"spec": {"replicas": 1}})).await;
        assert_eq!(
            (c.code, &c.body["spec"]["replicas"]),
            (200, &json!(1)),
            "{}",
            c.text
        );
        assert_eq!(
            patch(MERGE, &path, json!({"spec": {"replicas": -1}}))
                .await
                .code,
            422
        );
        assert_eq!(
            get(&format!("{all}/d")).await.body["metadata"]["generation"],
            3
        );
    });
}

#[test]
fn pods_on_nodes_are_deleted_gracefully() {
    run(async {
        let ns = namespace("s-grace").await;
        let mut p = pod("p");
        p["spec"]["nodeName"] = "n".into();
        let a = post(&format!("{ns}/pods"), p).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let path = format!("{ns}/pods/p");
        let a = delete(&path, Value::Null).await;
        assert_eq!(
            (a.code, &a.body["metadata"]["deletionGracePeriodSeconds"]),
            (200, &json!(30)),
            "{}",
            a.text
        );
        let again = delete(&path, json!({"gracePeriodSeconds": 60})).await;
        assert_eq!(again.code, 200);
        assert_eq!(
            get(&path).await.body["metadata"]["deletionGracePeriodSeconds"],
            30
        );
        delete(&path, json!({"gracePeriodSeconds": 5})).await;
        assert_eq!(
            get(&path).await.body["metadata"]["deletionGracePeriodSeconds"],
            5
        );
        delete(&path, json!({"gracePeriodSeconds": 0})).await;
        assert_eq!(get(&path).await.code, 404);
    });
}

#[test]
fn ephemeral_containers_are_added_to_a_running_pod() {
    run(async {
        let ns = namespace("s-debug").await;
        post(&format!("{ns}/pods"), pod("p")).await;
        let path = format!("{ns}/pods/p/ephemeralcontainers");
        let a = patch(
            STRATEGIC,
            &path,
            json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i"}]}}),
        )
        .await;
        assert_eq!(
            (a.code, &a.body["spec"]["ephemeralContainers"][0]["name"]),
            (200, &json!("d")),
            "{}",
            a.text
        );
        let a = patch(MERGE, &path, json!({"spec": {"ephemeralContainers": []}})).await;
        assert_eq!(a.code, 422, "{}", a.text);
    });
}
