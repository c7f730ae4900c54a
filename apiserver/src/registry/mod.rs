//! The generic registry: every verb over every row of the resource table, one file per verb. Owns the rules that are the
//! same for all kinds; what differs is in the row's strategy (api crate), in admission, or in `special`.

pub mod create;
pub mod delete;
pub mod deletecollection;
pub mod encode;
pub mod form;
pub mod get;
pub mod input;
pub mod list;
pub mod meta;
pub mod options;
pub mod partial;
pub mod patch;
pub mod scale;
pub mod select;
pub mod table;
pub mod update;
pub mod watch;

use crate::App;
use crate::auth::UserInfo;
use crate::http::negotiate::{self, Accept};
use crate::http::{Answer, Request, respond};
use crate::store::Entry;
use ::http::{HeaderMap, Response};
use axum::body::Body;
use options::Options;
use serde_json::Value;
use skiff_api::resource::Context;
use skiff_api::status::Status;
use std::sync::Arc;
use table::Row;

/// One request on the registry, read and checked.
pub struct Call {
    /// Everything shared.
    pub app: Arc<App>,
    /// The kind of the path.
    pub row: Arc<Row>,
    /// Namespace of the path; empty for cluster-wide kinds and all namespaces.
    pub namespace: String,
    /// Name of the path; empty for collections.
    pub name: String,
    /// Subresource of the path; empty for none.
    pub subresource: String,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// The query.
    pub options: Options,
    /// What the answer shall be.
    pub accept: Accept,
    /// The request's headers.
    pub headers: HeaderMap,
}

/// Now, as stored times are written.
pub fn now() -> String {
    time(jiff::Timestamp::now().as_second())
}

/// Seconds since the epoch as RFC 3339 in UTC.
pub fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// A time moved by seconds; what is no time stays as it is.
pub fn add_seconds(rfc3339: &str, seconds: i64) -> String {
    match rfc3339.parse::<jiff::Timestamp>() {
        Ok(t) => time(t.as_second().saturating_add(seconds)),
        Err(_) => rfc3339.to_string(),
    }
}

fn method_not_allowed() -> Status {
    Status::method_not_allowed("the server does not allow this method on the requested resource")
}

/// Answers a request on a resource.
///
/// # Errors
/// Every refusal, as the Status that upstream answers.
pub async fn handle(app: &Arc<App>, row: Arc<Row>, mut request: Request) -> Answer {
    let options = Options::parse(request.query())?;
    let accept = negotiate::accept(&request.parts.headers, options.pretty, true)?;
    let info = std::mem::take(&mut request.info);
    let is_namespaces = row.storage == "core/namespaces";
    if !row.namespaced() && !info.namespace.is_empty() && !is_namespaces {
        return Err(Status::no_route());
    }
    // The namespaces resource has its name in the namespace's place, for authorization.
    let namespace = if row.namespaced() {
        info.namespace
    } else {
        String::new()
    };
    let call = Call {
        app: app.clone(),
        namespace,
        name: info.name,
        subresource: info.subresource,
        user: request.user.clone(),
        options,
        accept,
        headers: std::mem::take(&mut request.parts.headers),
        row,
    };
    if !info.tail.is_empty() {
        return Err(Status::no_route());
    }
    if !call.subresource.is_empty() {
        let Some(sub) = call.row.subresource(&call.subresource) else {
            return Err(Status::no_route());
        };
        if call.row.namespaced() && call.namespace.is_empty() {
            return Err(Status::no_route());
        }
        if !sub.verbs.contains(&info.verb) {
            return Err(method_not_allowed());
        }
    } else {
        let collection = matches!(info.verb, "list" | "watch");
        if call.row.namespaced() && call.namespace.is_empty() && !collection {
            // Collections over all namespaces can be read and nothing else; objects are below their namespace alone.
            return Err(if call.name.is_empty() {
                method_not_allowed()
            } else {
                Status::no_route()
            });
        }
        let misplaced = match info.verb {
            "create" => !call.name.is_empty(),
            "update" | "patch" => call.name.is_empty(),
            _ => false,
        };
        if misplaced || !call.row.has_verb(info.verb) {
            return Err(method_not_allowed());
        }
    }
    let deprecated = deprecation(&call.row);
    let mut answer = dispatch(call, info.verb, &mut request.body).await?;
    respond::warn(&mut answer, deprecated.as_slice());
    Ok(answer)
}

/// Upstream's warning on every request of a deprecated kind.
fn deprecation(row: &Row) -> Option<String> {
    (row.storage == "core/endpoints").then(|| {
        "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_string()
    })
}

