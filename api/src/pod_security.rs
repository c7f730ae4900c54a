//! The Pod Security Standards: the three levels, a namespace's labels, and what of a pod's spec breaks a level (upstream's
//! k8s.io/pod-security-admission/policy, whose words these are). Pure; whom it is asked about is admission's to decide.

use crate::field::FieldError;
use crate::kinds::util::{at, items, text, truth};
use serde_json::Value;
use std::collections::BTreeSet;

/// What all labels begin with.
pub const PREFIX: &str = "pod-security.kubernetes.io/";

/// The newest version whose checks are here, e.g. 36 for v1.36.
const NEWEST: u32 = 36;

/// A level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything is allowed.
    Privileged,
    /// What leads to the host is not.
    Baseline,
    /// Only what hardened pods have.
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A level as one version of Kubernetes has it; no version is the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The level.
    pub level: Level,
    /// The minor version, e.g. 25 for v1.25.
    pub minor: Option<u32>,
}

impl Policy {
    const PRIVILEGED: Self = Self {
        level: Level::Privileged,
        minor: None,
    };
    fn since(&self, minor: u32) -> bool {
        self.minor.unwrap_or(NEWEST) >= minor
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            None => write!(f, "{}:latest", self.level.name()),
            Some(m) => write!(f, "{}:v1.{m}", self.level.name()),
        }
    }
}

/// What a namespace asks of its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policies {
    /// What breaks it is refused.
    pub enforce: Policy,
    /// What breaks it is recorded.
    pub audit: Policy,
    /// What breaks it is told to the client.
    pub warn: Policy,
}

/// A version label: `latest` or `v1.N`.
fn version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let plain = minor == "0" || !minor.starts_with('0');
    (plain && minor.len() <= 3 && minor.bytes().all(|b| b.is_ascii_digit()))
        .then(|| minor.parse().ok().map(Some))
        .flatten()
}

/// The policies of a namespace, whose labels `get` knows, and what is wrong with them. A label that cannot be read counts as
/// the strictest for enforcement and as none otherwise, as upstream.
pub fn policies<'a>(get: impl Fn(&str) -> Option<&'a str>) -> (Policies, Vec<FieldError>) {
    let mut errors = Vec::new();
    let mut one = |mode: &str, broken: Level| {
        let mut policy = Policy::PRIVILEGED;
        let key = format!("{PREFIX}{mode}");
        let given = get(&key);
        if let Some(v) = given {
            policy.level = Level::parse(v).unwrap_or_else(|| {
                errors.push(FieldError::invalid(
                    format!("metadata.labels[{key}]"),
                    v,
                    "must be one of privileged, baseline, restricted",
                ));
                broken
            });
        }
        let key = format!("{PREFIX}{mode}-version");
        if let Some(v) = get(&key) {
            policy.minor = version(v).unwrap_or_else(|| {
                errors.push(FieldError::invalid(
                    format!("metadata.labels[{key}]"),
                    v,
                    "must be \"latest\" or \"v1.x\"",
                ));
                None
            });
        }
        (policy, given.is_some())
    };
    let (enforce, _) = one("enforce", Level::Restricted);
    let (audit, _) = one("audit", Level::Privileged);
    let (mut warn, warns) = one("warn", Level::Privileged);
    if !warns && enforce.level > warn.level {
        // Controllers' templates are not refused: whoever applies one is told that its pods will be.
        warn = enforce;
    }
    let all = Policies {
        enforce,
        audit,
        warn,
    };
    (all, errors)
}

/// What breaks a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// e.g. `hostPath volumes`
    pub reason: &'static str,
    /// Where, e.g. `volume "a"`.
    pub detail: String,
}

/// All violations in one line: `privileged (container "c" must not ...), hostPort (...)`.
pub fn shown(violations: &[Violation]) -> String {
    let all: Vec<String> = violations
        .iter()
        .map(|v| format!("{} ({})", v.reason, v.detail))
        .collect();
    all.join(", ")
}

