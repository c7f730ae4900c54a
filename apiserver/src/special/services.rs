//! What services get from the server: addresses, families, node ports (upstream's pkg/registry/core/service/storage/alloc.go).
//! Owns both allocators, which live in memory, are rebuilt from the store at start, and are changed under one lock.

use super::Reservation;
use super::nodeport::Ports;
use super::service_ip::{Addresses, Refused};
use crate::admission::text;
use crate::{App, Config, Error, Operation, Write};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::field::FieldError;
use skiff_api::status::Status;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Both allocators.
#[derive(Debug)]
struct State {
    addresses: Addresses,
    ports: Ports,
}

/// What services have.
pub struct Allocations(Arc<Mutex<State>>);

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
    fn release(&self, s: &mut State) {
        self.addresses.iter().for_each(|a| s.addresses.release(*a));
        self.ports.iter().for_each(|p| s.ports.release(*p));
    }
    fn without(&self, other: &Self) -> Self {
        Self {
            addresses: self
                .addresses
                .difference(&other.addresses)
                .copied()
                .collect(),
            ports: self.ports.difference(&other.ports).copied().collect(),
        }
    }
}

impl Allocations {
    /// Nothing taken yet.
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
        Ok(Self(Arc::new(Mutex::new(State {
            addresses,
            ports: Ports::new(first, last),
        }))))
    }

    /// Takes what the services in the store have.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn rebuild(&self, app: &App) -> Result<(), Status> {
        let mut s = self.0.lock();
        for service in crate::admission::list(app, "core/services", "") {
            let has = Has::of(&service);
            for a in has.addresses {
                if s.addresses.take(a).is_err() {
                    let m = &service["metadata"];
                    tracing::warn!(address = %a, namespace = text(m, &["namespace"]), service = text(m, &["name"]),
                        "a service has an address that is not of the service network or that another one has, too; make it anew");
                }
            }
            for p in has.ports {
                s.ports.take(p);
            }
        }
        Ok(())
    }

    /// Gives back what a service has.
    pub fn release(&self, service: &Value) {
        Has::of(service).release(&mut self.0.lock());
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
    let state = app.special.services.0.clone();
    let old = write.old.clone();
    let name = text(&write.object, &["metadata", "name"]).to_string();
    let (mut random_ip, mut random_port) = (rand::random::<u32>, rand::random::<u32>);
    let (new, released) = {
        let mut s = state.lock();
        allocate(
            &mut s,
            &mut write.object,
            old.as_ref(),
            &mut random_ip,
            &mut random_port,
        )
        .map_err(|e| Status::invalid("", "Service", &name, &e))?
    };
    let undo = {
        let state = state.clone();
        Box::new(move || new.release(&mut state.lock()))
    };
    let done = Box::new(move || released.release(&mut state.lock()));
    Ok(Reservation {
        undo: Some(undo),
        done: Some(done),
    })
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

/// Writes into `object` what it needs. Gives what was newly taken, and what the old one had and the new one has not.
fn allocate(
    s: &mut State,
    object: &mut Value,
    old: Option<&Value>,
    random_ip: &mut dyn FnMut() -> u32,
    random_port: &mut dyn FnMut() -> u32,
) -> Result<(Has, Has), Vec<FieldError>> {
    if !object["spec"].is_object() {
        return Ok(Default::default());
    }
    if let Some(old) = old {
        carry(&mut object["spec"], &old["spec"]);
    }
    let before = old.map(Has::of).unwrap_or_default();
    let mut taken = Has::default();
    let result = addresses(s, &mut object["spec"], &before, &mut taken, random_ip)
        .and_then(|()| ports(s, &mut object["spec"], &before, &mut taken, random_port));
    if let Err(e) = result {
        taken.release(s);
        return Err(vec![e]);
    }
    Ok((taken, before.without(&Has::of(object))))
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
    s: &mut State,
    spec: &mut Value,
    before: &Has,
    taken: &mut Has,
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
            Ok(a) => match s.addresses.take(a) {
                Ok(()) => {
                    taken.addresses.insert(a);
                    a
                }
                Err(why) => {
                    let why = match why {
                        Refused::Range => format!(
                            "the provided IP ({a}) is not in the valid range. The range of valid IPs is {}",
                            s.addresses.text()
                        ),
                        Refused::Taken => "provided IP is already allocated".to_string(),
                    };
                    return Err(FieldError::invalid(
                        "spec.clusterIPs",
                        json!([wanted]),
                        format!("failed to allocate IP {a}: {why}"),
                    ));
                }
            },
            Err(_) if !wanted.is_empty() => {
                return Err(FieldError::invalid(
                    "spec.clusterIPs[0]",
                    wanted,
                    "must be a valid IPv4 address of the service network",
                ));
            }
            Err(_) => match s.addresses.any(random()) {
                Some(a) => {
                    taken.addresses.insert(a);
                    a
                }
                None => {
                    return Err(FieldError {
                        kind: skiff_api::field::ErrorType::Internal,
                        ..FieldError::invalid(
                            "spec.clusterIPs",
                            Value::Null,
                            format!(
                                "failed to allocate a serviceIP: range is full ({})",
                                s.addresses.text()
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
    s: &mut State,
    spec: &mut Value,
    before: &Has,
    taken: &mut Has,
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
    let mut ask = |s: &mut State,
                   taken: &mut Has,
                   field: String,
                   n: i64|
     -> Result<u16, FieldError> {
        let port = u16::try_from(n).unwrap_or(0);
        if n != 0 {
            if before.ports.contains(&port) || taken.ports.contains(&port) {
                return Ok(port);
            }
            if !s.ports.contains(n) {
                return Err(FieldError::invalid(
                    field,
                    n,
                    format!(
                        "provided port is not in the valid range. The range of valid ports is {}",
                        s.ports.text()
                    ),
                ));
            }
            if !s.ports.take(port) {
                return Err(FieldError::invalid(
                    field,
                    n,
                    "provided port is already allocated",
                ));
            }
            taken.ports.insert(port);
            return Ok(port);
        }
        let port = s
            .ports
            .any(random())
            .ok_or_else(|| full(field, s.ports.text()))?;
        taken.ports.insert(port);
        Ok(port)
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
                let got = ask(s, taken, format!("spec.ports[{i}].nodePort"), n)?;
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
        ask(s, taken, format!("spec.ports[{i}].nodePort"), n)?;
    }
    if needs_health_port(spec) {
        let n = spec
            .get("healthCheckNodePort")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        let got = ask(s, taken, "spec.healthCheckNodePort".into(), n)?;
        spec["healthCheckNodePort"] = got.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            addresses: Addresses::new("10.43.0.0/24", &[]).expect("net"),
            ports: Ports::new(30000, 30009),
        }
    }
    fn go(s: &mut State, new: Value, old: Option<&Value>) -> Result<Value, String> {
        let mut new = json!({"spec": new});
        let (_, released) =
            allocate(s, &mut new, old, &mut || 100, &mut || 3).map_err(|e| e[0].to_string())?;
        released.release(s);
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
        // A refusal keeps nothing: the address it had taken before the port failed is free again.
        assert_eq!(s.addresses.clone().any(100), s.addresses.any(100));
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
        assert!(s.ports.take(30003), "the port is free again");
        let mut spec = plain["spec"].clone();
        spec["type"] = "ExternalName".into();
        let external = go(&mut s, spec, Some(&plain)).expect("svc");
        assert!(external["spec"].get("clusterIP").is_none());
        assert_eq!(
            s.addresses
                .take(ip.as_str().and_then(|i| i.parse().ok()).expect("ip")),
            Ok(()),
            "and the address"
        );
    }
}
