//! `server/manifests`: every YAML or JSON file there is applied, again when it changes, and what it no longer names is
//! pruned. What was applied is on record in ConfigMap kube-system/skiff-manifests. Owns that; knows no kind.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const RECORD: &str = "skiff-manifests";

/// One object of a manifest: where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
struct Place {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
}

/// Applies `addons` (name, text) and the directory until the token ends it.
pub async fn run(
    client: Client,
    dir: PathBuf,
    addons: Vec<(String, String)>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => {}
        r = follow(client, &dir, addons) => if let Err(e) = r {
            tracing::error!(error = format!("{e:#}"), dir = %dir.display(), "manifests are not followed");
        }
    }
}

async fn follow(client: Client, dir: &Path, addons: Vec<(String, String)>) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let changes = Changes::of(dir)?;
    let mut done: BTreeMap<String, String> = BTreeMap::new();
    let mut wait = Duration::from_millis(200);
    loop {
        let mut texts = addons.clone();
        texts.extend(read(dir));
        match apply_all(&client, &texts, &mut done).await {
            Ok(()) => {
                wait = Duration::from_millis(200);
                changes.next().await?;
                // Editors write in several steps.
                tokio::time::sleep(Duration::from_millis(100)).await;
                changes.drain();
            }
            Err(e) => {
                tracing::warn!(
                    error = crate::one_line(&e),
                    "a manifest could not be applied; trying again"
                );
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    r = changes.next() => r?,
                }
                wait = (wait * 2).min(Duration::from_secs(30));
            }
        }
    }
}

fn read(dir: &Path) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return out;
    };
    for path in entries.flatten().map(|e| e.path()) {
        let wanted = path
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| ["yaml", "yml", "json"].contains(&e));
        let (true, Some(name)) = (wanted, path.file_name().and_then(|n| n.to_str())) else {
            continue;
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => out.push((name.to_string(), text)),
            Err(e) => {
                tracing::warn!(file = %path.display(), error = %e, "a manifest could not be read")
            }
        }
    }
    out.sort();
    out
}

/// The objects of a manifest: YAML documents, Lists taken apart.
fn objects(text: &str) -> Result<Vec<Value>> {
    let documents = skiff_api::decode::yaml_documents(text).map_err(|e| anyhow::anyhow!("{e}"))?;
    let mut out = Vec::new();
    for d in documents {
        match d {
            Value::Null => {}
            Value::Object(ref o)
                if o.get("kind")
                    .and_then(Value::as_str)
                    .is_some_and(|k| k.ends_with("List")) =>
            {
                out.extend(d["items"].as_array().cloned().unwrap_or_default());
            }
            Value::Object(_) => out.push(d),
            _ => bail!("a document is not an object"),
        }
    }
    for (i, o) in out.iter().enumerate() {
        for field in ["/apiVersion", "/kind", "/metadata/name"] {
            if o.pointer(field)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                bail!(
                    "document {}: {} is missing",
                    i + 1,
                    field.trim_start_matches('/').replace('/', ".")
                );
            }
        }
    }
    Ok(out)
}

fn place(o: &Value) -> Place {
    let text = |p: &str| {
        o.pointer(p)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string()
    };
    Place {
        api_version: text("/apiVersion"),
        kind: text("/kind"),
        namespace: text("/metadata/namespace"),
        name: text("/metadata/name"),
    }
}

/// The path of an object, by discovery. A namespaced object without a namespace goes to `default`.
async fn path_of(client: &Client, p: &Place) -> Result<String> {
    let list = if p.api_version.contains('/') {
        client.list_api_group_resources(&p.api_version).await
    } else {
        client.list_core_api_resources(&p.api_version).await
    };
    let list = list.with_context(|| format!("{} is not served", p.api_version))?;
    let found = list
        .resources
        .iter()
        .find(|r| r.kind == p.kind && !r.name.contains('/'));
    let r = found.with_context(|| format!("there is no kind {} in {}", p.kind, p.api_version))?;
    let root = if p.api_version.contains('/') {
        "apis"
    } else {
        "api"
    };
    let namespace = match (r.namespaced, p.namespace.as_str()) {
        (false, _) => String::new(),
        (true, "") => "/namespaces/default".into(),
        (true, n) => format!("/namespaces/{n}"),
    };
    Ok(format!("/{root}/{}{namespace}/{}", p.api_version, r.name))
}

