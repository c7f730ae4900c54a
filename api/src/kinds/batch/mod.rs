//! The rows of `batch/v1`.

pub mod cron_job;
pub mod job;
pub mod schedule;

use super::row;
use crate::resource::{Resource, Scope::Namespaced};

/// Rows of `batch/v1`.
pub fn rows() -> Vec<Resource> {
    vec![
        row("batch", "v1", "CronJob", "cronjobs", Namespaced)
            .short("cj")
            .in_all()
            .status()
            .strategy(cron_job::strategy())
            .columns(cron_job::columns()),
        row("batch", "v1", "Job", "jobs", Namespaced)
            .in_all()
            .status()
            .strategy(job::strategy())
            .columns(job::columns())
            .fields(job::fields()),
    ]
}
