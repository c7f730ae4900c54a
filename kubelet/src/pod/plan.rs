//! What a pod needs next. Owns the order of sandbox, init containers, sidecars, containers and their ends
//! (upstream kuberuntime_manager computePodActions, computeInitContainerActions, killContainersWithSyncResult);
//! changes only the state it is given.

use super::spec::{self, Role};
use super::state::{Command, Kill, PodState, ProbeKey, ProbeKind, Resize, Stage};
use super::view::{ContainerView, RunState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};
use std::collections::BTreeSet;

/// Shortest time that a stopped process gets when its pod's grace is used up (upstream minimumGracePeriodInSeconds).
const MINIMUM_GRACE: i64 = 2;

/// Adds the commands that bring the pod nearer to what it should be.
pub fn plan(s: &mut PodState, now: Timestamp, out: &mut Vec<Command>) {
    if s.view.is_none() {
        return;
    }
    begin_if_ended(s, now);
    if s.stage == Stage::Syncing {
        sync(s, now, out);
    }
    // A pod that ran to its end in `sync` goes on at once.
    if s.stage == Stage::Terminating {
        terminate(s, now, out);
    }
    if s.stage == Stage::Terminated {
        clean_up(s, now, out);
    }
    if s.stage == Stage::Finished {
        finish(s, now, out);
    }
    probes(s, out);
}

fn begin_if_ended(s: &mut PodState, now: Timestamp) {
    if s.stage != Stage::Syncing {
        return;
    }
    if s.deleting() || spec::is_terminal(&s.pod) {
        s.begin_end(None, None, now);
        return;
    }
    if let Some(seconds) = spec::spec(&s.pod).active_deadline_seconds
        && let Ok(deadline) = s.start_time.checked_add(SignedDuration::from_secs(seconds))
    {
        if now >= deadline {
            s.begin_end(
                Some((
                    "DeadlineExceeded".into(),
                    "Pod was active on the node longer than the specified deadline".into(),
                )),
                None,
                now,
            );
        } else {
            s.wake(deadline);
        }
    }
}

/// Is a container that ended to be started again? (kubecontainer.ShouldContainerBeRestarted and the rules of
/// container-level restart policies.)
pub fn restarts(s: &PodState, c: &Container, run: &ContainerView) -> bool {
    if run.state != RunState::Exited {
        return true;
    }
    if let Some(rules) = &c.restart_policy_rules
        && let Some(rule) = rules.iter().find(|r| rule_matches(r, run.exit_code))
    {
        return rule.action.starts_with("Restart");
    }
    match c
        .restart_policy
        .as_deref()
        .unwrap_or_else(|| spec::restart_policy(&s.pod))
    {
        "Never" => false,
        "OnFailure" => run.exit_code != 0,
        _ => true,
    }
}

fn rule_matches(rule: &ContainerRestartRule, code: i32) -> bool {
    let Some(on) = &rule.exit_codes else {
        return false;
    };
    let listed = on.values.as_ref().is_some_and(|v| v.contains(&code));
    match on.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}

