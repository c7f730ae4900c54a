//! Owns the CRI streaming server: one-time addresses for exec, attach and port-forward, and the HTTP upgrade to
//! SPDY/3.1 or WebSocket. Must not know containers: [`backend::StreamBackend`] has them.
//!
//! It listens on loopback only, as CRI means it: kubelet and API server pass the upgraded bytes on untouched, so every
//! protocol of kubectl ends here. Whoever knows an address' token may use it, once, for a minute.
//! Upstream: kubelet/pkg/cri/streaming.

pub mod backend;
pub mod connection;
mod portforward;
mod remotecommand;
pub mod spdy;
pub mod websocket;

use backend::StreamBackend;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1;
use parking_lot::Mutex;
use remotecommand::{Kind, Options};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use websocket::{is_websocket, list, negotiate};

/// Upstream's request cache: how long a token may wait, and how many may.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const MAX_TOKENS: usize = 1000;

/// SPDY's versions of remotecommand; 5 differs from 4 only over WebSocket.
const SPDY_PROTOCOLS: [(&str, u8); 5] = [
    ("v5.channel.k8s.io", 5),
    ("v4.channel.k8s.io", 4),
    ("v3.channel.k8s.io", 3),
    ("v2.channel.k8s.io", 2),
    ("channel.k8s.io", 1),
];
const SPDY_PORT_FORWARD: &str = "portforward.k8s.io";
const PROTOCOL_HEADER: &str = "x-stream-protocol-version";

type Body = Full<Bytes>;

/// A request that waits for its connection.
#[derive(Debug, Clone)]
enum Prepared {
    Exec(v1::ExecRequest),
    Attach(v1::AttachRequest),
    PortForward(v1::PortForwardRequest),
}

/// The server. Stops when its token is cancelled.
pub struct StreamServer {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Prepared, Instant)>>,
    backend: Arc<dyn StreamBackend>,
}

