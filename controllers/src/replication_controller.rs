//! ReplicationController controller (pkg/controller/replication): as upstream, a ReplicaSet in other clothes. Each is
//! seen as a set, and [`crate::replicaset`] decides.

use crate::action::REPLICATIONCONTROLLERS;
use crate::model::{controller_of, owner_key};
use crate::replicaset::{Observed, reconcile};
use crate::shell::{Controller, Shell};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use skiff_client::{Cache, ObjectKey, labels};

/// The controller as a set.
pub fn as_set(rc: &ReplicationController) -> ReplicaSet {
    let spec = rc.spec.as_ref().map(|s| ReplicaSetSpec {
        min_ready_seconds: s.min_ready_seconds,
        replicas: s.replicas,
        selector: LabelSelector {
            match_labels: s.selector.clone(),
            match_expressions: None,
        },
        template: s.template.clone(),
    });
    let status = rc.status.as_ref().map(|s| ReplicaSetStatus {
        replicas: s.replicas,
        fully_labeled_replicas: s.fully_labeled_replicas,
        ready_replicas: s.ready_replicas,
        available_replicas: s.available_replicas,
        observed_generation: s.observed_generation,
        terminating_replicas: None,
        conditions: s.conditions.as_ref().map(|all| {
            let same = all.iter().map(|c| ReplicaSetCondition {
                type_: c.type_.clone(),
                status: c.status.clone(),
                reason: c.reason.clone(),
                message: c.message.clone(),
                last_transition_time: c.last_transition_time.clone(),
            });
            same.collect()
        }),
    });
    ReplicaSet {
        metadata: rc.metadata.clone(),
        spec,
        status,
    }
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let me = Controller::new(shell, "replication-controller", true);
    let all = shell.informers.cache::<ReplicationController>();
    let pods = shell.informers.cache::<Pod>();
    shell.watch(&all, &me.queue, |rc, _| vec![ObjectKey::of(rc)]);
    let (known, pending) = (all.clone(), me.pending.clone());
    shell.watch(&pods, &me.queue, move |pod, old| {
        let mut keys = Vec::new();
        if let Some(key) = owner_key(&pod.metadata, "ReplicationController") {
            pending.seen(&key, pod.metadata.name.as_deref().unwrap_or_default());
            keys.push(key);
        } else if controller_of(&pod.metadata).is_none()
            && pod.metadata.deletion_timestamp.is_none()
        {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for rc in known.list_namespace(namespace) {
                let selector = rc.spec.as_ref().and_then(|s| s.selector.as_ref());
                if labels::map_matches(selector, pod.metadata.labels.as_ref()) {
                    keys.push(ObjectKey::of(&*rc));
                }
            }
        }
        let was = old.and_then(|o| owner_key(&o.metadata, "ReplicationController"));
        keys.extend(was.filter(|k| !keys.contains(k)));
        keys
    });
    let ready = {
        let (all, pods) = (all.clone(), pods.clone());
        async move {
            all.synced().await;
            pods.synced().await;
        }
    };
    let this = shell.clone();
    shell.work("replication", me.queue.clone(), ready, move |key| {
        let (shell, me, all, pods) = (this.clone(), me.clone(), all.clone(), pods.clone());
        async move { sync(&shell, &me, &all, &pods, &key).await }
    });
}

async fn sync(
    shell: &Shell,
    me: &Controller,
    all: &Cache<ReplicationController>,
    pods: &Cache<Pod>,
    key: &ObjectKey,
) -> Result<(), kube::Error> {
    let Some(rc) = all.get(&key.namespace, &key.name) else {
        me.pending.forget(key);
        return Ok(());
    };
    let pods = pods.list_namespace(&key.namespace);
    let caught_up =
        me.pending
            .caught_up_with(key, rc.metadata.uid.as_deref().unwrap_or_default(), &pods);
    let set = as_set(&rc);
    let observed = Observed {
        kind: REPLICATIONCONTROLLERS,
        set: &set,
        pods: &pods,
        caught_up,
    };
    let mut actions = reconcile(&observed, Timestamp::now(), &mut rand::random);
    for a in &mut actions {
        // A field that replication controllers do not have.
        if let crate::action::Action::Patch {
            subresource: "status",
            patch,
            ..
        } = a
            && let Some(s) = patch["status"].as_object_mut()
        {
            s.remove("terminatingReplicas");
        }
    }
    let result = shell.run_actions(me, key, &*rc, actions).await;
    if let Err(e) = &result
        && !skiff_client::is_code(e, 404)
        && !skiff_client::is_code(e, 409)
        && let Some(patch) = crate::replicaset::failed(&observed, Timestamp::now(), e)
    {
        let _ = crate::action::execute(shell.client(), &patch).await;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use serde_json::json;

    #[test]
    fn pods_are_made_as_a_set_makes_them_but_are_owned_by_the_controller() {
        let rc: ReplicationController = serde_json::from_value(json!({"metadata": {"name": "r", "namespace": "ns", "uid": "u"},
            "spec": {"replicas": 1, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}}}}))
        .expect("a controller");
        let set = as_set(&rc);
        let o = Observed {
            kind: REPLICATIONCONTROLLERS,
            set: &set,
            pods: &[],
            caught_up: true,
        };
        let actions = reconcile(&o, Timestamp::UNIX_EPOCH, &mut || 0);
        let owner = actions.iter().find_map(|a| match a {
            Action::Create { object, .. } => Some(object["metadata"]["ownerReferences"][0].clone()),
            _ => None,
        });
        let owner = owner.expect("a pod");
        assert_eq!(
            (&owner["apiVersion"], &owner["kind"]),
            (&json!("v1"), &json!("ReplicationController"))
        );
    }
}
