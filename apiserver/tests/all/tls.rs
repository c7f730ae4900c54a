//! The same over a real connection.

use crate::harness::*;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Accepts any certificate: who the server is is tested where certificates are made.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
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
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

async fn raw(request: &str) -> String {
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(server().address())
        .await
        .expect("a connection");
    let name = "localhost".try_into().expect("a name");
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .expect("TLS");
    tls.write_all(request.as_bytes()).await.expect("sent");
    let mut out = Vec::new();
    let _ = tls.read_to_end(&mut out).await;
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn anonymous_gets_health_and_version_and_nothing_else() {
    run(async {
        for (path, code) in [
            ("/livez", 200),
            ("/readyz", 200),
            ("/healthz", 200),
            ("/version", 200),
            ("/api/v1/pods", 403),
            ("/metrics", 403),
        ] {
            let a = raw(&format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            ))
            .await;
            assert!(a.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {a}");
        }
        let a = raw("GET /api/v1/pods HTTP/1.1\r\nhost: x\r\nauthorization: Bearer nonsense\r\nconnection: close\r\n\r\n").await;
        assert!(a.starts_with("HTTP/1.1 401 "), "{a}");
    });
}

#[test]
fn what_is_no_http_does_no_harm() {
    run(async {
        let a = raw("NONSENSE\r\n\r\n").await;
        assert!(a.starts_with("HTTP/1.1 400 "), "{a}");
        raw("\x16\x03\x01 not even TLS").await;
        assert!(
            raw("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await
                .ends_with("ok")
        );
    });
}
