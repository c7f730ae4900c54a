//! Panics in the kubelet's parts, injected into the real supervisor, manager and workers. The API is a closed door and
//! the runtime a socket that is not there: neither is needed to fail.

use super::*;
use crate::config::Config;
use crate::cri::Cri;
use crate::node::{Capacity, lease, sysctls};
use crate::pod::{manager, spec};
use crate::{cgroups, gc, images, objects, volumes};
use k8s_openapi::api::core::v1::{Pod, Service};
use skiff_client::{Informers, Recorder};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A kubelet that reaches nobody.
pub(crate) fn kubelet(dir: &std::path::Path) -> Arc<Kubelet> {
    let door = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<axum::body::Body>, _>(std::io::Error::other("closed"))
    });
    let client = kube::Client::new(door, "default");
    let stop = CancellationToken::new();
    let informers = Informers::new(client.clone(), Supervisor::new(stop.clone()));
    let mut config = Config::new("n", dir);
    config.cri_socket = dir.join("none.sock");
    let capacity = Capacity::default();
    let cri = Cri::new(&config.cri_socket);
    Arc::new(Kubelet {
        images: images::Images::new(cri.clone()),
        objects: objects::Objects::new(
            client.clone(),
            informers.supervisor().clone(),
            stop.clone(),
        ),
        volumes: volumes::Volumes::default(),
        tokens: volumes::tokens::Tokens::default(),
        recorder: Recorder::new(client.clone(), "kubelet", "n"),
        services: informers.cache::<Service>(),
        cgroups: cgroups::Cgroups::new(&config, &capacity).unwrap(),
        image_use: gc::LastUsed::default(),
        capacity,
        runtime_name: "skiff".into(),
        runtime_version: "0".into(),
        sysctls: sysctls::Allowed::default(),
        pressure: watch::channel(Default::default()).1,
        workers: parking_lot::Mutex::default(),
        pods: informers.cache::<Pod>(),
        client,
        informers,
        cri,
        config,
        stop,
    })
}

/// Waits until it holds; the test's own limit is the harness's.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn restarts(k: &Kubelet, group: &str) -> u64 {
    let health = k.supervisor().health();
    health
        .iter()
        .find(|h| h.group == group)
        .map_or(0, |h| h.restarts)
}

#[tokio::test]
async fn a_part_that_panics_is_started_again_and_meanwhile_the_node_gives_no_sign_of_life() {
    let dir = tempfile::tempdir().unwrap();
    let k = kubelet(dir.path());
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    keep(&k, "kubelet/events", move |k| {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        boxed(async move {
            assert!(run > 0, "the runtime sent a poisoned event");
            k.stop.cancelled().await;
        })
    });
    until(|| runs.load(Ordering::SeqCst) == 2).await;
    let why = lease::may_renew(&k).unwrap_err();
    assert!(
        why.contains("kubelet/events") && why.contains("a poisoned event"),
        "{why}"
    );
    assert_eq!(restarts(&k, "kubelet/events"), 1);
    assert!(
        k.supervisor()
            .metrics()
            .contains("skiff_task_up{task=\"kubelet/events\"} 0")
    );
    k.stop.cancel();
}

#[tokio::test]
async fn a_part_that_ends_unasked_counts_as_failed_and_one_that_was_stopped_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let k = kubelet(dir.path());
    keep(&k, "kubelet/images", |_| boxed(async {}));
    until(|| restarts(&k, "kubelet/images") > 0).await;
    assert!(lease::may_renew(&k).is_err());
    let dir = tempfile::tempdir().unwrap();
    let k = kubelet(dir.path());
    keep(&k, "kubelet/images", |k| {
        boxed(async move { k.stop.cancelled().await })
    });
    assert_eq!(lease::may_renew(&k), Ok(()));
    k.stop.cancel();
    k.supervisor().ended().await;
    assert_eq!(restarts(&k, "kubelet/images"), 0);
}

fn pod(name: &str, poisoned: bool) -> Arc<Pod> {
    let mut pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"containers": [{"name": "c"}]}}))
    .unwrap();
    if poisoned {
        let poison = (crate::pod::state::POISON.to_string(), String::new());
        pod.metadata.annotations = Some([poison].into());
    }
    Arc::new(pod)
}

#[tokio::test]
async fn a_pod_whose_worker_panics_leaves_the_others_and_the_node_alone() {
    let dir = tempfile::tempdir().unwrap();
    let k = kubelet(dir.path());
    manager::start(&k, pod("bad", true), false, None);
    manager::start(&k, pod("good", false), false, None);
    until(|| restarts(&k, "kubelet/pod") > 1).await;
    let health = k.supervisor().health();
    let pods = health.iter().find(|h| h.group == "kubelet/pod").unwrap();
    assert_eq!(pods.fault, Ok(()));
    assert_eq!(pods.degraded.len(), 1, "{pods:?}");
    assert!(
        pods.degraded[0].contains("ns/bad") && pods.degraded[0].contains("poison"),
        "{pods:?}"
    );
    assert_eq!(lease::may_renew(&k), Ok(()));
    let workers: Vec<String> = {
        let all = k.workers.lock();
        let mut names: Vec<String> = all
            .values()
            .map(|h| spec::name(&h.published.lock().pod).to_string())
            .collect();
        names.sort();
        names
    };
    assert_eq!(workers, ["bad", "good"]);
    k.stop.cancel();
}
