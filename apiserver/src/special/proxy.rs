//! `nodes/proxy`, `pods/proxy` and `services/proxy`: any request passed on to a kubelet, a pod or an endpoint of a service.
//! Owns whom a name like `https:web:8443` means; bytes are [`super::tunnel`]'s.

use super::tunnel::{self, Forward, Target};
use super::{reach, rewrite};
use crate::App;
use crate::admission::{find, list, text};
use crate::http::{Answer, Request};
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header};
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use skiff_api::node_api;
use skiff_api::status::Status;
use std::net::IpAddr;
use std::sync::Arc;

/// `[scheme:]name[:port]`
#[derive(Debug, PartialEq, Eq)]
struct Id<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

/// Upstream's SplitSchemeNamePort.
fn split(id: &str) -> Option<Id<'_>> {
    let parts: Vec<&str> = id.split(':').collect();
    let id = match parts.as_slice() {
        [name] => Id {
            scheme: "",
            name,
            port: "",
        },
        [name, port] => Id {
            scheme: "",
            name,
            port,
        },
        [scheme, name, port] => Id { scheme, name, port },
        _ => return None,
    };
    (!id.name.is_empty() && matches!(id.scheme, "" | "http" | "https")).then_some(id)
}

fn bad(kind: &str, id: &str) -> Status {
    Status::bad_request(format!("invalid {kind} request {id:?}"))
}

/// What follows `/proxy`, decoded and with its slash at the end; empty when not even a slash follows.
fn rest(request: &Request) -> String {
    let i = &request.info;
    let mut rest = String::new();
    if !i.tail.is_empty() {
        rest = format!("/{}", i.tail);
    }
    if i.path.ends_with('/') && !rest.ends_with('/') {
        rest.push('/');
    }
    rest
}

/// The path before that, as we write it.
fn prefix(request: &Request) -> String {
    let i = &request.info;
    let scope = if i.namespace.is_empty() {
        String::new()
    } else {
        format!("namespaces/{}/", i.namespace)
    };
    rewrite::escape_path(&format!(
        "/api/{}/{scope}{}/{}/proxy",
        i.version, i.resource, i.name
    ))
}

/// Passes the request on to `host:port`, and the answer back with its links put right (upstream's UpgradeAwareHandler).
async fn pass(app: &Arc<App>, mut request: Request, place: Where) -> Answer {
    let upgrade = if tunnel::asks_upgrade(&request.parts.headers) {
        request
            .parts
            .extensions
            .remove::<hyper::upgrade::OnUpgrade>()
    } else {
        None
    };
    let method = request.parts.method.clone();
    let (rest, prefix) = (rest(&request), prefix(&request));
    let query = request
        .parts
        .uri
        .query()
        .map(|q| format!("?{q}"))
        .unwrap_or_default();
    if upgrade.is_none() && rest.is_empty() && matches!(method, Method::GET | Method::HEAD) {
        return redirect(&format!("{prefix}/{query}"));
    }
    let path = rewrite::escape_path(&rewrite::clean(&rest));
    let ended = super::ended(app, &request);
    let mut headers = std::mem::take(&mut request.parts.headers);
    let asked = headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .or_else(|| request.parts.uri.authority().map(|a| a.as_str()))
        .unwrap_or_default()
        .to_string();
    let forwarded = format!("{prefix}{path}");
    forwarded_for(&mut headers, &request.parts.extensions, &asked, &forwarded);
    if upgrade.is_none() {
        // Pages are rewritten, and what is packed cannot be.
        headers.remove(header::ACCEPT_ENCODING);
    }
    let here = rewrite::Place {
        prefix,
        host: tunnel::authority(&place.host, place.port),
        asked,
    };
    let target = Target {
        host: place.host,
        port: place.port,
        tls: place.tls,
        path: format!("{path}{query}"),
    };
    let forward = Forward {
        method: method.clone(),
        headers,
        body: std::mem::take(&mut request.body),
        upgrade,
    };
    let answer = tunnel::forward(target, forward, ended).await.map_err(|e| {
        let why = e
            .message
            .trim_start_matches("Internal error occurred: ")
            .trim_start_matches("error dialing backend: ");
        Status::service_unavailable(format!("error trying to reach service: {why}"))
    })?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    Ok(put_right(answer, &method, here))
}

/// Whom a request is passed on to.
struct Where {
    host: String,
    port: u16,
    tls: Option<(Arc<rustls::ClientConfig>, String)>,
}

