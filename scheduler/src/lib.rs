//! The scheduler: which node a pod runs on. The decision is [`schedule::schedule`], a pure function of a
//! [`snapshot::Snapshot`] and a pod; [`shell`] watches, binds and reports. Must not know the store or the kubelet.
//!
//! Plugins are flat lists of plain functions named as upstream's (pkg/scheduler/framework/plugins).

pub mod framework;
pub mod plugins;
pub mod queue;
pub mod resources;
pub mod schedule;
pub mod shell;
pub mod snapshot;

pub use shell::{Config, run};
