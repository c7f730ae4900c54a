//! The proxy's nft table: its fixed rules, and transactions made of diffs. Owns the table and what connection
//! tracking still believes of it; decides nothing about Services.
//!
//! Layout: one verdict map `address . protocol . port` to a chain shared by all fronts with as many endpoints, which
//! takes a random number below that count and looks the endpoint up in one map `address . protocol . port . number`.
//! Thousands of Services are so many map elements, not so many chains, and the kernel looks each packet up twice.

use super::plan::{Front, Scope, Target};
use super::rules::{ChainId, Diff, Rules, SetId};
use super::{ProxyConfig, ProxyError};
use crate::netlink::Socket;
use crate::netlink::nft::{
    Element, Expr, Hook, MapData, Reg, Set, Small, Transaction, Verdict, any_bit, ct, daddr, dport,
    interface, l4proto, local, meta, network, port_field, saddr, types, zero,
};
use crate::pod::{LINK_PREFIX, Protocol, hairpin, hairpin_set};
use rustix::io::Errno;
use std::collections::HashSet;
use std::net::Ipv4Addr;

const AFFINITY: &str = "affinity";
const SELF: &str = "self";
const REJECT: &str = "reject";
/// Packet mark bit "to be masqueraded": upstream's (kubelet's and kube-proxy's iptables-masquerade-bit 14).
const MASQUERADE_BIT: u32 = 0x4000;

/// The kernel's side of the proxy.
pub struct Programmer {
    config: ProxyConfig,
    socket: Socket,
}

/// address . protocol . port of the packet's destination into three registers; address 0.0.0.0 for node ports.
fn front(at: u8, node_port: bool) -> Vec<Expr> {
    let mut all = vec![daddr(Reg(at))];
    if node_port {
        all.push(zero(Reg(at)));
    }
    all.extend([l4proto(Reg(at + 1)), dport(Reg(at + 2))]);
    all
}

/// Puts expressions together.
fn rule(parts: impl IntoIterator<Item = Vec<Expr>>) -> Vec<Expr> {
    parts.into_iter().flatten().collect()
}

fn verdicts(set: SetId, node_port: bool) -> Vec<Expr> {
    rule([
        front(0, node_port),
        vec![Expr::VerdictMap {
            set: set.name(),
            key: Reg(0),
        }],
    ])
}

fn goto(chain: &str) -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Goto(chain.into()))]
}

fn new_connections() -> Vec<Expr> {
    rule([
        vec![Expr::Ct {
            key: ct::STATE,
            to: Reg(0),
        }],
        any_bit(Reg(0), ct::STATE_NEW).to_vec(),
    ])
}

fn source_in(config: &ProxyConfig, inside: bool) -> Vec<Expr> {
    let cidr = config.cluster_cidr;
    rule([
        vec![saddr(Reg(0))],
        network(Reg(0), inside, cidr.address(), cidr.prefix()).to_vec(),
    ])
}

