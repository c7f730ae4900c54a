//! The pod network of one node. Owns the bridge, each pod's veth pair and address, host ports and masquerading;
//! must not know Services or the API.
//!
//! A pod has a /32 and a default route through the gateway address, which sits on the (portless) bridge. The host
//! end of its veth is not a port of the bridge: the host routes the pod's /32 into it. So all traffic between pods
//! is routed, passes netfilter once in each direction without bridge-nf-call, and a pod that reaches itself through
//! a Service needs nothing special but a masquerade. Neighbours are permanent on both sides: no ARP, no proxy_arp.

mod ipam;
mod node;
mod node_ip;
mod rules;
mod types;

pub use ipam::{Ipam, Record};
pub use node::{Owner, cleanup, owns};
pub(crate) use node_ip::default_mtu;
pub use node_ip::node_ip;
pub(crate) use rules::{hairpin, hairpin_set};
pub use types::{HostPort, Netns, PodError, PodNetworkConfig, Protocol};

use crate::netlink::nft::{Element, Transaction};
use crate::netlink::route::{self, VethEnd, devconf};
use crate::netlink::{self, Messages, Socket};
use node::{DOOMED, enable_forwarding, sweep, warn_of_neighbours};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Beginning of the name of every interface of ours on the host.
pub const LINK_PREFIX: &str = "skiff";
/// Hardware address of the host end of every pod's veth. Each is a link of its own, so all can have the same.
pub(crate) const HOST_MAC: [u8; 6] = [0xee; 6];

/// How long ended pods gather before their links are removed.
const SWEEP_AFTER: Duration = Duration::from_millis(20);

struct State {
    route: Socket,
    nft: Socket,
    ipam: Ipam,
}

struct Inner {
    config: PodNetworkConfig,
    gateway: Ipv4Addr,
    mtu: u32,
    state: Mutex<State>,
    /// A sweep of doomed links is on its way. The sweeper has this and nothing else of ours: it must not keep the nft
    /// socket, and with it the table, open.
    sweeping: Arc<AtomicBool>,
}

/// The pod network. Cheap to clone.
#[derive(Clone)]
pub struct PodNetwork {
    inner: Arc<Inner>,
}

/// Name of the host end of a sandbox's veth: 15 characters, the same for the same id.
pub fn host_link_name(sandbox_id: &str) -> String {
    // FNV-1a: stable over versions, which std's hasher is not.
    let hash = sandbox_id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{LINK_PREFIX}{:010x}", hash >> 24)
}

pub(crate) fn pod_mac(address: Ipv4Addr) -> [u8; 6] {
    // As upstream's CNI plugins do: locally administered, and readable in a dump.
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Stands in the bridge's alias where a veth's has its sandbox.
const NODE: &str = "node";

fn alias(sandbox_id: &str, state_dir: &Path) -> String {
    let mut text = format!("{sandbox_id} of {}", state_dir.display());
    let mut end = text.len().min(250);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| PodError::Cancelled)?
}