/// What of a pod (its metadata and spec) breaks a policy, in upstream's order.
pub fn violations(policy: Policy, metadata: &Value, spec: &Value) -> Vec<Violation> {
    if policy.level == Level::Privileged {
        return Vec::new();
    }
    let restricted = policy.level == Level::Restricted;
    let windows = text(spec, "os.name") == "windows" && policy.since(25);
    let mut out = Vec::new();
    let mut add = |v: Option<Violation>| out.extend(v);
    if restricted && policy.since(8) && !windows {
        add(allow_privilege_escalation(spec));
    }
    add(app_armor(metadata, spec));
    if restricted && policy.since(22) && !windows {
        add(capabilities_restricted(spec));
    } else {
        add(capabilities_baseline(spec));
    }
    add(host_namespaces(spec));
    if !restricted {
        add(host_path(spec));
    }
    add(host_ports(spec));
    if policy.since(34) {
        add(host_probes(spec));
    }
    add(each(
        spec,
        |c| truth(c, "securityContext.privileged"),
        "privileged",
        "must not set securityContext.privileged=true",
    ));
    add(proc_mount(spec));
    if restricted {
        add(restricted_volumes(spec));
        add(run_as_non_root(spec));
        if policy.since(23) {
            add(run_as_user(spec));
        }
    }
    add(se_linux(spec, policy));
    if restricted && policy.since(19) && !windows {
        add(seccomp_restricted(spec));
    } else {
        add(seccomp_baseline(spec));
    }
    add(sysctls(spec, policy));
    add(windows_host_process(spec));
    out
}

/// All containers, in the order of the checks.
fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| items(spec, list))
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let all: Vec<String> = names.into_iter().map(|n| format!("{n:?}")).collect();
    all.join(", ")
}

fn plural(one: &'static str, many: &'static str, n: usize) -> &'static str {
    if n == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
fn named(names: &[&str]) -> String {
    format!(
        "{} {}",
        plural("container", "containers", names.len()),
        quoted(names.iter().copied())
    )
}

/// A rule that each container keeps for itself.
fn each(
    spec: &Value,
    bad: impl Fn(&Value) -> bool,
    reason: &'static str,
    rule: &str,
) -> Option<Violation> {
    let names: Vec<&str> = containers(spec)
        .filter(|c| bad(c))
        .map(|c| text(c, "name"))
        .collect();
    (!names.is_empty()).then(|| Violation {
        reason,
        detail: format!("{} {rule}", named(&names)),
    })
}

/// `pod and container "a"`: who sets what must not be set.
fn setters(pod: bool, names: &[&str]) -> String {
    let mut all = Vec::new();
    if pod {
        all.push("pod".to_string());
    }
    if !names.is_empty() {
        all.push(named(names));
    }
    all.join(" and ")
}

fn allow_privilege_escalation(spec: &Value) -> Option<Violation> {
    each(
        spec,
        |c| at(c, "securityContext.allowPrivilegeEscalation") != &Value::Bool(false),
        "allowPrivilegeEscalation != false",
        "must set securityContext.allowPrivilegeEscalation=false",
    )
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<Violation> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    fn wrong(v: &Value) -> Option<&str> {
        let kind = text(v, "securityContext.appArmorProfile.type");
        (!matches!(kind, "" | "RuntimeDefault" | "Localhost")).then_some(kind)
    }
    let mut values = BTreeSet::new();
    let pod = wrong(spec).inspect(|v| {
        values.insert(*v);
    });
    let names: Vec<&str> = containers(spec)
        .filter_map(|c| {
            values.insert(wrong(c)?);
            Some(text(c, "name"))
        })
        .collect();
    let annotations: Vec<(&str, &str)> = at(metadata, "annotations")
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, _)| k.starts_with(ANNOTATION))
        .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
        .filter(|(_, v)| !(v.is_empty() || *v == "runtime/default" || v.starts_with("localhost/")))
        .collect();
    let mut who = Vec::new();
    if pod.is_some() || !names.is_empty() {
        who.push(setters(pod.is_some(), &names));
    }
    if !annotations.is_empty() {
        who.push(format!(
            "{} {}",
            plural("annotation", "annotations", annotations.len()),
            quoted(annotations.iter().map(|(k, _)| *k))
        ));
        values.extend(annotations.iter().map(|(_, v)| *v));
    }
    (!who.is_empty()).then(|| Violation {
        reason: plural(
            "forbidden AppArmor profile",
            "forbidden AppArmor profiles",
            values.len(),
        ),
        detail: format!(
            "{} must not set AppArmor profile type to {}",
            who.join(" and "),
            quoted(values)
        ),
    })
}

