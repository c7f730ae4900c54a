//! Pods: strategy, selectable fields and printer columns (pkg/registry/core/pod/strategy.go, printPod). The rules of the
//! spec are in `pod_spec.rs` and `pod_validate.rs`.

use super::{pod_spec, pod_validate, resources};
use crate::field::FieldError;
use crate::kinds::util::*;
use crate::resource::{Column, Context, SelectableField, Strategy, only_status};
use serde_json::{Value, json};

/// SetDefaults_Pod.
pub fn default(pod: &mut Value) {
    let Some(spec) = object(pod, "spec") else {
        return;
    };
    pod_spec::default(spec);
    pod_spec::requests_from_limits(spec);
    resources::default_pod_level(spec);
    unset(spec, "enableServiceLinks", true);
    pod_spec::host_ports(spec);
}

/// matchLabelKeys and mismatchLabelKeys of pod affinity become expressions of the term's selector when the pod is created
/// (applyMatchLabelKeysAndMismatchLabelKeys), so that the scheduler need not know of them.
fn label_keys(pod: &mut Value) {
    let labels = at(pod, "metadata.labels").clone();
    let Some(affinity) = at_mut(pod, "spec.affinity") else {
        return;
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let required = format!("{kind}.requiredDuringSchedulingIgnoredDuringExecution");
        for term in items_mut(affinity, &required) {
            term_label_keys(term, &labels);
        }
        let preferred = format!("{kind}.preferredDuringSchedulingIgnoredDuringExecution");
        for weighted in items_mut(affinity, &preferred) {
            if let Some(term) = at_mut(weighted, "podAffinityTerm") {
                term_label_keys(term, &labels);
            }
        }
    }
}

fn term_label_keys(term: &mut Value, labels: &Value) {
    let mut added = Vec::new();
    for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in items(term, keys).iter().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key).and_then(Value::as_str) {
                added.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if added.is_empty() {
        return;
    }
    if let Some(selector) = at_mut(term, "labelSelector") {
        let mut all = items(selector, "matchExpressions").to_vec();
        all.extend(added);
        put(selector, "matchExpressions", all);
    }
}

fn prepare_create(_: &Context, pod: &mut Value) {
    label_keys(pod);
    let qos = resources::qos_class(at(pod, "spec"));
    let mut status = json!({"phase": "Pending", "qosClass": qos});
    if !items(pod, "spec.schedulingGates").is_empty() {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    put(pod, "status", status);
}

fn prepare_status_update(c: &Context, new: &mut Value, old: &Value) {
    only_status(c, new, old);
    // Old kubelets corrupt them.
    if let Some(m) = at_mut(new, "metadata") {
        carry(m, at(old, "metadata"), "ownerReferences");
    }
    let Some(status) = at_mut(new, "status") else {
        return;
    };
    for key in ["qosClass", "observedGeneration"] {
        let kept = at(at(old, "status"), key).clone();
        if !kept.is_null() {
            zero(status, key, kept);
        }
    }
    // A condition without observedGeneration keeps that of its type.
    for condition in items_mut(status, "conditions") {
        let kind = text(condition, "type");
        let before = items(old, "status.conditions")
            .iter()
            .find(|c| text(c, "type") == kind);
        if let Some(n) = before.and_then(|c| int(c, "observedGeneration")) {
            zero(condition, "observedGeneration", n);
        }
    }
    first_ip(status, "podIP", "podIPs");
    first_ip(status, "hostIP", "hostIPs");
}

/// `podIP` is the first of `podIPs` (conversion of v1 pods): whichever is missing follows, and the single one wins.
fn first_ip(status: &mut Value, one: &str, many: &str) {
    let ip = text(status, one).to_string();
    let first = items(status, many)
        .first()
        .map_or("", |i| text(i, "ip"))
        .to_string();
    if ip.is_empty() && !first.is_empty() {
        put(status, one, first);
    } else if !ip.is_empty() && ip != first {
        put(status, many, json!([{"ip": ip}]));
    }
}

fn validate(pod: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    pod_validate::create(pod, &mut errs);
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    pod_validate::update(new, old, &mut errs);
    errs
}

fn warnings(pod: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let wrong = crate::names::is_dns1123_label(name(pod));
    if !wrong.is_empty() {
        out.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            wrong.join(" ")
        ));
    }
    template_warnings(at(pod, "spec"), "spec", &mut out);
    out
}

