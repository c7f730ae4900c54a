//! The rows of `storage.k8s.io/v1` and of the small groups that have one kind each: `coordination.k8s.io`,
//! `scheduling.k8s.io`, `node.k8s.io`.

pub mod csi;
pub mod lease;
pub mod priority_class;
pub mod runtime_class;
pub mod storage_class;

use super::row;
use crate::resource::{
    Resource,
    Scope::{Cluster, Namespaced},
};

/// Rows of the four groups.
pub fn rows() -> Vec<Resource> {
    let g = "storage.k8s.io";
    vec![
        row(g, "v1", "CSIDriver", "csidrivers", Cluster)
            .strategy(csi::driver_strategy())
            .columns(csi::driver_columns()),
        row(g, "v1", "CSINode", "csinodes", Cluster)
            .strategy(csi::node_strategy())
            .columns(csi::node_columns()),
        row(g, "v1", "StorageClass", "storageclasses", Cluster)
            .short("sc")
            .strategy(storage_class::strategy())
            .columns(storage_class::columns()),
        row(g, "v1", "VolumeAttachment", "volumeattachments", Cluster)
            .status()
            .strategy(csi::attachment_strategy())
            .columns(csi::attachment_columns()),
        row(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
            Cluster,
        )
        .short("pc")
        .strategy(priority_class::strategy())
        .columns(priority_class::columns()),
        row("coordination.k8s.io", "v1", "Lease", "leases", Namespaced)
            .strategy(lease::strategy())
            .columns(lease::columns()),
        row(
            "node.k8s.io",
            "v1",
            "RuntimeClass",
            "runtimeclasses",
            Cluster,
        )
        .strategy(runtime_class::strategy())
        .columns(runtime_class::columns()),
    ]
}
