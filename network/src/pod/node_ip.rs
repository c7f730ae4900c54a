//! Which address a node has. Reads the kernel's tables; changes nothing.

use crate::netlink::route::{Address, Link, Route};
use crate::netlink::{Result, Socket};
use std::net::Ipv4Addr;

/// The node's address: that of the interface with the best default route, else the first global one, else
/// `otherwise` (the gateway address of the pod network).
///
/// # Errors
/// When the kernel refuses to list its tables.
pub fn node_ip(otherwise: Option<Ipv4Addr>) -> Result<Option<Ipv4Addr>> {
    let mut socket = Socket::route()?;
    let (routes, addresses, links) = (socket.routes()?, socket.addresses()?, socket.links()?);
    Ok(choose(&routes, &addresses, &links).or(otherwise))
}

fn default_route(routes: &[Route]) -> Option<&Route> {
    routes
        .iter()
        .filter(|r| r.prefix == 0 && r.interface.is_some())
        .min_by_key(|r| r.metric)
}

fn choose(routes: &[Route], addresses: &[Address], links: &[Link]) -> Option<Ipv4Addr> {
    let global = |a: &&Address| a.scope == 0 && !a.address.is_loopback();
    if let Some(route) = default_route(routes) {
        let on_it = addresses
            .iter()
            .filter(global)
            .find(|a| Some(a.index) == route.interface);
        if let Some(address) = route.source.or(on_it.map(|a| a.address)) {
            return Some(address);
        }
    }
    // Bridges are other programs' container networks as a rule, and ours.
    let bridge = |index| {
        links
            .iter()
            .any(|l| l.index == index && l.kind.as_deref() == Some("bridge"))
    };
    addresses
        .iter()
        .filter(global)
        .find(|a| !bridge(a.index))
        .map(|a| a.address)
}

/// MTU of the interface with the best default route.
pub(crate) fn default_mtu(socket: &mut Socket) -> Result<Option<u32>> {
    let routes = socket.routes()?;
    let Some(index) = default_route(&routes).and_then(|r| r.interface) else {
        return Ok(None);
    };
    Ok(socket
        .links()?
        .into_iter()
        .find(|l| l.index == index)
        .map(|l| l.mtu))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(index: u32, last: u8, scope: u8) -> Address {
        Address {
            index,
            address: Ipv4Addr::new(192, 168, index as u8, last),
            prefix: 24,
            scope,
        }
    }

    fn route(interface: u32, metric: u32, source: Option<Ipv4Addr>) -> Route {
        Route {
            destination: Ipv4Addr::UNSPECIFIED,
            prefix: 0,
            interface: Some(interface),
            source,
            metric,
            protocol: 3,
        }
    }

    #[test]
    fn the_best_default_route_wins_then_the_first_global_address() {
        let addresses = [address(1, 1, 254), address(2, 5, 0), address(3, 7, 0)];
        let routes = [route(3, 100, None), route(2, 200, None)];
        assert_eq!(
            choose(&routes, &addresses, &[]),
            Some(Ipv4Addr::new(192, 168, 3, 7))
        );
        assert_eq!(
            choose(&[], &addresses, &[]),
            Some(Ipv4Addr::new(192, 168, 2, 5))
        );
        let source = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(
            choose(&[route(3, 0, Some(source))], &addresses, &[]),
            Some(source)
        );
        assert_eq!(choose(&[], &addresses[..1], &[]), None);
    }
}