impl PodNetwork {
    /// Sets the node up: bridge with gateway address, forwarding, routes, the nft table. What is there already stays;
    /// pods that were attached before keep their addresses and ports. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// When the kernel or the disk refuses, or the network is another state directory's.
    pub fn open(config: PodNetworkConfig) -> Result<Self, PodError> {
        let (Some(gateway), Some(_)) = (config.pod_cidr.nth(1), config.pod_cidr.nth(3)) else {
            return Err(PodError::TooSmall(config.pod_cidr));
        };
        let ipam = Ipam::open(&config.state_dir, config.pod_cidr)?;
        let mut route = Socket::route()?;
        let mut nft = Socket::netfilter()?;
        warn_of_neighbours(&config, &mut route, &mut nft);
        let mtu = match config.mtu {
            0 => node_ip::default_mtu(&mut route)?.unwrap_or(1500),
            mtu => mtu,
        };
        if let Owner::Another(alias) = node::owner(&mut route, &config.bridge, &config.state_dir)? {
            return Err(PodError::Taken(config.bridge, alias));
        }
        if let Err(e) = crate::egress::heal(&config.state_dir) {
            tracing::warn!(error = %e, "what a killed image build left of its network is still there");
        }
        enable_forwarding(&config)?;

        sweep(&mut route)?;
        let mut m = Messages::new();
        route::add_bridge(&mut m, &config.bridge, mtu);
        route.send_all(m)?;
        let index = route.index(&config.bridge)?;
        let mut m = Messages::new();
        route::set_alias(&mut m, index, &alias(NODE, &config.state_dir));
        route::no_ipv6_addresses(&mut m, index);
        route::add_address(&mut m, index, gateway, 32);
        route::set_up(&mut m, index);
        // Packets to pods that are not there must not leave by the node's default route.
        route::unreachable_route(&mut m, config.pod_cidr.address(), config.pod_cidr.prefix());
        // Without a route a local process is refused before the proxy's output hook sees its packet; with it, a
        // machine without any default route reaches Services too, and from an address that pods can answer.
        route::link_route(
            &mut m,
            config.service_cidr.address(),
            config.service_cidr.prefix(),
            index,
            Some(gateway),
        );
        route.send_all(m)?;

        nft.replace_table(&config.table, |t| {
            rules::build(t, &config);
            for (_, record) in ipam.records() {
                let elements: Vec<Element> = record
                    .ports
                    .iter()
                    .map(|p| p.element(record.address))
                    .collect();
                t.add_elements(rules::HOST_PORTS, &elements);
            }
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                gateway,
                mtu,
                state: Mutex::new(State { route, nft, ipam }),
                sweeping: Arc::new(AtomicBool::new(false)),
            }),
        })
    }

    /// The address of this node inside the pod network, which every pod's default route goes through.
    pub fn gateway(&self) -> Ipv4Addr {
        self.inner.gateway
    }

    /// MTU of pods in bytes.
    pub fn mtu(&self) -> u32 {
        self.inner.mtu
    }

    /// What it was opened with.
    pub fn config(&self) -> &PodNetworkConfig {
        &self.inner.config
    }

    /// Every attached sandbox with its address.
    pub fn attached(&self) -> Vec<(String, IpAddr)> {
        let state = self.inner.state.lock();
        state
            .ipam
            .records()
            .map(|(id, r)| (id.to_string(), IpAddr::V4(r.address)))
            .collect()
    }

    /// Releases what sandboxes that no longer are left behind. Call it once after start with every sandbox there is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn retain(&self, live: impl IntoIterator<Item = String>) -> Result<(), PodError> {
        let live: HashSet<String> = live.into_iter().collect();
        let dead: Vec<String> = {
            let state = self.inner.state.lock();
            state
                .ipam
                .records()
                .filter(|(id, _)| !live.contains(*id))
                .map(|(id, _)| id.to_string())
                .collect()
        };
        for id in dead {
            tracing::info!(sandbox = %id, "releasing the address of a sandbox that is gone");
            self.detach(&id).await?;
        }
        Ok(())
    }

    /// Puts a running sandbox with this address on record, where the record was lost (a deleted state directory). What
    /// is on record already stays as it is.
    ///
    /// # Errors
    /// When its interface is gone, or the address is another's: then the sandbox has to be made anew.
    pub async fn restore(
        &self,
        sandbox_id: &str,
        address: Ipv4Addr,
        ports: &[HostPort],
    ) -> Result<(), PodError> {
        let (this, id, ports) = (self.inner.clone(), sandbox_id.to_string(), ports.to_vec());
        blocking(move || {
            let mut state = this.state.lock();
            if state.ipam.get(&id).is_some() {
                return Ok(());
            }
            let name = host_link_name(&id);
            if state.route.link(&name)?.is_none() {
                return Err(PodError::Gone(format!(
                    "the interface {name} of sandbox {id}"
                )));
            }
            taken_port(&state.ipam, &id, &ports)?;
            state.ipam.adopt(&id, address, &ports)?;
            this.open_ports(&mut state, address, &ports)
        })
        .await
    }

    /// Can pods be attached? Looks whether bridge and nft table are still there.
    ///
    /// # Errors
    /// [`PodError::Gone`] names what is missing.
    pub async fn ready(&self) -> Result<(), PodError> {
        let this = self.inner.clone();
        blocking(move || {
            let mut state = this.state.lock();
            if !state.route.link(&this.config.bridge)?.is_some_and(|l| l.up) {
                return Err(PodError::Gone(format!("the bridge {}", this.config.bridge)));
            }
            if state.nft.table(&this.config.table)?.is_none() {
                return Err(PodError::Gone(format!(
                    "the nft table {}",
                    this.config.table
                )));
            }
            Ok(())
        })
        .await
    }

    /// Gives a sandbox its interface `eth0`, address, routes and host ports. A second call for the same sandbox makes
    /// them anew with the same address. Nothing is left behind when it fails.
    ///
    /// # Errors
    /// When no address is free, a host port is taken, or the kernel refuses.
    pub async fn attach(
        &self,
        sandbox_id: &str,
        netns: impl Into<Netns>,
        ports: &[HostPort],
    ) -> Result<Vec<IpAddr>, PodError> {
        let (this, id, netns, ports) = (
            self.inner.clone(),
            sandbox_id.to_string(),
            netns.into(),
            ports.to_vec(),
        );
        blocking(move || {
            let netns = netns.open()?;
            let known = this.state.lock().ipam.get(&id).is_some();
            if known {
                this.detach(&id, false)?;
            }
            match this.attach(&id, &netns, &ports) {
                Ok(address) => Ok(vec![IpAddr::V4(address)]),
                Err(e) => {
                    // A taken host port must not cost the sandbox that has it.
                    if let Err(undo) = this.detach(&id, true) {
                        tracing::warn!(sandbox = %id, error = %undo, "undoing a failed attach failed too");
                    }
                    Err(e)
                }
            }
        })
        .await
    }

    /// Takes everything of [`PodNetwork::attach`] back. A sandbox that has nothing is no error. The pod is unreachable
    /// and its address free when this returns; its interface goes some moments later, together with others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), PodError> {
        let (this, id) = (self.inner.clone(), sandbox_id.to_string());
        blocking(move || this.detach(&id, true)).await?;
        if !self.inner.sweeping.swap(true, Ordering::AcqRel) {
            let sweeping = self.inner.sweeping.clone();
            tokio::spawn(async move {
                tokio::time::sleep(SWEEP_AFTER).await;
                sweeping.store(false, Ordering::Release);
                let swept = blocking(|| {
                    // A socket of its own: attaching goes on meanwhile.
                    sweep(&mut Socket::route()?)
                })
                .await;
                if let Err(e) = swept {
                    tracing::warn!(error = %e, "interfaces of ended pods could not be removed");
                }
            });
        }
        Ok(())
    }

    /// Adds an address of the node's own (the cluster DNS address) to the bridge as a /32.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&self, address: Ipv4Addr) -> Result<(), PodError> {
        let mut state = self.inner.state.lock();
        let index = state.route.index(&self.inner.config.bridge)?;
        let mut m = Messages::new();
        route::add_address(&mut m, index, address, 32);
        Ok(state.route.send_all(m)?)
    }

    /// Removes every interface, route, table, kernel setting and file of this network.
    ///
    /// # Errors
    /// The first refusal; the rest is removed all the same.
    pub async fn cleanup(self) -> Result<(), PodError> {
        blocking(move || {
            let mut state = self.inner.state.lock();
            let swept = sweep(&mut state.route);
            let table = state.nft.remove_table(&self.inner.config.table);
            drop(state);
            let rest = cleanup(&self.inner.config.state_dir);
            swept?;
            table?;
            rest
        })
        .await
    }
}

