//! ImageLocality: a node that has the pod's images already is better, the more so the larger they are.

use crate::framework::{Cycle, MAX_SCORE};
use crate::snapshot::{NodeInfo, PodInfo};

/// Below this an image does not count (bytes, for each container).
const MIN: i64 = 23 * 1024 * 1024;
/// From here on more does not count (bytes, for each container).
const MAX: i64 = 1000 * 1024 * 1024;

/// The sum of the sizes of images that are there, scaled by how many nodes have each (so that one node with a rare
/// image does not draw every pod).
pub fn score(cycle: &Cycle, pod: &PodInfo, node: &NodeInfo) -> i64 {
    let Some(spec) = pod.pod.spec.as_ref() else {
        return 0;
    };
    if node.images.is_empty() || spec.containers.is_empty() {
        return 0;
    }
    let nodes = cycle.snapshot.nodes();
    let total = i64::try_from(nodes.len()).unwrap_or(1).max(1);
    let sum: i64 = spec
        .containers
        .iter()
        .filter_map(|c| {
            let image = c.image.as_deref()?;
            let size = *node.images.get(image)?;
            let holders = nodes
                .iter()
                .filter(|n| n.images.contains_key(image))
                .count();
            Some(size / total * i64::try_from(holders).unwrap_or(0))
        })
        .sum();
    let count = i64::try_from(spec.containers.len()).unwrap_or(1);
    let (low, high) = (MIN, MAX * count);
    MAX_SCORE * (sum.clamp(low, high) - low) / (high - low)
}
