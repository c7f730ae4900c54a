//! Clients of every protocol against a backend made of pipes. Shapes of requests are kubectl's.

use super::backend::{Duplex, Session, TerminalSize};
use super::connection::{Connection, Stream};
use super::*;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

/// exec `cat`: stdin comes back on stdout, in capitals on stderr; ends with stdin. `exit N`: ends with N.
/// `sizes`: writes each window size. `big`: writes 5 MB. `background`: ends, and something keeps stdout open.
/// `fail`: does not start. Attach is `cat`. Port 80 echoes; port 81 says hello and ends; port 82 refuses.
struct Pipes;

fn boxed<T: AsyncRead + Send + Unpin + 'static>(t: T) -> Option<backend::Reader> {
    Some(Box::new(t))
}

impl Pipes {
    fn cat(stdin: bool) -> Session {
        let (stdin_r, stdin_w) = tokio::io::duplex(1000);
        let (out_r, mut out_w) = tokio::io::duplex(1000);
        let (err_r, mut err_w) = tokio::io::duplex(1000);
        let exit = tokio::spawn(async move {
            let (mut stdin_r, mut buf) = (stdin_r, vec![0; 777]);
            while let Ok(n @ 1..) = stdin_r.read(&mut buf).await {
                out_w.write_all(&buf[..n]).await.unwrap();
                err_w
                    .write_all(&buf[..n].to_ascii_uppercase())
                    .await
                    .unwrap();
            }
        });
        Session {
            stdin: stdin.then_some(Box::new(stdin_w)),
            stdout: boxed(out_r),
            stderr: boxed(err_r),
            resize: None,
            exit: Box::pin(async move { exit.await.map(|()| 0).map_err(|e| e.to_string()) }),
        }
    }
}

#[async_trait::async_trait]
impl StreamBackend for Pipes {
    async fn exec(&self, r: &v1::ExecRequest) -> Result<Session, String> {
        let empty = || boxed(tokio::io::empty());
        let session =
            |stdout, exit: futures::future::BoxFuture<'static, Result<i32, String>>| Session {
                stdin: None,
                stdout,
                stderr: empty(),
                resize: None,
                exit,
            };
        Ok(match r.cmd[0].as_str() {
            "cat" => Pipes::cat(r.stdin),
            "exit" => {
                let code = r.cmd[1].parse().unwrap();
                session(empty(), Box::pin(async move { Ok(code) }))
            }
            "big" => {
                let (out_r, mut out_w) = tokio::io::duplex(60_000);
                let work = tokio::spawn(async move {
                    let _ = out_w.write_all(&vec![b'x'; 5_000_000]).await;
                });
                session(
                    boxed(out_r),
                    Box::pin(async move { work.await.map(|()| 0).map_err(|e| e.to_string()) }),
                )
            }
            "background" => {
                let (out_r, mut out_w) = tokio::io::duplex(1000);
                out_w.write_all(b"started").await.unwrap();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(100)).await;
                    drop(out_w);
                });
                session(boxed(out_r), Box::pin(async { Ok(0) }))
            }
            "sizes" => {
                let (tx, mut rx) = mpsc::unbounded_channel::<TerminalSize>();
                let (out_r, mut out_w) = tokio::io::duplex(1000);
                let work = async move {
                    for _ in 0..2 {
                        let s = rx.recv().await.unwrap();
                        out_w
                            .write_all(format!("{}x{} ", s.width, s.height).as_bytes())
                            .await
                            .unwrap();
                    }
                    Ok(0)
                };
                Session {
                    resize: Some(tx),
                    ..session(boxed(out_r), Box::pin(work))
                }
            }
            _ => return Err("exec: \"fail\": executable file not found in $PATH".into()),
        })
    }

    async fn attach(&self, r: &v1::AttachRequest) -> Result<Session, String> {
        Ok(Pipes::cat(r.stdin))
    }

    async fn port_forward(&self, pod: &str, port: u16) -> Result<Box<dyn Duplex>, String> {
        assert_eq!(pod, "pod");
        let (ours, mut theirs) = tokio::io::duplex(10_000);
        match port {
            80 => drop(tokio::spawn(async move {
                let mut buf = vec![0; 999];
                while let Ok(n @ 1..) = theirs.read(&mut buf).await {
                    theirs.write_all(&buf[..n]).await.unwrap();
                }
            })),
            81 => theirs.write_all(b"hello").await.unwrap(),
            _ => return Err(format!("connect to 127.0.0.1:{port}: Connection refused")),
        }
        Ok(Box::new(ours))
    }
}

