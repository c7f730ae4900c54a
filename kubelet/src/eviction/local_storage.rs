//! Limits of local storage that a pod has itself (upstream localStorageEviction): emptyDir volumes with a sizeLimit,
//! containers and pods with a limit of ephemeral-storage. Pure.

use super::rank::{ContainerUsage, PodUsage, binary};
use crate::pod::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// emptyDir volumes on the disk that may not grow for ever: name and limit. Those in memory are tmpfs, which the kernel
/// limits.
pub fn volumes(pod: &Pod) -> Vec<(String, Quantity)> {
    let volumes = spec::spec(pod).volumes.iter().flatten();
    volumes
        .filter_map(|v| {
            let e = v
                .empty_dir
                .as_ref()
                .filter(|e| e.medium.as_deref() != Some("Memory"))?;
            let limit = e.size_limit.clone()?;
            (quantity::value(&limit)? > 0).then(|| (v.name.clone(), limit))
        })
        .collect()
}

fn limit_of(pod: &Pod, container: &str) -> Option<Quantity> {
    let (_, c) = spec::container(pod, container)?;
    let limit = c.resources?.limits?.get("ephemeral-storage")?.clone();
    (quantity::value(&limit)? > 0).then_some(limit)
}

/// Bytes that the pod may take: its containers' limits together, as soon as one has one.
fn of_pod(pod: &Pod) -> Option<i64> {
    let all = spec::containers(pod)
        .iter()
        .chain(spec::init_containers(pod));
    let has = all.clone().any(|c| limit_of(pod, &c.name).is_some());
    let of = |c: &k8s_openapi::api::core::v1::Container| {
        limit_of(pod, &c.name)
            .as_ref()
            .and_then(quantity::value)
            .unwrap_or(0)
    };
    let (mut run, mut peak) = (0_i64, 0_i64);
    for c in spec::init_containers(pod) {
        if spec::is_sidecar(c) {
            run = run.saturating_add(of(c));
            peak = peak.max(run);
        } else {
            peak = peak.max(run.saturating_add(of(c)));
        }
    }
    for c in spec::containers(pod) {
        run = run.saturating_add(of(c));
    }
    has.then_some(run.max(peak))
}

/// Has the pod any such limit? Only then is it measured.
pub fn limited(pod: &Pod) -> bool {
    !volumes(pod).is_empty() || of_pod(pod).is_some()
}

/// What the pod is told when it uses more than it may. `used`: bytes of the volumes of [`volumes`], in their order.
/// `dedicated`: writable layers are on a disk of their own and count for the images.
pub fn beyond(pod: &Pod, used: &[i64], usage: &PodUsage, dedicated: bool) -> Option<String> {
    for ((name, limit), used) in volumes(pod).iter().zip(used) {
        if *used > quantity::value(limit).unwrap_or(i64::MAX) {
            return Some(format!(
                "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\". ",
                limit.0
            ));
        }
    }
    if let Some(limit) = of_pod(pod)
        && usage.disk(false, false).bytes > limit
    {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            binary(limit)
        ));
    }
    let of = |c: &ContainerUsage| {
        let layer = if dedicated { 0 } else { c.layer.bytes };
        c.logs.bytes.saturating_add(layer)
    };
    usage.containers.iter().find_map(|c| {
        let limit = limit_of(pod, &c.name)?;
        (of(c) > quantity::value(&limit)?).then(|| {
            format!(
                "Container {} exceeded its local ephemeral storage limit \"{}\". ",
                c.name, limit.0
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::rank::Disk;
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({"spec": {
            "volumes": [{"name": "a", "emptyDir": {"sizeLimit": "1Ki"}}, {"name": "b", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Ki"}}],
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "2Ki"}}},
                {"name": "d", "resources": {"limits": {"ephemeral-storage": "8Ki"}}}]}}))
        .unwrap()
    }

    fn usage(volumes: i64, c: (i64, i64)) -> PodUsage {
        let disk = |bytes| Disk { bytes, inodes: 1 };
        PodUsage {
            volumes: disk(volumes),
            containers: vec![ContainerUsage {
                name: "c".into(),
                layer: disk(c.0),
                logs: disk(c.1),
                ..ContainerUsage::default()
            }],
            ..PodUsage::default()
        }
    }

    #[test]
    fn volumes_containers_and_pods_keep_to_their_limits_in_upstreams_words() {
        let p = pod();
        let of = |volume: i64, u: PodUsage| beyond(&p, &[volume], &u, false).unwrap_or_default();
        assert_eq!(of(1024, usage(1024, (1024, 1024))), "");
        assert_eq!(
            of(1025, usage(0, (0, 0))),
            "Usage of EmptyDir volume \"a\" exceeds the limit \"1Ki\". "
        );
        assert_eq!(
            of(0, usage(0, (1024, 1025))),
            "Container c exceeded its local ephemeral storage limit \"2Ki\". ",
            "layer and log count together"
        );
        assert_eq!(
            of(0, usage(10_000, (241, 0))),
            "Pod ephemeral local storage usage exceeds the total limit of containers 10Ki. ",
            "volumes count for the pod"
        );
        // On a disk of their own, layers are not the node's.
        assert_eq!(beyond(&p, &[0], &usage(0, (2049, 0)), true), None);
    }

    #[test]
    fn a_pod_without_limits_is_not_measured() {
        let free: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "volumes": [{"name": "b", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Ki"}}],
            "containers": [{"name": "c"}]}}))
        .unwrap();
        assert!(!limited(&free) && limited(&pod()));
        assert_eq!(
            beyond(&free, &[], &usage(1 << 40, (1 << 40, 0)), false),
            None
        );
    }
}