fn sync(s: &mut PodState, now: Timestamp, out: &mut Vec<Command>) {
    if s.volumes.due(now) {
        s.volumes.begin();
        out.push(Command::MountVolumes);
    } else if let Some(at) = s.volumes.again_at {
        s.wake(at);
    }

    let pod = s.pod.clone();
    let Some(sandbox) = s.current_sandbox().map(|b| b.id.clone()) else {
        make_sandbox(s, now, out);
        return;
    };
    // Older sandboxes are only in the way (their ports, their memory).
    let old: Vec<String> = s
        .view
        .iter()
        .flat_map(|v| {
            v.sandboxes
                .iter()
                .skip(1)
                .filter(|b| b.ready)
                .map(|b| b.id.clone())
        })
        .collect();
    for id in old {
        stop_sandbox(s, id, now, out);
    }
    if !s.mounted_once {
        return;
    }

    let initialized = spec::containers(&pod).iter().any(|c| {
        s.view
            .iter()
            .flat_map(|v| v.containers.iter())
            .any(|r| r.name == c.name && r.sandbox_id == sandbox && r.state != RunState::Created)
    });
    let mut blocked = false;
    for c in spec::init_containers(&pod) {
        if blocked {
            break;
        }
        let run = s
            .latest(&c.name)
            .filter(|r| r.sandbox_id == sandbox)
            .cloned();
        if spec::is_sidecar(c) {
            match run {
                Some(run) if run.state == RunState::Running => {
                    kill_if_unhealthy(s, c, &run, now, out);
                    resize(s, c, &run, now, out);
                    blocked = !initialized && !s.started(&run);
                }
                run => {
                    start(s, c, run.as_ref(), &sandbox, now, out);
                    blocked = !initialized;
                }
            }
            continue;
        }
        if initialized {
            continue;
        }
        match run {
            Some(run) if run.state == RunState::Running => blocked = true,
            Some(run) if run.state == RunState::Exited && run.exit_code == 0 => {}
            Some(run) if run.state == RunState::Exited && !restarts(s, c, &run) => {
                // It failed and never runs again: so does the pod.
                s.begin_end(None, None, now);
                return;
            }
            run => {
                start(s, c, run.as_ref(), &sandbox, now, out);
                blocked = true;
            }
        }
    }

    for e in spec::ephemeral_containers(&pod) {
        if s.latest(&e.name).is_none() {
            start(
                s,
                &spec::ephemeral_as_container(e),
                None,
                &sandbox,
                now,
                out,
            );
        }
    }
    if blocked {
        return;
    }

    let mut living = false;
    for c in spec::containers(&pod) {
        match s.latest(&c.name).cloned() {
            Some(run) if run.state == RunState::Running => {
                living = true;
                if run.hash.is_empty() || run.hash == spec::container_hash(c) {
                    kill_if_unhealthy(s, c, &run, now, out);
                    resize(s, c, &run, now, out);
                } else {
                    let message =
                        format!("Container {} definition changed, will be restarted", c.name);
                    kill(s, &run, message, s.grace(), now, out);
                }
            }
            Some(run) if !restarts(s, c, &run) => {}
            run => {
                living = true;
                start(s, c, run.as_ref(), &sandbox, now, out);
            }
        }
    }
    if !living && s.starting.is_none() {
        s.begin_end(None, None, now);
        return;
    }
    collect_garbage(s, out);
}

/// The pod has no sandbox that works.
fn make_sandbox(s: &mut PodState, now: Timestamp, out: &mut Vec<Command>) {
    if s.sandbox.busy {
        return;
    }
    let pod = s.pod.clone();
    let Some(view) = s.view.clone() else { return };
    let ready: Vec<String> = view
        .sandboxes
        .iter()
        .filter(|b| b.ready)
        .map(|b| b.id.clone())
        .collect();
    if !ready.is_empty() || !s.sandbox_ops.is_empty() {
        for id in ready {
            stop_sandbox(s, id, now, out);
        }
        wake_for_sandboxes(s);
        return;
    }
    // A pod that has run and may not run again keeps no sandbox (after a reboot, say).
    let ran = !view.containers.is_empty();
    if ran {
        let policy = spec::restart_policy(&pod);
        let wanted = spec::containers(&pod)
            .iter()
            .any(|c| match view.latest(&c.name) {
                None => policy != "Never" || c.restart_policy.is_some(),
                Some(run) => {
                    let mut run = run.clone();
                    if run.state != RunState::Created {
                        run.state = RunState::Exited;
                    }
                    restarts(s, c, &run)
                }
            });
        if !wanted {
            s.begin_end(None, None, now);
            return;
        }
    }
    if s.sandbox.again_at.is_some_and(|at| at > now) {
        if let Some(at) = s.sandbox.again_at {
            s.wake(at);
        }
        return;
    }
    let attempt = view.sandboxes.first().map_or(0, |b| b.attempt + 1);
    s.sandbox.begin();
    if ran {
        out.push(Command::Note {
            warning: false,
            reason: "SandboxChanged",
            message: "Pod sandbox changed, it will be killed and re-created.".into(),
            container: None,
        });
    }
    out.push(Command::MakeSandbox { attempt });
}

fn stop_sandbox(s: &mut PodState, id: String, now: Timestamp, out: &mut Vec<Command>) {
    match s.sandbox_ops.get(&id) {
        Some(None) => return,
        Some(Some(at)) if *at > now => return,
        _ => {}
    }
    s.sandbox_ops.insert(id.clone(), None);
    out.push(Command::StopSandbox(id));
}

fn wake_for_sandboxes(s: &mut PodState) {
    if let Some(at) = s.sandbox_ops.values().flatten().min().copied() {
        s.wake(at);
    }
}

