//! What a node may do, and what it may not in whatever form it asks (node authorizer and NodeRestriction).

use crate::access::as_user;
use crate::credentials::grant;
use crate::harness::*;
use serde_json::{Value, json};
use skiff_apiserver::auth::UserInfo;

const APPLY: &str = "application/apply-patch+yaml";

fn node_user(name: &str) -> UserInfo {
    UserInfo::new(&format!("system:node:{name}"), &["system:nodes"])
}

/// Registers a node as itself; its uid.
async fn register(user: &UserInfo, name: &str) -> String {
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
async fn run_pod(namespace: &str, name: &str, node: &str, spec: Value) -> String {
    let mut pod = pod(name);
    for (k, v) in spec.as_object().expect("spec") {
        pod["spec"][k] = v.clone();
    }
    pod["spec"]["nodeName"] = node.into();
    let a = post(&format!("/api/v1/namespaces/{namespace}/pods"), pod).await;
    assert_eq!(a.code, 201, "{}", a.text);
    a.body["metadata"]["uid"].as_str().expect("uid").to_string()
}

async fn code(user: &UserInfo, method: &str, path: &str) -> u16 {
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

fn mirror(name: &str, node: &str, uid: &str) -> Value {
    let mut p = pod(name);
    p["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    p["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid, "controller": true}]);
    p["spec"]["nodeName"] = node.into();
    p
}

