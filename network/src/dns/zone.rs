//! The cluster's zone: what a name means, answered from Services, EndpointSlices and namespaces. Pure: no sockets, no
//! clock; the caller shuffles answers.
//!
//! Follows the Kubernetes DNS specification 1.1.0 as CoreDNS's kubernetes plugin implements it with kubeadm's
//! settings (`pods insecure`, reverse zones): which names exist decides between NXDOMAIN and an empty answer.

use crate::Cidr;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::name::{CNAME, NS, PTR};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_client::{Cache, Event, ObjectKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Seconds that answers of the zone may be kept.
pub const TTL: u32 = 5;
/// Version of the specification that `dns-version` names.
const VERSION: &str = "1.1.0";

/// An answer.
#[derive(Debug, Default)]
pub struct Answer {
    /// NoError or NXDomain.
    pub code: ResponseCode,
    /// Records of the name.
    pub answers: Vec<Record>,
    /// Addresses of names in `answers`.
    pub additionals: Vec<Record>,
    /// A name outside the zone that the last CNAME leads to: its addresses belong into the answer too.
    pub follow: Option<Name>,
}

/// What is known of the cluster.
pub struct Zone {
    apex: Name,
    labels: Vec<String>,
    address: Ipv4Addr,
    local: Vec<Cidr>,
    services: Cache<Service>,
    namespaces: Cache<Namespace>,
    slices: HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>,
}

/// ExternalNames that are followed inside the zone.
const MAX_CNAMES: u8 = 8;

/// A question about a Service.
#[derive(Clone, Copy)]
struct Asked<'a> {
    name: &'a Name,
    kind: RecordType,
    /// One endpoint only.
    endpoint: Option<&'a str>,
    /// One port (name, protocol) only.
    port: Option<(&'a str, &'a str)>,
    /// CNAMEs followed so far.
    depth: u8,
}

/// An endpoint address under a name.
struct Found {
    host: Name,
    address: IpAddr,
    port: u16,
}

fn labels_of(name: &Name) -> Vec<String> {
    name.iter()
        .map(|l| String::from_utf8_lossy(l).to_ascii_lowercase())
        .collect()
}

/// Name of an endpoint below its Service: its hostname, or its address with dashes.
fn endpoint_name(hostname: Option<&str>, address: &str) -> String {
    match hostname.filter(|h| !h.is_empty()) {
        Some(h) => h.to_ascii_lowercase(),
        None => address.replace(['.', ':'], "-"),
    }
}

/// The address that a pod's name stands for.
fn pod_address(label: &str) -> Option<IpAddr> {
    if label.matches('-').count() == 3 && !label.contains("--") {
        return label
            .replace('-', ".")
            .parse::<Ipv4Addr>()
            .ok()
            .map(IpAddr::V4);
    }
    label
        .replace('-', ":")
        .parse::<Ipv6Addr>()
        .ok()
        .map(IpAddr::V6)
}

fn strip(label: &str) -> &str {
    label.strip_prefix('_').unwrap_or(label)
}

/// Does an object's port match what was asked for (None: any)?
fn port_matches(wanted: Option<(&str, &str)>, name: Option<&str>, protocol: Option<&str>) -> bool {
    wanted.is_none_or(|(port, proto)| {
        port.eq_ignore_ascii_case(name.unwrap_or(""))
            && proto.eq_ignore_ascii_case(protocol.unwrap_or("TCP"))
    })
}

fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|s| s.cluster_ip.as_deref())
        .is_none_or(|ip| ip == "None" || ip.is_empty())
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(a) => RData::A(A(a)),
        IpAddr::V6(a) => RData::AAAA(AAAA(a)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

fn wants(kind: RecordType, address: IpAddr) -> bool {
    match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        _ => false,
    }
}

impl Zone {
    /// A zone over caches. `domain` is `cluster.local`; `address` is where it is served; `local` are networks whose
    /// reverse names nobody else knows.
    ///
    /// # Errors
    /// When the domain is no name.
    pub fn new(
        domain: &str,
        address: Ipv4Addr,
        local: Vec<Cidr>,
        services: Cache<Service>,
        namespaces: Cache<Namespace>,
    ) -> Result<Self, hickory_proto::ProtoError> {
        let mut apex = Name::from_ascii(domain)?;
        apex.set_fqdn(true);
        Ok(Self {
            labels: labels_of(&apex),
            apex,
            address,
            local,
            services,
            namespaces,
            slices: HashMap::new(),
        })
    }

