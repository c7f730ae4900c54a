//! Owns SPDY/3.1 framing: bytes to frames and frames to bytes, with the compressed headers. Pure: no I/O, no tasks.
//! Only what Kubernetes' clients (moby/spdystream) speak; frames they never send are passed over.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Names and values of a stream's headers; names are lower case.
pub type Headers = Vec<(String, String)>;

/// A stream's number: odd from the client, even from the server.
pub type StreamId = u32;

/// RST_STREAM's reasons that are used here.
pub const RST_PROTOCOL_ERROR: u32 = 1;
pub const RST_REFUSED_STREAM: u32 = 3;
pub const RST_CANCEL: u32 = 5;

/// One frame. Data comes in the pieces in which it arrived; `fin` is on the last one.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    SynStream {
        id: StreamId,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    SynReply {
        id: StreamId,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        id: StreamId,
        status: u32,
    },
    Settings,
    Ping(u32),
    GoAway {
        last: StreamId,
        status: u32,
    },
    Headers {
        id: StreamId,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        id: StreamId,
        delta: u32,
    },
    Data {
        id: StreamId,
        fin: bool,
        data: Bytes,
    },
}

/// Why a connection cannot go on: the peers no longer agree on the bytes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("SPDY: {0}")]
pub struct SpdyError(pub String);

/// Larger control frames are attacks: Kubernetes' have some hundred bytes.
const MAX_CONTROL: usize = 64 * 1024;
/// Headers after decompression.
const MAX_HEADERS: usize = 256 * 1024;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// The compression dictionary of SPDY/3, section 2.6.10.1: words, each after its length, then plain text.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host \
        if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
        proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
        user-agent vary via warning www-authenticate method get status";
    const MORE: [&str; 8] = [
        "200 OK",
        "version",
        "HTTP/1.1",
        "url",
        "public",
        "set-cookie",
        "keep-alive",
        "origin",
    ];
    const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
        403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
        Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
        chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut out = Vec::with_capacity(1423);
    for w in WORDS.split(' ').filter(|w| !w.is_empty()).chain(MORE) {
        out.extend_from_slice(&(w.len() as u32).to_be_bytes());
        out.extend_from_slice(w.as_bytes());
    }
    out.extend_from_slice(TEXT.as_bytes());
    out
}

/// Frames to bytes. One for each direction: header blocks share a compression state, so frames must be sent in the
/// order in which they were encoded.
pub struct Encoder {
    deflate: Compress,
}

impl Default for Encoder {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::default(), true);
        // Cannot fail on a fresh stream; if it did, the peer would report a wrong dictionary.
        let _ = deflate.set_dictionary(&dictionary());
        Encoder { deflate }
    }
}

impl Encoder {
    /// Append the frame to `out`.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::Data { id, fin, data } => {
                if data.len() >= 1 << 24 {
                    return Err(SpdyError(format!(
                        "a data frame of {} bytes is too large",
                        data.len()
                    )));
                }
                out.put_u32(id & 0x7fff_ffff);
                out.put_u32((u32::from(*fin) << 24) | data.len() as u32);
                out.extend_from_slice(data);
            }
            Frame::SynStream {
                id,
                fin,
                unidirectional,
                headers,
            } => {
                let flags = if *fin { FLAG_FIN } else { 0 }
                    | if *unidirectional {
                        FLAG_UNIDIRECTIONAL
                    } else {
                        0
                    };
                let mut body = BytesMut::new();
                body.put_u32(*id);
                body.put_u32(0); // associated to no stream
                body.put_u16(0); // priority 0, slot 0
                self.headers(headers, &mut body)?;
                control(SYN_STREAM, flags, &body, out);
            }
            Frame::SynReply { id, fin, headers } | Frame::Headers { id, fin, headers } => {
                let kind = if matches!(frame, Frame::SynReply { .. }) {
                    SYN_REPLY
                } else {
                    HEADERS
                };
                let mut body = BytesMut::new();
                body.put_u32(*id);
                self.headers(headers, &mut body)?;
                control(kind, u8::from(*fin), &body, out);
            }
            Frame::RstStream { id, status } => control(RST_STREAM, 0, &pair(*id, *status), out),
            Frame::Settings => control(SETTINGS, 0, &0u32.to_be_bytes(), out),
            Frame::Ping(id) => control(PING, 0, &id.to_be_bytes(), out),
            Frame::GoAway { last, status } => control(GOAWAY, 0, &pair(*last, *status), out),
            Frame::WindowUpdate { id, delta } => control(WINDOW_UPDATE, 0, &pair(*id, *delta), out),
        }
        Ok(())
    }

    fn headers(&mut self, headers: &Headers, out: &mut BytesMut) -> Result<(), SpdyError> {
        let mut plain = BytesMut::new();
        plain.put_u32(headers.len() as u32);
        for (k, v) in headers {
            for s in [k.to_ascii_lowercase().as_str(), v] {
                plain.put_u32(s.len() as u32);
                plain.extend_from_slice(s.as_bytes());
            }
        }
        let mut buf = Vec::with_capacity(plain.len() + 64);
        let mut at = 0;
        loop {
            buf.reserve(256);
            let before = self.deflate.total_in();
            let status = self
                .deflate
                .compress_vec(&plain[at..], &mut buf, FlushCompress::Sync);
            status.map_err(|e| SpdyError(format!("compress headers: {e}")))?;
            at += (self.deflate.total_in() - before) as usize;
            // Room left over means that everything up to the flush is out.
            if at == plain.len() && buf.len() < buf.capacity() {
                break;
            }
        }
        out.extend_from_slice(&buf);
        Ok(())
    }
}

