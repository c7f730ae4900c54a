//! Owns the server's side of a shim: starting one, calling it, listening to it. One connection for each call, one for
//! events; all of it is asynchronous and none of it keeps state beyond the connection. Every call has a deadline: a shim
//! that is stuck must hold up nobody but its own pod.

use super::protocol::{Held, Reply, Request, ShimConfig, decode, encode};
use super::socket;
use crate::container::spec::{ContainerSpec, Exited, ProcessSpec, Started};
use crate::sys;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

/// How long a shim may take for what it does at once. It answers in microseconds; one that does not is stopped, starved,
/// or waits for a disk that is gone.
const QUICK: Duration = Duration::from_secs(10);
/// How long a start of the server waits for a shim's word; a later one is heard as well.
const SOON: Duration = Duration::from_secs(1);
/// How long it is waited for a shim that has just not answered.
const PROBE: Duration = Duration::from_secs(2);
/// How long the way from fork to execve may take: mounts of slow disks are part of it.
const START: Duration = Duration::from_secs(90);
/// The same for a process that only joins a container.
const EXEC: Duration = Duration::from_secs(30);
/// How long a shim may take to end everything it holds.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long a shim may take to be born.
const BIRTH: Duration = Duration::from_secs(30);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// No shim answers on the socket: it ended, or the machine was restarted.
    #[error("the sandbox's shim is gone: {0}")]
    Gone(io::Error),
    /// It is there and says nothing. What was asked for may still happen.
    #[error("the sandbox's shim did not answer within {} s", .0.as_secs())]
    Stuck(Duration),
    #[error("{0}")]
    NotRunning(String),
    /// What the shim or the child said.
    #[error("{0}")]
    Failed(String),
}

/// Where a shim is reached. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shim {
    dir: PathBuf,
}

/// A read-only view of the program: a container's process must never be able to write to it through /proc/<pid>/exe.
fn protected(exe: &Path) -> io::Result<OwnedFd> {
    let tree = sys::open_tree_clone(libc::AT_FDCWD, exe, false)?;
    sys::mount_setattr(
        tree.as_fd(),
        false,
        sys::MOUNT_ATTR_RDONLY,
        libc::MS_PRIVATE,
    )?;
    Ok(tree)
}

