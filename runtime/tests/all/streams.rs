//! Exec, attach and port-forward through the streaming server, as a WebSocket client sees them.

use super::harness::*;
use futures::{SinkExt, StreamExt};
use k8s_cri::v1::*;
use std::time::Duration;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

struct Ws(tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>);

impl Ws {
    async fn open(url: &str, protocol: &'static str) -> Self {
        let mut r = url
            .replace("http://", "ws://")
            .into_client_request()
            .unwrap();
        r.headers_mut()
            .insert("sec-websocket-protocol", protocol.parse().unwrap());
        let address = url.trim_start_matches("http://").split('/').next().unwrap();
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        Self(tokio_tungstenite::client_async(r, tcp).await.unwrap().0)
    }

    async fn send(&mut self, channel: u8, data: &[u8]) {
        let mut m = vec![channel];
        m.extend_from_slice(data);
        self.0.send(Message::Binary(m.into())).await.unwrap();
    }

    /// Reads until the text shows on the channel, or the end; returns all that came on it.
    async fn until(&mut self, channel: u8, text: &str) -> String {
        let mut got = String::new();
        let read = async {
            while !got.contains(text) || text.is_empty() {
                match self.0.next().await {
                    Some(Ok(Message::Binary(b))) if b.first() == Some(&channel) => {
                        got.push_str(&String::from_utf8_lossy(&b[1..]));
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                    _ => {}
                }
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(
            done.is_ok(),
            "no {text:?} on channel {channel}, only {got:?}"
        );
        got
    }
}

const V5: &str = "v5.channel.k8s.io";

async fn exec_url(n: &mut Node, id: &str, script: &str, tty: bool, stdin: bool) -> String {
    let cmd = ["/bin/sh", "-c", script].map(String::from).to_vec();
    let r = ExecRequest {
        container_id: id.into(),
        cmd,
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    n.client.exec(r).await.unwrap().into_inner().url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_streamed_with_input_terminals_and_exit_codes() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("exec");
    let sandbox = n.run(&pod).await;
    let id = n.sh(&sandbox, &pod, "main", "sleep 1000").await;
    let url = exec_url(&mut n, &id, "cat; exit 5", false, true).await;
    let mut ws = Ws::open(&url, V5).await;
    ws.send(0, b"hello\n").await;
    assert_eq!(ws.until(1, "hello\n").await, "hello\n");
    ws.send(255, &[0]).await;
    let status = ws.until(3, "}").await;
    assert!(
        status.contains("NonZeroExitCode") && status.contains("\"5\""),
        "{status}"
    );

    let url = exec_url(
        &mut n,
        &id,
        "tty; read x; stty size; echo got $x",
        true,
        true,
    )
    .await;
    let mut ws = Ws::open(&url, V5).await;
    assert!(ws.until(1, "\n").await.contains("/dev/pts/0"));
    ws.send(4, br#"{"Width":123,"Height":45}"#).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    ws.send(0, b"input\r").await;
    let out = ws.until(1, "got input").await;
    assert!(out.contains("45 123"), "{out}");
    assert!(ws.until(3, "}").await.contains("Success"));

    // The client goes away: a terminal hangs up its process.
    let url = exec_url(&mut n, &id, "echo ready; sleep 4242", true, true).await;
    let mut ws = Ws::open(&url, V5).await;
    ws.until(1, "ready").await;
    drop(ws);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(n.out(&id, "ps | grep -c 'slee[p] 4242' || true").await, "0");

    let cmd = vec!["nothing".to_string()];
    let r = ExecRequest {
        container_id: id.clone(),
        cmd,
        tty: false,
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let url = n.client.exec(r).await.unwrap().into_inner().url;
    let status = Ws::open(&url, V5).await.until(3, "}").await;
    assert!(
        status.contains("executable file not found in $PATH"),
        "{status}"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_attach_to_running_containers_whose_logs_go_on() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("attach");
    let sandbox = n.run(&pod).await;
    let config = ContainerConfig {
        stdin: true,
        stdin_once: true,
        ..shell(
            "in",
            "while read x; do echo got $x; done; echo over; sleep 0.2",
        )
    };
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    let r = AttachRequest {
        container_id: id.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let url = n.client.attach(r.clone()).await.unwrap().into_inner().url;
    let mut ws = Ws::open(&url, V5).await;
    ws.send(0, b"a\nb\n").await;
    assert_eq!(ws.until(1, "got b\n").await, "got a\ngot b\n");
    // stdin_once: the end of the first client's input is the container's.
    ws.send(255, &[0]).await;
    ws.until(1, "over").await;
    assert_eq!(n.ended(&id).await.exit_code, 0);
    assert_eq!(
        n.log("attach", "in"),
        "stdout F got a\nstdout F got b\nstdout F over\n"
    );

    let config = ContainerConfig {
        stdin: true,
        tty: true,
        ..shell(
            "tty",
            "tty; test -t 0 && echo terminal; ls -l /dev/console | cut -c1; read x; stty size; echo bye $x",
        )
    };
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    let r = AttachRequest {
        container_id: id.clone(),
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let url = n.client.attach(r).await.unwrap().into_inner().url;
    let mut ws = Ws::open(&url, V5).await;
    ws.send(4, br#"{"Width":100,"Height":30}"#).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    ws.send(0, b"now\r").await;
    let out = ws.until(1, "bye now").await;
    assert!(out.contains("30 100"), "{out}");
    assert_eq!(n.ended(&id).await.exit_code, 0);
    let log = n.log("attach", "tty");
    assert!(
        log.contains("stdout F /dev/pts/0\n")
            && log.contains("stdout F terminal\n")
            && log.contains("stdout F c\n"),
        "{log:?}"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_the_pod_s_loopback_are_forwarded() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("ports");
    let sandbox = n.run(&pod).await;
    n.sh(
        &sandbox,
        &pod,
        "web",
        "exec httpd -f -p 127.0.0.1:8080 -h /etc",
    )
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let r = PortForwardRequest {
        pod_sandbox_id: sandbox.clone(),
        port: vec![8080],
    };
    let url = n.client.port_forward(r).await.unwrap().into_inner().url;
    let mut ws = Ws::open(&url, "v4.channel.k8s.io").await;
    ws.send(0, b"GET /group HTTP/1.0\r\n\r\n").await;
    let out = ws.until(0, "extra:x").await;
    assert!(out.contains("extra:x"), "{out:?}");
    let r = PortForwardRequest {
        pod_sandbox_id: sandbox,
        port: vec![8081],
    };
    let url = n.client.port_forward(r).await.unwrap().into_inner().url;
    let refused = Ws::open(&url, "v4.channel.k8s.io")
        .await
        .until(1, "refused")
        .await;
    assert!(
        refused.contains("failed to connect to localhost:8081"),
        "{refused}"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_the_container_s_own_whatever_became_of_its_dev() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mut pod = n.sandbox("tty");
    let security = pod.linux.as_mut().unwrap().security_context.as_mut();
    security.unwrap().privileged = true;
    let sandbox = n.run(&pod).await;
    let c = with_security(shell("tty", "sleep 1000"), |s| s.privileged = true);
    let id = n.create(&sandbox, &pod, c).await;
    n.start_container(&id).await.unwrap();
    let change = "rm /dev/ptmx; ln -s /etc/passwd /dev/ptmx; mount -t tmpfs x /dev/pts; ln -s /etc/passwd /dev/pts/ptmx; mount --bind /etc/group /dev/null";
    n.out(&id, change).await;
    let url = exec_url(&mut n, &id, "[ -t 0 ] && echo a terminal", true, true).await;
    let mut ws = Ws::open(&url, V5).await;
    ws.until(1, "a terminal").await;
    assert!(ws.until(3, "}").await.contains("Success"));
    n.finish().await;
}
