//! One probe of one container: exec, httpGet, tcpSocket, grpc (upstream pkg/probe). Also carries out the httpGet of
//! lifecycle hooks. Owns the requests; counts nothing.

use crate::cri::Cri;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, ContainerPort, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Success.
    Good,
    /// Success with something to say.
    Warn(String),
    /// Failure.
    Bad(String),
    /// The probe itself could not be carried out.
    Broken(String),
}

/// Where a probe goes.
#[derive(Debug, Clone)]
pub struct Target {
    id: String,
    ip: String,
    ports: Vec<ContainerPort>,
}

impl Target {
    /// A container of a pod.
    pub fn new(container: &Container, id: &str, pod_ip: &str) -> Self {
        Self {
            id: id.to_string(),
            ip: pod_ip.to_string(),
            ports: container.ports.clone().unwrap_or_default(),
        }
    }

    /// A port by number or by its name in the container's spec.
    pub fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(n) => *n,
            IntOrString::String(name) => {
                match self.ports.iter().find(|p| p.name.as_ref() == Some(name)) {
                    Some(p) => p.container_port,
                    None => name
                        .parse()
                        .map_err(|_| format!("couldn't find port: {name}"))?,
                }
            }
        };
        u16::try_from(number)
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(|| format!("invalid port number: {number}"))
    }
}

/// Carries out a probe within its time.
pub async fn run(cri: &Cri, probe: &Probe, target: &Target, timeout: Duration) -> Outcome {
    if let Some(exec) = &probe.exec {
        return match cri
            .exec_sync(
                &target.id,
                exec.command.clone().unwrap_or_default(),
                timeout,
            )
            .await
        {
            Ok(r) if r.exit_code == 0 => Outcome::Good,
            Ok(r) => {
                let mut out = r.stdout;
                out.extend(r.stderr);
                out.truncate(10 << 10);
                Outcome::Bad(String::from_utf8_lossy(&out).into_owned())
            }
            Err(e) if e.code == tonic::Code::DeadlineExceeded => {
                Outcome::Bad(format!("command timed out: {}", e.message))
            }
            Err(e) => Outcome::Broken(e.message),
        };
    }
    let late = || {
        Outcome::Bad(format!(
            "context deadline exceeded (timeout {} s)",
            timeout.as_secs()
        ))
    };
    if let Some(action) = &probe.http_get {
        return match tokio::time::timeout(timeout, http_get(action, target)).await {
            Ok(r) => r,
            Err(_) => Outcome::Bad(
                "Get: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                    .into(),
            ),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let port = match target.port(&action.port) {
            Ok(p) => p,
            Err(e) => return Outcome::Broken(e),
        };
        let host = action
            .host
            .clone()
            .filter(|h| !h.is_empty())
            .unwrap_or_else(|| target.ip.clone());
        let address = address(&host, port);
        return match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
            Ok(Ok(_)) => Outcome::Good,
            Ok(Err(e)) => Outcome::Bad(format!("dial tcp {address}: {}", dial_error(&e))),
            Err(_) => Outcome::Bad(format!("dial tcp {address}: i/o timeout")),
        };
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.clone().unwrap_or_default();
        let port = match target.port(&IntOrString::Int(action.port)) {
            Ok(p) => p,
            Err(e) => return Outcome::Broken(e),
        };
        return match tokio::time::timeout(timeout, grpc(&target.ip, port, &service)).await {
            Ok(r) => r,
            Err(_) => late(),
        };
    }
    Outcome::Broken("the probe has no handler".into())
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// GET as probes and hooks do it: certificates are not checked, redirects are followed on the same host.
pub async fn http_get(action: &HTTPGetAction, target: &Target) -> Outcome {
    let port = match target.port(&action.port) {
        Ok(p) => p,
        Err(e) => return Outcome::Broken(e),
    };
    let mut tls = action
        .scheme
        .as_deref()
        .unwrap_or("HTTP")
        .eq_ignore_ascii_case("https");
    let host = action
        .host
        .clone()
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| target.ip.clone());
    let mut authority = address(&host, port);
    let mut path = action.path.clone().unwrap_or_else(|| "/".into());
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    for _ in 0..10 {
        let url = format!("{}://{authority}{path}", if tls { "https" } else { "http" });
        let answer = match one_get(action, tls, &authority, &path).await {
            Ok(a) => a,
            Err(e) => return Outcome::Bad(format!("Get \"{url}\": {e}")),
        };
        let code = answer.0.as_u16();
        if !(300..400).contains(&code) {
            return if (200..300).contains(&code) {
                Outcome::Good
            } else {
                Outcome::Bad(format!("HTTP probe failed with statuscode: {code}"))
            };
        }
        let Some(location) = answer.1 else {
            return Outcome::Good;
        };
        if let Some(p) = location.strip_prefix('/').filter(|p| !p.starts_with('/')) {
            path = format!("/{p}");
            continue;
        }
        let Ok(next) = location.parse::<http::Uri>() else {
            return Outcome::Good;
        };
        let same = next
            .host()
            .is_some_and(|h| h.trim_matches(['[', ']']) == host);
        if !same {
            // Elsewhere is none of the probe's business.
            return Outcome::Warn(format!(
                "Probe terminated redirects, Response body: {location}"
            ));
        }
        tls = next.scheme_str() == Some("https");
        authority = address(&host, next.port_u16().unwrap_or(if tls { 443 } else { 80 }));
        path = next
            .path_and_query()
            .map_or_else(|| "/".into(), |p| p.as_str().to_string());
    }
    Outcome::Bad("stopped after 10 redirects".into())
}

