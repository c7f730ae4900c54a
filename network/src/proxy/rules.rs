//! The rules of all Services together, and what changes in the kernel when some of them change. Pure.

use super::plan::{Action, Front, Rule, Scope, Target};
use crate::Cidr;
use crate::netlink::nft::{Element, Small, Value, Verdict, port_field};
use crate::pod::Protocol;
use skiff_client::ObjectKey;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

/// A set or map of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Front to verdict.
    Services,
    /// The same for packets from outside, where the policy is Local.
    External,
    /// Front and number to target.
    Endpoints,
    /// The same for [`SetId::External`].
    ExternalEndpoints,
    /// Fronts without endpoints.
    Rejects,
    /// Fronts that only some networks may use, to the chain that knows them.
    Firewall,
}

impl SetId {
    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            SetId::Services => "services",
            SetId::External => "external",
            SetId::Endpoints => "endpoints",
            SetId::ExternalEndpoints => "external-endpoints",
            SetId::Rejects => "rejects",
            SetId::Firewall => "firewall",
        }
    }
}

/// A chain that fronts of the same shape share.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainId {
    /// Takes one of `count` endpoints.
    Balance {
        /// Whose packets.
        scope: Scope,
        /// For node ports: keys have 0.0.0.0 for the packet's destination.
        node_port: bool,
        /// How many endpoints.
        count: u32,
        /// Seconds of session affinity.
        affinity: Option<u32>,
    },
    /// Drops what comes from elsewhere.
    Firewall(Vec<(u32, u8)>),
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainId::Balance {
                scope,
                node_port,
                count,
                affinity,
            } => {
                f.write_str(match scope {
                    Scope::Cluster => "lb",
                    Scope::External => "ext",
                })?;
                if *node_port {
                    f.write_str("-node")?;
                }
                write!(f, "-{count}")?;
                match affinity {
                    Some(seconds) => write!(f, "-for-{seconds}"),
                    None => Ok(()),
                }
            }
            ChainId::Firewall(networks) => {
                // FNV-1a of the networks: the same list is the same chain.
                let hash = networks
                    .iter()
                    .flat_map(|(a, p)| a.to_be_bytes().into_iter().chain([*p]))
                    .fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
                        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
                    });
                write!(f, "fw-{hash:016x}")
            }
        }
    }
}

/// A front with its scope.
pub type Slot = (Scope, Front);

/// What rules of a slot say, by Service. More than one only when Services claim the same external address.
type Claims = Vec<(Arc<ObjectKey>, Action, Arc<[Cidr]>)>;

/// The rule of a slot that holds.
type Effective = (Action, Arc<[Cidr]>);

/// All rules. The first Service by namespace and name wins a front that several claim.
#[derive(Debug, Default)]
pub struct Rules {
    slots: BTreeMap<Slot, Claims>,
    services: HashMap<Arc<ObjectKey>, Vec<Slot>>,
    chains: HashMap<ChainId, usize>,
}

/// What must change in the kernel, in this order: chains are added, elements removed, elements added, chains removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// New chains.
    pub add_chains: Vec<ChainId>,
    /// Elements that go, or change.
    pub remove: BTreeMap<SetId, Vec<Element>>,
    /// Elements that come, or change.
    pub add: BTreeMap<SetId, Vec<Element>>,
    /// Chains that nothing leads to any more.
    pub remove_chains: Vec<ChainId>,
    /// Targets that fronts no longer lead to, for connection tracking and affinity.
    pub lost: Vec<(Front, Target)>,
    /// UDP fronts that begin to lead somewhere: flows that passed untranslated are stale.
    pub gained: Vec<Front>,
}

impl Diff {
    /// Is there nothing to do in the tables?
    pub fn is_empty(&self) -> bool {
        self.add_chains.is_empty()
            && self.remove.is_empty()
            && self.add.is_empty()
            && self.remove_chains.is_empty()
    }
}

fn front_key(front: &Front) -> Small {
    Small::fields(&[
        front.address.octets(),
        front.protocol.field(),
        port_field(front.port),
    ])
}

