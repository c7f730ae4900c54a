//! The status that a pod shows. Owns phase, conditions and container statuses (upstream kubelet_pods.go
//! generateAPIPodStatus, getPhase, pod/status generate.go); pure.

use super::spec::{self, Role};
use super::state::{PodState, Stage};
use super::view::{ContainerView, RunState, time};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, PodCondition, PodIP, PodStatus,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The pod's status at this moment. Conditions of others (PodScheduled, DisruptionTarget, readiness gates) are not in
/// it: the write merges by type.
pub fn generate(s: &PodState, now: Timestamp) -> PodStatus {
    let pod = &s.pod;
    let done = s.stage >= Stage::Terminated;
    let has_init = !spec::init_containers(pod).is_empty();
    let statuses = |names: Vec<(String, String, Role)>| -> Vec<ContainerStatus> {
        names
            .into_iter()
            .map(|(name, image, role)| container_status(s, &name, &image, role, has_init, done))
            .collect()
    };
    let init = statuses(
        spec::init_containers(pod)
            .iter()
            .map(|c| {
                let role = if spec::is_sidecar(c) {
                    Role::Sidecar
                } else {
                    Role::Init
                };
                (c.name.clone(), c.image.clone().unwrap_or_default(), role)
            })
            .collect(),
    );
    let regular = statuses(
        spec::containers(pod)
            .iter()
            .map(|c| {
                (
                    c.name.clone(),
                    c.image.clone().unwrap_or_default(),
                    Role::Regular,
                )
            })
            .collect(),
    );
    let ephemeral = statuses(
        spec::ephemeral_containers(pod)
            .iter()
            .map(|c| {
                (
                    c.name.clone(),
                    c.image.clone().unwrap_or_default(),
                    Role::Ephemeral,
                )
            })
            .collect(),
    );

    let old = pod.status.clone().unwrap_or_default();
    let failed = s.end.as_ref().and_then(|e| e.failed.clone());
    let mut phase = phase(s, &init, &regular, done);
    if failed.is_some() {
        phase = "Failed";
    }
    // A pod that ended never comes back.
    match old.phase.as_deref() {
        Some("Succeeded") => phase = "Succeeded",
        Some("Failed") => phase = "Failed",
        _ => {}
    }

    let over = matches!(old.phase.as_deref(), Some("Succeeded" | "Failed"));
    let refused = (failed.is_some() || over)
        && s.view
            .as_ref()
            .is_some_and(|v| v.sandboxes.is_empty() && v.containers.is_empty())
        && old.container_statuses.is_none();
    if refused {
        // Upstream's rejectPod: nothing of it ever was, so nothing is said of its containers; nor by a kubelet that finds
        // it so.
        return PodStatus {
            phase: Some(phase.into()),
            observed_generation: pod.metadata.generation,
            qos_class: Some(spec::qos_class(pod).into()),
            start_time: Some(
                old.start_time
                    .clone()
                    .unwrap_or(Time(whole_second(s.start_time))),
            ),
            reason: failed.as_ref().map(|f| f.0.clone()).or(old.reason),
            message: failed.as_ref().map(|f| f.1.clone()).or(old.message),
            ..PodStatus::default()
        };
    }

    // A pod that is made to fail is not told to have failed while something of it runs: who sees it ended may start
    // another in its place (upstream's status manager, since 1.27). Its conditions say at once that it is not ready.
    let runs = init
        .iter()
        .chain(&regular)
        .chain(&ephemeral)
        .any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    let ended = matches!(old.phase.as_deref(), Some("Succeeded" | "Failed"));
    let (told, why) = if runs && failed.is_some() && !ended {
        let last = s.status.as_ref().or(pod.status.as_ref());
        let last = last.and_then(|s| s.phase.as_deref());
        (last.unwrap_or("Pending"), None)
    } else {
        (phase, failed)
    };
    let mut status = PodStatus {
        phase: Some(told.into()),
        observed_generation: pod.metadata.generation,
        qos_class: Some(spec::qos_class(pod).into()),
        start_time: Some(
            old.start_time
                .clone()
                .unwrap_or(Time(whole_second(s.start_time))),
        ),
        reason: why.as_ref().map(|f| f.0.clone()).or(old.reason.clone()),
        message: why.as_ref().map(|f| f.1.clone()).or(old.message.clone()),
        host_ip: s.host_ips.first().cloned(),
        host_ips: (!s.host_ips.is_empty()).then(|| {
            s.host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.clone() })
                .collect()
        }),
        init_container_statuses: (!init.is_empty()).then(|| init.clone()),
        container_statuses: Some(regular.clone()),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        ..PodStatus::default()
    };
    let ips = if spec::host_network(pod) {
        s.host_ips.clone()
    } else {
        s.last_ips.clone()
    };
    if !ips.is_empty() {
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
    status.conditions = Some(conditions(s, phase, &init, &regular, now));
    status
}

