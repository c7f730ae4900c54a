//! Bodies: reading a request's body within the limit, and answers made of shared chunks. No Kubernetes meaning.

use ::http::{HeaderMap, HeaderValue, header};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use skiff_api::status::Status;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Bodies that are larger are refused with 413 (upstream's MaxRequestBodyBytes). An object may have half of that:
/// [`crate::registry::encode::MAX_OBJECT`].
pub const MAX_REQUEST_BODY: usize = 3 * 1024 * 1024;

/// How much of a refused body is read and dropped, so that the client gets to read the answer instead of a reset.
const DRAIN: usize = 64 << 20;

/// Answers of this size and more are compressed for clients that take gzip (upstream's defaultGzipThresholdBytes).
const GZIP_FROM: u64 = 128 * 1024;

/// The whole body.
///
/// # Errors
/// 413 when it is too large, 415 when it is compressed, 400 when the client broke off.
pub async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Status> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let too_large = || Status::too_large(MAX_REQUEST_BODY);
    plain(headers)?;
    if declared.is_some_and(|n| n > MAX_REQUEST_BODY) && headers.contains_key(header::EXPECT) {
        // The client waits to be told to send.
        return Err(too_large());
    }
    let mut body = body;
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    let mut seen = 0usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Status::bad_request(format!("the request's body could not be read: {e}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        seen += data.len();
        if seen > MAX_REQUEST_BODY {
            rest = BytesMut::new();
            first = None;
            if seen > DRAIN {
                return Err(too_large());
            }
            continue;
        }
        match first.take() {
            None if rest.is_empty() => first = Some(data),
            Some(f) => {
                rest.reserve(
                    declared
                        .unwrap_or(0)
                        .clamp(f.len() + data.len(), MAX_REQUEST_BODY),
                );
                rest.extend_from_slice(&f);
                rest.extend_from_slice(&data);
            }
            None => rest.extend_from_slice(&data),
        }
    }
    if seen > MAX_REQUEST_BODY {
        return Err(too_large());
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}

/// Compressed bodies are not taken (upstream takes none either): a small one could become anything.
fn plain(headers: &HeaderMap) -> Result<(), Status> {
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let identity = value.to_str().is_ok_and(|v| {
            v.split(',')
                .all(|e| matches!(e.trim().to_ascii_lowercase().as_str(), "" | "identity"))
        });
        if !identity {
            return Err(Status::unsupported_media_type(
                "the body of the request must not be compressed: no Content-Encoding is supported",
            ));
        }
    }
    Ok(())
}

/// A body of known length made of shared chunks, joined into pieces of some 64 KiB as they are sent: nothing of a large
/// list is copied before the socket asks for it.
pub struct Chunks {
    chunks: VecDeque<Bytes>,
    left: u64,
}

/// The size of the pieces that small chunks are joined into: four TLS records.
const PIECE: usize = 64 * 1024;

impl Chunks {
    /// A body that sends these, in order.
    pub fn new(chunks: VecDeque<Bytes>) -> Self {
        let left = chunks.iter().map(|c| c.len() as u64).sum();
        Self { chunks, left }
    }
    /// Everything as one piece.
    pub fn join(self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.left as usize);
        for c in self.chunks {
            out.extend_from_slice(&c);
        }
        out.freeze()
    }
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(first) = self.chunks.pop_front() else {
            return Poll::Ready(None);
        };
        let piece = match self.chunks.front() {
            Some(next) if first.len() + next.len() <= PIECE => {
                let mut piece = BytesMut::with_capacity(PIECE.min(self.left as usize));
                piece.extend_from_slice(&first);
                while let Some(next) = self.chunks.pop_front_if(|n| piece.len() + n.len() <= PIECE)
                {
                    piece.extend_from_slice(&next);
                }
                piece.freeze()
            }
            _ => first,
        };
        self.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Compresses the answer when it is large and the client takes gzip. Watches have no known length and are left alone.
pub fn gzip(request: &HeaderMap, response: http::Response<Body>) -> http::Response<Body> {
    let wants = request
        .get(header::ACCEPT_ENCODING)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| {
            v.split(',')
                .any(|e| e.trim().split(';').next() == Some("gzip"))
        });
    let large = response
        .body()
        .size_hint()
        .exact()
        .is_some_and(|n| n >= GZIP_FROM);
    if !wants || !large || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts
        .headers
        .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts
        .headers
        .insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    parts.headers.remove(header::CONTENT_LENGTH);
    // Level 1 as upstream: the network is the reason, not the disk.
    let body = Gzip {
        inner: body,
        encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())),
    };
    http::Response::from_parts(parts, Body::new(body))
}

struct Gzip {
    inner: Body,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl http_body::Body for Gzip {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            let Some(mut encoder) = self.encoder.take() else {
                return Poll::Ready(None);
            };
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending => {
                    self.encoder = Some(encoder);
                    return Poll::Pending;
                }
                Poll::Ready(None) => {
                    return match encoder.finish() {
                        Ok(tail) if tail.is_empty() => Poll::Ready(None),
                        Ok(tail) => Poll::Ready(Some(Ok(Frame::data(tail.into())))),
                        Err(e) => Poll::Ready(Some(Err(axum::Error::new(e)))),
                    };
                }
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Some(Err(e))),
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && let Err(e) = encoder.write_all(&data)
                    {
                        return Poll::Ready(Some(Err(axum::Error::new(e))));
                    }
                    let out = std::mem::take(encoder.get_mut());
                    self.encoder = Some(encoder);
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_chunks_are_joined_and_large_ones_sent_as_they_are() {
        let big = Bytes::from(vec![1u8; PIECE * 2]);
        let mut body = Chunks::new(VecDeque::from([
            Bytes::from_static(b"ab"),
            Bytes::from_static(b"cd"),
            big.clone(),
            Bytes::from_static(b"e"),
        ]));
        let mut pieces = Vec::new();
        while let Some(Ok(f)) = body.frame().await {
            pieces.extend(f.into_data().ok());
        }
        assert_eq!(
            pieces,
            vec![Bytes::from_static(b"abcd"), big, Bytes::from_static(b"e")]
        );
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_refused_and_one_at_it_is_read() {
        let h = HeaderMap::new();
        assert_eq!(
            read(&h, Body::from(vec![0u8; MAX_REQUEST_BODY + 1]))
                .await
                .map_err(|e| e.code),
            Err(413)
        );
        assert!(
            read(&h, Body::from(vec![0u8; MAX_REQUEST_BODY]))
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn compressed_bodies_are_refused() {
        for (encoding, code) in [
            ("gzip", Some(415)),
            ("identity, GZIP", Some(415)),
            ("deflate", Some(415)),
            ("zstd", Some(415)),
            ("identity", None),
        ] {
            let mut h = HeaderMap::new();
            h.insert("content-encoding", HeaderValue::from_static(encoding));
            let got = read(&h, Body::from("{}")).await;
            assert_eq!(got.err().map(|e| e.code), code, "{encoding}");
        }
    }

    #[tokio::test]
    async fn large_answers_are_compressed_for_those_who_take_it() {
        let mut h = HeaderMap::new();
        h.insert("accept-encoding", HeaderValue::from_static("gzip"));
        let text = "skiff ".repeat(50_000);
        let r = gzip(&h, http::Response::new(Body::from(text.clone())));
        let bytes = r
            .into_body()
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        let mut out = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut out)
            .expect("gzip");
        assert_eq!(out, text);
    }
}
