//! A log over a WebSocket (upstream's wsstream.Reader): what the kubelet sends becomes messages, in one of two forms. Owns the
//! handshake and the messages; whose log it is is `kubelet`'s.

use crate::http::Answer;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skiff_api::status::Status;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{
    CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode,
};

/// What a client may send is dropped; more than this in one message ends the connection.
const INCOMING: usize = 64 * 1024;

/// A client that asked for the log over a WebSocket.
pub struct Client {
    upgrade: OnUpgrade,
    accept: String,
    /// The protocol that was agreed on, when the client named any.
    protocol: Option<&'static str>,
    base64: bool,
}

/// Is a WebSocket asked for?
pub fn asked(headers: &HeaderMap) -> bool {
    super::tunnel::asks_upgrade(headers)
        && headers
            .get(header::UPGRADE)
            .and_then(|u| u.to_str().ok())
            .is_some_and(|u| u.eq_ignore_ascii_case("websocket"))
}

/// The protocol to speak: the first of the client's that we have.
fn choose<'a>(offered: impl Iterator<Item = &'a str>) -> Result<Option<&'static str>, Status> {
    let mut any = false;
    for protocol in offered {
        any = true;
        match protocol {
            "binary.k8s.io" => return Ok(Some("binary.k8s.io")),
            "base64.binary.k8s.io" => return Ok(Some("base64.binary.k8s.io")),
            _ => {}
        }
    }
    if any {
        return Err(Status::bad_request(
            "requested protocol(s) are not supported; supported are binary.k8s.io and base64.binary.k8s.io",
        ));
    }
    Ok(None)
}

impl Client {
    /// Reads the handshake.
    ///
    /// # Errors
    /// 400 when it is none that can be answered.
    pub fn new(headers: &HeaderMap, upgrade: Option<OnUpgrade>) -> Result<Self, Status> {
        let text = |name| {
            headers
                .get(name)
                .and_then(|v: &HeaderValue| v.to_str().ok())
        };
        if text(header::SEC_WEBSOCKET_VERSION) != Some("13") {
            return Err(Status::bad_request("WebSocket version 13 is needed"));
        }
        let key = text(header::SEC_WEBSOCKET_KEY)
            .ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
        let offered = headers
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .filter_map(skiff_api::bearer::without_tokens)
            .collect::<Vec<_>>()
            .join(",");
        let protocol = choose(offered.split(',').map(str::trim).filter(|p| !p.is_empty()))?;
        Ok(Self {
            upgrade: upgrade.ok_or_else(|| {
                Status::bad_request(
                    "this connection cannot be upgraded: a WebSocket needs HTTP/1.1",
                )
            })?,
            accept: derive_accept_key(key.as_bytes()),
            protocol,
            base64: protocol == Some("base64.binary.k8s.io"),
        })
    }

    /// Switches protocols and sends the log until one side ends, or `ended` comes back.
    ///
    /// # Errors
    /// None that a client could cause.
    pub fn send(self, log: Body, ended: BoxFuture<'static, ()>) -> Answer {
        let mut r = http::Response::new(Body::empty());
        *r.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let h = r.headers_mut();
        h.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        h.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let accept = HeaderValue::from_str(&self.accept).map_err(Status::internal)?;
        h.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(p) = self.protocol {
            h.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(p));
        }
        tokio::spawn(async move {
            let upgraded = match self.upgrade.await {
                Ok(u) => u,
                Err(e) => {
                    tracing::debug!(error = %e, "an upgrade failed");
                    return;
                }
            };
            let config = WebSocketConfig::default()
                .max_message_size(Some(INCOMING))
                .max_frame_size(Some(INCOMING));
            let socket = WebSocketStream::from_raw_socket(
                TokioIo::new(upgraded),
                Role::Server,
                Some(config),
            )
            .await;
            tokio::select! {
                () = ended => {}
                r = pump(socket, log, self.base64) => if let Err(e) = r {
                    tracing::debug!(error = %e, "a log over a WebSocket ended");
                }
            }
        });
        Ok(r)
    }
}

async fn pump<S>(socket: WebSocketStream<S>, log: Body, base64: bool) -> Result<(), axum::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut out, mut incoming) = socket.split();
    let mut log = log.into_data_stream();
    loop {
        tokio::select! {
            piece = log.next() => {
                let message = match piece {
                    Some(piece) => message(piece?, base64),
                    None => {
                        let bye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                        let _ = out.send(Message::Close(Some(bye))).await;
                        return Ok(());
                    }
                };
                out.send(message).await.map_err(axum::Error::new)?;
            }
            said = incoming.next() => match said {
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(axum::Error::new(e)),
            }
        }
    }
}

fn message(piece: Bytes, base64: bool) -> Message {
    if base64 {
        return Message::text(STANDARD.encode(&piece));
    }
    Message::binary(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_protocol_that_both_know_is_spoken() {
        let of = |p: &[&str]| choose(p.iter().copied()).map_err(|e| e.code);
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["x", "binary.k8s.io"]), Ok(Some("binary.k8s.io")));
        assert_eq!(
            of(&["base64.binary.k8s.io", "binary.k8s.io"]),
            Ok(Some("base64.binary.k8s.io"))
        );
        assert_eq!(of(&["v5.channel.k8s.io"]), Err(400));
    }
}
