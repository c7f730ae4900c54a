//! Keeps each ResourceQuota's status.hard and status.used right (pkg/controller/resourcequota). Reports only: admission
//! enforces, by the same arithmetic. Kinds that are merely counted are never cached: their number is asked for, and a
//! watch of metadata, that lives only as long as a quota of the namespace counts them, tells when to ask again.

use crate::action::{Action, Kind, RESOURCEQUOTAS};
use crate::discovery::discover;
use crate::garbagecollector::feed::MANY;
use crate::model::merge_difference;
use crate::shell::{Controller, Shell};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use kube::core::WatchEvent;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use skiff_api::kinds::core::quota::{in_scope, one, usage};
use skiff_api::kinds::core::resources::Amounts;
use skiff_api::quantity::Quantity;
use skiff_client::{Cache, ObjectKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Changes of counted objects wait this long for others, so that a thousand pods are not counted a thousand times.
const GATHER: Duration = Duration::from_millis(100);

/// Where the amount of a quota's resource comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// What pods ask for.
    Pods,
    /// Services and their ports.
    Services,
    /// Claims and the storage they ask for.
    Claims,
    /// The number of objects of (group, plural).
    Count(String, String),
}

/// What a resource name of a quota counts; None for names that nothing measures (upstream reports no use of them).
pub fn source(resource: &str) -> Option<Source> {
    let count = |group: &str, plural: &str| Source::Count(group.into(), plural.into());
    Some(match resource {
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => {
            count("", resource)
        }
        "services" | "services.nodeports" | "services.loadbalancers" => Source::Services,
        "persistentvolumeclaims" | "requests.storage" => Source::Claims,
        "pods" | "cpu" | "memory" | "ephemeral-storage" => Source::Pods,
        _ => {
            if let Some(what) = resource.strip_prefix("count/") {
                let (plural, group) = what.split_once('.').unwrap_or((what, ""));
                return Some(match (group, plural) {
                    ("", "pods") => Source::Pods,
                    ("", "services") => Source::Services,
                    ("", "persistentvolumeclaims") => Source::Claims,
                    _ => count(group, plural),
                });
            }
            if resource.contains(".storageclass.storage.k8s.io/") {
                Source::Claims
            } else if resource.starts_with("requests.")
                || resource.starts_with("limits.")
                || resource.starts_with("hugepages-")
            {
                Source::Pods
            } else {
                return None;
            }
        }
    })
}

/// Where all of a quota's amounts come from.
pub fn sources(quota: &Value) -> BTreeSet<Source> {
    let hard = quota.pointer("/spec/hard").and_then(Value::as_object);
    hard.into_iter()
        .flatten()
        .filter_map(|(k, _)| source(k))
        .collect()
}

/// What a sync sees.
pub struct Observed<'a> {
    /// The quota.
    pub quota: &'a Value,
    /// The pods of its namespace.
    pub pods: &'a [Value],
    /// The services of its namespace.
    pub services: &'a [Value],
    /// The claims of its namespace.
    pub claims: &'a [Value],
    /// How many objects there are of (group, plural).
    pub counts: &'a BTreeMap<(String, String), i64>,
}

/// What to do: write the status, if it is to change.
pub fn reconcile(o: &Observed) -> Vec<Action> {
    let quota = o.quota;
    let empty = Map::new();
    let hard = quota.pointer("/spec/hard").and_then(Value::as_object);
    let hard = hard.unwrap_or(&empty);
    let mut sum = Amounts::new();
    for (plural, objects) in [
        ("pods", o.pods),
        ("services", o.services),
        ("persistentvolumeclaims", o.claims),
    ] {
        for object in objects.iter().filter(|x| in_scope(quota, plural, x)) {
            for (k, q) in usage("", plural, object) {
                sum.entry(k).and_modify(|s| s.add(&q)).or_insert(q);
            }
        }
    }
    for ((group, plural), n) in o.counts {
        if !in_scope(quota, plural, &Value::Null) {
            continue;
        }
        for k in usage(group, plural, &Value::Null).into_keys() {
            sum.insert(k, one(*n));
        }
    }
    let old = quota.get("status").cloned().unwrap_or_else(|| json!({}));
    let mut used = Map::new();
    for key in hard.keys() {
        let Some(src) = source(key) else { continue };
        if let Source::Count(group, plural) = &src
            && !o.counts.contains_key(&(group.clone(), plural.clone()))
        {
            // Not known (the kind is not served): what was said before stands.
            if let Some(before) = old.pointer("/used").and_then(|u| u.get(key)) {
                used.insert(key.clone(), before.clone());
            }
            continue;
        }
        let amount = sum.get(key).copied().unwrap_or_else(|| one(0));
        // The same amount in other words is no change.
        let before = old.pointer("/used").and_then(|u| u.get(key));
        let same = before
            .filter(|b| Quantity::from_value(b).is_ok_and(|q| q == amount))
            .cloned();
        used.insert(
            key.clone(),
            same.unwrap_or_else(|| amount.to_string().into()),
        );
    }
    let mut fresh = json!({"hard": hard, "used": used});
    if hard.is_empty() {
        fresh = json!({});
    }
    let Some(patch) = merge_difference(&old, &fresh) else {
        return Vec::new();
    };
    let text = |p: &str| quota.pointer(p).and_then(Value::as_str).unwrap_or_default();
    vec![Action::Patch {
        kind: RESOURCEQUOTAS,
        namespace: text("/metadata/namespace").into(),
        name: text("/metadata/name").into(),
        subresource: "status",
        patch: json!({"metadata": {"uid": text("/metadata/uid")}, "status": patch}),
    }]
}

