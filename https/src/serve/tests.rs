//! Clients that misbehave, over real TLS on loopback.

use super::*;
use crate::{ClientCa, LongRunning};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::DropGuard;

type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// Short times, so that a test need not wait for what a server waits for.
fn short() -> Settings {
    Settings {
        handshake: Duration::from_millis(300),
        head: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        stall: Duration::from_millis(600),
        ..Settings::default()
    }
}

struct Server {
    address: SocketAddr,
    roots: Arc<rustls::RootCertStore>,
    _end: DropGuard,
}

/// `/` answers with ok, `/watch` never ends, `/large` has more than all buffers hold, `/401` refuses.
async fn answer(_: Arc<Peer>, request: Request<Incoming>) -> Response<Answer> {
    let path = request.uri().path().to_string();
    let _ = request.into_body().collect().await;
    let full = |b: Bytes| Full::new(b).boxed_unsync();
    match path.as_str() {
        "/watch" => {
            let first = hyper::body::Frame::data(Bytes::from_static(b"first"));
            let frames = StreamBody::new(Forever(Some(first)));
            let mut r = Response::new(frames.boxed_unsync());
            r.extensions_mut().insert(LongRunning);
            r
        }
        "/large" => Response::new(full(Bytes::from(vec![b'x'; 64 << 20]))),
        "/401" => {
            let mut r = Response::new(full(Bytes::new()));
            *r.status_mut() = StatusCode::UNAUTHORIZED;
            r
        }
        _ => Response::new(full(Bytes::from_static(b"ok"))),
    }
}

/// One frame, and then nothing for ever.
struct Forever(Option<hyper::body::Frame<Bytes>>);

impl futures::Stream for Forever {
    type Item = Result<hyper::body::Frame<Bytes>, Infallible>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        match self.0.take() {
            Some(f) => std::task::Poll::Ready(Some(Ok(f))),
            None => std::task::Poll::Pending,
        }
    }
}

async fn serve(settings: Settings) -> Server {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".into()]).expect("certificate");
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let ca = ClientCa::new(cert.pem().as_bytes(), provider.clone()).expect("client CA");
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(Arc::new(crate::AnyCertificate(ca)))
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("key");
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let cancel = CancellationToken::new();
    tokio::spawn(accept(
        listener,
        Arc::new(tls),
        settings,
        cancel.clone(),
        Arc::new,
        answer,
    ));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).expect("root");
    Server {
        address,
        roots: Arc::new(roots),
        _end: cancel.drop_guard(),
    }
}

impl Server {
    async fn tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address).await.expect("connect");
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").expect("name"), tcp)
            .await
            .expect("tls")
    }
    async fn http1(&self) -> TlsStream<TcpStream> {
        self.tls(b"http/1.1").await
    }
    async fn http2(&self) -> (Sender, tokio::task::JoinHandle<hyper::Result<()>>) {
        let io = TokioIo::new(self.tls(b"h2").await);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .expect("http/2");
        (sender, tokio::spawn(connection))
    }
}

type Sender = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

fn get(path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("https://localhost{path}");
    Request::get(uri).body(Empty::new()).expect("request")
}

/// What comes until the other side ends the connection; that has to happen.
async fn until_closed(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let read = io.read_to_end(&mut all);
    // A cut without a farewell of TLS is an end, too.
    let _ = tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("the server holds the connection");
    String::from_utf8_lossy(&all).into_owned()
}

async fn read_some(io: &mut (impl tokio::io::AsyncRead + Unpin), wanted: &str) {
    let mut seen = String::new();
    let mut b = [0u8; 4096];
    while !seen.contains(wanted) {
        let n = io.read(&mut b).await.expect("read");
        assert!(n > 0, "ended after {seen}");
        seen.push_str(&String::from_utf8_lossy(&b[..n]));
    }
}

#[tokio::test]
async fn plain_http_is_told_so() {
    let s = serve(short()).await;
    let mut c = TcpStream::connect(s.address).await.expect("connect");
    c.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("write");
    let a = until_closed(&mut c).await;
    assert!(
        a.starts_with("HTTP/1.0 400 ") && a.contains("HTTP request to an HTTPS server"),
        "{a}"
    );
}

#[tokio::test]
async fn whoever_does_not_finish_the_handshake_is_cut_off() {
    let s = serve(short()).await;
    for sent in [&b""[..], &[22, 3, 1]] {
        let mut c = TcpStream::connect(s.address).await.expect("connect");
        c.write_all(sent).await.expect("write");
        until_closed(&mut c).await;
    }
}

