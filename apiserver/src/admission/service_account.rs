//! ServiceAccount: every pod runs as a service account of its namespace and gets its token, the cluster's CA and its
//! namespace as a projected volume. Reads service accounts, changes pods.

use super::{find, text};
use crate::auth::node::references::{self, Kind, MIRROR, is_mirror};
use crate::{App, Operation, Write};
use serde_json::{Value, json};
use skiff_api::field::FieldError;
use skiff_api::status::Status;
use std::time::Duration;

/// Where containers find the token.
pub const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// What the kubelet asks for; see [`crate::auth::tokens::EXTENDABLE_SECONDS`].
const SECONDS: i64 = 3607;
/// How long the namespace's `default` account is waited for: in a new namespace its controller may not be there yet.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sets the account, the volume, its mounts and the account's image pull secrets on new pods.
///
/// # Errors
/// 403 when the account does not exist.
pub async fn admit(app: &App, write: &mut Write<'_>) -> Result<(), Status> {
    if write.operation != Operation::Create
        || !super::is(write, "", "pods")
        || is_mirror(&write.object)
    {
        return Ok(());
    }
    let asked = text(&write.object, &["spec", "serviceAccountName"]);
    let name = if asked.is_empty() {
        "default".to_string()
    } else {
        asked.to_string()
    };
    let Some(account) = account(app, write.namespace, &name).await else {
        let ns = write.namespace;
        return Err(super::forbidden(
            write,
            &format!(
                "error looking up service account {ns}/{name}: serviceaccount {name:?} not found"
            ),
        ));
    };
    apply(
        &mut write.object,
        &name,
        &account,
        &crate::registry::create::suffix(),
    );
    mountable(&write.object, &name, &account).map_err(|why| super::forbidden(write, &why))
}

/// With the annotation `kubernetes.io/enforce-mountable-secrets` an account's pods use the secrets that it lists and no
/// others (upstream's limitSecretReferences).
fn mountable(pod: &Value, name: &str, account: &Value) -> Result<(), String> {
    let enforced = account
        .pointer("/metadata/annotations")
        .is_some_and(|a| a["kubernetes.io/enforce-mountable-secrets"] == "true");
    if !enforced {
        return Ok(());
    }
    let listed = |key: &str, secret: &str| {
        let list = account.get(key).and_then(Value::as_array);
        list.is_some_and(|l| l.iter().any(|s| text(s, &["name"]) == secret))
    };
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let pulls = spec.get("imagePullSecrets").and_then(Value::as_array);
    for (i, s) in pulls.into_iter().flatten().enumerate() {
        let secret = text(s, &["name"]);
        if !listed("imagePullSecrets", secret) {
            return Err(format!(
                "imagePullSecrets[{i}].name={secret:?} is not allowed because service account {name} does not reference that imagePullSecret"
            ));
        }
    }
    let mut without_pulls = pod.clone();
    if let Some(spec) = without_pulls.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("imagePullSecrets");
    }
    let mut wrong = None;
    references::of_pod(&without_pulls, &mut |kind, secret| {
        if kind == Kind::Secret && !listed("secrets", secret) {
            wrong.get_or_insert_with(|| secret.to_string());
        }
    });
    match wrong {
        None => Ok(()),
        Some(secret) => Err(format!(
            "a reference to secret.secretName={secret:?} is not allowed because service account {name} does not reference that secret"
        )),
    }
}

async fn account(app: &App, namespace: &str, name: &str) -> Option<Value> {
    const STORAGE: &str = "core/serviceaccounts";
    let revision = app.store.revision();
    if let Some(a) = find(app, STORAGE, namespace, name) {
        return Some(a);
    }
    if name != "default" {
        return None;
    }
    let mut watch = app
        .store
        .watch(&format!("/{STORAGE}/{namespace}/{name}"), revision)
        .ok()?;
    let wait = async {
        while find(app, STORAGE, namespace, name).is_none() {
            if watch.next().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, wait).await;
    find(app, STORAGE, namespace, name)
}

/// Upstream's Admit, on a pod and its account.
fn apply(pod: &mut Value, name: &str, account: &Value, suffix: &str) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    spec.insert("serviceAccountName".into(), name.into());
    spec.insert("serviceAccount".into(), name.into());
    let no_secrets = spec
        .get("imagePullSecrets")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty);
    if no_secrets
        && let Some(s) = account
            .get("imagePullSecrets")
            .filter(|s| s.as_array().is_some_and(|a| !a.is_empty()))
    {
        spec.insert("imagePullSecrets".into(), s.clone());
    }
    let automount = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool)
        .or_else(|| {
            account
                .get("automountServiceAccountToken")
                .and_then(Value::as_bool)
        })
        .unwrap_or(true);
    if !automount {
        return;
    }
    let existing = spec
        .get("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|v| text(v, &["name"]))
        .find(|n| n.starts_with(VOLUME))
        .map(String::from);
    let volume = existing
        .clone()
        .unwrap_or_else(|| format!("{VOLUME}{suffix}"));
    let mut mounted = false;
    for key in ["initContainers", "containers"] {
        for c in spec
            .get_mut(key)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let Some(c) = c.as_object_mut() else { continue };
            let mounts = c.entry("volumeMounts").or_insert(Value::Null);
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else {
                continue;
            };
            if mounts.iter().any(|m| text(m, &["mountPath"]) == MOUNT_PATH) {
                if mounts.is_empty() {
                    c.remove("volumeMounts");
                }
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            mounted = true;
        }
    }
    if !mounted || existing.is_some() {
        return;
    }
    let volumes = spec.entry("volumes").or_insert(Value::Null);
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(list) = volumes.as_array_mut() {
        list.push(json!({"name": volume, "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ],
            "defaultMode": 420,
        }}));
    }
}

