//! Owns the resolved description of one container: everything the shim needs, nothing that must still be looked up.
//! It is plain data (written to disk as JSON, sent to the shim) and must not hold CRI types, so that records written
//! by one version are readable by the next.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which process-id namespace the container's processes live in (CRI's NamespaceMode).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub enum PidMode {
    /// One for each container; its first process is pid 1. Kubernetes' default.
    #[default]
    Container,
    /// The pod's (shareProcessNamespace): a child of the shim is its pid 1.
    Pod,
    /// The node's (hostPID).
    Node,
    /// That of another container of the pod (ephemeral debug containers with a target).
    Target(String),
}

/// Mount propagation as CRI names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// A file system inside the container that is made for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FsMount {
    pub fstype: String,
    /// MS_* flags of mount(2).
    pub flags: u64,
    pub data: String,
    /// Made read-only after mounting (per mount, because the superblock may be shared with the node).
    #[serde(default)]
    pub readonly: bool,
}

/// A host directory or file seen by the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BindMount {
    pub source: PathBuf,
    #[serde(default)]
    pub readonly: bool,
    /// Also everything mounted below is read-only.
    #[serde(default)]
    pub recursive_readonly: bool,
    #[serde(default)]
    pub propagation: Propagation,
    /// A missing source is made as a directory (what upstream's runtimes do for hostPath without a type).
    #[serde(default)]
    pub create_source: bool,
    /// nosuid, nodev, noexec as MOUNT_ATTR_* bits.
    #[serde(default)]
    pub attrs: u64,
}

/// What is mounted at a place of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MountKind {
    Fs(FsMount),
    Bind(BindMount),
    /// A read-only overlay of image layers, topmost first (image volumes).
    Image {
        layers: Vec<PathBuf>,
    },
    /// The cgroup file systems, as the container's cgroup namespace shows them.
    Cgroup {
        readonly: bool,
    },
}

/// One mount; they are made in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountSpec {
    /// Absolute path inside the container.
    pub target: PathBuf,
    pub kind: MountKind,
}

/// A device node made in the container's /dev.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceNode {
    pub path: PathBuf,
    /// 'c' or 'b'.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// The overlay root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootSpec {
    /// Layer directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// The container's writable directory: holds `upper`, `work` and the mount point `rootfs`.
    pub dir: PathBuf,
    pub readonly: bool,
    /// What is written is to be read as a layer (image builds).
    #[serde(default)]
    pub plain_upper: bool,
}

/// Capability sets as bit masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct CapSets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// One process: the container's first, or one that is exec'd into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessSpec {
    pub args: Vec<String>,
    /// NAME=value.
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub caps: CapSets,
    pub no_new_privs: bool,
    /// File that holds the compiled seccomp program; none means unconfined.
    pub seccomp: Option<PathBuf>,
    /// SECCOMP_FILTER_FLAG_* that the profile asks for.
    pub seccomp_flags: u32,
    /// Wished oom_score_adj; clamped (with a warning) to what the kernel lets us set.
    pub oom_score_adj: Option<i32>,
    pub tty: bool,
}

/// Everything about one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSpec {
    pub id: String,
    pub root: RootSpec,
    pub process: ProcessSpec,
    pub mounts: Vec<MountSpec>,
    pub devices: Vec<DeviceNode>,
    pub pid: PidMode,
    /// Own cgroup namespace (all but privileged containers).
    pub cgroup_namespace: bool,
    /// cgroup.procs files to join, in order.
    pub cgroup_procs: Vec<PathBuf>,
    /// memory.events (v2) or memory.oom_control (v1): both hold a line `oom_kill N`.
    pub oom_file: Option<PathBuf>,
    /// cgroup.kill (v2, hybrid) when there is one.
    pub kill_file: Option<PathBuf>,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    /// Absolute path of the CRI log; none discards the output.
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Directory of this container's state files.
    pub state_dir: PathBuf,
}

/// What the shim writes when a container's process runs (`started.json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    pub pid: i32,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
}

/// What is written when it ended (`exit.json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exited {
    /// Exit code, or 128 + signal.
    pub exit_code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    #[serde(default)]
    pub oom_killed: bool,
    /// Set when the end is not the process's own: StartError, Unknown.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}
