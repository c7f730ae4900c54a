//! Owns usage figures of containers and sandboxes. Read when asked, never on a timer.

use super::{Container, Runtime, Sandbox};
use crate::cgroup::stats::{self, Stats};
use crate::sys;
use k8s_cri::v1;
use std::path::Path;
use std::sync::Arc;

/// The last reading of a CPU counter, to tell the rate since then.
#[derive(Clone, Copy, Default)]
pub(crate) struct CpuSample {
    at: i64,
    ns: u64,
    rate: Option<u64>,
}

impl CpuSample {
    /// Nanocores since the last reading. Readings closer than 100 ms keep the old rate.
    fn update(&mut self, at: i64, ns: u64) -> Option<u64> {
        if self.at == 0 || at - self.at >= 100_000_000 {
            if self.at > 0 {
                let spent =
                    u128::from(ns.saturating_sub(self.ns)) * 1_000_000_000 / (at - self.at) as u128;
                self.rate = Some(spent as u64);
            }
            (self.at, self.ns) = (at, ns);
        }
        self.rate
    }
}

fn value(v: Option<u64>) -> Option<v1::UInt64Value> {
    v.map(|value| v1::UInt64Value { value })
}

fn cpu(s: &Stats, now: i64, sample: &mut CpuSample) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: now,
        usage_core_nano_seconds: value(s.cpu_ns),
        usage_nano_cores: value(s.cpu_ns.and_then(|ns| sample.update(now, ns))),
    }
}

fn memory(s: &Stats, now: i64) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: now,
        working_set_bytes: value(s.working_set),
        available_bytes: value(
            s.memory_limit
                .zip(s.working_set)
                .map(|(l, w)| l.saturating_sub(w)),
        ),
        usage_bytes: value(s.memory_usage),
        rss_bytes: value(s.rss),
        page_faults: value(s.page_faults),
        major_page_faults: value(s.major_page_faults),
    }
}

/// (bytes, inodes) below a directory. Whatever vanishes meanwhile is not counted.
fn disk_usage(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    let mut todo = vec![dir.to_path_buf()];
    while let Some(d) = todo.pop() {
        for e in std::fs::read_dir(&d).into_iter().flatten().flatten() {
            let Ok(m) = e.metadata() else { continue };
            bytes += m.blocks() * 512;
            inodes += 1;
            if m.is_dir() {
                todo.push(e.path());
            }
        }
    }
    (bytes, inodes)
}

/// The interfaces of a process's network namespace, without lo.
fn interfaces(text: &str) -> Vec<v1::NetworkInterfaceUsage> {
    text.lines()
        .filter_map(|l| l.split_once(':'))
        .map(|(name, rest)| {
            (
                name.trim(),
                rest.split_whitespace()
                    .map(|n| n.parse().ok())
                    .collect::<Vec<Option<u64>>>(),
            )
        })
        .filter(|(name, n)| *name != "lo" && n.len() >= 16)
        .map(|(name, n)| v1::NetworkInterfaceUsage {
            name: name.to_string(),
            rx_bytes: value(n[0]),
            rx_errors: value(n[2]),
            tx_bytes: value(n[8]),
            tx_errors: value(n[10]),
        })
        .collect()
}

