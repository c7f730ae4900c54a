//! Rotation of container logs by size (upstream pkg/kubelet/logs). Owns renaming and removal; the runtime opens the
//! new file when it is told to.

use crate::kubelet::Kubelet;
use crate::pod::view::RunState;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often sizes are looked at while containers run (upstream containerLogMonitorInterval).
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks after all logs of the node until the kubelet stops.
pub async fn run(k: Arc<Kubelet>) {
    loop {
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let running: Vec<(String, String)> = {
            let workers = k.workers.lock();
            workers
                .values()
                .flat_map(|h| {
                    let p = h.published.lock();
                    p.view
                        .containers
                        .iter()
                        .filter(|c| c.state == RunState::Running)
                        .map(|c| (c.id.clone(), c.log_path.clone()))
                        .collect::<Vec<_>>()
                })
                .collect()
        };
        for (id, path) in running {
            let path = PathBuf::from(path);
            if fs::metadata(&path).is_ok_and(|m| m.len() >= k.config.container_log_max_size) {
                rotate(&k, &id, &path).await;
            }
        }
    }
}

async fn rotate(k: &Kubelet, id: &str, path: &Path) {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut old = path.as_os_str().to_owned();
    old.push(format!(".{stamp}"));
    let old = PathBuf::from(old);
    if let Err(e) = fs::rename(path, &old) {
        tracing::warn!(log = %path.display(), error = %e, "log could not be rotated");
        return;
    }
    if let Err(e) = k.cri.reopen_container_log(id).await {
        tracing::warn!(log = %path.display(), error = %e, "log could not be opened anew; going on with the old one");
        if !path.exists() {
            let _ = fs::rename(&old, path);
        }
        return;
    }
    // The newest of all files is the one just opened.
    let files = rotated(path);
    let excess = (files.len() + 1).saturating_sub(k.config.container_log_max_files.max(2));
    for f in files.into_iter().take(excess) {
        let _ = fs::remove_file(f);
    }
}

/// Rotated files of a log, the oldest first.
pub fn rotated(path: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let mut out: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| {
            let n = e.file_name().to_string_lossy().into_owned();
            n.strip_prefix(name).is_some_and(|rest| {
                rest.starts_with('.') && rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit)
            })
        })
        .map(|e| e.path())
        .collect();
    out.sort();
    out
}

/// Removes a log with its rotated files.
pub fn remove(path: &Path) {
    if path.as_os_str().is_empty() {
        return;
    }
    for f in rotated(path) {
        let _ = fs::remove_file(f);
    }
    let _ = fs::remove_file(path);
}
