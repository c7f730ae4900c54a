//! What services get from the server: addresses, families, node ports (upstream's pkg/registry/core/service/storage/alloc.go).
//! Owns the choice of what is free. What is taken is what the services in the store have, each of which claims its
//! addresses and ports there, and what writes under way are about to take: so a write whose end nobody saw (its client went
//! away, its disk was full) takes nothing twice and loses nothing.

use super::Reservation;
use super::nodeport::Ports;
use super::service_ip::Addresses;
use crate::admission::text;
use crate::store::AttributesOf;
use crate::{App, Config, Error, Operation, Write};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::field::FieldError;
use skiff_api::status::Status;
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Addresses, ports, and what writes under way are about to take.
pub struct Allocations {
    addresses: Addresses,
    ports: Ports,
    pending: Arc<Mutex<HashSet<String>>>,
}

/// An address as it is claimed.
fn address(a: Ipv4Addr) -> String {
    format!("service-ip/{a}")
}

/// A node port as it is claimed: a number belongs to one service, whatever the protocol.
fn port(p: u16) -> String {
    format!("node-port/{p}")
}

/// The store's hook with the claims of services.
pub fn with_claims(inner: AttributesOf) -> AttributesOf {
    Arc::new(move |key, value| {
        let attributes = inner(key, value);
        if !key.starts_with("/core/services/") {
            return attributes;
        }
        match serde_json::from_slice::<Value>(value) {
            Ok(service) => attributes.with_claims(Has::of(&service).claims().into_iter()),
            Err(_) => attributes,
        }
    })
}

/// What is free, seen by one allocation.
struct Free<'a> {
    addresses: &'a Addresses,
    ports: &'a Ports,
    pending: &'a mut HashSet<String>,
    /// Has any stored service this claim?
    stored: &'a dyn Fn(&str) -> bool,
    /// What this allocation took.
    taken: Vec<String>,
}

impl Free<'_> {
    fn is_taken(&self, claim: &str) -> bool {
        self.pending.contains(claim) || (self.stored)(claim)
    }
    /// False when somebody has it.
    fn take(&mut self, claim: String) -> bool {
        if self.is_taken(&claim) {
            return false;
        }
        self.pending.insert(claim.clone());
        self.taken.push(claim);
        true
    }
    fn any_address(&mut self, random: u32) -> Option<Ipv4Addr> {
        let found = self.addresses.any(random, |a| self.is_taken(&address(a)))?;
        self.take(address(found)).then_some(found)
    }
    fn any_port(&mut self, random: u32) -> Option<u16> {
        let found = self.ports.any(random, |p| self.is_taken(&port(p)))?;
        self.take(port(found)).then_some(found)
    }
}

/// What one service has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Has {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

impl Has {
    fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        let mut h = Self::default();
        let ips = spec["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for ip in ips.chain(spec["clusterIP"].as_str()) {
            h.addresses.extend(ip.parse::<Ipv4Addr>().ok());
        }
        let ports = spec["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| &p["nodePort"]);
        for p in ports.chain([&spec["healthCheckNodePort"]]) {
            h.ports.extend(
                p.as_i64()
                    .filter(|n| *n != 0)
                    .and_then(|n| u16::try_from(n).ok()),
            );
        }
        h
    }
    fn claims(&self) -> Vec<String> {
        let addresses = self.addresses.iter().map(|a| address(*a));
        addresses
            .chain(self.ports.iter().map(|p| port(*p)))
            .collect()
    }
}

impl Allocations {
    /// The networks of a configuration.
    ///
    /// # Errors
    /// When the configuration names no network.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let kept: Vec<Ipv4Addr> = match config.cluster_dns {
            IpAddr::V4(a) => vec![a],
            IpAddr::V6(_) => vec![],
        };
        // No other kind of error fits better: the configuration cannot be served.
        let addresses = Addresses::new(&config.service_cidr, &kept)
            .map_err(|e| Error::Bootstrap(Status::bad_request(e)))?;
        let (first, last) = config.service_node_port_range;
        Ok(Self {
            addresses,
            ports: Ports::new(first, last),
            pending: Arc::default(),
        })
    }
}

