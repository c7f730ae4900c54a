//! The rows of the core group (`v1`) and of events.k8s.io, which shares its objects with core events.

pub mod config_map;
pub mod container;
pub mod endpoints;
pub mod env;
pub mod event;
pub mod limit_range;
pub mod namespace;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_spec;
pub mod pod_template;
pub mod pod_validate;
pub mod quota;
pub mod replication_controller;
pub mod resource_quota;
pub mod resources;
pub mod scheduling;
pub mod secret;
pub mod security_context;
pub mod service;
pub mod service_account;
pub mod volume;

use super::{CREATE_GET, GET_PATCH_UPDATE, PROXY, row, virtual_row};
use crate::resource::{Resource, Scope};

use Scope::{Cluster, Namespaced};

/// Namespaces have no deletecollection upstream: deleting all of them at once is never meant.
const NAMESPACE_VERBS: &[&str] = &[
    "create", "delete", "get", "list", "patch", "update", "watch",
];

/// A row of the core group.
fn v1(kind: &'static str, plural: &'static str, scope: Scope) -> Resource {
    row("", "v1", kind, plural, scope)
}

/// Rows of `v1`.
pub fn rows() -> Vec<Resource> {
    vec![
        virtual_row("", "v1", "Binding", "bindings", Namespaced),
        v1("ConfigMap", "configmaps", Namespaced)
            .short("cm")
            .strategy(config_map::strategy())
            .columns(config_map::columns()),
        v1("Endpoints", "endpoints", Namespaced)
            .short("ep")
            .strategy(endpoints::strategy())
            .columns(endpoints::columns()),
        v1("Event", "events", Namespaced)
            .short("ev")
            .strategy(event::strategy())
            .columns(event::columns())
            .fields(event::fields()),
        v1("LimitRange", "limitranges", Namespaced)
            .short("limits")
            .strategy(limit_range::strategy())
            .columns(limit_range::columns()),
        v1("Namespace", "namespaces", Cluster)
            .short("ns")
            .verbs(NAMESPACE_VERBS)
            .status()
            .sub("finalize", ("", "v1", "Namespace"), &["update"])
            .strategy(namespace::strategy())
            .columns(namespace::columns())
            .fields(namespace::fields()),
        v1("Node", "nodes", Cluster)
            .short("no")
            .status()
            .sub("proxy", ("", "v1", "NodeProxyOptions"), PROXY)
            .strategy(node::strategy())
            .columns(node::columns())
            .fields(node::fields()),
        v1(
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            Namespaced,
        )
        .short("pvc")
        .status()
        .strategy(persistent_volume_claim::strategy())
        .columns(persistent_volume_claim::columns())
        .fields(persistent_volume_claim::fields()),
        v1("PersistentVolume", "persistentvolumes", Cluster)
            .short("pv")
            .status()
            .strategy(persistent_volume::strategy())
            .columns(persistent_volume::columns())
            .fields(persistent_volume::fields()),
        v1("Pod", "pods", Namespaced)
            .short("po")
            .in_all()
            .status()
            .sub("attach", ("", "v1", "PodAttachOptions"), CREATE_GET)
            .sub("binding", ("", "v1", "Binding"), &["create"])
            .sub("ephemeralcontainers", ("", "v1", "Pod"), GET_PATCH_UPDATE)
            .sub("eviction", ("policy", "v1", "Eviction"), &["create"])
            .sub("exec", ("", "v1", "PodExecOptions"), CREATE_GET)
            .sub("log", ("", "v1", "Pod"), &["get"])
            .sub(
                "portforward",
                ("", "v1", "PodPortForwardOptions"),
                CREATE_GET,
            )
            .sub("proxy", ("", "v1", "PodProxyOptions"), PROXY)
            .sub("resize", ("", "v1", "Pod"), GET_PATCH_UPDATE)
            .strategy(pod::strategy())
            .columns(pod::columns())
            .fields(pod::fields()),
        v1("PodTemplate", "podtemplates", Namespaced)
            .strategy(pod_template::strategy())
            .columns(pod_template::columns()),
        v1(
            "ReplicationController",
            "replicationcontrollers",
            Namespaced,
        )
        .short("rc")
        .in_all()
        .status()
        .scale()
        .strategy(replication_controller::strategy())
        .columns(replication_controller::columns())
        .fields(replication_controller::fields()),
        v1("ResourceQuota", "resourcequotas", Namespaced)
            .short("quota")
            .status()
            .strategy(resource_quota::strategy())
            .columns(resource_quota::columns()),
        v1("Secret", "secrets", Namespaced)
            .strategy(secret::strategy())
            .columns(secret::columns())
            .fields(secret::fields()),
        v1("ServiceAccount", "serviceaccounts", Namespaced)
            .short("sa")
            .sub(
                "token",
                ("authentication.k8s.io", "v1", "TokenRequest"),
                &["create"],
            )
            .strategy(service_account::strategy())
            .columns(service_account::columns()),
        v1("Service", "services", Namespaced)
            .short("svc")
            .in_all()
            .status()
            .sub("proxy", ("", "v1", "ServiceProxyOptions"), PROXY)
            .strategy(service::strategy())
            .columns(service::columns())
            .fields(service::fields()),
    ]
}

/// Rows of `events.k8s.io/v1`.
pub fn events_k8s_io_rows() -> Vec<Resource> {
    let mut events = row("events.k8s.io", "v1", "Event", "events", Namespaced)
        .short("ev")
        .strategy(event::strategy_new())
        .columns(event::columns())
        .fields(event::fields_new());
    events.storage = "core/events".into();
    events.stored = false;
    events.to_stored = event::to_core;
    events.from_stored = event::from_core;
    vec![events]
}
