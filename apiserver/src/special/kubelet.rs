//! What the API server asks kubelets for: logs, exec, attach, port-forward. Owns the choice of the container, the kubelet's
//! address and the trust towards it; bytes are [`super::tunnel`]'s.

use super::log_socket;
use super::reach;
use super::tunnel::{self, Forward, Target};
use crate::App;
use crate::admission::{find, text};
use crate::auth::authorization::{Attributes, Decision, forbidden};
use crate::auth::pki::{self, Pki};
use crate::http::path::{query_pairs, truthy};
use crate::http::{Answer, Request};
use axum::body::Body;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use rustls::DigitallySignedStruct;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use skiff_api::field::FieldError;
use skiff_api::status::Status;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a TLS configuration is used before its certificate is looked at again.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// How much of a kubelet's refusal is read.
const ERROR_BODY: usize = 64 * 1024;

/// Trust towards kubelets.
pub struct Client(Mutex<(Arc<rustls::ClientConfig>, Instant)>);

fn config(pki: &Pki) -> Result<Arc<rustls::ClientConfig>, crate::Error> {
    let bad = |e: rustls::Error| crate::Error::Pki(format!("client certificate for kubelets: {e}"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki.server_ca_der()).map_err(bad)?;
    let (chain, key) = pki::parse(&pki.kubelet_client()?)?;
    let provider = pki.provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| crate::Error::Pki(format!("authority of kubelets: {e}")))?;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NodeName(verifier)))
        .with_client_auth_cert(chain, key)
        .map_err(bad)?;
    Ok(Arc::new(config))
}

/// Takes the certificate of a node for that node alone: of our authority, for the node's name, and issued to
/// `system:node:<name>`. The address proves nothing (a node may write any into its status), and the API server's own
/// certificate has the name of its machine, which is a node's, too.
#[derive(Debug)]
struct NodeName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for NodeName {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self
            .0
            .verify_server_cert(end, intermediates, name, ocsp, now)?;
        let wanted = format!("system:node:{}", name.to_str());
        let (_, cert) = x509_parser::parse_x509_certificate(end)
            .map_err(|_| rustls::CertificateError::BadEncoding)?;
        let mut names = cert.subject().iter_common_name().map(|n| n.as_str());
        if names.next() == Some(Ok(&wanted)) && names.next().is_none() {
            return Ok(verified);
        }
        Err(rustls::CertificateError::NotValidForName.into())
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(m, c, d)
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(m, c, d)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl Client {
    /// With the API server's client certificate.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn new(pki: &Pki) -> Result<Self, crate::Error> {
        Ok(Self(Mutex::new((config(pki)?, Instant::now()))))
    }

    fn tls(&self, pki: &Pki) -> Arc<rustls::ClientConfig> {
        let mut held = self.0.lock();
        if held.1.elapsed() > FRESH {
            match config(pki) {
                Ok(c) => *held = (c, Instant::now()),
                Err(e) => {
                    tracing::error!(error = %e, "the certificate for kubelets could not be renewed")
                }
            }
        }
        held.0.clone()
    }

    /// The kubelet of a node, for a path (query included).
    ///
    /// # Errors
    /// 404 when the node is not there, 500 when it has no address, 400 when it must not have the one it has.
    pub fn target(&self, app: &App, node: &str, path: String) -> Result<Target, Status> {
        let object = find(app, "core/nodes", "", node)
            .ok_or_else(|| Status::not_found("", "nodes", node))?;
        let port = object
            .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
            .and_then(Value::as_u64)
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
            .unwrap_or(10250);
        Ok(Target {
            host: reach::node(app, &object, port)?,
            port,
            tls: Some((self.tls(&app.auth.pki), node.to_string())),
            path,
        })
    }
}

fn names(pod: &Value, key: &str) -> Vec<String> {
    pod["spec"]
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|c| text(c, &["name"]).to_string())
        .collect()
}

