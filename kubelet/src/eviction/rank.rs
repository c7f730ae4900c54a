//! Which pod goes first, and what it is told (upstream pkg/kubelet/eviction helpers.go: rankMemoryPressure,
//! rankDiskPressureFunc, rankPIDPressure, evictionMessage). Pure.

use super::signals::{Resource, Short};
use crate::kuberuntime::resources::pod_request;
use crate::pod::spec;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// What one container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// Bytes that cannot be reclaimed (the working set).
    pub memory: i64,
    /// Bytes and inodes of the writable layer.
    pub layer: Disk,
    /// Bytes and inodes of the logs.
    pub logs: Disk,
}

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    pub bytes: i64,
    pub inodes: i64,
}

impl std::ops::Add for Disk {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(o.bytes),
            inodes: self.inodes.saturating_add(o.inodes),
        }
    }
}

/// What one pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// Bytes that cannot be reclaimed.
    pub memory: i64,
    /// Processes and threads.
    pub pids: i64,
    /// Local volumes on the node's disk (emptyDir, configMap and so on), and the pod's own files.
    pub volumes: Disk,
    /// Its containers.
    pub containers: Vec<ContainerUsage>,
}

impl PodUsage {
    /// What it takes of the disk that is short. With a disk for images of its own, writable layers are there, and
    /// volumes and logs on the node's.
    pub fn disk(&self, dedicated: bool, of_images: bool) -> Disk {
        let (layers, rest) = (!dedicated || of_images, !dedicated || !of_images);
        let mut out = if rest { self.volumes } else { Disk::default() };
        for c in &self.containers {
            if layers {
                out = out + c.layer;
            }
            if rest {
                out = out + c.logs;
            }
        }
        out
    }

    fn of(&self, short: &Short, dedicated: bool) -> i64 {
        match short.signal.resource() {
            Resource::Memory => self.memory,
            Resource::EphemeralStorage => self.disk(dedicated, short.signal.of_images()).bytes,
            Resource::Inodes => self.disk(dedicated, short.signal.of_images()).inodes,
            Resource::Pids => self.pids,
        }
    }
}

/// A pod that could be evicted.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What it uses.
    pub usage: PodUsage,
}

/// The pods in the order of eviction: those that use more than they asked for, then the least important, then who uses
/// most beyond it. Nobody asks for processes: there importance comes first. Critical pods are left out.
pub fn rank(all: Vec<Candidate>, short: &Short, dedicated: bool) -> Vec<Candidate> {
    let resource = short.signal.resource();
    let mut all: Vec<Candidate> = all
        .into_iter()
        .filter(|c| !spec::is_critical(&c.pod))
        .collect();
    all.sort_by_cached_key(|c| {
        let asked = match resource {
            Resource::Memory | Resource::EphemeralStorage => pod_request(&c.pod, resource.name()),
            Resource::Inodes | Resource::Pids => 0,
        };
        let over = c.usage.of(short, dedicated).saturating_sub(asked);
        let modest = resource != Resource::Pids && over <= 0;
        let priority = spec::spec(&c.pod).priority.unwrap_or(0);
        (modest, priority, std::cmp::Reverse(over))
    });
    all
}

/// What the pod's status and event say.
pub fn message(c: &Candidate, short: &Short) -> String {
    let resource = short.signal.resource();
    let show = |n: i64| match resource {
        Resource::Memory | Resource::EphemeralStorage => binary(n),
        Resource::Inodes | Resource::Pids => n.to_string(),
    };
    let mut out = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        resource.name(),
        show(short.least),
        show(short.available)
    );
    for u in &c.usage.containers {
        let used = match resource {
            Resource::Memory => u.memory,
            Resource::EphemeralStorage => (u.layer + u.logs).bytes,
            Resource::Inodes | Resource::Pids => continue,
        };
        let Some((_, container)) = spec::container(&c.pod, &u.name) else {
            continue;
        };
        let requests = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref());
        let asked = requests.and_then(|r| r.get(resource.name()));
        if used > crate::quantity::value_of(requests, resource.name()) {
            out.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {}. ",
                u.name,
                binary(used),
                asked.map_or("0", |q| q.0.as_str()),
                resource.name()
            ));
        }
    }
    out
}

