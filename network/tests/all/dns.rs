//! Cluster DNS.

use crate::lab::{Lab, within};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::json;
use skiff_client::Cache;
use skiff_network::dns::{DnsConfig, DnsServer};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const SERVER: &str = "10.43.0.10:53";

fn query(name: &str, kind: RecordType, edns: bool) -> Vec<u8> {
    let mut m = Message::query();
    m.metadata.id = rand::random();
    m.metadata.recursion_desired = true;
    m.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    if edns {
        let mut e = Edns::new();
        e.set_max_payload(1232);
        m.set_edns(e);
    }
    m.to_vec().expect("bytes")
}

fn udp(from: &OwnedFd, query: &[u8]) -> Option<Message> {
    within(from, || {
        let s = UdpSocket::bind("0.0.0.0:0").expect("bind");
        s.connect(SERVER).expect("connect");
        s.set_read_timeout(Some(Duration::from_secs(8)))
            .expect("timeout");
        s.send(query).expect("send");
        let mut buf = [0; 4096];
        let n = s.recv(&mut buf).ok()?;
        Message::from_vec(&buf[..n]).ok()
    })
}

fn tcp(from: &OwnedFd, query: &[u8]) -> Option<Message> {
    within(from, || {
        let mut s = TcpStream::connect(SERVER).ok()?;
        s.write_all(&(query.len() as u16).to_be_bytes()).ok()?;
        s.write_all(query).ok()?;
        let mut len = [0; 2];
        s.read_exact(&mut len).ok()?;
        let mut buf = vec![0; usize::from(u16::from_be_bytes(len))];
        s.read_exact(&mut buf).ok()?;
        Message::from_vec(&buf).ok()
    })
}

fn show(m: &Message) -> Vec<String> {
    m.answers.iter().map(|r| r.data.to_string()).collect()
}

/// A name server in a namespace: A 192.0.2.77 for all names, TXT too long for UDP; counts queries.
fn upstream(netns: &OwnedFd, asked: Arc<AtomicUsize>) {
    let answer = |raw: &[u8], udp: bool| {
        let q = Message::from_vec(raw).expect("a query");
        let mut m = Message::response(q.metadata.id, OpCode::Query);
        let question = q.queries[0].clone();
        let name = question.name.clone();
        match question.query_type {
            RecordType::A => {
                m.add_answer(Record::from_rdata(
                    name,
                    300,
                    RData::A(A::new(192, 0, 2, 77)),
                ));
            }
            RecordType::TXT if udp => m.metadata.truncation = true,
            RecordType::TXT => {
                let text = TXT::new((0..20).map(|_| "x".repeat(200)).collect());
                m.add_answer(Record::from_rdata(name, 300, RData::TXT(text)));
            }
            _ => m.metadata.response_code = ResponseCode::NXDomain,
        }
        m.add_query(question);
        m.to_vec().expect("bytes")
    };
    let socket = within(netns, || UdpSocket::bind("192.0.2.2:53").expect("bind"));
    let listener = within(netns, || TcpListener::bind("192.0.2.2:53").expect("listen"));
    std::thread::spawn(move || {
        let mut buf = [0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            asked.fetch_add(1, Ordering::SeqCst);
            let _ = socket.send_to(&answer(&buf[..n], true), from);
        }
    });
    std::thread::spawn(move || {
        for s in listener.incoming() {
            let Ok(mut s) = s else { return };
            let mut len = [0; 2];
            if s.read_exact(&mut len).is_err() {
                continue;
            }
            let mut buf = vec![0; usize::from(u16::from_be_bytes(len))];
            if s.read_exact(&mut buf).is_ok() {
                let a = answer(&buf, false);
                let _ = s.write_all(&(a.len() as u16).to_be_bytes());
                let _ = s.write_all(&a);
            }
        }
    });
}

