//! Cluster DNS: a server on the cluster DNS address itself, over UDP and TCP. Owns the sockets and the form of
//! answers; [`zone`] knows the cluster's names, [`forward`] asks the node's name servers for all others.
//!
//! The sockets are our own rather than hickory-server's, which logs two lines for each query and cannot pass a query
//! on as it came; messages are read and written by hickory-proto.

pub mod forward;
pub mod share;
pub mod zone;

use crate::Cidr;
use forward::Forwarder;
use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use rand::seq::SliceRandom;
use share::Shares;
use skiff_client::{Cache, Informers};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use zone::Zone;

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The cluster's domain (`cluster.local`).
    pub domain: String,
    /// Where it listens (the cluster DNS address, which [`crate::PodNetwork::add_address`] has put on the bridge).
    pub listen: SocketAddr,
    /// The cluster's own networks: their reverse names are never asked elsewhere.
    pub local: Vec<Cidr>,
    /// Names the node's name servers.
    pub resolv_conf: PathBuf,
}

impl DnsConfig {
    /// The defaults of design.md.
    pub fn new() -> Self {
        Self {
            domain: "cluster.local".into(),
            listen: (Ipv4Addr::new(10, 43, 0, 10), 53).into(),
            local: vec![
                Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 16),
                Cidr::new(Ipv4Addr::new(10, 43, 0, 0), 16),
            ],
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// Why DNS failed.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The address cannot be listened on.
    #[error(
        "listening for DNS on {0}: {1}; stop what listens there, or choose another --cluster-dns"
    )]
    Bind(SocketAddr, #[source] std::io::Error),
    /// The domain is no name.
    #[error("the cluster domain {0:?} is not a DNS name; choose another --cluster-domain")]
    Domain(String),
}

/// Queries that wait for the node's name servers at once; more are refused.
const WAITING: usize = 1000;
/// Of those, one address's.
const WAITING_EACH: usize = 200;
/// Open TCP connections.
const CONNECTIONS: usize = 200;
/// Of those, one address's.
const CONNECTIONS_EACH: usize = 20;
/// A TCP connection may idle so long.
const IDLE: Duration = Duration::from_secs(10);
/// Largest UDP answer: what passes everywhere unfragmented (DNS flag day 2020).
const UDP_MAX: u16 = 1232;

