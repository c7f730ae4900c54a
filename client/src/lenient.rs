//! Lists and watches that are read item by item: an object that is not of its type is told by its name and where reading
//! failed, and the others go on. Owns the reading; must print nothing of any object, which may be another tenant's, and
//! decides nothing (kube's own `request` and `request_events` give up on the whole list and log its text).

use crate::ObjectKey;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// An object that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Its key; empty where not even that could be read.
    pub key: ObjectKey,
    /// Its resourceVersion, likewise.
    pub version: String,
    /// Its uid, likewise.
    pub uid: String,
    /// Where reading failed, and nothing of what is there.
    pub why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

/// An item, read or not.
pub type Item<K> = Result<K, Broken>;

/// What there is to know of an object without its type.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: HeadMeta<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct HeadMeta<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
}

/// Where reading failed. serde's own text shows the value that was met.
fn position(e: &serde_json::Error) -> String {
    let what = match e.classify() {
        serde_json::error::Category::Data => "a value is not of its field's type",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "it is no JSON",
        serde_json::error::Category::Eof => "it ends early",
    };
    format!("{what}, at line {} column {}", e.line(), e.column())
}

/// Reads one object.
pub fn object<K: DeserializeOwned>(text: &str) -> Item<K> {
    serde_json::from_str(text).map_err(|e| {
        let head = serde_json::from_str::<Head<'_>>(text)
            .map_or_else(|_| HeadMeta::default(), |h| h.metadata);
        Broken {
            key: ObjectKey::new(head.namespace, head.name),
            version: head.resource_version.into_owned(),
            uid: head.uid.into_owned(),
            why: position(&e),
        }
    })
}

/// A list, item by item.
#[derive(Debug)]
pub struct Listed<K> {
    /// `metadata.resourceVersion`
    pub version: String,
    /// `metadata.continue`; empty on the last page.
    pub next: String,
    /// The items in their order.
    pub items: Vec<Item<K>>,
}

#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(borrow, default)]
    metadata: ListMeta<'a>,
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ListMeta<'a> {
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
    #[serde(borrow, default, rename = "continue")]
    next: Cow<'a, str>,
}

/// What keeps a request from an answer that can be read. The texts show nothing of an answer.
fn unreadable(why: impl fmt::Display) -> kube::Error {
    kube::Error::Service(format!("the answer cannot be read: {why}").into())
}

/// The Status of an answer that is an error.
fn refused(code: u16, body: &[u8]) -> kube::Error {
    let status = serde_json::from_slice::<Status>(body).unwrap_or_else(|_| {
        Status::failure("the server's answer is no Status", "Unknown").with_code(code)
    });
    kube::Error::Api(Box::new(status))
}

async fn send(
    client: &Client,
    request: http::Request<Vec<u8>>,
) -> Result<http::Response<Body>, kube::Error> {
    let response = client.send(request.map(Body::from)).await?;
    let code = response.status();
    if code.is_client_error() || code.is_server_error() {
        let body = response.into_body().collect().await?.to_bytes();
        return Err(refused(code.as_u16(), &body));
    }
    Ok(response)
}

/// GET of a collection.
///
/// # Errors
/// When there is no answer, when it is an error, and when it is no list.
pub async fn list<K: DeserializeOwned>(
    client: &Client,
    request: http::Request<Vec<u8>>,
) -> Result<Listed<K>, kube::Error> {
    let body = send(client, request).await?.into_body().collect().await?;
    parse_list(&body.to_bytes())
}

fn parse_list<K: DeserializeOwned>(body: &[u8]) -> Result<Listed<K>, kube::Error> {
    let list: RawList<'_> = serde_json::from_slice(body).map_err(|e| unreadable(position(&e)))?;
    Ok(Listed {
        version: list.metadata.resource_version.into_owned(),
        next: list.metadata.next.into_owned(),
        items: list.items.into_iter().map(|i| object(i.get())).collect(),
    })
}

/// One event of a watch.
#[derive(Debug)]
pub enum Event<K> {
    /// Added or modified.
    Applied(Item<K>),
    /// Gone; its last state.
    Deleted(Item<K>),
    /// Everything up to this resourceVersion was sent.
    Bookmark(String),
    /// The watch ends with this.
    Error(Box<Status>),
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

fn parse_event<K: DeserializeOwned>(line: &[u8]) -> Result<Event<K>, kube::Error> {
    let frame: Frame<'_> = serde_json::from_slice(line).map_err(|e| unreadable(position(&e)))?;
    let text = frame.object.get();
    Ok(match frame.kind.as_ref() {
        "ADDED" | "MODIFIED" => Event::Applied(object(text)),
        "DELETED" => Event::Deleted(object(text)),
        "BOOKMARK" => Event::Bookmark(
            serde_json::from_str::<Head<'_>>(text)
                .map(|h| h.metadata.resource_version.into_owned())
                .map_err(|e| unreadable(position(&e)))?,
        ),
        "ERROR" => Event::Error(Box::new(
            serde_json::from_str(text).map_err(|e| unreadable(position(&e)))?,
        )),
        other => return Err(unreadable(format!("no event is called {other:?}"))),
    })
}

/// How long one event may be: an object is at most 1.5 MiB in the store, its managedFields included.
const MAX_LINE: usize = 16 << 20;

/// A watch; it ends when the server ends it.
///
/// # Errors
/// When there is no answer or it is an error; events that are no events are errors of the stream.
pub async fn watch<K: DeserializeOwned + 'static>(
    client: &Client,
    mut request: http::Request<Vec<u8>>,
) -> Result<impl Stream<Item = Result<Event<K>, kube::Error>> + use<K>, kube::Error> {
    // As kube does: a compressed stream would be held back until a block is full.
    request
        .headers_mut()
        .entry(http::header::ACCEPT_ENCODING)
        .or_insert(http::HeaderValue::from_static("identity"));
    let body = send(client, request).await?.into_body();
    Ok(stream::unfold(
        Lines::new(body.into_data_stream().boxed()),
        |mut lines| async move {
            let line = lines.next().await?;
            Some((line.and_then(|l| parse_event(&l)), lines))
        },
    ))
}