fn build(t: &mut Transaction, config: &ProxyConfig) {
    let front_type = types::concat(&[types::IPV4, types::PROTO, types::PORT]);
    let numbered = types::concat(&[types::IPV4, types::PROTO, types::PORT, types::NUMBER]);
    let target = MapData::Value(types::concat(&[types::IPV4, types::PORT]), 8);
    let map = |set: SetId, key_type, key_len, data| Set {
        name: set.name(),
        key_type,
        key_len,
        data,
        dynamic: false,
        size: None,
    };
    t.add_set(&map(
        SetId::Services,
        front_type,
        12,
        Some(MapData::Verdict),
    ));
    t.add_set(&map(
        SetId::External,
        front_type,
        12,
        Some(MapData::Verdict),
    ));
    t.add_set(&map(
        SetId::Firewall,
        front_type,
        12,
        Some(MapData::Verdict),
    ));
    t.add_set(&map(SetId::Endpoints, numbered, 16, Some(target)));
    t.add_set(&map(SetId::ExternalEndpoints, numbered, 16, Some(target)));
    t.add_set(&map(SetId::Rejects, front_type, 12, None));
    t.add_set(&Set {
        name: AFFINITY,
        key_type: types::concat(&[types::IPV4, types::IPV4, types::PROTO, types::PORT]),
        key_len: 16,
        data: Some(target),
        dynamic: true,
        size: Some(1 << 18),
    });
    t.add_set(&hairpin_set(SELF));

    t.add_chain(REJECT);
    t.add_rule(
        REJECT,
        &[
            l4proto(Reg(0)),
            Expr::Cmp {
                from: Reg(0),
                equal: true,
                value: vec![Protocol::Tcp.number()],
            },
            Expr::RejectTcp,
        ],
    );
    t.add_rule(REJECT, &[Expr::RejectPort]);

    // Source ranges, before any address is changed. Verdict maps jump, and chains return what may pass.
    t.add_base_chain("firewall-check", "filter", Hook::Prerouting, -110);
    t.add_rule(
        "firewall-check",
        &rule([new_connections(), verdicts(SetId::Firewall, false)]),
    );

    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        t.add_base_chain(chain, "nat", hook, -100);
        let from_outside = hook == Hook::Prerouting;
        if from_outside {
            t.add_rule(
                chain,
                &rule([source_in(config, false), verdicts(SetId::External, false)]),
            );
        }
        t.add_rule(chain, &verdicts(SetId::Services, false));
        let to_node = || local(false, true).to_vec();
        if from_outside {
            t.add_rule(
                chain,
                &rule([
                    source_in(config, false),
                    to_node(),
                    verdicts(SetId::External, true),
                ]),
            );
        }
        t.add_rule(chain, &rule([to_node(), verdicts(SetId::Services, true)]));
    }

    let rejected = |node_port| {
        rule([
            new_connections(),
            front(0, node_port),
            vec![Expr::Lookup {
                set: SetId::Rejects.name(),
                key: Reg(0),
                to: None,
            }],
            goto(REJECT),
        ])
    };
    // What still goes to a cluster IP after translation has no Service, or not that port: nobody will answer it.
    let stray = || {
        rule([
            vec![daddr(Reg(0))],
            network(
                Reg(0),
                true,
                config.service_cidr.address(),
                config.service_cidr.prefix(),
            )
            .to_vec(),
            local(false, false).to_vec(),
            goto(REJECT),
        ])
    };
    t.add_base_chain("input", "filter", Hook::Input, -110);
    t.add_rule("input", &rejected(false));
    t.add_rule("input", &rejected(true));
    t.add_base_chain("forward", "filter", Hook::Forward, -110);
    // A pod's answer that connection tracking cannot place (out of window) would keep the pod's own address, and the
    // client, who knows only the Service's, would reset the connection. Upstream drops them too.
    t.add_rule(
        "forward",
        &rule([
            vec![Expr::Ct {
                key: ct::STATE,
                to: Reg(0),
            }],
            any_bit(Reg(0), ct::STATE_INVALID).to_vec(),
            source_in(config, true),
            vec![Expr::Verdict(Verdict::Drop)],
        ]),
    );
    t.add_rule("forward", &rejected(false));
    t.add_rule("forward", &stray());
    t.add_base_chain("output-after", "filter", Hook::Output, -90);
    t.add_rule("output-after", &rejected(false));
    t.add_rule(
        "output-after",
        &rule([local(false, true).to_vec(), rejected(true)]),
    );
    t.add_rule("output-after", &stray());

    t.add_base_chain("postrouting", "nat", Hook::Postrouting, 100);
    hairpin(t, "postrouting", SELF, &config.cluster_cidr);
    t.add_rule(
        "postrouting",
        &rule([
            vec![Expr::Meta {
                key: meta::MARK,
                to: Reg(0),
            }],
            any_bit(Reg(0), MASQUERADE_BIT).to_vec(),
            // Answers of this node's pods come back here by themselves: they see the client's own address.
            interface(meta::OIFNAME, LINK_PREFIX, false).to_vec(),
            vec![Expr::Masquerade],
        ]),
    );
}

