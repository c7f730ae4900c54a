//! The real kubectl against the streaming server, through an API server of a few lines that passes upgraded bytes on.

use super::*;
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"default"},"spec":{"containers":[{"name":"c","image":"i","stdin":true}]},"status":{"phase":"Running"}}"#;

fn json_for(path: &str) -> Option<&'static str> {
    Some(match path {
        "/api" => r#"{"kind":"APIVersions","versions":["v1"]}"#,
        "/apis" => r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[]}"#,
        "/api/v1" => {
            r#"{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","singularName":"pod","namespaced":true,"kind":"Pod","verbs":["get","list"]}]}"#
        }
        "/api/v1/namespaces/default/pods/p" => POD,
        _ => return None,
    })
}

fn url_for(server: &StreamServer, path: &str, query: &str) -> Option<String> {
    let all = |name: &str| -> Vec<String> {
        url::form_urlencoded::parse(query.as_bytes())
            .filter(|(k, _)| k == name)
            .map(|(_, v)| v.into_owned())
            .collect()
    };
    let is = |name: &str| all(name).first().is_some_and(|v| v == "true");
    let url = match path.rsplit('/').next()? {
        "exec" => server.exec_url(v1::ExecRequest {
            container_id: "c".into(),
            cmd: all("command"),
            tty: is("tty"),
            stdin: is("stdin"),
            stdout: is("stdout"),
            stderr: is("stderr"),
        }),
        "attach" => server.attach_url(v1::AttachRequest {
            container_id: "c".into(),
            tty: is("tty"),
            stdin: is("stdin"),
            stdout: is("stdout"),
            stderr: is("stderr"),
        }),
        "portforward" => server.port_forward_url(v1::PortForwardRequest {
            pod_sandbox_id: "pod".into(),
            port: vec![],
        }),
        _ => return None,
    };
    url.ok()
}

async fn api(mut client: TcpStream, server: Arc<StreamServer>) -> io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let (first, rest) = text.split_once("\r\n").unwrap_or((&text, ""));
        let target = first.split(' ').nth(1).unwrap_or("/").to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if let Some(url) = url_for(&server, path, query) {
            let mut up = TcpStream::connect(server.address()).await?;
            let to = url
                .strip_prefix("http://")
                .and_then(|u| u.split_once('/'))
                .map(|(_, p)| p)
                .unwrap_or_default();
            let method = first.split(' ').next().unwrap_or("GET");
            up.write_all(format!("{method} /{to} HTTP/1.1\r\n{rest}").as_bytes())
                .await?;
            tokio::io::copy_bidirectional(&mut client, &mut up).await?;
            return Ok(());
        }
        let (code, body) = json_for(path).map_or(("404 Not Found", "{}"), |b| ("200 OK", b));
        let answer = format!(
            "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(answer.as_bytes()).await?;
    }
}

async fn kubectl(
    address: &str,
    env: &[(&str, &str)],
    args: &[&str],
    stdin: &[u8],
) -> (Option<i32>, Vec<u8>, String) {
    let mut c = tokio::process::Command::new("kubectl");
    c.args([
        "--server",
        &format!("http://{address}"),
        "--kubeconfig",
        "/dev/null",
        "--cache-dir",
        "/dev/null/no-cache",
    ]);
    c.args(args).envs(env.iter().copied()).kill_on_drop(true);
    c.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = c.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = stdin.to_vec();
    tokio::spawn(async move { input.write_all(&text).await });
    let out = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    (
        out.status.code(),
        out.stdout,
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

#[tokio::test]
#[ignore = "needs kubectl on PATH: cargo test -p skiff-runtime kubectl -- --ignored"]
async fn kubectl_execs_attaches_and_forwards_over_websocket_and_spdy() {
    let (server, _guard) = tests::server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let s = server.clone();
    tokio::spawn(async move {
        while let Ok((c, _)) = listener.accept().await {
            tokio::spawn(api(c, s.clone()));
        }
    });
    for ws in ["true", "false"] {
        let env = [
            ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", ws),
            ("KUBECTL_PORT_FORWARD_WEBSOCKETS", ws),
        ];
        let (code, out, err) =
            kubectl(&address, &env, &["exec", "-i", "p", "--", "cat"], b"hello").await;
        assert_eq!((code, out.as_slice()), (Some(0), &b"hello"[..]), "{err}");
        assert!(err.contains("HELLO"), "{err}");
        // What kubectl cp does: much data through stdin and out again.
        let big: Vec<u8> = (0..3_000_000u32).map(|i| (i >> 3) as u8).collect();
        let (code, out, _) = kubectl(&address, &env, &["exec", "-i", "p", "--", "cat"], &big).await;
        assert_eq!(
            (code, out.len(), out == big),
            (Some(0), big.len(), true),
            "websockets {ws}"
        );
        let (code, _, err) = kubectl(&address, &env, &["exec", "p", "--", "exit", "42"], b"").await;
        assert_eq!(code, Some(42), "{err}");
        let (code, _, err) = kubectl(&address, &env, &["exec", "p", "--", "fail"], b"").await;
        assert_eq!(code, Some(1));
        assert!(err.contains("executable file not found"), "{err}");
        let (code, out, _) = kubectl(&address, &env, &["exec", "p", "--", "big"], b"").await;
        assert_eq!((code, out.len()), (Some(0), 5_000_000));
        let (code, out, err) = kubectl(&address, &env, &["attach", "-i", "p"], b"attached").await;
        assert_eq!((code, out.as_slice()), (Some(0), &b"attached"[..]), "{err}");

        let mut forward = tokio::process::Command::new("kubectl")
            .args([
                "--server",
                &format!("http://{address}"),
                "--kubeconfig",
                "/dev/null",
                "port-forward",
                "p",
                ":80",
                ":81",
            ])
            .envs(env)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(
            forward.stdout.take().unwrap(),
        ));
        let mut ports = std::collections::BTreeMap::new();
        while ports.len() < 2 {
            let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            if let Some((from, to)) = line
                .strip_prefix("Forwarding from 127.0.0.1:")
                .and_then(|l| l.split_once(" -> "))
            {
                ports.insert(to.to_owned(), from.parse::<u16>().unwrap());
            }
        }
        for round in 0..20u8 {
            let mut c = TcpStream::connect(("127.0.0.1", ports["80"]))
                .await
                .unwrap();
            c.write_all(&[round; 5000]).await.unwrap();
            let mut back = [0; 5000];
            c.read_exact(&mut back).await.unwrap();
            assert_eq!(back, [round; 5000]);
            let mut c = TcpStream::connect(("127.0.0.1", ports["81"]))
                .await
                .unwrap();
            let mut text = String::new();
            c.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello", "websockets {ws}, round {round}");
        }
        forward.kill().await.unwrap();
    }
}
