//! Real TLS on loopback, with an API server that knows only reviews.

use super::*;
use crate::server::serve;
use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::any;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the API knows: tokens with their user, and rights as `user verb subresource`.
#[derive(Default)]
struct Api {
    tokens: HashMap<String, String>,
    rights: HashSet<String>,
    questions: usize,
}

type Shared = Arc<Mutex<Api>>;

fn client(api: &Shared) -> kube::Client {
    let api = api.clone();
    let service = tower::service_fn(move |r: http::Request<kube::client::Body>| {
        let api = api.clone();
        async move {
            let path = r.uri().path().to_string();
            let body = r.into_body().collect().await.expect("body").to_bytes();
            let mut review: Value = serde_json::from_slice(&body).expect("a review");
            let mut api = api.lock();
            api.questions += 1;
            let spec = review["spec"].clone();
            let text = |v: &Value| v.as_str().unwrap_or("").to_string();
            review["status"] = if path.ends_with("/tokenreviews") {
                match api.tokens.get(&text(&spec["token"])) {
                    Some(user) => json!({"authenticated": true, "user": {"username": user}}),
                    None => json!({"authenticated": false, "error": "unknown"}),
                }
            } else {
                let a = &spec["resourceAttributes"];
                assert_eq!((&a["resource"], &a["name"]), (&json!("nodes"), &json!("n")));
                let right = format!(
                    "{} {} {}",
                    text(&spec["user"]),
                    text(&a["verb"]),
                    text(&a["subresource"])
                );
                json!({"allowed": api.rights.contains(&right)})
            };
            Ok::<_, Infallible>(http::Response::new(Body::from(review.to_string())))
        }
    });
    kube::Client::new(service, "default")
}

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
    der: CertificateDer<'static>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).expect("ca");
    Authority {
        pem: cert.pem(),
        der: cert.der().clone(),
        params,
        key,
    }
}

