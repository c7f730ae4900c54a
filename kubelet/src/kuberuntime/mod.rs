//! From a pod's spec to what the CRI is asked for (upstream pkg/kubelet/kuberuntime). Pure: files, API objects and
//! volumes are looked up by the caller and come in as arguments.

pub mod container;
pub mod dns;
pub mod env;
pub mod expansion;
pub mod fields;
pub mod hosts;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod services;
