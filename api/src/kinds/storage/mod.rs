//! The rows of `storage.k8s.io/v1` and of the small groups that have one kind each: `coordination.k8s.io`,
//! `scheduling.k8s.io`, `node.k8s.io`.

use super::row;
use crate::resource::{
    Resource,
    Scope::{Cluster, Namespaced},
    Strategy,
};

/// Rows of the four groups.
pub fn rows() -> Vec<Resource> {
    let g = "storage.k8s.io";
    let conditional = || Strategy {
        allow_unconditional_update: false,
        ..Strategy::default()
    };
    vec![
        row(g, "v1", "CSIDriver", "csidrivers", Cluster).strategy(Strategy {
            generation: true,
            ..conditional()
        }),
        row(g, "v1", "CSINode", "csinodes", Cluster).strategy(conditional()),
        row(g, "v1", "StorageClass", "storageclasses", Cluster).short("sc"),
        row(g, "v1", "VolumeAttachment", "volumeattachments", Cluster)
            .status()
            .strategy(conditional()),
        row(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
            Cluster,
        )
        .short("pc")
        .strategy(Strategy {
            generation: true,
            ..Strategy::default()
        }),
        row("coordination.k8s.io", "v1", "Lease", "leases", Namespaced).strategy(Strategy {
            allow_create_on_update: true,
            ..conditional()
        }),
        row(
            "node.k8s.io",
            "v1",
            "RuntimeClass",
            "runtimeclasses",
            Cluster,
        )
        .strategy(conditional()),
    ]
}
