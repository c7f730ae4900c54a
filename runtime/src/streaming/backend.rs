//! Owns the seam between the streaming protocols and containers. Must not know either side's details.

use futures::future::BoxFuture;
use k8s_cri::v1;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A byte stream out of a container.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// A byte stream into a container.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection into a pod.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What the other side says its window is. JSON as client-go's TerminalSize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct TerminalSize {
    #[serde(rename = "Width")]
    pub width: u16,
    #[serde(rename = "Height")]
    pub height: u16,
}

/// A started exec, or an attachment. Dropping it means that the client went away.
pub struct Session {
    /// The process' standard input; dropped at the client's end of file. None if the request has no stdin.
    pub stdin: Option<Writer>,
    /// Standard output (of a terminal: all its output).
    pub stdout: Option<Reader>,
    pub stderr: Option<Reader>,
    /// Sizes of the client's window, for terminals.
    pub resize: Option<mpsc::UnboundedSender<TerminalSize>>,
    /// Exec: the exit code (128 + signal for signals), or why it is not known.
    /// Attach: ends with Ok(0) when the container has ended.
    pub exit: BoxFuture<'static, Result<i32, String>>,
}

/// Gives the streams of containers.
#[async_trait::async_trait]
pub trait StreamBackend: Send + Sync + 'static {
    /// Start a command. The request has been checked: an id, a command, at least one stream, no stderr with a tty.
    /// An error is the text that the user sees.
    async fn exec(&self, request: &v1::ExecRequest) -> Result<Session, String>;
    /// Attach to a container's first process.
    async fn attach(&self, request: &v1::AttachRequest) -> Result<Session, String>;
    /// Connect to a TCP port on the loopback of the pod's network namespace.
    async fn port_forward(
        &self,
        pod_sandbox_id: &str,
        port: u16,
    ) -> Result<Box<dyn Duplex>, String>;
}
