//! Passes a request on to another server and its answer back: streamed bodies, and upgraded connections (SPDY, WebSocket)
//! as raw bytes. Knows no Kubernetes; who is asked and with which trust is the caller's.

use crate::http::Answer;
use axum::body::Body;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use skiff_api::bearer;
use skiff_api::status::Status;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Where a request goes.
pub struct Target {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// With TLS: whom to trust, and whose name the other side has to prove.
    pub tls: Option<(Arc<rustls::ClientConfig>, String)>,
    /// Path and query, escaped.
    pub path: String,
}

/// A request on its way.
pub struct Forward {
    /// Method.
    pub method: Method,
    /// Headers of the client; what must not be passed on is left out here.
    pub headers: HeaderMap,
    /// Body; empty for upgrades.
    pub body: Body,
    /// The client's side of an upgrade, if it asked for one.
    pub upgrade: Option<OnUpgrade>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Does the client ask for another protocol?
pub fn asks_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|v| {
                v.split(',')
                    .any(|t| t.trim().eq_ignore_ascii_case("upgrade"))
            })
}

/// What is between two neighbours only (RFC 9110, 7.6.1), besides what `Connection` names.
const HOPS: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What is for us alone: who the caller is and proves it, or what we say of them.
fn ours(name: &str) -> bool {
    matches!(
        name,
        "host" | "authorization" | "proxy-authorization" | "cookie" | "content-length"
    ) || name.starts_with("impersonate-")
        || name.starts_with("x-remote-")
}

/// The names that `Connection` declares to be of this hop.
fn named(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|t| t.trim().to_ascii_lowercase())
        .collect()
}

/// The headers of a request that are passed on.
fn onward(headers: &HeaderMap, upgrading: bool) -> HeaderMap {
    let named = named(headers);
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let n = name.as_str();
        if ours(n) || HOPS.contains(&n) || named.iter().any(|t| t == n) {
            continue;
        }
        if n == "sec-websocket-protocol" {
            // A token may be among the protocols.
            let left = value.to_str().ok().and_then(bearer::without_tokens);
            if let Some(v) = left.and_then(|v| HeaderValue::from_str(&v).ok()) {
                out.append(name, v);
            }
            continue;
        }
        out.append(name, value.clone());
    }
    if upgrading && let Some(protocol) = headers.get(header::UPGRADE) {
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        out.insert(header::UPGRADE, protocol.clone());
    }
    out
}

/// Takes what was of the other hop only out of an answer.
fn homeward(headers: &mut HeaderMap) {
    for n in named(headers) {
        headers.remove(n);
    }
    for n in HOPS {
        headers.remove(n);
    }
}

/// `host:port`, with brackets where they are needed.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