/// Runs a write to its end even when the client goes away: a write that is dropped half-way may have happened, and what
/// was reserved for it must not be given back then.
async fn complete(write: impl Future<Output = Answer> + Send + 'static) -> Answer {
    match tokio::spawn(write).await {
        Ok(answer) => answer,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Status::service_unavailable("the server is stopping")),
        },
    }
}

async fn dispatch(call: Call, verb: &'static str, slot: &mut Body) -> Answer {
    match (verb, call.subresource.as_str()) {
        ("list", "") => return list::list(&call),
        ("watch", "") => return watch::watch(call),
        ("get", "scale") => return scale::get(&call),
        ("get", _) => return get::get(&call),
        _ => {}
    }
    let body = input::body_of(&call.headers, slot).await?;
    complete(async move {
        match (verb, call.subresource.as_str()) {
            ("create", "") => create::create(&call, &body).await,
            ("update", "scale") => scale::update(&call, &body).await,
            ("update", _) => update::update(&call, &body).await,
            ("patch", _) => patch::patch(&call, &body).await,
            ("delete", "") => delete::delete(&call, &body).await,
            ("deletecollection", "") => deletecollection::deletecollection(&call, &body).await,
            (verb, sub) => Err(Status::not_implemented(format!(
                "{verb} of {}/{sub}",
                call.row.plural
            ))),
        }
    })
    .await
}

/// What a write is aimed at; callers inside the server make one without a request.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Everything shared.
    pub app: &'a Arc<App>,
    /// The kind.
    pub row: &'a Arc<Row>,
    /// Empty for cluster-wide kinds.
    pub namespace: &'a str,
    /// Empty on create.
    pub name: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Nothing may be changed.
    pub dry_run: bool,
}

impl Target<'_> {
    /// What strategies are told.
    pub fn context(&self) -> Context {
        Context {
            now: now(),
            user: self.user.name.clone(),
        }
    }
}

impl Call {
    /// What this request's write is aimed at.
    pub fn target(&self) -> Target<'_> {
        Target {
            app: &self.app,
            row: &self.row,
            namespace: &self.namespace,
            name: &self.name,
            subresource: &self.subresource,
            user: &self.user,
            dry_run: self.options.dry_run,
        }
    }

    /// Who manages the fields that this request writes.
    pub fn manager(&self) -> String {
        if !self.options.field_manager.is_empty() {
            return self.options.field_manager.clone();
        }
        let agent = self
            .headers
            .get(::http::header::USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("");
        if agent.is_empty() {
            // Components in this process send no User-Agent: their name is that of their identity.
            return self.user.name.trim_start_matches("system:").to_string();
        }
        skiff_api::patch::apply::default_manager(agent)
    }

    /// The store's key of the object of the path.
    pub fn key(&self) -> String {
        self.row.key(&self.namespace, &self.name)
    }

    /// 404 of the object of the path.
    pub fn not_found(&self) -> Status {
        Status::not_found(&self.row.group, &self.row.plural, &self.name)
    }

    /// An object out of the store, in the form that was asked for.
    pub fn object(&self, code: u16, entry: &Entry) -> Answer {
        form::object(self, code, entry)
    }
}

/// What a write did.
pub enum Written {
    /// It is in the store.
    Stored(Arc<Entry>),
    /// It would be (dry run); the full object.
    Dry(Value),
    /// The update took the last finalizer of an object whose deletion had begun: it is gone; its last state.
    Deleted(Arc<Entry>),
}

impl Written {
    /// The answer to the writer.
    ///
    /// # Errors
    /// 500 when a stored object cannot be decoded for another form.
    pub fn answer(&self, call: &Call, code: u16, warnings: &[String]) -> Answer {
        let mut response: Response<Body> = match self {
            Self::Stored(entry) | Self::Deleted(entry) => call.object(code, entry)?,
            Self::Dry(value) => form::value(call, code, value)?,
        };
        respond::warn(&mut response, warnings);
        Ok(response)
    }
}

/// Reads an object of the store as a Value (kind and apiVersion of this row, resourceVersion included).
///
/// # Errors
/// 404, or 500 when the store is damaged.
pub fn read(app: &App, row: &Row, namespace: &str, name: &str) -> Result<Value, Status> {
    let entry = app
        .store
        .get(&row.key(namespace, name))
        .ok_or_else(|| Status::not_found(&row.group, &row.plural, name))?;
    form::value_of(app, row, &entry)
}
