//! `watch`: changes of a collection as a stream of events, one JSON document for each line. The bytes of an event are made
//! once for all watchers that want the same form.

use super::list::{self, resource_version};
use super::select::Selector;
use super::table::Row;
use super::{Call, form};
use crate::App;
use crate::http::negotiate::{Encoding, Form};
use crate::http::{Answer, respond};
use crate::store::{Attributes, Entry, Error as StoreError, Event, Range, Store, Watch, splice};
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use rand::Rng;
use serde_json::{Value, json};
use skiff_api::status::Status;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How often a bookmark is sent when something happened since the last one (upstream: about a minute).
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Upstream's min-request-timeout: a watch without timeoutSeconds ends after half an hour to an hour.
const MIN_TIMEOUT: u64 = 1800;
/// Initial events are joined into pieces of about this size.
const PIECE: usize = 64 * 1024;

/// One open watch.
struct Stream {
    app: Arc<App>,
    row: Arc<Row>,
    selector: Selector,
    form: Form,
    encoding: Encoding,
    include: String,
    /// Column headers were sent.
    headers_sent: bool,
    watch: Watch,
    /// What is sent first: initial events and errors.
    first: VecDeque<Bytes>,
    /// The last revision that the client was told.
    told: u64,
    /// What was seen of the store.
    seen: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    end: Instant,
    ended: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.app.health.watches.fetch_sub(1, Relaxed);
    }
}

/// GET with watch.
///
/// # Errors
/// 400 and 422 of bad options. A resourceVersion that is too old is an event in the stream, as upstream.
pub fn watch(call: Call) -> Answer {
    let o = &call.options;
    o.check_list(true)?;
    let selector = Selector::parse(&call)?;
    let given = resource_version(o.resource_version.as_deref())?;
    let prefix = call.row.collection(&call.namespace);
    let initial = match (given, o.send_initial_events) {
        (_, Some(wanted)) => wanted,
        (None | Some(0), None) => true,
        (Some(_), None) => false,
    };
    if initial && let Some(rv) = &o.resource_version {
        list::at_least(&call.app, rv)?;
    }
    let store = &call.app.store;
    let mut first = VecDeque::new();
    // A watch from the present (with or without the present state first), or from a version of the past or the future.
    let opened = match given {
        Some(rv) if rv > 0 && !initial => store.watch(&prefix, rv).map(|w| (w, Vec::new(), rv)),
        _ => from_now(store.as_ref(), &prefix, initial),
    };
    let (watch, entries, revision) = match opened {
        Ok(x) => x,
        Err(e) => {
            let mut line = BytesMut::new();
            error_event(&mut line, &e.status());
            return Ok(respond::bytes(
                200,
                call.accept.content_type(),
                line.freeze(),
            ));
        }
    };
    let now = Instant::now();
    let timeout = o
        .timeout_seconds
        .filter(|t| *t > 0)
        .unwrap_or_else(|| MIN_TIMEOUT + rand::rng().random_range(0..MIN_TIMEOUT));
    call.app.health.watches.fetch_add(1, Relaxed);
    let mut stream = Stream {
        selector,
        form: call.accept.form,
        encoding: call.accept.encoding,
        include: o.include_object.clone(),
        headers_sent: false,
        watch,
        told: if initial { 0 } else { revision },
        seen: revision,
        bookmarks: o.allow_watch_bookmarks,
        next_bookmark: now + BOOKMARKS,
        end: now + Duration::from_secs(timeout),
        ended: false,
        first: VecDeque::new(),
        row: call.row.clone(),
        app: call.app.clone(),
    };
    let mut piece = BytesMut::new();
    for e in &entries {
        if stream.selector.matches(e) {
            stream.entry_event(&mut piece, "ADDED", e);
            if piece.len() >= PIECE {
                first.push_back(piece.split().freeze());
            }
        }
    }
    drop(entries);
    if o.send_initial_events == Some(true) && stream.bookmarks {
        stream.bookmark(&mut piece, true);
    }
    if !piece.is_empty() {
        first.push_back(piece.freeze());
    }
    stream.first = first;
    let content_type = call.accept.content_type();
    let body = futures::stream::unfold(stream, |mut s| async move {
        s.next().await.map(|b| (Ok::<_, Infallible>(b), s))
    });
    Ok(respond::bytes(200, content_type, Body::from_stream(body)))
}

type Opened = (Watch, Vec<Arc<Entry>>, u64);

/// A watch from the present, with the present state when it is wanted.
fn from_now(store: &dyn Store, prefix: &str, initial: bool) -> Result<Opened, StoreError> {
    loop {
        let (entries, revision) = if initial {
            let page = store.range(&Range {
                prefix,
                ..Range::default()
            })?;
            (page.entries, page.revision)
        } else {
            (Vec::new(), store.revision())
        };
        match store.watch(prefix, revision) {
            Ok(w) => return Ok((w, entries, revision)),
            // History moved on in between.
            Err(StoreError::Compacted { .. }) => {}
            Err(e) => return Err(e),
        }
    }
}

