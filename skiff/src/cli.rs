//! Flags and subcommands. Names are k3s's where k3s has one. Owns their shape and defaults; does nothing.

use clap::{Args, Parser, Subcommand};
use std::net::IpAddr;
use std::path::PathBuf;

/// The version Skiff says it is, and the Kubernetes version whose API it serves.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"), " (Kubernetes v1.36)");

/// Kubernetes in one small binary.
#[derive(Debug, Parser)]
#[command(name = "skiff", version = VERSION, about, max_term_width = 110, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a cluster: control plane, node agent and container runtime in one process
    Server(Box<ServerArgs>),
    /// Build, import, list and remove container images of a data directory
    Image(ImageArgs),
    /// Remove every container, mount, interface, table and cgroup of a data directory, and its state
    Reset(ResetArgs),
    /// Say what this machine lacks, and how to mend it
    Check(CheckArgs),
    /// Run the kubectl on PATH with this cluster's kubeconfig
    #[command(disable_help_flag = true)]
    Kubectl(KubectlArgs),
    /// Print the version
    Version,
    /// Print a shell's completion script
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `skiff server`.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct ServerArgs {
    /// Configuration file: YAML with the names of these flags as keys
    #[arg(
        short,
        long,
        env = "SKIFF_CONFIG_FILE",
        default_value = "/etc/skiff/config.yaml"
    )]
    pub config: PathBuf,
    /// Where all state and sockets live
    #[arg(short, long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub data_dir: PathBuf,
    /// Port of the API
    #[arg(long, env = "SKIFF_HTTPS_LISTEN_PORT", default_value_t = 6443)]
    pub https_listen_port: u16,
    /// Address that the API listens on
    #[arg(long, env = "SKIFF_BIND_ADDRESS", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Address that other machines and pods reach the API on [default: the node's]
    #[arg(long, env = "SKIFF_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    /// Name of this node [default: the host's name]
    #[arg(long, env = "SKIFF_NODE_NAME")]
    pub node_name: Option<String>,
    /// Address of this node [default: that of the interface with the default route]
    #[arg(short = 'i', long, env = "SKIFF_NODE_IP")]
    pub node_ip: Option<IpAddr>,
    /// Labels the node registers with (key=value)
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    pub node_label: Vec<String>,
    /// Taints the node registers with (key=value:Effect)
    #[arg(long, value_name = "TAINT", value_delimiter = ',')]
    pub node_taint: Vec<String>,
    /// Addresses of pods
    #[arg(long, env = "SKIFF_CLUSTER_CIDR", default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
    /// Addresses of services
    #[arg(long, env = "SKIFF_SERVICE_CIDR", default_value = "10.43.0.0/16")]
    pub service_cidr: String,
    /// Ports of NodePort services
    #[arg(long, default_value = "30000-32767")]
    pub service_node_port_range: String,
    /// Address of the cluster's DNS [default: the tenth of the service addresses]
    #[arg(long, env = "SKIFF_CLUSTER_DNS")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster's DNS names
    #[arg(long, env = "SKIFF_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// resolv.conf that pods and the cluster's DNS take their upstream name servers from
    #[arg(long, env = "SKIFF_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Where to write the administrator's kubeconfig
    #[arg(
        short = 'o',
        long,
        env = "SKIFF_KUBECONFIG_OUTPUT",
        default_value = "/etc/skiff/skiff.yaml"
    )]
    pub write_kubeconfig: PathBuf,
    /// Mode of that file
    #[arg(long, env = "SKIFF_KUBECONFIG_MODE", default_value = "600")]
    pub write_kubeconfig_mode: String,
    /// Further names and addresses for the API's certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Leave out a part: dns, service-proxy, scheduler, controllers
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    pub disable: Vec<String>,
    /// Run no containers here: control plane only
    #[arg(long)]
    pub disable_agent: bool,
    /// Setting of the kubelet by upstream's flag, such as pod-max-pids=100 or allowed-unsafe-sysctls=kernel.msg*
    #[arg(long, value_name = "NAME=VALUE")]
    pub kubelet_arg: Vec<String>,
    /// Start although this machine lacks cgroup controllers or seccomp: containers then get more than they were given
    #[arg(long)]
    pub allow_missing_isolation: bool,
    /// Secret that agents join with [default: one made at the first start]
    #[arg(short, long, env = "SKIFF_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Bytes that the cluster's objects may take on disk; when they are used up, only reads and deletes pass
    #[arg(long, env = "SKIFF_DATASTORE_QUOTA_BYTES", value_name = "BYTES", default_value_t = 2 << 30,
        value_parser = clap::value_parser!(u64).range(16 << 20..))]
    pub datastore_quota_bytes: u64,
    /// Bytes that the cluster's objects may take in memory [default: no bound of their own]
    #[arg(long, env = "SKIFF_DATASTORE_MEMORY_QUOTA_BYTES", value_name = "BYTES",
        value_parser = clap::value_parser!(u64).range(4 << 20..))]
    pub datastore_memory_quota_bytes: Option<u64>,
    /// Registries' mirrors, credentials and certificates
    #[arg(long, default_value = "/etc/skiff/registries.yaml")]
    pub private_registry: PathBuf,
    /// Say more: -v for each component's decisions, -vv for everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub v: u8,
    /// Logs as JSON lines
    #[arg(long)]
    pub log_json: bool,
}

