//! Owns exec and attach: joins a client's streams (SPDY or WebSocket) with a container's, and reports the end. Must not
//! know how the container's streams are made.

use super::backend::{Reader, Session, TerminalSize, Writer};
use super::connection::{Connection, Stream, StreamWriter};
use super::spdy::header;
use super::websocket::{ChannelWriter, Channels, Protocol};
use bytes::{Bytes, BytesMut};
use serde_json::json;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Upstream's DefaultStreamCreationTimeout.
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// After the process has ended, how long an open but silent output is waited for: something that the command left
/// running in the background may hold it for ever.
const DRAIN: Duration = Duration::from_secs(2);
/// How long the client may take to close after it was told the result.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Which streams a request has.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What is being done: words of error texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Exec,
    Attach,
}

/// A way to the client for one kind of output.
enum Sink {
    Spdy(StreamWriter),
    Channel(ChannelWriter),
}

impl Sink {
    async fn write(&self, data: &[u8]) -> io::Result<()> {
        match self {
            Sink::Spdy(w) => w.write(Bytes::copy_from_slice(data)).await,
            Sink::Channel(w) => w.write(data).await,
        }
    }

    async fn finish(&self) {
        if let Sink::Spdy(w) = self {
            w.finish().await;
        }
    }
}

/// The client's side, whatever the protocol.
struct Client {
    stdin: Option<mpsc::Receiver<Bytes>>,
    resize: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    error: Sink,
    /// 4 and newer get a Status, older ones a text.
    version: u8,
    gone: CancellationToken,
}

/// Serve over SPDY: the client opens its streams first.
pub async fn serve_spdy(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    version: u8,
    options: Options,
    kind: Kind,
    start: impl Future<Output = Result<Session, String>>,
) {
    let (connection, mut streams) = Connection::new(io, true, Box::new(|_, _| Ok(())));
    let mut expected =
        1 + usize::from(options.stdin) + usize::from(options.stdout) + usize::from(options.stderr);
    if options.tty && version >= 3 {
        expected += 1;
    }
    let gone = CancellationToken::new();
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    let collect = async {
        let mut n = 0;
        while n < expected {
            let Some(Stream {
                headers,
                data,
                writer,
                ..
            }) = streams.recv().await
            else {
                return false;
            };
            match header(&headers, "streamtype") {
                Some("error") => error = Some(writer),
                // Each side of a stream ends by itself; ours of an input has nothing to say.
                Some("stdin") => {
                    if version == 1 {
                        writer.finish().await;
                    }
                    stdin = Some((data, writer));
                }
                Some("stdout") => stdout = Some(writer),
                Some("stderr") => stderr = Some(writer),
                Some("resize") => resize = Some((data, writer)),
                other => {
                    tracing::debug!(stream = ?other, "unexpected stream type");
                    continue;
                }
            }
            n += 1;
        }
        true
    };
    let complete = tokio::time::timeout(STREAM_CREATION_TIMEOUT, collect).await;
    let Some(error) = error.filter(|_| complete == Ok(true)) else {
        tracing::debug!("the client did not create its streams");
        connection.close(Duration::ZERO).await;
        return;
    };
    let watch = {
        let (connection, gone) = (connection.clone(), gone.clone());
        tokio::spawn(async move {
            connection.closed().await;
            gone.cancel();
        })
    };
    let inputs: Vec<StreamWriter> = [&stdin, &resize]
        .into_iter()
        .flatten()
        .map(|(_, w)| w.clone())
        .collect();
    let client = Client {
        stdin: stdin.map(|(d, _)| d),
        resize: resize.map(|(d, _)| d),
        stdout: stdout.map(Sink::Spdy),
        stderr: stderr.map(Sink::Spdy),
        error: Sink::Spdy(error),
        version,
        gone,
    };
    run(client, kind, start).await;
    for w in inputs {
        w.finish().await;
    }
    connection.close(CLOSE_GRACE).await;
    watch.abort();
}

/// Serve over WebSocket channels: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize.
pub async fn serve_websocket(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    protocol: Protocol,
    options: Options,
    kind: Kind,
    start: impl Future<Output = Result<Session, String>>,
) {
    let inputs: &[u8] = if options.stdin { &[0, 4] } else { &[4] };
    let mut channels = Channels::new(io, protocol, inputs).await;
    // Upstream tells the client with an empty message that the connection stands.
    let hello = if options.stdout {
        1
    } else if options.stderr {
        2
    } else {
        3
    };
    let _ = channels.output(hello).write(b"").await;
    let client = Client {
        stdin: channels.input(0),
        resize: channels.input(4),
        stdout: options.stdout.then(|| Sink::Channel(channels.output(1))),
        stderr: options.stderr.then(|| Sink::Channel(channels.output(2))),
        error: Sink::Channel(channels.output(3)),
        version: protocol.version,
        gone: channels.gone.clone(),
    };
    run(client, kind, start).await;
    channels.close().await;
}

async fn run(client: Client, kind: Kind, start: impl Future<Output = Result<Session, String>>) {
    let Client {
        stdin,
        resize,
        stdout,
        stderr,
        error,
        version,
        gone,
    } = client;
    let result = match start.await {
        Err(e) => Err(e),
        Ok(session) => {
            let streams = pump(session, stdin, resize, &stdout, &stderr);
            tokio::select! {
                r = streams => r,
                // Nobody to tell. Dropping the session is for the backend to understand.
                () = gone.cancelled() => return,
            }
        }
    };
    for s in [&stdout, &stderr].into_iter().flatten() {
        s.finish().await;
    }
    if let Some(text) = status(&result, kind, version) {
        let _ = error.write(text.as_bytes()).await;
    }
    error.finish().await;
}

