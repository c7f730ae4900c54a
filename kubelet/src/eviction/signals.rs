//! What the node can be short of (upstream pkg/kubelet/eviction/api and helpers.go): signals, thresholds, observations.
//! Pure but for `observe`, which reads the machine.

use crate::kubelet::Kubelet;
use crate::node::capacity::{max_pids, meminfo};
use crate::node::status::Pressure;
use std::path::Path;

/// Something that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// memory.available
    Memory,
    /// allocatableMemory.available: what is left of the memory that all pods together may have.
    AllocatableMemory,
    /// nodefs.available: the disk with volumes and logs.
    NodeFs,
    /// nodefs.inodesFree
    NodeFsInodes,
    /// imagefs.available: the disk with images and writable layers.
    ImageFs,
    /// imagefs.inodesFree
    ImageFsInodes,
    /// pid.available
    Pids,
}

/// What pods use up of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Memory,
    EphemeralStorage,
    Inodes,
    Pids,
}

impl Resource {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::EphemeralStorage => "ephemeral-storage",
            Resource::Inodes => "inodes",
            Resource::Pids => "pids",
        }
    }
}

impl Signal {
    /// By its name in --eviction-hard.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "memory.available" => Signal::Memory,
            "allocatableMemory.available" => Signal::AllocatableMemory,
            "nodefs.available" => Signal::NodeFs,
            "nodefs.inodesFree" => Signal::NodeFsInodes,
            "imagefs.available" => Signal::ImageFs,
            "imagefs.inodesFree" => Signal::ImageFsInodes,
            "pid.available" => Signal::Pids,
            _ => return None,
        })
    }

    /// What is short then.
    pub fn resource(self) -> Resource {
        match self {
            Signal::Memory | Signal::AllocatableMemory => Resource::Memory,
            Signal::NodeFs | Signal::ImageFs => Resource::EphemeralStorage,
            Signal::NodeFsInodes | Signal::ImageFsInodes => Resource::Inodes,
            Signal::Pids => Resource::Pids,
        }
    }

    /// Is it about the images' disk?
    pub fn of_images(self) -> bool {
        matches!(self, Signal::ImageFs | Signal::ImageFsInodes)
    }
}

/// How little is too little.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Least {
    /// Bytes, inodes or processes.
    Amount(i64),
    /// Hundredths of what there is.
    Percent(f64),
}

/// A line that must not be crossed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// What is measured.
    pub signal: Signal,
    /// What must be left.
    pub least: Least,
}

/// Upstream's hard thresholds, and a hundredth of the process ids; but of disks a twentieth, as k3s has it: a tenth or a
/// seventh of a large disk is much to leave unused, and small machines share theirs with others.
pub fn defaults() -> Vec<Threshold> {
    let percent = |signal, p| Threshold {
        signal,
        least: Least::Percent(p),
    };
    vec![
        Threshold {
            signal: Signal::Memory,
            least: Least::Amount(100 << 20),
        },
        percent(Signal::NodeFs, 5.0),
        percent(Signal::NodeFsInodes, 5.0),
        percent(Signal::ImageFs, 5.0),
        percent(Signal::ImageFsInodes, 5.0),
        percent(Signal::Pids, 1.0),
    ]
}

/// What is left, and what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    pub signal: Signal,
    pub available: i64,
    pub capacity: i64,
}

/// A threshold that is met: what had to be left, and what is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    pub signal: Signal,
    pub least: i64,
    pub available: i64,
}

/// The thresholds that are met, memory first, for it is what kills soonest (upstream byEvictionPriority). Pure. The
/// threshold of memory holds for what all pods may have together as well.
pub fn met(thresholds: &[Threshold], observed: &[Observation]) -> Vec<Short> {
    let mut out: Vec<Short> = observed
        .iter()
        .flat_map(|o| {
            thresholds
                .iter()
                .filter(|t| {
                    let pods = (t.signal, o.signal) == (Signal::Memory, Signal::AllocatableMemory);
                    t.signal == o.signal || pods
                })
                .map(|t| Short {
                    signal: o.signal,
                    least: match t.least {
                        Least::Amount(n) => n,
                        Least::Percent(p) => (o.capacity as f64 * p / 100.0) as i64,
                    },
                    available: o.available,
                })
        })
        .filter(|s| s.available < s.least)
        .collect();
    out.sort_by_key(|s| s.signal);
    out
}

