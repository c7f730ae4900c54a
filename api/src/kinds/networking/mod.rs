//! The rows of `networking.k8s.io/v1` and `discovery.k8s.io/v1`.

pub mod endpoint_slice;
pub mod ingress;
pub mod ingress_class;
pub mod network_policy;

use super::row;
use crate::resource::{
    Resource,
    Scope::{Cluster, Namespaced},
};

/// Rows of `networking.k8s.io/v1`.
pub fn rows() -> Vec<Resource> {
    let g = "networking.k8s.io";
    vec![
        row(g, "v1", "IngressClass", "ingressclasses", Cluster)
            .strategy(ingress_class::strategy())
            .columns(ingress_class::columns()),
        row(g, "v1", "Ingress", "ingresses", Namespaced)
            .short("ing")
            .status()
            .strategy(ingress::strategy())
            .columns(ingress::columns()),
        row(g, "v1", "NetworkPolicy", "networkpolicies", Namespaced)
            .short("netpol")
            .strategy(network_policy::strategy())
            .columns(network_policy::columns()),
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
        .strategy(endpoint_slice::strategy())
        .columns(endpoint_slice::columns()),
    ]
}
