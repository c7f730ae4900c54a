//! `/healthz`, `/livez`, `/readyz` (each check by name, `?verbose`, `?exclude=`), `/version` and `/metrics`. Reads state only.

use crate::App;
use crate::http::path::query_pairs;
use ::http::{HeaderValue, Response, StatusCode, header};
use axum::body::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Verbs that are counted; anything else is `other`.
const VERBS: [&str; 9] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "other",
];

/// Counters and named checks.
pub struct Health {
    /// Checks by name: done and well, or why not.
    checks: Mutex<BTreeMap<&'static str, Result<(), String>>>,
    /// Requests by verb and hundreds of the code (1xx to 5xx).
    requests: [[AtomicU64; 6]; VERBS.len()],
    /// Watches that are open.
    pub watches: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            checks: Mutex::default(),
            requests: Default::default(),
            watches: AtomicU64::new(0),
        }
    }
}

impl Health {
    /// Sets a check of `/readyz` (e.g. `poststarthook/bootstrap`); Err says why it is not well.
    pub fn set(&self, name: &'static str, state: Result<(), String>) {
        self.checks.lock().insert(name, state);
    }

    /// True when all checks are well.
    pub fn ready(&self) -> bool {
        self.checks.lock().values().all(Result::is_ok)
    }

    /// Counts an answered request.
    pub fn count(&self, verb: &str, code: u16) {
        let v = VERBS
            .iter()
            .position(|x| *x == verb)
            .unwrap_or(VERBS.len() - 1);
        self.requests[v][usize::from(code / 100).min(5)].fetch_add(1, Relaxed);
    }
}

fn text(code: StatusCode, body: String) -> Response<Body> {
    let mut r = Response::new(Body::from(body));
    *r.status_mut() = code;
    r.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    r.headers_mut().insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    r
}

/// Answers a health path; None when it is none.
pub fn health(app: &App, path: &str, query: &str) -> Option<Response<Body>> {
    let (endpoint, check) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path.trim_start_matches('/'), ""));
    if !["healthz", "livez", "readyz"].contains(&endpoint) {
        return None;
    }
    let mut checks: Vec<(String, Result<(), String>)> =
        vec![("ping".into(), Ok(())), ("etcd".into(), app.store.check())];
    // Liveness does not wait for what readiness waits for: a restart would not mend it.
    if endpoint != "livez" {
        let alarm = app.store.alarms().borrow().clone().map_or(Ok(()), Err);
        checks.push(("datastore-space".into(), alarm));
        checks.extend(
            app.health
                .checks
                .lock()
                .iter()
                .map(|(k, v)| ((*k).to_string(), v.clone())),
        );
        checks.extend(
            app.supervisor
                .health()
                .into_iter()
                .map(|h| (format!("task/{}", h.group), h.fault)),
        );
        let stopping = if app.cancel.is_cancelled() {
            Err("the server is stopping".to_string())
        } else {
            Ok(())
        };
        checks.push(("shutdown".into(), stopping));
    }
    if !check.is_empty() {
        let Some((_, state)) = checks.into_iter().find(|(n, _)| *n == check) else {
            return Some(text(StatusCode::NOT_FOUND, "404 page not found\n".into()));
        };
        return Some(match state {
            Ok(()) => text(StatusCode::OK, "ok".into()),
            Err(e) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("internal server error: {e}\n"),
            ),
        });
    }
    let pairs = query_pairs(query);
    let excluded: Vec<&str> = pairs
        .iter()
        .filter(|(k, _)| k == "exclude")
        .map(|(_, v)| v.as_str())
        .collect();
    let mut out = String::new();
    let mut failed = false;
    for (name, state) in &checks {
        if excluded.contains(&name.as_str()) {
            let _ = writeln!(out, "[+]{name} excluded: ok");
        } else if let Err(why) = state {
            tracing::debug!(check = name, why, "health check failed");
            failed = true;
            let _ = writeln!(out, "[-]{name} failed: reason withheld");
        } else {
            let _ = writeln!(out, "[+]{name} ok");
        }
    }
    Some(if failed {
        text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{out}{endpoint} check failed\n"),
        )
    } else if pairs.iter().any(|(k, _)| k == "verbose") {
        text(StatusCode::OK, format!("{out}{endpoint} check passed\n"))
    } else {
        text(StatusCode::OK, "ok".into())
    })
}

/// `/version`
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": format!("v1.36.0+skiff{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// `/metrics` in the Prometheus text form.
pub fn metrics(app: &App) -> Response<Body> {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# HELP apiserver_request_total Requests answered, by verb and class of code.\n# TYPE apiserver_request_total counter"
    );
    for (v, verb) in VERBS.iter().enumerate() {
        for (c, n) in app.health.requests[v].iter().enumerate() {
            let n = n.load(Relaxed);
            if n > 0 {
                let _ = writeln!(
                    out,
                    "apiserver_request_total{{verb=\"{}\",code=\"{c}xx\"}} {n}",
                    verb.to_uppercase()
                );
            }
        }
    }
    let _ = writeln!(
        out,
        "# HELP apiserver_longrunning_requests Open watches.\n# TYPE apiserver_longrunning_requests gauge"
    );
    let _ = writeln!(
        out,
        "apiserver_longrunning_requests{{verb=\"WATCH\"}} {}",
        app.health.watches.load(Relaxed)
    );
    let _ = writeln!(
        out,
        "# HELP apiserver_storage_objects Stored objects by resource.\n# TYPE apiserver_storage_objects gauge"
    );
    for row in app.table.rows() {
        if row.stored && row.has_verb("list") {
            let n = app.store.count(&row.prefix);
            let name = if row.group.is_empty() {
                row.plural.to_string()
            } else {
                format!("{}.{}", row.plural, row.group)
            };
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{name}\"}} {n}");
        }
    }
    out.push_str(&app.supervisor.metrics());
    let mut r = text(StatusCode::OK, out);
    r.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    r
}