fn added<'a>(container: &'a Value) -> impl Iterator<Item = &'a str> {
    items(container, "securityContext.capabilities.add")
        .iter()
        .filter_map(Value::as_str)
}

/// Containers that add other capabilities than these, and which.
fn forbidden_capabilities(spec: &Value, allowed: &[&str]) -> Option<String> {
    let mut bad = BTreeSet::new();
    let names: Vec<&str> = containers(spec)
        .filter(|c| {
            let before: Vec<&str> = added(c).filter(|k| !allowed.contains(k)).collect();
            bad.extend(before.iter().copied());
            !before.is_empty()
        })
        .map(|c| text(c, "name"))
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            named(&names),
            quoted(bad)
        )
    })
}

fn capabilities_baseline(spec: &Value) -> Option<Violation> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    forbidden_capabilities(spec, &ALLOWED).map(|detail| Violation {
        reason: "non-default capabilities",
        detail,
    })
}

fn capabilities_restricted(spec: &Value) -> Option<Violation> {
    let keeping: Vec<&str> = containers(spec)
        .filter(|c| {
            !items(c, "securityContext.capabilities.drop")
                .iter()
                .any(|k| k == "ALL")
        })
        .map(|c| text(c, "name"))
        .collect();
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            named(&keeping)
        ));
    }
    details.extend(forbidden_capabilities(spec, &["NET_BIND_SERVICE"]));
    (!details.is_empty()).then(|| Violation {
        reason: "unrestricted capabilities",
        detail: details.join("; "),
    })
}

fn host_namespaces(spec: &Value) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|k| truth(spec, k))
        .map(|k| format!("{k}=true"))
        .collect();
    (!set.is_empty()).then(|| Violation {
        reason: "host namespaces",
        detail: set.join(", "),
    })
}

fn host_path(spec: &Value) -> Option<Violation> {
    let names: Vec<&str> = items(spec, "volumes")
        .iter()
        .filter(|v| !at(v, "hostPath").is_null())
        .map(|v| text(v, "name"))
        .collect();
    (!names.is_empty()).then(|| Violation {
        reason: "hostPath volumes",
        detail: format!(
            "{} {}",
            plural("volume", "volumes", names.len()),
            quoted(names.iter().copied())
        ),
    })
}

fn host_ports(spec: &Value) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names: Vec<&str> = containers(spec)
        .filter(|c| {
            let used: Vec<i64> = items(c, "ports")
                .iter()
                .filter_map(|p| at(p, "hostPort").as_i64())
                .filter(|p| *p != 0)
                .collect();
            ports.extend(used.iter().copied());
            !used.is_empty()
        })
        .map(|c| text(c, "name"))
        .collect();
    let shown: Vec<String> = ports.iter().map(ToString::to_string).collect();
    (!names.is_empty()).then(|| Violation {
        reason: "hostPort",
        detail: format!(
            "{} {} {} {}",
            named(&names),
            plural("uses", "use", names.len()),
            plural("hostPort", "hostPorts", shown.len()),
            shown.join(", ")
        ),
    })
}

