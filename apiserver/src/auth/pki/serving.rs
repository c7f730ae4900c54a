//! The TLS side of the API server: its certificate, renewed by the first handshake after it has become old, and the taking of
//! any client certificate. Owns no files of its own.

use super::ca::{Ca, DAY, RENEW_DAYS, Use, now};
use super::{certified, until};
use parking_lot::RwLock;
use rustls::DigitallySignedStruct;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

/// The serving certificate, renewed by the first handshake after it has become old.
pub(super) struct Serving {
    pub(super) current: RwLock<(Arc<CertifiedKey>, u64)>,
    pub(super) ca: Ca,
    pub(super) wanted: Use,
    pub(super) dir: PathBuf,
    pub(super) provider: Arc<CryptoProvider>,
}

impl Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serving")
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let at = now();
        {
            let current = self.current.read();
            if at < current.1 {
                return Some(current.0.clone());
            }
        }
        let mut current = self.current.write();
        if at >= current.1 {
            let renewed = self
                .ca
                .ensure(
                    &self.dir,
                    "serving-kube-apiserver",
                    "kube-apiserver",
                    &self.wanted,
                    at,
                )
                .and_then(|pair| {
                    Ok((
                        Arc::new(certified(&pair, &self.provider)?),
                        until(&pair).saturating_sub(RENEW_DAYS * DAY),
                    ))
                });
            match renewed {
                Ok(new) => *current = new,
                Err(e) => {
                    tracing::error!(error = %e, "the serving certificate could not be renewed");
                    current.1 = at + DAY;
                }
            }
        }
        Some(current.0.clone())
    }
}

/// Takes any client certificate whose key the client has.
#[derive(Debug)]
pub(super) struct AnyCertificate {
    pub(super) hints: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        self.hints.root_hint_subjects()
    }
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.hints.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.hints.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.hints.supported_verify_schemes()
    }
}
