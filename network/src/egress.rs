//! A way out for one network namespace that is no pod's (a step of an image build): one interface, one address that
//! nobody else has, masquerading. Owns these and what is left of them when their process was killed; needs no server and
//! no pod network, and touches nothing of theirs.
//!
//! The interface goes with the namespace, and the nft table with the socket that owns it. A file for each, locked by its
//! process, finds what an older kernel or a switched-on forwarding leaves behind.

use crate::netlink::nft::{Expr, Hook, Reg, TABLE_OWNER, Transaction, network, saddr};
use crate::netlink::route::{self, VethEnd, devconf};
use crate::netlink::{self, Messages, Socket};
use crate::pod::{self, Netns, PodError};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// RFC 2544's network for tests of devices: routed nowhere, and next to never used in a LAN.
const NETWORK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const PREFIX: u8 = 16;
/// What the default route leads through. It is on no interface: the neighbour entry is permanent.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const TABLE_PREFIX: &str = "skiff-egress-";

/// A namespace's way out. It is taken back by [`Egress::close`], or as far as the process can by being dropped.
pub struct Egress {
    name: String,
    address: Ipv4Addr,
    dir: PathBuf,
    /// Locked as long as this lives.
    _own: File,
    nft: Option<Socket>,
}

/// Interfaces on which forwarding was switched on, for answers to come in.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Forwarding {
    switched: Vec<String>,
}

fn state(path: &Path) -> impl FnOnce(std::io::Error) -> PodError {
    let path = path.to_path_buf();
    move |e| PodError::State(path, e)
}

fn open_private(path: &Path) -> Result<File, PodError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(state(path))
}

/// Only one process at a time makes or takes back.
fn exclusively(dir: &Path) -> Result<File, PodError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(state(dir))?;
    let path = dir.join("lock");
    let lock = open_private(&path)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|e| PodError::State(path, e.into()))?;
    Ok(lock)
}

/// An address of the network that only this id leads to, unless a route says that it is another's.
fn address_of(id: &str, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    let hash = id.bytes().fold(0x811c_9dc5u32, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    let size = (1u32 << (32 - u32::from(PREFIX))) - 3;
    (0..size)
        .map(|i| Ipv4Addr::from(u32::from(NETWORK) + 2 + (hash.wrapping_add(i)) % size))
        .find(|a| !taken.contains(a))
}

/// Packets from the address leave with the node's.
fn masquerade(t: &mut Transaction, address: Ipv4Addr) {
    t.add_base_chain("postrouting", "nat", Hook::Postrouting, 100);
    let mut rule = vec![saddr(Reg(0))];
    rule.extend(network(Reg(0), true, address, 32));
    rule.push(Expr::Masquerade);
    t.add_rule("postrouting", &rule);
}

fn conf(device: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf")
        .join(device)
        .join("forwarding")
}

fn is_off(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|t| t.trim() == "0")
}

/// Forwarding is a matter of the interface where a packet comes in: ours, and the ones where answers do. Where the whole
/// node forwards (a server ran here), there is nothing to do.
fn switch_on(dir: &Path, socket: &mut Socket) -> Result<(), PodError> {
    if !is_off(&conf("all")) {
        return Ok(());
    }
    let outgoing: Vec<u32> = socket
        .routes()?
        .iter()
        .filter(|r| r.prefix == 0)
        .filter_map(|r| r.interface)
        .collect();
    let links = socket.links()?;
    let file = dir.join("forwarding.json");
    let mut record = read_forwarding(&file);
    for l in links.iter().filter(|l| outgoing.contains(&l.index)) {
        if !is_off(&conf(&l.name)) {
            continue;
        }
        if !record.switched.contains(&l.name) {
            record.switched.push(l.name.clone());
        }
        // Before the change: what is on record is undone.
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        std::fs::write(&file, bytes).map_err(state(&file))?;
        let mut m = Messages::new();
        route::set_conf(&mut m, l.index, &[(devconf::FORWARDING, 1)]);
        socket.send_all(m)?;
    }
    Ok(())
}

fn read_forwarding(file: &Path) -> Forwarding {
    std::fs::read(file)
        .ok()
        .and_then(|b| serde_json::from_slice(&b).ok())
        .unwrap_or_default()
}

/// Undone with the last one, unless the whole node forwards by now: then that is for its server to undo.
fn switch_off(dir: &Path, socket: &mut Socket) -> Result<(), PodError> {
    let file = dir.join("forwarding.json");
    if !file.exists() {
        return Ok(());
    }
    if is_off(&conf("all")) {
        for name in read_forwarding(&file).switched {
            let Some(link) = socket.link(&name)? else {
                continue;
            };
            let mut m = Messages::new();
            route::set_conf(&mut m, link.index, &[(devconf::FORWARDING, 0)]);
            socket.send_all(m)?;
        }
    }
    std::fs::remove_file(&file).map_err(state(&file))
}

