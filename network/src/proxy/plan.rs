//! What a Service asks of a node: which addresses and ports lead to which endpoints. Pure: objects in, rules out.
//!
//! Follows upstream's pkg/proxy (servicechangetracker, endpointslicecache, topology.CategorizeEndpoints). IPv4 only;
//! topology hints and traffic distribution are not looked at.

use crate::Cidr;
use crate::pod::Protocol;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Whose packets a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Everybody's, unless an [`Scope::External`] rule of the same front comes first.
    Cluster,
    /// Packets from outside the cluster, where externalTrafficPolicy is Local.
    External,
}

/// What clients speak to. The address 0.0.0.0 stands for every address of the node (node ports).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Front {
    /// Cluster IP, external IP, load balancer IP; 0.0.0.0 for a node port.
    pub address: Ipv4Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// An endpoint's address and port.
pub type Target = (Ipv4Addr, u16);

/// Where a front leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To one of these, sorted and without doubles, never empty.
    Balance {
        /// The endpoints.
        targets: Arc<[Target]>,
        /// Seconds that a client address stays with its endpoint (sessionAffinity ClientIP).
        affinity: Option<u32>,
    },
    /// Nowhere: the client is told at once (no endpoints at all).
    Reject,
    /// Nowhere, silently (there are endpoints, but the policy Local leaves none on this node).
    Drop,
}

/// One rule of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Whose packets.
    pub scope: Scope,
    /// To which front.
    pub front: Front,
    /// Go where.
    pub action: Action,
    /// Only from these networks (loadBalancerSourceRanges); empty for all.
    pub sources: Arc<[Cidr]>,
}

/// What the plan needs to know of the node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name, as endpoints' nodeName has it.
    pub name: String,
    /// The cluster DNS address, which our DNS server listens on itself: no rule is made for it.
    pub cluster_dns: Option<Ipv4Addr>,
}

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Is this object another proxy's? Upstream skips both labels on Services and on slices.
fn is_foreign(labels: Option<&std::collections::BTreeMap<String, String>>) -> bool {
    labels.is_some_and(|l| l.contains_key(PROXY_NAME) || l.contains_key(HEADLESS))
}

/// Endpoints of one Service port, by what they are good for.
#[derive(Default)]
struct Endpoints {
    ready: BTreeSet<Target>,
    ready_here: BTreeSet<Target>,
    terminating: BTreeSet<Target>,
    terminating_here: BTreeSet<Target>,
    /// Ready ones that are meant for this node (hints.forNodes).
    meant: BTreeSet<Target>,
    /// Some ready one is not meant for any node: then nobody keeps to what is meant.
    unmeant: bool,
}

impl Endpoints {
    /// Ready ones, of these those that are meant for this node if there are any (trafficDistribution PreferSameNode, as
    /// upstream's topology.go reads it); when there is none, those that terminate but still serve.
    fn cluster(&self) -> Arc<[Target]> {
        let from = if !self.unmeant && !self.meant.is_empty() {
            &self.meant
        } else if self.ready.is_empty() {
            &self.terminating
        } else {
            &self.ready
        };
        from.iter().copied().collect()
    }

    fn local(&self) -> Arc<[Target]> {
        let from = if self.ready_here.is_empty() {
            &self.terminating_here
        } else {
            &self.ready_here
        };
        from.iter().copied().collect()
    }
}

fn endpoints(
    slices: &[Arc<EndpointSlice>],
    port_name: &str,
    protocol: Protocol,
    node: &Node,
) -> Endpoints {
    let mut all = Endpoints::default();
    for slice in slices {
        if slice.address_type != "IPv4" || is_foreign(slice.metadata.labels.as_ref()) {
            continue;
        }
        for port in slice.ports.iter().flatten() {
            let same = port.name.as_deref().unwrap_or("") == port_name
                && Protocol::parse(port.protocol.as_deref().unwrap_or("TCP")) == Some(protocol);
            let Some(number) = port.port.and_then(|p| u16::try_from(p).ok()) else {
                continue;
            };
            if !same || number == 0 {
                continue;
            }
            for endpoint in slice.endpoints.iter().flatten() {
                // All addresses of an endpoint are the same by definition: upstream takes the first.
                let Some(address) = endpoint
                    .addresses
                    .first()
                    .and_then(|a| a.parse::<Ipv4Addr>().ok())
                else {
                    continue;
                };
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
                let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
                let here = endpoint.node_name.as_deref() == Some(node.name.as_str());
                let target = (address, number);
                if ready {
                    all.ready.insert(target);
                    let hints = endpoint.hints.as_ref().and_then(|h| h.for_nodes.as_ref());
                    match hints.filter(|h| !h.is_empty()) {
                        Some(nodes) if nodes.iter().any(|n| n.name == node.name) => {
                            all.meant.insert(target);
                        }
                        Some(_) => {}
                        None => all.unmeant = true,
                    }
                    if here {
                        all.ready_here.insert(target);
                    }
                } else if serving && terminating {
                    all.terminating.insert(target);
                    if here {
                        all.terminating_here.insert(target);
                    }
                }
            }
        }
    }
    all
}

