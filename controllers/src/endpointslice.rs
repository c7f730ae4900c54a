//! EndpointSlice controller: the addresses behind each Service with a selector (pkg/controller/endpointslice). Slices
//! hold up to 100 endpoints; changes touch as few slices as they can, because every slice that changes is sent to
//! every node.

use crate::action::{Action, ENDPOINTSLICES};
use crate::model::{controller_of, controller_ref, is_ready, is_terminal, safe_hash};
use crate::shell::{Controller, Shell};
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use skiff_client::{Cache, ObjectKey, labels};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Endpoints in a slice at the most (upstream's default).
pub const MAX_ENDPOINTS: usize = 100;
/// Label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const ME: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What a sync sees.
pub struct Observed<'a> {
    /// The service.
    pub service: &'a Service,
    /// The pods of its namespace.
    pub pods: &'a [Arc<Pod>],
    /// The slices of its namespace.
    pub slices: &'a [Arc<EndpointSlice>],
    /// Zones of nodes that have one (the label topology.kubernetes.io/zone).
    pub zones: &'a BTreeMap<String, String>,
}

/// The number of a service port on a pod: a number, or the container port of that name; None when the pod has none.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| {
                    p.name.as_deref() == Some(name)
                        && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

/// Pods behind a service: they match, have an address and are not finished.
pub fn backends<'a>(service: &Service, pods: &'a [Arc<Pod>]) -> Vec<&'a Pod> {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    pods.iter()
        .map(Arc::as_ref)
        .filter(|p| labels::map_matches(selector, p.metadata.labels.as_ref()))
        .filter(|p| !is_terminal(p) && !addresses(p).is_empty())
        .collect()
}

/// The pod's addresses.
pub fn addresses(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let mut all: Vec<String> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|i| i.ip.clone())
        .filter(|i| !i.is_empty())
        .collect();
    if all.is_empty() {
        all.extend(status.pod_ip.clone().filter(|i| !i.is_empty()));
    }
    all
}

/// The pod's name in the headless service's domain, when it has one there.
pub fn hostname_in(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    (spec.subdomain == service.metadata.name)
        .then(|| spec.hostname.clone())
        .flatten()
        .filter(|h| !h.is_empty())
}

/// Who is to prefer an endpoint, by the service's trafficDistribution (upstream endpointslice/trafficdist): its own
/// zone, or its own node and then its zone. None where nothing is known of that.
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<Value> {
    let wish = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let zones = zone.map(|z| json!([{"name": z}]));
    match (wish, zones, node) {
        ("PreferClose" | "PreferSameZone", Some(zones), _) => Some(json!({"forZones": zones})),
        ("PreferSameNode", Some(zones), Some(n)) => {
            Some(json!({"forNodes": [{"name": n}], "forZones": zones}))
        }
        ("PreferSameNode", None, Some(n)) => Some(json!({"forNodes": [{"name": n}]})),
        _ => None,
    }
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: &str,
    zones: &BTreeMap<String, String>,
) -> Value {
    let publish = service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = is_ready(pod);
    let mut e = json!({
        "addresses": [address],
        "conditions": {"ready": publish || (serving && !terminating), "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "namespace": pod.metadata.namespace, "name": pod.metadata.name, "uid": pod.metadata.uid},
    });
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    let zone = node.and_then(|n| zones.get(n)).map(String::as_str);
    if let Some(node) = node {
        e["nodeName"] = node.into();
    }
    if let Some(zone) = zone {
        e["zone"] = zone.into();
    }
    if let Some(hints) = hints(service, node, zone) {
        e["hints"] = hints;
    }
    if let Some(hostname) = hostname_in(service, pod) {
        e["hostname"] = hostname.into();
    }
    e
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn ports_of(service: &Service, pod: &Pod) -> Option<Value> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|s| s.ports.as_deref())
        .unwrap_or(&[]);
    let mut out = Vec::new();
    for p in ports {
        let Some(number) = target_port(pod, p) else {
            continue;
        };
        let mut v = json!({"name": p.name.clone().unwrap_or_default(),
            "protocol": p.protocol.clone().unwrap_or_else(|| "TCP".into()), "port": number});
        if let Some(app) = &p.app_protocol {
            v["appProtocol"] = app.clone().into();
        }
        out.push(v);
    }
    // A service with ports of which the pod has none is not behind it.
    (ports.is_empty() || !out.is_empty()).then_some(Value::Array(out))
}

