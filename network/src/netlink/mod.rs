//! Netlink: sockets, messages and their attributes. Owns bytes and errno; must not know what a pod or a Service is.
//!
//! Written by hand rather than with a netlink crate: what we need of rtnetlink, nf_tables and conntrack is some
//! hundred lines, and the kernel answers all three within `sendmsg`, so nothing here has to be asynchronous.

pub mod conntrack;
pub mod nft;
pub mod route;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink as nl};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

pub const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_CAPPED: u16 = 0x100;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
/// Header of each message.
const HEADER: usize = 16;

/// The kernel refused, or the socket failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {errno}{}", .note.as_ref().map(|n| format!(" ({n})")).unwrap_or_default())]
pub struct Error {
    /// What was asked for.
    pub what: String,
    /// The kernel's errno.
    pub errno: Errno,
    /// The kernel's own words, where it has some (extended acknowledgement).
    pub note: Option<String>,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, errno: Errno) -> Self {
        Self {
            what: what.into(),
            errno,
            note: None,
        }
    }

    /// Is it one of these?
    pub fn is(&self, errnos: &[Errno]) -> bool {
        errnos.contains(&self.errno)
    }
}

/// Result of a netlink request.
pub type Result<T> = std::result::Result<T, Error>;

/// One or more messages, one behind the other, as they go to the kernel in one `sendmsg`.
#[derive(Debug, Default, Clone)]
pub struct Messages {
    buf: Vec<u8>,
    start: usize,
    whats: Vec<What>,
}

#[derive(Debug, Clone)]
struct What {
    name: String,
    tolerated: &'static [Errno],
}

impl Messages {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Is there nothing to send?
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// How many messages there are.
    pub fn count(&self) -> usize {
        self.whats.len()
    }

    /// Begins a message. `what` is for the error text; errnos of `tolerated` are no errors.
    pub fn begin(
        &mut self,
        what: impl Into<String>,
        kind: u16,
        flags: u16,
        tolerated: &'static [Errno],
        fixed: &[u8],
    ) {
        self.seal();
        self.start = self.buf.len();
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf
            .extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        // Sequence numbers count from 0 and are rebased by the socket.
        self.buf
            .extend_from_slice(&(self.whats.len() as u32).to_ne_bytes());
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(fixed);
        self.pad();
        self.whats.push(What {
            name: what.into(),
            tolerated,
        });
    }

    fn pad(&mut self) {
        while !self.buf.len().is_multiple_of(4) {
            self.buf.push(0);
        }
    }

    fn seal(&mut self) {
        if self.buf.len() > self.start {
            let len = (self.buf.len() - self.start) as u32;
            self.buf[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// Sets flags on the message that was begun last.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        if let Some(field) = self.buf.get_mut(self.start + 6..self.start + 8) {
            let now = u16::from_ne_bytes([field[0], field[1]]) | flags;
            field.copy_from_slice(&now.to_ne_bytes());
        }
    }

    /// An attribute with raw bytes.
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        self.buf
            .extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
    }

    /// A number in the machine's byte order (rtnetlink).
    pub fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A number in network byte order (nf_tables, conntrack).
    pub fn attr_be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A string with its NUL.
    pub fn attr_str(&mut self, kind: u16, value: &str) {
        let len = value.len() + 5;
        self.buf.extend_from_slice(&(len as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value.as_bytes());
        self.buf.push(0);
        self.pad();
    }

    /// Attributes within an attribute. The whole must stay below 64 KiB: see [`Messages::room`].
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.open(kind);
        fill(self);
        self.close(at);
    }

    /// Begins a nested attribute by hand; [`Messages::close`] ends it.
    pub fn open(&mut self, kind: u16) -> usize {
        let at = self.buf.len();
        self.buf.extend_from_slice(&0u16.to_ne_bytes());
        self.buf
            .extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        at
    }

    /// Ends what [`Messages::open`] began.
    pub fn close(&mut self, at: usize) {
        let len = (self.buf.len() - at) as u16;
        self.buf[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    /// Is there room for `more` bytes in the nested attribute begun at `at`?
    pub fn room(&self, at: usize, more: usize) -> bool {
        self.buf.len() - at + more < 60_000
    }

    /// Fixed bytes inside a nested attribute (the peer's header of a veth).
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }

    fn rebase(&mut self, first: u32) {
        self.seal();
        let mut at = 0;
        while let Some(len) = read_u32(&self.buf, at) {
            let seq = read_u32(&self.buf, at + 8).unwrap_or(0).wrapping_add(first);
            if let Some(field) = self.buf.get_mut(at + 8..at + 12) {
                field.copy_from_slice(&seq.to_ne_bytes());
            }
            at += (len as usize).max(HEADER);
        }
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_ne_bytes)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_ne_bytes)
}

