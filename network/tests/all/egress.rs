//! The way out of image builds.

use crate::lab::{Lab, talk, within};
use skiff_network::egress::{self, Egress};
use skiff_network::netlink::Socket;

fn forwarding(device: &str) -> String {
    let p = format!("/proc/sys/net/ipv4/conf/{device}/forwarding");
    std::fs::read_to_string(p)
        .expect("forwarding")
        .trim()
        .to_string()
}

fn traces() -> (Vec<String>, bool) {
    let links = Socket::route().expect("socket").links().expect("links");
    let ours = links
        .into_iter()
        .map(|l| l.name)
        .filter(|n| n.starts_with("skiff") && n != "skiff0")
        .collect();
    let chains = Socket::netfilter()
        .expect("socket")
        .base_chains()
        .expect("chains");
    (
        ours,
        chains.iter().any(|c| c.table.starts_with("skiff-egress")),
    )
}

#[test]
fn a_build_reaches_the_world_without_a_pod_network_and_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    talk::tcp_server(&outside, 80, "world");
    talk::udp_server(&outside, 53, "world");
    lab.run(|lab| async move {
        let state = lab.dir.path().join("network");
        let (a, b) = (lab.pod_netns(), lab.pod_netns());
        assert_eq!(forwarding("eth0"), "0");
        let one = Egress::open("one", a.try_clone().unwrap(), &state).expect("open");
        let two = Egress::open("two", b.try_clone().unwrap(), &state).expect("open");
        assert_ne!(one.address(), two.address());
        for ns in [&a, &b] {
            assert_eq!(talk::tcp(ns, "192.0.2.2:80").unwrap(), "world 192.0.2.1");
            let socket = talk::udp_socket(ns, "192.0.2.2:53");
            assert_eq!(talk::ask(&socket).unwrap(), "world 192.0.2.1");
        }
        // Not the node's loopback: what listens there trusts it.
        let listener = std::net::TcpListener::bind("127.0.0.1:8080").expect("listen");
        assert!(talk::tcp(&a, "127.0.0.1:8080").is_err());
        drop(listener);
        one.close().expect("close");
        assert!(talk::tcp(&a, "192.0.2.2:80").is_err());
        assert_eq!(talk::tcp(&b, "192.0.2.2:80").unwrap(), "world 192.0.2.1");
        two.close().expect("close");
        assert_eq!(traces(), (vec![], false));
        assert_eq!(
            (forwarding("eth0"), forwarding("all")),
            ("0".into(), "0".into())
        );
        within(&a, || ());
    });
}

#[test]
fn what_a_killed_build_leaves_is_taken_back_and_a_living_one_is_spared() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    talk::tcp_server(&outside, 80, "world");
    lab.run(|lab| async move {
        let state = lab.dir.path().join("network");
        let (a, b) = (lab.pod_netns(), lab.pod_netns());
        let dead = Egress::open("dead", a.try_clone().unwrap(), &state).expect("open");
        let alive = Egress::open("alive", b.try_clone().unwrap(), &state).expect("open");
        // As a kill leaves it: descriptors closed, nothing else done.
        drop(dead);
        assert_eq!(traces().0.len(), 2);
        egress::heal(&state).expect("heal");
        assert_eq!(traces().0.len(), 1);
        assert_eq!(talk::tcp(&b, "192.0.2.2:80").unwrap(), "world 192.0.2.1");
        drop(alive);
        egress::heal(&state).expect("heal");
        assert_eq!(traces(), (vec![], false));
        assert_eq!(forwarding("eth0"), "0");
        egress::heal(&lab.dir.path().join("is-not-there")).expect("nothing to do");
    });
}

#[test]
fn a_build_beside_a_pod_network_disturbs_it_not_and_does_not_stop_its_forwarding() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    talk::tcp_server(&outside, 80, "world");
    lab.run(|lab| async move {
        let state = lab.dir.path().join("network");
        let (build, pod) = (lab.pod_netns(), lab.pod_netns());
        // The build was there first, and forwarding with it.
        let way = Egress::open("build", build.try_clone().unwrap(), &state).expect("open");
        let network = lab.pod_network();
        network
            .attach("pod", pod.try_clone().unwrap(), &[])
            .await
            .expect("attach");
        assert_eq!(
            talk::tcp(&build, "192.0.2.2:80").unwrap(),
            "world 192.0.2.1"
        );
        talk::tcp_server(&pod, 80, "pod");
        assert!(
            talk::tcp(&build, "10.42.0.2:80")
                .unwrap()
                .starts_with("pod ")
        );
        way.close().expect("close");
        assert_eq!(talk::tcp(&pod, "192.0.2.2:80").unwrap(), "world 192.0.2.1");
        assert_eq!(forwarding("all"), "1");
        // And after it: the node forwards, there is nothing to switch.
        let way = Egress::open("again", lab.pod_netns(), &state).expect("open");
        way.close().expect("close");
        assert_eq!(talk::tcp(&pod, "192.0.2.2:80").unwrap(), "world 192.0.2.1");
        network.cleanup().await.expect("cleanup");
    });
}
