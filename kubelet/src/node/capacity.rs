//! What the machine has (upstream pkg/kubelet/cadvisor and nodestatus setters). Owns reading /proc and /sys once, at
//! start.

use crate::quantity;
use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Memory that must stay free: below it pods are evicted, so it is not for them (memory.available<100Mi).
const MEMORY_RESERVE: i64 = 100 << 20;

/// What the node has and gives.
#[derive(Debug, Clone, Default)]
pub struct Capacity {
    /// Bytes.
    pub memory: i64,
    /// status.capacity
    pub capacity: BTreeMap<String, Quantity>,
    /// status.allocatable
    pub allocatable: BTreeMap<String, Quantity>,
    /// What all pods together are held to: capacity without what is reserved, but with what evictions keep free.
    pub enforced: BTreeMap<String, Quantity>,
}

/// The most processes and threads that the machine can have.
pub fn max_pids() -> u64 {
    let number = |p: &str| fs::read_to_string(p).ok()?.trim().parse::<u64>().ok();
    let pid_max = number("/proc/sys/kernel/pid_max").unwrap_or(0);
    pid_max.min(number("/proc/sys/kernel/threads-max").unwrap_or(u64::MAX))
}

/// A quantity of a resource: thousandths for cpu, whole for everything else.
fn amount(list: &BTreeMap<String, Quantity>, name: &str) -> i64 {
    if name == "cpu" {
        quantity::milli_of(Some(list), name)
    } else {
        quantity::value_of(Some(list), name)
    }
}

fn quantity_of(name: &str, amount: i64) -> Quantity {
    Quantity(match name {
        "cpu" if amount % 1000 == 0 => (amount / 1000).to_string(),
        "cpu" => format!("{amount}m"),
        "memory" if amount % 1024 == 0 => format!("{}Ki", amount >> 10),
        _ => amount.to_string(),
    })
}

/// Reads the machine. `reserved`: what is kept for the system and the kubelet itself, by resource (upstream
/// --system-reserved and --kube-reserved together; `pid` counts processes).
pub fn read(root_dir: &Path, max_pods: i64, reserved: &BTreeMap<String, Quantity>) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = meminfo(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        "MemTotal",
    );
    let disk =
        rustix::fs::statvfs(root_dir).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize)) as i64;
    let mut capacity = BTreeMap::from([
        ("cpu".to_string(), Quantity(cpus.to_string())),
        ("memory".into(), Quantity(format!("{}Ki", memory >> 10))),
        (
            "ephemeral-storage".into(),
            Quantity(format!("{}Ki", disk >> 10)),
        ),
        ("pods".into(), Quantity(max_pods.to_string())),
    ]);
    for (name, bytes) in hugepages() {
        capacity.insert(name, Quantity(bytes.to_string()));
    }
    let huge: i64 = hugepages().iter().map(|(_, b)| b).sum();
    let (enforced, allocatable) = shares_of(&capacity, reserved, huge, max_pids());
    Capacity {
        memory,
        capacity,
        allocatable,
        enforced,
    }
}

/// What pods are held to, and what the scheduler may give away. Pure.
fn shares_of(
    capacity: &BTreeMap<String, Quantity>,
    reserved: &BTreeMap<String, Quantity>,
    huge: i64,
    pids: u64,
) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
    let less = |name: &str, by: i64| (amount(capacity, name) - amount(reserved, name) - by).max(0);
    let mut enforced = BTreeMap::new();
    for name in ["cpu", "memory"] {
        let by = if name == "memory" { huge } else { 0 };
        enforced.insert(name.to_string(), quantity_of(name, less(name, by)));
    }
    let pids = i64::try_from(pids).unwrap_or(i64::MAX);
    let pids = (pids - amount(reserved, "pid")).max(0);
    enforced.insert("pid".into(), quantity_of("pid", pids));

    let mut allocatable = capacity.clone();
    let disk = amount(capacity, "ephemeral-storage");
    for (name, by) in [
        ("cpu", 0),
        ("memory", MEMORY_RESERVE + huge),
        // A twentieth of the disk stays free (nodefs.available<5%).
        ("ephemeral-storage", disk / 20),
    ] {
        allocatable.insert(name.into(), quantity_of(name, less(name, by)));
    }
    (enforced, allocatable)
}