#[test]
fn a_pod_asks_over_udp_and_tcp_about_the_cluster_and_the_world() {
    let Some(lab) = Lab::new() else { return };
    let outside = lab.outside();
    lab.run(|lab| async move {
        let network = lab.pod_network();
        let pod = lab.pod_netns();
        network.attach("a", pod.try_clone().expect("dup"), &[]).await.expect("attach");
        network.add_address(Ipv4Addr::new(10, 43, 0, 10)).expect("address");
        let resolv_conf = lab.dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 10.43.0.10\n").expect("write");
        let config = DnsConfig { resolv_conf: resolv_conf.clone(), ..DnsConfig::new() };
        let server = DnsServer::bind(config.clone()).await.expect("bind");
        let taken = DnsServer::bind(config).await.err().expect("taken").to_string();
        assert!(taken.contains("10.43.0.10:53"), "{taken}");
        let (services, slices, namespaces) = (Cache::detached(), Cache::detached(), Cache::detached());
        namespaces.apply(serde_json::from_value(json!({"metadata": {"name": "d"}})).expect("ns"));
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run_on(
            (services.clone(), slices.clone(), namespaces.clone()),
            stop.clone(),
        ));
        // The tests' clients block: the server needs this thread meanwhile.
        let pod = Arc::new(pod);
        let ask = |tcp_: bool, q: Vec<u8>| {
            let pod = pod.clone();
            async move {
                tokio::task::spawn_blocking(move || if tcp_ { tcp(&pod, &q) } else { udp(&pod, &q) })
                    .await
                    .expect("join")
            }
        };
        let web = "web.d.svc.cluster.local.";
        let early = ask(false, query(web, RecordType::A, false)).await.expect("answer");
        assert_eq!(early.metadata.response_code, ResponseCode::ServFail, "nothing is known yet");
        services.mark_synced();
        slices.mark_synced();
        namespaces.mark_synced();
        services.apply(serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d"},
            "spec": {"clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5"], "ports": [{"port": 80}]}})).expect("service"));
        services.apply(serde_json::from_value(json!({"metadata": {"name": "many", "namespace": "d"},
            "spec": {"clusterIP": "None", "ports": [{"port": 80}]}})).expect("service"));
        let ends: Vec<_> = (1..=100).map(|i| json!({"addresses": [format!("10.42.0.{i}")]})).collect();
        slices.apply(serde_json::from_value(json!({"metadata": {"name": "many-1", "namespace": "d",
            "labels": {"kubernetes.io/service-name": "many"}}, "addressType": "IPv4", "endpoints": ends,
            "ports": [{"port": 80}]})).expect("slice"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        for over_tcp in [false, true] {
            let m = ask(over_tcp, query(web, RecordType::A, false)).await.expect("answer");
            assert_eq!(show(&m), ["10.43.0.5"]);
            assert_eq!(m.answers[0].ttl, 5);
            assert!(m.metadata.authoritative && m.metadata.recursion_available);
        }
        // 100 addresses: cut to 512 bytes, to the payload that EDNS allows, and whole over TCP.
        let many = "many.d.svc.cluster.local.";
        let cut = ask(false, query(many, RecordType::A, false)).await.expect("answer");
        assert!(cut.metadata.truncation && cut.answers.len() < 40);
        let more = ask(false, query(many, RecordType::A, true)).await.expect("answer");
        assert!(more.metadata.truncation && more.answers.len() > cut.answers.len());
        let whole = ask(true, query(many, RecordType::A, false)).await.expect("answer");
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 100));
        // Without a name server but ourselves: at once, and no loop.
        let m = ask(false, query("example.org.", RecordType::A, false)).await.expect("answer");
        assert_eq!(m.metadata.response_code, ResponseCode::ServFail);
        // Another resolv.conf is seen as it comes.
        let asked = Arc::new(AtomicUsize::new(0));
        upstream(&outside, asked.clone());
        std::fs::write(lab.dir.path().join("new"), "nameserver 192.0.2.2\n").expect("write");
        std::fs::rename(lab.dir.path().join("new"), &resolv_conf).expect("rename");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = asked.load(Ordering::SeqCst);
        for _ in 0..3 {
            let m = ask(false, query("example.org.", RecordType::A, false)).await.expect("answer");
            assert_eq!(show(&m), ["192.0.2.77"]);
            assert!(m.answers[0].ttl <= 300);
        }
        assert_eq!(asked.load(Ordering::SeqCst), before + 1, "kept");
        let m = ask(false, query("example.org.", RecordType::TXT, false)).await.expect("answer");
        assert!(m.metadata.truncation);
        let m = ask(true, query("example.org.", RecordType::TXT, false)).await.expect("answer");
        assert_eq!(m.answers.len(), 1);
        // An ExternalName brings the addresses it leads to.
        services.apply(serde_json::from_value(json!({"metadata": {"name": "ext", "namespace": "d"},
            "spec": {"type": "ExternalName", "externalName": "www.example.org"}})).expect("service"));
        let m = ask(false, query("ext.d.svc.cluster.local.", RecordType::A, false)).await.expect("answer");
        assert_eq!(show(&m), ["www.example.org.", "192.0.2.77"]);
        // Noise does not end it.
        for n in 0..50u8 {
            let noise: Vec<u8> = (0..n).map(|i| i.wrapping_mul(37) ^ n).collect();
            within(&pod, || {
                let s = UdpSocket::bind("0.0.0.0:0").expect("bind");
                let _ = s.send_to(&noise, SERVER);
            });
        }
        let m = ask(false, query(web, RecordType::A, false)).await.expect("answer");
        assert_eq!(show(&m), ["10.43.0.5"]);
        stop.cancel();
        running.await.expect("join").expect("run");
        network.cleanup().await.expect("cleanup");
    });
}
