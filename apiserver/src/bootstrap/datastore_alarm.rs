//! Tells as an Event when the store is full and when there is space again. Owns that one Event; the store decides.

use super::{make, put};
use crate::App;
use crate::admission::find;
use serde_json::{Value, json};
use skiff_api::status::Status;
use std::sync::Arc;

const NS: &str = "kube-system";
const NAME: &str = "skiff-datastore";

/// The key of the Event: the store takes it also when it is full.
pub fn key() -> String {
    format!("/core/events/{NS}/{NAME}")
}

/// Follows the store's alarm until the server ends.
///
/// # Errors
/// The Event cannot be written.
pub async fn follow(app: Arc<App>) -> Result<(), Status> {
    let mut alarms = app.store.alarms();
    let mut told = None;
    loop {
        let alarm = alarms.borrow_and_update().clone();
        if alarm != told {
            // An alarm whose numbers change is still the same.
            if alarm.is_some() != told.is_some() {
                tell(&app, alarm.as_deref()).await?;
            }
            told = alarm;
        }
        if alarms.changed().await.is_err() {
            // The store has ended, and with it the server.
            std::future::pending::<()>().await;
        }
    }
}

async fn tell(app: &Arc<App>, alarm: Option<&str>) -> Result<(), Status> {
    let now = crate::registry::now();
    let (kind, reason, message) = match alarm {
        Some(why) => ("Warning", "DatastoreFull", why),
        None => (
            "Normal",
            "DatastoreHasSpace",
            "there is space for writes again",
        ),
    };
    let (kind, reason, message) = (kind.to_string(), reason.to_string(), message.to_string());
    if find(app, "core/events", NS, NAME).is_some() {
        return put(app, "", "v1", "events", NS, NAME, move |o| {
            o["type"] = kind.as_str().into();
            o["reason"] = reason.as_str().into();
            o["message"] = message.as_str().into();
            o["lastTimestamp"] = now.as_str().into();
            o["count"] = (o["count"].as_i64().unwrap_or(0) + 1).into();
        })
        .await;
    }
    let event: Value = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": NAME, "namespace": NS},
        "involvedObject": {"apiVersion": "v1", "kind": "Namespace", "name": NS, "namespace": NS},
        "type": kind, "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": "apiserver"}, "reportingComponent": "apiserver", "reportingInstance": "",
    });
    make(app, "", "v1", "events", NS, event).await
}
