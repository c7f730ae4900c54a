//! Garbage collector: deletes what no longer has an owner, and carries foreground and orphaning deletions out
//! (pkg/controller/garbagecollector). [`graph`] remembers who owns whom, [`feed`] keeps it current from metadata alone,
//! [`deleting`] and [`owned`], which decide, are pure.

pub mod feed;
pub mod graph;

use crate::action::{Action, execute};
use crate::discovery::Discovered;
use crate::shell::Shell;
use graph::{Graph, Node, Owner, Uid};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_client::Queue;
use std::collections::HashSet;
use std::sync::Arc;

/// How an owner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// It is there.
    Solid,
    /// It is being deleted and waits for its dependents.
    Waiting,
    /// It is not there.
    Absent,
    /// The graph does not have it as the reference says; the API must be asked.
    Unknown,
}

/// How an owner stands, as far as the graph knows. Never Absent: the graph may lag, and only a live answer may delete.
pub fn state_of(graph: &Graph, owner: &Owner, dependent_namespace: &str) -> OwnerState {
    match graph.get(owner.uid) {
        // A reference that names a uid under other coordinates is looked up by its coordinates, as upstream does; an
        // owner in another namespace is no owner.
        Some(o)
            if o.kind.kind != owner.kind
                || o.name != owner.name
                || !o.namespace.is_empty() && &*o.namespace != dependent_namespace =>
        {
            OwnerState::Unknown
        }
        None => OwnerState::Unknown,
        Some(o) if o.waits_for_dependents() => OwnerState::Waiting,
        Some(_) => OwnerState::Solid,
    }
}