/// Starts a container, unless another one is being started or it is too early.
fn start(
    s: &mut PodState,
    c: &Container,
    last: Option<&ContainerView>,
    sandbox: &str,
    now: Timestamp,
    out: &mut Vec<Command>,
) {
    if s.starting.is_some() || last.is_some_and(|l| s.killing.contains_key(&l.id)) {
        return;
    }
    let newest = s.latest(&c.name).cloned();
    let pod_name = spec::name(&s.pod).to_string();
    let namespace = spec::namespace(&s.pod).to_string();
    let uid = spec::uid(&s.pod).to_string();
    let slot = s.slots.entry(c.name.clone()).or_default();
    if let Some(f) = &mut slot.failure {
        // Some seconds after the error itself the state says that the kubelet waits (upstream: with the next sync).
        let shown =
            f.at.checked_add(SignedDuration::from_secs(3))
                .unwrap_or(f.at);
        if f.error.reason == "ErrImagePull" && now >= shown && now < f.retry_at {
            let image = f.error.image.clone().unwrap_or_default();
            f.error.reason = "ImagePullBackOff".into();
            f.error.message = format!(
                "Back-off pulling image \"{image}\": ErrImagePull: {}",
                f.error.message
            );
            out.push(Command::Note {
                warning: false,
                reason: "BackOff",
                message: format!("Back-off pulling image \"{image}\""),
                container: Some(c.name.clone()),
            });
        }
        if now < f.retry_at {
            let at = if f.error.reason == "ErrImagePull" {
                shown.min(f.retry_at)
            } else {
                f.retry_at
            };
            s.wake(at);
            return;
        }
    }
    if let Some(run) = newest.as_ref().filter(|r| r.state == RunState::Exited) {
        let ended = PodState::finished_at(run);
        if let Some(until) = slot.crash.wait_until(ended, now) {
            slot.crash_until = Some(until);
            if !slot.noted {
                slot.noted = true;
                out.push(Command::Note {
                    warning: true,
                    reason: "BackOff",
                    message: format!(
                        "Back-off restarting failed container {} in pod {pod_name}_{namespace}({uid})",
                        c.name
                    ),
                    container: Some(c.name.clone()),
                });
            }
            s.wake(until);
            return;
        }
        slot.crash.next(ended, now);
    }
    slot.noted = false;
    slot.crash_until = None;
    s.starting = Some((c.name.clone(), false));
    out.push(Command::Start {
        name: c.name.clone(),
        attempt: newest.map_or(0, |r| r.attempt + 1),
        sandbox: sandbox.to_string(),
    });
}

/// Liveness and startup probes that failed end the container; the restart policy then says what follows.
fn kill_if_unhealthy(
    s: &mut PodState,
    c: &Container,
    run: &ContainerView,
    now: Timestamp,
    out: &mut Vec<Command>,
) {
    let failed = |s: &PodState, kind| s.probes.get(&(run.id.clone(), kind)) == Some(&false);
    let (what, probe) = if c.startup_probe.is_some() && failed(s, ProbeKind::Startup) {
        ("startup", &c.startup_probe)
    } else if c.liveness_probe.is_some() && failed(s, ProbeKind::Liveness) {
        ("liveness", &c.liveness_probe)
    } else {
        return;
    };
    let will = if spec::restart_policy(&s.pod) == "Never" && !spec::is_sidecar(c) {
        "will be stopped"
    } else {
        "will be restarted"
    };
    let grace = probe
        .as_ref()
        .and_then(|p| p.termination_grace_period_seconds)
        .unwrap_or_else(|| s.grace());
    kill(
        s,
        run,
        format!("Container {} failed {what} probe, {will}", c.name),
        grace,
        now,
        out,
    );
}

