//! Services: addresses and node ports, evictions.

use crate::harness::*;
use serde_json::{Value, json};

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}
const PATH: &str = "/api/v1/namespaces/default/services";

#[test]
fn addresses_and_ports_are_given_kept_and_given_back() {
    run(async {
        let spec = json!({"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80}]});
        let a = post(PATH, service("one", spec.clone())).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let (ip, port) = (
            a.body["spec"]["clusterIP"]
                .as_str()
                .unwrap_or("")
                .to_string(),
            a.body["spec"]["ports"][0]["nodePort"].as_i64().unwrap_or(0),
        );
        assert!(ip.starts_with("10.43.") && (30000..=32767).contains(&port));
        let mut same = spec.clone();
        same["clusterIP"] = ip.as_str().into();
        let b = post(PATH, service("two", same)).await;
        assert_eq!((b.code, b.reason()), (422, "Invalid"));
        assert!(
            b.message().contains("failed to allocate IP")
                && b.message().contains("already allocated"),
            "{}",
            b.message()
        );
        let mut same = spec.clone();
        same["ports"][0]["nodePort"] = port.into();
        let b = post(PATH, service("two", same.clone())).await;
        assert_eq!(b.code, 422);
        assert!(
            b.message().ends_with(&format!(
                "spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
            )),
            "{}",
            b.message()
        );
        // A dry run keeps nothing.
        let d = ask(
            "POST",
            &format!("{PATH}?dryRun=All"),
            &[],
            service(
                "two",
                json!({"clusterIP": "10.43.0.200", "ports": [{"port": 80}]}),
            )
            .to_string(),
        )
        .await;
        assert_eq!(d.code, 201, "{}", d.text);
        let d = post(
            PATH,
            service(
                "two",
                json!({"clusterIP": "10.43.0.200", "ports": [{"port": 80}]}),
            ),
        )
        .await;
        assert_eq!(d.code, 201, "{}", d.text);
        // An update without them keeps both.
        let mut new = service("one", spec);
        new["metadata"]["resourceVersion"] = a.version().into();
        let u = put(&format!("{PATH}/one"), new).await;
        assert_eq!(
            (
                u.code,
                u.body["spec"]["clusterIP"].as_str(),
                u.body["spec"]["ports"][0]["nodePort"].as_i64()
            ),
            (200, Some(ip.as_str()), Some(port)),
            "{}",
            u.text
        );
        assert_eq!(delete(&format!("{PATH}/one"), Value::Null).await.code, 200);
        let mut again = same;
        again["clusterIP"] = ip.as_str().into();
        let c = post(PATH, service("three", again)).await;
        assert_eq!(c.code, 201, "both are free again: {}", c.text);
    });
}

#[test]
fn no_two_services_get_the_same_address_at_once() {
    run(async {
        let tasks: Vec<_> = (0..40)
            .map(|i| {
                tokio::spawn(async move {
                    post(
                        PATH,
                        service(
                            &format!("many-{i}"),
                            json!({"type": "NodePort", "ports": [{"port": 80}]}),
                        ),
                    )
                    .await
                })
            })
            .collect();
        let (mut ips, mut ports) = (
            std::collections::BTreeSet::new(),
            std::collections::BTreeSet::new(),
        );
        for t in tasks {
            let a = t.await.expect("task");
            assert_eq!(a.code, 201, "{}", a.text);
            assert!(ips.insert(a.body["spec"]["clusterIP"].to_string()));
            assert!(ports.insert(a.body["spec"]["ports"][0]["nodePort"].to_string()));
        }
    });
}

#[test]
fn allocations_are_rebuilt_when_the_server_starts_again() {
    run(async {
        use skiff_apiserver::{Config, serve};
        let dir = tempfile::tempdir().expect("dir");
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let start = async || {
            let mut config = Config::new(dir.path());
            config.bind_address = [127, 0, 0, 1].into();
            config.advertise_address = [192, 0, 2, 1].into();
            config.https_listen_port = 0;
            let cancel = tokio_util::sync::CancellationToken::new();
            (serve(config, cancel.clone()).await.expect("starts"), cancel)
        };
        let (server, cancel) = start().await;
        let body = service("a", json!({"type": "NodePort", "clusterIP": "10.43.7.7", "ports": [{"port": 80, "nodePort": 30777}]})).to_string();
        assert_eq!(
            read(send_to(&server, "POST", PATH, &[], body).await)
                .await
                .code,
            201
        );
        let before = server.app().store.revision();
        cancel.cancel();
        server.stopped().await;
        let (server, cancel) = start().await;
        assert!(server.app().store.revision() >= before);
        for spec in [
            json!({"clusterIP": "10.43.7.7", "ports": [{"port": 80}]}),
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30777}]}),
        ] {
            let a = read(send_to(&server, "POST", PATH, &[], service("b", spec).to_string()).await)
                .await;
            assert_eq!(a.code, 422, "{}", a.text);
        }
        cancel.cancel();
        server.stopped().await;
    });
}

