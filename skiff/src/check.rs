//! `skiff check`: what this machine lacks, with the exact mend. Owns the questions; changes nothing on the machine.

use std::path::Path;

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// How it stands.
    pub state: State,
}

/// How a thing stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// As it should be; the text says what was found.
    Good(String),
    /// Skiff works, with less; the text says with what less and how to mend it.
    Less(String),
    /// Skiff cannot run; the text says how to mend it.
    Missing(String),
}

fn finding(what: &str, state: State) -> Finding {
    Finding {
        what: what.into(),
        state,
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Looks at the machine.
pub fn look(data_dir: &Path) -> Vec<Finding> {
    let mut out = vec![root(rustix::process::geteuid().is_root())];
    out.push(kernel(&read("/proc/sys/kernel/osrelease")));
    out.extend(namespaces(|name| {
        Path::new("/proc/self/ns").join(name).exists()
    }));
    out.push(filesystem(
        "overlay",
        &read("/proc/filesystems"),
        module("overlay"),
    ));
    out.extend(isolation());
    out.extend(skiff_network::probe::probe().into_iter().map(|f| {
        finding(
            f.what,
            f.missing
                .map_or(State::Good("tried, works".into()), State::Missing),
        )
    }));
    out.push(forwarding(&read("/proc/sys/net/ipv4/ip_forward")));
    out.push(capabilities(&read("/proc/self/status")));
    out.push(space(data_dir));
    out
}

/// Loaded, built in or loadable.
fn module(name: &str) -> Option<bool> {
    if Path::new("/sys/module").join(name).exists() {
        return Some(true);
    }
    let release = read("/proc/sys/kernel/osrelease");
    let dir = Path::new("/lib/modules").join(release.trim());
    let listed = |file: &str| {
        std::fs::read_to_string(dir.join(file))
            .ok()
            .map(|t| t.contains(&format!("/{name}.ko")))
    };
    match (listed("modules.builtin"), listed("modules.dep")) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(false) || b.unwrap_or(false)),
    }
}

fn root(is_root: bool) -> Finding {
    finding(
        "root",
        if is_root {
            State::Good("yes".into())
        } else {
            State::Missing("containers need root: run it again with sudo".into())
        },
    )
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let text = release.trim().to_string();
    finding(
        "kernel",
        if version >= (5, 10) {
            State::Good(text)
        } else {
            State::Missing(format!("{text} is too old: 5.10 or newer is needed"))
        },
    )
}

fn namespaces(has: impl Fn(&str) -> bool) -> Vec<Finding> {
    ["mnt", "pid", "net", "ipc", "uts", "cgroup"]
        .into_iter()
        .filter(|n| !has(n))
        .map(|n| {
            finding(
                &format!("{n} namespaces"),
                State::Missing(
                    "the kernel was built without them: use a distribution's kernel".into(),
                ),
            )
        })
        .collect()
}

fn filesystem(name: &str, filesystems: &str, module: Option<bool>) -> Finding {
    let there = filesystems
        .lines()
        .any(|l| l.split_whitespace().last() == Some(name));
    finding(
        &format!("{name} file system"),
        if there || module == Some(true) {
            State::Good("yes".into())
        } else {
            State::Missing(format!("run: modprobe {name}"))
        },
    )
}

/// What holds containers back: without one of these they run all the same, with more than they were given, so a server
/// does not start in silence.
pub fn isolation() -> Vec<Finding> {
    let mut out = match skiff_cgroup::check::look() {
        Ok(facts) => cgroups(&facts),
        Err(e) => vec![finding(
            "cgroups",
            State::Missing(format!(
                "/proc/self/mountinfo cannot be read ({e}): mount /proc"
            )),
        )],
    };
    out.push(seccomp(&read("/proc/self/status")));
    out
}

/// The reason not to start on a machine that cannot hold containers back; None where it can.
pub fn refusal(findings: &[Finding]) -> Option<String> {
    let missing: Vec<String> = findings
        .iter()
        .filter_map(|f| match &f.state {
            State::Missing(t) => Some(format!("{}: {t}", f.what)),
            _ => None,
        })
        .collect();
    (!missing.is_empty()).then(|| missing.join("; "))
}

fn cgroups(facts: &skiff_cgroup::check::Facts) -> Vec<Finding> {
    let lacks = skiff_cgroup::check::lacks(facts);
    if lacks.is_empty() {
        let version = if facts.hierarchies.is_v2() {
            "v2"
        } else {
            "v1"
        };
        return vec![finding("cgroups", State::Good(version.into()))];
    }
    lacks
        .into_iter()
        .map(|l| finding(&l.what, State::Missing(format!("{}; {}", l.effect, l.mend))))
        .collect()
}

