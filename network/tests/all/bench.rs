//! Figures, printed and not judged: `cargo test -p skiff-network -- --ignored --nocapture bench`.

use crate::lab::Lab;
use std::time::Instant;

#[test]
#[ignore = "a benchmark: it prints and does not judge"]
fn bench_attach_and_detach() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|lab| async move {
        let network = lab.pod_network();
        let mut attach = Vec::new();
        let mut detach = Vec::new();
        for i in 0..50 {
            let netns = lab.pod_netns();
            let id = format!("bench{i}");
            let start = Instant::now();
            network
                .attach(&id, netns.try_clone().expect("dup"), &[])
                .await
                .expect("attach");
            attach.push(start.elapsed());
            let start = Instant::now();
            network.detach(&id).await.expect("detach");
            detach.push(start.elapsed());
        }
        attach.sort();
        detach.sort();
        println!(
            "attach: median {:?}, worst {:?}; detach: median {:?}, worst {:?}",
            attach[25], attach[49], detach[25], detach[49]
        );
        let start = Instant::now();
        let netns: Vec<_> = (0..20).map(|_| lab.pod_netns()).collect();
        println!("20 namespaces: {:?}", start.elapsed());
        let start = Instant::now();
        let all = netns.into_iter().enumerate().map(|(i, ns)| {
            let network = network.clone();
            async move { network.attach(&format!("par{i}"), ns, &[]).await }
        });
        for r in futures::future::join_all(all).await {
            r.expect("attach");
        }
        println!("20 attached at once: {:?}", start.elapsed());
    });
}
