//! Owns what a CRI request may ask for of a container's confinement: security modules, masked paths, places of mounts,
//! the seccomp profile. Pure. It must not decide how any of it is carried out.

use k8s_cri::v1::{self, security_profile::ProfileType};
use std::path::{Path, PathBuf};

/// What no unprivileged container reads, whatever list the client sends. (The kubelet sends this list too.)
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What none writes.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Files of /proc that LXCFS shows a container in a truer form: the only mounts below /proc (runc's list but for what is
/// below /proc/sys).
const LXCFS: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];

/// The defaults, then what the client adds. A client cannot take one away: CRI has no word for "unmasked" but an empty
/// list, and an unmasked /proc (procMount: Unmasked) lets root of a container without any capability write the node's
/// /proc/sys unless a user namespace stands between, which this runtime does not have.
fn with_defaults(defaults: &[&str], asked: &[String], privileged: bool) -> Vec<PathBuf> {
    if privileged {
        return Vec::new();
    }
    let mut out: Vec<PathBuf> = defaults.iter().map(PathBuf::from).collect();
    for p in asked.iter().map(|p| super::build::clean(p)) {
        if !out.contains(&p) {
            out.push(p);
        }
    }
    out
}

/// Paths that read as nothing.
pub fn masked_paths(sc: &v1::LinuxContainerSecurityContext) -> Vec<PathBuf> {
    with_defaults(&MASKED, &sc.masked_paths, sc.privileged)
}

/// Paths that cannot be written.
pub fn readonly_paths(sc: &v1::LinuxContainerSecurityContext) -> Vec<PathBuf> {
    with_defaults(&READ_ONLY, &sc.readonly_paths, sc.privileged)
}

/// True if a mount at this path, below /proc as it is, may be made if its source is a file.
pub fn is_lxcfs(target: &Path) -> bool {
    LXCFS.iter().any(|p| target == Path::new(p))
}

/// Refuses mounts at the root and at /proc or below: they would hide the masks, and what is written to /proc for the
/// container would land in the volume. `target` is clean; links are looked at again when the mount is made.
pub fn check_mount_target(target: &Path) -> Result<(), String> {
    if target == Path::new("/") {
        return Err("a mount at the root directory is not possible".into());
    }
    if target.starts_with("/proc") && !is_lxcfs(target) {
        return Err(format!(
            "{:?} cannot be mounted because it is inside /proc",
            target.display().to_string()
        ));
    }
    Ok(())
}

/// True if the options ask for a label that confines: `s0` parts nobody from anybody (upstream's conformance pods carry
/// it), and spc_t asks for no confinement.
pub fn wants_label(o: &v1::SeLinuxOption) -> bool {
    let v1::SeLinuxOption {
        user,
        role,
        r#type,
        level,
    } = o;
    !user.is_empty()
        || !role.is_empty()
        || !matches!(r#type.as_str(), "" | "spc_t")
        || !matches!(level.as_str(), "" | "s0")
}

/// Refuses a profile that nobody would enforce: running without it would be less than what was asked for.
pub fn check_apparmor(profile: Option<&v1::SecurityProfile>) -> Result<(), String> {
    let named = match profile.map(|p| (ProfileType::try_from(p.profile_type), &p.localhost_ref)) {
        None | Some((Ok(ProfileType::Unconfined), _)) => return Ok(()),
        Some((Ok(ProfileType::RuntimeDefault), _)) => "RuntimeDefault".to_string(),
        Some((_, name)) => format!("Localhost ({name})"),
    };
    Err(format!(
        "AppArmor profiles are not supported by this runtime: {named} cannot be enforced; remove it or use Unconfined"
    ))
}

/// Which seccomp profile a container asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum SeccompWish {
    Unconfined,
    Default,
    /// An absolute path on the node.
    File(PathBuf),
}

/// CRI: privileged turns it off; nothing said is unconfined (the kubelet says RuntimeDefault when seccompDefault is on).
pub fn seccomp_wish(sc: &v1::LinuxContainerSecurityContext) -> Result<SeccompWish, String> {
    if sc.privileged {
        return Ok(SeccompWish::Unconfined);
    }
    let file = |path: &str| {
        if path.starts_with('/') {
            Ok(SeccompWish::File(path.into()))
        } else {
            Err(format!(
                "the seccomp profile {path:?} is not an absolute path"
            ))
        }
    };
    let Some(p) = &sc.seccomp else {
        return Ok(SeccompWish::Unconfined);
    };
    match ProfileType::try_from(p.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(SeccompWish::Default),
        Ok(ProfileType::Unconfined) => Ok(SeccompWish::Unconfined),
        Ok(ProfileType::Localhost) => file(&p.localhost_ref),
        Err(_) => Err(format!("unknown seccomp profile type {}", p.profile_type)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unprivileged_container_is_masked_whatever_lists_the_client_sends() {
        let mut sc = v1::LinuxContainerSecurityContext::default();
        assert_eq!(masked_paths(&sc).len(), MASKED.len());
        sc.masked_paths = vec!["/bin/ls".into(), "/proc//kcore/".into()];
        sc.readonly_paths = vec!["/tmp".into()];
        assert_eq!(masked_paths(&sc).last().unwrap(), Path::new("/bin/ls"));
        assert_eq!(masked_paths(&sc).len(), MASKED.len() + 1);
        assert!(readonly_paths(&sc).contains(&PathBuf::from("/proc/sys")));
        sc.privileged = true;
        assert!(masked_paths(&sc).is_empty() && readonly_paths(&sc).is_empty());
    }

    #[test]
    fn mounts_at_proc_and_below_are_refused() {
        for p in [
            "/",
            "/proc",
            "/proc/sys",
            "/proc/self/attr",
            "/proc/meminfo/x",
        ] {
            assert!(check_mount_target(Path::new(p)).is_err(), "{p}");
        }
        for p in ["/procfs", "/data/proc", "/proc/meminfo", "/sys", "/dev"] {
            assert!(check_mount_target(Path::new(p)).is_ok(), "{p}");
        }
    }

    #[test]
    fn security_modules_that_are_not_there_are_refused_by_name() {
        let profile = |t: ProfileType| v1::SecurityProfile {
            profile_type: t as i32,
            localhost_ref: "lock".into(),
        };
        for (t, want) in [
            (ProfileType::RuntimeDefault, "RuntimeDefault"),
            (ProfileType::Localhost, "lock"),
        ] {
            let e = check_apparmor(Some(&profile(t))).unwrap_err();
            assert!(e.contains(want), "{e}");
        }
        assert!(check_apparmor(Some(&profile(ProfileType::Unconfined))).is_ok());
        assert!(check_apparmor(None).is_ok());
        let label = |kind: &str, level: &str| v1::SeLinuxOption {
            r#type: kind.into(),
            level: level.into(),
            ..Default::default()
        };
        for (kind, level) in [("", "s0:c1"), ("container_t", ""), ("container_t", "s0")] {
            assert!(wants_label(&label(kind, level)), "{kind} {level}");
        }
        assert!(!wants_label(&label("spc_t", "s0")) && !wants_label(&label("", "")));
    }
}
