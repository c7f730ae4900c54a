//! The state machine against a small model of a runtime: commands are carried out at once, and what they do to the
//! model comes back as events. Each test is a pod, a script of happenings, and the text of what the machine did.

use super::spec;
use super::state::{Command, Event, PodState, ProbeKey, ProbeKind, Stage, StartError};
use super::view::{ContainerView, RunState, RuntimeView, SandboxView};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::fmt::Write;
use std::sync::Arc;

mod ends;

struct Model {
    state: PodState,
    view: RuntimeView,
    now: Timestamp,
    log: String,
    next: u32,
    /// Starts of these containers fail with this reason.
    broken: Vec<(String, StartError)>,
    /// Containers do not react to being stopped until their grace is over.
    stubborn: bool,
    busy: Vec<Event>,
    /// Volumes cannot be mounted.
    unmountable: Option<String>,
    /// The node has no room for more.
    no_room: Option<String>,
    /// What commands lead to comes later, when it is delivered.
    slow: bool,
    pending: Vec<Event>,
}

fn model(spec: serde_json::Value) -> Model {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1}, "spec": spec}))
    .unwrap();
    let now = Timestamp::from_second(1_000_000).unwrap();
    Model {
        state: PodState::new(Arc::new(pod), vec!["192.168.0.1".into()], "skiff", now),
        view: RuntimeView::default(),
        now,
        log: String::new(),
        next: 0,
        broken: vec![],
        stubborn: false,
        busy: vec![],
        unmountable: None,
        no_room: None,
        slow: false,
        pending: vec![],
    }
}

impl Model {
    fn look(&self) -> Event {
        Event::Runtime(self.view.clone().sorted())
    }

    fn happen(&mut self, events: Vec<Event>) {
        let mut events = events;
        for _ in 0..200 {
            let commands = self.state.step(std::mem::take(&mut events), self.now);
            for c in commands {
                let results = self.carry_out(c);
                if self.slow {
                    self.pending.extend(
                        results
                            .into_iter()
                            .filter(|e| !matches!(e, Event::Runtime(_))),
                    );
                } else {
                    events.extend(results);
                }
            }
            if events.is_empty() {
                return;
            }
        }
        panic!("the machine does not come to rest:\n{}", self.log);
    }

    fn nanos(&self) -> i64 {
        i64::try_from(self.now.as_nanosecond()).unwrap()
    }