/// What a slot's effective rule is in the kernel.
#[derive(Debug, Default)]
struct Expanded {
    elements: Vec<(SetId, Element)>,
    chains: Vec<ChainId>,
}

fn expand((scope, front): &Slot, action: &Action, sources: &[Cidr]) -> Expanded {
    let mut out = Expanded::default();
    let (verdicts, endpoints) = match scope {
        Scope::Cluster => (SetId::Services, SetId::Endpoints),
        Scope::External => (SetId::External, SetId::ExternalEndpoints),
    };
    let key = front_key(front);
    match action {
        Action::Balance { targets, affinity } => {
            let chain = ChainId::Balance {
                scope: *scope,
                node_port: front.address.is_unspecified(),
                count: targets.len() as u32,
                affinity: *affinity,
            };
            out.elements.push((
                verdicts,
                Element {
                    key,
                    value: Some(Value::Verdict(Verdict::Goto(chain.to_string()))),
                },
            ));
            out.chains.push(chain);
            for (n, (address, port)) in targets.iter().enumerate() {
                out.elements.push((
                    endpoints,
                    Element {
                        key: Small::fields(&[
                            front.address.octets(),
                            front.protocol.field(),
                            port_field(front.port),
                            // numgen's numbers are in host order.
                            (n as u32).to_ne_bytes(),
                        ]),
                        value: Some(Value::Bytes(Small::fields(&[
                            address.octets(),
                            port_field(*port),
                        ]))),
                    },
                ));
            }
        }
        // Without an external rule the cluster's holds, which rejects.
        Action::Reject if *scope == Scope::External => {}
        Action::Reject => out
            .elements
            .push((SetId::Rejects, Element { key, value: None })),
        Action::Drop => out.elements.push((
            verdicts,
            Element {
                key,
                value: Some(Value::Verdict(Verdict::Drop)),
            },
        )),
    }
    // One firewall for both scopes: it stands before them.
    if !sources.is_empty() && *scope == Scope::Cluster {
        let mut networks: Vec<(u32, u8)> = sources
            .iter()
            .map(|c| (u32::from(c.address()), c.prefix()))
            .collect();
        networks.sort_unstable();
        networks.dedup();
        let chain = ChainId::Firewall(networks);
        out.elements.push((
            SetId::Firewall,
            Element {
                key,
                value: Some(Value::Verdict(Verdict::Jump(chain.to_string()))),
            },
        ));
        out.chains.push(chain);
    }
    out
}

fn targets(action: Option<&Action>) -> &[Target] {
    match action {
        Some(Action::Balance { targets, .. }) => targets,
        _ => &[],
    }
}

fn affinity(action: Option<&Action>) -> Option<u32> {
    match action {
        Some(Action::Balance { affinity, .. }) => *affinity,
        _ => None,
    }
}

impl Rules {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rules of the Services given change to these (empty: the Service is gone). Says what the kernel needs.
    pub fn update(&mut self, changes: impl IntoIterator<Item = (ObjectKey, Vec<Rule>)>) -> Diff {
        let mut before: BTreeMap<Slot, Option<Effective>> = BTreeMap::new();
        for (service, rules) in changes {
            let service = Arc::new(service);
            let old = self.services.remove(&service).unwrap_or_default();
            for slot in old
                .iter()
                .copied()
                .chain(rules.iter().map(|r| (r.scope, r.front)))
            {
                before.entry(slot).or_insert_with(|| self.effective(&slot));
            }
            for slot in old {
                if let Some(claims) = self.slots.get_mut(&slot) {
                    claims.retain(|(owner, ..)| *owner != service);
                    if claims.is_empty() {
                        self.slots.remove(&slot);
                    }
                }
            }
            let mut mine = Vec::with_capacity(rules.len());
            for rule in rules {
                let slot = (rule.scope, rule.front);
                let claims = self.slots.entry(slot).or_default();
                match claims.binary_search_by(|(owner, ..)| owner.cmp(&service)) {
                    // The same port twice in one Service: validation refuses it, the first wins here.
                    Ok(_) => {}
                    Err(at) => {
                        claims.insert(at, (service.clone(), rule.action, rule.sources));
                        claims.shrink_to_fit();
                        mine.push(slot);
                    }
                }
            }
            if !mine.is_empty() {
                self.services.insert(service, mine);
            }
        }
        let mut diff = Diff::default();
        for (slot, old) in before {
            let new = self.effective(&slot);
            if old != new {
                self.change(&mut diff, &slot, old, new);
            }
        }
        // A chain may be dropped by one slot and wanted by another.
        let added: BTreeSet<ChainId> = diff.add_chains.drain(..).collect();
        let removed: BTreeSet<ChainId> = diff.remove_chains.drain(..).collect();
        let wanted = |chain: &&ChainId| self.chains.contains_key(*chain);
        diff.add_chains = added
            .iter()
            .filter(wanted)
            .filter(|c| !removed.contains(*c))
            .cloned()
            .collect();
        diff.remove_chains = removed
            .iter()
            .filter(|c| !wanted(c))
            .filter(|c| !added.contains(*c))
            .cloned()
            .collect();
        diff
    }

