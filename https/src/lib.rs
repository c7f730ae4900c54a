//! The HTTPS front that the API server and the kubelet share: accepting, TLS, HTTP/1.1 and HTTP/2, and everything that keeps
//! one client from using up what is there for all (time, connections, memory). Knows no Kubernetes, and answers nothing
//! itself: requests are the caller's.
//!
//! An idle connection costs no CPU: it has one timer, which ends it; a connection that only waits for events has none. A peer
//! that is gone without a word is found by the kernel (TCP keep-alive).

mod activity;
mod clients;
mod doors;
mod serve;

pub use clients::{AnyCertificate, ClientCa, Identity};
pub use doors::{Doors, Limits, Pass};
pub use serve::{Peer, Settings, accept, watch_over};

/// In the extensions of an answer that may take any time (a watch, a log that is followed): it is not ended for being slow.
#[derive(Debug, Clone, Copy)]
pub struct LongRunning;
