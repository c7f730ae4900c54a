//! The controllers, one file each, named as upstream's (pkg/controller). Each has a pure `reconcile` from what is
//! observed to a list of [`action::Action`]s, and a thin part that gathers what it observes. [`shell`] owns queues and
//! the API. Controllers never see the store and meet only through the API.

pub mod action;
pub mod claim;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod discovery;
pub mod disruption;
pub mod endpoint;
pub mod endpointslice;
pub mod garbagecollector;
pub mod history;
pub mod job;
#[cfg(test)]
mod lagging_cache_tests;
pub mod model;
pub mod namespace;
pub mod node_lifecycle;
pub mod nodeipam;
pub mod podgc;
pub mod replicaset;
pub mod replication_controller;
pub mod resourcequota;
pub mod root_ca_cert_publisher;
pub mod serviceaccount;
pub mod shell;
pub mod statefulset;
pub mod ttl_after_finished;

use shell::Shell;
use skiff_client::Informers;
use tokio_util::sync::CancellationToken;

/// Settings of all controllers.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses of pods, e.g. `10.42.0.0/16`; each node gets a /24 of it.
    pub cluster_cidr: String,
    /// The cluster's CA, PEM, published as ConfigMap kube-root-ca.crt into every namespace.
    pub root_ca_pem: String,
    /// Keys worked on at once by each controller.
    pub workers: usize,
}

/// Runs every controller until the token ends them.
pub async fn run(informers: Informers, config: Config, stop: CancellationToken) {
    let shell = Shell::new(informers, config, stop.clone());
    cronjob::start(&shell);
    daemonset::start(&shell);
    deployment::start(&shell);
    disruption::start(&shell);
    endpoint::start(&shell);
    endpointslice::start(&shell);
    garbagecollector::start(&shell);
    job::start(&shell);
    namespace::start(&shell);
    node_lifecycle::start(&shell);
    nodeipam::start(&shell);
    podgc::start(&shell);
    replicaset::start(&shell);
    replication_controller::start(&shell);
    resourcequota::start(&shell);
    root_ca_cert_publisher::start(&shell);
    serviceaccount::start(&shell);
    statefulset::start(&shell);
    ttl_after_finished::start(&shell);
    stop.cancelled().await;
}
