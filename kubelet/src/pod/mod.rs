//! Pods on this node: the pure state machine (`state`, `plan`, `status`) and the shell that carries its commands out
//! (`worker`, `manager`). Must not know how containers or volumes are made; that is `kuberuntime` and `volumes`.

pub mod actions;
pub mod backoff;
pub mod manager;
pub mod plan;
pub mod pleg;
pub mod spec;
pub mod state;
pub mod status;
pub mod status_manager;
pub mod termination_message;
pub mod types;
pub mod view;
pub mod worker;

#[cfg(test)]
mod tests;
