//! Services (SetDefaults_Service, ValidateService, printService). Addresses, node ports and IP families are given by the
//! API server's allocator, not here.

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Context, SelectableField, Strategy, keep_status};
use serde_json::{Value, json};
use std::collections::HashSet;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// SetDefaults_Service.
pub fn default(svc: &mut Value) {
    let Some(spec) = object(svc, "spec") else {
        return;
    };
    if !spec.is_object() {
        return;
    }
    zero(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => drop_key(spec, "sessionAffinityConfig"),
        "ClientIP" if !has(spec, "sessionAffinityConfig.clientIP.timeoutSeconds") => {
            put(
                spec,
                "sessionAffinityConfig",
                json!({"clientIP": {"timeoutSeconds": 10800}}),
            );
        }
        _ => {}
    }
    zero(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        zero(port, "protocol", "TCP");
        let number = at(port, "port").clone();
        if number.is_i64() || number.is_u64() {
            zero(port, "targetPort", number);
        }
    }
    let kind = text(spec, "type").to_string();
    if is_external(spec) {
        zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" && TYPES.contains(&kind.as_str()) {
        unset(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        unset(spec, "allocateLoadBalancerNodePorts", true);
        for ingress in items_mut(svc, "status.loadBalancer.ingress") {
            if !text(ingress, "ip").is_empty() {
                unset(ingress, "ipMode", "VIP");
            }
        }
    }
}

fn prepare_create(_: &Context, svc: &mut Value) {
    put(svc, "status", json!({"loadBalancer": {}}));
    if let Some(spec) = at_mut(svc, "spec") {
        both_cluster_ips(spec);
    }
}

/// `clusterIP` given alone is the first of `clusterIPs`.
fn both_cluster_ips(spec: &mut Value) {
    let ip = text(spec, "clusterIP").to_string();
    if !ip.is_empty() && items(spec, "clusterIPs").is_empty() {
        put(spec, "clusterIPs", json!([ip]));
    }
}

fn needs_cluster_ip(spec: &Value) -> bool {
    text(spec, "type") != "ExternalName"
}

fn needs_node_port(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => at(spec, "allocateLoadBalancerNodePorts") != &Value::Bool(false),
        _ => false,
    }
}

fn needs_health_port(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn is_external(spec: &Value) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
        || (text(spec, "type") == "ClusterIP" && !items(spec, "externalIPs").is_empty())
}

fn node_ports(spec: &Value) -> Vec<i64> {
    items(spec, "ports")
        .iter()
        .map(|p| int0(p, "nodePort"))
        .filter(|n| *n != 0)
        .collect()
}

/// Status stays. What was allocated before and is not given now is kept (patchAllocatedValues), and what the new type has
/// no use for goes when the client only sends it back (dropTypeDependentFields).
fn prepare_update(c: &Context, new: &mut Value, old: &Value) {
    keep_status(c, new, old);
    let os = at(old, "spec");
    let Some(ns) = at_mut(new, "spec") else {
        return;
    };
    if needs_cluster_ip(ns) && needs_cluster_ip(os) {
        if text(ns, "clusterIP").is_empty() && items(ns, "clusterIPs").is_empty() {
            for key in ["clusterIP", "clusterIPs"] {
                carry(ns, os, key);
            }
        } else if text(ns, "clusterIP").is_empty() && !text(os, "clusterIP").is_empty() {
            carry(ns, os, "clusterIP");
        }
        if items(ns, "clusterIPs").is_empty() && text(ns, "clusterIP") == text(os, "clusterIP") {
            carry(ns, os, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if is_empty(at(ns, key)) && !is_empty(at(os, key)) {
                carry(ns, os, key);
            }
        }
    }
    // clusterIP changed alone: the list follows, and validation says whether that may be.
    if text(ns, "clusterIP") != text(os, "clusterIP")
        && equal(at(ns, "clusterIPs"), at(os, "clusterIPs"))
    {
        drop_key(ns, "clusterIPs");
    }
    both_cluster_ips(ns);
    if needs_node_port(ns) && needs_node_port(os) {
        let mine = node_ports(ns);
        let mut used: Vec<i64> = node_ports(os)
            .into_iter()
            .filter(|n| mine.contains(n))
            .collect();
        for port in items_mut(ns, "ports") {
            if int0(port, "nodePort") != 0 {
                continue;
            }
            let same = items(os, "ports")
                .iter()
                .find(|p| text(p, "name") == text(port, "name"));
            if let Some(n) = same
                .map(|p| int0(p, "nodePort"))
                .filter(|n| *n != 0 && !used.contains(n))
            {
                put(port, "nodePort", n);
                used.push(n);
            }
        }
    }
    if needs_health_port(ns) && needs_health_port(os) && int0(ns, "healthCheckNodePort") == 0 {
        carry(ns, os, "healthCheckNodePort");
    }

    if needs_cluster_ip(os) && !needs_cluster_ip(ns) {
        if text(ns, "clusterIP") == text(os, "clusterIP")
            && equal(at(ns, "clusterIPs"), at(os, "clusterIPs"))
        {
            drop_key(ns, "clusterIP");
            drop_key(ns, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if equal(at(ns, key), at(os, key)) {
                drop_key(ns, key);
            }
        }
    }
    if needs_node_port(os) && !needs_node_port(ns) && node_ports(ns) == node_ports(os) {
        for port in items_mut(ns, "ports") {
            drop_key(port, "nodePort");
        }
    }
    if needs_health_port(os)
        && !needs_health_port(ns)
        && at(ns, "healthCheckNodePort") == at(os, "healthCheckNodePort")
    {
        drop_key(ns, "healthCheckNodePort");
    }
    if text(os, "type") == "LoadBalancer" && text(ns, "type") != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if at(ns, key) == at(os, key) {
                drop_key(ns, key);
            }
        }
    }
    if is_external(os)
        && !is_external(ns)
        && text(ns, "externalTrafficPolicy") == text(os, "externalTrafficPolicy")
    {
        drop_key(ns, "externalTrafficPolicy");
    }
}

