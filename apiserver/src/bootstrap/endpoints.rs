//! The API server as a service: `default/kubernetes` with the first service address, its Endpoints and EndpointSlice at the
//! advertise address; and the config map from which extension servers learn whom to trust. Brought up to date at start.

use super::{make, put};
use crate::App;
use crate::admission::find;
use crate::auth::pki::first_address;
use serde_json::{Value, json};
use skiff_api::status::Status;
use std::net::IpAddr;
use std::sync::Arc;

const NAME: &str = "kubernetes";
const NS: &str = "default";

/// Makes and mends all of them.
///
/// # Errors
/// When one cannot be written.
pub async fn ensure(app: &Arc<App>) -> Result<(), Status> {
    let port = app.config.https_listen_port;
    let address = app.config.advertise_address;
    let ports = json!([{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]);
    let first = first_address(&app.config.service_cidr)
        .map(|a| a.to_string())
        .unwrap_or_default();
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    match find(app, "core/services", NS, NAME) {
        None => {
            let o = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": NS, "labels": labels},
                "spec": {"type": "ClusterIP", "clusterIP": first, "ports": ports, "sessionAffinity": "None"},
            });
            make(app, "", "v1", "services", NS, o).await?;
        }
        Some(s) if s["spec"]["ports"] != ports => {
            put(app, "", "v1", "services", NS, NAME, move |o| {
                o["spec"]["ports"] = ports.clone()
            })
            .await?;
        }
        Some(_) => {}
    }
    if address.is_loopback() {
        // Endpoints may not be loopback addresses (upstream refuses such a start). Clients of this machine are served.
        tracing::warn!(%address, "the advertised address is loopback: pods and other machines cannot reach the API; give --advertise-address");
        return trust(app).await;
    }
    let subsets = json!([{"addresses": [{"ip": address.to_string()}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]);
    let skip = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    match find(app, "core/endpoints", NS, NAME) {
        None => {
            let o = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": NAME, "namespace": NS, "labels": skip}, "subsets": subsets});
            make(app, "", "v1", "endpoints", NS, o).await?;
        }
        Some(e) if e["subsets"] != subsets => {
            put(app, "", "v1", "endpoints", NS, NAME, move |o| {
                o["subsets"] = subsets.clone()
            })
            .await?;
        }
        Some(_) => {}
    }
    slice(app, address, port).await?;
    trust(app).await
}

async fn slice(app: &Arc<App>, address: IpAddr, port: u16) -> Result<(), Status> {
    const GROUP: &str = "discovery.k8s.io";
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let endpoints = json!([{"addresses": [address.to_string()], "conditions": {"ready": true}}]);
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    match find(app, "discovery.k8s.io/endpointslices", NS, NAME) {
        Some(s) if s["addressType"] == family => {
            if s["endpoints"] == endpoints && s["ports"] == ports {
                return Ok(());
            }
            return put(app, GROUP, "v1", "endpointslices", NS, NAME, move |o| {
                o["endpoints"] = endpoints.clone();
                o["ports"] = ports.clone();
            })
            .await;
        }
        // The family of a slice cannot be changed.
        Some(_) => super::remove(app, GROUP, "v1", "endpointslices", NS, NAME).await?,
        None => {}
    }
    let o = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": NAME, "namespace": NS, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": family, "endpoints": endpoints, "ports": ports,
    });
    make(app, GROUP, "v1", "endpointslices", NS, o).await
}

/// `kube-system/extension-apiserver-authentication`, as far as there is something to say without a request-header CA.
async fn trust(app: &Arc<App>) -> Result<(), Status> {
    const CM: &str = "extension-apiserver-authentication";
    let ca = app.auth.pki.client_ca_pem().to_string();
    match find(app, "core/configmaps", "kube-system", CM) {
        None => {
            let o = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CM, "namespace": "kube-system"}, "data": {"client-ca-file": ca}});
            make(app, "", "v1", "configmaps", "kube-system", o).await
        }
        Some(c) if c["data"]["client-ca-file"].as_str() != Some(&ca) => {
            put(app, "", "v1", "configmaps", "kube-system", CM, move |o| {
                if !o["data"].is_object() {
                    o["data"] = json!({});
                }
                o["data"]["client-ca-file"] = Value::from(ca.clone());
            })
            .await
        }
        Some(_) => Ok(()),
    }
}
