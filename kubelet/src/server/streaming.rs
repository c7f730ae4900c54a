//! exec, attach and port-forward: asks the runtime for the address of the stream and hands the upgraded connection
//! through, byte for byte (upstream proxies to the CRI streaming server). Knows neither SPDY nor WebSocket.

use super::{Failure, Life, find, query};
use crate::kubelet::Kubelet;
use crate::pod::view::RunState;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use std::sync::Arc;
use tokio::net::TcpStream;

type Names = (String, String, String);

/// SPDY's way to agree on the subprotocol.
const STREAM_VERSION: &str = "x-stream-protocol-version";

/// What a request for streams says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Streams {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    ports: Vec<i32>,
}

/// The kubelet's parameters are input, output and error; the API's names are understood too.
fn streams(text: &str) -> Streams {
    let mut s = Streams::default();
    let yes = |v: &str| matches!(v, "1" | "true");
    for (k, v) in query(text) {
        match k.as_str() {
            "command" => s.command.push(v),
            "input" | "stdin" => s.stdin = yes(&v),
            "output" | "stdout" => s.stdout = yes(&v),
            "error" | "stderr" => s.stderr = yes(&v),
            "tty" => s.tty = yes(&v),
            "port" | "ports" => s
                .ports
                .extend(v.split(',').filter_map(|p| p.parse::<i32>().ok())),
            _ => {}
        }
    }
    s
}

/// The id of the container's current run.
fn running(k: &Kubelet, namespace: &str, pod: &str, container: &str) -> Result<String, Failure> {
    let handle = find(k, namespace, pod)?;
    let p = handle.published.lock();
    p.view
        .containers
        .iter()
        .find(|c| c.name == container && c.state == RunState::Running)
        .map(|c| c.id.clone())
        .ok_or_else(|| {
            Failure(
                StatusCode::NOT_FOUND,
                format!("container not found (\"{container}\"): it does not run in pod {pod}_{namespace}"),
            )
        })
}

