//! The node's HTTPS server on :10250 (upstream pkg/kubelet/server): logs, exec, attach, port-forward, pods, stats. Owns the
//! routes, behind which nobody gets without [`auth`]; streams are the runtime's, this only hands bytes through.

pub mod auth;
pub mod configz;
pub mod container_logs;
pub mod stats;
pub mod streaming;

use crate::config::Config;
use crate::kubelet::Kubelet;
use crate::pod::spec;
use crate::pod::worker::Handle;
use auth::{Auth, Connection};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use k8s_openapi::api::core::v1::Pod;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use skiff_https::{AnyCertificate, ClientCa, Limits, Settings};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// A socket that listens, with the TLS settings for what it accepts.
pub struct Listener {
    tcp: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    ca: ClientCa,
}

/// Connections: one API server has many streams here, and some collect metrics.
const LIMITS: Limits = Limits {
    total: 2048,
    per_address: 1024,
    strangers: 256,
    strangers_per_address: 128,
};
/// How long an answer may take that is no log and no stream.
const REQUEST: Duration = Duration::from_secs(60);

/// Takes the port and reads the certificates.
///
/// # Errors
/// What is wrong, with the mend.
pub async fn bind(config: &Config) -> Result<Listener, String> {
    let certs: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&config.tls_cert_pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("the serving certificate is no PEM: {e:?}"))?;
    let key = PrivateKeyDer::from_pem_slice(&config.tls_key_pem)
        .map_err(|e| format!("the serving key is no PEM: {e:?}"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let ca = ClientCa::new(&config.client_ca_pem, provider.clone())?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_client_cert_verifier(Arc::new(AnyCertificate(ca.clone())))
        .with_single_cert(certs, key)
        .map_err(|e| format!("the serving certificate cannot be used: {e}"))?;
    // Upgrades are HTTP/1.1.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpListener::bind(config.listen).await.map_err(|e| {
        format!(
            "cannot listen on {}: {e}; is another kubelet running on this machine?",
            config.listen
        )
    })?;
    Ok(Listener {
        tcp,
        tls: Arc::new(tls),
        ca,
    })
}

/// Serves until the kubelet stops.
pub async fn run(k: Arc<Kubelet>, listener: Listener) {
    let auth = Arc::new(Auth::new(
        k.client.clone(),
        &k.config.node_name,
        listener.ca,
    ));
    serve(
        listener.tcp,
        listener.tls,
        auth,
        router(k.clone()),
        k.stop.clone(),
    )
    .await;
}

/// Nobody gets to a route who may not use it.
async fn serve(
    tcp: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    auth: Arc<Auth>,
    router: Router,
    stop: tokio_util::sync::CancellationToken,
) {
    let settings = Settings {
        limits: LIMITS,
        descriptors: 8,
        drain: Duration::from_millis(500),
        ..Settings::default()
    };
    let connect = |peer| Arc::new(Connection::new(peer));
    let handle = move |connection: Arc<Connection>,
                       request: http::Request<hyper::body::Incoming>| {
        let (auth, router) = (auth.clone(), router.clone());
        async move {
            let request = request.map(Body::new);
            // Streams take any time, but their beginning does not.
            let answer = admitted(auth, router, connection, request);
            match tokio::time::timeout(REQUEST, answer).await {
                Ok(Ok(response)) => response,
                Ok(Err(refusal)) => refusal.into_response(),
                Err(_) => Failure(
                    StatusCode::GATEWAY_TIMEOUT,
                    "the request took too long".into(),
                )
                .into_response(),
            }
        }
    };
    skiff_https::accept(tcp, tls, settings, stop, connect, handle).await;
}

async fn admitted(
    auth: Arc<Auth>,
    router: Router,
    connection: Arc<Connection>,
    mut request: Request,
) -> Result<Response, Failure> {
    let caller = auth.authenticate(&connection, request.headers()).await?;
    connection.peer.pass.known();
    auth.authorize(&caller.user, request.method(), request.uri().path())
        .await?;
    request.extensions_mut().insert(Life(auth, caller));
    Ok(tower::ServiceExt::oneshot(router, request)
        .await
        .into_response())
}

/// In the extensions of every request: for how long what opens with it may stay open.
#[derive(Clone)]
pub struct Life(Arc<Auth>, auth::Caller);

