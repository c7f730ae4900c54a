//! Owns Linux capabilities: names, the default set, and the rules of CRI for add, drop and ambient. Pure except `apply`.

use super::spec::CapSets;
use crate::sys;
use std::io;

/// Names in kernel order: index n is capability n (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when nothing is said (the set of containerd and Docker).
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability this table knows.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// The bit of a capability named with or without `CAP_`, in any case.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == short).map(|i| 1 << i)
}

/// True if the mask holds the named capability; used by the seccomp profile's conditions.
pub fn has(mask: u64, name: &str) -> bool {
    bit(name).is_some_and(|b| mask & b != 0)
}

/// The sets of a container's first process by CRI's rules (message Capability): added ones go to every set except
/// ambient; ambient ones to all; dropped ones nowhere; `ALL` stands for every capability. Inheritable stays empty
/// unless ambient asks for it, as upstream's runtimes do since CVE-2022-24769.
pub fn sets(
    add: &[String],
    drop: &[String],
    ambient: &[String],
    privileged: bool,
) -> Result<CapSets, String> {
    if privileged {
        return Ok(CapSets {
            bounding: ALL,
            effective: ALL,
            permitted: ALL,
            inheritable: 0,
            ambient: 0,
        });
    }
    let parse = |names: &[String]| -> Result<(u64, bool), String> {
        let mut mask = 0;
        let mut all = false;
        for n in names {
            if n.eq_ignore_ascii_case("ALL") || n.eq_ignore_ascii_case("CAP_ALL") {
                all = true;
            } else {
                mask |= bit(n).ok_or_else(|| {
                    format!("unknown capability {n:?}: use a name of capabilities(7)")
                })?;
            }
        }
        Ok((mask, all))
    };
    let (add, add_all) = parse(add)?;
    let (drop, drop_all) = parse(drop)?;
    let (ambient, ambient_all) = parse(ambient)?;
    let ambient = if ambient_all { ALL } else { ambient };
    let mut mask = DEFAULT.iter().filter_map(|n| bit(n)).fold(0, |a, b| a | b);
    if add_all {
        mask = ALL;
    }
    if drop_all {
        mask = 0;
    }
    // As containerd: single names are applied after ALL, so `drop: [ALL], add: [X]` leaves X.
    mask |= add | ambient;
    mask &= !drop;
    let ambient = ambient & mask;
    Ok(CapSets {
        bounding: mask,
        effective: mask,
        permitted: mask,
        inheritable: ambient,
        ambient,
    })
}

/// The sets limited to what this process itself may hand on (a node without some capability still runs containers).
pub fn limited(sets: &CapSets, permitted: u64) -> CapSets {
    CapSets {
        bounding: sets.bounding & permitted,
        effective: sets.effective & permitted,
        permitted: sets.permitted & permitted,
        inheritable: sets.inheritable & permitted,
        ambient: sets.ambient & permitted,
    }
}

/// Drops what is not in the bounding set. Needs CAP_SETPCAP, so it comes before the change of user.
pub fn apply_bounding(sets: &CapSets) -> io::Result<()> {
    for n in 0..64u64 {
        if sets.bounding & (1 << n) == 0 && sys::prctl(libc::PR_CAPBSET_READ, n).unwrap_or(0) == 1 {
            sys::prctl(libc::PR_CAPBSET_DROP, n)?;
        }
    }
    Ok(())
}

/// Sets the other sets; after the change of user (made with PR_SET_KEEPCAPS).
pub fn apply(sets: &CapSets) -> io::Result<()> {
    sys::capset(sets.effective, sets.permitted, sets.inheritable)?;
    let _ = sys::prctl2(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as u64,
        0,
    );
    for n in 0..NAMES.len() as u64 {
        if sets.ambient & (1 << n) != 0 {
            sys::prctl2(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, n)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(v: &[&str]) -> Vec<String> {
        v.iter().map(|s| (*s).to_string()).collect()
    }

    #[test]
    fn the_default_set_is_docker_s() {
        assert_eq!(sets(&[], &[], &[], false).unwrap().bounding, 0xa80425fb);
    }

    #[test]
    fn drop_all_then_add_leaves_the_added_ones() {
        let c = sets(&s(&["NET_ADMIN"]), &s(&["ALL"]), &[], false).unwrap();
        assert_eq!(c.effective, 1 << 12);
        assert_eq!((c.inheritable, c.ambient), (0, 0));
    }

    #[test]
    fn ambient_goes_to_every_set_and_unknown_names_are_refused() {
        let c = sets(&[], &s(&["ALL"]), &s(&["CAP_net_bind_service"]), false).unwrap();
        assert_eq!(
            [c.bounding, c.permitted, c.inheritable, c.ambient],
            [1 << 10; 4]
        );
        assert!(
            sets(&s(&["FLY"]), &[], &[], false)
                .unwrap_err()
                .contains("FLY")
        );
        assert_eq!(sets(&[], &[], &[], true).unwrap().bounding, ALL);
    }
}
