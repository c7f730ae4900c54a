//! Owns cgroup v2: which files a resource is written to, and making a cgroup with its controllers enabled.

use crate::{Resources, Write, cpu};
use std::io;
use std::path::Path;

fn max_or(n: i64) -> String {
    if n < 0 { "max".into() } else { n.to_string() }
}

/// The writes for the given limits, in order.
pub fn writes(r: &Resources) -> Vec<Write> {
    let mut out = Vec::new();
    let mut add = |file: &str, value: String, optional| {
        // A file that the caller sets by name wins.
        if !r.unified.contains_key(file) {
            out.push(Write {
                controller: "",
                file: file.into(),
                value,
                optional,
            });
        }
    };
    if r.cpu_shares > 0 {
        add("cpu.weight", cpu::weight(r.cpu_shares).to_string(), true);
    }
    if r.cpu_quota != 0 || r.cpu_period != 0 {
        let quota = if r.cpu_quota > 0 {
            r.cpu_quota.to_string()
        } else {
            "max".into()
        };
        let period = if r.cpu_period > 0 {
            format!(" {}", r.cpu_period)
        } else {
            String::new()
        };
        add("cpu.max", format!("{quota}{period}"), r.cpu_quota <= 0);
    }
    if r.memory_limit != 0 {
        add("memory.max", max_or(r.memory_limit), r.memory_limit < 0);
        // The container is one unit: half of it alive after an out-of-memory kill helps nobody (the kubelet's default).
        add("memory.oom.group", "1".into(), true);
    }
    if r.memory_swap_limit != 0 {
        let swap = if r.memory_swap_limit < 0 {
            -1
        } else {
            (r.memory_swap_limit - r.memory_limit.max(0)).max(0)
        };
        add("memory.swap.max", max_or(swap), true);
    }
    if r.pids_limit != 0 {
        add("pids.max", max_or(r.pids_limit), r.pids_limit < 0);
    }
    if !r.cpuset_cpus.is_empty() {
        add("cpuset.cpus", r.cpuset_cpus.clone(), false);
    }
    if !r.cpuset_mems.is_empty() {
        add("cpuset.mems", r.cpuset_mems.clone(), false);
    }
    for (size, limit) in &r.hugepages {
        add(
            &format!("hugetlb.{size}.max"),
            limit.to_string(),
            *limit == 0,
        );
    }
    for (file, value) in &r.unified {
        // Keys come over CRI from the kubelet, but a path must still not lead out of the cgroup.
        if !file.contains('/') && !file.starts_with("cgroup.") {
            out.push(Write {
                controller: "",
                file: file.clone(),
                value: value.clone(),
                optional: file == "memory.oom.group",
            });
        }
    }
    out
}

const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// Makes the directory and its parents, enabling controllers on the way down.
pub fn create(root: &Path, dir: &Path) -> io::Result<()> {
    let Ok(relative) = dir.strip_prefix(root) else {
        return Ok(());
    };
    let mut at = root.to_path_buf();
    for part in relative.components() {
        let enabled = std::fs::read_to_string(at.join("cgroup.subtree_control"))?;
        let available = std::fs::read_to_string(at.join("cgroup.controllers"))?;
        for c in CONTROLLERS {
            if available.split_whitespace().any(|a| a == c)
                && !enabled.split_whitespace().any(|a| a == c)
            {
                // One at a time: a controller that cannot be enabled here must not take the others with it.
                let _ = crate::set(&at.join("cgroup.subtree_control"), &format!("+{c}"));
            }
        }
        at.push(part);
        match std::fs::create_dir(&at) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_become_v2_writes() {
        let r = Resources {
            cpu_shares: 1024,
            cpu_quota: -1,
            cpu_period: 100_000,
            memory_limit: 64 << 20,
            memory_swap_limit: 96 << 20,
            pids_limit: 100,
            unified: [
                ("memory.oom.group".to_string(), "0".to_string()),
                ("../x".into(), "y".into()),
            ]
            .into(),
            ..Resources::default()
        };
        let got: Vec<String> = writes(&r)
            .iter()
            .map(|w| format!("{}={}", w.file, w.value))
            .collect();
        assert_eq!(
            got,
            [
                "cpu.weight=100",
                "cpu.max=max 100000",
                "memory.max=67108864",
                "memory.swap.max=33554432",
                "pids.max=100",
                "memory.oom.group=0"
            ]
        );
    }
}
