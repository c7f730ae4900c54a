//! What is passed on to kubelets and pods, over real TLS and real upgrades: a server with a node's certificate answers here.

use crate::harness::*;
use crate::perimeter::{admin, connect};
use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use skiff_apiserver::auth::pki;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A kubelet as far as HTTP goes: it takes only clients of the cluster's client authority, shows what was asked for, and
/// sends back in capitals what comes over an upgraded connection.
pub async fn kubelet(ns: &str) -> u16 {
    let node = format!("node-{ns}");
    let pki = &server().app().auth.pki;
    let pair = pki
        .issue_server(
            &format!("system:node:{node}"),
            std::slice::from_ref(&node),
            &[[127, 0, 0, 1].into()],
        )
        .expect("certificate");
    let (chain, key) = pki::parse(&pair).expect("pair");
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    roots
        .add(
            rustls::pki_types::CertificateDer::from_pem_slice(pki.client_ca_pem().as_bytes())
                .expect("pem"),
        )
        .expect("ca");
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots))
        .build()
        .expect("verifier");
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("tls");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else {
                    return;
                };
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(
                        TokioIo::new(tls),
                        hyper::service::service_fn(answer),
                    )
                    .await;
            });
        }
    });
    port
}

async fn answer(mut r: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible> {
    let target = r.uri().to_string();
    if r.headers().contains_key("authorization") || r.headers().contains_key("impersonate-user") {
        return Ok(refuse(500, "the client's credentials were passed on"));
    }
    if let Some(protocol) = r.headers().get("upgrade").cloned() {
        let upgrade = hyper::upgrade::on(&mut r);
        tokio::spawn(async move {
            let Ok(io) = upgrade.await else { return };
            let mut io = TokioIo::new(io);
            let _ = io.write_all(format!("{target}\n").as_bytes()).await;
            let mut b = [0u8; 1024];
            while let Ok(n @ 1..) = io.read(&mut b).await {
                if io.write_all(&b[..n].to_ascii_uppercase()).await.is_err() {
                    return;
                }
            }
        });
        let mut a = Response::new(Body::empty());
        *a.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        a.headers_mut().insert("upgrade", protocol);
        a.headers_mut()
            .insert("connection", http::HeaderValue::from_static("Upgrade"));
        if let Some(p) = r.headers().get("sec-websocket-protocol") {
            a.headers_mut().insert("sec-websocket-protocol", p.clone());
        }
        return Ok(a);
    }
    if target.contains("tailLines=7") {
        return Ok(refuse(
            400,
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating",
        ));
    }
    let method = r.method().clone();
    let body = r
        .into_body()
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    Ok(Response::new(Body::from(format!(
        "{method} {target} {}",
        String::from_utf8_lossy(&body)
    ))))
}

fn refuse(code: u16, why: &str) -> Response<Body> {
    let mut a = Response::new(Body::from(why.to_string()));
    *a.status_mut() = StatusCode::from_u16(code).expect("code");
    a
}

pub async fn world(ns: &str, port: u16) {
    let node = format!("node-{ns}");
    post(
        "/api/v1/namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}}),
    )
    .await;
    post(
        &format!("/api/v1/namespaces/{ns}/serviceaccounts"),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
    )
    .await;
    assert_eq!(
        post(
            "/api/v1/nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
        )
        .await
        .code,
        201
    );
    let status = json!({"status": {"addresses": [{"type": "Hostname", "address": "nowhere"}, {"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    let a = ask(
        "PATCH",
        &format!("/api/v1/nodes/{node}/status"),
        &[("content-type", "application/merge-patch+json")],
        status.to_string(),
    )
    .await;
    assert_eq!(a.code, 200, "{}", a.text);
    for (name, containers) in [
        ("p", json!([{"name": "c", "image": "i"}])),
        (
            "two",
            json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]),
        ),
        ("free", json!([{"name": "c", "image": "i"}])),
    ] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers}});
        assert_eq!(
            post(&format!("/api/v1/namespaces/{ns}/pods"), pod)
                .await
                .code,
            201
        );
        if name != "free" {
            let b = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
            assert_eq!(
                post(&format!("/api/v1/namespaces/{ns}/pods/{name}/binding"), b)
                    .await
                    .code,
                201
            );
        }
    }
}

