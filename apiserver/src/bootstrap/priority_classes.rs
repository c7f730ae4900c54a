//! The two system priority classes (upstream's scheduling/bootstrap-system-priority-classes hook).

use super::make;
use crate::App;
use serde_json::json;
use skiff_api::status::Status;
use std::sync::Arc;

const GROUP: &str = "scheduling.k8s.io";
const CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// Makes those that are missing.
///
/// # Errors
/// When one cannot be written.
pub async fn ensure(app: &Arc<App>) -> Result<(), Status> {
    for (name, value, description) in CLASSES {
        if app
            .store
            .get(&format!("/{GROUP}/priorityclasses/{name}"))
            .is_some()
        {
            continue;
        }
        let o = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description,
        });
        make(app, GROUP, "v1", "priorityclasses", "", o).await?;
    }
    Ok(())
}