/// Why a connection failed, in the words people know from upstream's events (Go's, without the errno).
fn dial_error(e: &std::io::Error) -> String {
    use std::io::ErrorKind as Kind;
    match e.kind() {
        Kind::ConnectionRefused => "connect: connection refused".into(),
        Kind::ConnectionReset => "connect: connection reset by peer".into(),
        Kind::HostUnreachable => "connect: no route to host".into(),
        Kind::NetworkUnreachable => "connect: network is unreachable".into(),
        Kind::TimedOut => "i/o timeout".into(),
        _ => e.to_string(),
    }
}

async fn one_get(
    action: &HTTPGetAction,
    tls: bool,
    authority: &str,
    path: &str,
) -> Result<(http::StatusCode, Option<String>), String> {
    let stream = TcpStream::connect(authority)
        .await
        .map_err(|e| format!("dial tcp {authority}: {}", dial_error(&e)))?;
    let mut request = http::Request::get(path);
    let has = |name: &str| {
        action
            .http_headers
            .iter()
            .flatten()
            .any(|h| h.name.eq_ignore_ascii_case(name))
    };
    if !has("host") {
        request = request.header("Host", authority);
    }
    if !has("user-agent") {
        request = request.header("User-Agent", "kube-probe/1.36");
    }
    if !has("accept") {
        request = request.header("Accept", "*/*");
    }
    for h in action.http_headers.iter().flatten() {
        // An empty value takes a default header away.
        if !h.value.is_empty() {
            request = request.header(&h.name, &h.value);
        }
    }
    let request = request
        .header("Connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    if tls {
        let host = authority
            .rsplit_once(':')
            .map_or(authority, |(h, _)| h)
            .trim_matches(['[', ']']);
        let name =
            rustls_pki_types::ServerName::try_from(host.to_string()).map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(trusting_config());
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|e| e.to_string())?;
        send(stream, request).await
    } else {
        send(stream, request).await
    }
}

async fn send<S>(
    stream: S,
    request: http::Request<Empty<Bytes>>,
) -> Result<(http::StatusCode, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let answer = sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string());
    let result = answer.map(|a| {
        let location = a
            .headers()
            .get("location")
            .and_then(|l| l.to_str().ok())
            .map(Into::into);
        (a.status(), location)
    });
    driver.abort();
    result
}

