//! Owns running one RUN of an image build: a container like a pod's, made by the same shim and the same set-up, in a
//! sandbox that lives no longer than the step. Must not know Dockerfiles, and needs no server.
//!
//! Whatever happens to the build, nothing is left: the shim ends with the connection of whoever made it, the files are in
//! the build's work directory of the image store, which goes with the build or at the next opening of the store, and
//! cgroups of builds that are gone are removed by [`sweep`] (the next build, and the server's start).

use crate::cgroup::{Hierarchies, Resources, devices};
use crate::container::build::{self, Inputs};
use crate::container::spec::{ContainerSpec, FsMount, MountKind};
use crate::container::targets::ensure;
use crate::container::{seccomp, sysctl};
use crate::images::build::{Network, RunStep, StepRunner};
use crate::images::config::ExecConfig;
use crate::images::rootfs::{OverlayOptions, overlay_fd};
use crate::images::{ImageError, Result};
use crate::shim::client::{Event, Shim, ShimError};
use crate::shim::protocol::ShimConfig;
use crate::{PodNetwork, PodNetworkRequest, state, sys};
use k8s_cri::v1;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

/// The host name inside.
const HOSTNAME: &str = "skiff-build";
/// A fork bomb in a Dockerfile ends here.
const PIDS: i64 = 4096;
/// A line of output is cut here.
const LINE: usize = 64 << 10;

/// What all steps of a build have in common.
pub struct Runner {
    pub cgroups: Hierarchies,
    /// Cgroup of everything of the data directory; steps are below its `builds`.
    pub cgroup_parent: String,
    /// The program of the shims.
    pub shim_exe: PathBuf,
    /// Gives a step its way out. The netns in the request is valid as long as the step runs.
    pub network: Arc<dyn PodNetwork>,
    /// Bytes of memory that a step may use.
    pub memory_limit: i64,
    /// Ends the step that runs, and with it the build.
    pub cancel: CancellationToken,
    pub runtime: tokio::runtime::Handle,
}

/// Three quarters of the machine's memory: a build must not push its pods out.
pub fn default_memory_limit() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|l| {
        let rest = l.strip_prefix("MemTotal:")?;
        rest.split_whitespace().next()?.parse::<i64>().ok()
    });
    total.map_or(1 << 30, |kib| kib * 1024 / 4 * 3)
}

fn cgroup_of(parent: &str, name: &str) -> String {
    format!("{parent}/builds/{name}")
}

/// Removes the cgroups of steps whose build is gone: its work directory in the image store is. `images` is the store's
/// root, whose dead work must have been removed before.
pub fn sweep(cgroups: &Hierarchies, parent: &str, images: &Path) {
    let builds = format!("{parent}/builds");
    let mut names = std::collections::BTreeSet::new();
    for file in cgroups.procs_files(&builds) {
        let dir = file.parent().unwrap_or(Path::new("/"));
        for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if e.path().is_dir() {
                names.extend(e.file_name().into_string());
            }
        }
    }
    for name in names {
        let build = name.split('-').next().unwrap_or_default();
        if !build.is_empty() && images.join("tmp").join(build).exists() {
            continue;
        }
        let cgroup = cgroup_of(parent, &name);
        cgroups.kill_tree(&cgroup);
        if let Err(e) = cgroups.remove(&cgroup) {
            tracing::warn!(cgroup, error = %e, "the cgroup of a build that is gone cannot be removed");
        }
    }
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> ImageError {
    let what = what.to_string();
    move |e| ImageError::io(what, e)
}

fn invalid(e: impl std::fmt::Display) -> ImageError {
    ImageError::Invalid(e.to_string())
}

fn shim_error(what: &str) -> impl FnOnce(ShimError) -> ImageError {
    let what = what.to_string();
    move |e| match e {
        ShimError::Failed(m) => invalid(m),
        e => invalid(format_args!("{what}: {e}")),
    }
}

/// The name servers that a step can reach: those on the node's loopback are not there in a namespace of its own.
/// systemd-resolved keeps the real ones in a file of its own.
fn resolv_conf(network: Network, read: impl Fn(&str) -> Option<String>) -> String {
    let usable = |text: &str| {
        let kept: Vec<&str> = text
            .lines()
            .filter(|l| {
                let mut words = l.split_whitespace();
                let server = words.next() == Some("nameserver");
                let address = words.next().unwrap_or_default();
                !server || !(address.starts_with("127.") || address == "::1")
            })
            .collect();
        kept.iter()
            .any(|l| l.starts_with("nameserver"))
            .then(|| kept.join("\n") + "\n")
    };
    let node = read("/etc/resolv.conf");
    match network {
        Network::None => None,
        Network::Host => node,
        Network::Default => node
            .as_deref()
            .and_then(usable)
            .or_else(|| usable(&read("/run/systemd/resolve/resolv.conf")?)),
    }
    .unwrap_or_default()
}

