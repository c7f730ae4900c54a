//! Keeps the graph current: lists and watches the metadata of every kind that the API serves. Reads of each object
//! only what the graph keeps.

use super::graph::{Node, Owner, Uid};
use super::{Collector, worker};
use crate::action::Kind;
use crate::discovery::{Deletable, deletable};
use crate::shell::Shell;
use futures::StreamExt;
use kube::core::WatchEvent;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

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

fn node(kind: Kind, meta: &SlimMeta) -> Node {
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

/// Feeds the graph until the shell ends. Workers begin when every kind has been listed once: before that, an owner
/// that is only not yet seen would look absent.
pub async fn run(shell: &Shell, this: &Arc<Collector>) {
    let mut known: HashSet<Kind> = HashSet::new();
    let mut watches = tokio::task::JoinSet::new();
    let mut workers = false;
    loop {
        match deletable(shell.client()).await {
            Ok(found) => {
                let mut first = Vec::new();
                for d in found.iter().filter(|d| wanted(d)) {
                    if known.insert(d.kind) {
                        let (done, waits) = tokio::sync::oneshot::channel();
                        first.push(waits);
                        watches.spawn(follow(shell.clone(), this.clone(), d.kind, done));
                    }
                }
                *this.kinds.lock() = found;
                for w in first {
                    let _ = w.await;
                }
                if !workers {
                    workers = true;
                    for _ in 0..shell.config.workers.max(1) {
                        watches.spawn(worker(shell.clone(), this.clone()));
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
fn wanted(d: &Deletable) -> bool {
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

async fn list(shell: &Shell, this: &Collector, kind: Kind) -> Result<String, kube::Error> {
    let mut seen = HashSet::new();
    let mut next = String::new();
    loop {
        let more = if next.is_empty() {
            String::new()
        } else {
            format!("&continue={next}")
        };
        let path = format!("{}?limit={PAGE}{more}", kind.path("", ""));
        let page: SlimList = shell.client().request(request(&path, MANY)?).await?;
        for item in &page.items {
            let uid = Uid::of(&item.metadata.uid);
            seen.insert(uid);
            apply(this, uid, node(kind, &item.metadata));
        }
        next = page.metadata.next;
        if next.is_empty() {
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
            return Ok(page.metadata.resource_version);
        }
    }
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
