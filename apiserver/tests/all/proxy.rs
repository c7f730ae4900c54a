//! Whom requests are passed on to by nodes/proxy, pods/proxy and services/proxy, and what of them.

use crate::access::as_user;
use crate::harness::*;
use crate::kubelet::{kubelet, world};
use crate::perimeter::{admin, connect, until};
use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use skiff_apiserver::Handle;
use skiff_apiserver::auth::UserInfo;
use skiff_apiserver::special::reach;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const MERGE_TYPE: [(&str, &str); 1] = [("content-type", MERGE)];

async fn make(path: &str, object: Value) {
    let a = post(path, object).await;
    assert_eq!(a.code, 201, "{path}: {}", a.text);
}

async fn status(path: &str, status: Value) {
    let patch = json!({"status": status}).to_string();
    let a = ask("PATCH", &format!("{path}/status"), &MERGE_TYPE, patch).await;
    assert_eq!(a.code, 200, "{path}: {}", a.text);
}

/// A web server that tells what it got; `/page` is a page with links, `/away` redirects.
async fn web() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), hyper::service::service_fn(tell)),
            );
        }
    });
    (port, asked)
}

async fn tell(r: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = r.into_parts();
    let mut a = match parts.uri.path() {
        "/page" => {
            let mut a = Response::new(Body::from(
                "<a href=\"/rewriteme\">x</a><img src='pic.png'><a href='http://example.com/'>",
            ));
            let html = http::HeaderValue::from_static("text/html; charset=utf-8");
            a.headers_mut().insert("content-type", html);
            a
        }
        "/away" => {
            let mut a = Response::new(Body::empty());
            *a.status_mut() = http::StatusCode::FOUND;
            let to = http::HeaderValue::from_static("/elsewhere?x=1");
            a.headers_mut().insert("location", to);
            a
        }
        _ => {
            let headers: serde_json::Map<String, Value> = parts
                .headers
                .iter()
                .map(|(k, v)| (k.to_string(), json!(String::from_utf8_lossy(v.as_bytes()))))
                .collect();
            let body = body
                .collect()
                .await
                .map(|b| b.to_bytes())
                .unwrap_or_default();
            let said = json!({"method": parts.method.as_str(), "target": parts.uri.to_string(),
                "headers": headers, "body": String::from_utf8_lossy(&body)});
            Response::new(Body::from(said.to_string()))
        }
    };
    let hop = http::HeaderValue::from_static("x-hop");
    a.headers_mut().insert("connection", hop);
    a.headers_mut()
        .insert("x-hop", http::HeaderValue::from_static("1"));
    Ok(a)
}