fn host_probes(spec: &Value) -> Option<Violation> {
    const HANDLERS: [&str; 5] = [
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle.postStart",
        "lifecycle.preStop",
    ];
    let mut hosts = BTreeSet::new();
    let names: Vec<&str> = containers(spec)
        .filter(|c| {
            let used: Vec<&str> = HANDLERS
                .into_iter()
                .flat_map(|h| ["httpGet", "tcpSocket"].map(|a| format!("{h}.{a}.host")))
                .map(|path| text(c, &path))
                .filter(|h| !h.is_empty())
                .collect();
            hosts.extend(used.iter().copied());
            !used.is_empty()
        })
        .map(|c| text(c, "name"))
        .collect();
    let word = plural(
        "probe or lifecycle host",
        "probe or lifecycle hosts",
        hosts.len(),
    );
    (!names.is_empty()).then(|| Violation {
        reason: "probe or lifecycle host",
        detail: format!(
            "{} {} {word} {}",
            named(&names),
            plural("uses", "use", names.len()),
            quoted(hosts)
        ),
    })
}

fn proc_mount(spec: &Value) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let names: Vec<&str> = containers(spec)
        .filter(|c| {
            let v = text(c, "securityContext.procMount");
            let bad = !matches!(v, "" | "Default");
            if bad {
                values.insert(v);
            }
            bad
        })
        .map(|c| text(c, "name"))
        .collect();
    (!names.is_empty()).then(|| Violation {
        reason: "procMount",
        detail: format!(
            "{} must not set securityContext.procMount to {}",
            named(&names),
            quoted(values)
        ),
    })
}

fn restricted_volumes(spec: &Value) -> Option<Violation> {
    const ALLOWED: [&str; 8] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let mut types = BTreeSet::new();
    let names: Vec<&str> = items(spec, "volumes")
        .iter()
        .filter(|v| ALLOWED.iter().all(|k| at(v, k).is_null()))
        .map(|v| {
            let kind = v
                .as_object()
                .into_iter()
                .flatten()
                .find(|(k, x)| *k != "name" && !x.is_null());
            types.insert(kind.map_or("unknown", |(k, _)| k.as_str()));
            text(v, "name")
        })
        .collect();
    let word = plural(
        "restricted volume type",
        "restricted volume types",
        types.len(),
    );
    (!names.is_empty()).then(|| Violation {
        reason: "restricted volume types",
        detail: format!(
            "{} {} {} {word} {}",
            plural("volume", "volumes", names.len()),
            quoted(names.iter().copied()),
            plural("uses", "use", names.len()),
            quoted(types)
        ),
    })
}

fn run_as_non_root(spec: &Value) -> Option<Violation> {
    let path = "securityContext.runAsNonRoot";
    let pod = at(spec, path).as_bool();
    let (mut explicit, mut implicit) = (Vec::new(), Vec::new());
    for c in containers(spec) {
        match at(c, path).as_bool() {
            Some(false) => explicit.push(text(c, "name")),
            None if pod != Some(true) => implicit.push(text(c, "name")),
            _ => {}
        }
    }
    let reason = "runAsNonRoot != true";
    if pod == Some(false) || !explicit.is_empty() {
        let who = setters(pod == Some(false), &explicit);
        return Some(Violation {
            reason,
            detail: format!("{who} must not set securityContext.runAsNonRoot=false"),
        });
    }
    (!implicit.is_empty()).then(|| Violation {
        reason,
        detail: format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            named(&implicit)
        ),
    })
}

fn run_as_user(spec: &Value) -> Option<Violation> {
    let root = |v: &Value| at(v, "securityContext.runAsUser").as_i64() == Some(0);
    let names: Vec<&str> = containers(spec)
        .filter(|c| root(c))
        .map(|c| text(c, "name"))
        .collect();
    (root(spec) || !names.is_empty()).then(|| Violation {
        reason: "runAsUser=0",
        detail: format!("{} must not set runAsUser=0", setters(root(spec), &names)),
    })
}

