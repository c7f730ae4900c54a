//! What a machine's kernel can do for pods and Services, found out by doing it in a network namespace made for that
//! and gone after it. Changes nothing else.
#![allow(unsafe_code)] // unshare(2), on a thread of its own: see `namespace`.

use crate::netlink::nft::Element;
use crate::netlink::route::{self, VethEnd};
use crate::netlink::{Messages, Socket};
use crate::pod::Protocol;
use crate::proxy::plan::{Action, Front, Rule, Scope};
use crate::proxy::program::Programmer;
use crate::proxy::rules::Rules;
use crate::proxy::{ProxyConfig, ProxyError};
use rustix::thread::UnshareFlags;
use skiff_client::ObjectKey;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// One ability.
#[derive(Debug)]
pub struct Finding {
    /// What was tried.
    pub what: &'static str,
    /// Why it is missing, with the mend.
    pub missing: Option<String>,
}

fn namespace() -> std::io::Result<OwnedFd> {
    // SAFETY: only the network namespace of the calling thread changes, which ends soon; no descriptor's meaning does.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
}

fn links() -> Result<(), crate::netlink::Error> {
    let mut socket = Socket::route()?;
    let mut m = Messages::new();
    route::add_bridge(&mut m, "probe0", 1500);
    socket.send_all(m)
}

fn veth(own: &OwnedFd) -> Result<(), crate::netlink::Error> {
    let end = |name, last| VethEnd {
        name,
        mac: [2, 0, 0, 0, 0, last],
    };
    let mut m = Messages::new();
    let (a, b) = (end("probe1", 1), end("probe2", 2));
    route::add_veth(&mut m, &a, &b, own.as_raw_fd(), 1500);
    Socket::route()?.send_all(m)
}

fn services() -> Result<(), ProxyError> {
    let mut rules = Rules::new();
    let front = |protocol| Front {
        address: Ipv4Addr::new(10, 43, 0, 1),
        protocol,
        port: 1,
    };
    let rule = |protocol, action| Rule {
        scope: Scope::Cluster,
        front: front(protocol),
        action,
        sources: Arc::new([]),
    };
    let targets = Arc::new([(Ipv4Addr::new(10, 42, 0, 2), 1)]);
    let balance = Action::Balance {
        targets,
        affinity: Some(10),
    };
    rules.update([(
        ObjectKey::new("probe", "probe"),
        vec![
            rule(Protocol::Tcp, balance),
            rule(Protocol::Udp, Action::Reject),
        ],
    )]);
    // Also lists connections, which needs conntrack's netlink.
    Programmer::new(ProxyConfig::new("probe"))?.replace(&rules)
}

/// Tries everything that pods and Services need. Needs root.
pub fn probe() -> Vec<Finding> {
    let finding = |what, missing: Option<String>| Finding { what, missing };
    let work = || {
        let own = match namespace() {
            Ok(own) => own,
            Err(e) => {
                let why =
                    format!("{e}; run as root (CAP_SYS_ADMIN), on a kernel with CONFIG_NET_NS");
                return vec![finding("network namespaces", Some(why))];
            }
        };
        let mend = |e: &dyn std::fmt::Display, module: &str| {
            format!("{e}; run: modprobe {module}, and have it loaded at boot (/etc/modules-load.d)")
        };
        vec![
            finding("network namespaces", None),
            finding("bridges", links().err().map(|e| mend(&e, "bridge"))),
            finding("veth pairs", veth(&own).err().map(|e| mend(&e, "veth"))),
            finding(
                "nf_tables with address translation",
                services().err().map(|e| {
                    mend(&e, "-a nf_tables nft_chain_nat nft_nat nft_masq nft_numgen nft_fib_ipv4 nft_reject_ipv4 nft_ct nf_conntrack_netlink")
                }),
            ),
        ]
    };
    std::thread::scope(|s| {
        s.spawn(work).join().unwrap_or_else(|_| {
            vec![finding(
                "network namespaces",
                Some("the test itself failed".into()),
            )]
        })
    })
}

/// Elements have to be small: thousands of them are loaded at once.
const _: () = assert!(size_of::<Element>() <= 64);