/// The container that was asked for, or the only one.
///
/// # Errors
/// 400 in upstream's words.
pub fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let name = text(pod, &["metadata", "name"]);
    let (plain, init, ephemeral) = (
        names(pod, "containers"),
        names(pod, "initContainers"),
        names(pod, "ephemeralContainers"),
    );
    if asked.is_empty() {
        if let [one] = plain.as_slice() {
            return Ok(one.clone());
        }
        if plain.is_empty() {
            return Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}"
            )));
        }
        let mut why = format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            plain.join(" ")
        );
        if !init.is_empty() {
            let _ = write!(why, " or one of the init containers: [{}]", init.join(" "));
        }
        if !ephemeral.is_empty() {
            let _ = write!(
                why,
                " or one of the ephemeral containers: [{}]",
                ephemeral.join(" ")
            );
        }
        return Err(Status::bad_request(why));
    }
    if plain
        .iter()
        .chain(&init)
        .chain(&ephemeral)
        .any(|n| n == asked)
    {
        return Ok(asked.to_string());
    }
    Err(Status::bad_request(format!(
        "container {asked} is not valid for pod {name}"
    )))
}

fn pod(app: &App, request: &Request) -> Result<Value, Status> {
    let i = &request.info;
    find(app, "core/pods", &i.namespace, &i.name)
        .ok_or_else(|| Status::not_found("", "pods", &i.name))
}

