//! The rows of `networking.k8s.io/v1` and `discovery.k8s.io/v1`.

use super::row;
use crate::resource::{
    Resource,
    Scope::{Cluster, Namespaced},
    Strategy,
};

/// Rows of `networking.k8s.io/v1`.
pub fn rows() -> Vec<Resource> {
    let g = "networking.k8s.io";
    let generation = || Strategy {
        generation: true,
        ..Strategy::default()
    };
    vec![
        row(g, "v1", "IngressClass", "ingressclasses", Cluster).strategy(generation()),
        row(g, "v1", "Ingress", "ingresses", Namespaced)
            .short("ing")
            .status()
            .strategy(generation()),
        row(g, "v1", "NetworkPolicy", "networkpolicies", Namespaced)
            .short("netpol")
            .strategy(generation()),
    ]
}

/// Rows of `discovery.k8s.io/v1`.
pub fn discovery_rows() -> Vec<Resource> {
    vec![
        row(
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            "endpointslices",
            Namespaced,
        )
        .strategy(Strategy {
            generation: true,
            ..Strategy::default()
        }),
    ]
}