#[test]
fn logs_come_from_the_kubelet_of_the_pods_node() {
    run(async {
        world("logs", kubelet("logs").await).await;
        let p = "/api/v1/namespaces/logs/pods";
        let a = get(&format!(
            "{p}/p/log?follow=true&tailLines=5&sinceTime=2026-01-01T00:00:00Z&previous=false"
        ))
        .await;
        assert_eq!(
            (a.code, a.text.as_str()),
            (
                200,
                "GET /containerLogs/logs/p/c?follow=true&tailLines=5&sinceTime=2026-01-01T00%3A00%3A00Z "
            )
        );
        assert_eq!(a.headers["content-type"], "text/plain");
        let a = get(&format!("{p}/two/log")).await;
        assert_eq!(
            (a.code, a.message()),
            (
                400,
                "a container name must be specified for pod two, choose one of: [a b]"
            )
        );
        assert_eq!(
            get(&format!("{p}/two/log?container=b")).await.text,
            "GET /containerLogs/logs/two/b "
        );
        let a = get(&format!("{p}/p/log?container=x")).await;
        assert_eq!(
            (a.code, a.message()),
            (400, "container x is not valid for pod p")
        );
        let a = get(&format!("{p}/p/log?tailLines=7")).await;
        assert_eq!(
            (a.code, a.reason(), a.message()),
            (
                400,
                "BadRequest",
                "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"
            )
        );
        assert_eq!(
            get(&format!("{p}/free/log")).await.code,
            204,
            "nothing has been logged yet"
        );
        assert_eq!(get(&format!("{p}/none/log")).await.code, 404);
        assert_eq!(get(&format!("{p}/p/log?tailLines=-1")).await.code, 422);
        assert_eq!(
            get(&format!(
                "{p}/p/log?sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z"
            ))
            .await
            .code,
            422
        );
    });
}

#[test]
fn nodes_are_proxied_with_path_query_and_body() {
    run(async {
        world("nproxy", kubelet("nproxy").await).await;
        let a = ask(
            "PUT",
            "/api/v1/nodes/node-nproxy/proxy/configz/x%20y?a=b",
            &[
                ("authorization", "Bearer x"),
                ("impersonate-user", "system:admin"),
                ("impersonate-group", "system:masters"),
            ],
            "hello",
        )
        .await;
        assert_eq!(
            (a.code, a.text.as_str()),
            (200, "PUT /configz/x%20y?a=b hello")
        );
        let a = get("/api/v1/nodes/node-nproxy/proxy").await;
        assert_eq!(
            (a.code, &a.headers["location"]),
            (
                301,
                &http::HeaderValue::from_static("/api/v1/nodes/node-nproxy/proxy/")
            )
        );
        assert_eq!(get("/api/v1/nodes/none/proxy/").await.code, 404);
    });
}

#[test]
fn an_unreachable_kubelet_is_said_to_be_so() {
    run(async {
        let port = {
            let l = TcpListener::bind("127.0.0.1:0").await.expect("bind");
            l.local_addr().expect("address").port()
        };
        world("dead", port).await;
        let a = get("/api/v1/namespaces/dead/pods/p/log").await;
        assert_eq!(a.code, 500);
        assert!(
            a.message()
                .contains("error dialing backend: dial tcp 127.0.0.1:")
                && a.message().contains("refused"),
            "{}",
            a.message()
        );
    });
}

#[test]
fn exec_needs_an_upgrade_a_command_and_a_running_pod() {
    run(async {
        world("exec", kubelet("exec").await).await;
        let p = "/api/v1/namespaces/exec/pods";
        let a = post(&format!("{p}/p/exec?command=ls&stdout=true"), Value::Null).await;
        assert_eq!((a.code, a.message()), (400, "Upgrade request required"));
        let a = post(&format!("{p}/p/exec?stdout=true"), Value::Null).await;
        assert_eq!(
            (a.code, a.message()),
            (400, "you must specify at least 1 command for the container")
        );
        let a = post(&format!("{p}/free/exec?command=ls"), Value::Null).await;
        assert_eq!(
            (a.code, a.message()),
            (400, "pod free does not have a host assigned")
        );
        let a = post(&format!("{p}/p/portforward?ports=99999"), Value::Null).await;
        assert_eq!(a.code, 400);
    });
}

