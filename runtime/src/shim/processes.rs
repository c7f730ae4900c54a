//! Owns the shim's children: forking them into the right namespaces, learning whether they became their program, and
//! reaping them. The loop and the connections are `server`'s.

use super::containers::{Attached, Container, STDOUT, Sink, Source};
use super::log::LogFile;
use super::protocol::Reply;
use super::server::Shim;
use crate::container::init::ChildIo;
use crate::container::rootfs::{StepResult, step};
use crate::container::spec::{ContainerSpec, Exited, PidMode, ProcessSpec, Started};
use crate::container::{exec, init};
use crate::{state, sys};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// A child between fork and execve.
pub struct Pending {
    pub pid: i32,
    pub error: OwnedFd,
    pub text: Vec<u8>,
    pub tty: Option<OwnedFd>,
    pub conn: u64,
    pub exec: bool,
}

pub struct Exec {
    pub pid: i32,
    pub conn: u64,
}

impl Shim {
    /// Forks with the child in the wanted pid namespace and, on v2, already in its cgroup; the flag says whether it is.
    /// The shim itself never changes its own.
    fn fork_in(
        &self,
        cgroup_procs: &[PathBuf],
        enter: impl FnOnce() -> io::Result<()>,
    ) -> StepResult<(i32, bool)> {
        let v2 = match cgroup_procs {
            [only] => only.parent().and_then(|d| std::fs::File::open(d).ok()),
            _ => None,
        };
        step("choose the pid namespace", enter())?;
        let pid = match v2.as_ref().map(|d| sys::fork_into(d.as_fd())) {
            Some(Ok(pid)) => Ok((pid, true)),
            // An old kernel, or the only hierarchy is a v1 one.
            _ => sys::fork().map(|pid| (pid, false)),
        };
        if matches!(pid, Ok((0, _))) {
            return step("fork", pid);
        }
        step(
            "come back to the own pid namespace",
            sys::setns(self.born.own_pid_ns.as_fd(), libc::CLONE_NEWPID),
        )?;
        step("fork", pid)
    }

    pub(super) fn start(
        &mut self,
        conn: u64,
        spec: &ContainerSpec,
        outputs: [Option<OwnedFd>; 2],
    ) -> StepResult<()> {
        if self.leaving.is_some() || self.containers.iter().any(|c| c.id == spec.id) {
            return Err(format!("container {} is already started", spec.id));
        }
        let log = match &spec.log_path {
            Some(p) => Some(step(
                format_args!("open the log {}", p.display()),
                LogFile::open(p),
            )?),
            None => None,
        };
        let mut container = Container::new(spec, log);
        let [stdout, stderr] = outputs.map(|fd| fd.map(Sink::new).transpose());
        let (stdout, stderr) = (
            step("attach stdout", stdout)?,
            step("attach stderr", stderr)?,
        );
        if stdout.is_some() || stderr.is_some() {
            container.attached.push(Attached {
                stdin: None,
                stdout,
                stderr,
            });
        }
        let mut io = ChildIo::default();
        let mut tty = None;
        let mut tty_child = None;
        if spec.process.tty {
            let (ours, theirs) = step("make a channel", channel())?;
            (tty, tty_child) = (Some(ours), Some(theirs));
        } else {
            let (out_r, out_w) = step("make a pipe", sys::pipe())?;
            let (err_r, err_w) = step("make a pipe", sys::pipe())?;
            io.stdout = Some(out_w);
            io.stderr = Some(err_w);
            container.sources = [
                Some(step("set up stdout", Source::new(out_r, "stdout"))?),
                Some(step("set up stderr", Source::new(err_r, "stderr"))?),
            ];
            if spec.stdin {
                let (r, w) = step("make a pipe", sys::pipe())?;
                step("set up stdin", sys::set_nonblocking(w.as_fd(), true))?;
                io.stdin = Some(r);
                container.stdin = Some(w);
            }
        }
        let (error_r, error_w) = step("make a pipe", sys::pipe())?;
        step(
            "set up the error pipe",
            sys::set_nonblocking(error_r.as_fd(), true),
        )?;

        let target = match &spec.pid {
            PidMode::Container | PidMode::Node => None,
            PidMode::Pod => match &self.born.pod_pid {
                Some((_, fd)) => Some(step("hold the pod's pid namespace", fd.try_clone())?),
                None => return Err("the pod was made without a shared process namespace".into()),
            },
            PidMode::Target(id) => {
                let pid = self
                    .running(id)
                    .map_err(|(_, m)| format!("target of the process namespace: {m}"))?
                    .pid;
                Some(step(
                    "open the target's pid namespace",
                    sys::pidfd_open(pid),
                )?)
            }
        };
        let own = spec.pid == PidMode::Container;
        let (pid, joined) = self.fork_in(&spec.cgroup_procs, || match &target {
            Some(fd) => sys::setns(fd.as_fd(), libc::CLONE_NEWPID),
            None if own => sys::unshare(libc::CLONE_NEWPID),
            None => Ok(()),
        })?;
        if pid == 0 {
            drop(error_r);
            let join = if joined { &[][..] } else { &spec.cgroup_procs };
            init::run_init(spec, join, &self.cgroups, io, tty_child, error_w);
        }
        container.pid = pid;
        self.containers.push(container);
        self.pending.push(Pending {
            pid,
            error: error_r,
            text: Vec::new(),
            tty,
            conn,
            exec: false,
        });
        Ok(())
    }

