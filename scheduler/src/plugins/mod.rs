//! The plugins, in the order upstream runs them: one file each, named as upstream's.

use crate::framework::{Filter, Normalize, Score};

pub mod image_locality;
pub mod inter_pod_affinity;
pub mod node_affinity;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_balanced_allocation;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod pod_topology_spread;
pub mod taint_toleration;

/// Every filter.
pub const FILTERS: &[Filter] = &[
    Filter {
        name: "NodeUnschedulable",
        filter: node_unschedulable::filter,
    },
    Filter {
        name: "NodeName",
        filter: node_name::filter,
    },
    Filter {
        name: "TaintToleration",
        filter: taint_toleration::filter,
    },
    Filter {
        name: "NodeAffinity",
        filter: node_affinity::filter,
    },
    Filter {
        name: "NodePorts",
        filter: node_ports::filter,
    },
    Filter {
        name: "NodeResourcesFit",
        filter: node_resources_fit::filter,
    },
    Filter {
        name: "PodTopologySpread",
        filter: pod_topology_spread::filter,
    },
    Filter {
        name: "InterPodAffinity",
        filter: inter_pod_affinity::filter,
    },
];

/// Every score, with upstream's weights.
pub const SCORES: &[Score] = &[
    Score {
        name: "TaintToleration",
        weight: 3,
        score: taint_toleration::score,
        normalize: Normalize::Reverse,
    },
    Score {
        name: "NodeAffinity",
        weight: 2,
        score: node_affinity::score,
        normalize: Normalize::Max,
    },
    Score {
        name: "NodeResourcesFit",
        weight: 1,
        score: node_resources_fit::score,
        normalize: Normalize::Not,
    },
    Score {
        name: "NodeResourcesBalancedAllocation",
        weight: 1,
        score: node_resources_balanced_allocation::score,
        normalize: Normalize::Not,
    },
    Score {
        name: "PodTopologySpread",
        weight: 2,
        score: pod_topology_spread::score,
        normalize: Normalize::Reverse,
    },
    Score {
        name: "InterPodAffinity",
        weight: 2,
        score: inter_pod_affinity::score,
        normalize: Normalize::MinMax,
    },
    Score {
        name: "ImageLocality",
        weight: 1,
        score: image_locality::score,
        normalize: Normalize::Not,
    },
];
