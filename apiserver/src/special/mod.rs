//! The subresources and kinds with a meaning of their own: binding, eviction, tokens, finalize, reviews, everything that is
//! proxied to kubelets and pods, and what must be allocated outside of objects (service addresses and ports). Owns their
//! rules; everything else is the generic registry's.

pub mod binding;
pub mod eviction;
pub mod kubelet;
mod log_socket;
pub mod nodeport;
pub mod proxy;
pub mod reach;
pub mod rewrite;
pub mod service_ip;
pub mod services;
pub mod token;
pub mod tunnel;

use crate::http::{Answer, Request};
use crate::registry::table::Row;
use crate::{App, Config, Error, Write, auth};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use skiff_api::status::Status;
use std::collections::HashSet;
use std::sync::Arc;

/// State of the special resources.
pub struct Special {
    /// Addresses and ports of services.
    pub services: services::Allocations,
    /// Connections to kubelets.
    pub kubelet: kubelet::Client,
}

impl Special {
    /// Of a configuration.
    ///
    /// # Errors
    /// When the service network is no network, or the certificates for kubelets cannot be used.
    pub fn new(config: &Config, auth: &auth::Auth) -> Result<Self, Error> {
        Ok(Self {
            services: services::Allocations::new(config)?,
            kubelet: kubelet::Client::new(&auth.pki)?,
        })
    }
}

/// What became of a request.
// Moved once and matched at once: a box would cost more than it saves.
#[allow(clippy::large_enum_variant)]
pub enum Handled {
    /// It was one of ours; here is the answer.
    Done(Answer),
    /// It is for the generic registry.
    NotMine(Request),
}

/// Takes the requests that are special; called first on every resource request.
pub async fn handle(app: &Arc<App>, row: &Arc<Row>, request: Request) -> Handled {
    let i = &request.info;
    let done = match (&*row.group, &*row.plural, i.subresource.as_str()) {
        ("", "pods", "binding") | ("", "bindings", "") if i.verb == "create" => {
            binding::create(app, request).await
        }
        ("", "pods", "eviction") if i.verb == "create" => eviction::create(app, request).await,
        ("", "serviceaccounts", "token") if i.verb == "create" => token::create(app, request).await,
        ("", "pods", "log") if i.verb == "get" => kubelet::log(app, request).await,
        ("", "pods", "exec") => kubelet::exec(app, request).await,
        ("", "pods", "attach") => kubelet::attach(app, request).await,
        ("", "pods", "portforward") => kubelet::portforward(app, request).await,
        ("", "nodes", "proxy") => proxy::node(app, request).await,
        ("", "pods", "proxy") => proxy::pod(app, request).await,
        ("", "services", "proxy") => proxy::service(app, request).await,
        ("apiextensions.k8s.io", _, _) if matches!(i.verb, "create" | "update" | "patch") => {
            Err(Status::not_implemented("CustomResourceDefinition"))
        }
        ("authentication.k8s.io" | "authorization.k8s.io", _, "") if i.verb == "create" => {
            auth::reviews::create(app, row, request).await
        }
        _ => return Handled::NotMine(request),
    };
    Handled::Done(done)
}

/// Comes back when a connection that a request opened has to end: with the server, or with the caller's credential.
fn ended(app: &Arc<App>, request: &Request) -> BoxFuture<'static, ()> {
    let cancel = app.cancel.clone();
    let session = app.auth.session(app, &request.credential);
    async move {
        match session {
            Some(mut session) => tokio::select! {
                () = cancel.cancelled() => {}
                () = session.ended() => tracing::debug!("a stream ended with its caller's credential"),
            },
            None => cancel.cancelled().await,
        }
    }
    .boxed()
}

/// What a write is about to take, so that no other takes it meanwhile. Hold it until the store has answered: from then on
/// what the store holds counts.
#[must_use]
#[derive(Default)]
pub struct Reservation {
    pending: Option<Arc<Mutex<HashSet<String>>>>,
    claims: Vec<String>,
}

impl Reservation {
    /// Of claims that stand in a set of those that are pending.
    fn new(pending: Arc<Mutex<HashSet<String>>>, claims: Vec<String>) -> Self {
        Self {
            pending: Some(pending),
            claims,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(pending) = &self.pending {
            let mut pending = pending.lock();
            for c in &self.claims {
                pending.remove(c);
            }
        }
    }
}

/// Allocates what a create or update of a service needs, writes it into `write.object`. After mutation, before validation.
///
/// # Errors
/// 422 when an address or port that was asked for is taken or outside its range, 500 when none is free.
pub async fn reserve(app: &Arc<App>, write: &mut Write<'_>) -> Result<Reservation, Status> {
    if write.row.group.is_empty() && write.row.plural == "services" && write.subresource.is_empty()
    {
        return services::reserve(app, write);
    }
    Ok(Reservation::default())
}
