//! Owns the JSON form of seccomp profiles: the OCI runtime specification's, which Kubernetes' localhost profiles use, with
//! what Docker's and Podman's profiles add (archMap, includes, excludes). Pure. Everything that is written in a profile
//! has an effect or is refused by its name.

use super::caps;
use serde::{Deserialize, Deserializer};

/// A seccomp profile.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    pub default_action: String,
    #[serde(default)]
    pub default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    pub architectures: Vec<String>,
    /// Docker's: other architectures of a native one.
    #[serde(default, deserialize_with = "or_default")]
    pub arch_map: Vec<ArchMap>,
    /// SECCOMP_FILTER_FLAG_*.
    #[serde(default, deserialize_with = "or_default")]
    pub flags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArchMap {
    pub architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub sub_architectures: Vec<String>,
}

/// What happens on some system calls.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    #[serde(default, deserialize_with = "or_default")]
    pub names: Vec<String>,
    /// Docker's older form of one name.
    #[serde(default)]
    pub name: Option<String>,
    pub action: String,
    #[serde(default)]
    pub errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<Arg>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub includes: When,
    #[serde(default, deserialize_with = "or_default")]
    pub excludes: When,
}

/// A condition on an argument; the system call matches if all hold (those on one argument: any).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Arg {
    pub index: u32,
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: String,
}

/// When a rule of Docker's form counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct When {
    #[serde(default, deserialize_with = "or_default")]
    pub caps: Vec<String>,
    /// Go's names: amd64, arm64.
    #[serde(default, deserialize_with = "or_default")]
    pub arches: Vec<String>,
    /// `4.8`
    #[serde(default, deserialize_with = "or_default")]
    pub min_kernel: String,
}

/// Go writes an absent list as null.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// The container and the node that a profile is for.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// The bounding set.
    pub caps: u64,
    /// Major and minor version.
    pub kernel: (u32, u32),
}

impl Subject {
    /// A container with these capabilities on this machine.
    pub fn here(caps: u64) -> Self {
        let uname = rustix::system::uname();
        let kernel = version(&uname.release().to_string_lossy()).unwrap_or((0, 0));
        Self { caps, kernel }
    }
}

/// The first two numbers of a kernel version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

const GO_ARCH: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else {
    "arm64"
};
const NATIVE: &str = if cfg!(target_arch = "x86_64") {
    "SCMP_ARCH_X86_64"
} else {
    "SCMP_ARCH_AARCH64"
};

impl When {
    fn check(&self) -> Result<(), String> {
        for c in &self.caps {
            caps::bit(c).ok_or_else(|| format!("the capability {c:?} is not known"))?;
        }
        if !self.min_kernel.is_empty() && version(&self.min_kernel).is_none() {
            return Err(format!("minKernel {:?} is not a version", self.min_kernel));
        }
        Ok(())
    }

    fn kernel_is(&self, s: Subject) -> bool {
        version(&self.min_kernel).is_some_and(|v| s.kernel >= v)
    }

    /// As `includes`: everything that is said must hold.
    fn includes(&self, s: Subject) -> bool {
        (self.arches.is_empty() || self.arches.iter().any(|a| a == GO_ARCH))
            && self.caps.iter().all(|c| caps::has(s.caps, c))
            && (self.min_kernel.is_empty() || self.kernel_is(s))
    }

    /// As `excludes`: anything that holds is enough.
    fn excludes(&self, s: Subject) -> bool {
        self.arches.iter().any(|a| a == GO_ARCH)
            || self.caps.iter().any(|c| caps::has(s.caps, c))
            || self.kernel_is(s)
    }
}

impl Rule {
    /// A rule without conditions on when it counts.
    pub fn new(names: Vec<String>, action: &str, errno_ret: Option<u32>, args: Vec<Arg>) -> Self {
        Self {
            names,
            action: action.into(),
            errno_ret,
            args,
            ..Self::default()
        }
    }
}