    pub(super) fn exec(
        &mut self,
        conn: u64,
        id: &str,
        process: &ProcessSpec,
        io: ChildIo,
    ) -> Result<(), (bool, String)> {
        let c = self.running(id)?;
        let (target, cgroups) = (c.pid, c.cgroup_procs.clone());
        let go = || -> StepResult<()> {
            let pidfd = step("open the container", sys::pidfd_open(target))?;
            let (error_r, error_w) = step("make a pipe", sys::pipe())?;
            step(
                "set up the error pipe",
                sys::set_nonblocking(error_r.as_fd(), true),
            )?;
            let (mut tty, mut tty_child) = (None, None);
            if process.tty {
                let (ours, theirs) = step("make a channel", channel())?;
                (tty, tty_child) = (Some(ours), Some(theirs));
            }
            let (pid, joined) =
                self.fork_in(&cgroups, || sys::setns(pidfd.as_fd(), libc::CLONE_NEWPID))?;
            if pid == 0 {
                drop(error_r);
                let join = if joined { &[][..] } else { &cgroups };
                exec::run_exec(process, join, pidfd.as_fd(), io, tty_child, error_w);
            }
            self.pending.push(Pending {
                pid,
                error: error_r,
                text: Vec::new(),
                tty,
                conn,
                exec: true,
            });
            Ok(())
        };
        go().map_err(|e| (false, e))
    }

