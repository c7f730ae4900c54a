//! watch.

use crate::harness::*;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

/// An open watch.
struct Events {
    body: axum::body::Body,
    rest: String,
    ready: VecDeque<Value>,
}

impl Events {
    async fn open(path: &str) -> Self {
        Self::open_as(path, "application/json").await
    }
    async fn open_as(path: &str, accept: &str) -> Self {
        let r = send("GET", path, &[("accept", accept)], "").await;
        assert_eq!(r.status().as_u16(), 200, "{path}");
        Self {
            body: r.into_body(),
            rest: String::new(),
            ready: VecDeque::new(),
        }
    }
    /// The next event; None at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(v) = self.ready.pop_front() {
                return Some(v);
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame())
                .await
                .expect("an event within 10 s")?;
            let data = frame.expect("a frame").into_data().expect("data");
            self.rest.push_str(&String::from_utf8_lossy(&data));
            while let Some(i) = self.rest.find('\n') {
                let line: String = self.rest.drain(..=i).collect();
                self.ready
                    .push_back(serde_json::from_str(&line).expect("an event"));
            }
        }
    }
    /// The next event as `TYPE name`.
    async fn short(&mut self) -> String {
        match self.next().await {
            Some(e) => format!(
                "{} {}",
                e["type"].as_str().unwrap_or(""),
                e["object"]["metadata"]["name"].as_str().unwrap_or("")
            ),
            None => "end".into(),
        }
    }
}

#[test]
fn changes_are_seen_in_order_from_a_version_on() {
    run(async {
        let ns = namespace("t-order").await;
        let cms = format!("{ns}/configmaps");
        post(&cms, config_map("a")).await;
        let rv = get(&cms).await.version();
        let mut w = Events::open(&format!("{cms}?watch=true&resourceVersion={rv}")).await;
        post(&cms, config_map("b")).await;
        patch(MERGE, &format!("{cms}/a"), json!({"data": {"x": "y"}})).await;
        delete(&format!("{cms}/b"), Value::Null).await;
        // Another namespace is not seen.
        post(
            "/api/v1/namespaces/default/configmaps",
            config_map("t-order-elsewhere"),
        )
        .await;
        post(&cms, config_map("c")).await;
        for want in ["ADDED b", "MODIFIED a", "DELETED b", "ADDED c"] {
            assert_eq!(w.short().await, want);
        }
        // From the same version later, the same history.
        let mut w = Events::open(&format!(
            "{cms}?watch=true&resourceVersion={rv}&timeoutSeconds=1"
        ))
        .await;
        let mut last = rv.parse::<u64>().unwrap_or(0);
        for want in ["ADDED", "MODIFIED", "DELETED", "ADDED"] {
            let e = w.next().await.expect("an event");
            assert_eq!(
                (&e["type"], &e["object"]["kind"], &e["object"]["apiVersion"]),
                (&json!(want), &json!("ConfigMap"), &json!("v1"))
            );
            let v = e["object"]["metadata"]["resourceVersion"]
                .as_str()
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            assert!(v > last);
            last = v;
        }
        assert_eq!(w.short().await, "end");
    });
}

