//! Owns which kernel settings a pod may have: those of its own network and IPC namespaces, and no others, whoever asks.
//! Pure; `shim::setup` writes them. The kubelet's own list (safe, or allowed by flag) comes before this and is smaller.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The IPC namespace's settings by their exact names (ipc/ipc_sysctl.c); a prefix would let a later kernel's global
/// setting through.
const IPC: [&str; 8] = [
    "msgmax",
    "msgmnb",
    "msgmni",
    "sem",
    "shmall",
    "shmmax",
    "shmmni",
    "shm_rmid_forced",
];

/// The path of a setting below /proc/sys. Dots separate, or slashes do (an interface name may hold dots then), as in
/// sysctl(8): the first separator of the name says which.
fn relative(name: &str) -> Result<String, String> {
    let path = match (name.find('.'), name.find('/')) {
        (_, None) => name.replace('.', "/"),
        (Some(dot), Some(slash)) if dot < slash => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_string(),
    };
    let odd = |p: &str| p.is_empty() || p == "." || p == "..";
    if path.split('/').any(odd) || path.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(format!("{name:?} is not the name of a sysctl"));
    }
    Ok(path)
}

/// The path below /proc/sys of a setting that a pod with these namespaces may have.
///
/// # Errors
/// Not a name, not of a namespace, or of one that the pod shares with the node (runc's words).
pub fn path_of(name: &str, host_network: bool, host_ipc: bool) -> Result<PathBuf, String> {
    let path = relative(name)?;
    let parts: Vec<&str> = path.split('/').collect();
    let (shared, what) = match parts.as_slice() {
        ["net", _, ..] => (host_network, "network"),
        ["kernel", last] if IPC.contains(last) => (host_ipc, "ipc"),
        ["fs", "mqueue", _] => (host_ipc, "ipc"),
        _ => {
            return Err(format!(
                "sysctl {name:?} is not in a separate kernel namespace"
            ));
        }
    };
    if shared {
        return Err(format!(
            "sysctl {name:?} is not allowed in the host's {what} namespace"
        ));
    }
    Ok(Path::new("sys").join(path))
}

/// The settings of a pod: what it asks for over the defaults. Keys come out in one spelling (slashes), so that none is there twice.
///
/// # Errors
/// As `path_of`; and a setting that is given twice or without a value.
pub fn of_pod<'a>(
    asked: impl IntoIterator<Item = (&'a String, &'a String)>,
    host_network: bool,
    host_ipc: bool,
) -> Result<BTreeMap<String, String>, String> {
    let mut out = BTreeMap::new();
    for (name, value) in asked {
        path_of(name, host_network, host_ipc)?;
        if value.trim().is_empty() {
            return Err(format!("sysctl {name:?} has no value"));
        }
        if out.insert(relative(name)?, value.clone()).is_some() {
            return Err(format!("sysctl {name:?} is given twice"));
        }
    }
    let mut all = defaults(host_network);
    all.extend(out);
    Ok(all)
}

/// containerd's defaults for a network namespace of its own, which let any user bind low ports and send pings.
pub fn defaults(host_network: bool) -> BTreeMap<String, String> {
    let all = [
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
    ];
    let own = all.iter().filter(|_| !host_network);
    own.map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_sysctl_reads_them() {
        let at = |name| path_of(name, false, false).unwrap();
        assert_eq!(
            at("net.ipv4.ip_forward"),
            Path::new("sys/net/ipv4/ip_forward")
        );
        for name in [
            "net/ipv4/conf/eth0.1/forwarding",
            "net.ipv4.conf.eth0/1.forwarding",
        ] {
            assert_eq!(
                at(name),
                Path::new("sys/net/ipv4/conf/eth0.1/forwarding"),
                "{name}"
            );
        }
        assert_eq!(
            at("kernel/shm_rmid_forced"),
            Path::new("sys/kernel/shm_rmid_forced")
        );
        assert_eq!(at("fs.mqueue.msg_max"), Path::new("sys/fs/mqueue/msg_max"));
    }

    #[test]
    fn only_settings_of_the_pod_s_own_namespaces_are_let_through() {
        for name in [
            "",
            ".",
            "net",
            "net.",
            "/net/ipv4/ip_forward",
            "net..ipv4",
            "net/../kernel/core_pattern",
            "kernel/../net/ipv4/ip_forward",
            "net/./ipv4",
            "net/ipv4/../../kernel/core_pattern",
            "net.ipv4.ip_forward\n",
            "net\0",
            "kernel.core_pattern",
            "kernel/core_pattern",
            "kernel.shmmax.x",
            "kernel.shmmax2",
            "kernel.shm_next_id",
            "kernel.msg",
            "kernel.domainname",
            "kernel.hostname",
            "kernel.sem/x",
            "fs.mqueue",
            "fs.mqueue.a.b",
            "fs.file-max",
            "vm.max_map_count",
            "user.max_user_namespaces",
            "Net.ipv4.ip_forward",
            "netx.ipv4",
            "debug.exception-trace",
        ] {
            assert!(path_of(name, false, false).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_namespace_that_is_the_node_s_keeps_its_settings() {
        for (name, network, ipc) in [
            ("net.core.somaxconn", true, false),
            ("net/core/somaxconn", true, false),
            ("kernel.shmmax", false, true),
            ("kernel/sem", false, true),
            ("fs.mqueue.msg_max", false, true),
        ] {
            let e = path_of(name, network, ipc).unwrap_err();
            assert!(e.contains("is not allowed in the host's"), "{e}");
            assert!(path_of(name, !network, !ipc).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_pod_s_own_value_replaces_the_default_in_any_spelling_and_none_is_given_twice() {
        let asked = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect()
        };
        let port = asked(&[("net/ipv4/ip_unprivileged_port_start", "1024")]);
        let got = of_pod(&port, false, false).unwrap();
        assert_eq!(got["net/ipv4/ip_unprivileged_port_start"], "1024");
        assert_eq!(got.len(), 2);
        assert!(of_pod(&BTreeMap::new(), true, false).unwrap().is_empty());
        let twice = asked(&[("net.core.somaxconn", "1"), ("net/core/somaxconn", "2")]);
        assert!(of_pod(&twice, false, false).unwrap_err().contains("twice"));
        assert!(of_pod(&asked(&[("net.core.somaxconn", " ")]), false, false).is_err());
    }
}
