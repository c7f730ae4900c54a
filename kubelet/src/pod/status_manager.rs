//! Writes a pod's status to the API: the newest one, one write at a time, once per change (upstream pkg/kubelet/status).
//! Owns retries and the final deletion; computes no status.

use super::spec;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_supervise::Supervisor;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

#[derive(Default)]
struct State {
    wanted: Option<Value>,
    /// A status that may wait is written at this time.
    due: Option<Instant>,
    written: Option<Value>,
    delete: bool,
    running: bool,
    gone: bool,
}

/// The status of one pod on its way to the API.
pub struct StatusWriter {
    client: kube::Client,
    supervisor: Supervisor,
    pod: Arc<Pod>,
    state: Mutex<State>,
    hurry: Notify,
}

/// How long a status of the middle of things may wait for the next one, which says more.
const PATIENCE: Duration = Duration::from_millis(100);

impl StatusWriter {
    /// Of a pod whose status in the API is the given one.
    pub fn new(client: kube::Client, supervisor: Supervisor, pod: Arc<Pod>) -> Arc<Self> {
        let written = pod
            .status
            .as_ref()
            .and_then(|s| serde_json::to_value(s).ok());
        Arc::new(Self {
            client,
            supervisor,
            pod,
            state: Mutex::new(State {
                written,
                ..State::default()
            }),
            hurry: Notify::new(),
        })
    }

    /// The status is this now. One that is not `urgent` (something is under way that will change it) may be left out
    /// in favour of the next.
    pub fn write(self: &Arc<Self>, status: &PodStatus, urgent: bool) {
        let Ok(mut value) = serde_json::to_value(status) else {
            return;
        };
        if let Some(o) = value.as_object_mut() {
            // An absent reason must go from the API too.
            for k in ["reason", "message"] {
                o.entry(k).or_insert(Value::Null);
            }
        }
        {
            let mut s = self.state.lock();
            let changes = s.written.as_ref().is_none_or(|w| would_change(w, &value));
            s.wanted = changes.then_some(value);
            s.due = match (urgent, s.due) {
                (true, _) => None,
                (false, due) => Some(due.unwrap_or_else(|| Instant::now() + PATIENCE)),
            };
        }
        self.hurry.notify_one();
        self.kick();
    }

    /// Once the last status is written, the pod can go from the API.
    pub fn delete(self: &Arc<Self>) {
        {
            let mut s = self.state.lock();
            s.delete = true;
            s.due = None;
        }
        self.hurry.notify_one();
        self.kick();
    }

    /// The API has the pod no more: nothing is written any more.
    pub fn forget(&self) {
        let mut s = self.state.lock();
        s.gone = true;
        s.wanted = None;
        s.delete = false;
    }

    fn kick(self: &Arc<Self>) {
        let mut s = self.state.lock();
        if s.running || s.gone || (s.wanted.is_none() && !s.delete) {
            return;
        }
        s.running = true;
        drop(s);
        let this = self.clone();
        let key = format!("{}/{}", spec::namespace(&self.pod), spec::name(&self.pod));
        self.supervisor
            .spawn_transient("kubelet/pod-status", key, move || {
                let this = this.clone();
                async move {
                    this.run().await;
                    Ok::<_, std::convert::Infallible>(())
                }
            });
    }

