//! One server and a client of its tower service.

use http_body_util::BodyExt;
use serde_json::{Value, json};
use skiff_apiserver::auth::UserInfo;
use skiff_apiserver::{Config, Handle, serve};
use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// The runtime that outlives every test.
pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RT: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RT.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
    })
}

/// Runs a test, with an end in sight.
pub fn run(test: impl Future<Output = ()>) {
    runtime().block_on(async {
        tokio::time::timeout(Duration::from_secs(60), test)
            .await
            .expect("the test took more than a minute");
    });
}

/// The server.
pub fn server() -> &'static Handle {
    static SERVER: OnceLock<Handle> = OnceLock::new();
    SERVER.get_or_init(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        std::thread::spawn(|| runtime().block_on(another_server()))
            .join()
            .expect("the server starts")
    })
}

/// A server of one's own, for tests that would disturb others.
pub async fn another_server() -> Handle {
    another_server_with(|_| {}).await
}

/// The same, with other settings.
pub async fn another_server_with(change: impl FnOnce(&mut Config)) -> Handle {
    // The directory stays for the process's life and goes with the machine's temporary files.
    let dir = tempfile::tempdir().expect("a directory").keep();
    let mut config = config(&dir);
    change(&mut config);
    server_with(config, CancellationToken::new()).await
}

/// A configuration for tests.
pub fn config(dir: &std::path::Path) -> Config {
    let mut config = Config::new(dir);
    config.bind_address = [127, 0, 0, 1].into();
    // Endpoints may not be loopback addresses; nobody connects to this one.
    config.advertise_address = [192, 0, 2, 1].into();
    config.https_listen_port = 0;
    config
}

/// A server with this configuration, until the token is cancelled.
pub async fn server_with(config: Config, cancel: CancellationToken) -> Handle {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    serve(config, cancel).await.expect("the server starts")
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Answer {
    /// The Status message.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or("")
    }
    pub fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or("")
    }
    pub fn version(&self) -> String {
        self.body["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or("")
            .to_string()
    }
    pub fn names(&self) -> Vec<&str> {
        self.body["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|i| i["metadata"]["name"].as_str())
            .collect()
    }
}

/// Sends a request as a member of system:masters. Headers are `name: value`.
pub async fn send(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<String>,
) -> http::Response<axum::body::Body> {
    send_to(server(), method, path, headers, body).await
}

/// The same, to one server.
pub async fn send_to(
    server: &Handle,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<String>,
) -> http::Response<axum::body::Body> {
    let mut request = http::Request::builder().method(method).uri(path);
    for (k, v) in headers {
        request = request.header(*k, *v);
    }
    let request = request
        .body(axum::body::Body::from(body.into()))
        .expect("a request");
    let service = server.service(UserInfo::new("tester", &["system:masters"]));
    service.oneshot(request).await.expect("infallible")
}

/// The same, with the whole answer read.
pub async fn ask(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<String>,
) -> Answer {
    read(send(method, path, headers, body).await).await
}

/// Reads an answer.
pub async fn read(response: http::Response<axum::body::Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body: serde_json::from_str(&text).unwrap_or_default(),
        text,
    }
}

pub async fn get(path: &str) -> Answer {
    ask("GET", path, &[], "").await
}
pub async fn post(path: &str, body: Value) -> Answer {
    ask("POST", path, &[], body.to_string()).await
}
pub async fn put(path: &str, body: Value) -> Answer {
    ask("PUT", path, &[], body.to_string()).await
}
pub async fn delete(path: &str, body: Value) -> Answer {
    ask(
        "DELETE",
        path,
        &[],
        if body.is_null() {
            String::new()
        } else {
            body.to_string()
        },
    )
    .await
}
pub async fn patch(kind: &str, path: &str, body: Value) -> Answer {
    ask("PATCH", path, &[("content-type", kind)], body.to_string()).await
}

pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const JSON_PATCH: &str = "application/json-patch+json";

/// Makes a namespace with its default service account.
pub async fn namespace(name: &str) -> String {
    let a = post("/api/v1/namespaces", json!({"metadata": {"name": name}})).await;
    assert_eq!(a.code, 201, "{}", a.text);
    let a = post(
        &format!("/api/v1/namespaces/{name}/serviceaccounts"),
        json!({"metadata": {"name": "default"}}),
    )
    .await;
    assert_eq!(a.code, 201, "{}", a.text);
    format!("/api/v1/namespaces/{name}")
}

pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}})
}