fn se_linux(spec: &Value, policy: Policy) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |options: &Value| -> bool {
        let kind = text(options, "type").to_string();
        let allowed = matches!(
            kind.as_str(),
            "" | "container_t" | "container_init_t" | "container_kvm_t"
        ) || (kind == "container_engine_t" && policy.since(31));
        let (u, r) = (
            !text(options, "user").is_empty(),
            !text(options, "role").is_empty(),
        );
        if !allowed {
            types.insert(kind);
        }
        user |= u;
        role |= r;
        !allowed || u || r
    };
    let path = "securityContext.seLinuxOptions";
    let pod = bad(at(spec, path));
    let names: Vec<&str> = containers(spec)
        .filter(|c| bad(at(c, path)))
        .map(|c| text(c, "name"))
        .collect();
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!(
            "{} {}",
            plural("type", "types", types.len()),
            quoted(types.iter().map(String::as_str))
        ));
    }
    if user {
        what.push("user may not be set".into());
    }
    if role {
        what.push("role may not be set".into());
    }
    (pod || !names.is_empty()).then(|| Violation {
        reason: "seLinuxOptions",
        detail: format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            setters(pod, &names),
            what.join("; ")
        ),
    })
}

const SECCOMP: &str = "securityContext.seccompProfile";

fn seccomp_explicit(spec: &Value, allowed: impl Fn(&str) -> bool) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut bad = |v: &Value| {
        let profile = at(v, SECCOMP);
        let kind = text(profile, "type").to_string();
        let bad = !profile.is_null() && !allowed(&kind);
        if bad {
            values.insert(kind);
        }
        bad
    };
    let pod = bad(spec);
    let names: Vec<&str> = containers(spec)
        .filter(|c| bad(c))
        .map(|c| text(c, "name"))
        .collect();
    (pod || !names.is_empty()).then(|| Violation {
        reason: "seccompProfile",
        detail: format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            setters(pod, &names),
            quoted(values.iter().map(String::as_str))
        ),
    })
}

fn seccomp_baseline(spec: &Value) -> Option<Violation> {
    seccomp_explicit(spec, |t| matches!(t, "" | "RuntimeDefault" | "Localhost"))
}

fn seccomp_restricted(spec: &Value) -> Option<Violation> {
    let allowed = |t: &str| matches!(t, "RuntimeDefault" | "Localhost");
    if let Some(v) = seccomp_explicit(spec, allowed) {
        return Some(v);
    }
    if !at(spec, SECCOMP).is_null() {
        return None;
    }
    let names: Vec<&str> = containers(spec)
        .filter(|c| at(c, SECCOMP).is_null())
        .map(|c| text(c, "name"))
        .collect();
    (!names.is_empty()).then(|| Violation {
        reason: "seccompProfile",
        detail: format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            named(&names)
        ),
    })
}

fn sysctls(spec: &Value, policy: Policy) -> Option<Violation> {
    /// Since which version a sysctl is allowed.
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let names: Vec<&str> = items(spec, "securityContext.sysctls")
        .iter()
        .map(|s| text(s, "name"))
        .filter(|n| {
            !ALLOWED
                .iter()
                .any(|(name, minor)| name == n && policy.since(*minor))
        })
        .collect();
    (!names.is_empty()).then(|| Violation {
        reason: "forbidden sysctls",
        detail: names.join(", "),
    })
}

