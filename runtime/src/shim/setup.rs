//! Owns the birth of a shim: daemonising, namespaces, sysctls, loopback. Runs once, before the loop.

use super::protocol::ShimConfig;
use crate::container::rootfs::{StepResult, step};
use crate::container::{exec, init};
use crate::sys;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the loop starts with.
pub struct Born {
    pub config: ShimConfig,
    pub listener: OwnedFd,
    pub ready: OwnedFd,
    /// Own pid namespace, to come back to after a child was made in another.
    pub own_pid_ns: OwnedFd,
    /// Pid 1 and namespace of a pod that shares its processes.
    pub pod_pid: Option<(i32, OwnedFd)>,
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
    sys::close_others(&[listener.as_raw_fd(), ready.as_raw_fd()]);
    let null = step(
        "open /dev/null",
        std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null"),
    )?;
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
    exec::set_oom_score_adj(-998);

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
        let path = sysctl_path(name)?;
        step(
            format_args!("set the sysctl {name}"),
            std::fs::write(&path, value),
        )?;
    }
    let own_pid_ns: OwnedFd = step(
        "open own pid namespace",
        std::fs::File::open("/proc/self/ns/pid"),
    )?
    .into();
    let pod_pid = if config.share_pid {
        step(
            "make the pod's pid namespace",
            sys::unshare(libc::CLONE_NEWPID),
        )?;
        let pid = step("fork", sys::fork())?;
        if pid == 0 {
            init::run_pod_init();
        }
        step(
            "leave the pod's pid namespace",
            sys::setns(own_pid_ns.as_fd(), libc::CLONE_NEWPID),
        )?;
        Some((
            pid,
            step("open the pod's pid namespace", sys::pidfd_open(pid))?,
        ))
    } else {
        None
    };
    Ok(Born {
        config,
        listener,
        ready,
        own_pid_ns,
        pod_pid,
    })
}

/// /proc/sys path of a sysctl name. Dots separate, or slashes do (an interface name may hold dots then), as in sysctl(8).
fn sysctl_path(name: &str) -> StepResult<PathBuf> {
    let relative = match (name.find('.'), name.find('/')) {
        (_, None) => name.replace('.', "/"),
        (Some(dot), Some(slash)) if dot < slash => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_string(),
    };
    if relative.is_empty() || relative.split('/').any(|p| p.is_empty() || p == "..") {
        return Err(format!("{name:?} is not the name of a sysctl"));
    }
    Ok(Path::new("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_become_paths_below_proc_sys() {
        assert_eq!(
            sysctl_path("net.ipv4.ip_forward").unwrap(),
            Path::new("/proc/sys/net/ipv4/ip_forward")
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.forwarding").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        assert!(sysctl_path("a.../b").is_err() && sysctl_path("").is_err());
    }
}
