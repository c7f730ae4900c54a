//! The namespaces every cluster has. Made again when missing, as upstream's system-namespaces controller does at start.

use super::make;
use crate::App;
use futures::StreamExt;
use serde_json::json;
use skiff_api::status::Status;
use std::sync::Arc;

const NAMES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "default"];

/// Makes those that are missing.
///
/// # Errors
/// When one cannot be written.
pub async fn ensure(app: &Arc<App>) -> Result<(), Status> {
    let jobs = NAMES.iter().map(|n| async move {
        if app.store.get(&format!("/core/namespaces/{n}")).is_some() {
            return Ok(());
        }
        let o = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n, "labels": {"kubernetes.io/metadata.name": n}}});
        make(app, "", "v1", "namespaces", "", o).await
    });
    let results: Vec<Result<(), Status>> = futures::stream::iter(jobs)
        .buffer_unordered(8)
        .collect()
        .await;
    results.into_iter().collect()
}