    fn carry_out(&mut self, c: Command) -> Vec<Event> {
        let mut say = |text: String| writeln!(self.log, "{text}").unwrap();
        match c {
            Command::MountVolumes => match &self.unmountable {
                Some(e) => vec![Event::Volumes(Err(e.clone()))],
                None => vec![Event::Volumes(Ok(None))],
            },
            Command::MakeSandbox { attempt } => {
                say(format!("sandbox {attempt}"));
                self.view.sandboxes.push(SandboxView {
                    id: format!("s{attempt}"),
                    attempt,
                    ready: true,
                    created_at: self.nanos() + i64::from(attempt),
                    ips: vec![format!("10.42.0.{}", attempt + 2)],
                });
                vec![self.look(), Event::SandboxMade(Ok(()))]
            }
            Command::StopSandbox(id) => {
                say(format!("stop sandbox {id}"));
                for s in self.view.sandboxes.iter_mut().filter(|s| s.id == id) {
                    s.ready = false;
                }
                vec![self.look(), Event::SandboxDone(id, Ok(()))]
            }
            Command::RemoveSandbox(id) => {
                say(format!("remove sandbox {id}"));
                self.view.sandboxes.retain(|s| s.id != id);
                self.view.containers.retain(|c| c.sandbox_id != id);
                vec![self.look(), Event::SandboxDone(id, Ok(()))]
            }
            Command::Start {
                name,
                attempt,
                sandbox,
            } => {
                if let Some((_, e)) = self.broken.iter().find(|(n, _)| *n == name) {
                    say(format!("start {name} {attempt}: {}", e.reason));
                    return vec![Event::Started(name, Some(Err(e.clone())))];
                }
                say(format!("start {name} {attempt}"));
                self.next += 1;
                let hash =
                    spec::container(&self.state.pod, &name).map(|(_, c)| spec::container_hash(&c));
                let now = self.nanos() + i64::from(self.next);
                self.view.containers.push(ContainerView {
                    id: format!("{name}-{attempt}"),
                    sandbox_id: sandbox,
                    name: name.clone(),
                    attempt,
                    state: RunState::Running,
                    created_at: now,
                    started_at: now,
                    hash: hash.unwrap_or_default(),
                    ..ContainerView::default()
                });
                vec![self.look(), Event::Started(name, Some(Ok(())))]
            }
            Command::CancelStart | Command::CancelVolumes => vec![],
            Command::Kill {
                id,
                grace,
                pre_stop,
                ..
            } => {
                say(format!(
                    "kill {id} {grace}{}",
                    if pre_stop { "" } else { " (again)" }
                ));
                if self.stubborn {
                    self.busy.push(Event::Killed(id, Ok(())));
                    return vec![];
                }
                self.exit(&id, 143);
                vec![self.look(), Event::Killed(id, Ok(()))]
            }
            Command::RemoveContainer(id) => {
                say(format!("remove {id}"));
                self.view.containers.retain(|c| c.id != id);
                vec![self.look()]
            }
            Command::Probes(p) => {
                let names: Vec<String> = p
                    .iter()
                    .map(|k| format!("{}:{}", k.id, k.kind.as_str()))
                    .collect();
                say(format!("probes [{}]", names.join(" ")));
                vec![]
            }
            Command::WriteStatus(_) => vec![],
            Command::CleanUp => {
                say("clean up".into());
                vec![Event::CleanedUp(Ok(()))]
            }
            Command::DeletePod => {
                let phase = self
                    .state
                    .status
                    .as_ref()
                    .and_then(|s| s.phase.clone())
                    .unwrap_or_default();
                say(format!("delete pod ({phase})"));
                vec![]
            }
            Command::Note {
                reason, container, ..
            } => {
                say(format!(
                    "event {reason}{}",
                    container.map(|c| format!(" {c}")).unwrap_or_default()
                ));
                vec![]
            }
            Command::Resize { name, restart, .. } => {
                say(format!(
                    "resize {name}{}",
                    if restart { " (restart)" } else { "" }
                ));
                let c = spec::container(&self.state.pod, &name).map(|(_, c)| c);
                let wanted = c.and_then(|c| c.resources).unwrap_or_default();
                match &self.no_room {
                    Some(reason) => vec![Event::Resized(
                        name,
                        Err(super::state::ResizePending {
                            reason: reason.clone(),
                            message: "no".into(),
                        }),
                    )],
                    None => vec![Event::Resized(name, Ok(Box::new(wanted)))],
                }
            }
            Command::Forget => {
                say("forget".into());
                vec![]
            }
        }
    }

    /// One of the results that are due arrives, after a look at the runtime.
    fn deliver(&mut self, which: usize) {
        if self.pending.is_empty() {
            return;
        }
        let event = self.pending.remove(which % self.pending.len());
        let look = self.look();
        self.happen(vec![look, event]);
    }

    fn exit(&mut self, id: &str, code: i32) {
        let now = self.nanos();
        for c in self.view.containers.iter_mut().filter(|c| c.id == id) {
            c.state = RunState::Exited;
            c.exit_code = code;
            c.finished_at = now;
        }
    }

    fn begin(&mut self) {
        let look = self.look();
        self.happen(vec![look]);
    }

    fn exits(&mut self, id: &str, code: i32) {
        self.exit(id, code);
        let look = self.look();
        self.happen(vec![look]);
    }

