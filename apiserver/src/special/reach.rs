//! Which addresses a request may be passed on to: those that belong to the object it names, and never the server's own
//! machine, its API, or the cluster's services (upstream's proxyutil.IsProxyableIP, and what is known here beside it).
//! Owns the decision; opens no connections.

use crate::App;
use crate::admission::{find, list, text};
use serde_json::Value;
use skiff_api::status::Status;
use std::net::{IpAddr, UdpSocket};

fn not_allowed() -> Status {
    Status::bad_request("address not allowed")
}

/// Upstream's IsProxyableIP: whoever may write a status or an endpoint must not reach the server's own machine by it.
pub fn proxyable(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(a) => {
            !(a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_unspecified()
                || a.is_broadcast()
                // "This network" (RFC 6890) is taken for this host by some.
                || a.octets()[0] == 0)
        }
        IpAddr::V6(a) => {
            !(a.is_loopback()
                || a.is_unicast_link_local()
                || a.is_multicast()
                || a.is_unspecified()
                // An IPv4 address in another dress (compatible, translated, 6to4) would pass the rules of the other family.
                || a.to_ipv4().is_some()
                || a.segments()[..2] == [0x64, 0xff9b]
                || a.segments()[0] == 0x2002)
        }
    }
}

/// Is the address in the network (or one of several, separated by commas)?
pub fn within(networks: &str, ip: IpAddr) -> bool {
    networks
        .split(',')
        .any(|n| in_one(n.trim(), ip) == Some(true))
}

fn in_one(network: &str, ip: IpAddr) -> Option<bool> {
    let (base, bits) = network.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    Some(match (base.parse().ok()?, ip.to_canonical()) {
        (IpAddr::V4(b), IpAddr::V4(a)) => {
            let mask = u32::MAX.checked_shl(32u32.checked_sub(bits)?).unwrap_or(0);
            u32::from(a) & mask == u32::from(b) & mask
        }
        (IpAddr::V6(b), IpAddr::V6(a)) => {
            let mask = u128::MAX
                .checked_shl(128u32.checked_sub(bits)?)
                .unwrap_or(0);
            u128::from(a) & mask == u128::from(b) & mask
        }
        _ => false,
    })
}

/// An address of this machine: only such can be bound.
fn ours(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Is it this API server? Rights were checked for the caller; from here the request would come from nobody, or from a
/// network that the caller cannot reach.
fn api_server(app: &App, ip: IpAddr, port: u16) -> bool {
    port == app.config.https_listen_port
        && (ip.to_canonical() == app.config.advertise_address.to_canonical() || ours(ip))
}

/// What holds for every address, whoever it belongs to.
fn anywhere(app: &App, ip: IpAddr, port: u16) -> Result<(), Status> {
    let bad = !proxyable(ip) || within(&app.config.service_cidr, ip) || api_server(app, ip, port);
    if bad { Err(not_allowed()) } else { Ok(()) }
}

fn strings<'a>(object: &'a Value, pointer: &str, key: &str) -> Vec<&'a str> {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|v| {
            if key.is_empty() {
                v.as_str()
            } else {
                v[key].as_str()
            }
        })
        .collect()
}

/// The pod networks of a node; empty when they are not known yet.
fn pod_networks(node: &Value) -> Vec<&str> {
    let all = strings(node, "/spec/podCIDRs", "");
    if all.is_empty() {
        return Some(text(node, &["spec", "podCIDR"]))
            .filter(|c| !c.is_empty())
            .into_iter()
            .collect();
    }
    all
}

/// May a node have this address? Its status is written by the node: it must not be a pod's or a service's. A machine without
/// any other address has the gateway's of its own pods; that can only be this one.
fn node_address(app: &App, node: &Value, ip: IpAddr, port: u16) -> Result<(), Status> {
    if app.config.bind_address.is_loopback() && ip.to_canonical().is_loopback() {
        // A server that can only be reached on this machine has its nodes here, too.
        return if api_server(app, ip, port) {
            Err(not_allowed())
        } else {
            Ok(())
        };
    }
    anywhere(app, ip, port)?;
    let gateway = ours(ip)
        && pod_networks(node)
            .iter()
            .any(|c| crate::auth::pki::first_address(c) == Some(ip.to_canonical()));
    if within(&app.config.cluster_cidr, ip) && !gateway {
        return Err(not_allowed());
    }
    Ok(())
}

/// A node's own address, for its kubelet or another port of it. Names of hosts are not taken: whom they mean is not the
/// cluster's to say.
///
/// # Errors
/// 500 when it has none, 400 when it must not be this one.
pub fn node(app: &App, node: &Value, port: u16) -> Result<String, Status> {
    let addresses = node
        .pointer("/status/addresses")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let host = ["InternalIP", "ExternalIP"]
        .iter()
        .find_map(|kind| {
            addresses
                .iter()
                .find(|a| a["type"] == *kind)
                .map(|a| text(a, &["address"]))
        })
        .filter(|h| !h.is_empty())
        .ok_or_else(|| {
            Status::internal(format!(
                "no preferred addresses found; known addresses: {addresses:?}"
            ))
        })?;
    let ip: IpAddr = host.parse().map_err(|_| not_allowed())?;
    node_address(app, node, ip, port)?;
    Ok(host.to_string())
}