/// API times are whole seconds.
fn whole_second(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

fn phase(
    s: &PodState,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    done: bool,
) -> &'static str {
    let pod = &s.pod;
    let code = |c: &ContainerStatus| {
        c.state
            .as_ref()
            .and_then(|s| s.terminated.as_ref())
            .map(|t| t.exit_code)
    };
    let last_code = |c: &ContainerStatus| {
        c.last_state
            .as_ref()
            .and_then(|s| s.terminated.as_ref())
            .map(|t| t.exit_code)
    };
    let running = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.running.is_some());
    let (mut pending_init, mut failed_init, mut living_sidecar) = (0, 0, false);
    for (c, status) in spec::init_containers(pod).iter().zip(init) {
        if spec::is_sidecar(c) {
            living_sidecar |= running(status);
            if !done && !status.started.unwrap_or(false) && regular.iter().all(never_ran) {
                pending_init += 1;
            }
            continue;
        }
        match code(status) {
            Some(0) => {}
            Some(_) => failed_init += 1,
            None => match last_code(status) {
                Some(code) if code != 0 && !running(status) => failed_init += 1,
                _ => pending_init += 1,
            },
        }
    }
    let (mut waiting, mut runs, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in regular {
        if running(status) {
            runs += 1;
        } else if let Some(code) = code(status) {
            stopped += 1;
            succeeded += i32::from(code == 0);
        } else if last_code(status).is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    let policy = spec::restart_policy(pod);
    if failed_init > 0 && policy == "Never" {
        return "Failed";
    }
    if done && pending_init + failed_init + waiting > 0 {
        // It was ended before it could run.
        return "Failed";
    }
    if pending_init > 0 || failed_init > 0 || waiting > 0 {
        return "Pending";
    }
    if runs > 0 {
        return "Running";
    }
    if stopped > 0 {
        if done {
            return if stopped == succeeded {
                "Succeeded"
            } else {
                "Failed"
            };
        }
        if living_sidecar || s.stage < Stage::Terminating {
            return "Running";
        }
        // Stopped, but sandbox and volumes are not gone yet: the verdict stands unless the pod may run again.
        if s.end.is_some() && !s.deleting() {
            return match (policy, stopped == succeeded) {
                ("Always", _) => "Running",
                (_, true) => "Succeeded",
                (_, false) => "Failed",
            };
        }
        return "Running";
    }
    "Pending"
}

fn never_ran(c: &ContainerStatus) -> bool {
    let ended = |s: &Option<ContainerState>| s.as_ref().is_some_and(|s| s.terminated.is_some());
    let runs = c.state.as_ref().is_some_and(|s| s.running.is_some());
    !runs && !ended(&c.state) && !ended(&c.last_state)
}

fn terminated(s: &PodState, run: &ContainerView) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(format!("{}{}", s.id_prefix, run.id)),
        exit_code: run.exit_code,
        finished_at: Some(Time(whole_second(time(run.finished_at)))),
        started_at: Some(Time(whole_second(time(run.started_at)))),
        reason: Some(match (run.reason.as_str(), run.exit_code) {
            ("", 0) => "Completed".into(),
            ("", _) => "Error".into(),
            (r, _) => r.into(),
        }),
        message: (!run.message.is_empty()).then(|| run.message.clone()),
        signal: None,
    }
}

