//! The node's lease in kube-node-lease: a sign of life every ten seconds (upstream component-helpers lease
//! controller). Owns that object.

use crate::kubelet::Kubelet;
use crate::parts;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use skiff_client::{is_code, not_found_is_none};
use std::sync::Arc;
use std::time::Duration;

/// Seconds for which a sign of life counts.
const DURATION: i32 = 40;
/// How often one is given.
const INTERVAL: Duration = Duration::from_secs(10);

/// May this node say that it lives? Not while a part of its kubelet is down: its pods are better off elsewhere.
///
/// # Errors
/// What is down.
pub(crate) fn may_renew(k: &Kubelet) -> Result<(), String> {
    parts::well(k.supervisor())
}

/// Renews until the kubelet stops.
pub async fn run(k: Arc<Kubelet>) {
    let mut last: Option<Lease> = None;
    loop {
        if let Err(e) = may_renew(&k) {
            tracing::warn!(error = %e, "the node's lease is not renewed: a part of the kubelet is down");
            tokio::select! {
                () = k.stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => continue,
            }
        }
        let wait = match renew(&k, last.take()).await {
            Ok(lease) => {
                last = Some(lease);
                INTERVAL
            }
            Err(e) => {
                tracing::debug!(error = %e, "the node's lease could not be renewed; trying again");
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn renew(k: &Kubelet, last: Option<Lease>) -> Result<Lease, kube::Error> {
    let api: Api<Lease> = Api::namespaced(k.client.clone(), "kube-node-lease");
    let name = &k.config.node_name;
    let now = Some(MicroTime(Timestamp::now()));
    if let Some(mut lease) = last {
        lease.spec.get_or_insert_with(LeaseSpec::default).renew_time = now.clone();
        match api.replace(name, &PostParams::default(), &lease).await {
            Err(e) if is_code(&e, 409) || is_code(&e, 404) => {}
            other => return other,
        }
    }
    let owner = match not_found_is_none(Api::<Node>::all(k.client.clone()).get(name).await)? {
        Some(node) => Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid: node.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        }]),
        None => None,
    };
    let spec = LeaseSpec {
        holder_identity: Some(name.clone()),
        lease_duration_seconds: Some(DURATION),
        renew_time: now,
        ..LeaseSpec::default()
    };
    match not_found_is_none(api.get(name).await)? {
        Some(mut lease) => {
            lease.metadata.owner_references = owner;
            lease.spec = Some(spec);
            api.replace(name, &PostParams::default(), &lease).await
        }
        None => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some("kube-node-lease".into()),
                    owner_references: owner,
                    ..ObjectMeta::default()
                },
                spec: Some(spec),
            };
            api.create(&PostParams::default(), &lease).await
        }
    }
}