fn error_event(out: &mut BytesMut, status: &Status) {
    let v = json!({"type": "ERROR", "object": status.to_value()});
    out.extend_from_slice(v.to_string().as_bytes());
    out.put_u8(b'\n');
}

/// An event's line out of ready bytes.
fn line(out: &mut BytesMut, kind: &str, row: &Row, value: &Bytes) {
    out.reserve(kind.len() + row.head.len() + value.len() + 24);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(&row.head);
    out.extend_from_slice(value.get(1..).unwrap_or(b"}"));
    out.extend_from_slice(b"}\n");
}

impl Stream {
    /// The next bytes; None at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(b) = self.first.pop_front() {
            return Some(b);
        }
        if self.ended {
            return None;
        }
        let cancel = self.app.cancel.clone();
        loop {
            let bookmark_at = if self.bookmarks {
                self.next_bookmark
            } else {
                self.end
            };
            let events = tokio::select! {
                biased;
                e = self.watch.next() => e,
                () = cancel.cancelled() => return None,
                () = sleep_until(bookmark_at.min(self.end)) => {
                    if Instant::now() >= self.end {
                        return None;
                    }
                    self.next_bookmark = Instant::now() + BOOKMARKS;
                    if let Some(seen) = self.watch.progress() {
                        self.seen = self.seen.max(seen);
                    }
                    if self.seen > self.told {
                        let mut out = BytesMut::new();
                        self.bookmark(&mut out, false);
                        return Some(out.freeze());
                    }
                    continue;
                }
            };
            let mut out = BytesMut::new();
            match events {
                Ok(events) => {
                    for e in &events {
                        self.event(&mut out, e);
                    }
                }
                Err(e) => {
                    // Too slow, history went over this watcher: the client lists again. Or the store closed.
                    self.ended = true;
                    error_event(&mut out, &e.status());
                }
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
        }
    }

    /// Writes an event's bytes for this watcher; nothing when it does not concern it.
    fn event(&mut self, out: &mut BytesMut, event: &Event) {
        self.seen = self.seen.max(event.revision);
        let before = event
            .previous
            .as_ref()
            .is_some_and(|p| self.selector.matches(p));
        let after = !event.deleted && self.selector.matches(&event.entry);
        let kind = match (before, after) {
            (false, false) => return,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        self.told = event.revision;
        match (kind, event.deleted, &event.previous) {
            // It left the selection: its state before, with the version of the change that took it out.
            ("DELETED", false, Some(previous)) => {
                let moved = Entry {
                    key: previous.key.clone(),
                    value: splice(&previous.value, Some(previous.revision), event.revision),
                    revision: event.revision,
                    attributes: Attributes::default(),
                };
                self.entry_event(out, kind, &moved);
            }
            _ => self.entry_event(out, kind, &event.entry),
        }
    }

    /// Writes an event of an entry in this watcher's form. The plain form is the stored bytes, which were encoded once for
    /// everybody; putting them between a line's head and tail is cheaper than keeping the line.
    fn entry_event(&mut self, out: &mut BytesMut, kind: &str, entry: &Entry) {
        if self.form == Form::Object && self.encoding != Encoding::Yaml && self.row.stored {
            line(out, kind, &self.row, &entry.value);
            return;
        }
        match form::value_of(&self.app, &self.row, entry) {
            Ok(v) => self.value_event(out, kind, &v),
            Err(status) => error_event(out, &status),
        }
    }

    fn value_event(&mut self, out: &mut BytesMut, kind: &str, v: &Value) {
        let object = match self.form {
            Form::Object => v.clone(),
            Form::Partial { v1beta1 } => form::partial(v, v1beta1),
            Form::Table { v1beta1 } => {
                let headers = !std::mem::replace(&mut self.headers_sent, true);
                let metadata = json!({"resourceVersion": super::meta::text(v, "resourceVersion")});
                form::table(
                    &self.row,
                    std::slice::from_ref(v),
                    metadata,
                    v1beta1,
                    &self.include,
                    headers,
                )
            }
        };
        let event = json!({"type": kind, "object": object});
        if self.encoding == Encoding::Yaml {
            out.extend_from_slice(b"---\n");
            out.extend_from_slice(&respond::encode(&event, Encoding::Yaml));
        } else {
            out.extend_from_slice(event.to_string().as_bytes());
            out.put_u8(b'\n');
        }
    }

    fn bookmark(&mut self, out: &mut BytesMut, initial_events_end: bool) {
        self.told = self.seen;
        let mut metadata = json!({"resourceVersion": self.seen.to_string()});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let v = json!({"kind": self.row.kind, "apiVersion": self.row.api_version(), "metadata": metadata});
        self.value_event(out, "BOOKMARK", &v);
    }
}