    /// A slice came, changed or went.
    pub fn slice(&mut self, event: &Event<EndpointSlice>) {
        let owner = |s: &EndpointSlice| {
            let name = s
                .metadata
                .labels
                .as_ref()?
                .get("kubernetes.io/service-name")?;
            let namespace = s.metadata.namespace.clone().unwrap_or_default();
            Some(ObjectKey::new(namespace, name.clone()))
        };
        let (new, old) = match event {
            Event::Applied { new, old } => (Some(new), old.as_ref()),
            Event::Deleted(old) => (None, Some(old)),
            Event::Synced => return,
        };
        if let Some(old) = old
            && let Some(key) = owner(old)
            && let Some(slices) = self.slices.get_mut(&key)
        {
            slices.remove(old.metadata.name.as_deref().unwrap_or(""));
            if slices.is_empty() {
                self.slices.remove(&key);
            }
        }
        if let Some(new) = new
            && let Some(key) = owner(new)
        {
            let name = new.metadata.name.clone().unwrap_or_default();
            self.slices
                .entry(key)
                .or_default()
                .insert(name, new.clone());
        }
    }

    /// The zone's SOA record, which goes with every negative answer.
    pub fn soa(&self) -> Record {
        let at = |labels: &[&str]| self.name(labels);
        let soa = SOA::new(
            at(&["ns", "dns"]),
            at(&["hostmaster"]),
            1,
            7200,
            1800,
            86400,
            TTL,
        );
        Record::from_rdata(self.apex.clone(), TTL, RData::SOA(soa))
    }

    /// A name below the apex. Labels that cannot be are left out: they come from validated objects.
    fn name(&self, labels: &[&str]) -> Name {
        let all = labels.iter().map(|l| l.as_bytes()).chain(self.apex.iter());
        let mut name = Name::from_labels(all).unwrap_or_else(|_| self.apex.clone());
        name.set_fqdn(true);
        name
    }

    /// The answer to a question, None when the name is not ours (to be forwarded).
    pub fn answer(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        self.answer_at(name, kind, 0)
    }

    fn answer_at(&self, name: &Name, kind: RecordType, depth: u8) -> Option<Answer> {
        let labels = labels_of(name);
        if let Some(address) = reverse_address(&labels) {
            return self.reverse(name, kind, address);
        }
        let inner = labels.len().checked_sub(self.labels.len())?;
        if labels[inner..] != self.labels[..] {
            return None;
        }
        let inner: Vec<&str> = labels[..inner].iter().map(String::as_str).collect();
        Some(self.inside(name, kind, &inner, depth).unwrap_or(Answer {
            code: ResponseCode::NXDomain,
            ..Answer::default()
        }))
    }

    /// None is NXDOMAIN.
    fn inside(&self, name: &Name, kind: RecordType, labels: &[&str], depth: u8) -> Option<Answer> {
        let mut answer = Answer::default();
        let own = |data| Record::from_rdata(name.clone(), TTL, data);
        match labels {
            [] => match kind {
                RecordType::SOA => answer.answers.push(self.soa()),
                RecordType::NS => {
                    let server = self.name(&["ns", "dns"]);
                    answer.answers.push(own(RData::NS(NS(server.clone()))));
                    let address = address_record(&server, IpAddr::V4(self.address));
                    answer.additionals.push(address);
                }
                _ => {}
            },
            ["dns-version"] => {
                if kind == RecordType::TXT {
                    let text = TXT::new(vec![VERSION.to_string()]);
                    answer.answers.push(own(RData::TXT(text)));
                }
            }
            ["dns"] | ["svc"] | ["pod"] => {}
            ["ns", "dns"] => {
                if wants(kind, IpAddr::V4(self.address)) {
                    answer
                        .answers
                        .push(address_record(name, IpAddr::V4(self.address)));
                }
            }
            [rest @ .., namespace, "pod"] => {
                self.namespaces.get("", namespace)?;
                match rest {
                    [] => {}
                    [pod] => {
                        let address = pod_address(pod)?;
                        if wants(kind, address) {
                            answer.answers.push(address_record(name, address));
                        }
                    }
                    _ => return None,
                }
            }
            [rest @ .., namespace, "svc"] => {
                self.namespaces.get("", namespace)?;
                let (service, endpoint, port) = match rest {
                    [] => return Some(answer),
                    [service] => (service, None, None),
                    [endpoint, service] => (service, Some(*endpoint), None),
                    [port, protocol, service] => {
                        (service, None, Some((strip(port), strip(protocol))))
                    }
                    _ => return None,
                };
                let asked = Asked {
                    name,
                    kind,
                    endpoint,
                    port,
                    depth,
                };
                self.service(&mut answer, namespace, service, &asked)?;
            }
            _ => return None,
        }
        Some(answer)
    }