#[tokio::test]
async fn half_a_head_is_cut_off_long_before_an_idle_connection_is() {
    let mut settings = short();
    settings.idle = Duration::from_secs(3600);
    let s = serve(settings).await;
    let mut c = s.http1().await;
    // One request is answered, the next one drips.
    c.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("write");
    read_some(&mut c, "ok").await;
    let (mut r, mut w) = tokio::io::split(c);
    let drip = async {
        loop {
            for b in b"GET / HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
                if w.write_all(&[*b]).await.is_err() || w.flush().await.is_err() {
                    return std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::select! {
        () = drip => {}
        _ = until_closed(&mut r) => {}
    }
}

#[tokio::test]
async fn an_idle_connection_is_ended() {
    let s = serve(short()).await;
    let mut never = s.http1().await;
    let mut once = s.http1().await;
    once.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("write");
    let a = until_closed(&mut once).await;
    assert!(a.starts_with("HTTP/1.1 200") && a.ends_with("ok"), "{a}");
    until_closed(&mut never).await;
    let (mut sender, connection) = s.http2().await;
    assert_eq!(
        sender.send_request(get("/")).await.expect("ok").status(),
        200
    );
    tokio::time::timeout(Duration::from_secs(20), connection)
        .await
        .expect("the server holds an idle HTTP/2 connection")
        .expect("task")
        .expect("a graceful end");
}

#[tokio::test]
async fn a_watch_outlives_all_these_times_and_half_a_head_beside_it_does_no_harm() {
    let mut settings = short();
    settings.idle = Duration::from_millis(100);
    settings.stall = Duration::from_millis(100);
    let s = serve(settings).await;
    let mut c = s.http1().await;
    c.write_all(b"GET /watch HTTP/1.1\r\nHost: a\r\n\r\nGET /")
        .await
        .expect("write");
    read_some(&mut c, "first").await;
    let mut b = [0u8; 16];
    let more = tokio::time::timeout(Duration::from_millis(800), c.read(&mut b)).await;
    assert!(more.is_err(), "the watch was ended: {more:?}");
}

#[tokio::test]
async fn whoever_does_not_take_the_answer_is_cut_off() {
    let s = serve(short()).await;
    let mut c = s.http1().await;
    c.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("write");
    read_some(&mut c, "200 OK").await;
    // The client sleeps until the server has lost its patience; what is left in the buffers is no whole answer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut all = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), c.read_to_end(&mut all))
        .await
        .expect("the server holds the connection");
    assert!(all.len() < 60 << 20, "{}", all.len());
    // The same over HTTP/2, where the connection is read and only the stream is not.
    let (mut sender, connection) = s.http2().await;
    let answer = sender.send_request(get("/large")).await.expect("head");
    tokio::time::timeout(Duration::from_secs(20), connection)
        .await
        .expect("the server holds the connection")
        .expect("task")
        .ok();
    drop(answer);
}

#[tokio::test]
async fn one_address_gets_so_many_connections_and_its_oldest_stranger_goes() {
    let mut settings = short();
    settings.idle = Duration::from_secs(3600);
    settings.handshake = Duration::from_secs(3600);
    settings.limits.strangers_per_address = 3;
    let s = serve(settings).await;
    let mut first = s.http1().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(s.http1().await);
    }
    until_closed(&mut first).await;
    // The youngest is served.
    let mut last = held.pop().expect("one");
    last.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("write");
    read_some(&mut last, "ok").await;
}

#[tokio::test]
async fn a_refused_http2_client_has_to_connect_again() {
    let mut settings = short();
    settings.idle = Duration::from_secs(3600);
    let s = serve(settings).await;
    let (mut sender, connection) = s.http2().await;
    let a = sender.send_request(get("/401")).await.expect("an answer");
    assert_eq!(a.status(), 401);
    tokio::time::timeout(Duration::from_secs(20), connection)
        .await
        .expect("the connection is held")
        .expect("task")
        .expect("a graceful end");
}

#[tokio::test]
async fn headers_without_measure_are_refused() {
    let s = serve(short()).await;
    let mut c = s.http1().await;
    let _ = c.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await;
    for _ in 0..64 {
        let line = format!("x-a: {}\r\n", "a".repeat(8 * 1024));
        if c.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
    let a = until_closed(&mut c).await;
    assert!(a.is_empty() || a.starts_with("HTTP/1.1 431"), "{a}");
    let (mut sender, _connection) = s.http2().await;
    let mut request = get("/");
    for n in 0..40 {
        let name: http::HeaderName = format!("x-{n}").parse().expect("name");
        let value = "a".repeat(8 * 1024).parse().expect("value");
        request.headers_mut().insert(name, value);
    }
    match sender.send_request(request).await {
        Ok(a) => assert_eq!(a.status(), 431),
        Err(_) => {}
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut f = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    f.extend([kind, flags]);
    f.extend(stream.to_be_bytes());
    f.extend(payload);
    f
}

const HEADERS_FRAME: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 5;
/// GET https / localhost, of HPACK's static table.
const GET_ROOT: &[u8] = b"\x82\x87\x84\x41\x09localhost";

/// Says hello and what follows, for as long as the server listens; true when it ended the connection.
async fn flood(s: &Server, mut frames: impl FnMut(u32) -> Vec<u8>) -> bool {
    let (mut r, mut w) = tokio::io::split(s.tls(b"h2").await);
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    hello.extend(frame(SETTINGS, 0, 0, &[]));
    w.write_all(&hello).await.expect("write");
    let write = async {
        for n in 0..200 {
            if w.write_all(&frames(n)).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => false,
        _ = until_closed(&mut r) => true,
    }
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let mut settings = short();
    settings.idle = Duration::from_secs(3600);
    let s = serve(settings).await;
    let ended = flood(&s, |n| {
        let mut burst = Vec::new();
        for i in 0..200u32 {
            let stream = (n * 200 + i) * 2 + 1;
            burst.extend(frame(
                HEADERS_FRAME,
                END_STREAM_AND_HEADERS,
                stream,
                GET_ROOT,
            ));
            burst.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        }
        burst
    })
    .await;
    assert!(ended);
}

#[tokio::test]
async fn headers_that_go_on_and_on_end_the_connection() {
    let mut settings = short();
    settings.idle = Duration::from_secs(3600);
    let s = serve(settings).await;
    let ended = flood(&s, |n| {
        if n == 0 {
            return frame(HEADERS_FRAME, 1, 1, GET_ROOT);
        }
        // A literal header, again and again.
        let mut one = b"\x40\x01a\x7f\x81\x01".to_vec();
        one.extend([b'x'; 256]);
        frame(CONTINUATION, 0, 1, &one.repeat(60))
    })
    .await;
    assert!(ended);
}
