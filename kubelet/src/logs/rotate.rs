//! Rotation of container logs by size (upstream pkg/kubelet/logs). Owns renaming and removal; the runtime opens the
//! new file when it is told to.

use super::Log;
use crate::kubelet::Kubelet;
use crate::pod::view::RunState;
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
            let base = k.config.pod_logs_dir.clone();
            let max = k.config.container_log_max_size;
            let large = blocking(move || {
                let log = Log::find(&base, Path::new(&path)).ok()?;
                let size = log.open().and_then(|f| f.metadata()).ok()?.len();
                (size >= max).then_some(log)
            });
            if let Some(log) = large.await {
                rotate(&k, &id, log).await;
            }
        }
    }
}

/// Files of the node's own disk: short work, off the threads that carry everybody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok().flatten()
}

async fn rotate(k: &Kubelet, id: &str, log: Log) {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut old = log.name.clone();
    old.push(format!(".{stamp}"));
    let shown = log.name.to_string_lossy().into_owned();
    let to = old.clone();
    let moved = tokio::task::spawn_blocking(move || {
        let result = log.dir.rename_new(&log.name, to);
        (log, result)
    });
    let Ok((log, result)) = moved.await else {
        return;
    };
    if let Err(e) = result {
        tracing::warn!(container = id, log = shown, error = %e, "log could not be rotated");
        return;
    }
    let reopened = k.cri.reopen_container_log(id).await;
    if let Err(e) = &reopened {
        tracing::warn!(container = id, log = shown, error = %e, "log could not be opened anew; going on with the old one");
    }
    let keep = k.config.container_log_max_files.max(2);
    let _ = tokio::task::spawn_blocking(move || {
        if reopened.is_err() {
            let _ = log.dir.rename_new(old, &log.name);
            return;
        }
        // The newest of all files is the one just opened.
        let files = log.rotated();
        let excess = (files.len() + 1).saturating_sub(keep);
        for f in files.into_iter().take(excess) {
            let _ = log.dir.remove_file(f);
        }
    })
    .await;
}

/// Removes a log with its rotated files.
pub async fn remove(base: &Path, path: PathBuf) {
    if path.as_os_str().is_empty() {
        return;
    }
    let base = base.to_path_buf();
    blocking(move || {
        let log = Log::find(&base, &path).ok()?;
        for f in log.rotated() {
            let _ = log.dir.remove_file(f);
        }
        log.dir.remove_file(&log.name).ok()
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn a_log_directory_that_was_swapped_for_a_link_leads_nowhere() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        for d in ["logs/pod/c", "host"] {
            fs::create_dir_all(t.join(d)).unwrap();
        }
        for f in ["0.log", "0.log.20260101-000000", "0.logx", "1.log"] {
            fs::write(t.join("logs/pod/c").join(f), "").unwrap();
            fs::write(t.join("host").join(f), "").unwrap();
        }
        symlink("../../host", t.join("logs/pod/link")).unwrap();
        remove(&t.join("logs"), t.join("logs/pod/link/0.log")).await;
        assert_eq!(fs::read_dir(t.join("host")).unwrap().count(), 4);
        assert!(Log::find(&t.join("logs"), &t.join("logs/pod/link/0.log")).is_err());
        remove(&t.join("logs"), t.join("logs/pod/c/0.log")).await;
        let mut left: Vec<_> = fs::read_dir(t.join("logs/pod/c"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["0.logx", "1.log"]);
        symlink("/etc/passwd", t.join("logs/pod/c/2.log")).unwrap();
        let log = Log::find(&t.join("logs"), &t.join("logs/pod/c/2.log")).unwrap();
        assert!(log.open().is_err());
    }
}
