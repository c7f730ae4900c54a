//! Joins crates that must not know each other: the runtime's pod network is the network crate's. Only translates.

use skiff_network as network;
use skiff_runtime as runtime;
use std::net::IpAddr;

/// The node's pod network, as the runtime wants it.
pub struct BridgeNetwork(pub network::PodNetwork);

fn ports(request: &runtime::PodNetworkRequest) -> Vec<network::HostPort> {
    request
        .port_mappings
        .iter()
        .filter(|p| p.host_port != 0)
        .filter_map(|p| {
            let protocol = network::Protocol::parse(&p.protocol)?;
            let host_ip = match p.host_ip {
                Some(IpAddr::V4(ip)) if !ip.is_unspecified() => Some(ip),
                _ => None,
            };
            Some(network::HostPort {
                host_ip,
                protocol,
                host_port: p.host_port,
                container_port: p.container_port,
            })
        })
        .collect()
}

#[async_trait::async_trait]
impl runtime::PodNetwork for BridgeNetwork {
    async fn attach(
        &self,
        request: runtime::PodNetworkRequest,
    ) -> Result<runtime::PodNetworkStatus, String> {
        let ports = ports(&request);
        let ips = self
            .0
            .attach(&request.sandbox_id, request.netns.clone(), &ports)
            .await
            .map_err(|e| format!("pod network of {}/{}: {e}", request.namespace, request.name))?;
        Ok(runtime::PodNetworkStatus { ips })
    }
    async fn detach(&self, request: runtime::PodNetworkRequest) -> Result<(), String> {
        self.0
            .detach(&request.sandbox_id)
            .await
            .map_err(|e| e.to_string())
    }
    async fn restore(
        &self,
        request: runtime::PodNetworkRequest,
        status: runtime::PodNetworkStatus,
    ) -> Result<(), String> {
        // Addresses are remembered on disk by sandbox; a pod without one lost it to a deleted state directory.
        let known = self
            .0
            .attached()
            .iter()
            .any(|(id, _)| *id == request.sandbox_id);
        if known || status.ips.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "the address of pod {}/{} is not on record",
                request.namespace, request.name
            ))
        }
    }
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
