//! Connection tracking: finding and deleting entries. Owns the message shapes (linux/netfilter/nfnetlink_conntrack.h);
//! which flows are stale is the caller's to say. IPv4 only.

use super::{Messages, NLM_F_ACK, NLM_F_DUMP, Result, Socket, attr_of};
use rustix::io::Errno;
use std::net::Ipv4Addr;

const SUBSYS: u16 = 1;
const CT_GET: u16 = 1;
const CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const AF_INET: u8 = 2;
/// Of CTA_FILTER: compare the protocol number only.
const FILTER_PROTO_NUM: u32 = 1 << 3;

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port (0 where the protocol has none).
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// A tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// As the first packet looked before any translation.
    pub original: Tuple,
    /// As replies look before their translation.
    pub reply: Tuple,
}

fn parse_tuple(value: &[u8]) -> Option<Tuple> {
    let ip = attr_of(value, 1)?;
    let proto = attr_of(value, 2)?;
    let address = |kind| {
        attr_of(ip, kind)
            .and_then(|v| <[u8; 4]>::try_from(v).ok())
            .map(Ipv4Addr::from)
    };
    let port = |kind| {
        attr_of(proto, kind)
            .and_then(|v| <[u8; 2]>::try_from(v).ok())
            .map_or(0, u16::from_be_bytes)
    };
    Some(Tuple {
        source: address(1)?,
        destination: address(2)?,
        protocol: *attr_of(proto, 1)?.first()?,
        source_port: port(2),
        destination_port: port(3),
    })
}

impl Socket {
    fn dump_flows(
        &mut self,
        protocol: Option<u8>,
        mut take: impl FnMut(Flow, &[u8], &[u8]),
    ) -> Result<()> {
        let mut m = Messages::new();
        m.begin(
            "listing connections",
            SUBSYS << 8 | CT_GET,
            NLM_F_DUMP,
            &[],
            &[AF_INET, 0, 0, 0],
        );
        if let Some(protocol) = protocol {
            m.nest(CTA_TUPLE_ORIG, |m| m.nest(2, |m| m.attr(1, &[protocol])));
            m.nest(CTA_FILTER, |m| {
                m.attr_u32(1, FILTER_PROTO_NUM);
                m.attr_u32(2, 0);
            });
        }
        self.dump(m, |_, body| {
            let Some(rest) = body.get(4..) else { return };
            let (Some(original), Some(reply)) = (
                attr_of(rest, CTA_TUPLE_ORIG),
                attr_of(rest, CTA_TUPLE_REPLY),
            ) else {
                return;
            };
            if let (Some(o), Some(r)) = (parse_tuple(original), parse_tuple(reply)) {
                take(
                    Flow {
                        original: o,
                        reply: r,
                    },
                    original,
                    attr_of(rest, CTA_ID).unwrap_or_default(),
                );
            }
        })
    }

    /// Deletes the tracked flows of a protocol that `stale` picks; returns how many.
    ///
    /// # Errors
    /// When the kernel refuses (no conntrack netlink, for example).
    pub fn delete_flows(
        &mut self,
        protocol: u8,
        mut stale: impl FnMut(&Flow) -> bool,
    ) -> Result<usize> {
        let mut doomed: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut take = |flow: Flow, tuple: &[u8], id: &[u8]| {
            if flow.original.protocol == protocol && stale(&flow) {
                doomed.push((tuple.to_vec(), id.to_vec()));
            }
        };
        // Kernels before 5.8 have no filter.
        match self.dump_flows(Some(protocol), &mut take) {
            Err(e) if e.is(&[Errno::INVAL, Errno::OPNOTSUPP]) => {
                self.dump_flows(None, &mut take)?
            }
            other => other?,
        }
        let count = doomed.len();
        // Each acknowledgement takes room in the socket's queue: some hundred at a time.
        for part in doomed.chunks(200) {
            let mut m = Messages::new();
            for (tuple, id) in part {
                m.begin(
                    "deleting a connection",
                    SUBSYS << 8 | CT_DELETE,
                    NLM_F_ACK,
                    &[Errno::NOENT],
                    &[AF_INET, 0, 0, 0],
                );
                m.attr(CTA_TUPLE_ORIG | 0x8000, tuple);
                m.attr(CTA_ID, id);
            }
            self.request(m, |_, _| {})?;
        }
        Ok(count)
    }

    /// Every tracked flow (for tests and for finding faults).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flows(&mut self) -> Result<Vec<Flow>> {
        let mut all = Vec::new();
        self.dump_flows(None, |flow, _, _| all.push(flow))?;
        Ok(all)
    }
}