async fn apply_all(
    client: &Client,
    texts: &[(String, String)],
    done: &mut BTreeMap<String, String>,
) -> Result<()> {
    let record: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let held = record.get_opt(RECORD).await?;
    let before: BTreeMap<String, Vec<Place>> = held
        .iter()
        .flat_map(|m| m.data.iter().flatten())
        .filter_map(|(k, v)| Some((k.clone(), serde_json::from_str(v).ok()?)))
        .collect();
    let mut after: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    let mut failed = None;
    for (name, text) in texts {
        let key: String = name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-._".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let objects = match objects(text) {
            Ok(o) => o,
            Err(e) => {
                // A file that cannot be read keeps what it made before.
                tracing::warn!(file = %name, error = format!("{e:#}"), "a manifest is not valid; mend the file");
                after.insert(key.clone(), before.get(&key).cloned().unwrap_or_default());
                continue;
            }
        };
        after.insert(key.clone(), objects.iter().map(place).collect());
        if done.get(&key) == Some(text) {
            continue;
        }
        let mut whole = true;
        for o in &objects {
            if let Err(e) = apply(client, o).await {
                whole = false;
                let p = place(o);
                failed = Some(e.context(format!("{name}: {} {}", p.kind, p.name)));
            }
        }
        if whole {
            done.insert(key, text.clone());
        }
    }
    done.retain(|k, _| after.contains_key(k));
    if failed.is_none() {
        for gone in before
            .values()
            .flatten()
            .filter(|p| !after.values().flatten().any(|a| a == *p))
        {
            prune(client, gone).await?;
        }
    }
    if before != after && failed.is_none() {
        let data: BTreeMap<String, String> = after
            .iter()
            .map(|(k, v)| (k.clone(), serde_json::to_string(v).unwrap_or_default()))
            .collect();
        if held.is_some() {
            let mut patch = json!({"data": data});
            for k in before.keys().filter(|k| !after.contains_key(*k)) {
                patch["data"][k] = Value::Null;
            }
            record
                .patch(RECORD, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
        } else {
            let map = json!({"metadata": {"name": RECORD}, "data": data});
            record
                .create(
                    &kube::api::PostParams::default(),
                    &serde_json::from_value(map)?,
                )
                .await?;
        }
    }
    failed.map_or(Ok(()), Err)
}

fn request(
    method: &str,
    path: &str,
    content: &str,
    body: &Value,
) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content)
        .body(serde_json::to_vec(body)?)?)
}

async fn apply(client: &Client, object: &Value) -> Result<()> {
    let p = place(object);
    let collection = path_of(client, &p).await?;
    let one = format!("{collection}/{}", p.name);
    let patch = request("PATCH", &one, "application/merge-patch+json", object)?;
    match client.request::<Value>(patch).await {
        Err(e) if skiff_client::is_code(&e, 404) => {
            client
                .request::<Value>(request("POST", &collection, "application/json", object)?)
                .await?;
        }
        other => {
            other?;
        }
    }
    Ok(())
}

async fn prune(client: &Client, p: &Place) -> Result<()> {
    // A kind that is no longer served has no objects.
    let Ok(collection) = path_of(client, p).await else {
        return Ok(());
    };
    let delete = request(
        "DELETE",
        &format!("{collection}/{}", p.name),
        "application/json",
        &json!({}),
    )?;
    skiff_client::not_found_is_none(client.request::<Value>(delete).await)?;
    tracing::info!(kind = %p.kind, namespace = %p.namespace, name = %p.name, "pruned: no manifest names it any more");
    Ok(())
}

/// Tells when a directory changes.
struct Changes {
    fd: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

impl Changes {
    fn of(dir: &Path) -> Result<Self> {
        use rustix::fs::inotify;
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(
            &fd,
            dir,
            inotify::WatchFlags::CLOSE_WRITE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::MOVED_FROM
                | inotify::WatchFlags::DELETE,
        )
        .with_context(|| format!("watch {}", dir.display()))?;
        // An OwnedFd keeps its descriptor open for as long as it is registered, which is what the deprecation is about.
        #[allow(deprecated)]
        Ok(Self {
            fd: tokio::io::unix::AsyncFd::new(fd)?,
        })
    }

    async fn next(&self) -> Result<()> {
        let mut ready = self.fd.readable().await?;
        self.drain();
        ready.clear_ready();
        Ok(())
    }

    fn drain(&self) {
        let mut buffer = [0u8; 4096];
        while matches!(rustix::io::read(self.fd.as_fd(), &mut buffer), Ok(n) if n > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_taken_apart_and_what_is_missing_is_named() {
        let found = objects(
            "# c\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n\
             - {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: n}}\n",
        )
        .expect("objects");
        let names: Vec<String> = found.iter().map(|o| place(o).name).collect();
        assert_eq!(names, ["a", "b"]);
        let e = objects("apiVersion: v1\nkind: ConfigMap\n").expect_err("no name");
        assert!(e.to_string().contains("metadata.name"), "{e}");
        assert!(objects("- 1\n").is_err());
        assert!(objects("a: [\n").is_err());
    }
}