fn pair(a: u32, b: u32) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&a.to_be_bytes());
    out[4..].copy_from_slice(&b.to_be_bytes());
    out
}

fn control(kind: u16, flags: u8, body: &[u8], out: &mut BytesMut) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32((u32::from(flags) << 24) | body.len() as u32);
    out.extend_from_slice(body);
}

/// Bytes to frames: feed bytes into [`Decoder::buffer`], then take frames until there is none.
pub struct Decoder {
    /// Received and not yet decoded.
    pub buffer: BytesMut,
    inflate: Decompress,
    /// A data frame whose bytes are still coming: id, fin, bytes to come.
    data: Option<(StreamId, bool, usize)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder {
            buffer: BytesMut::new(),
            inflate: Decompress::new(true),
            data: None,
        }
    }
}

impl Decoder {
    /// The next frame, if enough bytes are there.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some((id, fin, left)) = self.data {
                if self.buffer.is_empty() && left > 0 {
                    return Ok(None);
                }
                let data = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                let left = left - data.len();
                self.data = (left > 0).then_some((id, fin, left));
                return Ok(Some(Frame::Data {
                    id,
                    fin: fin && left == 0,
                    data,
                }));
            }
            if self.buffer.len() < 8 {
                return Ok(None);
            }
            let word = u32::from_be_bytes([
                self.buffer[0],
                self.buffer[1],
                self.buffer[2],
                self.buffer[3],
            ]);
            let flags = self.buffer[4];
            let len =
                u32::from_be_bytes([0, self.buffer[5], self.buffer[6], self.buffer[7]]) as usize;
            if word & 0x8000_0000 == 0 {
                self.buffer.advance(8);
                self.data = Some((word, flags & FLAG_FIN != 0, len));
                continue;
            }
            let version = (word >> 16) & 0x7fff;
            if version != 3 {
                return Err(SpdyError(format!("version {version} is not supported")));
            }
            if len > MAX_CONTROL {
                return Err(SpdyError(format!(
                    "a control frame of {len} bytes is too large"
                )));
            }
            if self.buffer.len() < 8 + len {
                return Ok(None);
            }
            self.buffer.advance(8);
            let body = self.buffer.split_to(len).freeze();
            if let Some(f) = self.control((word & 0xffff) as u16, flags, body)? {
                return Ok(Some(f));
            }
        }
    }

    fn control(
        &mut self,
        kind: u16,
        flags: u8,
        mut body: Bytes,
    ) -> Result<Option<Frame>, SpdyError> {
        let need = match kind {
            SYN_STREAM => 10,
            SYN_REPLY | HEADERS | PING => 4,
            RST_STREAM | GOAWAY | WINDOW_UPDATE => 8,
            _ => 0,
        };
        if body.len() < need {
            return Err(SpdyError(format!("a frame of type {kind} is too short")));
        }
        let fin = flags & FLAG_FIN != 0;
        let id = |body: &mut Bytes| body.get_u32() & 0x7fff_ffff;
        Ok(Some(match kind {
            SYN_STREAM => {
                let id = id(&mut body);
                body.advance(6); // associated stream, priority, slot
                let headers = self.headers(body)?;
                Frame::SynStream {
                    id,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    headers,
                }
            }
            SYN_REPLY => Frame::SynReply {
                id: id(&mut body),
                fin,
                headers: self.headers(body)?,
            },
            HEADERS => Frame::Headers {
                id: id(&mut body),
                fin,
                headers: self.headers(body)?,
            },
            RST_STREAM => Frame::RstStream {
                id: id(&mut body),
                status: body.get_u32(),
            },
            SETTINGS => Frame::Settings,
            PING => Frame::Ping(body.get_u32()),
            GOAWAY => Frame::GoAway {
                last: id(&mut body),
                status: body.get_u32(),
            },
            WINDOW_UPDATE => Frame::WindowUpdate {
                id: id(&mut body),
                delta: body.get_u32() & 0x7fff_ffff,
            },
            // The draft: unknown control frames are ignored.
            _ => return Ok(None),
        }))
    }

    fn headers(&mut self, block: Bytes) -> Result<Headers, SpdyError> {
        let fault = |e: String| SpdyError(format!("headers: {e}"));
        let mut plain = Vec::with_capacity(512);
        let mut at = 0;
        loop {
            if plain.len() > MAX_HEADERS {
                return Err(fault("they are too large".into()));
            }
            plain.reserve(1024);
            let (in_before, out_before) = (self.inflate.total_in(), plain.len());
            let r = self
                .inflate
                .decompress_vec(&block[at..], &mut plain, FlushDecompress::Sync);
            at += (self.inflate.total_in() - in_before) as usize;
            match r {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&dictionary())
                        .map_err(|_| fault("they use another dictionary".into()))?;
                }
                Err(e) => return Err(fault(e.to_string())),
                Ok(Status::StreamEnd) => return Err(fault("the compression ended".into())),
                Ok(_) if at == block.len() && plain.len() < plain.capacity() => break,
                // No progress with input left: the block is damaged.
                Ok(_) if plain.len() == out_before && self.inflate.total_in() == in_before => break,
                Ok(_) => {}
            }
        }
        let mut b = Bytes::from(plain);
        let number = |b: &mut Bytes| {
            if b.len() < 4 {
                Err(fault("they end too early".into()))
            } else {
                Ok(b.get_u32() as usize)
            }
        };
        let n = number(&mut b)?;
        if n > 1000 {
            return Err(fault(format!("there are {n}")));
        }
        let mut out = Headers::with_capacity(n);
        for _ in 0..n {
            let mut part = || -> Result<String, SpdyError> {
                let len = number(&mut b)?;
                if b.len() < len {
                    return Err(fault("they end too early".into()));
                }
                Ok(String::from_utf8_lossy(&b.split_to(len)).into_owned())
            };
            let (k, v) = (part()?.to_ascii_lowercase(), part()?);
            // Several values of one name are separated by NUL.
            for v in v.split('\0') {
                out.push((k.clone(), v.to_owned()));
            }
        }
        Ok(out)
    }
}