/// Everything up to the end of the pipe, or what came until the time was over.
fn read_until(pipe: &mut io::PipeReader, limit: Duration) -> io::Result<String> {
    use std::io::Read;
    let end = Instant::now() + limit;
    let (mut text, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut p = [libc::pollfd {
            fd: pipe.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        }];
        if sys::poll(&mut p, left.as_millis() as i32)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match pipe.read(&mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, ShimError>>,
) -> Result<T, ShimError> {
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or(Err(ShimError::Stuck(limit)))
}

impl Shim {
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }

    /// Starts a shim for the sandbox directory and returns its pid. Blocking; a few milliseconds.
    pub fn spawn(dir: &Path, exe: &Path, config: &ShimConfig) -> Result<(Self, i32), ShimError> {
        use std::os::unix::process::CommandExt;
        let failed = |what: &str| {
            let what = what.to_string();
            move |e: io::Error| ShimError::Failed(format!("{what}: {e}"))
        };
        crate::state::write_json(&dir.join("shim.json"), config)
            .map_err(failed("write shim.json"))?;
        let listener = socket::listen(&dir.join("s")).map_err(failed("make the shim's socket"))?;
        let (mut ready, ready_w) = io::pipe().map_err(failed("make a pipe"))?;
        // Without it a container could overwrite the program (CVE-2019-5736), so a failure is one.
        let guarded = protected(exe).map_err(failed("protect the program of the shim"))?;
        let program = PathBuf::from(format!("/proc/self/fd/{}", guarded.as_raw_fd()));
        let mut child = std::process::Command::new(program)
            .arg0("skiff")
            .arg("shim")
            .arg(dir)
            .env_clear()
            // The allocator's first arena would get huge pages: 4 MB for a shim that needs 200 KB.
            .env("MIMALLOC_ALLOW_THP", "0")
            .current_dir("/")
            .stdin(OwnedFd::from(listener))
            .stdout(OwnedFd::from(ready_w))
            .stderr(std::process::Stdio::null())
            .spawn()
            .map_err(failed("start the shim"))?;
        let read = read_until(&mut ready, BIRTH);
        if read.is_err() {
            let _ = child.kill();
            Self::at(dir).kill_process();
        }
        // The first process leaves as soon as it has forked the real one.
        let _ = child.wait();
        let text = read.map_err(failed("wait for the shim to be born"))?;
        match text.strip_prefix("ok ").and_then(|p| p.trim().parse().ok()) {
            Some(pid) => Ok((Self::at(dir), pid)),
            None if text.is_empty() => {
                Err(ShimError::Failed("the shim ended without a word".into()))
            }
            None => Err(ShimError::Failed(text)),
        }
    }

    /// Connects. A full queue of connections means that the shim takes none: it is waited for.
    async fn connect(&self) -> Result<Connection, ShimError> {
        let (_held, path) = socket::short_path(&self.dir.join("s")).map_err(ShimError::Gone)?;
        let stream = loop {
            match UnixStream::connect(&path).await {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                r => break r.map_err(ShimError::Gone)?,
            }
        };
        socket::check_peer(&stream)
            .map_err(|e| ShimError::Failed(format!("{}: {e}", self.dir.display())))?;
        Ok(Connection {
            stream,
            input: Vec::new(),
            fds: Vec::new(),
        })
    }

    async fn call(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(Connection, Reply), ShimError> {
        within(limit, async {
            let mut c = self.connect().await?;
            c.send(request, fds).await.map_err(ShimError::Gone)?;
            let reply = c.receive().await?;
            refusal(reply).map(|r| (c, r))
        })
        .await
    }

    async fn simple(&self, request: Request) -> Result<(), ShimError> {
        self.call(&request, &[], QUICK).await.map(drop)
    }

    /// Asks for the stream of what happens to the containers. The answer may be waited for without an end: see
    /// [`Subscription::answer`].
    pub async fn subscribe(&self) -> Result<Subscription, ShimError> {
        within(QUICK, async {
            let mut c = self.connect().await?;
            c.send(&Request::Subscribe, &[])
                .await
                .map_err(ShimError::Gone)?;
            Ok(Subscription(c))
        })
        .await
    }

    /// (pid, start time in ns).
    pub async fn start(&self, spec: &ContainerSpec) -> Result<(i32, i64), ShimError> {
        self.start_with(spec, [None, None]).await
    }

    /// [`start`](Self::start) with the given pipes attached to stdout and stderr from the first byte on.
    pub async fn start_with(
        &self,
        spec: &ContainerSpec,
        outputs: [Option<OwnedFd>; 2],
    ) -> Result<(i32, i64), ShimError> {
        let request = Request::Start {
            spec: Box::new(spec.clone()),
            stdout: outputs[0].is_some(),
            stderr: outputs[1].is_some(),
        };
        let fds: Vec<_> = outputs.iter().flatten().map(AsFd::as_fd).collect();
        match self.call(&request, &fds, START).await? {
            (_, Reply::Started { pid, started_at }) => Ok((pid, started_at)),
            (_, r) => Err(unexpected(&r)),
        }
    }

    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), ShimError> {
        self.simple(Request::Kill {
            id: id.into(),
            signal,
            all,
        })
        .await
    }

    pub async fn resize(&self, id: &str, width: u16, height: u16) -> Result<(), ShimError> {
        self.simple(Request::Resize {
            id: id.into(),
            width,
            height,
        })
        .await
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), ShimError> {
        self.simple(Request::ReopenLog { id: id.into() }).await
    }

    /// Runs a process with the given stdio; None is /dev/null.
    pub async fn exec(
        &self,
        id: &str,
        process: &ProcessSpec,
        stdio: [Option<OwnedFd>; 3],
    ) -> Result<ExecHandle, ShimError> {
        let request = Request::Exec {
            id: id.into(),
            process: Box::new(process.clone()),
            stdin: stdio[0].is_some(),
            stdout: stdio[1].is_some(),
            stderr: stdio[2].is_some(),
        };
        let fds: Vec<_> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        let (mut c, reply) = self.call(&request, &fds, EXEC).await?;
        match reply {
            Reply::ExecStarted { pid } => Ok(ExecHandle {
                shim: self.clone(),
                pid,
                master: c.fds.pop(),
                connection: c,
            }),
            r => Err(unexpected(&r)),
        }
    }

    /// Adds the given ends of pipes to the container's stdio.
    pub async fn attach(&self, id: &str, stdio: [Option<OwnedFd>; 3]) -> Result<(), ShimError> {
        let request = Request::Attach {
            id: id.into(),
            stdin: stdio[0].is_some(),
            stdout: stdio[1].is_some(),
            stderr: stdio[2].is_some(),
        };
        let fds: Vec<_> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        self.call(&request, &fds, QUICK).await.map(drop)
    }

    /// An unconnected, non-blocking TCP socket in the pod's network namespace.
    pub async fn socket(&self, v6: bool) -> Result<OwnedFd, ShimError> {
        let (mut c, _) = self.call(&Request::Socket { v6 }, &[], QUICK).await?;
        c.fds
            .pop()
            .ok_or_else(|| ShimError::Failed("the shim sent no socket".into()))
    }

    /// Ends the shim and everything in it. A shim that is gone already is fine.
    pub async fn shutdown(&self) -> Result<(), ShimError> {
        match self.call(&Request::Shutdown, &[], SHUTDOWN).await {
            Err(ShimError::Gone(_)) => Ok(()),
            r => r.map(drop),
        }
    }

    /// Whether it answers at all.
    pub async fn answers(&self) -> bool {
        let nobody = Request::KillExec { pid: 0, signal: 0 };
        self.call(&nobody, &[], PROBE).await.is_ok()
    }

    /// True if the process is this directory's shim by its command line.
    fn is_process(&self, pid: i32) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let mut wanted = b"skiff\0shim\0".to_vec();
        wanted.extend_from_slice(self.dir.as_os_str().as_bytes());
        wanted.push(0);
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c == wanted)
    }

    /// The processes that run as this directory's shim: a recorded pid may be another's by now. Blocking.
    pub fn processes(&self) -> Vec<i32> {
        std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|pid| self.is_process(*pid))
            .collect()
    }

    /// True while a process runs as this shim, whether it answers or not. Blocking.
    pub fn lives(&self) -> bool {
        !self.processes().is_empty()
    }

    /// Kills the shim, and by the parent-death signal its containers; waits until it is gone. Blocking.
    pub fn kill_process(&self) {
        for pid in self.processes() {
            let Ok(fd) = sys::pidfd_open(pid) else {
                continue;
            };
            // Only now is the number sure to stay the same process.
            if !self.is_process(pid) {
                continue;
            }
            let _ = rustix::process::pidfd_send_signal(&fd, rustix::process::Signal::KILL);
            let mut p = [libc::pollfd {
                fd: fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            }];
            // A process in uninterruptible sleep goes later, and the caller has its own check.
            let _ = sys::poll(&mut p, 5_000);
        }
    }
}

