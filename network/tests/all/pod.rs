//! The pod network.

use crate::lab::{self, Lab, talk, within};
use skiff_network::netlink::Socket;
use skiff_network::{HostPort, PodNetwork, Protocol, node_ip, pod};
use std::net::Ipv4Addr;

#[test]
fn pods_reach_each_other_the_node_and_the_world() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    lab.run(|lab| async move {
        let network = lab.pod_network();
        let (a, b) = (lab.pod_netns(), lab.pod_netns());
        let ip_a = network
            .attach("a", a.try_clone().unwrap(), &[])
            .await
            .expect("attach")[0];
        let ip_b = network
            .attach("b", b.try_clone().unwrap(), &[])
            .await
            .expect("attach")[0];
        assert_eq!(ip_a.to_string(), "10.42.0.2");
        assert_eq!(ip_b.to_string(), "10.42.0.3");
        talk::tcp_server(&a, 80, "a");
        talk::tcp_server(&b, 80, "b");
        assert_eq!(talk::tcp(&a, "10.42.0.3:80").unwrap(), "b 10.42.0.2");
        assert_eq!(
            talk::tcp(&a, "10.42.0.2:80").unwrap(),
            "a 10.42.0.2",
            "itself, over loopback"
        );
        assert_eq!(
            talk::tcp(&b, "127.0.0.1:80").unwrap(),
            "b 127.0.0.1",
            "loopback is up"
        );
        // Node to pod: from the gateway address. Pod to node: on any address of the node.
        let said = tokio::task::spawn_blocking(|| {
            use std::io::Read;
            let mut s = std::net::TcpStream::connect("10.42.0.2:80").expect("connect");
            let mut said = String::new();
            s.read_to_string(&mut said).expect("read");
            said
        })
        .await
        .unwrap();
        assert_eq!(said, "a 10.42.0.1");
        let listener = std::net::TcpListener::bind("0.0.0.0:8080").expect("listen");
        std::thread::spawn(move || {
            use std::io::Write;
            for s in listener.incoming() {
                let mut s = s.unwrap();
                let peer = s.peer_addr().unwrap().ip();
                let _ = write!(s, "node {peer}");
            }
        });
        assert_eq!(talk::tcp(&b, "10.42.0.1:8080").unwrap(), "node 10.42.0.3");
        assert_eq!(talk::tcp(&b, "192.0.2.1:8080").unwrap(), "node 10.42.0.3");
        for (from, to) in [
            (&a, "10.42.0.3"),
            (&a, "10.42.0.1"),
            (&b, "192.0.2.1"),
            (&b, "192.0.2.2"),
        ] {
            ping(from, to);
        }
        // The world sees the node's address.
        talk::tcp_server(&outside, 80, "world");
        talk::udp_server(&outside, 53, "world");
        assert_eq!(talk::tcp(&a, "192.0.2.2:80").unwrap(), "world 192.0.2.1");
        assert_eq!(
            talk::ask(&talk::udp_socket(&a, "192.0.2.2:53")).unwrap(),
            "world 192.0.2.1"
        );
        // An address no pod has is refused at once, not lost on the way out.
        let start = std::time::Instant::now();
        assert!(talk::tcp(&a, "10.42.0.200:80").is_err());
        assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
        assert_eq!(node_ip(None).unwrap(), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(network.gateway(), Ipv4Addr::new(10, 42, 0, 1));
        network.detach("a").await.expect("detach");
        network.detach("a").await.expect("detach twice");
        assert!(talk::tcp(&b, "10.42.0.2:80").is_err());
        network.cleanup().await.expect("cleanup");
    });
}

/// ICMP, by the program that everybody tries first.
fn ping(from: &std::os::fd::OwnedFd, to: &str) {
    let done = within(from, || {
        std::process::Command::new("/bin/busybox")
            .args(["ping", "-c1", "-W1", to])
            .output()
    });
    match done {
        Ok(out) => assert!(
            out.status.success(),
            "{to}: {}",
            String::from_utf8_lossy(&out.stdout)
        ),
        Err(e) => eprintln!("SKIPPED: ping needs /bin/busybox ({e})"),
    }
}

