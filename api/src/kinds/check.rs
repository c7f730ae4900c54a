//! The rules of names, quantities, selectors and addresses as validation uses them: each appends what is wrong to a list
//! under a path. The rules themselves are in `crate::names`, `crate::quantity` and `crate::selector`.

use super::util::{Errors, Path, at, is_empty};
use crate::field::FieldError;
pub use crate::quantity::Quantity;
use crate::selector::Selector;
use crate::{meta, names, selector};
use serde_json::Value;

fn each(
    value: impl Into<Value> + Clone,
    messages: Vec<String>,
    path: &Path<'_>,
    errs: &mut Errors,
) {
    for m in messages {
        errs.push(FieldError::invalid(path, value.clone(), m));
    }
}

/// A DNS label (RFC 1123).
pub fn dns_label(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_dns1123_label(s), path, errs);
}

/// A DNS label that starts with a letter (RFC 1035).
pub fn dns1035_label(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_dns1035_label(s), path, errs);
}

/// A DNS subdomain (RFC 1123).
pub fn dns_subdomain(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_dns1123_subdomain(s), path, errs);
}

/// `*.` and a DNS subdomain.
pub fn wildcard_subdomain(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_wildcard_dns1123_subdomain(s), path, errs);
}

/// A label key, a resource name, a condition type.
pub fn qualified_name(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_qualified_name(s), path, errs);
}

/// A label's value.
pub fn label_value(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_valid_label_value(s), path, errs);
}

/// A name that is one segment of a URL path.
pub fn path_segment(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_valid_path_segment_name(s), path, errs);
}

/// A key of a configmap or a secret.
pub fn config_map_key(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_config_map_key(s), path, errs);
}

/// The name of an HTTP header.
pub fn http_header(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_http_header_name(s), path, errs);
}

/// A port number, 1 to 65535.
pub fn port_number(n: i64, path: &Path<'_>, errs: &mut Errors) {
    each(n, names::is_valid_port_num(n), path, errs);
}

/// A port's name.
pub fn port_name(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_valid_port_name(s), path, errs);
}

/// A port's number or name (ValidatePortNumOrName).
pub fn port_int_or_name(v: &Value, path: &Path<'_>, errs: &mut Errors) {
    match v {
        Value::Number(n) => port_number(n.as_i64().unwrap_or(0), path, errs),
        Value::String(s) => port_name(s, path, errs),
        _ => port_number(0, path, errs),
    }
}

/// An IP address.
pub fn ip(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_valid_ip(s), path, errs);
}

/// An address that traffic may be sent to (ValidateEndpointIP): none of the node's own.
pub fn endpoint_ip(s: &str, path: &Path<'_>, errs: &mut Errors) {
    let before = errs.len();
    ip(s, path, errs);
    if errs.len() > before {
        return;
    }
    let Ok(parsed) = s.parse::<std::net::IpAddr>() else {
        return;
    };
    let link_local_multicast = match parsed {
        std::net::IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        std::net::IpAddr::V6(a) => a.segments()[0] & 0xff0f == 0xff02,
    };
    let link_local = match parsed {
        std::net::IpAddr::V4(a) => a.is_link_local(),
        std::net::IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    };
    for (bad, why) in [
        (
            parsed.is_unspecified(),
            "may not be unspecified (0.0.0.0 or ::)",
        ),
        (
            parsed.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            link_local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ] {
        if bad {
            errs.push(FieldError::invalid(path, s, why));
        }
    }
}

/// A block of addresses in CIDR notation.
pub fn cidr(s: &str, path: &Path<'_>, errs: &mut Errors) {
    each(s, names::is_valid_cidr(s), path, errs);
}

/// A map of labels.
pub fn labels(v: &Value, path: &Path<'_>, errs: &mut Errors) {
    if !is_empty(v) {
        errs.extend(meta::validate_labels(v, &path.to_string()));
    }
}

/// A map of annotations.
pub fn annotations(v: &Value, path: &Path<'_>, errs: &mut Errors) {
    if !is_empty(v) {
        errs.extend(meta::validate_annotations(v, &path.to_string()));
    }
}

/// A `metav1.LabelSelector`; nothing when null.
pub fn label_selector(v: &Value, path: &Path<'_>, errs: &mut Errors) {
    if !v.is_null() {
        errs.extend(selector::validate_label_selector(v, &path.to_string()));
    }
}

/// Does the `metav1.LabelSelector` select these labels? False when it cannot be read.
pub fn selector_matches(v: &Value, labels: &Value) -> bool {
    Selector::from_value(v).is_ok_and(|s| s.matches(labels))
}

/// A quantity; none when it cannot be read (decoding has refused those).
pub fn quantity(v: &Value) -> Option<Quantity> {
    Quantity::from_value(v).ok()
}

/// A quantity that is there, can be read and is 0 or more.
pub fn non_negative_quantity(v: &Value, path: &Path<'_>, errs: &mut Errors) {
    match Quantity::from_value(v) {
        Ok(q) if q.sign() < 0 => {
            errs.push(FieldError::invalid(
                path,
                v.clone(),
                "must be greater than or equal to 0",
            ));
        }
        Ok(_) => {}
        Err(e) => errs.push(FieldError::invalid(path, v.clone(), e.to_string())),
    }
}

/// The sum of two quantities.
pub fn add(a: &Quantity, b: &Quantity) -> Quantity {
    let mut sum = *a;
    sum.add(b);
    sum
}

/// Seconds since the epoch of an RFC 3339 time; none when it is empty or none.
pub fn time(s: &str) -> Option<i64> {
    crate::time::parse_rfc3339(s)
}

pub use crate::time::human_duration;

/// The text of the name rule's path: `metadata.name`.
pub fn annotation<'a>(o: &'a Value, key: &str) -> Option<&'a str> {
    at(o, "metadata.annotations")
        .get(key)
        .and_then(Value::as_str)
}
