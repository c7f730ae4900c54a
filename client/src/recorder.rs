//! Events about objects, as `kubectl describe` shows them. Owns counting of repeated events (upstream's
//! tools/record correlator); never blocks and never fails its caller.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use std::collections::HashMap;
use tokio::sync::mpsc;

/// `Normal` or `Warning`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// For information.
    Normal,
    /// Something may be wrong.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

struct Note {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    /// When it happened; it may be written later.
    at: Timestamp,
}

/// Writes events in the background. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    tx: mpsc::Sender<Note>,
}

/// Repeats that are remembered, so that they count up rather than pile up (client-go: 4096).
const REMEMBERED: usize = 4096;
/// Events that may wait to be written; more are dropped, as upstream drops them.
const WAITING: usize = 1000;

impl Recorder {
    /// A recorder for one component (`kubelet`, `deployment-controller`...) on a node (empty for the control plane).
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let (tx, rx) = mpsc::channel(WAITING);
        let source = EventSource {
            component: Some(component.to_string()),
            host: (!host.is_empty()).then(|| host.to_string()),
        };
        tokio::spawn(write_all(client, source, rx));
        Self { tx }
    }

    /// Notes an event about an object.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.about(reference(object), kind, reason, message);
    }

    /// Notes an event about a reference (with fieldPath `spec.containers{name}`, say).
    pub fn about(
        &self,
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let note = Note {
            about,
            kind,
            reason: reason.into(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.tx.try_send(note).is_err() {
            tracing::debug!("an event was dropped: too many are waiting");
        }
    }
}

/// The reference of an object, as events carry it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

type Seen = (String, String, String, String, EventType);

async fn write_all(client: Client, source: EventSource, mut rx: mpsc::Receiver<Note>) {
    // Key -> (namespace, event name, count). Cleared whole when it is full: upstream's LRU without its cost.
    let mut seen: HashMap<Seen, (String, String, i32)> = HashMap::new();
    while let Some(note) = rx.recv().await {
        let namespace = note
            .about
            .namespace
            .clone()
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key: Seen = (
            note.about
                .uid
                .clone()
                .unwrap_or_else(|| note.about.name.clone().unwrap_or_default()),
            note.about.field_path.clone().unwrap_or_default(),
            note.reason.clone(),
            note.message.clone(),
            note.kind,
        );
        let now = note.at;
        if let Some((_, name, count)) = seen.get_mut(&key) {
            let patch = serde_json::json!({"count": *count + 1, "lastTimestamp": Time(now)});
            match api
                .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
            {
                Ok(_) => {
                    *count += 1;
                    continue;
                }
                Err(e) if crate::is_code(&e, 404) => {} // expired: write a new one
                Err(e) => {
                    tracing::debug!(error = %e, "an event could not be counted");
                    continue;
                }
            }
        }
        let event = new_event(&note, &namespace, &source);
        match api.create(&PostParams::default(), &event).await {
            Ok(made) => {
                if seen.len() >= REMEMBERED {
                    seen.clear();
                }
                seen.insert(key, (namespace, made.metadata.name.unwrap_or_default(), 1));
            }
            // A namespace that is going away refuses new events: that is as it should be.
            Err(e) => {
                tracing::debug!(error = %e, reason = %note.reason, "an event could not be written")
            }
        }
    }
}

fn new_event(note: &Note, namespace: &str, source: &EventSource) -> Event {
    let now = note.at;
    let mut event = Event {
        involved_object: note.about.clone(),
        type_: Some(note.kind.as_str().into()),
        reason: Some(note.reason.clone()),
        // Upstream cuts messages at 1024 bytes.
        message: Some(cut(&note.message, 1024).to_string()),
        source: Some(source.clone()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        event_time: None::<MicroTime>,
        ..Event::default()
    };
    event.metadata.namespace = Some(namespace.to_string());
    let about = note.about.name.as_deref().unwrap_or("unknown");
    // The time in nanoseconds as upstream's: timestamps have seconds only, so it is the order of names in which
    // `kubectl describe` shows what happened within one of them.
    let unique = now.as_nanosecond() as u64;
    event.metadata.name = Some(format!("{about}.{unique:016x}"));
    event
}

fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_events_are_in_the_order_in_which_they_happened() {
        let name = |ns: i128| {
            let note = Note {
                about: ObjectReference {
                    name: Some("web".into()),
                    ..ObjectReference::default()
                },
                kind: EventType::Normal,
                reason: "Started".into(),
                message: "Container started".into(),
                at: Timestamp::from_nanosecond(ns).unwrap(),
            };
            new_event(&note, "default", &EventSource::default())
                .metadata
                .name
                .unwrap()
        };
        assert!(name(1_795_273_035_000_000_001) < name(1_795_273_035_900_000_000));
        assert_eq!(name(16), "web.0000000000000010");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let text = "é".repeat(600);
        assert_eq!(cut(&text, 1023).len(), 1022);
        assert_eq!(cut("short", 1024), "short");
    }
}
