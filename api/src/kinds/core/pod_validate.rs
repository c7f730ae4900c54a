//! Validation of the pod spec, for pods and for templates (ValidatePodSpec and ValidatePodTemplateSpec of
//! pkg/apis/core/validation), and of changes to a pod's spec (ValidatePodUpdate).

use super::container::{self, PodFacts};
use super::{resources, scheduling, security_context, volume};
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use serde_json::Value;
use std::collections::HashSet;

const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];

/// ValidatePodSpec. `is_pod`: in a pod, not in a template.
pub fn spec(spec: &Value, is_pod: bool, path: &Path<'_>, errs: &mut Errors) {
    if !has(spec, "terminationGracePeriodSeconds") {
        errs.push(FieldError::required(
            path.child("terminationGracePeriodSeconds"),
            "",
        ));
    }
    let volumes = items(spec, "volumes");
    volume::validate(volumes, &path.child("volumes"), errs);
    let grace = int(spec, "terminationGracePeriodSeconds");
    container::validate_all(
        spec,
        &PodFacts {
            volumes: volumes.iter().map(|v| (text(v, "name"), v)).collect(),
            is_pod,
            grace,
            os: text(spec, "os.name"),
            own_users: at(spec, "hostUsers") == &Value::Bool(false),
        },
        path,
        errs,
    );
    pod_resources(spec, &path.child("resources"), errs);
    container::host_network_ports(spec, is_pod, path, errs);
    if text(spec, "restartPolicy").is_empty() {
        errs.push(FieldError::required(path.child("restartPolicy"), ""));
    }
    one_of(spec, "restartPolicy", RESTART_POLICIES, path, errs);
    if text(spec, "dnsPolicy").is_empty() {
        errs.push(FieldError::required(path.child("dnsPolicy"), ""));
    }
    one_of(spec, "dnsPolicy", DNS_POLICIES, path, errs);
    check::labels(at(spec, "nodeSelector"), &path.child("nodeSelector"), errs);
    security_context::pod(spec, path, errs);
    if has(spec, "affinity") {
        scheduling::affinity(at(spec, "affinity"), &path.child("affinity"), errs);
    }
    dns_config(spec, &path.child("dnsConfig"), errs);
    let gates = path.child("readinessGates");
    for (i, g) in items(spec, "readinessGates").iter().enumerate() {
        check::qualified_name(
            text(g, "conditionType"),
            &gates.index(i).child("conditionType"),
            errs,
        );
    }
    scheduling_gates(
        items(spec, "schedulingGates"),
        &path.child("schedulingGates"),
        errs,
    );
    scheduling::topology_spread(
        items(spec, "topologySpreadConstraints"),
        &path.child("topologySpreadConstraints"),
        errs,
    );
    hostname_override(spec, path, errs);
    if text(spec, "os.name") == "linux" && has(spec, "securityContext.windowsOptions") {
        let sp = path.child("securityContext");
        errs.push(FieldError::forbidden(
            sp.child("windowsOptions"),
            "windows options cannot be set for a linux pod",
        ));
    }
    if at(spec, "hostUsers") == &Value::Bool(false) {
        for (key, name) in [
            ("hostNetwork", "hostNetwork"),
            ("hostPID", "HostPID"),
            ("hostIPC", "HostIPC"),
        ] {
            if truth(spec, key) {
                errs.push(FieldError::forbidden(
                    path.child(name),
                    "when `pod.Spec.HostUsers` is false",
                ));
            }
        }
    }
    for (key, rule) in [
        (
            "serviceAccountName",
            check::dns_subdomain as fn(&str, &Path<'_>, &mut Errors),
        ),
        ("nodeName", check::dns_subdomain),
        ("hostname", check::dns_label),
        ("subdomain", check::dns_label),
        ("runtimeClassName", check::dns_subdomain),
        ("priorityClassName", check::dns_subdomain),
    ] {
        let v = text(spec, key);
        if !v.is_empty() {
            rule(v, &path.child(key), errs);
        }
    }
    if let Some(n) = int(spec, "activeDeadlineSeconds").filter(|n| !(1..=2_147_483_647).contains(n))
    {
        errs.push(FieldError::invalid(
            path.child("activeDeadlineSeconds"),
            n,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    scheduling::tolerations(items(spec, "tolerations"), &path.child("tolerations"), errs);
    let aliases = path.child("hostAliases");
    for (i, a) in items(spec, "hostAliases").iter().enumerate() {
        let p = aliases.index(i);
        check::ip(text(a, "ip"), &p.child("ip"), errs);
        let names = p.child("hostnames");
        for (j, h) in items(a, "hostnames").iter().enumerate() {
            check::dns_subdomain(h.as_str().unwrap_or(""), &names.index(j), errs);
        }
    }
    one_of(
        spec,
        "preemptionPolicy",
        &["PreemptLowerPriority", "Never"],
        path,
        errs,
    );
    let overhead = path.child("overhead");
    for (name, q) in entries(spec, "overhead") {
        resources::quantity_value(name, q, &overhead.key(name), errs);
    }
    if has(spec, "os") {
        let os = path.child("os");
        require(at(spec, "os"), "name", &os, errs);
        one_of(at(spec, "os"), "name", &["linux", "windows"], &os, errs);
    }
}

/// hostnameOverride replaces every other way to a host name, and the node's is not the pod's to replace.
fn hostname_override(spec: &Value, path: &Path<'_>, errs: &mut Errors) {
    if !has(spec, "hostnameOverride") {
        return;
    }
    let name = text(spec, "hostnameOverride");
    let p = path.child("hostnameOverride");
    check::dns_subdomain(name, &p, errs);
    if name.len() > 64 {
        errs.push(FieldError::invalid(
            p,
            name,
            "must be no more than 64 bytes",
        ));
    }
    if truth(spec, "hostNetwork") {
        errs.push(FieldError::forbidden(
            path.child("hostnameOverride"),
            "must not be set when `hostNetwork` is true",
        ));
    }
    if truth(spec, "setHostnameAsFQDN") {
        errs.push(FieldError::forbidden(
            path.child("setHostnameAsFQDN"),
            "must not be set when `hostnameOverride` is set",
        ));
    }
}

/// Pod-level resources: their own rules, and no less than what the containers ask for.
fn pod_resources(spec: &Value, path: &Path<'_>, errs: &mut Errors) {
    let r = at(spec, "resources");
    if r.is_null() {
        return;
    }
    if has(r, "claims") {
        errs.push(FieldError::forbidden(
            path.child("claims"),
            "claims cannot be set for Resources at pod-level",
        ));
    }
    resources::validate_pod(r, path, errs);
    let rp = path.child("requests");
    for (name, sum) in resources::of_containers(spec, "requests") {
        let given = at(r, "requests").get(name.as_str()).unwrap_or(&Value::Null);
        if check::quantity(given).is_none_or(|g| g < sum) && !(given.is_null() && sum.is_zero()) {
            let shown = if given.is_null() {
                "0".to_string()
            } else {
                int_or_string(given)
            };
            errs.push(FieldError::invalid(
                rp.key(&name),
                shown,
                format!("must be greater than or equal to aggregate container requests of {sum}"),
            ));
        }
    }
    let cp = path.child("containers");
    for (i, c) in items(spec, "containers").iter().enumerate() {
        for (name, limit) in entries(c, "resources.limits") {
            let pod = at(r, "limits").get(name.as_str()).unwrap_or(&Value::Null);
            if let (Some(l), Some(p)) = (check::quantity(limit), check::quantity(pod))
                && l > p
            {
                let ip = cp.index(i);
                let kp = ip.key(name);
                errs.push(FieldError::invalid(
                    kp.child("limits"),
                    int_or_string(limit),
                    format!(
                        "must be less than or equal to pod limits of {}",
                        int_or_string(pod)
                    ),
                ));
            }
        }
    }
}

fn dns_config(spec: &Value, path: &Path<'_>, errs: &mut Errors) {
    let config = at(spec, "dnsConfig");
    let servers = items(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" && servers.is_empty() {
        if config.is_null() {
            errs.push(FieldError::required(
                path,
                "must provide `dnsConfig` when `dnsPolicy` is None",
            ));
        } else {
            errs.push(FieldError::required(
                path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ));
        }
    }
    let np = path.child("nameservers");
    if servers.len() > 3 {
        errs.push(FieldError::invalid(
            np,
            at(config, "nameservers").clone(),
            "must not have more than 3 nameservers",
        ));
    }
    for (i, s) in servers.iter().enumerate() {
        check::ip(s.as_str().unwrap_or(""), &np.index(i), errs);
    }
    let searches = items(config, "searches");
    let sp = path.child("searches");
    if searches.len() > 32 {
        errs.push(FieldError::invalid(
            sp,
            at(config, "searches").clone(),
            "must not have more than 32 search paths",
        ));
    }
    for (i, s) in searches.iter().enumerate() {
        let s = s.as_str().unwrap_or("");
        // A lone dot is the root; one trailing dot is allowed.
        if s != "." {
            check::dns_subdomain(s.strip_suffix('.').unwrap_or(s), &sp.index(i), errs);
        }
    }
    let op = path.child("options");
    for (i, o) in items(config, "options").iter().enumerate() {
        if text(o, "name").is_empty() {
            errs.push(FieldError::required(op.index(i), "must not be empty"));
        }
    }
}

fn scheduling_gates(list: &[Value], path: &Path<'_>, errs: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, g) in list.iter().enumerate() {
        let name = text(g, "name");
        let p = path.index(i);
        check::qualified_name(name, &p, errs);
        if seen.contains(&name) {
            errs.push(FieldError::duplicate(p, name));
        }
        seen.push(name);
    }
}

/// ValidatePodTemplateSpec: labels, annotations and spec; no ephemeral containers.
pub fn template(template: &Value, path: &Path<'_>, errs: &mut Errors) {
    // Upstream leaves `metadata` out of these two paths.
    check::labels(at(template, "metadata.labels"), &path.child("labels"), errs);
    check::annotations(
        at(template, "metadata.annotations"),
        &path.child("annotations"),
        errs,
    );
    let sp = path.child("spec");
    spec(at(template, "spec"), false, &sp, errs);
    if !items(template, "spec.ephemeralContainers").is_empty() {
        errs.push(FieldError::forbidden(
            sp.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

/// What holds for pods and not for templates. An update is validated with this as well: a pod whose generation has been
/// counted up may have got its ephemeral containers through their subresource.
pub fn create(pod: &Value, errs: &mut Errors) {
    let path = Path::new("spec");
    spec(at(pod, "spec"), true, &path, errs);
    if text(pod, "spec.serviceAccountName").is_empty() {
        let vp = path.child("volumes");
        for (i, v) in items(pod, "spec.volumes").iter().enumerate() {
            for (j, s) in items(v, "projected.sources").iter().enumerate() {
                if has(s, "serviceAccountToken") {
                    let ip = vp.index(i);
                    let sp = ip.child("projected.sources");
                    errs.push(FieldError::forbidden(
                        sp.index(j).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    ));
                }
            }
        }
    }
    if int0(pod, "metadata.generation") <= 1 && !items(pod, "spec.ephemeralContainers").is_empty() {
        errs.push(FieldError::forbidden(
            path.child("ephemeralContainers"),
            "cannot be set on create",
        ));
    }
    if !text(pod, "spec.nodeName").is_empty() && !items(pod, "spec.schedulingGates").is_empty() {
        errs.push(FieldError::forbidden(
            path.child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

/// ValidatePodUpdate: images, activeDeadlineSeconds, added tolerations, scheduling gates and the directives of gated
/// pods may change, nothing else.
pub fn update(new: &Value, old: &Value, errs: &mut Errors) {
    let path = Path::new("spec");
    let (ns, os) = (at(new, "spec"), at(old, "spec"));
    for key in ["containers", "initContainers"] {
        if items(ns, key).len() != items(os, key).len() {
            errs.push(FieldError::forbidden(
                path.child(key),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }

    match (
        int(ns, "activeDeadlineSeconds"),
        int(os, "activeDeadlineSeconds"),
    ) {
        (Some(n), Some(o)) if n > o => {
            errs.push(FieldError::invalid(
                path.child("activeDeadlineSeconds"),
                n,
                "must be less than or equal to previous value",
            ));
            return;
        }
        (None, Some(_)) => errs.push(FieldError::invalid(
            path.child("activeDeadlineSeconds"),
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => {}
    }

    if !tolerations_only_added(items(ns, "tolerations"), items(os, "tolerations")) {
        errs.push(FieldError::forbidden(
            path.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let gates = path.child("schedulingGates");
    for (i, g) in items(ns, "schedulingGates").iter().enumerate() {
        if !items(os, "schedulingGates")
            .iter()
            .any(|o| text(o, "name") == text(g, "name"))
        {
            errs.push(FieldError::forbidden(
                gates.index(i).child("name"),
                format!(
                    "only deletion is allowed, but found new scheduling gate '{}'",
                    text(g, "name")
                ),
            ));
        }
    }

    // What may change is copied from the old spec; anything left over may not.
    let mut munged = ns.clone();
    for key in ["containers", "initContainers"] {
        for (c, o) in items_mut(&mut munged, key).iter_mut().zip(items(os, key)) {
            carry(c, o, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        carry(&mut munged, os, key);
    }
    // A negative grace period that was let in long ago may become 1.
    if int0(os, "terminationGracePeriodSeconds") < 0
        && int(ns, "terminationGracePeriodSeconds") == Some(1)
    {
        carry(&mut munged, os, "terminationGracePeriodSeconds");
    }
    // The scheduler has not looked at a gated pod yet: its node selector may still be narrowed.
    if !items(os, "schedulingGates").is_empty() {
        gated_directives(ns, os, &path, &mut munged, errs);
    }
    if !equal(&munged, os) {
        errs.push(FieldError::forbidden(
            "spec",
            format!(
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{}",
                difference(&munged, os)
            ),
        ));
    }
}

fn tolerations_only_added(new: &[Value], old: &[Value]) -> bool {
    // A set: these lists may be long, and comparing each with each takes the square.
    fn bare(t: &Value) -> [&str; 4] {
        ["key", "operator", "value", "effect"].map(|k| text(t, k))
    }
    let kept: HashSet<[&str; 4]> = new.iter().map(bare).collect();
    old.iter().all(|o| kept.contains(&bare(o)))
}

/// What makes an expression of a node selector.
fn expression(e: &Value) -> (&str, &str, Vec<&str>) {
    let values = items(e, "values").iter().filter_map(Value::as_str);
    (text(e, "key"), text(e, "operator"), values.collect())
}

fn gated_directives(
    ns: &Value,
    os: &Value,
    path: &Path<'_>,
    munged: &mut Value,
    errs: &mut Errors,
) {
    let added_only =
        entries(os, "nodeSelector").all(|(k, v)| at(ns, "nodeSelector").get(k.as_str()) == Some(v));
    if added_only {
        carry(munged, os, "nodeSelector");
    } else {
        errs.push(FieldError::invalid(
            path.child("nodeSelector"),
            at(ns, "nodeSelector").clone(),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        ));
        carry(munged, os, "nodeSelector");
    }
    let node = "affinity.nodeAffinity";
    let (na, oa) = (at(ns, node), at(os, node));
    let required = "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let (nt, ot) = (items(na, required), items(oa, required));
    let narrowed = ot.is_empty()
        || (nt.len() == ot.len()
            && nt.iter().zip(ot).all(|(n, o)| {
                ["matchExpressions", "matchFields"].iter().all(|k| {
                    let kept: HashSet<_> = items(n, k).iter().map(expression).collect();
                    items(o, k).iter().all(|x| kept.contains(&expression(x)))
                })
            }));
    if narrowed {
        match (munged.get_mut("affinity"), os.get("affinity")) {
            (Some(m), Some(o)) if m.is_object() => {
                carry(m, o, "nodeAffinity");
            }
            (Some(m), None) => {
                drop_key(m, "nodeAffinity");
                if is_empty(m) {
                    drop_key(munged, "affinity");
                }
            }
            _ => {}
        }
    }
}

/// A short list of what differs, for people; upstream prints a Go diff there.
fn difference(new: &Value, old: &Value) -> String {
    fn walk(path: String, new: &Value, old: &Value, out: &mut Vec<String>) {
        if out.len() >= 10 || equal(new, old) {
            return;
        }
        match (new, old) {
            (Value::Object(n), Value::Object(o)) => {
                let mut keys: Vec<&String> = n
                    .keys()
                    .chain(o.keys().filter(|k| !n.contains_key(*k)))
                    .collect();
                keys.sort();
                for k in keys {
                    let next = if path.is_empty() {
                        k.clone()
                    } else {
                        format!("{path}.{k}")
                    };
                    walk(
                        next,
                        n.get(k).unwrap_or(&Value::Null),
                        o.get(k).unwrap_or(&Value::Null),
                        out,
                    );
                }
            }
            (Value::Array(n), Value::Array(o)) if n.len() == o.len() => {
                for (i, (x, y)) in n.iter().zip(o).enumerate() {
                    walk(format!("{path}[{i}]"), x, y, out);
                }
            }
            _ => out.push(format!("- {path}: {old}\n+ {path}: {new}")),
        }
    }
    let mut out = Vec::new();
    walk(String::new(), new, old, &mut out);
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
        super::super::pod::default(&mut pod);
        pod
    }
    fn shown(errs: &[FieldError]) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }
    fn created(spec: Value) -> Vec<String> {
        let mut errs = Vec::new();
        create(&pod(spec), &mut errs);
        shown(&errs)
    }
    fn updated(new: Value, old: Value) -> Vec<String> {
        let mut errs = Vec::new();
        update(&pod(new), &pod(old), &mut errs);
        shown(&errs)
    }

    #[test]
    fn a_good_pod_has_no_errors() {
        assert_eq!(
            created(json!({
                "containers": [{
                    "name": "web", "image": "nginx:1", "ports": [{"containerPort": 80, "name": "http"}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                    "livenessProbe": {"httpGet": {"port": "http"}},
                    "env": [{"name": "A", "value": "b"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}],
                    "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
                }],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}],
                "tolerations": [{"operator": "Exists"}],
            })),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_needs_another_field_is_refused_without_it() {
        let with = |container: Value, more: Value| {
            let mut c = json!({"name": "c", "image": "i"});
            merge(&mut c, container);
            let mut spec = json!({"containers": [c]});
            merge(&mut spec, more);
            created(spec)
        };
        fn merge(into: &mut Value, from: Value) {
            for (k, v) in from.as_object().unwrap() {
                into[k] = v.clone();
            }
        }
        let signal = |s: &str| json!({"lifecycle": {"stopSignal": s}});
        let linux = json!({"os": {"name": "linux"}});
        assert_eq!(
            with(signal("SIGUSR1"), json!({})),
            [
                "spec.containers[0].lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`"
            ]
        );
        for good in ["SIGUSR1", "SIGRTMIN", "SIGRTMIN+15", "SIGRTMAX-14"] {
            assert!(with(signal(good), linux.clone()).is_empty(), "{good}");
        }
        for bad in ["USR1", "SIGFOO", "9", "SIGRTMIN+16", "SIGRTMAX-0"] {
            assert_eq!(with(signal(bad), linux.clone()).len(), 1, "{bad}");
        }
        assert_eq!(
            with(signal("SIGUSR1"), json!({"os": {"name": "windows"}})).len(),
            1
        );
        let unmasked = json!({"securityContext": {"procMount": "Unmasked"}});
        assert_eq!(
            with(unmasked.clone(), json!({})),
            [
                "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`"
            ]
        );
        assert_eq!(with(unmasked.clone(), json!({"hostUsers": true})).len(), 1);
        assert!(with(unmasked, json!({"hostUsers": false})).is_empty());
        let windows = json!({"securityContext": {"windowsOptions": {}}});
        assert_eq!(with(windows.clone(), linux.clone()).len(), 1);
        assert_eq!(
            with(
                json!({}),
                json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {}}})
            )
            .len(),
            1
        );
        assert!(with(windows, json!({})).is_empty());
        let named = |more: Value| {
            let mut spec = json!({"hostnameOverride": "a.b"});
            merge(&mut spec, more);
            with(json!({}), spec)
        };
        assert!(named(json!({})).is_empty());
        for bad in [
            json!({"hostNetwork": true}),
            json!({"setHostnameAsFQDN": true}),
            json!({"hostnameOverride": "A"}),
            json!({"hostnameOverride": "a".repeat(65)}),
        ] {
            assert_eq!(named(bad.clone()).len(), 1, "{bad}");
        }
    }

    #[test]
    fn errors_name_the_field_and_the_rule() {
        assert_eq!(created(json!({})), ["spec.containers: Required value"]);
        assert_eq!(
            created(json!({"containers": [{"name": "a"}, {"name": "a", "image": "x"}]})),
            [
                "spec.containers[0].image: Required value",
                "spec.containers[1].name: Duplicate value: \"a\"",
            ]
        );
        assert_eq!(
            created(
                json!({"restartPolicy": "Sometimes", "containers": [{"name": "a", "image": "x"}]})
            ),
            [
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\""
            ]
        );
        assert_eq!(
            created(
                json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/a"}]}]})
            ),
            ["spec.containers[0].volumeMounts[0].name: Not found: \"v\""]
        );
        assert_eq!(
            created(
                json!({"containers": [{"name": "a", "image": "x", "livenessProbe": {"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}}}]})
            ),
            [
                "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"
            ]
        );
        assert_eq!(
            created(json!({"containers": [{"name": "a", "image": "x", "ports": [
                {"containerPort": 1, "hostPort": 8080}, {"containerPort": 2, "hostPort": 8080}]}]})),
            ["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//8080\""]
        );
    }

    #[test]
    fn only_a_few_fields_of_a_pod_may_change() {
        let old = json!({"containers": [{"name": "a", "image": "x:1"}]});
        assert!(
            updated(
                json!({"containers": [{"name": "a", "image": "x:1"}]}),
                old.clone()
            )
            .is_empty()
        );
        assert!(
            updated(
                json!({"containers": [{"name": "a", "image": "x:2", "imagePullPolicy": "IfNotPresent"}], "activeDeadlineSeconds": 5,
                    "tolerations": [{"key": "a", "operator": "Exists"}]}),
                old.clone()
            )
            .is_empty()
        );
        let errs = updated(
            json!({"containers": [{"name": "a", "image": "x:1", "command": ["sh"]}]}),
            old.clone(),
        );
        assert_eq!(errs.len(), 1);
        assert!(
            errs[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
            "{errs:?}"
        );
        assert!(errs[0].contains("containers[0].command"), "{errs:?}");
        assert_eq!(
            updated(
                json!({"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:1"}]}),
                old
            ),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }
}
