//! The collector against a small model of the API, with a graph that lags behind it in each kind by itself: whatever the
//! order of events, nothing is deleted that has an owner, or that was let go.

use super::feed::{Slim, SlimMeta, node};
use super::graph::{Graph, Uid};
use super::*;
use crate::action::{PODS, REPLICASETS};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

type Id = u64;

fn uid_text(id: Id) -> String {
    format!("00000000-0000-0000-0000-{id:012x}")
}

/// Even objects are sets, odd ones pods: two kinds, with watches of their own.
fn kind(id: Id) -> crate::action::Kind {
    if id % 2 == 0 { REPLICASETS } else { PODS }
}

#[derive(Default)]
struct World {
    objects: BTreeMap<Id, SlimMeta>,
    version: u64,
    next: Id,
    graph: Graph,
    /// Events of each kind that its watch has not delivered: None is a deletion.
    events: [VecDeque<(Id, Option<SlimMeta>)>; 2],
    /// What the collector has read and not yet acted upon: the object, and how its owners stood.
    read: Vec<(Id, Slim, Vec<OwnerState>)>,
}

impl World {
    fn changed(&mut self, id: Id) {
        self.version += 1;
        let version = self.version.to_string();
        let now = self.objects.get_mut(&id).map(|m| {
            m.resource_version = version;
            m.clone()
        });
        self.events[(id % 2) as usize].push_back((id, now));
    }

    /// An object without finalizers that is being deleted goes.
    fn settle(&mut self, id: Id) {
        let gone = self
            .objects
            .get(&id)
            .is_some_and(|m| m.deletion_timestamp.is_some() && m.finalizers.is_empty());
        if gone {
            self.objects.remove(&id);
        }
        self.changed(id);
    }

    fn delete(&mut self, id: Id, finalizer: &str) {
        let Some(m) = self.objects.get_mut(&id) else {
            return;
        };
        if m.deletion_timestamp.is_none() && !finalizer.is_empty() {
            m.finalizers = vec![finalizer.into()];
        }
        m.deletion_timestamp = Some("now".into());
        self.settle(id);
    }

    fn reference(id: Id) -> Value {
        json!({"apiVersion": kind(id).api_version(), "kind": kind(id).kind, "name": id.to_string(),
            "uid": uid_text(id), "blockOwnerDeletion": true})
    }

    fn live(&self, id: Id) -> Option<Slim> {
        let metadata = self.objects.get(&id)?.clone();
        Some(Slim { metadata })
    }

    fn id_of(uid: Uid) -> Id {
        uid.0 as Id
    }

    fn solid(&self, owner: &Value) -> bool {
        let owner = World::id_of(Uid::of(owner["uid"].as_str().unwrap_or_default()));
        stands(self.live(owner).as_ref(), Uid(owner.into())) == OwnerState::Solid
    }

    /// The API under its preconditions: a change that was made from another version is refused.
    fn patch(&mut self, id: Id, patch: &Value) -> bool {
        let Some(m) = self.objects.get_mut(&id) else {
            return false;
        };
        if patch["metadata"]["resourceVersion"] != m.resource_version.as_str() {
            return false;
        }
        if let Some(o) = patch["metadata"]["ownerReferences"].as_array() {
            m.owner_references.clone_from(o);
        }
        if let Some(f) = patch["metadata"]["finalizers"].as_array() {
            m.finalizers = f.iter().filter_map(|f| Some(f.as_str()?.into())).collect();
        }
        self.settle(id);
        true
    }