/// A node of this machine, and the way to a port of it.
async fn node(name: &str, port: u16) -> String {
    make("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
    let addresses = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
    status(
        &format!("/api/v1/nodes/{name}"),
        json!({"addresses": addresses}),
    )
    .await;
    format!("/api/v1/nodes/http:{name}:{port}/proxy")
}

#[test]
fn a_node_that_claims_anothers_address_gets_nothing() {
    run(async {
        let port = kubelet("honest").await;
        world("honest", port).await;
        assert_eq!(get("/api/v1/nodes/node-honest/proxy/x").await.code, 200);
        // The other node's address and port, and the API server's own, which has a certificate of the same authority.
        make("/api/v1/nodes", json!({"metadata": {"name": "liar"}})).await;
        let claim = |port: u16| json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
        status("/api/v1/nodes/liar", claim(port)).await;
        let a = get("/api/v1/nodes/liar/proxy/x").await;
        assert_eq!(a.code, 503, "{}", a.text);
        assert!(a.message().contains("certificate"), "{}", a.message());
        status("/api/v1/nodes/liar", claim(server().address().port())).await;
        let a = get("/api/v1/nodes/liar/proxy/livez").await;
        assert_eq!((a.code, a.message()), (400, "address not allowed"));
    });
}

#[test]
fn the_server_itself_cannot_be_reached_through_a_node() {
    run(async {
        let own = server().address().port();
        let path = node("through", own).await;
        for scheme in ["http", "https"] {
            let path = path.replace("http:", &format!("{scheme}:"));
            let a = get(&format!("{path}/livez")).await;
            assert_eq!((a.code, a.message()), (400, "address not allowed"));
        }
        for bad in ["through:0x1", "through:99999", "ftp:through:1", "a:b:c:d"] {
            let a = get(&format!("/api/v1/nodes/{bad}/proxy/")).await;
            assert_eq!(a.code, 400, "{bad}: {}", a.text);
        }
    });
}

#[test]
fn get_of_nodes_proxy_runs_nothing() {
    run(async {
        world("noexec", kubelet("noexec").await).await;
        for (user, verbs) in [
            ("np-reader", json!(["get"])),
            ("np-admin", json!(["get", "create"])),
        ] {
            let rules = json!([{"verbs": verbs, "apiGroups": [""], "resources": ["nodes/proxy"]}]);
            let base = "/apis/rbac.authorization.k8s.io/v1";
            make(
                &format!("{base}/clusterroles"),
                json!({"metadata": {"name": user}, "rules": rules}),
            )
            .await;
            make(
                &format!("{base}/clusterrolebindings"),
                json!({"metadata": {"name": user}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
                    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]}),
            )
            .await;
        }
        let (reader, admin) = (
            UserInfo::new("np-reader", &[]),
            UserInfo::new("np-admin", &[]),
        );
        let base = "/api/v1/nodes/node-noexec/proxy";
        for path in [
            "/exec/a/b/c",
            "//exec/a/b/c",
            "/x/../run/a/b/c",
            "/%65xec/a/b/c",
            "/portForward/a/b",
        ] {
            let path = format!("{base}{path}");
            let a = as_user(&reader, "GET", &path, &[], Value::Null).await;
            assert_eq!(a.code, 403, "{path}: {}", a.text);
            assert!(
                a.message()
                    .contains("cannot create resource \"nodes/proxy\""),
                "{}",
                a.text
            );
            assert_eq!(
                as_user(&admin, "GET", &path, &[], Value::Null).await.code,
                200
            );
        }
        let a = as_user(&reader, "GET", &format!("{base}/pods"), &[], Value::Null).await;
        assert_eq!(a.code, 200, "{}", a.text);
    });
}

#[test]
fn every_method_reaches_the_root_and_get_is_sent_to_it() {
    run(async {
        let (port, _) = web().await;
        let base = node("methods", port).await;
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let a = ask(method, &format!("{base}?method={method}"), &[], "hi").await;
            assert_eq!(a.code, 200, "{method}: {}", a.text);
            assert_eq!(a.body["target"], format!("/?method={method}"));
            assert_eq!(
                (&a.body["method"], &a.body["body"]),
                (&json!(method), &json!("hi"))
            );
        }
        for method in ["GET", "HEAD"] {
            let a = ask(method, &format!("{base}?method={method}"), &[], "").await;
            assert_eq!(a.code, 301);
            assert_eq!(a.headers["location"], format!("{base}/?method={method}"));
        }
        for (asked, got) in [
            ("/", "/"),
            ("/a/b/", "/a/b/"),
            ("/a/../../../../api/v1/secrets", "/api/v1/secrets"),
            ("/a/%2e%2e/%2E%2E/b", "/b"),
            ("/..%2f..%2fetc%2fpasswd", "/etc/passwd"),
            ("//a//b", "/a/b"),
            ("/a%20b/%C3%BC?x=%2F..", "/a%20b/%C3%BC?x=%2F.."),
        ] {
            let a = get(&format!("{base}{asked}")).await;
            assert_eq!(a.body["target"], got, "{asked}: {}", a.text);
        }
    });
}

#[test]
fn nothing_of_the_caller_is_passed_on() {
    run(async {
        let (port, _) = web().await;
        let base = node("secretive", port).await;
        let mut tls = connect(server(), Some(admin(server()))).await;
        let request = format!(
            "GET {base}/x HTTP/1.1\r\nHost: asked\r\nAuthorization: Bearer secret-1\r\nCookie: a=secret-2\r\nX-Remote-User: secret-3\r\n\
             Impersonate-Extra-A: secret-4\r\nImpersonate-User: system:admin\r\nImpersonate-Group: system:masters\r\nProxy-Authorization: secret-5\r\n\
             X-Forwarded-Host: secret-6\r\nConnection: X-Listed\r\nX-Listed: secret-7\r\nX-Forwarded-For: 192.0.2.7\r\nX-Mine: mine\r\n\r\n"
        );
        tls.write_all(request.as_bytes()).await.expect("write");
        let mut a = until(&mut tls, "\r\n\r\n").await;
        let mut b = [0u8; 4096];
        while !a.contains("\"target\"") {
            let n = tls.read(&mut b).await.expect("read");
            assert!(n > 0, "{a}");
            a.push_str(&String::from_utf8_lossy(&b[..n]));
        }
        assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
        assert!(!a.contains("secret-"), "{a}");
        assert!(!a.to_lowercase().contains("x-hop"), "{a}");
        assert!(a.contains("\"x-mine\":\"mine\""), "{a}");
        assert!(
            a.contains("\"x-forwarded-for\":\"192.0.2.7, 127.0.0.1\""),
            "{a}"
        );
        assert!(a.contains("\"x-forwarded-host\":\"asked\""), "{a}");
        assert!(
            a.contains(&format!("\"x-forwarded-uri\":\"{base}/x\"")),
            "{a}"
        );
    });
}

