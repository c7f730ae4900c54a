//! Defaults of the pod spec, shared by pods and by every template (pkg/apis/core/v1/defaults.go). What upstream fills
//! only in pods, and not in templates, is in `pod.rs`.

use super::volume;
use crate::kinds::util::*;
use serde_json::{Value, json};

/// SetDefaults_PodSpec and all that it contains.
pub fn default(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    zero(spec, "dnsPolicy", "ClusterFirst");
    zero(spec, "restartPolicy", "Always");
    unset(spec, "securityContext", json!({}));
    unset(spec, "terminationGracePeriodSeconds", 30);
    zero(spec, "schedulerName", "default-scheduler");
    // Two names of one field; the deprecated one follows (conversion of v1 pod specs).
    let account = text(spec, "serviceAccountName").to_string();
    let deprecated = text(spec, "serviceAccount").to_string();
    if !account.is_empty() {
        put(spec, "serviceAccount", account);
    } else if !deprecated.is_empty() {
        put(spec, "serviceAccountName", deprecated);
    }
    for v in items_mut(spec, "volumes") {
        volume::default(v);
    }
    for list in CONTAINER_LISTS {
        for c in items_mut(spec, list) {
            container(c);
        }
    }
}

/// A pod template: its spec, when there is one.
pub fn default_template(template: &mut Value) {
    if let Some(spec) = at_mut(template, "spec") {
        default(spec);
    }
}

/// The three lists of containers of a pod spec, in the order upstream visits them.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// SetDefaults_Container and what it contains.
fn container(c: &mut Value) {
    if !c.is_object() {
        return;
    }
    let policy = pull_policy(text(c, "image"));
    zero(c, "imagePullPolicy", policy);
    zero(c, "terminationMessagePath", "/dev/termination-log");
    zero(c, "terminationMessagePolicy", "File");
    // A struct, not a pointer, upstream: it is always shown.
    unset(c, "resources", json!({}));
    for p in items_mut(c, "ports") {
        zero(p, "protocol", "TCP");
    }
    for e in items_mut(c, "env") {
        let Some(from) = at_mut(e, "valueFrom") else {
            continue;
        };
        if let Some(f) = at_mut(from, "fieldRef") {
            zero(f, "apiVersion", "v1");
        }
        if let Some(r) = at_mut(from, "resourceFieldRef") {
            unset(r, "divisor", "0");
        }
        if let Some(f) = at_mut(from, "fileKeyRef") {
            unset(f, "optional", false);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = at_mut(c, key) {
            probe(p);
        }
    }
    for key in ["lifecycle.postStart", "lifecycle.preStop"] {
        if let Some(h) = at_mut(c, key) {
            http_get(h);
        }
    }
}

/// `Always` for the tag latest (also when no tag and no digest is given), else `IfNotPresent`.
pub fn pull_policy(image: &str) -> &'static str {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, _)) => (rest, true),
        None => (image, false),
    };
    let last = rest.rsplit('/').next().unwrap_or(rest);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match tag {
        // An image that does not parse has no tag at all upstream; validation refuses the empty one.
        _ if image.is_empty() => "IfNotPresent",
        Some("latest") => "Always",
        Some(_) => "IfNotPresent",
        None if digest => "IfNotPresent",
        None => "Always",
    }
}

fn probe(p: &mut Value) {
    zero(p, "timeoutSeconds", 1);
    zero(p, "periodSeconds", 10);
    zero(p, "successThreshold", 1);
    zero(p, "failureThreshold", 3);
    http_get(p);
    if let Some(g) = at_mut(p, "grpc") {
        unset(g, "service", "");
    }
}

/// Defaults of `httpGet` in a probe or a lifecycle handler.
fn http_get(handler: &mut Value) {
    if let Some(h) = at_mut(handler, "httpGet") {
        zero(h, "path", "/");
        zero(h, "scheme", "HTTP");
    }
}

/// Requests follow limits where they are not given. Pods only (SetDefaults_Pod).
pub fn requests_from_limits(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        for c in items_mut(spec, list) {
            let Some(resources) = at_mut(c, "resources") else {
                continue;
            };
            let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
                continue;
            };
            if limits.is_empty() {
                continue;
            }
            let Some(requests) = object(resources, "requests") else {
                continue;
            };
            for (k, v) in limits {
                unset(requests, &k, v);
            }
        }
    }
}

/// With the host's network each container port is a host port. Pods only (SetDefaults_Pod).
pub fn host_ports(spec: &mut Value) {
    if !truth(spec, "hostNetwork") {
        return;
    }
    for list in ["containers", "initContainers"] {
        for c in items_mut(spec, list) {
            for p in items_mut(c, "ports") {
                let port = at(p, "containerPort").clone();
                if port.is_i64() || port.is_u64() {
                    zero(p, "hostPort", port);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("registry.local:5000/nginx", "Always"),
            ("registry.local:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:latest@sha256:0123", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_minimal_pod_spec_gets_upstreams_defaults() {
        let mut spec = json!({"containers": [{
            "name": "a", "image": "b:1", "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        }]});
        default(&mut spec);
        assert_eq!(
            spec,
            json!({
                "containers": [{
                    "name": "a", "image": "b:1", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {
                        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
                    },
                    "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                    "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File", "resources": {},
                }],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
                "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
            })
        );
    }

    #[test]
    fn requests_follow_limits_and_host_ports_follow_container_ports() {
        let mut spec = json!({"hostNetwork": true, "containers": [{
            "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
        }]});
        requests_from_limits(&mut spec);
        host_ports(&mut spec);
        assert_eq!(
            at(&spec, "containers")[0]["resources"]["requests"],
            json!({"cpu": "100m", "memory": "1Gi"})
        );
        assert_eq!(spec["containers"][0]["ports"][0]["hostPort"], 80);
    }
}
