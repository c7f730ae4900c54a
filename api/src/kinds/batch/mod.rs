//! The rows of `batch/v1`.

use super::row;
use crate::resource::{Resource, Scope::Namespaced, Strategy};

/// Rows of `batch/v1`.
pub fn rows() -> Vec<Resource> {
    let generation = || Strategy {
        generation: true,
        ..Strategy::default()
    };
    vec![
        row("batch", "v1", "CronJob", "cronjobs", Namespaced)
            .short("cj")
            .in_all()
            .status()
            .strategy(generation()),
        row("batch", "v1", "Job", "jobs", Namespaced)
            .in_all()
            .status()
            .strategy(generation()),
    ]
}
