//! Owns control groups: which hierarchies the machine has, the cgroup of a container in all of them, limits, statistics,
//! killing and removal. Translation of resources to file writes is pure (`v1`, `v2`). It must not know containers' state.

pub mod devices;
pub mod stats;
pub mod v1;
pub mod v2;

use crate::sys;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// A v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1 {
    /// Its controllers, or `name=systemd` for a named one.
    pub controllers: Vec<String>,
    pub path: PathBuf,
}

/// What is mounted on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// The v2 mount: the only hierarchy, or the empty one beside v1 (hybrid).
    pub v2: Option<PathBuf>,
    pub v1: Vec<V1>,
}

/// Limits of a cgroup; zero and empty mean "not said", as in CRI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_shares: i64,
    pub cpu_quota: i64,
    pub cpu_period: i64,
    /// Bytes.
    pub memory_limit: i64,
    /// Bytes of memory and swap together.
    pub memory_swap_limit: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// 0: not said; negative: no limit.
    pub pids_limit: i64,
    /// (page size as CRI names it, bytes).
    pub hugepages: Vec<(String, u64)>,
    /// v2 files set as they are.
    pub unified: BTreeMap<String, String>,
}

impl From<&k8s_cri::v1::LinuxContainerResources> for Resources {
    fn from(r: &k8s_cri::v1::LinuxContainerResources) -> Self {
        Self {
            cpu_shares: r.cpu_shares,
            cpu_quota: r.cpu_quota,
            cpu_period: r.cpu_period,
            memory_limit: r.memory_limit_in_bytes,
            memory_swap_limit: r.memory_swap_limit_in_bytes,
            cpuset_cpus: r.cpuset_cpus.clone(),
            cpuset_mems: r.cpuset_mems.clone(),
            pids_limit: 0,
            hugepages: r
                .hugepage_limits
                .iter()
                .map(|h| (h.page_size.clone(), h.limit))
                .collect(),
            unified: r.unified.clone().into_iter().collect(),
        }
    }
}

/// One write to a control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// v1 controller; empty on v2.
    pub controller: &'static str,
    pub file: String,
    pub value: String,
    /// A file that some kernels lack: its absence is no error.
    pub optional: bool,
}

