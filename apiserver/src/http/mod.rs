//! The HTTP side: accepting TLS connections, one entry for every request (in process or not), what is no resource
//! (health, version, discovery, OpenAPI, metrics), and turning every failure into a Status. Holds no Kubernetes objects.
//!
//! There is no router: paths are read by one table-driven parser ([`path::RequestInfo`]) because authorization needs the
//! same reading, and because kinds come and go at run time.

pub mod body;
pub mod deadline;
pub mod discovery;
pub mod health;
pub mod negotiate;
pub mod openapi;
pub mod path;
pub mod respond;
pub mod serve;

use crate::auth::UserInfo;
use crate::auth::credential::Credential;
use crate::{App, registry, special};
use ::http::{HeaderValue, Method, Response, header, request::Parts};
use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt;
use negotiate::Accept;
use path::RequestInfo;
use skiff_api::status::Status;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// A request that was authenticated and authorized.
pub struct Request {
    /// What it is about.
    pub info: RequestInfo,
    /// Who asks (or whom they impersonate).
    pub user: Arc<UserInfo>,
    /// What they showed; [`crate::auth::Auth::session`] tells when it ends.
    pub credential: Arc<Credential>,
    /// Method, URI, headers and extensions (`hyper::upgrade::OnUpgrade`, [`serve::Peer`]).
    pub parts: Parts,
    /// The body, unread.
    pub body: Body,
}

impl Request {
    /// The query, not decoded; empty when there is none.
    pub fn query(&self) -> &str {
        self.parts.uri.query().unwrap_or("")
    }

    /// The body's bytes, up to the limit; the body is gone after that.
    ///
    /// # Errors
    /// 413, or 400 when the client broke off.
    pub async fn read_body(&mut self) -> Result<Bytes, Status> {
        body::read(&self.parts.headers, std::mem::take(&mut self.body)).await
    }
}

/// An answer.
pub type Answer = Result<Response<Body>, Status>;

/// Answers one request. `identity` is given by in-process callers, who are not authenticated again (but authorized).
pub async fn handle(
    app: &Arc<App>,
    request: http::Request<Body>,
    identity: Option<Arc<UserInfo>>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let info = RequestInfo::parse(
        &parts.method,
        parts.uri.path(),
        parts.uri.query().unwrap_or(""),
    );
    let verb = info.verb;
    let headers = parts.headers.clone();
    let remote = parts
        .extensions
        .get::<Arc<serve::Peer>>()
        .is_some_and(|p| !p.same_machine());
    let long = deadline::long_running(&info);
    let allotted = if long {
        Ok(None)
    } else {
        deadline::allotted(parts.uri.query().unwrap_or(""), app.config.request_timeout).map(Some)
    };
    let result = match allotted {
        Err(status) => Ok(Err(status)),
        Ok(time) => {
            let answer = AssertUnwindSafe(answer(app, info, parts, body, identity)).catch_unwind();
            match time {
                None => answer.await,
                Some(time) => match tokio::time::timeout(time, answer).await {
                    Ok(result) => result,
                    Err(_) => Ok(Err(deadline::exceeded())),
                },
            }
        }
    };
    let mut response = match result {
        Ok(Ok(mut r)) => {
            if long {
                r.extensions_mut().insert(skiff_https::LongRunning);
            }
            r
        }
        Ok(Err(status)) => failure(&headers, &status),
        Err(panic) => {
            let why = panic
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "panic".into());
            tracing::error!(why, "a request handler panicked; this is a bug");
            failure(
                &headers,
                &Status::internal("the request handler panicked; the server's log says where"),
            )
        }
    };
    app.health.count(verb, response.status().as_u16());
    // Compressing for a client on this machine costs more than it saves.
    if remote {
        response = body::gzip(&headers, response);
    }
    response
}

