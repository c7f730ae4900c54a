//! Owns the question what this machine lacks to keep containers within their limits. `lacks` is pure, `look` gathers its
//! facts; neither changes anything.

use crate::{Hierarchies, devices};
use std::io;
use std::path::Path;

/// Something that holds containers back and that this machine does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// `cgroup controller memory`
    pub what: String,
    /// What a container may do for the want of it.
    pub effect: &'static str,
    /// What to do about it.
    pub mend: String,
}

/// What `lacks` judges.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub hierarchies: Hierarchies,
    /// v2: controllers that can be handed to the cgroups of pods.
    pub v2_controllers: Vec<String>,
    /// Hierarchies that this process cannot write to, and why.
    pub unwritable: Vec<String>,
    /// v2: why the kernel does not take a device filter; None when it does.
    pub device_filter: Option<String>,
}

/// Without these a limit of a pod is a word.
const NEEDED: [(&str, &str); 4] = [
    ("cpu", "containers take all CPU time they can get"),
    ("memory", "containers take all memory of the machine"),
    ("pids", "a fork bomb takes the machine down"),
    ("devices", "containers open the machine's disks"),
];

/// What is lacking, in a constant order; nothing on a machine as it should be.
pub fn lacks(f: &Facts) -> Vec<Lack> {
    let h = &f.hierarchies;
    let mut out = Vec::new();
    if h.v2.is_none() && h.v1.is_empty() {
        return vec![Lack {
            what: "cgroups".into(),
            effect: "containers have no limits at all, and open the machine's disks",
            mend: "no hierarchy is mounted below /sys/fs/cgroup: mount -t cgroup2 none /sys/fs/cgroup \
                   (`ip netns exec` hides what is mounted there: use nsenter --net)"
                .into(),
        }];
    }
    for (name, effect) in NEEDED {
        let there = match (h.is_v2(), name) {
            (true, "devices") => f.device_filter.is_none(),
            (true, _) => f.v2_controllers.iter().any(|c| c == name),
            (false, _) => h.dir(name, "").is_some(),
        };
        if there {
            continue;
        }
        let mend = match (h.is_v2(), name, &f.device_filter) {
            (true, "devices", Some(why)) => format!(
                "the kernel takes no eBPF device filter ({why}): use a kernel with CONFIG_CGROUP_BPF, and CAP_BPF or CAP_SYS_ADMIN"
            ),
            (true, ..) => format!(
                "cgroup v2 does not hand it down: boot with cgroup_enable={name}; in a container move its processes out of the root cgroup"
            ),
            (false, ..) => format!(
                "mount it: mkdir /sys/fs/cgroup/{name} && mount -t cgroup -o {name} none /sys/fs/cgroup/{name}; or boot with cgroup_enable={name}"
            ),
        };
        out.push(Lack {
            what: format!("cgroup controller {name}"),
            effect,
            mend,
        });
    }
    for path in &f.unwritable {
        out.push(Lack {
            what: format!("rights on {path}"),
            effect: "containers have no limits at all",
            mend: "cgroups cannot be made there: run it as root, with the cgroup file systems mounted rw".into(),
        });
    }
    out
}

/// Gathers the facts of this machine.
///
/// # Errors
/// /proc/self/mountinfo cannot be read.
pub fn look() -> io::Result<Facts> {
    let hierarchies = Hierarchies::detect()?;
    let mut out = Facts {
        unwritable: hierarchies
            .places()
            .iter()
            .filter_map(|p| {
                rustix::fs::access(*p, rustix::fs::Access::WRITE_OK)
                    .err()
                    .map(|e| format!("{} ({e})", p.display()))
            })
            .collect(),
        ..Facts::default()
    };
    if let Some(root) = hierarchies.v2.as_deref().filter(|_| hierarchies.is_v2()) {
        out.v2_controllers = delegable(root);
        out.device_filter = devices::try_filter().err().map(|e| e.to_string());
    }
    out.hierarchies = hierarchies;
    Ok(out)
}

/// Controllers that children of `root` can have. In a root that is none of the kernel's own (a container's) processes
/// stand in the way: then only what is handed down already counts.
fn delegable(root: &Path) -> Vec<String> {
    let read = |f: &str| std::fs::read_to_string(root.join(f)).unwrap_or_default();
    let inner = root.join("cgroup.type").exists() && !read("cgroup.procs").trim().is_empty();
    read(if inner {
        "cgroup.subtree_control"
    } else {
        "cgroup.controllers"
    })
    .split_whitespace()
    .map(str::to_string)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::V1;

    fn v1(names: &[&str]) -> Facts {
        Facts {
            hierarchies: Hierarchies {
                v1: names
                    .iter()
                    .map(|n| V1 {
                        controllers: vec![n.to_string()],
                        path: format!("/sys/fs/cgroup/{n}").into(),
                    })
                    .collect(),
                ..Hierarchies::default()
            },
            ..Facts::default()
        }
    }

    fn names(f: &Facts) -> Vec<String> {
        lacks(f).into_iter().map(|l| l.what).collect()
    }

    #[test]
    fn a_machine_without_any_cgroup_lacks_them_all() {
        assert_eq!(names(&Facts::default()), ["cgroups"]);
    }

    #[test]
    fn each_missing_controller_is_named() {
        let all = ["cpu", "memory", "pids", "devices"];
        assert!(names(&v1(&all)).is_empty());
        for gone in all {
            let rest: Vec<&str> = all.into_iter().filter(|n| *n != gone).collect();
            assert_eq!(names(&v1(&rest)), [format!("cgroup controller {gone}")]);
        }
        // A named hierarchy alone controls nothing.
        assert_eq!(names(&v1(&["name=systemd"])).len(), 4);
    }

    #[test]
    fn version_2_needs_its_controllers_and_the_device_filter() {
        let mut f = Facts {
            hierarchies: Hierarchies {
                v2: Some("/sys/fs/cgroup".into()),
                ..Hierarchies::default()
            },
            v2_controllers: ["cpu", "memory", "pids"].map(String::from).to_vec(),
            ..Facts::default()
        };
        assert!(names(&f).is_empty());
        f.device_filter = Some("EPERM".into());
        f.v2_controllers.retain(|c| c != "memory");
        assert_eq!(
            names(&f),
            ["cgroup controller memory", "cgroup controller devices"]
        );
        f.unwritable = vec!["/sys/fs/cgroup (EROFS)".into()];
        assert_eq!(names(&f).len(), 3);
    }

    #[test]
    fn controllers_behind_processes_of_a_containers_root_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let write = |f: &str, t: &str| std::fs::write(dir.path().join(f), t).unwrap();
        write("cgroup.controllers", "cpu memory pids\n");
        write("cgroup.subtree_control", "cpu\n");
        write("cgroup.procs", "1\n");
        assert_eq!(delegable(dir.path()).len(), 3, "the kernel's own root");
        write("cgroup.type", "domain\n");
        assert_eq!(delegable(dir.path()), ["cpu"]);
        write("cgroup.procs", "");
        assert_eq!(delegable(dir.path()).len(), 3);
    }
}
