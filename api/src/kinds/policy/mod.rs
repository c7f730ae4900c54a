//! The row of `policy/v1`.

use super::row;
use crate::resource::{Resource, Scope::Namespaced, Strategy};

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
        .strategy(Strategy {
            generation: true,
            allow_unconditional_update: false,
            ..Strategy::default()
        }),
    ]
}
