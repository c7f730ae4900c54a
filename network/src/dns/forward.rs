//! Questions about the rest of the world: passed on to the node's own name servers, with a small cache. Owns the list
//! of upstreams; knows nothing of the cluster.
//!
//! Queries and answers are passed on as they are (all record types, EDNS, DNSSEC flags), only their id is ours.

use hickory_proto::op::{Message, Metadata, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use parking_lot::Mutex;
use rustix::fs::inotify;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

/// How long one upstream has for an answer.
const TRY: Duration = Duration::from_secs(2);
/// How long all of them have: clients give up after 5 s.
const TRIES: usize = 3;
/// Answers are kept no longer (CoreDNS's `cache 30`).
const KEEP: u32 = 30;
/// Answers that are kept.
const CACHED: usize = 2048;

/// Name servers of a resolv.conf (resolv.conf(5)), without those that would lead back to us.
pub fn parse_resolv_conf(text: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or("");
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(ip) = words.next().and_then(|w| {
            // A link-local address's zone cannot be kept apart here; such servers are rare on nodes.
            w.parse::<IpAddr>().ok()
        }) else {
            continue;
        };
        let server = SocketAddr::new(ip, 53);
        if !own.iter().any(|o| o.ip() == ip) && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    name: Vec<u8>,
    kind: u16,
    class: u16,
    flags: u8,
}

struct Kept {
    message: Message,
    since: Instant,
    until: Instant,
}

/// The forwarder. Cheap to clone.
#[derive(Clone)]
pub struct Forwarder {
    inner: Arc<Inner>,
}

struct Inner {
    upstreams: Mutex<Vec<SocketAddr>>,
    cache: Mutex<HashMap<Key, Kept>>,
    /// Names of questions that we have asked to see whether they come back to us, and whom we asked.
    probes: Mutex<HashMap<String, SocketAddr>>,
}

fn key_of(query: &Message) -> Option<Key> {
    let q = query.queries.first()?;
    let dnssec = query.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
    Some(Key {
        name: q.name.to_lowercase().to_ascii().into_bytes(),
        kind: u16::from(q.query_type),
        class: u16::from(q.query_class),
        flags: u8::from(dnssec)
            | u8::from(query.metadata.checking_disabled) << 1
            | u8::from(query.edns.is_some()) << 2,
    })
}

/// Seconds that an answer may be kept; None when it may not.
fn lifetime(answer: &Message) -> Option<u32> {
    let m: &Metadata = &answer.metadata;
    if m.truncation
        || !matches!(
            m.response_code,
            ResponseCode::NoError | ResponseCode::NXDomain
        )
    {
        return None;
    }
    let shortest = answer.answers.iter().map(|r| r.ttl).min();
    let seconds = match shortest {
        Some(ttl) => ttl,
        // A negative answer lives as long as its SOA says; without one it must not be kept (RFC 2308).
        None => answer.authorities.iter().find_map(|r| match &r.data {
            RData::SOA(soa) => Some(soa.minimum.min(r.ttl)),
            _ => None,
        })?,
    };
    (seconds > 0).then(|| seconds.min(KEEP))
}

impl Forwarder {
    /// A forwarder to these servers.
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self {
            inner: Arc::new(Inner {
                upstreams: Mutex::new(upstreams),
                cache: Mutex::new(HashMap::new()),
                probes: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// The servers now.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.inner.upstreams.lock().clone()
    }

    /// Other servers from now on.
    pub fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        *self.inner.upstreams.lock() = upstreams;
        self.inner.cache.lock().clear();
    }

    /// The answer to a query, with the query's id: from the cache, else from the first server that gives one. None
    /// when there is no server or none answers.
    pub async fn resolve(&self, raw: &[u8], query: &Message, tcp: bool) -> Option<Vec<u8>> {
        let key = key_of(query);
        if let Some(key) = &key
            && let Some(kept) = self.cached(key, query, Instant::now())
        {
            return Some(kept);
        }
        let upstreams = self.upstreams();
        // The servers in order, as the C library asks them, and round again.
        for server in upstreams
            .iter()
            .cycle()
            .take(TRIES.max(upstreams.len()).min(upstreams.len() * 2))
        {
            let answer = match timeout(TRY, exchange(*server, raw, tcp)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(e)) => {
                    tracing::debug!(%server, error = %e, "a name server failed");
                    continue;
                }
                Err(_) => {
                    tracing::debug!(%server, "a name server did not answer");
                    continue;
                }
            };
            if let (Some(key), Ok(message)) = (key, Message::from_vec(&answer)) {
                self.keep(key, message, Instant::now());
            }
            return Some(with_id(answer, query.metadata.id));
        }
        None
    }

    fn cached(&self, key: &Key, query: &Message, now: Instant) -> Option<Vec<u8>> {
        let cache = self.inner.cache.lock();
        let kept = cache.get(key).filter(|k| k.until > now)?;
        let mut message = kept.message.clone();
        let age = u32::try_from(now.duration_since(kept.since).as_secs()).unwrap_or(u32::MAX);
        drop(cache);
        for record in message
            .answers
            .iter_mut()
            .chain(&mut message.authorities)
            .chain(&mut message.additionals)
        {
            record.ttl = record.ttl.saturating_sub(age).min(KEEP);
        }
        message.metadata.id = query.metadata.id;
        message.metadata.recursion_desired = query.metadata.recursion_desired;
        // As the client wrote it: some compare case.
        message.queries = query.queries.clone();
        message.to_vec().ok()
    }

    fn keep(&self, key: Key, message: Message, since: Instant) {
        let Some(seconds) = lifetime(&message) else {
            return;
        };
        let until = since + Duration::from_secs(u64::from(seconds));
        let mut cache = self.inner.cache.lock();
        if cache.len() >= CACHED {
            cache.retain(|_, k| k.until > since);
            if cache.len() >= CACHED {
                cache.clear();
            }
        }
        cache.insert(
            key,
            Kept {
                message,
                since,
                until,
            },
        );
    }

    /// Asks every server a question that nobody else asks, and drops those that send it back to us (CoreDNS's loop
    /// plugin does the same). `random` makes the name.
    pub async fn look_for_loops(&self, domain: &str, random: u64) {
        for (i, server) in self.upstreams().into_iter().enumerate() {
            let text = format!("{random:016x}.{i}.loop-probe.{domain}.");
            let Ok(name) = hickory_proto::rr::Name::from_ascii(&text) else {
                return;
            };
            let mut query = Message::query();
            query.metadata.recursion_desired = true;
            query.add_query(hickory_proto::op::Query::query(name, RecordType::HINFO));
            let Ok(raw) = query.to_vec() else { return };
            self.inner.probes.lock().insert(text.clone(), server);
            let _ = timeout(TRY, exchange(server, &raw, false)).await;
            self.inner.probes.lock().remove(&text);
        }
    }

    /// Is this question one of [`Forwarder::look_for_loops`]? Then its server is dropped.
    pub fn is_probe(&self, query: &Message) -> bool {
        let Some(q) = query.queries.first() else {
            return false;
        };
        if q.query_type != RecordType::HINFO {
            return false;
        }
        let name = q.name.to_lowercase().to_ascii();
        let Some(server) = self.inner.probes.lock().get(&name).copied() else {
            return false;
        };
        tracing::warn!(%server, "a name server of this node asks the cluster's DNS server; it is not asked any more");
        self.inner.upstreams.lock().retain(|s| *s != server);
        true
    }
}

fn with_id(mut message: Vec<u8>, id: u16) -> Vec<u8> {
    if let Some(field) = message.get_mut(..2) {
        field.copy_from_slice(&id.to_be_bytes());
    }
    message
}

/// Is `answer` the answer to `query` (both on the wire)? Compares id, response bit and question, case and all.
fn answers(query: &[u8], answer: &[u8]) -> bool {
    if answer.len() < 12 || answer[..2] != query[..2] || answer[2] & 0x80 == 0 {
        return false;
    }
    // An error may come without a question.
    if answer[4..6] == [0, 0] {
        return answer[3] & 0x0f != 0;
    }
    let (Ok(q), Ok(a)) = (Message::from_vec(query), Message::from_vec(answer)) else {
        // It cannot be read by us; the client may be able to. The id matched.
        return true;
    };
    match (q.queries.first(), a.queries.first()) {
        (Some(q), Some(a)) => {
            q.name.to_lowercase() == a.name.to_lowercase() && q.query_type == a.query_type
        }
        _ => false,
    }
}

async fn exchange(server: SocketAddr, query: &[u8], tcp: bool) -> std::io::Result<Vec<u8>> {
    let query = with_id(query.to_vec(), rand::random());
    if tcp {
        return exchange_tcp(server, &query).await;
    }
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    // A new port for each query, chosen by the kernel: together with the id what a forger has to guess.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut buf = vec![0; 4096];
    loop {
        let len = socket.recv(&mut buf).await?;
        if answers(&query, &buf[..len]) {
            buf.truncate(len);
            return Ok(buf);
        }
    }
}

async fn exchange_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    if answers(query, &answer) {
        Ok(answer)
    } else {
        Err(std::io::Error::other("the answer is to another question"))
    }
}