#[test]
fn links_and_redirects_lead_through_the_proxy() {
    run(async {
        let (port, asked) = web().await;
        let base = node("links", port).await;
        let a = get(&format!("{base}/page")).await;
        assert_eq!(
            a.text,
            format!(
                "<a href=\"{base}/rewriteme\">x</a><img src='pic.png'><a href='http://example.com/'>"
            )
        );
        let before = asked.load(SeqCst);
        let a = get(&format!("{base}/away")).await;
        assert_eq!(a.code, 302);
        assert_eq!(a.headers["location"], format!("{base}/elsewhere?x=1"));
        assert_eq!(asked.load(SeqCst), before + 1, "the redirect was followed");
    });
}

/// Objects that claim addresses, on the shared server; nobody listens at any of them.
async fn claims(ns: &str) {
    namespace(ns).await;
    let node = format!("node-{ns}");
    make(
        "/api/v1/nodes",
        json!({"metadata": {"name": node}, "spec": {"podCIDR": "10.42.7.0/24", "podCIDRs": ["10.42.7.0/24"]}}),
    )
    .await;
    let addresses = json!([{"type": "InternalIP", "address": "198.51.100.7"}]);
    status(
        &format!("/api/v1/nodes/{node}"),
        json!({"addresses": addresses}),
    )
    .await;
    for (name, host) in [("p", false), ("host", true)] {
        let mut p = pod(name);
        p["spec"]["hostNetwork"] = host.into();
        make(&format!("/api/v1/namespaces/{ns}/pods"), p).await;
        let b = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
        make(&format!("/api/v1/namespaces/{ns}/pods/{name}/binding"), b).await;
    }
}

/// A request that goes nowhere.
async fn refused(path: &str) -> String {
    let a = get(path).await;
    assert_eq!(a.code, 400, "{path}: {}", a.text);
    a.message().to_string()
}

#[test]
fn a_pod_is_reached_at_its_own_address_only() {
    run(async {
        claims("podip").await;
        let everything = json!({"metadata": {"name": "wide-podip"}, "spec": {"podCIDR": "0.0.0.0/0", "podCIDRs": ["0.0.0.0/0"]}});
        make("/api/v1/nodes", everything).await;
        make("/api/v1/namespaces/podip/pods", pod("wide")).await;
        let b =
            json!({"metadata": {"name": "wide"}, "target": {"kind": "Node", "name": "wide-podip"}});
        make("/api/v1/namespaces/podip/pods/wide/binding", b).await;
        let base = "/api/v1/namespaces/podip/pods";
        let own = server().address().port();
        for (name, ip, port, allowed) in [
            ("p", "10.42.7.9", 80, true),
            ("p", "10.42.7.1", 80, false),
            ("p", "10.42.8.9", 80, false),
            ("p", "10.43.0.1", 443, false),
            ("p", "198.51.100.7", 80, false),
            ("p", "127.0.0.1", own, false),
            ("p", "127.0.0.1", 80, false),
            ("p", "169.254.169.254", 80, false),
            ("p", "192.0.2.1", own, false),
            ("p", "8.8.8.8", 80, false),
            ("p", "::1", 80, false),
            // A node's word that everything is its pods' network makes it so for nobody.
            ("wide", "8.8.8.8", 80, false),
            ("wide", "10.42.9.9", 80, true),
            ("p", "::ffff:127.0.0.1", 80, false),
            ("host", "198.51.100.7", 80, true),
            ("host", "198.51.100.8", 80, false),
            ("host", "10.42.7.9", 80, false),
        ] {
            let ips = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
            status(&format!("{base}/{name}"), ips).await;
            if allowed {
                // Nobody is there; the decision is enough.
                let pod = get(&format!("{base}/{name}")).await.body;
                let to = reach::pod(server().app(), &pod, port).map_err(|s| s.message);
                assert_eq!(to, Ok(ip.parse().expect("ip")), "{name} {ip}:{port}");
                continue;
            }
            let why = refused(&format!("{base}/{name}:{port}/proxy/")).await;
            assert_eq!(why, "address not allowed", "{name} {ip}:{port}");
        }
        // The address of what has ended is another's by now.
        let ended =
            json!({"phase": "Succeeded", "podIP": "10.42.7.9", "podIPs": [{"ip": "10.42.7.9"}]});
        status(&format!("{base}/p"), ended).await;
        assert_eq!(
            refused(&format!("{base}/p:80/proxy/")).await,
            "pod p has ended; current phase is Succeeded"
        );
    });
}

