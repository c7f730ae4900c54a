//! Threads for work on file systems that may never answer (a dead NFS server, a FUSE daemon that hangs): one job of a
//! kind at a time for each pod, on a thread of its own, with a deadline for whoever waits. Owns nothing of what is done.
//!
//! The runtime's pool is not used: hung jobs would fill it, and its end waits for them.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// How long a pod's volumes may take before the user is told (upstream podAttachAndMountTimeout: 2 min 3 s).
pub const MOUNT: Duration = Duration::from_secs(123);
/// How long a removal may take before it is tried again.
pub const TEAR_DOWN: Duration = Duration::from_secs(60);
/// How long removal waits for mounting that is under way.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a file that a container left may take to be read.
pub const READ: Duration = Duration::from_secs(5);

/// How long a pod's volumes may take to be measured; the next pod's turn comes then.
pub const MEASURE: Duration = Duration::from_secs(30);

/// Kinds of work; those of one pod do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Making volumes and what belongs to a container's mounts.
    Mount,
    /// Reading what a container left.
    Read,
    /// Measuring, which takes its time with many files.
    Measure,
    /// Removal.
    TearDown,
}

#[derive(Clone)]
struct Pod {
    lanes: [Arc<Semaphore>; 4],
    closed: Closed,
}

/// Says that the pod is being removed: what was late must make nothing more.
#[derive(Debug, Clone, Default)]
pub struct Closed(Arc<AtomicBool>);

impl Closed {
    /// Is it?
    pub fn is(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The work of all pods.
#[derive(Default)]
pub struct Work {
    pods: Mutex<HashMap<String, Pod>>,
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Late {
    /// The deadline has passed; the job goes on until the kernel answers.
    #[error("timed out waiting: a file system does not answer, or there is much to do in it")]
    Hangs,
    /// An earlier job of the kind has not come back.
    #[error("timed out waiting for earlier work on a file system that still has not come back")]
    StillHangs,
    /// The job ended without a result.
    #[error("the work failed: {0}")]
    Failed(String),
}

impl Work {
    fn pod(&self, uid: &str) -> Pod {
        let new = || Pod {
            lanes: std::array::from_fn(|_| Arc::new(Semaphore::new(1))),
            closed: Closed::default(),
        };
        let mut pods = self.pods.lock();
        pods.entry(uid.to_string()).or_insert_with(new).clone()
    }

    /// Runs a job of a pod and waits for it, but not longer than the limit.
    ///
    /// # Errors
    /// See [`Late`].
    pub async fn run<T: Send + 'static>(
        &self,
        uid: &str,
        lane: Lane,
        limit: Duration,
        job: impl FnOnce(&Closed) -> T + Send + 'static,
    ) -> Result<T, Late> {
        let pod = self.pod(uid);
        let until = tokio::time::Instant::now() + limit;
        let turn = pod.lanes[lane as usize].clone().acquire_owned();
        let permit = match tokio::time::timeout_at(until, turn).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(e)) => return Err(Late::Failed(e.to_string())),
            Err(_) => return Err(Late::StillHangs),
        };
        let (tx, rx) = oneshot::channel();
        let closed = pod.closed;
        std::thread::Builder::new()
            .name("volume".into())
            .stack_size(1 << 20)
            .spawn(move || {
                let result = job(&closed);
                drop(permit);
                let _ = tx.send(result);
            })
            .map_err(|e| Late::Failed(format!("no thread for it: {e}")))?;
        match tokio::time::timeout_at(until, rx).await {
            Ok(Ok(result)) => Ok(result),
            // The panic was printed where it happened.
            Ok(Err(_)) => Err(Late::Failed("it panicked".into())),
            Err(_) => Err(Late::Hangs),
        }
    }

    /// The pod's volumes are going: late work makes nothing more.
    pub fn close(&self, uid: &str) {
        self.pod(uid).closed.0.store(true, Ordering::SeqCst);
    }

    /// Gives mounting that is under way a moment to end, so that removal comes after it.
    pub async fn settle(&self, uid: &str) {
        let lane = self.pod(uid).lanes[Lane::Mount as usize].clone();
        let _ = tokio::time::timeout(SETTLE, lane.acquire()).await;
    }

    /// The pod is gone. What still hangs keeps what it needs.
    pub fn forget(&self, uid: &str) {
        self.pods.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_job_that_hangs_holds_up_its_own_pod_and_kind_alone() {
        let work = Arc::new(Work::default());
        // More hung jobs than the runtime's pool has threads for.
        let mut holds = Vec::new();
        for n in 0..600 {
            let (hold, held) = mpsc::channel::<()>();
            holds.push(hold);
            let late = work
                .run(
                    &format!("hung{n}"),
                    Lane::Mount,
                    Duration::from_millis(1),
                    move |_| {
                        let _ = held.recv();
                    },
                )
                .await;
            assert!(matches!(late, Err(Late::Hangs) | Ok(())), "{late:?}");
        }
        let soon = Duration::from_secs(20);
        assert_eq!(work.run("other", Lane::Mount, soon, |_| 1).await, Ok(1));
        assert_eq!(work.run("hung0", Lane::TearDown, soon, |_| 2).await, Ok(2));
        let again = work.run("hung0", Lane::Mount, Duration::from_millis(1), |_| 3);
        assert_eq!(again.await, Err(Late::StillHangs));
        assert_eq!(tokio::task::spawn_blocking(|| 4).await.unwrap(), 4);
        drop(holds);
        assert_eq!(work.run("hung0", Lane::Mount, soon, |_| 5).await, Ok(5));
    }

    #[tokio::test]
    async fn late_work_sees_that_its_pod_is_closed_and_a_panic_is_an_error() {
        let work = Work::default();
        let (hold, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let limit = Duration::from_millis(1);
        let _ = work
            .run("u", Lane::Mount, limit, move |closed| {
                let _ = held.recv();
                let _ = tell.send(closed.is());
            })
            .await;
        work.close("u");
        work.forget("u");
        drop(hold);
        assert!(told.recv().unwrap());
        let soon = Duration::from_secs(20);
        let panicked = work.run("p", Lane::Read, soon, |_| panic!("on purpose"));
        assert!(matches!(panicked.await, Err(Late::Failed(_))));
        assert_eq!(work.run("p", Lane::Read, soon, |_| 1).await, Ok(1));
    }
}
