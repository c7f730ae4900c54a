//! The Node object of this machine: registration, status, lease, and what may run on it. Owns that object's kubelet
//! half; taints for conditions are the node lifecycle controller's.

pub mod admission;
pub mod capacity;
pub mod lease;
pub mod status;
pub mod sysctls;
pub mod unsupported;

pub use capacity::Capacity;