impl Inner {
    fn attach(&self, id: &str, netns: &OwnedFd, ports: &[HostPort]) -> Result<Ipv4Addr, PodError> {
        let name = host_link_name(id);
        let address = {
            let mut state = self.state.lock();
            taken_port(&state.ipam, id, ports)?;
            let address = state.ipam.allocate(id, ports)?;
            let host = VethEnd {
                name: &name,
                mac: HOST_MAC,
            };
            let pod = VethEnd {
                name: "eth0",
                mac: pod_mac(address),
            };
            let alias = alias(id, &self.config.state_dir);
            let make = |state: &mut State| {
                let mut m = Messages::new();
                route::add_veth(&mut m, &host, &pod, netns.as_raw_fd(), self.mtu);
                state.route.send_all(m)
            };
            match make(&mut state) {
                // Left over from a crash between making it and remembering it.
                Err(e) if e.is(&[Errno::EXIST]) => {
                    let mut m = Messages::new();
                    route::delete_link(&mut m, &name);
                    state.route.send_all(m)?;
                    make(&mut state)?;
                }
                other => other?,
            }
            let index = state.route.index(&name)?;
            let mut m = Messages::new();
            route::set_alias(&mut m, index, &alias);
            route::no_ipv6_addresses(&mut m, index);
            route::set_conf(
                &mut m,
                index,
                &[
                    (devconf::FORWARDING, 1),
                    // A pod sends from its own address only.
                    (devconf::RP_FILTER, 1),
                    (devconf::SEND_REDIRECTS, 0),
                    // 127.0.0.1:<node port> works from the node; the nft table keeps pods out of the node's loopback.
                    (devconf::ROUTE_LOCALNET, 1),
                ],
            );
            route::set_up(&mut m, index);
            route::host_route(&mut m, address, index, self.gateway);
            route::permanent_neighbour(&mut m, index, address, pod_mac(address));
            state.route.send_all(m)?;
            address
        };
        netlink::inside(netns, || configure_pod(address, self.gateway))?;
        let mut state = self.state.lock();
        // The pod's end came up last and is ready at once; ours may lose the first answers for a moment.
        state.route.wait_operational(&name)?;
        self.open_ports(&mut state, address, ports)?;
        Ok(address)
    }

