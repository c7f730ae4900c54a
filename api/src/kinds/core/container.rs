//! Validation of containers: the three lists of a pod spec and what a container holds (validateContainers,
//! validateInitContainers, validateEphemeralContainers and below of pkg/apis/core/validation).

use super::security_context;
use super::{env, resources, volume};
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
const LIFECYCLE_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];
const MAY_NOT_INIT: &str = "may not be set for init containers without restartPolicy=Always";

/// What container rules need to know of their pod.
pub struct PodFacts<'a> {
    /// The pod's volumes by name.
    pub volumes: HashMap<&'a str, &'a Value>,
    /// In a pod (not in a template): some rules are stricter there.
    pub is_pod: bool,
    /// The pod's terminationGracePeriodSeconds.
    pub grace: Option<i64>,
    /// spec.os.name, empty when not said.
    pub os: &'a str,
    /// Has the pod a user namespace of its own (hostUsers: false)?
    pub own_users: bool,
}

/// All containers of the spec, in upstream's order.
pub fn validate_all(spec: &Value, facts: &PodFacts<'_>, path: &Path<'_>, errs: &mut Errors) {
    let containers = items(spec, "containers");
    let inits = items(spec, "initContainers");
    let ephemerals = items(spec, "ephemeralContainers");

    let cp = path.child("containers");
    if containers.is_empty() {
        errs.push(FieldError::required(cp, ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, c) in containers.iter().enumerate() {
        let p = cp.index(i);
        common(c, facts, &p, errs);
        let name = text(c, "name");
        if names.contains(&name) && !name.is_empty() {
            errs.push(FieldError::duplicate(p.child("name"), name));
        }
        names.push(name);
        lifecycle_and_probes(c, facts, &p, errs);
        one_of(
            c,
            "restartPolicy",
            &["Always", "Never", "OnFailure"],
            &p,
            errs,
        );
    }
    host_port_conflicts(containers, &cp, errs);

    let ip = path.child("initContainers");
    for (i, c) in inits.iter().enumerate() {
        let p = ip.index(i);
        common(c, facts, &p, errs);
        let name = text(c, "name");
        if names.contains(&name) && !name.is_empty() {
            errs.push(FieldError::duplicate(p.child("name"), name));
        }
        names.push(name);
        host_port_conflicts(std::slice::from_ref(c), &ip, errs);
        one_of(
            c,
            "restartPolicy",
            &["Always", "Never", "OnFailure"],
            &p,
            errs,
        );
        if text(c, "restartPolicy") == "Always" {
            lifecycle_and_probes(c, facts, &p, errs);
        } else {
            for key in [
                "lifecycle",
                "livenessProbe",
                "readinessProbe",
                "startupProbe",
            ] {
                if has(c, key) {
                    errs.push(FieldError::forbidden(p.child(key), MAY_NOT_INIT));
                }
            }
            if !is_empty(at(c, "resizePolicy")) {
                errs.push(FieldError::invalid(
                    p.child("resizePolicy"),
                    at(c, "resizePolicy").clone(),
                    "must not be set for init containers",
                ));
            }
        }
    }

    let ep = path.child("ephemeralContainers");
    let targets: HashSet<&str> = names.iter().copied().collect();
    for (i, c) in ephemerals.iter().enumerate() {
        let p = ep.index(i);
        common(c, facts, &p, errs);
        let name = text(c, "name");
        if names.contains(&name) && !name.is_empty() {
            errs.push(FieldError::duplicate(p.child("name"), name));
        }
        names.push(name);
        let target = text(c, "targetContainerName");
        if !target.is_empty() && !targets.contains(target) {
            errs.push(FieldError::not_found(
                p.child("targetContainerName"),
                target,
            ));
        }
        for key in [
            "lifecycle",
            "livenessProbe",
            "ports",
            "readinessProbe",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "startupProbe",
        ] {
            if !is_empty(at(c, key)) {
                errs.push(FieldError::forbidden(
                    p.child(key),
                    "cannot be set for an Ephemeral Container",
                ));
            }
        }
        if !is_empty(at(c, "resources.limits")) || !is_empty(at(c, "resources.requests")) {
            errs.push(FieldError::forbidden(
                p.child("resources"),
                "cannot be set for an Ephemeral Container",
            ));
        }
        for (j, m) in items(c, "volumeMounts").iter().enumerate() {
            let mp = p.child("volumeMounts");
            let m_path = mp.index(j);
            for key in ["subPath", "subPathExpr"] {
                if !text(m, key).is_empty() {
                    errs.push(FieldError::forbidden(
                        m_path.child(key),
                        "cannot be set for an Ephemeral Container",
                    ));
                }
            }
        }
    }
}

/// validateContainerCommon.
fn common(c: &Value, facts: &PodFacts<'_>, p: &Path<'_>, errs: &mut Errors) {
    let name = text(c, "name");
    if name.is_empty() {
        errs.push(FieldError::required(p.child("name"), ""));
    } else {
        check::dns_label(name, &p.child("name"), errs);
    }
    let image = text(c, "image");
    if image.is_empty() {
        errs.push(FieldError::required(p.child("image"), ""));
    } else if facts.is_pod && image.trim() != image {
        errs.push(FieldError::invalid(
            p.child("image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(
        c,
        "terminationMessagePolicy",
        &["File", "FallbackToLogsOnError"],
        p,
        errs,
    );
    ports(items(c, "ports"), &p.child("ports"), errs);
    env::env(items(c, "env"), &p.child("env"), errs);
    env::env_from(items(c, "envFrom"), &p.child("envFrom"), errs);
    let privileged = truth(c, "securityContext.privileged");
    volume_mounts(c, privileged, facts, &p.child("volumeMounts"), errs);
    volume_devices(c, facts, &p.child("volumeDevices"), errs);
    one_of(c, "imagePullPolicy", PULL_POLICIES, p, errs);
    resources::validate_container(at(c, "resources"), &p.child("resources"), errs);
    security_context::container(at(c, "securityContext"), &p.child("securityContext"), errs);
    if text(c, "securityContext.procMount") == "Unmasked" && !facts.own_users {
        let sp = p.child("securityContext");
        errs.push(FieldError::invalid(
            sp.child("procMount"),
            "Unmasked",
            "`hostUsers` must be false to use `Unmasked`",
        ));
    }
    if facts.os == "linux" && has(c, "securityContext.windowsOptions") {
        let sp = p.child("securityContext");
        errs.push(FieldError::forbidden(
            sp.child("windowsOptions"),
            "windows options cannot be set for a linux pod",
        ));
    }
    for (i, r) in items(c, "resizePolicy").iter().enumerate() {
        let rp = p.child("resizePolicy");
        let ip = rp.index(i);
        one_of(r, "resourceName", &["cpu", "memory"], &ip, errs);
        one_of(
            r,
            "restartPolicy",
            &["NotRequired", "RestartContainer"],
            &ip,
            errs,
        );
    }
}

fn ports(list: &[Value], path: &Path<'_>, errs: &mut Errors) {
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in list.iter().enumerate() {
        let p = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let before = errs.len();
            check::port_name(name, &p.child("name"), errs);
            if errs.len() == before {
                if names.contains(&name) {
                    errs.push(FieldError::duplicate(p.child("name"), name));
                } else {
                    names.push(name);
                }
            }
        }
        match int0(port, "containerPort") {
            0 => errs.push(FieldError::required(p.child("containerPort"), "")),
            n => check::port_number(n, &p.child("containerPort"), errs),
        }
        match int0(port, "hostPort") {
            0 => {}
            n => check::port_number(n, &p.child("hostPort"), errs),
        }
        if text(port, "protocol").is_empty() {
            errs.push(FieldError::required(p.child("protocol"), ""));
        }
        one_of(port, "protocol", PROTOCOLS, &p, errs);
    }
}

/// Two containers of a pod may not ask for the same port of the host.
fn host_port_conflicts(containers: &[Value], path: &Path<'_>, errs: &mut Errors) {
    let mut seen: Vec<String> = Vec::new();
    for (i, c) in containers.iter().enumerate() {
        for (j, port) in items(c, "ports").iter().enumerate() {
            let n = int0(port, "hostPort");
            if n == 0 {
                continue;
            }
            let key = format!("{}/{}/{n}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&key) {
                let cp = path.index(i);
                let list = cp.child("ports");
                errs.push(FieldError::duplicate(list.index(j).child("hostPort"), key));
            } else {
                seen.push(key);
            }
        }
    }
}

/// With the host's network the host port is the container port (in templates it may be left out).
pub fn host_network_ports(spec: &Value, is_pod: bool, path: &Path<'_>, errs: &mut Errors) {
    if !truth(spec, "hostNetwork") {
        return;
    }
    let cp = path.child("containers");
    for (i, c) in items(spec, "containers").iter().enumerate() {
        for (j, port) in items(c, "ports").iter().enumerate() {
            let (host, container) = (int0(port, "hostPort"), int0(port, "containerPort"));
            if (is_pod || host != 0) && host != container {
                let ip = cp.index(i);
                let list = ip.child("ports");
                errs.push(FieldError::invalid(
                    list.index(j).child("hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

fn volume_mounts(
    c: &Value,
    privileged: bool,
    facts: &PodFacts<'_>,
    path: &Path<'_>,
    errs: &mut Errors,
) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, m) in items(c, "volumeMounts").iter().enumerate() {
        let p = path.index(i);
        let name = require(m, "name", &p, errs);
        if !facts.volumes.contains_key(name) {
            errs.push(FieldError::not_found(p.child("name"), name));
        }
        let mount_path = require(m, "mountPath", &p, errs);
        if seen.contains(&mount_path) {
            errs.push(FieldError::invalid(
                p.child("mountPath"),
                mount_path,
                "must be unique",
            ));
        }
        seen.push(mount_path);
        if items(c, "volumeDevices")
            .iter()
            .any(|d| text(d, "name") == name)
            && !name.is_empty()
        {
            errs.push(FieldError::invalid(
                p.child("name"),
                name,
                "must not already exist in volumeDevices",
            ));
        }
        let sub = text(m, "subPath");
        if !sub.is_empty() {
            volume::local_descending_path(sub, &p.child("subPath"), errs);
        }
        let expr = text(m, "subPathExpr");
        if !expr.is_empty() {
            if !sub.is_empty() {
                errs.push(FieldError::invalid(
                    p.child("subPathExpr"),
                    expr,
                    "subPathExpr and subPath are mutually exclusive",
                ));
            }
            volume::local_descending_path(expr, &p.child("subPathExpr"), errs);
        }
        one_of(
            m,
            "mountPropagation",
            &["Bidirectional", "HostToContainer", "None"],
            &p,
            errs,
        );
        if text(m, "mountPropagation") == "Bidirectional" && !privileged {
            errs.push(FieldError::forbidden(
                p.child("mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            ));
        }
        let recursive = text(m, "recursiveReadOnly");
        if !recursive.is_empty() && recursive != "Disabled" && !truth(m, "readOnly") {
            errs.push(FieldError::forbidden(
                p.child("recursiveReadOnly"),
                "may only be specified when readOnly is true",
            ));
        }
        one_of(
            m,
            "recursiveReadOnly",
            &["Disabled", "Enabled", "IfPossible"],
            &p,
            errs,
        );
    }
}

fn volume_devices(c: &Value, facts: &PodFacts<'_>, path: &Path<'_>, errs: &mut Errors) {
    let mut names: Vec<&str> = Vec::new();
    let mut paths: Vec<&str> = Vec::new();
    for (i, d) in items(c, "volumeDevices").iter().enumerate() {
        let p = path.index(i);
        let name = require(d, "name", &p, errs);
        if names.contains(&name) {
            errs.push(FieldError::invalid(p.child("name"), name, "must be unique"));
        }
        match facts.volumes.get(name) {
            None => errs.push(FieldError::not_found(p.child("name"), name)),
            Some(v) if !has(v, "persistentVolumeClaim") && !has(v, "ephemeral") => {
                errs.push(FieldError::invalid(
                    p.child("name"),
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ));
            }
            Some(_) => {}
        }
        let device = require(d, "devicePath", &p, errs);
        if !device.is_empty() && paths.contains(&device) {
            errs.push(FieldError::invalid(
                p.child("devicePath"),
                device,
                "must be unique",
            ));
        }
        names.push(name);
        paths.push(device);
    }
}

/// Signals of a Linux container's lifecycle.stopSignal, besides SIGRTMIN+n and SIGRTMAX-n.
const SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMIN",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

/// validateStopSignal: which signals there are depends on the pod's system, which therefore must be said.
fn stop_signal(lifecycle: &Value, os: &str, p: &Path<'_>, errs: &mut Errors) {
    if !has(lifecycle, "stopSignal") {
        return;
    }
    let real_time = |s: &str| {
        let n = |s: &str, most: u32| s.parse::<u32>().is_ok_and(|n| (1..=most).contains(&n));
        s.strip_prefix("SIGRTMIN+").is_some_and(|r| n(r, 15))
            || s.strip_prefix("SIGRTMAX-").is_some_and(|r| n(r, 14))
    };
    match os {
        "" => errs.push(FieldError::forbidden(
            p.child("stopSignal"),
            "may not be set for containers with empty `spec.os.name`",
        )),
        "windows" => one_of(lifecycle, "stopSignal", &["SIGKILL", "SIGTERM"], p, errs),
        _ if real_time(text(lifecycle, "stopSignal")) => {}
        _ => one_of(lifecycle, "stopSignal", SIGNALS, p, errs),
    }
}

fn lifecycle_and_probes(c: &Value, facts: &PodFacts<'_>, p: &Path<'_>, errs: &mut Errors) {
    let grace = facts.grace;
    stop_signal(at(c, "lifecycle"), facts.os, &p.child("lifecycle"), errs);
    for key in ["postStart", "preStop"] {
        let lifecycle = at(c, "lifecycle");
        let h = at(lifecycle, key);
        if !h.is_null() {
            let lp = p.child("lifecycle");
            handler(h, LIFECYCLE_HANDLERS, grace, &lp.child(key), errs);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let pr = at(c, key);
        if pr.is_null() {
            continue;
        }
        let pp = p.child(key);
        handler(pr, HANDLERS, grace, &pp, errs);
        for n in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            non_negative(pr, n, &pp, errs);
        }
        let own = int(pr, "terminationGracePeriodSeconds");
        if own.is_some_and(|g| g <= 0) {
            errs.push(FieldError::invalid(
                pp.child("terminationGracePeriodSeconds"),
                own.unwrap_or(0),
                "must be greater than 0",
            ));
        }
        if key != "readinessProbe" && int(pr, "successThreshold").is_some_and(|n| n != 1) {
            errs.push(FieldError::invalid(
                pp.child("successThreshold"),
                int0(pr, "successThreshold"),
                "must be 1",
            ));
        }
        if key == "readinessProbe" && own.is_some() {
            errs.push(FieldError::invalid(
                pp.child("terminationGracePeriodSeconds"),
                own.unwrap_or(0),
                "must not be set for readinessProbes",
            ));
        }
    }
}

fn handler(h: &Value, kinds: &[&str], grace: Option<i64>, p: &Path<'_>, errs: &mut Errors) {
    let mut count = 0;
    for kind in kinds {
        let action = at(h, kind);
        if action.is_null() {
            continue;
        }
        count += 1;
        let ap = p.child(kind);
        if count > 1 {
            errs.push(FieldError::forbidden(
                ap,
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        match *kind {
            "exec" if items(action, "command").is_empty() => {
                errs.push(FieldError::required(ap.child("command"), ""));
            }
            "httpGet" => {
                require(action, "path", &ap, errs);
                check::port_int_or_name(at(action, "port"), &ap.child("port"), errs);
                one_of(action, "scheme", &["HTTP", "HTTPS"], &ap, errs);
                for header in items(action, "httpHeaders") {
                    check::http_header(text(header, "name"), &ap.child("httpHeaders"), errs);
                }
            }
            "tcpSocket" => check::port_int_or_name(at(action, "port"), &ap.child("port"), errs),
            "grpc" => check::port_number(int0(action, "port"), &ap.child("port"), errs),
            "sleep" => {
                let s = int0(action, "seconds");
                if let Some(g) = grace.filter(|g| s < 0 || s > *g) {
                    errs.push(FieldError::invalid(
                        ap,
                        s,
                        format!(
                            "must be non-negative and less than terminationGracePeriodSeconds ({g})"
                        ),
                    ));
                }
            }
            _ => {}
        }
    }
    if count == 0 {
        errs.push(FieldError::required(p, "must specify a handler type"));
    }
}
