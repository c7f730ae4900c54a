//! The accept loop: TCP, TLS, HTTP/1.1 and HTTP/2 with upgrades, and a graceful end. Owns one task for each connection.

use crate::activity::{Activity, End, Io};
use crate::doors::{Doors, Limits, Pass};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::CertificateDer;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Ours, that it connected to.
    pub local: SocketAddr,
    /// Its certificate chain (end entity first), as TLS verified possession of it; empty when it gave none. Whether it
    /// is of a CA we trust is for authentication to say.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Its place among all connections; to be told when the peer has proved who it is.
    pub pass: Arc<Pass>,
}

impl Peer {
    /// True when no network is between us.
    pub fn same_machine(&self) -> bool {
        self.address.ip().to_canonical().is_loopback() || self.address.ip() == self.local.ip()
    }
}

/// Times and limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a client may take for its TLS handshake.
    pub handshake: Duration,
    /// How long a request's head may take from its first byte on (upstream's ReadHeaderTimeout, 32 s).
    pub head: Duration,
    /// How long a connection may idle between requests (upstream's IdleTimeout, 90 s).
    pub idle: Duration,
    /// How long an answer may wait for a client that does not take it.
    pub stall: Duration,
    /// How long open requests may take when the server stops.
    pub drain: Duration,
    /// How many connections ...
    pub limits: Limits,
    /// ... but never more than one in so many of the process's file descriptors.
    pub descriptors: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(32),
            idle: Duration::from_secs(90),
            stall: Duration::from_secs(60),
            drain: Duration::from_secs(3),
            limits: Limits {
                total: 8192,
                per_address: 4096,
                strangers: 1024,
                strangers_per_address: 512,
            },
            descriptors: 2,
        }
    }
}

/// Requests of one HTTP/2 connection at once (Go's default).
const STREAMS: u32 = 250;
/// All headers of a request together: tokens and impersonated groups have room.
const HEADERS: u32 = 128 * 1024;
/// Streams that a client opened and reset before we came to them; more end the connection (CVE-2023-44487).
const PENDING_RESETS: usize = 20;
/// Streams that we had to reset because the client broke the protocol; more end the connection (CVE-2025-8671).
const LOCAL_RESETS: usize = 256;
/// A connection without traffic is asked whether it is alive: first after this, then so often, so many times.
const ALIVE_AFTER: Duration = Duration::from_secs(30);
const ALIVE_EVERY: Duration = Duration::from_secs(10);
const ALIVE_TRIES: u32 = 3;
/// How long a connection that was told to end may take for it.
const FAREWELL: Duration = Duration::from_secs(10);

