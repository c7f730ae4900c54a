//! Passes a request on to another server and its answer back: streamed bodies, and upgraded connections (SPDY, WebSocket)
//! as raw bytes. Knows no Kubernetes; who is asked and with which trust is the caller's.

use crate::http::Answer;
use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use skiff_api::status::Status;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Where a request goes.
pub struct Target {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// With TLS, and whom to trust.
    pub tls: Option<Arc<rustls::ClientConfig>>,
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

/// What is between two neighbours only (RFC 9110, 7.6.1), and what is for us alone.
fn stays(name: &HeaderName, upgrading: bool) -> bool {
    match name.as_str() {
        "connection" | "upgrade" => !upgrading,
        "host"
        | "authorization"
        | "proxy-authorization"
        | "keep-alive"
        | "proxy-connection"
        | "te"
        | "trailer"
        | "transfer-encoding"
        | "content-length" => true,
        n => n.starts_with("impersonate-"),
    }
}

async fn connect(target: &Target) -> Result<Box<dyn Stream>, String> {
    let address = if target.host.contains(':') {
        format!("[{}]:{}", target.host, target.port)
    } else {
        format!("{}:{}", target.host, target.port)
    };
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
        let _ = tcp.set_nodelay(true);
        let Some(tls) = &target.tls else {
            return Ok(Box::new(tcp) as Box<dyn Stream>);
        };
        let name = ServerName::try_from(target.host.clone())
            .map_err(|e| format!("{}: {e}", target.host))?;
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

/// Sends the request on. An answer of 101 connects the two ends byte by byte until one of them ends or the server stops.
///
/// # Errors
/// 503 when the other side cannot be reached or does not answer as HTTP.
pub async fn forward(target: Target, request: Forward, cancel: &CancellationToken) -> Answer {
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
    for (k, v) in &request.headers {
        if !stays(k, upgrading) {
            out.headers_mut().append(k.clone(), v.clone());
        }
    }
    let host = if target.host.contains(':') {
        format!("[{}]:{}", target.host, target.port)
    } else {
        format!("{}:{}", target.host, target.port)
    };
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
        let cancel = cancel.clone();
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
                () = cancel.cancelled() => {}
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
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        HeaderName::from_static("keep-alive"),
    ] {
        parts.headers.remove(name);
    }
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
        assert!(
            stays(&HeaderName::from_static("authorization"), true)
                && !stays(&HeaderName::from_static("upgrade"), true)
        );
        assert!(
            stays(&HeaderName::from_static("impersonate-user"), false)
                && !stays(&HeaderName::from_static("accept"), false)
        );
    }
}