    async fn run(&self) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), spec::namespace(&self.pod));
        let name = spec::name(&self.pod);
        let mut wait = Duration::from_millis(200);
        loop {
            let (wanted, delete, due) = {
                let mut s = self.state.lock();
                if s.gone || (s.wanted.is_none() && !s.delete) {
                    s.running = false;
                    s.due = None;
                    return;
                }
                (s.wanted.clone(), s.delete, s.due)
            };
            if let Some(due) = due.filter(|d| *d > Instant::now()) {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = self.hurry.notified() => {}
                }
                continue;
            }
            let result = match wanted {
                Some(status) => self.patch(&api, name, status).await,
                None if delete => self.remove(&api, name).await,
                None => Ok(()),
            };
            match result {
                Ok(()) => wait = Duration::from_millis(200),
                Err(e) if skiff_client::is_code(&e, 404) || skiff_client::is_code(&e, 409) => {
                    // Gone, or another pod has taken the name.
                    self.forget();
                }
                Err(e) => {
                    tracing::warn!(pod = name, error = %e, "status could not be written; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    async fn patch(&self, api: &Api<Pod>, name: &str, status: Value) -> Result<(), kube::Error> {
        let mut body = status.clone();
        {
            let s = self.state.lock();
            // A condition's old reason and message must go where the new one has none: elements merge by type.
            let before = s
                .written
                .as_ref()
                .and_then(|w| w.get("conditions"))
                .and_then(Value::as_array);
            for c in body
                .get_mut("conditions")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                let old = before
                    .into_iter()
                    .flatten()
                    .find(|b| b.get("type") == c.get("type"));
                for key in ["reason", "message"] {
                    if c.get(key).is_none()
                        && old.and_then(|o| o.get(key)).is_some()
                        && let Some(c) = c.as_object_mut()
                    {
                        c.insert(key.into(), Value::Null);
                    }
                }
            }
            // The kubelet's conditions that come and go must be taken away by name.
            if let Some(list) = body.get_mut("conditions").and_then(Value::as_array_mut) {
                let had =
                    |l: &Value, kind: &str| l.get("type").and_then(Value::as_str) == Some(kind);
                for kind in PASSING {
                    if !list.iter().any(|c| had(c, kind))
                        && before.into_iter().flatten().any(|c| had(c, kind))
                    {
                        list.push(json!({"$patch": "delete", "type": kind}));
                    }
                }
            }
            // podIPs and hostIPs merge by address: a changed list must replace the old one.
            for key in ["podIPs", "hostIPs"] {
                let old = s.written.as_ref().and_then(|w| w.get(key));
                if let Some(list) = body.get_mut(key).and_then(Value::as_array_mut)
                    && old.is_some_and(|o| *o != Value::Array(list.clone()))
                {
                    list.push(json!({"$patch": "replace"}));
                }
            }
        }
        let patch = json!({"metadata": {"uid": spec::uid(&self.pod)}, "status": body});
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch))
            .await?;
        let mut s = self.state.lock();
        if s.wanted.as_ref() == Some(&status) {
            s.wanted = None;
            s.due = None;
        }
        s.written = Some(status);
        Ok(())
    }

    async fn remove(&self, api: &Api<Pod>, name: &str) -> Result<(), kube::Error> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(spec::uid(&self.pod).to_string()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        api.delete(name, &params).await?;
        self.state.lock().delete = false;
        Ok(())
    }
}

/// Conditions of the kubelet that a pod has only for a while.
const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// Would merging `patch` into `old` change anything? Conditions merge by type, everything else is replaced.
fn would_change(old: &Value, patch: &Value) -> bool {
    let (Some(old), Some(patch)) = (old.as_object(), patch.as_object()) else {
        return true;
    };
    patch.iter().any(|(k, v)| {
        let before = old.get(k);
        if v.is_null() {
            return before.is_some_and(|b| !b.is_null());
        }
        if k == "conditions" {
            let before = before
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            let has = |list: &[Value], kind: &str| {
                list.iter()
                    .any(|c| c.get("type").and_then(Value::as_str) == Some(kind))
            };
            let now = v.as_array().map(Vec::as_slice).unwrap_or_default();
            if PASSING
                .iter()
                .any(|kind| has(&before, kind) && !has(now, kind))
            {
                return true;
            }
            return v.as_array().into_iter().flatten().any(|c| {
                let found = before.iter().find(|b| b.get("type") == c.get("type"));
                match (found.and_then(Value::as_object), c.as_object()) {
                    (Some(b), Some(c)) => {
                        let same = |k: &str| {
                            b.get(k).filter(|v| !v.is_null()) == c.get(k).filter(|v| !v.is_null())
                        };
                        ![
                            "status",
                            "reason",
                            "message",
                            "observedGeneration",
                            "lastTransitionTime",
                        ]
                        .iter()
                        .all(|k| same(k))
                    }
                    _ => true,
                }
            });
        }
        before != Some(v)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_says_nothing_new_is_not_written() {
        let old = json!({"phase": "Running", "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "lastProbeTime": null}]});
        let same = json!({"phase": "Running", "reason": null, "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        assert!(!would_change(&old, &same));
        for other in [
            json!({"phase": "Failed"}),
            json!({"podIP": "1.2.3.4"}),
            json!({"conditions": [{"type": "Ready", "status": "False"}]}),
            json!({"conditions": [{"type": "Initialized", "status": "True"}]}),
        ] {
            assert!(would_change(&old, &other), "{other}");
        }
        assert!(would_change(
            &json!({"reason": "x"}),
            &json!({"reason": null})
        ));
    }
}