    fn wait(&mut self, seconds: i64) {
        let end = self
            .now
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap();
        while let Some(at) = self.state.wake_at.filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.happen(vec![Event::Tick]);
            if self.state.wake_at == Some(at) {
                panic!("woken at {at} for nothing:\n{}", self.log);
            }
        }
        self.now = end;
    }

    fn probe(&mut self, container: &str, id: &str, kind: ProbeKind, good: bool) {
        let key = ProbeKey {
            container: container.into(),
            id: id.into(),
            kind,
        };
        self.happen(vec![Event::Probe(key, good)]);
    }

    fn delete(&mut self, grace: i64) {
        let mut pod = (*self.state.pod).clone();
        pod.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now),
        );
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.happen(vec![Event::Pod(Arc::new(pod))]);
    }

    /// Phase, conditions that are true, and each container's state.
    fn status(&self) -> String {
        let s = self.state.status.clone().unwrap();
        let mut out = s.phase.unwrap_or_default();
        let conditions: Vec<String> = s
            .conditions
            .iter()
            .flatten()
            .filter(|c| c.status == "True")
            .map(|c| c.type_.clone())
            .collect();
        write!(out, " [{}]", conditions.join(" ")).unwrap();
        for c in s
            .init_container_statuses
            .iter()
            .flatten()
            .chain(s.container_statuses.iter().flatten())
        {
            let st = c.state.clone().unwrap_or_default();
            let text = if let Some(w) = st.waiting {
                w.reason.unwrap_or_default()
            } else if st.running.is_some() {
                "running".into()
            } else {
                st.terminated
                    .map(|t| format!("exit {}", t.exit_code))
                    .unwrap_or_default()
            };
            write!(
                out,
                " {}={text}/{}{}",
                c.name,
                c.restart_count,
                if c.ready { "+" } else { "" }
            )
            .unwrap();
        }
        out
    }

    fn took(&mut self) -> String {
        std::mem::take(&mut self.log).trim_end().replace('\n', "; ")
    }
}

fn pull_error() -> StartError {
    StartError {
        reason: "ErrImagePull".into(),
        message: "no such image".into(),
        image: Some("i".into()),
    }
}

const READY: &str = "Running [PodReadyToStartContainers Initialized ContainersReady Ready]";

#[test]
fn a_pod_is_started_reported_ready_and_deleted() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    m.begin();
    assert_eq!(m.took(), "sandbox 0; start a 0; start b 0");
    assert_eq!(m.status(), format!("{READY} a=running/0+ b=running/0+"));
    assert_eq!(
        m.state.status.as_ref().unwrap().pod_ip.as_deref(),
        Some("10.42.0.2")
    );
    m.delete(30);
    assert_eq!(
        m.took(),
        "kill b-0 30; kill a-0 30; stop sandbox s0; clean up; remove sandbox s0; delete pod (Failed)"
    );
    m.happen(vec![Event::Gone]);
    assert_eq!(m.took(), "forget");
}

#[test]
fn init_containers_run_one_after_another_and_sidecars_stay() {
    let mut m = model(
        serde_json::json!({"containers": [{"name": "a"}], "initContainers": [
        {"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}]}),
    );
    m.begin();
    assert_eq!(m.took(), "sandbox 0; start i 0");
    assert_eq!(
        m.status(),
        "Pending [PodReadyToStartContainers] i=running/0 s=PodInitializing/0 j=PodInitializing/0 a=PodInitializing/0"
    );
    m.exits("i-0", 0);
    assert_eq!(m.took(), "start s 0; start j 0");
    m.exits("j-0", 0);
    assert_eq!(m.took(), "start a 0");
    assert_eq!(
        m.status(),
        format!("{READY} i=exit 0/0+ s=running/0+ j=exit 0/0+ a=running/0+")
    );
    m.exits("s-0", 1);
    assert_eq!(m.took(), "start s 1");
    m.delete(10);
    assert_eq!(
        m.took(),
        "kill a-0 10; kill s-1 10; stop sandbox s0; clean up; remove sandbox s0; delete pod (Failed)"
    );
}

#[test]
fn a_failed_init_container_is_run_again_or_fails_the_pod() {
    let init = serde_json::json!([{"name": "i"}]);
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}], "initContainers": init}));
    m.begin();
    m.exits("i-0", 1);
    assert_eq!(m.took(), "sandbox 0; start i 0; start i 1");
    let mut m = model(
        serde_json::json!({"containers": [{"name": "a"}], "initContainers": init, "restartPolicy": "Never"}),
    );
    m.begin();
    m.exits("i-0", 1);
    assert_eq!(m.took(), "sandbox 0; start i 0; stop sandbox s0; clean up");
    assert!(m.status().starts_with("Failed"), "{}", m.status());
}

