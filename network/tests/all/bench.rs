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
        }
        for i in 0..50 {
            let start = Instant::now();
            network.detach(&format!("bench{i}")).await.expect("detach");
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

#[test]
#[ignore = "a benchmark: it prints and does not judge"]
fn bench_services() {
    use serde_json::json;
    use skiff_client::ObjectKey;
    use skiff_network::proxy::ProxyConfig;
    use skiff_network::proxy::plan::{Node, plan};
    use skiff_network::proxy::program::Programmer;
    use skiff_network::proxy::rules::Rules;
    use std::sync::Arc;
    let Some(lab) = Lab::new() else { return };
    lab.run(|_| async move {
        let node = Node { name: "n1".into(), cluster_dns: None };
        let make = |i: u32, ends: &[u32]| {
            let service = serde_json::from_value(json!({"metadata": {"name": format!("s{i}"), "namespace": "d"},
                "spec": {"clusterIP": format!("10.43.{}.{}", i / 250, i % 250 + 1), "ports": [{"port": 80}]}})).expect("service");
            let ends: Vec<_> = ends.iter().map(|e| json!({"addresses": [format!("10.42.{}.{}", e / 250 % 250, e % 250 + 1)]})).collect();
            let slice = serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4", "endpoints": ends,
                "ports": [{"name": "", "port": 8080}]})).expect("slice");
            (service, Arc::new(slice))
        };
        let objects: Vec<_> = (0..5000u32).map(|i| (i, make(i, &[2 * i, 2 * i + 1]))).collect();
        let start = Instant::now();
        let planned: Vec<_> = objects
            .iter()
            .map(|(i, (s, e))| (ObjectKey::new("d", format!("s{i}")), plan(s, std::slice::from_ref(e), &node)))
            .collect();
        println!("5,000 services planned: {:?}", start.elapsed());
        let start = Instant::now();
        let mut rules = Rules::new();
        rules.update(planned);
        println!("merged: {:?}", start.elapsed());
        let mut programmer = Programmer::new(ProxyConfig::new("n1")).expect("programmer");
        for _ in 0..3 {
            let start = Instant::now();
            programmer.replace(&rules).expect("load");
            println!("loaded: {:?}", start.elapsed());
        }
        let mut times = Vec::new();
        for n in 0..200u32 {
            let (s, e) = make(7, &[14, 60_000 - n]);
            let change = (ObjectKey::new("d", "s7"), plan(&s, &[e], &node));
            let start = Instant::now();
            let diff = rules.update([change]);
            programmer.apply(&diff).expect("apply");
            times.push(start.elapsed());
        }
        times.sort();
        println!("an endpoint replaced: median {:?}, worst {:?}", times[100], times[199]);
    });
}
