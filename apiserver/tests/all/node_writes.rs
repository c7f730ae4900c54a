//! What a node may write, and what it may not in whatever form (NodeRestriction and its like).

use crate::access::as_user;
use crate::harness::*;
use crate::nodes::{code, node_user, register, run_pod};
use serde_json::{Value, json};

const APPLY: &str = "application/apply-patch+yaml";

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
        let a = post(&format!("{ns}/pods"), pod("binds")).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let binding = json!({"metadata": {"name": "binds", "annotations": {"kubernetes.io/config.mirror": "x"}}, "target": {"kind": "Node", "name": "marks-1"}});
        let a = post(&format!("{ns}/pods/binds/binding"), binding).await;
        assert_eq!(a.code, 422, "{}", a.text);
        let mut unbound = mirror("unbound", "marks-1", &uid);
        unbound["spec"]
            .as_object_mut()
            .expect("map")
            .remove("nodeName");
        assert_eq!(post(&format!("{ns}/pods"), unbound).await.code, 422);
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