    /// What users and controllers do.
    fn user(&mut self, what: u16, id: Id, other: Id) -> Result<(), TestCaseError> {
        let alive = |m: Option<&SlimMeta>| m.is_some_and(|m| m.deletion_timestamp.is_none());
        match what {
            0 | 1 => {
                let owners: Vec<Value> = [id, other]
                    .into_iter()
                    .filter(|o| alive(self.objects.get(o)))
                    .take(usize::from(what) + 1)
                    .map(World::reference)
                    .collect();
                let id = self.next;
                self.next += 1;
                let meta = SlimMeta {
                    uid: uid_text(id),
                    name: id.to_string(),
                    namespace: "ns".into(),
                    owner_references: owners,
                    ..SlimMeta::default()
                };
                self.objects.insert(id, meta);
                self.changed(id);
            }
            2 => self.delete(id, ""),
            3 => self.delete(id, "orphan"),
            4 => self.delete(id, "foregroundDeletion"),
            // Let go by a user's patch.
            5 if alive(self.objects.get(&id)) => {
                if let Some(m) = self.objects.get_mut(&id) {
                    m.owner_references.clear();
                }
                self.changed(id);
            }
            // Adopted: the owner was asked for just now.
            6 if id != other && [id, other].iter().all(|o| alive(self.objects.get(o))) => {
                if let Some(m) = self.objects.get_mut(&id) {
                    m.owner_references = vec![World::reference(other)];
                    self.changed(id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn deliver(&mut self, watch: usize) {
        if let Some((id, state)) = self.events[watch].pop_front() {
            let uid = Uid(id.into());
            match state {
                Some(m) => self.graph.set(uid, node(kind(id), &m)),
                None => self.graph.remove(uid),
            };
        }
    }

    /// The first half of a look at an object, as `look_at` does it: everything up to the write.
    fn look(&mut self, id: Id) -> Result<(), TestCaseError> {
        let uid = Uid(id.into());
        let Some(seen) = self.graph.get(uid).cloned() else {
            return Ok(());
        };
        match deleting(&self.graph, uid, &seen) {
            Some(Step::Orphan) => return self.orphan(id),
            Some(Step::Unfinalize(f)) => {
                self.unfinalize(id, f);
                return Ok(());
            }
            Some(Step::Unblock) => {
                if let Some(found) = self.live(id) {
                    self.patch(id, &change(&found, Some(unblocked(&found)), None));
                }
                return Ok(());
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let Some(found) = self.live(id) else {
            return Ok(());
        };
        let live = node(kind(id), &found.metadata);
        let states = live
            .owners
            .iter()
            .map(|o| match state_of(&self.graph, o, "ns") {
                OwnerState::Unknown => stands(self.live(World::id_of(o.uid)).as_ref(), o.uid),
                s => s,
            })
            .collect();
        self.read.push((id, found, states));
        Ok(())
    }

    fn unfinalize(&mut self, id: Id, finalizer: &str) -> bool {
        let Some(found) = self.live(id) else {
            return false;
        };
        let keep: Vec<&str> = found
            .metadata
            .finalizers
            .iter()
            .map(String::as_str)
            .filter(|f| *f != finalizer)
            .collect();
        found.metadata.deletion_timestamp.is_some()
            && self.patch(id, &change(&found, None, Some(keep)))
    }

    fn orphan(&mut self, id: Id) -> Result<(), TestCaseError> {
        let me = [uid_text(id)];
        let all: Vec<Id> = self.objects.keys().copied().collect();
        for d in all {
            let Some(found) = self.live(d) else { continue };
            if let Some(keep) = owners_without(&found, &me) {
                self.patch(d, &change(&found, Some(keep), None));
            }
        }
        if self.unfinalize(id, "orphan") && !self.objects.contains_key(&id) {
            let left = self
                .objects
                .values()
                .any(|m| m.owner_references.iter().any(|o| o["uid"] == me[0]));
            prop_assert!(
                !left,
                "{id} is gone, and something still calls it its owner"
            );
        }
        Ok(())
    }

    /// The second half: the write, after whatever happened meanwhile.
    fn act(&mut self, n: usize) -> Result<(), TestCaseError> {
        if self.read.is_empty() {
            return Ok(());
        }
        let (id, found, states) = self.read.swap_remove(n % self.read.len());
        let live = node(kind(id), &found.metadata);
        match owned(&self.graph, Uid(id.into()), &live, &states) {
            Step::Delete(policy) => {
                let Some(now) = self.objects.get(&id) else {
                    return Ok(());
                };
                if now.resource_version != found.metadata.resource_version {
                    return Ok(());
                }
                prop_assert!(
                    !now.owner_references.is_empty(),
                    "{id} was let go, and deleted"
                );
                prop_assert!(
                    !now.owner_references.iter().any(|o| self.solid(o)),
                    "{id} was deleted although an owner is there"
                );
                let finalizer = match policy {
                    "Foreground" => "foregroundDeletion",
                    "Orphan" => "orphan",
                    _ => "",
                };
                self.delete(id, finalizer);
            }
            Step::Disown(owners) => {
                if let Some(keep) = owners_without(&found, &owners) {
                    prop_assert!(!keep.is_empty(), "the last owner is not taken away");
                    self.patch(id, &change(&found, Some(keep), None));
                }
            }
            Step::Unblock => {
                self.patch(id, &change(&found, Some(unblocked(&found)), None));
            }
            _ => {}
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_has_an_owner_or_was_let_go_is_deleted(
        steps in prop::collection::vec((0u16..20, any::<u16>(), any::<u16>()), 1..200)
    ) {
        let mut w = World::default();
        for (what, a, b) in steps {
            let pick = |n: u16| u64::from(n) % w.next.max(1);
            let (id, other) = (pick(a), pick(b));
            match what {
                0..=6 => w.user(what, id, other)?,
                7..=11 => w.deliver(usize::from(what % 2)),
                12..=15 => w.look(id)?,
                _ => w.act(usize::from(a))?,
            }
        }
        // Once everything is delivered and looked at, whatever lost all its owners is gone, circles included.
        for _ in 0..w.next * 6 + 20 {
            for watch in 0..2 {
                while !w.events[watch].is_empty() {
                    w.deliver(watch);
                }
            }
            for id in 0..w.next {
                w.look(id)?;
                while !w.read.is_empty() {
                    w.act(0)?;
                }
            }
        }
        for (id, m) in &w.objects {
            prop_assert!(m.deletion_timestamp.is_none(), "{id} is never gone: {m:?}");
            prop_assert!(
                m.owner_references.is_empty() || m.owner_references.iter().any(|o| w.solid(o)),
                "{id} outlived its owners"
            );
        }
    }
}