/// Bytes as a quantity prints them: with the largest suffix that leaves a whole number.
pub fn binary(n: i64) -> String {
    let (mut n, mut suffix) = (n, 0);
    while n != 0 && n % 1024 == 0 && suffix < 6 {
        n /= 1024;
        suffix += 1;
    }
    format!("{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][suffix])
}

#[cfg(test)]
mod tests {
    use super::super::signals::Signal;
    use super::*;

    const MI: i64 = 1 << 20;

    fn candidate(
        name: &str,
        priority: i32,
        requests: serde_json::Value,
        usage: PodUsage,
    ) -> Candidate {
        let pod = serde_json::from_value(
            serde_json::json!({"metadata": {"name": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": requests}}]}}),
        )
        .unwrap();
        Candidate {
            pod: Arc::new(pod),
            usage,
        }
    }

    fn order(all: &[Candidate], signal: Signal, dedicated: bool) -> Vec<String> {
        let short = Short {
            signal,
            least: 100 * MI,
            available: 50 * MI + 1024,
        };
        rank(all.to_vec(), &short, dedicated)
            .iter()
            .map(|c| spec::name(&c.pod).to_string())
            .collect()
    }

    fn container(layer: i64, logs: i64) -> ContainerUsage {
        let disk = |bytes| Disk {
            bytes,
            inodes: bytes / MI,
        };
        ContainerUsage {
            name: "c".into(),
            layer: disk(layer),
            logs: disk(logs),
            ..ContainerUsage::default()
        }
    }

    #[test]
    fn pods_beyond_their_requests_go_first_then_the_least_important() {
        let with = |memory| PodUsage {
            memory,
            ..PodUsage::default()
        };
        let ask = |m: &str| serde_json::json!({"memory": m});
        let all = [
            candidate("modest", 0, ask("100Mi"), with(50 * MI)),
            candidate("important", 9, ask("10Mi"), with(90 * MI)),
            candidate("greedy", 0, ask("10Mi"), with(80 * MI)),
            candidate("greedier", 0, ask("10Mi"), with(85 * MI)),
            candidate("critical", 2_000_000_000, ask("0"), with(900 * MI)),
        ];
        for signal in [Signal::Memory, Signal::AllocatableMemory] {
            assert_eq!(
                order(&all, signal, false),
                ["greedier", "greedy", "important", "modest"]
            );
        }
    }

    #[test]
    fn the_resource_that_is_short_decides() {
        let none = serde_json::json!({});
        let all = [
            candidate(
                "processes",
                0,
                none.clone(),
                PodUsage {
                    pids: 900,
                    ..PodUsage::default()
                },
            ),
            candidate(
                "volumes",
                0,
                none.clone(),
                PodUsage {
                    volumes: Disk {
                        bytes: 500 * MI,
                        inodes: 3,
                    },
                    ..PodUsage::default()
                },
            ),
            candidate(
                "layers",
                0,
                none.clone(),
                PodUsage {
                    containers: vec![container(400 * MI, 0)],
                    ..PodUsage::default()
                },
            ),
            candidate(
                "logs",
                0,
                serde_json::json!({"ephemeral-storage": "1Gi"}),
                PodUsage {
                    memory: 800 * MI,
                    containers: vec![container(0, 900 * MI)],
                    ..PodUsage::default()
                },
            ),
        ];
        let first = |signal, dedicated| order(&all, signal, dedicated)[0].clone();
        assert_eq!(first(Signal::Memory, false), "logs");
        assert_eq!(first(Signal::Pids, false), "processes");
        assert_eq!(
            first(Signal::NodeFs, false),
            "volumes",
            "logs stays below its request"
        );
        assert_eq!(first(Signal::NodeFsInodes, false), "logs");
        // With a disk of their own for images, layers do not fill the node's.
        assert_eq!(
            order(&all, Signal::NodeFs, true),
            ["volumes", "processes", "layers", "logs"]
        );
        assert_eq!(first(Signal::ImageFs, true), "layers");
    }

    #[test]
    fn priority_comes_first_where_nothing_can_be_asked_for() {
        let with = |pids| PodUsage {
            pids,
            ..PodUsage::default()
        };
        let none = serde_json::json!({});
        let all = [
            candidate("many", 5, none.clone(), with(1000)),
            candidate("few", 0, none.clone(), with(10)),
            candidate("some", 0, none, with(20)),
        ];
        assert_eq!(order(&all, Signal::Pids, false), ["some", "few", "many"]);
    }

    #[test]
    fn the_message_says_what_was_short_and_who_used_it() {
        let mut c = candidate(
            "p",
            0,
            serde_json::json!({"memory": "10Mi"}),
            PodUsage::default(),
        );
        c.usage.containers = vec![ContainerUsage {
            memory: 300 * MI,
            ..container(0, 0)
        }];
        let short = Short {
            signal: Signal::Memory,
            least: 100 * MI,
            available: 51_204 << 10,
        };
        assert_eq!(
            message(&c, &short),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51204Ki. \
             Container c was using 300Mi, request is 10Mi, has larger consumption of memory. "
        );
        let pids = Short {
            signal: Signal::Pids,
            least: 327,
            available: 12,
        };
        assert_eq!(
            message(&c, &pids),
            "The node was low on resource: pids. Threshold quantity: 327, available: 12. "
        );
        assert_eq!(
            [0, 1023, 1 << 30, 3 << 20].map(binary),
            ["0", "1023", "1Gi", "3Mi"]
        );
    }
}