/// Escapes a part of a path or query.
pub fn escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for b in s.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(b as char);
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// GET of `log`.
///
/// # Errors
/// 400, 404, 422 and what the kubelet says.
pub async fn log(app: &Arc<App>, mut request: Request) -> Answer {
    let pod = pod(app, &request)?;
    let socket = if log_socket::asked(&request.parts.headers) {
        let upgrade = request.parts.extensions.remove();
        Some(log_socket::Client::new(&request.parts.headers, upgrade)?)
    } else {
        None
    };
    let mut query = String::new();
    let mut asked = String::new();
    let mut errors = Vec::new();
    let mut since = 0;
    for (k, v) in query_pairs(request.query()) {
        let number = || {
            v.parse::<i64>().map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {v:?}: invalid syntax"))
            })
        };
        match k.as_str() {
            "container" => asked = v,
            "follow" | "previous" | "timestamps" if truthy(&v) && !v.is_empty() => {
                let _ = write!(query, "&{k}=true");
            }
            "tailLines" => {
                let n = number()?;
                if n < 0 {
                    errors.push(FieldError::invalid(
                        "tailLines",
                        n,
                        "must be greater than or equal to 0",
                    ));
                }
                let _ = write!(query, "&tailLines={n}");
            }
            "limitBytes" | "sinceSeconds" => {
                let n = number()?;
                if n < 1 {
                    errors.push(FieldError::invalid(&*k, n, "must be greater than 0"));
                }
                since += i32::from(k == "sinceSeconds");
                let _ = write!(query, "&{k}={n}");
            }
            "sinceTime" => {
                if v.parse::<jiff::Timestamp>().is_err() {
                    return Err(Status::bad_request(format!(
                        "sinceTime: {v:?} is no RFC 3339 time"
                    )));
                }
                since += 1;
                let _ = write!(query, "&sinceTime={}", escape(&v));
            }
            "stream" => {
                if !matches!(v.as_str(), "All" | "Stdout" | "Stderr") {
                    errors.push(FieldError::not_supported(
                        "stream",
                        v.as_str(),
                        &["All", "Stderr", "Stdout"],
                    ));
                }
                let _ = write!(query, "&stream={v}");
            }
            _ => {}
        }
    }
    if since > 1 {
        errors.push(FieldError::forbidden(
            "",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if !errors.is_empty() {
        return Err(Status::invalid(
            "",
            "PodLogOptions",
            &request.info.name,
            &errors,
        ));
    }
    let container = container(&pod, &asked)?;
    let node = text(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        // Nothing can have been logged yet; upstream answers with nothing, too.
        let mut r = http::Response::new(Body::empty());
        *r.status_mut() = StatusCode::NO_CONTENT;
        return Ok(r);
    }
    let path = format!(
        "/containerLogs/{}/{}/{}{}",
        escape(&request.info.namespace),
        escape(&request.info.name),
        escape(&container),
        query
            .strip_prefix('&')
            .map(|q| format!("?{q}"))
            .unwrap_or_default()
    );
    let target = app.special.kubelet.target(app, node, path)?;
    let forward = Forward {
        method: Method::GET,
        headers: http::HeaderMap::new(),
        body: Body::empty(),
        upgrade: None,
    };
    let answer = tunnel::forward(target, forward, super::ended(app, &request)).await?;
    if answer.status().is_success() {
        if let Some(socket) = socket {
            return socket.send(answer.into_body(), super::ended(app, &request));
        }
        let mut r = http::Response::new(until(answer.into_body(), app.cancel.clone()));
        r.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("text/plain"),
        );
        r.headers_mut().insert(
            http::header::CACHE_CONTROL,
            http::HeaderValue::from_static("no-cache, private"),
        );
        return Ok(r);
    }
    Err(refusal(answer).await)
}

/// The body until the server stops.
fn until(body: Body, cancel: tokio_util::sync::CancellationToken) -> Body {
    use futures::StreamExt;
    Body::from_stream(body.into_data_stream().take_until(cancel.cancelled_owned()))
}

/// A kubelet's refusal as a Status.
async fn refusal(answer: http::Response<Body>) -> Status {
    let code = answer.status().as_u16();
    let body = http_body_util::Limited::new(answer.into_body(), ERROR_BODY)
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    let said = String::from_utf8_lossy(&body).trim().to_string();
    if let Ok(v) = serde_json::from_slice::<Value>(&body)
        && v["kind"] == "Status"
    {
        let message = text(&v, &["message"]).to_string();
        return match code {
            400 => Status::bad_request(message),
            _ => Status {
                code,
                ..Status::internal(message)
            },
        };
    }
    match code {
        400 => Status::bad_request(said),
        // What the kubelet says names the pod and the container: it is what people need, so it is not wrapped
        // (upstream passes the kubelet's answer to an upgrade on as it is).
        404 if !said.is_empty() => Status::new(404, "NotFound", said),
        404 => Status::no_route(),
        _ => Status::internal(if said.is_empty() {
            format!("the kubelet answered {code}")
        } else {
            said
        }),
    }
}

/// exec.
///
/// # Errors
/// 400, 404 and what the kubelet says.
pub async fn exec(app: &Arc<App>, request: Request) -> Answer {
    let pod = pod(app, &request)?;
    let phase = text(&pod, &["status", "phase"]);
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    stream(app, request, &pod, "exec").await
}

/// attach.
///
/// # Errors
/// 400, 404 and what the kubelet says.
pub async fn attach(app: &Arc<App>, request: Request) -> Answer {
    let pod = pod(app, &request)?;
    let phase = text(&pod, &["status", "phase"]);
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!(
            "cannot attach a container in a completed pod; current phase is {phase}"
        )));
    }
    stream(app, request, &pod, "attach").await
}