/// What the other side may know of the client and of itself, in place of what the client says of it.
fn forwarded_for(headers: &mut HeaderMap, extensions: &Extensions, asked: &str, uri: &str) {
    let set = |headers: &mut HeaderMap, name: &'static str, value: &str| match value.parse() {
        Ok(v) => {
            headers.insert(name, v);
        }
        Err(_) => {
            headers.remove(name);
        }
    };
    if let Some(peer) = extensions.get::<Arc<crate::http::serve::Peer>>() {
        let mut all: Vec<String> = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|v| v.to_str().ok())
            .map(String::from)
            .collect();
        all.push(peer.address.ip().to_canonical().to_string());
        set(headers, "x-forwarded-for", &all.join(", "));
    }
    set(headers, "x-forwarded-proto", "https");
    set(headers, "x-forwarded-host", asked);
    set(headers, "x-forwarded-uri", uri);
}

/// Links and redirects to the server itself lead through us; they are never followed here.
fn put_right(
    answer: http::Response<Body>,
    method: &Method,
    place: rewrite::Place,
) -> http::Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok());
    if let Some(link) = text(header::LOCATION) {
        if let Some(v) = place
            .link(link)
            .and_then(|l| HeaderValue::from_str(&l).ok())
        {
            parts.headers.insert(header::LOCATION, v);
        }
        return http::Response::from_parts(parts, body);
    }
    let html = text(header::CONTENT_TYPE)
        .and_then(|t| t.split(';').next())
        .is_some_and(|t| t.trim().eq_ignore_ascii_case("text/html"));
    let plain = text(header::CONTENT_ENCODING).is_none()
        && method != Method::HEAD
        && parts.status != StatusCode::PARTIAL_CONTENT;
    if !html || !plain {
        return http::Response::from_parts(parts, body);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    let state = (body.into_data_stream(), rewrite::Html::new(place), false);
    let pieces = futures::stream::unfold(state, |(mut body, mut html, done)| async move {
        if done {
            return None;
        }
        loop {
            match body.next().await {
                Some(Ok(piece)) => {
                    let out = html.push(&piece);
                    if !out.is_empty() {
                        return Some((Ok(Bytes::from(out)), (body, html, false)));
                    }
                }
                Some(Err(e)) => return Some((Err(e), (body, html, true))),
                None => return Some((Ok(Bytes::from(html.end())), (body, html, true))),
            }
        }
    });
    http::Response::from_parts(parts, Body::from_stream(pieces))
}

/// Relative links of pages work only below a directory: `.../proxy` becomes `.../proxy/`.
fn redirect(to: &str) -> Answer {
    let mut r = http::Response::new(Body::empty());
    *r.status_mut() = StatusCode::MOVED_PERMANENTLY;
    r.headers_mut().insert(
        header::LOCATION,
        HeaderValue::from_str(to).map_err(Status::internal)?,
    );
    Ok(r)
}

/// To the node's kubelet.
///
/// # Errors
/// 400, 404, 503.
pub async fn node(app: &Arc<App>, request: Request) -> Answer {
    let given = request.info.name.clone();
    let id = split(&given).ok_or_else(|| bad("node", &given))?;
    let kubelet = app.special.kubelet.target(app, id.name, String::new())?;
    let mut place = Where {
        host: kubelet.host,
        port: kubelet.port,
        tls: kubelet.tls,
    };
    if !id.port.is_empty() {
        let port: u16 = id.port.parse().map_err(|_| bad("node", &given))?;
        if port != place.port {
            // Some other server of that machine: not the kubelet's trust, and not our certificate. Nothing proves here that
            // the machine is the node's.
            let object = find(app, "core/nodes", "", id.name)
                .ok_or_else(|| Status::not_found("", "nodes", id.name))?;
            place.host = reach::node(app, &object, port)?;
            if reach::claimed_by_another(app, &object, &place.host) {
                return Err(Status::bad_request(
                    "address not allowed: another node has it, too",
                ));
            }
            place.port = port;
            place.tls = tls(app, &id, &place.host)?;
        }
    }
    let kubelet = place.tls.as_ref().is_some_and(|(_, name)| name == id.name);
    if kubelet && node_api::acts(&rewrite::clean(&rest(&request))) {
        super::kubelet::may_create(app, &request)?;
    }
    pass(app, request, place).await
}