pub(super) async fn server() -> (Arc<StreamServer>, tokio_util::sync::DropGuard) {
    let cancel = CancellationToken::new();
    let s = StreamServer::start(Arc::new(Pipes), cancel.clone())
        .await
        .unwrap();
    (s, cancel.drop_guard())
}

fn exec(cmd: &[&str], stdin: bool, tty: bool) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: "c".into(),
        cmd: cmd.iter().map(|s| s.to_string()).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    }
}

fn port_forward() -> v1::PortForwardRequest {
    v1::PortForwardRequest {
        pod_sandbox_id: "pod".into(),
        port: vec![80],
    }
}

/// Send an HTTP request by hand and read the head of the answer: status and headers in lower case.
async fn request(url: &str, headers: &str) -> (TcpStream, u16, String) {
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let mut s = TcpStream::connect(host).await.unwrap();
    s.write_all(
        format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n{headers}\r\n")
            .as_bytes(),
    )
    .await
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(s.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (s, status, head)
}

const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

async fn spdy(url: &str, protocols: &[&str]) -> Connection {
    let asked: String = protocols
        .iter()
        .map(|p| format!("X-Stream-Protocol-Version: {p}\r\n"))
        .collect();
    let (io, status, head) = request(url, &format!("{SPDY}{asked}")).await;
    assert_eq!(status, 101, "{head}");
    if let Some(p) = protocols.first() {
        assert!(
            head.contains(&format!("x-stream-protocol-version: {p}\r\n")),
            "{head}"
        );
    }
    Connection::new(
        io,
        false,
        Box::new(|_, _| Err("a server opens no streams".into())),
    )
    .0
}

async fn open(c: &Connection, kind: &str) -> Stream {
    c.open(vec![("streamType".into(), kind.into())])
        .await
        .unwrap()
}

async fn all(s: &mut Stream) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(b) = s.data.recv().await {
        out.extend_from_slice(&b);
    }
    out
}

async fn ws(
    url: &str,
    protocols: &str,
) -> tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>> {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let mut req = url
        .replace("http://", "ws://")
        .into_client_request()
        .unwrap();
    if !protocols.is_empty() {
        req.headers_mut()
            .insert("sec-websocket-protocol", protocols.parse().unwrap());
    }
    tokio_tungstenite::connect_async(req).await.unwrap().0
}

/// Read a WebSocket to its close: bytes by channel, and the close code.
async fn ws_all(
    w: &mut (impl StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin),
) -> ([Vec<u8>; 5], Option<u16>) {
    let mut out: [Vec<u8>; 5] = Default::default();
    let mut code = None;
    while let Some(m) = w.next().await {
        match m {
            Ok(Message::Binary(b)) => out[b[0] as usize].extend_from_slice(&b[1..]),
            Ok(Message::Close(c)) => code = c.map(|c| c.code.into()),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    (out, code)
}

fn status_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)))
}