    fn service(
        &self,
        answer: &mut Answer,
        namespace: &str,
        service_name: &str,
        asked: &Asked<'_>,
    ) -> Option<()> {
        let Asked {
            name,
            kind,
            endpoint,
            port,
            depth,
        } = *asked;
        let service = self.services.get(namespace, service_name)?;
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            if endpoint.is_some() {
                return None;
            }
            let mut target = Name::from_ascii(spec.external_name.as_deref()?).ok()?;
            target.set_fqdn(true);
            // Upstream gives no CNAME to what is an address.
            if spec.external_name.as_deref()?.parse::<IpAddr>().is_ok() {
                return None;
            }
            answer.answers.push(Record::from_rdata(
                name.clone(),
                TTL,
                RData::CNAME(CNAME(target.clone())),
            ));
            if matches!(kind, RecordType::A | RecordType::AAAA) {
                // ExternalNames may lead to each other in a circle.
                if depth >= MAX_CNAMES {
                    return Some(());
                }
                match self.answer_at(&target, kind, depth + 1) {
                    Some(inside) => {
                        answer.answers.extend(inside.answers);
                        answer.follow = inside.follow;
                    }
                    None => answer.follow = Some(target),
                }
            }
            return Some(());
        }
        let base = self.name(&[service_name, namespace, "svc"]);
        let found = if is_headless(&service) || endpoint.is_some() {
            self.endpoints(namespace, service_name, endpoint, port)
        } else {
            let ips: Vec<IpAddr> = spec
                .cluster_ips
                .iter()
                .flatten()
                .filter_map(|ip| ip.parse().ok())
                .collect();
            let ips = if ips.is_empty() {
                spec.cluster_ip
                    .iter()
                    .filter_map(|ip| ip.parse().ok())
                    .collect()
            } else {
                ips
            };
            spec.ports
                .iter()
                .flatten()
                .filter(|p| port_matches(port, p.name.as_deref(), p.protocol.as_deref()))
                .flat_map(|p| {
                    ips.iter().map(|ip| Found {
                        host: base.clone(),
                        address: *ip,
                        port: u16::try_from(p.port).unwrap_or(0),
                    })
                })
                .collect()
        };
        if found.is_empty() {
            return None;
        }
        if kind == RecordType::SRV {
            let hosts: BTreeSet<(&Name, u16)> = found.iter().map(|f| (&f.host, f.port)).collect();
            let weight = (100 / hosts.len().max(1)).max(1) as u16;
            for (host, port) in hosts {
                let data = RData::SRV(SRV::new(0, weight, port, host.clone()));
                answer
                    .answers
                    .push(Record::from_rdata(name.clone(), TTL, data));
            }
            let mut seen = BTreeSet::new();
            for f in &found {
                if seen.insert((&f.host, f.address)) {
                    answer.additionals.push(address_record(&f.host, f.address));
                }
            }
            return Some(());
        }
        let addresses: BTreeSet<IpAddr> = found
            .iter()
            .map(|f| f.address)
            .filter(|a| wants(kind, *a))
            .collect();
        answer
            .answers
            .extend(addresses.into_iter().map(|a| address_record(name, a)));
        Some(())
    }

    /// Ready endpoints of a Service (publishNotReadyAddresses has made them ready in the slice).
    fn endpoints(
        &self,
        namespace: &str,
        service: &str,
        endpoint: Option<&str>,
        port: Option<(&str, &str)>,
    ) -> Vec<Found> {
        let mut all = Vec::new();
        let slices = self.slices.get(&ObjectKey::new(namespace, service));
        for slice in slices.into_iter().flat_map(BTreeMap::values) {
            let mut ports: Vec<u16> = slice
                .ports
                .iter()
                .flatten()
                .filter(|p| port_matches(port, p.name.as_deref(), p.protocol.as_deref()))
                .map(|p| p.port.and_then(|p| u16::try_from(p).ok()).unwrap_or(0))
                .collect();
            if port.is_none() && slice.ports.as_ref().is_none_or(Vec::is_empty) {
                // Headless without ports: names without SRV.
                ports.push(0);
            }
            for e in slice.endpoints.iter().flatten() {
                if e.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
                    continue;
                }
                for address in &e.addresses {
                    let host = endpoint_name(e.hostname.as_deref(), address);
                    if endpoint.is_some_and(|wanted| wanted != host) {
                        continue;
                    }
                    let Ok(address) = address.parse() else {
                        continue;
                    };
                    let host = self.name(&[&host, service, namespace, "svc"]);
                    all.extend(ports.iter().map(|port| Found {
                        host: host.clone(),
                        address,
                        port: *port,
                    }));
                }
            }
        }
        all
    }

    /// Names of an address: the Services that have it, else the endpoints.
    fn reverse(&self, name: &Name, kind: RecordType, address: IpAddr) -> Option<Answer> {
        let text = address.to_string();
        let mut names = BTreeSet::new();
        let services = self.services.filter(|s| {
            s.spec.as_ref().is_some_and(|spec| {
                spec.cluster_ip.as_ref() == Some(&text)
                    || spec.cluster_ips.iter().flatten().any(|ip| *ip == text)
            })
        });
        for service in services {
            let (Some(n), Some(ns)) = (&service.metadata.name, &service.metadata.namespace) else {
                continue;
            };
            names.insert(self.name(&[n, ns, "svc"]));
        }
        if names.is_empty() {
            for (key, slices) in &self.slices {
                for e in slices.values().flat_map(|s| s.endpoints.iter().flatten()) {
                    if e.addresses.contains(&text) {
                        let host = endpoint_name(e.hostname.as_deref(), &text);
                        names.insert(self.name(&[&host, &key.name, &key.namespace, "svc"]));
                    }
                }
            }
        }
        if names.is_empty() {
            let ours = match address {
                IpAddr::V4(a) => self.local.iter().any(|c| c.contains(a)),
                IpAddr::V6(_) => false,
            };
            // Nobody else knows the cluster's own networks; other names may be in the reverse zones of upstreams.
            return ours.then(|| Answer {
                code: ResponseCode::NXDomain,
                ..Answer::default()
            });
        }
        let mut answer = Answer::default();
        if kind == RecordType::PTR {
            answer.answers = names
                .into_iter()
                .map(|n| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(n))))
                .collect();
        }
        Some(answer)
    }
}

