//! Owns the first process of a container from fork to execve, and the pod's own pid 1 when its containers share one
//! process namespace. Runs in forked children of the single-threaded shim, so allocation after fork is sound.
//!
//! A process becomes visible to a container only once it is as confined as the container is: in a process namespace that
//! others are in already, everything is set up outside and the process is born into it at the very end (`exec::finish`).

use super::dev;
use super::exec::{Ready, become_process, join_cgroups, prepare};
use super::procfs::{self, Procfs};
use super::rootfs::{CgroupMount, Handles, Prepared, StepResult, borrow_proc, fs_tree, step};
use super::seccomp;
use super::spec::{ContainerSpec, FsMount};
use super::targets::{ensure, open_dir};
use crate::sys;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// The child's ends of its stdio; None leaves what is there (/dev/null).
#[derive(Default)]
pub struct ChildIo {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl ChildIo {
    /// Makes a terminal's slave the stdio.
    pub fn of_terminal(slave: OwnedFd) -> StepResult<Self> {
        let dup = |s: &OwnedFd| step("copy the terminal", sys::dup_high(s.as_fd()));
        Ok(Self {
            stdin: Some(dup(&slave)?),
            stdout: Some(dup(&slave)?),
            stderr: Some(slave),
        })
    }

    fn fds(&self) -> impl Iterator<Item = RawFd> {
        [&self.stdin, &self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .map(AsRawFd::as_raw_fd)
    }
}

/// What a child inherits of the shim on purpose. Everything else is closed before the first step.
pub struct Inherited<'a> {
    pub io: ChildIo,
    /// Where descriptors go back to the shim: see `Sent`.
    pub channel: Option<OwnedFd>,
    /// Where the child says why it could not start (close-on-exec, so its end of file means that the program runs).
    pub error: OwnedFd,
    /// A procfs of the shim's process namespace.
    pub procfs: &'a Procfs,
}

impl Inherited<'_> {
    /// Closes what the shim holds beside this and `more`: control sockets, other containers' pipes, the node's files.
    pub fn close_others(&self, more: &[RawFd]) -> StepResult<()> {
        let mut keep: Vec<RawFd> = self.io.fds().chain(more.iter().copied()).collect();
        keep.extend(self.channel.as_ref().map(AsRawFd::as_raw_fd));
        keep.extend([self.error.as_raw_fd(), self.procfs.as_fd().as_raw_fd()]);
        step("close the shim's descriptors", sys::close_others(&keep))
    }
}

/// The descriptors that came with one byte over the channel, which says which of them are there.
#[derive(Default)]
pub struct Sent {
    pub proc: Option<OwnedFd>,
    pub pts: Option<OwnedFd>,
    pub master: Option<OwnedFd>,
}

impl Sent {
    /// Sends them.
    pub fn send(&self, channel: &OwnedFd) -> StepResult<()> {
        let all = [&self.proc, &self.pts, &self.master];
        let mut which = 0u8;
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        for (i, fd) in all.iter().enumerate() {
            if let Some(fd) = fd {
                which |= 1 << i;
                fds.push(fd.as_fd());
            }
        }
        step(
            "hand descriptors to the shim",
            sys::send_with_fds(channel.as_fd(), &[which], &fds).map(drop),
        )
    }

    /// Reads them as they were sent; nothing if nothing was.
    pub fn receive(channel: &OwnedFd) -> Self {
        let (mut byte, mut fds) = ([0], Vec::new());
        if sys::recv_with_fds(channel.as_fd(), &mut byte, &mut fds).is_err() {
            return Self::default();
        }
        let mut fds = fds.into_iter();
        let mut next = |i: u8| {
            if byte[0] & 1 << i != 0 {
                fds.next()
            } else {
                None
            }
        };
        Self {
            proc: next(0),
            pts: next(1),
            master: next(2),
        }
    }
}

/// A process namespace that others are in already: a process of it, and a mount of its procfs in that process's mount
/// namespace.
pub struct SharedPids {
    pub holder: OwnedFd,
    pub proc: OwnedFd,
}

/// Writes the message where the shim reads it and leaves with upstream's code for a process that could not start.
pub fn report_and_exit(error: &OwnedFd, message: &str) -> ! {
    let _ = sys::write(error.as_fd(), message.as_bytes());
    sys::exit_now(127)
}

/// The container's first process. Never returns: it becomes the program, or reports why not. `join` are the cgroup.procs
/// files it is not in yet. With `shared` it is outside of the container's process namespace until it is born into it.
pub fn run_init(
    spec: &ContainerSpec,
    join: &[PathBuf],
    cgroups: &[CgroupMount],
    shared: Option<&SharedPids>,
    mut got: Inherited<'_>,
) -> ! {
    let r = set_up(spec, join, cgroups, shared, &mut got);
    let message = match r {
        Ok(ready) => become_process(&spec.process, ready, got, shared.is_some()),
        Err(e) => (got.error, e),
    };
    report_and_exit(&message.0, &message.1)
}

