//! Cgroups of pods: `<root>/kubepods/[burstable|besteffort/]pod<uid>` with the pod's own limits (upstream pkg/kubelet/cm
//! pod_container_manager_linux.go). Owns pods' directories; containers' below them are the runtime's.

use crate::kuberuntime::resources::{PERIOD, PodCgroup, cgroup_parent, pod_cgroup};
use k8s_openapi::api::core::v1::Pod;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// One for everything.
    V2(PathBuf),
    /// Mount point and its controllers (`cpu,cpuacct`), each.
    V1(Vec<(PathBuf, Vec<String>)>),
}

/// The hierarchies of this machine.
pub fn hierarchy() -> &'static Hierarchy {
    static FOUND: OnceLock<Hierarchy> = OnceLock::new();
    FOUND.get_or_init(|| find(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()))
}

/// Version 1 wins when any of its controllers is mounted: a v2 beside it has none then.
fn find(mountinfo: &str) -> Hierarchy {
    let mut v1: Vec<(PathBuf, Vec<String>)> = Vec::new();
    let mut v2 = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default();
        let options = right.nth(1).unwrap_or_default();
        let point = PathBuf::from(left.split(' ').nth(4).unwrap_or_default());
        match kind {
            "cgroup2" => v2 = v2.or(Some(point)),
            "cgroup" => {
                let names = options
                    .split(',')
                    .filter(|o| {
                        !matches!(*o, "rw" | "ro" | "xattr" | "clone_children" | "noprefix")
                            && !o.starts_with("release_agent")
                    })
                    .map(Into::into)
                    .collect();
                if !v1.iter().any(|(p, _)| *p == point) {
                    v1.push((point, names));
                }
            }
            _ => {}
        }
    }
    match v2 {
        Some(p) if v1.is_empty() => Hierarchy::V2(p),
        _ => Hierarchy::V1(v1),
    }
}

/// Makes a pod's cgroup with its limits.
///
/// # Errors
/// The file system's error, with the file.
pub fn ensure_pod(root: &str, pod: &Pod) -> io::Result<()> {
    let parent = cgroup_parent(root, pod);
    let limits = pod_cgroup(pod);
    let best_effort = format!("{}/kubepods/besteffort", root.trim_end_matches('/'));
    match hierarchy() {
        Hierarchy::V1(mounts) => {
            for (mount, controllers) in mounts {
                let has = |c: &str| controllers.iter().any(|k| k == c);
                let dir = below(mount, &parent);
                if has("cpu") {
                    fs::create_dir_all(&dir)?;
                    if parent.starts_with(&best_effort) {
                        // All best-effort pods together weigh next to nothing.
                        set(&below(mount, &best_effort).join("cpu.shares"), 2)?;
                    }
                    set(&dir.join("cpu.shares"), limits.shares)?;
                    if limits.quota > 0 {
                        set(&dir.join("cpu.cfs_period_us"), PERIOD)?;
                        set(&dir.join("cpu.cfs_quota_us"), limits.quota)?;
                    }
                } else if has("memory") {
                    fs::create_dir_all(&dir)?;
                    if limits.memory > 0 {
                        set(&dir.join("memory.limit_in_bytes"), limits.memory)?;
                    }
                }
            }
        }
        Hierarchy::V2(mount) => {
            let dir = below(mount, &parent);
            fs::create_dir_all(&dir)?;
            enable(mount, &parent);
            set_v2(&dir, &limits)?;
            if parent.starts_with(&best_effort) {
                let _ = fs::write(below(mount, &best_effort).join("cpu.weight"), "1");
            }
        }
    }
    Ok(())
}

fn set_v2(dir: &Path, limits: &PodCgroup) -> io::Result<()> {
    let weight = 1 + (limits.shares - 2).max(0) * 9999 / 262_142;
    // A controller that the machine does not hand down cannot limit anything.
    let optional = |file: &str, value: String| -> io::Result<()> {
        match fs::write(dir.join(file), value) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    };
    optional("cpu.weight", weight.to_string())?;
    if limits.quota > 0 {
        optional("cpu.max", format!("{} {PERIOD}", limits.quota))?;
    }
    if limits.memory > 0 {
        optional("memory.max", limits.memory.to_string())?;
    }
    Ok(())
}

/// Hands the controllers down to every directory above the pod's containers.
fn enable(mount: &Path, path: &str) {
    let mut dir = mount.to_path_buf();
    let mut dirs = vec![dir.clone()];
    for part in path.split('/').filter(|p| !p.is_empty()) {
        dir.push(part);
        dirs.push(dir.clone());
    }
    for d in dirs {
        let have = fs::read_to_string(d.join("cgroup.controllers")).unwrap_or_default();
        for c in have.split_whitespace() {
            let _ = fs::write(d.join("cgroup.subtree_control"), format!("+{c}"));
        }
    }
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn set(file: &Path, value: i64) -> io::Result<()> {
    fs::write(file, value.to_string())
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))
}

/// Removes a pod's cgroups, whatever its class, in every hierarchy. Fine when there are none.
///
/// # Errors
/// A cgroup that still has processes.
pub fn remove_pod(root: &str, uid: &str) -> io::Result<()> {
    let root = root.trim_end_matches('/');
    let paths =
        ["", "burstable/", "besteffort/"].map(|class| format!("{root}/kubepods/{class}pod{uid}"));
    let mounts: Vec<&Path> = match hierarchy() {
        Hierarchy::V2(m) => vec![m.as_path()],
        Hierarchy::V1(all) => all.iter().map(|(p, _)| p.as_path()).collect(),
    };
    for mount in mounts {
        for path in &paths {
            let dir = below(mount, path);
            if dir.exists() {
                remove_tree(&dir)?;
            }
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    // A process that has just ended leaves its cgroup a moment later.
    for _ in 0..20 {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
    fs::remove_dir(dir).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_controllers_of_version_1_win_over_an_empty_version_2() {
        let v1 = "1 0 0:1 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n";
        let v2 = "2 0 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            find(&format!("{v1}{v2}")),
            Hierarchy::V1(vec![(
                "/sys/fs/cgroup/cpu,cpuacct".into(),
                vec!["cpu".into(), "cpuacct".into()]
            )])
        );
        assert_eq!(find(v2), Hierarchy::V2("/sys/fs/cgroup/unified".into()));
    }
}