/// ValidateService, less what the allocator answers for.
pub fn validate(svc: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(svc, "spec");
    let path = Path::new("spec");
    let kind = text(spec, "type");
    let ports = items(spec, "ports");
    let headless = text(spec, "clusterIP") == "None";
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errs.push(FieldError::required(path.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" if headless => {
            errs.push(FieldError::invalid(
                path.child("clusterIPs").index(0),
                "None",
                "may not be set to 'None' for LoadBalancer services",
            ));
        }
        "NodePort" if headless => {
            errs.push(FieldError::invalid(
                path.child("clusterIPs").index(0),
                "None",
                "may not be set to 'None' for NodePort services",
            ));
        }
        "ExternalName" => {
            if !text(spec, "clusterIP").is_empty() || !items(spec, "clusterIPs").is_empty() {
                errs.push(FieldError::forbidden(
                    path.child("clusterIPs"),
                    "may not be set for ExternalName services",
                ));
            }
            for key in ["ipFamilies", "ipFamilyPolicy"] {
                if !is_empty(at(spec, key)) {
                    errs.push(FieldError::forbidden(
                        path.child(key),
                        "may not be set for ExternalName services",
                    ));
                }
            }
            let target = text(spec, "externalName");
            let bare = target.strip_suffix('.').unwrap_or(target);
            if bare.is_empty() {
                errs.push(FieldError::required(path.child("externalName"), ""));
            } else {
                check::dns_subdomain(bare, &path.child("externalName"), &mut errs);
            }
        }
        _ => {}
    }
    validate_ports(ports, &path.child("ports"), &mut errs);
    check::labels(at(spec, "selector"), &path.child("selector"), &mut errs);
    if text(spec, "sessionAffinity").is_empty() {
        errs.push(FieldError::required(path.child("sessionAffinity"), ""));
    }
    one_of(
        spec,
        "sessionAffinity",
        &["ClientIP", "None"],
        &path,
        &mut errs,
    );
    if text(spec, "sessionAffinity") == "ClientIP" {
        let t = int0(spec, "sessionAffinityConfig.clientIP.timeoutSeconds");
        if t <= 0 || t > 86400 {
            errs.push(FieldError::invalid(
                path.child("sessionAffinityConfig.clientIP.timeoutSeconds"),
                t,
                "must be greater than 0 and less than 86400",
            ));
        }
    }
    for (i, ip) in items(spec, "clusterIPs").iter().enumerate() {
        let ip = ip.as_str().unwrap_or("");
        if ip != "None" || i > 0 {
            let p = path.child("clusterIPs");
            check::ip(ip, &p.index(i), &mut errs);
        }
    }
    let cluster_ip = text(spec, "clusterIP");
    if !cluster_ip.is_empty() {
        if let Some(first) = items(spec, "clusterIPs").first() {
            if first.as_str() != Some(cluster_ip) {
                errs.push(FieldError::invalid(
                    path.child("clusterIPs"),
                    at(spec, "clusterIPs").clone(),
                    "first value must match `clusterIP`",
                ));
            }
        } else if cluster_ip != "None" {
            check::ip(cluster_ip, &path.child("clusterIPs").index(0), &mut errs);
        }
    }
    for (i, ip) in items(spec, "externalIPs").iter().enumerate() {
        let p = path.child("externalIPs");
        check::endpoint_ip(ip.as_str().unwrap_or(""), &p.index(i), &mut errs);
    }
    if kind.is_empty() {
        errs.push(FieldError::required(path.child("type"), ""));
    }
    one_of(spec, "type", TYPES, &path, &mut errs);
    port_conflicts(ports, kind, &path.child("ports"), &mut errs);
    policies(spec, kind, &path, &mut errs);
    errs
}

