//! Probes: one task for each probe that is needed now, telling its pod's worker only when the verdict changes
//! (upstream pkg/kubelet/prober). Owns timing and thresholds; what a verdict leads to is the state machine's.

pub mod check;

use crate::kubelet::Kubelet;
use crate::pod::spec;
use crate::pod::state::{Event, ProbeKey, ProbeKind};
use crate::pod::worker::{Msg, Sender};
use check::{Outcome, Target};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use skiff_client::recorder::EventType;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The probes of one pod that run now.
#[derive(Default)]
pub struct Probers {
    running: HashMap<ProbeKey, DropGuard>,
}

impl Probers {
    /// Starts and stops tasks until exactly the wanted ones run.
    pub fn set(
        &mut self,
        kubelet: &Arc<Kubelet>,
        pod: &Arc<Pod>,
        wanted: &BTreeSet<ProbeKey>,
        pod_ip: &str,
        started_at: impl Fn(&str) -> Timestamp,
        tx: &Sender,
    ) {
        self.running.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if self.running.contains_key(key) {
                continue;
            }
            let Some((_, container)) = spec::container(&pod.clone(), &key.container) else {
                continue;
            };
            let Some(probe) = probe_of(&container, key.kind) else {
                continue;
            };
            let job = Job {
                kubelet: kubelet.clone(),
                pod: pod.clone(),
                key: key.clone(),
                target: Target::new(&container, &key.id, pod_ip),
                probe,
                started_at: started_at(&key.id),
                tx: tx.clone(),
            };
            let stop = CancellationToken::new();
            self.running.insert(key.clone(), stop.clone().drop_guard());
            let name = format!(
                "{}/{} {} {}",
                spec::namespace(pod),
                spec::name(pod),
                key.container,
                key.kind.as_str()
            );
            kubelet
                .supervisor()
                .spawn_transient("kubelet/probe", name, move || {
                    let (job, stop) = (job.clone(), stop.clone());
                    async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = job.run() => {}
                        }
                        Ok::<_, std::convert::Infallible>(())
                    }
                });
        }
    }
}

fn probe_of(c: &Container, kind: ProbeKind) -> Option<Probe> {
    match kind {
        ProbeKind::Startup => c.startup_probe.clone(),
        ProbeKind::Liveness => c.liveness_probe.clone(),
        ProbeKind::Readiness => c.readiness_probe.clone(),
    }
}

#[derive(Clone)]
struct Job {
    kubelet: Arc<Kubelet>,
    pod: Arc<Pod>,
    key: ProbeKey,
    target: Target,
    probe: Probe,
    started_at: Timestamp,
    tx: Sender,
}

/// Counts equal results until a threshold is reached. Pure.
#[derive(Debug, Default)]
pub struct Verdict {
    last: Option<bool>,
    run: i32,
    told: Option<bool>,
}

impl Verdict {
    /// Takes a result; answers the verdict when it is new.
    pub fn take(
        &mut self,
        good: bool,
        success_threshold: i32,
        failure_threshold: i32,
    ) -> Option<bool> {
        if self.last == Some(good) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(good);
            self.run = 1;
        }
        let needed = if good {
            success_threshold
        } else {
            failure_threshold
        };
        if self.run < needed || self.told == Some(good) {
            return None;
        }
        self.told = Some(good);
        self.told
    }
}

impl Job {
    async fn run(self) {
        let seconds =
            |v: Option<i32>, default: i32| Duration::from_secs(v.unwrap_or(default).max(0) as u64);
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let timeout = seconds(self.probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let first = seconds(self.probe.initial_delay_seconds, 0);
        let age = Duration::try_from(Timestamp::now().duration_since(self.started_at))
            .unwrap_or_default();
        if age < first {
            tokio::time::sleep(first - age).await;
        }
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut verdict = Verdict::default();
        loop {
            ticks.tick().await;
            let outcome = check::run(&self.kubelet.cri, &self.probe, &self.target, timeout).await;
            let good = match outcome {
                Outcome::Good => true,
                Outcome::Warn(message) => {
                    self.note(
                        "ProbeWarning",
                        &format!("{} probe warning: {message}", self.key.kind.as_str()),
                    );
                    true
                }
                Outcome::Bad(message) => {
                    self.note(
                        "Unhealthy",
                        &format!("{} probe failed: {message}", self.key.kind.as_str()),
                    );
                    false
                }
                Outcome::Broken(message) => {
                    self.note(
                        "Unhealthy",
                        &format!(
                            "{} probe errored and resulted in unknown state: {message}",
                            self.key.kind.as_str()
                        ),
                    );
                    continue;
                }
            };
            let told = verdict.take(
                good,
                self.probe.success_threshold.unwrap_or(1).max(1),
                self.probe.failure_threshold.unwrap_or(3).max(1),
            );
            let Some(good) = told else { continue };
            let _ = self
                .tx
                .send(Msg::Event(Event::Probe(self.key.clone(), good)));
            match (self.key.kind, good) {
                // Nothing more to find out about this run of the container.
                (ProbeKind::Startup, _) | (ProbeKind::Liveness, false) => return,
                _ => {}
            }
        }
    }

    fn note(&self, reason: &str, message: &str) {
        self.kubelet.note_container(
            &self.pod,
            &self.key.container,
            EventType::Warning,
            reason,
            message,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_changes_at_its_threshold_only() {
        let mut v = Verdict::default();
        let told: Vec<_> = [false, false, false, false, true, true, false]
            .into_iter()
            .map(|r| v.take(r, 2, 3))
            .collect();
        assert_eq!(
            told,
            [None, None, Some(false), None, None, Some(true), None]
        );
    }
}