/// What to do with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Leave,
    /// Delete it, with this propagation policy.
    Delete(&'static str),
    /// Take these owners (uids) away.
    Disown(Vec<String>),
    /// It is part of a circle of objects that wait for each other: its owners wait for it no longer.
    Unblock,
    /// Take a finalizer away.
    Unfinalize(&'static str),
    /// Take this object away from whom it owns, then its finalizer `orphan`.
    Orphan,
    /// It waits for these dependents: look at them.
    Look(Vec<Uid>),
}

/// What an object's own deletion asks for; None when it does not ask, and its owners decide ([`owned`]).
pub fn deleting(graph: &Graph, uid: Uid, node: &Node) -> Option<Step> {
    if node.deleting && node.orphan {
        return Some(Step::Orphan);
    }
    if node.waits_for_dependents() {
        let blocked = graph
            .dependents(uid)
            .any(|(_, d)| d.owners.iter().any(|o| o.uid == uid && o.blocks));
        return Some(if blocked && in_circle(graph, uid, node) {
            Step::Unblock
        } else if blocked {
            Step::Look(
                graph
                    .dependents(uid)
                    .filter(|(_, d)| !d.deleting)
                    .map(|(d, _)| d)
                    .collect(),
            )
        } else {
            Step::Unfinalize("foregroundDeletion")
        });
    }
    (node.deleting || node.owners.is_empty()).then_some(Step::Leave)
}

/// Do objects that are being deleted wait for each other in a circle that goes through this one? Nobody would be first.
fn in_circle(graph: &Graph, uid: Uid, node: &Node) -> bool {
    let held = |n: &Node| -> Vec<Uid> {
        let blocked = n.owners.iter().filter(|o| o.blocks).map(|o| o.uid);
        blocked
            .filter(|o| graph.get(*o).is_some_and(Node::waits_for_dependents))
            .collect()
    };
    let mut seen = HashSet::new();
    let mut next = held(node);
    while let Some(owner) = next.pop() {
        if owner == uid {
            return true;
        }
        if seen.insert(owner) {
            next.extend(graph.get(owner).map(held).unwrap_or_default());
        }
    }
    false
}

/// Decides for an object that is not being deleted. `node` is how the API has it now, and `states` are those of its
/// owners, in their order, none of them Unknown; the graph tells of its dependents alone.
pub fn owned(graph: &Graph, uid: Uid, node: &Node, states: &[OwnerState]) -> Step {
    if node.deleting || node.owners.is_empty() {
        return Step::Leave;
    }
    let of = |s: OwnerState| {
        node.owners
            .iter()
            .zip(states)
            .filter(move |(_, x)| **x == s)
            .map(|(o, _)| o.uid_text.to_string())
    };
    if states.contains(&OwnerState::Solid) {
        let gone: Vec<String> = of(OwnerState::Absent)
            .chain(of(OwnerState::Waiting))
            .collect();
        return if gone.is_empty() {
            Step::Leave
        } else {
            Step::Disown(gone)
        };
    }
    if states.contains(&OwnerState::Waiting) && graph.dependents(uid).next().is_some() {
        let circle = graph.dependents(uid).any(|(_, d)| d.waits_for_dependents());
        return if circle && node.owners.iter().any(|o| o.blocks) {
            Step::Unblock
        } else {
            Step::Delete("Foreground")
        };
    }
    Step::Delete(if node.orphan {
        "Orphan"
    } else if node.foreground {
        "Foreground"
    } else {
        "Background"
    })
}

/// The running collector.
pub struct Collector {
    graph: Mutex<Graph>,
    queue: Queue<Uid>,
    kinds: Mutex<Discovered>,
}

/// Starts the collector.
pub fn start(shell: &Shell) {
    let this = Arc::new(Collector {
        graph: Mutex::default(),
        queue: Queue::new(),
        kinds: Mutex::default(),
    });
    let shell = shell.clone();
    let supervisor = shell.informers.supervisor().clone();
    supervisor.spawn("garbage-collector", move || {
        let (shell, this) = (shell.clone(), this.clone());
        async move {
            feed::run(&shell, &this).await;
            Ok::<(), std::convert::Infallible>(())
        }
    });
}

async fn worker(shell: Shell, this: Arc<Collector>) {
    while let Some(uid) = this.queue.get().await {
        match skiff_supervise::caught(look_at(&shell, &this, uid)).await {
            Ok(Ok(())) => this.queue.forget(&uid),
            Ok(Err(e)) => {
                tracing::debug!(error = %e, "garbage collection of an object failed; trying again");
                this.queue.add_rate_limited(uid);
            }
            Err(panic) => {
                tracing::error!(
                    panic,
                    "garbage collection of an object panicked; trying again"
                );
                this.queue.add_rate_limited(uid);
            }
        }
        this.queue.done(&uid);
    }
}

async fn look_at(shell: &Shell, this: &Collector, uid: Uid) -> Result<(), kube::Error> {
    let (seen, step, suspect) = {
        let graph = this.graph.lock();
        let Some(seen) = graph.get(uid).cloned() else {
            return Ok(());
        };
        let step = deleting(&graph, uid, &seen);
        let suspect = seen
            .owners
            .iter()
            .any(|o| state_of(&graph, o, &seen.namespace) != OwnerState::Solid);
        (seen, step, suspect)
    };
    if let Some(step) = step {
        return finish(shell, this, uid, &seen, step).await;
    }
    if !suspect {
        return Ok(());
    }
    // The graph says that something is to be done; what, the object says as it is now. An owner reference that was
    // taken away, or given, a moment ago counts.
    let Some(found) = live(shell, &seen, uid).await? else {
        return Ok(());
    };
    let node = feed::node(seen.kind, &found.metadata);
    let mut states = Vec::with_capacity(node.owners.len());
    for owner in &*node.owners {
        let known = state_of(&this.graph.lock(), owner, &node.namespace);
        states.push(if known == OwnerState::Unknown {
            ask(shell, this, owner, &node.namespace).await?
        } else {
            known
        });
    }
    let step = owned(&this.graph.lock(), uid, &node, &states);
    act(shell, &node, &found, step).await
}

/// Asks the API whether an owner that the graph lacks is there: the graph may lag, and only a live answer may delete.
async fn ask(
    shell: &Shell,
    this: &Collector,
    owner: &Owner,
    namespace: &str,
) -> Result<OwnerState, kube::Error> {
    let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
    let known = this
        .kinds
        .lock()
        .kinds
        .iter()
        .copied()
        .find(|d| d.kind.kind == owner.kind && d.kind.group == group);
    let Some(d) = known else {
        // A kind that is not served (a resource definition that is gone, or not yet there): leave the object alone,
        // as upstream does while its mapper cannot resolve the owner.
        return Ok(OwnerState::Solid);
    };
    if d.namespaced && namespace.is_empty() {
        // Where would a cluster's object have an owner that lives in a namespace? Nobody can say that it is gone.
        return Ok(OwnerState::Solid);
    }
    let path = d
        .kind
        .path(if d.namespaced { namespace } else { "" }, &owner.name);
    let request = feed::metadata_request(&path)?;
    let found =
        skiff_client::not_found_is_none(shell.client().request::<feed::Slim>(request).await)?;
    Ok(stands(found.as_ref(), owner.uid))
}

/// How an owner stands by the API's answer under its name.
pub fn stands(found: Option<&feed::Slim>, uid: Uid) -> OwnerState {
    match found.map(|f| &f.metadata) {
        Some(m) if Uid::of(&m.uid) == uid => {
            let foreground = m.finalizers.iter().any(|f| f == "foregroundDeletion");
            if m.deletion_timestamp.is_some() && foreground {
                OwnerState::Waiting
            } else {
                OwnerState::Solid
            }
        }
        _ => OwnerState::Absent,
    }
}

async fn live(shell: &Shell, node: &Node, uid: Uid) -> Result<Option<feed::Slim>, kube::Error> {
    let request = feed::metadata_request(&node.kind.path(&node.namespace, &node.name))?;
    let found =
        skiff_client::not_found_is_none(shell.client().request::<feed::Slim>(request).await)?;
    Ok(found.filter(|f| Uid::of(&f.metadata.uid) == uid))
}

/// The patch that changes lists of an object's metadata, if it is still as it was read.
pub fn change(
    found: &feed::Slim,
    owners: Option<Vec<Value>>,
    finalizers: Option<Vec<&str>>,
) -> Value {
    let m = &found.metadata;
    let mut metadata = json!({"uid": m.uid, "resourceVersion": m.resource_version});
    if let Some(o) = owners {
        metadata["ownerReferences"] = o.into();
    }
    if let Some(f) = finalizers {
        metadata["finalizers"] = json!(f);
    }
    json!({"metadata": metadata})
}

/// The owner references of an object but those of these uids; None when it has none of them.
pub fn owners_without(found: &feed::Slim, uids: &[String]) -> Option<Vec<Value>> {
    let all = &found.metadata.owner_references;
    let keep: Vec<Value> = all
        .iter()
        .filter(|o| !uids.iter().any(|u| o["uid"] == u.as_str()))
        .cloned()
        .collect();
    (keep.len() < all.len()).then_some(keep)
}

/// The owner references of an object, none of which makes its owner wait.
pub fn unblocked(found: &feed::Slim) -> Vec<Value> {
    let mut owners = found.metadata.owner_references.clone();
    for o in &mut owners {
        o["blockOwnerDeletion"] = false.into();
    }
    owners
}

async fn patch(shell: &Shell, node: &Node, patch: Value) -> Result<(), kube::Error> {
    let action = Action::Patch {
        kind: node.kind,
        namespace: node.namespace.to_string(),
        name: node.name.to_string(),
        subresource: "",
        patch,
    };
    execute(shell.client(), &action).await.map(|_| ())
}

/// Takes a finalizer away from an object that is being deleted.
async fn unfinalize(
    shell: &Shell,
    node: &Node,
    uid: Uid,
    finalizer: &str,
) -> Result<(), kube::Error> {
    let Some(found) = live(shell, node, uid).await? else {
        return Ok(());
    };
    let all = &found.metadata.finalizers;
    let keep: Vec<&str> = all
        .iter()
        .map(String::as_str)
        .filter(|f| *f != finalizer)
        .collect();
    if keep.len() == all.len() || found.metadata.deletion_timestamp.is_none() {
        return Ok(());
    }
    patch(shell, node, change(&found, None, Some(keep))).await
}

/// Carries out what an object's own deletion asks for.
async fn finish(
    shell: &Shell,
    this: &Collector,
    uid: Uid,
    node: &Node,
    step: Step,
) -> Result<(), kube::Error> {
    match step {
        Step::Look(uids) => {
            for u in uids {
                this.queue.add(u);
            }
            Ok(())
        }
        Step::Unfinalize(finalizer) => unfinalize(shell, node, uid, finalizer).await,
        Step::Orphan => {
            orphan(shell, this, uid, node).await?;
            unfinalize(shell, node, uid, "orphan").await
        }
        Step::Unblock => match live(shell, node, uid).await? {
            Some(found) => patch(shell, node, change(&found, Some(unblocked(&found)), None)).await,
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Takes an object away from everything that names it as an owner. Which these are the API is asked, not the graph: one
/// that the graph does not know yet would be deleted once its owner is gone.
async fn orphan(shell: &Shell, this: &Collector, uid: Uid, node: &Node) -> Result<(), kube::Error> {
    let Some(owner) = live(shell, node, uid).await? else {
        return Ok(());
    };
    let me = [owner.metadata.uid];
    let kinds = this.kinds.lock().kinds.clone();
    for d in kinds
        .iter()
        .filter(|d| feed::wanted(d) && (d.namespaced || node.namespace.is_empty()))
    {
        let namespace = if d.namespaced { &*node.namespace } else { "" };
        let mut owned = Vec::new();
        let each = |found: &feed::Slim| {
            if let Some(keep) = owners_without(found, &me) {
                let at = feed::node(d.kind, &found.metadata);
                owned.push((at, change(found, Some(keep), None)));
            }
        };
        match feed::each_of(shell, d.kind, namespace, each).await {
            // The kind is gone, and its objects with it.
            Err(e) if skiff_client::is_code(&e, 404) => continue,
            other => other?,
        };
        for (at, change) in owned {
            patch(shell, &at, change).await?;
        }
    }
    Ok(())
}

/// Carries out what the owners of an object decided, if it is still as it was read.
async fn act(
    shell: &Shell,
    node: &Node,
    found: &feed::Slim,
    step: Step,
) -> Result<(), kube::Error> {
    match step {
        Step::Delete(policy) => {
            let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy,
                "preconditions": {"uid": found.metadata.uid, "resourceVersion": found.metadata.resource_version}});
            let request = http::Request::delete(node.kind.path(&node.namespace, &node.name))
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(serde_json::to_vec(&options).map_err(kube::Error::SerdeError)?)
                .map_err(kube::Error::HttpError)?;
            // A conflict comes back: it is looked at anew, as it is then.
            skiff_client::not_found_is_none(shell.client().request::<Value>(request).await)
                .map(|_| ())
        }
        Step::Disown(owners) => match owners_without(found, &owners) {
            Some(keep) => patch(shell, node, change(found, Some(keep), None)).await,
            None => Ok(()),
        },
        Step::Unblock => patch(shell, node, change(found, Some(unblocked(found)), None)).await,
        _ => Ok(()),
    }
}

#[cfg(test)]
mod model_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Kind, PODS, REPLICASETS};

    fn node(kind: Kind, name: &str, owners: &[(u128, bool)]) -> Node {
        Node {
            kind,
            namespace: "ns".into(),
            name: name.into(),
            owners: owners
                .iter()
                .map(|(u, blocks)| Owner {
                    uid: Uid(*u),
                    uid_text: u.to_string().into(),
                    api_version: "apps/v1",
                    kind: "ReplicaSet",
                    name: "rs".into(),
                    blocks: *blocks,
                })
                .collect(),
            deleting: false,
            foreground: false,
            orphan: false,
        }
    }

    fn decide_for(graph: &Graph, uid: u128, unknown: OwnerState) -> Step {
        let node = graph.get(Uid(uid)).expect("there");
        let states: Vec<OwnerState> = node
            .owners
            .iter()
            .map(|o| match state_of(graph, o, &node.namespace) {
                OwnerState::Unknown => unknown,
                s => s,
            })
            .collect();
        deleting(graph, Uid(uid), node).unwrap_or_else(|| owned(graph, Uid(uid), node, &states))
    }

    #[test]
    fn what_lost_its_only_owner_is_deleted_and_what_has_another_is_disowned() {
        let mut g = Graph::default();
        g.set(Uid(1), node(REPLICASETS, "rs", &[]));
        g.set(Uid(2), node(PODS, "a", &[(1, true)]));
        g.set(Uid(3), node(PODS, "b", &[(1, true), (9, false)]));
        assert_eq!(decide_for(&g, 2, OwnerState::Absent), Step::Leave);
        assert_eq!(
            decide_for(&g, 3, OwnerState::Absent),
            Step::Disown(vec!["9".into()])
        );
        let mut look = g.remove(Uid(1));
        look.sort();
        assert_eq!(look, [Uid(2), Uid(3)]);
        assert_eq!(
            decide_for(&g, 2, OwnerState::Absent),
            Step::Delete("Background")
        );
        assert_eq!(
            decide_for(&g, 2, OwnerState::Solid),
            Step::Leave,
            "the API has it: the graph lags"
        );
    }

    #[test]
    fn foreground_deletion_waits_for_dependents_that_block() {
        let mut g = Graph::default();
        let mut owner = node(REPLICASETS, "rs", &[]);
        owner.deleting = true;
        owner.foreground = true;
        g.set(Uid(1), owner);
        g.set(Uid(2), node(PODS, "a", &[(1, true)]));
        assert_eq!(
            decide_for(&g, 1, OwnerState::Absent),
            Step::Look(vec![Uid(2)])
        );
        assert_eq!(
            decide_for(&g, 2, OwnerState::Absent),
            Step::Delete("Background")
        );
        assert!(g.remove(Uid(2)).contains(&Uid(1)));
        assert_eq!(
            decide_for(&g, 1, OwnerState::Absent),
            Step::Unfinalize("foregroundDeletion")
        );
    }

    #[test]
    fn orphaning_takes_the_owner_from_dependents() {
        let mut g = Graph::default();
        let mut owner = node(REPLICASETS, "rs", &[]);
        owner.deleting = true;
        owner.orphan = true;
        g.set(Uid(1), owner);
        g.set(Uid(2), node(PODS, "a", &[(1, true)]));
        assert_eq!(decide_for(&g, 1, OwnerState::Absent), Step::Orphan);
    }
}
