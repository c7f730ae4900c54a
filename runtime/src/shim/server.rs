//! Owns the shim's loop: control connections, what is polled, timers. All state is in `Shim`; children are `processes`'.

use super::containers::{Attached, Container, STDERR, STDOUT, Sink};
use super::processes::{Exec, Pending};
use super::protocol::{Held, MAX_MESSAGE, Reply, Request, decode, encode};
use super::setup::{self, Born};
use crate::container::init::ChildIo;
use crate::container::rootfs::{CgroupMount, StepResult, step};
use crate::sys;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

pub fn main(args: &[OsString]) -> ! {
    let Some(dir) = args.first() else {
        let _ = sys::write(
            sys::std_fd(2),
            b"usage: skiff shim DIR (started by the server, not by hand)\n",
        );
        sys::exit_now(1);
    };
    let (listener, ready) = match setup::daemonise() {
        Ok(x) => x,
        Err(e) => {
            let _ = sys::write(sys::std_fd(1), e.as_bytes());
            sys::exit_now(1);
        }
    };
    let ready_copy = sys::dup_high(ready.as_fd());
    match setup::enter(Path::new(dir), listener, ready).and_then(Shim::new) {
        Ok(mut shim) => {
            // The server reads the pipe to its end.
            drop(ready_copy);
            shim.run()
        }
        Err(e) => {
            if let Ok(fd) = ready_copy {
                let _ = sys::write(fd.as_fd(), e.as_bytes());
            }
            sys::exit_now(1)
        }
    }
}

/// Nothing happened for so long: the pod is quiet.
const QUIET_MS: i64 = 2000;
/// So long a tied shim waits for the first who listens.
const ALONE_MS: i64 = 15_000;
/// No connection has this number.
const NOBODY: u64 = 0;

struct Conn {
    id: u64,
    fd: OwnedFd,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    subscribed: bool,
    closed: bool,
}

/// All of the shim's state.
pub(super) struct Shim {
    pub(super) born: Born,
    pub(super) cgroups: Vec<CgroupMount>,
    pub(super) sigchld: OwnedFd,
    conns: Vec<Conn>,
    next_conn: u64,
    pub(super) containers: Vec<Container>,
    pub(super) pending: Vec<Pending>,
    pub(super) execs: Vec<Exec>,
    /// Children that were reaped while it was not known yet whether a pending process had become them.
    pub(super) unclaimed: Vec<(i32, i32)>,
    pub(super) leaving: Option<u64>,
    /// When a tied shim ends if nobody listens (monotonic milliseconds).
    alone_at: Option<i64>,
    /// Program text, let go of when the pod is quiet.
    text: Vec<(usize, usize)>,
    /// When to do that (monotonic milliseconds): some time after the last thing that was more than passing on output.
    quiet_at: Option<i64>,
}

/// What a polled descriptor belongs to.
#[derive(Clone, Copy)]
enum Token {
    Listener,
    Child,
    Conn(u64),
    Pending(i32),
    Output(i32, usize),
    Stdin(i32),
    AttachedStdin(i32, usize),
    AttachedOut(i32),
}

impl Shim {
    fn new(mut born: Born) -> StepResult<Self> {
        let sigchld = step("watch for children", sys::sigchld_fd())?;
        let cgroups = std::mem::take(&mut born.config.cgroup_mounts)
            .into_iter()
            .map(Into::into)
            .collect();
        let _ = sys::write(
            born.ready.as_fd(),
            format!("ok {}", std::process::id()).as_bytes(),
        );
        // The server reads to the end of file, so the pipe is closed by putting something else in its place.
        born.ready = step("close the ready pipe", sys::dup_high(sys::std_fd(0)))?;
        let tied = born.config.tied;
        Ok(Self {
            alone_at: tied.then(|| sys::monotonic_ms() + ALONE_MS),
            born,
            cgroups,
            sigchld,
            conns: Vec::new(),
            next_conn: 1,
            containers: Vec::new(),
            pending: Vec::new(),
            execs: Vec::new(),
            unclaimed: Vec::new(),
            leaving: None,
            text: sys::file_mappings(),
            quiet_at: Some(sys::monotonic_ms() + QUIET_MS),
        })
    }