/// Accepts until cancelled, then waits for open requests. `connect` makes the state of a connection; `handle` answers
/// requests with it. An answer of 401 over HTTP/2 ends the connection after it (upstream's UnauthenticatedHTTP2DOSMitigation).
pub async fn accept<C, F, B>(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    settings: Settings,
    cancel: CancellationToken,
    connect: impl Fn(Peer) -> C + Clone + Send + 'static,
    handle: impl Fn(C, Request<Incoming>) -> F + Clone + Send + 'static,
) where
    C: Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let acceptor = TlsAcceptor::from(tls);
    let tracker = TaskTracker::new();
    let doors = Doors::new(settings.limits.within_descriptors(settings.descriptors));
    let mut told = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            a = listener.accept() => a,
        };
        match accepted {
            Ok((stream, address)) => {
                let Some(pass) = doors.enter(address.ip()) else {
                    // Once a minute: whoever floods us must not fill the log, too.
                    if told.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(60)) {
                        told = Some(Instant::now());
                        let (known, strangers) = doors.inside();
                        tracing::warn!(%address, known, strangers, "too many connections; new ones are not taken");
                    }
                    continue;
                };
                let (acceptor, cancel) = (acceptor.clone(), cancel.clone());
                let (connect, handle) = (connect.clone(), handle.clone());
                tracker.spawn(async move {
                    let pass = Arc::new(pass);
                    let served = connection(
                        acceptor,
                        stream,
                        address,
                        pass.clone(),
                        settings,
                        cancel,
                        connect,
                        handle,
                    );
                    let ended = tokio::select! {
                        r = served => r,
                        () = pass.evicted() => Err("its place was needed".into()),
                    };
                    if let Err(e) = ended {
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
    if tokio::time::timeout(settings.drain, tracker.wait())
        .await
        .is_err()
    {
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

/// Lets the kernel find out about a peer that is gone without a word: no timer of ours. Also for connections that we make.
///
/// # Errors
/// When the socket is closed already.
pub fn watch_over(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, ALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, ALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, ALIVE_TRIES)?;
    Ok(())
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

#[allow(clippy::too_many_arguments)]
async fn connection<C, F, B>(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    pass: Arc<Pass>,
    settings: Settings,
    cancel: CancellationToken,
    connect: impl Fn(Peer) -> C,
    handle: impl Fn(C, Request<Incoming>) -> F + Clone + Send + 'static,
) -> Ended
where
    C: Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    watch_over(&stream)?;
    let local = stream.local_addr()?;
    let greeted = async {
        match unless_plain(stream).await? {
            Some(stream) => acceptor.accept(stream).await.map(Some),
            None => Ok(None),
        }
    };
    let Some(stream) = tokio::time::timeout(settings.handshake, greeted).await?? else {
        return Ok(());
    };
    let tls = stream.get_ref().1;
    let certificates = tls
        .peer_certificates()
        .map(|c| c.iter().map(|c| c.clone().into_owned()).collect())
        .unwrap_or_default();
    let http2 = tls.alpn_protocol() == Some(b"h2");
    let state = connect(Peer {
        address,
        local,
        certificates,
        pass: pass.clone(),
    });
    let activity = Activity::new();
    let service = hyper::service::service_fn({
        let activity = activity.clone();
        move |request: Request<Incoming>| {
            let open = activity.begin();
            let (activity, answered) = (activity.clone(), handle(state.clone(), request));
            async move {
                let response = answered.await;
                if http2 && response.status() == StatusCode::UNAUTHORIZED {
                    activity.goodbye();
                }
                Ok::<_, Infallible>(open.answer(response))
            }
        }
    });
    let io = TokioIo::new(Io::new(stream, activity.clone(), pass));
    let end = async {
        tokio::select! {
            end = activity.overdue(&settings, !http2) => end,
            () = cancel.cancelled() => End::Idle,
        }
    };
    if http2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADERS)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(LOCAL_RESETS)
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_send_buf_size(1024 * 1024)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        let end = tokio::select! {
            r = connection.as_mut() => return r.map_err(Into::into),
            end = end => end,
        };
        if let End::Stuck(why) = end {
            return Err(why.into());
        }
        connection.as_mut().graceful_shutdown();
        return farewell(&activity, &settings, &cancel, connection).await;
    }
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // Counted by Activity, which also knows idling from a head that does not end.
        .header_read_timeout(None)
        .max_header_size(HEADERS as usize)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let end = tokio::select! {
        r = connection.as_mut() => return r.map_err(Into::into),
        end = end => end,
    };
    if let End::Stuck(why) = end {
        return Err(why.into());
    }
    connection.as_mut().graceful_shutdown();
    farewell(&activity, &settings, &cancel, connection).await
}

/// The end of a connection that was told to end: what is open may end, as long as it does not get stuck.
async fn farewell(
    activity: &Activity,
    settings: &Settings,
    cancel: &CancellationToken,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Ended {
    let patience = async {
        if cancel.is_cancelled() {
            // The accept loop counts this time.
            return std::future::pending().await;
        }
        activity.finished(settings.stall).await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        r = connection => r.map_err(Into::into),
        () = patience => Err("it did not end".into()),
    }
}

#[cfg(test)]
mod tests;
