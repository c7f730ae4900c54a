//! kube::Client over the tower service: what every component in the process does.

use crate::harness::*;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use serde_json::json;
use skiff_apiserver::auth::UserInfo;

fn client() -> kube::Client {
    kube::Client::new(
        server().service(UserInfo::new(
            "system:kube-controller-manager",
            &["system:masters"],
        )),
        "default",
    )
}

#[test]
fn kube_reads_writes_watches_and_deletes() {
    run(async {
        namespace("k-client").await;
        let maps: Api<ConfigMap> = Api::namespaced(client(), "k-client");
        let list = maps.list(&ListParams::default()).await.expect("a list");
        let version = list.metadata.resource_version.expect("a version");
        let one: ConfigMap = serde_json::from_value(config_map("one")).expect("a config map");
        let made = maps
            .create(&PostParams::default(), &one)
            .await
            .expect("created");
        assert!(made.metadata.uid.is_some());
        let mut events = maps
            .watch(&WatchParams::default(), &version)
            .await
            .expect("a watch")
            .boxed();
        match events.try_next().await.expect("an event") {
            Some(WatchEvent::Added(o)) => assert_eq!(o.metadata.name.as_deref(), Some("one")),
            other => panic!("{other:?}"),
        }
        let patch = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"k": "v"}});
        let applied = maps
            .patch(
                "one",
                &PatchParams::apply("skiff").force(),
                &Patch::Apply(patch),
            )
            .await
            .expect("applied");
        assert_eq!(
            applied
                .data
                .unwrap_or_default()
                .get("k")
                .map(String::as_str),
            Some("v")
        );
        maps.delete("one", &DeleteParams::default())
            .await
            .expect("deleted");
        match maps.get("one").await {
            Err(kube::Error::Api(e)) => assert_eq!((e.code, e.reason.as_str()), (404, "NotFound")),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn kubelets_and_schedulers_ways_work() {
    run(async {
        namespace("k-kubelet").await;
        let nodes: Api<Node> = Api::all(client());
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "k-node"}})).expect("a node");
        nodes
            .create(&PostParams::default(), &node)
            .await
            .expect("a node");
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}], "capacity": {"cpu": "2"}}});
        let n = nodes
            .patch_status("k-node", &PatchParams::default(), &Patch::Strategic(status))
            .await
            .expect("patched");
        assert_eq!(
            n.status
                .and_then(|s| s.conditions)
                .unwrap_or_default()
                .len(),
            1
        );
        let pods: Api<Pod> = Api::namespaced(client(), "k-kubelet");
        let p: Pod = serde_json::from_value(pod("p")).expect("a pod");
        pods.create(&PostParams::default(), &p)
            .await
            .expect("a pod");
        let bound = post(
            "/api/v1/namespaces/k-kubelet/pods/p/binding",
            json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "k-node"}}),
        )
        .await;
        assert_eq!(bound.code, 201, "{}", bound.text);
        let mine = pods
            .list(&ListParams::default().fields("spec.nodeName=k-node"))
            .await
            .expect("a list");
        assert_eq!(mine.items.len(), 1);
        let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let p = pods
            .patch_status("p", &PatchParams::default(), &Patch::Strategic(status))
            .await
            .expect("patched");
        assert_eq!(p.status.and_then(|s| s.phase).as_deref(), Some("Running"));
        pods.delete("p", &DeleteParams::default())
            .await
            .expect("begun");
        assert!(
            pods.get("p")
                .await
                .expect("still there")
                .metadata
                .deletion_timestamp
                .is_some()
        );
        pods.delete(
            "p",
            &DeleteParams {
                grace_period_seconds: Some(0),
                ..DeleteParams::default()
            },
        )
        .await
        .expect("deleted");
        assert!(pods.get_opt("p").await.expect("an answer").is_none());
        nodes
            .delete("k-node", &DeleteParams::default())
            .await
            .expect("deleted");
    });
}

#[test]
fn controllers_ways_work() {
    run(async {
        namespace("k-controller").await;
        let all: Api<Deployment> = Api::namespaced(client(), "k-controller");
        let d: Deployment = serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}))
        .expect("a deployment");
        let mut d = all
            .create(&PostParams::default(), &d)
            .await
            .expect("created");
        // What a typed client read, it can write back; nothing changes.
        let same = all
            .replace("d", &PostParams::default(), &d)
            .await
            .expect("replaced");
        assert_eq!(same.metadata.resource_version, d.metadata.resource_version);
        d.status = serde_json::from_value(json!({"observedGeneration": 1, "replicas": 1})).ok();
        let new = all
            .replace_status("d", &PostParams::default(), &d)
            .await
            .expect("status");
        assert_eq!(new.status.and_then(|s| s.observed_generation), Some(1));
        let stale = all.replace_status("d", &PostParams::default(), &d).await;
        assert!(matches!(stale, Err(kube::Error::Api(e)) if e.code == 409));
        let scale = all.get_scale("d").await.expect("a scale");
        assert_eq!(scale.spec.and_then(|s| s.replicas), Some(1));
    });
}