/// Brings a running container's cpu and memory to what the spec says now (in-place pod resize).
fn resize(
    s: &mut PodState,
    c: &Container,
    run: &ContainerView,
    now: Timestamp,
    out: &mut Vec<Command>,
) {
    let wanted = c.resources.clone().unwrap_or_default();
    let reported = s.pod.status.as_ref().and_then(|st| {
        let id = format!("{}{}", s.id_prefix, run.id);
        [&st.init_container_statuses, &st.container_statuses]
            .into_iter()
            .flatten()
            .flatten()
            .find(|o| o.container_id.as_deref() == Some(&id))
            .and_then(|o| o.resources.clone())
    });
    let slot = s.slots.entry(c.name.clone()).or_default();
    let applied = match &slot.resize.applied {
        Some((id, applied)) if *id == run.id => applied.clone(),
        _ => {
            // A run that was adopted has what was said of it; one that was just started has what the spec says.
            let applied = reported.unwrap_or_else(|| wanted.clone());
            slot.resize = Resize {
                applied: Some((run.id.clone(), applied.clone())),
                ..Resize::default()
            };
            applied
        }
    };
    let changed: Vec<&str> = ["cpu", "memory"]
        .into_iter()
        .filter(|r| spec::amounts(&applied, r) != spec::amounts(&wanted, r))
        .collect();
    if changed.is_empty() {
        slot.resize.pending = None;
        return;
    }
    if slot.resize.busy.is_some() || s.killing.contains_key(&run.id) {
        return;
    }
    if let Some((_, of, again)) = &slot.resize.pending
        && *of == wanted
        && now < *again
    {
        let again = *again;
        s.wake(again);
        return;
    }
    slot.resize.busy = Some(wanted);
    let restart = c.resize_policy.iter().flatten().any(|p| {
        p.restart_policy == "RestartContainer" && changed.contains(&p.resource_name.as_str())
    });
    out.push(Command::Resize {
        id: run.id.clone(),
        name: c.name.clone(),
        restart,
    });
}

fn kill(
    s: &mut PodState,
    run: &ContainerView,
    message: String,
    grace: i64,
    now: Timestamp,
    out: &mut Vec<Command>,
) {
    let pre_stop = match s.killing.get(&run.id) {
        None => true,
        Some(k) if k.retry_at.is_some_and(|at| at <= now) => false,
        // Only a shorter grace interrupts a stop that is under way.
        Some(k) if k.retry_at.is_none() && grace < k.grace => false,
        Some(k) => {
            if let Some(at) = k.retry_at {
                s.wake(at);
            }
            return;
        }
    };
    s.killing.insert(
        run.id.clone(),
        Kill {
            grace,
            retry_at: None,
        },
    );
    out.push(Command::Kill {
        id: run.id.clone(),
        name: run.name.clone(),
        grace,
        pre_stop,
        message,
    });
}

/// One dead run of each container is kept (upstream maximum-dead-containers-per-container: 1).
fn collect_garbage(s: &mut PodState, out: &mut Vec<Command>) {
    let Some(view) = &s.view else { return };
    let mut dead: Vec<(&str, u32)> = Vec::new();
    let mut remove = Vec::new();
    for c in &view.containers {
        if c.state == RunState::Running || c.state == RunState::Unknown {
            continue;
        }
        if s.starting.as_ref().is_some_and(|(n, _)| *n == c.name) {
            continue;
        }
        match dead.iter_mut().find(|(n, _)| *n == c.name) {
            Some((_, n)) => {
                *n += 1;
                if !s.removing.contains(&c.id) {
                    remove.push(c.id.clone());
                }
            }
            None => dead.push((&c.name, 1)),
        }
    }
    for id in remove {
        s.removing.insert(id.clone());
        out.push(Command::RemoveContainer(id));
    }
}