fn family(address: &str) -> &'static str {
    if address.contains(':') {
        "IPv6"
    } else {
        "IPv4"
    }
}

/// What to do.
pub fn reconcile(o: &Observed) -> Vec<Action> {
    let service = o.service;
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let name = service.metadata.name.clone().unwrap_or_default();
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName")
        || spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
        || service.metadata.deletion_timestamp.is_some()
    {
        return Vec::new();
    }
    let families: Vec<String> = spec
        .ip_families
        .clone()
        .unwrap_or_else(|| vec!["IPv4".into()]);
    // (family, ports) -> pod uid and address -> endpoint
    let mut want: BTreeMap<(String, String), BTreeMap<String, Value>> = BTreeMap::new();
    let mut ports_by_text: BTreeMap<String, Value> = BTreeMap::new();
    for pod in backends(service, o.pods) {
        let Some(ports) = ports_of(service, pod) else {
            continue;
        };
        let text = ports.to_string();
        ports_by_text.insert(text.clone(), ports);
        for address in addresses(pod) {
            let f = family(&address);
            if !families.iter().any(|x| x == f) {
                continue;
            }
            let id = format!(
                "{}/{address}",
                pod.metadata.uid.as_deref().unwrap_or_default()
            );
            want.entry((f.to_string(), text.clone()))
                .or_default()
                .insert(id, endpoint(service, pod, &address, o.zones));
        }
    }
    for f in &families {
        // A service without endpoints has one empty slice, so that watchers know of it.
        if !want.keys().any(|(have, _)| have == f) {
            ports_by_text.insert("[]".into(), json!([]));
            want.insert((f.clone(), "[]".into()), BTreeMap::new());
        }
    }
    let mine: Vec<&EndpointSlice> = o
        .slices
        .iter()
        .map(Arc::as_ref)
        .filter(|s| {
            let label = |k: &str| {
                s.metadata
                    .labels
                    .as_ref()
                    .and_then(|l| l.get(k))
                    .map(String::as_str)
            };
            label(SERVICE_NAME) == Some(&name)
                && label(MANAGED_BY) == Some(ME)
                && controller_of(&s.metadata)
                    .is_none_or(|c| Some(c.uid.as_str()) == service.metadata.uid.as_deref())
        })
        .collect();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|k, _| k != HEADLESS && k != SERVICE_NAME && k != MANAGED_BY);
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), ME.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let taken: BTreeSet<&str> = mine
        .iter()
        .filter_map(|s| s.metadata.name.as_deref())
        .collect();
    let mut kept = BTreeSet::new();
    let mut actions = Vec::new();
    for ((f, text), mut endpoints) in want {
        let ports = ports_by_text
            .get(&text)
            .cloned()
            .unwrap_or_else(|| json!([]));
        let here: Vec<&EndpointSlice> = mine
            .iter()
            .copied()
            .filter(|s| s.address_type == f && same_ports(s, &ports))
            .collect();
        // Endpoints that stay where they are.
        let mut contents: Vec<(Option<&EndpointSlice>, Vec<Value>)> = here
            .iter()
            .map(|s| {
                let stay = s
                    .endpoints
                    .iter()
                    .flatten()
                    .filter_map(|e| endpoints.remove(&id_of(e)))
                    .collect();
                (Some(*s), stay)
            })
            .collect();
        // New ones go where there is room, fullest slices first, then into slices of their own.
        let mut rest: Vec<Value> = endpoints.into_values().collect();
        contents.sort_by_key(|(_, e)| std::cmp::Reverse(e.len()));
        for (_, list) in &mut contents {
            let room = MAX_ENDPOINTS.saturating_sub(list.len()).min(rest.len());
            list.extend(rest.drain(..room));
        }
        while !rest.is_empty() {
            let n = rest.len().min(MAX_ENDPOINTS);
            contents.push((None, rest.drain(..n).collect()));
        }
        // Empty slices go, but one stays (or comes) when there is nothing at all.
        let any = contents.iter().any(|(_, e)| !e.is_empty());
        let mut placeholder = !any;
        if contents.is_empty() {
            contents.push((None, Vec::new()));
        }
        let mut index = 0;
        for (slice, list) in contents {
            if list.is_empty() && !std::mem::take(&mut placeholder) {
                continue;
            }
            match slice {
                Some(s) => {
                    kept.insert(s.metadata.name.clone().unwrap_or_default());
                    if differs(s, &list, &labels) {
                        actions.push(Action::Patch {
                            kind: ENDPOINTSLICES,
                            namespace: namespace.clone(),
                            name: s.metadata.name.clone().unwrap_or_default(),
                            subresource: "",
                            patch: json!({"metadata": {"uid": s.metadata.uid, "labels": labels}, "endpoints": list, "ports": ports}),
                        });
                    }
                }
                None => {
                    // Names follow from the contents' place, so that a lagging cache cannot make two of one.
                    let slice_name = loop {
                        let n = format!("{name}-{}", &safe_hash(&json!([f, text, index]), 0));
                        index += 1;
                        if !taken.contains(n.as_str()) {
                            break n;
                        }
                    };
                    let object = json!({
                        "metadata": {"name": slice_name, "labels": labels,
                            "ownerReferences": [controller_ref("v1", "Service", &service.metadata)]},
                        "addressType": f, "endpoints": list, "ports": ports,
                    });
                    actions.push(Action::Create {
                        kind: ENDPOINTSLICES,
                        namespace: namespace.clone(),
                        object,
                    });
                }
            }
        }
    }
    for s in mine {
        let n = s.metadata.name.clone().unwrap_or_default();
        if !kept.contains(&n) {
            actions.push(Action::delete(ENDPOINTSLICES, &s.metadata));
        }
    }
    actions
}

