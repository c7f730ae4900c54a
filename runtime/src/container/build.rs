//! Owns the translation from CRI's ContainerConfig and the image's config to a `ContainerSpec`. Pure: whatever must be
//! looked up (users, devices, layers) is in `Inputs`.

use super::spec::*;
use super::{caps, confine};
use crate::cgroup::devices::{self, Rule};
use crate::images::config::ExecConfig;
use crate::images::rootfs::{ResolvedUser, lookup_user_in};
use crate::sys;
use k8s_cri::v1;
use std::path::{Path, PathBuf};

/// PATH of a container whose image sets none (that of containerd and Docker).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything the translation needs besides the request.
pub struct Inputs<'a> {
    pub id: &'a str,
    pub config: &'a v1::ContainerConfig,
    pub sandbox: &'a v1::PodSandboxConfig,
    pub image: &'a ExecConfig,
    /// Layer directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// Layers of each mount that names an image, by index of the mount.
    pub image_mounts: Vec<Option<Vec<PathBuf>>>,
    /// /etc/passwd and /etc/group of the image.
    pub passwd: &'a str,
    pub group: &'a str,
    /// Directory of the container's writable layer.
    pub dir: PathBuf,
    pub state_dir: PathBuf,
    /// Directory of the sandbox's files: hostname, resolv.conf, shm.
    pub sandbox_dir: &'a Path,
    /// Devices of the request (and of the node, if privileged), looked up.
    pub devices: Vec<DeviceNode>,
    /// The node's name, for pods on the host network.
    pub node_hostname: &'a str,
}

/// The translation's result.
pub struct Built {
    pub spec: ContainerSpec,
    pub device_rules: Vec<Rule>,
}

/// The request's security context; an empty one if there is none.
pub fn security(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.clone())
        .unwrap_or_default()
}

/// The pod's namespace options (CRI: those of the container repeat them, except pid).
pub fn sandbox_namespaces(sandbox: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    sandbox
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default()
}

/// Command line by the rules of the Kubernetes documentation: command replaces the entrypoint and drops the image's
/// cmd; args replace cmd.
fn command_line(config: &v1::ContainerConfig, image: &ExecConfig) -> Result<Vec<String>, String> {
    let mut command = config.command.clone();
    let mut args = config.args.clone();
    if command.is_empty() {
        if args.is_empty() {
            args = image.cmd.clone();
        }
        if !(image.entrypoint.len() == 1 && image.entrypoint[0].is_empty()) {
            command = image.entrypoint.clone();
        }
    }
    command.extend(args);
    if command.is_empty() {
        return Err(
            "no command specified: set command or args, or use an image with an entrypoint".into(),
        );
    }
    Ok(command)
}

/// NAME=value lines where a later value replaces an earlier one in its place.
fn environment(parts: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for e in parts {
        let name = e.split_once('=').map_or(e.as_str(), |(n, _)| n);
        match out
            .iter_mut()
            .find(|o| o.split_once('=').is_some_and(|(n, _)| n == name))
        {
            Some(o) => *o = e,
            None => out.push(e),
        }
    }
    out
}

/// The identity by CRI's rules: user of the request, else of the image; groups by the policy.
fn user(
    sc: &v1::LinuxContainerSecurityContext,
    i: &Inputs<'_>,
) -> Result<(ResolvedUser, Vec<u32>), String> {
    let id = |v: i64, what: &str| {
        u32::try_from(v).map_err(|_| format!("{what} {v} is not between 0 and 4294967295"))
    };
    let mut text = match (&sc.run_as_user, sc.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            return Err("only one of run_as_user and run_as_username may be given".into());
        }
        (Some(u), _) => id(u.value, "runAsUser")?.to_string(),
        (None, name) => name.to_string(),
    };
    if let Some(g) = &sc.run_as_group {
        if text.is_empty() {
            return Err("user group is specified without user: set runAsUser too".into());
        }
        text = format!("{text}:{}", id(g.value, "runAsGroup")?);
    }
    if text.is_empty() {
        text = i.image.user.clone();
    }
    let found = lookup_user_in(&text, i.passwd, i.group).map_err(|e| e.to_string())?;
    // The primary group is listed too: without it, setgroups would drop what an image's file modes rely on (CVE-2022-36109).
    let mut groups = vec![found.gid];
    if sc.supplemental_groups_policy != v1::SupplementalGroupsPolicy::Strict as i32 {
        groups.extend(&found.additional_gids);
    }
    for g in &sc.supplemental_groups {
        groups.push(id(*g, "supplemental group")?);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|g| seen.insert(*g));
    Ok((found, groups))
}

