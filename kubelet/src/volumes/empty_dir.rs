//! emptyDir: a directory, or memory (upstream pkg/volume/emptydir). Owns the choice of size, mode and page size;
//! `tear_down` removes what is made here.

use super::memory::Options;
use super::ownership::with_group;
use super::place::{Place, make_volume};
use super::{Mounted, memory};
use crate::pod::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, BTreeSet};

/// The plugin's name.
pub const PLUGIN: &str = "kubernetes.io/empty-dir";

/// What is to be made. The group is set when it is made and never again: from then on it is the containers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A directory on the node's disk.
    Directory {
        /// fsGroup
        group: Option<u32>,
    },
    /// Memory.
    Memory(Options),
}

/// Decides. Pure.
///
/// # Errors
/// A medium that does not exist, or huge pages that the pod does not ask for.
pub fn wanted(
    pod: &Pod,
    source: &EmptyDirVolumeSource,
    group: Option<u32>,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<Wanted, String> {
    let medium = source.medium.as_deref().unwrap_or_default();
    Ok(match medium {
        "" => Wanted::Directory { group },
        "Memory" => Wanted::Memory(Options {
            size: tmpfs_size(pod, source.size_limit.as_ref(), allocatable),
            ..in_memory(group)
        }),
        m if m == "HugePages" || m.starts_with("HugePages-") => Wanted::Memory(Options {
            mode: group.map_or(0o755, |_| with_group(0o755, true, false)),
            page_size: Some(page_size(pod, m.strip_prefix("HugePages-"))?),
            ..in_memory(group)
        }),
        other => return Err(format!("unknown storage medium {other:?}")),
    })
}

/// A tmpfs has the mode that the kernel gives it, as upstream's.
fn in_memory(group: Option<u32>) -> Options {
    Options {
        mode: group.map_or(0o1777, |_| with_group(0o1777, true, false)),
        group,
        size: None,
        page_size: None,
        ours: false,
    }
}

/// A tmpfs for files that only the kubelet writes.
pub fn for_files(
    pod: &Pod,
    group: Option<u32>,
    allocatable: &BTreeMap<String, Quantity>,
) -> Options {
    Options {
        size: tmpfs_size(pod, None, allocatable),
        ours: true,
        ..in_memory(group)
    }
}

/// The smallest of what the node gives to pods, the pod's limit and the volume's own (upstream
/// calculateEmptyDirMemorySize). Pure.
pub fn tmpfs_size(
    pod: &Pod,
    limit: Option<&Quantity>,
    allocatable: &BTreeMap<String, Quantity>,
) -> Option<i64> {
    [
        Some(quantity::value_of(Some(allocatable), "memory")),
        Some(crate::kuberuntime::resources::pod_cgroup(pod).memory),
        limit.and_then(quantity::value),
    ]
    .into_iter()
    .flatten()
    .filter(|v| *v > 0)
    .min()
}

/// Bytes of a page: the size that is named, or the only one that the pod's containers ask for.
fn page_size(pod: &Pod, named: Option<&str>) -> Result<i64, String> {
    let sizes: BTreeSet<&str> = spec::containers(pod)
        .iter()
        .chain(spec::init_containers(pod))
        .filter_map(|c| c.resources.as_ref())
        .flat_map(|r| [r.limits.as_ref(), r.requests.as_ref()])
        .flatten()
        .flat_map(BTreeMap::keys)
        .filter_map(|k| k.strip_prefix("hugepages-"))
        .collect();
    let size = match (named, sizes.len()) {
        (Some(named), _) if sizes.contains(named) => named,
        (Some(named), _) => {
            return Err(format!(
                "medium HugePages-{named} needs a container that asks for hugepages-{named}"
            ));
        }
        (None, 1) => sizes.first().copied().unwrap_or_default(),
        (None, 0) => {
            return Err("medium HugePages needs a container that asks for huge pages".into());
        }
        (None, _) => {
            return Err(
                "medium HugePages can only be used when the pod asks for one page size; name it as in HugePages-2Mi"
                    .into(),
            );
        }
    };
    quantity::value(&Quantity(size.into()))
        .filter(|v| *v > 0)
        .ok_or_else(|| format!("hugepages-{size}: no size of a page"))
}

/// Makes it, once.
///
/// # Errors
/// The file system's.
pub fn mount(place: &Place, name: &str, wanted: &Wanted) -> Result<Mounted, String> {
    let path = place.volume_path(PLUGIN, name);
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let parent = place.volumes(PLUGIN).map_err(fail)?;
    match wanted {
        Wanted::Directory { group } => {
            let mode = group.map_or(0o777, |_| with_group(0o777, true, false));
            make_volume(&parent, name, mode, *group).map_err(fail)?;
        }
        Wanted::Memory(options) => {
            memory::mount(&parent, name, options).map_err(fail)?;
        }
    }
    Ok(Mounted::at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(limits: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "c", "resources": {"limits": limits}}]}}))
        .unwrap()
    }

    #[test]
    fn memory_is_limited_by_the_volume_the_pod_and_the_node() {
        let node = BTreeMap::from([("memory".to_string(), Quantity("1Gi".into()))]);
        let limited = pod(serde_json::json!({"memory": "64Mi"}));
        let free = pod(serde_json::json!({}));
        let of = |s: &str| Quantity(s.into());
        let size = |p, l: Option<&str>| tmpfs_size(p, l.map(of).as_ref(), &node);
        assert_eq!(size(&limited, None), Some(64 << 20));
        assert_eq!(size(&limited, Some("32Mi")), Some(32 << 20));
        assert_eq!(size(&limited, Some("128Mi")), Some(64 << 20));
        assert_eq!(size(&free, None), Some(1 << 30));
        assert_eq!(size(&free, Some("0")), Some(1 << 30));
    }

    #[test]
    fn media_have_upstreams_modes_and_unknown_ones_are_refused() {
        let get = |medium: &str, group| {
            let source = EmptyDirVolumeSource {
                medium: Some(medium.into()),
                ..Default::default()
            };
            let p = pod(serde_json::json!({"hugepages-2Mi": "4Mi"}));
            wanted(&p, &source, group, &BTreeMap::new())
        };
        assert_eq!(get("", Some(5)), Ok(Wanted::Directory { group: Some(5) }));
        let options = |w| match w {
            Ok(Wanted::Memory(o)) => (o.mode, o.group, o.page_size),
            other => panic!("{other:?}"),
        };
        assert_eq!(options(get("Memory", None)), (0o1777, None, None));
        assert_eq!(options(get("Memory", Some(5))), (0o3777, Some(5), None));
        assert_eq!(
            options(get("HugePages", None)),
            (0o755, None, Some(2 << 20))
        );
        assert_eq!(
            options(get("HugePages-2Mi", Some(5))),
            (0o2775, Some(5), Some(2 << 20))
        );
        assert!(get("HugePages-1Gi", None).is_err());
        assert!(get("Disk", None).unwrap_err().contains("Disk"));
    }
}