#[test]
fn a_crashing_container_is_restarted_later_and_later() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
    m.begin();
    m.took();
    m.exits("a-0", 1);
    assert_eq!(m.took(), "start a 1", "the first restart is at once");
    m.exits("a-1", 1);
    assert_eq!(m.took(), "event BackOff a; remove a-0");
    assert_eq!(
        m.status(),
        "Running [PodReadyToStartContainers Initialized] a=CrashLoopBackOff/1"
    );
    m.wait(9);
    assert_eq!(m.took(), "");
    m.wait(1);
    assert_eq!(m.took(), "start a 2");
    m.exits("a-2", 1);
    m.wait(19);
    assert_eq!(m.took(), "event BackOff a; remove a-1");
    m.wait(1);
    assert_eq!(m.took(), "start a 3");
    assert_eq!(m.status(), format!("{READY} a=running/3+"));
}

#[test]
fn restart_policies_decide_how_a_pod_ends() {
    for (policy, code, want) in [
        ("Never", 0, "Succeeded"),
        ("Never", 3, "Failed"),
        ("OnFailure", 0, "Succeeded"),
    ] {
        let mut m =
            model(serde_json::json!({"containers": [{"name": "a"}], "restartPolicy": policy}));
        m.begin();
        m.exits("a-0", code);
        assert_eq!(
            m.took(),
            "sandbox 0; start a 0; stop sandbox s0; clean up",
            "{policy} {code}"
        );
        assert!(
            m.status().starts_with(want),
            "{policy} {code}: {}",
            m.status()
        );
        assert_eq!(m.state.stage, Stage::Finished);
        m.delete(30);
        assert_eq!(m.took(), format!("remove sandbox s0; delete pod ({want})"));
    }
    let mut m =
        model(serde_json::json!({"containers": [{"name": "a"}], "restartPolicy": "OnFailure"}));
    m.begin();
    m.exits("a-0", 1);
    assert_eq!(m.took(), "sandbox 0; start a 0; start a 1");
}

#[test]
fn a_job_with_a_sidecar_succeeds_once_the_sidecar_is_stopped() {
    let mut m = model(
        serde_json::json!({"containers": [{"name": "a"}], "restartPolicy": "Never",
        "initContainers": [{"name": "s", "restartPolicy": "Always"}]}),
    );
    m.begin();
    m.exits("a-0", 0);
    assert_eq!(
        m.took(),
        "sandbox 0; start s 0; start a 0; kill s-0 30; stop sandbox s0; clean up"
    );
    assert!(m.status().starts_with("Succeeded"), "{}", m.status());
}

#[test]
fn an_image_that_cannot_be_pulled_is_tried_later_and_later() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a", "image": "i"}]}));
    m.broken = vec![("a".into(), pull_error())];
    m.begin();
    assert_eq!(
        m.took(),
        "sandbox 0; start a 0: ErrImagePull; event Failed a"
    );
    assert_eq!(
        m.status(),
        "Pending [PodReadyToStartContainers Initialized] a=ErrImagePull/0"
    );
    m.wait(5);
    assert_eq!(m.took(), "event BackOff a");
    assert_eq!(
        m.status(),
        "Pending [PodReadyToStartContainers Initialized] a=ImagePullBackOff/0"
    );
    m.wait(5);
    assert_eq!(m.took(), "start a 0: ErrImagePull; event Failed a");
    m.wait(19);
    assert_eq!(m.took(), "event BackOff a");
    m.broken.clear();
    m.wait(1);
    assert_eq!(m.took(), "start a 0");
    assert_eq!(m.status(), format!("{READY} a=running/0+"));
}

