//! Owns the WebSocket side: the handshake's subprotocols, channels in messages, and SPDY bytes in messages. Must not
//! know what the channels are used for.

use base64::Engine;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::HeaderMap;
use std::collections::HashMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{
    CloseFrame, Message, Role, WebSocketConfig, frame::coding::CloseCode,
};

/// v5's first byte of the message that closes a channel; the second byte is the channel.
pub const CLOSE_CHANNEL: u8 = 255;
/// Messages that wait for a channel's reader before the connection is held back.
const CHANNEL_QUEUE: usize = 64;
const WRITE_QUEUE: usize = 32;

/// A subprotocol of remotecommand or port-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    pub name: &'static str,
    pub base64: bool,
    /// 5 and 4 send a Status on the error channel, older ones a text; 5 closes channels.
    pub version: u8,
}

/// What exec and attach speak, as upstream's wsstream. A client that names none gets the last.
pub const REMOTE_COMMAND: [Protocol; 6] = [
    Protocol {
        name: "v5.channel.k8s.io",
        base64: false,
        version: 5,
    },
    Protocol {
        name: "v4.channel.k8s.io",
        base64: false,
        version: 4,
    },
    Protocol {
        name: "v4.base64.channel.k8s.io",
        base64: true,
        version: 4,
    },
    Protocol {
        name: "base64.channel.k8s.io",
        base64: true,
        version: 1,
    },
    Protocol {
        name: "channel.k8s.io",
        base64: false,
        version: 1,
    },
    Protocol {
        name: "",
        base64: false,
        version: 1,
    },
];

/// kubectl's port-forward since 1.31: SPDY inside of messages.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Port-forward by channels, two for each port.
pub const PORT_FORWARD: [Protocol; 4] = [
    Protocol {
        name: TUNNEL,
        base64: false,
        version: 0,
    },
    Protocol {
        name: "v4.channel.k8s.io",
        base64: false,
        version: 4,
    },
    Protocol {
        name: "v4.base64.channel.k8s.io",
        base64: true,
        version: 4,
    },
    Protocol {
        name: "",
        base64: false,
        version: 4,
    },
];

/// Values of a header that may be repeated and comma separated.
pub fn list<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let all = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|v| !v.is_empty())
        .collect()
}

/// Does the request ask for a WebSocket?
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let has = |name: &str, want: &str| {
        list(headers, name)
            .iter()
            .any(|v| v.eq_ignore_ascii_case(want))
    };
    has("connection", "upgrade") && has("upgrade", "websocket")
}

/// The first of the client's subprotocols that is known; None if it names only unknown ones.
pub fn negotiate(headers: &HeaderMap, known: &[Protocol]) -> Option<Protocol> {
    let asked = list(headers, "sec-websocket-protocol");
    if asked.is_empty() {
        return known.iter().copied().find(|p| p.name.is_empty());
    }
    asked.iter().find_map(|a| {
        known
            .iter()
            .copied()
            .find(|p| !p.name.is_empty() && p.name == *a)
    })
}

async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    // A client's single message may be as large as it likes to write; 32 MiB bounds memory.
    let config = WebSocketConfig::default()
        .max_message_size(Some(32 << 20))
        .max_frame_size(Some(32 << 20));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Writes messages of channels.
#[derive(Clone)]
pub struct ChannelWriter {
    channel: u8,
    protocol: Protocol,
    out: mpsc::Sender<Message>,
}

