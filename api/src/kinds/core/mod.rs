//! The rows of the core group (`v1`) and of events.k8s.io, which shares its objects with core events.

use super::{CREATE_GET, GET_PATCH_UPDATE, PROXY, row, virtual_row};
use crate::resource::{Resource, Scope, Strategy};

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
        v1("ConfigMap", "configmaps", Namespaced).short("cm"),
        v1("Endpoints", "endpoints", Namespaced)
            .short("ep")
            .strategy(Strategy {
                allow_create_on_update: true,
                ..Strategy::default()
            }),
        v1("Event", "events", Namespaced)
            .short("ev")
            .strategy(Strategy {
                allow_create_on_update: true,
                ..Strategy::default()
            }),
        v1("LimitRange", "limitranges", Namespaced)
            .short("limits")
            .strategy(Strategy {
                allow_create_on_update: true,
                ..Strategy::default()
            }),
        v1("Namespace", "namespaces", Cluster)
            .short("ns")
            .verbs(NAMESPACE_VERBS)
            .status()
            .sub("finalize", ("", "v1", "Namespace"), &["update"]),
        v1("Node", "nodes", Cluster).short("no").status().sub(
            "proxy",
            ("", "v1", "NodeProxyOptions"),
            PROXY,
        ),
        v1(
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            Namespaced,
        )
        .short("pvc")
        .status(),
        v1("PersistentVolume", "persistentvolumes", Cluster)
            .short("pv")
            .status(),
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
            .sub("resize", ("", "v1", "Pod"), GET_PATCH_UPDATE),
        v1("PodTemplate", "podtemplates", Namespaced),
        v1(
            "ReplicationController",
            "replicationcontrollers",
            Namespaced,
        )
        .short("rc")
        .in_all()
        .status()
        .scale()
        .strategy(Strategy {
            generation: true,
            ..Strategy::default()
        }),
        v1("ResourceQuota", "resourcequotas", Namespaced)
            .short("quota")
            .status(),
        v1("Secret", "secrets", Namespaced),
        v1("ServiceAccount", "serviceaccounts", Namespaced)
            .short("sa")
            .sub(
                "token",
                ("authentication.k8s.io", "v1", "TokenRequest"),
                &["create"],
            ),
        v1("Service", "services", Namespaced)
            .short("svc")
            .in_all()
            .status()
            .sub("proxy", ("", "v1", "ServiceProxyOptions"), PROXY)
            .strategy(Strategy {
                allow_create_on_update: true,
                ..Strategy::default()
            }),
    ]
}

/// Rows of `events.k8s.io/v1`.
pub fn events_k8s_io_rows() -> Vec<Resource> {
    let mut events = row("events.k8s.io", "v1", "Event", "events", Namespaced)
        .short("ev")
        .strategy(Strategy {
            allow_create_on_update: true,
            ..Strategy::default()
        });
    events.storage = "core/events".into();
    events.stored = false;
    vec![events]
}
