//! Values of fieldRef and resourceFieldRef, for environment and downwardAPI files (upstream pkg/fieldpath and
//! pkg/api/v1/resource). Pure.

use crate::pod::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Addresses that fields of the status refer to, as the kubelet knows them (the API may lag).
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// status.podIPs
    pub pod: Vec<String>,
    /// status.hostIPs
    pub host: Vec<String>,
}

/// The value at a field path.
///
/// # Errors
/// A path that is not supported.
pub fn field(pod: &Pod, path: &str, addresses: &Addresses) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = spec::spec(pod);
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("fieldPath \"{path}\" does not support subscript")),
        };
        return Ok(map
            .as_ref()
            .and_then(|m| m.get(key))
            .cloned()
            .unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => addresses.host.first().cloned().unwrap_or_default(),
        "status.hostIPs" => addresses.host.join(","),
        "status.podIP" => addresses.pod.first().cloned().unwrap_or_default(),
        "status.podIPs" => addresses.pod.join(","),
        other => return Err(format!("unsupported fieldPath: {other}")),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let open = path.find("['")?;
    let key = path[open + 2..].strip_suffix("']")?;
    Some((&path[..open], key))
}

/// `key="value"` lines, sorted, values quoted as Go quotes them.
pub fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    map.map(|m| {
        m.iter()
            .map(|(k, v)| format!("{k}={}", go_quote(v)))
            .collect::<Vec<_>>()
            .join("\n")
    })
    .unwrap_or_default()
}

fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32))
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a resourceFieldRef. `of` is the container that has it (containerName already resolved); limits that
/// are not set count as what the node can allocate.
///
/// # Errors
/// A resource that is not supported, or a divisor of zero.
pub fn resource_field(
    selector: &ResourceFieldSelector,
    of: &Container,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, String> {
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let resources = of.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    let is_known =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !is_known || !matches!(kind, "limits" | "requests") {
        return Err(format!(
            "unsupported container resource : {}",
            selector.resource
        ));
    }
    let list = if kind == "limits" { limits } else { requests };
    let set = list
        .and_then(|l| l.get(name))
        .filter(|q| quantity::milli(q).is_some_and(|m| m != 0));
    let value = match (kind, set) {
        ("limits", None) if !name.starts_with("hugepages-") => allocatable.get(name),
        (_, set) => set,
    };
    let divisor = selector
        .divisor
        .as_ref()
        .filter(|d| !matches!(d.0.as_str(), "" | "0"));
    let up = |v: i64, d: i64| -> Result<i64, String> {
        if d <= 0 {
            return Err(format!("divisor of {} must be positive", selector.resource));
        }
        Ok(v.div_euclid(d) + i64::from(v.rem_euclid(d) != 0))
    };
    let amount = if name == "cpu" {
        up(
            value.and_then(quantity::milli).unwrap_or(0),
            divisor.map_or(Some(1000), quantity::milli).unwrap_or(0),
        )?
    } else {
        up(
            value.and_then(quantity::value).unwrap_or(0),
            divisor.map_or(Some(1), quantity::value).unwrap_or(0),
        )?
    };
    Ok(amount.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"b": "2", "a": "say \"hi\""},
                "annotations": {"x/y": "line\nline"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}}]}
        }))
        .unwrap()
    }

    #[test]
    fn fields_of_a_pod_by_path() {
        let pod = pod();
        let a = Addresses {
            pod: vec!["10.42.0.9".into(), "fd00::9".into()],
            host: vec!["192.168.1.1".into()],
        };
        for (path, want) in [
            ("metadata.name", "p"),
            ("metadata.labels", "a=\"say \\\"hi\\\"\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['x/y']", "line\nline"),
            ("metadata.labels['none']", ""),
            ("spec.nodeName", "n1"),
            ("status.podIP", "10.42.0.9"),
            ("status.podIPs", "10.42.0.9,fd00::9"),
            ("status.hostIP", "192.168.1.1"),
        ] {
            assert_eq!(field(&pod, path, &a).as_deref(), Ok(want), "{path}");
        }
        assert!(field(&pod, "spec.containers", &a).is_err());
    }

    #[test]
    fn resources_are_rounded_up_and_default_to_the_node() {
        let pod = pod();
        let node = BTreeMap::from([
            ("cpu".to_string(), Quantity("4".into())),
            ("memory".to_string(), Quantity("8Gi".into())),
        ]);
        let get = |resource: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                resource: resource.into(),
                divisor: divisor.map(|d| Quantity(d.into())),
                container_name: None,
            };
            resource_field(&selector, &spec::containers(&pod)[0], &node)
        };
        assert_eq!(get("limits.cpu", None).as_deref(), Ok("2"));
        assert_eq!(get("limits.cpu", Some("1m")).as_deref(), Ok("1500"));
        assert_eq!(get("requests.memory", Some("1Mi")).as_deref(), Ok("100"));
        assert_eq!(get("limits.memory", Some("1Gi")).as_deref(), Ok("8"));
        assert_eq!(get("requests.cpu", None).as_deref(), Ok("0"));
        assert!(get("limits.gpu", None).is_err());
    }
}
