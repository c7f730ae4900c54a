//! rtnetlink: links, addresses, routes, neighbours. Owns the message shapes (linux/rtnetlink.h, if_link.h); decides
//! nothing about which of them a pod needs.

use super::{
    Error, Messages, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Result,
    Socket, attr_of, attrs, read_u16, read_u32, text,
};
use rustix::io::Errno;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::time::Duration;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// Per-interface IPv4 settings that can be set by netlink (indexes of linux/ip.h).
pub mod devconf {
    /// `forwarding`
    pub const FORWARDING: u16 = 1;
    /// `send_redirects`
    pub const SEND_REDIRECTS: u16 = 6;
    /// `rp_filter`
    pub const RP_FILTER: u16 = 8;
    /// `route_localnet`
    pub const ROUTE_LOCALNET: u16 = 26;
}

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IF_OPER_UP: u8 = 6;
const RT_TABLE_MAIN: u8 = 254;
/// `proto` of our routes, so that they can be told from others' (no other program has this number).
pub const RTPROT_SKIFF: u8 = 0x6b;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const RTNH_F_ONLINK: u32 = 4;
const NUD_PERMANENT: u16 = 0x80;

/// A link as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Is it administratively up?
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// `veth`, `bridge`...; None for hardware and lo.
    pub kind: Option<String>,
    /// Does it carry packets (RFC 2863 state up)? Follows `up` of both ends of a veth after a moment.
    pub operational: bool,
    /// What its maker wrote about it.
    pub alias: Option<String>,
}

/// An IPv4 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Interface index.
    pub index: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// 0 is global, 253 link, 254 host.
    pub scope: u8,
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Destination (0.0.0.0 of a default route).
    pub destination: Ipv4Addr,
    /// Prefix length (0 of a default route).
    pub prefix: u8,
    /// Outgoing interface.
    pub interface: Option<u32>,
    /// Source address that the kernel prefers.
    pub source: Option<Ipv4Addr>,
    /// Smaller wins.
    pub metric: u32,
    /// Who made it.
    pub protocol: u8,
}

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut h = [0u8; 16];
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h[12..16].copy_from_slice(&change.to_ne_bytes());
    h
}

fn rtmsg(prefix: u8, scope: u8, kind: u8, flags: u32) -> [u8; 12] {
    let mut h = [0u8; 12];
    h[0] = AF_INET;
    h[1] = prefix;
    h[4] = RT_TABLE_MAIN;
    h[5] = RTPROT_SKIFF;
    h[6] = scope;
    h[7] = kind;
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub struct VethEnd<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Hardware address.
    pub mac: [u8; 6],
}

/// Adds a veth pair whose peer is made directly inside another namespace. Creating it here and moving it costs ten
/// times as much, for the move waits for RCU grace periods.
pub fn add_veth(m: &mut Messages, host: &VethEnd<'_>, peer: &VethEnd<'_>, netns: RawFd, mtu: u32) {
    m.begin(
        format!("adding the veth pair {}", host.name),
        RTM_NEWLINK,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        &[],
        &ifinfo(0, 0, 0),
    );
    veth_end(m, host, mtu);
    m.nest(IFLA_LINKINFO, |m| {
        m.attr_str(IFLA_INFO_KIND, "veth");
        m.nest(IFLA_INFO_DATA, |m| {
            m.nest(VETH_INFO_PEER, |m| {
                m.raw(&ifinfo(0, 0, 0));
                veth_end(m, peer, mtu);
                m.attr_u32(IFLA_NET_NS_FD, netns as u32);
            });
        });
    });
}

fn veth_end(m: &mut Messages, end: &VethEnd<'_>, mtu: u32) {
    m.attr_str(IFLA_IFNAME, end.name);
    m.attr(IFLA_ADDRESS, &end.mac);
    m.attr_u32(IFLA_MTU, mtu);
    // One queue: the default of one for each CPU costs memory for every pod.
    m.attr_u32(IFLA_NUM_TX_QUEUES, 1);
    m.attr_u32(IFLA_NUM_RX_QUEUES, 1);
}

