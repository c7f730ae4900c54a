//! Owns a SPDY connection over any byte stream: streams, their order, their ends. Must not know what they carry.
//!
//! There is no SPDY flow control, on purpose: moby/spdystream, which is kubectl, kubelet and all of client-go, neither
//! sends nor heeds WINDOW_UPDATE, and a sender that waits for one waits for ever. A slow reader holds back the whole
//! connection through TCP instead, as it does upstream.

use super::spdy::{
    Decoder, Encoder, Frame, Headers, RST_CANCEL, RST_PROTOCOL_ERROR, RST_REFUSED_STREAM, StreamId,
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Pieces of data that wait for a stream's reader before the connection is held back.
const STREAM_QUEUE: usize = 64;
/// Frames that wait to be written.
const WRITE_QUEUE: usize = 32;
/// Data frames are cut so that streams take turns.
const MAX_DATA: usize = 32 * 1024;
/// Open streams on one connection; upstream has no limit, memory does.
const MAX_STREAMS: usize = 10_000;

/// Looks at a new stream's headers; an error refuses it.
pub type Accept = Box<dyn Fn(StreamId, &Headers) -> Result<(), String> + Send + Sync>;

/// One side of a connection.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    out: mpsc::Sender<Frame>,
    /// Answers to the peer's own frames: they must not wait behind data that the peer is not reading.
    answers: mpsc::UnboundedSender<Frame>,
    streams: Mutex<HashMap<StreamId, Incoming>>,
    /// Cancelled when the connection is over, for whatever reason.
    closed: CancellationToken,
    /// Asks the writer to finish what is queued and end.
    ending: CancellationToken,
    next_id: Mutex<StreamId>,
}

/// What the reader keeps of a stream.
struct Incoming {
    data: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
    local_fin: bool,
}

/// A stream: read with `data`, write with `writer`.
pub struct Stream {
    pub id: StreamId,
    pub headers: Headers,
    /// Closed at the peer's end of the stream, a reset, or the end of the connection.
    pub data: mpsc::Receiver<Bytes>,
    pub writer: StreamWriter,
}

/// The writing half.
#[derive(Clone)]
pub struct StreamWriter {
    id: StreamId,
    shared: Arc<Shared>,
    reset: CancellationToken,
}

impl Connection {
    /// Run the connection over `io`. New streams of the peer, accepted and answered, come from the receiver, which ends
    /// with the connection.
    pub fn new(
        io: impl AsyncRead + AsyncWrite + Send + 'static,
        server: bool,
        accept: Accept,
    ) -> (Self, mpsc::Receiver<Stream>) {
        let (reader, writer) = tokio::io::split(io);
        let (out, out_rx) = mpsc::channel(WRITE_QUEUE);
        let (answers, answers_rx) = mpsc::unbounded_channel();
        let (streams_tx, streams_rx) = mpsc::channel(16);
        let shared = Arc::new(Shared {
            out,
            answers,
            streams: Mutex::default(),
            closed: CancellationToken::new(),
            ending: CancellationToken::new(),
            next_id: Mutex::new(if server { 2 } else { 1 }),
        });
        let (closed, ending) = (shared.closed.clone(), shared.ending.clone());
        tokio::spawn(async move {
            if let Err(e) = write_loop(writer, out_rx, answers_rx, &closed, &ending).await {
                tracing::debug!(error = %e, "SPDY write");
            }
            closed.cancel();
        });
        let s = shared.clone();
        tokio::spawn(async move {
            let closed = s.closed.clone();
            tokio::select! {
                r = s.read_loop(reader, server, accept, streams_tx) => if let Err(e) = r {
                    tracing::debug!(error = %e, "SPDY read");
                },
                () = closed.cancelled() => {}
            }
            closed.cancel();
            // Ends every stream's data.
            for (_, i) in s.streams.lock().drain() {
                i.reset.cancel();
            }
        });
        (Connection { shared }, streams_rx)
    }

    /// Open a stream (the client's part).
    pub async fn open(&self, headers: Headers) -> io::Result<Stream> {
        let id = {
            let mut n = self.shared.next_id.lock();
            let id = *n;
            *n += 2;
            id
        };
        let stream = self.shared.add(id, headers.clone(), false, false);
        self.shared
            .send(Frame::SynStream {
                id,
                fin: false,
                unidirectional: false,
                headers,
            })
            .await?;
        Ok(stream)
    }

    /// Ends when the connection is over.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Say goodbye, let queued frames go out, and give the peer `grace` to close; then cut.
    pub async fn close(&self, grace: std::time::Duration) {
        let last = self
            .shared
            .streams
            .lock()
            .keys()
            .copied()
            .max()
            .unwrap_or(0);
        let _ = self.shared.send(Frame::GoAway { last, status: 0 }).await;
        let _ = tokio::time::timeout(grace, self.shared.closed.cancelled()).await;
        self.shared.ending.cancel();
        let _ = tokio::time::timeout(
            std::time::Duration::from_secs(1),
            self.shared.closed.cancelled(),
        )
        .await;
        self.shared.closed.cancel();
    }
}

