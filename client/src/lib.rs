//! The only road to the API for every component: list+watch caches, a work queue, an event recorder. Components
//! get a `kube::Client` and do not know whether it speaks HTTPS or calls the server in the same process.

pub mod cache;
pub mod factory;
pub mod labels;
pub mod lenient;
pub mod queue;
pub mod recorder;
pub mod taints;

pub use cache::{Cache, Event, ObjectKey, Scope};
pub use factory::Informers;
pub use kube;
pub use lenient::Broken;
pub use queue::Queue;
pub use recorder::Recorder;

/// True when the API answered with this HTTP code (404 not found, 409 conflict...).
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// `Ok(None)` instead of a 404.
///
/// # Errors
/// Every other error is passed through.
pub fn not_found_is_none<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(v) => Ok(Some(v)),
        Err(e) if is_code(&e, 404) => Ok(None),
        Err(e) => Err(e),
    }
}