/// Refuses mirror pods with an account, secrets or a token volume, and pods that become or cease to be mirror pods.
///
/// # Errors
/// 403, 422.
pub fn validate(app: &App, write: &Write<'_>) -> Result<(), Status> {
    if !write.row.group.is_empty() || write.row.plural != "pods" {
        return Ok(());
    }
    match write.operation {
        Operation::Create if is_mirror(&write.object) => new_mirror_pod(write),
        Operation::Update => {
            mirror_pod_stays(write)?;
            if write.subresource != "ephemeralcontainers" {
                return Ok(());
            }
            // They bring references of their own.
            let name = text(&write.object, &["spec", "serviceAccountName"]);
            match find(app, "core/serviceaccounts", write.namespace, name) {
                Some(account) => mountable(&write.object, name, &account)
                    .map_err(|why| super::forbidden(write, &why)),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn new_mirror_pod(write: &Write<'_>) -> Result<(), Status> {
    if text(&write.object, &["spec", "nodeName"]).is_empty() {
        let e = FieldError::invalid(
            format!("metadata.annotations[{MIRROR}]"),
            "",
            "must set spec.nodeName if mirror pod annotation is set",
        );
        return Err(invalid(write, e));
    }
    if !text(&write.object, &["spec", "serviceAccountName"]).is_empty() {
        return Err(super::forbidden(
            write,
            "a mirror pod may not reference service accounts",
        ));
    }
    let mut secrets = false;
    references::of_pod(&write.object, &mut |kind, _| {
        secrets |= kind == Kind::Secret
    });
    if secrets {
        return Err(super::forbidden(
            write,
            "a mirror pod may not reference secrets",
        ));
    }
    let projected = write
        .object
        .pointer("/spec/volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|v| {
            v.pointer("/projected/sources")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .any(|s| s.get("serviceAccountToken").is_some())
        });
    if projected {
        return Err(super::forbidden(
            write,
            "a mirror pod may not use ServiceAccountToken volume projections",
        ));
    }
    Ok(())
}

fn invalid(write: &Write<'_>, e: FieldError) -> Status {
    Status::invalid("", "Pod", write.name, &[e])
}

/// The annotation comes with the pod and stays (ValidatePodSpecificAnnotationUpdates), through every subresource; and
/// what shows a file of a node cannot be given further containers.
fn mirror_pod_stays(write: &Write<'_>) -> Result<(), Status> {
    let mark = |pod: &Value| {
        pod.pointer("/metadata/annotations")
            .and_then(|a| a.get(MIRROR))
            .cloned()
    };
    let before = write.old.as_ref().and_then(mark);
    let after = mark(&write.object);
    let refuse = |verb: &str| {
        let path = format!("metadata.annotations[{MIRROR}]");
        let why = format!("may not {verb} mirror pod annotation");
        Err(invalid(write, FieldError::forbidden(path, why)))
    };
    match (&before, &after) {
        (None, Some(_)) => return refuse("add"),
        (Some(_), None) => return refuse("remove"),
        (Some(a), Some(b)) if a != b => return refuse("update"),
        _ => {}
    }
    if before.is_some() {
        let why = match write.subresource {
            "ephemeralcontainers" => "static pods do not support ephemeral containers",
            "resize" => "static pods cannot be resized",
            _ => return Ok(()),
        };
        return Err(invalid(write, FieldError::forbidden("", why)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_the_account_its_token_and_pull_secrets() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}});
        apply(
            &mut pod,
            "default",
            &json!({"imagePullSecrets": [{"name": "reg"}]}),
            "abcde",
        );
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        assert_eq!(pod["spec"]["imagePullSecrets"][0]["name"], "reg");
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"][0]["name"],
            "kube-api-access-abcde"
        );
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
        assert_eq!(
            pod["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["path"],
            "token"
        );
    }

    #[test]
    fn an_account_that_enforces_it_opens_only_the_secrets_it_lists() {
        let account = json!({"metadata": {"annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}},
            "secrets": [{"name": "a"}], "imagePullSecrets": [{"name": "p"}]});
        let ok =
            |spec: Value| mountable(&json!({"metadata": {}, "spec": spec}), "x", &account).is_ok();
        let from = |s: &str| json!([{"envFrom": [{"secretRef": {"name": s}}]}]);
        assert!(ok(
            json!({"containers": from("a"), "imagePullSecrets": [{"name": "p"}]})
        ));
        for key in ["containers", "initContainers", "ephemeralContainers"] {
            assert!(!ok(json!({key: from("b")})), "{key}");
        }
        assert!(!ok(json!({"imagePullSecrets": [{"name": "a"}]})));
        assert!(!ok(json!({"volumes": [{"secret": {"secretName": "b"}}]})));
        assert!(mountable(&json!({"spec": {"containers": from("b")}}), "x", &json!({})).is_ok());
    }

    #[test]
    fn accounts_and_pods_can_refuse_the_token_and_the_pod_wins() {
        let no = json!({"automountServiceAccountToken": false});
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
        apply(&mut pod, "x", &no, "abcde");
        assert!(pod["spec"].get("volumes").is_none());
        let mut pod =
            json!({"spec": {"automountServiceAccountToken": true, "containers": [{"name": "a"}]}});
        apply(&mut pod, "x", &no, "abcde");
        assert!(pod["spec"].get("volumes").is_some());
    }
}