#[test]
fn a_node_makes_mirror_pods_of_its_own_that_open_nothing() {
    run(async {
        let ns = namespace("node-mirrors").await;
        let one = node_user("mirrors-1");
        let uid = register(&one, "mirrors-1").await;
        let pods = format!("{ns}/pods");
        let good = || mirror("m", "mirrors-1", &uid);
        let with = |pointer: &str, v: Value| {
            let mut p = good();
            let (parent, key) = pointer.rsplit_once('/').expect("a path");
            p.pointer_mut(parent).expect("there")[key] = v;
            p
        };
        let container = |v: Value| {
            let mut c = json!({"name": "c", "image": "i"});
            c.as_object_mut()
                .expect("map")
                .extend(v.as_object().expect("map").clone());
            c
        };
        let volume = |v: Value| {
            let mut all = json!({"name": "v"});
            all.as_object_mut()
                .expect("map")
                .extend(v.as_object().expect("map").clone());
            with("/spec/volumes", json!([all]))
        };
        let source = |v: Value| volume(json!({"projected": {"sources": [v]}}));
        let owner = |v: Value| {
            let mut o = good()["metadata"]["ownerReferences"][0].clone();
            o.as_object_mut()
                .expect("map")
                .extend(v.as_object().expect("map").clone());
            with("/metadata/ownerReferences", json!([o]))
        };
        let env = |v: Value| {
            with(
                "/spec/containers",
                json!([container(json!({"env": [{"name": "E", "valueFrom": v}]}))]),
            )
        };
        let from = |v: Value| container(json!({"envFrom": [v]}));
        for (what, p) in [
            ("no annotation", with("/metadata/annotations", json!({}))),
            ("another node", with("/spec/nodeName", json!("mirrors-2"))),
            ("no owner", with("/metadata/ownerReferences", json!([]))),
            ("another owner", owner(json!({"name": "mirrors-2"}))),
            ("owner of another kind", owner(json!({"kind": "Pod"}))),
            ("another uid", owner(json!({"uid": "x"}))),
            ("no controller", owner(json!({"controller": false}))),
            ("blocking owner", owner(json!({"blockOwnerDeletion": true}))),
            (
                "account",
                with("/spec/serviceAccountName", json!("default")),
            ),
            (
                "deprecated account",
                with("/spec/serviceAccount", json!("default")),
            ),
            (
                "pull secret",
                with("/spec/imagePullSecrets", json!([{"name": "s"}])),
            ),
            ("secret", volume(json!({"secret": {"secretName": "s"}}))),
            ("config map", volume(json!({"configMap": {"name": "s"}}))),
            (
                "claim",
                volume(json!({"persistentVolumeClaim": {"claimName": "s"}})),
            ),
            (
                "ephemeral claim",
                volume(
                    json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}),
                ),
            ),
            (
                "csi",
                volume(json!({"csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}})),
            ),
            (
                "rbd",
                volume(
                    json!({"rbd": {"image": "i", "monitors": ["m"], "secretRef": {"name": "s"}}}),
                ),
            ),
            ("projected secret", source(json!({"secret": {"name": "s"}}))),
            (
                "projected config map",
                source(json!({"configMap": {"name": "s"}})),
            ),
            (
                "projected token",
                source(json!({"serviceAccountToken": {"path": "t"}})),
            ),
            (
                "projected trust",
                source(json!({"clusterTrustBundle": {"name": "s", "path": "t"}})),
            ),
            (
                "env secret",
                env(json!({"secretKeyRef": {"name": "s", "key": "k"}})),
            ),
            (
                "env config map",
                env(json!({"configMapKeyRef": {"name": "s", "key": "k"}})),
            ),
            (
                "envFrom secret",
                with(
                    "/spec/containers",
                    json!([from(json!({"secretRef": {"name": "s"}}))]),
                ),
            ),
            (
                "envFrom config map",
                with(
                    "/spec/containers",
                    json!([from(json!({"configMapRef": {"name": "s"}}))]),
                ),
            ),
            (
                "init container",
                with(
                    "/spec/initContainers",
                    json!([{"name": "i", "image": "i", "envFrom": [{"secretRef": {"name": "s"}}]}]),
                ),
            ),
        ] {
            for query in ["", "?dryRun=All"] {
                let a = as_user(&one, "POST", &format!("{pods}{query}"), &[], p.clone()).await;
                // A token without an account is no pod at all.
                let code = if what == "projected token" { 422 } else { 403 };
                assert_eq!(a.code, code, "{what}{query}: {}", a.text);
            }
        }
        // Other ways to make one.
        let path = format!("{pods}/m");
        assert_eq!(as_user(&one, "PUT", &path, &[], good()).await.code, 403);
        let apply = format!("{path}?fieldManager=node&force=true");
        let a = as_user(&one, "PATCH", &apply, &[("content-type", APPLY)], good()).await;
        assert_eq!(a.code, 403, "{}", a.text);
        let a = as_user(&one, "POST", &pods, &[], good()).await;
        assert_eq!(a.code, 201, "{}", a.text);
        // What it made gets nothing more, from nobody.
        let more = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "envFrom": [{"secretRef": {"name": "s"}}]}]}});
        let patch = [("content-type", STRATEGIC)];
        let ephemeral = format!("{path}/ephemeralcontainers");
        assert_eq!(
            as_user(&one, "PATCH", &ephemeral, &patch, more.clone())
                .await
                .code,
            403
        );
        let a = ask("PATCH", &ephemeral, &patch, more.to_string()).await;
        assert_eq!(a.code, 422, "{}", a.text);
        for (sub, method) in [
            ("", "PATCH"),
            ("/resize", "PATCH"),
            ("/binding", "POST"),
            ("/exec", "POST"),
        ] {
            assert_eq!(
                code(&one, method, &format!("{path}{sub}")).await,
                403,
                "{sub}"
            );
        }
        // Even one that an administrator made with a reference opens nothing to the node.
        let a = post(
            &format!("{ns}/configmaps"),
            json!({"metadata": {"name": "s"}}),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        let mut p = volume(json!({"configMap": {"name": "s"}}));
        p["metadata"]["name"] = "m2".into();
        assert_eq!(post(&pods, p).await.code, 201);
        assert_eq!(code(&one, "GET", &format!("{ns}/configmaps/s")).await, 403);
        assert_eq!(code(&one, "GET", &format!("{pods}/m2")).await, 200);
        // Mirror pods refer to no secret and account, whoever makes them.
        for p in [
            volume(json!({"secret": {"secretName": "s"}})),
            source(json!({"serviceAccountToken": {"path": "t"}})),
            with("/spec/serviceAccountName", json!("default")),
        ] {
            let a = post(&pods, p).await;
            assert!(matches!(a.code, 403 | 422), "{}", a.text);
        }
    });
}

