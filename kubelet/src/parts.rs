//! The kubelet's lasting parts under the supervisor: one that panics or ends is started again, and meanwhile the node is
//! not ready and its lease is not renewed. Owns starting them, and what the others do about it.

use crate::kubelet::Kubelet;
use futures::future::BoxFuture;
use skiff_supervise::Supervisor;
use std::sync::Arc;

/// What all groups of the kubelet's lasting parts begin with.
const PREFIX: &str = "kubelet/";

/// Runs a part until the kubelet stops; again after a panic, an error, or an end that nobody asked for.
pub(crate) fn keep<Fut>(
    k: &Arc<Kubelet>,
    group: &'static str,
    mut run: impl FnMut(Arc<Kubelet>) -> Fut + Send + 'static,
) where
    Fut: Future<Output = Result<(), String>> + Send + 'static,
{
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

/// A part that needs nothing but the kubelet.
pub(crate) fn boxed<Fut>(
    run: fn(Arc<Kubelet>) -> Fut,
) -> Box<dyn FnMut(Arc<Kubelet>) -> BoxFuture<'static, Result<(), String>> + Send>
where
    Fut: Future<Output = ()> + Send + 'static,
{
    Box::new(move |k| {
        let run = run(k);
        Box::pin(async move {
            run.await;
            Ok(())
        })
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