impl ChannelWriter {
    /// Send one message, also an empty one.
    pub async fn write(&self, data: &[u8]) -> io::Result<()> {
        let m = if self.protocol.base64 {
            let text = base64::engine::general_purpose::STANDARD.encode(data);
            Message::Text(format!("{}{text}", (b'0' + self.channel) as char).into())
        } else {
            let mut b = Vec::with_capacity(data.len() + 1);
            b.push(self.channel);
            b.extend_from_slice(data);
            Message::Binary(b.into())
        };
        self.out
            .send(m)
            .await
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A connection of channels.
pub struct Channels {
    protocol: Protocol,
    out: mpsc::Sender<Message>,
    tasks: [tokio::task::JoinHandle<()>; 2],
    inputs: HashMap<u8, mpsc::Receiver<Bytes>>,
    /// Cancelled when the client is gone.
    pub gone: tokio_util::sync::CancellationToken,
}

impl Channels {
    /// Serve the server's side over an upgraded connection; `inputs` are the channels the client may write to.
    pub async fn new(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        protocol: Protocol,
        inputs: &[u8],
    ) -> Self {
        let (mut sink, mut stream) = upgrade(io).await.split();
        let (out, mut out_rx) = mpsc::channel::<Message>(WRITE_QUEUE);
        let gone = tokio_util::sync::CancellationToken::new();
        let mut senders = HashMap::new();
        let mut receivers = HashMap::new();
        for c in inputs {
            let (tx, rx) = mpsc::channel(CHANNEL_QUEUE);
            senders.insert(*c, tx);
            receivers.insert(*c, rx);
        }
        let write_gone = gone.clone();
        let writer = tokio::spawn(async move {
            while let Some(m) = out_rx.recv().await {
                let last = matches!(m, Message::Close(_));
                if sink.send(m).await.is_err() || last {
                    break;
                }
            }
            let _ = sink.flush().await;
            if out_rx.is_closed() {
                write_gone.cancel();
            }
        });
        let read_gone = gone.clone();
        let reader = tokio::spawn(async move {
            while let Some(Ok(m)) = stream.next().await {
                let data = match m {
                    Message::Binary(b) => b,
                    Message::Text(t) => match decode_text(t.as_str(), protocol.base64) {
                        Some(b) => b,
                        None => break,
                    },
                    Message::Close(_) => break,
                    // Pings are answered by the library while it reads.
                    _ => continue,
                };
                match data.first() {
                    None => {}
                    Some(&CLOSE_CHANNEL) if protocol.version >= 5 => {
                        if let Some(c) = data.get(1) {
                            senders.remove(c);
                        }
                    }
                    Some(c) => {
                        if let Some(tx) = senders.get(c)
                            && data.len() > 1
                            && tx.send(data.slice(1..)).await.is_err()
                        {
                            senders.remove(c);
                        }
                    }
                }
            }
            drop(senders);
            read_gone.cancel();
            // Reads on so that the library can finish the closing handshake.
            while let Some(Ok(_)) = stream.next().await {}
        });
        Channels {
            protocol,
            out,
            tasks: [writer, reader],
            inputs: receivers,
            gone,
        }
    }

    /// What the client writes to a channel; once.
    pub fn input(&mut self, channel: u8) -> Option<mpsc::Receiver<Bytes>> {
        self.inputs.remove(&channel)
    }

    /// A writer for a channel.
    pub fn output(&self, channel: u8) -> ChannelWriter {
        ChannelWriter {
            channel,
            protocol: self.protocol,
            out: self.out.clone(),
        }
    }

    /// Close normally after all that was written; the client has some seconds to answer.
    pub async fn close(self) {
        let frame = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let _ = self.out.send(Message::Close(Some(frame))).await;
        let [writer, mut reader] = self.tasks;
        let _ = writer.await;
        if tokio::time::timeout(std::time::Duration::from_secs(5), &mut reader)
            .await
            .is_err()
        {
            reader.abort();
        }
    }
}

/// Text messages: base64 protocols have the channel as a digit first; else the bytes are taken as they are.
fn decode_text(t: &str, base64: bool) -> Option<Bytes> {
    if !base64 {
        return Some(Bytes::copy_from_slice(t.as_bytes()));
    }
    let (first, rest) = t.split_at_checked(1)?;
    let channel = first.bytes().next()?.checked_sub(b'0')?;
    let mut out = vec![channel];
    out.extend(
        base64::engine::general_purpose::STANDARD
            .decode(rest.trim_end())
            .ok()?,
    );
    Some(out.into())
}

/// The byte stream inside the binary messages of a WebSocket (kubectl's tunnel): what is written comes out as messages,
/// what comes in messages can be read. Cutting between messages has no meaning.
pub async fn tunnel(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> DuplexStream {
    let (mut sink, mut stream) = upgrade(io).await.split();
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (mut from_spdy, mut to_spdy) = tokio::io::split(theirs);
    tokio::spawn(async move {
        let mut buf = vec![0u8; 32 * 1024];
        loop {
            match from_spdy.read(&mut buf).await {
                Ok(n) if n > 0 => {
                    if sink
                        .send(Message::Binary(Bytes::copy_from_slice(&buf[..n])))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                _ => {
                    let frame = CloseFrame {
                        code: CloseCode::Normal,
                        reason: "".into(),
                    };
                    let _ = sink.send(Message::Close(Some(frame))).await;
                    return;
                }
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(m)) = stream.next().await {
            match m {
                Message::Binary(b) if to_spdy.write_all(&b).await.is_ok() => {}
                Message::Binary(_) | Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = to_spdy.shutdown().await;
        while let Some(Ok(_)) = stream.next().await {}
    });
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_order_of_subprotocols_decides() {
        let headers = |v: &[&str]| {
            let mut h = HeaderMap::new();
            for v in v {
                h.append("sec-websocket-protocol", v.parse().unwrap());
            }
            h
        };
        let name = |v: &[&str]| negotiate(&headers(v), &REMOTE_COMMAND).map(|p| p.name);
        assert_eq!(name(&["v5.channel.k8s.io"]), Some("v5.channel.k8s.io"));
        assert_eq!(
            name(&["x, v4.channel.k8s.io, v5.channel.k8s.io"]),
            Some("v4.channel.k8s.io")
        );
        assert_eq!(
            name(&["x", "base64.channel.k8s.io"]),
            Some("base64.channel.k8s.io")
        );
        assert_eq!(name(&[]), Some(""));
        assert_eq!(name(&["x"]), None);
        assert_eq!(
            negotiate(&headers(&[TUNNEL]), &PORT_FORWARD).map(|p| p.name),
            Some(TUNNEL)
        );
    }

    #[test]
    fn base64_messages_have_a_digit_first() {
        assert_eq!(decode_text("0aGk=", true).unwrap(), &b"\0hi"[..]);
        assert_eq!(decode_text("4", true).unwrap(), &[4u8][..]);
        assert!(decode_text("0!", true).is_none());
        assert!(decode_text("", true).is_none());
    }
}