type Counted = (String, Kind);

struct Quotas {
    shell: Shell,
    me: Controller,
    quotas: Cache<ResourceQuota>,
    pods: Cache<Pod>,
    services: Cache<Service>,
    /// Claims are cached once a quota counts them.
    claims: Mutex<Option<Cache<PersistentVolumeClaim>>>,
    /// Watches of merely counted kinds, by namespace and kind.
    watches: Mutex<HashMap<Counted, CancellationToken>>,
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let me = Controller::new(shell, "resourcequota-controller", false);
    let this = Arc::new(Quotas {
        shell: shell.clone(),
        me: me.clone(),
        quotas: shell.informers.cache::<ResourceQuota>(),
        pods: shell.informers.cache::<Pod>(),
        services: shell.informers.cache::<Service>(),
        claims: Mutex::new(None),
        watches: Mutex::default(),
    });
    shell.watch(&this.quotas, &me.queue, |q, _| vec![ObjectKey::of(q)]);
    let t = this.clone();
    shell.watch(&this.pods, &me.queue, move |pod, old| {
        // Most of a pod's changes (of conditions, say) change no amount.
        let ended = |p: &Pod| crate::model::is_terminal(p);
        if old.is_none_or(|o| ended(o) != ended(pod) || o.spec != pod.spec) {
            t.changed(pod.metadata.namespace.as_deref(), |s| *s == Source::Pods);
        }
        Vec::new()
    });
    let t = this.clone();
    shell.watch(&this.services, &me.queue, move |service, _| {
        t.changed(service.metadata.namespace.as_deref(), |s| {
            *s == Source::Services
        });
        Vec::new()
    });
    let ready = {
        let t = this.clone();
        async move {
            t.quotas.synced().await;
            t.pods.synced().await;
            t.services.synced().await;
        }
    };
    shell.work("resourcequota", me.queue.clone(), ready, move |key| {
        let this = this.clone();
        async move { sync(&this, &key).await }
    });
}

impl Quotas {
    /// Something that some quotas of the namespace count has changed.
    fn changed(&self, namespace: Option<&str>, counts: impl Fn(&Source) -> bool) {
        for quota in self.quotas.list_namespace(namespace.unwrap_or_default()) {
            let hard = quota.spec.as_ref().and_then(|s| s.hard.as_ref());
            let mut names = hard.into_iter().flatten().map(|(k, _)| k);
            if names.any(|k| source(k).is_some_and(|s| counts(&s))) {
                self.me.queue.add_after(ObjectKey::of(&*quota), GATHER);
            }
        }
    }

    fn claims(self: &Arc<Self>) -> Cache<PersistentVolumeClaim> {
        let mut slot = self.claims.lock();
        if let Some(cache) = &*slot {
            return cache.clone();
        }
        let cache = self.shell.informers.cache::<PersistentVolumeClaim>();
        let t = self.clone();
        self.shell.watch(&cache, &self.me.queue, move |claim, _| {
            t.changed(claim.metadata.namespace.as_deref(), |s| {
                *s == Source::Claims
            });
            Vec::new()
        });
        *slot = Some(cache.clone());
        cache
    }