    fn run(&mut self) -> ! {
        let mut tokens = Vec::new();
        let mut fds = Vec::new();
        loop {
            tokens.clear();
            fds.clear();
            self.collect(&mut tokens, &mut fds);
            if sys::poll(&mut fds, self.timeout()).is_err() {
                sys::exit_now(1);
            }
            if self.quiet_at.is_some_and(|at| sys::monotonic_ms() >= at) {
                // A shim of a quiet pod needs a few pages; the rest of the program that made containers can go.
                sys::forget_pages(&self.text);
                self.quiet_at = None;
            }
            for (token, fd) in tokens.iter().zip(&fds) {
                if fd.revents != 0 {
                    self.handle(*token, fd.revents);
                }
            }
            self.settle();
            self.conns.retain(|c| !c.closed);
            self.leave_if_alone();
            if let Some(conn) = self.leaving
                && self.containers.is_empty()
                && self.execs.is_empty()
            {
                self.reply(conn, &Reply::Ok, vec![]);
                sys::exit_now(0);
            }
        }
    }

    fn collect(&self, tokens: &mut Vec<Token>, fds: &mut Vec<libc::pollfd>) {
        let mut add = |token: Token, fd: RawFd, events: i16| {
            tokens.push(token);
            fds.push(libc::pollfd {
                fd,
                events,
                revents: 0,
            });
        };
        add(
            Token::Listener,
            self.born.listener.as_raw_fd(),
            libc::POLLIN,
        );
        add(Token::Child, self.sigchld.as_raw_fd(), libc::POLLIN);
        for c in &self.conns {
            let out = if c.output.is_empty() {
                0
            } else {
                libc::POLLOUT
            };
            add(Token::Conn(c.id), c.fd.as_raw_fd(), libc::POLLIN | out);
        }
        for p in &self.pending {
            add(Token::Pending(p.pid), p.error.as_raw_fd(), libc::POLLIN);
        }
        for c in &self.containers {
            if !c.held_back() {
                for which in [STDOUT, STDERR] {
                    if let Some(s) = &c.sources[which] {
                        add(Token::Output(c.pid, which), s.fd.as_raw_fd(), libc::POLLIN);
                    }
                }
            }
            if let (Some(fd), false) = (&c.stdin, c.stdin_queue.is_empty()) {
                add(Token::Stdin(c.pid), fd.as_raw_fd(), libc::POLLOUT);
            }
            for (i, a) in c.attached.iter().enumerate() {
                if let (Some(fd), true) = (&a.stdin, c.stdin_queue.is_empty()) {
                    add(Token::AttachedStdin(c.pid, i), fd.as_raw_fd(), libc::POLLIN);
                }
                for s in [&a.stdout, &a.stderr].into_iter().flatten() {
                    // Without anything to write, only errors (the reader left) are reported.
                    let out = if s.queue.is_empty() { 0 } else { libc::POLLOUT };
                    add(Token::AttachedOut(c.pid), s.fd.as_raw_fd(), out);
                }
            }
        }
    }

    /// Milliseconds to the nearest deadline of an ended container, or to the pod's being quiet; then no wake-up.
    fn timeout(&self) -> i32 {
        let now = sys::monotonic_ms();
        self.containers
            .iter()
            .filter_map(|c| c.ended.as_ref().map(|(_, deadline)| *deadline))
            .chain(self.quiet_at)
            .chain(self.alone_at.filter(|at| *at > 0))
            .map(|at| (at - now).clamp(0, 10_000) as i32)
            .min()
            .unwrap_or(-1)
    }

    fn handle(&mut self, token: Token, revents: i16) {
        if matches!(token, Token::Child | Token::Conn(_) | Token::Pending(_)) {
            self.quiet_at = Some(sys::monotonic_ms() + QUIET_MS);
        }
        match token {
            Token::Listener => self.accept(),
            Token::Child => self.reap(),
            Token::Conn(id) => self.serve(id, revents),
            Token::Pending(pid) => self.resolve(pid, false),
            Token::Output(pid, which) => {
                let mut buffer = [0; 32 * 1024];
                if let Some(c) = self.container_of(pid) {
                    c.pump(which, &mut buffer);
                }
            }
            Token::Stdin(pid) => {
                if let Some(c) = self.container_of(pid) {
                    c.flush_stdin();
                }
            }
            Token::AttachedStdin(pid, index) => {
                let mut buffer = [0; 16 * 1024];
                if let Some(c) = self.container_of(pid) {
                    c.feed(index, &mut buffer);
                }
            }
            Token::AttachedOut(pid) => {
                if let Some(c) = self.container_of(pid) {
                    if revents & libc::POLLERR != 0 {
                        for a in &mut c.attached {
                            for sink in [&mut a.stdout, &mut a.stderr] {
                                if sink.as_ref().is_some_and(|s| reader_gone(&s.fd)) {
                                    *sink = None;
                                }
                            }
                        }
                    }
                    c.flush_sinks();
                }
            }
        }
    }