/// The rules of one Service, given its EndpointSlices. Headless Services, ExternalName Services, other proxies'
/// Services and the cluster DNS Service have none.
pub fn plan(service: &Service, slices: &[Arc<EndpointSlice>], node: &Node) -> Vec<Rule> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") || is_foreign(service.metadata.labels.as_ref())
    {
        return Vec::new();
    }
    // clusterIPs has both families; clusterIP is its first (and all that old objects have).
    let cluster_ip = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(&spec.cluster_ip)
        .find_map(|a| a.parse::<Ipv4Addr>().ok());
    let Some(cluster_ip) = cluster_ip else {
        return Vec::new();
    };
    if node.cluster_dns == Some(cluster_ip) {
        return Vec::new();
    }
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        spec.session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref())
            .and_then(|c| c.timeout_seconds)
            .and_then(|s| u32::try_from(s).ok())
            .filter(|s| *s > 0)
            .unwrap_or(10_800)
    });
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let everybody: Arc<[Cidr]> = Arc::new([]);
    let sources: Arc<[Cidr]> = spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .filter_map(|s| s.trim().parse().ok())
        .collect();
    let exposed = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));

    let mut rules = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP")) else {
            continue;
        };
        let Ok(number) = u16::try_from(port.port) else {
            continue;
        };
        let endpoints = endpoints(slices, port.name.as_deref().unwrap_or(""), protocol, node);
        let all = endpoints.cluster();
        let here = endpoints.local();
        let balance = |targets: &Arc<[Target]>, otherwise: Action| {
            if targets.is_empty() {
                otherwise
            } else {
                Action::Balance {
                    targets: targets.clone(),
                    affinity,
                }
            }
        };
        let cluster = balance(&all, Action::Reject);
        let local = balance(
            &here,
            if all.is_empty() {
                Action::Reject
            } else {
                Action::Drop
            },
        );
        rules.push(Rule {
            scope: Scope::Cluster,
            front: Front {
                address: cluster_ip,
                protocol,
                port: number,
            },
            action: if internal_local {
                local.clone()
            } else {
                cluster.clone()
            },
            sources: everybody.clone(),
        });
        let mut external = Vec::new();
        for ip in spec.external_ips.iter().flatten() {
            external.push((ip.parse().ok(), number, &everybody));
        }
        if spec.type_.as_deref() == Some("LoadBalancer") {
            let ingress = service
                .status
                .as_ref()
                .and_then(|s| s.load_balancer.as_ref())
                .and_then(|l| l.ingress.as_ref());
            for entry in ingress.into_iter().flatten() {
                // ipMode Proxy: the balancer wants to see the packets itself.
                if entry.ip_mode.as_deref() != Some("Proxy") {
                    let ip = entry.ip.as_deref().and_then(|ip| ip.parse().ok());
                    external.push((ip, number, &sources));
                }
            }
        }
        if exposed
            && let Some(node_port) = port
                .node_port
                .and_then(|p| u16::try_from(p).ok())
                .filter(|p| *p > 0)
        {
            external.push((Some(Ipv4Addr::UNSPECIFIED), node_port, &everybody));
        }
        for (address, port, sources) in external {
            let Some(address) = address else { continue };
            let front = Front {
                address,
                protocol,
                port,
            };
            // Senders inside the cluster may use every endpoint even where the policy is Local, as upstream lets
            // them: for them no client address is lost.
            rules.push(Rule {
                scope: Scope::Cluster,
                front,
                action: cluster.clone(),
                sources: sources.clone(),
            });
            if external_local && cluster != Action::Reject {
                rules.push(Rule {
                    scope: Scope::External,
                    front,
                    action: local.clone(),
                    sources: sources.clone(),
                });
            }
        }
    }
    rules
}

