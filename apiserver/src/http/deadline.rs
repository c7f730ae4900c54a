//! How long a request may take (upstream's WithRequestDeadline and WithTimeoutForNonLongRunningRequests), and the end of
//! answers that outlive the credential they were given for. Owns which requests are long; answers nothing.

use super::path::{RequestInfo, query_pairs};
use crate::auth::credential::Session;
use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use skiff_api::status::Status;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Upstream's --request-timeout.
pub const REQUEST: Duration = Duration::from_secs(60);

/// May it take any time? Upstream's BasicLongRunningRequestCheck with kube-apiserver's verbs and subresources.
pub fn long_running(info: &RequestInfo) -> bool {
    info.is_resource
        && (info.verb == "watch"
            || matches!(
                info.subresource.as_str(),
                "attach" | "exec" | "proxy" | "log" | "portforward"
            ))
}

/// The time of a request that is not long: the client's `timeout`, but never more than the server's.
///
/// # Errors
/// 400 when `timeout` is no duration.
pub fn allotted(query: &str, most: Duration) -> Result<Duration, Status> {
    if !query.contains("timeout=") {
        return Ok(most);
    }
    let Some((_, asked)) = query_pairs(query)
        .into_iter()
        .find(|(k, _)| k == "timeout")
        .filter(|(_, v)| !v.is_empty())
    else {
        return Ok(most);
    };
    let asked = duration(&asked).map_err(|why| {
        Status::bad_request(format!(
            "invalid timeout specified in the request URL - {why}"
        ))
    })?;
    // 0 means no wish, as does less.
    Ok(asked.filter(|d| !d.is_zero()).map_or(most, |d| d.min(most)))
}

/// Go's time.ParseDuration; none for a negative one.
fn duration(text: &str) -> Result<Option<Duration>, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(r) => (true, r),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Some(Duration::ZERO));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0f64;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "" => return Err(format!("time: missing unit in duration {text:?}")),
                u => return Err(format!("time: unknown unit {u:?} in duration {text:?}")),
            };
        rest = after;
    }
    if negative {
        return Ok(None);
    }
    Duration::try_from_secs_f64(seconds)
        .map(Some)
        .map_err(|_| invalid())
}

/// 504 in upstream's words.
pub fn exceeded() -> Status {
    Status {
        details: serde_json::json!({}),
        ..Status::new(
            504,
            "Timeout",
            "Timeout: request did not complete within the allotted timeout",
        )
    }
}

/// The body, until the session ends: a watch ends as any watch does, and the client learns the reason when it asks again.
pub fn until_ended(mut session: Session, body: Body) -> Body {
    Body::new(Bound {
        inner: body,
        ended: Some(async move { session.ended().await }.boxed()),
    })
}

struct Bound {
    inner: Body,
    /// None when it has ended.
    ended: Option<BoxFuture<'static, ()>>,
}

impl http_body::Body for Bound {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(ended) = self.ended.as_mut() else {
            return Poll::Ready(None);
        };
        if ended.as_mut().poll(cx).is_ready() {
            self.ended = None;
            self.inner = Body::empty();
            return Poll::Ready(None);
        }
        Pin::new(&mut self.inner).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.ended.is_none() || self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, want) in [
            ("1s", 1000),
            ("1m0.5s", 60_500),
            ("250ms", 250),
            ("0", 0),
            ("+2h", 7_200_000),
            (".5s", 500),
        ] {
            assert_eq!(
                duration(text),
                Ok(Some(Duration::from_millis(want))),
                "{text}"
            );
        }
        assert_eq!(duration("-3s"), Ok(None));
        for bad in [
            "invalid", "5", "s", "1x", "", "-", "1.2.3s", "1s1", "1e400s",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(
            duration("invalid"),
            Err("time: invalid duration \"invalid\"".into())
        );
    }

    #[test]
    fn a_client_may_shorten_its_time_and_never_lengthen_it() {
        let most = Duration::from_secs(60);
        let of = |q: &str| allotted(q, most).map_err(|e| e.message);
        assert_eq!(of("timeout=1s&a=b"), Ok(Duration::from_secs(1)));
        for q in [
            "",
            "timeout=2h",
            "timeout=0",
            "timeout=-1s",
            "timeout=",
            "timeoutSeconds=1",
            "xtimeout=1s",
        ] {
            assert_eq!(of(q), Ok(most), "{q}");
        }
        assert_eq!(
            of("timeout=soon"),
            Err(
                "invalid timeout specified in the request URL - time: invalid duration \"soon\""
                    .into()
            )
        );
    }

    #[test]
    fn watches_and_streams_may_take_any_time_and_nothing_else_may() {
        let of = |method: &str, target: &str| {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let method = http::Method::from_bytes(method.as_bytes()).expect("method");
            long_running(&RequestInfo::parse(&method, path, query))
        };
        for yes in [
            "/api/v1/pods?watch=1",
            "/api/v1/namespaces/a/pods/b/log?follow=true",
            "/api/v1/namespaces/a/pods/b/exec",
            "/api/v1/nodes/n/proxy/x",
        ] {
            assert!(of("GET", yes), "{yes}");
        }
        for no in [
            "/api/v1/pods",
            "/api/v1/namespaces/a/pods/log",
            "/livez",
            "/log",
        ] {
            assert!(!of("GET", no), "{no}");
        }
        assert!(!of("PUT", "/api/v1/namespaces/a/pods/b/status?watch=1"));
    }
}
