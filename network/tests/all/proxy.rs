//! The Service proxy.

use crate::lab::{Lab, talk};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use skiff_client::{Cache, ObjectKey};
use skiff_network::netlink::Socket;
use skiff_network::proxy::{self, ProxyConfig, program};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub struct Proxy {
    pub services: Cache<Service>,
    pub slices: Cache<EndpointSlice>,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<Result<(), proxy::ProxyError>>,
}

impl Proxy {
    pub fn start() -> Self {
        let (services, slices) = (Cache::detached(), Cache::detached());
        Self::on(services, slices)
    }

    fn on(services: Cache<Service>, slices: Cache<EndpointSlice>) -> Self {
        let stop = CancellationToken::new();
        let done = tokio::spawn(proxy::run_on(
            services.clone(),
            slices.clone(),
            ProxyConfig::new("n1"),
            stop.clone(),
        ));
        services.mark_synced();
        slices.mark_synced();
        Self {
            services,
            slices,
            stop,
            done,
        }
    }

    pub fn service(&self, name: &str, spec: Value) {
        self.services.apply(
            serde_json::from_value(
                json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec}),
            )
            .expect("a service"),
        );
    }

    pub fn slice(&self, name: &str, endpoints: &[&str], ports: Value) {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|a| json!({"addresses": [a], "nodeName": if a.starts_with("10.42.0.") {"n1"} else {"n2"}}))
            .collect();
        self.slices.apply(
            serde_json::from_value(json!({
                "metadata": {"name": format!("{name}-1"), "namespace": "d", "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
            }))
            .expect("a slice"),
        );
    }

    async fn stop(self) {
        self.stop.cancel();
        self.done.await.expect("join").expect("run");
    }
}

/// Longer than the proxy gathers changes and loads them.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(250)).await;
}

async fn on_node(to: &'static str) -> std::io::Result<String> {
    tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let mut s =
            std::net::TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(1))?;
        let mut said = String::new();
        s.read_to_string(&mut said)?;
        Ok(said)
    })
    .await
    .expect("join")
}

/// Pods a (10.42.0.2) and b (10.42.0.3), which serve TCP 8080 and UDP 5300.
async fn pods(lab: &Arc<Lab>) -> (skiff_network::PodNetwork, OwnedFd, OwnedFd) {
    let network = lab.pod_network();
    let (a, b) = (lab.pod_netns(), lab.pod_netns());
    for (name, netns) in [("a", &a), ("b", &b)] {
        network
            .attach(name, netns.try_clone().expect("dup"), &[])
            .await
            .expect("attach");
        talk::tcp_server(netns, 8080, name);
        talk::udp_server(netns, 5300, name);
    }
    (network, a, b)
}

fn web() -> Value {
    json!([{"name": "", "port": 8080, "protocol": "TCP"}])
}

