//! The row of `policy/v1`. Evictions are a subresource of pods.

pub mod pod_disruption_budget;

use super::row;
use crate::resource::{Resource, Scope::Namespaced};

/// Rows of `policy/v1`.
pub fn rows() -> Vec<Resource> {
    vec![
        row(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            Namespaced,
        )
        .short("pdb")
        .status()
        .strategy(pod_disruption_budget::strategy())
        .columns(pod_disruption_budget::columns()),
    ]
}