#[test]
fn a_service_leads_to_its_own_pods_or_out_of_the_cluster() {
    run(async {
        claims("endpoints").await;
        namespace("endpoints-victim").await;
        let ips =
            json!({"phase": "Running", "podIP": "10.42.7.9", "podIPs": [{"ip": "10.42.7.9"}]});
        status("/api/v1/namespaces/endpoints/pods/p", ips).await;
        make(
            "/api/v1/namespaces/endpoints/services",
            json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}),
        )
        .await;
        let slices = "/apis/discovery.k8s.io/v1/namespaces/endpoints/endpointslices";
        let to = |name: &str, ns: &str| json!({"kind": "Pod", "name": name, "namespace": ns});
        let own = server().address().port();
        for (n, (ip, port, target, allowed)) in [
            ("10.42.7.9", 80, to("p", "endpoints"), true),
            ("203.0.113.9", 80, Value::Null, true),
            ("10.42.7.9", 80, Value::Null, false),
            ("10.42.7.10", 80, to("p", "endpoints"), false),
            ("10.42.7.9", 80, to("p", "endpoints-victim"), false),
            ("10.42.7.9", 80, to("none", "endpoints"), false),
            ("10.43.0.10", 53, Value::Null, false),
            ("192.0.2.1", own, Value::Null, false),
        ]
        .into_iter()
        .enumerate()
        {
            let mut endpoint = json!({"addresses": [ip]});
            if !target.is_null() {
                endpoint["targetRef"] = target.clone();
            }
            if allowed {
                let to = reach::endpoint(server().app(), "endpoints", &endpoint, ip, port);
                let to = to.map_err(|s| s.message);
                assert_eq!(to, Ok(ip.parse().expect("ip")), "{ip}:{port} {target}");
                continue;
            }
            let name = format!("s-{n}");
            make(
                slices,
                json!({"metadata": {"name": name, "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
                    "ports": [{"name": "", "port": port}], "endpoints": [endpoint]}),
            )
            .await;
            let why = refused("/api/v1/namespaces/endpoints/services/s:80/proxy/").await;
            assert_eq!(why, "address not allowed", "{ip}:{port} {target}");
            let a = delete(&format!("{slices}/{name}"), Value::Null).await;
            assert_eq!(a.code, 200, "{}", a.text);
        }
    });
}

#[test]
fn a_server_that_others_can_reach_has_no_node_on_loopback() {
    run(async {
        let s: Handle = another_server_with(|c| c.bind_address = [0, 0, 0, 0].into()).await;
        let send = |method: &'static str, path: &'static str, body: Value| {
            let s = &s;
            async move { read(send_to(s, method, path, &MERGE_TYPE, body.to_string()).await).await }
        };
        let a = read(
            send_to(
                &s,
                "POST",
                "/api/v1/nodes",
                &[],
                json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.42.0.0/24"}}).to_string(),
            )
            .await,
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        for ip in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "10.43.0.1",
            "10.42.0.9",
        ] {
            let claim = json!({"status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
            let a = send("PATCH", "/api/v1/nodes/n/status", claim).await;
            assert_eq!(a.code, 200, "{}", a.text);
            for path in ["/api/v1/nodes/n/proxy/", "/api/v1/nodes/n:80/proxy/"] {
                let a = send("GET", path, Value::Null).await;
                assert_eq!((a.code, a.message()), (400, "address not allowed"), "{ip}");
            }
        }
    });
}
