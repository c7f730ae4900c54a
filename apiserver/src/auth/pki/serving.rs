//! The TLS side of the API server: its certificate, renewed by the first handshake after it has become old. Owns no files of
//! its own.

use super::ca::{Ca, DAY, RENEW_DAYS, Use, now};
use super::{certified, until};
use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
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
