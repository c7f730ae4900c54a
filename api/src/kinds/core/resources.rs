//! Validation of resource requirements, and the sums over a pod's containers: QoS class, effective requests. Quantities
//! are compared by value.

use crate::field::FieldError;
use crate::kinds::check::{self, Quantity};
use crate::kinds::util::*;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Resources of containers with no domain in their name.
const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// Nothing but cpu, memory and ephemeral storage may be overcommitted.
fn overcommit_allowed(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

/// No domain, or one of kubernetes.io.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// An extended resource: `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.")
}

/// validateContainerResourceName.
fn container_resource_name(name: &str, p: &Path<'_>, errs: &mut Errors) {
    check::qualified_name(name, p, errs);
    if !name.contains('/') {
        if !STANDARD.contains(&name) && !name.starts_with("hugepages-") {
            errs.push(FieldError::invalid(
                p,
                name,
                "must be a standard resource for containers",
            ));
        }
    } else if is_native(name) && !name.starts_with("kubernetes.io/") {
        errs.push(FieldError::invalid(
            p,
            name,
            "doesn't follow extended resource name standard",
        ));
    }
}

/// ValidateResourceQuantityValue: never negative, and whole for extended resources.
pub fn quantity_value(name: &str, q: &Value, p: &Path<'_>, errs: &mut Errors) {
    check::non_negative_quantity(q, p, errs);
    let integer = is_extended(name)
        || matches!(
            name,
            "pods" | "services" | "secrets" | "configmaps" | "resourcequotas"
        );
    if integer && check::quantity(q).is_some_and(|q| !q.is_whole()) {
        errs.push(FieldError::invalid(p, q.clone(), "must be an integer"));
    }
}

/// ValidateContainerResourceRequirements.
pub fn validate_container(r: &Value, p: &Path<'_>, errs: &mut Errors) {
    requirements(r, p, errs, container_resource_name);
    for (i, claim) in items(r, "claims").iter().enumerate() {
        let list = p.child("claims");
        require(claim, "name", &list.index(i), errs);
    }
}

/// Pod-level resources: cpu, memory and huge pages alone.
pub fn validate_pod(r: &Value, p: &Path<'_>, errs: &mut Errors) {
    requirements(r, p, errs, |name, p, errs| {
        if !matches!(name, "cpu" | "memory") && !name.starts_with("hugepages-") {
            errs.push(FieldError::not_supported(
                p,
                name,
                &["cpu", "hugepages-", "memory"],
            ));
        }
    });
}