fn terminate(s: &mut PodState, now: Timestamp, out: &mut Vec<Command>) {
    if let Some((_, called_off)) = &mut s.starting
        && !*called_off
    {
        *called_off = true;
        out.push(Command::CancelStart);
    }
    if s.volumes.busy && !s.volumes.called_off {
        s.volumes.called_off = true;
        out.push(Command::CancelVolumes);
    }
    let since = s.end.as_ref().and_then(|e| e.since).unwrap_or(now);
    let elapsed = now.duration_since(since).as_secs().max(0);
    let grace = s.grace();
    let alive: Vec<ContainerView> = s.view.iter().flat_map(|v| v.alive().cloned()).collect();
    let role =
        |s: &PodState, name: &str| spec::container(&s.pod, name).map_or(Role::Regular, |(r, _)| r);
    let (sidecars, regular): (Vec<_>, Vec<_>) = alive
        .into_iter()
        .partition(|c| role(s, &c.name) == Role::Sidecar);
    for run in &regular {
        // What began to be stopped earlier keeps its own time; only a shorter grace of the pod hurries it.
        let grace = if elapsed == 0 {
            grace
        } else {
            (grace - elapsed).max(MINIMUM_GRACE.min(grace))
        };
        let grace = match s.killing.get(&run.id) {
            Some(k) if k.retry_at.is_none() && s.grace() >= k.grace => continue,
            _ => grace,
        };
        kill(
            s,
            run,
            format!("Stopping container {}", run.name),
            grace,
            now,
            out,
        );
    }
    if regular.is_empty() && s.starting.is_none() {
        // Sidecars end in reverse order, each after the one behind it has ended.
        let order: Vec<String> = spec::init_containers(&s.pod)
            .iter()
            .rev()
            .map(|c| c.name.clone())
            .collect();
        let next = order
            .iter()
            .find_map(|n| sidecars.iter().find(|c| c.name == *n));
        if let Some(run) = next.or(sidecars.first()) {
            let left = (grace - elapsed).max(MINIMUM_GRACE.min(grace));
            if s.killing
                .get(&run.id)
                .is_none_or(|k| k.retry_at.is_some() || grace < k.grace)
            {
                kill(
                    s,
                    run,
                    format!("Stopping container {}", run.name),
                    left,
                    now,
                    out,
                );
            }
        }
    }
    if !regular.is_empty()
        || !sidecars.is_empty()
        || s.starting.is_some()
        || s.sandbox.busy
        || s.volumes.busy
    {
        return;
    }
    let ready: Vec<String> = s
        .view
        .iter()
        .flat_map(|v| v.sandboxes.iter().filter(|b| b.ready).map(|b| b.id.clone()))
        .collect();
    if ready.is_empty() && s.sandbox_ops.is_empty() {
        s.stage = Stage::Terminated;
        return;
    }
    for id in ready {
        stop_sandbox(s, id, now, out);
    }
    wake_for_sandboxes(s);
}

fn clean_up(s: &mut PodState, now: Timestamp, out: &mut Vec<Command>) {
    if s.clean_up.done {
        s.stage = Stage::Finished;
    } else if s.clean_up.due(now) {
        s.clean_up.begin();
        out.push(Command::CleanUp);
    } else if let Some(at) = s.clean_up.again_at {
        s.wake(at);
    }
}

fn finish(s: &mut PodState, now: Timestamp, out: &mut Vec<Command>) {
    if !s.deleting() {
        if s.reclaim {
            let dead: Vec<String> = s
                .view
                .iter()
                .flat_map(|v| v.containers.iter().map(|c| c.id.clone()))
                .filter(|id| !s.removing.contains(id))
                .collect();
            for id in dead {
                s.removing.insert(id.clone());
                out.push(Command::RemoveContainer(id));
            }
        }
        return;
    }
    // The containers' logs go with the pod; the sandbox's removal takes its containers along.
    let left: Vec<String> = s
        .view
        .iter()
        .flat_map(|v| v.sandboxes.iter().map(|b| b.id.clone()))
        .collect();
    for id in &left {
        match s.sandbox_ops.get(id) {
            Some(None) => continue,
            Some(Some(at)) if *at > now => continue,
            _ => {}
        }
        s.sandbox_ops.insert(id.clone(), None);
        out.push(Command::RemoveSandbox(id.clone()));
    }
    wake_for_sandboxes(s);
    if !s.gone && !s.delete_sent {
        s.delete_sent = true;
        out.push(Command::DeletePod);
    }
    if s.gone && left.is_empty() && s.sandbox_ops.is_empty() {
        out.push(Command::Forget);
    }
}

fn probes(s: &mut PodState, out: &mut Vec<Command>) {
    let mut wanted = BTreeSet::new();
    if s.stage <= Stage::Terminating {
        for run in s.view.iter().flat_map(|v| v.containers.iter()) {
            if run.state != RunState::Running || s.latest(&run.name).is_none_or(|l| l.id != run.id)
            {
                continue;
            }
            let Some((Role::Regular | Role::Sidecar, c)) = spec::container(&s.pod, &run.name)
            else {
                continue;
            };
            let mut want = |kind| {
                wanted.insert(ProbeKey {
                    container: run.name.clone(),
                    id: run.id.clone(),
                    kind,
                });
            };
            let waits = c.startup_probe.is_some() && !s.started(run);
            if waits {
                if s.stage == Stage::Syncing {
                    want(ProbeKind::Startup);
                }
                continue;
            }
            if c.liveness_probe.is_some() && s.stage == Stage::Syncing {
                want(ProbeKind::Liveness);
            }
            if c.readiness_probe.is_some() {
                want(ProbeKind::Readiness);
            }
        }
    }
    if wanted != s.probing {
        s.probing = wanted.clone();
        out.push(Command::Probes(wanted));
    }
}
