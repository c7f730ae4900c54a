//! The shapes that plugins share: a verdict for filters, scores and how they are evened out, and what is worked out
//! once for each pod before any node is looked at. No I/O.

use crate::plugins::{inter_pod_affinity, pod_topology_spread};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use std::borrow::Cow;

/// Why a node does not do. `None` from a filter means that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As users read it in the pod's PodScheduled condition.
    pub reason: Cow<'static, str>,
}

/// A refusal with a fixed text.
pub fn refuse(reason: &'static str) -> Vec<Refusal> {
    vec![Refusal {
        reason: Cow::Borrowed(reason),
    }]
}

/// What plugins work out once for a pod (upstream's PreFilter and PreScore).
#[derive(Debug)]
pub struct Cycle<'a> {
    /// All nodes.
    pub snapshot: &'a Snapshot,
    /// Pods with and against whom this pod wants to be, and who want it not to be near.
    pub inter_pod: inter_pod_affinity::Prepared,
    /// How many matching pods each topology domain has.
    pub spread: pod_topology_spread::Prepared,
}

impl<'a> Cycle<'a> {
    /// Works out what the plugins need.
    pub fn new(pod: &PodInfo, snapshot: &'a Snapshot) -> Self {
        Self {
            inter_pod: inter_pod_affinity::prepare(pod, snapshot),
            spread: pod_topology_spread::prepare(pod, snapshot),
            snapshot,
        }
    }
}

/// Says why a node does not do; an empty list when it does.
pub type FilterFn = fn(&Cycle, &PodInfo, &NodeInfo) -> Vec<Refusal>;
/// Says how good a node is, before [`Normalize`].
pub type ScoreFn = fn(&Cycle, &PodInfo, &NodeInfo) -> i64;

/// How raw scores become 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalize {
    /// They are already.
    Not,
    /// The largest becomes 100.
    Max,
    /// The largest becomes 0, zero becomes 100.
    Reverse,
    /// The smallest becomes 0 and the largest 100.
    MinMax,
}

/// A score plugin.
pub struct Score {
    /// Upstream's plugin name.
    pub name: &'static str,
    /// Upstream's default weight.
    pub weight: i64,
    /// The raw score.
    pub score: ScoreFn,
    /// How it is evened out.
    pub normalize: Normalize,
}

/// A filter plugin.
pub struct Filter {
    /// Upstream's plugin name.
    pub name: &'static str,
    /// The verdict.
    pub filter: FilterFn,
}

/// The highest score.
pub const MAX_SCORE: i64 = 100;

/// Evens raw scores out in place.
pub fn normalize(how: Normalize, scores: &mut [i64]) {
    let max = scores.iter().copied().max().unwrap_or(0);
    let min = scores.iter().copied().min().unwrap_or(0);
    for s in scores {
        *s = match how {
            Normalize::Not => *s,
            Normalize::Max if max <= 0 => 0,
            Normalize::Max => *s * MAX_SCORE / max,
            Normalize::Reverse if max <= 0 => MAX_SCORE,
            Normalize::Reverse => MAX_SCORE - *s * MAX_SCORE / max,
            Normalize::MinMax if max == min => 0,
            Normalize::MinMax => (*s - min) * MAX_SCORE / (max - min),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_end_between_0_and_100() {
        for (how, before, after) in [
            (Normalize::Not, vec![7, 90], vec![7, 90]),
            (Normalize::Max, vec![0, 5, 10], vec![0, 50, 100]),
            (Normalize::Max, vec![0, 0], vec![0, 0]),
            (Normalize::Reverse, vec![0, 5, 10], vec![100, 50, 0]),
            (Normalize::Reverse, vec![0, 0], vec![100, 100]),
            (Normalize::MinMax, vec![-10, 0, 10], vec![0, 50, 100]),
            (Normalize::MinMax, vec![3, 3], vec![0, 0]),
        ] {
            let mut scores = before.clone();
            normalize(how, &mut scores);
            assert_eq!(scores, after, "{how:?} of {before:?}");
        }
    }
}
