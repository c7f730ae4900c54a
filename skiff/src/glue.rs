//! Joins crates that must not know each other: the runtime's pod network is the network crate's. Only translates.

use anyhow::Context;
use skiff_network as network;
use skiff_runtime as runtime;
use std::net::IpAddr;
use std::sync::Mutex;

/// The node's pod network, as the runtime wants it.
pub struct BridgeNetwork {
    pods: network::PodNetwork,
    live: Mutex<Vec<String>>,
}

impl BridgeNetwork {
    /// Over an open pod network.
    pub fn new(pods: network::PodNetwork) -> Self {
        Self {
            pods,
            live: Mutex::default(),
        }
    }

    /// Gives addresses back of sandboxes that the runtime did not find again. Call it once the runtime has started.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn forget_the_dead(&self) -> anyhow::Result<()> {
        let live = std::mem::take(
            &mut *self
                .live
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        self.pods
            .retain(live)
            .await
            .context("addresses of pods that are gone")
    }
}

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
            .pods
            .attach(&request.sandbox_id, request.netns.clone(), &ports)
            .await
            .map_err(|e| format!("pod network of {}/{}: {e}", request.namespace, request.name))?;
        Ok(runtime::PodNetworkStatus { ips })
    }
    async fn detach(&self, request: runtime::PodNetworkRequest) -> Result<(), String> {
        self.pods
            .detach(&request.sandbox_id)
            .await
            .map_err(|e| e.to_string())
    }
    async fn restore(
        &self,
        request: runtime::PodNetworkRequest,
        status: runtime::PodNetworkStatus,
    ) -> Result<(), String> {
        self.live
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(request.sandbox_id.clone());
        let Some(IpAddr::V4(ip)) = status.ips.first() else {
            return Ok(());
        };
        self.pods
            .restore(&request.sandbox_id, *ip, &ports(&request))
            .await
            .map_err(|e| format!("pod network of {}/{}: {e}", request.namespace, request.name))
    }
    async fn ready(&self) -> Result<(), String> {
        self.pods.ready().await.map_err(|e| e.to_string())
    }
}