/// To a pod's port.
///
/// # Errors
/// 400, 404, 503.
pub async fn pod(app: &Arc<App>, request: Request) -> Answer {
    let given = request.info.name.clone();
    let id = split(&given).ok_or_else(|| bad("pod", &given))?;
    let pod = find(app, "core/pods", &request.info.namespace, id.name)
        .ok_or_else(|| Status::not_found("", "pods", id.name))?;
    let all = pod
        .pointer("/spec/containers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .flat_map(|c| {
            c.get("ports")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        });
    let ports: Vec<&Value> = all.collect();
    let first = ports.first().and_then(|p| p["containerPort"].as_u64());
    let number = if id.port.is_empty() {
        first.unwrap_or(80)
    } else {
        let named = ports
            .iter()
            .find(|p| text(p, &["name"]) == id.port)
            .and_then(|p| p["containerPort"].as_u64());
        id.port
            .parse()
            .ok()
            .or(named)
            .ok_or_else(|| bad("pod", &given))?
    };
    let port = u16::try_from(number).map_err(|_| bad("pod", &given))?;
    let host = reach::pod(app, &pod, port)?.to_string();
    let tls = tls(app, &id, &host)?;
    pass(app, request, Where { host, port, tls }).await
}

/// To one of a service's endpoints, at random.
///
/// # Errors
/// 400, 404, 503 without endpoints.
pub async fn service(app: &Arc<App>, request: Request) -> Answer {
    let given = request.info.name.clone();
    let id = split(&given).ok_or_else(|| bad("service", &given))?;
    let ns = request.info.namespace.clone();
    let service = find(app, "core/services", &ns, id.name)
        .ok_or_else(|| Status::not_found("", "services", id.name))?;
    let ports: Vec<&Value> = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    let wanted = if id.port.is_empty() {
        ports.first()
    } else {
        ports.iter().find(|p| {
            text(p, &["name"]) == id.port
                || p["port"].as_u64().is_some_and(|n| id.port.parse() == Ok(n))
        })
    };
    let unavailable =
        || Status::service_unavailable(format!("no endpoints available for service {given:?}"));
    let name = wanted
        .map(|p| text(p, &["name"]).to_string())
        .ok_or_else(|| {
            Status::service_unavailable(format!(
                "no service port {:?} found for service {:?}",
                id.port, id.name
            ))
        })?;
    let slices = list(app, "discovery.k8s.io/endpointslices", &ns);
    let mut ends: Vec<(Result<IpAddr, Status>, u16)> = Vec::new();
    for s in slices.iter().filter(|s| {
        s["metadata"]["labels"]
            .get("kubernetes.io/service-name")
            .and_then(Value::as_str)
            == Some(id.name)
    }) {
        let port = s["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| text(p, &["name"]) == name)
            .and_then(|p| p["port"].as_u64());
        let Some(port) = port.and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        for e in s["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|e| e.pointer("/conditions/ready") != Some(&Value::Bool(false)))
        {
            ends.extend(
                e["addresses"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .take(1)
                    .map(|a| (reach::endpoint(app, &ns, e, a, port), port)),
            );
        }
    }
    if ends.is_empty() {
        return Err(unavailable());
    }
    // Those that may be reached, or the reason why none may.
    if ends.iter().any(|(ip, _)| ip.is_ok()) {
        ends.retain(|(ip, _)| ip.is_ok());
    }
    let (ip, port) = ends.swap_remove(rand::random_range(0..ends.len()));
    let host = ip?.to_string();
    let tls = tls(app, &id, &host)?;
    pass(app, request, Where { host, port, tls }).await
}

fn tls(
    app: &App,
    id: &Id<'_>,
    host: &str,
) -> Result<Option<(Arc<rustls::ClientConfig>, String)>, Status> {
    if id.scheme != "https" {
        return Ok(None);
    }
    Ok(Some((unverified(app)?, host.to_string())))
}

/// TLS to pods: their certificates are whatever they are, as upstream has it.
fn unverified(app: &App) -> Result<Arc<rustls::ClientConfig>, Status> {
    let provider = app.auth.pki.provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(Status::internal)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_as_upstream_splits_them() {
        assert_eq!(
            split("web"),
            Some(Id {
                scheme: "",
                name: "web",
                port: ""
            })
        );
        assert_eq!(
            split("web:8080"),
            Some(Id {
                scheme: "",
                name: "web",
                port: "8080"
            })
        );
        assert_eq!(
            split("https:web:"),
            Some(Id {
                scheme: "https",
                name: "web",
                port: ""
            })
        );
        assert_eq!(split("ftp:web:1"), None);
        assert_eq!(split("a:b:c:d"), None);
        assert_eq!(split(""), None);
    }
}