/// The server, bound to its sockets.
pub struct DnsServer {
    config: DnsConfig,
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

struct Shared {
    zone: RwLock<Zone>,
    ready: std::sync::atomic::AtomicBool,
    forwarder: Forwarder,
    waiting: Arc<Semaphore>,
}

/// What is done with a query.
enum Reply {
    /// Send this.
    Now(Vec<u8>),
    /// Ask the node's name servers.
    Forward(Message),
    /// Send this, with the addresses of a name of the outside added.
    Follow(Box<Message>, Box<Message>, hickory_proto::rr::Name),
    /// Say nothing.
    Nothing,
}

impl DnsServer {
    /// Binds the sockets; queries wait in them until [`DnsServer::run`].
    ///
    /// # Errors
    /// When the address is taken or not one of this machine's.
    pub async fn bind(config: DnsConfig) -> Result<Self, DnsError> {
        let fail = |e| DnsError::Bind(config.listen, e);
        let udp = UdpSocket::bind(config.listen).await.map_err(fail)?;
        let address = udp.local_addr().map_err(fail)?;
        let tcp = TcpListener::bind(address).await.map_err(fail)?;
        Ok(Self {
            config,
            udp: Arc::new(udp),
            tcp,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.udp.local_addr().unwrap_or(self.config.listen)
    }

    /// Serves until the token ends it.
    ///
    /// # Errors
    /// When the domain is no name.
    pub async fn run(self, informers: Informers, stop: CancellationToken) -> Result<(), DnsError> {
        let caches = (
            informers.cache::<Service>(),
            informers.cache::<EndpointSlice>(),
            informers.cache::<Namespace>(),
        );
        self.run_on(caches, stop).await
    }

    /// [`DnsServer::run`] on caches fed by any means.
    ///
    /// # Errors
    /// As [`DnsServer::run`].
    pub async fn run_on(
        self,
        (services, slices, namespaces): (Cache<Service>, Cache<EndpointSlice>, Cache<Namespace>),
        stop: CancellationToken,
    ) -> Result<(), DnsError> {
        let address = match self.address().ip() {
            IpAddr::V4(a) => a,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let zone = Zone::new(
            &self.config.domain,
            address,
            self.config.local.clone(),
            services.clone(),
            namespaces.clone(),
        )
        .map_err(|_| DnsError::Domain(self.config.domain.clone()))?;
        let shared = Arc::new(Shared {
            zone: RwLock::new(zone),
            ready: false.into(),
            forwarder: Forwarder::new(Vec::new()),
            waiting: Arc::new(Semaphore::new(WAITING)),
        });
        let work = async {
            tokio::join!(
                follow_slices(&shared, &services, &slices, &namespaces),
                follow_resolv_conf(&shared, &self.config, self.address()),
                serve_udp(self.udp.clone(), shared.clone()),
                serve_tcp(self.tcp, shared.clone()),
            );
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
        Ok(())
    }
}

/// Binds and serves.
///
/// # Errors
/// As [`DnsServer::bind`] and [`DnsServer::run`].
pub async fn run(
    informers: Informers,
    config: DnsConfig,
    stop: CancellationToken,
) -> Result<(), DnsError> {
    DnsServer::bind(config).await?.run(informers, stop).await
}

async fn follow_slices(
    shared: &Shared,
    services: &Cache<Service>,
    slices: &Cache<EndpointSlice>,
    namespaces: &Cache<Namespace>,
) {
    let mut events = slices.subscribe();
    let synced = async {
        services.synced().await;
        namespaces.synced().await;
        slices.synced().await;
    };
    tokio::pin!(synced);
    let mut waiting = true;
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => {
                    let mut zone = shared.zone.write();
                    zone.slice(&event);
                    while let Ok(event) = events.try_recv() {
                        zone.slice(&event);
                    }
                }
                None => return,
            },
            () = &mut synced, if waiting => {
                waiting = false;
                shared.ready.store(true, std::sync::atomic::Ordering::Release);
            }
        }
    }
}

async fn follow_resolv_conf(shared: &Arc<Shared>, config: &DnsConfig, own: SocketAddr) {
    let read = || {
        let text = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        let servers = forward::parse_resolv_conf(&text, &[own, config.listen]);
        if servers == shared.forwarder.upstreams() {
            return;
        }
        tracing::debug!(?servers, "the node's name servers");
        shared.forwarder.set_upstreams(servers);
        let (shared, domain) = (shared.clone(), config.domain.clone());
        tokio::spawn(async move {
            shared
                .forwarder
                .look_for_loops(&domain, rand::random())
                .await;
        });
    };
    read();
    if let Err(e) = forward::watch_file(&config.resolv_conf, read).await {
        tracing::warn!(file = %config.resolv_conf.display(), error = %e,
            "changes of the node's name servers will not be seen until the next start");
        std::future::pending::<()>().await;
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buf = vec![0; 4096];
    let shares = Shares::new(WAITING_EACH);
    loop {
        let (len, from) = match socket.recv_from(&mut buf).await {
            Ok(got) => got,
            Err(e) => {
                // An ICMP error to an earlier answer: nothing is wrong with the socket.
                tracing::trace!(error = %e, "receiving a DNS query");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let raw = &buf[..len];
        match shared.reply(raw, false) {
            Reply::Now(answer) => {
                let _ = socket.send_to(&answer, from).await;
            }
            Reply::Nothing => {}
            slow => {
                let place = shares.take(from.ip());
                let place = place.zip(shared.waiting.clone().try_acquire_owned().ok());
                let Some(place) = place else {
                    if let Some(refusal) = refuse(raw) {
                        let _ = socket.send_to(&refusal, from).await;
                    }
                    continue;
                };
                let (socket, shared, raw) = (socket.clone(), shared.clone(), raw.to_vec());
                tokio::spawn(async move {
                    if let Some(answer) = shared.finish(&raw, slow, false).await {
                        let _ = socket.send_to(&answer, from).await;
                    }
                    drop(place);
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let shares = Shares::new(CONNECTIONS_EACH);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(share) = shares.take(from.ip()) else {
                    continue;
                };
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _ = serve_connection(stream, &shared).await;
                    drop((place, share));
                });
            }
            Err(e) => {
                tracing::debug!(error = %e, "accepting a DNS connection");
                // Out of descriptors, as a rule: it passes.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    loop {
        let query = tokio::time::timeout(IDLE, async {
            let len = stream.read_u16().await?;
            let mut query = vec![0; usize::from(len)];
            stream.read_exact(&mut query).await?;
            Ok::<_, std::io::Error>(query)
        })
        .await??;
        let answer = match shared.reply(&query, true) {
            Reply::Now(answer) => answer,
            Reply::Nothing => return Ok(()),
            slow => match shared.finish(&query, slow, true).await {
                Some(answer) => answer,
                None => return Ok(()),
            },
        };
        let len = u16::try_from(answer.len()).unwrap_or(u16::MAX);
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer[..usize::from(len)]);
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// REFUSED to a query that could at least be taken for one.
fn refuse(raw: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(raw).ok()?;
    Some(encode(
        &response(&query, ResponseCode::Refused),
        &query,
        false,
    ))
}

fn response(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries = query.queries.clone();
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX);
        message.set_edns(edns);
    }
    message
}

/// Writes a message; over UDP it is cut (with the TC bit) to what the client takes.
fn encode(message: &Message, query: &Message, tcp: bool) -> Vec<u8> {
    let max = if tcp {
        u16::MAX
    } else {
        let takes = query.edns.as_ref().map_or(512, Edns::max_payload);
        takes.clamp(512, UDP_MAX)
    };
    let write = |message: &Message| {
        let mut buf = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut buf);
        encoder.set_max_size(max);
        message.emit(&mut encoder).map(|()| buf)
    };
    write(message).unwrap_or_else(|e| {
        tracing::debug!(error = %e, "a DNS answer could not be written");
        let mut failure = Message::response(query.metadata.id, query.metadata.op_code);
        failure.metadata.response_code = ResponseCode::ServFail;
        failure.to_vec().unwrap_or_default()
    })
}

impl Shared {
    /// What to do with the bytes of a query. Anything may come.
    fn reply(&self, raw: &[u8], tcp: bool) -> Reply {
        let query = match Message::from_vec(raw) {
            Ok(query) => query,
            Err(_) => {
                // FORMERR where a header can be read that is a query's.
                return match Header::read(&mut BinDecoder::new(raw)) {
                    Ok(h) if h.metadata.message_type == MessageType::Query => {
                        let mut m = Message::response(h.metadata.id, h.metadata.op_code);
                        m.metadata.response_code = ResponseCode::FormErr;
                        m.to_vec().map_or(Reply::Nothing, Reply::Now)
                    }
                    _ => Reply::Nothing,
                };
            }
        };
        // Answering answers would let two servers talk for ever.
        if query.metadata.message_type != MessageType::Query {
            return Reply::Nothing;
        }
        let say = |code| Reply::Now(encode(&response(&query, code), &query, tcp));
        if query.metadata.op_code != OpCode::Query {
            return say(ResponseCode::NotImp);
        }
        let [question] = query.queries.as_slice() else {
            return say(ResponseCode::FormErr);
        };
        if query.edns.as_ref().is_some_and(|e| e.version() > 0) {
            return say(ResponseCode::BADVERS);
        }
        if question.query_class != DNSClass::IN
            || matches!(question.query_type, RecordType::AXFR | RecordType::IXFR)
        {
            return say(ResponseCode::Refused);
        }
        if self.forwarder.is_probe(&query) {
            return say(ResponseCode::ServFail);
        }
        let zone = self.zone.read();
        let Some(mut answer) = zone.answer(&question.name, question.query_type) else {
            drop(zone);
            return Reply::Forward(query);
        };
        if !self.ready.load(std::sync::atomic::Ordering::Acquire) {
            return say(ResponseCode::ServFail);
        }
        let mut message = response(&query, answer.code);
        message.metadata.authoritative = true;
        if answer.answers.is_empty() {
            message.add_authority(zone.soa());
        }
        drop(zone);
        // Clients take the first: let each get another one (CoreDNS's loadbalance). CNAMEs stay first.
        if answer
            .answers
            .iter()
            .all(|r| r.record_type() == question.query_type)
        {
            answer.answers.shuffle(&mut rand::rng());
        }
        message.add_answers(answer.answers);
        message.add_additionals(answer.additionals);
        match answer.follow {
            Some(name) => Reply::Follow(Box::new(query), Box::new(message), name),
            None => Reply::Now(encode(&message, &query, tcp)),
        }
    }

    /// The rest of a reply that takes time.
    async fn finish(&self, raw: &[u8], reply: Reply, tcp: bool) -> Option<Vec<u8>> {
        match reply {
            Reply::Now(answer) => Some(answer),
            Reply::Nothing => None,
            Reply::Forward(query) => Some(match self.forwarder.resolve(raw, &query, tcp).await {
                Some(answer) => answer,
                None => encode(&response(&query, ResponseCode::ServFail), &query, tcp),
            }),
            Reply::Follow(query, mut message, name) => {
                let mut next = Message::query();
                next.metadata.recursion_desired = true;
                let kind = query
                    .queries
                    .first()
                    .map_or(RecordType::A, |q| q.query_type);
                next.add_query(hickory_proto::op::Query::query(name, kind));
                let raw = next.to_vec().ok()?;
                // Over TCP only when the client has it: a cut answer is then cut for the client too.
                let found = self.forwarder.resolve(&raw, &next, tcp).await;
                if let Some(found) = found.and_then(|f| Message::from_vec(&f).ok()) {
                    let records: Vec<Record> = found
                        .answers
                        .into_iter()
                        .map(|mut r| {
                            r.ttl = r.ttl.min(zone::TTL);
                            r
                        })
                        .collect();
                    message.metadata.truncation |= found.metadata.truncation;
                    message.add_answers(records);
                }
                Some(encode(&message, &query, tcp))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    fn shared() -> Shared {
        let namespaces = Cache::detached();
        namespaces.apply(Namespace {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some("d".into()),
                ..Default::default()
            },
            ..Default::default()
        });
        let address = Ipv4Addr::new(10, 43, 0, 10);
        Shared {
            zone: RwLock::new(
                Zone::new(
                    "cluster.local",
                    address,
                    vec![],
                    Cache::detached(),
                    namespaces,
                )
                .expect("zone"),
            ),
            ready: true.into(),
            forwarder: Forwarder::new(Vec::new()),
            waiting: Arc::new(Semaphore::new(1)),
        }
    }

    fn ask(shared: &Shared, change: impl FnOnce(&mut Message)) -> Option<Message> {
        let mut query = Message::query();
        let name = Name::from_ascii("1-2-3-4.d.pod.cluster.local.").expect("name");
        query.add_query(Query::query(name, RecordType::A));
        change(&mut query);
        match shared.reply(&query.to_vec().expect("bytes"), false) {
            Reply::Now(bytes) => Message::from_vec(&bytes).ok(),
            _ => None,
        }
    }

    #[test]
    fn queries_that_are_none_of_ours_get_their_codes() {
        let s = shared();
        let ok = ask(&s, |_| {}).expect("answer");
        assert_eq!((ok.answers.len(), ok.metadata.authoritative), (1, true));
        assert!(ok.edns.is_none());
        assert!(
            ask(&s, |q| {
                q.set_edns(Edns::new());
            })
            .expect("answer")
            .edns
            .is_some()
        );
        let code = |m: Option<Message>| m.map(|m| m.metadata.response_code);
        assert_eq!(
            code(ask(&s, |q| q.metadata.op_code = OpCode::Notify)),
            Some(ResponseCode::NotImp)
        );
        assert_eq!(
            code(ask(&s, |q| q.queries.clear())),
            Some(ResponseCode::FormErr)
        );
        assert_eq!(
            code(ask(&s, |q| q.queries[0].query_class = DNSClass::CH)),
            Some(ResponseCode::Refused)
        );
        assert_eq!(
            code(ask(&s, |q| q.queries[0].query_type = RecordType::AXFR)),
            Some(ResponseCode::Refused)
        );
        assert_eq!(
            code(ask(&s, |q| q.metadata.message_type = MessageType::Response)),
            None
        );
        let negative = ask(&s, |q| {
            q.queries[0].name = Name::from_ascii("x.cluster.local.").expect("name")
        });
        let negative = negative.expect("answer");
        assert_eq!(negative.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(negative.authorities.len(), 1, "with the SOA");
        s.ready.store(false, std::sync::atomic::Ordering::Release);
        assert_eq!(code(ask(&s, |_| {})), Some(ResponseCode::ServFail));
    }

    #[tokio::test]
    async fn connections_of_one_address_do_not_keep_another_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let server = listener.local_addr().expect("address");
        tokio::spawn(serve_tcp(listener, Arc::new(shared())));
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            held.push(TcpStream::connect(server).await.expect("connect"));
        }
        // Whoever comes from elsewhere is answered, while these say nothing.
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket
            .bind(SocketAddr::from(([127, 0, 0, 2], 0)))
            .expect("another address");
        let mut other = socket.connect(server).await.expect("connect");
        let mut query = Message::query();
        let name = Name::from_ascii("1-2-3-4.d.pod.cluster.local.").expect("name");
        query.add_query(Query::query(name, RecordType::A));
        let raw = query.to_vec().expect("bytes");
        other.write_u16(raw.len() as u16).await.expect("write");
        other.write_all(&raw).await.expect("write");
        let answer = tokio::time::timeout(IDLE / 2, other.read_u16());
        assert!(answer.await.expect("kept out").is_ok());
        // The last of the others was not taken.
        let last = held.last_mut().expect("one");
        let ended = tokio::time::timeout(IDLE / 2, last.read_u8());
        assert!(ended.await.expect("taken").is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_get_an_error_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200), tcp: bool) {
            let _ = shared().reply(&bytes, tcp);
        }

        #[test]
        fn broken_queries_get_an_error_or_nothing(at in 0usize..60, byte: u8, cut in 0usize..80) {
            let mut query = Message::query();
            query.add_query(Query::query(Name::from_ascii("web.d.svc.cluster.local.").expect("name"), RecordType::SRV));
            query.set_edns(Edns::new());
            let mut bytes = query.to_vec().expect("bytes");
            if let Some(b) = bytes.get_mut(at) { *b = byte; }
            bytes.truncate(cut.max(1));
            let _ = shared().reply(&bytes, false);
        }
    }
}
