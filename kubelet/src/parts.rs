//! The kubelet's lasting parts under the supervisor: one that panics or ends is started again, and meanwhile the node is
//! not ready and its lease is not renewed. Owns starting them, and what the others do about it.

use crate::kubelet::Kubelet;
use futures::future::BoxFuture;
use skiff_supervise::Supervisor;
use std::sync::Arc;

/// What all groups of the kubelet's lasting parts begin with.
const PREFIX: &str = "kubelet/";

/// Runs a part until the kubelet stops; again after a panic, an error, or an end that nobody asked for. Parts are boxed:
/// some are too large for a stack.
pub(crate) fn keep(
    k: &Arc<Kubelet>,
    group: &'static str,
    mut run: impl FnMut(Arc<Kubelet>) -> BoxFuture<'static, Result<(), String>> + Send + 'static,
) {
    let (kubelet, stop) = (k.clone(), k.stop.clone());
    k.supervisor().spawn_transient(group, "", move || {
        let (run, stop) = (run(kubelet.clone()), stop.clone());
        async move {
            run.await?;
            if stop.is_cancelled() {
                Ok(())
            } else {
                Err("it ended although nobody asked it to".to_string())
            }
        }
    });
}

/// Something that runs until the stop, as a part.
pub(crate) fn boxed(
    run: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, Result<(), String>> {
    let run = Box::pin(run);
    Box::pin(async move {
        run.await;
        Ok(())
    })
}

/// Does all of the kubelet work? Single pods that do not are their own affair.
///
/// # Errors
/// What does not, and why.
pub(crate) fn well(supervisor: &Supervisor) -> Result<(), String> {
    supervisor.well(PREFIX)
}

#[cfg(test)]
pub(crate) mod tests;
