//! Keeps the graph current: lists and watches the metadata of every kind that the API serves. Reads of each object
//! only what the graph keeps.

use super::graph::{Node, Owner, Uid};
use super::{Collector, worker};
use crate::action::Kind;
use crate::discovery::{Deletable, discover};
use crate::shell::Shell;
use futures::StreamExt;
use kube::core::WatchEvent;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// What is read of an object.
#[derive(Debug, Clone, Deserialize)]
pub struct Slim {
    /// metadata
    pub metadata: SlimMeta,
}

/// What is read of its metadata.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlimMeta {
    /// metadata.uid
    pub uid: String,
    /// metadata.name
    pub name: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.resourceVersion
    pub resource_version: String,
    /// metadata.ownerReferences
    pub owner_references: Vec<Value>,
    /// metadata.finalizers
    pub finalizers: Vec<String>,
    /// metadata.deletionTimestamp
    pub deletion_timestamp: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Debug, Deserialize)]
struct SlimList {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Slim>,
}

const ONE: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// Accept header of a list of metadata alone.
pub const MANY: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Objects in one page of a list.
const PAGE: usize = 500;
/// How long the first lists may take before collection begins (upstream's sync of its monitors).
const FIRST_LIST: Duration = Duration::from_secs(30);
/// How often discovery looks for kinds that came or went.
const REDISCOVER: Duration = Duration::from_secs(300);

fn request(path: &str, accept: &str) -> Result<http::Request<Vec<u8>>, kube::Error> {
    http::Request::get(path)
        .header(http::header::ACCEPT, accept)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)
}

/// A request for an object's metadata alone.
///
/// # Errors
/// The path is no URI.
pub fn metadata_request(path: &str) -> Result<http::Request<Vec<u8>>, kube::Error> {
    request(path, ONE)
}

/// An object as the graph keeps it.
pub(super) fn node(kind: Kind, meta: &SlimMeta) -> Node {
    let text = |o: &Value, k: &str| o[k].as_str().unwrap_or_default().to_string();
    let has = |f: &str| meta.finalizers.iter().any(|x| x == f);
    Node {
        kind,
        namespace: meta.namespace.as_str().into(),
        name: meta.name.as_str().into(),
        owners: meta
            .owner_references
            .iter()
            .map(|o| Owner {
                uid: Uid::of(&text(o, "uid")),
                uid_text: text(o, "uid").into(),
                api_version: crate::discovery::intern(&text(o, "apiVersion")),
                kind: crate::discovery::intern(&text(o, "kind")),
                name: text(o, "name").into(),
                blocks: o["blockOwnerDeletion"].as_bool().unwrap_or(false),
            })
            .collect(),
        deleting: meta.deletion_timestamp.is_some(),
        foreground: has("foregroundDeletion"),
        orphan: has("orphan"),
    }
}

