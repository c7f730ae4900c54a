//! The API's connections: the shared HTTPS front with a credential for each connection. Knows no Kubernetes but that.

use crate::App;
use axum::body::Body;
use skiff_https::Settings;
use std::sync::Arc;
use tokio::net::TcpListener;

/// The other end of a connection; in the extensions of every request that came over one.
#[derive(Debug)]
pub struct Peer {
    /// Addresses and certificates.
    pub front: skiff_https::Peer,
    /// Who the certificate says it is, computed once for the connection.
    pub identity: std::sync::OnceLock<Option<Arc<crate::auth::credential::Credential>>>,
}

impl std::ops::Deref for Peer {
    type Target = skiff_https::Peer;
    fn deref(&self) -> &skiff_https::Peer {
        &self.front
    }
}

/// Accepts until the server is cancelled, then waits for open requests.
pub async fn accept(
    app: Arc<App>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    settings: Settings,
) {
    let cancel = app.cancel.clone();
    let connect = |front| {
        Arc::new(Peer {
            front,
            identity: std::sync::OnceLock::new(),
        })
    };
    let handle = move |peer: Arc<Peer>, request: http::Request<hyper::body::Incoming>| {
        let app = app.clone();
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            super::handle(&app, request, None).await
        }
    };
    skiff_https::accept(listener, tls, settings, cancel, connect, handle).await;
}