/// The request that a kubelet would send for such a container.
fn request(step: &RunStep<'_>, hosts: &Path) -> (v1::PodSandboxConfig, v1::ContainerConfig) {
    let network = if step.network == Network::Host {
        v1::NamespaceMode::Node
    } else {
        v1::NamespaceMode::Pod
    };
    let namespaces = v1::NamespaceOption {
        network: network as i32,
        pid: v1::NamespaceMode::Container as i32,
        ipc: v1::NamespaceMode::Pod as i32,
        ..Default::default()
    };
    let sandbox = v1::PodSandboxConfig {
        hostname: HOSTNAME.into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect();
    let security = v1::LinuxContainerSecurityContext {
        // An image has no use for device nodes, and a layer with one is a way to the machine's disks.
        capabilities: Some(v1::Capability {
            drop_capabilities: vec!["MKNOD".into()],
            ..Default::default()
        }),
        namespace_options: Some(namespaces),
        run_as_user: Some(v1::Int64Value {
            value: step.uid.into(),
        }),
        run_as_group: Some(v1::Int64Value {
            value: step.gid.into(),
        }),
        supplemental_groups: step.groups.iter().map(|g| i64::from(*g)).collect(),
        supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict as i32,
        masked_paths: strings(&MASKED),
        readonly_paths: strings(&READ_ONLY),
        seccomp: Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::RuntimeDefault as i32,
            localhost_ref: String::new(),
        }),
        ..Default::default()
    };
    let container = v1::ContainerConfig {
        command: step.argv.to_vec(),
        working_dir: step.workdir.to_string(),
        envs: step
            .env
            .iter()
            .map(|(key, value)| v1::KeyValue {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        mounts: vec![v1::Mount {
            container_path: "/etc/hosts".into(),
            host_path: hosts.display().to_string(),
            ..Default::default()
        }],
        linux: Some(v1::LinuxContainerConfig {
            // The first to go when the node runs out of memory.
            resources: Some(v1::LinuxContainerResources {
                oom_score_adj: 1000,
                ..Default::default()
            }),
            security_context: Some(security),
        }),
        ..Default::default()
    };
    (sandbox, container)
}

/// What the kubelet masks and write-protects for procMount Default (upstream: pkg/securitycontext).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Places of a step's files.
struct Places {
    /// The sandbox's: the shim's socket, hosts, resolv.conf.
    sandbox: PathBuf,
    /// `upper`, `work` and the mount point.
    root: PathBuf,
    /// Mount points that the image lacks. A layer of its own below the step's, so that they never become part of it.
    stub: PathBuf,
    state: PathBuf,
}

impl Places {
    fn make(scratch: &Path, upper: &Path) -> io::Result<Self> {
        let p = Self {
            sandbox: scratch.join("sandbox"),
            root: scratch.join("root"),
            stub: scratch.join("stub"),
            state: scratch.join("state"),
        };
        for d in [scratch, &p.sandbox, &p.root, &p.state] {
            state::private_dir(d)?;
        }
        for d in [
            &p.stub,
            &scratch.join("stubwork"),
            &p.root.join("work"),
            &p.root.join("rootfs"),
        ] {
            std::fs::create_dir(d)?;
            set_mode(d, 0o755)?;
        }
        std::fs::rename(upper, p.root.join("upper"))?;
        Ok(p)
    }
}

fn set_mode(p: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(p, std::fs::Permissions::from_mode(mode))
}

/// Makes the mount points of `spec` that its layers lack, in `stub`.
fn make_mount_points(spec: &ContainerSpec, stub: &Path, work: &Path) -> Result<()> {
    let root = overlay_fd(
        &spec.root.layers,
        Some((stub, work)),
        OverlayOptions {
            volatile: true,
            ..Default::default()
        },
    )?;
    for m in &spec.mounts {
        let dir = match &m.kind {
            MountKind::Bind(b) => b.source.is_dir(),
            _ => true,
        };
        ensure(&root, &m.target, dir).map_err(failed(format_args!(
            "make the mount point {}",
            m.target.display()
        )))?;
    }
    drop(root);
    plain(stub).map_err(failed("mount points of RUN"))
}

/// Gives what was made there the usual modes and no time of its own, whatever the umask: a directory on the way may be
/// copied into the step's layer.
fn plain(dir: &Path) -> io::Result<()> {
    for e in std::fs::read_dir(dir)? {
        let (path, kind) = {
            let e = e?;
            (e.path(), e.file_type()?)
        };
        if kind.is_dir() {
            plain(&path)?;
        }
        if kind.is_dir() || kind.is_file() {
            set_mode(&path, if kind.is_dir() { 0o755 } else { 0o644 })?;
            let times = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            std::fs::File::open(&path)?.set_times(times)?;
        }
    }
    Ok(())
}

impl StepRunner for Runner {
    fn run(&self, step: &RunStep<'_>, output: &dyn Fn(&str)) -> Result<()> {
        let upper = step.upper.to_path_buf();
        let places = Places::make(&step.scratch, &upper).map_err(failed("make room for RUN"))?;
        let done = self.runtime.block_on(self.sandboxed(step, &places, output));
        std::fs::rename(places.root.join("upper"), &upper)
            .map_err(failed("take the layer of RUN"))?;
        done
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

impl Runner {
    async fn sandboxed(
        &self,
        step: &RunStep<'_>,
        places: &Places,
        output: &dyn Fn(&str),
    ) -> Result<()> {
        let read = |p: &str| std::fs::read_to_string(p).ok();
        let hosts = match step.network {
            Network::Host => read("/etc/hosts").unwrap_or_default(),
            _ => format!("127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost\n"),
        };
        let resolv = resolv_conf(step.network, read);
        if resolv.is_empty() && step.network == Network::Default {
            output(
                "warning: this machine names no name server that a container can reach: names do not resolve in RUN",
            );
        }
        for (name, text) in [
            ("hostname", &format!("{HOSTNAME}\n")),
            ("hosts", &hosts),
            ("resolv.conf", &resolv),
        ] {
            state::write_visible(&places.sandbox.join(name), text.as_bytes())
                .map_err(failed(format_args!("write {name} of RUN")))?;
        }
        let host_network = step.network == Network::Host;
        let config = ShimConfig {
            sandbox_id: step.id.clone(),
            hostname: HOSTNAME.into(),
            host_network,
            sysctls: sysctl::defaults(host_network),
            cgroup_mounts: self.cgroups.mounts().into_iter().map(Into::into).collect(),
            tied: true,
            ..Default::default()
        };
        let (shim, pid) = Shim::spawn(&places.sandbox, &self.shim_exe, &config)
            .map_err(shim_error("start the container of RUN"))?;
        let done = self.in_shim(step, places, &shim, pid, output).await;
        if shim.shutdown().await.is_err() {
            shim.kill_process();
        }
        if step.network == Network::Default
            && let Err(e) = self
                .network
                .detach(self.network_request(&step.id, pid))
                .await
        {
            tracing::warn!(error = %e, "the network of RUN was not given back");
        }
        let cgroup = cgroup_of(&self.cgroup_parent, &step.id);
        self.cgroups.kill(&cgroup);
        if let Err(e) = self.cgroups.remove(&cgroup) {
            tracing::warn!(cgroup, error = %e, "the cgroup of RUN cannot be removed");
        }
        done
    }

    fn network_request(&self, id: &str, pid: i32) -> PodNetworkRequest {
        PodNetworkRequest {
            sandbox_id: id.to_string(),
            netns: PathBuf::from(format!("/proc/{pid}/ns/net")),
            namespace: "image".into(),
            name: "build".into(),
            uid: id.to_string(),
            hostname: HOSTNAME.into(),
            port_mappings: vec![],
            annotations: BTreeMap::new(),
        }
    }

    async fn in_shim(
        &self,
        step: &RunStep<'_>,
        places: &Places,
        shim: &Shim,
        pid: i32,
        output: &dyn Fn(&str),
    ) -> Result<()> {
        let talk = || shim_error("talk to the container of RUN");
        // From here on the shim ends when this process does.
        let mut subscription = shim.subscribe().await.map_err(talk())?;
        subscription.answer().await.map_err(talk())?;
        let mut events = subscription.events();
        if step.network == Network::Default {
            self.network
                .attach(self.network_request(&step.id, pid))
                .await
                .map_err(|e| {
                    invalid(format_args!(
                        "RUN gets no network ({e}); build with --network none if it needs none, or with --network host"
                    ))
                })?;
        }
        let spec = self.spec(step, places)?;
        let cgroup = cgroup_of(&self.cgroup_parent, &step.id);
        self.limit(&cgroup).map_err(failed(format_args!(
            "set up the cgroup {cgroup} (`skiff check` says what the machine lacks)"
        )))?;
        let (reader, writer) = sys::pipe().map_err(failed("make a pipe for RUN"))?;
        let second = writer.try_clone().map_err(failed("make a pipe for RUN"))?;
        sys::set_nonblocking(reader.as_fd(), true).map_err(failed("make a pipe for RUN"))?;
        let started = async {
            shim.start_with(&spec, [Some(writer), Some(second)])
                .await
                .map_err(shim_error("start the command of RUN"))
        };
        let ended = async {
            started.await?;
            loop {
                match events.next().await.map_err(talk())? {
                    Event::Exited { id, exited } if id == spec.id => return Ok(exited),
                    _ => {}
                }
            }
        };
        let said = async {
            lines(reader, output)
                .await
                .map_err(failed("read the output of RUN"))
        };
        let both = async {
            // A command that did not start closes its output too.
            let (ended, said) = tokio::join!(ended, said);
            said.and(ended)
        };
        let exited = tokio::select! {
            r = both => r?,
            () = self.cancel.cancelled() => return Err(invalid("the build was interrupted")),
        };
        match exited.exit_code {
            0 => Ok(()),
            n if exited.oom_killed => Err(invalid(format_args!(
                "the command ran out of memory (limit {} MiB, see --memory) and returned the code {n}",
                self.memory_limit >> 20
            ))),
            n => Err(invalid(format_args!(
                "the command returned a non-zero code: {n}"
            ))),
        }
    }

    fn limit(&self, cgroup: &str) -> io::Result<()> {
        self.cgroups.create(cgroup)?;
        let resources = Resources {
            cpu_shares: 512,
            memory_limit: self.memory_limit,
            memory_swap_limit: self.memory_limit,
            pids_limit: PIDS,
            ..Default::default()
        };
        self.cgroups.apply(cgroup, &resources)?;
        self.cgroups
            .apply_devices(cgroup, &devices::default_rules())
    }

    fn spec(&self, step: &RunStep<'_>, places: &Places) -> Result<ContainerSpec> {
        let (sandbox, config) = request(step, &places.sandbox.join("hosts"));
        let node_hostname =
            std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mut spec = build::build(Inputs {
            id: &step.id,
            config: &config,
            sandbox: &sandbox,
            image: &ExecConfig::default(),
            layers: step.layers.clone(),
            image_mounts: vec![],
            // The step's user is resolved already.
            passwd: "",
            group: "",
            dir: places.root.clone(),
            state_dir: places.state.clone(),
            sandbox_dir: &places.sandbox,
            devices: vec![],
            node_hostname: node_hostname.trim(),
        })
        .map_err(invalid)?
        .spec;
        let cgroup = cgroup_of(&self.cgroup_parent, &step.id);
        spec.cgroup_procs = self.cgroups.procs_files(&cgroup);
        spec.oom_file = self.cgroups.oom_file(&cgroup);
        spec.kill_file = self.cgroups.kill_file(&cgroup);
        let filter = places.state.join("seccomp.bpf");
        let program = seccomp::compile_default(spec.process.caps.bounding).map_err(invalid)?;
        state::write(&filter, &program).map_err(failed("write the seccomp filter"))?;
        spec.process.seccomp = Some(filter);
        // What the step writes becomes a layer: no redirects, no copies of metadata alone.
        spec.root.plain_upper = true;
        // A sandbox has its /dev/shm on the node, for all its containers; the step's goes with its mount namespace.
        for m in spec
            .mounts
            .iter_mut()
            .filter(|m| m.target == Path::new("/dev/shm"))
        {
            m.kind = MountKind::Fs(FsMount {
                fstype: "tmpfs".into(),
                flags: libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
                data: "mode=1777,size=65536k".into(),
                readonly: false,
            });
        }
        let work = step.scratch.join("stubwork");
        make_mount_points(&spec, &places.stub, &work)?;
        spec.root.layers.insert(0, places.stub.clone());
        Ok(spec)
    }
}

/// Hands the output on line by line, to its end.
async fn lines(reader: OwnedFd, output: &dyn Fn(&str)) -> io::Result<()> {
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(reader)?;
    let (mut line, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        let n = pipe.read(&mut buffer).await?;
        for b in &buffer[..n] {
            if *b != b'\n' {
                line.push(*b);
            }
            if *b == b'\n' || line.len() >= LINE {
                output(&String::from_utf8_lossy(&line));
                line.clear();
            }
        }
        if n == 0 {
            if !line.is_empty() {
                output(&String::from_utf8_lossy(&line));
            }
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_the_node_s_loopback_are_not_given_to_a_step() {
        let stub = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n";
        let real = "nameserver 192.0.2.53\nsearch lan\n";
        let with = |network, resolved: Option<&'static str>, node: &'static str| {
            resolv_conf(network, |p| match p {
                "/etc/resolv.conf" => Some(node.into()),
                _ => resolved.map(String::from),
            })
        };
        assert_eq!(with(Network::Default, None, real), real);
        assert_eq!(with(Network::Default, Some(real), stub), real);
        assert_eq!(with(Network::Default, None, stub), "");
        assert_eq!(with(Network::Host, None, stub), stub);
        assert_eq!(with(Network::None, None, real), "");
        assert_eq!(
            with(
                Network::Default,
                None,
                "nameserver 127.0.0.1\nnameserver 192.0.2.1\n"
            ),
            "nameserver 192.0.2.1\n"
        );
    }
}
