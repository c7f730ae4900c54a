//! Environment variables that tell containers of Services (upstream pkg/kubelet/envvars). Pure.

use k8s_openapi::api::core::v1::Service;
use std::sync::Arc;

/// Variables of the Services a pod is told of: those of its namespace when `links`, and always `kubernetes` of the
/// namespace `default`. Services without an address are left out.
pub fn service_env(
    services: &[Arc<Service>],
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let mut out = Vec::new();
    // One of its own namespace hides the one of `default`.
    let mut told: Vec<(&str, &Service)> = Vec::new();
    for s in services {
        let name = s.metadata.name.as_deref().unwrap_or_default();
        let ns = s.metadata.namespace.as_deref().unwrap_or_default();
        let Some(ip) = s.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) else {
            continue;
        };
        if ip.is_empty() || ip == "None" {
            continue;
        }
        if ns == namespace && (links || (ns == "default" && name == "kubernetes")) {
            told.retain(|(n, _)| *n != name);
            told.push((name, s));
        } else if ns == "default" && name == "kubernetes" && !told.iter().any(|(n, _)| *n == name) {
            told.push((name, s));
        }
    }
    for (name, service) in told {
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_string()
        };
        let prefix = shout(name);
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        out.push((format!("{prefix}_SERVICE_HOST"), ip.to_string()));
        out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for p in ports {
            if let Some(n) = p.name.as_deref().filter(|n| !n.is_empty()) {
                out.push((
                    format!("{prefix}_SERVICE_PORT_{}", shout(n)),
                    p.port.to_string(),
                ));
            }
        }
        for (i, p) in ports.iter().enumerate() {
            let protocol = p.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), p.port);
            if i == 0 {
                out.push((format!("{prefix}_PORT"), url.clone()));
            }
            let port = format!("{prefix}_PORT_{}_{}", p.port, protocol.to_uppercase());
            out.push((port.clone(), url));
            out.push((format!("{port}_PROTO"), protocol.to_lowercase()));
            out.push((format!("{port}_PORT"), p.port.to_string()));
            out.push((format!("{port}_ADDR"), ip.to_string()));
        }
    }
    out
}

fn shout(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_of_its_namespace_and_of_kubernetes() {
        let service = |ns: &str, name: &str, ip: &str| {
            Arc::new(
                serde_json::from_value::<Service>(serde_json::json!({
                    "metadata": {"name": name, "namespace": ns},
                    "spec": {"clusterIP": ip, "ports": [{"name": "web-ui", "port": 80, "protocol": "TCP"}]}
                }))
                .unwrap(),
            )
        };
        let all = [
            service("default", "kubernetes", "10.43.0.1"),
            service("default", "other", "10.43.0.2"),
            service("ns", "my-app", "10.43.0.3"),
            service("ns", "headless", "None"),
        ];
        let env = service_env(&all, "ns", true);
        let get = |k: &str| env.iter().find(|(n, _)| n == k).map(|(_, v)| v.as_str());
        assert_eq!(get("KUBERNETES_SERVICE_HOST"), Some("10.43.0.1"));
        assert_eq!(get("MY_APP_SERVICE_PORT_WEB_UI"), Some("80"));
        assert_eq!(get("MY_APP_PORT"), Some("tcp://10.43.0.3:80"));
        assert_eq!(get("MY_APP_PORT_80_TCP_ADDR"), Some("10.43.0.3"));
        assert_eq!(get("OTHER_SERVICE_HOST"), None);
        assert_eq!(get("HEADLESS_SERVICE_HOST"), None);
        let env = service_env(&all, "ns", false);
        assert!(
            env.iter().all(|(k, _)| k.starts_with("KUBERNETES_")),
            "{env:?}"
        );
    }
}
