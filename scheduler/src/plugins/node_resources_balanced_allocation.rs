//! NodeResourcesBalancedAllocation: a node whose CPU and memory would be used in like shares is better.

use crate::framework::{Cycle, MAX_SCORE};
use crate::snapshot::{NodeInfo, PodInfo};

/// 100 less the standard deviation of the used shares, in percent.
pub fn score(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> i64 {
    #[allow(clippy::cast_precision_loss)]
    let share = |used: i64, capacity: i64| {
        if capacity <= 0 {
            1.0
        } else {
            (used as f64 / capacity as f64).min(1.0)
        }
    };
    let cpu = share(
        node.nonzero.milli_cpu + pod.nonzero.milli_cpu,
        node.allocatable.milli_cpu,
    );
    let memory = share(
        node.nonzero.memory + pod.nonzero.memory,
        node.allocatable.memory,
    );
    let deviation = (cpu - memory).abs() / 2.0;
    #[allow(clippy::cast_possible_truncation)]
    let points = ((1.0 - deviation) * 100.0) as i64;
    points.clamp(0, MAX_SCORE)
}
