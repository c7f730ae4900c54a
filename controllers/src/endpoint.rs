//! Endpoints controller: the older form of a Service's addresses, one object of the Service's name
//! (pkg/controller/endpoint). Nothing of ours reads it; users and older clients do.

use crate::action::{Action, ENDPOINTS};
use crate::endpointslice::{addresses, backends, hostname_in, services_of, target_port};
use crate::model::is_ready;
use crate::shell::{Controller, Shell};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use serde_json::{Value, json};
use skiff_client::ObjectKey;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Addresses in an object at the most (upstream truncates there and says so in an annotation).
const MAX_ADDRESSES: usize = 1000;
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What to do for a service, given its pods and the object that is there.
pub fn reconcile(service: &Service, pods: &[Arc<Pod>], have: Option<&Endpoints>) -> Vec<Action> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    if spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
        || spec.type_.as_deref() == Some("ExternalName")
        || service.metadata.deletion_timestamp.is_some()
    {
        return Vec::new();
    }
    let publish = spec.publish_not_ready_addresses.unwrap_or(false);
    // ports -> (ready, not ready)
    let mut subsets: BTreeMap<String, (Value, Vec<Value>, Vec<Value>)> = BTreeMap::new();
    let ports = spec.ports.as_deref().unwrap_or(&[]);
    let mut backends = backends(service, pods);
    backends.sort_by_key(|p| addresses(p));
    for pod in backends.into_iter().take(MAX_ADDRESSES) {
        let deleting = pod.metadata.deletion_timestamp.is_some();
        if deleting && !publish {
            continue;
        }
        let Some(ip) = addresses(pod).into_iter().next() else {
            continue;
        };
        let mut address = json!({"ip": ip, "targetRef": {"kind": "Pod", "namespace": pod.metadata.namespace,
            "name": pod.metadata.name, "uid": pod.metadata.uid}});
        if let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone()) {
            address["nodeName"] = node.into();
        }
        if let Some(h) = hostname_in(service, pod) {
            address["hostname"] = h.into();
        }
        let mut list = Vec::new();
        for p in ports {
            let Some(number) = target_port(pod, p) else {
                continue;
            };
            let mut v = json!({"port": number, "protocol": p.protocol.clone().unwrap_or_else(|| "TCP".into())});
            if let Some(name) = p.name.clone().filter(|n| !n.is_empty()) {
                v["name"] = name.into();
            }
            list.push(v);
        }
        if list.is_empty() && !ports.is_empty() {
            continue;
        }
        let value = Value::Array(list);
        let entry = subsets
            .entry(value.to_string())
            .or_insert((value, Vec::new(), Vec::new()));
        if publish || is_ready(pod) {
            entry.1.push(address)
        } else {
            entry.2.push(address)
        }
    }
    let subsets: Vec<Value> = subsets
        .into_values()
        .map(|(ports, ready, not)| {
            let mut s = json!({});
            if !ready.is_empty() {
                s["addresses"] = ready.into();
            }
            if !not.is_empty() {
                s["notReadyAddresses"] = not.into();
            }
            if ports.as_array().is_some_and(|p| !p.is_empty()) {
                s["ports"] = ports;
            }
            s
        })
        .collect();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if spec.cluster_ip.as_deref() == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let name = service.metadata.name.clone().unwrap_or_default();
    match have {
        None => vec![Action::Create {
            kind: ENDPOINTS,
            namespace,
            object: json!({"metadata": {"name": name, "labels": labels}, "subsets": subsets}),
        }],
        Some(e) => {
            let now: Vec<Value> = e.subsets.iter().flatten().map(|s| json!(s)).collect();
            if now == subsets && e.metadata.labels.as_ref() == Some(&labels) {
                return Vec::new();
            }
            vec![Action::Patch {
                kind: ENDPOINTS,
                namespace,
                name,
                subresource: "",
                patch: json!({"metadata": {"labels": labels}, "subsets": subsets}),
            }]
        }
    }
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "endpoint-controller", false);
    let services = shell.informers.cache::<Service>();
    let pods = shell.informers.cache::<Pod>();
    let endpoints = shell.informers.cache::<Endpoints>();
    shell.watch(&services, &controller.queue, |s, _| vec![ObjectKey::of(s)]);
    let all = services.clone();
    shell.watch(&pods, &controller.queue, move |pod, old| {
        services_of(&all, pod, old)
    });
    shell.watch(&endpoints, &controller.queue, |e, _| vec![ObjectKey::of(e)]);
    let ready = {
        let (services, pods, endpoints) = (services.clone(), pods.clone(), endpoints.clone());
        async move {
            services.synced().await;
            pods.synced().await;
            endpoints.synced().await;
        }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work("endpoint", controller.queue.clone(), ready, move |key| {
        let (shell, me) = (this.clone(), me.clone());
        let (services, pods, endpoints) = (services.clone(), pods.clone(), endpoints.clone());
        async move {
            let have = endpoints.get(&key.namespace, &key.name);
            let Some(service) = services.get(&key.namespace, &key.name) else {
                // The Service is gone: its Endpoints go with it (they have no owner, as upstream's have none).
                let Some(e) = have.filter(|e| {
                    e.metadata
                        .labels
                        .as_ref()
                        .is_some_and(|l| l.contains_key(MANAGED_BY))
                }) else {
                    return Ok(());
                };
                let delete = Action::delete(ENDPOINTS, &e.metadata);
                return crate::action::execute(shell.client(), &delete)
                    .await
                    .map(|_| ());
            };
            let pods = pods.list_namespace(&key.namespace);
            let actions = reconcile(&service, &pods, have.as_deref());
            shell.run_actions(&me, &key, &*service, actions).await
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_and_other_addresses_are_told_apart_and_a_second_look_changes_nothing() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}))
        .expect("a service");
        let pod = |n: usize, ready: &str| -> Arc<Pod> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": format!("p{n}"), "namespace": "ns", "uid": "u", "labels": {"app": "web"}},
                "spec": {"containers": []}, "status": {"podIP": format!("10.0.0.{n}"), "conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("a pod"))
        };
        let pods = [pod(1, "True"), pod(2, "False")];
        let actions = reconcile(&service, &pods, None);
        let [Action::Create { object, .. }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!(object["subsets"][0]["addresses"][0]["ip"], "10.0.0.1");
        assert_eq!(
            object["subsets"][0]["notReadyAddresses"][0]["ip"],
            "10.0.0.2"
        );
        let have: Endpoints = serde_json::from_value(object.clone()).expect("endpoints");
        assert!(reconcile(&service, &pods, Some(&have)).is_empty());
    }
}