#[test]
fn probes_gate_readiness_and_restart_what_is_dead() {
    let probe = serde_json::json!({"tcpSocket": {"port": 1}});
    let mut m = model(serde_json::json!({"containers": [
        {"name": "a", "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe}]}));
    m.begin();
    assert_eq!(m.took(), "sandbox 0; start a 0; probes [a-0:Startup]");
    assert_eq!(
        m.status(),
        "Running [PodReadyToStartContainers Initialized] a=running/0"
    );
    m.probe("a", "a-0", ProbeKind::Startup, true);
    assert_eq!(m.took(), "probes [a-0:Liveness a-0:Readiness]");
    m.probe("a", "a-0", ProbeKind::Readiness, true);
    assert_eq!(m.status(), format!("{READY} a=running/0+"));
    m.probe("a", "a-0", ProbeKind::Liveness, false);
    assert_eq!(
        m.took(),
        "kill a-0 30; start a 1; probes []; probes [a-1:Startup]"
    );
    m.probe("a", "a-1", ProbeKind::Startup, false);
    assert!(
        m.took().starts_with("kill a-1 30"),
        "a failed startup probe restarts too"
    );
}

#[test]
fn what_runs_already_is_adopted_and_not_started_twice() {
    let mut first = model(serde_json::json!({"containers": [{"name": "a"}]}));
    first.begin();
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
    m.view = first.view.clone();
    m.begin();
    assert_eq!(m.took(), "");
    assert_eq!(m.status(), format!("{READY} a=running/0+"));
    // It ended while nobody looked.
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}], "restartPolicy": "Never"}));
    m.view = first.view.clone();
    m.exit("a-0", 7);
    m.begin();
    assert_eq!(m.took(), "stop sandbox s0; clean up");
    assert!(m.status().contains("a=exit 7/0"), "{}", m.status());
}

#[test]
fn a_restart_of_the_kubelet_makes_no_pod_unready() {
    let probe = serde_json::json!({"tcpSocket": {"port": 1}});
    let spec = serde_json::json!({"containers": [{"name": "a", "startupProbe": probe, "readinessProbe": probe}]});
    let mut first = model(spec.clone());
    first.begin();
    first.probe("a", "a-0", ProbeKind::Startup, true);
    first.probe("a", "a-0", ProbeKind::Readiness, true);
    let mut m = model(spec);
    let mut pod = (*m.state.pod).clone();
    pod.status = first.state.status.clone();
    m.state = PodState::new(Arc::new(pod), vec!["192.168.0.1".into()], "skiff", m.now);
    m.view = first.view.clone();
    m.begin();
    assert_eq!(m.status(), format!("{READY} a=running/0+"));
    assert_eq!(
        m.took(),
        "probes [a-0:Readiness]",
        "the startup probe is not run again"
    );
}

#[test]
fn a_lost_sandbox_is_made_again_with_its_containers() {
    let mut m = model(
        serde_json::json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}),
    );
    m.begin();
    m.exits("i-0", 0);
    m.took();
    m.view.sandboxes[0].ready = false;
    m.exits("a-0", 137);
    assert_eq!(m.took(), "event SandboxChanged; sandbox 1; start i 1");
    m.exits("i-1", 0);
    assert_eq!(m.took(), "start a 1; remove i-0");
    assert_eq!(
        m.state.status.as_ref().unwrap().pod_ip.as_deref(),
        Some("10.42.0.3")
    );
}