#[test]
fn upgraded_connections_pass_through_byte_by_byte() {
    run(async {
        world("spdy", kubelet("spdy").await).await;
        let app = server().app();
        let mut roots = rustls::RootCertStore::empty();
        use rustls::pki_types::pem::PemObject;
        roots
            .add(
                rustls::pki_types::CertificateDer::from_pem_slice(
                    app.auth.pki.server_ca_pem().as_bytes(),
                )
                .expect("pem"),
            )
            .expect("ca");
        let (chain, key) = pki::parse(
            &app.auth
                .pki
                .issue_client("someone", &["system:masters"])
                .expect("client"),
        )
        .expect("pair");
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("tls");
        for (protocol, extra) in [
            (
                "SPDY/3.1",
                "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n",
            ),
            (
                "websocket",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n",
            ),
        ] {
            let tcp = TcpStream::connect(server().address())
                .await
                .expect("connect");
            let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config.clone()))
                .connect(
                    rustls::pki_types::ServerName::try_from("127.0.0.1").expect("name"),
                    tcp,
                )
                .await
                .expect("tls");
            let path = "/api/v1/namespaces/spdy/pods/p/exec?command=sh&command=-c&command=echo%20%24x&stdin=true&stdout=true&tty=true&stderr=true&container=c";
            let method = if protocol == "websocket" {
                "GET"
            } else {
                "POST"
            };
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{extra}Content-Length: 0\r\n\r\n"
            );
            tls.write_all(request.as_bytes()).await.expect("write");
            let mut seen = String::new();
            let mut b = [0u8; 4096];
            while !seen.contains("\r\n\r\n") || !seen.ends_with('\n') || !seen.contains("/exec/") {
                let n = tls.read(&mut b).await.expect("read");
                assert!(n > 0, "ended after {seen}");
                seen.push_str(&String::from_utf8_lossy(&b[..n]));
            }
            assert!(seen.starts_with("HTTP/1.1 101"), "{seen}");
            assert!(seen.ends_with("/exec/spdy/p/c?command=sh&command=-c&command=echo%20%24x&input=1&output=1&tty=1\n"), "{seen}");
            assert_eq!(
                seen.to_lowercase()
                    .contains("sec-websocket-protocol: v5.channel.k8s.io"),
                protocol == "websocket"
            );
            for word in ["ahoy", "skiff"] {
                tls.write_all(word.as_bytes()).await.expect("write");
                let mut got = vec![0u8; word.len()];
                tls.read_exact(&mut got).await.expect("read");
                assert_eq!(got, word.to_uppercase().as_bytes());
            }
        }
    });
}

#[test]
fn a_log_over_a_websocket_comes_in_messages() {
    use futures::StreamExt;
    use tokio_tungstenite::tungstenite::Message;
    run(async {
        world("wslog", kubelet("wslog").await).await;
        let want = "GET /containerLogs/wslog/p/c?tailLines=3 ";
        for (protocol, message) in [
            (None, Message::binary(want)),
            (Some("binary.k8s.io"), Message::binary(want)),
            (
                Some("base64.binary.k8s.io"),
                Message::text("R0VUIC9jb250YWluZXJMb2dzL3dzbG9nL3AvYz90YWlsTGluZXM9MyA="),
            ),
        ] {
            let tls = connect(server(), Some(admin(server()))).await;
            let mut request = http::Request::builder()
                .uri("wss://x/api/v1/namespaces/wslog/pods/p/log?tailLines=3")
                .header("host", "x")
                .header("connection", "Upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
            if let Some(p) = protocol {
                request = request.header("sec-websocket-protocol", p);
            }
            let request = request.body(()).expect("request");
            let (mut socket, answer) = tokio_tungstenite::client_async(request, tls)
                .await
                .expect("a WebSocket");
            let agreed = answer.headers().get("sec-websocket-protocol");
            assert_eq!(agreed.and_then(|a| a.to_str().ok()), protocol);
            let first = socket.next().await.expect("a message").expect("well");
            assert_eq!(first, message);
            let last = socket.next().await.expect("an end").expect("well");
            assert!(last.is_close(), "{last:?}");
        }
        // What the kubelet refuses is refused before protocols are switched.
        let upgrade = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let a = ask("GET", "/api/v1/namespaces/wslog/pods/p/log", &upgrade, "").await;
        assert_eq!(a.code, 400, "no connection: {}", a.text);
    });
}
