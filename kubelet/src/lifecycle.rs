//! postStart and preStop hooks (upstream pkg/kubelet/lifecycle). Owns carrying them out; their deadlines are the
//! caller's.

use crate::cri::Cri;
use crate::prober::check::{self, Outcome, Target};
use k8s_openapi::api::core::v1::LifecycleHandler;
use std::time::Duration;

/// Runs a hook to its end.
///
/// # Errors
/// Why it failed.
pub async fn run(
    cri: &Cri,
    hook: &LifecycleHandler,
    id: &str,
    target: &Target,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        // No limit of its own: the caller's deadline ends the wait.
        let r = cri
            .exec_sync(id, command.clone(), Duration::from_secs(3600))
            .await
            .map_err(|e| e.message)?;
        if r.exit_code == 0 {
            return Ok(());
        }
        let mut out = String::from_utf8_lossy(&r.stdout).into_owned();
        out.push_str(&String::from_utf8_lossy(&r.stderr));
        return Err(format!(
            "command '{}' exited with {}: {out}",
            command.join(" "),
            r.exit_code
        ));
    }
    if let Some(get) = &hook.http_get {
        return match check::http_get(get, target).await {
            Outcome::Good | Outcome::Warn(_) => Ok(()),
            Outcome::Bad(m) | Outcome::Broken(m) => Err(m),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    // tcpSocket: upstream has never carried it out either, and fails the hook.
    Err("cannot run handler: invalid handler: only exec, httpGet and sleep are carried out".into())
}