#[test]
fn a_shorter_grace_hurries_a_stop_that_is_under_way() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
    m.begin();
    m.took();
    m.stubborn = true;
    m.delete(30);
    assert_eq!(m.took(), "kill a-0 30");
    m.delete(1);
    assert_eq!(m.took(), "kill a-0 1 (again)");
    m.exit("a-0", 137);
    let mut events = vec![m.look()];
    events.append(&mut m.busy);
    m.happen(events);
    assert_eq!(
        m.took(),
        "stop sandbox s0; clean up; remove sandbox s0; delete pod (Failed)"
    );
}

#[test]
fn volumes_that_cannot_be_mounted_hold_the_containers_back() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
    m.unmountable = Some("configmap \"x\" not found".into());
    m.begin();
    assert_eq!(m.took(), "sandbox 0; event FailedMount");
    m.wait(10);
    assert_eq!(m.took(), "", "the same message is one event");
    assert_eq!(
        m.status(),
        "Pending [PodReadyToStartContainers Initialized] a=ContainerCreating/0"
    );
    m.unmountable = None;
    m.happen(vec![Event::SourcesChanged]);
    assert_eq!(m.took(), "start a 0");
}

#[test]
fn a_deadline_and_an_eviction_fail_the_pod() {
    let mut m =
        model(serde_json::json!({"containers": [{"name": "a"}], "activeDeadlineSeconds": 60}));
    m.begin();
    m.took();
    m.wait(60);
    assert_eq!(m.took(), "kill a-0 30; stop sandbox s0; clean up");
    let s = m.state.status.clone().unwrap();
    assert_eq!(
        (s.phase.as_deref(), s.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );

    let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
    m.happen(vec![Event::Evict {
        reason: "OutOfcpu".into(),
        message: "no".into(),
        grace: None,
        disruption: true,
    }]);
    m.begin();
    assert_eq!(m.took(), "clean up");
    let s = m.state.status.clone().unwrap();
    assert_eq!(
        (s.phase.as_deref(), s.reason.as_deref()),
        (Some("Failed"), Some("OutOfcpu"))
    );
}

#[test]
fn a_pod_has_not_failed_while_its_containers_run() {
    let mut m =
        model(serde_json::json!({"containers": [{"name": "a"}], "activeDeadlineSeconds": 60}));
    m.begin();
    m.took();
    m.stubborn = true;
    m.wait(60);
    let s = m.state.status.clone().unwrap();
    assert_eq!((s.phase.as_deref(), s.reason), (Some("Running"), None));
    m.exit("a-0", 137);
    let mut events = vec![m.look()];
    events.append(&mut m.busy);
    m.happen(events);
    let s = m.state.status.clone().unwrap();
    assert_eq!(
        (s.phase.as_deref(), s.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
}

#[test]
fn readiness_gates_hold_the_pod_back() {
    let mut m = model(
        serde_json::json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]}),
    );
    m.begin();
    assert_eq!(
        m.status(),
        "Running [PodReadyToStartContainers Initialized ContainersReady] a=running/0+"
    );
    let mut pod = (*m.state.pod).clone();
    pod.status = serde_json::from_value(
        serde_json::json!({"conditions": [{"type": "x/y", "status": "True"}]}),
    )
    .unwrap();
    m.happen(vec![Event::Pod(Arc::new(pod))]);
    assert_eq!(m.status(), format!("{READY} a=running/0+"));
}

#[test]
fn a_changed_image_restarts_the_container() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a", "image": "i:1"}]}));
    m.begin();
    m.took();
    let mut pod = (*m.state.pod).clone();
    pod.spec.as_mut().unwrap().containers[0].image = Some("i:2".into());
    m.happen(vec![Event::Pod(Arc::new(pod))]);
    assert_eq!(m.took(), "kill a-0 30; start a 1");
}

