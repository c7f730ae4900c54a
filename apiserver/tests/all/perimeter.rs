//! The server's front over real connections: what a client may hold open, for how long, and with which credential.

use crate::credentials::token;
use crate::harness::*;
use crate::kubelet;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use skiff_apiserver::Handle;
use skiff_apiserver::auth::pki;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A connection, over HTTP/1.1.
pub async fn connect(server: &Handle, pair: Option<Pair>) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(server.app().auth.pki.server_ca_pem().as_bytes());
    roots.add(ca.expect("pem")).expect("ca");
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match pair {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).expect("client"),
        None => config.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(server.address()).await.expect("connect");
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("127.0.0.1").expect("name"), tcp)
        .await
        .expect("tls")
}

/// An administrator's certificate.
pub fn admin(server: &Handle) -> Pair {
    let pair = server
        .app()
        .auth
        .pki
        .issue_client("boss", &["system:masters"])
        .expect("client");
    pki::parse(&pair).expect("pair")
}

/// A certificate of the server's client authority that is good for so many seconds.
fn short_lived(server: &Handle, name: &str, seconds: u64) -> Pair {
    let pki = &server.app().auth.pki;
    let key = std::fs::read_to_string(pki.dir().join("client-ca.key")).expect("key");
    let key = KeyPair::from_pem(&key).expect("key");
    let issuer = Issuer::from_ca_cert_pem(pki.client_ca_pem(), key).expect("ca");
    let mut p = CertificateParams::default();
    p.distinguished_name.push(DnType::CommonName, name);
    p.distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("time")
        .as_secs();
    p.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now + seconds);
    let own = KeyPair::generate().expect("key");
    let cert = p.signed_by(&own, &issuer).expect("certificate");
    let key = PrivateKeyDer::Pkcs8(own.serialize_der().into());
    (vec![cert.der().clone()], key)
}

/// Reads until the text is there.
pub async fn until(tls: &mut TlsStream<TcpStream>, wanted: &str) -> String {
    let mut seen = String::new();
    let mut b = [0u8; 4096];
    while !seen.contains(wanted) {
        let n = tls.read(&mut b).await.expect("read");
        assert!(n > 0, "ended after {seen}");
        seen.push_str(&String::from_utf8_lossy(&b[..n]));
    }
    seen
}

