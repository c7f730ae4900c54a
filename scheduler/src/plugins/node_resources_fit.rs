//! NodeResourcesFit: a pod's requests must fit what is free; the emptier node is the better one (LeastAllocated).

use crate::framework::{Cycle, MAX_SCORE, Refusal};
use crate::snapshot::{NodeInfo, PodInfo};
use std::borrow::Cow;

/// Refuses a node, with a reason for each resource that does not fit.
pub fn filter(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    let mut out = Vec::new();
    let mut no = |reason: Cow<'static, str>| out.push(Refusal { reason });
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) + 1 > node.max_pods {
        no("Too many pods".into());
    }
    let (want, have, taken) = (&pod.requests, &node.allocatable, &node.requested);
    if want.milli_cpu > 0 && want.milli_cpu > have.milli_cpu - taken.milli_cpu {
        no("Insufficient cpu".into());
    }
    if want.memory > 0 && want.memory > have.memory - taken.memory {
        no("Insufficient memory".into());
    }
    if want.ephemeral_storage > 0
        && want.ephemeral_storage > have.ephemeral_storage - taken.ephemeral_storage
    {
        no("Insufficient ephemeral-storage".into());
    }
    for (name, amount) in want.scalar.iter().filter(|(_, a)| **a > 0) {
        let free = have.scalar.get(name).unwrap_or(&0) - taken.scalar.get(name).unwrap_or(&0);
        if *amount > free {
            no(format!("Insufficient {name}").into());
        }
    }
    out
}

/// The mean of the free shares of CPU and memory after the pod, 0 to 100.
pub fn score(_: &Cycle, pod: &PodInfo, node: &NodeInfo) -> i64 {
    let share = |capacity: i64, used: i64| {
        if capacity <= 0 || used > capacity {
            0
        } else {
            (capacity - used) * MAX_SCORE / capacity
        }
    };
    let cpu = share(
        node.allocatable.milli_cpu,
        node.nonzero.milli_cpu + pod.nonzero.milli_cpu,
    );
    let memory = share(
        node.allocatable.memory,
        node.nonzero.memory + pod.nonzero.memory,
    );
    i64::midpoint(cpu, memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{node, pod, snapshot};
    use serde_json::json;

    #[test]
    fn each_resource_that_does_not_fit_is_named() {
        let s = snapshot(&[node("a", json!({"status": {"allocatable": {"pods": "0"}}}))]);
        let p = pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests":
            {"cpu": "5", "memory": "9Gi", "example.com/gpu": "1"}}}]}}),
        );
        let why: Vec<_> = filter(&Cycle::new(&p, &s), &p, &s.nodes()[0])
            .into_iter()
            .map(|r| r.reason.into_owned())
            .collect();
        assert_eq!(
            why,
            [
                "Too many pods",
                "Insufficient cpu",
                "Insufficient memory",
                "Insufficient example.com/gpu"
            ]
        );
    }

    #[test]
    fn an_exact_fit_fits() {
        let s = snapshot(&[node("a", json!({}))]);
        let p = pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "4"}}}]}}),
        );
        assert!(filter(&Cycle::new(&p, &s), &p, &s.nodes()[0]).is_empty());
    }
}