impl Shared {
    async fn send(&self, f: Frame) -> io::Result<()> {
        tokio::select! {
            r = self.out.send(f) => r.map_err(|_| io::ErrorKind::BrokenPipe.into()),
            () = self.closed.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn add(
        self: &Arc<Self>,
        id: StreamId,
        headers: Headers,
        remote_fin: bool,
        local_fin: bool,
    ) -> Stream {
        let (tx, data) = mpsc::channel(STREAM_QUEUE);
        let reset = CancellationToken::new();
        let incoming = Incoming {
            data: (!remote_fin).then_some(tx),
            reset: reset.clone(),
            local_fin,
        };
        self.streams.lock().insert(id, incoming);
        Stream {
            id,
            headers,
            data,
            writer: StreamWriter {
                id,
                shared: self.clone(),
                reset,
            },
        }
    }

    /// Note an end; a stream with both ends is forgotten.
    fn ended(&self, id: StreamId, remote: bool) {
        let mut streams = self.streams.lock();
        let Some(s) = streams.get_mut(&id) else {
            return;
        };
        if remote {
            s.data = None;
        } else {
            s.local_fin = true;
        }
        if s.data.is_none() && s.local_fin {
            streams.remove(&id);
        }
    }

    async fn read_loop(
        self: &Arc<Self>,
        mut io: impl AsyncRead + Unpin,
        server: bool,
        accept: Accept,
        new: mpsc::Sender<Stream>,
    ) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut last_id = 0;
        let mine = |id: StreamId| id.is_multiple_of(2) == server;
        loop {
            while let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
                match frame {
                    Frame::SynStream {
                        id,
                        fin,
                        unidirectional,
                        headers,
                    } => {
                        let answer = |f| {
                            self.answers
                                .send(f)
                                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
                        };
                        if mine(id) || id <= last_id {
                            answer(Frame::RstStream {
                                id,
                                status: RST_PROTOCOL_ERROR,
                            })?;
                            continue;
                        }
                        last_id = id;
                        let full = self.streams.lock().len() >= MAX_STREAMS;
                        if let Err(e) = accept(id, &headers).and_then(|()| {
                            if full {
                                Err("too many streams".into())
                            } else {
                                Ok(())
                            }
                        }) {
                            tracing::debug!(stream = id, error = %e, "SPDY stream refused");
                            answer(Frame::RstStream {
                                id,
                                status: if full { RST_REFUSED_STREAM } else { RST_CANCEL },
                            })?;
                            continue;
                        }
                        let stream = self.add(id, headers, fin, unidirectional);
                        answer(Frame::SynReply {
                            id,
                            fin: unidirectional,
                            headers: Headers::new(),
                        })?;
                        if new.send(stream).await.is_err() {
                            return Ok(());
                        }
                    }
                    Frame::Data { id, fin, data } => {
                        let to = self.streams.lock().get(&id).and_then(|s| s.data.clone());
                        if let Some(to) = to
                            && !data.is_empty()
                            && to.send(data).await.is_err()
                        {
                            // Nobody reads this stream any more: drop what comes, as upstream does.
                        }
                        if fin {
                            self.ended(id, true);
                        }
                    }
                    Frame::RstStream { id, .. } => {
                        if let Some(s) = self.streams.lock().remove(&id) {
                            s.reset.cancel();
                        }
                    }
                    Frame::SynReply { id, fin: true, .. }
                    | Frame::Headers { id, fin: true, .. } => self.ended(id, true),
                    // Each side numbers its own pings like its streams; the other side's come back unchanged.
                    Frame::Ping(id) if (id % 2 == 1) == server => {
                        self.answers
                            .send(Frame::Ping(id))
                            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
                    }
                    // After GOAWAY no new streams come; the old ones go on until the peer closes.
                    _ => {}
                }
            }
            if io.read_buf(&mut decoder.buffer).await? == 0 {
                return Ok(());
            }
        }
    }
}

async fn write_loop(
    mut io: impl AsyncWrite + Unpin,
    mut out: mpsc::Receiver<Frame>,
    mut answers: mpsc::UnboundedReceiver<Frame>,
    closed: &CancellationToken,
    ending: &CancellationToken,
) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut buf = BytesMut::new();
    loop {
        let frame = tokio::select! {
            biased;
            () = closed.cancelled() => return Ok(()),
            Some(f) = answers.recv() => f,
            Some(f) = out.recv() => f,
            () = ending.cancelled() => return io.shutdown().await,
            else => return io.shutdown().await,
        };
        encoder.encode(&frame, &mut buf).map_err(io::Error::other)?;
        // Write together what is ready together.
        while buf.len() < MAX_DATA {
            let Ok(f) = answers.try_recv().or_else(|_| out.try_recv()) else {
                break;
            };
            encoder.encode(&f, &mut buf).map_err(io::Error::other)?;
        }
        tokio::select! {
            r = io.write_all(&buf) => r?,
            () = closed.cancelled() => return Ok(()),
        }
        buf.clear();
        io.flush().await?;
    }
}

impl StreamWriter {
    /// Send data; an error means that the stream was reset or the connection is over.
    pub async fn write(&self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            let data = data.split_to(data.len().min(MAX_DATA));
            tokio::select! {
                biased;
                () = self.reset.cancelled() => return Err(io::ErrorKind::ConnectionReset.into()),
                r = self.shared.send(Frame::Data { id: self.id, fin: false, data }) => r?,
            }
        }
        Ok(())
    }

    /// No more data from this side.
    pub async fn finish(&self) {
        if !self.reset.is_cancelled() {
            let _ = self
                .shared
                .send(Frame::Data {
                    id: self.id,
                    fin: true,
                    data: Bytes::new(),
                })
                .await;
        }
        self.shared.ended(self.id, false);
    }
}
