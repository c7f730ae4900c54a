use super::*;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

fn supervisor() -> Supervisor {
    Supervisor::new(CancellationToken::new())
}

/// Paused time moves when everything waits, so this lets the others do all they can within `d`.
async fn pass(d: Duration) {
    tokio::time::sleep(d).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_is_started_again_and_is_well_once_it_has_settled() {
    let s = supervisor();
    let runs = Arc::new(AtomicU32::new(0));
    let r = runs.clone();
    s.spawn("kubelet/pleg", move || {
        let n = r.fetch_add(1, SeqCst);
        async move {
            if n < 2 {
                panic!("poison {n}");
            }
            std::future::pending::<Result<(), Infallible>>().await
        }
    });
    pass(Duration::from_millis(100)).await;
    let why = s.well("kubelet/").unwrap_err();
    assert!(
        why.contains("kubelet/pleg") && why.contains("poison 0"),
        "{why}"
    );
    assert!(s.well("scheduler").is_ok(), "others are not concerned");
    pass(Duration::from_secs(1)).await;
    assert_eq!(runs.load(SeqCst), 3);
    assert!(s.well("kubelet/").is_err(), "not settled yet");
    pass(SETTLED).await;
    assert!(s.well("kubelet/").is_ok());
    assert_eq!(s.health()[0].restarts, 2);
    assert!(
        s.metrics()
            .contains("skiff_task_restarts_total{task=\"kubelet/pleg\"} 2\n")
    );
    assert!(s.failure().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_before_the_stop_has_failed() {
    let s = supervisor();
    s.spawn("x", || async { Ok::<(), Infallible>(()) });
    pass(Duration::from_millis(1)).await;
    assert!(s.well("x").is_err());
    s.stop().cancel();
    s.ended().await;
    assert!(s.well("x").is_ok(), "what was stopped is no fault");
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_the_task_is_made_is_caught_too() {
    let s = supervisor();
    s.spawn("x", || -> std::future::Pending<Result<(), Infallible>> {
        panic!("early")
    });
    pass(Duration::from_millis(1)).await;
    assert!(s.well("x").unwrap_err().contains("early"));
}

#[tokio::test(start_paused = true)]
async fn transient_work_ends_with_ok_and_leaves_no_entry() {
    let s = supervisor();
    let n = Arc::new(AtomicU32::new(0));
    for key in ["a", "b"] {
        let n = n.clone();
        s.spawn_transient("pod", key, move || {
            let first = n.fetch_add(1, SeqCst) == 0;
            async move { if first { Err("once") } else { Ok(()) } }
        });
    }
    pass(Duration::from_millis(1)).await;
    assert_eq!(s.health()[0].degraded, ["a: once"]);
    assert!(
        s.well("pod").is_ok(),
        "one of many does not make the group unwell"
    );
    pass(Duration::from_secs(1)).await;
    assert_eq!(
        s.health(),
        [Health {
            group: "pod",
            fault: Ok(()),
            degraded: Vec::new(),
            restarts: 1
        }],
        "the restarts are still counted"
    );
}

#[tokio::test]
async fn the_end_of_an_essential_task_is_everybodys_end() {
    type Run = fn() -> Result<(), String>;
    let runs: [(Run, &str); 3] = [
        (|| Err("disk gone".into()), "store: disk gone"),
        (|| panic!("oh"), "store panicked: oh"),
        (|| Ok(()), "store ended although nobody asked it to"),
    ];
    for (run, said) in runs {
        let s = supervisor();
        s.spawn_essential("store", async move { run() });
        s.stop().cancelled().await;
        assert_eq!(s.failure().as_deref(), Some(said));
        let t = supervisor();
        t.spawn_essential_thread("store", run).unwrap();
        t.stop().cancelled().await;
        assert_eq!(t.failure().as_deref(), Some(said));
        assert!(t.well("store").is_err());
    }
}

#[tokio::test]
async fn an_essential_task_may_finish_its_work_after_the_stop() {
    let s = supervisor();
    let stop = s.stop().clone();
    s.spawn_essential("store", async move {
        stop.cancelled().await;
        tokio::task::yield_now().await;
        Ok::<(), Infallible>(())
    });
    s.stop().cancel();
    s.ended().await;
    assert!(s.failure().is_none());
    assert!(s.health().is_empty());
}
