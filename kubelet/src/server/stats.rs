//! `/stats/summary` and the metrics (upstream pkg/kubelet/server/stats, metrics/collectors resource_metrics). Owns
//! their format; figures come from the runtime and /proc.

use super::Failure;
use crate::gc::usage;
use crate::kubelet::Kubelet;
use crate::labels;
use crate::node::capacity::meminfo;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use k8s_cri::v1::{ContainerStats, CpuUsage, MemoryUsage, PodSandboxStats};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

struct PodUsage {
    name: String,
    namespace: String,
    uid: String,
    sandbox: Option<PodSandboxStats>,
    containers: Vec<ContainerStats>,
}

async fn collect(k: &Kubelet) -> Result<Vec<PodUsage>, Failure> {
    let failed =
        |e: crate::cri::CriError| Failure(StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
    let containers = k.cri.list_container_stats().await.map_err(failed)?;
    // Not every runtime has these.
    let sandboxes = k.cri.list_pod_sandbox_stats().await.unwrap_or_default();
    let mut pods: BTreeMap<String, PodUsage> = BTreeMap::new();
    for s in sandboxes {
        let Some(meta) = s.attributes.as_ref().and_then(|a| a.metadata.clone()) else {
            continue;
        };
        pods.insert(
            meta.uid.clone(),
            PodUsage {
                name: meta.name,
                namespace: meta.namespace,
                uid: meta.uid,
                sandbox: Some(s),
                containers: Vec::new(),
            },
        );
    }
    for c in containers {
        let Some(a) = c.attributes.as_ref() else {
            continue;
        };
        let get = |k: &str| a.labels.get(k).cloned().unwrap_or_default();
        let uid = get(labels::POD_UID);
        if uid.is_empty() {
            continue;
        }
        pods.entry(uid.clone())
            .or_insert_with(|| PodUsage {
                name: get(labels::POD_NAME),
                namespace: get(labels::POD_NAMESPACE),
                uid,
                sandbox: None,
                containers: Vec::new(),
            })
            .containers
            .push(c);
    }
    Ok(pods.into_values().collect())
}

fn time(nanoseconds: i64) -> Value {
    json!(crate::pod::view::time(nanoseconds).to_string())
}

fn cpu(c: Option<&CpuUsage>) -> Value {
    c.map_or(Value::Null, |c| {
        json!({"time": time(c.timestamp),
            "usageNanoCores": c.usage_nano_cores.as_ref().map(|v| v.value),
            "usageCoreNanoSeconds": c.usage_core_nano_seconds.as_ref().map(|v| v.value)})
    })
}

fn memory(m: Option<&MemoryUsage>) -> Value {
    m.map_or(Value::Null, |m| {
        json!({"time": time(m.timestamp),
            "availableBytes": m.available_bytes.as_ref().map(|v| v.value),
            "usageBytes": m.usage_bytes.as_ref().map(|v| v.value),
            "workingSetBytes": m.working_set_bytes.as_ref().map(|v| v.value),
            "rssBytes": m.rss_bytes.as_ref().map(|v| v.value),
            "pageFaults": m.page_faults.as_ref().map(|v| v.value),
            "majorPageFaults": m.major_page_faults.as_ref().map(|v| v.value)})
    })
}

/// `/stats/summary`
pub async fn summary(State(k): State<Arc<Kubelet>>) -> Result<Response, Failure> {
    let now = Timestamp::now().to_string();
    let mut pods = Vec::new();
    for p in collect(&k).await? {
        let linux = p.sandbox.as_ref().and_then(|s| s.linux.as_ref());
        let containers: Vec<Value> = p
            .containers
            .iter()
            .map(|c| {
                let name = c.attributes.as_ref().and_then(|a| a.metadata.as_ref()).map(|m| m.name.clone());
                json!({"name": name, "cpu": cpu(c.cpu.as_ref()), "memory": memory(c.memory.as_ref()),
                    "rootfs": c.writable_layer.as_ref().map(|w| json!({"time": time(w.timestamp),
                        "usedBytes": w.used_bytes.as_ref().map(|v| v.value),
                        "inodesUsed": w.inodes_used.as_ref().map(|v| v.value)}))})
            })
            .collect();
        let network = linux.and_then(|l| l.network.as_ref()).and_then(|n| {
            let i = n.default_interface.as_ref()?;
            Some(json!({"time": time(n.timestamp), "name": i.name,
                "rxBytes": i.rx_bytes.as_ref().map(|v| v.value), "rxErrors": i.rx_errors.as_ref().map(|v| v.value),
                "txBytes": i.tx_bytes.as_ref().map(|v| v.value), "txErrors": i.tx_errors.as_ref().map(|v| v.value)}))
        });
        pods.push(json!({
            "podRef": {"name": p.name, "namespace": p.namespace, "uid": p.uid},
            "containers": containers,
            "cpu": cpu(linux.and_then(|l| l.cpu.as_ref())),
            "memory": memory(linux.and_then(|l| l.memory.as_ref())),
            "network": network,
            "process_stats": linux.and_then(|l| l.process.as_ref()).map(|p| json!({"process_count": p.process_count.as_ref().map(|v| v.value)})),
        }));
    }
    let body = json!({"node": node(&k, &now), "pods": pods}).to_string();
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn node(k: &Kubelet, now: &str) -> Value {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo(&text, "MemAvailable");
    let total = meminfo(&text, "MemTotal");
    let fs = usage(&k.config.root_dir).map(|(percent, bytes)| {
        let used = bytes / 100 * percent;
        json!({"time": now, "capacityBytes": bytes, "usedBytes": used, "availableBytes": bytes - used})
    });
    json!({"nodeName": k.config.node_name,
        "cpu": {"time": now, "usageCoreNanoSeconds": cpu_nanoseconds()},
        "memory": {"time": now, "availableBytes": available, "usageBytes": total - meminfo(&text, "MemFree"), "workingSetBytes": total - available},
        "fs": fs})
}

/// Processor time that the whole machine has used.
fn cpu_nanoseconds() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<u64> = text
        .lines()
        .next()
        .into_iter()
        .flat_map(str::split_whitespace)
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal, in hundredths of a second
    let busy: u64 = numbers
        .iter()
        .enumerate()
        .filter(|(i, _)| !matches!(i, 3 | 4) && *i < 8)
        .map(|(_, n)| n)
        .sum();
    busy.saturating_mul(10_000_000)
}

/// `/metrics/resource`, what metrics-server reads.
pub async fn resource_metrics(State(k): State<Arc<Kubelet>>) -> Result<String, Failure> {
    let mut out = String::new();
    let mut cpu = String::new();
    let mut mem = String::new();
    for p in collect(&k).await? {
        for c in &p.containers {
            let name = c
                .attributes
                .as_ref()
                .and_then(|a| a.metadata.as_ref())
                .map(|m| m.name.clone())
                .unwrap_or_default();
            let labels = format!(
                "{{container=\"{name}\",namespace=\"{}\",pod=\"{}\"}}",
                p.namespace, p.name
            );
            if let Some(u) = &c.cpu
                && let Some(v) = &u.usage_core_nano_seconds
            {
                let _ = writeln!(
                    cpu,
                    "container_cpu_usage_seconds_total{labels} {} {}",
                    v.value as f64 / 1e9,
                    u.timestamp / 1_000_000
                );
            }
            if let Some(u) = &c.memory
                && let Some(v) = &u.working_set_bytes
            {
                let _ = writeln!(
                    mem,
                    "container_memory_working_set_bytes{labels} {} {}",
                    v.value,
                    u.timestamp / 1_000_000
                );
            }
        }
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let used = meminfo(&text, "MemTotal") - meminfo(&text, "MemAvailable");
    out.push_str("# TYPE container_cpu_usage_seconds_total counter\n");
    out.push_str(&cpu);
    out.push_str("# TYPE container_memory_working_set_bytes gauge\n");
    out.push_str(&mem);
    let _ = write!(
        out,
        "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {}\n# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {used}\n# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n",
        cpu_nanoseconds() as f64 / 1e9
    );
    Ok(out)
}

/// `/metrics`: a few figures of the kubelet itself.
pub async fn metrics(State(k): State<Arc<Kubelet>>) -> String {
    let (pods, containers) = {
        let workers = k.workers.lock();
        let containers: usize = workers
            .values()
            .map(|h| h.published.lock().view.alive().count())
            .sum();
        (workers.len(), containers)
    };
    format!(
        "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}\n\
         # TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {containers}\n\
         # TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1\n",
        k.config.node_name
    )
}