/// The health check node port of a Service (type LoadBalancer, externalTrafficPolicy Local) with the number of its
/// ready endpoints on this node.
pub fn health(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    node: &Node,
) -> Option<(u16, usize)> {
    let spec = service.spec.as_ref()?;
    let asked = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local")
        && !is_foreign(service.metadata.labels.as_ref());
    let port = u16::try_from(spec.health_check_node_port?).ok()?;
    if !asked || port == 0 {
        return None;
    }
    let here: BTreeSet<&str> = slices
        .iter()
        .flat_map(|s| s.endpoints.iter().flatten())
        .filter(|e| e.node_name.as_deref() == Some(node.name.as_str()))
        .filter(|e| e.conditions.as_ref().and_then(|c| c.ready) != Some(false))
        .filter_map(|e| e.addresses.first().map(String::as_str))
        .collect();
    Some((port, here.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node() -> Node {
        Node {
            name: "n1".into(),
            cluster_dns: Some(Ipv4Addr::new(10, 43, 0, 10)),
        }
    }

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec}))
            .expect("a service")
    }

    fn slice(endpoints: serde_json::Value) -> Arc<EndpointSlice> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": "s-1", "namespace": "d"},
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            }))
            .expect("a slice"),
        )
    }

    fn show(rules: &[Rule]) -> Vec<String> {
        rules
            .iter()
            .map(|r| {
                let action = match &r.action {
                    Action::Balance { targets, affinity } => {
                        let all: Vec<String> =
                            targets.iter().map(|(a, p)| format!("{a}:{p}")).collect();
                        let stay = affinity.map_or(String::new(), |s| format!(" for {s}s"));
                        format!("{}{stay}", all.join(","))
                    }
                    other => format!("{other:?}"),
                };
                let f = r.front;
                format!(
                    "{:?} {}:{}/{:?} -> {action}",
                    r.scope, f.address, f.port, f.protocol
                )
            })
            .collect()
    }

    fn check(spec: serde_json::Value, endpoints: serde_json::Value, want: &[&str]) {
        let got = show(&plan(&service(spec), &[slice(endpoints)], &node()));
        assert_eq!(got, want);
    }

    fn web() -> serde_json::Value {
        json!([{"name": "web", "port": 80}])
    }

    #[test]
    fn every_field_of_a_services_spec_has_its_effect_or_a_reason_for_none() {
        let mut table = std::collections::BTreeMap::new();
        for line in include_str!("fields.txt").lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (head, fields) = line.split_once(": ").expect(line);
            let mut words = head.split(' ');
            let (def, how) = (words.next().expect(line), words.next().expect(line));
            assert!(["handled", "refused", "nothing"].contains(&how), "{line}");
            for field in fields.split(' ') {
                assert!(
                    table.insert((def, field), how).is_none(),
                    "{def}.{field} stands twice"
                );
            }
        }
        let mut todo = vec![skiff_api::schema::lookup("io.k8s.api.core.v1.ServiceSpec")];
        let mut missing = Vec::new();
        let mut seen = 0;
        while let Some(def) = todo.pop() {
            for field in def.fields {
                match table.get(&(def.short(), field.name)) {
                    None => missing.push(format!("{}.{}", def.short(), field.name)),
                    Some(_) => seen += 1,
                }
                let ty = field.ty.element().unwrap_or(&field.ty);
                todo.extend(ty.def());
            }
        }
        assert!(
            missing.is_empty(),
            "fields of which nobody has decided: {missing:?}"
        );
        assert_eq!(seen, table.len(), "lines that the schema does not know");
    }

    #[test]
    fn a_cluster_ip_leads_to_its_ready_endpoints_sorted() {
        check(
            json!({"clusterIP": "10.43.0.5", "ports": web()}),
            json!([
                {"addresses": ["10.42.0.9"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.3"]},
                {"addresses": ["10.42.0.4"], "conditions": {"ready": false}},
                {"addresses": ["not an address"]},
            ]),
            &["Cluster 10.43.0.5:80/Tcp -> 10.42.0.3:8080,10.42.0.9:8080"],
        );
    }

    #[test]
    fn endpoints_that_are_meant_for_this_node_are_preferred_if_all_are_meant_for_one() {
        let e = |address: &str, node: &str| json!({"addresses": [address], "hints": {"forNodes": [{"name": node}]}});
        let me = node().name;
        let spec = || json!({"clusterIP": "10.43.0.5", "ports": web()});
        check(
            spec(),
            json!([e("10.42.0.3", &me), e("10.42.0.9", "another")]),
            &["Cluster 10.43.0.5:80/Tcp -> 10.42.0.3:8080"],
        );
        check(
            spec(),
            json!([e("10.42.0.9", "another")]),
            &["Cluster 10.43.0.5:80/Tcp -> 10.42.0.9:8080"],
        );
        check(
            spec(),
            json!([e("10.42.0.3", &me), {"addresses": ["10.42.0.9"]}]),
            &["Cluster 10.43.0.5:80/Tcp -> 10.42.0.3:8080,10.42.0.9:8080"],
        );
    }

    #[test]
    fn without_endpoints_a_service_rejects() {
        check(
            json!({"type": "NodePort", "clusterIP": "10.43.0.5", "externalTrafficPolicy": "Local",
                "ports": [{"name": "web", "port": 80, "nodePort": 30080}]}),
            json!([]),
            &[
                "Cluster 10.43.0.5:80/Tcp -> Reject",
                "Cluster 0.0.0.0:30080/Tcp -> Reject",
            ],
        );
    }

    #[test]
    fn endpoints_that_terminate_but_serve_are_the_last_resort() {
        let dying = json!({"ready": false, "serving": true, "terminating": true});
        check(
            json!({"clusterIP": "10.43.0.5", "ports": web()}),
            json!([{"addresses": ["10.42.0.3"], "conditions": dying}]),
            &["Cluster 10.43.0.5:80/Tcp -> 10.42.0.3:8080"],
        );
        check(
            json!({"clusterIP": "10.43.0.5", "ports": web()}),
            json!([{"addresses": ["10.42.0.3"], "conditions": dying}, {"addresses": ["10.42.0.4"]}]),
            &["Cluster 10.43.0.5:80/Tcp -> 10.42.0.4:8080"],
        );
    }

    #[test]
    fn local_policies_keep_to_this_node_and_drop_when_it_has_none() {
        let two = json!([
            {"addresses": ["10.42.0.3"], "nodeName": "n1"},
            {"addresses": ["10.42.1.3"], "nodeName": "n2"},
        ]);
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.43.0.5", "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Local", "ports": [{"name": "web", "port": 80, "nodePort": 30080}]});
        check(
            spec.clone(),
            two,
            &[
                "Cluster 10.43.0.5:80/Tcp -> 10.42.0.3:8080",
                "Cluster 0.0.0.0:30080/Tcp -> 10.42.0.3:8080,10.42.1.3:8080",
                "External 0.0.0.0:30080/Tcp -> 10.42.0.3:8080",
            ],
        );
        check(
            spec,
            json!([{"addresses": ["10.42.1.3"], "nodeName": "n2"}]),
            &[
                "Cluster 10.43.0.5:80/Tcp -> Drop",
                "Cluster 0.0.0.0:30080/Tcp -> 10.42.1.3:8080",
                "External 0.0.0.0:30080/Tcp -> Drop",
            ],
        );
    }

    #[test]
    fn external_and_balancer_addresses_protocols_and_affinity_are_followed() {
        let mut s = service(
            json!({"type": "LoadBalancer", "clusterIPs": ["fd00::5", "10.43.0.5"], "clusterIP": "fd00::5",
            "externalIPs": ["192.0.2.7", "fd00::1"], "sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
        );
        s.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
            {"ip": "192.0.2.8"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}, {"hostname": "x"}]}}))
        .ok();
        let rules = plan(&s, &[slice(json!([{"addresses": ["10.42.0.3"]}]))], &node());
        assert_eq!(
            show(&rules),
            [
                "Cluster 10.43.0.5:53/Udp -> 10.42.0.3:53 for 10800s",
                "Cluster 192.0.2.7:53/Udp -> 10.42.0.3:53 for 10800s",
                "Cluster 192.0.2.8:53/Udp -> 10.42.0.3:53 for 10800s",
            ]
        );
        assert!(rules[1].sources.is_empty());
        assert_eq!(rules[2].sources.len(), 1);
    }

    #[test]
    fn only_ready_endpoints_of_this_node_make_it_healthy() {
        let s = service(
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "clusterIP": "10.43.0.5", "ports": web()}),
        );
        let slices = [slice(json!([
            {"addresses": ["10.42.0.3"], "nodeName": "n1"},
            {"addresses": ["10.42.0.4"], "nodeName": "n1", "conditions": {"ready": false}},
            {"addresses": ["10.42.1.3"], "nodeName": "n2"}]))];
        assert_eq!(health(&s, &slices, &node()), Some((31000, 1)));
        let s =
            service(json!({"type": "LoadBalancer", "healthCheckNodePort": 31000, "ports": web()}));
        assert_eq!(health(&s, &slices, &node()), None);
    }

    #[test]
    fn headless_external_name_foreign_and_dns_services_have_no_rules() {
        for spec in [
            json!({"clusterIP": "None", "ports": web()}),
            json!({"type": "ExternalName", "externalName": "x.example", "ports": web()}),
            json!({"clusterIP": "10.43.0.10", "ports": web()}),
            json!({}),
        ] {
            check(spec, json!([{"addresses": ["10.42.0.3"]}]), &[]);
        }
        let mut foreign = service(json!({"clusterIP": "10.43.0.5", "ports": web()}));
        foreign.metadata.labels = Some([(PROXY_NAME.to_string(), "x".to_string())].into());
        assert!(plan(&foreign, &[], &node()).is_empty());
    }
}