fn seccomp(status: &str) -> Finding {
    finding(
        "seccomp",
        if status
            .lines()
            .any(|l| l.starts_with("Seccomp_filters:") || l.starts_with("Seccomp:"))
        {
            State::Good("yes".into())
        } else {
            State::Missing(
                "containers make every system call; use a kernel with CONFIG_SECCOMP_FILTER".into(),
            )
        },
    )
}

fn forwarding(value: &str) -> Finding {
    finding(
        "IPv4 forwarding",
        match value.trim() {
            "1" => State::Good("on".into()),
            "0" => State::Good("off; the server turns it on".into()),
            _ => State::Missing("/proc/sys/net/ipv4/ip_forward cannot be read: mount /proc".into()),
        },
    )
}

fn capabilities(status: &str) -> Finding {
    let bits = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| bits & (1 << bit) != 0;
    let state = if !has(21) || !has(12) {
        State::Missing("CAP_SYS_ADMIN and CAP_NET_ADMIN are needed: run it as full root, in a privileged container".into())
    } else if !has(24) {
        State::Less(
            "without CAP_SYS_RESOURCE hard limits are not raised and oom_score_adj is not lowered: grant it".into(),
        )
    } else {
        State::Good("all".into())
    };
    finding("capabilities", state)
}

fn space(dir: &Path) -> Finding {
    let mut at = dir;
    while !at.exists() {
        match at.parent() {
            Some(p) => at = p,
            None => break,
        }
    }
    let what = format!("space in {}", dir.display());
    let Ok(s) = rustix::fs::statvfs(at) else {
        return finding(
            &what,
            State::Missing(format!("{} cannot be read: mend its rights", at.display())),
        );
    };
    let free = s.f_bavail.saturating_mul(s.f_frsize) / (1 << 20);
    finding(
        &what,
        if free < 512 {
            State::Missing(format!("{free} MiB free: 512 MiB or more are needed"))
        } else {
            State::Good(format!("{free} MiB free"))
        },
    )
}

/// The findings as lines, and whether Skiff can run.
pub fn report(findings: &[Finding]) -> (String, bool) {
    let mut text = String::new();
    let mut able = true;
    for f in findings {
        let (mark, note) = match &f.state {
            State::Good(t) => ("ok  ", t),
            State::Less(t) => ("less", t),
            State::Missing(t) => {
                able = false;
                ("NO  ", t)
            }
        };
        text.push_str(&format!("{mark}  {}: {note}\n", f.what));
    }
    (text, able)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_isolation_is_missing_is_a_reason_not_to_start() {
        let v1: String = ["cpu", "memory", "devices", "pids"]
            .iter()
            .enumerate()
            .map(|(n, c)| format!("{n} 2 0:{n} / /sys/fs/cgroup/{c} rw - cgroup cgroup rw,{c}\n"))
            .collect();
        let of = |mountinfo: &str| {
            cgroups(&skiff_cgroup::check::Facts {
                hierarchies: skiff_cgroup::Hierarchies::parse(mountinfo),
                ..Default::default()
            })
        };
        assert_eq!(of(&v1), [finding("cgroups", State::Good("v1".into()))]);
        assert_eq!(refusal(&of(&v1)), None);
        let why = refusal(&of(&v1.replace("rw,memory", "rw,x"))).unwrap();
        assert!(why.contains("memory") && !why.contains("pids"), "{why}");
        assert!(refusal(&of("")).unwrap().contains("mount -t cgroup2"));
        assert!(
            refusal(&[seccomp("Name:\tx\n")])
                .unwrap()
                .contains("seccomp")
        );
        assert_eq!(refusal(&[seccomp("Seccomp:\t0\n")]), None);
    }

    #[test]
    fn old_kernels_and_missing_rights_are_named() {
        assert!(matches!(kernel("5.4.0-1").state, State::Missing(_)));
        assert!(matches!(kernel("6.1.0-9-amd64").state, State::Good(_)));
        assert!(matches!(root(false).state, State::Missing(_)));
        assert!(matches!(
            capabilities("CapEff:\t0000000000000000").state,
            State::Missing(_)
        ));
        assert!(matches!(
            capabilities("CapEff:\t000001fffeffffff").state,
            State::Less(_)
        ));
        assert!(matches!(
            capabilities("CapEff:\t000001ffffffffff").state,
            State::Good(_)
        ));
    }

    #[test]
    fn one_missing_thing_is_enough_to_say_no() {
        let (text, able) = report(&[root(true), root(false)]);
        assert!(!able);
        assert!(text.contains("NO    root"));
    }
}
