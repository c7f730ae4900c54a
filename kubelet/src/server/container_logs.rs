//! `/containerLogs`: checks what is asked for and streams the log (upstream server.go getContainerLogs). Owns the query
//! parameters; reading is `logs::read`.

use super::{Failure, Life, find, query};
use crate::kubelet::Kubelet;
use crate::logs::read::{Options, stream};
use crate::pod::spec;
use crate::pod::view::RunState;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Options of a request (without `previous`, which comes second). Pure.
///
/// # Errors
/// A parameter that is not of its form.
pub fn options(text: &str, now: Timestamp) -> Result<(Options, bool), String> {
    let mut o = Options::default();
    let mut previous = false;
    let flag = |v: &str| matches!(v, "true" | "1" | "");
    for (k, v) in query(text) {
        let number = || {
            v.parse::<u64>()
                .map_err(|_| format!("{k}: {v:?} is not a number"))
        };
        match k.as_str() {
            "follow" => o.follow = flag(&v),
            "previous" => previous = flag(&v),
            "timestamps" => o.timestamps = flag(&v),
            "tailLines" if v != "all" => o.tail = Some(number()?),
            "limitBytes" => {
                let n = number()?;
                if n == 0 {
                    return Err("limitBytes: must be greater than 0".into());
                }
                o.limit = Some(n);
            }
            "sinceSeconds" => {
                let n = number()?;
                if n == 0 {
                    return Err("sinceSeconds: must be greater than 0".into());
                }
                let seconds = SignedDuration::from_secs(i64::try_from(n).unwrap_or(i64::MAX));
                o.since = Some(now.checked_sub(seconds).unwrap_or(Timestamp::MIN));
            }
            "sinceTime" => {
                o.since = Some(
                    v.parse()
                        .map_err(|_| format!("sinceTime: {v:?} is not a time in RFC 3339"))?,
                );
            }
            "stream" => {
                o.stream = match v.to_ascii_lowercase().as_str() {
                    "" | "all" => None,
                    s @ ("stdout" | "stderr") => Some(s.to_string()),
                    _ => return Err(format!("stream: {v:?} is none of All, Stdout, Stderr")),
                };
            }
            _ => {}
        }
    }
    Ok((o, previous))
}

/// The handler.
pub async fn get(
    State(k): State<Arc<Kubelet>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(text): RawQuery,
    mut request: Request,
) -> Result<Response, Failure> {
    let (options, previous) = options(&text.unwrap_or_default(), Timestamp::now())
        .map_err(|m| Failure(StatusCode::UNPROCESSABLE_ENTITY, m))?;
    let handle = find(&k, &namespace, &pod)?;
    let (id, path) = {
        let p = handle.published.lock();
        if spec::container(&p.pod, &container).is_none() {
            return Err(Failure(
                StatusCode::NOT_FOUND,
                format!("container {container} not found in pod {pod}_{namespace}"),
            ));
        }
        let bad = |m: String| Failure(StatusCode::BAD_REQUEST, m);
        let run = if previous {
            // Between two runs the last one is the previous one.
            let runs = p.view.containers.iter().filter(|c| c.name == container);
            let mut runs: Vec<_> = runs.filter(|c| c.state != RunState::Created).collect();
            if runs.first().is_some_and(|c| c.state == RunState::Running)
                || waiting(&p.status, &container).is_none()
            {
                runs = runs.into_iter().skip(1).collect();
            }
            runs.first().copied().ok_or_else(|| {
                bad(format!(
                    "previous terminated container \"{container}\" in pod \"{pod}\" not found"
                ))
            })?
        } else {
            p.view
                .containers
                .iter()
                .filter(|c| c.name == container)
                .find(|c| c.state != RunState::Created)
                .ok_or_else(|| {
                    let reason = waiting(&p.status, &container)
                        .unwrap_or_else(|| "ContainerCreating".into());
                    bad(format!(
                        "container \"{container}\" in pod \"{pod}\" is waiting to start: {}",
                        words(&reason)
                    ))
                })?
        };
        (run.id.clone(), PathBuf::from(&run.log_path))
    };
    if path.as_os_str().is_empty() {
        return Err(Failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the runtime keeps no log of container \"{container}\""),
        ));
    }
    let (tx, rx) = mpsc::channel(16);
    let changes = handle.changes.clone();
    tokio::spawn(async move {
        let running = move || {
            let p = handle.published.lock();
            p.view
                .containers
                .iter()
                .any(|c| c.id == id && c.state == RunState::Running)
        };
        let base = k.config.pod_logs_dir.clone();
        stream(base, path, options, tx, Some(changes), running).await;
    });
    let body =
        futures::stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|c| (c, rx)) });
    let life = request.extensions_mut().remove::<Life>();
    let ended = async move {
        match life {
            Some(life) => life.ended().await,
            None => std::future::pending().await,
        }
    };
    let body = Body::from_stream(futures::StreamExt::take_until(body, Box::pin(ended)));
    let mut response = ([(header::CONTENT_TYPE, "text/plain")], body).into_response();
    response.extensions_mut().insert(skiff_https::LongRunning);
    Ok(response)
}

fn waiting(
    status: &Option<k8s_openapi::api::core::v1::PodStatus>,
    container: &str,
) -> Option<String> {
    let s = status.as_ref()?;
    [
        &s.container_statuses,
        &s.init_container_statuses,
        &s.ephemeral_container_statuses,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .find(|c| c.name == container)?
    .state
    .as_ref()?
    .waiting
    .as_ref()?
    .reason
    .clone()
}

/// Upstream's words for a reason, where it has some.
fn words(reason: &str) -> String {
    match reason {
        "ErrImagePull" => "image can't be pulled".into(),
        "ImagePullBackOff" => "trying and failing to pull image".into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_become_options() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let (o, previous) = options(
            "follow=true&tailLines=5&previous=true&sinceSeconds=60&limitBytes=9&timestamps=true",
            now,
        )
        .unwrap();
        assert!(previous && o.follow && o.timestamps);
        assert_eq!(
            (o.tail, o.limit, o.since),
            (Some(5), Some(9), "2026-01-01T00:00:00Z".parse().ok())
        );
        for bad in [
            "tailLines=x",
            "tailLines=-1",
            "sinceTime=yesterday",
            "limitBytes=0",
            "stream=x",
        ] {
            assert!(options(bad, now).is_err(), "{bad}");
        }
    }
}