#[test]
fn host_ports_lead_into_the_pod_from_outside_from_the_node_and_from_itself() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    lab.run(|lab| async move {
        let network = lab.pod_network();
        let (a, b) = (lab.pod_netns(), lab.pod_netns());
        let ports = [
            HostPort {
                host_ip: None,
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Tcp,
            },
            HostPort {
                host_ip: None,
                host_port: 5353,
                container_port: 53,
                protocol: Protocol::Udp,
            },
            HostPort {
                host_ip: Some(Ipv4Addr::LOCALHOST),
                host_port: 9090,
                container_port: 80,
                protocol: Protocol::Tcp,
            },
        ];
        network
            .attach("a", a.try_clone().unwrap(), &ports)
            .await
            .expect("attach");
        network
            .attach("b", b.try_clone().unwrap(), &[])
            .await
            .expect("attach");
        talk::tcp_server(&a, 80, "a");
        talk::udp_server(&a, 53, "a");
        assert_eq!(
            talk::tcp(&outside, "192.0.2.1:8080").unwrap(),
            "a 192.0.2.2"
        );
        assert_eq!(talk::tcp(&b, "192.0.2.1:8080").unwrap(), "a 10.42.0.3");
        assert!(
            talk::tcp(&a, "192.0.2.1:8080").unwrap().starts_with("a "),
            "hairpin"
        );
        assert!(
            talk::tcp(&outside, "192.0.2.1:9090").is_err(),
            "only on loopback"
        );
        let node = tokio::task::spawn_blocking(|| {
            use std::io::Read;
            ["127.0.0.1:8080", "192.0.2.1:8080", "127.0.0.1:9090"].map(|to| {
                let mut s = std::net::TcpStream::connect_timeout(
                    &to.parse().unwrap(),
                    std::time::Duration::from_secs(1),
                )
                .expect(to);
                let mut said = String::new();
                s.read_to_string(&mut said).expect("read");
                said
            })
        })
        .await
        .unwrap();
        assert!(node.iter().all(|s| s.starts_with("a ")), "{node:?}");
        let socket = talk::udp_socket(&outside, "192.0.2.1:5353");
        assert_eq!(talk::ask(&socket).unwrap(), "a 192.0.2.2");
        // Taken by a: b does not get it, and a keeps it.
        let c = lab.pod_netns();
        let e = network
            .attach("c", c.try_clone().unwrap(), &ports)
            .await
            .expect_err("taken");
        assert!(e.to_string().contains("taken by sandbox a"), "{e}");
        assert_eq!(
            talk::tcp(&outside, "192.0.2.1:8080").unwrap(),
            "a 192.0.2.2"
        );
        network.detach("a").await.expect("detach");
        assert!(talk::tcp(&outside, "192.0.2.1:8080").is_err());
        // The same UDP flow goes to the port's next owner, not to the dead address.
        network
            .attach("c", c.try_clone().unwrap(), &ports)
            .await
            .expect("attach");
        talk::udp_server(&c, 53, "c");
        assert_eq!(talk::ask(&socket).unwrap(), "c 192.0.2.2");
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn a_restart_keeps_addresses_and_releases_those_of_sandboxes_that_are_gone() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|lab| async move {
        let network = lab.pod_network();
        let (a, b) = (lab.pod_netns(), lab.pod_netns());
        let port = [HostPort {
            host_ip: None,
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
        }];
        network
            .attach("a", a.try_clone().unwrap(), &port)
            .await
            .expect("attach");
        network
            .attach("b", b.try_clone().unwrap(), &[])
            .await
            .expect("attach");
        talk::tcp_server(&a, 80, "a");
        let before = network.attached();
        drop(network);
        let network = lab.pod_network();
        assert_eq!(network.attached(), before);
        assert!(
            talk::tcp(&b, "10.42.0.1:8080").unwrap().starts_with("a "),
            "host ports survive"
        );
        network.retain(["a".to_string()]).await.expect("retain");
        assert_eq!(network.attached().len(), 1);
        let mut s = Socket::route().unwrap();
        assert!(s.link(&pod::host_link_name("a")).unwrap().is_some());
        for _ in 0..100 {
            if s.link(&pod::host_link_name("b")).unwrap().is_none() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(
            s.link(&pod::host_link_name("b")).unwrap().is_none(),
            "swept"
        );
        network.ready().await.expect("ready");
        // A lost record can be put back as long as the interface is there.
        std::fs::remove_dir_all(lab.config().state_dir.join("pods")).expect("remove");
        drop(network);
        let network = lab.pod_network();
        assert!(network.attached().is_empty());
        assert!(
            network
                .restore("b", Ipv4Addr::new(10, 42, 0, 3), &[])
                .await
                .is_err(),
            "no interface"
        );
        network
            .restore("a", Ipv4Addr::new(10, 42, 0, 2), &port)
            .await
            .expect("restore");
        assert_eq!(network.attached().len(), 1);
        let c = lab.pod_netns();
        network
            .attach("c", c.try_clone().unwrap(), &[])
            .await
            .expect("attach");
        assert!(
            talk::tcp(&c, "10.42.0.1:8080").unwrap().starts_with("a "),
            "its host port is back"
        );
        // Attaching again (after the sandbox's namespace was made anew) keeps the address.
        let again = lab.pod_netns();
        let ip = network
            .attach("a", again, &port)
            .await
            .expect("attach again");
        assert_eq!(ip[0].to_string(), "10.42.0.2");
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn a_machine_that_runs_these_tests_lacks_nothing() {
    let Some(_lab) = Lab::new() else { return };
    let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    for finding in skiff_network::probe::probe() {
        assert!(finding.missing.is_none(), "{finding:?}");
    }
    assert_eq!(
        std::fs::read_link("/proc/thread-self/ns/net").unwrap(),
        before
    );
}

#[test]
fn a_failed_attach_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|lab| async move {
        let network = lab.pod_network();
        let e = network
            .attach("a", "/nonexistent", &[])
            .await
            .expect_err("no such file");
        assert!(e.to_string().contains("/nonexistent"), "{e}");
        // eth0 is taken in there.
        let netns = lab.pod_netns();
        network
            .attach("a", netns.try_clone().unwrap(), &[])
            .await
            .expect("attach");
        let e = network
            .attach("b", netns, &[])
            .await
            .expect_err("eth0 is there");
        assert!(e.to_string().contains("adding the veth pair"), "{e}");
        assert_eq!(network.attached().len(), 1);
        let links = Socket::route().unwrap().links().unwrap();
        assert_eq!(
            links
                .iter()
                .filter(|l| l.kind.as_deref() == Some("veth"))
                .count(),
            1
        );
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn cleanup_leaves_no_link_table_address_route_or_setting() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|lab| async move {
        let look = || {
            let mut s = Socket::route().unwrap();
            (
                s.links().unwrap(),
                s.addresses().unwrap(),
                s.routes().unwrap(),
                Socket::netfilter().unwrap().table("skiff-pods").unwrap(),
                std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
            )
        };
        let before = look();
        let network = lab.pod_network();
        network
            .add_address(Ipv4Addr::new(10, 43, 0, 10))
            .expect("dns address");
        network
            .attach("a", lab.pod_netns(), &[])
            .await
            .expect("attach");
        assert_ne!(look(), before);
        assert_eq!(look().4.trim(), "1");
        network.cleanup().await.expect("cleanup");
        assert_eq!(look(), before);
        assert!(!lab.config().state_dir.exists());
        // And from another process, which knows only the directory.
        let network = lab.pod_network();
        network
            .attach("a", lab.pod_netns(), &[])
            .await
            .expect("attach");
        drop(network);
        let network = PodNetwork::open(lab.config()).expect("open again");
        drop(network);
        pod::cleanup(&lab.config().state_dir).expect("cleanup");
        assert_eq!(look(), before);
        pod::cleanup(&lab.config().state_dir).expect("nothing to clean up");
    });
}

#[test]
fn a_network_that_another_directory_made_is_neither_taken_nor_removed() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|lab| async move {
        let network = lab.pod_network();
        let a = lab.pod_netns();
        network
            .attach("a", a.try_clone().unwrap(), &[])
            .await
            .expect("attach");
        // Another data directory with the same pod's id, and a record of a network of its own.
        let mine = lab.config();
        let other = skiff_network::PodNetworkConfig {
            state_dir: mine.state_dir.with_file_name("other"),
            ..mine.clone()
        };
        std::fs::create_dir_all(&other.state_dir).unwrap();
        for entry in std::fs::read_dir(&mine.state_dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), other.state_dir.join(entry.file_name())).unwrap();
            }
        }
        let Err(refused) = PodNetwork::open(other.clone()) else {
            panic!("the other directory took the network");
        };
        let said = refused.to_string();
        assert!(
            said.contains("skiff reset") && said.contains(&mine.state_dir.display().to_string()),
            "{said}"
        );
        assert!(!pod::owns(&other.state_dir).unwrap());
        assert!(pod::owns(&mine.state_dir).unwrap());
        pod::cleanup(&other.state_dir).expect("cleanup of the other");
        assert!(!other.state_dir.exists());
        ping(&a, "10.42.0.1");
        assert!(
            Socket::netfilter()
                .unwrap()
                .table("skiff-pods")
                .unwrap()
                .is_some()
        );
        network.cleanup().await.expect("cleanup");
    });
}