impl Life {
    /// Comes back when the caller's credential is no longer good.
    pub async fn ended(&self) {
        self.0.ended(&self.1).await;
    }
}

fn router(k: Arc<Kubelet>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/ping", get(|| async { "ok" }))
        .route("/configz", get(configz::get))
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route("/runningpods", get(running_pods))
        .route("/runningpods/", get(running_pods))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(container_logs::get),
        )
        .route("/exec/{namespace}/{pod}/{container}", any(streaming::exec))
        .route(
            "/exec/{namespace}/{pod}/{uid}/{container}",
            any(streaming::exec_uid),
        )
        .route(
            "/attach/{namespace}/{pod}/{container}",
            any(streaming::attach),
        )
        .route(
            "/attach/{namespace}/{pod}/{uid}/{container}",
            any(streaming::attach_uid),
        )
        .route(
            "/portForward/{namespace}/{pod}",
            any(streaming::port_forward),
        )
        .route(
            "/portForward/{namespace}/{pod}/{uid}",
            any(streaming::port_forward_uid),
        )
        .route("/stats/summary", get(stats::summary))
        .route("/metrics", get(stats::metrics))
        .route("/metrics/resource", get(stats::resource_metrics))
        .with_state(k)
}

/// An error as plain text, as upstream's kubelet answers.
pub struct Failure(pub StatusCode, pub String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// The worker of a pod by name.
///
/// # Errors
/// 404 when this node has no such pod.
pub fn find(k: &Kubelet, namespace: &str, name: &str) -> Result<Handle, Failure> {
    let workers = k.workers.lock();
    let mut found: Vec<&Handle> = workers
        .values()
        .filter(|h| {
            let p = h.published.lock();
            spec::name(&p.pod) == name && spec::namespace(&p.pod) == namespace
        })
        .collect();
    // Of an old pod that is going and a new one of the same name, the new one is meant.
    found.sort_by_key(|h| {
        h.published
            .lock()
            .pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|t| t.0)
    });
    found
        .last()
        .map(|h| (*h).clone())
        .ok_or_else(|| Failure(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found")))
}

fn list(items: Vec<Value>) -> Response {
    let body = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    (
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

async fn pods(State(k): State<Arc<Kubelet>>) -> Response {
    let items = k
        .workers
        .lock()
        .values()
        .filter_map(|h| {
            let p = h.published.lock();
            let mut pod: Pod = (*p.pod).clone();
            if let Some(s) = &p.status {
                pod.status = Some(s.clone());
            }
            serde_json::to_value(pod).ok()
        })
        .collect();
    list(items)
}

async fn running_pods(State(k): State<Arc<Kubelet>>) -> Response {
    let items = k
        .workers
        .lock()
        .values()
        .filter_map(|h| {
            let p = h.published.lock();
            let containers: Vec<Value> = p
                .view
                .alive()
                .map(|c| json!({"name": c.name, "image": c.image, "resources": {}}))
                .collect();
            (!containers.is_empty()).then(|| {
                json!({"metadata": {"name": spec::name(&p.pod), "namespace": spec::namespace(&p.pod), "uid": spec::uid(&p.pod)},
                    "spec": {"containers": containers}, "status": {}})
            })
        })
        .collect();
    list(items)
}

/// Query parameters, also repeated ones.
pub fn query(request: &str) -> Vec<(String, String)> {
    request
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            (decode(k), decode(v))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| bytes.get(i + 1..i + 3))
            .flatten()
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (hex, bytes[i]) {
            (Some(b), _) => {
                out.push(b);
                i += 3;
                continue;
            }
            (None, b'+') => out.push(b' '),
            (None, b) => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_and_escaped_parameters_are_kept() {
        assert_eq!(
            query("command=sh&command=-c&command=echo%20a%2Bb+c&tty="),
            [
                ("command", "sh"),
                ("command", "-c"),
                ("command", "echo a+b c"),
                ("tty", "")
            ]
            .map(|(k, v)| (k.to_string(), v.to_string()))
        );
    }

    proptest::proptest! {
        #[test]
        fn any_query_is_read(text in ".{0,60}") {
            let _ = query(&text);
        }
    }
}