/// Adds a bridge; one that is there already is no error.
pub fn add_bridge(m: &mut Messages, name: &str, mtu: u32) {
    m.begin(
        format!("adding the bridge {name}"),
        RTM_NEWLINK,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        &[Errno::EXIST],
        &ifinfo(0, 0, 0),
    );
    m.attr_str(IFLA_IFNAME, name);
    m.attr_u32(IFLA_MTU, mtu);
    m.nest(IFLA_LINKINFO, |m| m.attr_str(IFLA_INFO_KIND, "bridge"));
}

/// Brings a link up.
pub fn set_up(m: &mut Messages, index: u32) {
    m.begin(
        "bringing a link up",
        RTM_NEWLINK,
        NLM_F_ACK,
        &[],
        &ifinfo(index, IFF_UP, IFF_UP),
    );
}

/// Writes a note on a link, for other processes to read. (The kernel takes no alias with a link's making.)
pub fn set_alias(m: &mut Messages, index: u32, alias: &str) {
    m.begin(
        "writing a link's alias",
        RTM_NEWLINK,
        NLM_F_ACK,
        &[],
        &ifinfo(index, 0, 0),
    );
    m.attr_str(IFLA_IFALIAS, alias);
}

/// Sets IPv4 settings of a link (see [`devconf`]) without going through /proc/sys.
pub fn set_conf(m: &mut Messages, index: u32, settings: &[(u16, u32)]) {
    m.begin(
        "configuring a link",
        RTM_NEWLINK,
        NLM_F_ACK,
        &[],
        &ifinfo(index, 0, 0),
    );
    m.nest(IFLA_AF_SPEC, |m| {
        m.nest(u16::from(AF_INET), |m| {
            m.nest(IFLA_INET_CONF, |m| {
                for (key, value) in settings {
                    m.attr_u32(*key, *value);
                }
            });
        });
    });
}

/// Lets a link have no IPv6 link-local address: it would cost duplicate address detection and multicast traffic for
/// each pod. A kernel without IPv6 refuses, which is as good.
pub fn no_ipv6_addresses(m: &mut Messages, index: u32) {
    m.begin(
        "turning IPv6 autoconfiguration off",
        RTM_NEWLINK,
        NLM_F_ACK,
        &[Errno::AFNOSUPPORT, Errno::OPNOTSUPP, Errno::INVAL],
        &ifinfo(index, 0, 0),
    );
    m.nest(IFLA_AF_SPEC, |m| {
        m.nest(u16::from(AF_INET6), |m| {
            m.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        });
    });
}

/// Removes a link; one that is gone is no error. A veth takes its peer with it.
pub fn delete_link(m: &mut Messages, name: &str) {
    m.begin(
        format!("removing the link {name}"),
        RTM_DELLINK,
        NLM_F_ACK,
        &[Errno::NODEV],
        &ifinfo(0, 0, 0),
    );
    m.attr_str(IFLA_IFNAME, name);
}

/// Puts a link into a group; one that is gone is no error.
pub fn set_group(m: &mut Messages, name: &str, group: u32) {
    m.begin(
        format!("grouping the link {name}"),
        RTM_NEWLINK,
        NLM_F_ACK,
        &[Errno::NODEV],
        &ifinfo(0, 0, 0),
    );
    m.attr_str(IFLA_IFNAME, name);
    m.attr_u32(IFLA_GROUP, group);
}

/// Removes every link of a group at once; none is no error.
pub fn delete_group(m: &mut Messages, group: u32) {
    m.begin(
        "removing links",
        RTM_DELLINK,
        NLM_F_ACK,
        &[Errno::NODEV],
        &ifinfo(0, 0, 0),
    );
    m.attr_u32(IFLA_GROUP, group);
}