#[test]
fn a_service_answers_pods_itself_the_node_and_the_outside() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    lab.run(|lab| async move {
        let (network, a, b) = pods(&lab).await;
        let proxy = Proxy::start();
        proxy.service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.43.0.50", "externalIPs": ["198.51.100.9"],
            "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        proxy.slice("web", &["10.42.0.2"], web());
        settle().await;
        assert_eq!(
            talk::tcp(&b, "10.43.0.50:80").expect("cluster IP"),
            "a 10.42.0.3"
        );
        assert!(
            talk::tcp(&a, "10.43.0.50:80")
                .expect("hairpin")
                .starts_with("a ")
        );
        assert_eq!(on_node("10.43.0.50:80").await.expect("node"), "a 10.42.0.1");
        for to in [
            "10.43.0.50:80",
            "192.0.2.1:30080",
            "127.0.0.1:30080",
            "10.42.0.1:30080",
            "198.51.100.9:80",
        ] {
            assert!(
                on_node(to)
                    .await
                    .unwrap_or_else(|e| panic!("{to}: {e}"))
                    .starts_with("a "),
                "{to}"
            );
        }
        assert_eq!(
            talk::tcp(&outside, "192.0.2.1:30080").expect("node port"),
            "a 192.0.2.2"
        );
        assert!(
            talk::tcp(&b, "192.0.2.1:30080")
                .expect("node port from a pod")
                .starts_with("a ")
        );
        assert!(
            talk::tcp(&a, "192.0.2.1:30080")
                .expect("hairpin")
                .starts_with("a ")
        );
        assert!(
            talk::tcp(&b, "198.51.100.9:80")
                .expect("external IP")
                .starts_with("a ")
        );

        // Both endpoints get their share.
        proxy.slice("web", &["10.42.0.2", "10.42.0.3"], web());
        settle().await;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            seen.insert(
                talk::tcp(&outside, "192.0.2.1:30080").expect("node port")[..1].to_string(),
            );
        }
        assert_eq!(seen.len(), 2, "{seen:?}");

        // None: refused at once, everywhere.
        proxy.slice("web", &[], web());
        settle().await;
        for (from, to) in [
            (&a, "10.43.0.50:80"),
            (&outside, "192.0.2.1:30080"),
            (&a, "198.51.100.9:80"),
        ] {
            let e = talk::tcp(from, to).expect_err("nobody is there");
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionRefused, "{to}: {e}");
        }
        let e = on_node("10.43.0.50:80").await.expect_err("nobody is there");
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionRefused);
        // As is a cluster IP that no Service has, and a port that the Service has not.
        let e = talk::tcp(&a, "10.43.7.7:80").expect_err("no such service");
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionRefused);

        proxy.services.remove(&ObjectKey::new("d", "web"), None);
        settle().await;
        assert_eq!(program::dump("skiff").expect("dump"), Vec::<String>::new());

        proxy.stop().await;
        assert!(
            Socket::netfilter()
                .unwrap()
                .table("skiff")
                .unwrap()
                .is_some(),
            "stays for the next start"
        );
        proxy::cleanup("skiff").expect("cleanup");
        assert!(
            Socket::netfilter()
                .unwrap()
                .table("skiff")
                .unwrap()
                .is_none()
        );
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn the_api_is_reached_on_a_node_that_has_no_network_but_its_own() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|lab| async move {
        let (network, a, _b) = pods(&lab).await;
        let gateway = network.gateway();
        assert_eq!(
            skiff_network::node_ip(Some(gateway)).unwrap(),
            Some(gateway)
        );
        let listener = std::net::TcpListener::bind("0.0.0.0:6443").expect("listen");
        std::thread::spawn(move || {
            use std::io::Write;
            for s in listener.incoming().flatten() {
                let (mut s, peer) = (
                    s.try_clone().expect("dup"),
                    s.peer_addr().expect("peer").ip(),
                );
                let _ = write!(s, "api {peer}");
            }
        });
        let proxy = Proxy::start();
        proxy.service(
            "kubernetes",
            json!({"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443}]}),
        );
        proxy.slice(
            "kubernetes",
            &["10.42.0.1"],
            json!([{"name": "https", "port": 6443, "protocol": "TCP"}]),
        );
        settle().await;
        assert_eq!(
            talk::tcp(&a, "10.43.0.1:443").expect("from a pod"),
            "api 10.42.0.2"
        );
        assert!(
            on_node("10.43.0.1:443")
                .await
                .expect("from the node")
                .starts_with("api ")
        );
        proxy.stop().await;
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn udp_flows_leave_an_endpoint_that_goes() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    lab.run(|lab| async move {
        let (network, _a, b) = pods(&lab).await;
        let ports = json!([{"name": "", "port": 5300, "protocol": "UDP"}]);
        let proxy = Proxy::start();
        settle().await;
        // A client that begins before there is a Service: nothing answers its node port yet.
        let early = talk::udp_socket(&outside, "192.0.2.1:30053");
        assert!(talk::ask(&early).is_err());
        proxy.service(
            "dns",
            json!({"type": "NodePort", "clusterIP": "10.43.0.53",
            "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]}),
        );
        proxy.slice("dns", &["10.42.0.2"], ports.clone());
        settle().await;
        assert_eq!(talk::ask(&early).expect("the same flow"), "a 192.0.2.2");
        let inside = talk::udp_socket(&b, "10.43.0.53:53");
        assert_eq!(talk::ask(&inside).expect("ask"), "a 10.42.0.3");
        proxy.slice("dns", &["10.42.0.3"], ports.clone());
        settle().await;
        assert_eq!(talk::ask(&early).expect("the same flow"), "b 192.0.2.2");
        assert!(
            talk::ask(&inside)
                .expect("the same flow, now to itself")
                .starts_with("b ")
        );
        // None: an ICMP error, which a connected socket sees.
        proxy.slice("dns", &[], ports);
        settle().await;
        let e = talk::ask(&inside).expect_err("nobody is there");
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionRefused, "{e}");
        proxy.stop().await;
        proxy::cleanup("skiff").expect("cleanup");
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn clients_stay_with_their_endpoint_where_they_should() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    lab.run(|lab| async move {
        let (network, ..) = pods(&lab).await;
        let proxy = Proxy::start();
        proxy.service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.43.0.50", "sessionAffinity": "ClientIP",
            "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        proxy.slice("web", &["10.42.0.2", "10.42.0.3"], web());
        settle().await;
        let first = talk::tcp(&outside, "192.0.2.1:30080").expect("node port");
        for _ in 0..20 {
            assert_eq!(
                talk::tcp(&outside, "192.0.2.1:30080").expect("node port"),
                first
            );
        }
        // Its endpoint goes: it gets the other one, and stays there when the first comes back.
        let (left, other) = if first.starts_with('a') {
            ("10.42.0.3", "b")
        } else {
            ("10.42.0.2", "a")
        };
        proxy.slice("web", &[left], web());
        settle().await;
        for _ in 0..5 {
            assert!(
                talk::tcp(&outside, "192.0.2.1:30080")
                    .expect("node port")
                    .starts_with(other)
            );
        }
        proxy.slice("web", &["10.42.0.2", "10.42.0.3"], web());
        settle().await;
        for _ in 0..20 {
            assert!(
                talk::tcp(&outside, "192.0.2.1:30080")
                    .expect("node port")
                    .starts_with(other)
            );
        }
        proxy.stop().await;
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn local_policy_and_source_ranges_are_kept() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    lab.run(|lab| async move {
        let (network, a, _b) = pods(&lab).await;
        let proxy = Proxy::start();
        proxy.service("web", json!({"type": "NodePort", "clusterIP": "10.43.0.50", "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30080}]}));
        // One endpoint is elsewhere (and unreachable here): nobody from outside is sent there.
        proxy.slice("web", &["10.42.0.2", "10.42.9.9"], web());
        settle().await;
        for _ in 0..15 {
            assert_eq!(talk::tcp(&outside, "192.0.2.1:30080").expect("local"), "a 192.0.2.2");
        }
        proxy.slice("web", &["10.42.9.9"], web());
        settle().await;
        let e = talk::tcp(&outside, "192.0.2.1:30080").expect_err("dropped");
        assert_eq!(e.kind(), std::io::ErrorKind::TimedOut, "{e}");

        proxy.services.apply(serde_json::from_value(json!({"metadata": {"name": "lb", "namespace": "d"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.60", "loadBalancerSourceRanges": ["10.42.0.0/24"],
                "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}})).unwrap());
        proxy.slice("lb", &["10.42.0.2"], web());
        settle().await;
        assert!(talk::tcp(&a, "192.0.2.1:80").expect("from a pod").starts_with("a "));
        let e = talk::tcp(&outside, "192.0.2.1:80").expect_err("not from there");
        assert_eq!(e.kind(), std::io::ErrorKind::TimedOut, "{e}");
        proxy.stop().await;
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn a_restart_replaces_the_old_table_and_nobody_else_can_flush_ours() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|lab| async move {
        let (network, _a, b) = pods(&lab).await;
        let proxy = Proxy::start();
        proxy.service(
            "web",
            json!({"clusterIP": "10.43.0.50", "ports": [{"port": 80}]}),
        );
        proxy.service(
            "old",
            json!({"clusterIP": "10.43.0.51", "ports": [{"port": 80}]}),
        );
        proxy.slice("web", &["10.42.0.2"], web());
        proxy.slice("old", &["10.42.0.2"], web());
        settle().await;
        if Socket::netfilter()
            .unwrap()
            .table("skiff")
            .unwrap()
            .unwrap_or(0)
            & 2
            != 0
        {
            let e = proxy::cleanup("skiff").expect_err("it is owned");
            assert!(
                e.to_string().contains("ermission") || e.to_string().contains("ermitted"),
                "{e}"
            );
        }
        assert_eq!(talk::tcp(&b, "10.43.0.51:80").expect("old"), "a 10.42.0.3");
        proxy.stop().await;
        assert_eq!(
            talk::tcp(&b, "10.43.0.51:80").expect("while stopped"),
            "a 10.42.0.3"
        );
        let proxy = Proxy::start();
        proxy.service(
            "web",
            json!({"clusterIP": "10.43.0.50", "ports": [{"port": 80}]}),
        );
        proxy.slice("web", &["10.42.0.2"], web());
        settle().await;
        assert_eq!(talk::tcp(&b, "10.43.0.50:80").expect("web"), "a 10.42.0.3");
        assert!(talk::tcp(&b, "10.43.0.51:80").is_err());
        proxy.stop().await;
        proxy::cleanup("skiff").expect("cleanup");
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn incremental_changes_leave_the_kernel_as_a_fresh_load_does() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|_lab| async move {
        let proxy = Proxy::start();
        let mut random = 12345u32;
        let mut next = |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % below
        };
        for step in 0..200 {
            let n = next(8);
            let name = format!("s{n}");
            match next(5) {
                0 => proxy.services.remove(&ObjectKey::new("d", &name), None),
                1 | 2 => proxy.service(&name, json!({"type": "NodePort", "clusterIP": format!("10.43.1.{n}"),
                    "sessionAffinity": if next(2) == 0 {"ClientIP"} else {"None"},
                    "externalTrafficPolicy": if next(2) == 0 {"Local"} else {"Cluster"},
                    "ports": [{"port": 80, "nodePort": 30000 + n}, {"name": "u", "port": 53, "protocol": "UDP"}]})),
                _ => {
                    let ips: Vec<String> = (0..next(5)).map(|_| format!("10.42.{}.{}", next(2), next(9) + 2)).collect();
                    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
                    proxy.slice(&name, &ips, json!([{"name": "", "port": 8080}, {"name": "u", "port": 53, "protocol": "UDP"}]));
                }
            }
            if step % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(8)).await;
            }
        }
        settle().await;
        let incremental = program::dump("skiff").expect("dump");
        assert!(incremental.len() > 10);
        let (services, slices) = (proxy.services.clone(), proxy.slices.clone());
        proxy.stop().await;
        let fresh = Proxy::on(services, slices);
        settle().await;
        assert_eq!(program::dump("skiff").expect("dump"), incremental);
        fresh.stop().await;
    });
}
