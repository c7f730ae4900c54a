//! Owns how a container becomes a process: the resolved description (`spec`), its translation from CRI (`build`), and
//! the code that runs in the child (`init`, `exec`, `rootfs`). It must not know tonic, the server's tables or the shim's loop.

pub mod build;
pub mod caps;
pub mod confine;
pub mod dev;
pub mod exec;
pub mod init;
pub mod procfs;
pub mod rootfs;
pub mod seccomp;
mod seccomp_default;
pub mod seccomp_profile;
pub mod spec;
pub mod sysctl;
pub mod targets;