    fn effective(&self, slot: &Slot) -> Option<Effective> {
        let (_, action, sources) = self.slots.get(slot)?.first()?;
        Some((action.clone(), sources.clone()))
    }

    fn change(
        &mut self,
        diff: &mut Diff,
        slot: &Slot,
        old: Option<Effective>,
        new: Option<Effective>,
    ) {
        let expanded = |rule: &Option<Effective>| match rule {
            Some((action, sources)) => expand(slot, action, sources),
            None => Expanded::default(),
        };
        let (was, is) = (expanded(&old), expanded(&new));
        for chain in is.chains {
            let count = self.chains.entry(chain.clone()).or_insert(0);
            *count += 1;
            if *count == 1 {
                diff.add_chains.push(chain);
            }
        }
        for chain in was.chains {
            if let Some(count) = self.chains.get_mut(&chain) {
                *count -= 1;
                if *count == 0 {
                    self.chains.remove(&chain);
                    diff.remove_chains.push(chain);
                }
            }
        }
        let index: HashMap<(SetId, Small), &Option<Value>> = was
            .elements
            .iter()
            .map(|(set, e)| ((*set, e.key), &e.value))
            .collect();
        let mut kept = BTreeSet::new();
        for (set, element) in is.elements {
            if index.get(&(set, element.key)) == Some(&&element.value) {
                kept.insert((set, element.key.as_slice().to_vec()));
            } else {
                diff.add.entry(set).or_default().push(element);
            }
        }
        for (set, element) in &was.elements {
            if !kept.contains(&(*set, element.key.as_slice().to_vec())) {
                diff.remove.entry(*set).or_default().push(element.clone());
            }
        }
        let (old, new) = (old.map(|r| r.0), new.map(|r| r.0));
        let front = slot.1;
        let other_affinity = affinity(old.as_ref()) != affinity(new.as_ref());
        let (before, after) = (targets(old.as_ref()), targets(new.as_ref()));
        if front.protocol == Protocol::Udp || affinity(old.as_ref()).is_some() {
            for target in before {
                if after.binary_search(target).is_err() || other_affinity {
                    diff.lost.push((front, *target));
                }
            }
        }
        if front.protocol == Protocol::Udp && before.is_empty() && !after.is_empty() {
            diff.gained.push(front);
        }
    }

    /// Everything, as if the kernel had nothing.
    pub fn whole(&self) -> Diff {
        let mut diff = Diff::default();
        for slot in self.slots.keys() {
            let Some((action, sources)) = self.effective(slot) else {
                continue;
            };
            for (set, element) in expand(slot, &action, &sources).elements {
                diff.add.entry(set).or_default().push(element);
            }
            if slot.1.protocol == Protocol::Udp && !targets(Some(&action)).is_empty() {
                diff.gained.push(slot.1);
            }
        }
        diff.add_chains = self.chains.keys().cloned().collect();
        diff.add_chains.sort();
        diff
    }