    /// Reads a pending child's error pipe; its end decides whether the program runs.
    pub(super) fn resolve(&mut self, pid: i32, dead: bool) {
        let Some(at) = self.pending.iter().position(|p| p.pid == pid) else {
            return;
        };
        let mut buffer = [0; 2048];
        loop {
            match sys::read(self.pending[at].error.as_fd(), &mut buffer) {
                Ok(0) => break,
                Ok(n) => self.pending[at].text.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if dead => break,
                Err(_) => return,
            }
        }
        let p = self.pending.swap_remove(at);
        let master = p.tty.as_ref().and_then(receive_fd);
        if !p.text.is_empty() {
            let message = String::from_utf8_lossy(&p.text).into_owned();
            if !p.exec {
                self.containers.retain(|c| c.pid != pid);
            }
            return self.reply(
                p.conn,
                &Reply::Error {
                    not_running: false,
                    message,
                },
                vec![],
            );
        }
        if p.exec {
            self.execs.push(Exec { pid, conn: p.conn });
            // Whoever asked has given up waiting and could not kill what it does not know.
            if !self.connected(p.conn) {
                let _ = sys::kill(-pid, libc::SIGKILL);
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            return self.reply(
                p.conn,
                &Reply::ExecStarted { pid },
                master.into_iter().collect(),
            );
        }
        let started = Started {
            pid,
            started_at: sys::now_ns(),
        };
        let Some(c) = self.container_of(pid) else {
            return;
        };
        if let Some(master) = master {
            c.stdin = master.try_clone().ok();
            c.sources[STDOUT] = Source::new(master, "stdout").ok();
        }
        c.running = true;
        let file = c.state_dir.join("started.json");
        // Without the record a restarted server still learns of the container from the subscription.
        let _ = state::write_json(&file, &started);
        let id = c.id.clone();
        self.reply(
            p.conn,
            &Reply::Started {
                pid,
                started_at: started.started_at,
            },
            vec![],
        );
        self.tell(&Reply::Began {
            id,
            pid,
            started_at: started.started_at,
        });
    }

    pub(super) fn reap(&mut self) {
        let mut info = [0; 1024];
        while sys::read(self.sigchld.as_fd(), &mut info).is_ok_and(|n| n > 0) {}
        while let Some((pid, status)) = sys::wait_any_nohang() {
            self.resolve(pid, true);
            if let Some(at) = self.execs.iter().position(|e| e.pid == pid) {
                let e = self.execs.swap_remove(at);
                self.reply(
                    e.conn,
                    &Reply::ExecExited {
                        code: sys::exit_code(status),
                    },
                    vec![],
                );
            } else if let Some(c) = self.container_of(pid) {
                c.end(status);
                let mut buffer = [0; 32 * 1024];
                c.drain(&mut buffer);
            } else if self.born.pod_pid.as_ref().is_some_and(|(p, _)| *p == pid) {
                // The pod's pid 1 was killed: the kernel ends all its containers, whose exits follow.
                self.born.pod_pid = None;
            }
        }
    }

    /// Tells the ends of containers whose output is complete.
    pub(super) fn settle(&mut self) {
        while let Some(at) = self.containers.iter().position(Container::settled) {
            let mut c = self.containers.swap_remove(at);
            c.flush_sinks();
            let Some((exited, _)) = c.ended.take() else {
                continue;
            };
            let _ = state::write_json(&c.state_dir.join("exit.json"), &exited);
            let id = c.id.clone();
            // Readers that lag get what is queued for them, but must not hold back the news.
            finish_sinks(c);
            self.tell(&Reply::Exited { id, exited });
        }
    }
}

/// Sends the rest of an ended container's output to its attached readers: blocking is not allowed in the loop, so a
/// short-lived child does it.
fn finish_sinks(mut c: Container) {
    let sinks: Vec<Sink> = c
        .attached
        .drain(..)
        .flat_map(|a| [a.stdout, a.stderr])
        .flatten()
        .filter(|s| !s.queue.is_empty())
        .collect();
    if sinks.is_empty() || !matches!(sys::fork(), Ok(0)) {
        return;
    }
    sys::close_others(&sinks.iter().map(|s| s.fd.as_raw_fd()).collect::<Vec<_>>());
    for s in &sinks {
        let _ = sys::set_nonblocking(s.fd.as_fd(), false);
    }
    for mut s in sinks {
        s.flush();
    }
    sys::exit_now(0);
}

fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn receive_fd(channel: &OwnedFd) -> Option<OwnedFd> {
    sys::set_nonblocking(channel.as_fd(), true).ok()?;
    let (mut byte, mut fds) = ([0], Vec::new());
    sys::recv_with_fds(channel.as_fd(), &mut byte, &mut fds).ok()?;
    fds.pop()
}

/// Kept here so that the shim and the server write the same words for an end that no process reported.
pub fn unknown_exit(now: i64) -> Exited {
    Exited {
        exit_code: 255,
        finished_at: now,
        oom_killed: false,
        reason: "Unknown".into(),
        message: "the container's shim ended without reporting its exit code".into(),
    }
}
