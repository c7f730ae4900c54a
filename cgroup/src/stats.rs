//! Owns reading a cgroup's usage. Parsing is pure; missing files give None, never an error, because a cgroup may go away
//! between two reads.

use crate::Hierarchies;
use std::path::Path;

/// Usage of one cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_ns: Option<u64>,
    pub memory_usage: Option<u64>,
    /// Usage without the inactive file cache, as cadvisor and the kubelet define the working set.
    pub working_set: Option<u64>,
    pub rss: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub memory_limit: Option<u64>,
    pub swap_usage: Option<u64>,
    pub pids: Option<u64>,
}

/// The value of `key` in a file of `key value` lines.
pub fn field(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn text(dir: Option<&Path>, file: &str) -> Option<String> {
    std::fs::read_to_string(dir?.join(file)).ok()
}

fn number(dir: Option<&Path>, file: &str) -> Option<u64> {
    text(dir, file)?.trim().parse().ok()
}

/// Reads the usage of a cgroup.
pub fn read(h: &Hierarchies, cgroup: &str) -> Stats {
    if h.is_v2() {
        let dir = h.dir("", cgroup);
        let d = dir.as_deref();
        let stat = text(d, "memory.stat").unwrap_or_default();
        let usage = number(d, "memory.current");
        return Stats {
            cpu_ns: text(d, "cpu.stat")
                .and_then(|t| field(&t, "usage_usec"))
                .map(|u| u * 1000),
            memory_usage: usage,
            working_set: usage
                .map(|u| u.saturating_sub(field(&stat, "inactive_file").unwrap_or(0))),
            rss: field(&stat, "anon"),
            page_faults: field(&stat, "pgfault"),
            major_page_faults: field(&stat, "pgmajfault"),
            memory_limit: number(d, "memory.max"),
            swap_usage: number(d, "memory.swap.current"),
            pids: number(d, "pids.current"),
        };
    }
    let (cpu, memory, pids) = (
        h.dir("cpuacct", cgroup),
        h.dir("memory", cgroup),
        h.dir("pids", cgroup),
    );
    let m = memory.as_deref();
    let stat = text(m, "memory.stat").unwrap_or_default();
    let usage = number(m, "memory.usage_in_bytes");
    Stats {
        cpu_ns: number(cpu.as_deref(), "cpuacct.usage"),
        memory_usage: usage,
        working_set: usage
            .map(|u| u.saturating_sub(field(&stat, "total_inactive_file").unwrap_or(0))),
        rss: field(&stat, "total_rss"),
        page_faults: field(&stat, "total_pgfault"),
        major_page_faults: field(&stat, "total_pgmajfault"),
        // "No limit" is the largest page-aligned number.
        memory_limit: number(m, "memory.limit_in_bytes").filter(|l| *l < 1 << 62),
        swap_usage: number(m, "memory.memsw.usage_in_bytes")
            .zip(usage)
            .map(|(both, mem)| both.saturating_sub(mem)),
        pids: number(pids.as_deref(), "pids.current"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_whole_keys() {
        let t = "inactive_file 7\ntotal_inactive_file 9\nanon 3";
        assert_eq!(
            (
                field(t, "inactive_file"),
                field(t, "file"),
                field(t, "anon")
            ),
            (Some(7), None, Some(3))
        );
    }
}
