//! Owns what becomes of every field of the CRI requests that make or change something: it has an effect, or it is refused
//! here by its name, or it needs none (said beside it). The patterns name every field and have no `..`, so that a field that a newer
//! CRI brings does not compile until somebody has decided about it.
//!
//! What refuses values that only make sense later (users, devices, seccomp) stands where they are used.

use crate::container::confine;
use k8s_cri::v1;
use tonic::Status;

type Checked = Result<(), Status>;

fn refuse(field: &str, why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {why}"))
}

/// Refuses a field that nothing here carries out.
fn unsupported(field: &str, set: bool) -> Checked {
    if set {
        return Err(refuse(field, "it is not supported by this runtime"));
    }
    Ok(())
}

fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, Status> {
    E::try_from(value).map_err(|_| refuse(field, format_args!("unknown value {value}")))
}

/// The one handler that is here has two names.
fn handler(field: &str, name: &str) -> Checked {
    if name.is_empty() || name == "skiff" {
        return Ok(());
    }
    Err(refuse(
        field,
        format_args!(
            "no runtime for {name:?} is configured: this runtime has the handlers \"\" and \"skiff\""
        ),
    ))
}

pub(super) fn run_pod_sandbox(r: &v1::RunPodSandboxRequest) -> Checked {
    let v1::RunPodSandboxRequest {
        config,
        runtime_handler,
    } = r;
    handler("runtime_handler", runtime_handler)?;
    match config {
        Some(c) => sandbox(c),
        None => Err(Status::invalid_argument("the sandbox config is missing")),
    }
}

fn sandbox(c: &v1::PodSandboxConfig) -> Checked {
    let v1::PodSandboxConfig {
        metadata,
        hostname: _,
        log_directory: _,
        dns_config,
        port_mappings,
        // Given back in statuses; annotations go to the pod network too.
        labels: _,
        annotations: _,
        linux,
        windows,
    } = c;
    unsupported("windows", windows.is_some())?;
    let Some(v1::PodSandboxMetadata {
        name: _,
        uid: _,
        namespace: _,
        attempt: _,
    }) = metadata
    else {
        return Err(Status::invalid_argument("the sandbox metadata is missing"));
    };
    if let Some(v1::DnsConfig {
        servers,
        searches,
        options,
    }) = dns_config
    {
        // They become words of resolv.conf: one with a line break would write lines of its own.
        for (field, list) in [
            ("servers", servers),
            ("searches", searches),
            ("options", options),
        ] {
            if let Some(bad) = list
                .iter()
                .find(|w| w.is_empty() || w.contains(char::is_whitespace))
            {
                return Err(refuse(
                    &format!("dns_config.{field}"),
                    format_args!("{bad:?} is not one word"),
                ));
            }
        }
    }
    for p in port_mappings {
        port(p)?;
    }
    let Some(v1::LinuxPodSandboxConfig {
        cgroup_parent,
        security_context,
        // The shim sets them, and refuses those that are not the pod's own.
        sysctls: _,
        // For runtimes with a machine around the pod; the pod's cgroup is its maker's.
        overhead: _,
        resources: _,
    }) = linux
    else {
        return Ok(());
    };
    if cgroup_parent.split('/').any(|p| p == "..") {
        return Err(refuse(
            "linux.cgroup_parent",
            format_args!("{cgroup_parent:?} leads out of its tree"),
        ));
    }
    if let Some(s) = security_context {
        sandbox_security(s)?;
    }
    Ok(())
}

fn port(p: &v1::PortMapping) -> Checked {
    let v1::PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip,
    } = p;
    let _: v1::Protocol = known("port_mappings.protocol", *protocol)?;
    for (field, n) in [("container_port", container_port), ("host_port", host_port)] {
        if !(0..=65535).contains(n) {
            return Err(refuse(
                &format!("port_mappings.{field}"),
                format_args!("{n} is not a port"),
            ));
        }
    }
    // An address that is not understood must not become every address of the node.
    if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(refuse(
            "port_mappings.host_ip",
            format_args!("{host_ip:?} is not an address"),
        ));
    }
    Ok(())
}

