//! Owns one running container inside the shim: its pipes or terminal, its log, who is attached, and how it ends. It must
//! not block: every descriptor here is non-blocking, and a slow reader holds back only its own container.

use super::log::{LineSplitter, LogFile};
use crate::cgroup::kill_all;
use crate::container::spec::{ContainerSpec, Exited, PidMode};
use crate::sys;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// An attached reader may lag this much before the container's output waits for it.
const SINK_LIMIT: usize = 256 * 1024;

/// One output stream of the container.
pub struct Source {
    pub fd: OwnedFd,
    splitter: LineSplitter,
}

impl Source {
    pub fn new(fd: OwnedFd, name: &'static str) -> io::Result<Self> {
        sys::set_nonblocking(fd.as_fd(), true)?;
        Ok(Self {
            fd,
            splitter: LineSplitter::new(name),
        })
    }
}

/// One attached reader of an output stream.
pub struct Sink {
    pub fd: OwnedFd,
    pub queue: VecDeque<u8>,
}

impl Sink {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::set_nonblocking(fd.as_fd(), true)?;
        Ok(Self {
            fd,
            queue: VecDeque::new(),
        })
    }

    /// Writes what fits. False when the reader is gone.
    pub fn flush(&mut self) -> bool {
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            match sys::write(self.fd.as_fd(), front) {
                Ok(n) => {
                    self.queue.drain(..n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// One attached client.
pub struct Attached {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<Sink>,
    pub stderr: Option<Sink>,
}

/// Index of an output stream.
pub const STDOUT: usize = 0;
pub const STDERR: usize = 1;

pub struct Container {
    pub id: String,
    pub pid: i32,
    /// False until its program runs: the Start request is not answered yet.
    pub running: bool,
    pub state_dir: PathBuf,
    pub sources: [Option<Source>; 2],
    /// Write end of stdin, or the terminal's master.
    pub stdin: Option<OwnedFd>,
    pub stdin_queue: Vec<u8>,
    pub stdin_once: bool,
    pub tty: bool,
    pub attached: Vec<Attached>,
    pub log: Option<LogFile>,
    pub cgroup_procs: Vec<PathBuf>,
    /// The mount at its /proc, for containers that join its process namespace.
    pub proc: Option<OwnedFd>,
    /// Its devpts, for terminals of exec'd processes.
    pub pts: Option<OwnedFd>,
    oom_file: Option<PathBuf>,
    kill_file: Option<PathBuf>,
    own_pid_ns: bool,
    /// Set when the first process was reaped; the rest of the output is still awaited until the deadline.
    pub ended: Option<(Exited, i64)>,
}

impl Container {
    pub fn new(spec: &ContainerSpec, log: Option<LogFile>) -> Self {
        Self {
            id: spec.id.clone(),
            pid: 0,
            running: false,
            state_dir: spec.state_dir.clone(),
            sources: [None, None],
            stdin: None,
            stdin_queue: Vec::new(),
            stdin_once: spec.stdin_once,
            tty: spec.process.tty,
            attached: Vec::new(),
            log,
            cgroup_procs: spec.cgroup_procs.clone(),
            proc: None,
            pts: None,
            oom_file: spec.oom_file.clone(),
            kill_file: spec.kill_file.clone(),
            own_pid_ns: spec.pid == PidMode::Container,
            ended: None,
        }
    }

    /// True while some attached reader is too far behind.
    pub fn held_back(&self) -> bool {
        self.attached
            .iter()
            .flat_map(|a| [&a.stdout, &a.stderr])
            .flatten()
            .any(|s| s.queue.len() > SINK_LIMIT)
    }

    /// Reads once from an output stream and hands it to the log and the attached.
    pub fn pump(&mut self, which: usize, buffer: &mut [u8]) {
        let Some(source) = &mut self.sources[which] else {
            return;
        };
        let n = match sys::read(source.fd.as_fd(), buffer) {
            Ok(n) => n,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return;
            }
            // A terminal whose last slave is closed says EIO: its end of file.
            Err(_) => 0,
        };
        let now = sys::now_ns();
        let mut lines = Vec::new();
        if n == 0 {
            source.splitter.finish(now, &mut lines);
            self.sources[which] = None;
        } else if self.log.is_some() {
            source.splitter.push(&buffer[..n], now, &mut lines);
        }
        if let (Some(log), false) = (&mut self.log, lines.is_empty()) {
            log.write(&lines);
        }
        for a in &mut self.attached {
            let sink = if which == STDOUT {
                &mut a.stdout
            } else {
                &mut a.stderr
            };
            if let Some(s) = sink {
                s.queue.extend(&buffer[..n]);
                if !s.flush() || (n == 0 && s.queue.is_empty()) {
                    *sink = None;
                }
            }
        }
        self.forget_gone();
    }

    /// Reads everything that is there now.
    pub fn drain(&mut self, buffer: &mut [u8]) {
        for which in [STDOUT, STDERR] {
            // Bounded: a process that outlives its container and keeps writing must not hold the loop.
            for _ in 0..4096 {
                let Some(s) = &self.sources[which] else { break };
                let mut p = [libc::pollfd {
                    fd: s.fd.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                }];
                if sys::poll(&mut p, 0).unwrap_or(0) == 0 || self.held_back() {
                    break;
                }
                self.pump(which, buffer);
            }
        }
    }

    /// Reads once from an attached stdin into the container's.
    pub fn feed(&mut self, index: usize, buffer: &mut [u8]) {
        let Some(fd) = self.attached.get(index).and_then(|a| a.stdin.as_ref()) else {
            return;
        };
        match sys::read(fd.as_fd(), buffer) {
            Ok(n) if n > 0 => {
                self.stdin_queue.extend_from_slice(&buffer[..n]);
                self.flush_stdin();
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            _ => {
                if let Some(a) = self.attached.get_mut(index) {
                    a.stdin = None;
                }
                // CRI's stdin_once: the first client's end of input is the container's.
                if self.stdin_once && !self.tty && self.stdin_queue.is_empty() {
                    self.stdin = None;
                } else if self.stdin_once && !self.tty {
                    self.close_after_flush();
                }
                self.forget_gone();
            }
        }
    }

    fn close_after_flush(&mut self) {
        self.flush_stdin();
        if self.stdin_queue.is_empty() {
            self.stdin = None;
        }
    }

    /// Writes what the container's stdin takes.
    pub fn flush_stdin(&mut self) {
        let Some(fd) = &self.stdin else {
            self.stdin_queue.clear();
            return;
        };
        while !self.stdin_queue.is_empty() {
            match sys::write(fd.as_fd(), &self.stdin_queue) {
                Ok(n) => {
                    self.stdin_queue.drain(..n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.stdin_queue.clear();
                    if !self.tty {
                        self.stdin = None;
                    }
                    break;
                }
            }
        }
        if self.stdin_queue.is_empty() {
            // An unused megabyte paste must not stay in every shim.
            self.stdin_queue = Vec::new();
            if self.stdin_once && !self.tty && self.stdin.is_some() && self.fed_to_the_end() {
                self.stdin = None;
            }
        }
    }

    /// True when somebody fed stdin and nobody does any more.
    fn fed_to_the_end(&self) -> bool {
        !self.attached.is_empty()
            && self.attached.iter().all(|a| a.stdin.is_none())
            && self
                .attached
                .iter()
                .any(|a| a.stdout.is_some() || a.stderr.is_some())
    }

    /// Writes to attached readers again after they said they can.
    pub fn flush_sinks(&mut self) {
        let done = self.sources.iter().all(Option::is_none);
        for a in &mut self.attached {
            for sink in [&mut a.stdout, &mut a.stderr] {
                if let Some(s) = sink
                    && (!s.flush() || (done && s.queue.is_empty()))
                {
                    *sink = None;
                }
            }
        }
        self.forget_gone();
    }

    fn forget_gone(&mut self) {
        self.attached
            .retain(|a| a.stdin.is_some() || a.stdout.is_some() || a.stderr.is_some());
    }

    /// Signals the first process, or everything.
    pub fn kill(&self, signal: i32, all: bool) -> io::Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let r = sys::kill(self.pid, signal);
        if all && signal == libc::SIGKILL && !self.own_pid_ns {
            kill_all(self.kill_file.as_deref(), &self.cgroup_procs);
        }
        r
    }

    /// The first process was reaped. Everything else of the container goes with it.
    pub fn end(&mut self, status: i32) {
        // A container that got over the loss of a child and ended well was not killed.
        let oom_killed =
            sys::exit_code(status) != 0 && self.oom_file.as_ref().is_some_and(|f| oom_count(f) > 0);
        // In a pid namespace of its own the kernel already killed the others.
        if !self.own_pid_ns {
            kill_all(self.kill_file.as_deref(), &self.cgroup_procs);
        }
        let exited = Exited {
            exit_code: sys::exit_code(status),
            finished_at: sys::now_ns(),
            oom_killed,
            reason: String::new(),
            message: String::new(),
        };
        self.stdin = None;
        self.ended = Some((exited, sys::monotonic_ms() + 500));
    }

    /// True when the end can be told: the output is complete, or was waited for long enough.
    pub fn settled(&self) -> bool {
        self.ended.as_ref().is_some_and(|(_, deadline)| {
            self.sources.iter().all(Option::is_none) || sys::monotonic_ms() >= *deadline
        })
    }
}

/// The `oom_kill` counter of memory.events (v2) or memory.oom_control (v1).
fn oom_count(file: &std::path::Path) -> u64 {
    std::fs::read_to_string(file)
        .ok()
        .and_then(|t| {
            t.lines().find_map(|l| {
                l.strip_prefix("oom_kill ")
                    .and_then(|n| n.trim().parse().ok())
            })
        })
        .unwrap_or(0)
}