    /// Sees to it that exactly the kinds which quotas of the namespace count are watched. Watches that begin here call
    /// for a sync of their own, so nothing is missed between a count and its watch.
    fn follow(self: &Arc<Self>, namespace: &str, kinds: &BTreeMap<(String, String), Kind>) {
        let mut wanted = BTreeSet::new();
        for quota in self.quotas.list_namespace(namespace) {
            let hard = quota.spec.as_ref().and_then(|s| s.hard.as_ref());
            for (k, _) in hard.into_iter().flatten() {
                if let Some(Source::Count(group, plural)) = source(k) {
                    wanted.insert((group, plural));
                }
            }
        }
        let mut watches = self.watches.lock();
        watches.retain(|(ns, kind), stop| {
            let keep = ns != namespace
                || wanted.contains(&(kind.group.to_string(), kind.plural.to_string()));
            if !keep {
                stop.cancel();
            }
            keep
        });
        for kind in wanted.iter().filter_map(|w| kinds.get(w)) {
            watches
                .entry((namespace.to_string(), *kind))
                .or_insert_with(|| {
                    let stop = self.shell.stopped().child_token();
                    let (t, kind, ns, token) =
                        (self.clone(), *kind, namespace.to_string(), stop.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = token.cancelled() => {}
                            () = watch(&t, &ns, kind) => {}
                        }
                    });
                    stop
                });
        }
    }
}

/// How many objects there are, and at which revision: one object's metadata is listed, the rest only counted.
async fn count(shell: &Shell, namespace: &str, kind: Kind) -> Result<(i64, String), kube::Error> {
    let path = format!("{}?limit=1", kind.path(namespace, ""));
    let request = http::Request::get(path)
        .header(http::header::ACCEPT, MANY)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    let list: Value = shell.client().request(request).await?;
    let first = list["items"].as_array().map_or(0, Vec::len);
    let rest = list["metadata"]["remainingItemCount"].as_i64().unwrap_or(0);
    let version = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    Ok((
        i64::try_from(first).unwrap_or(0).saturating_add(rest),
        version.to_string(),
    ))
}