/// Does another node say that it has this address, too? (On a server of one machine alone all nodes have the same.)
pub fn claimed_by_another(app: &App, node: &Value, host: &str) -> bool {
    let ip: Option<IpAddr> = host.parse().ok();
    if ip.is_some_and(|ip| ip.to_canonical().is_loopback()) {
        return false;
    }
    let name = text(node, &["metadata", "name"]);
    list(app, "core/nodes", "").iter().any(|n| {
        text(n, &["metadata", "name"]) != name
            && strings(n, "/status/addresses", "address")
                .iter()
                .any(|a| a.parse().ok() == ip)
    })
}

/// A pod's own address: in its node's pod network, or the node's own for a pod of the host's network. What has ended has none:
/// another pod may have it by now.
///
/// # Errors
/// 400.
pub fn pod(app: &App, pod: &Value, port: u16) -> Result<IpAddr, Status> {
    let phase = text(pod, &["status", "phase"]);
    if matches!(phase, "Succeeded" | "Failed") {
        let name = text(pod, &["metadata", "name"]);
        return Err(Status::bad_request(format!(
            "pod {name} has ended; current phase is {phase}"
        )));
    }
    let ip: IpAddr = text(pod, &["status", "podIP"])
        .parse()
        .map_err(|_| not_allowed())?;
    let node = find(app, "core/nodes", "", text(pod, &["spec", "nodeName"]));
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        let node = node.ok_or_else(not_allowed)?;
        let named = strings(&node, "/status/addresses", "address")
            .iter()
            .any(|a| a.parse() == Ok(ip));
        return if named {
            node_address(app, &node, ip, port).map(|()| ip)
        } else {
            Err(not_allowed())
        };
    }
    anywhere(app, ip, port)?;
    let networks = node.as_ref().map(pod_networks).unwrap_or_default();
    // The node's own word narrows the cluster's network, and never widens it.
    let mut in_place = within(&app.config.cluster_cidr, ip);
    if !networks.is_empty() {
        let gateway = |n: &&str| crate::auth::pki::first_address(n) == Some(ip.to_canonical());
        in_place &= networks.iter().any(|n| within(n, ip)) && !networks.iter().any(gateway);
    }
    if in_place { Ok(ip) } else { Err(not_allowed()) }
}

/// An address of an endpoint of a service. One in the pods' network has to be that of a pod of the service's namespace, which
/// the endpoint names (CVE-2021-25740): endpoints can be written by tenants, pods' addresses cannot.
///
/// # Errors
/// 400.
pub fn endpoint(
    app: &App,
    namespace: &str,
    endpoint: &Value,
    address: &str,
    port: u16,
) -> Result<IpAddr, Status> {
    let ip: IpAddr = address.parse().map_err(|_| not_allowed())?;
    let target = &endpoint["targetRef"];
    if text(target, &["kind"]) == "Pod" {
        let elsewhere =
            Some(text(target, &["namespace"])).filter(|n| !n.is_empty() && *n != namespace);
        let object = find(app, "core/pods", namespace, text(target, &["name"]))
            .filter(|_| elsewhere.is_none())
            .ok_or_else(not_allowed)?;
        let its = strings(&object, "/status/podIPs", "ip")
            .iter()
            .any(|a| a.parse() == Ok(ip));
        let its = its || text(&object, &["status", "podIP"]).parse() == Ok(ip);
        return if its {
            pod(app, &object, port).map(|_| ip)
        } else {
            Err(not_allowed())
        };
    }
    anywhere(app, ip, port)?;
    if within(&app.config.cluster_cidr, ip) {
        return Err(not_allowed());
    }
    Ok(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_proxied_to_the_servers_own_machine() {
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fe80::1",
            "ff02::1",
            "::",
        ] {
            assert!(!proxyable(bad.parse().expect("an address")), "{bad}");
        }
        for good in ["10.42.0.7", "fd00::7", "192.0.2.1", "2001:db8::1"] {
            assert!(proxyable(good.parse().expect("an address")), "{good}");
        }
    }

    #[test]
    fn networks_hold_what_is_in_them() {
        let ip = |s: &str| s.parse::<IpAddr>().expect("an address");
        assert!(within("10.43.0.0/16", ip("10.43.255.1")));
        assert!(within("10.43.0.0/16", ip("::ffff:10.43.0.1")));
        assert!(!within("10.43.0.0/16", ip("10.44.0.1")));
        assert!(within("fd00::/64,10.43.0.0/16", ip("10.43.0.1")));
        assert!(within("fd00::/64", ip("fd00::1")) && !within("fd00::/64", ip("fd01::1")));
        assert!(within("0.0.0.0/0", ip("1.2.3.4")));
        for broken in ["", "10.43.0.0", "10.43.0.0/33", "x/8", "10.43.0.0/-1"] {
            assert!(!within(broken, ip("10.43.0.1")), "{broken}");
        }
    }
}