async fn stream(app: &Arc<App>, request: Request, pod: &Value, what: &str) -> Answer {
    let mut asked = String::new();
    let mut query: Vec<String> = Vec::new();
    let (mut out, mut err) = (None, None);
    let (mut input, mut tty) = (false, false);
    for (k, v) in query_pairs(request.query()) {
        let yes = truthy(&v) && !v.is_empty();
        match k.as_str() {
            "container" => asked = v,
            "command" => query.push(format!("command={}", escape(&v))),
            "stdin" => input = yes,
            "stdout" => out = Some(yes),
            "stderr" => err = Some(yes),
            "tty" => tty = yes,
            _ => {}
        }
    }
    // SetDefaults_PodExecOptions
    let (out, err) = (out.unwrap_or(true), err.unwrap_or(true));
    let mut errors = Vec::new();
    if what == "exec" && query.is_empty() {
        errors.push("you must specify at least 1 command for the container");
    }
    if !input && !out && !err {
        errors
            .push("at least one of stdin, stdout, or stderr must be set for the streaming request");
    }
    if let Some(e) = errors.first() {
        return Err(Status::bad_request(*e));
    }
    for (on, name) in [
        (input, "input"),
        (out, "output"),
        (err && !tty, "error"),
        (tty, "tty"),
    ] {
        if on {
            query.push(format!("{name}=1"));
        }
    }
    let container = container(pod, &asked)?;
    let i = &request.info;
    let path = format!(
        "/{what}/{}/{}/{}?{}",
        escape(&i.namespace),
        escape(&i.name),
        escape(&container),
        query.join("&")
    );
    upgraded(app, request, pod, path).await
}

/// port-forward.
///
/// # Errors
/// 400, 404 and what the kubelet says.
pub async fn portforward(app: &Arc<App>, request: Request) -> Answer {
    let pod = pod(app, &request)?;
    let mut ports = Vec::new();
    for (k, v) in query_pairs(request.query()) {
        if k == "ports" {
            for p in v.split(',') {
                let port = p.trim().parse::<u16>().ok().filter(|p| *p != 0);
                ports.push(port.ok_or_else(|| {
                    Status::bad_request(format!(
                        "unable to parse {p:?} as a port: 1 to 65535 is valid"
                    ))
                })?);
            }
        }
    }
    let query: Vec<String> = ports.iter().map(|p| format!("port={p}")).collect();
    let i = &request.info;
    let mut path = format!("/portForward/{}/{}", escape(&i.namespace), escape(&i.name));
    if !query.is_empty() {
        path = format!("{path}?{}", query.join("&"));
    }
    upgraded(app, request, &pod, path).await
}

/// A WebSocket begins with GET, but what it does is a create (upstream's AuthorizePodWebsocketUpgradeCreatePermission, here
/// also for what nodes/proxy reaches).
///
/// # Errors
/// 403.
pub(super) fn may_create(app: &App, request: &Request) -> Result<(), Status> {
    if request.info.verb == "create" {
        return Ok(());
    }
    let create = Attributes {
        verb: "create",
        ..Attributes::of_request(&request.user, &request.info)
    };
    match app.auth.decide(app, &create) {
        Decision::NoOpinion(why) => Err(forbidden(&create, &why)),
        Decision::Allow(_) => Ok(()),
    }
}

async fn upgraded(app: &Arc<App>, mut request: Request, pod: &Value, path: String) -> Answer {
    may_create(app, &request)?;
    let name = text(pod, &["metadata", "name"]);
    let node = text(pod, &["spec", "nodeName"]);
    if node.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    }
    if !tunnel::asks_upgrade(&request.parts.headers) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let upgrade = request.parts.extensions.remove::<hyper::upgrade::OnUpgrade>().ok_or_else(|| {
        Status::bad_request("this connection cannot be upgraded: exec, attach and port-forward need HTTP/1.1 over TLS to the server")
    })?;
    let target = app.special.kubelet.target(app, node, path)?;
    let forward = Forward {
        method: request.parts.method.clone(),
        headers: std::mem::take(&mut request.parts.headers),
        body: Body::empty(),
        upgrade: Some(upgrade),
    };
    let answer = tunnel::forward(target, forward, super::ended(app, &request)).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    Err(refusal(answer).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_is_chosen_and_refused_in_upstreams_words() {
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&one, "").as_deref(), Ok("a"));
        assert_eq!(container(&two, "i").as_deref(), Ok("i"));
        let e = |p, a| container(p, a).map_err(|s| s.message).unwrap_err();
        assert_eq!(
            e(&two, ""),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(e(&two, "x"), "container x is not valid for pod p");
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escape("sh -c 'a&b'"), "sh%20-c%20%27a%26b%27");
    }
}