/// The address that a name below in-addr.arpa or ip6.arpa stands for.
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let (last, rest) = labels.split_last()?;
    let (zone, digits) = rest.split_last()?;
    if last != "arpa" {
        return None;
    }
    match zone.as_str() {
        "in-addr" if digits.len() == 4 => {
            let mut octets = [0u8; 4];
            for (slot, label) in octets.iter_mut().rev().zip(digits) {
                *slot = label.parse().ok()?;
            }
            Some(IpAddr::V4(octets.into()))
        }
        "ip6" if digits.len() == 32 => {
            let mut value = 0u128;
            for label in digits.iter().rev() {
                if label.len() != 1 {
                    return None;
                }
                value = value << 4 | u128::from(u8::from_str_radix(label, 16).ok()?);
            }
            Some(IpAddr::V6(value.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn zone() -> Zone {
        let services = Cache::detached();
        let namespaces = Cache::detached();
        for n in ["d", "empty"] {
            namespaces.apply(serde_json::from_value(json!({"metadata": {"name": n}})).expect("ns"));
        }
        for (name, spec) in [
            (
                "web",
                json!({"clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5"], "ports": [{"name": "http", "port": 80}, {"name": "m", "port": 9, "protocol": "UDP"}]}),
            ),
            (
                "hl",
                json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
            ),
            (
                "noend",
                json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
            ),
            (
                "ext",
                json!({"type": "ExternalName", "externalName": "www.example.org"}),
            ),
            (
                "inner",
                json!({"type": "ExternalName", "externalName": "web.d.svc.cluster.local"}),
            ),
            (
                "ring",
                json!({"type": "ExternalName", "externalName": "ring.d.svc.cluster.local"}),
            ),
        ] {
            let service = json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec});
            services.apply(serde_json::from_value(service).expect("service"));
        }
        let local = vec!["10.42.0.0/16".parse().expect("cidr")];
        let dns = Ipv4Addr::new(10, 43, 0, 10);
        let mut zone = Zone::new("cluster.local", dns, local, services, namespaces).expect("zone");
        for (name, endpoints) in [
            ("web", json!([{"addresses": ["10.42.0.9"]}])),
            (
                "hl",
                json!([
                {"addresses": ["10.42.0.2"], "hostname": "web-0"},
                {"addresses": ["10.42.0.3"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.4"], "conditions": {"ready": false}}]),
            ),
        ] {
            let slice = json!({"metadata": {"name": name, "namespace": "d", "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
            let new = Arc::new(serde_json::from_value(slice).expect("slice"));
            zone.slice(&Event::Applied { new, old: None });
        }
        zone
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Value {
        let name = Name::from_ascii(name).expect("name");
        let Some(answer) = zone.answer(&name, kind) else {
            return json!("not ours");
        };
        if answer.code == ResponseCode::NXDomain {
            return json!("NXDOMAIN");
        }
        json!(
            answer
                .answers
                .iter()
                .map(|r| r.data.to_string())
                .collect::<Vec<_>>()
        )
    }

    #[test]
    fn services_have_their_cluster_ip_and_headless_ones_their_endpoints() {
        let z = zone();
        use RecordType as T;
        for (name, kind, want) in [
            ("web.d.svc.cluster.local.", T::A, json!(["10.43.0.5"])),
            ("WEB.d.svc.Cluster.Local.", T::A, json!(["10.43.0.5"])),
            ("web.d.svc.cluster.local.", T::AAAA, json!([])),
            ("web.d.svc.cluster.local.", T::MX, json!([])),
            (
                "hl.d.svc.cluster.local.",
                T::A,
                json!(["10.42.0.2", "10.42.0.3"]),
            ),
            ("web-0.hl.d.svc.cluster.local.", T::A, json!(["10.42.0.2"])),
            (
                "10-42-0-3.hl.d.svc.cluster.local.",
                T::A,
                json!(["10.42.0.3"]),
            ),
            ("10-42-0-4.hl.d.svc.cluster.local.", T::A, json!("NXDOMAIN")),
            (
                "10-42-0-9.web.d.svc.cluster.local.",
                T::A,
                json!(["10.42.0.9"]),
            ),
            ("noend.d.svc.cluster.local.", T::A, json!("NXDOMAIN")),
            ("none.d.svc.cluster.local.", T::A, json!("NXDOMAIN")),
            ("web.nons.svc.cluster.local.", T::A, json!("NXDOMAIN")),
            ("a.b.c.web.d.svc.cluster.local.", T::A, json!("NXDOMAIN")),
            ("d.svc.cluster.local.", T::A, json!([])),
            ("nons.svc.cluster.local.", T::A, json!("NXDOMAIN")),
            ("svc.cluster.local.", T::A, json!([])),
            ("cluster.local.", T::A, json!([])),
            ("x.cluster.local.", T::A, json!("NXDOMAIN")),
            ("dns-version.cluster.local.", T::TXT, json!(["1.1.0"])),
            ("ns.dns.cluster.local.", T::A, json!(["10.43.0.10"])),
            ("cluster.local.", T::NS, json!(["ns.dns.cluster.local."])),
            ("example.org.", T::A, json!("not ours")),
            ("local.", T::A, json!("not ours")),
            (".", T::NS, json!("not ours")),
        ] {
            assert_eq!(ask(&z, name, kind), want, "{name} {kind}");
        }
    }

    #[test]
    fn ports_have_srv_records_with_addresses_beside_them() {
        let z = zone();
        use RecordType as T;
        for (name, want) in [
            (
                "_http._tcp.web.d.svc.cluster.local.",
                json!(["0 100 80 web.d.svc.cluster.local."]),
            ),
            (
                "_m._udp.web.d.svc.cluster.local.",
                json!(["0 100 9 web.d.svc.cluster.local."]),
            ),
            ("_http._udp.web.d.svc.cluster.local.", json!("NXDOMAIN")),
            (
                "_http._tcp.hl.d.svc.cluster.local.",
                json!([
                    "0 50 8080 10-42-0-3.hl.d.svc.cluster.local.",
                    "0 50 8080 web-0.hl.d.svc.cluster.local."
                ]),
            ),
        ] {
            assert_eq!(ask(&z, name, T::SRV), want, "{name}");
        }
        let name = Name::from_ascii("_http._tcp.hl.d.svc.cluster.local.").expect("name");
        let answer = z.answer(&name, T::SRV).expect("ours");
        assert_eq!(answer.additionals.len(), 2);
    }

    #[test]
    fn external_names_are_cnames_followed_inside_the_zone() {
        let z = zone();
        use RecordType as T;
        assert_eq!(
            ask(&z, "ext.d.svc.cluster.local.", T::A),
            json!(["www.example.org."])
        );
        let name = Name::from_ascii("ext.d.svc.cluster.local.").expect("name");
        let answer = z.answer(&name, T::A).expect("ours");
        assert_eq!(
            answer.follow.map(|n| n.to_string()).as_deref(),
            Some("www.example.org.")
        );
        assert_eq!(
            ask(&z, "inner.d.svc.cluster.local.", T::A),
            json!(["web.d.svc.cluster.local.", "10.43.0.5"])
        );
        let ring = Name::from_ascii("ring.d.svc.cluster.local.").expect("name");
        assert!(
            z.answer(&ring, T::A).expect("ours").answers.len() < 20,
            "it ends"
        );
    }

    #[test]
    fn pods_and_addresses_have_names() {
        let z = zone();
        use RecordType as T;
        for (name, kind, want) in [
            ("1-2-3-4.d.pod.cluster.local.", T::A, json!(["1.2.3.4"])),
            ("1-2-3-4.nons.pod.cluster.local.", T::A, json!("NXDOMAIN")),
            ("1-2-3-400.d.pod.cluster.local.", T::A, json!("NXDOMAIN")),
            ("fd00--1.d.pod.cluster.local.", T::AAAA, json!(["fd00::1"])),
            (
                "5.0.43.10.in-addr.arpa.",
                T::PTR,
                json!(["web.d.svc.cluster.local."]),
            ),
            (
                "2.0.42.10.in-addr.arpa.",
                T::PTR,
                json!(["web-0.hl.d.svc.cluster.local."]),
            ),
            ("99.0.42.10.in-addr.arpa.", T::PTR, json!("NXDOMAIN")),
            ("8.8.8.8.in-addr.arpa.", T::PTR, json!("not ours")),
        ] {
            assert_eq!(ask(&z, name, kind), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic(
            labels in proptest::collection::vec(
                prop_oneof![proptest::collection::vec(any::<u8>(), 1..20), "[a-z0-9-]{1,8}".prop_map(String::into_bytes)], 0..8),
            suffix in prop_oneof![Just(""), Just("d.svc.cluster.local"), Just("cluster.local"), Just("in-addr.arpa"), Just("ip6.arpa"), Just("d.pod.cluster.local")],
            kind in any::<u16>(),
        ) {
            let all = labels.iter().map(Vec::as_slice).chain(suffix.split('.').filter(|s| !s.is_empty()).map(str::as_bytes));
            if let Ok(name) = Name::from_labels(all) {
                let _ = zone().answer(&name, RecordType::from(kind));
            }
        }
    }
}