    pub(super) fn container_of(&mut self, pid: i32) -> Option<&mut Container> {
        self.containers.iter_mut().find(|c| c.pid == pid)
    }

    fn accept(&mut self) {
        use rustix::net::SocketFlags;
        while let Ok(fd) = rustix::net::accept_with(
            &self.born.listener,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        ) {
            // The socket's mode keeps others out; this holds also where somebody was handed a way around it.
            if super::socket::check_peer(&fd).is_err() {
                continue;
            }
            let id = self.next_conn;
            self.next_conn += 1;
            self.conns.push(Conn {
                id,
                fd,
                input: Vec::new(),
                fds: Vec::new(),
                output: VecDeque::new(),
                subscribed: false,
                closed: false,
            });
        }
    }

    fn serve(&mut self, id: u64, revents: i16) {
        let Some(c) = self.conns.iter_mut().find(|c| c.id == id) else {
            return;
        };
        if revents & libc::POLLOUT != 0 {
            flush(c);
        }
        let mut buffer = [0; 8 * 1024];
        let mut requests = Vec::new();
        if revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
            loop {
                match sys::recv_with_fds(c.fd.as_fd(), &mut buffer, &mut c.fds) {
                    Ok(0) => {
                        c.closed = true;
                        break;
                    }
                    Ok(n) => c.input.extend_from_slice(&buffer[..n]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => {
                        c.closed = true;
                        break;
                    }
                }
                if c.input.len() > MAX_MESSAGE {
                    c.closed = true;
                    break;
                }
            }
            loop {
                match decode::<Request>(&mut c.input) {
                    Ok(Some(r)) => requests.push(r),
                    Ok(None) => break,
                    Err(message) => {
                        c.closed = true;
                        let bytes = encode(&Reply::Error {
                            not_running: false,
                            message,
                        });
                        c.output.push_back((bytes, vec![]));
                        flush(c);
                        break;
                    }
                }
            }
            if c.input.is_empty() {
                c.input = Vec::new();
            }
        }
        for r in requests {
            let fds = match self.conns.iter_mut().find(|c| c.id == id) {
                Some(c) => std::mem::take(&mut c.fds),
                None => return,
            };
            self.request(id, r, fds);
        }
    }

    pub(super) fn reply(&mut self, conn: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        if let Some(c) = self.conns.iter_mut().find(|c| c.id == conn) {
            c.output.push_back((encode(reply), fds));
            flush(c);
        }
    }

    pub(super) fn connected(&self, conn: u64) -> bool {
        self.conns.iter().any(|c| c.id == conn && !c.closed)
    }

    fn request(&mut self, conn: u64, request: Request, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        let result = match request {
            Request::Subscribe => {
                if let Some(c) = self.conns.iter_mut().find(|c| c.id == conn) {
                    c.subscribed = true;
                }
                let containers = self
                    .containers
                    .iter()
                    .filter(|c| c.running)
                    .map(|c| Held {
                        id: c.id.clone(),
                        pid: c.pid,
                    })
                    .collect();
                return self.reply(
                    conn,
                    &Reply::Subscribed {
                        pid: std::process::id() as i32,
                        containers,
                    },
                    vec![],
                );
            }
            // Answered when the child has become its program, or has said why not.
            Request::Start {
                spec,
                stdout,
                stderr,
            } => {
                let outputs = [stdout, stderr].map(|wanted| if wanted { fds.next() } else { None });
                match self.start(conn, &spec, outputs) {
                    Ok(()) => return,
                    Err(message) => Err((false, message)),
                }
            }
            Request::Exec {
                id,
                process,
                stdin,
                stdout,
                stderr,
            } => {
                let io = ChildIo {
                    stdin: if stdin { fds.next() } else { None },
                    stdout: if stdout { fds.next() } else { None },
                    stderr: if stderr { fds.next() } else { None },
                };
                match self.exec(conn, &id, &process, io) {
                    Ok(()) => return,
                    Err(e) => Err(e),
                }
            }
            Request::Kill { id, signal, all } => self.killable(&id, signal).and_then(|c| {
                c.kill(signal, all)
                    .map_err(|e| (false, format!("signal container {id}: {e}")))
            }),
            Request::KillExec { pid, signal } => {
                if self.execs.iter().any(|e| e.pid == pid) {
                    // Its session is its own, and so is its process group.
                    let _ = sys::kill(-pid, signal);
                    let _ = sys::kill(pid, signal);
                }
                Ok(())
            }
            Request::Attach {
                id,
                stdin,
                stdout,
                stderr,
            } => self.running(&id).and_then(|c| {
                let bad = |e: io::Error| (false, format!("attach to {id}: {e}"));
                let input = if stdin { fds.next() } else { None };
                if let Some(fd) = &input {
                    sys::set_nonblocking(fd.as_fd(), true).map_err(bad)?;
                }
                let out = if stdout {
                    fds.next().map(Sink::new).transpose().map_err(bad)?
                } else {
                    None
                };
                let err = if stderr {
                    fds.next().map(Sink::new).transpose().map_err(bad)?
                } else {
                    None
                };
                let input = if c.stdin.is_some() { input } else { None };
                c.attached.push(Attached {
                    stdin: input,
                    stdout: out,
                    stderr: err,
                });
                Ok(())
            }),
            Request::Resize { id, width, height } => {
                self.running(&id).and_then(|c| match (&c.stdin, c.tty) {
                    (Some(fd), true) => sys::set_winsize(fd.as_fd(), width, height)
                        .map_err(|e| (false, format!("resize: {e}"))),
                    _ => Ok(()),
                })
            }
            Request::ReopenLog { id } => self.running(&id).and_then(|c| match &mut c.log {
                Some(log) => log
                    .reopen()
                    .map_err(|e| (false, format!("reopen the log of {id}: {e}"))),
                None => Ok(()),
            }),
            Request::Socket { v6 } => match sys::tcp_socket(v6) {
                Ok(fd) => return self.reply(conn, &Reply::Ok, vec![fd]),
                Err(e) => Err((false, format!("make a socket in the pod's network: {e}"))),
            },
            Request::Shutdown => return self.leave(conn),
        };
        let reply = match result {
            Ok(()) => Reply::Ok,
            Err((not_running, message)) => Reply::Error {
                not_running,
                message,
            },
        };
        self.reply(conn, &reply, vec![]);
    }