    fn open_ports(
        &self,
        state: &mut State,
        address: Ipv4Addr,
        ports: &[HostPort],
    ) -> Result<(), PodError> {
        let elements: Vec<Element> = ports.iter().map(|p| p.element(address)).collect();
        let mut t = Transaction::new(&self.config.table);
        t.add_elements(rules::HOST_PORTS, &elements);
        state.nft.commit(t)?;
        if ports.iter().any(|p| p.protocol == Protocol::Udp) {
            // Flows that passed untranslated before, of clients that were here earlier than the pod.
            state.nft.delete_flows(Protocol::Udp.number(), |f| {
                f.reply.source == f.original.destination
                    && ports
                        .iter()
                        .any(|p| p.host_port == f.original.destination_port)
            })?;
        }
        Ok(())
    }

    fn detach(&self, id: &str, release: bool) -> Result<(), PodError> {
        let mut state = self.state.lock();
        let Some(record) = state.ipam.get(id).cloned() else {
            return Ok(());
        };
        for port in &record.ports {
            let mut t = Transaction::new(&self.config.table);
            t.delete_elements(rules::HOST_PORTS, &[port.element(record.address)]);
            match state.nft.commit(t) {
                Err(e) if e.is(&[Errno::NOENT]) => {}
                other => other?,
            }
        }
        if record.ports.iter().any(|p| p.protocol == Protocol::Udp) {
            // Clients that keep on sending would stay tied to the address.
            state
                .nft
                .delete_flows(Protocol::Udp.number(), |f| f.reply.source == record.address)?;
        }
        let mut m = Messages::new();
        let name = host_link_name(id);
        if release {
            route::delete_route(&mut m, record.address, 32);
            route::set_group(&mut m, &name, DOOMED);
        } else {
            route::delete_link(&mut m, &name);
        }
        state.route.send_all(m)?;
        if release {
            state.ipam.release(id);
        }
        Ok(())
    }
}

fn taken_port(ipam: &Ipam, id: &str, ports: &[HostPort]) -> Result<(), PodError> {
    for (other, record) in ipam.records().filter(|(other, _)| *other != id) {
        for port in ports {
            if record.ports.iter().any(|p| p.front() == port.front()) {
                let (ip, protocol, number) = port.front();
                return Err(PodError::HostPortTaken(
                    format!("{ip}:{number}/{protocol:?}"),
                    other.to_string(),
                ));
            }
        }
    }
    Ok(())
}

/// Runs in the pod's namespace.
pub(crate) fn configure_pod(address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), PodError> {
    const LOOPBACK: u32 = 1;
    let mut socket = Socket::route()?;
    let index = socket.index("eth0")?;
    let mut m = Messages::new();
    route::set_up(&mut m, LOOPBACK);
    route::no_ipv6_addresses(&mut m, index);
    route::add_address(&mut m, index, address, 32);
    route::set_up(&mut m, index);
    route::link_route(&mut m, gateway, 32, index, None);
    route::permanent_neighbour(&mut m, index, gateway, HOST_MAC);
    route::default_route(&mut m, gateway, index);
    Ok(socket.send_all(m)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_the_kernel_and_tell_sandboxes_apart() {
        let a = host_link_name("0a1b");
        let b = host_link_name("0a1c");
        assert_eq!(a.len(), 15);
        assert_ne!(a, b);
        assert_eq!(a, host_link_name("0a1b"));
    }
}