async fn connect(target: &Target) -> Result<Box<dyn Stream>, String> {
    let address = authority(&target.host, target.port);
    let dial = async {
        // Addresses are numbers nearly always; a name is resolved by the system.
        let tcp = TcpStream::connect(&address)
            .await
            .map_err(|e| match e.kind() {
                // Without the errno, in the words of upstream's (Go's) errors.
                std::io::ErrorKind::ConnectionRefused => {
                    format!("dial tcp {address}: connect: connection refused")
                }
                _ => format!("dial tcp {address}: {e}"),
            })?;
        let _ = skiff_https::watch_over(&tcp);
        let Some((tls, name)) = &target.tls else {
            return Ok(Box::new(tcp) as Box<dyn Stream>);
        };
        let name = ServerName::try_from(name.clone()).map_err(|e| format!("{name}: {e}"))?;
        let stream = tokio_rustls::TlsConnector::from(tls.clone())
            .connect(name, tcp)
            .await
            .map_err(|e| format!("tls {address}: {e}"))?;
        Ok(Box::new(stream) as Box<dyn Stream>)
    };
    match tokio::time::timeout(CONNECT, dial).await {
        Ok(r) => r,
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// Sends the request on. An answer of 101 connects the two ends byte by byte until one of them ends, or `ended` comes back.
///
/// # Errors
/// 503 when the other side cannot be reached or does not answer as HTTP.
pub async fn forward(target: Target, request: Forward, ended: BoxFuture<'static, ()>) -> Answer {
    let failed = |e: String| Status::internal(format!("error dialing backend: {e}"));
    let io = connect(&target).await.map_err(failed)?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake::<_, Body>(TokioIo::new(io))
        .await
        .map_err(|e| failed(e.to_string()))?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = %e, "connection to a backend ended");
        }
    });
    let upgrading = request.upgrade.is_some();
    let mut out = http::Request::new(if upgrading {
        Body::empty()
    } else {
        request.body
    });
    *out.method_mut() = request.method;
    *out.uri_mut() = target
        .path
        .parse()
        .map_err(|e| Status::bad_request(format!("path {:?}: {e}", target.path)))?;
    *out.headers_mut() = onward(&request.headers, upgrading);
    let host = authority(&target.host, target.port);
    out.headers_mut().insert(
        header::HOST,
        HeaderValue::from_str(&host).map_err(|e| failed(e.to_string()))?,
    );
    let mut answer = sender
        .send_request(out)
        .await
        .map_err(|e| failed(e.to_string()))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = request.upgrade else {
            return Err(Status::internal(
                "the backend switched protocols, which nobody asked for",
            ));
        };
        let backend = hyper::upgrade::on(&mut answer);
        let (parts, _) = answer.into_parts();
        tokio::spawn(async move {
            let (client, backend) = match tokio::try_join!(client, backend) {
                Ok(both) => both,
                Err(e) => {
                    tracing::debug!(error = %e, "an upgrade failed");
                    return;
                }
            };
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            tokio::select! {
                () = ended => {}
                r = tokio::io::copy_bidirectional(&mut client, &mut backend) => {
                    if let Err(e) = r {
                        tracing::debug!(error = %e, "a tunnel ended");
                    }
                }
            }
        });
        return Ok(http::Response::from_parts(parts, Body::empty()));
    }
    let (mut parts, body) = answer.into_parts();
    homeward(&mut parts.headers);
    // Keeps the connection for as long as its body is read.
    let body = body.map_frame(move |f| {
        let _ = &sender;
        f
    });
    Ok(http::Response::from_parts(parts, Body::new(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_upgrades_are_seen_as_such() {
        let mut h = HeaderMap::new();
        assert!(!asks_upgrade(&h));
        h.insert("upgrade", HeaderValue::from_static("SPDY/3.1"));
        assert!(!asks_upgrade(&h));
        h.insert(
            "connection",
            HeaderValue::from_static("keep-alive, Upgrade"),
        );
        assert!(asks_upgrade(&h));
    }

    #[test]
    fn nothing_of_the_caller_is_passed_on_and_connection_cannot_say_what_is() {
        let mut h = HeaderMap::new();
        for (k, v) in [
            ("authorization", "Bearer x"),
            ("cookie", "session=x"),
            ("impersonate-user", "admin"),
            ("impersonate-extra-a", "b"),
            ("x-remote-user", "admin"),
            ("x-remote-extra-a", "b"),
            ("proxy-authorization", "x"),
            ("te", "trailers"),
            ("x-mine", "1"),
            ("x-hop", "1"),
            ("connection", "Upgrade, X-Hop"),
            ("upgrade", "websocket"),
            (
                "sec-websocket-protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.eA",
            ),
            ("accept", "*/*"),
        ] {
            h.append(k, HeaderValue::from_static(v));
        }
        let names = |h: &HeaderMap| {
            let mut n: Vec<String> = h.keys().map(ToString::to_string).collect();
            n.sort();
            n
        };
        let plain = onward(&h, false);
        assert_eq!(
            names(&plain),
            ["accept", "sec-websocket-protocol", "x-mine"]
        );
        assert_eq!(plain["sec-websocket-protocol"], "v5.channel.k8s.io");
        let upgrading = onward(&h, true);
        assert_eq!(upgrading["connection"], "Upgrade");
        assert_eq!(upgrading["upgrade"], "websocket");
        assert!(!upgrading.contains_key("x-hop"));
        homeward(&mut h);
        assert!(!h.contains_key("x-hop") && !h.contains_key("connection"));
    }
}