/// Allocates for a create or update of a service.
///
/// # Errors
/// 422, 500.
pub fn reserve(app: &App, write: &mut Write<'_>) -> Result<Reservation, Status> {
    if write.operation == Operation::Delete {
        return Ok(Reservation::default());
    }
    let all = &app.special.services;
    let name = text(&write.object, &["metadata", "name"]).to_string();
    let (mut random_ip, mut random_port) = (rand::random::<u32>, rand::random::<u32>);
    let mut pending = all.pending.lock();
    let mut free = Free {
        addresses: &all.addresses,
        ports: &all.ports,
        pending: &mut pending,
        stored: &|claim| app.store.claimed(claim),
        taken: Vec::new(),
    };
    let result = allocate(
        &mut free,
        &mut write.object,
        write.old.as_ref(),
        &mut random_ip,
        &mut random_port,
    );
    let taken = free.taken;
    drop(pending);
    // Also what was taken before the refusal is given back by it.
    let reservation = Reservation::new(all.pending.clone(), taken);
    result.map_err(|e| Status::invalid("", "Service", &name, &[e]))?;
    Ok(reservation)
}

fn needs_address(spec: &Value) -> bool {
    matches!(
        text(spec, &["type"]),
        "" | "ClusterIP" | "NodePort" | "LoadBalancer"
    )
}
fn needs_ports(spec: &Value) -> bool {
    match text(spec, &["type"]) {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}
fn needs_health_port(spec: &Value) -> bool {
    text(spec, &["type"]) == "LoadBalancer" && text(spec, &["externalTrafficPolicy"]) == "Local"
}

/// Writes into `object` what it needs.
fn allocate(
    free: &mut Free<'_>,
    object: &mut Value,
    old: Option<&Value>,
    random_ip: &mut dyn FnMut() -> u32,
    random_port: &mut dyn FnMut() -> u32,
) -> Result<(), FieldError> {
    if !object["spec"].is_object() {
        return Ok(());
    }
    if let Some(old) = old {
        carry(&mut object["spec"], &old["spec"]);
    }
    let before = old.map(Has::of).unwrap_or_default();
    addresses(free, &mut object["spec"], &before, random_ip)?;
    ports(free, &mut object["spec"], &before, random_port)
}

/// patchAllocatedValues and dropTypeDependentFields: what an update leaves out stays, what its type cannot have goes.
fn carry(spec: &mut Value, old: &Value) {
    let empty = |v: &Value| {
        v.is_null() || v.as_str() == Some("") || v.as_array().is_some_and(Vec::is_empty)
    };
    let old_type = if text(old, &["type"]).is_empty() {
        "ClusterIP"
    } else {
        text(old, &["type"])
    };
    let same_type = text(spec, &["type"]) == old_type;
    if needs_address(spec) && needs_address(old) {
        for k in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if empty(&spec[k]) && !empty(&old[k]) {
                spec[k] = old[k].clone();
            }
        }
    } else if needs_address(old) && spec["clusterIP"] == old["clusterIP"] {
        for k in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            remove(spec, k);
        }
    }
    let old_ports: Vec<Value> = old["ports"].as_array().cloned().unwrap_or_default();
    if needs_ports(spec) && needs_ports(old) {
        let used: BTreeSet<i64> = spec["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| p["nodePort"].as_i64())
            .collect();
        for p in spec["ports"].as_array_mut().into_iter().flatten() {
            if p["nodePort"].as_i64().unwrap_or(0) == 0
                && let Some(o) = old_ports
                    .iter()
                    .find(|o| o["port"] == p["port"] && o["protocol"] == p["protocol"])
                && let Some(n) = o["nodePort"]
                    .as_i64()
                    .filter(|n| *n != 0 && !used.contains(n))
            {
                p["nodePort"] = n.into();
            }
        }
    } else if !same_type && !needs_ports(spec) {
        let had: BTreeSet<i64> = old_ports
            .iter()
            .filter_map(|p| p["nodePort"].as_i64())
            .collect();
        for p in spec["ports"].as_array_mut().into_iter().flatten() {
            if p["nodePort"].as_i64().is_some_and(|n| had.contains(&n)) {
                remove(p, "nodePort");
            }
        }
    }
    if needs_health_port(spec) {
        if needs_health_port(old) && spec["healthCheckNodePort"].as_i64().unwrap_or(0) == 0 {
            spec["healthCheckNodePort"] = old["healthCheckNodePort"].clone();
        }
    } else if spec["healthCheckNodePort"] == old["healthCheckNodePort"] {
        remove(spec, "healthCheckNodePort");
    }
    if !same_type && text(spec, &["type"]) != "LoadBalancer" {
        for k in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec[k] == old[k] {
                remove(spec, k);
            }
        }
    }
}

