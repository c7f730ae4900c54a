//! What a node may read, and what it may not in whatever form it asks (node authorizer).

use crate::access::as_user;
use crate::credentials::grant;
use crate::harness::*;
use serde_json::{Value, json};
use skiff_apiserver::auth::UserInfo;

pub fn node_user(name: &str) -> UserInfo {
    UserInfo::new(&format!("system:node:{name}"), &["system:nodes"])
}

/// Registers a node as itself; its uid.
pub async fn register(user: &UserInfo, name: &str) -> String {
    let a = as_user(
        user,
        "POST",
        "/api/v1/nodes",
        &[],
        json!({"metadata": {"name": name}}),
    )
    .await;
    assert_eq!(a.code, 201, "{}", a.text);
    a.body["metadata"]["uid"].as_str().expect("uid").to_string()
}

/// Makes a pod with this spec on a node; its uid.
pub async fn run_pod(namespace: &str, name: &str, node: &str, spec: Value) -> String {
    let mut pod = pod(name);
    for (k, v) in spec.as_object().expect("spec") {
        pod["spec"][k] = v.clone();
    }
    pod["spec"]["nodeName"] = node.into();
    let a = post(&format!("/api/v1/namespaces/{namespace}/pods"), pod).await;
    assert_eq!(a.code, 201, "{}", a.text);
    a.body["metadata"]["uid"].as_str().expect("uid").to_string()
}

pub async fn code(user: &UserInfo, method: &str, path: &str) -> u16 {
    as_user(user, method, path, &[], Value::Null).await.code
}

#[test]
fn a_node_reads_a_secret_by_one_name_through_a_pod_of_its_own() {
    run(async {
        let ns = namespace("node-reads").await;
        let (one, two) = (node_user("reads-1"), node_user("reads-2"));
        for kind in ["secrets", "configmaps"] {
            for n in ["mine", "other"] {
                let a = post(&format!("{ns}/{kind}"), json!({"metadata": {"name": n}})).await;
                assert_eq!(a.code, 201, "{}", a.text);
            }
        }
        let spec = json!({"volumes": [{"name": "s", "secret": {"secretName": "mine"}}, {"name": "c", "configMap": {"name": "mine"}}]});
        run_pod("node-reads", "p", "reads-1", spec).await;
        for kind in ["secrets", "configmaps"] {
            let all = format!("{ns}/{kind}");
            let by = "fieldSelector=metadata.name";
            assert_eq!(code(&one, "GET", &format!("{all}/mine")).await, 200);
            let a = as_user(&one, "GET", &format!("{all}?{by}%3Dmine"), &[], Value::Null).await;
            assert_eq!((a.code, a.names()), (200, vec!["mine"]), "{}", a.text);
            let a = as_user(
                &one,
                "GET",
                &format!("{all}?{by}%3Dmine&fieldSelector="),
                &[],
                Value::Null,
            )
            .await;
            assert_eq!((a.code, a.names()), (200, vec!["mine"]), "{}", a.text);
            for q in [
                String::new(),
                "?limit=1".into(),
                format!("?{by}%3Dother"),
                format!("?{by}!%3Dmine"),
                format!("?{by}%3Dmine,metadata.name%3Dother"),
                "?fieldSelector=metadata.namespace%3Dnode-reads".into(),
                "?labelSelector=metadata.name%3Dmine".into(),
                "?labelSelector=a%3Db".into(),
                format!("?fieldSelector=&{by}%3Dmine"),
                format!("?{by}%3Dother&{by}%3Dmine"),
                format!("?{by}%3D"),
                format!("?fieldSelector=type%3DOpaque&watch=0"),
                format!("?watch=true"),
                format!("?watch=true&{by}%3Dother"),
                format!("?watch=true&{by}!%3Dmine"),
            ] {
                assert_eq!(
                    code(&one, "GET", &format!("{all}{q}")).await,
                    403,
                    "{kind}{q}"
                );
            }
            // Not over all namespaces, not in another form, not by another node.
            for path in [
                format!("/api/v1/{kind}?{by}%3Dmine"),
                format!("/api/v1/{kind}"),
                format!("/api/v1/watch/{kind}"),
                format!("/api/v1/watch/namespaces/node-reads/{kind}"),
                format!("/api/v1/watch/namespaces/node-reads/{kind}/other"),
                format!("/api/v1/watch/namespaces/node-reads/{kind}?{by}%3Dmine"),
                format!("{all}/other"),
            ] {
                assert_eq!(code(&one, "GET", &path).await, 403, "{path}");
            }
            assert_eq!(code(&two, "GET", &format!("{all}/mine")).await, 403);
            assert_eq!(code(&two, "GET", &format!("{all}?{by}%3Dmine")).await, 403);
            for method in ["PUT", "PATCH", "DELETE"] {
                assert_eq!(code(&one, method, &format!("{all}/mine")).await, 403);
            }
            assert_eq!(
                code(&one, "DELETE", &format!("{all}?{by}%3Dmine")).await,
                403
            );
            assert_eq!(code(&one, "POST", &all).await, 403);
        }
        let a = as_user(
            &one,
            "GET",
            &format!("{ns}/secrets/other"),
            &[],
            Value::Null,
        )
        .await;
        assert!(
            a.message()
                .ends_with(": no relationship found between node 'reads-1' and this object"),
            "{}",
            a.message()
        );
        // It ends with the pod.
        let a = delete(&format!("{ns}/pods/p"), json!({"gracePeriodSeconds": 0})).await;
        assert_eq!(a.code, 200, "{}", a.text);
        assert_eq!(code(&one, "GET", &format!("{ns}/secrets/mine")).await, 403);
        assert_eq!(
            code(&one, "GET", &format!("{ns}/configmaps/mine")).await,
            403
        );
    });
}