/// Takes back what processes left that are gone. Needs the lock of `dir`. True when no other is alive.
fn sweep(dir: &Path, socket: &mut Socket) -> Result<bool, PodError> {
    let mut alone = true;
    for e in std::fs::read_dir(dir).map_err(state(dir))?.flatten() {
        let Ok(name) = e.file_name().into_string() else {
            continue;
        };
        if !name.starts_with(pod::LINK_PREFIX) {
            continue;
        }
        let file = File::open(e.path()).map_err(state(&e.path()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            alone = false;
            continue;
        }
        let mut m = Messages::new();
        route::delete_link(&mut m, &name);
        socket.send_all(m)?;
        Socket::netfilter()?.remove_table(&table(&name))?;
        std::fs::remove_file(e.path()).map_err(state(&e.path()))?;
    }
    Ok(alone)
}

fn table(link: &str) -> String {
    format!(
        "{TABLE_PREFIX}{}",
        link.trim_start_matches(pod::LINK_PREFIX)
    )
}

/// Takes back what killed builds left (interface, table, forwarding). `state_dir` is that of the pod network; one that is
/// not there is fine.
///
/// # Errors
/// The kernel or the disk refuses.
pub fn heal(state_dir: &Path) -> Result<(), PodError> {
    let dir = state_dir.join("egress");
    if !dir.exists() {
        return Ok(());
    }
    let _lock = exclusively(&dir)?;
    let mut socket = Socket::route()?;
    if sweep(&dir, &mut socket)? {
        switch_off(&dir, &mut socket)?;
    }
    Ok(())
}

impl Egress {
    /// Connects the namespace. Blocking; needs CAP_NET_ADMIN. Nothing is left behind when it fails.
    ///
    /// # Errors
    /// The kernel or the disk refuses.
    pub fn open(id: &str, netns: impl Into<Netns>, state_dir: &Path) -> Result<Self, PodError> {
        let netns = netns.into().open()?;
        let dir = state_dir.join("egress");
        let _lock = exclusively(&dir)?;
        let mut socket = Socket::route()?;
        sweep(&dir, &mut socket)?;
        let name = pod::host_link_name(id);
        let own = open_private(&dir.join(&name))?;
        rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| PodError::State(dir.join(&name), e.into()))?;
        let routes = socket.routes()?;
        let taken: Vec<Ipv4Addr> = routes.iter().map(|r| r.destination).collect();
        let address = address_of(id, &taken)
            .ok_or_else(|| PodError::Gone("a free address for a build".into()))?;
        let mut this = Self {
            name,
            address,
            dir,
            _own: own,
            nft: None,
        };
        match this.connect(&mut socket, &netns) {
            Ok(()) => Ok(this),
            Err(e) => {
                if let Err(undo) = this.take_back(&mut socket) {
                    tracing::warn!(error = %undo, "undoing a failed way out failed too");
                }
                Err(e)
            }
        }
    }

    /// The namespace's address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn connect(&mut self, socket: &mut Socket, netns: &OwnedFd) -> Result<(), PodError> {
        let mac = pod::pod_mac(self.address);
        let host = VethEnd {
            name: &self.name,
            mac: pod::HOST_MAC,
        };
        let inner = VethEnd { name: "eth0", mac };
        let mtu = pod::default_mtu(socket)?.unwrap_or(1500);
        let mut m = Messages::new();
        route::add_veth(&mut m, &host, &inner, netns.as_raw_fd(), mtu);
        socket.send_all(m)?;
        let index = socket.index(&self.name)?;
        let mut m = Messages::new();
        route::no_ipv6_addresses(&mut m, index);
        route::set_conf(
            &mut m,
            index,
            &[
                (devconf::FORWARDING, 1),
                (devconf::RP_FILTER, 1),
                (devconf::SEND_REDIRECTS, 0),
            ],
        );
        route::set_up(&mut m, index);
        route::link_route(&mut m, self.address, 32, index, None);
        route::permanent_neighbour(&mut m, index, self.address, mac);
        socket.send_all(m)?;
        let mut nft = Socket::netfilter()?;
        nft.add_own_table(&table(&self.name), |t| masquerade(t, self.address))?;
        self.nft = Some(nft);
        switch_on(&self.dir, socket)?;
        let address = self.address;
        netlink::inside(netns, || pod::configure_pod(address, GATEWAY))?;
        socket.wait_operational(&self.name)?;
        Ok(())
    }

    fn take_back(&mut self, socket: &mut Socket) -> Result<(), PodError> {
        let mut m = Messages::new();
        route::delete_link(&mut m, &self.name);
        let link = socket.send_all(m);
        let nft = match self.nft.take() {
            Some(mut nft) => nft.remove_table(&table(&self.name)),
            None => Ok(()),
        };
        link?;
        nft?;
        match std::fs::remove_file(self.dir.join(&self.name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(PodError::State(self.dir.join(&self.name), e));
            }
            _ => {}
        }
        if sweep(&self.dir, socket)? {
            switch_off(&self.dir, socket)?;
        }
        Ok(())
    }

    /// Takes everything back. Blocking.
    ///
    /// # Errors
    /// The kernel or the disk refuses; the next one, or [`heal`], tries again.
    pub fn close(mut self) -> Result<(), PodError> {
        let _lock = exclusively(&self.dir)?;
        self.take_back(&mut Socket::route()?)
    }
}

impl Socket {
    /// A new table that goes with this socket, where the kernel can do that (5.12 and newer).
    fn add_own_table(
        &mut self,
        name: &str,
        fill: impl Fn(&mut Transaction),
    ) -> Result<(), PodError> {
        let mut attempt = |flags: u32| {
            let mut t = Transaction::new(name);
            t.add_table(flags);
            fill(&mut t);
            self.commit(t)
        };
        match attempt(TABLE_OWNER) {
            Err(e) if e.is(&[Errno::OPNOTSUPP, Errno::INVAL]) => Ok(attempt(0)?),
            r => Ok(r?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_in_their_network_and_avoid_what_is_taken() {
        let first = address_of("a", &[]).expect("an address");
        let second = address_of("a", &[first]).expect("another");
        assert_ne!(first, second);
        for a in [first, second] {
            assert_eq!(a.octets()[..2], [198, 18]);
            assert!(a != GATEWAY && a != NETWORK && a.octets()[2..] != [255, 255]);
        }
        assert_eq!(address_of("a", &[]), Some(first));
    }
}