/// Reads to the end of the connection, which has to come.
pub async fn to_the_end(tls: &mut TlsStream<TcpStream>) -> String {
    let mut all = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), tls.read_to_end(&mut all))
        .await
        .expect("the server holds the connection");
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn half_a_body_is_not_held_for_ever() {
    run(async {
        let s = another_server_with(|c| c.request_timeout = Duration::from_millis(500)).await;
        let mut tls = connect(&s, Some(admin(&s))).await;
        let head = "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\nContent-Length: 100\r\n\r\n{\"meta";
        tls.write_all(head.as_bytes()).await.expect("write");
        let a = to_the_end(&mut tls).await;
        assert!(a.starts_with("HTTP/1.1 504 "), "{a}");
        assert!(
            a.contains("Timeout: request did not complete within the allotted timeout")
                && a.contains("\"reason\":\"Timeout\""),
            "{a}"
        );
        // A stranger does not even get so far.
        let mut tls = connect(&s, None).await;
        tls.write_all(head.as_bytes()).await.expect("write");
        let a = to_the_end(&mut tls).await;
        assert!(a.starts_with("HTTP/1.1 403 "), "{a}");
        // A watch may take longer.
        let mut tls = connect(&s, Some(admin(&s))).await;
        tls.write_all(b"GET /api/v1/namespaces?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("write");
        until(&mut tls, "\"default\"").await;
        let mut b = [0u8; 4096];
        let quiet = async { while tls.read(&mut b).await.expect("read") > 0 {} };
        let ended = tokio::time::timeout(Duration::from_millis(1200), quiet).await;
        assert!(ended.is_err(), "the watch was ended");
    });
}

#[test]
fn a_time_that_is_none_is_refused() {
    run(async {
        let a = get("/api/v1/namespaces?timeout=soon").await;
        assert_eq!(a.code, 400, "{}", a.text);
        assert_eq!(
            a.message(),
            "invalid timeout specified in the request URL - time: invalid duration \"soon\""
        );
        for q in ["timeout=10s", "timeout=0", "timeout=200h"] {
            assert_eq!(get(&format!("/api/v1/namespaces?{q}")).await.code, 200);
        }
    });
}

#[test]
fn half_a_head_and_an_idle_connection_are_ended() {
    run(async {
        let s = another_server_with(|c| {
            c.connections.head = Duration::from_millis(300);
            c.connections.idle = Duration::from_millis(800);
        })
        .await;
        let mut half = connect(&s, None).await;
        half.write_all(b"GET /livez HT").await.expect("write");
        let mut idle = connect(&s, None).await;
        idle.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("write");
        assert_eq!(to_the_end(&mut half).await, "");
        assert!(to_the_end(&mut idle).await.ends_with("ok"));
    });
}

#[test]
fn a_certificate_is_looked_at_on_every_request_and_its_watch_ends_with_it() {
    run(async {
        let s = server();
        let pair = short_lived(s, "leaver", 3);
        let mut watch = connect(s, Some((pair.0.clone(), pair.1.clone_key()))).await;
        watch
            .write_all(
                b"GET /api/v1/namespaces?watch=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            )
            .await
            .expect("write");
        let a = until(&mut watch, "\"default\"").await;
        assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
        let mut kept = connect(s, Some(pair)).await;
        let request = b"GET /api/v1/namespaces/default HTTP/1.1\r\nHost: x\r\n\r\n";
        kept.write_all(request).await.expect("write");
        until(&mut kept, "HTTP/1.1 200 ").await;
        let a = to_the_end(&mut watch).await;
        assert!(a.ends_with("0\r\n\r\n"), "a graceful end: {a}");
        kept.write_all(request).await.expect("write");
        until(&mut kept, "HTTP/1.1 401 ").await;
    });
}

#[test]
fn a_watch_and_an_exec_end_when_their_token_is_revoked() {
    run(async {
        let s = server();
        let ns = "leaving";
        kubelet::world(ns, kubelet::kubelet(ns).await).await;
        let binding = json!({"metadata": {"name": "all"}, "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": ns}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}});
        let a = post(
            &format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings"),
            binding,
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        let token = token(ns, json!({})).await;
        let mut watch = connect(s, None).await;
        let request = format!(
            "GET /api/v1/namespaces/{ns}/pods?watch=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        watch.write_all(request.as_bytes()).await.expect("write");
        until(&mut watch, "\"ADDED\"").await;
        let mut exec = connect(s, None).await;
        let request = format!(
            "POST /api/v1/namespaces/{ns}/pods/p/exec?command=sh&stdin=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
        );
        exec.write_all(request.as_bytes()).await.expect("write");
        let a = until(&mut exec, "/exec/").await;
        assert!(a.starts_with("HTTP/1.1 101 "), "{a}");
        // It is taken from them while both are open.
        let path = format!("/api/v1/namespaces/{ns}/serviceaccounts/default");
        assert_eq!(delete(&path, Value::Null).await.code, 200);
        to_the_end(&mut watch).await;
        to_the_end(&mut exec).await;
    });
}

#[test]
fn the_api_server_is_to_kubelets_a_user_with_their_api_and_nothing_else() {
    run(async {
        let pki = &server().app().auth.pki;
        let (chain, _) = pki::parse(&pki.kubelet_client().expect("pair")).expect("parse");
        let who = pki.identify(&chain).expect("identity");
        assert_eq!(who.groups, Vec::<String>::new());
        let may = |verb: &'static str, resource: &'static str, sub: &'static str| {
            let user = who.name.clone();
            async move {
                let review = json!({"spec": {"user": user, "groups": ["system:authenticated"],
                    "resourceAttributes": {"verb": verb, "resource": resource, "subresource": sub, "name": "n"}}});
                let a = post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await;
                assert_eq!(a.code, 201, "{}", a.text);
                a.body["status"]["allowed"] == true
            }
        };
        for sub in [
            "proxy", "log", "stats", "metrics", "configz", "healthz", "pods",
        ] {
            assert!(may("get", "nodes", sub).await, "{sub}");
        }
        assert!(may("create", "nodes", "proxy").await);
        for (verb, resource) in [
            ("get", "secrets"),
            ("create", "pods"),
            ("delete", "nodes"),
            ("update", "nodes"),
        ] {
            assert!(!may(verb, resource, "").await, "{verb} {resource}");
        }
    });
}

async fn whoami(headers: &str) -> (u16, String) {
    let mut tls = connect(server(), None).await;
    let body = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
    let request = format!(
        "POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    tls.write_all(request.as_bytes()).await.expect("write");
    let mut a = until(&mut tls, "\r\n\r\n").await;
    if !a.ends_with('}') {
        let mut b = [0u8; 65536];
        let n = tokio::time::timeout(Duration::from_secs(5), tls.read(&mut b)).await;
        if let Ok(Ok(n)) = n {
            a.push_str(&String::from_utf8_lossy(&b[..n]));
        }
    }
    let code = a[9..12].parse().expect("a code");
    (code, a)
}

#[test]
fn headers_that_say_who_somebody_is_say_nothing() {
    run(async {
        for claims in [
            "X-Remote-User: system:admin\r\nX-Remote-Group: system:masters\r\n",
            "X-Remote-User: system:admin\r\nX-Remote-Extra-A: b\r\nConnection: X-Remote-User\r\n",
            "Impersonate-User: system:admin\r\nImpersonate-Group: system:masters\r\n",
            "Impersonate-Group: system:masters\r\n",
            "Authorization: Basic c3lzdGVtOmFkbWlu\r\n",
        ] {
            let (code, a) = whoami(claims).await;
            assert!(matches!(code, 401 | 403 | 500), "{claims}: {a}");
            assert!(!a.contains("\"username\":\"system:admin\""), "{a}");
        }
        namespace("wsbearer").await;
        let token = token("wsbearer", json!({})).await;
        use base64::Engine;
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&token);
        let protocol = |p: &str| {
            format!("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: {p}\r\n")
        };
        let bearer = format!("base64url.bearer.authorization.k8s.io.{encoded}");
        let (code, a) = whoami(&protocol(&format!("v5.channel.k8s.io, {bearer}"))).await;
        assert_eq!(code, 201, "{a}");
        assert!(a.contains("system:serviceaccount:wsbearer:default"), "{a}");
        for bad in [
            bearer.clone(),
            format!("a, {bearer}, {bearer}"),
            format!("a, {bearer}x"),
        ] {
            assert_eq!(whoami(&protocol(&bad)).await.0, 401, "{bad}");
        }
    });
}
