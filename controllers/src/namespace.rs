//! Namespace controller: empties a namespace that is being deleted, then lets it go (pkg/controller/namespace).

use crate::action::{Action, NAMESPACES, execute};
use crate::discovery::{Deletable, discover};
use crate::model::set_condition;
use crate::shell::{Controller, Shell};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_client::{Cache, ObjectKey};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// What is left in a namespace.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Remaining {
    /// `pods.` -> 3
    pub objects: BTreeMap<String, usize>,
    /// finalizer -> how many objects carry it
    pub finalizers: BTreeMap<String, usize>,
    /// What could not be deleted or listed.
    pub errors: Vec<String>,
    /// Groups that did not tell what they serve: there may be more.
    pub undiscovered: Vec<String>,
}

/// The conditions that tell what is left (upstream's namespaceConditionUpdater).
pub fn conditions(before: &[Value], left: &Remaining, now: Timestamp) -> Vec<Value> {
    let mut all = before.to_vec();
    let mut set = |name: &str, bad: Option<String>, reasons: (&str, &str), good: &str| {
        let (status, reason) = if bad.is_some() {
            ("True", reasons.0)
        } else {
            ("False", reasons.1)
        };
        let message = bad.unwrap_or_else(|| good.into());
        set_condition(&mut all, name, status, reason, &message, now, false);
    };
    let some = |yes: bool, text: &dyn Fn() -> String| yes.then(text);
    set(
        "NamespaceDeletionDiscoveryFailure",
        some(!left.undiscovered.is_empty(), &|| {
            format!(
                "Discovery failed for some groups, {} failing: {}",
                left.undiscovered.len(),
                left.undiscovered.join(", ")
            )
        }),
        ("DiscoveryFailed", "ResourcesDiscovered"),
        "All resources successfully discovered",
    );
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        None,
        ("GroupVersionParsingFailed", "ParsedGroupVersions"),
        "All legacy kube types successfully parsed",
    );
    set(
        "NamespaceDeletionContentFailure",
        some(!left.errors.is_empty(), &|| {
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                left.errors.len(),
                left.errors.join(", ")
            )
        }),
        ("ContentDeletionFailed", "ContentDeleted"),
        "All content successfully deleted, may be waiting on finalization",
    );
    let list = |m: &BTreeMap<String, usize>, verb: &str| {
        m.iter()
            .map(|(k, n)| format!("{k} {verb} {n} resource instances"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    set(
        "NamespaceContentRemaining",
        some(!left.objects.is_empty(), &|| {
            format!(
                "Some resources are remaining: {}",
                list(&left.objects, "has")
            )
        }),
        ("SomeResourcesRemain", "ContentRemoved"),
        "All content successfully removed",
    );
    set(
        "NamespaceFinalizersRemaining",
        some(!left.finalizers.is_empty(), &|| {
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                list(&left.finalizers, "in")
            )
        }),
        ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
        "All content-preserving finalizers finished",
    );
    all
}

/// How long until an emptying that did not come to its end is looked at again: 250 ms at first, twice as long each
/// time, 8 s at the most (upstream's estimate of finalizers without a grace of their own).
fn again(tries: u32) -> Duration {
    Duration::from_millis(250 << tries.min(5))
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "namespace-controller", false);
    let namespaces = shell.informers.cache::<Namespace>();
    let pods = shell.informers.cache::<Pod>();
    shell.watch(&namespaces, &controller.queue, |n, _| {
        if n.metadata.deletion_timestamp.is_some() {
            vec![ObjectKey::of(n)]
        } else {
            Vec::new()
        }
    });
    // Pods take their grace to go: the last one's end is what is waited for.
    let (all, queue) = (namespaces.clone(), controller.queue.clone());
    shell.follow(&pods, move |event| {
        if let skiff_client::Event::Deleted(pod) = event {
            let name = pod.metadata.namespace.clone().unwrap_or_default();
            if all
                .get("", &name)
                .is_some_and(|n| n.metadata.deletion_timestamp.is_some())
            {
                queue.add(ObjectKey::new("", name));
            }
        }
    });
    let ready = {
        let namespaces = namespaces.clone();
        async move { namespaces.synced().await }
    };
    let (this, me) = (shell.clone(), controller.clone());
    let tries: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    shell.work("namespace", controller.queue.clone(), ready, move |key| {
        let (shell, me, namespaces) = (this.clone(), me.clone(), namespaces.clone());
        let tries = tries.clone();
        async move { sync(&shell, &me, &namespaces, &tries, &key).await }
    });
}

