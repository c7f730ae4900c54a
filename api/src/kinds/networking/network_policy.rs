//! Network policies (SetDefaults_NetworkPolicy, ValidateNetworkPolicy, printNetworkPolicy).

use crate::field::FieldError;
use crate::kinds::apps::workload;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// SetDefaults_NetworkPolicy and SetDefaults_NetworkPolicyPort.
pub fn default(np: &mut Value) {
    let Some(spec) = object(np, "spec") else {
        return;
    };
    if items(spec, "policyTypes").is_empty() {
        let mut types: Vec<Value> = vec!["Ingress".into()];
        if !items(spec, "egress").is_empty() {
            types.push("Egress".into());
        }
        put(spec, "policyTypes", types);
    }
    for direction in ["ingress", "egress"] {
        for rule in items_mut(spec, direction) {
            for port in items_mut(rule, "ports") {
                unset(port, "protocol", "TCP");
            }
        }
    }
}

fn validate(np: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let spec = at(np, "spec");
    let path = Path::new("spec");
    check::label_selector(
        at(spec, "podSelector"),
        &path.child("podSelector"),
        &mut errs,
    );
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let dp = path.child(direction);
        for (i, rule) in items(spec, direction).iter().enumerate() {
            let p = dp.index(i);
            let ports = p.child("ports");
            for (j, port) in items(rule, "ports").iter().enumerate() {
                port_rule(port, &ports.index(j), &mut errs);
            }
            let pp = p.child(peers);
            for (j, peer) in items(rule, peers).iter().enumerate() {
                peer_rule(peer, &pp.index(j), &mut errs);
            }
        }
    }
    let tp = path.child("policyTypes");
    let types = items(spec, "policyTypes");
    if types.len() > 2 {
        errs.push(FieldError::invalid(
            tp,
            types.to_vec(),
            "may not specify more than two policyTypes",
        ));
    } else {
        for (i, t) in types.iter().enumerate() {
            let t = t.as_str().unwrap_or("");
            if !matches!(t, "Ingress" | "Egress") {
                errs.push(FieldError::not_supported(
                    tp.index(i),
                    t,
                    &["Ingress", "Egress"],
                ));
            }
        }
    }
    errs
}

fn port_rule(port: &Value, p: &Path<'_>, errs: &mut Errors) {
    one_of(port, "protocol", &["TCP", "UDP", "SCTP"], p, errs);
    let number = at(port, "port");
    if !number.is_null() {
        check::port_int_or_name(number, &p.child("port"), errs);
    }
    if let Some(end) = int(port, "endPort") {
        match number {
            Value::Number(n) => {
                if end < n.as_i64().unwrap_or(0) {
                    errs.push(FieldError::invalid(
                        p.child("endPort"),
                        end,
                        "must be greater than or equal to `port`",
                    ));
                }
                check::port_number(end, &p.child("endPort"), errs);
            }
            Value::Null => errs.push(FieldError::invalid(
                p.child("endPort"),
                end,
                "may not be specified when `port` is not specified",
            )),
            _ => errs.push(FieldError::invalid(
                p.child("endPort"),
                end,
                "may not be specified when `port` is non-numeric",
            )),
        }
    }
}

fn peer_rule(peer: &Value, p: &Path<'_>, errs: &mut Errors) {
    let mut count = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if has(peer, key) {
            count += 1;
            check::label_selector(at(peer, key), &p.child(key), errs);
        }
    }
    let block = at(peer, "ipBlock");
    if !block.is_null() {
        ip_block(block, &p.child("ipBlock"), errs);
    }
    match (count, block.is_null()) {
        (0, true) => errs.push(FieldError::required(p, "must specify a peer")),
        (1.., false) => {
            errs.push(FieldError::forbidden(
                p,
                "may not specify both ipBlock and another peer",
            ));
        }
        _ => {}
    }
}

fn ip_block(block: &Value, bp: &Path<'_>, errs: &mut Errors) {
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        errs.push(FieldError::required(bp.child("cidr"), ""));
        return;
    }
    check::cidr(cidr, &bp.child("cidr"), errs);
    let Some((net, len)) = crate::names::parse_cidr(cidr) else {
        return;
    };
    let ep = bp.child("except");
    for (i, e) in items(block, "except").iter().enumerate() {
        let e = e.as_str().unwrap_or("");
        check::cidr(e, &ep.index(i), errs);
        let Some((inner, inner_len)) = crate::names::parse_cidr(e) else {
            continue;
        };
        if inner_len <= len || !within(net, len, inner) {
            errs.push(FieldError::invalid(
                ep.index(i),
                e,
                "must be a strict subset of `cidr`",
            ));
        }
    }
}

/// Is the address in the block?
fn within(net: std::net::IpAddr, len: u8, ip: std::net::IpAddr) -> bool {
    use std::net::IpAddr::{V4, V6};
    let len = u32::from(len);
    match (net, ip) {
        (V4(a), V4(b)) => {
            (u32::from(a) ^ u32::from(b))
                .checked_shr(32 - len)
                .unwrap_or(0)
                == 0
        }
        (V6(a), V6(b)) => {
            (u128::from(a) ^ u128::from(b))
                .checked_shr(128 - len)
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        generation: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get networkpolicies`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Pod-Selector", 0, |n, _| {
            workload::selector_text(at(n, "spec.podSelector")).into()
        }),
        col_age(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policy_types_follow_the_rules_given() {
        let mut np = json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}});
        default(&mut np);
        assert_eq!(np["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(np["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        assert!(validate(&np).is_empty());
    }

    #[test]
    fn exceptions_lie_within_their_block() {
        let np = |cidr: &str, except: &str| json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr, "except": [except]}}]}]}});
        assert!(validate(&np("10.0.0.0/8", "10.1.0.0/16")).is_empty());
        assert!(validate(&np("0.0.0.0/0", "10.1.0.0/16")).is_empty());
        for except in ["11.0.0.0/16", "10.0.0.0/8", "fd00::/64"] {
            assert_eq!(
                validate(&np("10.0.0.0/8", except))[0].body(),
                format!("Invalid value: \"{except}\": must be a strict subset of `cidr`")
            );
        }
    }
}
