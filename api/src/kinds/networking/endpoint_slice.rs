//! Endpoint slices (SetDefaults_EndpointPort, ValidateEndpointSlice, printEndpointSlice).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// SetDefaults_EndpointPort.
pub fn default(s: &mut Value) {
    for port in items_mut(s, "ports") {
        unset(port, "name", "");
        unset(port, "protocol", "TCP");
    }
}

fn too_many(field: String, n: usize, max: usize) -> FieldError {
    FieldError {
        kind: crate::field::ErrorType::TooMany,
        field,
        value: n.into(),
        detail: format!("must have at most {max} items"),
    }
}

fn validate(s: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let kind = text(s, "addressType");
    if kind.is_empty() {
        errs.push(FieldError::required("addressType", ""));
    } else if !matches!(kind, "IPv4" | "IPv6" | "FQDN") {
        errs.push(FieldError::not_supported(
            "addressType",
            kind,
            &["FQDN", "IPv4", "IPv6"],
        ));
    }
    let ep = Path::new("endpoints");
    let endpoints = items(s, "endpoints");
    if endpoints.len() > 1000 {
        errs.push(too_many(ep.to_string(), endpoints.len(), 1000));
        return errs;
    }
    for (i, e) in endpoints.iter().enumerate() {
        let p = ep.index(i);
        let ap = p.child("addresses");
        let addresses = items(e, "addresses");
        if addresses.is_empty() {
            errs.push(FieldError::required(ap, "must contain at least 1 address"));
        } else if addresses.len() > 100 {
            errs.push(too_many(ap.to_string(), addresses.len(), 100));
        }
        for (j, a) in addresses.iter().enumerate() {
            let a = a.as_str().unwrap_or("");
            let ip = ap.index(j);
            match kind {
                "IPv4" => {
                    check::endpoint_ip(a, &ip, &mut errs);
                    if a.contains(':') {
                        errs.push(FieldError::invalid(ip, a, "must be an IPv4 address"));
                    }
                }
                "IPv6" => {
                    check::endpoint_ip(a, &ip, &mut errs);
                    if !a.contains(':') {
                        errs.push(FieldError::invalid(ip, a, "must be an IPv6 address"));
                    }
                }
                "FQDN" => check::dns_subdomain(a, &ip, &mut errs),
                _ => {}
            }
        }
        let node = text(e, "nodeName");
        if !node.is_empty() {
            check::dns_subdomain(node, &p.child("nodeName"), &mut errs);
        }
        if has(e, "hostname") {
            check::dns_label(text(e, "hostname"), &p.child("hostname"), &mut errs);
        }
    }
    let pp = Path::new("ports");
    let ports = items(s, "ports");
    if ports.len() > 20_000 {
        errs.push(too_many(pp.to_string(), ports.len(), 20_000));
        return errs;
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let p = pp.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            check::dns_label(name, &p.child("name"), &mut errs);
        }
        if names.contains(&name) {
            errs.push(FieldError::duplicate(p.child("name"), name));
        }
        names.push(name);
        if let Some(n) = int(port, "port") {
            check::port_number(n, &p.child("port"), &mut errs);
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &p, &mut errs);
    }
    errs
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if text(new, "addressType") == text(old, "addressType") {
        return Vec::new();
    }
    vec![FieldError::invalid(
        "addressType",
        text(new, "addressType"),
        "field is immutable",
    )]
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        validate_update,
        generation: true,
        ..Strategy::default()
    }
}

fn shortened(mut all: Vec<String>) -> Value {
    if all.is_empty() {
        return "<unset>".into();
    }
    let n = all.len();
    all.truncate(3);
    let head = all.join(",");
    if n > 3 {
        format!("{head} + {} more...", n - 3).into()
    } else {
        head.into()
    }
}

/// The columns of `kubectl get endpointslices`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("AddressType", 0, |s, _| text(s, "addressType").into()),
        col("Ports", 0, |s, _| {
            let mut all: Vec<String> = Vec::new();
            for p in items(s, "ports") {
                let shown = match (text(p, "name"), int(p, "port")) {
                    (_, Some(n)) => n.to_string(),
                    ("", None) => "*".to_string(),
                    (name, None) => name.to_string(),
                };
                if !all.contains(&shown) {
                    all.push(shown);
                }
            }
            shortened(all)
        }),
        col("Endpoints", 0, |s, _| {
            shortened(
                items(s, "endpoints")
                    .iter()
                    .flat_map(|e| items(e, "addresses"))
                    .filter_map(|a| a.as_str().map(str::to_string))
                    .collect(),
            )
        }),
        col_age(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn slices_are_checked_and_shown() {
        let mut s = json!({"metadata": {"name": "s", "creationTimestamp": "2023-11-14T22:13:10Z"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.42.0.7"]}], "ports": [{"port": 80}]});
        default(&mut s);
        assert!(validate(&s).is_empty(), "{:?}", validate(&s));
        assert_eq!(
            crate::kinds::tests::cells(&columns(), &s, 1_700_000_000),
            ["s", "IPv4", "80", "10.42.0.7", "10s"]
        );
        s["endpoints"][0]["addresses"] = json!([]);
        assert_eq!(
            validate(&s)[0].to_string(),
            "endpoints[0].addresses: Required value: must contain at least 1 address"
        );
    }
}