fn runtime_error(e: crate::cri::CriError) -> Failure {
    let code = if e.is_not_found() {
        StatusCode::NOT_FOUND
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Failure(code, e.message)
}

/// `/exec/{namespace}/{pod}/{container}`
pub async fn exec(
    State(k): State<Arc<Kubelet>>,
    Path((namespace, pod, container)): Path<Names>,
    request: Request,
) -> Result<Response, Failure> {
    needs_upgrade(request.headers())?;
    let s = streams(request.uri().query().unwrap_or_default());
    if s.command.is_empty() {
        return Err(Failure(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 command".into(),
        ));
    }
    if !(s.stdin || s.stdout || s.stderr) {
        return Err(Failure(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr".into(),
        ));
    }
    let container_id = running(&k, &namespace, &pod, &container)?;
    let url = k
        .cri
        .exec(ExecRequest {
            container_id,
            cmd: s.command,
            tty: s.tty,
            stdin: s.stdin,
            stdout: s.stdout,
            // A terminal has one output.
            stderr: s.stderr && !s.tty,
        })
        .await
        .map_err(runtime_error)?;
    tunnel(&url, request).await
}

/// The same with the pod's uid in the path.
pub async fn exec_uid(
    state: State<Arc<Kubelet>>,
    Path((namespace, pod, _uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    exec(state, Path((namespace, pod, container)), request).await
}

/// `/attach/{namespace}/{pod}/{container}`
pub async fn attach(
    State(k): State<Arc<Kubelet>>,
    Path((namespace, pod, container)): Path<Names>,
    request: Request,
) -> Result<Response, Failure> {
    needs_upgrade(request.headers())?;
    let s = streams(request.uri().query().unwrap_or_default());
    let container_id = running(&k, &namespace, &pod, &container)?;
    let url = k
        .cri
        .attach(AttachRequest {
            container_id,
            stdin: s.stdin,
            tty: s.tty,
            stdout: s.stdout,
            stderr: s.stderr && !s.tty,
        })
        .await
        .map_err(runtime_error)?;
    tunnel(&url, request).await
}

/// The same with the pod's uid in the path.
pub async fn attach_uid(
    state: State<Arc<Kubelet>>,
    Path((namespace, pod, _uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    attach(state, Path((namespace, pod, container)), request).await
}

/// `/portForward/{namespace}/{pod}`
pub async fn port_forward(
    State(k): State<Arc<Kubelet>>,
    Path((namespace, pod)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    needs_upgrade(request.headers())?;
    let s = streams(request.uri().query().unwrap_or_default());
    let sandbox = {
        let handle = find(&k, &namespace, &pod)?;
        let p = handle.published.lock();
        p.view
            .sandboxes
            .iter()
            .find(|b| b.ready)
            .map(|b| b.id.clone())
    };
    let pod_sandbox_id = sandbox.ok_or_else(|| {
        Failure(
            StatusCode::NOT_FOUND,
            format!("pod {pod}_{namespace} has no running sandbox"),
        )
    })?;
    let url = k
        .cri
        .port_forward(PortForwardRequest {
            pod_sandbox_id,
            port: s.ports,
        })
        .await
        .map_err(runtime_error)?;
    tunnel(&url, request).await
}

/// The same with the pod's uid in the path.
pub async fn port_forward_uid(
    state: State<Arc<Kubelet>>,
    Path((namespace, pod, _uid)): Path<Names>,
    request: Request,
) -> Result<Response, Failure> {
    port_forward(state, Path((namespace, pod)), request).await
}

fn needs_upgrade(headers: &HeaderMap) -> Result<(), Failure> {
    let upgrade = headers
        .get(header::CONNECTION)
        .and_then(|c| c.to_str().ok())
        .is_some_and(|c| c.to_ascii_lowercase().contains("upgrade"));
    if upgrade && headers.contains_key(header::UPGRADE) {
        return Ok(());
    }
    Err(Failure(
        StatusCode::BAD_REQUEST,
        "you must use the SPDY/3.1 or WebSocket protocol: Upgrade request required".into(),
    ))
}

/// Repeats the request at the runtime's address and, once it has switched protocols, copies bytes both ways.
async fn tunnel(url: &str, mut request: Request) -> Result<Response, Failure> {
    let gateway = |m: String| Failure(StatusCode::BAD_GATEWAY, m);
    let uri: Uri = url.parse().map_err(|_| {
        gateway(format!(
            "the runtime gave {url:?} as the address of the stream"
        ))
    })?;
    let authority = uri
        .authority()
        .ok_or_else(|| {
            gateway(format!(
                "the runtime gave {url:?} as the address of the stream"
            ))
        })?
        .clone();
    let address = if authority.port().is_some() {
        authority.to_string()
    } else {
        format!("{authority}:80")
    };
    let stream = TcpStream::connect(&address).await.map_err(|e| {
        gateway(format!(
            "the runtime's streaming server at {address} cannot be reached: {e}"
        ))
    })?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| gateway(e.to_string()))?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut onward = http::Request::builder()
        .method(request.method().clone())
        .uri(path);
    for (name, value) in request.headers() {
        // What the runtime needs of the protocol's own; whoever the caller is does not concern it.
        match name.as_str() {
            "sec-websocket-protocol" => {
                let left = value
                    .to_str()
                    .ok()
                    .and_then(skiff_api::bearer::without_tokens);
                if let Some(left) = left {
                    onward = onward.header(name, left);
                }
            }
            "connection" | "upgrade" | STREAM_VERSION => onward = onward.header(name, value),
            n if n.starts_with("sec-websocket-") => onward = onward.header(name, value),
            _ => {}
        }
    }
    let onward = onward
        .header(header::HOST, authority.as_str())
        .body(Body::empty())
        .map_err(|e| gateway(e.to_string()))?;
    let mut answer = sender
        .send_request(onward)
        .await
        .map_err(|e| gateway(e.to_string()))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(Body::new));
    }
    let theirs = hyper::upgrade::on(&mut answer);
    let life = request.extensions_mut().remove::<Life>();
    let ours = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match tokio::try_join!(ours, theirs) {
            Ok((ours, theirs)) => {
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                let ended = async {
                    match &life {
                        Some(life) => life.ended().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                    () = ended => tracing::debug!("a stream ended with its caller's credential"),
                }
            }
            Err(e) => tracing::debug!(error = %e, "a stream could not be handed through"),
        }
    });
    let mut out = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in answer.headers() {
        out = out.header(name, value);
    }
    out.body(Body::empty()).map_err(|e| gateway(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_naming_streams_are_understood() {
        let s = streams("command=ls&command=-l&input=1&output=1&tty=0&stderr=true");
        assert_eq!(
            s,
            Streams {
                command: vec!["ls".into(), "-l".into()],
                stdin: true,
                stdout: true,
                stderr: true,
                ..Streams::default()
            }
        );
        assert_eq!(streams("port=80,81").ports, [80, 81]);
    }

    #[test]
    fn a_request_that_does_not_upgrade_is_refused() {
        let mut h = HeaderMap::new();
        assert!(needs_upgrade(&h).is_err());
        h.insert(header::CONNECTION, "keep-alive, Upgrade".parse().unwrap());
        h.insert(header::UPGRADE, "SPDY/3.1".parse().unwrap());
        assert!(needs_upgrade(&h).is_ok());
    }
}