#[test]
fn a_running_container_is_resized_in_place_when_there_is_room() {
    let with = |cpu: &str| serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]});
    let mut m = model(with("100m"));
    m.begin();
    m.took();
    let change = |m: &mut Model, cpu: &str| {
        let mut pod = (*m.state.pod).clone();
        pod.spec = serde_json::from_value(with(cpu)).unwrap();
        m.happen(vec![Event::Pod(Arc::new(pod))]);
    };
    let allocated = |m: &Model| {
        let s = m.state.status.clone().unwrap();
        let c = s.container_statuses.unwrap().remove(0);
        c.allocated_resources.unwrap()["cpu"].0.clone()
    };
    change(&mut m, "200m");
    assert_eq!(m.took(), "resize a");
    assert_eq!(allocated(&m), "200m");
    m.no_room = Some("Deferred".into());
    change(&mut m, "300m");
    assert_eq!(m.took(), "resize a");
    assert_eq!(allocated(&m), "200m", "what it has, not what it wants");
    assert!(m.status().contains("PodResizePending"), "{}", m.status());
    m.no_room = None;
    m.wait(61);
    assert_eq!(m.took(), "resize a");
    assert_eq!(
        (allocated(&m).as_str(), m.status().contains("PodResize")),
        ("300m", false)
    );
}

#[test]
fn an_ephemeral_container_runs_once() {
    let mut m = model(serde_json::json!({"containers": [{"name": "a"}]}));
    m.begin();
    m.took();
    let mut pod = (*m.state.pod).clone();
    pod.spec.as_mut().unwrap().ephemeral_containers =
        serde_json::from_value(serde_json::json!([{"name": "d", "image": "i"}])).unwrap();
    m.happen(vec![Event::Pod(Arc::new(pod))]);
    assert_eq!(m.took(), "start d 0");
    m.exits("d-0", 0);
    assert_eq!(m.took(), "");
    assert_eq!(m.status(), format!("{READY} a=running/0+"));
}

/// Something that may happen to a pod.
#[derive(Debug, Clone)]
enum Happening {
    Exit(usize, i32),
    Probe(usize, bool),
    Wait(i64),
    LoseSandbox,
    Break(bool),
    Delete(i64),
    Evict,
    Gone,
    Look,
    Deliver(usize),
}

fn happening() -> impl proptest::strategy::Strategy<Value = Happening> {
    use proptest::prelude::*;
    prop_oneof![
        6 => (0usize..4, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(i, c)| Happening::Exit(i, c)),
        3 => (0usize..4, any::<bool>()).prop_map(|(i, g)| Happening::Probe(i, g)),
        4 => (1i64..400).prop_map(Happening::Wait),
        1 => Just(Happening::LoseSandbox),
        1 => any::<bool>().prop_map(Happening::Break),
        1 => (1i64..30).prop_map(Happening::Delete),
        1 => Just(Happening::Evict),
        1 => Just(Happening::Gone),
        2 => Just(Happening::Look),
        12 => (0usize..5).prop_map(Happening::Deliver),
    ]
}

