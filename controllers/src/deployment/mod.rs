//! Deployment controller: moves pods from old ReplicaSets to the one of the current template
//! (pkg/controller/deployment). The parts: [`sets`] (which set is new, hashes, revisions), [`rolling`] (how many pods
//! each set may have), [`status`].

pub mod rolling;
pub mod sets;
pub mod status;

use crate::action::{Action, DEPLOYMENTS, REPLICASETS};
use crate::claim;
use crate::model::{controller_of, is_terminal, is_uid, owner_key};
use crate::shell::{Controller, Shell};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use skiff_client::{Cache, ObjectKey, labels};
use std::sync::Arc;

/// What a sync sees.
pub struct Observed<'a> {
    /// The deployment.
    pub deployment: &'a Deployment,
    /// The ReplicaSets of its namespace.
    pub sets: &'a [Arc<ReplicaSet>],
    /// The pods of its namespace (Recreate waits for the old ones to end).
    pub pods: &'a [Arc<Pod>],
}

/// spec.replicas of a set.
pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

/// status.availableReplicas of a set.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|s| s.available_replicas)
        .unwrap_or(0)
}

/// What to do.
pub fn reconcile(o: &Observed, now: Timestamp) -> Vec<Action> {
    let d = o.deployment;
    let Some(spec) = &d.spec else {
        return Vec::new();
    };
    let uid = d.metadata.uid.as_deref().unwrap_or_default();
    let deleting = d.metadata.deletion_timestamp.is_some();
    let mut actions = Vec::new();
    let mut mine: Vec<&ReplicaSet> = Vec::new();
    for set in o.sets.iter().map(Arc::as_ref) {
        let matches = labels::matches(Some(&spec.selector), set.metadata.labels.as_ref());
        match controller_of(&set.metadata) {
            Some(owner) if owner.uid == uid => {
                if matches {
                    mine.push(set);
                } else if !deleting {
                    actions.push(claim::release(REPLICASETS, &set.metadata, uid, None));
                }
            }
            None if matches && !deleting && set.metadata.deletion_timestamp.is_none() => {
                actions.push(claim::adopt(
                    REPLICASETS,
                    &set.metadata,
                    DEPLOYMENTS,
                    &d.metadata,
                    None,
                ));
                mine.push(set);
            }
            _ => {}
        }
    }
    mine.sort_by_key(|s| sets::age(s));
    let (new, old) = sets::split(d, &mine);
    if deleting {
        actions.extend(status::patch(d, new, &old, now));
        return actions;
    }
    let paused = spec.paused.unwrap_or(false);
    if paused || rolling::is_scaling(d, &mine) {
        actions.extend(rolling::scale(d, new, &old));
        if paused {
            actions.extend(sets::clean_up(d, &old));
        }
        actions.extend(status::patch(d, new, &old, now));
        return actions;
    }
    let recreate = spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate");
    if recreate {
        let down: Vec<Action> = old
            .iter()
            .filter(|s| wanted(s) > 0)
            .flat_map(|s| rolling::scale_to(d, s, 0))
            .collect();
        if !down.is_empty() {
            actions.extend(down);
            actions.extend(status::patch(d, new, &old, now));
            return actions;
        }
        let old_running = o.pods.iter().any(|p| {
            !is_terminal(p)
                && controller_of(&p.metadata)
                    .is_some_and(|c| old.iter().any(|s| is_uid(&s.metadata, &c.uid)))
        });
        if !old_running {
            actions.extend(sets::ensure_new(d, new, &old));
            if let Some(new) = new {
                actions.extend(rolling::scale_to(d, new, spec.replicas.unwrap_or(1)));
            }
        }
    } else {
        actions.extend(sets::ensure_new(d, new, &old));
        if let Some(new) = new {
            let up = rolling::new_set(d, new, &old);
            if up.is_empty() {
                actions.extend(rolling::old_sets(d, new, &old));
            } else {
                actions.extend(up);
            }
        }
    }
    if status::complete(d, new, &old) {
        actions.extend(sets::clean_up(d, &old));
    }
    actions.extend(status::patch(d, new, &old, now));
    actions.extend(status::progress_due(d, now).map(Action::After));
    actions
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "deployment-controller", false);
    let deployments = shell.informers.cache::<Deployment>();
    let sets = shell.informers.cache::<ReplicaSet>();
    let pods = shell.informers.cache::<Pod>();
    shell.watch(&deployments, &controller.queue, |d, _| {
        vec![ObjectKey::of(d)]
    });
    let all = deployments.clone();
    shell.watch(&sets, &controller.queue, move |set, old| {
        let mut keys: Vec<ObjectKey> = [Some(set), old]
            .into_iter()
            .flatten()
            .filter_map(|s| owner_key(&s.metadata, "Deployment"))
            .collect();
        if controller_of(&set.metadata).is_none() {
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            keys.extend(all.list_namespace(namespace).iter().filter_map(|d| {
                let selector = d.spec.as_ref().map(|s| &s.selector);
                labels::matches(selector, set.metadata.labels.as_ref()).then(|| ObjectKey::of(&**d))
            }));
        }
        keys
    });
    // Recreate waits for the last old pod to be gone.
    let (of_sets, of_deployments) = (sets.clone(), deployments.clone());
    shell.watch(&pods, &controller.queue, move |pod, old| {
        if old.is_some() && pod.metadata.deletion_timestamp.is_none() && !is_terminal(pod) {
            return Vec::new();
        }
        let Some(set) =
            owner_key(&pod.metadata, "ReplicaSet").and_then(|k| of_sets.get(&k.namespace, &k.name))
        else {
            return Vec::new();
        };
        let Some(key) = owner_key(&set.metadata, "Deployment") else {
            return Vec::new();
        };
        let recreate = of_deployments
            .get(&key.namespace, &key.name)
            .and_then(|d| d.spec.as_ref()?.strategy.as_ref()?.type_.clone())
            .is_some_and(|t| t == "Recreate");
        if recreate { vec![key] } else { Vec::new() }
    });
    let ready = {
        let (deployments, sets, pods) = (deployments.clone(), sets.clone(), pods.clone());
        async move {
            deployments.synced().await;
            sets.synced().await;
            pods.synced().await;
        }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work("deployment", controller.queue.clone(), ready, move |key| {
        let (shell, me) = (this.clone(), me.clone());
        let (deployments, sets, pods) = (deployments.clone(), sets.clone(), pods.clone());
        async move { sync(&shell, &me, &deployments, &sets, &pods, &key).await }
    });
}

async fn sync(
    shell: &Shell,
    controller: &Controller,
    deployments: &Cache<Deployment>,
    sets: &Cache<ReplicaSet>,
    pods: &Cache<Pod>,
    key: &ObjectKey,
) -> Result<(), kube::Error> {
    let Some(deployment) = deployments.get(&key.namespace, &key.name) else {
        return Ok(());
    };
    let sets = sets.list_namespace(&key.namespace);
    let pods = pods.list_namespace(&key.namespace);
    let observed = Observed {
        deployment: &deployment,
        sets: &sets,
        pods: &pods,
    };
    let actions = reconcile(&observed, Timestamp::now());
    let result = shell
        .run_actions(controller, key, &*deployment, actions)
        .await;
    if let Err(e) = &result
        && skiff_client::is_code(e, 409)
        && sets::collides(&deployment, &sets)
    {
        // A set of that name is there and is not ours: count the collision, so that the next name differs.
        let _ = crate::action::execute(shell.client(), &sets::count_collision(&deployment)).await;
    }
    result
}

#[cfg(test)]
mod tests;
