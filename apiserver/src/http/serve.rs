//! The accept loop: TCP, TLS, HTTP/1.1 and HTTP/2 with upgrades, and a graceful end. Knows no Kubernetes.

use crate::App;
use axum::body::Body;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls_pki_types::CertificateDer;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// The other end of a connection; in the extensions of every request that came over one.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Ours, that it connected to.
    pub local: SocketAddr,
    /// Its certificate chain (end entity first), as TLS verified possession of it; empty when it gave none. Whether it
    /// is of a CA we trust is for authentication to say.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Who the certificate says it is, computed once for the connection.
    pub identity: std::sync::OnceLock<Option<Arc<crate::auth::credential::Credential>>>,
}

impl Peer {
    /// True when no network is between us.
    pub fn same_machine(&self) -> bool {
        self.address.ip().to_canonical().is_loopback() || self.address.ip() == self.local.ip()
    }
}

/// How long a client may take for its TLS handshake .
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may idle between requests (upstream's IdleTimeout); it covers the reading of a head, too.
const IDLE: Duration = Duration::from_secs(90);
/// How long open requests may take when the server stops; watches end by themselves on cancel.
const DRAIN: Duration = Duration::from_secs(3);

/// Accepts until the server is cancelled, then waits for open requests.
pub async fn accept(app: Arc<App>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = app.cancel.cancelled() => break,
            a = listener.accept() => a,
        };
        match accepted {
            Ok((stream, address)) => {
                let (app, acceptor) = (app.clone(), acceptor.clone());
                tracker.spawn(async move {
                    if let Err(e) = connection(app, acceptor, stream, address).await {
                        tracing::debug!(%address, error = %e, "connection ended");
                    }
                });
            }
            Err(e) => {
                // Out of file descriptors or memory: give the others time to end.
                tracing::warn!(error = %e, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
        tracing::debug!(open = tracker.len(), "connections still open at the end");
    }
}

/// The stream, or None after telling a client that speaks plain HTTP so (as Go's server does); a TLS record starts with
/// the byte 22, a request line with a capital letter.
async fn unless_plain(mut stream: TcpStream) -> std::io::Result<Option<TcpStream>> {
    let mut first = [0u8];
    if stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
        // What was sent is read, so that closing does not reset the connection before the answer is there.
        let mut request = [0u8; 4096];
        let _ = stream.read(&mut request).await?;
        stream
            .write_all(
                b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
            )
            .await?;
        stream.shutdown().await?;
        return Ok(None);
    }
    Ok(Some(stream))
}

async fn connection(
    app: Arc<App>,
    acceptor: tokio_rustls::TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let stream = match tokio::time::timeout(HANDSHAKE, unless_plain(stream)).await?? {
        Some(stream) => tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??,
        None => return Ok(()),
    };
    let certificates = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|c| c.iter().map(|c| c.clone().into_owned()).collect())
        .unwrap_or_default();
    let peer = Arc::new(Peer {
        address,
        local,
        certificates,
        identity: std::sync::OnceLock::new(),
    });
    let service = {
        let app = app.clone();
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (app, peer) = (app.clone(), peer.clone());
            async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(peer);
                Ok::<_, Infallible>(super::handle(&app, request, None).await)
            }
        })
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(1024 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        r = connection.as_mut() => return r,
        () = app.cancel.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn plain_http_is_told_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = tokio::spawn(async move {
            let mut c = TcpStream::connect(address).await.unwrap();
            c.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            c.read_to_string(&mut answer).await.unwrap();
            let mut c = TcpStream::connect(address).await.unwrap();
            c.write_all(&[22, 3, 1]).await.unwrap();
            answer
        });
        let (stream, _) = listener.accept().await.unwrap();
        assert!(unless_plain(stream).await.unwrap().is_none());
        let (stream, _) = listener.accept().await.unwrap();
        assert!(unless_plain(stream).await.unwrap().is_some());
        let answer = client.await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.0 400 ")
                && answer.contains("HTTP request to an HTTPS server"),
            "{answer}"
        );
    }
}