#[test]
fn a_pod_neither_becomes_nor_ceases_to_be_a_mirror_pod() {
    run(async {
        let ns = namespace("node-marks").await;
        let one = node_user("marks-1");
        let uid = register(&one, "marks-1").await;
        run_pod("node-marks", "plain", "marks-1", json!({})).await;
        let a = as_user(
            &one,
            "POST",
            &format!("{ns}/pods"),
            &[],
            mirror("mirror", "marks-1", &uid),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        let mark =
            |v: Value| json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": v}}});
        for (name, v) in [
            ("plain", json!("x")),
            ("mirror", Value::Null),
            ("mirror", json!("y")),
        ] {
            for sub in ["", "/status"] {
                let path = format!("{ns}/pods/{name}{sub}");
                let a = patch(MERGE, &path, mark(v.clone())).await;
                assert_eq!(a.code, 422, "{path}: {}", a.text);
            }
            let path = format!("{ns}/pods/{name}/status");
            let a = as_user(&one, "PATCH", &path, &[("content-type", MERGE)], mark(v)).await;
            assert_eq!(a.code, 422, "{path}: {}", a.text);
        }
        let mut unbound = mirror("unbound", "marks-1", &uid);
        unbound["spec"]
            .as_object_mut()
            .expect("map")
            .remove("nodeName");
        assert_eq!(post(&format!("{ns}/pods"), unbound).await.code, 422);
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
fn a_node_changes_its_own_node_but_for_what_brings_it_pods() {
    run(async {
        let (one, two) = (node_user("self-1"), node_user("self-2"));
        for (what, n) in [
            (
                "label",
                json!({"metadata": {"name": "self-1", "labels": {"node-role.kubernetes.io/control-plane": ""}}}),
            ),
            (
                "restricted",
                json!({"metadata": {"name": "self-1", "labels": {"a.node-restriction.kubernetes.io/b": ""}}}),
            ),
            (
                "owner",
                json!({"metadata": {"name": "self-1", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]}}),
            ),
            ("another", json!({"metadata": {"name": "self-2"}})),
            ("generated", json!({"metadata": {"generateName": "self-"}})),
        ] {
            let a = as_user(&one, "POST", "/api/v1/nodes", &[], n).await;
            assert_eq!(a.code, 403, "{what}: {}", a.text);
        }
        let first = json!({"metadata": {"name": "self-1", "labels": {"kubernetes.io/hostname": "h", "team": "a"}}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
        let a = as_user(&one, "POST", "/api/v1/nodes", &[], first).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let node = a.body.clone();
        register(&two, "self-2").await;
        let path = "/api/v1/nodes/self-1";
        let changes = [
            (
                "label",
                json!({"metadata": {"labels": {"node-role.kubernetes.io/x": ""}}}),
            ),
            ("taints gone", json!({"spec": {"taints": null}})),
            (
                "taint",
                json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}),
            ),
            (
                "owner",
                json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]}}),
            ),
        ];
        for (what, change) in &changes {
            for query in ["", "?dryRun=All"] {
                let a = as_user(
                    &one,
                    "PATCH",
                    &format!("{path}{query}"),
                    &[("content-type", MERGE)],
                    change.clone(),
                )
                .await;
                assert_eq!(a.code, 403, "{what}: {}", a.text);
            }
            let mut whole = node.clone();
            for (k, v) in change.as_object().expect("map") {
                for (k2, v2) in v.as_object().expect("map") {
                    whole[k][k2] = v2.clone();
                }
            }
            let a = as_user(&one, "PUT", path, &[], whole.clone()).await;
            assert_eq!(a.code, 403, "{what}: {}", a.text);
            if *what == "label" {
                let a = as_user(&one, "PUT", &format!("{path}/status"), &[], whole).await;
                assert_eq!(a.code, 403, "{what} through status: {}", a.text);
            }
        }
        let label = json!([{"op": "add", "path": "/metadata/labels/k8s.io~1x", "value": ""}]);
        let a = as_user(&one, "PATCH", path, &[("content-type", JSON_PATCH)], label).await;
        assert_eq!(a.code, 403, "{}", a.text);
        let apply = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "self-1", "labels": {"k8s.io/x": ""}}});
        let a = as_user(
            &one,
            "PATCH",
            &format!("{path}?fieldManager=n&force=true"),
            &[("content-type", APPLY)],
            apply,
        )
        .await;
        assert_eq!(a.code, 403, "{}", a.text);
        let mine =
            json!({"metadata": {"labels": {"team": "b", "topology.kubernetes.io/zone": "z"}}});
        let a = as_user(
            &one,
            "PATCH",
            path,
            &[("content-type", MERGE)],
            mine.clone(),
        )
        .await;
        assert_eq!(a.code, 200, "{}", a.text);
        // Another's, in every way; and the reads of it.
        for p in ["/api/v1/nodes/self-1", "/api/v1/nodes/self-1/status"] {
            let a = as_user(&two, "PATCH", p, &[("content-type", MERGE)], mine.clone()).await;
            assert_eq!(a.code, 403, "{}", a.text);
        }
        for p in [
            "/api/v1/nodes",
            "/api/v1/nodes/self-1",
            "/api/v1/nodes?watch=1",
            "/api/v1/nodes?fieldSelector=metadata.name%3Dself-1",
            "/api/v1/nodes/self-2/proxy/",
        ] {
            assert_eq!(code(&two, "GET", p).await, 403, "{p}");
        }
        for p in [
            "/api/v1/nodes/self-2",
            "/api/v1/nodes?fieldSelector=metadata.name%3Dself-2",
        ] {
            assert_eq!(code(&two, "GET", p).await, 200, "{p}");
        }
        for p in [
            "/api/v1/nodes/self-1",
            "/api/v1/nodes/self-2",
            "/api/v1/nodes",
        ] {
            assert_eq!(code(&two, "DELETE", p).await, 403, "{p}");
        }
        for n in ["self-1", "self-2"] {
            assert_eq!(
                delete(&format!("/api/v1/nodes/{n}"), Value::Null)
                    .await
                    .code,
                200
            );
        }
    });
}

