//! Requests and limits as cgroup settings (upstream pkg/kubelet/cm/helpers_linux.go and pkg/kubelet/qos). Pure.

use crate::pod::spec;
use crate::quantity;
use k8s_cri::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use skiff_cgroup::cpu::{MIN_SHARES, PERIOD, milli_to_quota, milli_to_shares};

/// Settings of one container.
pub fn container(pod: &Pod, c: &Container, node_memory: i64) -> LinuxContainerResources {
    let r = c.resources.clone().unwrap_or_default();
    let request = quantity::milli_of(r.requests.as_ref(), "cpu");
    let limit = quantity::milli_of(r.limits.as_ref(), "cpu");
    let has_request = r.requests.as_ref().is_some_and(|l| l.contains_key("cpu"));
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: milli_to_quota(limit),
        // A limit without a request is a request (the API defaults it so, but not for every creator).
        cpu_shares: milli_to_shares(if has_request { request } else { limit }),
        memory_limit_in_bytes: quantity::value_of(r.limits.as_ref(), "memory"),
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
    let request = |c: &Container| {
        quantity::value_of(
            c.resources.as_ref().and_then(|r| r.requests.as_ref()),
            "memory",
        )
    };
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

/// Settings of a whole pod's cgroup; memory and quota only when every container has a limit (upstream
/// ResourceConfigForPod). Zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodCgroup {
    /// cpu.shares
    pub shares: i64,
    /// cpu.cfs_quota_us
    pub quota: i64,
    /// memory.limit_in_bytes
    pub memory: i64,
}

/// Requests (thousandths of a core, bytes) of a pod: the larger of what init containers need one after another and
/// what all others need together, plus overhead.
pub fn pod_requests(pod: &Pod) -> (i64, i64) {
    let s = spec::spec(pod);
    let get = |c: &Container, n: &str| {
        let r = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        if n == "cpu" {
            quantity::milli_of(r, n)
        } else {
            quantity::value_of(r, n)
        }
    };
    let total = |n: &str| {
        if let Some(q) = s
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref())
            .filter(|r| r.contains_key(n))
        {
            return if n == "cpu" {
                quantity::milli_of(Some(q), n)
            } else {
                quantity::value_of(Some(q), n)
            };
        }
        let mut sidecars = 0;
        let mut peak = 0;
        for c in spec::init_containers(pod) {
            if spec::is_sidecar(c) {
                sidecars += get(c, n);
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars + get(c, n));
            }
        }
        let run: i64 = spec::containers(pod).iter().map(|c| get(c, n)).sum::<i64>() + sidecars;
        run.max(peak)
    };
    (
        total("cpu") + quantity::milli_of(s.overhead.as_ref(), "cpu"),
        total("memory") + quantity::value_of(s.overhead.as_ref(), "memory"),
    )
}

/// Settings of a pod's cgroup.
pub fn pod_cgroup(pod: &Pod) -> PodCgroup {
    let (cpu, _) = pod_requests(pod);
    let mut out = PodCgroup {
        shares: if spec::qos_class(pod) == "BestEffort" {
            MIN_SHARES
        } else {
            milli_to_shares(cpu)
        },
        ..PodCgroup::default()
    };
    let sum = |n: &str| -> Option<i64> {
        let get = |c: &Container| {
            let l = c.resources.as_ref().and_then(|r| r.limits.as_ref());
            let v = if n == "cpu" {
                quantity::milli_of(l, n)
            } else {
                quantity::value_of(l, n)
            };
            (v > 0).then_some(v)
        };
        let mut run = 0;
        let mut peak = 0;
        for c in spec::init_containers(pod) {
            let v = get(c)?;
            if spec::is_sidecar(c) {
                run += v;
                peak = peak.max(run);
            } else {
                peak = peak.max(run + v);
            }
        }
        for c in spec::containers(pod) {
            run += get(c)?;
        }
        Some(run.max(peak))
    };
    out.quota = sum("cpu").map_or(0, milli_to_quota);
    out.memory = sum("memory").unwrap_or(0);
    out
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
}
