//! What a controller wants done, as values, and the executor that does it through the API. The values carry no
//! clients and no times, so that tests can print and compare them.

use kube::Client;
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff_client::recorder::{EventType, Recorder};
use std::time::Duration;

/// A resource as paths name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Plural resource name.
    pub plural: &'static str,
    /// Kind.
    pub kind: &'static str,
}

const fn row(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
) -> Kind {
    Kind {
        group,
        version,
        plural,
        kind,
    }
}

/// Pods.
pub const PODS: Kind = row("", "v1", "pods", "Pod");
/// Nodes.
pub const NODES: Kind = row("", "v1", "nodes", "Node");
/// Services.
pub const SERVICES: Kind = row("", "v1", "services", "Service");
/// Endpointss.
pub const ENDPOINTS: Kind = row("", "v1", "endpoints", "Endpoints");
/// ConfigMaps.
pub const CONFIGMAPS: Kind = row("", "v1", "configmaps", "ConfigMap");
/// Namespaces.
pub const NAMESPACES: Kind = row("", "v1", "namespaces", "Namespace");
/// ServiceAccounts.
pub const SERVICEACCOUNTS: Kind = row("", "v1", "serviceaccounts", "ServiceAccount");
/// ReplicationControllers.
pub const REPLICATIONCONTROLLERS: Kind =
    row("", "v1", "replicationcontrollers", "ReplicationController");
/// PersistentVolumes.
pub const PERSISTENTVOLUMES: Kind = row("", "v1", "persistentvolumes", "PersistentVolume");
/// PersistentVolumeClaims.
pub const PERSISTENTVOLUMECLAIMS: Kind =
    row("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim");
/// ResourceQuotas.
pub const RESOURCEQUOTAS: Kind = row("", "v1", "resourcequotas", "ResourceQuota");
/// EndpointSlices.
pub const ENDPOINTSLICES: Kind = row("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice");
/// Deployments.
pub const DEPLOYMENTS: Kind = row("apps", "v1", "deployments", "Deployment");
/// ReplicaSets.
pub const REPLICASETS: Kind = row("apps", "v1", "replicasets", "ReplicaSet");
/// StatefulSets.
pub const STATEFULSETS: Kind = row("apps", "v1", "statefulsets", "StatefulSet");
/// DaemonSets.
pub const DAEMONSETS: Kind = row("apps", "v1", "daemonsets", "DaemonSet");
/// ControllerRevisions.
pub const CONTROLLERREVISIONS: Kind =
    row("apps", "v1", "controllerrevisions", "ControllerRevision");
/// Jobs.
pub const JOBS: Kind = row("batch", "v1", "jobs", "Job");
/// CronJobs.
pub const CRONJOBS: Kind = row("batch", "v1", "cronjobs", "CronJob");
/// PodDisruptionBudgets.
pub const PODDISRUPTIONBUDGETS: Kind = row(
    "policy",
    "v1",
    "poddisruptionbudgets",
    "PodDisruptionBudget",
);
/// ClusterRoles.
pub const CLUSTERROLES: Kind = row(
    "rbac.authorization.k8s.io",
    "v1",
    "clusterroles",
    "ClusterRole",
);

impl Kind {
    /// The path of an object, or of the collection when the name is empty.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() {
            "/api".to_string()
        } else {
            format!("/apis/{}", self.group)
        };
        let ns = if namespace.is_empty() {
            String::new()
        } else {
            format!("/namespaces/{namespace}")
        };
        let name = if name.is_empty() {
            String::new()
        } else {
            format!("/{name}")
        };
        format!("{root}/{}{ns}/{}{name}", self.version, self.plural)
    }
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.into()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Create an object; `apiVersion` and `kind` are filled in.
    Create {
        /// Of which kind.
        kind: Kind,
        /// Where; empty for cluster-scoped kinds.
        namespace: String,
        /// The object.
        object: Value,
    },
    /// JSON merge patch of an object or of a subresource of it.
    Patch {
        /// Of which kind.
        kind: Kind,
        /// Where.
        namespace: String,
        /// Which.
        name: String,
        /// e.g. `status`; empty for the object.
        subresource: &'static str,
        /// The patch; put `metadata.resourceVersion` or `uid` into it to make it conditional.
        patch: Value,
    },
    /// A patch that gives an object an owner, if that owner, asked for now, is there and is not being deleted.
    Adopt {
        /// The owner's kind.
        owner_kind: Kind,
        /// The owner's name; its namespace is the object's.
        owner: String,
        /// Only this one.
        owner_uid: String,
        /// [`Action::Patch`].
        patch: Box<Action>,
    },
    /// Replace an object (its resourceVersion makes it conditional).
    Replace {
        /// Of which kind.
        kind: Kind,
        /// Where.
        namespace: String,
        /// The object.
        object: Value,
    },
    /// Delete an object, if it still has this uid.
    Delete {
        /// Of which kind.
        kind: Kind,
        /// Where.
        namespace: String,
        /// Which.
        name: String,
        /// Only this one.
        uid: String,
        /// Only in this version, so that nothing is deleted for what it was; empty: in any.
        version: String,
        /// None: the kind's default.
        grace_seconds: Option<i64>,
    },
    /// Note an event about the reconciled object.
    Event {
        /// `Warning` instead of `Normal`.
        warning: bool,
        /// CamelCase reason.
        reason: &'static str,
        /// Text.
        message: String,
    },
    /// Reconcile again after this time.
    After(Duration),
}

impl Action {
    /// Deletes an object, if it is still as the decision saw it. A conflict is an error, and the key comes back.
    pub fn delete(kind: Kind, meta: &ObjectMeta) -> Self {
        Action::Delete {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            grace_seconds: None,
        }
    }

