//! Owns cgroup v1: which files a resource is written to, and making a cgroup. It must not read /proc or decide where.

use crate::{Resources, Write};
use std::io;
use std::path::Path;

/// The writes for the given limits, in order.
pub fn writes(r: &Resources) -> Vec<Write> {
    let mut out = Vec::new();
    let mut add = |controller, file: &str, value: String, optional| {
        out.push(Write {
            controller,
            file: file.into(),
            value,
            optional,
        });
    };
    if r.cpu_shares > 0 {
        add("cpu", "cpu.shares", r.cpu_shares.max(2).to_string(), true);
    }
    if r.cpu_period > 0 {
        add(
            "cpu",
            "cpu.cfs_period_us",
            r.cpu_period.to_string(),
            r.cpu_quota <= 0,
        );
    }
    if r.cpu_quota != 0 {
        add(
            "cpu",
            "cpu.cfs_quota_us",
            r.cpu_quota.max(-1).to_string(),
            r.cpu_quota < 0,
        );
    }
    if r.memory_limit != 0 {
        add(
            "memory",
            "memory.limit_in_bytes",
            r.memory_limit.max(-1).to_string(),
            r.memory_limit < 0,
        );
    }
    if r.memory_swap_limit != 0 {
        // Kernels without swap accounting lack the file.
        add(
            "memory",
            "memory.memsw.limit_in_bytes",
            r.memory_swap_limit.max(-1).to_string(),
            true,
        );
    }
    if r.pids_limit != 0 {
        add(
            "pids",
            "pids.max",
            if r.pids_limit < 0 {
                "max".into()
            } else {
                r.pids_limit.to_string()
            },
            r.pids_limit < 0,
        );
    }
    if !r.cpuset_cpus.is_empty() {
        add("cpuset", "cpuset.cpus", r.cpuset_cpus.clone(), false);
    }
    if !r.cpuset_mems.is_empty() {
        add("cpuset", "cpuset.mems", r.cpuset_mems.clone(), false);
    }
    for (size, limit) in &r.hugepages {
        add(
            "hugetlb",
            &format!("hugetlb.{size}.limit_in_bytes"),
            limit.to_string(),
            *limit == 0,
        );
    }
    out
}

/// Makes the directory and its parents. A fresh cpuset takes no processes until its CPUs and memory nodes are set, so
/// each level gets its parent's.
pub fn create(root: &Path, dir: &Path, cpuset: bool) -> io::Result<()> {
    if !cpuset {
        return std::fs::create_dir_all(dir);
    }
    let Ok(relative) = dir.strip_prefix(root) else {
        return Ok(());
    };
    let mut at = root.to_path_buf();
    for part in relative.components() {
        let parent = at.clone();
        at.push(part);
        match std::fs::create_dir(&at) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if std::fs::read_to_string(at.join(file))?.trim().is_empty() {
                crate::set(
                    &at.join(file),
                    std::fs::read_to_string(parent.join(file))?.trim(),
                )?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_become_v1_writes() {
        let r = Resources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit: 64 << 20,
            memory_swap_limit: 64 << 20,
            pids_limit: -1,
            cpuset_cpus: "0-1".into(),
            hugepages: vec![("2MB".into(), 4096)],
            ..Resources::default()
        };
        let got: Vec<String> = writes(&r)
            .iter()
            .map(|w| format!("{} {}={}", w.controller, w.file, w.value))
            .collect();
        assert_eq!(
            got,
            [
                "cpu cpu.shares=512",
                "cpu cpu.cfs_period_us=100000",
                "cpu cpu.cfs_quota_us=50000",
                "memory memory.limit_in_bytes=67108864",
                "memory memory.memsw.limit_in_bytes=67108864",
                "pids pids.max=max",
                "cpuset cpuset.cpus=0-1",
                "hugetlb hugetlb.2MB.limit_in_bytes=4096",
            ]
        );
        assert!(writes(&Resources::default()).is_empty());
    }
}