impl Profile {
    /// Reads the JSON text.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|e| format!("the seccomp profile is not valid: {e}"))
    }

    /// SECCOMP_FILTER_FLAG_* of seccomp(2).
    pub fn filter_flags(&self) -> Result<u32, String> {
        self.flags.iter().try_fold(0, |all, f| {
            Ok(all
                | match f.as_str() {
                    // Of one thread it asks nothing.
                    "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                    "SECCOMP_FILTER_FLAG_LOG" => 1 << 1,
                    "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 1 << 2,
                    other => return Err(format!("the seccomp flag {other:?} is not supported")),
                })
        })
    }

    /// The profile for one container: only rules that count, each with its names in one list, and its architectures.
    pub fn resolve(mut self, s: Subject) -> Result<Self, String> {
        if !self.arch_map.is_empty() {
            if !self.architectures.is_empty() {
                return Err("the seccomp profile has both architectures and archMap".into());
            }
            for m in std::mem::take(&mut self.arch_map) {
                if m.architecture == NATIVE {
                    self.architectures.push(m.architecture);
                    self.architectures.extend(m.sub_architectures);
                }
            }
        }
        for r in &mut self.syscalls {
            r.includes.check().and_then(|()| r.excludes.check())?;
            match r.name.take() {
                Some(_) if !r.names.is_empty() => {
                    return Err("a seccomp rule has both name and names".into());
                }
                Some(n) => r.names.push(n),
                None if r.names.is_empty() => {
                    return Err("a seccomp rule names no system call".into());
                }
                None => {}
            }
        }
        self.syscalls
            .retain(|r| r.includes.includes(s) && !r.excludes.excludes(s));
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(json: &str, s: Subject) -> Result<Vec<String>, String> {
        let p = Profile::parse(json.as_bytes())?.resolve(s)?;
        Ok(p.syscalls.into_iter().flat_map(|r| r.names).collect())
    }

    #[test]
    fn conditions_of_docker_s_form_are_kept() {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":null,
            "archMap":[{{"architecture":"{NATIVE}","subArchitectures":["SCMP_ARCH_X86"]}},{{"architecture":"SCMP_ARCH_S390X"}}],
            "syscalls":[
              {{"names":["read"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"","includes":{{}},"excludes":{{}}}},
              {{"name":"mount","action":"SCMP_ACT_ALLOW","includes":{{"caps":["CAP_SYS_ADMIN"]}}}},
              {{"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{{"caps":["CAP_SYS_ADMIN"],"arches":["s390x"]}}}},
              {{"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{{"minKernel":"4.8"}}}},
              {{"names":["far"],"action":"SCMP_ACT_ALLOW","includes":{{"arches":["s390x"]}}}}]}}"#
        );
        let at = |caps, kernel| names(&json, Subject { caps, kernel }).unwrap();
        assert_eq!(at(0, (6, 1)), ["read", "clone", "ptrace"]);
        assert_eq!(at(caps::ALL, (4, 7)), ["read", "mount"]);
        let p = Profile::parse(json.as_bytes())
            .and_then(|p| {
                p.resolve(Subject {
                    caps: 0,
                    kernel: (6, 1),
                })
            })
            .unwrap();
        assert_eq!(p.architectures, [NATIVE, "SCMP_ARCH_X86"]);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let s = Subject {
            caps: 0,
            kernel: (6, 1),
        };
        for (json, want) in [
            (
                r#"{"defaultAction":"x","listenerPath":"/s"}"#,
                "listenerPath",
            ),
            (
                r#"{"defaultAction":"x","syscalls":[{"names":["a"],"action":"y","errno":1}]}"#,
                "errno",
            ),
            (
                r#"{"defaultAction":"x","syscalls":[{"action":"y"}]}"#,
                "names no system call",
            ),
            (
                r#"{"defaultAction":"x","syscalls":[{"names":["a"],"action":"y","includes":{"caps":["CAP_FLY"]}}]}"#,
                "CAP_FLY",
            ),
            (
                r#"{"defaultAction":"x","syscalls":[{"names":["a"],"action":"y","includes":{"minKernel":"new"}}]}"#,
                "minKernel",
            ),
            ("{}", "defaultAction"),
            ("{", "not valid"),
        ] {
            let e = names(json, s).unwrap_err();
            assert!(e.contains(want), "{want}: {e}");
        }
        let flags = |f: &str| {
            Profile::parse(format!(r#"{{"defaultAction":"x","flags":["{f}"]}}"#).as_bytes())
                .unwrap()
                .filter_flags()
        };
        assert_eq!(flags("SECCOMP_FILTER_FLAG_LOG"), Ok(2));
        assert!(flags("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV").is_err());
    }
}