/// Calls for a sync whenever objects of the kind come or go.
async fn watch(this: &Arc<Quotas>, namespace: &str, kind: Kind) {
    // No more than is needed: what is not read cannot be unreadable.
    #[derive(serde::Deserialize, Clone, Debug)]
    struct Slim {
        metadata: SlimMeta,
    }
    #[derive(serde::Deserialize, Clone, Debug)]
    #[serde(rename_all = "camelCase")]
    struct SlimMeta {
        resource_version: Option<String>,
    }
    let tell = || {
        this.changed(
            Some(namespace),
            |s| matches!(s, Source::Count(g, p) if g == kind.group && p == kind.plural),
        );
    };
    loop {
        let Ok((_, mut version)) = count(&this.shell, namespace, kind).await else {
            tokio::time::sleep(Duration::from_secs(5)).await;
            continue;
        };
        tell();
        'watching: loop {
            let path = format!(
                "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds=600&resourceVersion={version}",
                kind.path(namespace, "")
            );
            let Ok(request) = http::Request::get(path)
                .header(
                    http::header::ACCEPT,
                    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
                )
                .body(Vec::new())
            else {
                return;
            };
            let Ok(stream) = this.shell.client().request_events::<Slim>(request).await else {
                break;
            };
            let mut stream = std::pin::pin!(stream);
            let mut seen = false;
            while let Some(event) = stream.next().await {
                seen = true;
                match event {
                    Ok(WatchEvent::Added(o) | WatchEvent::Deleted(o)) => {
                        version = o.metadata.resource_version.unwrap_or(version);
                        tell();
                    }
                    Ok(WatchEvent::Modified(o)) => {
                        version = o.metadata.resource_version.unwrap_or(version)
                    }
                    Ok(WatchEvent::Bookmark(b)) => version = b.metadata.resource_version,
                    Ok(WatchEvent::Error(_)) | Err(_) => break 'watching,
                }
            }
            if !seen {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn values<K: serde::Serialize>(objects: &[Arc<K>]) -> Vec<Value> {
    objects
        .iter()
        .filter_map(|o| serde_json::to_value(&**o).ok())
        .collect()
}

async fn sync(this: &Arc<Quotas>, key: &ObjectKey) -> Result<(), kube::Error> {
    let ns = key.namespace.as_str();
    let Some(quota) = this.quotas.get(ns, &key.name) else {
        this.follow(ns, &BTreeMap::new());
        return Ok(());
    };
    let value = serde_json::to_value(&*quota).map_err(kube::Error::SerdeError)?;
    let sources = sources(&value);
    let mut counts = BTreeMap::new();
    if sources.iter().any(|s| matches!(s, Source::Count(..))) {
        let kinds: BTreeMap<(String, String), Kind> = discover(this.shell.client())
            .await?
            .kinds
            .into_iter()
            .filter(|d| d.namespaced)
            .map(|d| ((d.kind.group.into(), d.kind.plural.into()), d.kind))
            .collect();
        this.follow(ns, &kinds);
        for s in &sources {
            if let Source::Count(group, plural) = s
                && let Some(kind) = kinds.get(&(group.clone(), plural.clone()))
            {
                let (n, _) = count(&this.shell, ns, *kind).await?;
                counts.insert((group.clone(), plural.clone()), n);
            }
        }
    }
    let claims = if sources.contains(&Source::Claims) {
        let cache = this.claims();
        cache.synced().await;
        values(&cache.list_namespace(ns))
    } else {
        Vec::new()
    };
    let pods = if sources.contains(&Source::Pods) {
        values(&this.pods.list_namespace(ns))
    } else {
        Vec::new()
    };
    let services = if sources.contains(&Source::Services) {
        values(&this.services.list_namespace(ns))
    } else {
        Vec::new()
    };
    let observed = Observed {
        quota: &value,
        pods: &pods,
        services: &services,
        claims: &claims,
        counts: &counts,
    };
    let actions = reconcile(&observed);
    this.shell
        .run_actions(&this.me, key, &*quota, actions)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(quota: &Value, pods: &[Value], counts: &[(&str, &str, i64)]) -> Option<Value> {
        let counts = counts
            .iter()
            .map(|(g, p, n)| ((g.to_string(), p.to_string()), *n))
            .collect();
        let o = Observed {
            quota,
            pods,
            services: &[],
            claims: &[],
            counts: &counts,
        };
        match reconcile(&o).pop() {
            Some(Action::Patch { patch, .. }) => Some(patch["status"].clone()),
            _ => None,
        }
    }

    fn quota(hard: Value) -> Value {
        json!({"metadata": {"name": "q", "namespace": "ns", "uid": "u"}, "spec": {"hard": hard}})
    }

    #[test]
    fn what_is_used_is_counted_and_what_is_limited_repeated() {
        let q = quota(
            json!({"pods": "5", "requests.cpu": "1", "configmaps": "3", "count/jobs.batch": "2", "odd": "1"}),
        );
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "100m"}}}]}});
        let ended = json!({"status": {"phase": "Failed"}, "spec": {"containers": []}});
        let s = status(
            &q,
            &[pod.clone(), pod, ended],
            &[("", "configmaps", 2), ("batch", "jobs", 0)],
        )
        .expect("a status");
        assert_eq!(s["hard"], q["spec"]["hard"]);
        assert_eq!(
            s["used"],
            json!({"pods": "2", "requests.cpu": "200m", "configmaps": "2", "count/jobs.batch": "0"})
        );
    }

    #[test]
    fn nothing_is_written_when_the_amounts_are_the_same_in_other_words() {
        let mut q = quota(json!({"requests.cpu": "1"}));
        q["status"] = json!({"hard": {"requests.cpu": "1"}, "used": {"requests.cpu": "1000m"}});
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        assert_eq!(status(&q, &[pod], &[]), None);
    }

    #[test]
    fn a_limit_that_is_taken_away_leaves_the_status() {
        let mut q = quota(json!({"pods": "1"}));
        q["status"] =
            json!({"hard": {"pods": "1", "secrets": "2"}, "used": {"pods": "0", "secrets": "1"}});
        assert_eq!(
            status(&q, &[], &[]),
            Some(json!({"hard": {"secrets": null}, "used": {"secrets": null}}))
        );
    }

    #[test]
    fn names_tell_what_they_count() {
        assert_eq!(source("limits.memory"), Some(Source::Pods));
        assert_eq!(
            source("gold.storageclass.storage.k8s.io/requests.storage"),
            Some(Source::Claims)
        );
        assert_eq!(
            source("count/deployments.apps"),
            Some(Source::Count("apps".into(), "deployments".into()))
        );
        assert_eq!(source("anything"), None);
    }
}