/// A line of /proc/meminfo in bytes.
pub fn meminfo(text: &str, key: &str) -> i64 {
    text.lines()
        .find_map(|l| {
            l.strip_prefix(key)?
                .strip_prefix(':')?
                .split_whitespace()
                .next()?
                .parse::<i64>()
                .ok()
        })
        .unwrap_or(0)
        << 10
}

fn hugepages() -> Vec<(String, i64)> {
    let mut out = Vec::new();
    for e in fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = e.file_name().to_string_lossy().into_owned();
        let Some(kb) = name
            .strip_prefix("hugepages-")
            .and_then(|n| n.strip_suffix("kB")?.parse::<i64>().ok())
        else {
            continue;
        };
        let pages: i64 = fs::read_to_string(e.path().join("nr_hugepages"))
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(0);
        let size = if kb % (1 << 20) == 0 {
            format!("{}Gi", kb >> 20)
        } else {
            format!("{}Mi", kb >> 10)
        };
        out.push((format!("hugepages-{size}"), pages * (kb << 10)));
    }
    out
}

/// status.nodeInfo
pub fn system_info(kubelet_version: &str, runtime: &str) -> NodeSystemInfo {
    let read = |p: &str| {
        fs::read_to_string(p)
            .map(|t| t.trim().to_string())
            .unwrap_or_default()
    };
    let uname = rustix::system::uname();
    let os_image = read("/etc/os-release")
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Unknown".into(), |n| n.trim_matches('"').to_string());
    let machine_id = read("/etc/machine-id");
    let system_uuid = read("/sys/class/dmi/id/product_uuid").to_lowercase();
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime.into(),
        kernel_version: uname.release().to_string_lossy().into_owned(),
        // Upstream no longer fills it either (DisableNodeKubeProxyVersion).
        kube_proxy_version: String::new(),
        kubelet_version: kubelet_version.into(),
        system_uuid: if system_uuid.is_empty() {
            machine_id.clone()
        } else {
            system_uuid
        },
        machine_id,
        operating_system: "linux".into(),
        os_image,
        swap: Some(k8s_openapi::api::core::v1::NodeSwapStatus {
            capacity: Some(meminfo(&read("/proc/meminfo"), "SwapTotal")),
        }),
    }
}

/// Go's name of the processor, as labels have it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_taken_from_what_pods_get_and_are_held_to() {
        let list = |items: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
            items
                .iter()
                .map(|(k, v)| ((*k).to_string(), Quantity((*v).to_string())))
                .collect()
        };
        let capacity = list(&[
            ("cpu", "2"),
            ("memory", "4194304Ki"),
            ("ephemeral-storage", "1000Ki"),
            ("pods", "110"),
        ]);
        let reserved = list(&[
            ("cpu", "500m"),
            ("memory", "1Gi"),
            ("ephemeral-storage", "100Ki"),
            ("pid", "1000"),
        ]);
        let (enforced, allocatable) = shares_of(&capacity, &reserved, 0, 32_768);
        let got = |l: &BTreeMap<String, Quantity>, n: &str| l[n].0.clone();
        assert_eq!(
            [
                got(&enforced, "cpu"),
                got(&enforced, "memory"),
                got(&enforced, "pid")
            ],
            ["1500m", "3145728Ki", "31768"]
        );
        assert_eq!(
            [
                got(&allocatable, "cpu"),
                got(&allocatable, "memory"),
                got(&allocatable, "pods")
            ],
            ["1500m", "3043328Ki", "110"]
        );
        assert_eq!(
            quantity::value_of(Some(&allocatable), "ephemeral-storage"),
            850 << 10
        );
        // More than there is leaves nothing, not less.
        let (enforced, _) = shares_of(&capacity, &list(&[("memory", "1Ti")]), 0, 1);
        assert_eq!(got(&enforced, "memory"), "0Ki");
    }
}