/// The first value of a header.
pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(k, _)| k == name)
        .map(|(_, v)| v.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(s: &str) -> Vec<u8> {
        (0..s.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap())
            .collect()
    }

    fn decode_all(d: &mut Decoder) -> Vec<Frame> {
        let mut out = Vec::new();
        while let Some(f) = d.next_frame().unwrap() {
            out.push(f);
        }
        out
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        let d = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for x in &d {
            a = (a + u32::from(*x)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((d.len(), (b << 16) | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn header_blocks_of_another_zlib_are_read() {
        // Two blocks of one stream, made with CPython's zlib.
        let first =
            hex("78bbe3c6a7c202e50e703a2b294a4dcc851625aca9a0808614cb45e01c6061606100000000ffff");
        let second = hex("02d28c184a41a54e22000000ffff");
        let mut d = Decoder::default();
        for (id, block) in [(1u32, first), (3, second)] {
            let mut body = BytesMut::new();
            body.put_u32(id);
            body.extend_from_slice(&[0; 6]);
            body.extend_from_slice(&block);
            control(SYN_STREAM, 0, &body, &mut d.buffer);
        }
        let frames = decode_all(&mut d);
        let Frame::SynStream { id: 1, headers, .. } = &frames[0] else {
            panic!("{frames:?}")
        };
        assert_eq!(
            headers,
            &[
                ("streamtype".to_owned(), "error".to_owned()),
                ("port".into(), "8080".into())
            ]
        );
        let Frame::SynStream { id: 3, headers, .. } = &frames[1] else {
            panic!("{frames:?}")
        };
        assert_eq!(header(headers, "streamtype"), Some("data"));
    }

    #[test]
    fn damage_is_an_error() {
        let cases: [&[u8]; 4] = [
            &[0x80, 2, 0, 1, 0, 0, 0, 0],                         // version 2
            &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],                // 16 MiB of control
            &[0x80, 3, 0, 3, 0, 0, 0, 1, 0],                      // short RST_STREAM
            &[0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 1, 0xde, 0xad], // no zlib
        ];
        for c in cases {
            let mut d = Decoder::default();
            d.buffer.extend_from_slice(c);
            assert!(d.next_frame().is_err(), "{c:?}");
        }
    }

    fn arb_headers() -> impl Strategy<Value = Headers> {
        prop::collection::vec(("[a-z]{1,12}", "[ -~]{0,40}"), 0..5)
    }

    fn arb_frame() -> impl Strategy<Value = Frame> {
        let id = 1u32..0x7fff_ffff;
        prop_oneof![
            (id.clone(), any::<bool>(), any::<bool>(), arb_headers()).prop_map(
                |(id, fin, unidirectional, headers)| {
                    Frame::SynStream {
                        id,
                        fin,
                        unidirectional,
                        headers,
                    }
                }
            ),
            (id.clone(), any::<bool>(), arb_headers())
                .prop_map(|(id, fin, headers)| Frame::SynReply { id, fin, headers }),
            (id.clone(), any::<bool>(), arb_headers())
                .prop_map(|(id, fin, headers)| Frame::Headers { id, fin, headers }),
            (id.clone(), 0u32..12).prop_map(|(id, status)| Frame::RstStream { id, status }),
            any::<u32>().prop_map(Frame::Ping),
            Just(Frame::Settings),
            (id.clone(), 0u32..3).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (id.clone(), 1u32..1000).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            (
                id,
                any::<bool>(),
                prop::collection::vec(any::<u8>(), 0..300)
            )
                .prop_map(|(id, fin, d)| Frame::Data {
                    id,
                    fin,
                    data: d.into()
                }),
        ]
    }

    /// Put pieces of one data frame together again.
    fn joined(frames: Vec<Frame>, sizes: &[usize]) -> Vec<Frame> {
        let mut out: Vec<Frame> = Vec::new();
        let mut want = sizes.iter();
        let mut open: Option<(StreamId, usize, BytesMut)> = None;
        for f in frames {
            let Frame::Data { id, fin, data } = f else {
                out.push(f);
                continue;
            };
            let (id, size, mut got) = open
                .take()
                .unwrap_or_else(|| (id, *want.next().unwrap(), BytesMut::new()));
            got.extend_from_slice(&data);
            if got.len() == size {
                out.push(Frame::Data {
                    id,
                    fin,
                    data: got.freeze(),
                });
            } else {
                assert!(!fin, "fin before the end");
                open = Some((id, size, got));
            }
        }
        out
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_of_the_bytes(frames in prop::collection::vec(arb_frame(), 1..12), cut in 1usize..50) {
            let (mut e, mut bytes) = (Encoder::default(), BytesMut::new());
            for f in &frames {
                e.encode(f, &mut bytes).unwrap();
            }
            let mut d = Decoder::default();
            let mut got = Vec::new();
            for part in bytes.chunks(cut) {
                d.buffer.extend_from_slice(part);
                got.extend(decode_all(&mut d));
            }
            let sizes: Vec<usize> = frames.iter().filter_map(|f| match f { Frame::Data { data, .. } => Some(data.len()), _ => None }).collect();
            prop_assert_eq!(joined(got, &sizes), frames);
            prop_assert!(d.buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400), control in any::<bool>()) {
            let mut d = Decoder::default();
            if control {
                d.buffer.extend_from_slice(&[0x80, 3, 0]);
            }
            d.buffer.extend_from_slice(&bytes);
            while let Ok(Some(_)) = d.next_frame() {}
        }
    }
}