#[test]
fn a_node_reads_claims_volumes_and_their_secrets_through_its_pods_alone() {
    run(async {
        let ns = namespace("node-claims").await;
        let (one, two) = (node_user("claims-1"), node_user("claims-2"));
        let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "claims-pv", "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}});
        let a = post(&format!("{ns}/persistentvolumeclaims"), claim).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let volume = json!({"metadata": {"name": "claims-pv"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": "node-claims", "name": "data"},
            "csi": {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": {"namespace": "node-claims", "name": "stage"}, "controllerPublishSecretRef": {"namespace": "node-claims", "name": "publish"}}}});
        let a = post("/api/v1/persistentvolumes", volume).await;
        assert_eq!(a.code, 201, "{}", a.text);
        for n in ["stage", "publish"] {
            let a = post(&format!("{ns}/secrets"), json!({"metadata": {"name": n}})).await;
            assert_eq!(a.code, 201, "{}", a.text);
        }
        let paths = [
            format!("{ns}/persistentvolumeclaims/data"),
            "/api/v1/persistentvolumes/claims-pv".into(),
            format!("{ns}/secrets/stage"),
        ];
        for p in &paths {
            assert_eq!(code(&one, "GET", p).await, 403, "{p}: no pod yet");
        }
        let spec =
            json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
        run_pod("node-claims", "p", "claims-1", spec).await;
        for p in &paths {
            assert_eq!(code(&one, "GET", p).await, 200, "{p}");
            assert_eq!(code(&two, "GET", p).await, 403, "{p}");
        }
        for p in [
            format!("{ns}/secrets/publish"),
            format!("{ns}/persistentvolumeclaims"),
            format!("{ns}/persistentvolumeclaims?fieldSelector=metadata.name%3Ddata"),
            "/api/v1/persistentvolumes".into(),
            "/api/v1/persistentvolumes?fieldSelector=metadata.name%3Dclaims-pv".into(),
        ] {
            assert_eq!(code(&one, "GET", &p).await, 403, "{p}");
        }
        // Of the claim's status only what a kubelet finds out.
        let patch = [("content-type", MERGE)];
        let status = format!("{ns}/persistentvolumeclaims/data/status");
        let size = json!({"status": {"capacity": {"storage": "2Gi"}}});
        let a = as_user(&one, "PATCH", &status, &patch, size.clone()).await;
        assert_eq!(a.code, 200, "{}", a.text);
        assert_eq!(
            as_user(&two, "PATCH", &status, &patch, size.clone())
                .await
                .code,
            403
        );
        for more in [
            json!({"status": {"phase": "Lost"}}),
            json!({"metadata": {"labels": {"a": "b"}}}),
            json!({"metadata": {"finalizers": ["a.b/c"]}}),
        ] {
            let a = as_user(&one, "PATCH", &status, &patch, more.clone()).await;
            assert_eq!(a.code, 403, "{more}: {}", a.text);
        }
        let claim = format!("{ns}/persistentvolumeclaims/data");
        assert_eq!(as_user(&one, "PATCH", &claim, &patch, size).await.code, 403);
    });
}

#[test]
fn a_node_touches_its_own_pods_and_no_others() {
    run(async {
        let ns = namespace("node-pods").await;
        let (one, nobody) = (node_user("pods-1"), node_user(""));
        run_pod("node-pods", "mine", "pods-1", json!({})).await;
        run_pod("node-pods", "theirs", "pods-2", json!({})).await;
        let a = post(&format!("{ns}/pods"), pod("unbound")).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let get = |path: String| {
            let one = one.clone();
            async move { as_user(&one, "GET", &path, &[], Value::Null).await }
        };
        let a = get(format!("{ns}/pods?fieldSelector=spec.nodeName%3Dpods-1")).await;
        assert_eq!((a.code, a.names()), (200, vec!["mine"]), "{}", a.text);
        let a = get("/api/v1/pods?fieldSelector=spec.nodeName%3Dpods-1".into()).await;
        assert_eq!((a.code, a.names()), (200, vec!["mine"]), "{}", a.text);
        assert_eq!(get(format!("{ns}/pods/mine")).await.code, 200);
        for path in [
            format!("{ns}/pods"),
            "/api/v1/pods".into(),
            format!("{ns}/pods?watch=1"),
            format!("{ns}/pods?fieldSelector=spec.nodeName%3Dpods-2"),
            format!("{ns}/pods?fieldSelector=spec.nodeName%3D"),
            format!("{ns}/pods?fieldSelector=spec.nodeName!%3Dpods-2"),
            format!("{ns}/pods?fieldSelector=&fieldSelector=spec.nodeName%3Dpods-1"),
            format!("{ns}/pods?labelSelector=spec.nodeName%3Dpods-1"),
            format!("{ns}/pods/theirs"),
            format!("{ns}/pods/unbound"),
            format!("{ns}/pods/mine/log"),
            "/api/v1/watch/pods?fieldSelector=spec.nodeName%3Dpods-1".into(),
        ] {
            assert_eq!(get(path.clone()).await.code, 403, "{path}");
        }
        let status = json!({"status": {"phase": "Running"}});
        let merge = [("content-type", MERGE)];
        let eviction = |n: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": n}});
        for n in ["theirs", "unbound"] {
            let path = format!("{ns}/pods/{n}");
            for who in [&one, &nobody] {
                assert_eq!(
                    as_user(
                        who,
                        "PATCH",
                        &format!("{path}/status"),
                        &merge,
                        status.clone()
                    )
                    .await
                    .code,
                    403
                );
                assert_eq!(code(who, "DELETE", &path).await, 403);
                assert_eq!(
                    code(who, "DELETE", &format!("{path}?dryRun=All")).await,
                    403
                );
                let a = as_user(who, "POST", &format!("{path}/eviction"), &[], eviction(n)).await;
                assert_eq!(a.code, 403, "{}", a.text);
            }
        }
        assert_eq!(
            code(
                &one,
                "DELETE",
                &format!("{ns}/pods?fieldSelector=spec.nodeName%3Dpods-1")
            )
            .await,
            403
        );
        let mine = format!("{ns}/pods/mine");
        let a = as_user(&one, "PATCH", &format!("{mine}/status"), &merge, status).await;
        assert_eq!(a.code, 200, "{}", a.text);
        let labels = json!({"metadata": {"labels": {"app": "other"}}});
        let a = as_user(&one, "PATCH", &format!("{mine}/status"), &merge, labels).await;
        assert_eq!(a.code, 403, "{}", a.text);
        // Rights that somebody gave nodes besides do not lift what NodeRestriction keeps.
        grant(
            "node-pods",
            "system:node:pods-1",
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]),
        )
        .await;
        let binding =
            json!({"metadata": {"name": "unbound"}, "target": {"kind": "Node", "name": "pods-1"}});
        let a = as_user(
            &one,
            "POST",
            &format!("{ns}/pods/unbound/binding"),
            &[],
            binding.clone(),
        )
        .await;
        assert_eq!(a.code, 403, "{}", a.text);
        let a = as_user(&one, "POST", &format!("{ns}/bindings"), &[], binding).await;
        assert_eq!(a.code, 403, "{}", a.text);
        let ephemeral = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i"}]}});
        let path = format!("{mine}/ephemeralcontainers");
        let a = as_user(
            &one,
            "PATCH",
            &path,
            &[("content-type", STRATEGIC)],
            ephemeral,
        )
        .await;
        assert_eq!(a.code, 403, "{}", a.text);
        assert_eq!(
            code(&one, "DELETE", &format!("{ns}/pods")).await,
            403,
            "a collection with others' pods"
        );
        let a = as_user(&one, "POST", &format!("{ns}/pods"), &[], pod("new")).await;
        assert_eq!(a.code, 403, "{}", a.text);
        assert_eq!(
            crate::harness::get(&format!("{ns}/pods/theirs")).await.code,
            200
        );
    });
}

#[test]
fn a_node_gets_tokens_for_its_pods_and_their_audiences() {
    run(async {
        let ns = namespace("node-tokens").await;
        let one = node_user("tokens-1");
        let volumes = json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]}}]});
        let mine = run_pod("node-tokens", "mine", "tokens-1", volumes).await;
        let theirs = run_pod("node-tokens", "theirs", "tokens-2", json!({})).await;
        let a = post(
            &format!("{ns}/serviceaccounts"),
            json!({"metadata": {"name": "other"}}),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        let path = format!("{ns}/serviceaccounts/default/token");
        let to = |name: &str, uid: &str| json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid});
        let asks = |path: String, spec: Value| {
            let one = one.clone();
            async move {
                let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
                as_user(&one, "POST", &path, &[], body).await
            }
        };
        for spec in [
            json!({"audiences": [], "boundObjectRef": to("mine", &mine)}),
            json!({"audiences": ["vault"], "boundObjectRef": to("mine", &mine)}),
        ] {
            let a = asks(path.clone(), spec).await;
            assert_eq!(a.code, 201, "{}", a.text);
        }
        for spec in [
            json!({"audiences": []}),
            json!({"audiences": [], "boundObjectRef": to("mine", "")}),
            json!({"audiences": [], "boundObjectRef": to("mine", &theirs)}),
            json!({"audiences": [], "boundObjectRef": to("theirs", &theirs)}),
            json!({"audiences": [], "boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "s", "uid": "u"}}),
            json!({"audiences": [], "boundObjectRef": {"kind": "Node", "apiVersion": "v1", "name": "tokens-1", "uid": "u"}}),
            json!({"audiences": ["elsewhere"], "boundObjectRef": to("mine", &mine)}),
            json!({"audiences": ["vault", "elsewhere"], "boundObjectRef": to("mine", &mine)}),
        ] {
            let a = asks(path.clone(), spec.clone()).await;
            assert_eq!(a.code, 403, "{spec}: {}", a.text);
        }
        let a = asks(
            path.clone(),
            json!({"audiences": [], "boundObjectRef": to("none", "u")}),
        )
        .await;
        assert_eq!(a.code, 404, "{}", a.text);
        let other = format!("{ns}/serviceaccounts/other/token");
        let a = asks(
            other,
            json!({"audiences": [], "boundObjectRef": to("mine", &mine)}),
        )
        .await;
        assert_eq!(
            a.code, 403,
            "none of its pods runs as that account: {}",
            a.text
        );
        // An administrator may open an audience to it.
        grant("node-tokens", "system:node:tokens-1", json!([{"verbs": ["request-serviceaccounts-token-audience"], "apiGroups": [""], "resources": ["elsewhere"], "resourceNames": ["default"]}])).await;
        let a = asks(
            path.clone(),
            json!({"audiences": ["elsewhere"], "boundObjectRef": to("mine", &mine)}),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
    });
}