fn policies(spec: &Value, kind: &str, path: &Path<'_>, errs: &mut Errors) {
    one_of(
        spec,
        "externalTrafficPolicy",
        &["Cluster", "Local"],
        path,
        errs,
    );
    if !is_external(spec) && !text(spec, "externalTrafficPolicy").is_empty() {
        errs.push(FieldError::invalid(
            path.child("externalTrafficPolicy"),
            text(spec, "externalTrafficPolicy"),
            "may only be set for externally-accessible services",
        ));
    }
    one_of(
        spec,
        "internalTrafficPolicy",
        &["Cluster", "Local"],
        path,
        errs,
    );
    one_of(
        spec,
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
        path,
        errs,
    );
    let families = path.child("ipFamilies");
    for (i, f) in items(spec, "ipFamilies").iter().enumerate() {
        let f = f.as_str().unwrap_or("");
        if !matches!(f, "IPv4" | "IPv6") {
            errs.push(FieldError::not_supported(
                families.index(i),
                f,
                &["IPv4", "IPv6"],
            ));
        }
    }
    one_of(
        spec,
        "trafficDistribution",
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
        path,
        errs,
    );
    if kind != "LoadBalancer" {
        for (key, why) in [
            (
                "loadBalancerClass",
                "may only be used when `type` is 'LoadBalancer'",
            ),
            (
                "allocateLoadBalancerNodePorts",
                "may only be used when `type` is 'LoadBalancer'",
            ),
        ] {
            if has(spec, key) {
                errs.push(FieldError::forbidden(path.child(key), why));
            }
        }
        if !items(spec, "loadBalancerSourceRanges").is_empty() {
            errs.push(FieldError::forbidden(
                path.child("LoadBalancerSourceRanges"),
                "may only be used when `type` is 'LoadBalancer'",
            ));
        }
    }
    for (i, c) in items(spec, "loadBalancerSourceRanges").iter().enumerate() {
        let p = path.child("LoadBalancerSourceRanges");
        check::cidr(c.as_str().unwrap_or("").trim(), &p.index(i), errs);
    }
    if let Some(port) = int(spec, "healthCheckNodePort").filter(|p| *p != 0)
        && !(kind == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local")
    {
        errs.push(FieldError::invalid(
            path.child("healthCheckNodePort"),
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
}

fn validate_ports(ports: &[Value], path: &Path<'_>, errs: &mut Errors) {
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let p = path.index(i);
        let name = text(port, "name");
        if name.is_empty() {
            if ports.len() > 1 {
                errs.push(FieldError::required(p.child("name"), ""));
            }
        } else {
            check::dns_label(name, &p.child("name"), errs);
            if names.contains(&name) {
                errs.push(FieldError::duplicate(p.child("name"), name));
            }
            names.push(name);
        }
        check::port_number(int0(port, "port"), &p.child("port"), errs);
        if text(port, "protocol").is_empty() {
            errs.push(FieldError::required(p.child("protocol"), ""));
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &p, errs);
        check::port_int_or_name(at(port, "targetPort"), &p.child("targetPort"), errs);
        if has(port, "appProtocol") {
            check::qualified_name(text(port, "appProtocol"), &p.child("appProtocol"), errs);
        }
    }
}

/// Node ports only where there are some, and no port twice.
fn port_conflicts(ports: &[Value], kind: &str, path: &Path<'_>, errs: &mut Errors) {
    if kind == "ClusterIP" {
        for (i, port) in ports.iter().enumerate() {
            if int0(port, "nodePort") != 0 {
                let p = path.index(i);
                errs.push(FieldError::forbidden(
                    p.child("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                ));
            }
        }
    }
    let mut seen = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let n = int0(port, "nodePort");
        if n != 0 && !seen.insert((n, text(port, "protocol"))) {
            let p = path.index(i);
            errs.push(FieldError::duplicate(p.child("nodePort"), n));
        }
    }
    let mut seen = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        if !seen.insert((int0(port, "port"), text(port, "protocol"))) {
            errs.push(FieldError::duplicate(
                path.index(i),
                json!({"protocol": text(port, "protocol"), "port": int0(port, "port")}),
            ));
        }
    }
}

/// ValidateServiceUpdate: an allocated cluster IP stays as long as the type needs one.
fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let (ns, os) = (at(new, "spec"), at(old, "spec"));
    let path = Path::new("spec");
    let headless = |s: &Value| text(s, "clusterIP") == "None";
    if needs_cluster_ip(ns) && needs_cluster_ip(os) && !(headless(ns) && headless(os)) {
        let (n, o) = (items(ns, "clusterIPs"), items(os, "clusterIPs"));
        let cp = path.child("clusterIPs");
        let changed = |i: usize, errs: &mut Errors| {
            errs.push(FieldError::invalid(
                cp.index(i),
                n.to_vec(),
                "may not change once set",
            ));
        };
        if n.len() == o.len() {
            for i in 0..n.len() {
                if n[i] != o[i] {
                    changed(i, &mut errs);
                }
            }
        } else if n.is_empty() {
            errs.push(FieldError::invalid(
                cp.index(0),
                n.to_vec(),
                "primary clusterIP can not be unset",
            ));
        } else if !o.is_empty() && n[0] != o[0] {
            changed(0, &mut errs);
        }
    }
    let class = |s: &Value| text(s, "loadBalancerClass").to_string();
    if text(ns, "type") == "LoadBalancer"
        && text(os, "type") == "LoadBalancer"
        && class(ns) != class(os)
    {
        errs.push(FieldError::invalid(
            path.child("loadBalancerClass"),
            class(ns),
            "may not change once set",
        ));
    }
    errs
}

fn warnings(svc: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if !text(svc, "spec.loadBalancerIP").is_empty() {
        out.push("spec.loadBalancerIP is deprecated".into());
    }
    if !items(svc, "spec.externalIPs").is_empty() && text(svc, "spec.type") == "ExternalName" {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if text(svc, "spec.type") == "ExternalName"
        && !text(svc, "spec.externalTrafficPolicy").is_empty()
    {
        out.push("spec.externalTrafficPolicy is ignored when spec.type is \"ExternalName\"".into());
    }
    if text(svc, "spec.sessionAffinity") == "ClientIP" && text(svc, "spec.clusterIP") == "None" {
        out.push("spec.SessionAffinity is ignored for headless services".into());
    }
    out
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        // Since 1.34 a service's name may start with a digit (RelaxedServiceNameValidation).
        name: crate::names::name_is_dns_label,
        default,
        prepare_create,
        prepare_update,
        validate,
        validate_update,
        warnings,
        allow_create_on_update: true,
        ..Strategy::default()
    }
}

/// Fields of selectors.
pub fn fields() -> Vec<SelectableField> {
    vec![
        field("spec.clusterIP", |s| text(s, "spec.clusterIP").into()),
        field("spec.type", |s| text(s, "spec.type").into()),
    ]
}

/// The columns of `kubectl get services`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Type", 0, |s, _| text(s, "spec.type").into()),
        col("Cluster-IP", 0, |s, _| {
            let first = items(s, "spec.clusterIPs").first().and_then(Value::as_str);
            first.filter(|ip| !ip.is_empty()).unwrap_or("<none>").into()
        }),
        col("External-IP", 0, |s, _| external_ip(s).into()),
        col("Port(s)", 0, |s, _| {
            let list: Vec<String> = items(s, "spec.ports")
                .iter()
                .map(|p| match int0(p, "nodePort") {
                    0 => format!("{}/{}", int0(p, "port"), text(p, "protocol")),
                    n => format!("{}:{n}/{}", int0(p, "port"), text(p, "protocol")),
                })
                .collect();
            if list.is_empty() {
                "<none>".into()
            } else {
                list.join(",").into()
            }
        }),
        col_age(),
        col("Selector", 1, |s, _| labels(at(s, "spec.selector")).into()),
    ]
}

/// Addresses of a load balancer's status, sorted, joined by commas.
pub fn load_balancer(ingress: &[Value]) -> String {
    let mut list: Vec<&str> = ingress
        .iter()
        .map(|i| {
            if text(i, "ip").is_empty() {
                text(i, "hostname")
            } else {
                text(i, "ip")
            }
        })
        .filter(|s| !s.is_empty())
        .collect();
    list.sort_unstable();
    list.dedup();
    list.join(",")
}

fn external_ip(s: &Value) -> String {
    let external: Vec<&str> = items(s, "spec.externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match text(s, "spec.type") {
        "ClusterIP" | "NodePort" if external.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => external.join(","),
        "LoadBalancer" => {
            let balancer = load_balancer(items(s, "status.loadBalancer.ingress"));
            let mut all: Vec<&str> = if balancer.is_empty() {
                Vec::new()
            } else {
                vec![&balancer]
            };
            all.extend(external);
            if all.is_empty() {
                "<pending>".into()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => text(s, "spec.externalName").to_string(),
        _ => "<unknown>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let mut svc = json!({"metadata": {"name": "s"}, "spec": spec});
        default(&mut svc);
        validate(&svc).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_minimal_service_gets_upstreams_defaults() {
        let mut svc = json!({"spec": {"ports": [{"port": 80}]}});
        default(&mut svc);
        assert_eq!(
            svc["spec"],
            json!({
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
            })
        );
    }

    #[test]
    fn ports_are_checked() {
        assert_eq!(errors(json!({})), ["spec.ports: Required value"]);
        assert_eq!(
            errors(json!({"ports": [{"port": 80}, {"port": 80, "name": "b"}]})),
            [
                "spec.ports[0].name: Required value",
                "spec.ports[1]: Duplicate value: {\"protocol\":\"TCP\",\"port\":80}",
            ]
        );
        assert_eq!(
            errors(json!({"ports": [{"port": 70000, "targetPort": 1}]})),
            ["spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"]
        );
        assert_eq!(
            errors(json!({"type": "Odd", "ports": [{"port": 80}]})),
            [
                "spec.type: Unsupported value: \"Odd\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""
            ]
        );
    }

    #[test]
    fn a_cluster_ip_does_not_change() {
        let svc =
            |ip: &str| json!({"spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}});
        let errs = validate_update(&svc("10.43.0.9"), &svc("10.43.0.8"));
        assert_eq!(
            errs[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.43.0.9\"]: may not change once set"
        );
    }

    #[test]
    fn what_was_allocated_stays_and_goes_with_the_type() {
        let c = Context {
            now: String::new(),
            user: String::new(),
        };
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.43.0.8", "clusterIPs": ["10.43.0.8"],
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 81}]}});
        default(&mut new);
        prepare_update(&c, &mut new, &old);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.0.8"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        assert!(validate_update(&new, &old).is_empty());
        let mut plain = old.clone();
        plain["spec"]["type"] = "ClusterIP".into();
        default(&mut plain);
        prepare_update(&c, &mut plain, &old);
        assert_eq!(
            plain["spec"]["ports"],
            json!([{"port": 80, "protocol": "TCP", "targetPort": 80}])
        );
        assert!(plain["spec"].get("externalTrafficPolicy").is_none());
        assert!(validate(&plain).is_empty(), "{:?}", validate(&plain));
    }

    #[test]
    fn columns_show_ports_and_external_addresses() {
        let svc = json!({
            "metadata": {"name": "s", "creationTimestamp": "2023-11-14T22:13:10Z"},
            "spec": {"type": "LoadBalancer", "clusterIPs": ["10.43.0.9"], "selector": {"b": "c", "a": "b"},
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]},
        });
        assert_eq!(
            crate::kinds::tests::cells(&columns(), &svc, 1_700_000_000),
            [
                "s",
                "LoadBalancer",
                "10.43.0.9",
                "<pending>",
                "80:30080/TCP,53/UDP",
                "10s",
                "a=b,b=c"
            ]
        );
    }
}
