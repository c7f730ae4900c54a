//! Namespace controller: empties a namespace that is being deleted, then lets it go (pkg/controller/namespace).

use crate::action::{Action, NAMESPACES, execute};
use crate::discovery::{Deletable, deletable};
use crate::model::set_condition;
use crate::shell::{Controller, Shell};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::{Value, json};
use skiff_client::{Cache, ObjectKey};
use std::collections::BTreeMap;
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
}

/// The conditions that tell what is left (upstream's conditionUpdater texts' meaning).
pub fn conditions(before: &[Value], left: &Remaining, now: Timestamp) -> Vec<Value> {
    let mut all = before.to_vec();
    let mut set = |name: &str, bad: bool, reasons: (&str, &str), message: String| {
        let (status, reason) = if bad {
            ("True", reasons.0)
        } else {
            ("False", reasons.1)
        };
        set_condition(&mut all, name, status, reason, &message, now, false);
    };
    let failed = !left.errors.is_empty();
    set(
        "NamespaceDeletionContentFailure",
        failed,
        ("ContentDeletionFailed", "ContentDeleted"),
        if failed {
            format!(
                "Some content could not be deleted: {}",
                left.errors.join("; ")
            )
        } else {
            "Everything that could be deleted was deleted".into()
        },
    );
    let list = |m: &BTreeMap<String, usize>, unit: &str| {
        m.iter()
            .map(|(k, n)| format!("{k} has {n} {unit}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    set(
        "NamespaceContentRemaining",
        !left.objects.is_empty(),
        ("SomeResourcesRemain", "ContentRemoved"),
        if left.objects.is_empty() {
            "Nothing is left".into()
        } else {
            format!(
                "Some resources are left: {}",
                list(&left.objects, "objects")
            )
        },
    );
    set(
        "NamespaceFinalizersRemaining",
        !left.finalizers.is_empty(),
        ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
        if left.finalizers.is_empty() {
            "No finalizer is left".into()
        } else {
            format!(
                "Some finalizers are left: {}",
                list(&left.finalizers, "objects")
            )
        },
    );
    all
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
    let mut events = pods.subscribe();
    let stop = shell.stopped();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                e = events.recv() => e,
            };
            match event {
                None => return,
                Some(skiff_client::Event::Deleted(pod)) => {
                    let name = pod.metadata.namespace.clone().unwrap_or_default();
                    if all
                        .get("", &name)
                        .is_some_and(|n| n.metadata.deletion_timestamp.is_some())
                    {
                        queue.add(ObjectKey::new("", name));
                    }
                }
                Some(_) => {}
            }
        }
    });
    let ready = {
        let namespaces = namespaces.clone();
        async move { namespaces.synced().await }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work("namespace", controller.queue.clone(), ready, move |key| {
        let (shell, me, namespaces) = (this.clone(), me.clone(), namespaces.clone());
        async move { sync(&shell, &me, &namespaces, &key).await }
    });
}

async fn sync(
    shell: &Shell,
    controller: &Controller,
    namespaces: &Cache<Namespace>,
    key: &ObjectKey,
) -> Result<(), kube::Error> {
    let Some(namespace) = namespaces.get("", &key.name) else {
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
    let mut left = Remaining::default();
    for d in deletable(shell.client())
        .await?
        .iter()
        .filter(|d| d.namespaced)
    {
        empty(shell, d, &key.name, &mut left).await;
    }
    if left.objects.is_empty() && left.errors.is_empty() {
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
    let tries = controller.queue.failures(key);
    controller
        .queue
        .add_after(key.clone(), Duration::from_millis(250 << tries.min(6)));
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
    fn conditions_tell_what_is_left_and_keep_their_times() {
        let now = Timestamp::UNIX_EPOCH;
        let left = Remaining {
            objects: BTreeMap::from([("pods.".into(), 2)]),
            ..Remaining::default()
        };
        let first = conditions(&[], &left, now);
        assert_eq!(first[1]["status"], "True");
        assert!(
            first[1]["message"]
                .as_str()
                .is_some_and(|m| m.contains("pods. has 2 objects"))
        );
        assert_eq!(
            conditions(&first, &left, Timestamp::MAX),
            first,
            "nothing changed, nothing is written"
        );
    }
}
