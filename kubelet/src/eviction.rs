//! Pods end when the node runs short (upstream pkg/kubelet/eviction): memory.available<100Mi, nodefs.available<10%,
//! nodefs.inodesFree<5%, pid.available<1%; and when they use more local storage than they may. Owns the choice of the
//! pod and the pressure conditions; a pod's end is its worker's.

use crate::kubelet::Kubelet;
use crate::kuberuntime::resources::pod_requests;
use crate::labels;
use crate::node::capacity::meminfo;
use crate::node::status::Pressure;
use crate::pod::spec;
use crate::pod::state::Event;
use crate::pod::worker::Msg;
use crate::quantity;
use crate::volumes::work::{self, Lane};
use k8s_openapi::api::core::v1::Pod;
use skiff_beneath::Root;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often the node is looked at (upstream's housekeeping: ten seconds).
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a pressure is shown after it has gone (eviction-pressure-transition-period).
const TRANSITION: Duration = Duration::from_secs(300);
/// Bytes of memory that must be available.
const MEMORY: i64 = 100 << 20;

/// What the node has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Bytes.
    pub memory: i64,
    /// Percent.
    pub disk: u64,
    /// Percent.
    pub inodes: u64,
    /// Percent.
    pub pids: u64,
}

/// Which thresholds are met. Pure.
pub fn thresholds(o: &Observed) -> Pressure {
    Pressure {
        memory: o.memory < MEMORY,
        disk: o.disk < 10 || o.inodes < 5,
        pid: o.pids < 1,
    }
}

/// A pod that could be evicted.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Bytes it uses of what is short.
    pub usage: i64,
}

/// The pods in the order of eviction: first those that use more than they asked for, then by priority, then by how
/// much they use beyond it. Pure.
pub fn rank(mut all: Vec<Candidate>) -> Vec<Candidate> {
    let over = |c: &Candidate| c.usage - pod_requests(&c.pod).1;
    all.sort_by_key(|c| {
        (
            over(c) <= 0,
            spec::spec(&c.pod).priority.unwrap_or(0),
            std::cmp::Reverse(over(c)),
        )
    });
    all
}

fn observe(k: &Kubelet) -> Observed {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let percent = |have: u64, of: u64| have.saturating_mul(100).checked_div(of).unwrap_or(100);
    let (disk, inodes) = rustix::fs::statvfs(&k.config.root_dir).map_or((100, 100), |s| {
        (
            percent(s.f_bavail, s.f_blocks),
            percent(s.f_favail, s.f_files),
        )
    });
    let number = |p: &str| {
        std::fs::read_to_string(p)
            .ok()
            .and_then(|t| t.trim().parse::<u64>().ok())
    };
    let most = number("/proc/sys/kernel/pid_max")
        .unwrap_or(0)
        .min(number("/proc/sys/kernel/threads-max").unwrap_or(u64::MAX));
    let running = std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|t| {
            t.split_whitespace()
                .nth(3)?
                .split_once('/')?
                .1
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0);
    Observed {
        memory: meminfo(&text, "MemAvailable"),
        disk,
        inodes,
        pids: percent(most.saturating_sub(running), most),
    }
}

/// Looks after the node until the kubelet stops.
pub async fn run(k: Arc<Kubelet>, tell: watch::Sender<Pressure>) {
    let mut met: [Option<Instant>; 3] = [None; 3];
    let mut evicted_at: Option<Instant> = None;
    loop {
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let observed = observe(&k);
        let short = thresholds(&observed);
        let now = Instant::now();
        for (at, yes) in met.iter_mut().zip([short.memory, short.disk, short.pid]) {
            if yes {
                *at = Some(now);
            }
        }
        let shown = |i: usize| met[i].is_some_and(|t| now.duration_since(t) < TRANSITION);
        let pressure = Pressure {
            memory: shown(0),
            disk: shown(1),
            pid: shown(2),
        };
        tell.send_if_modified(|p| {
            let changed = *p != pressure;
            *p = pressure;
            changed
        });
        beyond_limits(&k).await;
        // One pod at a time, and time for its end to show.
        let waiting = evicted_at.is_some_and(|t| now.duration_since(t) < Duration::from_secs(30));
        if (short.memory || short.disk) && !waiting && evict(&k, short.memory).await {
            evicted_at = Some(now);
        }
    }
}