fn address_message(m: &mut Messages, add: bool, index: u32, address: Ipv4Addr, prefix: u8) {
    let mut h = [AF_INET, prefix, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    if add {
        m.begin(
            format!("adding the address {address}"),
            RTM_NEWADDR,
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            &[Errno::EXIST],
            &h,
        );
    } else {
        m.begin(
            format!("removing the address {address}"),
            RTM_DELADDR,
            NLM_F_ACK,
            &[Errno::ADDRNOTAVAIL, Errno::NODEV],
            &h,
        );
    }
    m.attr(IFA_LOCAL, &address.octets());
    m.attr(IFA_ADDRESS, &address.octets());
}

/// Adds an address to a link; one that is there is no error.
pub fn add_address(m: &mut Messages, index: u32, address: Ipv4Addr, prefix: u8) {
    address_message(m, true, index, address, prefix);
}

/// Takes an address off a link.
pub fn delete_address(m: &mut Messages, index: u32, address: Ipv4Addr, prefix: u8) {
    address_message(m, false, index, address, prefix);
}

/// A route straight through a link, with the source address that local processes get.
pub fn link_route(
    m: &mut Messages,
    destination: Ipv4Addr,
    prefix: u8,
    index: u32,
    source: Option<Ipv4Addr>,
) {
    m.begin(
        format!("adding the route to {destination}/{prefix}"),
        RTM_NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        &[],
        &rtmsg(prefix, RT_SCOPE_LINK, RTN_UNICAST, 0),
    );
    m.attr(RTA_DST, &destination.octets());
    m.attr_u32(RTA_OIF, index);
    if let Some(source) = source {
        m.attr(RTA_PREFSRC, &source.octets());
    }
}

/// A route to one host behind a link, with the source address that local processes get. It has the host itself as its
/// gateway: then the kernel does not take a packet that leaves where it came in (a pod that reaches itself through a
/// Service) for one that should be redirected, and spends no rate-limited ICMP on telling.
pub fn host_route(m: &mut Messages, host: Ipv4Addr, index: u32, source: Ipv4Addr) {
    m.begin(
        format!("adding the route to {host}"),
        RTM_NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        &[],
        &rtmsg(32, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK),
    );
    m.attr(RTA_DST, &host.octets());
    m.attr(RTA_GATEWAY, &host.octets());
    m.attr_u32(RTA_OIF, index);
    m.attr(RTA_PREFSRC, &source.octets());
}

/// The default route through a gateway that need not be in any subnet of ours.
pub fn default_route(m: &mut Messages, gateway: Ipv4Addr, index: u32) {
    m.begin(
        "adding the default route",
        RTM_NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        &[],
        &rtmsg(0, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK),
    );
    m.attr(RTA_GATEWAY, &gateway.octets());
    m.attr_u32(RTA_OIF, index);
}

/// Answers "host unreachable" for what no more special route takes.
pub fn unreachable_route(m: &mut Messages, destination: Ipv4Addr, prefix: u8) {
    m.begin(
        format!("adding the unreachable route {destination}/{prefix}"),
        RTM_NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        &[],
        &rtmsg(prefix, RT_SCOPE_UNIVERSE, RTN_UNREACHABLE, 0),
    );
    m.attr(RTA_DST, &destination.octets());
    m.attr_u32(RTA_PRIORITY, 4096);
}

/// Removes a route of ours; one that is gone is no error.
pub fn delete_route(m: &mut Messages, destination: Ipv4Addr, prefix: u8) {
    let mut h = rtmsg(prefix, 255, 0, 0);
    h[6] = 255; // RT_SCOPE_NOWHERE: any scope
    m.begin(
        format!("removing the route to {destination}/{prefix}"),
        RTM_DELROUTE,
        NLM_F_ACK,
        &[Errno::SRCH],
        &h,
    );
    m.attr(RTA_DST, &destination.octets());
}

/// A neighbour that needs no ARP and never expires.
pub fn permanent_neighbour(m: &mut Messages, index: u32, address: Ipv4Addr, mac: [u8; 6]) {
    let mut h = [0u8; 12];
    h[0] = AF_INET;
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    m.begin(
        format!("adding the neighbour {address}"),
        RTM_NEWNEIGH,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        &[],
        &h,
    );
    m.attr(NDA_DST, &address.octets());
    m.attr(NDA_LLADDR, &mac);
}

impl Socket {
    /// Sends messages and wants no objects back.
    ///
    /// # Errors
    /// The first refusal.
    pub fn send_all(&mut self, messages: Messages) -> Result<()> {
        self.request(messages, |_, _| {})
    }

    /// The link of a name.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that there is none.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut m = Messages::new();
        m.begin(
            format!("looking up the link {name}"),
            RTM_GETLINK,
            NLM_F_ACK,
            &[Errno::NODEV],
            &ifinfo(0, 0, 0),
        );
        m.attr_str(IFLA_IFNAME, name);
        let mut found = None;
        self.request(m, |kind, body| {
            if kind == RTM_NEWLINK {
                found = parse_link(body);
            }
        })?;
        Ok(found)
    }

    /// The index of a link that must be there.
    ///
    /// # Errors
    /// ENODEV when there is no such link.
    pub fn index(&mut self, name: &str) -> Result<u32> {
        match self.link(name)? {
            Some(link) => Ok(link.index),
            None => Err(Error::new(
                format!("looking up the link {name}"),
                Errno::NODEV,
            )),
        }
    }

    /// Waits until a link carries packets. The end of a veth that came up first is given its queue by a kernel worker
    /// only, and drops what is sent until then; asking for the link makes Linux 6.8 and newer do it at once.
    ///
    /// # Errors
    /// ENODEV when there is no such link; ETIMEDOUT when it is not operational within a second.
    pub fn wait_operational(&mut self, name: &str) -> Result<()> {
        let mut pause = Duration::from_micros(100);
        for _ in 0..60 {
            match self.link(name)? {
                Some(link) if link.operational => return Ok(()),
                Some(_) => std::thread::sleep(pause),
                None => {
                    return Err(Error::new(
                        format!("looking up the link {name}"),
                        Errno::NODEV,
                    ));
                }
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Err(Error::new(
            format!("waiting for the link {name}"),
            Errno::TIMEDOUT,
        ))
    }

    /// Every link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut m = Messages::new();
        m.begin(
            "listing links",
            RTM_GETLINK,
            NLM_F_DUMP,
            &[],
            &ifinfo(0, 0, 0),
        );
        let mut links = Vec::new();
        self.dump(m, |_, body| links.extend(parse_link(body)))?;
        Ok(links)
    }

    /// Every IPv4 address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let mut m = Messages::new();
        m.begin(
            "listing addresses",
            RTM_GETADDR,
            NLM_F_DUMP,
            &[],
            &[AF_INET, 0, 0, 0, 0, 0, 0, 0],
        );
        let mut all = Vec::new();
        self.dump(m, |_, body| {
            let (Some(&[_, prefix, _, scope]), Some(index)) = (
                body.get(..4).and_then(|b| <&[u8; 4]>::try_from(b).ok()),
                read_u32(body, 4),
            ) else {
                return;
            };
            let rest = body.get(8..).unwrap_or_default();
            let local = attr_of(rest, IFA_LOCAL).or_else(|| attr_of(rest, IFA_ADDRESS));
            if let Some(address) = local.and_then(ipv4) {
                all.push(Address {
                    index,
                    address,
                    prefix,
                    scope,
                });
            }
        })?;
        Ok(all)
    }

    /// Every IPv4 route of the main table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let mut m = Messages::new();
        let mut h = [0u8; 12];
        h[0] = AF_INET;
        m.begin("listing routes", RTM_GETROUTE, NLM_F_DUMP, &[], &h);
        let mut all = Vec::new();
        self.dump(m, |_, body| {
            if body.len() < 12 || body[4] != RT_TABLE_MAIN {
                return;
            }
            let mut route = Route {
                destination: Ipv4Addr::UNSPECIFIED,
                prefix: body[1],
                interface: None,
                source: None,
                metric: 0,
                protocol: body[5],
            };
            for (kind, value) in attrs(&body[12..]) {
                match kind {
                    RTA_DST => {
                        route.destination = ipv4(value).unwrap_or(Ipv4Addr::UNSPECIFIED);
                    }
                    RTA_OIF => route.interface = read_u32(value, 0),
                    RTA_PREFSRC => route.source = ipv4(value),
                    RTA_PRIORITY => route.metric = read_u32(value, 0).unwrap_or(0),
                    _ => {}
                }
            }
            all.push(route);
        })?;
        Ok(all)
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let index = read_u32(body, 4)?;
    let flags = read_u32(body, 8)?;
    let _ = read_u16(body, 2)?;
    let mut link = Link {
        index,
        name: String::new(),
        up: flags & IFF_UP != 0,
        mtu: 0,
        kind: None,
        operational: false,
        alias: None,
    };
    for (kind, value) in attrs(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = read_u32(value, 0).unwrap_or(0),
            IFLA_OPERSTATE => link.operational = value.first() == Some(&IF_OPER_UP),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_LINKINFO => link.kind = attr_of(value, IFLA_INFO_KIND).map(text),
            _ => {}
        }
    }
    Some(link)
}
