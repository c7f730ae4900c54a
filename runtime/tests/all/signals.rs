//! The signal that ends a container.

use super::harness::{Node, shell, skip};
use k8s_cri::v1::StopContainerRequest;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_stop_signal_goes_before_the_images_and_no_word_is_taken_for_one() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("signal");
    let sandbox = n.run(&pod).await;
    let script = "trap 'exit 7' USR1; trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let mut config = shell("main", script);
    let key = "io.kubernetes.container.stopSignal".to_string();
    config.annotations.insert(key.clone(), "SIGUSR1".into());
    let id = n.create(&sandbox, &pod, config.clone()).await;
    n.start_container(&id).await.unwrap();
    // The shell sets its traps before it says so.
    while !n.log("signal", "main").contains("up") {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    n.client
        .stop_container(StopContainerRequest {
            container_id: id.clone(),
            timeout: 10,
        })
        .await
        .unwrap();
    assert_eq!(n.status(&id).await.exit_code, 7);
    config.annotations.insert(key, "SIGNONE".into());
    config.metadata.as_mut().unwrap().name = "other".into();
    let refused = n
        .client
        .create_container(k8s_cri::v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(pod),
        })
        .await
        .unwrap_err();
    assert!(refused.message().contains("SIGNONE"), "{refused}");
    n.finish().await;
}
