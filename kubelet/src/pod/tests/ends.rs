//! How pods that end before they began to run show it.

use super::*;

#[test]
fn a_container_behind_a_failed_init_container_never_ran_and_says_so() {
    let mut m = model(
        serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}],
        "initContainers": [{"name": "i"}, {"name": "j"}], "restartPolicy": "Never"}),
    );
    m.begin();
    m.exits("i-0", 1);
    assert_eq!(
        m.status(),
        "Failed [] i=exit 1/0 j=PodInitializing/0 a=PodInitializing/0 b=PodInitializing/0"
    );
}

#[test]
fn a_pod_that_is_evicted_while_it_initializes_leaves_its_containers_waiting() {
    let mut m = model(
        serde_json::json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}),
    );
    m.begin();
    m.happen(vec![Event::Evict {
        reason: "Evicted".into(),
        message: "low".into(),
        grace: Some(1),
        disruption: true,
    }]);
    assert!(
        m.status().starts_with("Failed") && m.status().ends_with("a=PodInitializing/0"),
        "{}",
        m.status()
    );
}

#[test]
fn a_container_that_may_have_run_counts_as_failed_when_nothing_is_known_of_it() {
    // Its init containers are done: the runtime may have lost it.
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}],
        "initContainers": [{"name": "i"}], "restartPolicy": "Never"}));
    m.broken = vec![("a".into(), pull_error())];
    m.begin();
    m.exits("i-0", 0);
    m.delete(1);
    assert!(m.status().contains("a=exit 137/0"), "{}", m.status());
    // Without init containers it is the same.
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
    m.broken = vec![("a".into(), pull_error())];
    m.begin();
    m.delete(1);
    assert!(m.status().contains("a=exit 137/0"), "{}", m.status());
}

#[test]
fn an_eviction_for_the_nodes_sake_is_told_as_a_disruption() {
    let evicted = |disruption| {
        let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
        m.begin();
        m.happen(vec![Event::Evict {
            reason: "Evicted".into(),
            message: "The node was low on resource: memory. ".into(),
            grace: Some(1),
            disruption,
        }]);
        let conditions = m.state.status.clone().unwrap().conditions.unwrap();
        conditions
            .into_iter()
            .find(|c| c.type_ == "DisruptionTarget")
            .map(|c| (c.status, c.reason.unwrap(), c.message.unwrap()))
    };
    assert_eq!(
        evicted(true),
        Some((
            "True".into(),
            "TerminationByKubelet".into(),
            "The node was low on resource: memory. ".into()
        ))
    );
    assert_eq!(evicted(false), None, "its own limits are its own doing");
}

#[test]
fn a_full_disk_takes_the_dead_containers_of_an_ended_pod_but_not_its_status() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}], "restartPolicy": "Never"}));
    m.begin();
    m.happen(vec![Event::Reclaim]);
    m.exits("a-0", 3);
    assert!(m.took().ends_with("clean up; remove a-0"));
    assert!(m.view.containers.is_empty());
    assert_eq!(m.status(), "Failed [Initialized] a=exit 3/0");
}

#[test]
fn a_pod_that_was_refused_is_still_told_so_by_the_next_kubelet() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
    let mut pod = (*m.state.pod).clone();
    pod.status = serde_json::from_value(
        serde_json::json!({"phase": "Failed", "reason": "SysctlForbidden", "message": "no"}),
    )
    .ok();
    m.state = PodState::new(Arc::new(pod), vec![], "skiff", m.now);
    m.begin();
    assert_eq!(m.status(), "Failed []");
    let status = m.state.status.clone().unwrap();
    assert_eq!(status.reason.as_deref(), Some("SysctlForbidden"));
    assert_eq!(status.message.as_deref(), Some("no"));
    assert_eq!(status.container_statuses, None);
}
