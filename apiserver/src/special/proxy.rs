//! `nodes/proxy`, `pods/proxy` and `services/proxy`: any request passed on to a kubelet, a pod or an endpoint of a service.
//! Owns whom a name like `https:web:8443` means; bytes are [`super::tunnel`]'s.

use super::tunnel::{self, Forward, Target};
use crate::App;
use crate::admission::{find, list, text};
use crate::http::{Answer, Request};
use axum::body::Body;
use http::{HeaderValue, Method, StatusCode, header};
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
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

/// What follows `/proxy`, as it was sent, with the query; none when not even a slash follows.
fn rest(request: &Request, elements: usize) -> Option<String> {
    let path = request.parts.uri.path();
    let mut at = 0;
    for _ in 0..elements {
        at = path[at + 1..].find('/').map(|i| at + 1 + i)?;
    }
    let mut out = path[at..].to_string();
    if let Some(q) = request.parts.uri.query() {
        out = format!("{out}?{q}");
    }
    Some(out)
}

fn bad(kind: &str, id: &str) -> Status {
    Status::bad_request(format!("invalid {kind} request {id:?}"))
}

async fn pass(app: &Arc<App>, mut request: Request, target: Target) -> Answer {
    let upgrade = if tunnel::asks_upgrade(&request.parts.headers) {
        request
            .parts
            .extensions
            .remove::<hyper::upgrade::OnUpgrade>()
    } else {
        None
    };
    let mut headers = std::mem::take(&mut request.parts.headers);
    if let Some(p) = request
        .parts
        .extensions
        .get::<Arc<crate::http::serve::Peer>>()
        && let Ok(v) = HeaderValue::from_str(&p.address.ip().to_string())
    {
        headers.append("x-forwarded-for", v);
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    let forward = Forward {
        method: request.parts.method.clone(),
        headers,
        body: std::mem::take(&mut request.body),
        upgrade,
    };
    tunnel::forward(target, forward, &app.cancel)
        .await
        .map_err(|e| {
            let why = e
                .message
                .trim_start_matches("Internal error occurred: ")
                .trim_start_matches("error dialing backend: ");
            Status::service_unavailable(format!("error trying to reach service: {why}"))
        })
}

/// Relative links of pages work only below a directory: `.../proxy` becomes `.../proxy/`.
fn redirect(request: &Request) -> Answer {
    if !matches!(request.parts.method, Method::GET | Method::HEAD) {
        return Err(Status::bad_request(
            "the path after proxy is missing, at least a slash is needed",
        ));
    }
    let mut to = format!("{}/", request.parts.uri.path());
    if let Some(q) = request.parts.uri.query() {
        to = format!("{to}?{q}");
    }
    let mut r = http::Response::new(Body::empty());
    *r.status_mut() = StatusCode::MOVED_PERMANENTLY;
    r.headers_mut().insert(
        header::LOCATION,
        HeaderValue::from_str(&to).map_err(Status::internal)?,
    );
    Ok(r)
}

/// Upstream's IsProxyableIP: whoever may write a pod's status or an endpoint must not reach the server's own machine by it.
fn proxyable(host: &str) -> bool {
    match host.parse::<IpAddr>().map(|a| a.to_canonical()) {
        Ok(IpAddr::V4(a)) => {
            !(a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_unspecified()
                || a.is_broadcast())
        }
        Ok(IpAddr::V6(a)) => {
            !(a.is_loopback()
                || a.is_unicast_link_local()
                || a.is_multicast()
                || a.is_unspecified())
        }
        Err(_) => false,
    }
}

/// To the node's kubelet.
///
/// # Errors
/// 400, 404, 503.
pub async fn node(app: &Arc<App>, request: Request) -> Answer {
    let id = request.info.name.clone();
    let id = split(&id).ok_or_else(|| bad("node", &id))?;
    let Some(path) = rest(&request, 5) else {
        return redirect(&request);
    };
    let mut target = app.special.kubelet.target(app, id.name, path)?;
    if !id.port.is_empty() {
        let port: u16 = id.port.parse().map_err(|_| bad("node", id.name))?;
        if port != target.port {
            // Some other server of that machine: not the kubelet's trust, and not our certificate.
            target.port = port;
            target.tls = (id.scheme == "https")
                .then(|| unverified(app))
                .transpose()?;
        }
    }
    pass(app, request, target).await
}

/// To a pod's port.
///
/// # Errors
/// 400, 404, 503.
pub async fn pod(app: &Arc<App>, request: Request) -> Answer {
    let given = request.info.name.clone();
    let id = split(&given).ok_or_else(|| bad("pod", &given))?;
    let Some(path) = rest(&request, 7) else {
        return redirect(&request);
    };
    let pod = find(app, "core/pods", &request.info.namespace, id.name)
        .ok_or_else(|| Status::not_found("", "pods", id.name))?;
    let host = text(&pod, &["status", "podIP"]).to_string();
    if !proxyable(&host) {
        return Err(Status::bad_request("address not allowed"));
    }
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
    let target = Target {
        host,
        port,
        tls: (id.scheme == "https")
            .then(|| unverified(app))
            .transpose()?,
        path,
    };
    pass(app, request, target).await
}

/// To one of a service's endpoints, at random.
///
/// # Errors
/// 400, 404, 503 without endpoints.
pub async fn service(app: &Arc<App>, request: Request) -> Answer {
    let given = request.info.name.clone();
    let id = split(&given).ok_or_else(|| bad("service", &given))?;
    let Some(path) = rest(&request, 7) else {
        return redirect(&request);
    };
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
    let mut ends: Vec<(String, u16)> = Vec::new();
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
                    .map(|a| (a.to_string(), port)),
            );
        }
    }
    if ends.is_empty() {
        return Err(unavailable());
    }
    let (host, port) = ends.swap_remove(rand::random_range(0..ends.len()));
    if !proxyable(&host) {
        return Err(Status::bad_request("address not allowed"));
    }
    let target = Target {
        host,
        port,
        tls: (id.scheme == "https")
            .then(|| unverified(app))
            .transpose()?,
        path,
    };
    pass(app, request, target).await
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

    #[test]
    fn nobody_is_proxied_to_the_servers_own_machine() {
        for bad in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "0.0.0.0",
            "::ffff:127.0.0.1",
            "fe80::1",
            "localhost",
            "",
        ] {
            assert!(!proxyable(bad), "{bad}");
        }
        assert!(proxyable("10.42.0.7") && proxyable("fd00::7"));
    }
}