/// What was said of a container last: by this kubelet, or by the one before it.
fn known<'a>(s: &'a PodState, name: &str) -> Option<&'a ContainerStatus> {
    let status = s.status.as_ref().or(s.pod.status.as_ref())?;
    [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .find(|c| c.name == name)
}

fn container_status(
    s: &PodState,
    name: &str,
    image: &str,
    role: Role,
    has_init: bool,
    done: bool,
) -> ContainerStatus {
    let run = s.latest(name);
    let old = known(s, name);
    let starting = s.starting.as_ref().is_some_and(|(n, _)| n == name);
    let slot = s.slots.get(name);
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message,
        }),
        ..ContainerState::default()
    };
    let wait_reason = || match slot {
        Some(slot) if slot.failure.is_some() && !starting => {
            let f = slot.failure.as_ref().map(|f| &f.error);
            f.map_or_else(
                || waiting("ContainerCreating", None),
                |e| waiting(&e.reason, Some(e.message.clone())),
            )
        }
        _ => waiting(
            if has_init {
                "PodInitializing"
            } else {
                "ContainerCreating"
            },
            None,
        ),
    };

    let previous_end = |run: &ContainerView| ContainerState {
        terminated: Some(terminated(s, run)),
        ..ContainerState::default()
    };
    let mut last_state = s
        .view
        .as_ref()
        .and_then(|v| v.previous(name))
        .filter(|r| r.state == RunState::Exited)
        .map(previous_end);
    let state = match run {
        None => {
            // A pod that ended keeps what is known of its containers, though the runtime has forgotten them.
            match old
                .and_then(|o| o.state.clone())
                .filter(|o| o.terminated.is_some())
            {
                Some(ended) if done || s.end.is_some() => ended,
                _ if done
                    && old
                        .is_some_and(|o| o.state.as_ref().is_some_and(|s| s.running.is_some())) =>
                {
                    lost()
                }
                _ if done && role == Role::Regular && may_have_run(s) => lost(),
                _ => wait_reason(),
            }
        }
        Some(run) => match run.state {
            RunState::Running => ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: Some(Time(whole_second(time(run.started_at)))),
                }),
                ..ContainerState::default()
            },
            RunState::Created if done => lost(),
            RunState::Created => wait_reason(),
            RunState::Unknown => ContainerState {
                terminated: Some(ContainerStateTerminated {
                    reason: Some("ContainerStatusUnknown".into()),
                    message: Some(
                        "The container could not be located when the pod was terminated".into(),
                    ),
                    exit_code: 137,
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            },
            RunState::Exited => match slot {
                // Between two runs.
                Some(slot) if slot.crash_until.is_some() && s.end.is_none() => {
                    last_state = Some(previous_end(run));
                    let delay = slot.crash.delay();
                    let secs = delay.as_secs();
                    let human = if secs >= 60 {
                        format!("{}m{}s", secs / 60, secs % 60)
                    } else {
                        format!("{secs}s")
                    };
                    waiting(
                        "CrashLoopBackOff",
                        Some(format!(
                            "back-off {human} restarting failed container={name} pod={}_{}({})",
                            spec::name(&s.pod),
                            spec::namespace(&s.pod),
                            spec::uid(&s.pod)
                        )),
                    )
                }
                Some(slot) if slot.failure.is_some() && s.end.is_none() && !starting => {
                    last_state = Some(previous_end(run));
                    wait_reason()
                }
                _ => ContainerState {
                    terminated: Some(terminated(s, run)),
                    ..ContainerState::default()
                },
            },
        },
    };
    if last_state.is_none() {
        last_state = old
            .filter(|o| o.restart_count > 0)
            .and_then(|o| o.last_state.clone())
            .filter(|l| l.terminated.is_some());
    }
    let restart_count =
        run.map_or_else(|| old.map_or(0, |o| o.restart_count), |r| r.attempt as i32);
    let ready = match (run, role) {
        // An init container that has done its work is ready.
        (Some(r), Role::Init) => r.state == RunState::Exited && r.exit_code == 0,
        (Some(r), _) => s.ready(r),
        (None, _) => false,
    };
    let applied = run.filter(|r| r.state == RunState::Running).map(|r| {
        let known = slot.and_then(|s| s.resize.applied.as_ref());
        match known.filter(|(id, _)| *id == r.id) {
            Some((_, applied)) => applied.clone(),
            None => spec::container(&s.pod, name)
                .and_then(|(_, c)| c.resources)
                .unwrap_or_default(),
        }
    });
    ContainerStatus {
        name: name.into(),
        image: run.map_or_else(
            || image.to_string(),
            |r| {
                if r.image.is_empty() {
                    image.to_string()
                } else {
                    r.image.clone()
                }
            },
        ),
        image_id: run.map_or_else(
            || old.map(|o| o.image_id.clone()).unwrap_or_default(),
            |r| r.image_ref.clone(),
        ),
        container_id: run
            .map(|r| format!("{}{}", s.id_prefix, r.id))
            .or_else(|| old.and_then(|o| o.container_id.clone())),
        ready,
        started: match role {
            Role::Ephemeral => None,
            _ => Some(run.is_some_and(|r| s.started(r))),
        },
        restart_count,
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        user: run
            .and_then(|r| r.user.clone())
            .map(|(uid, gid, groups)| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid,
                    gid,
                    supplemental_groups: (!groups.is_empty()).then_some(groups),
                }),
            }),
        resources: applied.clone(),
        allocated_resources: applied.and_then(|r| r.requests),
        stop_signal: run
            .and_then(|_| spec::container(&s.pod, name))
            .and_then(|(_, c)| c.lifecycle?.stop_signal),
        volume_mounts: run
            .and_then(|_| spec::container(&s.pod, name))
            .and_then(|(_, c)| c.volume_mounts)
            .map(|m| {
                m.into_iter()
                    .map(|m| VolumeMountStatus {
                        mount_path: m.mount_path,
                        name: m.name,
                        recursive_read_only: m.read_only.unwrap_or(false).then(|| {
                            match m.recursive_read_only.as_deref() {
                                Some("Enabled" | "IfPossible") => "Enabled".to_string(),
                                _ => "Disabled".to_string(),
                            }
                        }),
                        read_only: m.read_only.filter(|r| *r),
                        ..VolumeMountStatus::default()
                    })
                    .collect()
            }),
        ..ContainerStatus::default()
    }
}

