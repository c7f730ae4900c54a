//! Client certificates: whose they are and until when. Owns the check against an authority; what the name may do is decided
//! elsewhere.

use rustls::DigitallySignedStruct;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Who a certificate says its holder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The common name: the user.
    pub name: String,
    /// The organizations: the groups.
    pub groups: Vec<String>,
    /// notAfter of the certificate, seconds since the epoch.
    pub until: i64,
}

impl Identity {
    /// The certificate is not too old. To be asked on every request: a connection outlives certificates.
    pub fn valid_now(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.is_ok_and(|n| i64::try_from(n.as_secs()).is_ok_and(|n| n <= self.until))
    }
}

/// An authority of client certificates.
#[derive(Debug, Clone)]
pub struct ClientCa(Arc<dyn ClientCertVerifier>);

impl ClientCa {
    /// The authorities of a PEM file.
    ///
    /// # Errors
    /// When it holds none, or none that can be used.
    pub fn new(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(pem) {
            let ca = ca.map_err(|e| format!("the client CA is no PEM: {e:?}"))?;
            roots
                .add(ca)
                .map_err(|e| format!("the client CA cannot be used: {e}"))?;
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map(Self)
            .map_err(|e| format!("the client CA cannot be used: {e}"))
    }

    /// Is this chain (end entity first) of the authority, for clients, and valid now?
    ///
    /// # Errors
    /// Why not.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let Some((end, intermediates)) = chain.split_first() else {
            return Err("no certificate".into());
        };
        self.0
            .verify_client_cert(end, intermediates, UnixTime::now())
            .map(drop)
            .map_err(|e| e.to_string())
    }

    /// Who holds this chain, if it is valid (upstream's x509 CommonNameUserConversion).
    ///
    /// # Errors
    /// Why it is not, or names nobody.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, String> {
        self.verify(chain)?;
        let end = chain.first().ok_or("no certificate")?;
        let (_, cert) =
            x509_parser::parse_x509_certificate(end).map_err(|e| format!("certificate: {e}"))?;
        let subject = cert.subject();
        let name = subject
            .iter_common_name()
            .last()
            .and_then(|n| n.as_str().ok())
            .filter(|n| !n.is_empty())
            .ok_or("the certificate has no common name")?;
        Ok(Identity {
            name: name.to_string(),
            groups: subject
                .iter_organization()
                .filter_map(|o| o.as_str().ok())
                .map(String::from)
                .collect(),
            until: cert.validity().not_after.timestamp(),
        })
    }
}

/// Takes any client certificate whose key the client has. The chain is looked at when a request is authenticated, so that a
/// foreign one gets a 401 and not a broken connection.
#[derive(Debug)]
pub struct AnyCertificate(pub ClientCa);

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        self.0.0.root_hint_subjects()
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
        self.0.0.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.0.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.0.supported_verify_schemes()
    }
}