fn remove(v: &mut Value, key: &str) {
    if let Some(m) = v.as_object_mut() {
        m.shift_remove(key);
    }
}

fn addresses(
    free: &mut Free<'_>,
    spec: &mut Value,
    before: &Has,
    random: &mut dyn FnMut() -> u32,
) -> Result<(), FieldError> {
    // Reading by index leaves nulls behind in serde_json; they are cleared here for those that are not set below.
    for k in [
        "clusterIP",
        "clusterIPs",
        "ipFamilies",
        "ipFamilyPolicy",
        "healthCheckNodePort",
        "ports",
    ] {
        if spec[k].is_null() {
            remove(spec, k);
        }
    }
    if !needs_address(spec) {
        return Ok(());
    }
    let first_of_list = spec
        .get("clusterIPs")
        .and_then(|l| l.get(0))
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_string();
    let mut wanted = text(spec, &["clusterIP"]).to_string();
    if wanted.is_empty() {
        wanted = first_of_list;
    }
    if spec
        .get("clusterIPs")
        .and_then(Value::as_array)
        .is_some_and(|l| l.len() > 1)
    {
        return Err(FieldError::invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            "may not hold more than one value on a single-stack cluster",
        ));
    }
    let headless = wanted == "None";
    let selectorless = spec
        .get("selector")
        .and_then(Value::as_object)
        .is_none_or(serde_json::Map::is_empty);
    let families = spec
        .get("ipFamilies")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let policy = text(spec, &["ipFamilyPolicy"]).to_string();
    if !(headless && selectorless) {
        if policy == "RequireDualStack" {
            return Err(FieldError::invalid(
                "spec.ipFamilyPolicy",
                policy,
                "this cluster is not configured for dual-stack services",
            ));
        }
        if let Some((i, f)) = families
            .iter()
            .enumerate()
            .find(|(_, f)| f.as_str() != Some("IPv4"))
        {
            return Err(FieldError::invalid(
                format!("spec.ipFamilies[{i}]"),
                f.clone(),
                "not configured on this cluster",
            ));
        }
    }
    let dual = headless
        && selectorless
        && matches!(policy.as_str(), "" | "RequireDualStack" | "PreferDualStack")
        && families.len() != 1;
    if !headless {
        let address = match wanted.parse::<Ipv4Addr>() {
            Ok(a) if before.addresses.contains(&a) => a,
            Ok(a) => {
                let why = if !free.addresses.contains(a) {
                    format!(
                        "the provided IP ({a}) is not in the valid range. The range of valid IPs is {}",
                        free.addresses.text()
                    )
                } else if !free.take(address(a)) {
                    "provided IP is already allocated".to_string()
                } else {
                    String::new()
                };
                if !why.is_empty() {
                    return Err(FieldError::invalid(
                        "spec.clusterIPs",
                        json!([wanted]),
                        format!("failed to allocate IP {a}: {why}"),
                    ));
                }
                a
            }
            Err(_) if !wanted.is_empty() => {
                return Err(FieldError::invalid(
                    "spec.clusterIPs[0]",
                    wanted,
                    "must be a valid IPv4 address of the service network",
                ));
            }
            Err(_) => match free.any_address(random()) {
                Some(a) => a,
                None => {
                    return Err(FieldError {
                        kind: skiff_api::field::ErrorType::Internal,
                        ..FieldError::invalid(
                            "spec.clusterIPs",
                            Value::Null,
                            format!(
                                "failed to allocate a serviceIP: range is full ({})",
                                free.addresses.text()
                            ),
                        )
                    });
                }
            },
        };
        wanted = address.to_string();
    }
    let Some(map) = spec.as_object_mut() else {
        return Ok(());
    };
    map.insert("clusterIP".into(), wanted.as_str().into());
    map.insert("clusterIPs".into(), json!([wanted]));
    if families.is_empty() {
        map.insert(
            "ipFamilies".into(),
            if dual {
                json!(["IPv4", "IPv6"])
            } else {
                json!(["IPv4"])
            },
        );
    }
    if policy.is_empty() {
        map.insert(
            "ipFamilyPolicy".into(),
            if dual {
                "RequireDualStack".into()
            } else {
                "SingleStack".into()
            },
        );
    }
    Ok(())
}