/// `skiff image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The data directory whose images are meant
    #[arg(
        short,
        long,
        global = true,
        env = "SKIFF_DATA_DIR",
        default_value = "/var/lib/skiff"
    )]
    pub data_dir: PathBuf,
    /// Registries' mirrors, credentials and certificates
    #[arg(long, global = true, default_value = "/etc/skiff/registries.yaml")]
    pub private_registry: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// `skiff image ...`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image from a Dockerfile: FROM scratch or a local image, COPY, ADD, RUN, ...
    Build {
        /// Name of the image
        #[arg(short, long)]
        tag: String,
        /// The Dockerfile [default: Dockerfile in the context]
        #[arg(short, long)]
        file: Option<PathBuf>,
        /// Values of ARGs (NAME=value)
        #[arg(long, value_name = "ARG")]
        build_arg: Vec<String>,
        /// Network of RUN: default (its own, with a way out), none, or host (the machine's)
        #[arg(long, default_value = "default")]
        network: String,
        /// Memory that each RUN may use, such as 512m or 2g [default: three quarters of the machine's]
        #[arg(long)]
        memory: Option<String>,
        /// Build although this machine lacks cgroup controllers or seccomp: RUN then gets more than it should
        #[arg(long)]
        allow_missing_isolation: bool,
        /// Directory that COPY and ADD take from
        context: PathBuf,
    },
    /// Import images from a docker-archive or an OCI layout tar, plain, gzip or zstd
    Import {
        /// The archives
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Pull images from their registries
    Pull {
        /// Names
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Write an image to an archive that can be imported
    Save {
        /// Name or digest
        image: String,
        /// The archive (`-` is standard output)
        #[arg(short, long)]
        file: PathBuf,
    },
    /// List images
    Ls,
    /// Remove images
    Rm {
        /// Also images that containers use; these keep their files until they are removed
        #[arg(short, long)]
        force: bool,
        /// Names or digests
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// `skiff reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The data directory to empty
    #[arg(short, long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub data_dir: PathBuf,
    /// Keep images (what was pulled, imported and built)
    #[arg(long)]
    pub keep_images: bool,
}

/// `skiff check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The data directory that would be used
    #[arg(short, long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub data_dir: PathBuf,
}

/// `skiff kubectl`.
#[derive(Debug, Args)]
pub struct KubectlArgs {
    /// Everything after `kubectl`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<std::ffi::OsString>,
}
