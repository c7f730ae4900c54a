//! Owns the server's side of a shim: starting one, calling it, listening to it. One connection for each call, one for
//! events; all of it is asynchronous and none of it keeps state beyond the connection.

use super::protocol::{Held, Reply, Request, ShimConfig, decode, encode};
use crate::container::spec::{ContainerSpec, Exited, ProcessSpec, Started};
use crate::sys;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// No shim answers on the socket: it ended, or the machine was restarted.
    #[error("the sandbox's shim is gone: {0}")]
    Gone(io::Error),
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

/// Connects or binds through /proc/self/fd, because socket paths are limited to 108 bytes and directories are not.
fn short_path(dir: &Path) -> io::Result<(std::fs::File, PathBuf)> {
    let f = std::fs::File::open(dir)?;
    let p = PathBuf::from(format!("/proc/self/fd/{}/s", f.as_raw_fd()));
    Ok((f, p))
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

impl Shim {
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }

    /// Starts a shim for the sandbox directory and returns its pid. Blocking; a few milliseconds.
    pub fn spawn(dir: &Path, exe: &Path, config: &ShimConfig) -> Result<(Self, i32), ShimError> {
        use std::io::Read;
        use std::os::unix::process::CommandExt;
        let failed = |what: &str| {
            let what = what.to_string();
            move |e: io::Error| ShimError::Failed(format!("{what}: {e}"))
        };
        crate::state::write_json(&dir.join("shim.json"), config)
            .map_err(failed("write shim.json"))?;
        let (_held, socket) = short_path(dir).map_err(failed("open the sandbox directory"))?;
        let _ = std::fs::remove_file(dir.join("s"));
        let listener = UnixListener::bind(&socket).map_err(failed("make the shim's socket"))?;
        let (mut ready, ready_w) = io::pipe().map_err(failed("make a pipe"))?;
        let guarded = protected(exe);
        let program = match &guarded {
            Ok(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            Err(_) => exe.to_path_buf(),
        };
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
        let mut text = String::new();
        let read = ready.read_to_string(&mut text);
        // The first process leaves as soon as it has forked the real one.
        let _ = child.wait();
        read.map_err(failed("read from the shim"))?;
        match text.strip_prefix("ok ").and_then(|p| p.trim().parse().ok()) {
            Some(pid) => Ok((Self::at(dir), pid)),
            None if text.is_empty() => {
                Err(ShimError::Failed("the shim ended without a word".into()))
            }
            None => Err(ShimError::Failed(text)),
        }
    }

    async fn connect(&self) -> Result<Connection, ShimError> {
        let (_held, path) = short_path(&self.dir).map_err(ShimError::Gone)?;
        let stream = UnixStream::connect(&path).await.map_err(ShimError::Gone)?;
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
    ) -> Result<(Connection, Reply), ShimError> {
        let mut c = self.connect().await?;
        c.send(request, fds).await.map_err(ShimError::Gone)?;
        let reply = c.receive().await?;
        match reply {
            Reply::Error {
                not_running: true,
                message,
            } => Err(ShimError::NotRunning(message)),
            Reply::Error { message, .. } => Err(ShimError::Failed(message)),
            r => Ok((c, r)),
        }
    }

    async fn simple(&self, request: Request) -> Result<(), ShimError> {
        self.call(&request, &[]).await.map(drop)
    }

    /// The shim's pid, the containers that are running now, and the stream of their ends.
    pub async fn subscribe(&self) -> Result<(i32, Vec<Held>, Events), ShimError> {
        match self.call(&Request::Subscribe, &[]).await? {
            (c, Reply::Subscribed { pid, containers }) => Ok((pid, containers, Events(c))),
            (_, r) => Err(unexpected(&r)),
        }
    }

    /// (pid, start time in ns).
    pub async fn start(&self, spec: &ContainerSpec) -> Result<(i32, i64), ShimError> {
        match self
            .call(
                &Request::Start {
                    spec: Box::new(spec.clone()),
                },
                &[],
            )
            .await?
        {
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
        let (mut c, reply) = self.call(&request, &fds).await?;
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
        self.call(&request, &fds).await.map(drop)
    }

    /// An unconnected, non-blocking TCP socket in the pod's network namespace.
    pub async fn socket(&self, v6: bool) -> Result<OwnedFd, ShimError> {
        let (mut c, _) = self.call(&Request::Socket { v6 }, &[]).await?;
        c.fds
            .pop()
            .ok_or_else(|| ShimError::Failed("the shim sent no socket".into()))
    }

    /// Ends the shim and everything in it. A shim that is gone already is fine.
    pub async fn shutdown(&self) -> Result<(), ShimError> {
        match self.call(&Request::Shutdown, &[]).await {
            Err(ShimError::Gone(_)) => Ok(()),
            r => r.map(drop),
        }
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