fn add_chain(t: &mut Transaction, config: &ProxyConfig, id: &ChainId) {
    let name = id.to_string();
    t.add_chain(&name);
    let (scope, node_port, count, affinity) = match id {
        ChainId::Balance {
            scope,
            node_port,
            count,
            affinity,
        } => (*scope, *node_port, *count, *affinity),
        ChainId::Firewall(networks) => {
            for (address, prefix) in networks {
                t.add_rule(
                    &name,
                    &rule([
                        vec![saddr(Reg(0))],
                        network(Reg(0), true, Ipv4Addr::from(*address), *prefix).to_vec(),
                        vec![Expr::Verdict(Verdict::Accept)],
                    ]),
                );
            }
            t.add_rule(&name, &[Expr::Verdict(Verdict::Drop)]);
            return;
        }
    };
    let set = match scope {
        Scope::Cluster => SetId::Endpoints.name(),
        Scope::External => SetId::ExternalEndpoints.name(),
    };
    if scope == Scope::Cluster {
        // Answers of endpoints elsewhere would go past this node. Marked here, masqueraded where it leaves.
        t.add_rule(
            &name,
            &rule([
                source_in(config, false),
                local(true, false).to_vec(),
                vec![
                    Expr::Meta {
                        key: meta::MARK,
                        to: Reg(0),
                    },
                    Expr::Bitwise {
                        reg: Reg(0),
                        mask: (!MASQUERADE_BIT).to_ne_bytes().to_vec(),
                        xor: MASQUERADE_BIT.to_ne_bytes().to_vec(),
                    },
                    Expr::SetMark { from: Reg(0) },
                ],
            ]),
        );
    }
    // Registers 0 to 3 key the endpoint, 4 and 5 hold it, 8 to 11 key the affinity.
    let dnat = || {
        vec![Expr::Dnat {
            address: Reg(4),
            port: Some(Reg(5)),
        }]
    };
    let client = || rule([vec![saddr(Reg(8))], front(9, node_port)]);
    let remember = |seconds: u32| {
        vec![Expr::Update {
            set: AFFINITY,
            key: Reg(8),
            data: Some(Reg(4)),
            timeout_ms: Some(u64::from(seconds) * 1000),
        }]
    };
    if let Some(seconds) = affinity {
        t.add_rule(
            &name,
            &rule([
                client(),
                vec![Expr::Lookup {
                    set: AFFINITY,
                    key: Reg(8),
                    to: Some(Reg(4)),
                }],
                remember(seconds),
                dnat(),
            ]),
        );
    }
    let choose = rule([
        front(0, node_port),
        vec![
            Expr::Random {
                to: Reg(3),
                modulus: count,
            },
            Expr::Lookup {
                set,
                key: Reg(0),
                to: Some(Reg(4)),
            },
        ],
    ]);
    match affinity {
        Some(seconds) => t.add_rule(&name, &rule([choose, client(), remember(seconds), dnat()])),
        None => t.add_rule(&name, &rule([choose, dnat()])),
    }
}

fn add_diff(t: &mut Transaction, config: &ProxyConfig, diff: &Diff) {
    for chain in &diff.add_chains {
        add_chain(t, config, chain);
    }
    for (set, elements) in &diff.remove {
        t.delete_elements(set.name(), elements);
    }
    for (set, elements) in &diff.add {
        t.add_elements(set.name(), elements);
    }
    for chain in &diff.remove_chains {
        t.delete_chain(&chain.to_string());
    }
}

impl Programmer {
    /// A programmer for the network namespace of this thread. Nothing is changed yet.
    ///
    /// # Errors
    /// When the kernel has no nf_tables.
    pub fn new(config: ProxyConfig) -> Result<Self, ProxyError> {
        Ok(Self {
            config,
            socket: Socket::netfilter()?,
        })
    }

    /// Replaces the table, whatever is in it, by one with all these rules, in one transaction.
    ///
    /// # Errors
    /// When the kernel refuses: then the old table is still there.
    pub fn replace(&mut self, rules: &Rules) -> Result<(), ProxyError> {
        let whole = rules.whole();
        let config = self.config.clone();
        self.socket.replace_table(&config.table, |t| {
            build(t, &config);
            add_diff(t, &config, &whole);
        })?;
        // Of flows from before, those to endpoints that no rule leads to are stale.
        let gained: HashSet<Front> = whole.gained.iter().copied().collect();
        self.forget_flows(|flow| {
            let fronts = fronts_of(flow.0, flow.1);
            match flow.2 {
                None => fronts.iter().any(|f| gained.contains(f)),
                Some(target) => {
                    config.service_cidr.contains(flow.0)
                        && Some(flow.0) != config.cluster_dns
                        && !fronts.iter().any(|f| rules.leads_to(f, &target))
                }
            }
        })
    }