impl Runtime {
    /// Blocking: reads files.
    pub(super) fn container_stats(&self, c: &Container) -> v1::ContainerStats {
        let now = sys::now_ns();
        let (cgroup, dir) = {
            let r = c.record.lock();
            (r.cgroup.clone(), r.spec.root.dir.clone())
        };
        let running = c.state.borrow().running();
        let s = if running {
            stats::read(&self.cgroups, &cgroup)
        } else {
            Stats::default()
        };
        let (bytes, inodes) = disk_usage(&dir.join("upper"));
        let entry = c.entry();
        v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: entry.id,
                metadata: entry.metadata,
                labels: entry.labels,
                annotations: entry.annotations,
            }),
            cpu: running.then(|| cpu(&s, now, &mut c.cpu.lock())),
            memory: running.then(|| memory(&s, now)),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp: now,
                fs_id: Some(v1::FilesystemIdentifier {
                    mountpoint: self.config.root.display().to_string(),
                }),
                used_bytes: value(Some(bytes)),
                inodes_used: value(Some(inodes)),
            }),
            swap: running.then(|| v1::SwapUsage {
                timestamp: now,
                swap_available_bytes: None,
                swap_usage_bytes: value(s.swap_usage),
            }),
        }
    }

    /// Blocking: reads files. The pod's cgroup is the kubelet's; without one the containers are summed up.
    pub(super) fn sandbox_stats(&self, s: &Sandbox) -> v1::PodSandboxStats {
        let now = sys::now_ns();
        let containers: Vec<v1::ContainerStats> = self
            .containers_of(&s.id)
            .iter()
            .filter(|c| c.state.borrow().running())
            .map(|c| self.container_stats(c))
            .collect();
        let parent = s
            .config
            .linux
            .as_ref()
            .map(|l| l.cgroup_parent.clone())
            .filter(|p| !p.is_empty());
        let pod = match &parent {
            Some(p) => stats::read(&self.cgroups, p),
            None => Stats {
                cpu_ns: Some(
                    containers
                        .iter()
                        .filter_map(|c| c.cpu.as_ref()?.usage_core_nano_seconds.map(|v| v.value))
                        .sum(),
                ),
                memory_usage: Some(
                    containers
                        .iter()
                        .filter_map(|c| c.memory.as_ref()?.usage_bytes.map(|v| v.value))
                        .sum(),
                ),
                working_set: Some(
                    containers
                        .iter()
                        .filter_map(|c| c.memory.as_ref()?.working_set_bytes.map(|v| v.value))
                        .sum(),
                ),
                ..Stats::default()
            },
        };
        let pid = s.state.lock().pid;
        let mut links = std::fs::read_to_string(format!("/proc/{pid}/net/dev"))
            .map(|t| interfaces(&t))
            .unwrap_or_default();
        let first = links.iter().position(|l| l.name == "eth0").unwrap_or(0);
        let default_interface =
            (!s.host_network() && !links.is_empty()).then(|| links.remove(first));
        let entry = s.entry();
        v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: entry.id,
                metadata: entry.metadata,
                labels: entry.labels,
                annotations: entry.annotations,
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: Some(cpu(&pod, now, &mut s.cpu.lock())),
                memory: Some(memory(&pod, now)),
                network: Some(v1::NetworkUsage {
                    timestamp: now,
                    default_interface,
                    interfaces: links,
                }),
                process: pod.pids.map(|p| v1::ProcessUsage {
                    timestamp: now,
                    process_count: value(Some(p)),
                }),
                containers,
            }),
            windows: None,
        }
    }

    pub(super) fn filter_containers(
        &self,
        f: Option<v1::ContainerStatsFilter>,
    ) -> Vec<Arc<Container>> {
        let f = f.unwrap_or_default();
        self.all_containers()
            .into_iter()
            .filter(|c| f.id.is_empty() || c.id.starts_with(&f.id))
            .filter(|c| {
                f.pod_sandbox_id.is_empty() || c.sandbox_id().starts_with(&f.pod_sandbox_id)
            })
            .filter(|c| super::status::labels_match(&f.label_selector, &c.config.labels))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_difference_between_two_readings() {
        let mut s = CpuSample::default();
        assert_eq!(s.update(1_000_000_000, 500), None);
        assert_eq!(s.update(3_000_000_000, 1_000_000_500), Some(500_000_000));
        assert_eq!(s.update(3_000_000_001, 2_000_000_500), Some(500_000_000));
    }

    #[test]
    fn interface_counters_are_read_from_proc_net_dev() {
        let t = "Inter-|   Receive  |  Transmit\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 1 2 0 0 0 0 0 30 1 4 0 0 0 0 0\n";
        let i = interfaces(t);
        assert_eq!(
            (
                i.len(),
                i[0].name.as_str(),
                i[0].rx_bytes.unwrap().value,
                i[0].tx_errors.unwrap().value
            ),
            (1, "eth0", 10, 4)
        );
    }
}