/// A path without `.`, `..` and doubled slashes.
pub fn clean(p: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    for c in Path::new(p).components() {
        match c {
            std::path::Component::Normal(n) => out.push(n),
            std::path::Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

fn fs(target: &str, fstype: &str, flags: u64, data: &str, readonly: bool) -> MountSpec {
    let kind = MountKind::Fs(FsMount {
        fstype: fstype.into(),
        flags,
        data: data.into(),
        readonly,
    });
    MountSpec {
        target: target.into(),
        kind,
    }
}

fn bind(target: &str, source: PathBuf, readonly: bool) -> MountSpec {
    let b = BindMount {
        source,
        readonly,
        recursive_readonly: false,
        propagation: Propagation::Private,
        create_source: false,
        attrs: 0,
    };
    MountSpec {
        target: target.into(),
        kind: MountKind::Bind(b),
    }
}

fn mounts(i: &Inputs<'_>, privileged: bool, readonly_root: bool) -> Result<Vec<MountSpec>, String> {
    let ns = sandbox_namespaces(i.sandbox);
    let base = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
    let mut out = vec![
        fs("/proc", "proc", base, "", false),
        fs(
            "/dev",
            "tmpfs",
            libc::MS_NOSUID | libc::MS_STRICTATIME,
            "mode=755,size=65536k",
            false,
        ),
        fs(
            "/dev/pts",
            "devpts",
            libc::MS_NOSUID | libc::MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
            false,
        ),
        fs("/dev/mqueue", "mqueue", base, "", false),
        fs("/sys", "sysfs", base, "", !privileged),
        MountSpec {
            target: "/sys/fs/cgroup".into(),
            kind: MountKind::Cgroup {
                readonly: !privileged,
            },
        },
    ];
    let shm = if ns.ipc == v1::NamespaceMode::Node as i32 {
        PathBuf::from("/dev/shm")
    } else {
        i.sandbox_dir.join("shm")
    };
    out.push(bind("/dev/shm", shm, false));
    // The kubelet brings /etc/hosts; the other two are the sandbox's, shared by its containers.
    out.push(bind(
        "/etc/hostname",
        i.sandbox_dir.join("hostname"),
        readonly_root,
    ));
    out.push(bind(
        "/etc/resolv.conf",
        i.sandbox_dir.join("resolv.conf"),
        readonly_root,
    ));

    let mut wanted = Vec::new();
    for (n, m) in i.config.mounts.iter().enumerate() {
        let target = clean(&m.container_path);
        confine::check_mount_target(&target)
            .map_err(|e| format!("the mount of {:?}: {e}", m.host_path))?;
        if let Some(Some(layers)) = i.image_mounts.get(n) {
            wanted.push(MountSpec {
                target,
                kind: MountKind::Image {
                    layers: layers.clone(),
                },
            });
            continue;
        }
        let propagation = match v1::MountPropagation::try_from(m.propagation) {
            Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
            Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        if m.recursive_read_only && (!m.readonly || propagation != Propagation::Private) {
            return Err(format!(
                "mount at {}: recursiveReadOnly needs readOnly and no mount propagation",
                target.display()
            ));
        }
        if m.host_path.is_empty() {
            return Err(format!("mount at {}: no host path", target.display()));
        }
        wanted.push(MountSpec {
            target,
            kind: MountKind::Bind(BindMount {
                source: PathBuf::from(&m.host_path),
                readonly: m.readonly,
                recursive_readonly: m.recursive_read_only,
                propagation,
                create_source: true,
                attrs: 0,
            }),
        });
    }
    out.retain(|m| !wanted.iter().any(|w| w.target == m.target));
    out.extend(wanted);
    // Parents before children, whatever the order of the request (as containerd sorts): a volume at /dev has the
    // container's own /dev/pts on it, not over it.
    out.sort_by_key(|m| m.target.components().count());
    Ok(out)
}

/// Translates. The cgroup fields and the seccomp file are left for the caller, who makes them.
pub fn build(i: Inputs<'_>) -> Result<Built, String> {
    let sc = security(i.config);
    let ns = sandbox_namespaces(i.sandbox);
    let pid_ns = sc.namespace_options.clone().unwrap_or_default();
    let pid = match v1::NamespaceMode::try_from(pid_ns.pid) {
        Ok(v1::NamespaceMode::Node) => PidMode::Node,
        Ok(v1::NamespaceMode::Container) => PidMode::Container,
        Ok(v1::NamespaceMode::Target) => PidMode::Target(pid_ns.target_id.clone()),
        // CRI's default is the pod's namespace.
        Ok(v1::NamespaceMode::Pod) => PidMode::Pod,
        Err(_) => return Err(format!("unknown pid namespace mode {}", pid_ns.pid)),
    };
    let privileged = sc.privileged;
    let sandbox_privileged = i
        .sandbox
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .is_some_and(|s| s.privileged);
    if privileged && !sandbox_privileged {
        return Err("no privileged container allowed in sandbox".into());
    }
    confine::check_apparmor(sc.apparmor.as_ref())?;
    let (who, groups) = user(&sc, &i)?;
    let c = sc.capabilities.clone().unwrap_or_default();
    let caps = caps::sets(
        &c.add_capabilities,
        &c.drop_capabilities,
        &c.add_ambient_capabilities,
        privileged,
    )?;

    let hostname = if ns.network == v1::NamespaceMode::Node as i32 || i.sandbox.hostname.is_empty()
    {
        i.node_hostname
    } else {
        &i.sandbox.hostname
    };
    let mut env = vec![DEFAULT_PATH.to_string(), format!("HOSTNAME={hostname}")];
    if i.config.tty {
        env.push("TERM=xterm".into());
    }
    env.extend(i.image.env.iter().cloned());
    env.extend(
        i.config
            .envs
            .iter()
            .map(|e| format!("{}={}", e.key, e.value)),
    );

    let cwd = [&i.config.working_dir, &i.image.working_dir]
        .into_iter()
        .find(|d| !d.is_empty())
        .cloned()
        .unwrap_or_else(|| "/".into());
    let log_path = if i.sandbox.log_directory.is_empty() || i.config.log_path.is_empty() {
        None
    } else {
        Some(Path::new(&i.sandbox.log_directory).join(&i.config.log_path))
    };
    let mut device_rules = if privileged {
        devices::all_rules()
    } else {
        devices::default_rules()
    };
    for d in &i.config.devices {
        let target = clean(&d.container_path);
        for n in i.devices.iter().filter(|n| n.path.starts_with(&target)) {
            let access = if d.permissions.is_empty() {
                "rwm".into()
            } else {
                d.permissions.clone()
            };
            device_rules.push(Rule {
                kind: n.kind,
                major: Some(n.major),
                minor: Some(n.minor),
                access,
            });
        }
    }
    let resources = i.config.linux.as_ref().and_then(|l| l.resources.as_ref());
    let mounts = mounts(&i, privileged, sc.readonly_rootfs)?;
    let mut nodes = default_devices();
    for d in i.devices {
        nodes.retain(|n| n.path != d.path);
        nodes.push(d);
    }
    let spec = ContainerSpec {
        id: i.id.to_string(),
        root: RootSpec {
            layers: i.layers,
            dir: i.dir,
            readonly: sc.readonly_rootfs,
            plain_upper: false,
        },
        process: ProcessSpec {
            args: command_line(i.config, i.image)?,
            env: environment(env),
            cwd,
            uid: who.uid,
            gid: who.gid,
            groups,
            caps,
            no_new_privs: sc.no_new_privs && !privileged,
            seccomp: None,
            seccomp_flags: 0,
            oom_score_adj: resources.map(|r| r.oom_score_adj as i32),
            tty: i.config.tty,
        },
        mounts,
        devices: nodes,
        pid,
        cgroup_namespace: !privileged,
        cgroup_procs: vec![],
        oom_file: None,
        kill_file: None,
        masked_paths: confine::masked_paths(&sc),
        readonly_paths: confine::readonly_paths(&sc),
        log_path,
        stdin: i.config.stdin,
        stdin_once: i.config.stdin_once,
        state_dir: i.state_dir,
    };
    Ok(Built { spec, device_rules })
}

/// The devices every container has.
fn default_devices() -> Vec<DeviceNode> {
    [
        ("null", 3),
        ("zero", 5),
        ("full", 7),
        ("random", 8),
        ("urandom", 9),
    ]
    .into_iter()
    .map(|(name, minor)| (name, 1, minor))
    .chain([("tty", 5, 0)])
    .map(|(name, major, minor)| DeviceNode {
        path: Path::new("/dev").join(name),
        kind: 'c',
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    })
    .collect()
}

/// True if the container may use every device of the node.
pub fn is_privileged(config: &v1::ContainerConfig) -> bool {
    security(config).privileged
}

/// Looks a host device (or a directory of them) up. Not pure, used before `build`.
pub fn look_up_devices(
    host: &Path,
    container: &Path,
    out: &mut Vec<DeviceNode>,
) -> Result<(), String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let m = std::fs::metadata(host).map_err(|e| format!("device {}: {e}", host.display()))?;
    if m.is_dir() {
        let skip = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
        for e in std::fs::read_dir(host)
            .map_err(|e| format!("device directory {}: {e}", host.display()))?
            .flatten()
        {
            let name = e.file_name();
            let is_link = e.file_type().is_ok_and(|t| t.is_symlink());
            if !is_link && !skip.iter().any(|s| name == *s) && name != "console" {
                let _ = look_up_devices(&e.path(), &container.join(&name), out);
            }
        }
        return Ok(());
    }
    let kind = match m.file_type() {
        t if t.is_block_device() => 'b',
        t if t.is_char_device() => 'c',
        _ => return Err(format!("{} is not a device", host.display())),
    };
    out.push(DeviceNode {
        path: container.to_path_buf(),
        kind,
        major: libc::major(m.rdev()),
        minor: libc::minor(m.rdev()),
        mode: m.mode() & 0o7777,
        uid: m.uid(),
        gid: m.gid(),
    });
    Ok(())
}

/// nosuid, nodev and noexec for bind mounts that carry no programs.
pub const QUIET: u64 = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC;

#[cfg(test)]
mod tests {
    use super::*;

    fn v(s: &[&str]) -> Vec<String> {
        s.iter().map(|s| (*s).to_string()).collect()
    }

    fn inputs<'a>(
        config: &'a v1::ContainerConfig,
        sandbox: &'a v1::PodSandboxConfig,
        image: &'a ExecConfig,
    ) -> Inputs<'a> {
        Inputs {
            id: "c1",
            config,
            sandbox,
            image,
            layers: vec!["/l/1".into()],
            image_mounts: vec![],
            passwd: "root:x:0:0::/root:/bin/sh\napp:x:100:101::/app:\n",
            group: "root:x:0:\nwheel:x:10:app\n",
            dir: "/c/c1".into(),
            state_dir: "/s/c1".into(),
            sandbox_dir: Path::new("/s/p1"),
            devices: vec![],
            node_hostname: "node",
        }
    }

    fn image() -> ExecConfig {
        ExecConfig {
            entrypoint: v(&["/entry"]),
            cmd: v(&["a", "b"]),
            env: v(&["PATH=/x", "A=1"]),
            user: "app".into(),
            ..ExecConfig::default()
        }
    }

    #[test]
    fn commands_follow_the_kubernetes_table() {
        let table: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/entry", "a", "b"]),
            (&["c"], &[], &["c"]),
            (&[], &["z"], &["/entry", "z"]),
            (&["c"], &["z"], &["c", "z"]),
        ];
        for (command, args, want) in table {
            let config = v1::ContainerConfig {
                command: v(command),
                args: v(args),
                ..Default::default()
            };
            assert_eq!(command_line(&config, &image()).unwrap(), v(want));
        }
        assert!(command_line(&Default::default(), &ExecConfig::default()).is_err());
    }

    #[test]
    fn environment_and_identity_come_from_image_and_request() {
        let config = v1::ContainerConfig {
            envs: vec![v1::KeyValue {
                key: "A".into(),
                value: "2".into(),
            }],
            ..Default::default()
        };
        let sandbox = v1::PodSandboxConfig {
            hostname: "web-0".into(),
            ..Default::default()
        };
        let image = image();
        let p = build(inputs(&config, &sandbox, &image))
            .unwrap()
            .spec
            .process;
        assert_eq!(p.env, v(&["PATH=/x", "HOSTNAME=web-0", "A=2"]));
        assert_eq!((p.uid, p.gid, p.groups), (100, 101, vec![101, 10]));
    }

    #[test]
    fn strict_groups_leave_the_image_s_out_and_a_group_needs_a_user() {
        let with = |sc: v1::LinuxContainerSecurityContext| v1::ContainerConfig {
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(sc),
                resources: None,
            }),
            ..Default::default()
        };
        let sandbox = v1::PodSandboxConfig::default();
        let image = image();
        let config = with(v1::LinuxContainerSecurityContext {
            run_as_user: Some(v1::Int64Value { value: 100 }),
            supplemental_groups: vec![7, 101],
            supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict as i32,
            ..Default::default()
        });
        let p = build(inputs(&config, &sandbox, &image))
            .unwrap()
            .spec
            .process;
        assert_eq!((p.uid, p.groups), (100, vec![101, 7]));
        let config = with(v1::LinuxContainerSecurityContext {
            run_as_group: Some(v1::Int64Value { value: 5 }),
            ..Default::default()
        });
        assert!(
            build(inputs(&config, &sandbox, &image))
                .err()
                .unwrap()
                .contains("without user")
        );
    }

    #[test]
    fn requested_mounts_replace_the_usual_ones_and_parents_come_first() {
        let m = |path: &str| v1::Mount {
            container_path: path.into(),
            host_path: "/h".into(),
            ..Default::default()
        };
        let config = v1::ContainerConfig {
            mounts: vec![m("/data/sub"), m("/etc/resolv.conf/"), m("/data")],
            ..Default::default()
        };
        let sandbox = v1::PodSandboxConfig::default();
        let image = image();
        let spec = build(inputs(&config, &sandbox, &image)).unwrap().spec;
        let targets: Vec<String> = spec
            .mounts
            .iter()
            .map(|m| m.target.display().to_string())
            .collect();
        assert_eq!(
            targets,
            [
                "/proc",
                "/dev",
                "/sys",
                "/data",
                "/dev/pts",
                "/dev/mqueue",
                "/dev/shm",
                "/etc/hostname",
                "/data/sub",
                "/etc/resolv.conf",
                "/sys/fs/cgroup"
            ]
        );
        let config = v1::ContainerConfig {
            mounts: vec![m("/..")],
            ..Default::default()
        };
        assert!(build(inputs(&config, &sandbox, &image)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_cleaned_path_is_absolute_and_stays_clean(text in "[a-z./]{0,40}") {
            let once = clean(&text);
            proptest::prop_assert!(once.is_absolute());
            proptest::prop_assert!(!once.components().any(|c| matches!(c, std::path::Component::ParentDir)));
            proptest::prop_assert_eq!(clean(&once.to_string_lossy()), once);
        }
    }
}