#[allow(deprecated)] // An old client's request must not be dropped in silence.
fn sandbox_security(s: &v1::LinuxSandboxSecurityContext) -> Checked {
    let v1::LinuxSandboxSecurityContext {
        namespace_options,
        selinux_options,
        // They are about a process of the sandbox's own, and there is none.
        run_as_user: _,
        run_as_group: _,
        readonly_rootfs: _,
        supplemental_groups: _,
        supplemental_groups_policy: _,
        seccomp: _,
        apparmor: _,
        seccomp_profile_path: _,
        // What containers may be.
        privileged: _,
    } = s;
    unsupported(
        "linux.security_context.selinux_options",
        selinux_options.as_ref().is_some_and(confine::wants_label),
    )?;
    match namespace_options {
        Some(n) => namespaces(n, false),
        None => Ok(()),
    }
}

/// Network and IPC are the pod's or the node's (CRI); only the container's process namespace has more choice.
fn namespaces(n: &v1::NamespaceOption, container: bool) -> Checked {
    use v1::NamespaceMode as Mode;
    let v1::NamespaceOption {
        network,
        pid,
        ipc,
        target_id,
        userns_options,
    } = n;
    for (field, value) in [("network", network), ("ipc", ipc)] {
        let field = format!("namespace_options.{field}");
        match known(&field, *value)? {
            Mode::Pod | Mode::Node => {}
            Mode::Container | Mode::Target => {
                return Err(refuse(&field, "it is POD or NODE"));
            }
        }
    }
    let mode: Mode = known("namespace_options.pid", *pid)?;
    if mode == Mode::Target && !container {
        return Err(refuse("namespace_options.pid", "TARGET is for containers"));
    }
    if mode == Mode::Target && target_id.is_empty() {
        return Err(refuse("namespace_options.target_id", "it is missing"));
    }
    if let Some(v1::UserNamespace { mode, uids, gids }) = userns_options {
        let mode: Mode = known("namespace_options.userns_options.mode", *mode)?;
        // Without mappings POD is what an empty message says.
        let own = mode != Mode::Node && (mode != Mode::Pod || !uids.is_empty() || !gids.is_empty());
        if own {
            return Err(Status::unimplemented(
                "namespace_options.userns_options: user namespaces (hostUsers: false) are not supported by this runtime",
            ));
        }
    }
    Ok(())
}

pub(super) fn create_container(r: &v1::CreateContainerRequest) -> Checked {
    let v1::CreateContainerRequest {
        pod_sandbox_id: _,
        config,
        // What RunPodSandbox was told, again.
        sandbox_config: _,
    } = r;
    match config {
        Some(c) => container(c),
        None => Err(Status::invalid_argument("the container config is missing")),
    }
}

fn container(c: &v1::ContainerConfig) -> Checked {
    let v1::ContainerConfig {
        metadata,
        image,
        command: _,
        args: _,
        working_dir: _,
        envs,
        mounts,
        devices,
        labels: _,
        annotations: _,
        log_path,
        stdin: _,
        stdin_once: _,
        tty: _,
        linux,
        windows,
        cdi_devices,
    } = c;
    unsupported("windows", windows.is_some())?;
    if let Some(v1::CdiDevice { name }) = cdi_devices.first() {
        return Err(refuse(
            "cdi_devices",
            format_args!("{name:?}: CDI devices are not supported by this runtime"),
        ));
    }
    let Some(v1::ContainerMetadata {
        name: _,
        attempt: _,
    }) = metadata
    else {
        return Err(Status::invalid_argument(
            "the container metadata is missing",
        ));
    };
    if let Some(i) = image {
        image_spec("image", i)?;
    }
    for v1::KeyValue { key, value } in envs {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(refuse(
                "envs",
                format_args!("{key:?} is not the name of a variable, or its value has a NUL byte"),
            ));
        }
    }
    for m in mounts {
        mount(m)?;
    }
    for v1::Device {
        container_path: _,
        host_path: _,
        permissions,
    } in devices
    {
        if let Some(bad) = permissions.chars().find(|p| !"rwm".contains(*p)) {
            return Err(refuse(
                "devices.permissions",
                format_args!("{bad:?} is none of r, w and m"),
            ));
        }
    }
    // It is joined to the sandbox's log directory, where it has to stay.
    let path = std::path::Path::new(log_path);
    if path.is_absolute()
        || path
            .components()
            .any(|c| c == std::path::Component::ParentDir)
    {
        return Err(refuse(
            "log_path",
            format_args!("{log_path:?} is not relative to the sandbox's log_directory"),
        ));
    }
    if let Some(v1::LinuxContainerConfig {
        resources,
        security_context,
    }) = linux
    {
        if let Some(r) = resources {
            limits("linux.resources", r)?;
        }
        if let Some(s) = security_context {
            container_security(s)?;
        }
    }
    Ok(())
}