fn id_of(e: &k8s_openapi::api::discovery::v1::Endpoint) -> String {
    let uid = e
        .target_ref
        .as_ref()
        .and_then(|t| t.uid.clone())
        .unwrap_or_default();
    format!("{uid}/{}", e.addresses.first().map_or("", String::as_str))
}

fn normal_ports(ports: &Value) -> Vec<String> {
    let mut all: Vec<String> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| {
            format!(
                "{} {} {} {}",
                p["name"].as_str().unwrap_or(""),
                p["protocol"].as_str().unwrap_or("TCP"),
                p["port"],
                p["appProtocol"].as_str().unwrap_or("")
            )
        })
        .collect();
    all.sort();
    all
}

fn same_ports(slice: &EndpointSlice, ports: &Value) -> bool {
    normal_ports(&json!(slice.ports.clone().unwrap_or_default())) == normal_ports(ports)
}

fn differs(slice: &EndpointSlice, list: &[Value], labels: &BTreeMap<String, String>) -> bool {
    let have: Vec<Value> = slice.endpoints.iter().flatten().map(|e| json!(e)).collect();
    have != list || slice.metadata.labels.as_ref() != Some(labels)
}

/// Puts the services that select a pod (now or before) into the queue, where its part in them may have changed.
pub fn services_of(services: &Cache<Service>, pod: &Pod, old: Option<&Pod>) -> Vec<ObjectKey> {
    if let Some(old) = old
        && old.metadata.labels == pod.metadata.labels
        && addresses(old) == addresses(pod)
        && is_ready(old) == is_ready(pod)
        && is_terminal(old) == is_terminal(pod)
        && old.metadata.deletion_timestamp.is_some() == pod.metadata.deletion_timestamp.is_some()
        && old.spec.as_ref().map(|s| &s.node_name) == pod.spec.as_ref().map(|s| &s.node_name)
    {
        return Vec::new();
    }
    services
        .list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default())
        .iter()
        .filter(|s| {
            let selector = s.spec.as_ref().and_then(|x| x.selector.as_ref());
            labels::map_matches(selector, pod.metadata.labels.as_ref())
                || old.is_some_and(|o| labels::map_matches(selector, o.metadata.labels.as_ref()))
        })
        .map(|s| ObjectKey::of(&**s))
        .collect()
}