/// The lines of a body.
struct Lines {
    body: BoxStream<'static, Result<Bytes, kube::Error>>,
    rest: BytesMut,
    /// Up to here no line ends.
    searched: usize,
    ended: bool,
}

impl Lines {
    fn new(body: BoxStream<'static, Result<Bytes, kube::Error>>) -> Self {
        Self {
            body,
            rest: BytesMut::new(),
            searched: 0,
            ended: false,
        }
    }

    /// The next line with its end; empty ones are left out.
    async fn next(&mut self) -> Option<Result<Bytes, kube::Error>> {
        loop {
            let fresh = self.rest.get(self.searched..).unwrap_or_default();
            if let Some(i) = fresh.iter().position(|b| *b == b'\n') {
                let line = self.rest.split_to(self.searched + i + 1).freeze();
                self.searched = 0;
                if !line.trim_ascii().is_empty() {
                    return Some(Ok(line));
                }
                continue;
            }
            self.searched = self.rest.len();
            if self.ended {
                // Half an event is none.
                return None;
            }
            if self.rest.len() > MAX_LINE {
                self.ended = true;
                self.rest = BytesMut::new();
                return Some(Err(unreadable("an event has no end")));
            }
            match self.body.next().await {
                None => self.ended = true,
                Some(Ok(data)) => self.rest.extend_from_slice(&data),
                Some(Err(e)) => {
                    self.ended = true;
                    return Some(Err(e));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Pod, Secret};

    #[test]
    fn one_item_of_thousands_that_is_not_of_its_type_is_left_out_alone() {
        let items: Vec<String> = (0..3000)
            .map(|i| {
                let label = if i == 1500 { "1" } else { "\"x\"" };
                format!(
                    r#"{{"metadata":{{"name":"p{i}","namespace":"ns","resourceVersion":"{i}","labels":{{"a":{label}}}}}}}"#
                )
            })
            .collect();
        let body = format!(
            r#"{{"kind":"PodList","metadata":{{"resourceVersion":"9","continue":"t"}},"items":[{}]}}"#,
            items.join(",")
        );
        let list = parse_list::<Pod>(body.as_bytes()).expect("a list");
        assert_eq!((list.version.as_str(), list.next.as_str()), ("9", "t"));
        let broken: Vec<&Broken> = list.items.iter().filter_map(|i| i.as_ref().err()).collect();
        assert_eq!((list.items.len(), broken.len()), (3000, 1));
        assert_eq!(
            (
                broken[0].key.to_string().as_str(),
                broken[0].version.as_str()
            ),
            ("ns/p1500", "1500")
        );
    }

    #[test]
    fn what_is_told_of_an_object_is_its_name_and_a_position() {
        for text in [
            r#"{"metadata":{"name":"s","namespace":"ns"},"type":["hunter2"]}"#,
            r#"{"metadata":{"name":"s","namespace":"ns"},"data":{"hunter2":"hunter2!"}}"#,
            r#"{"metadata":{"name":"s","namespace":"ns","generation":"hunter2"}}"#,
            r#"{"metadata":{"name":"s","namespace":"ns","labels":"hunter2"}}"#,
            r#"{"metadata":{"name":"s","namespace":"ns","creationTimestamp":"hunter2"}}"#,
        ] {
            let broken = object::<Secret>(text).expect_err(text);
            let said = format!("{broken} {broken:?}");
            assert!(!said.contains("hunter2"), "{said}");
            assert!(said.contains("ns/s") && said.contains("column"), "{said}");
        }
        let nameless = object::<Secret>(r#"{"metadata":"hunter2"}"#).expect_err("broken");
        assert_eq!(nameless.key, ObjectKey::new("", ""));
    }

    #[test]
    fn events_are_read_one_by_one() {
        let event = |text: &str| parse_event::<Pod>(text.as_bytes());
        let good = r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#;
        assert!(matches!(event(good), Ok(Event::Applied(Ok(_)))));
        let bad = r#"{"type":"DELETED","object":{"metadata":{"name":"a","labels":1}}}"#;
        assert!(matches!(event(bad), Ok(Event::Deleted(Err(_)))));
        // The order of an event's fields is nobody's promise.
        let turned =
            r#"{"object":{"metadata":{"name":"a","resourceVersion":"7"}},"type":"BOOKMARK"}"#;
        assert!(matches!(event(turned), Ok(Event::Bookmark(v)) if v == "7"));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"status":"Failure"}}"#;
        assert!(matches!(event(gone), Ok(Event::Error(s)) if s.code == 410));
        for broken in ["", "{}", r#"{"type":"NEWS","object":{}}"#, "secret text"] {
            let e = event(broken).expect_err(broken).to_string();
            assert!(!e.contains("secret text"), "{e}");
        }
    }

    #[tokio::test]
    async fn lines_are_put_together_from_frames_and_half_a_line_is_none() {
        let frames = ["{\"a\"", ":1}\n\n{\"b\":2}\n{", "\"c\":3"];
        let chunks = stream::iter(frames.map(|f| Ok(Bytes::from_static(f.as_bytes()))));
        let mut lines = Lines::new(chunks.boxed());
        let mut seen = Vec::new();
        while let Some(Ok(l)) = lines.next().await {
            seen.push(String::from_utf8_lossy(&l).into_owned());
        }
        assert_eq!(seen, ["{\"a\":1}\n", "{\"b\":2}\n"]);
    }
}