pub(crate) fn image_spec(field: &str, i: &v1::ImageSpec) -> Checked {
    let v1::ImageSpec {
        image: _,
        // For people and plug-ins of other runtimes.
        annotations: _,
        user_specified_image: _,
        runtime_handler,
    } = i;
    handler(&format!("{field}.runtime_handler"), runtime_handler)
}

fn mount(m: &v1::Mount) -> Checked {
    let v1::Mount {
        container_path: _,
        host_path,
        readonly: _,
        // A label belongs to SELinux, which nothing here runs under.
        selinux_relabel: _,
        propagation,
        uid_mappings,
        gid_mappings,
        // With its conditions where mounts are made.
        recursive_read_only: _,
        image,
    } = m;
    let propagation: v1::MountPropagation = known("mounts.propagation", *propagation)?;
    for (field, list) in [
        ("uid_mappings", uid_mappings),
        ("gid_mappings", gid_mappings),
    ] {
        if let Some(v1::IdMapping {
            host_id: _,
            container_id: _,
            length: _,
        }) = list.first()
        {
            return Err(refuse(
                &format!("mounts.{field}"),
                "mappings of users need user namespaces, which are not supported by this runtime",
            ));
        }
    }
    if let Some(i) = image.as_ref().filter(|i| !i.image.is_empty()) {
        image_spec("mounts.image", i)?;
        if !host_path.is_empty() {
            return Err(refuse(
                "mounts.host_path",
                "a mount is of an image or of the host",
            ));
        }
        if propagation != v1::MountPropagation::PropagationPrivate {
            return Err(refuse(
                "mounts.propagation",
                "an image's mounts do not propagate",
            ));
        }
    }
    Ok(())
}

#[allow(deprecated)] // An old client's request must not be dropped in silence.
fn container_security(s: &v1::LinuxContainerSecurityContext) -> Checked {
    let v1::LinuxContainerSecurityContext {
        capabilities,
        privileged: _,
        namespace_options,
        selinux_options,
        run_as_user: _,
        run_as_group: _,
        run_as_username: _,
        readonly_rootfs: _,
        supplemental_groups: _,
        supplemental_groups_policy,
        no_new_privs: _,
        masked_paths: _,
        readonly_paths: _,
        seccomp: _,
        // Refused where a container's confinement is put together, with what the machine has.
        apparmor: _,
        apparmor_profile,
        seccomp_profile_path,
    } = s;
    let field = |f: &str| format!("linux.security_context.{f}");
    if let Some(v1::Capability {
        add_capabilities: _,
        drop_capabilities: _,
        add_ambient_capabilities: _,
    }) = capabilities
    {}
    unsupported(
        &field("selinux_options"),
        selinux_options.as_ref().is_some_and(confine::wants_label),
    )?;
    // Merge is the wider policy: one that is not understood must not become it.
    let _: v1::SupplementalGroupsPolicy = known(
        &field("supplemental_groups_policy"),
        *supplemental_groups_policy,
    )?;
    for (name, old) in [
        ("apparmor_profile", apparmor_profile),
        ("seccomp_profile_path", seccomp_profile_path),
    ] {
        let open = old.is_empty() || old == "unconfined";
        if !open {
            return Err(refuse(
                &field(name),
                "it is the old form of the profile; send the new one",
            ));
        }
    }
    match namespace_options {
        Some(n) => namespaces(n, true),
        None => Ok(()),
    }
}

