//! Who owns whom. Each object is a few dozen bytes here: a uid, where it is, who owns it, and whether it is being
//! deleted. Pure.

use crate::action::Kind;
use std::collections::{HashMap, HashSet};

/// A uid: the number of a UUID, or a hash of a string that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(pub u128);

impl Uid {
    /// Reads a uid.
    pub fn of(text: &str) -> Self {
        let mut n = 0u128;
        let mut digits = 0;
        for c in text.chars().filter(|c| *c != '-') {
            match c.to_digit(16) {
                Some(d) if digits < 32 => {
                    n = n << 4 | u128::from(d);
                    digits += 1;
                }
                _ => {
                    digits = 99;
                    break;
                }
            }
        }
        if digits == 32 {
            return Self(n);
        }
        // FNV-1a of 128 bits.
        let mut h = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58du128;
        for b in text.bytes() {
            h = (h ^ u128::from(b)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
        Self(h)
    }
}

/// One ownerReference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The owner's uid.
    pub uid: Uid,
    /// The uid as it was written, for patches.
    pub uid_text: Box<str>,
    /// e.g. `apps/v1`
    pub api_version: &'static str,
    /// e.g. `ReplicaSet`
    pub kind: &'static str,
    /// metadata.name of the owner.
    pub name: Box<str>,
    /// The owner's foreground deletion waits for this object.
    pub blocks: bool,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// How paths name its kind.
    pub kind: Kind,
    /// Empty for cluster-scoped objects.
    pub namespace: Box<str>,
    /// metadata.name
    pub name: Box<str>,
    /// Who owns it.
    pub owners: Box<[Owner]>,
    /// metadata.deletionTimestamp is set.
    pub deleting: bool,
    /// It has the finalizer foregroundDeletion.
    pub foreground: bool,
    /// It has the finalizer orphan.
    pub orphan: bool,
}

impl Node {
    /// It is being deleted and waits for its dependents to go first.
    pub fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// All objects and who depends on each.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    /// An object.
    pub fn get(&self, uid: Uid) -> Option<&Node> {
        self.nodes.get(&uid)
    }

    /// Who names this object as an owner.
    pub fn dependents(&self, uid: Uid) -> impl Iterator<Item = (Uid, &Node)> {
        self.dependents
            .get(&uid)
            .into_iter()
            .flatten()
            .filter_map(|d| Some((*d, self.nodes.get(d)?)))
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds or changes an object. Returns which objects are to be looked at.
    pub fn set(&mut self, uid: Uid, node: Node) -> Vec<Uid> {
        let old = self.nodes.get(&uid);
        if old == Some(&node) {
            return Vec::new();
        }
        let mut look = Vec::new();
        if let Some(old) = old {
            for o in &old.owners {
                if !node.owners.iter().any(|n| n.uid == o.uid)
                    && let Some(d) = self.dependents.get_mut(&o.uid)
                {
                    d.remove(&uid);
                    if d.is_empty() {
                        self.dependents.remove(&o.uid);
                    }
                    look.push(o.uid);
                }
            }
        }
        for o in &node.owners {
            self.dependents.entry(o.uid).or_default().insert(uid);
            // An owner that waits for dependents may be waiting for this one's blockOwnerDeletion to change.
            if self
                .nodes
                .get(&o.uid)
                .is_some_and(Node::waits_for_dependents)
            {
                look.push(o.uid);
            }
        }
        if !node.owners.is_empty() || node.deleting && (node.foreground || node.orphan) {
            look.push(uid);
        }
        self.nodes.insert(uid, node);
        look
    }

    /// An object is gone. Returns which objects are to be looked at: those it owned, and owners that waited for it.
    pub fn remove(&mut self, uid: Uid) -> Vec<Uid> {
        let mut look: Vec<Uid> = self
            .dependents
            .get(&uid)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        if let Some(node) = self.nodes.remove(&uid) {
            for o in &node.owners {
                if let Some(d) = self.dependents.get_mut(&o.uid) {
                    d.remove(&uid);
                    if d.is_empty() {
                        self.dependents.remove(&o.uid);
                    }
                }
                if self.nodes.get(&o.uid).is_some_and(|n| n.deleting) {
                    look.push(o.uid);
                }
            }
        }
        look
    }

    /// Uids of every object of a kind, for finding what a new list no longer has.
    pub fn of_kind(&self, kind: Kind) -> Vec<Uid> {
        self.nodes
            .iter()
            .filter(|(_, n)| n.kind == kind)
            .map(|(u, _)| *u)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_their_number_and_other_texts_are_hashed() {
        assert_eq!(Uid::of("00000000-0000-0000-0000-0000000000ff"), Uid(255));
        assert_ne!(Uid::of("a"), Uid::of("b"));
        assert_ne!(Uid::of("x"), Uid::of(""));
    }
}