    /// Carries out a diff in one transaction, then ends what connection tracking and affinity remember of lost
    /// endpoints.
    ///
    /// # Errors
    /// When the kernel refuses: then nothing has changed, and [`Programmer::replace`] is the way out.
    pub fn apply(&mut self, diff: &Diff) -> Result<(), ProxyError> {
        let mut t = Transaction::new(&self.config.table);
        add_diff(&mut t, &self.config, diff);
        self.socket.commit(t)?;
        let lost: HashSet<(Front, Target)> = diff
            .lost
            .iter()
            .filter(|(f, _)| f.protocol == Protocol::Udp)
            .copied()
            .collect();
        let gained: HashSet<Front> = diff.gained.iter().copied().collect();
        if !lost.is_empty() || !gained.is_empty() {
            self.forget_flows(|flow| {
                let fronts = fronts_of(flow.0, flow.1);
                match flow.2 {
                    None => fronts.iter().any(|f| gained.contains(f)),
                    Some(target) => fronts.iter().any(|f| lost.contains(&(*f, target))),
                }
            })?;
        }
        if diff.lost.is_empty() {
            return Ok(());
        }
        self.forget_clients(&diff.lost)
    }

    /// Deletes UDP flows: the original destination and the endpoint it is translated to go to `stale`.
    fn forget_flows(
        &mut self,
        mut stale: impl FnMut((Ipv4Addr, u16, Option<Target>)) -> bool,
    ) -> Result<(), ProxyError> {
        let deleted = self.socket.delete_flows(Protocol::Udp.number(), |flow| {
            let to = (flow.original.destination, flow.original.destination_port);
            let from = (flow.reply.source, flow.reply.source_port);
            stale((to.0, to.1, (to != from).then_some(from)))
        })?;
        if deleted > 0 {
            tracing::debug!(deleted, "stale UDP flows were ended");
        }
        Ok(())
    }

    /// Takes the affinity to lost endpoints away from their clients.
    fn forget_clients(&mut self, lost: &[(Front, Target)]) -> Result<(), ProxyError> {
        let lost: HashSet<(Vec<u8>, Vec<u8>)> = lost
            .iter()
            .map(|(front, (address, port))| {
                let key = Small::fields(&[
                    front.address.octets(),
                    front.protocol.field(),
                    port_field(front.port),
                ]);
                let value = Small::fields(&[address.octets(), port_field(*port)]);
                (key.as_slice().to_vec(), value.as_slice().to_vec())
            })
            .collect();
        for (key, value) in self.socket.set_elements(&self.config.table, AFFINITY)? {
            let (Some(client), Some(front)) = (key.get(..4), key.get(4..16)) else {
                continue;
            };
            if !lost.contains(&(front.to_vec(), value)) {
                continue;
            }
            let fields: Vec<[u8; 4]> = client
                .chunks_exact(4)
                .chain(front.chunks_exact(4))
                .filter_map(|c| c.try_into().ok())
                .collect();
            let mut t = Transaction::new(&self.config.table);
            t.delete_elements(
                AFFINITY,
                &[Element {
                    key: Small::fields(&fields),
                    value: None,
                }],
            );
            match self.socket.commit(t) {
                // It expired meanwhile.
                Err(e) if e.is(&[Errno::NOENT]) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Removes the table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self) -> Result<(), ProxyError> {
        Ok(self.socket.remove_table(&self.config.table)?)
    }
}

/// What the destination of a packet may stand for.
fn fronts_of(address: Ipv4Addr, port: u16) -> [Front; 2] {
    [address, Ipv4Addr::UNSPECIFIED].map(|address| Front {
        address,
        protocol: Protocol::Udp,
        port,
    })
}

/// Every element of the table's maps as text, for tests and for finding faults.
///
/// # Errors
/// When the kernel refuses, or the table is not there.
pub fn dump(table: &str) -> Result<Vec<String>, ProxyError> {
    let mut socket = Socket::netfilter()?;
    let mut all = Vec::new();
    for set in [
        SetId::Services,
        SetId::External,
        SetId::Endpoints,
        SetId::ExternalEndpoints,
        SetId::Rejects,
        SetId::Firewall,
    ] {
        for (key, value) in socket.set_elements(table, set.name())? {
            all.push(format!("{} {key:02x?} {value:02x?}", set.name()));
        }
    }
    all.sort();
    Ok(all)
}
