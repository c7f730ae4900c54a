//! Endpoints (SetDefaults_Endpoints, ValidateEndpoints, printEndpoints).

use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// SetDefaults_Endpoints.
pub fn default(ep: &mut Value) {
    for subset in items_mut(ep, "subsets") {
        for port in items_mut(subset, "ports") {
            zero(port, "protocol", "TCP");
        }
    }
}

fn validate(ep: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let sp = Path::new("subsets");
    for (i, subset) in items(ep, "subsets").iter().enumerate() {
        let p = sp.index(i);
        if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
            errs.push(FieldError::required(
                p,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for key in ["addresses", "notReadyAddresses"] {
            let ap = p.child(key);
            for (j, a) in items(subset, key).iter().enumerate() {
                let ip = ap.index(j);
                check::endpoint_ip(text(a, "ip"), &ip.child("ip"), &mut errs);
                let host = text(a, "hostname");
                if !host.is_empty() {
                    check::dns_label(host, &ip.child("hostname"), &mut errs);
                }
                let node = text(a, "nodeName");
                if !node.is_empty() {
                    check::dns_subdomain(node, &ip.child("nodeName"), &mut errs);
                }
            }
        }
        let pp = p.child("ports");
        let ports = items(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            let ip = pp.index(j);
            let name = text(port, "name");
            if name.is_empty() {
                if ports.len() > 1 {
                    errs.push(FieldError::required(ip.child("name"), ""));
                }
            } else {
                check::dns_label(name, &ip.child("name"), &mut errs);
            }
            check::port_number(int0(port, "port"), &ip.child("port"), &mut errs);
            if text(port, "protocol").is_empty() {
                errs.push(FieldError::required(ip.child("protocol"), ""));
            }
            one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &ip, &mut errs);
        }
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        warnings: |e| {
            // The controller's own are not worth a warning.
            if at(e, "metadata.labels")
                .get("endpoints.kubernetes.io/managed-by")
                .is_some()
            {
                return Vec::new();
            }
            vec![
                "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
                    .into(),
            ]
        },
        allow_create_on_update: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get endpoints`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Endpoints", 0, |e, _| shown(e).into()),
        col_age(),
    ]
}

/// `10.42.0.7:80,10.42.0.8:80 + 2 more...`
fn shown(ep: &Value) -> String {
    const MAX: usize = 3;
    let subsets = items(ep, "subsets");
    if subsets.is_empty() {
        return "<none>".into();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let ips = items(subset, "addresses").iter().map(|a| text(a, "ip"));
        let ports = items(subset, "ports");
        if ports.is_empty() {
            all.extend(ips.map(str::to_string));
            continue;
        }
        for port in ports {
            for ip in ips.clone() {
                all.push(if ip.contains(':') {
                    format!("[{ip}]:{}", int0(port, "port"))
                } else {
                    format!("{ip}:{}", int0(port, "port"))
                });
            }
        }
    }
    let head = all.iter().take(MAX).cloned().collect::<Vec<_>>().join(",");
    if all.len() > MAX {
        format!("{head} + {} more...", all.len() - MAX)
    } else {
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn at_most_three_endpoints_are_shown() {
        let address = |n: u8| json!({"ip": format!("10.0.0.{n}")});
        let ep = json!({"subsets": [{
            "addresses": [address(1), address(2), address(3), address(4)], "ports": [{"port": 80}],
        }]});
        assert_eq!(
            shown(&ep),
            "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more..."
        );
        assert_eq!(shown(&json!({})), "<none>");
    }
}
