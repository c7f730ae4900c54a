//! Joins crates that must not know each other: the runtime's pod network, and the way out of its image builds, are the
//! network crate's. Only translates.

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

/// An address that cannot be served is an error: left out, it would mean every address of the node.
fn ports(request: &runtime::PodNetworkRequest) -> Result<Vec<network::HostPort>, String> {
    request
        .port_mappings
        .iter()
        .filter(|p| p.host_port != 0)
        .map(|p| {
            let protocol = network::Protocol::parse(&p.protocol).ok_or_else(|| {
                format!("host port {}: no protocol {:?}", p.host_port, p.protocol)
            })?;
            let host_ip = match p.host_ip {
                Some(ip) if ip.is_unspecified() => None,
                Some(IpAddr::V4(ip)) => Some(ip),
                Some(IpAddr::V6(ip)) => {
                    return Err(format!(
                        "host port {}: hostIP {ip}: IPv6 is not there yet in Skiff",
                        p.host_port
                    ));
                }
                None => None,
            };
            Ok(network::HostPort {
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
        let ports = ports(&request)?;
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
            .restore(&request.sandbox_id, *ip, &ports(&request)?)
            .await
            .map_err(|e| format!("pod network of {}/{}: {e}", request.namespace, request.name))
    }
    async fn ready(&self) -> Result<(), String> {
        self.pods.ready().await.map_err(|e| e.to_string())
    }
    fn takes_cidr(&self, cidr: &str) -> Result<(), String> {
        let own = self.pods.config().pod_cidr;
        if cidr.parse() == Ok(own) {
            return Ok(());
        }
        Err(format!(
            "pods of this node have their addresses from {own}, not from {cidr}: start the server with another --cluster-cidr to change that"
        ))
    }
}

/// The way out of the steps of an image build. It needs no server and touches nothing of one.
pub struct BuildNetwork {
    state_dir: std::path::PathBuf,
    open: Mutex<std::collections::HashMap<String, network::egress::Egress>>,
}

impl BuildNetwork {
    /// Remembers in the pod network's state directory what it makes.
    pub fn new(state_dir: std::path::PathBuf) -> Self {
        Self {
            state_dir,
            open: Mutex::default(),
        }
    }

    fn open(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, network::egress::Egress>> {
        self.open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, network::pod::PodError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

#[async_trait::async_trait]
impl runtime::PodNetwork for BuildNetwork {
    async fn attach(
        &self,
        request: runtime::PodNetworkRequest,
    ) -> Result<runtime::PodNetworkStatus, String> {
        let (id, dir) = (request.sandbox_id.clone(), self.state_dir.clone());
        let way = blocking(move || network::egress::Egress::open(&id, request.netns, &dir)).await?;
        let ips = vec![IpAddr::V4(way.address())];
        self.open().insert(request.sandbox_id, way);
        Ok(runtime::PodNetworkStatus { ips })
    }
    async fn detach(&self, request: runtime::PodNetworkRequest) -> Result<(), String> {
        let way = self.open().remove(&request.sandbox_id);
        match way {
            Some(way) => blocking(move || way.close()).await,
            None => Ok(()),
        }
    }
    async fn restore(
        &self,
        _: runtime::PodNetworkRequest,
        _: runtime::PodNetworkStatus,
    ) -> Result<(), String> {
        Err("builds do not outlive their process".into())
    }
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