impl Authority {
    fn issue(
        &self,
        name: &str,
        server: bool,
        seconds: u64,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("key");
        let names = if server { vec!["n".into()] } else { vec![] };
        let mut p = CertificateParams::new(names).expect("params");
        p.distinguished_name.push(DnType::CommonName, name);
        p.extended_key_usages = vec![if server {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("time")
            .as_secs();
        p.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now + seconds);
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let cert = p.signed_by(&key, &issuer).expect("certificate");
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        (vec![cert.der().clone()], key)
    }
}

struct Node {
    address: SocketAddr,
    ca: Authority,
    api: Shared,
    _end: DropGuard,
}

async fn node() -> Node {
    let (ca, api) = (authority(), Shared::default());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = ClientCa::new(ca.pem.as_bytes(), provider.clone()).expect("ca");
    let (chain, key) = ca.issue("system:node:n", true, 3600);
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(Arc::new(skiff_https::AnyCertificate(clients.clone())))
        .with_single_cert(chain, key)
        .expect("key");
    let auth = Arc::new(Auth::new(client(&api), "n", clients));
    let router = Router::new().fallback(any(|| async { "reached".into_response() }));
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = tcp.local_addr().expect("address");
    let stop = CancellationToken::new();
    tokio::spawn(serve(tcp, Arc::new(tls), auth, router, stop.clone()));
    Node {
        address,
        ca,
        api,
        _end: stop.drop_guard(),
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Body>;

impl Node {
    fn allow(&self, rights: &[&str]) {
        let mut api = self.api.lock();
        api.rights.extend(rights.iter().map(ToString::to_string));
    }

    async fn connect(
        &self,
        pair: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Sender {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der.clone()).expect("root");
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match pair {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).expect("client"),
            None => config.with_no_client_auth(),
        };
        let tcp = TcpStream::connect(self.address).await.expect("connect");
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("n").expect("name"), tcp)
            .await
            .expect("tls");
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .expect("http");
        tokio::spawn(connection);
        sender
    }

    async fn with_certificate(&self, name: &str) -> Sender {
        self.connect(Some(self.ca.issue(name, false, 3600))).await
    }
}

async fn ask(
    sender: &mut Sender,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, String) {
    let mut r = http::Request::builder().method(method).uri(path);
    for (k, v) in headers {
        r = r.header(*k, *v);
    }
    let r = r.header("host", "n").body(Body::empty()).expect("request");
    sender.ready().await.expect("the connection lives");
    let a = sender.send_request(r).await.expect("an answer");
    let code = a.status().as_u16();
    let body = a.into_body().collect().await.expect("body").to_bytes();
    (code, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn nobody_is_anonymous() {
    let n = node().await;
    n.allow(&["system:anonymous get proxy", "system:anonymous get healthz"]);
    let stranger = authority();
    for pair in [None, Some(stranger.issue("system:node:n", false, 3600))] {
        let mut c = n.connect(pair).await;
        for path in ["/pods", "/healthz", "/metrics", "/exec/a/b/c", "/none"] {
            let a = ask(&mut c, "GET", path, &[]).await;
            assert_eq!(a, (401, "Unauthorized".to_string()), "{path}");
        }
    }
    assert_eq!(n.api.lock().questions, 0, "the API was bothered");
}

#[tokio::test]
async fn a_certificate_of_the_cluster_alone_opens_nothing() {
    let n = node().await;
    let mut c = n.with_certificate("jane").await;
    for (method, path, what) in [
        (
            "GET",
            "/pods",
            "get, resource=nodes, subresource(s)=[pods proxy]",
        ),
        (
            "GET",
            "/runningpods/",
            "get, resource=nodes, subresource(s)=[pods proxy]",
        ),
        (
            "GET",
            "/healthz/ping",
            "get, resource=nodes, subresource(s)=[healthz proxy]",
        ),
        (
            "GET",
            "/configz",
            "get, resource=nodes, subresource(s)=[configz proxy]",
        ),
        (
            "GET",
            "/stats/summary",
            "get, resource=nodes, subresource(s)=[stats]",
        ),
        (
            "GET",
            "/metrics/resource",
            "get, resource=nodes, subresource(s)=[metrics]",
        ),
        (
            "GET",
            "/logs/x",
            "get, resource=nodes, subresource(s)=[log]",
        ),
        (
            "GET",
            "/containerLogs/a/b/c",
            "get, resource=nodes, subresource(s)=[proxy]",
        ),
        (
            "POST",
            "/exec/a/b/c",
            "create, resource=nodes, subresource(s)=[proxy]",
        ),
        (
            "POST",
            "/run/a/b/c",
            "create, resource=nodes, subresource(s)=[proxy]",
        ),
        (
            "PUT",
            "/none",
            "update, resource=nodes, subresource(s)=[proxy]",
        ),
        (
            "DELETE",
            "/none",
            "delete, resource=nodes, subresource(s)=[proxy]",
        ),
        (
            "OPTIONS",
            "/none",
            ", resource=nodes, subresource(s)=[proxy]",
        ),
        // What only looks like a finer path is none.
        (
            "GET",
            "/podsx",
            "get, resource=nodes, subresource(s)=[proxy]",
        ),
        (
            "GET",
            "//pods",
            "get, resource=nodes, subresource(s)=[proxy]",
        ),
        (
            "GET",
            "/%70ods",
            "get, resource=nodes, subresource(s)=[proxy]",
        ),
        (
            "GET",
            "/metrics/../exec/a/b/c",
            "get, resource=nodes, subresource(s)=[metrics]",
        ),
    ] {
        let (code, text) = ask(&mut c, method, path, &[]).await;
        assert_eq!(code, 403, "{method} {path}");
        assert_eq!(
            text,
            format!("Forbidden (user=jane, verb={what})"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn each_right_opens_its_own_paths() {
    let n = node().await;
    n.allow(&[
        "scraper get metrics",
        "lister get pods",
        "admin get proxy",
        "admin create proxy",
        "reader get proxy",
    ]);
    for (user, method, path, code) in [
        ("scraper", "GET", "/metrics/cadvisor", 200),
        ("scraper", "GET", "/stats/summary", 403),
        ("scraper", "POST", "/metrics", 403),
        ("scraper", "GET", "/pods", 403),
        ("lister", "GET", "/pods", 200),
        ("lister", "GET", "/runningpods/", 200),
        ("lister", "GET", "/healthz", 403),
        ("lister", "POST", "/exec/a/b/c", 403),
        ("admin", "GET", "/pods", 200),
        ("admin", "POST", "/exec/a/b/c", 200),
        ("admin", "GET", "/exec/a/b/c", 200),
        ("admin", "GET", "/metrics", 403),
        ("reader", "GET", "/containerLogs/a/b/c", 200),
        // A WebSocket begins with GET; what it does is a create.
        ("reader", "GET", "/exec/a/b/c", 403),
        ("reader", "GET", "/attach/a/b/u/c", 403),
        ("reader", "GET", "/portForward/a/b", 403),
    ] {
        let mut c = n.with_certificate(user).await;
        let (got, text) = ask(&mut c, method, path, &[]).await;
        assert_eq!(got, code, "{user} {method} {path}: {text}");
    }
}

#[tokio::test]
async fn tokens_are_reviewed_and_rights_follow_the_user() {
    let n = node().await;
    n.allow(&["system:serviceaccount:a:b get metrics"]);
    let user = "system:serviceaccount:a:b".to_string();
    n.api.lock().tokens.insert("good".into(), user);
    let mut c = n.connect(None).await;
    let bearer = |t: &'static str| [("authorization", t)];
    let (code, _) = ask(&mut c, "GET", "/metrics", &bearer("Bearer good")).await;
    assert_eq!(code, 200);
    let asked = n.api.lock().questions;
    for _ in 0..20 {
        ask(&mut c, "GET", "/metrics", &bearer("Bearer good")).await;
    }
    assert_eq!(n.api.lock().questions, asked, "answers are remembered");
    for (token, code) in [("Bearer bad", 401), ("Basic good", 401), ("Bearer ", 401)] {
        let got = ask(&mut c, "GET", "/metrics", &bearer(token)).await.0;
        assert_eq!(got, code, "{token}");
    }
    assert_eq!(
        ask(&mut c, "GET", "/pods", &bearer("Bearer good")).await.0,
        403
    );
    // As browsers send it; never without an upgrade.
    let protocols = "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.Z29vZA";
    let mut headers = vec![("sec-websocket-protocol", protocols)];
    assert_eq!(ask(&mut c, "GET", "/metrics", &headers).await.0, 401);
    headers.extend([("connection", "Upgrade"), ("upgrade", "websocket")]);
    assert_eq!(ask(&mut c, "GET", "/metrics", &headers).await.0, 200);
    // Who claims to be somebody in a header is nobody.
    let claims = [
        ("x-remote-user", "system:serviceaccount:a:b"),
        ("impersonate-user", "system:serviceaccount:a:b"),
    ];
    assert_eq!(ask(&mut c, "GET", "/metrics", &claims).await.0, 401);
}

#[tokio::test]
async fn a_certificate_that_expires_ends_with_it_on_the_same_connection() {
    let n = node().await;
    n.allow(&["jane get metrics"]);
    let mut c = n.connect(Some(n.ca.issue("jane", false, 2))).await;
    let begun = Instant::now();
    let first = ask(&mut c, "GET", "/metrics", &[]).await;
    assert_eq!(first.0, 200, "{}", first.1);
    let mut code = 200;
    while code == 200 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
        code = ask(&mut c, "GET", "/metrics", &[]).await.0;
    }
    assert_eq!(code, 401);
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_revoked_or_its_certificate_expires() {
    let api = Shared::default();
    let ca = authority();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = ClientCa::new(ca.pem.as_bytes(), provider).expect("ca");
    let mut auth = Auth::new(client(&api), "n", clients);
    auth.look_again = Duration::from_millis(10);
    api.lock().tokens.insert("good".into(), "a".into());
    let user = auth.of_token("good").await.expect("known");
    let caller = Caller {
        user: user.clone(),
        proof: Proof::Token("good".into()),
    };
    let lives = tokio::time::timeout(Duration::from_millis(200), auth.ended(&caller));
    assert!(lives.await.is_err(), "a good token was ended");
    assert!(api.lock().questions > 2, "it was not looked at again");
    api.lock().tokens.clear();
    tokio::time::timeout(Duration::from_secs(20), auth.ended(&caller))
        .await
        .expect("a revoked token lives on");
    let expired = Caller {
        user,
        proof: Proof::Certificate(1000),
    };
    tokio::time::timeout(Duration::from_secs(20), auth.ended(&expired))
        .await
        .expect("an expired certificate lives on");
}

#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let memory = Memory::new();
    for n in 0..MEMORY * 3 {
        memory.put(n, ());
    }
    assert!(memory.0.lock().len() <= MEMORY);
}
