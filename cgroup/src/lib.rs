//! Owns control groups: which hierarchies the machine has, the cgroup of a container or pod in all of them, limits,
//! statistics, killing and removal; the only place with their arithmetic. Translation of resources to file writes is pure
//! (`cpu`, `v1`, `v2`), and so is the question what a machine lacks (`check`). It must not know pods or containers.

pub mod check;
pub mod cpu;
pub mod devices;
mod end;
pub mod stats;
pub mod v1;
pub mod v2;

pub use end::kill_all;

use end::remove_tree;
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
    /// The operator accepts a machine that cannot limit devices (see `check`): containers start all the same. Limits of
    /// CPU, memory and processes that were asked for are never left out.
    pub lenient: bool,
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

/// One cgroup hierarchy of the node: where it shows in the container and what mount(2) needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMount {
    /// Name below /sys/fs/cgroup; empty for the single v2 hierarchy.
    pub name: String,
    pub fstype: String,
    pub data: String,
    /// Other names for it (cpu -> cpu,cpuacct).
    pub links: Vec<String>,
}

/// One write to a control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// v1 controller; empty on v2.
    pub controller: &'static str,
    pub file: String,
    pub value: String,
    /// A file that some kernels lack, or a value that limits nothing: its absence is no error.
    pub optional: bool,
}

impl Hierarchies {
    /// Looks at this machine.
    ///
    /// # Errors
    /// /proc/self/mountinfo cannot be read.
    pub fn detect() -> io::Result<Self> {
        let mut out = Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?);
        // Something mounted over a hierarchy hides it, and a directory in its place would take our files in silence.
        out.v1.retain(|h| is_cgroup(&h.path));
        out.v2 = out.v2.filter(|p| is_cgroup(p));
        Ok(out)
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

    /// Can limits of the controller be set in a cgroup that is there?
    pub fn controls(&self, controller: &str, cgroup: &str) -> bool {
        match (&self.v2, self.is_v2()) {
            (Some(root), true) => {
                std::fs::read_to_string(below(root, cgroup).join("cgroup.controllers"))
                    .is_ok_and(|t| t.split_whitespace().any(|c| c == controller))
            }
            _ => self.v1_of(controller).is_some(),
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

    /// Sets limits.
    ///
    /// # Errors
    /// The first file that refuses, named; a limit whose controller this machine does not have: nothing runs with less
    /// than it was promised.
    pub fn apply(&self, cgroup: &str, r: &Resources) -> io::Result<()> {
        let writes = if self.is_v2() {
            v2::writes(r)
        } else {
            v1::writes(r)
        };
        if !self.is_v2() && !r.unified.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "cgroup v2 files are asked for, and this machine has cgroup v1",
            ));
        }
        for w in writes {
            let Some(dir) = self.dir(w.controller, cgroup) else {
                if w.optional {
                    continue;
                }
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!(
                        "this machine has no cgroup controller for {}={}: the limit cannot be kept",
                        w.file, w.value
                    ),
                ));
            };
            let path = dir.join(&w.file);
            let result = match set(&path, &w.value) {
                // v1 keeps memory <= memory+swap at every step; raising both needs the other order.
                Err(_) if w.file == "memory.limit_in_bytes" && r.memory_limit > 0 => {
                    let both = r.memory_swap_limit.max(r.memory_limit).to_string();
                    let _ = set(&dir.join("memory.memsw.limit_in_bytes"), &both);
                    set(&path, &w.value)
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
    ///
    /// # Errors
    /// A file or the kernel refuses; devices cannot be limited on this machine (`check`), unless `lenient`.
    pub fn apply_devices(&self, cgroup: &str, rules: &[devices::Rule]) -> io::Result<()> {
        if self.is_v2() {
            let dir = self.dir("", cgroup).unwrap_or_default();
            return devices::attach_v2(&dir, rules).or_else(|e| match self.lenient {
                true => Ok(()),
                false => Err(e),
            });
        }
        let Some(dir) = self.dir("devices", cgroup) else {
            if self.lenient || rules.iter().any(|r| r.kind == 'a') {
                return Ok(());
            }
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this machine has no cgroup controller for devices",
            ));
        };
        for (file, value) in devices::writes_v1(rules) {
            set(&dir.join(file), &value).map_err(|e| {
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
        if cgroup.trim_matches('/').is_empty() {
            return result;
        }
        let service = self.service_places();
        for place in self.places().into_iter().chain(service) {
            if let Err(e) = remove_tree(&below(place, cgroup)) {
                result = Err(e);
            }
        }
        result
    }

    /// How a container's /sys/fs/cgroup is made.
    pub fn mounts(&self) -> Vec<CgroupMount> {
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

/// Whether a cgroup file system answers at the path, v1 or v2.
fn is_cgroup(path: &Path) -> bool {
    const MAGIC: [i64; 2] = [0x0027_e0eb, 0x6367_7270];
    rustix::fs::statfs(path).is_ok_and(|s| MAGIC.contains(&(s.f_type as i64)))
}

/// Writes a control file that is there; one that is not is never made.
pub(crate) fn set(file: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .open(file)?
        .write_all(value.as_bytes())
}

fn below(root: &Path, cgroup: &str) -> PathBuf {
    root.join(cgroup.trim_start_matches('/'))
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

    #[test]
    fn a_limit_whose_controller_is_missing_is_refused_and_nothing_else_is() {
        let h = Hierarchies::parse(
            "33 30 0:29 / /sys/fs/cgroup/skiff-no-such-place rw - cgroup cgroup rw,cpuset",
        );
        let refused = |r: Resources| h.apply("/a", &r).map_err(|e| e.to_string());
        let asked = [
            Resources {
                memory_limit: 1 << 20,
                ..Resources::default()
            },
            Resources {
                cpu_quota: 1000,
                cpu_period: 100_000,
                ..Resources::default()
            },
            Resources {
                pids_limit: 10,
                ..Resources::default()
            },
            Resources {
                hugepages: vec![("2MB".into(), 1 << 21)],
                ..Resources::default()
            },
            Resources {
                unified: [("memory.high".to_string(), "1".to_string())].into(),
                ..Resources::default()
            },
        ];
        for r in asked {
            let e = refused(r.clone()).expect_err(&format!("{r:?}"));
            assert!(e.contains("this machine has"), "{e}");
        }
        // A weight and "no limit" are nothing that could be broken.
        refused(Resources {
            cpu_shares: 2,
            cpu_period: 100_000,
            memory_limit: -1,
            pids_limit: -1,
            ..Resources::default()
        })
        .unwrap();
        let devices = h.apply_devices("/a", &devices::default_rules());
        assert!(devices.unwrap_err().to_string().contains("devices"));
        h.apply_devices("/a", &devices::all_rules()).unwrap();
        let lenient = Hierarchies { lenient: true, ..h };
        lenient
            .apply_devices("/a", &devices::default_rules())
            .unwrap();
    }

    #[test]
    fn a_control_file_that_is_not_there_is_never_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(set(&dir.path().join("memory.max"), "1").is_err());
        assert!(!dir.path().join("memory.max").exists());
        assert!(!is_cgroup(dir.path()));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_mountinfo_without_a_panic(text in "[a-z0-9/,= \n-]{0,300}") {
            let h = Hierarchies::parse(&text);
            proptest::prop_assert!(h.v1.iter().all(|v| !v.controllers.is_empty()));
        }
    }
}