/// Lets the runtime wait for a descriptor. tokio has a safe way for its own sockets and pipes only.
#[allow(unsafe_code)]
fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and the same descriptor until it is dropped, which the AsyncFd does last.
    unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }
        .map_err(std::io::Error::from)
}

/// Calls `changed` whenever a file may have another content: also when it is replaced, and when what its symbolic
/// link leads to is. Never returns, except when the kernel has no inotify to give.
///
/// # Errors
/// When the kernel gives no inotify, or its directory cannot be watched.
pub async fn watch_file(path: &Path, mut changed: impl FnMut()) -> std::io::Result<()> {
    use inotify::WatchFlags as W;
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let mut names: Vec<PathBuf> = vec![path.to_path_buf()];
    names.extend(path.canonicalize().ok());
    for name in &names {
        let dir = name.parent().unwrap_or(Path::new("/"));
        inotify::add_watch(
            &fd,
            dir,
            W::CLOSE_WRITE | W::MOVED_TO | W::CREATE | W::DELETE,
        )?;
    }
    let wanted: Vec<_> = names.iter().filter_map(|n| n.file_name()).collect();
    let fd = readable(fd)?;
    loop {
        let mut ready = fd.readable().await?;
        let mut buf = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(fd.get_ref(), &mut buf);
        let mut hit = false;
        while let Ok(event) = reader.next() {
            use std::os::unix::ffi::OsStrExt;
            let name = event
                .file_name()
                .map(|n| std::ffi::OsStr::from_bytes(n.to_bytes()));
            hit |= name.is_none_or(|n| wanted.contains(&n));
        }
        ready.clear_ready();
        if hit {
            changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, Record};

    #[test]
    fn resolv_conf_gives_servers_without_ourselves_and_doubles() {
        let own = ["10.43.0.10:53".parse().expect("address")];
        let text = "# nameserver 1.1.1.1\nnameserver 192.0.2.1 ; x\nnameserver 10.43.0.10\nnameserver ::1\n\
            nameserver 192.0.2.1\nnameserver\nnameserver nonsense\nsearch x";
        let servers: Vec<String> = parse_resolv_conf(text, &own)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(servers, ["192.0.2.1:53", "[::1]:53"]);
    }

    fn answer(ttl: u32, code: ResponseCode) -> Message {
        let name = Name::from_ascii("example.org.").expect("name");
        let mut m = Message::response(1, OpCode::Query);
        m.metadata.response_code = code;
        m.add_query(Query::query(name.clone(), RecordType::A));
        if code == ResponseCode::NoError {
            m.add_answer(Record::from_rdata(
                name,
                ttl,
                RData::A(A::new(192, 0, 2, 1)),
            ));
        }
        m
    }

    #[test]
    fn answers_are_kept_for_their_time_and_count_down() {
        assert_eq!(lifetime(&answer(300, ResponseCode::NoError)), Some(30));
        assert_eq!(lifetime(&answer(0, ResponseCode::NoError)), None);
        assert_eq!(lifetime(&answer(9, ResponseCode::ServFail)), None);
        assert_eq!(lifetime(&answer(9, ResponseCode::NXDomain)), None, "no SOA");
        let f = Forwarder::new(Vec::new());
        let mut query = answer(0, ResponseCode::ServFail);
        query.metadata.id = 77;
        let key = key_of(&query).expect("key");
        let start = Instant::now();
        f.keep(key.clone(), answer(20, ResponseCode::NoError), start);
        let later = |s| start + Duration::from_secs(s);
        let got =
            Message::from_vec(&f.cached(&key, &query, later(5)).expect("kept")).expect("message");
        assert_eq!((got.metadata.id, got.answers[0].ttl), (77, 15));
        assert!(f.cached(&key, &query, later(21)).is_none());
    }
}