async fn sync(
    shell: &Shell,
    controller: &Controller,
    namespaces: &Cache<Namespace>,
    tries: &Mutex<HashMap<String, u32>>,
    key: &ObjectKey,
) -> Result<(), kube::Error> {
    let Some(namespace) = namespaces.get("", &key.name) else {
        tries.lock().remove(&key.name);
        return Ok(());
    };
    if namespace.metadata.deletion_timestamp.is_none() {
        return Ok(());
    }
    let finalizers: Vec<String> = namespace
        .spec
        .iter()
        .flat_map(|s| s.finalizers.iter().flatten())
        .cloned()
        .collect();
    if !finalizers.iter().any(|f| f == "kubernetes") {
        return Ok(());
    }
    let found = discover(shell.client()).await?;
    let mut left = Remaining {
        undiscovered: found.failed,
        ..Remaining::default()
    };
    // Pods first: what protects or configures them stays until they are gone (upstream's OrderedNamespaceDeletion).
    let (pods, rest): (Vec<_>, Vec<_>) = found
        .kinds
        .iter()
        .filter(|d| d.namespaced)
        .partition(|d| d.kind == crate::action::PODS);
    for d in pods {
        empty(shell, d, &key.name, &mut left).await;
    }
    if left.objects.is_empty() && left.errors.is_empty() {
        for d in rest {
            empty(shell, d, &key.name, &mut left).await;
        }
    }
    if left.objects.is_empty() && left.errors.is_empty() && left.undiscovered.is_empty() {
        let keep: Vec<&String> = finalizers.iter().filter(|f| *f != "kubernetes").collect();
        let mut object = json!(*namespace);
        object["apiVersion"] = "v1".into();
        object["kind"] = "Namespace".into();
        object["spec"] = json!({"finalizers": keep});
        let request = http::Request::put(format!("{}/finalize", NAMESPACES.path("", &key.name)))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?)
            .map_err(kube::Error::HttpError)?;
        skiff_client::not_found_is_none(shell.client().request::<Value>(request).await)?;
        return Ok(());
    }
    let before: Vec<Value> = namespace
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .map(|c| json!(c))
        .collect();
    let after = conditions(&before, &left, Timestamp::now());
    if before != after {
        let patch = Action::Patch {
            kind: NAMESPACES,
            namespace: String::new(),
            name: key.name.clone(),
            subresource: "status",
            patch: json!({"status": {"conditions": after}}),
        };
        execute(shell.client(), &patch).await?;
    }
    // Finalizers and grace periods end without telling the namespace; pods do tell (above).
    let mut tries = tries.lock();
    let n = tries.entry(key.name.clone()).or_default();
    controller.queue.add_after(key.clone(), again(*n));
    *n += 1;
    Ok(())
}

#[derive(serde::Deserialize)]
struct Listed {
    #[serde(default)]
    items: Vec<crate::garbagecollector::feed::Slim>,
}

async fn empty(shell: &Shell, d: &Deletable, namespace: &str, left: &mut Remaining) {
    let path = d.kind.path(namespace, "");
    let name = format!("{}.{}", d.kind.plural, d.kind.group);
    let list = || {
        http::Request::get(&path)
            .header(http::header::ACCEPT, crate::garbagecollector::feed::MANY)
            .body(Vec::new())
    };
    let Ok(request) = list() else { return };
    let mut items = match shell.client().request::<Listed>(request).await {
        Ok(l) => l.items,
        Err(e) if skiff_client::is_code(&e, 404) || skiff_client::is_code(&e, 405) => return,
        Err(e) => {
            left.errors
                .push(format!("{name}: {}", crate::action::text(&e)));
            return;
        }
    };
    if items.is_empty() {
        return;
    }
    if items
        .iter()
        .any(|i| i.metadata.deletion_timestamp.is_none())
    {
        let options =
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
        let sent = async {
            if d.collection {
                let request = http::Request::delete(&path)
                    .header(http::header::CONTENT_TYPE, "application/json")
                    .body(serde_json::to_vec(&options).map_err(kube::Error::SerdeError)?)
                    .map_err(kube::Error::HttpError)?;
                shell.client().request::<Value>(request).await?;
            } else {
                for i in &items {
                    let action = Action::Delete {
                        kind: d.kind,
                        namespace: namespace.into(),
                        name: i.metadata.name.clone(),
                        uid: i.metadata.uid.clone(),
                        version: String::new(),
                        grace_seconds: None,
                    };
                    execute(shell.client(), &action).await?;
                }
            }
            shell
                .client()
                .request::<Listed>(list().map_err(kube::Error::HttpError)?)
                .await
        };
        match sent.await {
            Ok(l) => items = l.items,
            Err(e) => left
                .errors
                .push(format!("{name}: {}", crate::action::text(&e))),
        }
    }
    if !items.is_empty() {
        for f in items.iter().flat_map(|i| &i.metadata.finalizers) {
            *left.finalizers.entry(f.clone()).or_default() += 1;
        }
        left.objects.insert(name, items.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_a_limit() {
        assert_eq!(again(0).as_millis(), 250);
        assert_eq!(again(99).as_secs(), 8);
    }

    #[test]
    fn conditions_tell_what_is_left_and_keep_their_times() {
        let now = Timestamp::UNIX_EPOCH;
        let left = Remaining {
            objects: BTreeMap::from([("pods.".into(), 2)]),
            ..Remaining::default()
        };
        let first = conditions(&[], &left, now);
        assert_eq!(first.len(), 5);
        assert_eq!(
            first[3]["message"],
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert!(
            first
                .iter()
                .all(|c| (c["status"] == "True") == (c == &first[3]))
        );
        assert_eq!(
            conditions(&first, &left, Timestamp::MAX),
            first,
            "nothing changed, nothing is written"
        );
    }
}