fn limits(field: &str, r: &v1::LinuxContainerResources) -> Checked {
    let v1::LinuxContainerResources {
        cpu_period: _,
        cpu_quota: _,
        cpu_shares: _,
        memory_limit_in_bytes: _,
        oom_score_adj,
        cpuset_cpus: _,
        cpuset_mems: _,
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: _,
    } = r;
    if !(-1000..=1000).contains(oom_score_adj) {
        return Err(refuse(
            &format!("{field}.oom_score_adj"),
            format_args!("{oom_score_adj} is not between -1000 and 1000"),
        ));
    }
    for v1::HugepageLimit {
        page_size,
        limit: _,
    } in hugepage_limits
    {
        if page_size.is_empty() || page_size.contains('/') {
            return Err(refuse(
                &format!("{field}.hugepage_limits"),
                format_args!("{page_size:?} is not a size of pages"),
            ));
        }
    }
    // They are names of files in the container's cgroup.
    if let Some(bad) = unified
        .keys()
        .find(|k| k.is_empty() || k.contains('/') || k.starts_with('.'))
    {
        return Err(refuse(
            &format!("{field}.unified"),
            format_args!("{bad:?} is not a control file"),
        ));
    }
    Ok(())
}

pub(super) fn update_resources(r: &v1::UpdateContainerResourcesRequest) -> Checked {
    let v1::UpdateContainerResourcesRequest {
        container_id: _,
        linux,
        windows,
        // For plug-ins of other runtimes.
        annotations: _,
    } = r;
    unsupported("windows", windows.is_some())?;
    match linux {
        Some(l) => limits("linux", l),
        None => Ok(()),
    }
}

/// The pod CIDRs that the request names.
pub(super) fn runtime_config(r: &v1::UpdateRuntimeConfigRequest) -> Vec<String> {
    let v1::UpdateRuntimeConfigRequest { runtime_config } = r;
    let Some(v1::RuntimeConfig { network_config }) = runtime_config else {
        return vec![];
    };
    let Some(v1::NetworkConfig { pod_cidr }) = network_config else {
        return vec![];
    };
    pod_cidr
        .split(',')
        .filter(|c| !c.is_empty())
        .map(String::from)
        .collect()
}

