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
