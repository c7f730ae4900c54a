//! The RuntimeService as the kubelet uses it.

use super::harness::*;
use k8s_cri::v1::*;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_logs_takes_commands_and_ends_with_its_code() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mut events = n.client.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let pod = n.sandbox("web");
    let sandbox = n.run(&pod).await;
    assert_eq!(sandbox.len(), 64);
    let script = "echo out; echo err >&2; hostname; id -u; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let id = n.sh(&sandbox, &pod, "main", script).await;
    assert_eq!(n.out(&id, "echo $FROM_IMAGE $HOSTNAME; cat /etc/resolv.conf | head -1; ps | wc -l").await, "1 web\nsearch svc\n6");
    assert_eq!(n.exec(&id, "exit 3").await.exit_code, 3);
    n.client.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 10 }).await.unwrap();
    let s = n.status(&id).await;
    assert_eq!((s.exit_code, s.reason.as_str(), s.state), (7, "Error", ContainerState::ContainerExited as i32));
    assert!(s.started_at > s.created_at && s.finished_at > s.started_at);
    let log = n.log("web", "main");
    for line in ["stdout F out\n", "stderr F err\n", "stdout F web\n", "stdout F 0\n"] {
        assert!(log.contains(line), "{line:?} in {log}");
    }
    n.client.remove_container(RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
    n.client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await.unwrap();
    n.client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await.unwrap();
    let mut seen = Vec::new();
    while let Ok(Ok(Some(e))) = tokio::time::timeout(Duration::from_millis(200), events.message()).await {
        seen.push((e.container_id == id, e.container_event_type().as_str_name().to_string()));
    }
    let names: Vec<String> = seen.into_iter().map(|(c, n)| format!("{} {n}", if c { "container" } else { "sandbox" })).collect();
    assert_eq!(
        names,
        [
            "sandbox CONTAINER_CREATED_EVENT",
            "sandbox CONTAINER_STARTED_EVENT",
            "container CONTAINER_CREATED_EVENT",
            "container CONTAINER_STARTED_EVENT",
            "container CONTAINER_STOPPED_EVENT",
            "container CONTAINER_DELETED_EVENT",
            "sandbox CONTAINER_STOPPED_EVENT",
            "sandbox CONTAINER_DELETED_EVENT",
        ]
    );
    drop(events);
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_there_is_a_start_error_with_upstream_s_words() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("bad");
    let sandbox = n.run(&pod).await;
    let id = n.create(&sandbox, &pod, ContainerConfig { command: vec!["foo".into()], ..shell("bad", "") }).await;
    let e = n.start_container(&id).await.unwrap_err();
    assert!(e.message().contains("exec: \"foo\": executable file not found in $PATH"), "{e}");
    let s = n.status(&id).await;
    assert_eq!((s.exit_code, s.reason.as_str()), (128, "StartError"));
    assert!(s.message.contains("executable file not found"));
    let r = n.client.create_container(CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(ContainerConfig { image: Some(ImageSpec { image: "nowhere:1".into(), ..Default::default() }), ..shell("x", "") }),
        sandbox_config: None,
    });
    assert_eq!(r.await.unwrap_err().code(), tonic::Code::NotFound);
    n.finish().await;
}