    /// Deletes an object whatever it has become: when others decide (its node is gone, its job is over), or after a
    /// change of our own.
    pub fn delete_any_version(kind: Kind, meta: &ObjectMeta, grace: Option<i64>) -> Self {
        let mut action = Self::delete(kind, meta);
        if let Action::Delete {
            version,
            grace_seconds,
            ..
        } = &mut action
        {
            version.clear();
            *grace_seconds = grace;
        }
        action
    }
}

/// How a kube error reads in an event.
pub fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

async fn send<T: DeserializeOwned>(
    client: &Client,
    method: &str,
    path: &str,
    content: &str,
    body: Vec<u8>,
) -> Result<T, kube::Error> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content)
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// What the API answered, as far as callers care.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Answer {
    /// metadata of the object (or of the Status of a deletion).
    #[serde(default)]
    pub metadata: ObjectMeta,
}

/// Does one action. `Ok(None)` for those that send nothing, and for deletions and patches of what is gone already.
///
/// # Errors
/// What the API answered.
pub async fn execute(client: &Client, action: &Action) -> Result<Option<Answer>, kube::Error> {
    match action {
        Action::Create {
            kind,
            namespace,
            object,
        } => {
            let mut object = object.clone();
            object["apiVersion"] = kind.api_version().into();
            object["kind"] = kind.kind.into();
            let body = serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?;
            send(
                client,
                "POST",
                &kind.path(namespace, ""),
                "application/json",
                body,
            )
            .await
            .map(Some)
        }
        Action::Patch {
            kind,
            namespace,
            name,
            subresource,
            patch,
        } => {
            let mut path = kind.path(namespace, name);
            if !subresource.is_empty() {
                path = format!("{path}/{subresource}");
            }
            let body = serde_json::to_vec(patch).map_err(kube::Error::SerdeError)?;
            skiff_client::not_found_is_none(
                send(client, "PATCH", &path, "application/merge-patch+json", body).await,
            )
        }
        Action::Replace {
            kind,
            namespace,
            object,
        } => {
            let mut object = object.clone();
            object["apiVersion"] = kind.api_version().into();
            object["kind"] = kind.kind.into();
            let name = object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_string();
            let body = serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?;
            send(
                client,
                "PUT",
                &kind.path(namespace, &name),
                "application/json",
                body,
            )
            .await
            .map(Some)
        }
        Action::Delete {
            kind,
            namespace,
            name,
            uid,
            version,
            grace_seconds,
        } => {
            let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1",
                "propagationPolicy": "Background"});
            if !uid.is_empty() {
                options["preconditions"] = json!({"uid": uid});
            }
            if !version.is_empty() {
                options["preconditions"]["resourceVersion"] = version.as_str().into();
            }
            if let Some(g) = grace_seconds {
                options["gracePeriodSeconds"] = (*g).into();
            }
            let body = serde_json::to_vec(&options).map_err(kube::Error::SerdeError)?;
            let sent = send(
                client,
                "DELETE",
                &kind.path(namespace, name),
                "application/json",
                body,
            )
            .await;
            match skiff_client::not_found_is_none(sent) {
                // Another object has the name now: the one that was meant is gone.
                Err(e) if skiff_client::is_code(&e, 409) && version.is_empty() => Ok(None),
                other => other,
            }
        }
        Action::Adopt {
            owner_kind,
            owner,
            owner_uid,
            patch,
        } => {
            let Action::Patch { namespace, .. } = &**patch else {
                return Ok(None);
            };
            let request = http::Request::get(owner_kind.path(namespace, owner))
                .body(Vec::new())
                .map_err(kube::Error::HttpError)?;
            let found: Answer = client.request(request).await?;
            may_adopt(&found.metadata, owner_uid)?;
            Box::pin(execute(client, patch)).await
        }
        Action::Event { .. } | Action::After(_) => Ok(None),
    }
}

/// Upstream's RecheckDeletionTimestamp: an owner that is going, or that is another by now, takes nothing.
fn may_adopt(owner: &ObjectMeta, uid: &str) -> Result<(), kube::Error> {
    let name = owner.name.as_deref().unwrap_or_default();
    let why = if owner.uid.as_deref() != Some(uid) {
        format!(
            "{name} is another object by now: uid {}, not {uid}",
            owner.uid.as_deref().unwrap_or_default()
        )
    } else if let Some(at) = &owner.deletion_timestamp {
        format!("{name} has just been deleted at {}", at.0)
    } else {
        return Ok(());
    };
    Err(kube::Error::Api(Box::new(
        kube::core::Status::failure(&why, "Conflict").with_code(409),
    )))
}

/// Notes an action's event, if it is one.
pub fn note<K: kube::Resource<DynamicType = ()>>(recorder: &Recorder, about: &K, action: &Action) {
    if let Action::Event {
        warning,
        reason,
        message,
    } = action
    {
        let kind = if *warning {
            EventType::Warning
        } else {
            EventType::Normal
        };
        recorder.event(about, kind, reason, message.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_is_going_or_another_adopts_nothing() {
        let owner = |v: Value| serde_json::from_value::<ObjectMeta>(v).expect("metadata");
        assert!(may_adopt(&owner(json!({"name": "a", "uid": "1"})), "1").is_ok());
        for (meta, said) in [
            (json!({"name": "a", "uid": "2"}), "another object"),
            (
                json!({"name": "a", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
                "has just been deleted",
            ),
        ] {
            let e = may_adopt(&owner(meta), "1").expect_err("refused");
            assert!(
                skiff_client::is_code(&e, 409) && text(&e).contains(said),
                "{e}"
            );
        }
    }
}
