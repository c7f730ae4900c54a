//! Garbage collector: deletes what no longer has an owner, and carries foreground and orphaning deletions out
//! (pkg/controller/garbagecollector). [`graph`] remembers who owns whom, [`feed`] keeps it current from metadata alone,
//! [`decide`] is pure.

pub mod feed;
pub mod graph;

use crate::action::{Action, execute};
use crate::shell::Shell;
use graph::{Graph, Node, Owner, Uid};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_client::Queue;
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
    /// The graph does not have it; the API must be asked.
    Unknown,
}

/// How an owner stands, as far as the graph knows.
pub fn state_of(graph: &Graph, owner: &Owner, dependent_namespace: &str) -> OwnerState {
    match graph.get(owner.uid) {
        None => OwnerState::Unknown,
        // An owner in another namespace is no owner (upstream says so in an event).
        Some(o) if !o.namespace.is_empty() && &*o.namespace != dependent_namespace => {
            OwnerState::Absent
        }
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
    /// Take a finalizer away.
    Unfinalize(&'static str),
    /// Take this object away from the owners of these, then its finalizer `orphan`.
    Orphan(Vec<Uid>),
    /// It waits for these dependents: look at them.
    Look(Vec<Uid>),
}

/// Decides for one object. `states` are those of its owners, in their order, none of them Unknown.
pub fn decide(graph: &Graph, uid: Uid, node: &Node, states: &[OwnerState]) -> Step {
    if node.deleting && node.orphan {
        return Step::Orphan(graph.dependents(uid).map(|(d, _)| d).collect());
    }
    if node.waits_for_dependents() {
        let blocking: Vec<Uid> = graph
            .dependents(uid)
            .filter(|(_, d)| d.owners.iter().any(|o| o.uid == uid && o.blocks))
            .map(|(d, _)| d)
            .collect();
        if blocking.is_empty() {
            return Step::Unfinalize("foregroundDeletion");
        }
        return Step::Look(
            graph
                .dependents(uid)
                .filter(|(_, d)| !d.deleting)
                .map(|(d, _)| d)
                .collect(),
        );
    }
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
        return Step::Delete("Foreground");
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
    kinds: Mutex<Vec<crate::discovery::Deletable>>,
}

/// Starts the collector.
pub fn start(shell: &Shell) {
    let this = Arc::new(Collector {
        graph: Mutex::default(),
        queue: Queue::new(),
        kinds: Mutex::default(),
    });
    let shell = shell.clone();
    tokio::spawn(async move {
        let stop = shell.stopped();
        tokio::select! {
            () = stop.cancelled() => {}
            () = feed::run(&shell, &this) => {}
        }
        this.queue.shut_down();
    });
}

async fn worker(shell: Shell, this: Arc<Collector>) {
    while let Some(uid) = this.queue.get().await {
        match look_at(&shell, &this, uid).await {
            Ok(()) => this.queue.forget(&uid),
            Err(e) => {
                tracing::debug!(error = %e, "garbage collection of an object failed; trying again");
                this.queue.add_rate_limited(uid);
            }
        }
        this.queue.done(&uid);
    }
}

async fn look_at(shell: &Shell, this: &Collector, uid: Uid) -> Result<(), kube::Error> {
    let (node, mut states) = {
        let graph = this.graph.lock();
        let Some(node) = graph.get(uid).cloned() else {
            return Ok(());
        };
        let states: Vec<OwnerState> = node
            .owners
            .iter()
            .map(|o| state_of(&graph, o, &node.namespace))
            .collect();
        (node, states)
    };
    for (owner, state) in node.owners.iter().zip(&mut states) {
        if *state == OwnerState::Unknown {
            *state = ask(shell, this, owner, &node.namespace).await?;
        }
    }
    let step = decide(&this.graph.lock(), uid, &node, &states);
    act(shell, this, uid, &node, step).await
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
        .iter()
        .copied()
        .find(|d| d.kind.kind == owner.kind && d.kind.group == group);
    let Some(d) = known else {
        // A kind that is not served (a resource definition that is gone, or not yet there): leave the object alone,
        // as upstream does while its mapper cannot resolve the owner.
        return Ok(OwnerState::Solid);
    };
    let path = d
        .kind
        .path(if d.namespaced { namespace } else { "" }, &owner.name);
    let request = feed::metadata_request(&path)?;
    match skiff_client::not_found_is_none(shell.client().request::<feed::Slim>(request).await)? {
        Some(found) if Uid::of(&found.metadata.uid) == owner.uid => {
            let foreground = found
                .metadata
                .finalizers
                .iter()
                .any(|f| f == "foregroundDeletion");
            let waiting = found.metadata.deletion_timestamp.is_some() && foreground;
            Ok(if waiting {
                OwnerState::Waiting
            } else {
                OwnerState::Solid
            })
        }
        _ => Ok(OwnerState::Absent),
    }
}

async fn live(shell: &Shell, node: &Node, uid: Uid) -> Result<Option<feed::Slim>, kube::Error> {
    let request = feed::metadata_request(&node.kind.path(&node.namespace, &node.name))?;
    let found =
        skiff_client::not_found_is_none(shell.client().request::<feed::Slim>(request).await)?;
    Ok(found.filter(|f| Uid::of(&f.metadata.uid) == uid))
}

fn patch(node: &Node, patch: Value) -> Action {
    Action::Patch {
        kind: node.kind,
        namespace: node.namespace.to_string(),
        name: node.name.to_string(),
        subresource: "",
        patch,
    }
}

/// Writes owners or finalizers anew, under the resourceVersion they were read at.
async fn without(
    shell: &Shell,
    node: &Node,
    uid: Uid,
    owners: &[String],
    finalizer: Option<&str>,
) -> Result<(), kube::Error> {
    let Some(found) = live(shell, node, uid).await? else {
        return Ok(());
    };
    let mut metadata =
        json!({"uid": found.metadata.uid, "resourceVersion": found.metadata.resource_version});
    if !owners.is_empty() {
        let keep: Vec<&Value> = found
            .metadata
            .owner_references
            .iter()
            .filter(|o| !owners.iter().any(|u| o["uid"] == u.as_str()))
            .collect();
        if keep.len() == found.metadata.owner_references.len() {
            return Ok(());
        }
        metadata["ownerReferences"] = json!(keep);
    }
    if let Some(f) = finalizer {
        let keep: Vec<&String> = found
            .metadata
            .finalizers
            .iter()
            .filter(|x| *x != f)
            .collect();
        if keep.len() == found.metadata.finalizers.len() {
            return Ok(());
        }
        metadata["finalizers"] = json!(keep);
    }
    execute(shell.client(), &patch(node, json!({"metadata": metadata})))
        .await
        .map(|_| ())
}

async fn act(
    shell: &Shell,
    this: &Collector,
    uid: Uid,
    node: &Node,
    step: Step,
) -> Result<(), kube::Error> {
    match step {
        Step::Leave => Ok(()),
        Step::Look(uids) => {
            for u in uids {
                this.queue.add(u);
            }
            Ok(())
        }
        Step::Delete(policy) => {
            let Some(found) = live(shell, node, uid).await? else {
                return Ok(());
            };
            let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy,
                "preconditions": {"uid": found.metadata.uid}});
            let request = http::Request::delete(node.kind.path(&node.namespace, &node.name))
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(serde_json::to_vec(&options).map_err(kube::Error::SerdeError)?)
                .map_err(kube::Error::HttpError)?;
            match shell.client().request::<Value>(request).await {
                Err(e) if skiff_client::is_code(&e, 404) || skiff_client::is_code(&e, 409) => {
                    Ok(())
                }
                other => other.map(|_| ()),
            }
        }
        Step::Disown(owners) => without(shell, node, uid, &owners, None).await,
        Step::Unfinalize(finalizer) => without(shell, node, uid, &[], Some(finalizer)).await,
        Step::Orphan(dependents) => {
            for d in dependents {
                let Some(dependent) = this.graph.lock().get(d).cloned() else {
                    continue;
                };
                let me: Vec<String> = dependent
                    .owners
                    .iter()
                    .filter(|o| o.uid == uid)
                    .map(|o| o.uid_text.to_string())
                    .collect();
                without(shell, &dependent, d, &me, None).await?;
            }
            without(shell, node, uid, &[], Some("orphan")).await
        }
    }
}

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
                    name: "x".into(),
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
        decide(graph, Uid(uid), node, &states)
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
        assert_eq!(
            decide_for(&g, 1, OwnerState::Absent),
            Step::Orphan(vec![Uid(2)])
        );
    }
}