proptest::proptest! {
    #[test]
    fn whatever_happens_the_machine_rests_runs_nothing_twice_and_ends(
        policy in 0usize..3,
        slow in proptest::bool::ANY,
        script in proptest::collection::vec(happening(), 0..40),
    ) {
        let policy = ["Always", "OnFailure", "Never"][policy];
        let probe = serde_json::json!({"tcpSocket": {"port": 1}});
        let mut m = model(serde_json::json!({"restartPolicy": policy,
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always", "startupProbe": probe}],
            "containers": [{"name": "a", "livenessProbe": probe, "readinessProbe": probe}, {"name": "b"}]}));
        m.slow = slow;
        m.begin();
        let names = ["i", "s", "a", "b"];
        let mut ended: Option<String> = None;
        for h in script {
            let run = |m: &Model, i: usize| {
                m.view.clone().sorted().latest(names[i]).filter(|c| c.state == RunState::Running).map(|c| c.id.clone())
            };
            match h {
                Happening::Exit(i, code) => {
                    if let Some(id) = run(&m, i) {
                        m.exits(&id, code);
                    }
                }
                Happening::Probe(i, good) => {
                    let kind = if names[i] == "s" { ProbeKind::Startup } else { ProbeKind::Liveness };
                    if let Some(id) = run(&m, i) {
                        m.probe(names[i], &id, kind, good);
                    }
                }
                Happening::Wait(seconds) => m.wait(seconds),
                Happening::LoseSandbox => {
                    for s in &mut m.view.sandboxes {
                        s.ready = false;
                    }
                    let alive: Vec<String> = m.view.alive().map(|c| c.id.clone()).collect();
                    for id in alive {
                        m.exit(&id, 137);
                    }
                    let look = m.look();
                    m.happen(vec![look]);
                }
                Happening::Break(yes) => m.broken = if yes { vec![("b".into(), pull_error())] } else { vec![] },
                Happening::Delete(grace) => m.delete(grace),
                Happening::Evict => {
                    m.happen(vec![Event::Evict { reason: "Evicted".into(), message: String::new(), grace: Some(1), disruption: true }]);
                }
                Happening::Gone => m.happen(vec![Event::Gone]),
                Happening::Look => {
                    let look = m.look();
                    m.happen(vec![look]);
                }
                Happening::Deliver(which) => m.deliver(which),
            }
            for name in names {
                let alive = m.view.alive().filter(|c| c.name == name).count();
                proptest::prop_assert!(alive <= 1, "{name} runs {alive} times:\n{}", m.log);
            }
            if m.state.gone {
                break;
            }
            let phase = m.state.status.clone().and_then(|s| s.phase).unwrap_or_default();
            if let Some(before) = &ended {
                proptest::prop_assert_eq!(before, &phase, "an ended pod changed:\n{}", m.log);
            }
            if matches!(phase.as_str(), "Succeeded" | "Failed") {
                // The API now has this phase.
                let mut pod = (*m.state.pod).clone();
                pod.status = m.state.status.clone();
                m.happen(vec![Event::Pod(Arc::new(pod))]);
                ended = Some(phase);
            }
        }
        m.delete(1);
        for _ in 0..100 {
            m.deliver(0);
        }
        m.wait(600);
        m.happen(vec![Event::Gone]);
        for _ in 0..100 {
            m.deliver(0);
        }
        proptest::prop_assert!(m.log.contains("forget"), "it does not end:\n{}", m.log);
        proptest::prop_assert_eq!(m.view.alive().count(), 0);
    }
}

#[test]
fn a_pod_whose_volumes_hang_can_be_deleted() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let pod = |deleted: bool| -> Arc<Pod> {
        let mut p = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c"}], "volumes": [{"name": "v", "hostPath": {"path": "/dead"}}]}});
        if deleted {
            p["metadata"]["deletionTimestamp"] = serde_json::json!("2026-01-01T00:00:01Z");
            p["metadata"]["deletionGracePeriodSeconds"] = serde_json::json!(1);
        }
        Arc::new(serde_json::from_value(p).unwrap())
    };
    let mut s = PodState::new(pod(false), vec![], "skiff", now);
    let first = s.step([Event::Runtime(RuntimeView::default())], now);
    assert!(first.contains(&Command::MountVolumes), "{first:?}");
    // The sandbox is made meanwhile, volumes or not.
    let called_off = s.step([Event::SandboxMade(Ok(())), Event::Pod(pod(true))], now);
    assert!(
        called_off.contains(&Command::CancelVolumes),
        "{called_off:?}"
    );
    let again = s.step([Event::Tick], now);
    assert!(!again.contains(&Command::CancelVolumes), "once is enough");
    let then = s.step([Event::Volumes(Err("called off".into()))], now);
    assert!(then.contains(&Command::CleanUp), "{then:?}");
    let noted = |c: &Command| matches!(c, Command::Note { .. });
    assert!(!then.iter().any(noted), "{then:?}");
}
