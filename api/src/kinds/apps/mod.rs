//! The rows of `apps/v1`.

pub mod controller_revision;
pub mod daemon_set;
pub mod deployment;
pub mod replica_set;
pub mod stateful_set;
pub mod workload;

use super::row;
use crate::resource::{Resource, Scope::Namespaced};

/// Rows of `apps/v1`.
pub fn rows() -> Vec<Resource> {
    let v1 = |kind, plural| row("apps", "v1", kind, plural, Namespaced);
    vec![
        v1("ControllerRevision", "controllerrevisions")
            .strategy(controller_revision::strategy())
            .columns(controller_revision::columns()),
        v1("DaemonSet", "daemonsets")
            .short("ds")
            .in_all()
            .status()
            .strategy(daemon_set::strategy())
            .columns(daemon_set::columns()),
        v1("Deployment", "deployments")
            .short("deploy")
            .in_all()
            .status()
            .scale()
            .strategy(deployment::strategy())
            .columns(deployment::columns()),
        v1("ReplicaSet", "replicasets")
            .short("rs")
            .in_all()
            .status()
            .scale()
            .strategy(replica_set::strategy())
            .columns(replica_set::columns()),
        v1("StatefulSet", "statefulsets")
            .short("sts")
            .in_all()
            .status()
            .scale()
            .strategy(stateful_set::strategy())
            .columns(stateful_set::columns()),
    ]
}