async fn evict(k: &Arc<Kubelet>, memory: bool) -> bool {
    let mut usage: HashMap<String, i64> = HashMap::new();
    for s in k.cri.list_container_stats().await.unwrap_or_default() {
        let Some(uid) = s
            .attributes
            .as_ref()
            .and_then(|a| a.labels.get(labels::POD_UID))
        else {
            continue;
        };
        let bytes = if memory {
            s.memory
                .as_ref()
                .and_then(|m| m.working_set_bytes.as_ref())
                .map_or(0, |v| v.value)
        } else {
            s.writable_layer
                .as_ref()
                .and_then(|w| w.used_bytes.as_ref())
                .map_or(0, |v| v.value)
        };
        *usage.entry(uid.clone()).or_default() += bytes as i64;
    }
    let candidates: Vec<Candidate> = k
        .workers
        .lock()
        .iter()
        .filter_map(|(uid, h)| {
            let p = h.published.lock();
            (!p.ended && !spec::is_critical(&p.pod)).then(|| Candidate {
                pod: p.pod.clone(),
                usage: usage.get(uid).copied().unwrap_or(0),
            })
        })
        .collect();
    let Some(first) = rank(candidates).into_iter().next() else {
        return false;
    };
    let what = if memory {
        "memory"
    } else {
        "ephemeral-storage"
    };
    let message = format!(
        "The node was low on resource: {what}. Pod used {} bytes of it.",
        first.usage
    );
    tracing::warn!(pod = %spec::name(&first.pod), "evicting a pod: the node is low on {what}");
    k.note(
        &first.pod,
        skiff_client::recorder::EventType::Warning,
        "Evicted",
        &message,
    );
    let handle = k.workers.lock().get(spec::uid(&first.pod)).cloned();
    if let Some(h) = handle {
        h.send(Msg::Event(Event::Evict {
            reason: "Evicted".into(),
            message,
            // Hard thresholds leave no grace.
            grace: Some(1),
        }));
    }
    true
}

/// Names and bytes.
pub type Limits = Vec<(String, i64)>;

/// Local storage that a pod may use: emptyDir volumes with a sizeLimit (not in memory, the kernel limits those), and
/// containers with a limit of ephemeral-storage. Pure.
pub fn storage_limits(pod: &Pod) -> (Limits, Limits) {
    let volumes = spec::spec(pod)
        .volumes
        .iter()
        .flatten()
        .filter_map(|v| {
            let e = v
                .empty_dir
                .as_ref()
                .filter(|e| e.medium.as_deref() != Some("Memory"))?;
            let limit = e
                .size_limit
                .as_ref()
                .and_then(quantity::value)
                .filter(|l| *l > 0)?;
            Some((v.name.clone(), limit))
        })
        .collect();
    let containers = spec::containers(pod)
        .iter()
        .filter_map(|c| {
            let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
            let limit = quantity::value_of(limits, "ephemeral-storage");
            (limit > 0).then(|| (c.name.clone(), limit))
        })
        .collect();
    (volumes, containers)
}

/// Bytes that a directory's files occupy, without following links or entering other file systems. A tree that hides from
/// being measured counts as more than anybody may have.
fn occupied(dir: &Path) -> i64 {
    match Root::open(dir).and_then(|d| d.usage()) {
        Ok(usage) => i64::try_from(usage.bytes).unwrap_or(i64::MAX),
        Err(e) if e.kind() == std::io::ErrorKind::Other => i64::MAX,
        Err(_) => 0,
    }
}

