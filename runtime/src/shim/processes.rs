//! Owns the shim's children: forking them into the right namespaces, learning whether they became their program, and
//! reaping them. The loop and the connections are `server`'s.

use super::containers::{Attached, Container, STDOUT, Sink, Source};
use super::log::LogFile;
use super::protocol::Reply;
use super::server::Shim;
use crate::container::init::{ChildIo, Inherited, Sent, SharedPids};
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
    /// Where its descriptors come from.
    pub channel: OwnedFd,
    pub conn: u64,
    pub exec: bool,
    /// It is outside of the container's process namespace: the process that counts is another one, born by it at the end.
    pub born: bool,
}

pub struct Exec {
    pub pid: i32,
    pub conn: u64,
}

impl Shim {
    /// Forks with the child, on v2, already in its cgroup; the flag says whether it is. With `own` it is pid 1 of a new
    /// pid namespace. The shim itself never changes its own.
    fn fork_in(&self, cgroup_procs: &[PathBuf], own: bool) -> StepResult<(i32, bool)> {
        let v2 = match cgroup_procs {
            [only] => only.parent().and_then(|d| std::fs::File::open(d).ok()),
            _ => None,
        };
        if own {
            step("make a pid namespace", sys::unshare(libc::CLONE_NEWPID))?;
        }
        let pid = match v2.as_ref().map(|d| sys::fork_into(d.as_fd())) {
            Some(Ok(pid)) => Ok((pid, true)),
            // An old kernel, or the only hierarchy is a v1 one.
            _ => sys::fork().map(|pid| (pid, false)),
        };
        if own && !matches!(pid, Ok((0, _))) {
            step(
                "come back to the own pid namespace",
                sys::setns(self.born.own_pid_ns.as_fd(), libc::CLONE_NEWPID),
            )?;
        }
        step("fork", pid)
    }

    /// The process namespace that a container is born into, if others are in it already.
    fn shared_pids(&mut self, pid: &PidMode) -> StepResult<Option<SharedPids>> {
        match pid {
            PidMode::Container | PidMode::Node => Ok(None),
            PidMode::Pod => match &self.born.pod_pid {
                Some((_, s)) => Ok(Some(SharedPids {
                    holder: step("hold the pod's pid namespace", s.holder.try_clone())?,
                    proc: step("hold the pod's procfs", s.proc.try_clone())?,
                })),
                None => Err("the pod was made without a shared process namespace".into()),
            },
            PidMode::Target(id) => {
                let c = self
                    .running(id)
                    .map_err(|(_, m)| format!("target of the process namespace: {m}"))?;
                let Some(proc) = &c.proc else {
                    return Err(format!("container {id} has no /proc of its own to share"));
                };
                Ok(Some(SharedPids {
                    proc: step("hold the target's procfs", proc.try_clone())?,
                    holder: step("open the target's pid namespace", sys::pidfd_open(c.pid))?,
                }))
            }
        }
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
        let (ours, theirs) = step("make a channel", channel())?;
        if !spec.process.tty {
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
        let (error_r, error_w) = error_pipe()?;
        let shared = self.shared_pids(&spec.pid)?;
        let (pid, joined) = self.fork_in(&spec.cgroup_procs, spec.pid == PidMode::Container)?;
        if pid == 0 {
            let join = if joined { &[][..] } else { &spec.cgroup_procs };
            let got = Inherited {
                io,
                channel: Some(theirs),
                error: error_w,
                procfs: &self.born.procfs,
            };
            init::run_init(spec, join, &self.cgroups, shared.as_ref(), got);
        }
        container.pid = pid;
        self.containers.push(container);
        self.pending.push(Pending {
            pid,
            error: error_r,
            text: Vec::new(),
            channel: ours,
            conn,
            exec: false,
            born: shared.is_some(),
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
        let pts = c.pts.as_ref().and_then(|fd| fd.try_clone().ok());
        let go = || -> StepResult<()> {
            let target = step("open the container", sys::pidfd_open(target))?;
            let (error_r, error_w) = error_pipe()?;
            let (ours, theirs) = step("make a channel", channel())?;
            let (pid, joined) = self.fork_in(&cgroups, false)?;
            if pid == 0 {
                let join = if joined { &[][..] } else { &cgroups };
                let got = Inherited {
                    io,
                    channel: Some(theirs),
                    error: error_w,
                    procfs: &self.born.procfs,
                };
                exec::run_exec(process, join, &target, pts.as_ref(), got);
            }
            self.pending.push(Pending {
                pid,
                error: error_r,
                text: Vec::new(),
                channel: ours,
                conn,
                exec: true,
                born: true,
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
        let mut p = self.pending.swap_remove(at);
        let child = exec::take_birth_note(&mut p.text);
        if p.text.is_empty() && p.born && child.is_none() {
            p.text = b"the process was killed before its program ran".to_vec();
        }
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
        let sent = match sys::set_nonblocking(p.channel.as_fd(), true) {
            Ok(()) => Sent::receive(&p.channel),
            Err(_) => Sent::default(),
        };
        let pid = child.unwrap_or(pid);
        if p.exec {
            self.execs.push(Exec { pid, conn: p.conn });
            // Whoever asked has given up waiting and could not kill what it does not know.
            let ended = self.unclaimed.iter().any(|(p, _)| *p == pid);
            if !ended && !self.connected(p.conn) {
                let _ = sys::kill(-pid, libc::SIGKILL);
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            self.reply(
                p.conn,
                &Reply::ExecStarted { pid },
                sent.master.into_iter().collect(),
            );
        } else {
            self.started(&p, pid, sent);
        }
        // It may have ended before we knew that it was ours.
        if let Some(at) = self.unclaimed.iter().position(|(p, _)| *p == pid) {
            let (_, status) = self.unclaimed.swap_remove(at);
            self.ended(pid, status);
        }
    }

    /// A container's program runs.
    fn started(&mut self, p: &Pending, pid: i32, sent: Sent) {
        let started = Started {
            pid,
            started_at: sys::now_ns(),
        };
        let Some(c) = self.container_of(p.pid) else {
            return;
        };
        c.pid = pid;
        (c.proc, c.pts) = (sent.proc, sent.pts);
        if let Some(master) = sent.master {
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
            if !self.ended(pid, status) && self.pending.iter().any(|p| p.born) {
                self.unclaimed.push((pid, status));
            }
        }
        if !self.pending.iter().any(|p| p.born) {
            self.unclaimed = Vec::new();
        }
    }

    /// A child ended. False if it is none that we know.
    fn ended(&mut self, pid: i32, status: i32) -> bool {
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
        } else {
            return false;
        }
        true
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
    let _ = sys::close_others(&sinks.iter().map(|s| s.fd.as_raw_fd()).collect::<Vec<_>>());
    for s in &sinks {
        let _ = sys::set_nonblocking(s.fd.as_fd(), false);
    }
    for mut s in sinks {
        s.flush();
    }
    sys::exit_now(0);
}

pub(super) fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// (what we read, what the child writes): its end of file says that the program runs.
fn error_pipe() -> StepResult<(OwnedFd, OwnedFd)> {
    let (r, w) = step("make a pipe", sys::pipe())?;
    step(
        "set up the error pipe",
        sys::set_nonblocking(r.as_fd(), true),
    )?;
    Ok((r, w))
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
