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
                    &["Egress", "Ingress"],
                ));
            }
        }
    }
    errs
}

fn port_rule(port: &Value, p: &Path<'_>, errs: &mut Errors) {
    one_of(port, "protocol", &["SCTP", "TCP", "UDP"], p, errs);
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
        let bp = p.child("ipBlock");
        let cidr = text(block, "cidr");
        if cidr.is_empty() {
            errs.push(FieldError::required(bp.child("cidr"), ""));
        } else {
            check::cidr(cidr, &bp.child("cidr"), errs);
        }
        let ep = bp.child("except");
        for (i, e) in items(block, "except").iter().enumerate() {
            check::cidr(e.as_str().unwrap_or(""), &ep.index(i), errs);
        }
        if count > 0 {
            errs.push(FieldError::forbidden(
                p,
                "may not specify both ipBlock and another peer",
            ));
        }
        count += 1;
    }
    if count == 0 {
        errs.push(FieldError::required(p, "must specify a peer"));
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
}