/// Limits and requests with the rules of their names, and requests no larger than limits.
pub fn requirements(
    r: &Value,
    p: &Path<'_>,
    errs: &mut Errors,
    name_rule: fn(&str, &Path<'_>, &mut Errors),
) {
    if r.is_null() {
        return;
    }
    let (lp, rp) = (p.child("limits"), p.child("requests"));
    for (name, q) in entries(r, "limits") {
        let kp = lp.key(name);
        name_rule(name, &kp, errs);
        quantity_value(name, q, &kp, errs);
    }
    for (name, q) in entries(r, "requests") {
        let kp = rp.key(name);
        name_rule(name, &kp, errs);
        quantity_value(name, q, &kp, errs);
        let limit = at(r, "limits").get(name.as_str());
        match limit {
            Some(l) => {
                let (Some(rq), Some(lq)) = (check::quantity(q), check::quantity(l)) else {
                    continue;
                };
                if !overcommit_allowed(name) {
                    if rq != lq {
                        errs.push(FieldError::invalid(
                            rp,
                            quantity_text(q),
                            format!("must be equal to {name} limit of {}", quantity_text(l)),
                        ));
                    }
                } else if rq > lq {
                    errs.push(FieldError::invalid(
                        rp,
                        quantity_text(q),
                        format!(
                            "must be less than or equal to {name} limit of {}",
                            quantity_text(l)
                        ),
                    ));
                }
            }
            None if !overcommit_allowed(name) => {
                errs.push(FieldError::required(
                    lp,
                    "Limit must be set for non overcommitable resources",
                ));
            }
            None => {}
        }
    }
}

fn quantity_text(q: &Value) -> String {
    int_or_string(q)
}

/// A map of resource names to amounts.
pub type Amounts = BTreeMap<String, Quantity>;

fn amounts(v: &Value, key: &str) -> Amounts {
    entries(v, key)
        .filter_map(|(k, q)| Some((k.clone(), check::quantity(q)?)))
        .collect()
}

fn add(into: &mut Amounts, from: &Amounts) {
    for (k, q) in from {
        let sum = match into.get(k) {
            Some(x) => check::add(x, q),
            None => *q,
        };
        into.insert(k.clone(), sum);
    }
}

fn max(into: &mut Amounts, from: &Amounts) {
    for (k, q) in from {
        if into.get(k).is_none_or(|x| q > x) {
            into.insert(k.clone(), *q);
        }
    }
}

/// What all containers of the pod ask for together under `key` (`requests` or `limits`), as the scheduler counts it: the
/// sum of containers and sidecars, or the highest need of an init container with the sidecars before it, whichever
/// is more (AggregateContainerRequests of component-helpers). Without overhead and pod-level resources.
pub fn of_containers(spec: &Value, key: &str) -> Amounts {
    let mut total = Amounts::new();
    for c in items(spec, "containers") {
        add(&mut total, &amounts(at(c, "resources"), key));
    }
    let mut sidecars = Amounts::new();
    let mut init = Amounts::new();
    for c in items(spec, "initContainers") {
        let mut mine = amounts(at(c, "resources"), key);
        if text(c, "restartPolicy") == "Always" {
            add(&mut total, &mine);
            add(&mut sidecars, &mine);
            mine = sidecars.clone();
        } else {
            add(&mut mine, &sidecars);
        }
        max(&mut init, &mine);
    }
    max(&mut total, &init);
    total
}

/// What the pod asks for (upstream's PodRequests): its containers, replaced by pod-level requests where given, plus
/// overhead.
pub fn pod_requests(spec: &Value) -> Amounts {
    let mut total = of_containers(spec, "requests");
    for (k, q) in amounts(at(spec, "resources"), "requests") {
        total.insert(k, q);
    }
    add(&mut total, &amounts(spec, "overhead"));
    total
}

/// What the pod may use at most (upstream's PodLimits); overhead counts where there is a limit.
pub fn pod_limits(spec: &Value) -> Amounts {
    let mut total = of_containers(spec, "limits");
    for (k, q) in amounts(at(spec, "resources"), "limits") {
        total.insert(k, q);
    }
    for (k, q) in amounts(spec, "overhead") {
        if let Some(sum) = total.get(&k).map(|x| check::add(x, &q)) {
            total.insert(k, sum);
        }
    }
    total
}

/// `Guaranteed`, `Burstable` or `BestEffort` (pkg/apis/core/v1/helper/qos: ComputePodQOS), from cpu and memory alone.
pub fn qos_class(spec: &Value) -> &'static str {
    let mut requests = Amounts::new();
    let mut limits = Amounts::new();
    let mut guaranteed = true;
    let counted = |v: &Value, key: &str| -> Amounts {
        amounts(v, key)
            .into_iter()
            .filter(|(k, q)| matches!(k.as_str(), "cpu" | "memory") && q.sign() > 0)
            .collect()
    };
    if has(spec, "resources") {
        requests = counted(at(spec, "resources"), "requests");
        limits = counted(at(spec, "resources"), "limits");
        guaranteed = limits.len() == 2;
    } else {
        for c in items(spec, "initContainers")
            .iter()
            .chain(items(spec, "containers"))
        {
            let r = at(c, "resources");
            add(&mut requests, &counted(r, "requests"));
            let mine = counted(r, "limits");
            guaranteed &= mine.len() == 2;
            add(&mut limits, &mine);
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if guaranteed
        && requests.len() == limits.len()
        && requests.iter().all(|(k, q)| limits.get(k) == Some(q))
    {
        return "Guaranteed";
    }
    "Burstable"
}

/// Pod-level requests and limits that follow from the containers' (defaultPodRequests, defaultPodLimits). Runs after the
/// containers' own defaults; only when pod-level resources are partly given.
pub fn default_pod_level(spec: &mut Value) {
    if !at(spec, "resources").is_object() {
        return;
    }
    let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    let limits: Map<String, Value> = at(spec, "resources.limits")
        .as_object()
        .cloned()
        .unwrap_or_default();
    if !limits.is_empty() {
        let sums = of_containers(spec, "requests");
        let Some(resources) = at_mut(spec, "resources") else {
            return;
        };
        let had = !is_empty(at(resources, "requests"));
        let Some(requests) = object(resources, "requests") else {
            return;
        };
        for (k, q) in sums {
            if supported(&k) && overcommit_allowed(&k) {
                unset(requests, &k, q.to_string());
            }
        }
        for (k, q) in limits {
            if supported(&k) {
                unset(requests, &k, q);
            }
        }
        if !had && is_empty(requests) {
            drop_key(resources, "requests");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(a: Amounts) -> Vec<String> {
        a.iter().map(|(k, q)| format!("{k}={}", q)).collect()
    }

    #[test]
    fn requests_above_limits_are_refused_with_upstreams_words() {
        let mut errs = Vec::new();
        validate_container(
            &json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            &Path::new("spec.containers[0].resources"),
            &mut errs,
        );
        assert_eq!(errs.len(), 1);
        assert_eq!(
            errs[0].to_string(),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"
        );
    }

    #[test]
    fn qos_follows_requests_and_limits_of_cpu_and_memory() {
        let spec = |r: Value| json!({"containers": [{"resources": r}]});
        assert_eq!(qos_class(&spec(json!({}))), "BestEffort");
        assert_eq!(
            qos_class(&spec(json!({"requests": {"cpu": "0"}}))),
            "BestEffort"
        );
        assert_eq!(
            qos_class(&spec(json!({"requests": {"cpu": "1"}}))),
            "Burstable"
        );
        assert_eq!(
            qos_class(&spec(json!({
                "requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}
            }))),
            "Guaranteed"
        );
        assert_eq!(
            qos_class(&spec(
                json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}})
            )),
            "Burstable"
        );
    }

    #[test]
    fn effective_requests_count_init_containers_sidecars_and_overhead() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = c("100m");
        sidecar["restartPolicy"] = "Always".into();
        let spec = json!({
            "containers": [c("200m"), c("300m")],
            "initContainers": [sidecar, c("1")],
            "overhead": {"cpu": "50m"},
        });
        assert_eq!(shown(pod_requests(&spec)), ["cpu=1150m"]);
    }
}