/// The node's conditions that follow. Pure.
pub fn pressure(short: &[Short]) -> Pressure {
    let any = |r: &[Resource]| short.iter().any(|s| r.contains(&s.signal.resource()));
    Pressure {
        memory: any(&[Resource::Memory]),
        disk: any(&[Resource::EphemeralStorage, Resource::Inodes]),
        pid: any(&[Resource::Pids]),
    }
}

/// Measures. `images`: where images are, when that is known. Reads files and blocks for a moment.
pub fn observe(k: &Kubelet, images: Option<&Path>) -> Vec<Observation> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut out = vec![Observation {
        signal: Signal::Memory,
        available: meminfo(&text, "MemAvailable"),
        capacity: meminfo(&text, "MemTotal"),
    }];
    if k.config.enforce_node_allocatable
        && let Some((available, capacity)) = k.cgroups.pods_memory()
    {
        out.push(Observation {
            signal: Signal::AllocatableMemory,
            available,
            capacity,
        });
    }
    let mut disk = |path: &Path, bytes: Signal, inodes: Signal| {
        let Ok(s) = rustix::fs::statvfs(path) else {
            return;
        };
        let of = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        out.push(Observation {
            signal: bytes,
            available: of(s.f_bavail.saturating_mul(s.f_frsize)),
            capacity: of(s.f_blocks.saturating_mul(s.f_frsize)),
        });
        // btrfs and others count no inodes.
        if s.f_files > 0 {
            out.push(Observation {
                signal: inodes,
                available: of(s.f_favail),
                capacity: of(s.f_files),
            });
        }
    };
    disk(&k.config.root_dir, Signal::NodeFs, Signal::NodeFsInodes);
    if let Some(images) = images {
        disk(images, Signal::ImageFs, Signal::ImageFsInodes);
    }
    let most = i64::try_from(max_pids()).unwrap_or(i64::MAX);
    let running = std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|t| {
            let all = t.split_whitespace().nth(3)?.split_once('/')?.1;
            all.parse::<i64>().ok()
        })
        .unwrap_or(0);
    out.push(Observation {
        signal: Signal::Pids,
        available: most - running,
        capacity: most,
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(signal: Signal, available: i64, capacity: i64) -> Observation {
        Observation {
            signal,
            available,
            capacity,
        }
    }

    #[test]
    fn what_is_short_is_told_with_memory_first() {
        let all = defaults();
        let fine = [
            seen(Signal::NodeFs, 5, 100),
            seen(Signal::ImageFs, 5, 100),
            seen(Signal::Pids, 1, 100),
            seen(Signal::Memory, 100 << 20, 1 << 30),
        ];
        assert_eq!(met(&all, &fine), []);
        let short = met(
            &all,
            &[
                seen(Signal::Pids, 9, 1000),
                seen(Signal::ImageFs, 4, 100),
                seen(Signal::NodeFsInodes, 4, 100),
                seen(Signal::AllocatableMemory, (100 << 20) - 1, 1 << 30),
            ],
        );
        let signals: Vec<Signal> = short.iter().map(|s| s.signal).collect();
        assert_eq!(
            signals,
            [
                Signal::AllocatableMemory,
                Signal::NodeFsInodes,
                Signal::ImageFs,
                Signal::Pids
            ]
        );
        assert_eq!((short[0].least, short[3].least), (100 << 20, 10));
        let p = pressure(&short[1..2]);
        assert_eq!((p.memory, p.disk, p.pid), (false, true, false));
        let p = pressure(&short[3..]);
        assert_eq!((p.memory, p.disk, p.pid), (false, false, true));
    }
}