fn ports(
    free: &mut Free<'_>,
    spec: &mut Value,
    before: &Has,
    random: &mut dyn FnMut() -> u32,
) -> Result<(), FieldError> {
    let full = |field: String, range: String| FieldError {
        kind: skiff_api::field::ErrorType::Internal,
        ..FieldError::invalid(
            field,
            Value::Null,
            format!("failed to allocate a nodePort: range is full ({range})"),
        )
    };
    // What this service takes in this very call may be named twice: by a port's twin of another protocol.
    let mut own = before.ports.clone();
    let mut ask = |free: &mut Free<'_>, field: String, n: i64| -> Result<u16, FieldError> {
        if n == 0 {
            let got = free
                .any_port(random())
                .ok_or_else(|| full(field, free.ports.text()))?;
            own.insert(got);
            return Ok(got);
        }
        let number = u16::try_from(n).unwrap_or(0);
        if own.contains(&number) {
            return Ok(number);
        }
        if !free.ports.contains(n) {
            return Err(FieldError::invalid(
                field,
                n,
                format!(
                    "provided port is not in the valid range. The range of valid ports is {}",
                    free.ports.text()
                ),
            ));
        }
        if !free.take(port(number)) {
            return Err(FieldError::invalid(
                field,
                n,
                "provided port is already allocated",
            ));
        }
        own.insert(number);
        Ok(number)
    };
    if needs_ports(spec) {
        // Those that were asked for first, so that no random one takes their place.
        let count = spec
            .get("ports")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        for asked in [true, false] {
            for i in 0..count {
                let port = &spec["ports"][i];
                let n = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
                if (n != 0) != asked {
                    continue;
                }
                // The same port with another protocol shares the number.
                let twin = spec["ports"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .enumerate()
                    .find(|(j, o)| {
                        *j != i
                            && o["port"] == port["port"]
                            && o["protocol"] != port["protocol"]
                            && o["nodePort"].as_i64().unwrap_or(0) != 0
                    })
                    .and_then(|(_, o)| o["nodePort"].as_i64());
                let n = if n == 0 { twin.unwrap_or(0) } else { n };
                let got = ask(free, format!("spec.ports[{i}].nodePort"), n)?;
                spec["ports"][i]["nodePort"] = got.into();
            }
        }
    } else if let Some((i, n)) = spec
        .get("ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
        .find_map(|(i, p)| {
            p.get("nodePort")
                .and_then(Value::as_i64)
                .filter(|n| *n != 0)
                .map(|n| (i, n))
        })
        && text(spec, &["type"]) == "LoadBalancer"
    {
        // Node ports may be named even when none are allocated.
        ask(free, format!("spec.ports[{i}].nodePort"), n)?;
    }
    if needs_health_port(spec) {
        let n = spec
            .get("healthCheckNodePort")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        let got = ask(free, "spec.healthCheckNodePort".into(), n)?;
        spec["healthCheckNodePort"] = got.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the services in the store have.
    #[derive(Default)]
    struct State(HashSet<String>);

    fn state() -> State {
        State::default()
    }
    /// Allocates, and stores what came of it.
    fn go(s: &mut State, new: Value, old: Option<&Value>) -> Result<Value, String> {
        let mut new = json!({"spec": new});
        let stored = s.0.clone();
        let mut free = Free {
            addresses: &Addresses::new("10.43.0.0/24", &[]).expect("net"),
            ports: &Ports::new(30000, 30009),
            pending: &mut HashSet::new(),
            stored: &|c| stored.contains(c),
            taken: Vec::new(),
        };
        allocate(&mut free, &mut new, old, &mut || 100, &mut || 3).map_err(|e| e.to_string())?;
        for c in old.map(|o| Has::of(o).claims()).into_iter().flatten() {
            s.0.remove(&c);
        }
        s.0.extend(Has::of(&new).claims());
        Ok(new)
    }

    #[test]
    fn services_get_what_their_type_needs() {
        let mut s = state();
        let svc = go(&mut s, json!({"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}), None).expect("svc");
        let spec = &svc["spec"];
        assert_eq!(spec["clusterIP"], spec["clusterIPs"][0]);
        assert_eq!(
            (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
            (&json!(["IPv4"]), &json!("SingleStack"))
        );
        assert_eq!(spec["ports"][0]["nodePort"], 30003);
        assert_eq!(
            spec["ports"][1]["nodePort"], 30003,
            "the other protocol shares the number"
        );
        let headless = go(
            &mut s,
            json!({"type": "ClusterIP", "clusterIP": "None", "selector": {"a": "b"}}),
            None,
        )
        .expect("svc");
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let external = go(
            &mut s,
            json!({"type": "ExternalName", "externalName": "x.org"}),
            None,
        )
        .expect("svc");
        assert_eq!(
            external["spec"],
            json!({"type": "ExternalName", "externalName": "x.org"})
        );
    }

    #[test]
    fn what_is_taken_or_outside_is_refused_in_upstreams_words() {
        let mut s = state();
        go(&mut s, json!({"type": "NodePort", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": 30001}]}), None).expect("svc");
        let e = go(
            &mut s,
            json!({"type": "ClusterIP", "clusterIP": "10.43.0.9"}),
            None,
        )
        .unwrap_err();
        assert_eq!(
            e,
            "spec.clusterIPs: Invalid value: [\"10.43.0.9\"]: failed to allocate IP 10.43.0.9: provided IP is already allocated"
        );
        let e = go(
            &mut s,
            json!({"type": "ClusterIP", "clusterIP": "10.9.0.9"}),
            None,
        )
        .unwrap_err();
        assert!(e.ends_with("the provided IP (10.9.0.9) is not in the valid range. The range of valid IPs is 10.43.0.0/24"), "{e}");
        let e = go(
            &mut s,
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}),
            None,
        )
        .unwrap_err();
        assert_eq!(
            e,
            "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"
        );
        let e = go(
            &mut s,
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            None,
        )
        .unwrap_err();
        assert!(
            e.ends_with(
                "provided port is not in the valid range. The range of valid ports is 30000-30009"
            ),
            "{e}"
        );
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name_and_a_change_of_type_gives_back() {
        let mut s = state();
        let old = go(
            &mut s,
            json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
            None,
        )
        .expect("svc");
        let ip = old["spec"]["clusterIP"].clone();
        let same = go(
            &mut s,
            json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
            Some(&old),
        )
        .expect("svc");
        assert_eq!(
            (
                &same["spec"]["clusterIP"],
                &same["spec"]["ports"][0]["nodePort"]
            ),
            (&ip, &old["spec"]["ports"][0]["nodePort"])
        );
        let mut spec = old["spec"].clone();
        spec["type"] = "ClusterIP".into();
        let plain = go(&mut s, spec, Some(&old)).expect("svc");
        assert_eq!(plain["spec"]["clusterIP"], ip);
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        assert!(!s.0.contains(&port(30003)), "the port is free again");
        let mut spec = plain["spec"].clone();
        spec["type"] = "ExternalName".into();
        let external = go(&mut s, spec, Some(&plain)).expect("svc");
        assert!(external["spec"].get("clusterIP").is_none());
        assert!(s.0.is_empty(), "and the address");
    }
}
