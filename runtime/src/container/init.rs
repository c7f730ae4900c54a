//! Owns the first process of a container from fork to execve, and the pod's own pid 1 when its containers share one
//! process namespace. Runs in forked children of the single-threaded shim, so allocation after fork is sound.

use super::exec::{Ready, become_process, join_cgroups, prepare};
use super::rootfs::{self, CgroupMount, Prepared, StepResult, step};
use super::spec::ContainerSpec;
use crate::sys;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// The child's ends of its stdio; None leaves what is there (/dev/null).
#[derive(Default)]
pub struct ChildIo {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl ChildIo {
    /// Opens a terminal in the container, sends its master through `channel`, and makes it the stdio.
    pub fn use_pty(&mut self, uid: u32, channel: &OwnedFd, console: bool) -> StepResult<()> {
        let (master, slave) = rootfs::open_pty(uid)?;
        step(
            "send the terminal",
            sys::send_with_fds(channel.as_fd(), b"t", &[master.as_fd()]),
        )?;
        drop(master);
        if console {
            rootfs::bind_console(&slave)?;
        }
        step("take the terminal", sys::set_controlling_tty(slave.as_fd()))?;
        let dup = |s: &OwnedFd| step("copy the terminal", sys::dup_high(s.as_fd()));
        *self = Self {
            stdin: Some(dup(&slave)?),
            stdout: Some(dup(&slave)?),
            stderr: Some(slave),
        };
        Ok(())
    }
}

/// Writes the message where the shim reads it and leaves with upstream's code for a process that could not start.
pub fn report_and_exit(error: &OwnedFd, message: &str) -> ! {
    let _ = sys::write(error.as_fd(), message.as_bytes());
    sys::exit_now(127)
}

/// The container's first process. Never returns: it becomes the program, or reports why not through `error`
/// (close-on-exec, so its end of file means success). `join` are the cgroup.procs files it is not in yet.
pub fn run_init(
    spec: &ContainerSpec,
    join: &[PathBuf],
    cgroups: &[CgroupMount],
    mut io: ChildIo,
    tty: Option<OwnedFd>,
    error: OwnedFd,
) -> ! {
    let r = (|| -> StepResult<Ready> {
        step(
            "hide from other containers",
            sys::prctl(libc::PR_SET_DUMPABLE, 0),
        )?;
        step("start a session", sys::setsid())?;
        sys::reset_signals();
        sys::umask(0);
        let ready = prepare(&spec.process)?;
        join_cgroups(join)?;
        if spec.cgroup_namespace {
            step(
                "make a cgroup namespace",
                sys::unshare(libc::CLONE_NEWCGROUP),
            )?;
        }
        let mut prepared = Prepared::new(spec)?;
        prepared.mount_all(spec, cgroups)?;
        if let Some(channel) = tty {
            io.use_pty(spec.process.uid, &channel, true)?;
        }
        let cwd = &spec.process.cwd;
        if !cwd.is_empty() && std::fs::metadata(cwd).is_err() {
            // runc makes a missing working directory; in a read-only root on a volume this may fail, and chdir says so.
            sys::umask(0o022);
            let _ = std::fs::create_dir_all(cwd);
        }
        prepared.protect(spec)?;
        Ok(ready)
    })();
    let message = match r {
        Ok(ready) => become_process(&spec.process, ready, &io),
        Err(e) => e,
    };
    report_and_exit(&error, &message)
}

/// Pid 1 of a process namespace that the pod's containers share: reaps orphans, and dies with the shim.
pub fn run_pod_init() -> ! {
    sys::close_others(&[]);
    sys::reset_signals();
    sys::set_name(c"skiff");
    let _ = sys::setsid();
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
    // Pid 1 ignores signals without handlers; SIGCHLD set to ignored makes the kernel reap orphans without us.
    sys::ignore_signals(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
    loop {
        let _ = rustix::thread::nanosleep(&rustix::thread::Timespec {
            tv_sec: 1 << 30,
            tv_nsec: 0,
        });
    }
}
