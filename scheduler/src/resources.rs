//! What pods ask for and nodes offer, as integers. Owns the arithmetic of requests (upstream's
//! component-helpers/resource `PodRequests`); decides nothing.

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// CPU that a container without a request counts as in scores, in millicores (upstream DefaultMilliCPURequest).
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// Memory that a container without a request counts as in scores, in bytes (upstream DefaultMemoryRequest).
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of each resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Millicores.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of local storage.
    pub ephemeral_storage: i64,
    /// Everything else (devices, huge pages) by name, in whole units.
    pub scalar: BTreeMap<String, i64>,
}

impl Resources {
    /// From a resource list. A quantity that does not parse counts as zero: the API has refused it already.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut r = Self::default();
        for (name, quantity) in list {
            let Ok(q) = quantity.0.parse::<skiff_api::quantity::Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => r.milli_cpu = q.milli_value(),
                "memory" => r.memory = q.value(),
                "ephemeral-storage" => r.ephemeral_storage = q.value(),
                "pods" => {}
                other => {
                    r.scalar.insert(other.to_string(), q.value());
                }
            }
        }
        r
    }

    /// Adds each amount.
    pub fn add(&mut self, other: &Self) {
        self.milli_cpu += other.milli_cpu;
        self.memory += other.memory;
        self.ephemeral_storage += other.ephemeral_storage;
        for (k, v) in &other.scalar {
            *self.scalar.entry(k.clone()).or_default() += v;
        }
    }

    /// Takes each amount away.
    pub fn sub(&mut self, other: &Self) {
        self.milli_cpu -= other.milli_cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (k, v) in &other.scalar {
            if let Some(have) = self.scalar.get_mut(k) {
                *have -= v;
            }
        }
    }

    /// Keeps the larger of each amount.
    pub fn max(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (k, v) in &other.scalar {
            let have = self.scalar.entry(k.clone()).or_default();
            *have = (*have).max(*v);
        }
    }
}

fn container_requests(container: &Container, floor: bool) -> Resources {
    let requests = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref());
    let mut r = requests.map(Resources::from_list).unwrap_or_default();
    if floor {
        let has = |name: &str| requests.is_some_and(|m| m.contains_key(name));
        if !has("cpu") {
            r.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !has("memory") {
            r.memory = DEFAULT_MEMORY;
        }
    }
    r
}

/// What a pod needs at once: its containers and sidecars together, or the neediest init container with the sidecars
/// started before it, plus the overhead. `floor` puts upstream's non-zero defaults in the place of absent requests.
pub fn pod_requests(pod: &Pod, floor: bool) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let mut total = Resources::default();
    for c in &spec.containers {
        total.add(&container_requests(c, floor));
    }
    let mut sidecars = Resources::default();
    let mut init_peak = Resources::default();
    for c in spec.init_containers.iter().flatten() {
        let r = container_requests(c, floor);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&r);
            init_peak.max(&sidecars);
        } else {
            let mut peak = sidecars.clone();
            peak.add(&r);
            init_peak.max(&peak);
        }
    }
    total.add(&sidecars);
    total.max(&init_peak);
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::from_list(overhead));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "spec": yaml })).expect("a pod")
    }

    #[test]
    fn containers_add_up_and_init_containers_count_by_the_neediest() {
        let p = pod(serde_json::json!({
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2", "memory": "1Mi"}}}],
            "overhead": {"cpu": "10m"}}));
        let r = pod_requests(&p, false);
        assert_eq!((r.milli_cpu, r.memory), (2010, 1 << 30));
    }

    #[test]
    fn a_sidecar_counts_beside_the_containers_and_beside_later_init_containers() {
        let p = pod(serde_json::json!({
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "2"}}}]}));
        assert_eq!(pod_requests(&p, false).milli_cpu, 2500);
    }

    #[test]
    fn absent_requests_count_a_little_in_scores_and_nothing_in_filters() {
        let p = pod(serde_json::json!({"containers": [{"name": "a"}]}));
        assert_eq!(pod_requests(&p, false), Resources::default());
        assert_eq!(pod_requests(&p, true).milli_cpu, DEFAULT_MILLI_CPU);
    }
}
