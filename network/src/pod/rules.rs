//! The nft table of the pod network: masquerading, host ports, and the guard of the node's loopback. Builds a
//! transaction; sends nothing.

use super::{LINK_PREFIX, PodNetworkConfig};
use crate::Cidr;
use crate::netlink::nft::{
    Expr, Hook, MapData, Reg, Set, Transaction, Verdict, any_bit, ct, daddr, dport, interface,
    l4proto, local, meta, network, saddr, types, zero,
};
use std::net::Ipv4Addr;

/// Map of `address . protocol . port` (address 0.0.0.0 for all) to the pod's `address . port`.
pub(super) const HOST_PORTS: &str = "host-ports";
const SELF: &str = "self";
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 0);

/// Masquerades connections of a pod that lead back to itself: it would drop packets from its own address. nf_tables
/// cannot compare two registers before Linux 6.13, so each source is put into a set as `source . source`, in which
/// `source . destination` is then looked up: packets fill it, nobody has to keep it.
pub(crate) fn hairpin(t: &mut Transaction, chain: &str, set: &'static str, pods: &Cidr) {
    let from_pods = || {
        let mut rule = any_dnat();
        rule.push(saddr(Reg(0)));
        rule.extend(network(Reg(0), true, pods.address(), pods.prefix()));
        rule
    };
    let mut remember = from_pods();
    remember.extend([
        saddr(Reg(0)),
        saddr(Reg(1)),
        Expr::Update {
            set,
            key: Reg(0),
            data: None,
            timeout_ms: None,
        },
    ]);
    t.add_rule(chain, &remember);
    let mut masquerade = from_pods();
    masquerade.extend([
        saddr(Reg(0)),
        daddr(Reg(1)),
        Expr::Lookup {
            set,
            key: Reg(0),
            to: None,
        },
        Expr::Masquerade,
    ]);
    t.add_rule(chain, &masquerade);
}

/// The set that [`hairpin`] needs.
pub(crate) fn hairpin_set(name: &'static str) -> Set {
    Set {
        name,
        key_type: types::concat(&[types::IPV4, types::IPV4]),
        key_len: 8,
        data: None,
        dynamic: true,
        size: Some(65_535),
    }
}

/// Goes on only for connections whose destination was changed.
fn any_dnat() -> Vec<Expr> {
    let mut rule = vec![Expr::Ct {
        key: ct::STATUS,
        to: Reg(0),
    }];
    rule.extend(any_bit(Reg(0), ct::STATUS_DNAT));
    rule
}

pub(super) fn build(t: &mut Transaction, config: &PodNetworkConfig) {
    t.add_set(&Set {
        name: HOST_PORTS,
        key_type: types::concat(&[types::IPV4, types::PROTO, types::PORT]),
        key_len: 12,
        data: Some(MapData::Value(
            types::concat(&[types::IPV4, types::PORT]),
            8,
        )),
        dynamic: false,
        size: None,
    });
    t.add_set(&hairpin_set(SELF));

    // The hosts' loopback listens to things that trust it (CVE-2020-8558), and route_localnet would let pods in.
    t.add_base_chain("guard", "filter", Hook::Prerouting, -300);
    let mut rule = interface(meta::IIFNAME, LINK_PREFIX, true).to_vec();
    rule.push(daddr(Reg(0)));
    rule.extend(network(Reg(0), true, LOOPBACK, 8));
    rule.push(Expr::Verdict(Verdict::Drop));
    t.add_rule("guard", &rule);

    // Before the Service proxy, as upstream's host ports are.
    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        t.add_base_chain(chain, "nat", hook, -105);
        let to_pod = || {
            [
                l4proto(Reg(1)),
                dport(Reg(2)),
                Expr::Lookup {
                    set: HOST_PORTS,
                    key: Reg(0),
                    to: Some(Reg(4)),
                },
                Expr::Dnat {
                    address: Reg(4),
                    port: Some(Reg(5)),
                },
            ]
        };
        // One address of the node, then all.
        for any in [false, true] {
            let mut rule = local(false, true).to_vec();
            rule.push(daddr(Reg(0)));
            if any {
                rule.push(zero(Reg(0)));
            }
            rule.extend(to_pod());
            t.add_rule(chain, &rule);
        }
    }

    t.add_base_chain("postrouting", "nat", Hook::Postrouting, 100);
    hairpin(t, "postrouting", SELF, &config.pod_cidr);
    // The node's own processes, speaking to pods from 127.0.0.1 through a node port or host port.
    let mut rule = interface(meta::OIFNAME, LINK_PREFIX, true).to_vec();
    rule.push(saddr(Reg(0)));
    rule.extend(network(Reg(0), true, LOOPBACK, 8));
    rule.push(Expr::Masquerade);
    t.add_rule("postrouting", &rule);
    // Pods to the world.
    let mut rule = vec![saddr(Reg(0))];
    rule.extend(network(
        Reg(0),
        true,
        config.pod_cidr.address(),
        config.pod_cidr.prefix(),
    ));
    rule.push(daddr(Reg(0)));
    rule.extend(network(
        Reg(0),
        false,
        config.cluster_cidr.address(),
        config.cluster_cidr.prefix(),
    ));
    rule.extend(interface(meta::OIFNAME, LINK_PREFIX, false));
    rule.extend(local(false, false));
    rule.push(Expr::Masquerade);
    t.add_rule("postrouting", &rule);
}
