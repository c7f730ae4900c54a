//! Ingresses (ValidateIngress of pkg/apis/networking/validation, printIngress).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::core::{pod::or_none, service};
use crate::kinds::util::*;
use crate::resource::{Column, Context, Strategy};
use serde_json::{Value, json};

fn prepare_create(_: &Context, i: &mut Value) {
    put(i, "status", json!({"loadBalancer": {}}));
}

fn validate(ing: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(ing, "spec");
    let path = Path::new("spec");
    let rules = items(spec, "rules");
    let default = at(spec, "defaultBackend");
    if rules.is_empty() && default.is_null() {
        errs.push(FieldError::invalid(
            path,
            rules.to_vec(),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if !default.is_null() {
        backend(default, &path.child("defaultBackend"), &mut errs);
    }
    let rp = path.child("rules");
    for (i, rule) in rules.iter().enumerate() {
        let p = rp.index(i);
        let host = text(rule, "host");
        if !host.is_empty() {
            host_rule(host, &p.child("host"), &mut errs);
        }
        let http = at(rule, "http");
        if http.is_null() {
            continue;
        }
        let hp = p.child("http");
        let pp = hp.child("paths");
        if items(http, "paths").is_empty() {
            errs.push(FieldError::required(pp, ""));
        }
        for (j, one) in items(http, "paths").iter().enumerate() {
            let ip = pp.index(j);
            let (kind, route) = (at(one, "pathType"), text(one, "path"));
            match kind.as_str() {
                None => {
                    errs.push(FieldError::required(
                        ip.child("pathType"),
                        "pathType must be specified",
                    ));
                    continue;
                }
                Some("Exact" | "Prefix") => {
                    if !route.starts_with('/') {
                        errs.push(FieldError::invalid(
                            ip.child("path"),
                            route,
                            "must be an absolute path",
                        ));
                    }
                    for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                        if route.contains(bad) {
                            errs.push(FieldError::invalid(
                                ip.child("path"),
                                route,
                                format!("must not contain '{bad}'"),
                            ));
                        }
                    }
                    for bad in ["/..", "/."] {
                        if route.ends_with(bad) {
                            errs.push(FieldError::invalid(
                                ip.child("path"),
                                route,
                                format!("cannot end with '{bad}'"),
                            ));
                        }
                    }
                }
                Some("ImplementationSpecific") => {
                    if !route.is_empty() && !route.starts_with('/') {
                        errs.push(FieldError::invalid(
                            ip.child("path"),
                            route,
                            "must be an absolute path",
                        ));
                    }
                }
                Some(other) => errs.push(FieldError::not_supported(
                    ip.child("pathType"),
                    other,
                    &["Exact", "ImplementationSpecific", "Prefix"],
                )),
            }
            backend(at(one, "backend"), &ip.child("backend"), &mut errs);
        }
    }
    let tp = path.child("tls");
    for (i, tls) in items(spec, "tls").iter().enumerate() {
        let p = tp.index(i);
        let hosts = p.child("hosts");
        for (j, h) in items(tls, "hosts").iter().enumerate() {
            host_name(h.as_str().unwrap_or(""), &hosts.index(j), &mut errs);
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty() {
            check::dns_subdomain(secret, &p.child("secretName"), &mut errs);
        }
    }
    let class = text(spec, "ingressClassName");
    if !class.is_empty() {
        check::dns_subdomain(class, &path.child("ingressClassName"), &mut errs);
        // Upstream's create rule; an update lets what is there stay.
        let old = check::annotation(ing, "kubernetes.io/ingress.class");
        if let Some(old) = old.filter(|o| *o != class && int0(ing, "metadata.generation") <= 1) {
            errs.push(FieldError::invalid(
                "annotations.kubernetes.io/ingress.class",
                old,
                "must match `ingressClassName` when both are specified",
            ));
        }
    }
    errs
}

fn host_name(host: &str, p: &Path<'_>, errs: &mut Errors) {
    if host.contains('*') {
        check::wildcard_subdomain(host, p, errs);
    } else {
        check::dns_subdomain(host, p, errs);
    }
}

fn host_rule(host: &str, p: &Path<'_>, errs: &mut Errors) {
    if host.parse::<std::net::IpAddr>().is_ok() {
        errs.push(FieldError::invalid(
            p,
            host,
            "must be a DNS name, not an IP address",
        ));
        return;
    }
    host_name(host, p, errs);
}

fn backend(b: &Value, p: &Path<'_>, errs: &mut Errors) {
    let (service, resource) = (at(b, "service"), at(b, "resource"));
    match (service.is_null(), resource.is_null()) {
        (false, false) => {
            errs.push(FieldError::invalid(
                p,
                "",
                "cannot set both resource and service backends",
            ));
        }
        (true, false) => {
            let rp = p.child("resource");
            require(resource, "kind", &rp, errs);
            require(resource, "name", &rp, errs);
        }
        (true, true) => {
            errs.push(FieldError::invalid(
                p,
                "",
                "resource or service backend is required",
            ));
        }
        (false, true) => {
            let sp = p.child("service");
            let name = text(service, "name");
            if name.is_empty() {
                errs.push(FieldError::required(sp.child("name"), ""));
            } else {
                check::dns_label(name, &sp.child("name"), errs);
            }
            let (port_name, number) = (text(service, "port.name"), int0(service, "port.number"));
            if !port_name.is_empty() && number != 0 {
                errs.push(FieldError::invalid(
                    p,
                    "",
                    "cannot set both port name & port number",
                ));
            } else if !port_name.is_empty() {
                let pp = sp.child("port");
                check::port_name(port_name, &pp.child("name"), errs);
            } else if number != 0 {
                let pp = sp.child("port");
                check::port_number(number, &pp.child("number"), errs);
            } else {
                errs.push(FieldError::required(p, "port name or number is required"));
            }
        }
    }
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        prepare_create,
        validate,
        warnings: |i| {
            if at(i, "metadata.annotations")
                .get("kubernetes.io/ingress.class")
                .is_some()
            {
                return vec![
                    "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
                        .into(),
                ];
            }
            Vec::new()
        },
        generation: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get ingresses`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Class", 0, |i, _| {
            or_none(text(i, "spec.ingressClassName")).into()
        }),
        col("Hosts", 0, |i, _| {
            let all: Vec<&str> = items(i, "spec.rules")
                .iter()
                .map(|r| text(r, "host"))
                .filter(|h| !h.is_empty())
                .collect();
            if all.is_empty() {
                return "*".into();
            }
            let head = all.iter().take(3).copied().collect::<Vec<_>>().join(",");
            if all.len() > 3 {
                format!("{head} + {} more...", all.len() - 3).into()
            } else {
                head.into()
            }
        }),
        col("Address", 0, |i, _| {
            service::load_balancer(items(i, "status.loadBalancer.ingress")).into()
        }),
        col("Ports", 0, |i, _| {
            if items(i, "spec.tls").is_empty() {
                "80"
            } else {
                "80, 443"
            }
            .into()
        }),
        col_age(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        validate(&json!({"spec": spec}))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn rules_are_checked() {
        let good = json!({"rules": [{"host": "*.example.com", "http": {"paths": [{"path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]});
        assert_eq!(errors(good.clone()), Vec::<String>::new());
        let mut bad = good;
        bad["rules"][0]["http"]["paths"][0] = json!({"path": "x", "pathType": "Exact",
            "backend": {"service": {"name": "web", "port": {}}}});
        assert_eq!(
            errors(bad),
            [
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
                "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
            ]
        );
        assert_eq!(
            errors(json!({})),
            ["spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"]
        );
    }
}
