//! Admission: namespaces, service accounts, priorities, limits, quotas, classes.

use crate::harness::*;
use serde_json::{Value, json};

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

fn pod(name: &str, resources: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

#[test]
fn objects_need_a_living_namespace() {
    run(async {
        let cm = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}});
        let a = post("/api/v1/namespaces/nowhere/configmaps", cm.clone()).await;
        assert_eq!(
            (a.code, a.message()),
            (404, "namespaces \"nowhere\" not found")
        );
        namespace("ending").await;
        let a = delete("/api/v1/namespaces/ending", Value::Null).await;
        assert_eq!(
            (a.code, a.body["status"]["phase"].as_str()),
            (200, Some("Terminating")),
            "{}",
            a.text
        );
        let a = post("/api/v1/namespaces/ending/configmaps", cm).await;
        assert_eq!(a.code, 403);
        assert_eq!(
            a.message(),
            "configmaps \"x\" is forbidden: unable to create new content in namespace ending because it is being terminated"
        );
        assert_eq!(
            a.body["details"]["causes"][0]["reason"],
            "NamespaceTerminating"
        );
        for ns in ["default", "kube-system", "kube-public"] {
            let a = delete(&format!("/api/v1/namespaces/{ns}"), Value::Null).await;
            assert_eq!(
                (a.code, a.message()),
                (
                    403,
                    format!("namespaces {ns:?} is forbidden: this namespace may not be deleted")
                        .as_str()
                )
            );
        }
    });
}

#[test]
fn pods_get_an_account_tolerations_and_a_priority() {
    run(async {
        namespace("podadm").await;
        let a = post("/api/v1/namespaces/podadm/pods", pod("p", json!({}))).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let spec = &a.body["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        let volume = spec["volumes"][0]["name"].as_str().unwrap_or("");
        assert!(volume.starts_with("kube-api-access-"));
        assert_eq!(
            spec["containers"][0]["volumeMounts"][0],
            json!({"name": volume, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"})
        );
        assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            (&spec["priority"], &spec["preemptionPolicy"]),
            (&json!(0), &json!("PreemptLowerPriority"))
        );
        let mut p = pod("critical", json!({}));
        p["spec"]["priorityClassName"] = "system-node-critical".into();
        assert_eq!(
            post("/api/v1/namespaces/podadm/pods", p).await.body["spec"]["priority"],
            2_000_001_000
        );
        let mut p = pod("none", json!({}));
        p["spec"]["priorityClassName"] = "none".into();
        let a = post("/api/v1/namespaces/podadm/pods", p).await;
        assert_eq!(
            (a.code, a.message()),
            (
                403,
                "pods \"none\" is forbidden: no PriorityClass with name none was found"
            )
        );
        let mut p = pod("other", json!({}));
        p["spec"]["serviceAccountName"] = "robot".into();
        let a = post("/api/v1/namespaces/podadm/pods", p).await;
        assert_eq!(
            (a.code, a.message()),
            (
                403,
                "pods \"other\" is forbidden: error looking up service account podadm/robot: serviceaccount \"robot\" not found"
            )
        );
    });
}

#[test]
fn a_pod_waits_for_the_default_account_of_a_new_namespace() {
    run(async {
        let a = post(
            "/api/v1/namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}}),
        )
        .await;
        assert_eq!(a.code, 201);
        let creating = tokio::spawn(post("/api/v1/namespaces/late/pods", pod("p", json!({}))));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert!(!creating.is_finished());
        post(
            "/api/v1/namespaces/late/serviceaccounts",
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await;
        assert_eq!(creating.await.expect("task").code, 201);
    });
}

#[test]
fn limits_are_filled_in_and_kept() {
    run(async {
        namespace("limits").await;
        let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}}]}});
        let a = post("/api/v1/namespaces/limits/limitranges", range).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let a = post("/api/v1/namespaces/limits/pods", pod("p", json!({}))).await;
        assert_eq!(
            a.body["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}),
            "{}",
            a.text
        );
        let a = post(
            "/api/v1/namespaces/limits/pods",
            pod("big", json!({"limits": {"cpu": "2"}})),
        )
        .await;
        assert_eq!(
            (a.code, a.message()),
            (
                403,
                "pods \"big\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
            )
        );
    });
}

#[test]
fn quotas_count_exactly_also_for_those_who_come_together() {
    run(async {
        namespace("quota").await;
        let q = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "3", "requests.cpu": "1"}}});
        assert_eq!(
            post("/api/v1/namespaces/quota/resourcequotas", q)
                .await
                .code,
            201
        );
        let tasks: Vec<_> = (0..12)
            .map(|i| {
                tokio::spawn(async move {
                    let cm = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{i}")}});
                    post("/api/v1/namespaces/quota/configmaps", cm).await
                })
            })
            .collect();
        let mut made = 0;
        for t in tasks {
            let a = t.await.expect("task");
            match a.code {
                201 => made += 1,
                _ => assert!(a.message().contains("exceeded quota: q, requested: configmaps=1, used: configmaps=3, limited: configmaps=3"), "{}", a.text),
            }
        }
        assert_eq!(made, 3);
        let a = post("/api/v1/namespaces/quota/pods", pod("p", json!({}))).await;
        assert_eq!(
            (a.code, a.message()),
            (
                403,
                "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: c"
            )
        );
        assert_eq!(
            post(
                "/api/v1/namespaces/quota/pods",
                pod("p", json!({"requests": {"cpu": "600m"}}))
            )
            .await
            .code,
            201
        );
        let a = post(
            "/api/v1/namespaces/quota/pods",
            pod("r", json!({"requests": {"cpu": "600m"}})),
        )
        .await;
        assert_eq!(
            (a.code, a.message()),
            (
                403,
                "pods \"r\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
            )
        );
    });
}

#[test]
fn claims_get_the_default_class() {
    run(async {
        namespace("claims").await;
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "std", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "x.org/y"});
        assert_eq!(
            post("/apis/storage.k8s.io/v1/storageclasses", class)
                .await
                .code,
            201
        );
        let claim = |n: &str| json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": n}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        let a = post(
            "/api/v1/namespaces/claims/persistentvolumeclaims",
            claim("a"),
        )
        .await;
        assert_eq!(
            (a.code, a.body["spec"]["storageClassName"].as_str()),
            (201, Some("std")),
            "{}",
            a.text
        );
        let mut none = claim("b");
        none["spec"]["storageClassName"] = "".into();
        assert_eq!(
            post("/api/v1/namespaces/claims/persistentvolumeclaims", none)
                .await
                .body["spec"]["storageClassName"],
            ""
        );
    });
}
