//! Owns port-forward: pairs of streams (data and error) for each connection, over SPDY, or two channels for each port
//! over WebSocket. Must not know how a pod's port is reached.

use super::backend::{Duplex, StreamBackend};
use super::connection::{Accept, Connection, Stream, StreamWriter};
use super::spdy::header;
use super::websocket::{Channels, Protocol};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// How long the second stream of a pair may take (upstream's stream creation timeout).
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// Refuse streams that lack what a pair needs.
fn accept() -> Accept {
    Box::new(|_, headers| {
        let port = header(headers, "port").ok_or("\"port\" header is required")?;
        match port.parse::<u16>() {
            Ok(1..) => {}
            _ => return Err(format!("unable to parse {port:?} as a port")),
        }
        match header(headers, "streamtype") {
            Some("error" | "data") => Ok(()),
            Some(t) => Err(format!("invalid stream type {t:?}")),
            None => Err("\"streamType\" header is required".into()),
        }
    })
}

/// Which connection a stream belongs to. Clients older than 1.6 do not say: error comes first, data two numbers later.
fn request_id(s: &Stream) -> String {
    match header(&s.headers, "requestid") {
        Some(id) => id.to_owned(),
        None if header(&s.headers, "streamtype") == Some("data") => {
            s.id.saturating_sub(2).to_string()
        }
        None => s.id.to_string(),
    }
}

/// Serve over SPDY until the client goes.
pub async fn serve_spdy(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    pod: String,
    backend: Arc<dyn StreamBackend>,
) {
    let (connection, mut streams) = Connection::new(io, true, accept());
    let mut waiting: HashMap<String, (Stream, tokio::time::Instant)> = HashMap::new();
    loop {
        let oldest = waiting.values().map(|(_, t)| *t).min();
        let expired = async {
            match oldest {
                Some(t) => tokio::time::sleep_until(t + PAIR_TIMEOUT).await,
                None => std::future::pending().await,
            }
        };
        let stream = tokio::select! {
            s = streams.recv() => s,
            () = expired => {
                let limit = tokio::time::Instant::now() - PAIR_TIMEOUT;
                for (id, (s, _)) in waiting.extract_if(|_, (_, t)| *t <= limit) {
                    if header(&s.headers, "streamtype") == Some("error") {
                        let text = format!("(request={id}) timed out waiting for streams");
                        let _ = s.writer.write(text.into()).await;
                    }
                    s.writer.finish().await;
                }
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let id = request_id(&stream);
        let Some((first, _)) = waiting.remove(&id) else {
            waiting.insert(id, (stream, tokio::time::Instant::now()));
            continue;
        };
        let kind = |s: &Stream| header(&s.headers, "streamtype").map(str::to_owned);
        if kind(&first) == kind(&stream) {
            let text = format!("error processing stream for request {id}: stream already assigned");
            let _ = stream.writer.write(text.into()).await;
            stream.writer.finish().await;
            waiting.insert(id, (first, tokio::time::Instant::now()));
            continue;
        }
        let (data, error) = if kind(&first).as_deref() == Some("data") {
            (first, stream)
        } else {
            (stream, first)
        };
        let (pod, backend) = (pod.clone(), backend.clone());
        let connection = connection.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = forward(data, error, &pod, &*backend) => {}
                () = connection.closed() => {}
            }
        });
    }
    connection.close(Duration::ZERO).await;
}

async fn forward(data: Stream, error: Stream, pod: &str, backend: &dyn StreamBackend) {
    let port: u16 = header(&data.headers, "port")
        .and_then(|p| p.parse().ok())
        .unwrap_or(0);
    let result = match backend.port_forward(pod, port).await {
        Ok(io) => copy(io, data.data, Out::Spdy(&data.writer)).await,
        Err(e) => Err(e),
    };
    if let Err(e) = result {
        tracing::debug!(pod, port, error = %e, "port-forward");
        let _ = error.writer.write(message(pod, port, &e).into()).await;
    }
    data.writer.finish().await;
    error.writer.finish().await;
}

fn message(pod: &str, port: u16, e: &str) -> String {
    format!("error forwarding port {port} to pod {pod}, uid : {e}")
}

enum Out<'a> {
    Spdy(&'a StreamWriter),
    Channel(&'a super::websocket::ChannelWriter),
}

/// Copy both ways until the pod's side ends. The client's end is passed on as a half-close. A connection that breaks is
/// an end too: the error stream is for what the user can mend, and a text on it makes kubectl close all its connections.
async fn copy(
    io: Box<dyn Duplex>,
    mut from: mpsc::Receiver<Bytes>,
    to: Out<'_>,
) -> Result<(), String> {
    let (mut read, mut write) = tokio::io::split(io);
    let upward = async {
        while let Some(b) = from.recv().await {
            if write.write_all(&b).await.is_err() {
                while from.recv().await.is_some() {}
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let downward = async {
        let mut buf = vec![0u8; 32 * 1024];
        while let Ok(n @ 1..) = read.read(&mut buf).await {
            let sent = match &to {
                Out::Spdy(w) => w.write(Bytes::copy_from_slice(&buf[..n])).await,
                Out::Channel(w) => w.write(&buf[..n]).await,
            };
            if sent.is_err() {
                return;
            }
        }
        if let Out::Spdy(w) = &to {
            w.finish().await;
        }
    };
    let mut upward = std::pin::pin!(upward);
    let mut downward = std::pin::pin!(downward);
    tokio::select! {
        () = &mut downward => {
            // What the client sent before it saw the end may still be on its way.
            let _ = tokio::time::timeout(Duration::from_secs(1), upward).await;
        }
        () = &mut upward => downward.await,
    }
    Ok(())
}

/// Serve channels: 2i is the data of the i-th port, 2i+1 its errors. Each begins with the port, two bytes, little end
/// first. One connection for each port, as upstream.
pub async fn serve_channels(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    protocol: Protocol,
    ports: &[u16],
    pod: &str,
    backend: Arc<dyn StreamBackend>,
) {
    let inputs: Vec<u8> = (0..ports.len() as u8).map(|i| i * 2).collect();
    let mut channels = Channels::new(io, protocol, &inputs).await;
    let mut work = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let (data, error) = (
            channels.output(i as u8 * 2),
            channels.output(i as u8 * 2 + 1),
        );
        let _ = data.write(&port.to_le_bytes()).await;
        let _ = error.write(&port.to_le_bytes()).await;
        let Some(input) = channels.input(i as u8 * 2) else {
            continue;
        };
        let backend = backend.clone();
        work.push(async move {
            let result = match backend.port_forward(pod, *port).await {
                Ok(io) => copy(io, input, Out::Channel(&data)).await,
                Err(e) => Err(e),
            };
            if let Err(e) = result {
                let _ = error.write(message(pod, *port, &e).as_bytes()).await;
            }
        });
    }
    let gone = channels.gone.clone();
    tokio::select! {
        _ = futures::future::join_all(work) => {}
        () = gone.cancelled() => {}
    }
    channels.close().await;
}
