//! Requests and limits as cgroup settings (upstream pkg/kubelet/cm/helpers_linux.go and pkg/kubelet/qos). Pure.

use crate::pod::spec;
use crate::quantity;
use k8s_cri::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_cgroup::cpu::{MIN_SHARES, PERIOD, milli_to_quota, milli_to_shares};
use std::collections::BTreeMap;

/// The pod's own limit of a resource (spec.resources), if it has one.
fn pod_level(pod: &Pod, name: &str) -> Option<i64> {
    let limits = spec::spec(pod).resources.as_ref()?.limits.as_ref();
    Some(amount(limits, name)).filter(|v| *v > 0)
}

fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> i64 {
    if name == "cpu" {
        quantity::milli_of(list, name)
    } else {
        quantity::value_of(list, name)
    }
}

/// Settings of one container.
pub fn container(pod: &Pod, c: &Container, node_memory: i64) -> LinuxContainerResources {
    let r = c.resources.clone().unwrap_or_default();
    let request = quantity::milli_of(r.requests.as_ref(), "cpu");
    // Without a limit of its own a container is bounded by its pod's.
    let limit = |name: &str| match amount(r.limits.as_ref(), name) {
        0 => pod_level(pod, name).unwrap_or(0),
        l => l,
    };
    let own_limit = quantity::milli_of(r.limits.as_ref(), "cpu");
    let has_request = r.requests.as_ref().is_some_and(|l| l.contains_key("cpu"));
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: milli_to_quota(limit("cpu")),
        // A limit without a request is a request (the API defaults it so, but not for every creator).
        cpu_shares: milli_to_shares(if has_request { request } else { own_limit }),
        memory_limit_in_bytes: limit("memory"),
        oom_score_adj: oom_score_adj(pod, c, node_memory),
        hugepage_limits: hugepages(&r),
        ..LinuxContainerResources::default()
    }
}

fn hugepages(r: &ResourceRequirements) -> Vec<HugepageLimit> {
    r.limits
        .iter()
        .flatten()
        .filter_map(|(k, q)| {
            let size = k.strip_prefix("hugepages-")?;
            Some(HugepageLimit {
                // 2Mi is 2MB to the kernel.
                page_size: format!("{}B", size.trim_end_matches('i')),
                limit: u64::try_from(quantity::value(q)?).ok()?,
            })
        })
        .collect()
}

/// Who the kernel kills first (upstream qos.GetContainerOOMScoreAdjust).
pub fn oom_score_adj(pod: &Pod, c: &Container, node_memory: i64) -> i64 {
    const SYSTEM_CRITICAL: i32 = 2_000_000_000;
    if spec::spec(pod)
        .priority
        .is_some_and(|p| p >= SYSTEM_CRITICAL)
        && spec::spec(pod).priority_class_name.as_deref() == Some("system-node-critical")
    {
        return -997;
    }
    match spec::qos_class(pod) {
        "Guaranteed" => return -997,
        "BestEffort" => return 1000,
        _ => {}
    }
    // What the pod asks for and no container does is shared among them.
    let spare = match &spec::spec(pod).resources {
        Some(r)
            if r.requests
                .as_ref()
                .is_some_and(|l| l.contains_key("memory")) =>
        {
            let all = || {
                spec::containers(pod)
                    .iter()
                    .chain(spec::init_containers(pod))
            };
            let own: i64 = all().map(|c| request_of(c, "memory")).sum();
            let count = i64::try_from(all().count()).unwrap_or(1).max(1);
            ((quantity::value_of(r.requests.as_ref(), "memory") - own) / count).max(0)
        }
        _ => 0,
    };
    let request = |c: &Container| request_of(c, "memory") + spare;
    let adjust = |request: i64| {
        if node_memory <= 0 {
            return 999;
        }
        let a = 1000 - (i128::from(request) * 1000 / i128::from(node_memory)) as i64;
        // Above guaranteed pods, below best-effort ones.
        a.clamp(3, 999)
    };
    let own = adjust(request(c));
    if spec::is_sidecar(c) && spec::init_containers(pod).iter().any(|i| i.name == c.name) {
        // A sidecar must not go before what it serves.
        return spec::containers(pod)
            .iter()
            .map(|r| adjust(request(r)))
            .min()
            .map_or(own, |m| m.min(own));
    }
    own
}

/// Settings of a whole pod's cgroup (upstream ResourceConfigForPod). Zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodCgroup {
    /// cpu.shares
    pub shares: i64,
    /// cpu.cfs_quota_us
    pub quota: i64,
    /// memory.limit_in_bytes
    pub memory: i64,
}

fn request_of(c: &Container, name: &str) -> i64 {
    amount(c.resources.as_ref().and_then(|r| r.requests.as_ref()), name)
}

/// The most that the pod's containers have at once: init containers one after another beside the sidecars before them,
/// or all others together. None as soon as `get` has none for a container.
fn at_once(pod: &Pod, get: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let (mut run, mut peak) = (0_i64, 0_i64);
    for c in spec::init_containers(pod) {
        let v = get(c)?;
        if spec::is_sidecar(c) {
            run = run.saturating_add(v);
            peak = peak.max(run);
        } else {
            peak = peak.max(run.saturating_add(v));
        }
    }
    for c in spec::containers(pod) {
        run = run.saturating_add(get(c)?);
    }
    Some(run.max(peak))
}

