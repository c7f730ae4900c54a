//! What pods use of the node, measured when it is asked for. Owns the measuring; who is asked to go is `rank`'s.

use super::local_storage;
use super::rank::{ContainerUsage, Disk, PodUsage};
use crate::kubelet::Kubelet;
use crate::labels;
use crate::pod::spec;
use crate::volumes::work::{self, Lane};
use k8s_openapi::api::core::v1::Pod;
use skiff_beneath::Root;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Containers of all pods, by uid: what the runtime says of memory and writable layers. A container that was started
/// again counts with its newest run, and the layers of its older ones.
pub async fn containers(k: &Kubelet) -> HashMap<String, Vec<ContainerUsage>> {
    let mut out: HashMap<String, Vec<ContainerUsage>> = HashMap::new();
    for s in k.cri.list_container_stats().await.unwrap_or_default() {
        let Some(a) = s.attributes else { continue };
        let (Some(uid), Some(name)) = (
            a.labels.get(labels::POD_UID),
            a.labels.get(labels::CONTAINER_NAME),
        ) else {
            continue;
        };
        let number = |v: Option<k8s_cri::v1::UInt64Value>| {
            v.map_or(0, |v| i64::try_from(v.value).unwrap_or(i64::MAX))
        };
        let memory = number(s.memory.and_then(|m| m.working_set_bytes));
        let layer = s.writable_layer.map_or_else(Disk::default, |w| Disk {
            bytes: number(w.used_bytes),
            inodes: number(w.inodes_used),
        });
        let list = out.entry(uid.clone()).or_default();
        match list.iter_mut().find(|c| c.name == *name) {
            Some(c) => {
                c.memory = c.memory.max(memory);
                c.layer = c.layer + layer;
            }
            None => list.push(ContainerUsage {
                name: name.clone(),
                memory,
                layer,
                logs: Disk::default(),
            }),
        }
    }
    out
}

/// What a pod uses, and the bytes of those of its emptyDir volumes that have a limit.
pub struct Measured {
    /// All told.
    pub usage: PodUsage,
    /// In the order of [`local_storage::volumes`].
    pub limited: Vec<i64>,
}

/// One pod, all told. Mounted things (tmpfs, claims) are not the node's disk. A file system that hangs holds up its own
/// pod alone, and is not counted.
pub async fn of_pod(k: &Arc<Kubelet>, pod: &Arc<Pod>, containers: Vec<ContainerUsage>) -> Measured {
    let (this, of) = (k.clone(), pod.clone());
    let found = containers.clone();
    let job = move |_: &work::Closed| measure(&this, &of, found);
    let work = &k.volumes.work;
    let done = work.run(spec::uid(pod), Lane::Measure, work::MEASURE, job);
    done.await.unwrap_or_else(|e| {
        tracing::warn!(pod = %spec::name(pod), error = %e, "a pod's files could not be measured");
        Measured {
            usage: PodUsage {
                memory: containers.iter().map(|c| c.memory).sum(),
                containers,
                ..PodUsage::default()
            },
            limited: Vec::new(),
        }
    })
}

fn measure(k: &Kubelet, pod: &Pod, mut containers: Vec<ContainerUsage>) -> Measured {
    let uid = spec::uid(pod);
    let stats = k.cgroups.pod_stats(pod);
    let number = |v: Option<u64>| v.map(|v| i64::try_from(v).unwrap_or(i64::MAX));
    let logs = k
        .config
        .pod_log_dir(spec::namespace(pod), spec::name(pod), uid);
    for c in &mut containers {
        c.logs = tree(&logs.join(&c.name));
    }
    let limited = local_storage::volumes(pod)
        .iter()
        .map(|(name, _)| {
            let dir = k.config.volume_dir(uid, "kubernetes.io/empty-dir", name);
            tree(&dir).bytes
        })
        .collect();
    Measured {
        usage: PodUsage {
            memory: number(stats.working_set)
                .unwrap_or_else(|| containers.iter().map(|c| c.memory).sum()),
            pids: number(stats.pids).unwrap_or(0),
            // Also /etc/hosts and the termination messages, which containers may make as large as they like.
            volumes: tree(&k.config.pod_dir(uid)),
            containers,
        },
        limited,
    }
}

/// What a directory takes; nothing if it is not there. Containers may be changing it: no link is followed and no mount
/// entered. A tree that hides from being measured counts as more than anybody may have.
pub fn tree(dir: &Path) -> Disk {
    match Root::open(dir).and_then(|d| d.usage()) {
        Ok(u) => Disk {
            bytes: i64::try_from(u.bytes).unwrap_or(i64::MAX),
            inodes: i64::try_from(u.inodes).unwrap_or(i64::MAX),
        },
        Err(e) if e.kind() == std::io::ErrorKind::Other => Disk {
            bytes: i64::MAX,
            inodes: i64::MAX,
        },
        Err(_) => Disk::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_measured_without_what_links_of_it_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::write(dir.path().join("outside"), vec![1; 4 << 20]).unwrap();
        std::fs::write(volume.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(volume.join("a/b/file"), volume.join("again")).unwrap();
        std::os::unix::fs::symlink(dir.path(), volume.join("up")).unwrap();
        let got = tree(&volume);
        assert!(got.bytes >= 1 << 20 && got.bytes < 2 << 20, "{got:?}");
        // The directory itself, a, b, one inode of two names, and the link.
        assert_eq!(got.inodes, 5);
        assert_eq!(tree(&dir.path().join("none")), Disk::default());
    }
}