fn refusal(reply: Reply) -> Result<Reply, ShimError> {
    match reply {
        Reply::Error {
            not_running: true,
            message,
        } => Err(ShimError::NotRunning(message)),
        Reply::Error { message, .. } => Err(ShimError::Failed(message)),
        r => Ok(r),
    }
}

fn unexpected(r: &Reply) -> ShimError {
    ShimError::Failed(format!("unexpected answer of the shim: {r:?}"))
}

/// What a shim tells.
pub enum Event {
    Started { id: String, started: Started },
    Exited { id: String, exited: Exited },
}

/// A subscription that is not answered yet. It stays good: a shim that was stopped answers when it goes on.
pub struct Subscription(Connection);

impl Subscription {
    /// Waits for the answer, as long as the shim lives: its pid, the containers that are running at that moment, and the
    /// stream of their ends. May be given up and called again.
    pub async fn answer(&mut self) -> Result<(i32, Vec<Held>), ShimError> {
        match refusal(self.0.receive().await?)? {
            Reply::Subscribed { pid, containers } => Ok((pid, containers)),
            r => Err(unexpected(&r)),
        }
    }

    /// [`answer`](Self::answer) within a time that a shim which is well does not need by far.
    pub async fn answer_soon(&mut self) -> Result<(i32, Vec<Held>), ShimError> {
        within(SOON, self.answer()).await
    }

    /// What comes after the answer.
    pub fn events(self) -> Events {
        Events(self.0)
    }
}

/// The starts and ends of containers, as they come.
pub struct Events(Connection);

impl Events {
    /// The next one; an error when the shim is gone.
    pub async fn next(&mut self) -> Result<Event, ShimError> {
        loop {
            match self.0.receive().await? {
                Reply::Exited { id, exited } => return Ok(Event::Exited { id, exited }),
                Reply::Began {
                    id,
                    pid,
                    started_at,
                } => {
                    return Ok(Event::Started {
                        id,
                        started: Started { pid, started_at },
                    });
                }
                _ => {}
            }
        }
    }
}

/// A process that was exec'd.
pub struct ExecHandle {
    shim: Shim,
    pub pid: i32,
    /// The terminal's master, if it has one.
    pub master: Option<OwnedFd>,
    connection: Connection,
}

impl ExecHandle {
    /// Waits for its exit code.
    pub async fn wait(&mut self) -> Result<i32, ShimError> {
        match self.connection.receive().await? {
            Reply::ExecExited { code } => Ok(code),
            r => Err(unexpected(&r)),
        }
    }

    pub async fn kill(&self, signal: i32) -> Result<(), ShimError> {
        self.shim
            .simple(Request::KillExec {
                pid: self.pid,
                signal,
            })
            .await
    }
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    async fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(request);
        let mut at = 0;
        while at < bytes.len() {
            let with = if at == 0 { fds } else { &[] };
            at += self
                .stream
                .async_io(Interest::WRITABLE, || {
                    sys::send_with_fds(self.stream.as_fd(), &bytes[at..], with)
                })
                .await?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<Reply, ShimError> {
        loop {
            if let Some(r) = decode(&mut self.input).map_err(ShimError::Failed)? {
                return Ok(r);
            }
            let mut buffer = [0; 4096];
            let mut got = Vec::new();
            let n = self
                .stream
                .async_io(Interest::READABLE, || {
                    sys::recv_with_fds(self.stream.as_fd(), &mut buffer, &mut got)
                })
                .await
                .map_err(ShimError::Gone)?;
            self.fds.append(&mut got);
            if n == 0 {
                return Err(ShimError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            self.input.extend_from_slice(&buffer[..n]);
        }
    }
}

/// Reads a pipe to its end, keeping at most `limit` bytes and discarding the rest.
pub async fn read_limited(fd: OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(fd)?;
    let mut out = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = pipe.read(&mut buffer).await?;
        if n == 0 {
            return Ok(out);
        }
        let keep = n.min(limit - out.len());
        out.extend_from_slice(&buffer[..keep]);
    }
}
