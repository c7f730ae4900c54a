//! The rows of `apps/v1`.

use super::row;
use crate::resource::{Resource, Scope::Namespaced, Strategy};

/// Rows of `apps/v1`.
pub fn rows() -> Vec<Resource> {
    let v1 = |kind, plural| row("apps", "v1", kind, plural, Namespaced);
    let generation = || Strategy {
        generation: true,
        ..Strategy::default()
    };
    vec![
        v1("ControllerRevision", "controllerrevisions"),
        v1("DaemonSet", "daemonsets")
            .short("ds")
            .in_all()
            .status()
            .strategy(generation()),
        v1("Deployment", "deployments")
            .short("deploy")
            .in_all()
            .status()
            .scale()
            .strategy(generation()),
        v1("ReplicaSet", "replicasets")
            .short("rs")
            .in_all()
            .status()
            .scale()
            .strategy(generation()),
        v1("StatefulSet", "statefulsets")
            .short("sts")
            .in_all()
            .status()
            .scale()
            .strategy(generation()),
    ]
}