/// Attributes of a received message: kind (without its flag bits) and value.
pub fn attrs(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = read_u16(rest, 0)? as usize;
        let kind = read_u16(rest, 2)? & 0x3fff;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub fn attr_of(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// A string attribute without its NUL.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A netlink socket. It belongs to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
}

/// A message that came back: its kind and what follows its header.
struct Reply<'a> {
    kind: u16,
    flags: u16,
    seq: u32,
    body: &'a [u8],
}

impl Socket {
    /// For links, addresses, routes and neighbours.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn route() -> Result<Self> {
        // NETLINK_ROUTE is protocol 0, which is what no protocol means.
        Self::open(None, "rtnetlink")
    }

    /// For nf_tables and conntrack.
    ///
    /// # Errors
    /// When the kernel gives no socket (no netfilter, for example).
    pub fn netfilter() -> Result<Self> {
        Self::open(Some(nl::NETFILTER), "netfilter netlink")
    }

    fn open(protocol: Option<rustix::net::Protocol>, what: &str) -> Result<Self> {
        let fail = |e| Error::new(format!("opening a {what} socket"), e);
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(fail)?;
        rustix::net::bind(&fd, &nl::SocketAddrNetlink::new(0, 0)).map_err(fail)?;
        extended_acks(&fd);
        // The default (208 KiB) neither takes a load of thousands of Services nor the answers to it.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&fd, 64 << 20);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, 4 << 20);
        Ok(Self { fd, seq: 1 })
    }

    fn send(&mut self, messages: &mut Messages) -> Result<u32> {
        let first = self.seq;
        self.seq = self.seq.wrapping_add(messages.count() as u32);
        messages.rebase(first);
        let what = || messages.whats.first().map_or("", |w| w.name.as_str());
        let sent = rustix::net::send(&self.fd, &messages.buf, SendFlags::empty())
            .map_err(|e| Error::new(what(), e))?;
        if sent != messages.buf.len() {
            return Err(Error::new(what(), Errno::MSGSIZE));
        }
        Ok(first)
    }

    /// Reads one datagram; None when nothing is there within `wait`.
    fn receive<'a>(&self, buf: &'a mut Vec<u8>, wait: Duration) -> Result<Option<&'a [u8]>> {
        loop {
            buf.clear();
            buf.reserve(64 << 10);
            let spare = rustix::buffer::spare_capacity(buf);
            match rustix::net::recv(&self.fd, spare, RecvFlags::DONTWAIT) {
                Ok(_) => return Ok(Some(buf.as_slice())),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if wait.is_zero() => return Ok(None),
                Err(Errno::AGAIN) => {
                    let spec = rustix::event::Timespec {
                        tv_sec: wait.as_secs() as i64,
                        tv_nsec: i64::from(wait.subsec_nanos()),
                    };
                    let mut fds = [rustix::event::PollFd::new(
                        &self.fd,
                        rustix::event::PollFlags::IN,
                    )];
                    match rustix::event::poll(&mut fds, Some(&spec)) {
                        Ok(0) => return Ok(None),
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(e) => return Err(Error::new("waiting for netlink", e)),
                    }
                }
                Err(e) => return Err(Error::new("reading netlink", e)),
            }
        }
    }

    /// Whatever an interrupted request left behind.
    fn drain(&self) {
        let mut buf = Vec::new();
        while let Ok(Some(_)) = self.receive(&mut buf, Duration::ZERO) {}
    }

    /// Sends messages that each carry their own acknowledgement (rtnetlink). All are tried; the first error is
    /// returned. Objects that come back (a GET) go to `take`.
    ///
    /// # Errors
    /// The first refusal that is not tolerated.
    pub fn request(
        &mut self,
        mut messages: Messages,
        mut take: impl FnMut(u16, &[u8]),
    ) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        self.drain();
        let first = self.send(&mut messages)?;
        let mut waiting = messages.count();
        let mut failed = None;
        let mut buf = Vec::new();
        while waiting > 0 {
            let Some(bytes) = self.receive(&mut buf, Duration::from_secs(5))? else {
                return Err(Error::new(messages.whats[0].name.clone(), Errno::TIMEDOUT));
            };
            for reply in replies(bytes) {
                let Some(what) = messages.whats.get(reply.seq.wrapping_sub(first) as usize) else {
                    continue;
                };
                if reply.kind != NLMSG_ERROR {
                    take(reply.kind, reply.body);
                    continue;
                }
                waiting -= 1;
                if let Some(e) = refusal(&reply, what) {
                    failed.get_or_insert(e);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sends an nfnetlink batch, which is carried out whole or not at all.
    ///
    /// # Errors
    /// The first refusal: then nothing has changed.
    pub fn transaction(&mut self, mut messages: Messages) -> Result<()> {
        self.drain();
        let first = self.send(&mut messages)?;
        let mut failed = None;
        let mut acknowledged = false;
        let mut buf = Vec::new();
        // The kernel has done it all when `send` returns: what it has to say is in the queue now.
        loop {
            let bytes = match self.receive(&mut buf, Duration::ZERO) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                // More errors than fit the queue: the first of them has been read, or this one tells.
                Err(e) => {
                    failed.get_or_insert(e);
                    continue;
                }
            };
            for reply in replies(bytes) {
                let Some(what) = messages.whats.get(reply.seq.wrapping_sub(first) as usize) else {
                    continue;
                };
                if reply.kind == NLMSG_ERROR {
                    acknowledged = true;
                    if let Some(e) = refusal(&reply, what) {
                        failed.get_or_insert(e);
                    }
                }
            }
        }
        match failed {
            Some(e) => Err(e),
            None if acknowledged => Ok(()),
            None => Err(Error::new(
                "an nf_tables transaction was not answered",
                Errno::PROTO,
            )),
        }
    }

    /// Asks for many objects (the message must carry NLM_F_DUMP).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn dump(&mut self, mut messages: Messages, mut take: impl FnMut(u16, &[u8])) -> Result<()> {
        self.drain();
        let first = self.send(&mut messages)?;
        let mut buf = Vec::new();
        loop {
            let Some(bytes) = self.receive(&mut buf, Duration::from_secs(5))? else {
                return Err(Error::new(messages.whats[0].name.clone(), Errno::TIMEDOUT));
            };
            for reply in replies(bytes) {
                if reply.seq != first {
                    continue;
                }
                match reply.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return refusal(&reply, &messages.whats[0]).map_or(Ok(()), Err);
                    }
                    kind => take(kind, reply.body),
                }
            }
        }
    }
}

