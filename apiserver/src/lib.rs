//! The API server: `serve(config)` makes one process answer the Kubernetes API. Owns the configuration, the shared state
//! ([`App`]) and the handle; the work is in the modules. Knows no component that uses the API.
//!
//! A request's way: `http` (TLS, limits, panics) -> [`http::path::RequestInfo`] -> `auth` (who, and may they) -> `registry`
//! (generic verbs over the resource table) or `special` (the few subresources with their own meaning) -> `admission` ->
//! `store`.
//!
//! Hook points, that is what the modules call of each other:
//! - `auth::Auth::authenticate(&parts)`, `auth::Auth::authorize(&user, &RequestInfo)`;
//! - `admission::mutate(&app, &mut Write)`, `admission::validate(&app, &Write)` on every write;
//! - `special::handle(&app, Request) -> Option<Result<Response, Status>>`, first look at every resource request: it takes
//!   the subresources binding, eviction, token, log, exec, attach, portforward, proxy, and the virtual kinds (reviews);
//! - `special::reserve(&app, &mut Write) -> Result<Reservation, Status>` after admission: what must be allocated outside of
//!   the object (service IPs and node ports); held until the store has answered;
//! - `bootstrap::run(app)` once the store is open.

pub mod admission;
pub mod auth;
pub mod bootstrap;
pub mod http;
pub mod registry;
pub mod special;
pub mod store;

use skiff_api::{Value, status::Status};
use skiff_supervise::Supervisor;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a server is started with. All addresses are of this machine unless said otherwise.
#[derive(Debug, Clone)]
pub struct Config {
    /// Root of all state, e.g. `/var/lib/skiff`; the server writes below `server/`.
    pub data_dir: PathBuf,
    /// Address to listen on, e.g. `0.0.0.0`.
    pub bind_address: IpAddr,
    /// Port to listen on; 0 picks one (tests).
    pub https_listen_port: u16,
    /// The address at which others reach this server (endpoints of the `kubernetes` service); the node's address.
    pub advertise_address: IpAddr,
    /// Further names and addresses of the serving certificate.
    pub tls_san: Vec<String>,
    /// Pod network, e.g. `10.42.0.0/16`.
    pub cluster_cidr: String,
    /// Service network, e.g. `10.43.0.0/16`.
    pub service_cidr: String,
    /// Address of the cluster's DNS service; never allocated to another service.
    pub cluster_dns: IpAddr,
    /// e.g. `cluster.local`
    pub cluster_domain: String,
    /// Ports of NodePort services, inclusive.
    pub service_node_port_range: (u16, u16),
    /// Shared secret with which agents join; none: made at first start.
    pub token: Option<String>,
    /// How much the store may take, on disk and in memory.
    pub datastore_quota: store::space::Quota,
    /// How long a request may take that is no watch, log or stream (upstream's --request-timeout, 60 s).
    pub request_timeout: Duration,
    /// Times and limits of connections.
    pub connections: skiff_https::Settings,
    /// Whose tasks `/readyz` and `/metrics` show; none: one of the server's own.
    pub supervisor: Option<Supervisor>,
}

impl Config {
    /// Upstream's and k3s's defaults over a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            bind_address: IpAddr::from([0, 0, 0, 0]),
            https_listen_port: 6443,
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            tls_san: Vec::new(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            cluster_dns: IpAddr::from([10, 43, 0, 10]),
            cluster_domain: "cluster.local".into(),
            service_node_port_range: (30000, 32767),
            token: None,
            datastore_quota: store::space::Quota::default(),
            request_timeout: http::deadline::REQUEST,
            connections: skiff_https::Settings::default(),
            supervisor: None,
        }
    }
}

/// What every request handler shares.
pub struct App {
    /// The start configuration; `https_listen_port` is the real port.
    pub config: Config,
    /// The resource table.
    pub table: registry::table::Table,
    /// Objects.
    pub store: Arc<dyn store::Store>,
    /// Certificates, authentication, authorization.
    pub auth: auth::Auth,
    /// State of admission plugins.
    pub admission: admission::Admission,
    /// State of the special subresources (service IP allocator, connections to kubelets).
    pub special: special::Special,
    /// Ends everything.
    pub cancel: CancellationToken,
    /// Counters of `/metrics` and the checks of `/readyz`.
    pub health: http::health::Health,
    /// Background work of the whole process.
    pub supervisor: Supervisor,
}

/// What a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A change.
    Update,
    /// A removal (`object` is Null, `old` is there).
    Delete,
    /// exec, attach, portforward, proxy.
    Connect,
}