fn failure(headers: &http::HeaderMap, status: &Status) -> Response<Body> {
    let accept = negotiate::accept(headers, None, true).map_or(Accept::JSON, |a| Accept {
        encoding: a.encoding,
        ..Accept::JSON
    });
    respond::status(status, accept)
}

async fn answer(
    app: &Arc<App>,
    info: RequestInfo,
    parts: Parts,
    body: Body,
    identity: Option<Arc<UserInfo>>,
) -> Answer {
    let ours = identity.is_some();
    let credential = match identity {
        Some(u) => Credential::lasting(u),
        None => app.auth.authenticate(app, &parts).await?,
    };
    if let Some(peer) = parts.extensions.get::<Arc<serve::Peer>>()
        && !credential.user.in_group(crate::auth::UNAUTHENTICATED)
    {
        peer.pass.known();
    }
    let user = app
        .auth
        .impersonate(app, credential.user.clone(), &parts)
        .await?;
    if let Err(refused) = app.auth.authorize(app, &user, &info).await {
        if ours {
            // A component that lacks a right is a fault of ours, which it may not tell.
            tracing::warn!(why = %refused.message, "a part of this server was refused");
        }
        return Err(refused);
    }
    // Opened before the request is answered, so that nothing that ends it meanwhile is missed.
    let session = if deadline::long_running(&info) {
        app.auth.session(app, &credential)
    } else {
        None
    };
    let request = Request {
        info,
        user,
        credential,
        parts,
        body,
    };
    let response = if request.info.is_resource {
        resource(app, request).await?
    } else {
        other(app, &request)?
    };
    Ok(match session {
        Some(session) => response.map(|body| deadline::until_ended(session, body)),
        None => response,
    })
}

async fn resource(app: &Arc<App>, request: Request) -> Answer {
    let i = &request.info;
    let Some(row) = app.table.get(&i.group, &i.version, &i.resource) else {
        return Err(Status::no_route());
    };
    placed(&row, i, &request.parts.method)?;
    // The special ones look first, the generic registry takes the rest.
    match special::handle(app, &row, request).await {
        special::Handled::Done(answer) => answer,
        special::Handled::NotMine(request) => registry::handle(app, row, request).await,
    }
}

/// Is the path one that this kind has? Authorization went by the path's own words: what it calls a namespace must be the
/// object's, or somebody's rights in one namespace would open cluster-wide objects and other namespaces.
fn placed(row: &registry::table::Row, i: &RequestInfo, method: &Method) -> Result<(), Status> {
    let here = if row.namespaced() {
        // Without a namespace there are only collections.
        !i.namespace.is_empty()
            || (i.name.is_empty() && i.subresource.is_empty() && row.has_verb("list"))
    } else if row.storage == "core/namespaces" {
        i.namespace.is_empty() && i.name.is_empty() || i.namespace == i.name
    } else {
        i.namespace.is_empty()
    };
    // `/watch/...` reads collections, or one object of them, whatever follows its name.
    let watch = i.verb != "watch" || i.subresource.is_empty();
    if !here || !watch || i.name.contains('/') || i.namespace.contains('/') {
        return Err(Status::no_route());
    }
    if i.verb == "watch" && method != Method::GET && method != Method::HEAD {
        return Err(Status::method_not_allowed(
            "the server does not allow this method on the requested resource",
        ));
    }
    Ok(())
}