#[test]
fn without_a_version_the_present_state_comes_first() {
    run(async {
        let ns = namespace("t-initial").await;
        let cms = format!("{ns}/configmaps");
        post(&cms, config_map("a")).await;
        for query in ["watch=true", "watch=1&resourceVersion=0"] {
            let mut w = Events::open(&format!("{cms}?{query}")).await;
            assert_eq!(w.short().await, "ADDED a", "{query}");
        }
        let mut w = Events::open(&format!(
            "{cms}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        ))
        .await;
        assert_eq!(w.short().await, "ADDED a");
        let b = w.next().await.expect("a bookmark");
        assert_eq!(
            (
                &b["type"],
                &b["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"]
            ),
            (&json!("BOOKMARK"), &json!("true"))
        );
        assert!(b["object"]["metadata"]["resourceVersion"].is_string());
        post(&cms, config_map("b")).await;
        assert_eq!(w.short().await, "ADDED b");
    });
}

#[test]
fn objects_enter_and_leave_a_selection() {
    run(async {
        let ns = namespace("t-select").await;
        let cms = format!("{ns}/configmaps");
        let rv = get(&cms).await.version();
        let mut w = Events::open(&format!(
            "{cms}?watch=true&resourceVersion={rv}&labelSelector=on%3Dyes"
        ))
        .await;
        post(&cms, config_map("a")).await;
        let label = |v: Value| json!({"metadata": {"labels": {"on": v}}});
        patch(MERGE, &format!("{cms}/a"), label("yes".into())).await;
        patch(MERGE, &format!("{cms}/a"), json!({"data": {"n": "1"}})).await;
        let left = patch(MERGE, &format!("{cms}/a"), label("no".into())).await;
        patch(MERGE, &format!("{cms}/a"), label("yes".into())).await;
        delete(&format!("{cms}/a"), Value::Null).await;
        assert_eq!(w.short().await, "ADDED a");
        assert_eq!(w.short().await, "MODIFIED a");
        let gone = w.next().await.expect("an event");
        assert_eq!(
            (&gone["type"], &gone["object"]["metadata"]["labels"]["on"]),
            (&json!("DELETED"), &json!("yes"))
        );
        assert_eq!(
            gone["object"]["metadata"]["resourceVersion"],
            left.version()
        );
        assert_eq!(w.short().await, "ADDED a");
        assert_eq!(w.short().await, "DELETED a");
    });
}

#[test]
fn a_version_that_is_gone_is_an_error_in_the_stream() {
    run(async {
        let own = another_server().await;
        let secrets = "/api/v1/namespaces/default/secrets";
        let ask = async |method: &str, path: &str, body: Value| {
            read(send_to(&own, method, path, &[], body.to_string()).await).await
        };
        let a = ask("POST", secrets, json!({"metadata": {"name": "s"}})).await;
        assert_eq!(a.code, 201, "{}", a.text);
        ask("POST", secrets, json!({"metadata": {"name": "s2"}})).await;
        let mut changed = a.body.clone();
        changed["metadata"]["labels"] = json!({"a": "b"});
        ask("PUT", &format!("{secrets}/s"), changed).await;
        let first = ask("GET", &format!("{secrets}?limit=1"), Value::Null).await;
        own.app().store.compact(own.app().store.revision());
        ask("POST", secrets, json!({"metadata": {"name": "t"}})).await;
        own.app().store.compact(own.app().store.revision());
        let w = ask(
            "GET",
            &format!("{secrets}?watch=true&resourceVersion={}", a.version()),
            Value::Null,
        )
        .await;
        assert_eq!(
            (
                w.code,
                &w.body["type"],
                &w.body["object"]["code"],
                &w.body["object"]["reason"]
            ),
            (200, &json!("ERROR"), &json!(410), &json!("Expired"))
        );
        let page = ask(
            "GET",
            &format!(
                "{secrets}?resourceVersion={}&resourceVersionMatch=Exact",
                a.version()
            ),
            Value::Null,
        )
        .await;
        assert_eq!((page.code, page.reason()), (410, "Expired"));
        // A page of a state that is gone: refused, with a token for the rest as it is now.
        let token = first.body["metadata"]["continue"].as_str().unwrap_or("");
        let next = ask(
            "GET",
            &format!("{secrets}?limit=1&continue={token}"),
            Value::Null,
        )
        .await;
        assert_eq!(
            (next.code, next.reason()),
            (410, "Expired"),
            "{}",
            next.text
        );
        let fresh = next.body["metadata"]["continue"].as_str().unwrap_or("");
        let rest = ask(
            "GET",
            &format!("{secrets}?limit=5&continue={fresh}"),
            Value::Null,
        )
        .await;
        assert_eq!(rest.names(), vec!["s2", "t"], "{}", rest.text);
    });
}

#[test]
fn tables_are_watched_with_headers_once() {
    run(async {
        let ns = namespace("t-table").await;
        post(&format!("{ns}/configmaps"), config_map("a")).await;
        let mut w = Events::open_as(
            &format!("{ns}/configmaps?watch=true"),
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        )
        .await;
        let first = w.next().await.expect("an event");
        assert_eq!(
            (
                &first["object"]["kind"],
                &first["object"]["rows"][0]["cells"][0]
            ),
            (&json!("Table"), &json!("a"))
        );
        assert!(first["object"]["columnDefinitions"].is_array());
        post(&format!("{ns}/configmaps"), config_map("b")).await;
        let second = w.next().await.expect("an event");
        assert_eq!(
            (
                &second["object"]["rows"][0]["cells"][0],
                &second["object"]["columnDefinitions"]
            ),
            (&json!("b"), &Value::Null)
        );
    });
}

#[test]
fn bad_watches_are_refused() {
    run(async {
        for (query, code) in [
            ("watch=true&resourceVersion=x", 400),
            ("watch=true&resourceVersionMatch=Exact", 422),
            ("watch=true&sendInitialEvents=true", 422),
        ] {
            assert_eq!(
                get(&format!("/api/v1/configmaps?{query}")).await.code,
                code,
                "{query}"
            );
        }
    });
}

#[test]
fn a_hundred_watchers_see_every_event() {
    run(async {
        let ns = namespace("t-many").await;
        let cms = format!("{ns}/configmaps");
        let rv = post(&cms, config_map("a")).await.version();
        let watchers: Vec<_> = (0..100)
            .map(|_| {
                let path = format!("{cms}?watch=true&resourceVersion={rv}");
                tokio::spawn(async move {
                    let mut w = Events::open(&path).await;
                    let mut n = 0;
                    while n < 50 {
                        w.next().await.expect("an event");
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        for i in 0..50 {
            assert_eq!(
                patch(
                    MERGE,
                    &format!("{cms}/a"),
                    json!({"data": {"n": i.to_string()}})
                )
                .await
                .code,
                200
            );
        }
        for w in watchers {
            assert_eq!(w.await.ok(), Some(50));
        }
    });
}

#[test]
fn watches_and_pages_go_on_after_a_restart() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let maps = "/api/v1/namespaces/default/configmaps";
        let start = async || {
            let cancel = tokio_util::sync::CancellationToken::new();
            (
                server_with(config(dir.path()), cancel.clone()).await,
                cancel,
            )
        };
        let (server, cancel) = start().await;
        let ask =
            async |server: &skiff_apiserver::Handle, method: &str, path: &str, body: Value| {
                read(send_to(server, method, path, &[], body.to_string()).await).await
            };
        for n in ["a", "b", "c"] {
            let made = ask(
                &server,
                "POST",
                maps,
                json!({"metadata": {"name": n}, "data": {"x": n}}),
            )
            .await;
            assert_eq!(made.code, 201, "{}", made.text);
        }
        let first = ask(&server, "GET", &format!("{maps}?limit=1"), Value::Null).await;
        let token = first.body["metadata"]["continue"]
            .as_str()
            .unwrap_or("")
            .to_string();
        let version = first.version();
        let gone = ask(&server, "DELETE", &format!("{maps}/c"), json!({})).await;
        assert_eq!(gone.code, 200, "{}", gone.text);
        let mut changed = ask(&server, "GET", &format!("{maps}/b"), Value::Null)
            .await
            .body;
        changed["data"]["x"] = "new".into();
        ask(&server, "PUT", &format!("{maps}/b"), changed).await;
        cancel.cancel();
        server.stopped().await;
        let (server, cancel) = start().await;
        // The rest of the list as it was when it began.
        let rest = ask(
            &server,
            "GET",
            &format!("{maps}?limit=5&continue={token}"),
            Value::Null,
        )
        .await;
        assert_eq!(
            (rest.code, rest.names()),
            (200, vec!["b", "c"]),
            "{}",
            rest.text
        );
        assert_eq!(rest.body["items"][0]["data"]["x"], "b");
        let w = ask(
            &server,
            "GET",
            &format!("{maps}?watch=true&timeoutSeconds=1&resourceVersion={version}"),
            Value::Null,
        )
        .await;
        let seen: Vec<String> = w
            .text
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .map(|e| format!("{} {}", e["type"], e["object"]["metadata"]["name"]))
            .collect();
        assert_eq!(
            seen,
            ["\"DELETED\" \"c\"", "\"MODIFIED\" \"b\""],
            "{}",
            w.text
        );
        cancel.cancel();
        server.stopped().await;
    });
}