/// Probes do not check certificates: they ask whether something answers, not who.
#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn trusting_config() -> Arc<rustls::ClientConfig> {
    static CONFIG: std::sync::OnceLock<Arc<rustls::ClientConfig>> = std::sync::OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            Arc::new(
                rustls::ClientConfig::builder()
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(Trusting(provider)))
                    .with_no_client_auth(),
            )
        })
        .clone()
}

/// grpc.health.v1.Health/Check, without TLS as upstream.
async fn grpc(host: &str, port: u16, service: &str) -> Outcome {
    let authority = address(host, port);
    let stream = match TcpStream::connect(&authority).await {
        Ok(s) => s,
        Err(e) => {
            return Outcome::Bad(format!(
                "timeout: failed to connect service \"{authority}\": {}",
                dial_error(&e)
            ));
        }
    };
    // HealthCheckRequest { service: string = 1 } behind gRPC's five bytes.
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut n = service.len();
        while n >= 0x80 {
            message.put_u8((n as u8 & 0x7f) | 0x80);
            n >>= 7;
        }
        message.put_u8(n as u8);
        message.put_slice(service.as_bytes());
    }
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(&message);
    let request = http::Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(body.freeze()));
    let request = match request {
        Ok(r) => r,
        Err(e) => return Outcome::Broken(e.to_string()),
    };
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = match handshake {
        Ok(h) => h,
        Err(e) => return Outcome::Bad(format!("failed to connect service \"{authority}\": {e}")),
    };
    let driver = tokio::spawn(connection);
    let outcome = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let early = answer.headers().get("grpc-status").cloned();
        let collected = answer
            .into_body()
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        let status = collected
            .trailers()
            .and_then(|t| t.get("grpc-status"))
            .cloned()
            .or(early);
        let data = collected.to_bytes();
        match status.as_ref().and_then(|s| s.to_str().ok()) {
            Some("0") => {}
            Some("12") => return Err(
                "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .to_string(),
            ),
            other => return Err(format!("rpc error: code = {}", other.unwrap_or("unknown"))),
        }
        // HealthCheckResponse { status: enum = 1 }; SERVING is 1.
        let serving = data.get(5..).is_some_and(|m| m == [0x08, 1]);
        if serving {
            Ok(())
        } else {
            Err("service unhealthy (responded with \"NOT_SERVING\")".to_string())
        }
    }
    .await;
    driver.abort();
    match outcome {
        Ok(()) => Outcome::Good,
        Err(e) => Outcome::Bad(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn server(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (mut s, _) = listener.accept().await.unwrap();
            let mut buffer = [0u8; 4096];
            let n = s.read(&mut buffer).await.unwrap();
            s.write_all(answer.as_bytes()).await.unwrap();
            s.shutdown().await.unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        });
        (port, task)
    }

    fn action(port: u16) -> HTTPGetAction {
        serde_json::from_value(serde_json::json!({"port": port, "path": "/healthz",
            "httpHeaders": [{"name": "X-Probe", "value": "1"}]}))
        .unwrap()
    }

    fn target() -> Target {
        Target {
            id: String::new(),
            ip: "127.0.0.1".into(),
            ports: vec![],
        }
    }

    #[tokio::test]
    async fn http_probes_say_who_asks_and_judge_by_status() {
        let (port, seen) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(http_get(&action(port), &target()).await, Outcome::Good);
        let seen = seen.await.unwrap().to_lowercase();
        assert!(
            seen.starts_with("get /healthz http/1.1")
                && seen.contains("x-probe: 1")
                && seen.contains("kube-probe")
        );
        let (port, _) = server("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(
            http_get(&action(port), &target()).await,
            Outcome::Bad("HTTP probe failed with statuscode: 503".into())
        );
        let (port, _) = server(
            "HTTP/1.1 302 Go\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        assert!(matches!(
            http_get(&action(port), &target()).await,
            Outcome::Warn(_)
        ));
        let Outcome::Bad(why) = http_get(&action(1), &target()).await else {
            panic!("nothing listens on port 1")
        };
        assert!(
            why.ends_with("dial tcp 127.0.0.1:1: connect: connection refused"),
            "{why}"
        );
    }
}
