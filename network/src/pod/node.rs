//! What the pod network changes on the node beside pods, what it remembers of that, and how it is undone. Owns
//! `node.json` and net.ipv4.ip_forward.

use super::{Ipam, PodError, PodNetworkConfig};
use crate::Cidr;
use crate::netlink::route;
use crate::netlink::{Messages, Socket};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::Path;

/// Link group of veths that are to go. The kernel takes tens of milliseconds to remove a link (it waits for readers),
/// and as long for a whole group: so links of ended pods are put into this group and removed together.
pub(super) const DOOMED: u32 = 0x736b_6966;

/// What `node.json` remembers, so that `skiff reset` can undo it in another process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeState {
    #[serde(flatten)]
    config: PodNetworkConfig,
    /// net.ipv4.ip_forward before us, when we changed it.
    #[serde(default)]
    ip_forward_was: Option<String>,
}

/// Removes the links of ended pods.
pub(super) fn sweep(socket: &mut Socket) -> Result<(), PodError> {
    let mut m = Messages::new();
    route::delete_group(&mut m, DOOMED);
    Ok(socket.send_all(m)?)
}

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Turns forwarding on and remembers in `node.json` what it was, before changing it.
pub(super) fn enable_forwarding(config: &PodNetworkConfig) -> Result<(), PodError> {
    let fail = |e| PodError::Sysctl("net.ipv4.ip_forward", e);
    let now = std::fs::read_to_string(IP_FORWARD).map_err(fail)?;
    let file = config.state_dir.join("node.json");
    let before = read_node_state(&config.state_dir).and_then(|s| s.ip_forward_was);
    let off = now.trim() == "0";
    let state = NodeState {
        config: config.clone(),
        ip_forward_was: before.or_else(|| off.then(|| now.trim().to_string())),
    };
    let bytes = serde_json::to_vec_pretty(&state).unwrap_or_default();
    super::ipam::private_file(&file)
        .and_then(|mut f| std::io::Write::write_all(&mut f, &bytes))
        .map_err(|e| PodError::State(file, e))?;
    if off {
        std::fs::write(IP_FORWARD, "1").map_err(fail)?;
    }
    Ok(())
}

fn read_node_state(state_dir: &Path) -> Option<NodeState> {
    let bytes = std::fs::read(state_dir.join("node.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whose the pod network of this network namespace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This state directory's, or that of a version that wrote no alias.
    Us,
    /// There is none.
    Nobody,
    /// Another's: the bridge's alias.
    Another(String),
}

pub(super) fn owner(
    socket: &mut Socket,
    bridge: &str,
    state_dir: &Path,
) -> Result<Owner, PodError> {
    let found = socket.links()?.into_iter().find(|l| l.name == bridge);
    Ok(match found.map(|l| l.alias.unwrap_or_default()) {
        None => Owner::Nobody,
        Some(a) if a.is_empty() || a == super::alias(super::NODE, state_dir) => Owner::Us,
        Some(a) => Owner::Another(a),
    })
}

/// Is the network of this namespace one that this state directory made? What it shares with others there (bridge,
/// routes, tables) may be removed then. False when the directory knows of none.
///
/// # Errors
/// The kernel does not list its links.
pub fn owns(state_dir: &Path) -> Result<bool, PodError> {
    let Some(node) = read_node_state(state_dir) else {
        return Ok(false);
    };
    let owner = owner(&mut Socket::route()?, &node.config.bridge, state_dir)?;
    Ok(!matches!(owner, Owner::Another(_)))
}

/// Removes what a [`super::PodNetwork`] of this state directory made, from another process (`skiff reset`). A directory
/// without state is no error. What belongs to another directory's network stays.
///
/// # Errors
/// The first refusal; the rest is removed all the same.
pub fn cleanup(state_dir: &Path) -> Result<(), PodError> {
    let Some(node) = read_node_state(state_dir) else {
        return Ok(());
    };
    let config = &node.config;
    let mut socket = Socket::route()?;
    let all = !matches!(
        owner(&mut socket, &config.bridge, state_dir)?,
        Owner::Another(_)
    );
    let mut first_error = None;
    let mut note = |r: Result<(), PodError>| {
        if let Err(e) = r {
            first_error.get_or_insert(e);
        }
    };
    // Names are made from ids that another directory could have too: the alias says whose a link is. One without was
    // cut off while it was made, or is an older version's.
    let recorded: Vec<(String, String)> = Ipam::open(state_dir, config.pod_cidr)?
        .records()
        .map(|(id, _)| (super::host_link_name(id), super::alias(id, state_dir)))
        .collect();
    let ours = |l: &route::Link| {
        recorded.iter().any(
            |(name, alias)| match l.alias.as_deref().unwrap_or_default() {
                "" => *name == l.name,
                a => a == alias,
            },
        )
    };
    let suffix = format!(" of {}", state_dir.display());
    let mut names: Vec<String> = socket
        .links()?
        .into_iter()
        .filter(|l| {
            l.name != config.bridge
                && (ours(l) || l.alias.as_deref().is_some_and(|a| a.ends_with(&suffix)))
        })
        .map(|l| l.name)
        .collect();
    if all {
        note(sweep(&mut socket));
        names.push(config.bridge.clone());
    }
    for name in names {
        let mut m = Messages::new();
        route::delete_link(&mut m, &name);
        note(socket.send_all(m).map_err(PodError::from));
    }
    if all {
        let mut m = Messages::new();
        route::delete_route(&mut m, config.pod_cidr.address(), config.pod_cidr.prefix());
        note(socket.send_all(m).map_err(PodError::from));
        note(
            Socket::netfilter()
                .and_then(|mut nft| nft.remove_table(&config.table))
                .map_err(PodError::from),
        );
        if let Some(was) = &node.ip_forward_was {
            note(
                std::fs::write(IP_FORWARD, was)
                    .map_err(|e| PodError::Sysctl("net.ipv4.ip_forward", e)),
            );
        }
    }
    match first_error {
        Some(e) => Err(e),
        None => std::fs::remove_dir_all(state_dir)
            .map_err(|e| PodError::State(state_dir.to_path_buf(), e)),
    }
}

/// Notes what other programs of this machine do that can keep pods from being reached. Theirs to mend.
pub(super) fn warn_of_neighbours(config: &PodNetworkConfig, route: &mut Socket, nft: &mut Socket) {
    const FORWARD: u32 = 2;
    for chain in nft.base_chains().unwrap_or_default() {
        if chain.hook == FORWARD && chain.drops && chain.table != config.table {
            tracing::warn!(
                table = %chain.table, chain = %chain.name, pods = %config.cluster_cidr,
                "a firewall of this machine drops forwarded packets by default; pods are cut off unless it accepts their network"
            );
        }
    }
    let ours: HashSet<u32> = route
        .links()
        .unwrap_or_default()
        .iter()
        .filter(|l| l.name == config.bridge || l.alias.is_some())
        .map(|l| l.index)
        .collect();
    for r in route.routes().unwrap_or_default() {
        let other = Cidr::new(r.destination, r.prefix);
        let mine =
            r.protocol == route::RTPROT_SKIFF || r.interface.is_some_and(|i| ours.contains(&i));
        for (what, cidr) in [("pod", config.pod_cidr), ("service", config.service_cidr)] {
            if r.prefix > 0 && !mine && cidr.overlaps(&other) {
                tracing::warn!(
                    network = %cidr, route = %other,
                    "the {what} network overlaps a route of this machine; choose another with --cluster-cidr or --service-cidr"
                );
            }
        }
    }
}
