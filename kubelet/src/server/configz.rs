//! `/configz`: how this kubelet is set, as a KubeletConfiguration (upstream pkg/kubelet/server and component-base configz).
//! Says only what has an effect here.

use crate::config::Config;
use crate::kubelet::Kubelet;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// The document.
pub fn shown(c: &Config) -> Value {
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "enableServer": true,
        "address": c.listen.ip(),
        "port": c.listen.port(),
        "authentication": {
            "x509": {},
            "webhook": {"enabled": true, "cacheTTL": "10s"},
            "anonymous": {"enabled": false},
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {"cacheAuthorizedTTL": "10s", "cacheUnauthorizedTTL": "10s"},
        },
        "clusterDomain": c.cluster_domain,
        "clusterDNS": c.cluster_dns,
        "containerRuntimeEndpoint": format!("unix://{}", c.cri_socket.display()),
        "podLogsDir": c.pod_logs_dir,
        "resolvConf": c.resolv_conf,
        "maxPods": c.max_pods,
        "seccompDefault": c.seccomp_default,
        "imageGCHighThresholdPercent": c.image_gc_high_percent,
        "imageGCLowThresholdPercent": c.image_gc_low_percent,
        "containerLogMaxSize": c.container_log_max_size.to_string(),
        "containerLogMaxFiles": c.container_log_max_files,
    }})
}

/// The handler.
pub async fn get(State(k): State<Arc<Kubelet>>) -> Response {
    let body = shown(&k.config).to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_those_in_use() {
        let mut c = Config::new("n", std::path::Path::new("/d"));
        c.max_pods = 17;
        let v = &shown(&c)["kubeletconfig"];
        assert_eq!((&v["maxPods"], &v["port"]), (&json!(17), &json!(10250)));
        assert_eq!(v["authentication"]["anonymous"]["enabled"], false);
    }
}
