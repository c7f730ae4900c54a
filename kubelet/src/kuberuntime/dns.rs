//! DNS settings of pods (upstream pkg/kubelet/network/dns). Pure: the node's resolv.conf comes in as text.

use crate::pod::spec;
use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;

/// Upstream MaxDNSNameservers.
const MAX_NAMESERVERS: usize = 3;
/// Upstream MaxDNSSearchPaths.
const MAX_SEARCHES: usize = 32;

/// The settings, and what had to be left out (for an event).
pub fn dns_config(
    pod: &Pod,
    cluster_dns: &[IpAddr],
    cluster_domain: &str,
    node_resolv_conf: &str,
) -> (DnsConfig, Option<String>) {
    let s = spec::spec(pod);
    let policy = s.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let node = parse_resolv_conf(node_resolv_conf);
    let cluster = match policy {
        "ClusterFirst" => !spec::host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut warning = None;
    let mut config = match policy {
        "None" => DnsConfig::default(),
        _ if cluster && cluster_dns.is_empty() => {
            warning = Some(format!(
                "pod: \"{}_{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. Falling back to \"Default\" policy.",
                spec::name(pod),
                spec::namespace(pod)
            ));
            node
        }
        _ if cluster => DnsConfig {
            servers: cluster_dns.iter().map(ToString::to_string).collect(),
            searches: {
                let ns = spec::namespace(pod);
                let mut searches = vec![
                    format!("{ns}.svc.{cluster_domain}"),
                    format!("svc.{cluster_domain}"),
                    cluster_domain.to_string(),
                ];
                add_new(&mut searches, node.searches);
                searches
            },
            options: vec!["ndots:5".into()],
        },
        _ => node,
    };
    if let Some(own) = &s.dns_config {
        add_new(
            &mut config.servers,
            own.nameservers.clone().unwrap_or_default(),
        );
        add_new(
            &mut config.searches,
            own.searches.clone().unwrap_or_default(),
        );
        for o in own.options.iter().flatten() {
            let Some(name) = &o.name else { continue };
            config
                .options
                .retain(|have| have.split(':').next() != Some(name));
            config.options.push(match &o.value {
                Some(v) => format!("{name}:{v}"),
                None => name.clone(),
            });
        }
    }
    if config.servers.len() > MAX_NAMESERVERS {
        config.servers.truncate(MAX_NAMESERVERS);
        warning = Some(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            config.servers.join(" ")
        ));
    }
    if config.searches.len() > MAX_SEARCHES {
        config.searches.truncate(MAX_SEARCHES);
        warning = Some(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            config.searches.join(" ")
        ));
    }
    (config, warning)
}

fn add_new(list: &mut Vec<String>, more: Vec<String>) {
    for m in more {
        if !list.contains(&m) {
            list.push(m);
        }
    }
}

/// nameserver, search (the last line counts) and options.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config
                .servers
                .extend(words.next().map(|w| w.trim_end_matches('.').to_string())),
            Some("search") => {
                config.searches = words
                    .map(|w| {
                        if w == "." {
                            w.to_string()
                        } else {
                            w.trim_end_matches('.').to_string()
                        }
                    })
                    .collect();
            }
            Some("options") => config.options = words.map(Into::into).collect(),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value) -> String {
        let pod: Pod = serde_json::from_value(
            serde_json::json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}),
        )
        .unwrap();
        let (c, _) = dns_config(
            &pod,
            &[IpAddr::from([10, 43, 0, 10])],
            "cluster.local",
            "# node\nnameserver 1.1.1.1\nsearch lan.\noptions edns0\n",
        );
        format!(
            "{} | {} | {}",
            c.servers.join(" "),
            c.searches.join(" "),
            c.options.join(" ")
        )
    }

    #[test]
    fn policies_and_own_settings_are_merged() {
        let cluster =
            "10.43.0.10 | ns.svc.cluster.local svc.cluster.local cluster.local lan | ndots:5";
        for (spec, want) in [
            (serde_json::json!({"containers": []}), cluster),
            (
                serde_json::json!({"containers": [], "hostNetwork": true}),
                "1.1.1.1 | lan | edns0",
            ),
            (
                serde_json::json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                cluster,
            ),
            (
                serde_json::json!({"containers": [], "dnsPolicy": "Default"}),
                "1.1.1.1 | lan | edns0",
            ),
            (
                serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                    "nameservers": ["8.8.8.8"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "8.8.8.8 | x | ndots:2 edns0",
            ),
            (
                serde_json::json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
                "10.43.0.10 | ns.svc.cluster.local svc.cluster.local cluster.local lan | ndots:1",
            ),
        ] {
            assert_eq!(check(spec.clone()), want, "{spec}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_resolv_conf_is_read(text in "(.|\\n){0,200}") {
            let _ = parse_resolv_conf(&text);
        }
    }
}
