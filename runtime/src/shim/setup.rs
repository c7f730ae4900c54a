//! Owns the birth of a shim: daemonising, namespaces, sysctls, loopback. Runs once, before the loop.

use super::protocol::ShimConfig;
use crate::container::init::{Sent, SharedPids};
use crate::container::procfs::Procfs;
use crate::container::rootfs::{StepResult, step};
use crate::container::{dev, exec, init, sysctl};
use crate::sys;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// What the loop starts with.
pub struct Born {
    pub config: ShimConfig,
    pub listener: OwnedFd,
    pub ready: OwnedFd,
    /// Own pid namespace, to come back to after a child was made in another.
    pub own_pid_ns: OwnedFd,
    /// A procfs of the own process namespace, which nobody else sees: what the kernel is told for a child goes through it.
    pub procfs: Procfs,
    /// Pid 1 and namespace of a pod that shares its processes.
    pub pod_pid: Option<(i32, SharedPids)>,
}

/// Detaches from the server: a second process in its own session goes on, the first leaves.
pub fn daemonise() -> StepResult<(OwnedFd, OwnedFd)> {
    if step("fork", sys::fork())? != 0 {
        sys::exit_now(0);
    }
    step("start a session", sys::setsid())?;
    sys::set_name(c"skiff");
    // Service managers signal whole groups; a shim leaves only when told on its socket.
    sys::ignore_signals(&[
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGPIPE,
        libc::SIGQUIT,
    ]);
    let listener = step("keep the control socket", sys::dup_high(sys::std_fd(0)))?;
    let ready = step("keep the ready pipe", sys::dup_high(sys::std_fd(1)))?;
    // Whatever the server itself was started with must not reach a container.
    step(
        "close the server's descriptors",
        sys::close_others(&[listener.as_raw_fd(), ready.as_raw_fd()]),
    )?;
    step("make a session keyring", sys::new_session_keyring())?;
    let null = step("make a null device", dev::private_null())?;
    for n in 0..=2 {
        step("close stdio", sys::dup_onto(null.as_fd(), n))?;
    }
    step(
        "unblock the control socket",
        sys::set_nonblocking(listener.as_fd(), true),
    )?;
    Ok((listener, ready))
}

/// Makes the pod's namespaces.
pub fn enter(dir: &Path, listener: OwnedFd, ready: OwnedFd) -> StepResult<Born> {
    let file = dir.join("shim.json");
    let text = step(
        format_args!("read {}", file.display()),
        std::fs::read(&file),
    )?;
    let config: ShimConfig =
        serde_json::from_slice(&text).map_err(|e| format!("read {}: {e}", file.display()))?;
    step("reap orphans", sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
    // The last thing the kernel should kill. Without CAP_SYS_RESOURCE it is refused and the server has warned already.
    let procfs = step("make a procfs", Procfs::open())?;
    exec::set_oom_score_adj(&procfs, -998);

    let mut flags = 0;
    if !config.host_network {
        flags |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    }
    if !config.host_ipc {
        flags |= libc::CLONE_NEWIPC;
    }
    step("make the pod's namespaces", sys::unshare(flags))?;
    if !config.host_network {
        step("set the host name", sys::sethostname(&config.hostname))?;
        step("bring up lo", sys::link_up("lo"))?;
    }
    for (name, value) in &config.sysctls {
        // The server has looked; a record on disk is not believed.
        let path = sysctl::path_of(name, config.host_network, config.host_ipc)?;
        step(
            format_args!("set the sysctl {name}"),
            procfs.write(&path, value.as_bytes()),
        )?;
    }
    let own_pid_ns: OwnedFd = step(
        "open own pid namespace",
        std::fs::File::open("/proc/self/ns/pid"),
    )?
    .into();
    let pod_pid = if config.share_pid {
        Some(pod_init(&own_pid_ns)?)
    } else {
        None
    };
    Ok(Born {
        config,
        listener,
        ready,
        own_pid_ns,
        procfs,
        pod_pid,
    })
}

/// Makes the pod's process namespace with its pid 1. Returns when that is as confined as it will be.
fn pod_init(own_pid_ns: &OwnedFd) -> StepResult<(i32, SharedPids)> {
    let (ours, theirs) = step("make a channel", super::processes::channel())?;
    step(
        "make the pod's pid namespace",
        sys::unshare(libc::CLONE_NEWPID),
    )?;
    let pid = step("fork", sys::fork())?;
    if pid == 0 {
        drop(ours);
        init::run_pod_init(theirs);
    }
    drop(theirs);
    step(
        "leave the pod's pid namespace",
        sys::setns(own_pid_ns.as_fd(), libc::CLONE_NEWPID),
    )?;
    let holder = step("open the pod's pid namespace", sys::pidfd_open(pid))?;
    let proc = Sent::receive(&ours).proc;
    let mut said = [0; 1024];
    match (
        step("wait for pid 1", sys::read(ours.as_fd(), &mut said))?,
        proc,
    ) {
        (0, Some(proc)) => Ok((pid, SharedPids { holder, proc })),
        (n, _) => Err(format!(
            "make pid 1 of the pod: {}",
            String::from_utf8_lossy(&said[..n])
        )),
    }
}