/// Feeds the graph until the shell ends. Workers begin when every kind has been listed once, or has had the time to: what
/// they delete they have asked the API about, so a kind that never lists only costs questions.
pub async fn run(shell: &Shell, this: &Arc<Collector>) {
    let mut watches: HashMap<Kind, AbortOnDropHandle<()>> = HashMap::new();
    let mut workers = tokio::task::JoinSet::new();
    loop {
        match discover(shell.client()).await {
            Ok(found) => {
                let mut first = Vec::new();
                for d in found.kinds.iter().filter(|d| wanted(d)) {
                    // One whose task panicked is begun again.
                    if watches.get(&d.kind).is_none_or(|w| w.is_finished()) {
                        let (done, waits) = tokio::sync::oneshot::channel();
                        first.push(waits);
                        let follows = follow(shell.clone(), this.clone(), d.kind, done);
                        watches.insert(d.kind, AbortOnDropHandle::new(tokio::spawn(follows)));
                    }
                }
                this.kinds.lock().learn(found);
                let _ = tokio::time::timeout(FIRST_LIST, futures::future::join_all(first)).await;
                if workers.is_empty() {
                    for _ in 0..shell.config.workers.max(1) {
                        workers.spawn(worker(shell.clone(), this.clone()));
                    }
                }
            }
            Err(e) => {
                tracing::debug!(error = %e, "discovery failed; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        }
        tokio::time::sleep(REDISCOVER).await;
    }
}

/// Events own nothing and are too many (upstream ignores them as well).
pub(super) fn wanted(d: &Deletable) -> bool {
    d.kind.plural != "events"
}

async fn follow(
    shell: Shell,
    this: Arc<Collector>,
    kind: Kind,
    done: tokio::sync::oneshot::Sender<()>,
) {
    let mut done = Some(done);
    let mut wait = Duration::from_millis(100);
    loop {
        match list(&shell, &this, kind).await {
            Ok(version) => {
                if let Some(d) = done.take() {
                    let _ = d.send(());
                }
                wait = Duration::from_millis(100);
                if let Err(e) = watch(&shell, &this, kind, version).await {
                    tracing::debug!(kind = kind.kind, error = %e, "a watch of metadata ended; listing again");
                }
            }
            // The kind is no longer served.
            Err(e) if skiff_client::is_code(&e, 404) => {
                let gone = this.graph.lock().of_kind(kind);
                for uid in gone {
                    this.graph.lock().remove(uid);
                }
                wait = Duration::from_secs(60);
            }
            Err(e) => {
                tracing::debug!(kind = kind.kind, error = %e, "a list of metadata failed; trying again")
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}

/// Visits the metadata of every object of a kind, page by page, and gives the version of the list. An empty namespace
/// means all.
///
/// # Errors
/// What the API answered.
pub(super) async fn each_of(
    shell: &Shell,
    kind: Kind,
    namespace: &str,
    mut visit: impl FnMut(&Slim),
) -> Result<String, kube::Error> {
    let mut next = String::new();
    loop {
        let more = if next.is_empty() {
            String::new()
        } else {
            format!("&continue={next}")
        };
        let path = format!("{}?limit={PAGE}{more}", kind.path(namespace, ""));
        let page: SlimList = shell.client().request(request(&path, MANY)?).await?;
        page.items.iter().for_each(&mut visit);
        next = page.metadata.next;
        if next.is_empty() {
            return Ok(page.metadata.resource_version);
        }
    }
}

async fn list(shell: &Shell, this: &Collector, kind: Kind) -> Result<String, kube::Error> {
    let mut seen = HashSet::new();
    let version = each_of(shell, kind, "", |item| {
        let uid = Uid::of(&item.metadata.uid);
        seen.insert(uid);
        apply(this, uid, node(kind, &item.metadata));
    })
    .await?;
    let gone: Vec<Uid> = this
        .graph
        .lock()
        .of_kind(kind)
        .into_iter()
        .filter(|u| !seen.contains(u))
        .collect();
    for uid in gone {
        remove(this, uid);
    }
    Ok(version)
}

fn apply(this: &Collector, uid: Uid, node: Node) {
    let look = this.graph.lock().set(uid, node);
    for u in look {
        this.queue.add(u);
    }
}

fn remove(this: &Collector, uid: Uid) {
    let look = this.graph.lock().remove(uid);
    for u in look {
        this.queue.add(u);
    }
}

async fn watch(
    shell: &Shell,
    this: &Collector,
    kind: Kind,
    mut version: String,
) -> Result<(), kube::Error> {
    loop {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds=600&resourceVersion={version}",
            kind.path("", "")
        );
        let stream = shell
            .client()
            .request_events::<Slim>(request(&path, ONE)?)
            .await?;
        let mut stream = std::pin::pin!(stream);
        let mut seen = false;
        while let Some(event) = stream.next().await {
            seen = true;
            match event? {
                WatchEvent::Added(o) | WatchEvent::Modified(o) => {
                    apply(this, Uid::of(&o.metadata.uid), node(kind, &o.metadata));
                    version = o.metadata.resource_version;
                }
                WatchEvent::Deleted(o) => {
                    remove(this, Uid::of(&o.metadata.uid));
                    version = o.metadata.resource_version;
                }
                WatchEvent::Bookmark(b) => version = b.metadata.resource_version,
                WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            }
        }
        if !seen {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
