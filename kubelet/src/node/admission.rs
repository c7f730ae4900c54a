//! May this pod run on this node? (upstream pkg/kubelet/lifecycle predicate and GeneralPredicates). Pure.

use super::status::Pressure;
use super::{sysctls, unsupported};
use crate::kuberuntime::resources::pod_request;
use crate::pod::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_client::taints::covers;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is known of the machine when a pod asks to run.
pub struct Machine<'a> {
    /// The Node object, if its cache has it.
    pub node: Option<&'a Node>,
    /// status.allocatable
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// How many pods fit.
    pub max_pods: i64,
    /// The sysctls that pods may set.
    pub sysctls: &'a sysctls::Allowed,
    /// What the node is short of.
    pub pressure: Pressure,
}

/// Reason and message of a refusal; None when the pod may run.
pub fn admit(pod: &Pod, machine: &Machine<'_>, others: &[Arc<Pod>]) -> Option<(String, String)> {
    let s = spec::spec(pod);
    let (allocatable, max_pods) = (machine.allocatable, machine.max_pods);
    if let Some(refusal) = under_pressure(pod, machine.pressure)
        .or_else(|| machine.sysctls.refuses(pod))
        .or_else(|| unsupported::refuses(pod))
    {
        return Some(refusal);
    }
    if let Some(os) = s.os.as_ref().filter(|o| o.name != "linux") {
        return Some((
            "PodOSNotSupported".into(),
            format!(
                "Failed to admit pod as the OS field {} doesn't match the node's OS linux",
                os.name
            ),
        ));
    }
    if others.len() as i64 + 1 > max_pods {
        return Some(out_of("pods", 1, others.len() as i64, max_pods));
    }
    if let Some(lack) = lacks(pod, allocatable, others) {
        return Some(out_of(&lack.what, lack.requested, lack.used, lack.capacity));
    }
    let mine = ports(pod);
    if others
        .iter()
        .any(|o| ports(o).iter().any(|b| mine.iter().any(|a| conflict(a, b))))
    {
        return Some((
            "NodePorts".into(),
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".into(),
        ));
    }
    let node = machine.node?;
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let selected = s
        .node_selector
        .iter()
        .flatten()
        .all(|(k, v)| labels.get(k) == Some(v));
    let terms = s
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| {
            n.required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .map(|r| &r.node_selector_terms);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if !selected || terms.is_some_and(|t| !t.iter().any(|t| term(t, &labels, name))) {
        return Some((
            "NodeAffinity".into(),
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                .into(),
        ));
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let tolerations = s.tolerations.as_deref().unwrap_or_default();
    if let Some(t) = taints
        .into_iter()
        .flatten()
        .find(|t| t.effect == "NoExecute" && !tolerations.iter().any(|o| covers(o, t)))
    {
        return Some((
            "TaintToleration".into(),
            format!(
                "Predicate TaintToleration failed: node(s) had untolerated taint {{{}: {}}}",
                t.key,
                t.value.as_deref().unwrap_or_default()
            ),
        ));
    }
    None
}

/// A node that is short takes no more (upstream eviction_manager.go Admit): with too little memory none without
/// requests, with too little of anything else none at all. Critical pods always.
fn under_pressure(pod: &Pod, pressure: Pressure) -> Option<(String, String)> {
    let names: Vec<&str> = [
        (pressure.memory, "MemoryPressure"),
        (pressure.disk, "DiskPressure"),
        (pressure.pid, "PIDPressure"),
    ]
    .into_iter()
    .filter_map(|(yes, name)| yes.then_some(name))
    .collect();
    if names.is_empty() || spec::is_critical(pod) {
        return None;
    }
    if names == ["MemoryPressure"] {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let tolerations = spec::spec(pod).tolerations.iter().flatten();
        if spec::qos_class(pod) != "BestEffort"
            || tolerations.into_iter().any(|o| covers(o, &taint))
        {
            return None;
        }
    }
    Some((
        "Evicted".into(),
        format!("The node had condition: [{}]. ", names.join(" ")),
    ))
}

/// A resource of which the node has not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// cpu (thousandths), memory, ephemeral-storage or huge pages (bytes).
    pub what: String,
    /// What the pod asks for.
    pub requested: i64,
    /// What others have.
    pub used: i64,
    /// What there is.
    pub capacity: i64,
}

/// The first resource that does not suffice for the pod beside the others.
pub fn lacks(
    pod: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
    others: &[Arc<Pod>],
) -> Option<Lack> {
    let huge = allocatable.keys().filter(|k| k.starts_with("hugepages-"));
    ["cpu", "memory", "ephemeral-storage"]
        .into_iter()
        .chain(huge.map(String::as_str))
        .find_map(|what| {
            let requested = pod_request(pod, what);
            if requested <= 0 {
                return None;
            }
            let used: i64 = others.iter().map(|o| pod_request(o, what)).sum();
            let capacity = if what == "cpu" {
                quantity::milli_of(Some(allocatable), what)
            } else {
                quantity::value_of(Some(allocatable), what)
            };
            (used.saturating_add(requested) > capacity).then(|| Lack {
                what: what.into(),
                requested,
                used,
                capacity,
            })
        })
}

fn out_of(what: &str, requested: i64, used: i64, capacity: i64) -> (String, String) {
    (
        format!("OutOf{what}"),
        format!(
            "Node didn't have enough resource: {what}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    )
}

fn ports(pod: &Pod) -> Vec<(String, i32, String)> {
    spec::containers(pod)
        .iter()
        .chain(
            spec::init_containers(pod)
                .iter()
                .filter(|c| spec::is_sidecar(c)),
        )
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let host = p.host_port.filter(|h| *h > 0)?;
            let ip = p
                .host_ip
                .clone()
                .filter(|i| !i.is_empty())
                .unwrap_or_else(|| "0.0.0.0".into());
            Some((ip, host, p.protocol.clone().unwrap_or_else(|| "TCP".into())))
        })
        .collect()
}

fn conflict(a: &(String, i32, String), b: &(String, i32, String)) -> bool {
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || a.0 == "0.0.0.0" || b.0 == "0.0.0.0")
}