    /// The slots that lead somewhere, with their targets: what a flow may be translated to.
    pub fn leads_to(&self, front: &Front, target: &Target) -> bool {
        [Scope::Cluster, Scope::External].iter().any(|scope| {
            targets(self.effective(&(*scope, *front)).map(|r| r.0).as_ref())
                .binary_search(target)
                .is_ok()
        })
    }

    /// How many fronts there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    type Kernel = (
        BTreeMap<(SetId, Vec<u8>), Option<String>>,
        BTreeSet<ChainId>,
    );

    /// What the kernel would hold, refusing what it would refuse.
    fn apply(kernel: &mut Kernel, diff: &Diff) {
        for chain in &diff.add_chains {
            assert!(kernel.1.insert(chain.clone()), "{chain} is added twice");
        }
        for (set, elements) in &diff.remove {
            for e in elements {
                let key = (*set, e.key.as_slice().to_vec());
                assert!(
                    kernel.0.remove(&key).is_some(),
                    "removed but not there: {key:?}"
                );
            }
        }
        for (set, elements) in &diff.add {
            for e in elements {
                if let Some(Value::Verdict(Verdict::Goto(c) | Verdict::Jump(c))) = &e.value {
                    assert!(kernel.1.iter().any(|k| k.to_string() == *c), "no chain {c}");
                }
                let key = (*set, e.key.as_slice().to_vec());
                let value = e.value.as_ref().map(|v| format!("{v:?}"));
                assert!(kernel.0.insert(key, value).is_none(), "added twice");
            }
        }
        for chain in &diff.remove_chains {
            assert!(kernel.1.remove(chain), "{chain} is not there");
            let name = format!("\"{chain}\"");
            assert!(
                !kernel.0.values().flatten().any(|v| v.contains(&name)),
                "{chain} is in use"
            );
        }
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let action = prop_oneof![
            Just(Action::Reject),
            Just(Action::Drop),
            (
                proptest::collection::btree_set(0u8..6, 1..5),
                proptest::option::of(1u32..3)
            )
                .prop_map(|(hosts, affinity)| Action::Balance {
                    targets: hosts
                        .into_iter()
                        .map(|h| (Ipv4Addr::new(10, 42, 0, h), 80))
                        .collect(),
                    affinity,
                }),
        ];
        (
            any::<bool>(),
            0u8..4,
            1u16..3,
            any::<bool>(),
            action,
            any::<bool>(),
        )
            .prop_map(|(external, host, port, udp, action, limited)| Rule {
                scope: if external {
                    Scope::External
                } else {
                    Scope::Cluster
                },
                front: Front {
                    address: if host == 0 {
                        Ipv4Addr::UNSPECIFIED
                    } else {
                        Ipv4Addr::new(10, 43, 0, host)
                    },
                    protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                    port,
                },
                action,
                sources: if limited {
                    vec![Cidr::new(Ipv4Addr::new(10, 0, 0, 0), 8)].into()
                } else {
                    Arc::new([])
                },
            })
    }

    proptest! {
        #[test]
        fn incremental_changes_end_where_a_fresh_load_does(
            steps in proptest::collection::vec(
                proptest::collection::vec((0u8..4, proptest::collection::vec(rule(), 0..5)), 1..3), 1..12)
        ) {
            let mut rules = Rules::new();
            let mut kernel = Kernel::default();
            let mut last: BTreeMap<u8, Vec<Rule>> = BTreeMap::new();
            for step in steps {
                last.extend(step.iter().cloned());
                let named = step.into_iter().map(|(s, r)| (ObjectKey::new("d", format!("s{s}")), r));
                apply(&mut kernel, &rules.update(named));
            }
            let mut fresh = Rules::new();
            fresh.update(last.into_iter().map(|(s, r)| (ObjectKey::new("d", format!("s{s}")), r)));
            let mut whole = Kernel::default();
            apply(&mut whole, &fresh.whole());
            prop_assert_eq!(&kernel, &whole);
            let mut again = Kernel::default();
            apply(&mut again, &rules.whole());
            prop_assert_eq!(&kernel, &again);
            // Nothing changes: nothing is done.
            prop_assert!(rules.update([]).is_empty());
        }
    }
}