impl StreamServer {
    /// Listen on an unused port of 127.0.0.1 and serve. Connections end when `cancel` is cancelled.
    pub async fn start(
        backend: Arc<dyn StreamBackend>,
        cancel: CancellationToken,
    ) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = Arc::new(StreamServer {
            address,
            waiting: Mutex::default(),
            backend,
        });
        let serving = server.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = serving.accept(listener, cancel.clone()) => {}
                () = cancel.cancelled() => {}
            }
        });
        Ok(server)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, cancel: CancellationToken) {
        loop {
            let sock = match listener.accept().await {
                Ok((sock, _)) => sock,
                Err(e) => {
                    // Out of descriptors: the connection stays in the queue.
                    tracing::warn!(error = %e, "streaming server: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let _ = sock.set_nodelay(true);
            let (server, cancel) = (self.clone(), cancel.clone());
            tokio::spawn(async move {
                let stop = cancel.clone();
                let service = hyper::service::service_fn(move |req| {
                    let r = server.clone().answer(req, cancel.clone());
                    async move { Ok::<_, std::convert::Infallible>(r) }
                });
                let http = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(sock), service)
                    .with_upgrades();
                tokio::select! {
                    r = http => if let Err(e) = r {
                        tracing::debug!(error = %e, "streaming connection");
                    },
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    fn insert(&self, kind: &str, p: Prepared) -> Result<String, Status> {
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, (_, since)| since.elapsed() < TOKEN_LIFE);
        if waiting.len() >= MAX_TOKENS {
            return Err(Status::resource_exhausted(
                "maximum number of in-flight requests exceeded",
            ));
        }
        let token = uuid::Uuid::new_v4().simple().to_string();
        let url = format!("http://{}/{kind}/{token}", self.address);
        waiting.insert(token, (p, Instant::now()));
        Ok(url)
    }

    /// Address for an exec; valid once.
    pub fn exec_url(&self, r: v1::ExecRequest) -> Result<String, Status> {
        check_streams(&r.container_id, r.tty, r.stdin, r.stdout, r.stderr)?;
        if r.cmd.is_empty() {
            return Err(Status::invalid_argument("missing required cmd"));
        }
        self.insert("exec", Prepared::Exec(r))
    }

    /// Address for an attach.
    pub fn attach_url(&self, r: v1::AttachRequest) -> Result<String, Status> {
        check_streams(&r.container_id, r.tty, r.stdin, r.stdout, r.stderr)?;
        self.insert("attach", Prepared::Attach(r))
    }

    /// Address for a port-forward.
    pub fn port_forward_url(&self, r: v1::PortForwardRequest) -> Result<String, Status> {
        if r.pod_sandbox_id.is_empty() {
            return Err(Status::invalid_argument("missing required pod_sandbox_id"));
        }
        self.insert("portforward", Prepared::PortForward(r))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn take(&self, path: &str) -> Option<Prepared> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut waiting = self.waiting.lock();
        let fits = match waiting.get(token)? {
            (Prepared::Exec(_), _) => kind == "exec",
            (Prepared::Attach(_), _) => kind == "attach",
            (Prepared::PortForward(_), _) => kind == "portforward",
        };
        if !fits {
            return None;
        }
        let (p, since) = waiting.remove(token)?;
        (since.elapsed() < TOKEN_LIFE).then_some(p)
    }

    fn answer(
        self: Arc<Self>,
        req: Request<Incoming>,
        cancel: CancellationToken,
    ) -> Response<Body> {
        if !matches!(*req.method(), Method::GET | Method::POST) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST");
        }
        // A wrong upgrade must not use up the token: it is looked at first.
        let upgrade = match Upgrade::of(req.headers()) {
            Ok(u) => u,
            Err(r) => return *r,
        };
        let Some(prepared) = self.take(req.uri().path()) else {
            return text(StatusCode::NOT_FOUND, "404 page not found");
        };
        let chosen = match upgrade.choose(&prepared, req.headers()) {
            Ok(c) => c,
            Err(r) => return *r,
        };
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        let mut set = |name: &'static str, value: &str| {
            if let Ok(v) = http::HeaderValue::from_str(value) {
                headers.insert(name, v);
            }
        };
        set("connection", "Upgrade");
        match &chosen {
            Chosen::Spdy { name, .. } => {
                set("upgrade", "SPDY/3.1");
                if !name.is_empty() {
                    set(PROTOCOL_HEADER, name);
                }
            }
            Chosen::WebSocket(p) => {
                set("upgrade", "websocket");
                if let Upgrade::WebSocket { accept } = &upgrade {
                    set("sec-websocket-accept", accept);
                }
                if !p.name.is_empty() {
                    set("sec-websocket-protocol", p.name);
                }
            }
        }
        let upgraded = hyper::upgrade::on(req);
        tokio::spawn(async move {
            let work = async {
                match upgraded.await {
                    Ok(io) => self.serve(TokioIo::new(io), prepared, chosen).await,
                    Err(e) => tracing::debug!(error = %e, "streaming upgrade"),
                }
            };
            tokio::select! {
                () = work => {}
                () = cancel.cancelled() => {}
            }
        });
        response
    }

    async fn serve(
        &self,
        io: TokioIo<hyper::upgrade::Upgraded>,
        prepared: Prepared,
        chosen: Chosen,
    ) {
        let backend = self.backend.clone();
        match (prepared, chosen) {
            (Prepared::Exec(r), chosen) => {
                let o = Options {
                    stdin: r.stdin,
                    stdout: r.stdout,
                    stderr: r.stderr,
                    tty: r.tty,
                };
                remote_command(io, chosen, o, Kind::Exec, backend.exec(&r)).await;
            }
            (Prepared::Attach(r), chosen) => {
                let o = Options {
                    stdin: r.stdin,
                    stdout: r.stdout,
                    stderr: r.stderr,
                    tty: r.tty,
                };
                remote_command(io, chosen, o, Kind::Attach, backend.attach(&r)).await;
            }
            (Prepared::PortForward(r), Chosen::Spdy { .. }) => {
                portforward::serve_spdy(io, r.pod_sandbox_id, backend).await;
            }
            (Prepared::PortForward(r), Chosen::WebSocket(p)) if p.name == websocket::TUNNEL => {
                portforward::serve_spdy(websocket::tunnel(io).await, r.pod_sandbox_id, backend)
                    .await;
            }
            (Prepared::PortForward(r), Chosen::WebSocket(p)) => {
                let ports: Vec<u16> = r
                    .port
                    .iter()
                    .filter_map(|p| u16::try_from(*p).ok())
                    .take(127)
                    .collect();
                portforward::serve_channels(io, p, &ports, &r.pod_sandbox_id, backend).await;
            }
        }
    }
}

impl crate::cri::StreamUrls for StreamServer {
    fn exec(&self, r: v1::ExecRequest) -> Result<String, Status> {
        self.exec_url(r)
    }
    fn attach(&self, r: v1::AttachRequest) -> Result<String, Status> {
        self.attach_url(r)
    }
    fn port_forward(&self, r: v1::PortForwardRequest) -> Result<String, Status> {
        self.port_forward_url(r)
    }
}

async fn remote_command(
    io: TokioIo<hyper::upgrade::Upgraded>,
    chosen: Chosen,
    options: Options,
    kind: Kind,
    start: impl Future<Output = Result<backend::Session, String>>,
) {
    match chosen {
        Chosen::Spdy { version, .. } => {
            remotecommand::serve_spdy(io, version, options, kind, start).await
        }
        Chosen::WebSocket(p) => remotecommand::serve_websocket(io, p, options, kind, start).await,
    }
}

fn check_streams(
    id: &str,
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
) -> Result<(), Status> {
    if id.is_empty() {
        return Err(Status::invalid_argument("missing required container_id"));
    }
    if tty && stderr {
        return Err(Status::invalid_argument(
            "tty and stderr cannot both be true",
        ));
    }
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument(
            "one of stdin, stdout, or stderr must be set",
        ));
    }
    Ok(())
}

fn text(status: StatusCode, message: &str) -> Response<Body> {
    let mut r = Response::new(Full::from(format!("{message}\n")));
    *r.status_mut() = status;
    r.headers_mut().insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    r
}

/// What the request's upgrade headers ask for.
enum Upgrade {
    Spdy,
    WebSocket { accept: String },
}

/// What the connection will speak.
enum Chosen {
    Spdy { name: &'static str, version: u8 },
    WebSocket(websocket::Protocol),
}

impl Upgrade {
    fn of(headers: &HeaderMap) -> Result<Self, Box<Response<Body>>> {
        if is_websocket(headers) {
            let key = headers.get("sec-websocket-key").map(|k| k.as_bytes());
            let version = list(headers, "sec-websocket-version");
            return match (key, version.as_slice()) {
                (Some(k), ["13"]) => {
                    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(k);
                    Ok(Upgrade::WebSocket { accept })
                }
                (None, _) => Err(Box::new(text(
                    StatusCode::BAD_REQUEST,
                    "Sec-WebSocket-Key is missing",
                ))),
                _ => {
                    let mut r = text(
                        StatusCode::UPGRADE_REQUIRED,
                        "WebSocket version 13 is needed",
                    );
                    r.headers_mut().insert(
                        "sec-websocket-version",
                        http::HeaderValue::from_static("13"),
                    );
                    Err(Box::new(r))
                }
            };
        }
        let has = |name: &str, want: &str| {
            list(headers, name)
                .iter()
                .any(|v| v.eq_ignore_ascii_case(want))
        };
        if has("connection", "upgrade") && has("upgrade", "SPDY/3.1") {
            return Ok(Upgrade::Spdy);
        }
        let message =
            "unable to upgrade: missing upgrade headers in request (SPDY/3.1 or websocket)";
        Err(Box::new(text(StatusCode::BAD_REQUEST, message)))
    }

    fn choose(
        &self,
        prepared: &Prepared,
        headers: &HeaderMap,
    ) -> Result<Chosen, Box<Response<Body>>> {
        let port_forward = matches!(prepared, Prepared::PortForward(_));
        if let Upgrade::WebSocket { .. } = self {
            let known: &[websocket::Protocol] = if port_forward {
                &websocket::PORT_FORWARD
            } else {
                &websocket::REMOTE_COMMAND
            };
            return negotiate(headers, known)
                .map(Chosen::WebSocket)
                .ok_or_else(|| {
                    let names: Vec<&str> = known
                        .iter()
                        .map(|p| p.name)
                        .filter(|n| !n.is_empty())
                        .collect();
                    let message = format!(
                        "no known Sec-WebSocket-Protocol; known are {}",
                        names.join(", ")
                    );
                    Box::new(text(StatusCode::FORBIDDEN, &message))
                });
        }
        let asked = list(headers, PROTOCOL_HEADER);
        let known: Vec<(&'static str, u8)> = if port_forward {
            vec![(SPDY_PORT_FORWARD, 1)]
        } else {
            SPDY_PROTOCOLS.to_vec()
        };
        if asked.is_empty() {
            // Clients from before the negotiation.
            return Ok(Chosen::Spdy {
                name: "",
                version: 1,
            });
        }
        if let Some((name, version)) = asked
            .iter()
            .find_map(|a| known.iter().copied().find(|(n, _)| n == a))
        {
            return Ok(Chosen::Spdy { name, version });
        }
        let message =
            format!("unable to upgrade: unable to negotiate protocol: client supports {asked:?}");
        let mut r = text(StatusCode::FORBIDDEN, &message);
        for (name, _) in known {
            r.headers_mut().append(
                "x-accepted-stream-protocol-versions",
                http::HeaderValue::from_static(name),
            );
        }
        Err(Box::new(r))
    }
}

#[cfg(test)]
mod kubectl;
#[cfg(test)]
mod tests;