fn term(t: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = t.match_expressions.as_deref().unwrap_or_default();
    let fields = t.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|r| requirement(r, labels.get(&r.key).map(String::as_str)))
        && fields
            .iter()
            .all(|r| requirement(r, (r.key == "metadata.name").then_some(name)))
}

fn requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let number = |s: &str| s.parse::<i64>().ok();
    match r.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| !values.iter().any(|w| w == v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        op @ ("Gt" | "Lt") => match (
            value.and_then(number),
            values.first().and_then(|v| number(v)),
        ) {
            (Some(a), Some(b)) => {
                if op == "Gt" {
                    a > b
                } else {
                    a < b
                }
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value) -> String {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
        let other: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "o",
            "ports": [{"containerPort": 80, "hostPort": 8080}], "resources": {"requests": {"cpu": "1"}}}]}}))
        .unwrap();
        let node: Node = serde_json::from_value(
            serde_json::json!({"metadata": {"name": "n", "labels": {"zone": "a"}},
            "spec": {"taints": [{"key": "gone", "effect": "NoExecute"}]}}),
        )
        .unwrap();
        let have = BTreeMap::from([
            ("cpu".to_string(), Quantity("2".into())),
            ("memory".into(), Quantity("1Gi".into())),
            ("ephemeral-storage".into(), Quantity("1Gi".into())),
        ]);
        let machine = Machine {
            node: Some(&node),
            allocatable: &have,
            max_pods: 2,
            sysctls: &sysctls::Allowed::new("6.1.0", &[]).unwrap(),
            pressure: Pressure::default(),
        };
        admit(&pod, &machine, &[Arc::new(other)]).map_or_else(|| "fine".into(), |r| r.0)
    }

    #[test]
    fn a_node_that_is_short_takes_only_what_it_must() {
        let pod = |spec: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"spec": spec})).unwrap()
        };
        let best_effort = pod(serde_json::json!({"containers": [{"name": "c"}]}));
        let burstable = pod(
            serde_json::json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]}),
        );
        let critical =
            pod(serde_json::json!({"priority": 2_000_000_000, "containers": [{"name": "c"}]}));
        let tolerant = pod(
            serde_json::json!({"containers": [{"name": "c"}], "tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}),
        );
        let memory = Pressure {
            memory: true,
            ..Pressure::default()
        };
        let both = Pressure {
            memory: true,
            disk: true,
            pid: false,
        };
        assert_eq!(
            under_pressure(&best_effort, memory),
            Some((
                "Evicted".into(),
                "The node had condition: [MemoryPressure]. ".into()
            ))
        );
        for p in [&burstable, &critical, &tolerant] {
            assert_eq!(under_pressure(p, memory), None);
        }
        assert!(under_pressure(&burstable, both).is_some());
        assert!(under_pressure(&tolerant, both).is_some());
        assert_eq!(under_pressure(&critical, both), None);
        assert_eq!(under_pressure(&best_effort, Pressure::default()), None);
    }

    #[test]
    fn pods_that_do_not_fit_the_node_are_refused_with_upstreams_reasons() {
        let tolerations = serde_json::json!([{"operator": "Exists"}]);
        for (containers, extra, want) in [
            (
                serde_json::json!([{"name": "c"}]),
                serde_json::json!({}),
                "fine",
            ),
            (
                serde_json::json!([{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]),
                serde_json::json!({}),
                "OutOfcpu",
            ),
            (
                serde_json::json!([{"name": "c", "resources": {"requests": {"memory": "2Gi"}}}]),
                serde_json::json!({}),
                "OutOfmemory",
            ),
            (
                serde_json::json!([{"name": "c", "resources": {"requests": {"ephemeral-storage": "2Gi"}}}]),
                serde_json::json!({}),
                "OutOfephemeral-storage",
            ),
            (
                serde_json::json!([{"name": "c", "ports": [{"containerPort": 1, "hostPort": 8080}]}]),
                serde_json::json!({}),
                "NodePorts",
            ),
            (
                serde_json::json!([{"name": "c"}]),
                serde_json::json!({"nodeSelector": {"zone": "b"}}),
                "NodeAffinity",
            ),
            (
                serde_json::json!([{"name": "c"}]),
                serde_json::json!({"nodeSelector": {"zone": "a"}}),
                "fine",
            ),
            (
                serde_json::json!([{"name": "c"}]),
                serde_json::json!({"os": {"name": "windows"}}),
                "PodOSNotSupported",
            ),
            (
                serde_json::json!([{"name": "c"}]),
                serde_json::json!({"securityContext": {"sysctls": [{"name": "vm.swappiness", "value": "1"}]}}),
                "SysctlForbidden",
            ),
            (
                serde_json::json!([{"name": "c"}]),
                serde_json::json!({"hostUsers": false}),
                unsupported::REASON,
            ),
            (
                serde_json::json!([{"name": "c"}]),
                serde_json::json!({"tolerations": []}),
                "TaintToleration",
            ),
        ] {
            let mut spec =
                serde_json::json!({"containers": containers, "tolerations": tolerations});
            for (k, v) in extra.as_object().unwrap() {
                spec[k] = v.clone();
            }
            assert_eq!(check(spec.clone()), want, "{spec}");
        }
    }
}