/// Paths that are no resource.
fn other(app: &App, request: &Request) -> Answer {
    let (parts, info) = (&request.parts, &request.info);
    let path = info.path.as_str();
    let get = parts.method == http::Method::GET || parts.method == http::Method::HEAD;
    if let Some(r) = health::health(app, path, request.query()) {
        return Ok(r);
    }
    if !get {
        return Err(Status::no_route());
    }
    let pretty = path::query_pairs(request.query())
        .iter()
        .find(|(k, _)| k == "pretty")
        .map(|(_, v)| path::truthy(v));
    let accept = || negotiate::accept(&parts.headers, pretty, false);
    let elements: Vec<&str> = path.trim_matches('/').split('/').collect();
    match elements.as_slice() {
        [""] => respond_value(accept()?, &root_paths(app)),
        ["version"] => Ok(respond::value(
            200,
            Accept {
                encoding: negotiate::Encoding::PrettyJson,
                ..Accept::JSON
            },
            &health::version(),
        )),
        // Service account issuer discovery, for those who verify our tokens.
        [".well-known", "openid-configuration"] => respond_value(
            Accept::JSON,
            &crate::auth::tokens::Tokens::openid_configuration(),
        ),
        ["openid", "v1", "jwks"] => Ok(respond::bytes(
            200,
            "application/jwk-set+json",
            app.auth.tokens.jwks().to_string(),
        )),
        ["metrics"] => Ok(health::metrics(app)),
        ["openapi", "v2"] => openapi::v2(app, &parts.headers),
        ["openapi", "v3"] => Ok(openapi::v3_index(app)),
        ["openapi", "v3", rest @ ..] => {
            openapi::v3(app, &rest.join("/"), request.query(), &parts.headers)
        }
        ["api"] | ["apis"] => {
            let core = elements[0] == "api";
            if let Some(v) = discovery::Aggregated::asked(&parts.headers) {
                let body = respond::encode(
                    &discovery::aggregated(&app.table, core, v),
                    negotiate::Encoding::Json,
                );
                return Ok(with_etag(&parts.headers, body, &v.content_type()));
            }
            let value = if core {
                discovery::api_versions(&format!(
                    "{}:{}",
                    app.config.advertise_address, app.config.https_listen_port
                ))
            } else {
                discovery::api_groups(&app.table)
            };
            respond_value(accept()?, &value)
        }
        ["apis", group] => respond_value(
            accept()?,
            &discovery::api_group(&app.table, group).ok_or_else(Status::no_route)?,
        ),
        ["api", version] => respond_value(
            accept()?,
            &discovery::api_resources(&app.table, "", version).ok_or_else(Status::no_route)?,
        ),
        ["apis", group, version] => respond_value(
            accept()?,
            &discovery::api_resources(&app.table, group, version).ok_or_else(Status::no_route)?,
        ),
        _ => Err(Status::no_route()),
    }
}

fn respond_value(accept: Accept, value: &serde_json::Value) -> Answer {
    Ok(respond::value(200, accept, value))
}

/// A cacheable document: strong ETag of its content, 304 when the client has it.
pub fn with_etag(headers: &http::HeaderMap, body: Bytes, content_type: &str) -> Response<Body> {
    use sha2::{Digest, Sha256};
    let etag = format!(
        "\"{}\"",
        Sha256::digest(&body)
            .iter()
            .map(|b| format!("{b:02X}"))
            .collect::<String>()
    );
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains(&etag));
    let mut r = if known {
        respond::bytes(304, "application/json", Body::empty())
    } else {
        respond::bytes(200, "application/json", body)
    };
    let h = r.headers_mut();
    if let Ok(v) = HeaderValue::from_str(&etag) {
        h.insert(header::ETAG, v);
    }
    if let Ok(v) = HeaderValue::from_str(content_type) {
        h.insert(header::CONTENT_TYPE, v);
    }
    h.insert(header::VARY, HeaderValue::from_static("Accept"));
    r
}

/// `/`: what can be asked.
fn root_paths(app: &App) -> serde_json::Value {
    let mut paths: Vec<String> = [
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ]
    .map(String::from)
    .to_vec();
    for row in app.table.rows() {
        if row.group.is_empty() {
            paths.push(format!("/api/{}", row.version));
        } else {
            paths.push(format!("/apis/{}", row.group));
            paths.push(format!("/apis/{}/{}", row.group, row.version));
        }
    }
    paths.sort();
    paths.dedup();
    serde_json::json!({"paths": paths})
}
