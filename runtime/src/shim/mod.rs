//! Owns one pod: its namespaces, its containers' stdio, logs and exit codes. One process for each pod, one thread, one
//! poll loop. It must not know CRI, images or the network, and must not depend on the server being alive.

pub mod client;
mod containers;
pub mod log;
mod processes;
pub mod protocol;
mod server;
mod setup;
pub mod socket;

pub use processes::unknown_exit;

/// `skiff shim DIR`: runs the shim of the sandbox whose directory is DIR. Descriptor 0 is the listening control socket,
/// descriptor 1 a pipe that gets `ok PID` or a message. Never returns.
pub fn main(args: &[std::ffi::OsString]) -> ! {
    server::main(args)
}
