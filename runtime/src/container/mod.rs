//! Owns how a container becomes a process: the resolved description (`spec`), its translation from CRI (`build`), and
//! the code that runs in the child (`init`, `exec`, `rootfs`). It must not know tonic, the server's tables or the shim's loop.

pub mod build;
pub mod caps;
pub mod exec;
pub mod init;
pub mod rootfs;
pub mod seccomp;
mod seccomp_default;
pub mod spec;
