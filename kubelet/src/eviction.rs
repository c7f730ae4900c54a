//! Pods end when the node runs short (upstream pkg/kubelet/eviction): memory.available<100Mi, nodefs.available<10%,
//! nodefs.inodesFree<5%, pid.available<1%. Owns the choice of the pod and the pressure conditions; a pod's end is its
//! worker's.

use crate::kubelet::Kubelet;
use crate::kuberuntime::resources::pod_requests;
use crate::labels;
use crate::node::capacity::meminfo;
use crate::node::status::Pressure;
use crate::pod::spec;
use crate::pod::state::Event;
use crate::pod::worker::Msg;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
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

/// Critical pods stay (upstream IsCriticalPod).
fn is_critical(pod: &Pod) -> bool {
    spec::spec(pod).priority.is_some_and(|p| p >= 2_000_000_000)
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
            (!p.ended && !is_critical(&p.pod)).then(|| Candidate {
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
}