/// Ends pods that use more local storage than they may. Nothing is looked at when no pod has a limit.
async fn beyond_limits(k: &Arc<Kubelet>) {
    let limited: Vec<(Arc<Pod>, _, _)> = k
        .workers
        .lock()
        .values()
        .filter_map(|h| {
            let p = h.published.lock();
            let (volumes, containers) = storage_limits(&p.pod);
            let some = !volumes.is_empty() || !containers.is_empty();
            (some && !p.ended).then(|| (p.pod.clone(), volumes, containers))
        })
        .collect();
    if limited.is_empty() {
        return;
    }
    let stats = if limited.iter().any(|(_, _, c)| !c.is_empty()) {
        k.cri.list_container_stats().await.unwrap_or_default()
    } else {
        Vec::new()
    };
    for (pod, volumes, containers) in limited {
        let uid = spec::uid(&pod).to_string();
        let dirs: Vec<_> = volumes
            .into_iter()
            .map(|(name, limit)| {
                (
                    k.config.volume_dir(&uid, "kubernetes.io/empty-dir", &name),
                    name,
                    limit,
                )
            })
            .collect();
        let job = move |_: &work::Closed| {
            dirs.into_iter()
                .find(|(dir, _, limit)| occupied(dir) > *limit)
        };
        let full = k
            .volumes
            .work
            .run(&uid, Lane::Read, work::MEASURE, job)
            .await
            .ok()
            .flatten();
        let mut message = full.map(|(_, name, limit)| {
            format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\" bytes. ")
        });
        for (name, limit) in containers {
            let used = stats
                .iter()
                .filter(|s| {
                    s.attributes.as_ref().is_some_and(|a| {
                        a.labels.get(labels::POD_UID) == Some(&uid)
                            && a.metadata.as_ref().is_some_and(|m| m.name == name)
                    })
                })
                .filter_map(|s| s.writable_layer.as_ref()?.used_bytes.as_ref())
                .map(|v| v.value as i64)
                .max();
            if used.is_some_and(|u| u > limit) && message.is_none() {
                message = Some(format!(
                    "Container {name} exceeded its local ephemeral storage limit \"{limit}\" bytes. "
                ));
            }
        }
        let handle = k.workers.lock().get(&uid).cloned();
        if let (Some(message), Some(h)) = (message, handle) {
            k.note(
                &pod,
                skiff_client::recorder::EventType::Warning,
                "Evicted",
                &message,
            );
            h.send(Msg::Event(Event::Evict {
                reason: "Evicted".into(),
                message,
                grace: Some(1),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_beyond_their_requests_go_first_then_the_least_important() {
        let pod = |name: &str, priority: i32, request: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "spec": {"priority": priority,
                    "containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]}}))
                .unwrap(),
            )
        };
        let all = vec![
            Candidate {
                pod: pod("modest", 0, "100Mi"),
                usage: 50 << 20,
            },
            Candidate {
                pod: pod("important", 9, "10Mi"),
                usage: 90 << 20,
            },
            Candidate {
                pod: pod("greedy", 0, "10Mi"),
                usage: 80 << 20,
            },
            Candidate {
                pod: pod("greedier", 0, "10Mi"),
                usage: 85 << 20,
            },
        ];
        let names: Vec<String> = rank(all)
            .iter()
            .map(|c| spec::name(&c.pod).to_string())
            .collect();
        assert_eq!(names, ["greedier", "greedy", "important", "modest"]);
        let o = Observed {
            memory: 1 << 30,
            disk: 9,
            inodes: 50,
            pids: 50,
        };
        assert_eq!(
            thresholds(&o),
            Pressure {
                memory: false,
                disk: true,
                pid: false
            }
        );
    }

    #[test]
    fn local_storage_is_limited_by_volume_and_container() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "volumes": [{"name": "a", "emptyDir": {"sizeLimit": "1Ki"}}, {"name": "b", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Ki"}}],
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "2Ki"}}}, {"name": "d"}]}}))
        .unwrap();
        assert_eq!(
            storage_limits(&pod),
            (vec![("a".into(), 1024)], vec![("c".into(), 2048)])
        );
    }
}