fn zone_of(node: &Node) -> Option<String> {
    let labels = node.metadata.labels.as_ref()?;
    labels.get("topology.kubernetes.io/zone").cloned()
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "endpoint-slice-controller", false);
    let services = shell.informers.cache::<Service>();
    let pods = shell.informers.cache::<Pod>();
    let slices = shell.informers.cache::<EndpointSlice>();
    let nodes = shell.informers.cache::<Node>();
    let everywhere = services.clone();
    shell.watch(&nodes, &controller.queue, move |node, old| {
        // A node's zone is part of its endpoints.
        let moved = zone_of(node).is_some() && old.is_none()
            || old.is_some_and(|o| zone_of(o) != zone_of(node));
        let all = if moved { everywhere.list() } else { Vec::new() };
        all.iter().map(|s| ObjectKey::of(&**s)).collect()
    });
    shell.watch(&services, &controller.queue, |s, _| vec![ObjectKey::of(s)]);
    let all = services.clone();
    shell.watch(&pods, &controller.queue, move |pod, old| {
        services_of(&all, pod, old)
    });
    shell.watch(&slices, &controller.queue, |s, _| {
        let labels = s.metadata.labels.as_ref();
        let mine = labels
            .and_then(|l| l.get(MANAGED_BY))
            .is_some_and(|v| v == ME);
        let name = labels.and_then(|l| l.get(SERVICE_NAME)).filter(|_| mine);
        name.map(|n| ObjectKey::new(s.metadata.namespace.clone().unwrap_or_default(), n))
            .into_iter()
            .collect()
    });
    let ready = {
        let (services, pods, slices) = (services.clone(), pods.clone(), slices.clone());
        let nodes = nodes.clone();
        async move {
            services.synced().await;
            pods.synced().await;
            slices.synced().await;
            nodes.synced().await;
        }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work(
        "endpointslice",
        controller.queue.clone(),
        ready,
        move |key| {
            let (shell, me) = (this.clone(), me.clone());
            let (services, pods, slices) = (services.clone(), pods.clone(), slices.clone());
            let nodes = nodes.clone();
            async move {
                let Some(service) = services.get(&key.namespace, &key.name) else {
                    return Ok(());
                };
                let pods = pods.list_namespace(&key.namespace);
                let slices = slices.list_namespace(&key.namespace);
                let zones = nodes
                    .list()
                    .iter()
                    .filter_map(|n| Some((n.metadata.name.clone()?, zone_of(n)?)))
                    .collect();
                let actions = reconcile(&Observed {
                    service: &service,
                    pods: &pods,
                    slices: &slices,
                    zones: &zones,
                });
                shell.run_actions(&me, &key, &*service, actions).await
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.43.0.9", "ports": [{"port": 80, "targetPort": "http"}]}}))
        .expect("a service")
    }

    fn pod(n: usize, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": format!("p{n}"), "namespace": "ns", "uid": format!("u{n}"), "labels": {"app": "web"}},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": format!("10.42.0.{n}"),
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
            .expect("a pod"),
        )
    }

    #[test]
    fn trafficdistribution_becomes_hints_for_the_nearest() {
        let of = |wish: &str, zones: &BTreeMap<String, String>| {
            let mut s = service();
            s.spec.as_mut().expect("a spec").traffic_distribution = Some(wish.into());
            endpoint(&s, &pod(1, true), "10.42.0.1", zones)
        };
        let (none, some) = (
            BTreeMap::new(),
            BTreeMap::from([("n".to_string(), "z".to_string())]),
        );
        let zone = json!([{"name": "z"}]);
        let node = json!([{"name": "n"}]);
        for wish in ["PreferClose", "PreferSameZone"] {
            assert_eq!(of(wish, &some)["hints"], json!({"forZones": zone}));
            assert_eq!(of(wish, &none)["hints"], Value::Null, "no zone is known");
        }
        assert_eq!(
            of("PreferSameNode", &some)["hints"],
            json!({"forNodes": node, "forZones": zone})
        );
        assert_eq!(
            of("PreferSameNode", &none)["hints"],
            json!({"forNodes": node})
        );
        assert_eq!(of("PreferSameNode", &some)["zone"], "z");
        assert_eq!(
            endpoint(&service(), &pod(1, true), "10.42.0.1", &some)["hints"],
            Value::Null
        );
    }

    /// Carries creations, patches and deletions out.
    fn apply(slices: &mut Vec<Arc<EndpointSlice>>, actions: Vec<Action>) -> usize {
        let n = actions.len();
        for a in actions {
            match a {
                Action::Create { object, .. } => {
                    let mut o = object;
                    o["metadata"]["uid"] = o["metadata"]["name"].clone();
                    slices.push(Arc::new(serde_json::from_value(o).expect("a slice")));
                }
                Action::Patch { name, patch, .. } => {
                    let s = slices
                        .iter_mut()
                        .find(|s| s.metadata.name.as_deref() == Some(&name))
                        .expect("there");
                    let mut v = json!(**s);
                    v["endpoints"] = patch["endpoints"].clone();
                    v["ports"] = patch["ports"].clone();
                    v["metadata"]["labels"] = patch["metadata"]["labels"].clone();
                    *s = Arc::new(serde_json::from_value(v).expect("a slice"));
                }
                Action::Delete { name, .. } => {
                    slices.retain(|s| s.metadata.name.as_deref() != Some(&name))
                }
                other => panic!("{other:?}"),
            }
        }
        n
    }

    fn count(s: &EndpointSlice) -> usize {
        s.endpoints.as_ref().map_or(0, Vec::len)
    }

    fn round(slices: &mut Vec<Arc<EndpointSlice>>, pods: &[Arc<Pod>]) -> usize {
        let s = service();
        let actions = reconcile(&Observed {
            service: &s,
            pods,
            slices,
            zones: &BTreeMap::new(),
        });
        apply(slices, actions)
    }

    #[test]
    fn endpoints_follow_pods_and_a_second_look_changes_nothing() {
        let mut slices = Vec::new();
        assert_eq!(round(&mut slices, &[]), 1, "an empty slice");
        let pods: Vec<_> = (1..=3).map(|n| pod(n, n != 2)).collect();
        round(&mut slices, &pods);
        assert_eq!(round(&mut slices, &pods), 0);
        assert_eq!(slices.len(), 1);
        let ready: Vec<bool> = slices[0]
            .endpoints
            .iter()
            .flatten()
            .filter_map(|e| e.conditions.as_ref()?.ready)
            .collect();
        assert_eq!(ready.iter().filter(|r| **r).count(), 2);
        assert_eq!(slices[0].ports.as_ref().and_then(|p| p[0].port), Some(8080));
        round(&mut slices, &[]);
        assert_eq!(round(&mut slices, &[]), 0);
        assert_eq!((slices.len(), count(&slices[0])), (1, 0));
    }

    #[test]
    fn many_endpoints_fill_slices_of_a_hundred_and_one_more_touches_one_slice() {
        let mut slices = Vec::new();
        let mut pods: Vec<_> = (1..=250).map(|n| pod(n, true)).collect();
        round(&mut slices, &pods);
        let mut sizes: Vec<_> = slices.iter().map(|s| count(s)).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [50, 100, 100]);
        pods.push(pod(251, true));
        assert_eq!(round(&mut slices, &pods), 1);
        assert_eq!(round(&mut slices, &pods), 0);
    }

    #[test]
    fn a_pod_without_the_named_port_is_not_behind_the_service() {
        let mut p = (*pod(1, true)).clone();
        p.spec.as_mut().expect("spec").containers[0].ports = None;
        let mut slices = Vec::new();
        round(&mut slices, &[Arc::new(p)]);
        assert!(count(&slices[0]) == 0);
    }
}