fn windows_host_process(spec: &Value) -> Option<Violation> {
    let path = "securityContext.windowsOptions.hostProcess";
    let names: Vec<&str> = containers(spec)
        .filter(|c| truth(c, path))
        .map(|c| text(c, "name"))
        .collect();
    let pod = truth(spec, path);
    (pod || !names.is_empty()).then(|| Violation {
        reason: "hostProcess",
        detail: format!(
            "{} must not set securityContext.windowsOptions.hostProcess=true",
            setters(pod, &names)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const BASELINE: Policy = Policy {
        level: Level::Baseline,
        minor: None,
    };
    const RESTRICTED: Policy = Policy {
        level: Level::Restricted,
        minor: None,
    };

    fn hardened() -> Value {
        json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {}}, {"name": "p", "projected": {}}]})
    }

    fn check(policy: Policy, spec: Value) -> String {
        shown(&violations(policy, &json!({}), &spec))
    }

    #[test]
    fn a_plain_pod_is_baseline_and_a_hardened_one_restricted() {
        let plain = json!({"containers": [{"name": "c"}]});
        assert_eq!(check(BASELINE, plain.clone()), "");
        assert_eq!(
            check(RESTRICTED, plain),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        assert_eq!(check(RESTRICTED, hardened()), "");
    }

    #[test]
    fn what_leads_to_the_host_breaks_the_baseline_in_every_kind_of_container() {
        let host = json!({"hostNetwork": true, "hostPID": true, "hostIPC": true, "containers": [{"name": "c"}]});
        assert_eq!(
            check(BASELINE, host),
            "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)"
        );
        let volumes = json!({"containers": [], "volumes": [{"name": "a", "hostPath": {"path": "/"}}, {"name": "b", "hostPath": {}}, {"name": "n", "nfs": {}}]});
        assert_eq!(
            check(BASELINE, volumes.clone()),
            "hostPath volumes (volumes \"a\", \"b\")"
        );
        assert_eq!(
            check(RESTRICTED, volumes),
            "restricted volume types (volumes \"a\", \"b\", \"n\" use restricted volume types \"hostPath\", \"nfs\")"
        );
        for list in ["initContainers", "containers", "ephemeralContainers"] {
            for (context, want) in [
                (
                    json!({"privileged": true}),
                    "privileged (container \"x\" must not set securityContext.privileged=true)",
                ),
                (
                    json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN", "NET_ADMIN"]}}),
                    "non-default capabilities (container \"x\" must not include \"NET_ADMIN\", \"SYS_ADMIN\" in securityContext.capabilities.add)",
                ),
                (
                    json!({"procMount": "Unmasked"}),
                    "procMount (container \"x\" must not set securityContext.procMount to \"Unmasked\")",
                ),
                (
                    json!({"seccompProfile": {"type": "Unconfined"}}),
                    "seccompProfile (container \"x\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
                ),
                (
                    json!({"appArmorProfile": {"type": "Unconfined"}}),
                    "forbidden AppArmor profile (container \"x\" must not set AppArmor profile type to \"Unconfined\")",
                ),
                (
                    json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}}),
                    "seLinuxOptions (container \"x\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
                ),
                (
                    json!({"seLinuxOptions": {"role": "r"}}),
                    "seLinuxOptions (container \"x\" set forbidden securityContext.seLinuxOptions: role may not be set)",
                ),
                (
                    json!({"windowsOptions": {"hostProcess": true}}),
                    "hostProcess (container \"x\" must not set securityContext.windowsOptions.hostProcess=true)",
                ),
            ] {
                let mut spec = json!({"containers": [{"name": "c"}]});
                spec[list] = json!([{"name": "x", "securityContext": context}]);
                assert_eq!(check(BASELINE, spec), want, "{list}");
            }
        }
        let ports = json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}, {"containerPort": 1}]}, {"name": "d", "ports": [{"hostPort": 81}]}]});
        assert_eq!(
            check(BASELINE, ports),
            "hostPort (containers \"c\", \"d\" use hostPorts 80, 81)"
        );
        let probe = json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}, "lifecycle": {"preStop": {"tcpSocket": {"host": "::1"}}}}]});
        assert_eq!(
            check(BASELINE, probe.clone()),
            "probe or lifecycle host (container \"c\" uses probe or lifecycle hosts \"10.0.0.1\", \"::1\")"
        );
        let before = Policy {
            minor: Some(33),
            ..BASELINE
        };
        assert_eq!(check(before, probe), "");
        let annotated = violations(
            BASELINE,
            &json!({"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined", "other": "unconfined"}}),
            &json!({"containers": [{"name": "c"}]}),
        );
        assert_eq!(annotated.len(), 1, "{annotated:?}");
    }

    #[test]
    fn sysctls_are_allowed_from_their_version_on() {
        let spec = json!({"containers": [], "securityContext": {"sysctls": [
            {"name": "net.ipv4.tcp_rmem"}, {"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_syncookies"}]}});
        assert_eq!(
            check(BASELINE, spec.clone()),
            "forbidden sysctls (kernel.msgmax)"
        );
        let old = Policy {
            minor: Some(31),
            ..BASELINE
        };
        assert_eq!(
            check(old, spec),
            "forbidden sysctls (net.ipv4.tcp_rmem, kernel.msgmax)"
        );
    }

    #[test]
    fn each_part_of_the_restricted_level_is_needed() {
        assert_eq!(check(RESTRICTED, hardened()), "");
        for (pointer, value, want) in [
            (
                "/securityContext/runAsNonRoot",
                json!(false),
                "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false)",
            ),
            (
                "/securityContext/runAsUser",
                json!(0),
                "runAsUser=0 (pod must not set runAsUser=0)",
            ),
            (
                "/containers/0/securityContext/runAsUser",
                json!(0),
                "runAsUser=0 (container \"c\" must not set runAsUser=0)",
            ),
            (
                "/containers/0/securityContext/runAsNonRoot",
                json!(false),
                "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)",
            ),
            (
                "/containers/0/securityContext/capabilities",
                json!({"drop": ["ALL"], "add": ["CHOWN"]}),
                "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
            ),
            (
                "/containers/0/securityContext/allowPrivilegeEscalation",
                json!(true),
                "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
            ),
            (
                "/containers/0/securityContext/seccompProfile",
                json!({"type": "Unconfined"}),
                "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
        ] {
            let mut spec = hardened();
            let (parent, key) = pointer.rsplit_once('/').expect("a key");
            spec.pointer_mut(parent).expect("there")[key] = value;
            assert_eq!(check(RESTRICTED, spec), want);
        }
        // An ephemeral or init container is a container.
        for list in ["initContainers", "ephemeralContainers"] {
            let mut spec = hardened();
            spec[list] = json!([{"name": "i"}]);
            assert!(check(RESTRICTED, spec).contains("\"i\""), "{list}");
        }
    }

    #[test]
    fn labels_are_read_and_what_cannot_be_is_the_strictest() {
        let read = |labels: Value| {
            let (p, errors) = policies(|k| labels.get(k).and_then(Value::as_str));
            (
                p.enforce.to_string(),
                p.audit.to_string(),
                p.warn.to_string(),
                errors
                    .into_iter()
                    .map(|e| e.to_string())
                    .collect::<Vec<_>>(),
            )
        };
        let privileged = || "privileged:latest".to_string();
        assert_eq!(
            read(json!({})),
            (privileged(), privileged(), privileged(), vec![])
        );
        let (enforce, audit, warn, errors) = read(json!({
            "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.30"}));
        assert_eq!(
            (enforce.as_str(), audit, warn.as_str(), errors.len()),
            ("baseline:v1.30", privileged(), "baseline:v1.30", 0)
        );
        let (enforce, audit, warn, errors) = read(json!({
            "pod-security.kubernetes.io/enforce": "strict", "pod-security.kubernetes.io/audit": "x",
            "pod-security.kubernetes.io/warn": "privileged", "pod-security.kubernetes.io/warn-version": "1.30"}));
        assert_eq!(
            (enforce.as_str(), audit, warn, errors.len()),
            ("restricted:latest", privileged(), privileged(), 3)
        );
        assert_eq!(
            errors[0],
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
        );
    }
}
