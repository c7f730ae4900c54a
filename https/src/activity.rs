//! What goes on on one connection, and when it has to end: nothing for too long, a head that does not come to its end, an
//! answer that is not taken. Owns the times; a request costs a few atomic writes, an idle connection one timer.

use crate::LongRunning;
use crate::doors::Pass;
use crate::serve::Settings;
use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Counters of one connection.
pub(crate) struct Activity {
    origin: Instant,
    /// Requests that are not answered to the end.
    open: AtomicUsize,
    /// Answers on their way that may not take any time.
    sending: AtomicUsize,
    /// The client does not take what is to be written.
    blocked: AtomicBool,
    /// When something was last begun, ended or taken: milliseconds since `origin`.
    last: AtomicU64,
    /// When the first byte of a head came, plus one; 0 when no head is being read.
    head: AtomicU64,
    /// Whoever changes something has to wake the supervisor.
    parked: AtomicBool,
    goodbye: AtomicBool,
    changed: Notify,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It did nothing for a while, or the client had better come again: what is open may end.
    Idle,
    /// The client holds us up.
    Stuck(&'static str),
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            open: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
            last: AtomicU64::new(0),
            head: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            goodbye: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn touch(&self) {
        self.last.store(self.now(), SeqCst);
    }

    fn wrote(&self, blocked: bool) {
        if blocked {
            self.blocked.store(true, SeqCst);
        } else {
            self.blocked.store(false, SeqCst);
            self.touch();
        }
    }

    fn wake_if_parked(&self) {
        if self.parked.load(SeqCst) {
            self.changed.notify_one();
        }
    }

    /// A request has been read.
    pub(crate) fn begin(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, SeqCst);
        self.head.store(0, SeqCst);
        self.touch();
        Open {
            activity: self.clone(),
            sending: false,
        }
    }

    /// No more requests are wanted on this connection.
    pub(crate) fn goodbye(&self) {
        self.goodbye.store(true, SeqCst);
        self.changed.notify_one();
    }

    /// Resolves when the connection has to end. `heads`: whether bytes between requests begin a head (HTTP/1), rather than
    /// being frames of any kind.
    pub(crate) async fn overdue(&self, s: &Settings, heads: bool) -> End {
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        loop {
            if self.goodbye.load(SeqCst) {
                return End::Idle;
            }
            let (open, sending) = (self.open.load(SeqCst), self.sending.load(SeqCst));
            let (last, head) = (self.last.load(SeqCst), self.head.load(SeqCst));
            let (deadline, end) = if open == 0 && heads && head != 0 {
                let until = (head - 1).saturating_add(millis(s.head));
                (until, End::Stuck("a request's head was not sent in time"))
            } else if open == 0 && !self.blocked.load(SeqCst) {
                (last.saturating_add(millis(s.idle)), End::Idle)
            } else if open == 0 || sending > 0 {
                let until = last.saturating_add(millis(s.stall));
                (until, End::Stuck("an answer was not taken in time"))
            } else {
                // Nothing here has an end in sight: no timer, whoever changes that says so.
                self.parked.store(true, SeqCst);
                if self.open.load(SeqCst) != 0 && self.sending.load(SeqCst) == 0 {
                    self.changed.notified().await;
                }
                self.parked.store(false, SeqCst);
                continue;
            };
            let now = self.now();
            if deadline <= now {
                return end;
            }
            let wait = std::time::Duration::from_millis(deadline - now);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Resolves when nothing is open any more, or what is open is stuck.
    pub(crate) async fn finished(&self, stall: std::time::Duration) {
        let stall = u64::try_from(stall.as_millis()).unwrap_or(u64::MAX);
        loop {
            if self.open.load(SeqCst) == 0 {
                return;
            }
            if self.sending.load(SeqCst) > 0 {
                let until = self.last.load(SeqCst).saturating_add(stall);
                let Some(wait) = until.checked_sub(self.now()).filter(|w| *w > 0) else {
                    return;
                };
                tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
                continue;
            }
            self.parked.store(true, SeqCst);
            if self.open.load(SeqCst) != 0 && self.sending.load(SeqCst) == 0 {
                self.changed.notified().await;
            }
            self.parked.store(false, SeqCst);
        }
    }
}

/// A request until the end of its answer.
pub(crate) struct Open {
    activity: Arc<Activity>,
    sending: bool,
}

impl Open {
    /// The answer is there and goes out now.
    pub(crate) fn answer<B>(mut self, response: Response<B>) -> Response<Counted<B>> {
        if response.extensions().get::<LongRunning>().is_none() {
            self.sending = true;
            self.activity.sending.fetch_add(1, SeqCst);
        }
        self.activity.touch();
        self.activity.wake_if_parked();
        response.map(|inner| Counted { inner, open: self })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.activity.touch();
        if self.sending {
            self.activity.sending.fetch_sub(1, SeqCst);
        }
        self.activity.open.fetch_sub(1, SeqCst);
        self.activity.wake_if_parked();
    }
}

/// An answer's body whose progress is seen.
pub(crate) struct Counted<B> {
    inner: B,
    open: Open,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.open.sending {
            self.open.activity.touch();
        }
        Pin::new(&mut self.inner).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The bytes of a connection. It holds the connection's place, also when it was taken over by another protocol.
pub(crate) struct Io<T> {
    inner: T,
    activity: Arc<Activity>,
    /// The head that the supervisor was told of.
    told: u64,
    _pass: Arc<Pass>,
}

impl<T> Io<T> {
    pub(crate) fn new(inner: T, activity: Arc<Activity>, pass: Arc<Pass>) -> Self {
        Self {
            inner,
            activity,
            told: 0,
            _pass: pass,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Io<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        let a = &self.activity;
        if a.open.load(SeqCst) == 0 {
            let head = a.head.load(SeqCst);
            if polled.is_ready() && head == 0 && buf.filled().len() > before {
                a.head.store(a.now() + 1, SeqCst);
            } else if polled.is_pending() && head != 0 && head != self.told {
                // The head did not come whole: its time counts.
                a.changed.notify_one();
                self.told = head;
            }
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Io<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.activity.wrote(polled.is_pending());
        polled
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.activity.wrote(polled.is_pending());
        polled
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