#[tokio::test]
async fn spdy_exec_carries_all_streams_and_the_status() {
    let (s, _guard) = server().await;
    for protocol in [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
    ] {
        let c = spdy(
            &s.exec_url(exec(&["cat"], true, false)).unwrap(),
            &[protocol, "channel.k8s.io"],
        )
        .await;
        let (mut error, stdin) = (open(&c, "error").await, open(&c, "stdin").await);
        let (mut out, mut err) = (open(&c, "stdout").await, open(&c, "stderr").await);
        let text = vec![b'a'; 100_000];
        let write = async {
            stdin.writer.write(text.clone().into()).await.unwrap();
            stdin.writer.finish().await;
        };
        let ((), got_out, got_err, got_error) =
            tokio::join!(write, all(&mut out), all(&mut err), all(&mut error));
        assert_eq!(
            (got_out.len(), got_err.len()),
            (text.len(), text.len()),
            "{protocol}"
        );
        assert!(got_err.iter().all(|b| *b == b'A'));
        if protocol < "v4" {
            assert!(got_error.is_empty(), "{protocol}");
        } else {
            assert_eq!(status_of(&got_error)["status"], "Success", "{protocol}");
        }
        c.close(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn spdy_exit_codes_and_failures_to_start_reach_the_error_stream() {
    let (s, _guard) = server().await;
    for (cmd, reason, cause) in [
        (
            vec!["exit", "7"],
            "NonZeroExitCode",
            json!({"reason": "ExitCode", "message": "7"}),
        ),
        (
            vec!["fail"],
            "InternalError",
            json!({"message": "error executing command in container: exec: \"fail\": executable file not found in $PATH"}),
        ),
    ] {
        let c = spdy(
            &s.exec_url(exec(&cmd, false, false)).unwrap(),
            &["v4.channel.k8s.io"],
        )
        .await;
        let mut error = open(&c, "error").await;
        let (mut out, mut err) = (open(&c, "stdout").await, open(&c, "stderr").await);
        assert!(all(&mut out).await.is_empty() && all(&mut err).await.is_empty());
        let status = status_of(&all(&mut error).await);
        assert_eq!(
            (&status["reason"], &status["details"]["causes"][0]),
            (&json!(reason), &cause)
        );
    }
}

#[tokio::test]
async fn spdy_resize_comes_on_its_own_stream() {
    let (s, _guard) = server().await;
    let c = spdy(
        &s.exec_url(exec(&["sizes"], false, true)).unwrap(),
        &["v4.channel.k8s.io"],
    )
    .await;
    let (mut error, mut out) = (open(&c, "error").await, open(&c, "stdout").await);
    let resize = open(&c, "resize").await;
    resize
        .writer
        .write("{\"Width\":80,\"Height\":24}\n{\"Wid".into())
        .await
        .unwrap();
    resize
        .writer
        .write("th\":100,\"Height\":30}\n".into())
        .await
        .unwrap();
    assert_eq!(all(&mut out).await, b"80x24 100x30 ");
    assert_eq!(status_of(&all(&mut error).await)["status"], "Success");
}

#[tokio::test]
async fn websocket_exec_carries_channels_and_closes_normally() {
    let (s, _guard) = server().await;
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io"] {
        let mut w = ws(&s.exec_url(exec(&["cat"], true, false)).unwrap(), protocol).await;
        w.send(Message::Binary(b"\0hello".to_vec().into()))
            .await
            .unwrap();
        w.send(Message::Ping(b"beat".to_vec().into()))
            .await
            .unwrap();
        if protocol.starts_with("v5") {
            w.send(Message::Binary(vec![255, 0].into())).await.unwrap();
            let (got, code) = ws_all(&mut w).await;
            assert_eq!(
                (got[1].as_slice(), got[2].as_slice()),
                (&b"hello"[..], &b"HELLO"[..])
            );
            assert_eq!(
                status_of(&got[3]),
                json!({"metadata": {}, "status": "Success"})
            );
            assert_eq!(code, Some(1000));
        } else {
            // Before v5 stdin cannot end; the connection can.
            let mut seen = Vec::new();
            while seen != b"hello" {
                if let Message::Binary(b) = w.next().await.unwrap().unwrap()
                    && b[0] == 1
                {
                    seen.extend_from_slice(&b[1..]);
                }
            }
            w.close(None).await.unwrap();
        }
    }
}

#[tokio::test]
async fn websocket_exec_has_exit_codes_sizes_base64_and_big_output() {
    let (s, _guard) = server().await;
    let mut w = ws(
        &s.exec_url(exec(&["exit", "42"], false, false)).unwrap(),
        "v5.channel.k8s.io",
    )
    .await;
    let (got, _) = ws_all(&mut w).await;
    assert_eq!(status_of(&got[3])["details"]["causes"][0]["message"], "42");
    let mut w = ws(
        &s.exec_url(exec(&["sizes"], false, true)).unwrap(),
        "v4.channel.k8s.io",
    )
    .await;
    for (x, y) in [(1, 2), (3, 4)] {
        let m = [
            &[4u8][..],
            format!("{{\"Width\":{x},\"Height\":{y}}}").as_bytes(),
        ]
        .concat();
        w.send(Message::Binary(m.into())).await.unwrap();
    }
    assert_eq!(ws_all(&mut w).await.0[1], b"1x2 3x4 ");
    let mut w = ws(
        &s.exec_url(exec(&["big"], false, false)).unwrap(),
        "v5.channel.k8s.io",
    )
    .await;
    let (got, _) = ws_all(&mut w).await;
    assert_eq!(got[1].len(), 5_000_000);
    assert_eq!(status_of(&got[3])["status"], "Success");
    let mut w = ws(
        &s.exec_url(exec(&["exit", "1"], false, false)).unwrap(),
        "base64.channel.k8s.io",
    )
    .await;
    let mut texts = Vec::new();
    while let Some(Ok(Message::Text(t))) = w.next().await {
        texts.push(t.to_string());
    }
    // The greeting, then the text of the error (no Status before v4).
    assert_eq!(texts[0], "1");
    let text =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &texts[1][1..]).unwrap();
    assert_eq!(
        text,
        b"command terminated with non-zero exit code: exit status 1"
    );
}

#[tokio::test]
async fn output_that_something_else_keeps_open_does_not_hold_the_end() {
    let (s, _guard) = server().await;
    let begin = Instant::now();
    let mut w = ws(
        &s.exec_url(exec(&["background"], false, false)).unwrap(),
        "v5.channel.k8s.io",
    )
    .await;
    let (got, _) = ws_all(&mut w).await;
    assert_eq!(got[1], b"started");
    assert_eq!(status_of(&got[3])["status"], "Success");
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn attach_is_served_too() {
    let (s, _guard) = server().await;
    let r = v1::AttachRequest {
        container_id: "c".into(),
        stdin: true,
        stdout: true,
        ..Default::default()
    };
    let mut w = ws(&s.attach_url(r).unwrap(), "v5.channel.k8s.io").await;
    w.send(Message::Binary(b"\0x".to_vec().into()))
        .await
        .unwrap();
    w.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    assert_eq!(ws_all(&mut w).await.0[1], b"x");
}

async fn forward(c: &Connection, port: u16, id: &str) -> (Stream, Stream) {
    let headers = |kind: &str| {
        vec![
            ("streamType".to_owned(), kind.to_owned()),
            ("port".to_owned(), port.to_string()),
            ("requestID".to_owned(), id.to_owned()),
        ]
    };
    (
        c.open(headers("error")).await.unwrap(),
        c.open(headers("data")).await.unwrap(),
    )
}

async fn port_forwards(c: Connection) {
    // Several at once, one after another, and each its own bytes.
    let jobs = (0..8).map(|i| {
        let c = c.clone();
        async move {
            let (mut error, mut data) = forward(&c, 80, &i.to_string()).await;
            let text = vec![b'a' + i as u8; 50_000];
            let send = async {
                data.writer.write(text.clone().into()).await.unwrap();
                data.writer.finish().await;
            };
            let ((), got) = tokio::join!(send, async {
                let mut out = Vec::new();
                while let Some(b) = data.data.recv().await {
                    out.extend_from_slice(&b);
                }
                out
            });
            assert_eq!(got, text);
            assert!(all(&mut error).await.is_empty());
            error.writer.finish().await;
        }
    });
    futures::future::join_all(jobs).await;
    let (mut error, mut data) = forward(&c, 81, "x").await;
    assert_eq!(all(&mut data).await, b"hello");
    assert!(all(&mut error).await.is_empty());
    let (mut error, mut data) = forward(&c, 82, "y").await;
    assert!(all(&mut data).await.is_empty());
    let text = String::from_utf8(all(&mut error).await).unwrap();
    assert!(
        text.contains("error forwarding port 82") && text.contains("refused"),
        "{text}"
    );
    // A stream that says too little is refused, and the connection lives on.
    let mut bad = c
        .open(vec![("streamType".into(), "data".into())])
        .await
        .unwrap();
    assert!(all(&mut bad).await.is_empty());
    assert_eq!(all(&mut forward(&c, 81, "z").await.1).await, b"hello");
}

#[tokio::test]
async fn port_forward_over_spdy() {
    let (s, _guard) = server().await;
    let c = spdy(
        &s.port_forward_url(port_forward()).unwrap(),
        &["portforward.k8s.io"],
    )
    .await;
    port_forwards(c).await;
}

#[tokio::test]
async fn port_forward_over_spdy_inside_of_a_websocket() {
    let (s, _guard) = server().await;
    let w = ws(
        &s.port_forward_url(port_forward()).unwrap(),
        websocket::TUNNEL,
    )
    .await;
    let (mut sink, mut stream) = w.split();
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut r, mut w) = tokio::io::split(theirs);
    tokio::spawn(async move {
        // Small odd messages: their borders must not matter.
        let mut buf = vec![0; 777];
        while let Ok(n @ 1..) = r.read(&mut buf).await {
            sink.send(Message::Binary(buf[..n].to_vec().into()))
                .await
                .unwrap();
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(Message::Binary(b))) = stream.next().await {
            w.write_all(&b).await.unwrap();
        }
    });
    port_forwards(Connection::new(ours, false, Box::new(|_, _| Ok(()))).0).await;
}

#[tokio::test]
async fn port_forward_over_channels() {
    let (s, _guard) = server().await;
    let r = v1::PortForwardRequest {
        pod_sandbox_id: "pod".into(),
        port: vec![81, 82],
    };
    let mut w = ws(&s.port_forward_url(r).unwrap(), "v4.channel.k8s.io").await;
    let (got, _) = ws_all(&mut w).await;
    assert_eq!(got[0], [&81u16.to_le_bytes()[..], b"hello"].concat());
    assert_eq!(got[1], 81u16.to_le_bytes());
    assert_eq!(got[2], 82u16.to_le_bytes());
    assert!(got[3].len() > 2);
}

#[tokio::test]
async fn addresses_work_once_and_only_for_what_they_are() {
    let (s, _guard) = server().await;
    let url = s.exec_url(exec(&["cat"], true, false)).unwrap();
    assert!(url.starts_with("http://127.0.0.1:"));
    assert_eq!(request(&url, "").await.1, 400, "no upgrade");
    assert_eq!(
        request(&url.replace("/exec/", "/attach/"), SPDY).await.1,
        404
    );
    assert_eq!(
        request(&url, SPDY).await.1,
        101,
        "the wrong tries did not use it up"
    );
    assert_eq!(request(&url, SPDY).await.1, 404, "used");
    let url = s.exec_url(exec(&["cat"], true, false)).unwrap();
    let (_, status, head) =
        request(&url, &format!("{SPDY}X-Stream-Protocol-Version: v9\r\n")).await;
    assert_eq!(status, 403);
    assert!(
        head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
        "{head}"
    );
    let code = |r: Result<String, Status>| r.unwrap_err().code();
    assert_eq!(
        code(s.exec_url(v1::ExecRequest {
            stderr: true,
            ..exec(&["a"], false, true)
        })),
        tonic::Code::InvalidArgument
    );
    assert_eq!(
        code(s.exec_url(exec(&[], true, false))),
        tonic::Code::InvalidArgument
    );
    assert_eq!(
        code(s.port_forward_url(Default::default())),
        tonic::Code::InvalidArgument
    );
}

#[tokio::test]
async fn cancelling_ends_everything() {
    let (s, guard) = server().await;
    let c = spdy(
        &s.exec_url(exec(&["cat"], true, false)).unwrap(),
        &["v4.channel.k8s.io"],
    )
    .await;
    let _streams = (
        open(&c, "error").await,
        open(&c, "stdin").await,
        open(&c, "stdout").await,
        open(&c, "stderr").await,
    );
    drop(guard);
    tokio::time::timeout(Duration::from_secs(5), c.closed())
        .await
        .unwrap();
}