/// Move bytes until the process has ended and its output is delivered. Returns the exit code.
async fn pump(
    session: Session,
    stdin: Option<mpsc::Receiver<Bytes>>,
    resize: Option<mpsc::Receiver<Bytes>>,
    stdout: &Option<Sink>,
    stderr: &Option<Sink>,
) -> Result<i32, String> {
    let ended = CancellationToken::new();
    let output = async {
        tokio::join!(
            copy_out(session.stdout, stdout, &ended),
            copy_out(session.stderr, stderr, &ended)
        );
    };
    let exit = async {
        let r = session.exit.await;
        ended.cancel();
        r
    };
    let input = async {
        tokio::join!(
            copy_in(stdin, session.stdin),
            copy_resize(resize, session.resize)
        );
        // Input may end long before the process does.
        std::future::pending::<()>().await
    };
    tokio::select! {
        (r, ()) = async { tokio::join!(exit, output) } => r,
        () = input => Ok(0),
    }
}

async fn copy_out(from: Option<Reader>, to: &Option<Sink>, ended: &CancellationToken) {
    let Some(mut from) = from else { return };
    let mut buf = vec![0u8; 32 * 1024];
    loop {
        let n = tokio::select! {
            biased;
            n = from.read(&mut buf) => n,
            // Only waiting for more counts: a slow client gets all there is.
            () = async { ended.cancelled().await; tokio::time::sleep(DRAIN).await } => return,
        };
        let Ok(n @ 1..) = n else { break };
        if let Some(to) = to
            && to.write(&buf[..n]).await.is_err()
        {
            // The client closed this stream only; what the process writes must still go somewhere.
            while matches!(from.read(&mut buf).await, Ok(1..)) {}
            return;
        }
    }
    if let Some(to) = to {
        to.finish().await;
    }
}

async fn copy_in(from: Option<mpsc::Receiver<Bytes>>, to: Option<Writer>) {
    let (Some(mut from), Some(mut to)) = (from, to) else {
        return;
    };
    while let Some(data) = from.recv().await {
        if to.write_all(&data).await.is_err() {
            // The process closed its input; its output may go on. Take and drop the rest, so that the client and the
            // connection's other streams are not held up.
            while from.recv().await.is_some() {}
            return;
        }
        let _ = to.flush().await;
    }
    let _ = to.shutdown().await;
}

/// Sizes come as JSON objects one after another, cut anywhere.
async fn copy_resize(
    from: Option<mpsc::Receiver<Bytes>>,
    to: Option<mpsc::UnboundedSender<TerminalSize>>,
) {
    let Some(mut from) = from else { return };
    let mut buf = BytesMut::new();
    while let Some(data) = from.recv().await {
        buf.extend_from_slice(&data);
        let (sizes, used) = parse_sizes(&buf);
        let _ = buf.split_to(used);
        for s in sizes {
            if let Some(to) = &to {
                let _ = to.send(s);
            }
        }
        if buf.len() > 4096 {
            return; // no size is this long
        }
    }
}

fn parse_sizes(buf: &[u8]) -> (Vec<TerminalSize>, usize) {
    let mut out = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(buf).into_iter::<TerminalSize>();
    let mut used = 0;
    loop {
        match stream.next() {
            Some(Ok(s)) => {
                out.push(s);
                used = stream.byte_offset();
            }
            Some(Err(e)) if e.is_eof() => return (out, used),
            // Not JSON: nothing of it can be used.
            Some(Err(_)) => return (out, buf.len()),
            None => return (out, buf.len()),
        }
    }
}

/// What the error stream says: a metav1.Status since v4, before that a text, and nothing for success.
fn status(result: &Result<i32, String>, kind: Kind, version: u8) -> Option<String> {
    let value = match result {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(e) => {
            let doing = if kind == Kind::Exec {
                "executing command in"
            } else {
                "attaching to"
            };
            let text = format!("error {doing} container: {e}");
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {text}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": text }] },
                "code": 500,
            })
        }
    };
    if version >= 4 {
        return Some(value.to_string());
    }
    value
        .get("message")
        .and_then(|m| m.as_str())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_non_zero_exit_code_is_a_cause_of_the_status() {
        let s: serde_json::Value =
            serde_json::from_str(&status(&Ok(7), Kind::Exec, 4).unwrap()).unwrap();
        assert_eq!(
            s["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "7"})
        );
        assert_eq!(s["reason"], "NonZeroExitCode");
        assert_eq!(status(&Ok(0), Kind::Exec, 1), None);
        let e = status(&Err("no such file".into()), Kind::Attach, 1).unwrap();
        assert_eq!(
            e,
            "Internal error occurred: error attaching to container: no such file"
        );
    }

    #[test]
    fn sizes_may_come_in_pieces() {
        let (s, used) = parse_sizes(br#"{"Width":80,"Height":24}{"Width":1,"Hei"#);
        assert_eq!(
            s,
            [TerminalSize {
                width: 80,
                height: 24
            }]
        );
        assert_eq!(used, 24);
        assert_eq!(parse_sizes(b"nonsense").1, 8);
    }
}