/// A write on its way to the store, as admission sees it (upstream's admission.Attributes).
pub struct Write<'a> {
    /// Create, update or delete.
    pub operation: Operation,
    /// The kind.
    pub row: &'a Arc<registry::table::Row>,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for cluster-wide objects.
    pub namespace: &'a str,
    /// May be empty on create with generateName.
    pub name: &'a str,
    /// The new object, with apiVersion and kind; Null on delete.
    pub object: Value,
    /// The stored object.
    pub old: Option<Value>,
    /// Who asks.
    pub user: &'a auth::UserInfo,
    /// Nothing may be changed anywhere.
    pub dry_run: bool,
}

/// Why the server did not start; the text says what and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address could not be listened on.
    #[error(
        "cannot listen on {address}: {source}; free the port or choose another with --https-listen-port"
    )]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A directory or file of the data directory cannot be used.
    #[error("cannot use {path}: {source}; check --data-dir and its permissions")]
    DataDir {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The store did not open.
    #[error("cannot open the store: {0}")]
    Store(String),
    /// Certificates could not be read or made.
    #[error("certificates: {0}")]
    Pki(String),
    /// First objects could not be written.
    #[error("bootstrap: {0}")]
    Bootstrap(Status),
}

/// A running server.
pub struct Handle {
    app: Arc<App>,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

/// Starts a server: opens keys and store, makes what every cluster has, and answers on its port. Cancelling `cancel` stops
/// it; [`Handle::stopped`] waits for that.
///
/// # Errors
/// Whatever keeps it from starting, with the mend in the text.
pub async fn serve(mut config: Config, cancel: CancellationToken) -> Result<Handle, Error> {
    let address = SocketAddr::new(config.bind_address, config.https_listen_port);
    // First of all, so that a second server on the same port fails before it touches anything.
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })?;
    let address = listener
        .local_addr()
        .map_err(|source| Error::Listen { address, source })?;
    config.https_listen_port = address.port();
    let auth = auth::Auth::open(&config)?;
    let tls = auth.pki.server_config()?;
    let table = registry::table::Table::new(skiff_api::kinds::builtin());
    let attributes = registry::select::attributes_of(&table.rows());
    let hooks = store::Hooks::new(special::services::with_claims(attributes));
    let supervisor = config
        .supervisor
        .clone()
        .unwrap_or_else(|| Supervisor::new(cancel.clone()));
    let database = config.data_dir.join("server/db");
    let mut options = store::embedded::Options::new(hooks);
    options.quota = config.datastore_quota;
    options.urgent = Some(bootstrap::datastore_alarm::key());
    options.on_fatal = Some(Box::new({
        let supervisor = supervisor.clone();
        move |why| supervisor.fail(why)
    }));
    let store = store::embedded::Embedded::open(&database, options)
        .map_err(|e| Error::Store(e.to_string()))?;
    let special = special::Special::new(&config, &auth)?;
    let app = Arc::new(App {
        supervisor,
        config,
        table,
        store: Arc::new(store),
        auth,
        admission: admission::Admission::default(),
        special,
        cancel,
        health: http::health::Health::default(),
    });
    app.health
        .set("poststarthook/bootstrap", Err("not finished".into()));
    bootstrap::run(&app).await.map_err(Error::Bootstrap)?;
    app.health.set("poststarthook/bootstrap", Ok(()));
    let this = app.clone();
    app.supervisor.spawn("apiserver/sessions", move || {
        auth::credential::Sessions::follow(this.clone())
    });
    let this = app.clone();
    app.supervisor
        .spawn("apiserver/clusterrole-aggregation", move || {
            auth::rbac::aggregation::follow(this.clone())
        });
    let this = app.clone();
    app.supervisor.spawn("apiserver/datastore-alarm", move || {
        bootstrap::datastore_alarm::follow(this.clone())
    });
    let task = tokio::spawn({
        let app = app.clone();
        async move {
            let settings = app.config.connections;
            http::serve::accept(app.clone(), listener, tls, settings).await;
            app.store.close().await;
        }
    });
    Ok(Handle { app, address, task })
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The shared state.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// The API for a caller in this process, who is `user`: no TLS, no authentication, but authorization and all the rest.
    /// `kube::Client::new(handle.service(user), "default")` makes a client of it.
    pub fn service(&self, user: auth::UserInfo) -> Service {
        Service {
            app: self.app.clone(),
            user: Arc::new(user),
        }
    }

    /// Waits until the server has stopped: connections are closed and the store is on disk.
    pub async fn stopped(self) {
        if let Err(e) = self.task.await {
            tracing::error!(error = %e, "the API server ended badly");
        }
    }
}

/// The API as a tower service, with a fixed identity.
#[derive(Clone)]
pub struct Service {
    app: Arc<App>,
    user: Arc<auth::UserInfo>,
}

impl<B> tower::Service<::http::Request<B>> for Service
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = ::http::Response<axum::body::Body>;
    type Error = std::convert::Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ::http::Request<B>) -> Self::Future {
        let (app, user) = (self.app.clone(), self.user.clone());
        Box::pin(async move {
            Ok(http::handle(&app, request.map(axum::body::Body::new), Some(user)).await)
        })
    }
}