#[test]
fn evictions_ask_the_budget() {
    run(async {
        let ns = "/api/v1/namespaces/evict";
        post(
            "/api/v1/namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "evict"}}),
        )
        .await;
        post(
            &format!("{ns}/serviceaccounts"),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await;
        for p in ["a", "b"] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": p, "labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 0}});
            assert_eq!(post(&format!("{ns}/pods"), pod).await.code, 201);
            let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}).to_string();
            let a = ask(
                "PATCH",
                &format!("{ns}/pods/{p}/status"),
                &[("content-type", "application/merge-patch+json")],
                status,
            )
            .await;
            assert_eq!(a.code, 200, "{}", a.text);
        }
        let pdb = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
        let path = "/apis/policy/v1/namespaces/evict/poddisruptionbudgets";
        assert_eq!(post(path, pdb).await.code, 201);
        let evict = |p: &str| {
            let (url, body) = (
                format!("{ns}/pods/{p}/eviction"),
                json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": p}}),
            );
            async move { post(&url, body).await }
        };
        let a = evict("a").await;
        assert_eq!(
            (a.code, a.message()),
            (
                429,
                "Cannot evict pod as it would violate the pod's disruption budget."
            ),
            "{}",
            a.text
        );
        let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}}).to_string();
        let s = ask(
            "PATCH",
            &format!("{path}/b/status"),
            &[("content-type", "application/merge-patch+json")],
            status,
        )
        .await;
        assert_eq!(s.code, 200, "{}", s.text);
        let a = evict("a").await;
        assert_eq!(
            (a.code, a.body["status"].as_str()),
            (201, Some("Success")),
            "{}",
            a.text
        );
        let a = evict("b").await;
        assert_eq!(a.code, 429);
        assert_eq!(
            a.body["details"]["causes"][0]["message"],
            "The disruption budget b needs 1 healthy pods and has 2 currently"
        );
    });
}

/// Clients that go away leave writes whose end nobody saw.
#[test]
fn services_whose_clients_went_away_give_nothing_twice_and_lose_nothing() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let mut config = config(dir.path());
        config.service_node_port_range = (30000, 30011);
        let cancel = tokio_util::sync::CancellationToken::new();
        let own = std::sync::Arc::new(server_with(config, cancel.clone()).await);
        let spec = json!({"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80}]});
        let all = async || {
            let a = read(send_to(&own, "GET", PATH, &[], "").await).await;
            a.body["items"].as_array().cloned().unwrap_or_default()
        };
        for round in 0..150 {
            let mut tasks = Vec::new();
            let mut names: Vec<String> = all()
                .await
                .iter()
                .filter_map(|s| s["metadata"]["name"].as_str())
                .filter(|n| n.starts_with('s'))
                .map(String::from)
                .collect();
            names.truncate(3);
            let deletes = names.into_iter().map(|n| ("DELETE", n, Value::Null));
            let creates = (0..3).map(|i| {
                let name = format!("s{round}-{i}");
                ("POST", String::new(), service(&name, spec.clone()))
            });
            for (method, name, body) in deletes.chain(creates) {
                let own = own.clone();
                let body = if body.is_null() {
                    String::new()
                } else {
                    body.to_string()
                };
                tasks.push(tokio::spawn(async move {
                    let path = format!("{PATH}/{name}");
                    let path = path.trim_end_matches('/');
                    send_to(&own, method, path, &[], body).await.status()
                }));
            }
            for _ in 0..round % 9 {
                tokio::task::yield_now().await;
            }
            if round % 3 == 0 {
                std::thread::sleep(std::time::Duration::from_micros(100 * round % 700));
            }
            for t in &tasks {
                t.abort();
            }
            for t in tasks {
                let _ = t.await;
            }
            let services = all().await;
            for field in ["/spec/clusterIP", "/spec/ports/0/nodePort"] {
                let mut seen = std::collections::HashSet::new();
                for s in &services {
                    let v = s.pointer(field).unwrap_or(&Value::Null);
                    assert!(
                        v.is_null() || seen.insert(v.to_string()),
                        "{v} was given twice"
                    );
                }
            }
        }
        for s in all().await {
            let name = s["metadata"]["name"].as_str().unwrap_or("");
            if name.starts_with('s') {
                let path = format!("{PATH}/{name}");
                // One that nobody waited for may have gone meanwhile.
                let status = send_to(&own, "DELETE", &path, &[], "").await.status();
                assert!(status == 200 || status == 404, "{status}");
            }
        }
        // A write that was under way may still land a moment later; then its port is taken for good reason.
        let mut n = 0;
        loop {
            let body = service(&format!("t{n}"), spec.clone()).to_string();
            let a = read(send_to(&own, "POST", PATH, &[], body).await).await;
            if a.code != 201 {
                assert!(a.message().contains("range is full"), "{}", a.text);
                break;
            }
            n += 1;
        }
        let ports = all()
            .await
            .iter()
            .filter(|s| s["spec"]["ports"][0]["nodePort"].is_number())
            .count();
        assert_eq!(ports, 12, "no port was lost");
        cancel.cancel();
    });
}