impl Hierarchies {
    /// Looks at this machine.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string(
            "/proc/self/mountinfo",
        )?))
    }

    /// Reads the text of mountinfo. The last mount at a place wins; only whole hierarchies below /sys/fs/cgroup count.
    pub fn parse(mountinfo: &str) -> Self {
        let mut out = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let (left, right): (Vec<&str>, Vec<&str>) =
                (left.split(' ').collect(), right.split(' ').collect());
            let (Some(path), Some(fstype), Some(options)) =
                (left.get(4), right.first(), right.get(2))
            else {
                continue;
            };
            if !path.starts_with("/sys/fs/cgroup") {
                continue;
            }
            let path = PathBuf::from(path);
            match *fstype {
                "cgroup2" => out.v2 = Some(path),
                "cgroup" => {
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|o| {
                            o.starts_with("name=")
                                || matches!(
                                    *o,
                                    "cpu"
                                        | "cpuacct"
                                        | "cpuset"
                                        | "memory"
                                        | "devices"
                                        | "freezer"
                                        | "blkio"
                                        | "pids"
                                        | "hugetlb"
                                        | "net_cls"
                                        | "net_prio"
                                        | "perf_event"
                                        | "rdma"
                                        | "misc"
                                )
                        })
                        .map(str::to_string)
                        .collect();
                    out.v1
                        .retain(|h| h.path != path && h.controllers != controllers);
                    if !controllers.is_empty() {
                        out.v1.push(V1 { controllers, path });
                    }
                }
                _ => {}
            }
        }
        out
    }

    /// True when v2 has the controllers (no v1 controller hierarchy is mounted).
    pub fn is_v2(&self) -> bool {
        self.v2.is_some() && !self.v1.iter().any(|h| h.controls())
    }

    fn v1_of(&self, controller: &str) -> Option<&V1> {
        self.v1
            .iter()
            .find(|h| h.controllers.iter().any(|c| c == controller))
    }

    /// The hierarchies that containers live in: the v2 one, or every v1 one with a controller. Named ones and a hybrid's
    /// empty v2 control nothing; each hierarchy joined costs, so containers stay there where their shim is.
    fn places(&self) -> Vec<&Path> {
        match &self.v2 {
            Some(p) if self.is_v2() => vec![p],
            _ => self
                .v1
                .iter()
                .filter(|h| h.controls())
                .map(|h| h.path.as_path())
                .collect(),
        }
    }

    /// The hierarchies by which a service manager knows what belongs to the server's service.
    fn service_places(&self) -> Vec<&Path> {
        let named = self
            .v1
            .iter()
            .filter(|h| !h.controls())
            .map(|h| h.path.as_path());
        named.chain(self.v2.as_deref()).collect()
    }

    /// Directory of a cgroup with the controller, if it is there.
    pub fn dir(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        match &self.v2 {
            Some(p) if self.is_v2() => Some(below(p, cgroup)),
            _ => self.v1_of(controller).map(|h| below(&h.path, cgroup)),
        }
    }

    /// Makes a cgroup with all its parents, ready for processes.
    pub fn create(&self, cgroup: &str) -> io::Result<()> {
        for place in self.places() {
            let dir = below(place, cgroup);
            if self.is_v2() {
                v2::create(place, &dir)?;
            } else {
                let cpuset = self.v1_of("cpuset").is_some_and(|h| h.path == place);
                v1::create(place, &dir, cpuset)?;
            }
        }
        Ok(())
    }

    /// Makes the cgroup that shims live in and returns the files they join by.
    pub fn create_for_shims(&self, cgroup: &str) -> io::Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        for place in self.service_places() {
            let dir = below(place, cgroup);
            std::fs::create_dir_all(&dir)?;
            out.push(dir.join("cgroup.procs"));
        }
        Ok(out)
    }

    /// Files by which a process joins the cgroup.
    pub fn procs_files(&self, cgroup: &str) -> Vec<PathBuf> {
        self.places()
            .iter()
            .map(|p| below(p, cgroup).join("cgroup.procs"))
            .collect()
    }

    /// cgroup.procs of the cgroup that this process is in, in one v1 hierarchy; None on v2.
    pub fn own_procs_file(&self) -> Option<PathBuf> {
        let v1 = self
            .v1
            .iter()
            .find(|h| h.controls())
            .filter(|_| !self.is_v2())?;
        let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = text.lines().find_map(|l| {
            let mut f = l.splitn(3, ':').skip(1);
            let controllers = f.next()?;
            controllers
                .split(',')
                .eq(v1.controllers.iter())
                .then(|| f.next())
                .flatten()
        })?;
        Some(below(&v1.path, own).join("cgroup.procs"))
    }

    /// The file with the `oom_kill` counter.
    pub fn oom_file(&self, cgroup: &str) -> Option<PathBuf> {
        let name = if self.is_v2() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        self.dir("memory", cgroup).map(|d| d.join(name))
    }

    /// cgroup.kill (v2 from kernel 5.14).
    pub fn kill_file(&self, cgroup: &str) -> Option<PathBuf> {
        self.v2
            .as_ref()
            .filter(|_| self.is_v2())
            .map(|p| below(p, cgroup).join("cgroup.kill"))
    }

    /// Sets limits. Fails on the first file that refuses, named.
    pub fn apply(&self, cgroup: &str, r: &Resources) -> io::Result<()> {
        let writes = if self.is_v2() {
            v2::writes(r)
        } else {
            v1::writes(r)
        };
        for w in writes {
            let Some(dir) = self.dir(w.controller, cgroup) else {
                continue;
            };
            let path = dir.join(&w.file);
            let result = std::fs::write(&path, &w.value);
            let result = match result {
                // v1 keeps memory <= memory+swap at every step; raising both needs the other order.
                Err(_) if w.file == "memory.limit_in_bytes" && r.memory_limit > 0 => {
                    let both = r.memory_swap_limit.max(r.memory_limit).to_string();
                    let _ = std::fs::write(dir.join("memory.memsw.limit_in_bytes"), both);
                    std::fs::write(&path, &w.value)
                }
                r => r,
            };
            match result {
                Err(e)
                    if w.optional
                        && matches!(
                            e.raw_os_error(),
                            Some(libc::ENOENT | libc::EACCES | libc::EPERM | libc::EOPNOTSUPP)
                        ) => {}
                Err(e) => {
                    return Err(io::Error::new(
                        e.kind(),
                        format!("write {:?} to {}: {e}", w.value, path.display()),
                    ));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Limits the devices that processes of the cgroup may use.
    pub fn apply_devices(&self, cgroup: &str, rules: &[devices::Rule]) -> io::Result<()> {
        if self.is_v2() {
            let dir = self.dir("", cgroup).unwrap_or_default();
            return devices::attach_v2(&dir, rules);
        }
        let Some(dir) = self.dir("devices", cgroup) else {
            return Ok(());
        };
        for (file, value) in devices::writes_v1(rules) {
            std::fs::write(dir.join(file), &value).map_err(|e| {
                io::Error::new(
                    e.kind(),
                    format!("write {value:?} to {}: {e}", dir.join(file).display()),
                )
            })?;
        }
        Ok(())
    }

    /// Kills every process in the cgroup and below.
    pub fn kill(&self, cgroup: &str) {
        kill_all(self.kill_file(cgroup).as_deref(), &self.procs_files(cgroup));
    }

    /// Kills every process in the cgroup and in all cgroups below, in every hierarchy.
    pub fn kill_tree(&self, cgroup: &str) {
        fn walk(dir: &Path) {
            kill_all(Some(&dir.join("cgroup.kill")), &[dir.join("cgroup.procs")]);
            for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if e.file_type().is_ok_and(|t| t.is_dir()) {
                    walk(&e.path());
                }
            }
        }
        if cgroup.trim_matches('/').is_empty() {
            return;
        }
        for place in self.places().into_iter().chain(self.service_places()) {
            walk(&below(place, cgroup));
        }
    }

    /// Removes the cgroup with everything below it. Busy ones (a process is still dying) are tried again for a second.
    pub fn remove(&self, cgroup: &str) -> io::Result<()> {
        let mut result = Ok(());
        let service = self.service_places();
        for place in self.places().into_iter().chain(service) {
            if let Err(e) = remove_tree(&below(place, cgroup)) {
                result = Err(e);
            }
        }
        result
    }

    /// How a container's /sys/fs/cgroup is made.
    pub fn mounts(&self) -> Vec<crate::container::rootfs::CgroupMount> {
        use crate::container::rootfs::CgroupMount;
        if self.is_v2() {
            return vec![CgroupMount {
                name: String::new(),
                fstype: "cgroup2".into(),
                data: String::new(),
                links: vec![],
            }];
        }
        self.v1
            .iter()
            .map(|h| {
                let name = h
                    .path
                    .file_name()
                    .map(|n| n.to_string_lossy().into_owned())
                    .unwrap_or_default();
                let links = if h.controllers.len() > 1 {
                    h.controllers
                        .iter()
                        .filter(|c| **c != name)
                        .cloned()
                        .collect()
                } else {
                    vec![]
                };
                let data = h.controllers.join(",");
                // A named hierarchy is mounted by `none,name=x`.
                let data = if data.starts_with("name=") {
                    format!("none,{data}")
                } else {
                    data
                };
                CgroupMount {
                    name,
                    fstype: "cgroup".into(),
                    data,
                    links,
                }
            })
            .collect()
    }
}

impl V1 {
    fn controls(&self) -> bool {
        self.controllers.iter().any(|c| !c.starts_with("name="))
    }
}

fn below(root: &Path, cgroup: &str) -> PathBuf {
    root.join(cgroup.trim_start_matches('/'))
}

/// Kills all processes: with cgroup.kill where it exists, else by reading cgroup.procs again until nobody new appears,
/// with the v1 freezer holding a fork bomb still.
pub fn kill_all(kill_file: Option<&Path>, procs: &[PathBuf]) {
    if let Some(f) = kill_file
        && std::fs::write(f, "1").is_ok()
    {
        return;
    }
    let freezer = procs
        .iter()
        .filter_map(|p| p.parent())
        .map(|d| d.join("freezer.state"))
        .find(|f| f.exists());
    let Some(list) = freezer
        .as_ref()
        .and_then(|f| f.parent())
        .map(|d| d.join("cgroup.procs"))
        .or_else(|| procs.first().cloned())
    else {
        return;
    };
    let own = std::process::id() as i32;
    for _ in 0..64 {
        if let Some(f) = &freezer {
            let _ = std::fs::write(f, "FROZEN");
        }
        let pids: Vec<i32> = std::fs::read_to_string(&list)
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.parse().ok())
            .filter(|p| *p != own && *p > 0)
            .collect();
        let hit = pids
            .iter()
            .filter(|p| sys::kill(**p, libc::SIGKILL).is_ok())
            .count();
        if let Some(f) = &freezer {
            // Frozen tasks die only after the thaw.
            let _ = std::fs::write(f, "THAWED");
        }
        if hit == 0 || freezer.is_some() {
            return;
        }
    }
}

/// Removes a cgroup directory and its children, deepest first. Not there is fine.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(e) => e,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for e in entries.flatten() {
        if e.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&e.path())?;
        }
    }
    // v1 has no event for "empty"; a killed process leaves its cgroup within a scheduling round or two.
    let mut pause = std::time::Duration::from_micros(200);
    for _ in 0..14 {
        match std::fs::remove_dir(dir) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(std::time::Duration::from_millis(250));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            r => return r,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("{} still holds processes", dir.display()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1_TEXT: &str = "30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";

    #[test]
    fn v1_hybrid_and_v2_are_told_apart() {
        let h = Hierarchies::parse(V1_TEXT);
        assert!(!h.is_v2());
        assert_eq!(h.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(
            h.dir("cpuacct", "/a/b").unwrap(),
            Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b")
        );
        assert_eq!(h.procs_files("/a").len(), 2);
        assert_eq!(h.service_places().len(), 2);
        assert_eq!(h.dir("pids", "/a"), None);
        let mounts = h.mounts();
        assert_eq!(
            (mounts[0].data.as_str(), mounts[1].links.len()),
            ("none,name=systemd", 2)
        );

        let h =
            Hierarchies::parse("31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate");
        assert!(h.is_v2());
        assert_eq!(
            h.oom_file("/x").unwrap(),
            Path::new("/sys/fs/cgroup/x/memory.events")
        );
        assert_eq!(h.mounts()[0].fstype, "cgroup2");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_mountinfo_without_a_panic(text in "[a-z0-9/,= \n-]{0,300}") {
            let h = Hierarchies::parse(&text);
            proptest::prop_assert!(h.v1.iter().all(|v| !v.controllers.is_empty()));
        }
    }
}