pub(crate) fn pull_image(r: &v1::PullImageRequest) -> Checked {
    let v1::PullImageRequest {
        image,
        auth,
        // For runtimes that pull differently for each pod.
        sandbox_config: _,
    } = r;
    if let Some(v1::AuthConfig {
        username: _,
        password: _,
        auth: _,
        server_address: _,
        identity_token: _,
        registry_token: _,
    }) = auth
    {}
    match image {
        Some(i) if !i.image.is_empty() => image_spec("image", i),
        _ => Err(Status::invalid_argument("image: its name is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain_sandbox() -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata::default()),
            ..Default::default()
        }
    }

    fn plain_container() -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata::default()),
            ..Default::default()
        }
    }

    fn s(t: &str) -> String {
        t.to_string()
    }

    #[test]
    fn what_is_not_carried_out_in_a_sandbox_is_refused_by_name() {
        let linux = |f: fn(&mut v1::LinuxPodSandboxConfig)| {
            let mut l = v1::LinuxPodSandboxConfig::default();
            f(&mut l);
            v1::PodSandboxConfig {
                linux: Some(l),
                ..plain_sandbox()
            }
        };
        let namespaces = |n: v1::NamespaceOption| v1::PodSandboxConfig {
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(n),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..plain_sandbox()
        };
        let port = |p: v1::PortMapping| v1::PodSandboxConfig {
            port_mappings: vec![p],
            ..plain_sandbox()
        };
        let dns = |d: v1::DnsConfig| v1::PodSandboxConfig {
            dns_config: Some(d),
            ..plain_sandbox()
        };
        let table = [
            (
                "windows",
                v1::PodSandboxConfig {
                    windows: Some(Default::default()),
                    ..plain_sandbox()
                },
            ),
            ("metadata", v1::PodSandboxConfig::default()),
            (
                "dns_config.servers",
                dns(v1::DnsConfig {
                    servers: vec![s("a\nnameserver b")],
                    ..Default::default()
                }),
            ),
            (
                "dns_config.searches",
                dns(v1::DnsConfig {
                    searches: vec![s("")],
                    ..Default::default()
                }),
            ),
            (
                "dns_config.options",
                dns(v1::DnsConfig {
                    options: vec![s("a b")],
                    ..Default::default()
                }),
            ),
            (
                "port_mappings.protocol",
                port(v1::PortMapping {
                    protocol: 9,
                    ..Default::default()
                }),
            ),
            (
                "port_mappings.container_port",
                port(v1::PortMapping {
                    container_port: 70000,
                    ..Default::default()
                }),
            ),
            (
                "port_mappings.host_port",
                port(v1::PortMapping {
                    host_port: -1,
                    ..Default::default()
                }),
            ),
            (
                "port_mappings.host_ip",
                port(v1::PortMapping {
                    host_ip: s("lo"),
                    ..Default::default()
                }),
            ),
            (
                "linux.cgroup_parent",
                linux(|l| l.cgroup_parent = s("/a/../../b")),
            ),
            (
                "selinux_options",
                linux(|l| {
                    l.security_context = Some(v1::LinuxSandboxSecurityContext {
                        selinux_options: Some(v1::SeLinuxOption {
                            level: s("s0:c1"),
                            ..Default::default()
                        }),
                        ..Default::default()
                    });
                }),
            ),
            (
                "namespace_options.network",
                namespaces(v1::NamespaceOption {
                    network: 1,
                    ..Default::default()
                }),
            ),
            (
                "namespace_options.ipc",
                namespaces(v1::NamespaceOption {
                    ipc: 3,
                    ..Default::default()
                }),
            ),
            (
                "namespace_options.pid",
                namespaces(v1::NamespaceOption {
                    pid: 3,
                    ..Default::default()
                }),
            ),
            (
                "namespace_options.pid",
                namespaces(v1::NamespaceOption {
                    pid: 7,
                    ..Default::default()
                }),
            ),
            (
                "userns_options",
                namespaces(v1::NamespaceOption {
                    userns_options: Some(v1::UserNamespace {
                        gids: vec![Default::default()],
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            ),
            (
                "userns_options",
                namespaces(v1::NamespaceOption {
                    userns_options: Some(v1::UserNamespace {
                        mode: 1,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            ),
        ];
        for (field, config) in table {
            let e = sandbox(&config).expect_err(field);
            assert!(e.message().contains(field), "{field}: {}", e.message());
        }
        sandbox(&plain_sandbox()).unwrap();
        sandbox(&namespaces(v1::NamespaceOption {
            network: 2,
            userns_options: Some(v1::UserNamespace {
                mode: 2,
                ..Default::default()
            }),
            ..Default::default()
        }))
        .unwrap();
        let r = v1::RunPodSandboxRequest {
            config: Some(plain_sandbox()),
            runtime_handler: s("kata"),
        };
        assert!(
            run_pod_sandbox(&r)
                .unwrap_err()
                .message()
                .contains("runtime_handler")
        );
    }

    #[test]
    fn what_is_not_carried_out_in_a_container_is_refused_by_name() {
        let mounted = |m: v1::Mount| v1::ContainerConfig {
            mounts: vec![m],
            ..plain_container()
        };
        #[allow(deprecated)]
        let security = |f: fn(&mut v1::LinuxContainerSecurityContext)| {
            let mut c = v1::LinuxContainerSecurityContext::default();
            f(&mut c);
            v1::ContainerConfig {
                linux: Some(v1::LinuxContainerConfig {
                    security_context: Some(c),
                    resources: None,
                }),
                ..plain_container()
            }
        };
        let resources = |r: v1::LinuxContainerResources| v1::ContainerConfig {
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(r),
                security_context: None,
            }),
            ..plain_container()
        };
        let of_image = |i: v1::ImageSpec, more: v1::Mount| {
            mounted(v1::Mount {
                image: Some(i),
                ..more
            })
        };
        let spec = |handler: &str| v1::ImageSpec {
            image: s("x"),
            runtime_handler: s(handler),
            ..Default::default()
        };
        #[allow(deprecated)]
        let table = [
            (
                "windows",
                v1::ContainerConfig {
                    windows: Some(Default::default()),
                    ..plain_container()
                },
            ),
            ("metadata", v1::ContainerConfig::default()),
            (
                "cdi_devices",
                v1::ContainerConfig {
                    cdi_devices: vec![v1::CdiDevice { name: s("a/b=c") }],
                    ..plain_container()
                },
            ),
            (
                "image.runtime_handler",
                v1::ContainerConfig {
                    image: Some(spec("kata")),
                    ..plain_container()
                },
            ),
            (
                "envs",
                v1::ContainerConfig {
                    envs: vec![v1::KeyValue {
                        key: s("a=b"),
                        value: s(""),
                    }],
                    ..plain_container()
                },
            ),
            (
                "log_path",
                v1::ContainerConfig {
                    log_path: s("../../x"),
                    ..plain_container()
                },
            ),
            (
                "log_path",
                v1::ContainerConfig {
                    log_path: s("/etc/passwd"),
                    ..plain_container()
                },
            ),
            (
                "devices.permissions",
                v1::ContainerConfig {
                    devices: vec![v1::Device {
                        permissions: s("rx"),
                        ..Default::default()
                    }],
                    ..plain_container()
                },
            ),
            (
                "mounts.propagation",
                mounted(v1::Mount {
                    propagation: 5,
                    ..Default::default()
                }),
            ),
            (
                "mounts.uid_mappings",
                mounted(v1::Mount {
                    uid_mappings: vec![Default::default()],
                    ..Default::default()
                }),
            ),
            (
                "mounts.gid_mappings",
                mounted(v1::Mount {
                    gid_mappings: vec![Default::default()],
                    ..Default::default()
                }),
            ),
            (
                "mounts.image.runtime_handler",
                of_image(spec("kata"), v1::Mount::default()),
            ),
            (
                "mounts.host_path",
                of_image(
                    spec(""),
                    v1::Mount {
                        host_path: s("/x"),
                        ..Default::default()
                    },
                ),
            ),
            (
                "mounts.propagation",
                of_image(
                    spec(""),
                    v1::Mount {
                        propagation: 2,
                        ..Default::default()
                    },
                ),
            ),
            (
                "selinux_options",
                security(|c| {
                    c.selinux_options = Some(v1::SeLinuxOption {
                        r#type: s("t"),
                        ..Default::default()
                    })
                }),
            ),
            (
                "supplemental_groups_policy",
                security(|c| c.supplemental_groups_policy = 4),
            ),
            (
                "apparmor_profile",
                security(|c| c.apparmor_profile = s("runtime/default")),
            ),
            (
                "seccomp_profile_path",
                security(|c| c.seccomp_profile_path = s("localhost//x")),
            ),
            (
                "namespace_options.target_id",
                security(|c| {
                    c.namespace_options = Some(v1::NamespaceOption {
                        pid: 3,
                        ..Default::default()
                    })
                }),
            ),
            (
                "oom_score_adj",
                resources(v1::LinuxContainerResources {
                    oom_score_adj: 1001,
                    ..Default::default()
                }),
            ),
            (
                "hugepage_limits",
                resources(v1::LinuxContainerResources {
                    hugepage_limits: vec![v1::HugepageLimit {
                        page_size: s("../x"),
                        limit: 0,
                    }],
                    ..Default::default()
                }),
            ),
            (
                "unified",
                resources(v1::LinuxContainerResources {
                    unified: [(s("../memory.max"), s("1"))].into(),
                    ..Default::default()
                }),
            ),
        ];
        for (field, config) in table {
            let e = container(&config).expect_err(field);
            assert!(e.message().contains(field), "{field}: {}", e.message());
        }
        container(&plain_container()).unwrap();
        let update = v1::UpdateContainerResourcesRequest {
            windows: Some(Default::default()),
            ..Default::default()
        };
        assert!(
            update_resources(&update)
                .unwrap_err()
                .message()
                .contains("windows")
        );
    }
}