#[test]
fn a_node_has_one_lease_and_one_csi_node() {
    run(async {
        let (one, two) = (node_user("lease-1"), node_user("lease-2"));
        let _ = post(
            "/api/v1/namespaces",
            json!({"metadata": {"name": "kube-node-lease"}}),
        )
        .await;
        for (base, spec) in [
            (
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
                json!({"leaseDurationSeconds": 40}),
            ),
            ("/apis/storage.k8s.io/v1/csinodes", json!({"drivers": []})),
        ] {
            let o = |n: &str| json!({"metadata": {"name": n}, "spec": spec});
            let a = as_user(&one, "POST", base, &[], o("lease-1")).await;
            assert_eq!(a.code, 201, "{}", a.text);
            assert_eq!(
                as_user(&one, "POST", base, &[], o("lease-2")).await.code,
                403
            );
            let generated = json!({"metadata": {"generateName": "lease-"}, "spec": spec});
            assert_eq!(as_user(&one, "POST", base, &[], generated).await.code, 403);
            let path = format!("{base}/lease-1");
            let label = json!({"metadata": {"labels": {"a": "b"}}});
            for (kind, body) in [
                (MERGE, label.clone()),
                (STRATEGIC, label.clone()),
                (JSON_PATCH, json!([])),
            ] {
                assert_eq!(
                    as_user(&two, "PATCH", &path, &[("content-type", kind)], body)
                        .await
                        .code,
                    403,
                    "{kind}"
                );
            }
            let apply = format!("{path}?fieldManager=x&force=1");
            assert_eq!(
                as_user(
                    &two,
                    "PATCH",
                    &apply,
                    &[("content-type", APPLY)],
                    label.clone()
                )
                .await
                .code,
                403
            );
            let absent = format!("{base}/lease-3");
            assert_eq!(
                as_user(&two, "PUT", &absent, &[], o("lease-3")).await.code,
                403,
                "PUT that creates"
            );
            for method in ["GET", "PUT", "DELETE"] {
                assert_eq!(code(&two, method, &path).await, 403, "{method}");
            }
            for method in ["GET", "DELETE"] {
                assert_eq!(code(&one, method, base).await, 403, "{method} of all");
            }
            assert_eq!(
                as_user(&one, "PATCH", &path, &[("content-type", MERGE)], label)
                    .await
                    .code,
                200
            );
            assert_eq!(code(&one, "GET", &path).await, 200);
            assert_eq!(code(&one, "DELETE", &path).await, 200);
        }
        let base = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
        let a = as_user(
            &one,
            "POST",
            base,
            &[],
            json!({"metadata": {"name": "lease-1"}}),
        )
        .await;
        assert_eq!(a.code, 403, "{}", a.text);
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