fn set_up(
    spec: &ContainerSpec,
    join: &[PathBuf],
    cgroups: &[CgroupMount],
    shared: Option<&SharedPids>,
    got: &mut Inherited<'_>,
) -> StepResult<Ready> {
    let more: Vec<RawFd> = shared
        .iter()
        .flat_map(|s| [s.holder.as_raw_fd(), s.proc.as_raw_fd()])
        .collect();
    got.close_others(&more)?;
    step(
        "hide from other containers",
        sys::prctl(libc::PR_SET_DUMPABLE, 0),
    )?;
    sys::reset_signals();
    // Modes of what is made below are exact.
    sys::umask(0);
    let ready = prepare(&spec.process, got.procfs)?;
    join_cgroups(join)?;
    if spec.cgroup_namespace {
        step(
            "make a cgroup namespace",
            sys::unshare(libc::CLONE_NEWCGROUP),
        )?;
    }
    let proc = match shared {
        Some(s) => {
            let tree = borrow_proc(s.holder.as_fd(), s.proc.as_fd())?;
            step(
                "choose the process namespace",
                sys::setns(s.holder.as_fd(), libc::CLONE_NEWPID),
            )?;
            Some(tree)
        }
        None => None,
    };
    let mut prepared = Prepared::new(spec, proc)?;
    prepared.mount_all(spec, cgroups)?;
    let mut sent = Sent::default();
    if spec.process.tty {
        let Some(pts) = &prepared.handles.pts else {
            return Err(
                "a terminal needs the container's own /dev/pts, and a volume is there".into(),
            );
        };
        let (master, slave) = dev::open_pty(pts.as_fd(), spec.process.uid)?;
        dev::bind_console(prepared.root(), prepared.handles.dev.as_ref(), &slave)?;
        sent.master = Some(master);
        got.io = ChildIo::of_terminal(slave)?;
    }
    let handles: Handles = std::mem::take(&mut prepared.handles);
    (sent.proc, sent.pts) = (handles.proc, handles.pts);
    if let Some(channel) = got.channel.take() {
        sent.send(&channel)?;
    }
    drop(sent);
    let cwd = &spec.process.cwd;
    if !cwd.is_empty() {
        // runc makes a missing working directory; in a read-only root on a volume this may fail, and chdir says so.
        let _ = ensure(prepared.root(), &super::build::clean(cwd), true);
    }
    prepared.protect(spec)?;
    Ok(ready)
}

/// Pid 1 of a process namespace that the pod's containers share: reaps orphans, and dies with the shim. The containers
/// see it for all their lives, so it has no file of the node, no capability, no right to gain any and hardly a system
/// call. It is as confined as that before `channel` reaches its end of file, and containers start only after that.
pub fn run_pod_init(channel: OwnedFd) -> ! {
    if let Err(e) = confine_pod_init(&channel) {
        let _ = sys::write(channel.as_fd(), e.as_bytes());
        sys::exit_now(1);
    }
    drop(channel);
    loop {
        let _ = rustix::thread::nanosleep(&rustix::thread::Timespec {
            tv_sec: 1 << 30,
            tv_nsec: 0,
        });
    }
}

/// The user and group of pause images; nothing on a node is theirs.
const POD_INIT_ID: u32 = 65535;

fn confine_pod_init(channel: &OwnedFd) -> StepResult<()> {
    step(
        "close the shim's descriptors",
        sys::close_others(&[channel.as_raw_fd()]),
    )?;
    step("hide", sys::prctl(libc::PR_SET_DUMPABLE, 0))?;
    sys::reset_signals();
    sys::set_name(c"skiff");
    step("start a session", sys::setsid())?;
    // Pid 1 ignores signals without handlers; SIGCHLD set to ignored makes the kernel reap orphans without us.
    sys::ignore_signals(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
    step(
        "make namespaces",
        sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP),
    )?;
    step(
        "make the mounts private",
        sys::mount("", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, ""),
    )?;
    let proc = step("make a procfs", procfs::detached())?;
    let empty = |data: &str| {
        fs_tree(&FsMount {
            fstype: "tmpfs".into(),
            flags: libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            data: data.into(),
            readonly: false,
        })
    };
    let what = "make an empty root";
    let top = step(what, empty("mode=755,size=4k"))?;
    let old = step(what, open_dir(Path::new("/")))?;
    step(what, sys::move_mount_to_fd(top.as_fd(), old.as_fd()))?;
    step(what, rustix::process::fchdir(&top).map_err(Into::into))?;
    step(what, sys::pivot_to_cwd())?;
    let root = step(what, open_dir(Path::new("/")))?;
    // The containers' procfs is cloned from this mount. It is covered, so that the way through this process's root does
    // not lead around their masks.
    let hidden = step(what, ensure(&root, Path::new("/p"), true))?;
    step(what, sys::move_mount_to_fd(proc.as_fd(), hidden.as_fd()))?;
    let cover = step(what, empty("mode=0,size=0"))?;
    step(what, sys::move_mount_to_fd(cover.as_fd(), hidden.as_fd()))?;
    step(
        what,
        sys::mount_setattr(root.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0),
    )?;
    let sent = Sent {
        proc: Some(proc),
        ..Sent::default()
    };
    sent.send(channel)?;
    drop((sent, top, old, root, hidden, cover));

    let none = super::spec::CapSets::default();
    step("drop capabilities", super::caps::apply_bounding(&none))?;
    step(
        "become nobody",
        sys::set_user(POD_INIT_ID, POD_INIT_ID, &[]),
    )?;
    step("drop capabilities", super::caps::apply(&none))?;
    step(
        "tie to the shim",
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64),
    )?;
    step("set no_new_privs", sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
    step(
        "load the seccomp filter",
        sys::seccomp_load(&seccomp::idle_program(), 0),
    )
}
