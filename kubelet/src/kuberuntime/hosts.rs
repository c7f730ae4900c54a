//! Hostname and /etc/hosts of pods (upstream kubelet_pods.go). Pure.

use crate::pod::spec;
use k8s_openapi::api::core::v1::Pod;

/// Hostname and domain (`subdomain.namespace.svc.cluster-domain`, or empty).
///
/// # Errors
/// A fully qualified name that is wanted as hostname but does not fit 64 characters.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> Result<(String, String), String> {
    let s = spec::spec(pod);
    if let Some(name) = s.hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return Ok((name.to_string(), String::new()));
    }
    let own = s.hostname.as_deref().filter(|h| !h.is_empty());
    let mut name = own.unwrap_or(spec::name(pod)).to_string();
    if name.len() > 63 {
        name.truncate(63);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let domain = match s.subdomain.as_deref().filter(|d| !d.is_empty()) {
        Some(sub) => format!("{sub}.{}.svc.{cluster_domain}", spec::namespace(pod)),
        None => String::new(),
    };
    if s.set_hostname_as_fqdn.unwrap_or(false) && !domain.is_empty() {
        let fqdn = format!("{name}.{domain}");
        if fqdn.len() > 64 {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long (64 characters is the max, {} characters requested)",
                fqdn.len()
            ));
        }
        return Ok((fqdn, domain));
    }
    Ok((name, domain))
}

/// The file's text. `node_hosts` is the node's own file, used by pods on the node's network.
pub fn hosts_file(
    pod: &Pod,
    ips: &[String],
    cluster_domain: &str,
    node_hosts: Option<&str>,
) -> String {
    let mut out = String::new();
    match node_hosts {
        Some(text) => {
            out.push_str("# Kubernetes-managed hosts file (host network).\n");
            out.push_str(text);
            if !text.ends_with('\n') {
                out.push('\n');
            }
        }
        None => {
            out.push_str(
                "# Kubernetes-managed hosts file.\n\
                 127.0.0.1\tlocalhost\n\
                 ::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\n\
                 fe00::0\tip6-mcastprefix\n\
                 fe00::1\tip6-allnodes\n\
                 fe00::2\tip6-allrouters\n",
            );
            let (name, domain) = hostname(pod, cluster_domain).unwrap_or_default();
            for ip in ips {
                if domain.is_empty() {
                    out.push_str(&format!("{ip}\t{name}\n"));
                } else if name.ends_with(&domain) {
                    let short = name.split('.').next().unwrap_or_default();
                    out.push_str(&format!("{ip}\t{name}\t{short}\n"));
                } else {
                    out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n"));
                }
            }
        }
    }
    let aliases = spec::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for a in aliases {
            out.push_str(&format!(
                "{}\t{}\n",
                a.ip,
                a.hostnames.as_deref().unwrap_or_default().join("\t")
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn hostname_and_domain_follow_the_spec() {
        let d = "cluster.local";
        let get = |s| hostname(&pod(s), d);
        assert_eq!(
            get(serde_json::json!({"containers": []})),
            Ok(("web-0".into(), String::new()))
        );
        assert_eq!(
            get(serde_json::json!({"containers": [], "hostname": "h", "subdomain": "s"})),
            Ok(("h".into(), "s.ns.svc.cluster.local".into()))
        );
        assert_eq!(
            get(serde_json::json!({"containers": [], "subdomain": "s", "setHostnameAsFQDN": true}))
                .unwrap()
                .0,
            "web-0.s.ns.svc.cluster.local"
        );
        let mut long = pod(serde_json::json!({"containers": []}));
        long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(30)));
        assert_eq!(hostname(&long, d).unwrap().0, "a".repeat(62));
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let p = pod(serde_json::json!({"containers": [], "subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(&p, &["10.42.0.5".into()], "cluster.local", None);
        assert!(text.ends_with(
            "10.42.0.5\tweb-0.s.ns.svc.cluster.local\tweb-0\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
        ));
        let text = hosts_file(&p, &[], "cluster.local", Some("127.0.0.1 me"));
        assert!(
            text.starts_with("# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n")
        );
    }
}