/// Warnings about a pod spec at `path` (pkg/api/pod/warnings.go, the cheap ones).
pub fn template_warnings(spec: &Value, path: &str, out: &mut Vec<String>) {
    for (key, _) in entries(spec, "nodeSelector") {
        match key.as_str() {
            "beta.kubernetes.io/os" => out.push(format!(
                "{path}.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead"
            )),
            "beta.kubernetes.io/arch" => out.push(format!(
                "{path}.nodeSelector[beta.kubernetes.io/arch]: deprecated since v1.14; use \"kubernetes.io/arch\" instead"
            )),
            _ => {}
        }
    }
    for (i, v) in items(spec, "volumes").iter().enumerate() {
        if has(v, "gitRepo") {
            out.push(format!(
                "{path}.volumes[{i}].gitRepo: deprecated in v1.11, and disabled by default in v1.33+"
            ));
        }
        if has(v, "glusterfs") {
            out.push(format!(
                "{path}.volumes[{i}].glusterfs: deprecated in v1.25, non-functional in v1.26+"
            ));
        }
    }
    for (i, c) in items(spec, "containers").iter().enumerate() {
        let mut seen: Vec<&str> = Vec::new();
        for (j, e) in items(c, "env").iter().enumerate() {
            let name = text(e, "name");
            if seen.contains(&name) {
                out.push(format!(
                    "{path}.containers[{i}].env[{j}]: hides previous definition of \"{name}\", which may be dropped when using apply"
                ));
            }
            seen.push(name);
        }
        let mut ports: Vec<(i64, &str)> = Vec::new();
        for (j, p) in items(c, "ports").iter().enumerate() {
            let key = (int0(p, "containerPort"), text(p, "protocol"));
            if ports.contains(&key) && int0(p, "hostPort") == 0 {
                out.push(format!(
                    "{path}.containers[{i}].ports[{j}]: duplicate port definition with {path}.containers[{i}].ports[{}]",
                    ports.iter().position(|k| *k == key).unwrap_or(0)
                ));
            }
            ports.push(key);
        }
    }
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|n| n < 0) {
        out.push(format!(
            "{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
}

/// Is it the mirror of a pod that a kubelet has from a file?
fn is_static(pod: &Value) -> bool {
    !at(pod, "metadata.annotations")["kubernetes.io/config.mirror"].is_null()
}

/// Errors of a change through the subresource `ephemeralcontainers` (the rest of the pod being the old one's): ephemeral
/// containers may be added, never changed or removed.
pub fn validate_ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    if is_static(old) {
        errs.push(FieldError::forbidden(
            "",
            "static pods do not support ephemeral containers",
        ));
        return errs;
    }
    pod_validate::spec(at(new, "spec"), true, &Path::new("spec"), &mut errs);
    let list = items(new, "spec.ephemeralContainers");
    for o in items(old, "spec.ephemeralContainers") {
        let name = text(o, "name");
        match list.iter().find(|n| text(n, "name") == name) {
            None => errs.push(FieldError::forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers \"{name}\" may not be removed\n"),
            )),
            Some(n) if !equal(n, o) => errs.push(FieldError::forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers \"{name}\" may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
    errs
}

/// Errors of a change through the subresource `resize` (the rest of the pod being the old one's): the QoS class stays and
/// only cpu and memory change (ValidatePodResize).
pub fn validate_resize(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    if is_static(old) {
        errs.push(FieldError::forbidden("", "static pods cannot be resized"));
        return errs;
    }
    if text(old, "spec.os.name") == "windows" {
        errs.push(FieldError::forbidden("", "windows pods cannot be resized"));
        return errs;
    }
    pod_validate::spec(at(new, "spec"), true, &Path::new("spec"), &mut errs);
    let qos = resources::qos_class(at(new, "spec"));
    if qos != resources::qos_class(at(old, "spec")) {
        errs.push(FieldError::invalid(
            "spec",
            qos,
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    for list in ["containers", "initContainers"] {
        let path = format!("spec.{list}");
        for (i, (n, o)) in items(new, &path).iter().zip(items(old, &path)).enumerate() {
            if list == "initContainers"
                && text(o, "restartPolicy") != "Always"
                && !equal(at(n, "resources"), at(o, "resources"))
            {
                errs.push(FieldError::forbidden(
                    "spec",
                    "resources for non-sidecar init containers are immutable",
                ));
                continue;
            }
            for kind in ["requests", "limits"] {
                let given = at(at(n, "resources"), kind);
                if entries(at(o, "resources"), kind).any(|(k, _)| given.get(k.as_str()).is_none()) {
                    errs.push(FieldError::forbidden(
                        format!("{path}[{i}].resources.{kind}"),
                        format!("resource {kind} cannot be removed"),
                    ));
                }
            }
            for kind in ["requests", "limits"] {
                let (nr, or) = (at(n, "resources"), at(o, "resources"));
                let changed = entries(nr, kind)
                    .chain(entries(or, kind))
                    .map(|(k, _)| k.as_str())
                    .filter(|k| !matches!(*k, "cpu" | "memory"))
                    .any(|k| at(nr, kind).get(k) != at(or, kind).get(k));
                if changed {
                    errs.push(FieldError::forbidden(
                        format!("{path}[{i}].resources.{kind}"),
                        "only cpu and memory resources are mutable",
                    ));
                }
            }
        }
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create,
        prepare_status_update,
        validate,
        validate_update,
        warnings,
        generation: true,
        ..Strategy::default()
    }
}

/// Fields of selectors (pkg/apis/core/v1/conversion.go and the pod registry's ToSelectableFields).
pub fn fields() -> Vec<SelectableField> {
    vec![
        field("spec.nodeName", |p| text(p, "spec.nodeName").into()),
        field("spec.restartPolicy", |p| {
            text(p, "spec.restartPolicy").into()
        }),
        field("spec.schedulerName", |p| {
            text(p, "spec.schedulerName").into()
        }),
        field("spec.serviceAccountName", |p| {
            text(p, "spec.serviceAccountName").into()
        }),
        field("spec.hostNetwork", |p| {
            truth(p, "spec.hostNetwork").to_string()
        }),
        field("status.phase", |p| text(p, "status.phase").into()),
        field("status.podIP", |p| {
            items(p, "status.podIPs")
                .first()
                .map_or(text(p, "status.podIP"), |ip| text(ip, "ip"))
                .into()
        }),
        field("status.nominatedNodeName", |p| {
            text(p, "status.nominatedNodeName").into()
        }),
    ]
}

/// The columns of `kubectl get pods`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Ready", 0, |p, now| {
            let s = summary(p, now);
            format!("{}/{}", s.ready, s.total).into()
        }),
        col("Status", 0, |p, now| summary(p, now).reason.into()),
        col("Restarts", 0, |p, now| summary(p, now).restarts.into()),
        col_age(),
        col("IP", 1, |p, _| {
            let first = items(p, "status.podIPs")
                .first()
                .map_or("", |ip| text(ip, "ip"));
            or_none(if first.is_empty() {
                text(p, "status.podIP")
            } else {
                first
            })
            .into()
        }),
        col("Node", 1, |p, _| or_none(text(p, "spec.nodeName")).into()),
        col("Nominated Node", 1, |p, _| {
            or_none(text(p, "status.nominatedNodeName")).into()
        }),
        col("Readiness Gates", 1, |p, _| {
            let gates = items(p, "spec.readinessGates");
            if gates.is_empty() {
                return "<none>".into();
            }
            let held = gates
                .iter()
                .filter(|g| {
                    condition(p, text(g, "conditionType"))
                        .is_some_and(|c| text(c, "status") == "True")
                })
                .count();
            format!("{held}/{}", gates.len()).into()
        }),
    ]
}

/// `<none>` for an empty string.
pub fn or_none(s: &str) -> &str {
    if s.is_empty() { "<none>" } else { s }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(pod, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == kind)
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: String,
}

/// The state of a pod in a word, as `kubectl get` shows it (printPod).
fn summary(pod: &Value, now: i64) -> Summary {
    let inits = items(pod, "spec.initContainers");
    let sidecar = |name: &str| {
        inits
            .iter()
            .any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    let total = items(pod, "spec.containers").len()
        + inits
            .iter()
            .filter(|c| text(c, "restartPolicy") == "Always")
            .count();
    let phase = text(pod, "status.phase");
    let status_reason = text(pod, "status.reason");
    let mut reason = if status_reason.is_empty() {
        phase
    } else {
        status_reason
    }
    .to_string();
    if condition(pod, "PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }

    let mut ready = 0;
    let mut restarts = 0;
    let mut sidecar_restarts = 0;
    let mut last = 0;
    let mut sidecar_last = 0;
    let mut initializing = false;
    let ended = |c: &Value| {
        crate::kinds::check::time(text(c, "lastState.terminated.finishedAt")).unwrap_or(0)
    };
    for (i, c) in items(pod, "status.initContainerStatuses")
        .iter()
        .enumerate()
    {
        let is_sidecar = sidecar(text(c, "name"));
        restarts += int0(c, "restartCount");
        last = last.max(ended(c));
        if is_sidecar {
            sidecar_restarts += int0(c, "restartCount");
            sidecar_last = sidecar_last.max(ended(c));
        }
        let terminated = at(c, "state.terminated");
        if !terminated.is_null() && int0(terminated, "exitCode") == 0 {
            continue;
        }
        if is_sidecar && truth(c, "started") {
            ready += usize::from(truth(c, "ready"));
            continue;
        }
        let waiting = text(c, "state.waiting.reason");
        reason = if !terminated.is_null() {
            match (text(terminated, "reason"), int0(terminated, "signal")) {
                ("", 0) => format!("Init:ExitCode:{}", int0(terminated, "exitCode")),
                ("", signal) => format!("Init:Signal:{signal}"),
                (r, _) => format!("Init:{r}"),
            }
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", inits.len())
        };
        initializing = true;
        break;
    }

    if !initializing || condition(pod, "Initialized").is_some_and(|c| text(c, "status") == "True") {
        restarts = sidecar_restarts;
        last = sidecar_last;
        let mut running = false;
        for c in items(pod, "status.containerStatuses").iter().rev() {
            restarts += int0(c, "restartCount");
            last = last.max(ended(c));
            let waiting = text(c, "state.waiting.reason");
            let terminated = at(c, "state.terminated");
            if !waiting.is_empty() {
                reason = waiting.to_string();
            } else if !terminated.is_null() {
                reason = match (text(terminated, "reason"), int0(terminated, "signal")) {
                    ("", 0) => format!("ExitCode:{}", int0(terminated, "exitCode")),
                    ("", signal) => format!("Signal:{signal}"),
                    (r, _) => r.to_string(),
                };
            } else if truth(c, "ready") && has(c, "state.running") {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let is_ready = condition(pod, "Ready").is_some_and(|c| text(c, "status") == "True");
            reason = if is_ready { "Running" } else { "NotReady" }.into();
        }
    }

    if has(pod, "metadata.deletionTimestamp") {
        if status_reason == "NodeLost" {
            reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".into();
        }
    }
    let restarts = if restarts != 0 && last != 0 {
        format!(
            "{restarts} ({} ago)",
            crate::kinds::check::human_duration(now - last)
        )
    } else {
        restarts.to_string()
    };
    Summary {
        ready,
        total,
        reason,
        restarts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(pod: Value) -> Vec<Value> {
        crate::kinds::tests::cells(&columns(), &pod, 1_700_000_000)
    }

    #[test]
    fn label_keys_of_affinity_terms_narrow_their_selectors() {
        let term = |selector: Value| {
            let mut t = json!({"topologyKey": "zone", "matchLabelKeys": ["rev", "none"], "mismatchLabelKeys": ["team"]});
            if !selector.is_null() {
                t["labelSelector"] = selector;
            }
            t
        };
        let mut pod = json!({"metadata": {"labels": {"rev": "7", "team": "a"}}, "spec": {"affinity": {
            "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term(json!({"matchLabels": {"app": "x"}})), term(Value::Null)]},
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term(json!({}))}]}}}});
        label_keys(&mut pod);
        let want = json!([{"key": "rev", "operator": "In", "values": ["7"]}, {"key": "team", "operator": "NotIn", "values": ["a"]}]);
        let a = "/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution";
        assert_eq!(
            pod.pointer(&format!("{a}/0/labelSelector/matchExpressions")),
            Some(&want)
        );
        assert_eq!(pod.pointer(&format!("{a}/1/labelSelector")), None);
        let b = "/spec/affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/podAffinityTerm/labelSelector/matchExpressions";
        assert_eq!(pod.pointer(b), Some(&want));
    }

    #[test]
    fn a_running_pod_prints_as_kubectl_shows_it() {
        assert_eq!(
            cells(json!({
                "metadata": {"name": "web", "creationTimestamp": "2023-11-14T22:03:20Z"},
                "spec": {"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}]},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.42.0.7"}], "containerStatuses": [
                    {"name": "a", "ready": true, "state": {"running": {}}, "restartCount": 2,
                     "lastState": {"terminated": {"finishedAt": "2023-11-14T22:08:20Z"}}},
                    {"name": "b", "ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 0},
                ]},
            })),
            [
                json!("web"),
                json!("1/2"),
                json!("CrashLoopBackOff"),
                json!("2 (5m ago)"),
                json!("10m"),
                json!("10.42.0.7"),
                json!("n1"),
                json!("<none>"),
                json!("<none>"),
            ]
        );
    }

    #[test]
    fn the_status_word_follows_init_containers_and_deletion() {
        let word = |pod: Value| summary(&pod, 0).reason;
        assert_eq!(word(json!({"status": {"phase": "Pending"}})), "Pending");
        assert_eq!(
            word(json!({
                "spec": {"initContainers": [{"name": "a"}, {"name": "b"}]},
                "status": {"phase": "Pending", "initContainerStatuses": [
                    {"name": "a", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "b", "state": {"running": {}}},
                ]},
            })),
            "Init:1/2"
        );
        assert_eq!(
            word(
                json!({"metadata": {"deletionTimestamp": "2023-11-14T22:08:20Z"}, "status": {"phase": "Running"}})
            ),
            "Terminating"
        );
        assert_eq!(
            word(
                json!({"status": {"phase": "Succeeded", "containerStatuses": [
                {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}})
            ),
            "Completed"
        );
    }

    #[test]
    fn a_created_pod_is_pending_with_its_qos_class() {
        let c = Context {
            now: String::new(),
            user: String::new(),
        };
        let mut pod =
            json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running"}});
        prepare_create(&c, &mut pod);
        assert_eq!(
            pod["status"],
            json!({"phase": "Pending", "qosClass": "BestEffort"})
        );
    }

    #[test]
    fn label_keys_of_pod_affinity_become_part_of_the_selector() {
        let c = Context {
            now: String::new(),
            user: String::new(),
        };
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}},
            "matchLabelKeys": ["pod-template-hash", "absent"], "mismatchLabelKeys": ["tenant"]});
        let mut pod = json!({"metadata": {"labels": {"pod-template-hash": "h", "tenant": "t"}}, "spec": {
        "containers": [{"name": "a"}],
        "affinity": {
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term.clone()]},
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]},
        }}});
        prepare_create(&c, &mut pod);
        let want = json!([
            {"key": "pod-template-hash", "operator": "In", "values": ["h"]},
            {"key": "tenant", "operator": "NotIn", "values": ["t"]},
        ]);
        let affinity = &pod["spec"]["affinity"];
        for got in [
            &affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0],
            &affinity["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"],
        ] {
            assert_eq!(got["labelSelector"]["matchExpressions"], want);
        }
    }

    #[test]
    fn static_pods_are_neither_resized_nor_debugged() {
        let mut old = json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"containers": [{"name": "a", "image": "x:1"}]}});
        default(&mut old);
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "busybox"}]);
        assert_eq!(validate_ephemeral_containers(&new, &old).len(), 1);
        assert_eq!(validate_resize(&old, &old).len(), 1);
    }

    #[test]
    fn ephemeral_containers_may_be_added_and_not_removed() {
        let mut old = json!({"metadata": {"name": "p", "resourceVersion": "1"},
            "spec": {"containers": [{"name": "a", "image": "x:1"}]}});
        default(&mut old);
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "busybox"}]);
        default(&mut new);
        let errs = validate_ephemeral_containers(&new, &old);
        assert!(errs.is_empty(), "{errs:?}");
        assert_eq!(validate_ephemeral_containers(&old, &new).len(), 1);
    }
}
