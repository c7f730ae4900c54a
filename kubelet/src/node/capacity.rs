//! What the machine has (upstream pkg/kubelet/cadvisor and nodestatus setters). Owns reading /proc and /sys once, at
//! start.

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
}

/// Reads the machine.
pub fn read(root_dir: &Path, max_pods: i64) -> Capacity {
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
    let mut allocatable = capacity.clone();
    let huge: i64 = hugepages().iter().map(|(_, b)| b).sum();
    allocatable.insert(
        "memory".into(),
        Quantity(format!(
            "{}Ki",
            (memory - MEMORY_RESERVE - huge).max(0) >> 10
        )),
    );
    // A tenth of the disk stays free (nodefs.available<10%).
    allocatable.insert(
        "ephemeral-storage".into(),
        Quantity((disk / 10 * 9).to_string()),
    );
    Capacity {
        memory,
        capacity,
        allocatable,
    }
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