/// Did the pod get so far that its regular containers may have run? If not, they wait for ever (upstream's status
/// manager, hasPodInitialized).
fn may_have_run(s: &PodState) -> bool {
    let Some(last) = spec::init_containers(&s.pod).last() else {
        return true;
    };
    let old = |name: &str| known(s, name);
    let ran = |name: &str| {
        s.latest(name).is_some_and(|r| r.state != RunState::Created)
            || old(name).is_some_and(|o| !never_ran(o))
    };
    if spec::containers(&s.pod).iter().any(|c| ran(&c.name)) {
        return true;
    }
    if spec::is_sidecar(last) {
        let started = old(&last.name).is_some_and(|o| o.started == Some(true));
        return started || (last.startup_probe.is_none() && ran(&last.name));
    }
    let exit = s
        .latest(&last.name)
        .filter(|r| r.state == RunState::Exited)
        .map(|r| r.exit_code)
        .or_else(|| {
            let state = old(&last.name)?.state.as_ref()?;
            Some(state.terminated.as_ref()?.exit_code)
        });
    exit == Some(0)
}

/// It is not known how the container ended: that counts as an error (upstream TerminatePod).
fn lost() -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            exit_code: 137,
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn conditions(
    s: &PodState,
    phase: &str,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let pod = &s.pod;
    let ended = matches!(phase, "Succeeded" | "Failed");
    let mut out = Vec::new();
    let mut put = |kind: &str, status: bool, reason: Option<&str>, message: Option<String>| {
        let status = if status { "True" } else { "False" };
        // The time of the last change, not of the last look.
        let before = s
            .status
            .as_ref()
            .and_then(|st| st.conditions.as_ref())
            .and_then(|c| c.iter().find(|c| c.type_ == kind))
            .or_else(|| {
                pod.status
                    .as_ref()
                    .and_then(|st| st.conditions.as_ref())
                    .and_then(|c| c.iter().find(|c| c.type_ == kind))
            });
        let since = before
            .filter(|b| b.status == status)
            .and_then(|b| b.last_transition_time.clone())
            .unwrap_or(Time(whole_second(now)));
        out.push(PodCondition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.map(Into::into),
            message,
            last_transition_time: Some(since),
            last_probe_time: None,
            observed_generation: pod.metadata.generation,
        });
    };

    let resizes = || s.slots.values().map(|slot| &slot.resize);
    let waits = |error: bool| {
        resizes()
            .filter_map(|r| r.pending.as_ref())
            .map(|(p, _, _)| p)
            .find(|p| (p.reason == "Error") == error)
    };
    if let Some(p) = waits(false) {
        put(
            "PodResizePending",
            true,
            Some(&p.reason),
            Some(p.message.clone()),
        );
    }
    if let Some(p) = waits(true) {
        put(
            "PodResizeInProgress",
            true,
            Some(&p.reason),
            Some(p.message.clone()),
        );
    } else if resizes().any(|r| r.busy.is_some()) {
        put("PodResizeInProgress", true, None, None);
    }
    put(
        "PodReadyToStartContainers",
        s.current_sandbox().is_some(),
        None,
        None,
    );

    if let Some((_, message)) = s
        .end
        .as_ref()
        .filter(|e| e.disruption)
        .and_then(|e| e.failed.as_ref())
    {
        let message = Some(message.clone());
        put(
            "DisruptionTarget",
            true,
            Some("TerminationByKubelet"),
            message,
        );
    }

    let uninitialized: Vec<&str> = spec::init_containers(pod)
        .iter()
        .zip(init)
        .filter(|(c, st)| {
            if spec::is_sidecar(c) {
                !st.started.unwrap_or(false)
            } else {
                !st.ready
            }
        })
        .map(|(c, _)| c.name.as_str())
        .collect();
    // Once a container ran, the pod had been initialized.
    let was = regular.iter().any(|c| !never_ran(c));
    if phase == "Succeeded" {
        put("Initialized", true, Some("PodCompleted"), None);
    } else if uninitialized.is_empty() || was {
        put("Initialized", true, None, None);
    } else {
        put(
            "Initialized",
            false,
            Some("ContainersNotInitialized"),
            Some(format!(
                "containers with incomplete status: [{}]",
                uninitialized.join(" ")
            )),
        );
    }

    let sidecars = spec::init_containers(pod)
        .iter()
        .zip(init)
        .filter(|(c, _)| spec::is_sidecar(c))
        .map(|(_, st)| st);
    let unready: Vec<&str> = regular
        .iter()
        .chain(sidecars)
        .filter(|st| !st.ready)
        .map(|st| st.name.as_str())
        .collect();
    let (containers_ready, reason, message) = if ended {
        let reason = if phase == "Succeeded" {
            "PodCompleted"
        } else {
            "PodFailed"
        };
        (false, Some(reason), None)
    } else if unready.is_empty() {
        (true, None, None)
    } else {
        (
            false,
            Some("ContainersNotReady"),
            Some(format!(
                "containers with unready status: [{}]",
                unready.join(" ")
            )),
        )
    };
    put("ContainersReady", containers_ready, reason, message.clone());

    if !containers_ready {
        put("Ready", false, reason, message);
        return out;
    }
    let mut unmet = Vec::new();
    for gate in spec::spec(pod).readiness_gates.iter().flatten() {
        let found = pod
            .status
            .as_ref()
            .and_then(|st| st.conditions.as_ref())
            .and_then(|c| c.iter().find(|c| c.type_ == gate.condition_type));
        match found {
            None => unmet.push(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => unmet.push(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            Some(_) => {}
        }
    }
    if unmet.is_empty() {
        put("Ready", true, None, None);
    } else {
        put(
            "Ready",
            false,
            Some("ReadinessGatesNotMet"),
            Some(unmet.join(", ")),
        );
    }
    out
}