fn replies(bytes: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = read_u32(rest, 0)? as usize;
        let reply = Reply {
            kind: read_u16(rest, 4)?,
            flags: read_u16(rest, 6)?,
            seq: read_u32(rest, 8)?,
            body: rest.get(HEADER..len)?,
        };
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(reply)
    })
}

/// The error of an NLMSG_ERROR, None when it is an acknowledgement or tolerated.
fn refusal(reply: &Reply<'_>, what: &What) -> Option<Error> {
    let code = read_u32(reply.body, 0)? as i32;
    if code == 0 {
        return None;
    }
    let errno = Errno::from_raw_os_error(-code);
    if what.tolerated.contains(&errno) {
        return None;
    }
    let note = (reply.flags & NLM_F_ACK_TLVS != 0)
        .then(|| {
            // The original message follows, whole unless it was capped to its header.
            let original = if reply.flags & NLM_F_CAPPED != 0 {
                HEADER
            } else {
                read_u32(reply.body, 4)? as usize
            };
            let tlvs = reply.body.get(4 + original.next_multiple_of(4)..)?;
            attr_of(tlvs, NLMSGERR_ATTR_MSG).map(text)
        })
        .flatten();
    Some(Error {
        what: what.name.clone(),
        errno,
        note,
    })
}

/// Asks for the kernel's own words and for errors without the whole request. rustix has no wrapper for these
/// options, and older kernels may lack them: that only costs words.
#[allow(unsafe_code)]
fn extended_acks(fd: &OwnedFd) {
    const NETLINK_CAP_ACK: libc::c_int = 10;
    const NETLINK_EXT_ACK: libc::c_int = 11;
    let on: libc::c_int = 1;
    for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
        // SAFETY: the pointer and length describe `on`, which outlives the call; the descriptor is open.
        unsafe {
            libc::setsockopt(
                fd.as_fd().as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                std::ptr::from_ref(&on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

/// Runs `work` on a thread of its own inside a network namespace, so that no other thread can be left in it.
///
/// # Errors
/// When the namespace cannot be entered, or what `work` returns.
pub fn inside<T: Send, E: From<Error> + Send>(
    netns: &OwnedFd,
    work: impl FnOnce() -> std::result::Result<T, E> + Send,
) -> std::result::Result<T, E> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                rustix::thread::move_into_link_name_space(
                    netns.as_fd(),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
                .map_err(|e| Error::new("entering the pod's network namespace", e))?;
                work()
            })
            .join()
            .unwrap_or_else(|_| {
                Err(Error::new("the thread in the pod's namespace", Errno::CANCELED).into())
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_come_back_as_they_were_written() {
        let mut m = Messages::new();
        m.begin("test", 1, 0, &[], &[]);
        m.attr_str(1, "abc");
        m.nest(2, |m| m.attr_u32(3, 7));
        m.seal();
        let body = &m.buf[HEADER..];
        assert_eq!(attr_of(body, 1).map(text).as_deref(), Some("abc"));
        let nested = attr_of(body, 2).unwrap_or_default();
        assert_eq!(attr_of(nested, 3), Some(&7u32.to_ne_bytes()[..]));
        assert_eq!(read_u32(&m.buf, 0), Some(m.buf.len() as u32));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let what = What { name: String::new(), tolerated: &[] };
            for reply in replies(&bytes) {
                let _ = refusal(&reply, &what);
                for (_, value) in attrs(reply.body) {
                    let _ = text(value);
                }
            }
        }
    }
}
