//! Owns the streams of exec, attach and port-forward: it joins what the streaming server wants with what shims give.
//! It must not know WebSocket or SPDY.

use super::Runtime;
use crate::streaming::backend::{Duplex, Reader, Session, StreamBackend, TerminalSize, Writer};
use crate::sys;
use k8s_cri::v1;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// One end of a terminal's master. Both ends share the descriptor; the terminal hangs up when both are gone.
struct Tty(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Tty {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let mut bytes = [0; 8192];
            let room = buf.remaining().min(bytes.len());
            match guard.try_io(|fd| sys::read(fd.as_fd(), &mut bytes[..room])) {
                Ok(Ok(n)) => {
                    buf.put_slice(&bytes[..n]);
                    return Poll::Ready(Ok(()));
                }
                // The last process let go of the terminal: its end of file.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Tty {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| sys::write(fd.as_fd(), data)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(r) => return Poll::Ready(r),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// The server's and the container's end of an output stream.
fn output(wanted: bool) -> Result<(Option<Reader>, Option<OwnedFd>), String> {
    if !wanted {
        return Ok((None, None));
    }
    let (r, w) = sys::pipe().map_err(text)?;
    sys::set_nonblocking(r.as_fd(), true).map_err(text)?;
    let reader = pipe::Receiver::from_owned_fd(r).map_err(text)?;
    Ok((Some(Box::new(reader)), Some(w)))
}

/// The server's and the container's end of an input stream.
fn input(wanted: bool) -> Result<(Option<Writer>, Option<OwnedFd>), String> {
    if !wanted {
        return Ok((None, None));
    }
    let (r, w) = sys::pipe().map_err(text)?;
    sys::set_nonblocking(w.as_fd(), true).map_err(text)?;
    let writer = pipe::Sender::from_owned_fd(w).map_err(text)?;
    Ok((Some(Box::new(writer)), Some(r)))
}

/// What the backend is for the streaming server.
pub(crate) struct Backend(pub Arc<Runtime>);

#[async_trait::async_trait]
impl StreamBackend for Backend {
    async fn exec(&self, r: &v1::ExecRequest) -> Result<Session, String> {
        let message = |e: tonic::Status| e.message().to_string();
        if r.tty {
            let stdio = [None, None, None];
            let mut handle = self
                .0
                .exec(&r.container_id, &r.cmd, true, stdio)
                .await
                .map_err(message)?;
            let master = handle.master.take().ok_or("the shim sent no terminal")?;
            sys::set_nonblocking(master.as_fd(), true).map_err(text)?;
            let tty = Arc::new(sys::async_fd(master).map_err(text)?);
            let (resize, mut sizes) = mpsc::unbounded_channel::<TerminalSize>();
            let weak = Arc::downgrade(&tty);
            tokio::spawn(async move {
                while let Some(s) = sizes.recv().await {
                    let Some(tty) = weak.upgrade() else { break };
                    let _ = sys::set_winsize(tty.get_ref().as_fd(), s.width, s.height);
                }
            });
            return Ok(Session {
                stdin: r.stdin.then(|| Box::new(Tty(tty.clone())) as Writer),
                // The output is read even if nobody wants it: a full terminal would stop the process.
                stdout: Some(Box::new(Tty(tty))),
                stderr: None,
                resize: Some(resize),
                exit: Box::pin(async move { handle.wait().await.map_err(text) }),
            });
        }
        let (stdin, stdin_r) = input(r.stdin)?;
        let (stdout, stdout_w) = output(r.stdout)?;
        let (stderr, stderr_w) = output(r.stderr)?;
        let stdio = [stdin_r, stdout_w, stderr_w];
        let mut handle = self
            .0
            .exec(&r.container_id, &r.cmd, false, stdio)
            .await
            .map_err(message)?;
        let exit = Box::pin(async move { handle.wait().await.map_err(text) });
        Ok(Session {
            stdin,
            stdout,
            stderr,
            resize: None,
            exit,
        })
    }

    async fn attach(&self, r: &v1::AttachRequest) -> Result<Session, String> {
        let (c, sandbox) = self
            .0
            .running(&r.container_id)
            .map_err(|e| e.message().to_string())?;
        let tty = c.config.tty;
        let (stdin, stdin_r) = input(r.stdin && c.config.stdin)?;
        let (stdout, stdout_w) = output(r.stdout)?;
        let (stderr, stderr_w) = output(r.stderr && !tty)?;
        sandbox
            .shim
            .attach(&c.id, [stdin_r, stdout_w, stderr_w])
            .await
            .map_err(text)?;
        let resize = tty.then(|| {
            let (resize, mut sizes) = mpsc::unbounded_channel::<TerminalSize>();
            let (shim, id) = (sandbox.shim.clone(), c.id.clone());
            tokio::spawn(async move {
                while let Some(s) = sizes.recv().await {
                    if shim.resize(&id, s.width, s.height).await.is_err() {
                        break;
                    }
                }
            });
            resize
        });
        let exit = Box::pin(async move {
            c.ended().await;
            Ok(0)
        });
        Ok(Session {
            stdin,
            stdout,
            stderr,
            resize,
            exit,
        })
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>, String> {
        let sandbox = self
            .0
            .sandbox(sandbox_id)
            .map_err(|e| e.message().to_string())?;
        let mut refused = Vec::new();
        for (name, address) in [
            ("IPv4: dial tcp4", SocketAddr::from(([127, 0, 0, 1], port))),
            (
                "IPv6 dial tcp6",
                SocketAddr::from(([0u16, 0, 0, 0, 0, 0, 0, 1], port)),
            ),
        ] {
            let fd = sandbox.shim.socket(address.is_ipv6()).await.map_err(text)?;
            let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
            match socket.connect(address).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(Box::new(stream));
                }
                Err(e) => refused.push(format!(
                    "{name} {address}: connect: {}",
                    crate::container::rootfs::os_text(&e)
                )),
            }
        }
        Err(format!(
            "failed to connect to localhost:{port} inside namespace {sandbox_id:?}, {}",
            refused.join(" ")
        ))
    }
}
