//! Which sysctls pods may set (upstream pkg/kubelet/sysctl): those that are namespaced and cannot hurt another pod, and
//! what the operator allows besides. Pure; the runtime checks once more that a sysctl is the pod's own.

use crate::pod::spec;
use k8s_openapi::api::core::v1::Pod;

/// Whose a namespaced sysctl is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

impl Namespace {
    fn name(self) -> &'static str {
        match self {
            Namespace::Ipc => "ipc",
            Namespace::Net => "net",
        }
    }
}

/// Safe ones, with the kernel since which each is namespaced.
const SAFE: &[(&str, (u32, u32))] = &[
    ("kernel.shm_rmid_forced", (0, 0)),
    ("net.ipv4.ip_local_port_range", (0, 0)),
    ("net.ipv4.tcp_syncookies", (0, 0)),
    ("net.ipv4.ping_group_range", (0, 0)),
    ("net.ipv4.ip_unprivileged_port_start", (0, 0)),
    ("net.ipv4.ip_local_reserved_ports", (3, 16)),
    ("net.ipv4.tcp_keepalive_time", (4, 5)),
    ("net.ipv4.tcp_keepalive_intvl", (4, 5)),
    ("net.ipv4.tcp_keepalive_probes", (4, 5)),
    ("net.ipv4.tcp_fin_timeout", (4, 6)),
    ("net.ipv4.tcp_rmem", (4, 15)),
    ("net.ipv4.tcp_wmem", (4, 15)),
];

/// What pods may set on this node.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Name or prefix, whether it is a prefix, whose it is.
    rules: Vec<(String, bool, Namespace)>,
}

impl Allowed {
    /// The safe ones of this kernel (`6.1.0-9-amd64`) and the operator's (names, or prefixes that end with `*`).
    ///
    /// # Errors
    /// A pattern that is none, or of a sysctl that is not known to be namespaced.
    pub fn new(kernel: &str, unsafe_ones: &[String]) -> Result<Self, String> {
        let version = version(kernel);
        let mut rules: Vec<_> = SAFE
            .iter()
            .filter(|(_, since)| version >= *since)
            .filter_map(|(name, _)| Some(((*name).to_string(), false, namespace(name)?)))
            .collect();
        for pattern in unsafe_ones {
            let dotted = dots(pattern);
            let (text, prefix) = match dotted.strip_suffix('*') {
                Some(p) => (p.to_string(), true),
                None => (dotted.clone(), false),
            };
            let shaped = !text.is_empty()
                && text.len() <= 253
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
            if !shaped {
                return Err(format!(
                    "allowed unsafe sysctl {pattern:?} is neither a name nor a prefix with *"
                ));
            }
            let ns = namespace(&text)
                .ok_or_else(|| format!("the sysctls {pattern:?} are not known to be namespaced"))?;
            rules.push((text, prefix, ns));
        }
        Ok(Self { rules })
    }

    /// Reason and message of a refusal; None when the pod may set what it wants to.
    pub fn refuses(&self, pod: &Pod) -> Option<(String, String)> {
        let s = spec::spec(pod);
        let wanted = s.security_context.as_ref()?.sysctls.as_ref()?;
        let why = wanted.iter().find_map(|w| {
            let name = dots(&w.name);
            let rule = self.rules.iter().find(|(text, prefix, _)| {
                if *prefix {
                    name.starts_with(text)
                } else {
                    name == *text
                }
            });
            let shared = |ns: &Namespace| match ns {
                Namespace::Ipc => s.host_ipc == Some(true),
                Namespace::Net => s.host_network == Some(true),
            };
            match rule {
                None => Some(format!("{name:?} not allowlisted")),
                Some((_, _, ns)) if shared(ns) => Some(format!(
                    "{name:?} not allowed with host {} enabled",
                    ns.name()
                )),
                Some(_) => None,
            }
        })?;
        Some(("SysctlForbidden".into(), format!("forbidden sysctl: {why}")))
    }
}

/// Whose it is; None for the machine's own, which nobody may set for a pod.
fn namespace(name: &str) -> Option<Namespace> {
    let ipc = name == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|p| name.starts_with(p));
    match (ipc, name.starts_with("net.")) {
        (true, _) => Some(Namespace::Ipc),
        (_, true) => Some(Namespace::Net),
        _ => None,
    }
}

/// The name with dots between its parts: where slashes part it, dots belong to a part (an interface `eth0.1`).
pub fn dots(name: &str) -> String {
    match name.find(['.', '/']).map(|i| name.as_bytes()[i]) {
        Some(b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_string(),
    }
}

fn version(kernel: &str) -> (u32, u32) {
    let mut numbers = kernel
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(allowed: &Allowed, name: &str, more: serde_json::Value) -> Option<String> {
        let mut spec = serde_json::json!({"containers": [],
            "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        for (k, v) in more.as_object().unwrap() {
            spec[k] = v.clone();
        }
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
        allowed.refuses(&pod).map(|(reason, message)| {
            assert_eq!(reason, "SysctlForbidden");
            message
        })
    }

    #[test]
    fn only_safe_sysctls_may_be_set_and_the_others_are_named() {
        let none = serde_json::json!({});
        let a = Allowed::new("6.1.0-9-amd64", &[]).unwrap();
        for (name, _) in SAFE {
            assert_eq!(refusal(&a, name, none.clone()), None);
        }
        assert_eq!(refusal(&a, "net/ipv4/tcp_syncookies", none.clone()), None);
        for name in [
            "kernel.msgmax",
            "net.core.somaxconn",
            "vm.swappiness",
            "kernel.core_pattern",
            "kernel/core_pattern",
            "kernel.shm_rmid_forced2",
            "net.ipv4.ip_forward",
        ] {
            let want = format!("forbidden sysctl: {:?} not allowlisted", dots(name));
            assert_eq!(refusal(&a, name, none.clone()), Some(want));
        }
    }

    #[test]
    fn a_sysctl_of_a_namespace_that_is_the_nodes_is_refused() {
        let a = Allowed::new(
            "6.1.0",
            &["kernel.msg*".into(), "net.core.somaxconn".into()],
        )
        .unwrap();
        let net = serde_json::json!({"hostNetwork": true});
        let ipc = serde_json::json!({"hostIPC": true});
        for (name, shared, other) in [
            ("net.ipv4.tcp_syncookies", &net, &ipc),
            ("net.core.somaxconn", &net, &ipc),
            ("kernel.shm_rmid_forced", &ipc, &net),
            ("kernel.msgmax", &ipc, &net),
        ] {
            assert_eq!(refusal(&a, name, other.clone()), None, "{name}");
            let why = refusal(&a, name, shared.clone()).unwrap();
            assert!(why.ends_with(" enabled"), "{why}");
        }
        assert!(refusal(&a, "kernel.sem", serde_json::json!({})).is_some());
    }

    #[test]
    fn old_kernels_have_fewer_safe_ones_and_node_level_patterns_are_refused_at_start() {
        let a = Allowed::new("4.4.0", &[]).unwrap();
        let none = serde_json::json!({});
        assert!(refusal(&a, "net.ipv4.tcp_keepalive_time", none.clone()).is_some());
        assert_eq!(refusal(&a, "net.ipv4.ip_local_reserved_ports", none), None);
        for bad in [
            "vm.*",
            "*",
            "kernel.*",
            "kernel.core_pattern",
            "",
            "net.\n*",
        ] {
            assert!(Allowed::new("6.1", &[bad.into()]).is_err(), "{bad}");
        }
    }
}
