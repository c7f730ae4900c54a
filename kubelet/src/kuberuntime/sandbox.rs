//! The CRI configuration of a pod's sandbox (upstream kuberuntime_sandbox.go). Pure.

use super::{dns, hosts, resources, security};
use crate::config::Config;
use crate::labels;
use crate::node::sysctls;
use crate::pod::spec;
use k8s_cri::v1::{
    Int64Value, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;

/// The configuration, and a warning about DNS settings that had to be cut.
///
/// # Errors
/// Something that the spec asks for and that cannot be given; the text says what.
pub fn config(
    pod: &Pod,
    attempt: u32,
    config: &Config,
    node_resolv_conf: &str,
) -> Result<(PodSandboxConfig, Option<String>), String> {
    let s = spec::spec(pod);
    let (hostname, _) = hosts::hostname(pod, &config.cluster_domain)?;
    let (dns_config, warning) = dns::dns_config(
        pod,
        &config.cluster_dns,
        &config.cluster_domain,
        node_resolv_conf,
    );
    let mut own_labels: HashMap<String, String> = pod
        .metadata
        .labels
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    own_labels.insert(labels::POD_NAME.into(), spec::name(pod).into());
    own_labels.insert(labels::POD_NAMESPACE.into(), spec::namespace(pod).into());
    own_labels.insert(labels::POD_UID.into(), spec::uid(pod).into());
    let sc = s.security_context.clone().unwrap_or_default();
    let privileged = spec::containers(pod)
        .iter()
        .chain(spec::init_containers(pod))
        .any(|c| {
            c.security_context
                .as_ref()
                .and_then(|s| s.privileged)
                .unwrap_or(false)
        });
    let cgroup = resources::pod_cgroup(pod);
    let mut groups = sc.supplemental_groups.clone().unwrap_or_default();
    groups.extend(sc.fs_group);
    let sandbox = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: spec::name(pod).into(),
            uid: spec::uid(pod).into(),
            namespace: spec::namespace(pod).into(),
            attempt,
        }),
        hostname: if spec::host_network(pod) {
            String::new()
        } else {
            hostname
        },
        log_directory: config
            .pod_log_dir(spec::namespace(pod), spec::name(pod), spec::uid(pod))
            .to_string_lossy()
            .into_owned(),
        dns_config: Some(dns_config),
        port_mappings: port_mappings(pod),
        labels: own_labels,
        annotations: {
            let mut a: HashMap<String, String> = pod
                .metadata
                .annotations
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect();
            a.insert(
                labels::POD_TERMINATION_GRACE.into(),
                spec::grace_period(pod).to_string(),
            );
            a
        },
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(&config.cgroup_root, pod),
            sysctls: sc
                .sysctls
                .iter()
                .flatten()
                .map(|s| (sysctls::dots(&s.name), s.value.clone()))
                .collect(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(security::namespaces(pod)),
                run_as_user: sc.run_as_user.map(|value| Int64Value { value }),
                run_as_group: sc.run_as_group.map(|value| Int64Value { value }),
                supplemental_groups: groups,
                privileged,
                // The sandbox itself always runs with the runtime's profile.
                seccomp: Some(security::seccomp(None, true, &config.seccomp_dir())?),
                ..LinuxSandboxSecurityContext::default()
            }),
            resources: Some(LinuxContainerResources {
                cpu_period: skiff_cgroup::cpu::PERIOD,
                cpu_shares: cgroup.shares,
                cpu_quota: cgroup.quota,
                memory_limit_in_bytes: cgroup.memory,
                ..LinuxContainerResources::default()
            }),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    };
    Ok((sandbox, warning))
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if spec::host_network(pod) {
        return Vec::new();
    }
    let sidecars = spec::init_containers(pod)
        .iter()
        .filter(|c| spec::is_sidecar(c));
    spec::containers(pod)
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter(|p| p.host_port.unwrap_or(0) > 0)
        .map(|p| PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            } as i32,
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}