#[test]
fn a_pod_can_neither_reach_the_nodes_loopback_nor_send_from_a_foreign_address() {
    let Some(lab) = Lab::new() else { return };
    lab.run(|lab| async move {
        let network = lab.pod_network();
        let (a, b) = (lab.pod_netns(), lab.pod_netns());
        network
            .attach("a", a.try_clone().unwrap(), &[])
            .await
            .expect("attach");
        network
            .attach("b", b.try_clone().unwrap(), &[])
            .await
            .expect("attach");
        let secret = std::net::UdpSocket::bind("0.0.0.0:7777").expect("bind");
        secret
            .set_read_timeout(Some(std::time::Duration::from_millis(300)))
            .unwrap();
        let heard = within(&b, || {
            let s = std::net::UdpSocket::bind("0.0.0.0:7000").expect("bind");
            s.set_read_timeout(Some(std::time::Duration::from_millis(300)))
                .unwrap();
            s
        });
        within(&a, || {
            use skiff_network::netlink::{Messages, route};
            let mut s = Socket::route().unwrap();
            let index = s.index("eth0").unwrap();
            let mut m = Messages::new();
            route::add_address(&mut m, index, Ipv4Addr::new(10, 42, 0, 99), 32);
            s.send_all(m).unwrap();
            let spoofed = std::net::UdpSocket::bind("10.42.0.99:0").unwrap();
            spoofed.send_to(b"!", "10.42.0.3:7000").unwrap();
        });
        let mut buf = [0; 9];
        assert!(heard.recv_from(&mut buf).is_err(), "rp_filter drops it");
        // A root process in a pod writes whole frames: to the node's pod address it gets through, to its loopback not.
        let from = Ipv4Addr::new(10, 42, 0, 2);
        lab::send_udp_frame(&a, from, Ipv4Addr::new(10, 42, 0, 1), 7777);
        assert!(
            secret.recv_from(&mut buf).is_ok(),
            "the frame is well formed"
        );
        lab::send_udp_frame(&a, from, Ipv4Addr::LOCALHOST, 7777);
        assert!(secret.recv_from(&mut buf).is_err(), "dropped");
        network.cleanup().await.expect("cleanup");
    });
}
