//! What callers of the pod network see: its settings, ports, errors. Pure data.

use super::LINK_PREFIX;
use crate::netlink::nft::{Element, Small, Value, port_field};
use crate::{Cidr, netlink};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Why the pod network failed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A state file.
    #[error("{path}: {1}; check the rights of the data directory and the space on its disk", path = .0.display())]
    State(PathBuf, #[source] std::io::Error),
    /// All addresses are taken.
    #[error(
        "no address is free in the pod network {0} ({1} are taken); give the node a larger pod CIDR"
    )]
    NoAddress(Cidr, usize),
    /// An id that cannot be a file name.
    #[error("{0:?} cannot be a sandbox id: letters, digits, '-', '_' and '.' only")]
    SandboxId(String),
    /// The namespace path.
    #[error("the network namespace {path}: {1}", path = .0.display())]
    Namespace(PathBuf, #[source] std::io::Error),
    /// A host port that another pod has.
    #[error("host port {0} is taken by sandbox {1}")]
    HostPortTaken(String, String),
    /// An address that cannot be put on record.
    #[error(
        "the address {0} is another pod's, or not of the pod network {1}; delete the pod, and it is made anew"
    )]
    Foreign(Ipv4Addr, Cidr),
    /// The network of this machine (or namespace) is another data directory's.
    #[error(
        "the pod network of this machine ({0}) is {1:?}; end that server and run `skiff reset` for its data directory first"
    )]
    Taken(String, String),
    /// Something of ours has been taken away.
    #[error(
        "{0} is gone: somebody has removed it; restart the server to set the pod network up again"
    )]
    Gone(String),
    /// The network is too small.
    #[error("the pod network {0} has no room for a gateway and a pod; use a /30 or larger")]
    TooSmall(Cidr),
    /// A kernel switch.
    #[error("{0}: {1}; set it by hand (sysctl) and start again")]
    Sysctl(&'static str, #[source] std::io::Error),
    /// The background task was cancelled.
    #[error("the work was cancelled because the process is stopping")]
    Cancelled,
}

/// Transport protocols of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// `TCP`, `UDP` or `SCTP`; None for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    pub(crate) fn field(self) -> [u8; 4] {
        [self.number(), 0, 0, 0]
    }
}

/// A port of the node that leads to a port of the pod (CRI PortMapping).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// Only this address of the node; None for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Addr>,
    /// Port of the node.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// Protocol of both.
    pub protocol: Protocol,
}

impl HostPort {
    pub(super) fn front(&self) -> (Ipv4Addr, Protocol, u16) {
        let ip = self.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        (ip, self.protocol, self.host_port)
    }

    pub(super) fn element(&self, pod: Ipv4Addr) -> Element {
        let (ip, protocol, port) = self.front();
        Element {
            key: Small::fields(&[ip.octets(), protocol.field(), port_field(port)]),
            value: Some(Value::Bytes(Small::fields(&[
                pod.octets(),
                port_field(self.container_port),
            ]))),
        }
    }
}

/// What the pod network needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetworkConfig {
    /// Where allocations are remembered (`<data dir>/agent/network`).
    pub state_dir: PathBuf,
    /// This node's pods (10.42.0.0/24).
    pub pod_cidr: Cidr,
    /// Every node's pods (10.42.0.0/16): traffic that stays inside is not masqueraded.
    pub cluster_cidr: Cidr,
    /// Cluster IPs (10.43.0.0/16): local processes need a route to them for the proxy to act on.
    pub service_cidr: Cidr,
    /// The bridge that carries the gateway address (`skiff0`).
    pub bridge: String,
    /// MTU of pods in bytes; 0 takes that of the interface with the default route.
    pub mtu: u32,
    /// Name of the nft table (`skiff-pods`).
    pub table: String,
}

impl PodNetworkConfig {
    /// The defaults of design.md below a state directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            pod_cidr: Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 24),
            cluster_cidr: Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 16),
            service_cidr: Cidr::new(Ipv4Addr::new(10, 43, 0, 0), 16),
            bridge: format!("{LINK_PREFIX}0"),
            mtu: 0,
            table: format!("{LINK_PREFIX}-pods"),
        }
    }
}

/// A pod's network namespace.
#[derive(Debug)]
pub enum Netns {
    /// `/proc/<pid>/ns/net` or a bind mount of it.
    Path(PathBuf),
    /// An open descriptor of it.
    Fd(OwnedFd),
}

impl From<PathBuf> for Netns {
    fn from(path: PathBuf) -> Self {
        Netns::Path(path)
    }
}
impl From<&Path> for Netns {
    fn from(path: &Path) -> Self {
        Netns::Path(path.to_path_buf())
    }
}
impl From<&str> for Netns {
    fn from(path: &str) -> Self {
        Netns::Path(path.into())
    }
}
impl From<OwnedFd> for Netns {
    fn from(fd: OwnedFd) -> Self {
        Netns::Fd(fd)
    }
}

impl Netns {
    pub(crate) fn open(self) -> Result<OwnedFd, PodError> {
        match self {
            Netns::Fd(fd) => Ok(fd),
            Netns::Path(path) => std::fs::File::open(&path)
                .map(OwnedFd::from)
                .map_err(|e| PodError::Namespace(path, e)),
        }
    }
}