/// What the pod asks for of a resource (cpu in thousandths of a core, everything else whole), with its overhead; what
/// spec.resources says stands before the containers' sum.
pub fn pod_request(pod: &Pod, name: &str) -> i64 {
    let s = spec::spec(pod);
    let own = s.resources.as_ref().and_then(|r| r.requests.as_ref());
    let sum = if own.is_some_and(|r| r.contains_key(name)) {
        amount(own, name)
    } else {
        at_once(pod, |c| Some(request_of(c, name))).unwrap_or(0)
    };
    sum.saturating_add(amount(s.overhead.as_ref(), name))
}

/// What the pod may have of a resource, with its overhead: its own limit, or the containers' when each has one. 0 for
/// no limit.
pub fn pod_limit(pod: &Pod, name: &str) -> i64 {
    let of = |c: &Container| {
        let v = amount(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name);
        (v > 0).then_some(v)
    };
    match pod_level(pod, name).or_else(|| at_once(pod, of)) {
        Some(l) => l.saturating_add(amount(spec::spec(pod).overhead.as_ref(), name)),
        None => 0,
    }
}

/// Settings of a pod's cgroup.
pub fn pod_cgroup(pod: &Pod) -> PodCgroup {
    PodCgroup {
        shares: if spec::qos_class(pod) == "BestEffort" {
            MIN_SHARES
        } else {
            milli_to_shares(pod_request(pod, "cpu"))
        },
        quota: milli_to_quota(pod_limit(pod, "cpu")),
        memory: pod_limit(pod, "memory"),
    }
}

/// Cgroup of a pod below `root`: `/kubepods/[burstable|besteffort/]pod<uid>`.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let class = match spec::qos_class(pod) {
        "Guaranteed" => "",
        "Burstable" => "burstable/",
        _ => "besteffort/",
    };
    format!(
        "{}/kubepods/{class}pod{}",
        root.trim_end_matches('/'),
        spec::uid(pod)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"uid": "u"}, "spec": {"containers": [
            {"name": "c", "resources": resources}]}}),
        )
        .unwrap()
    }

    #[test]
    fn requests_and_limits_become_shares_quota_and_bytes() {
        let table = [
            (serde_json::json!({}), "besteffort/podu 2 0 0 1000"),
            (
                serde_json::json!({"requests": {"cpu": "100m", "memory": "100Mi"}}),
                "burstable/podu 102 0 0 903",
            ),
            (
                serde_json::json!({"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}}),
                "podu 512 50000 67108864 -997",
            ),
            (
                serde_json::json!({"limits": {"cpu": "5m"}}),
                "burstable/podu 5 1000 0 999",
            ),
        ];
        for (r, want) in table {
            let p = pod(r.clone());
            let got = container(&p, &spec::containers(&p)[0], 1 << 30);
            let parent = cgroup_parent("/skiff", &p);
            let text = format!(
                "{} {} {} {} {}",
                parent.trim_start_matches("/skiff/kubepods/"),
                got.cpu_shares,
                got.cpu_quota,
                got.memory_limit_in_bytes,
                got.oom_score_adj
            );
            assert_eq!(text, want, "{r}");
        }
    }

    #[test]
    fn pod_level_resources_bound_the_pod_and_the_containers_that_have_no_bounds_of_their_own() {
        let p: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": {
            "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}},
            "overhead": {"memory": "1Mi"},
            "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "100m", "memory": "16Mi"}}}]}}))
        .unwrap();
        assert_eq!(
            pod_cgroup(&p),
            PodCgroup {
                shares: 512,
                quota: 100_000,
                memory: 129 << 20
            }
        );
        assert!(cgroup_parent("", &p).contains("burstable"));
        let a = container(&p, &spec::containers(&p)[0], 1 << 30);
        let b = container(&p, &spec::containers(&p)[1], 1 << 30);
        assert_eq!((a.cpu_quota, a.memory_limit_in_bytes), (100_000, 128 << 20));
        assert_eq!((b.cpu_quota, b.memory_limit_in_bytes), (10_000, 16 << 20));
        // Half of what the pod asks for, each.
        assert_eq!(a.oom_score_adj, 1000 - 1000 * 32 / 1024);
    }

    #[test]
    fn a_pod_is_limited_when_each_container_is_and_init_containers_count_one_by_one() {
        let c = |name: &str, m: Option<&str>, more: serde_json::Value| {
            let mut c = serde_json::json!({"name": name, "resources": {}});
            if let Some(m) = m {
                c["resources"] =
                    serde_json::json!({"limits": {"memory": m}, "requests": {"memory": m}});
            }
            for (k, v) in more.as_object().unwrap() {
                c[k] = v.clone();
            }
            c
        };
        let none = || serde_json::json!({});
        let sidecar = serde_json::json!({"restartPolicy": "Always"});
        let memory = |init: Vec<serde_json::Value>, run: Vec<serde_json::Value>| {
            let p: Pod = serde_json::from_value(
                serde_json::json!({"spec": {"initContainers": init, "containers": run}}),
            )
            .unwrap();
            (
                pod_request(&p, "memory") >> 20,
                pod_limit(&p, "memory") >> 20,
            )
        };
        let (a, b) = (c("a", Some("10Mi"), none()), c("b", Some("20Mi"), none()));
        assert_eq!(memory(vec![], vec![a.clone(), b.clone()]), (30, 30));
        assert_eq!(
            memory(vec![], vec![a.clone(), c("x", None, none())]),
            (10, 0)
        );
        let big = c("i", Some("100Mi"), none());
        assert_eq!(memory(vec![big.clone()], vec![a.clone()]), (100, 100));
        let side = c("s", Some("5Mi"), sidecar);
        assert_eq!(
            memory(vec![side.clone(), big.clone()], vec![a.clone()]),
            (105, 105)
        );
        assert_eq!(memory(vec![big, side], vec![a, b]), (100, 100));
    }
}