    /// Kills everything; the loop ends when it is reaped, and tells the connection.
    fn leave(&mut self, conn: u64) {
        self.leaving = Some(conn);
        for p in &self.pending {
            let _ = sys::kill(p.pid, libc::SIGKILL);
        }
        for e in &self.execs {
            let _ = sys::kill(e.pid, libc::SIGKILL);
        }
        for c in &self.containers {
            let _ = c.kill(libc::SIGKILL, true);
        }
    }

    /// A tied shim leaves with the last who listens, or when nobody comes.
    fn leave_if_alone(&mut self) {
        let alone = match self.alone_at {
            None => false,
            Some(_) if self.conns.iter().any(|c| c.subscribed) => {
                // From now on no time is given.
                self.alone_at = Some(0);
                false
            }
            Some(at) => sys::monotonic_ms() >= at,
        };
        if alone && self.leaving.is_none() {
            self.leave(NOBODY);
        }
    }

    pub(super) fn running(&mut self, id: &str) -> Result<&mut Container, (bool, String)> {
        self.containers
            .iter_mut()
            .find(|c| c.id == id && c.running && c.ended.is_none())
            .ok_or_else(|| (true, format!("container {id} is not running")))
    }

    /// A running container, or for SIGKILL also one that is on its way to its program: whoever gave up waiting for it.
    fn killable(&mut self, id: &str, signal: i32) -> Result<&mut Container, (bool, String)> {
        self.containers
            .iter_mut()
            .find(|c| c.id == id && c.ended.is_none() && (c.running || signal == libc::SIGKILL))
            .ok_or_else(|| (true, format!("container {id} is not running")))
    }

    pub(super) fn tell(&mut self, event: &Reply) {
        let bytes = encode(event);
        for c in self.conns.iter_mut().filter(|c| c.subscribed) {
            c.output.push_back((bytes.clone(), vec![]));
            flush(c);
        }
    }
}

/// True when nobody can read from the pipe any more.
fn reader_gone(fd: &OwnedFd) -> bool {
    let mut p = [libc::pollfd {
        fd: fd.as_raw_fd(),
        events: 0,
        revents: 0,
    }];
    sys::poll(&mut p, 0).is_ok_and(|n| n > 0) && p[0].revents & libc::POLLERR != 0
}

/// Sends what the peer takes; a peer that is gone closes the connection.
fn flush(c: &mut Conn) {
    while let Some((bytes, fds)) = c.output.front_mut() {
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match sys::send_with_fds(c.fd.as_fd(), bytes, &borrowed) {
            Ok(n) => {
                bytes.drain(..n);
                fds.clear();
                if bytes.is_empty() {
                    c.output.pop_front();
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                c.closed = true;
                c.output.clear();
                return;
            }
        }
    }
}
