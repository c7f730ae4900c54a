//! nf_tables: atomic transactions of tables, chains, rules, sets and elements. Owns the message shapes
//! (linux/netfilter/nf_tables.h); decides nothing about what the rules are for. IPv4 family only.

use super::{
    Error, Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, Result, Socket, attr_of,
    attrs, text,
};
use rustix::io::Errno;
use std::net::Ipv4Addr;

const SUBSYS: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const NFPROTO_IPV4: u8 = 2;

/// The table belongs to the socket that made it: nobody else changes or flushes it (Linux 5.12).
pub const TABLE_OWNER: u32 = 2;
/// An owned table stays when its socket closes, and can then be taken over (Linux 6.9).
pub const TABLE_PERSIST: u32 = 4;

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that came in, before routing.
    Prerouting = 0,
    /// Packets for this machine.
    Input = 1,
    /// Packets passing through.
    Forward = 2,
    /// Packets that local processes send.
    Output = 3,
    /// Packets going out, after routing.
    Postrouting = 4,
}

/// A register of 4 bytes, 0 to 15. Longer values take the following ones too.
#[derive(Debug, Clone, Copy)]
pub struct Reg(pub u8);

impl Reg {
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is dropped.
    Drop,
    /// It is accepted by this chain.
    Accept,
    /// It goes on in another chain.
    Goto(String),
    /// It goes on in another chain and comes back when that ends.
    Jump(String),
}

/// One step of a rule.
#[derive(Debug, Clone)]
pub enum Expr {
    /// Network header bytes into a register.
    Network { offset: u32, len: u32, to: Reg },
    /// Transport header bytes into a register.
    Transport { offset: u32, len: u32, to: Reg },
    /// A `meta` key into a register.
    Meta { key: u32, to: Reg },
    /// The packet's mark from a register.
    SetMark { from: Reg },
    /// A `ct` key into a register.
    Ct { key: u32, to: Reg },
    /// The routing type of the destination or source address into a register.
    AddrType { source: bool, to: Reg },
    /// Goes on only when the register begins with (or does not begin with) these bytes.
    Cmp {
        from: Reg,
        equal: bool,
        value: Vec<u8>,
    },
    /// `register & mask ^ xor`.
    Bitwise {
        reg: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// A random number below `modulus` into a register.
    Random { to: Reg, modulus: u32 },
    /// Goes on only when the set has the key; a map's value goes into `to`.
    Lookup {
        set: &'static str,
        key: Reg,
        to: Option<Reg>,
    },
    /// The verdict of a verdict map; goes on when the map has no such key.
    VerdictMap { set: &'static str, key: Reg },
    /// Adds an element, or refreshes its time.
    Update {
        set: &'static str,
        key: Reg,
        data: Option<Reg>,
        timeout_ms: Option<u64>,
    },
    /// Destination address and port from registers.
    Dnat { address: Reg, port: Option<Reg> },
    /// The source becomes the outgoing interface's address, with a random port.
    Masquerade,
    /// A TCP reset.
    RejectTcp,
    /// ICMP port unreachable.
    RejectPort,
    /// A verdict.
    Verdict(Verdict),
}

/// Keys of [`Expr::Meta`].
pub mod meta {
    /// Packet mark, in host byte order.
    pub const MARK: u32 = 3;
    /// Incoming interface's name, 16 bytes.
    pub const IIFNAME: u32 = 6;
    /// Outgoing interface's name, 16 bytes.
    pub const OIFNAME: u32 = 7;
    /// Transport protocol, one byte.
    pub const L4PROTO: u32 = 16;
}

/// Keys and values of [`Expr::Ct`].
pub mod ct {
    /// Connection state bits, in host byte order.
    pub const STATE: u32 = 0;
    /// Connection status bits, in host byte order.
    pub const STATUS: u32 = 2;
    /// State bit of packets that fit no connection.
    pub const STATE_INVALID: u32 = 1;
    /// State bit of the first packet of a connection.
    pub const STATE_NEW: u32 = 8;
    /// Status bit of a connection whose destination was changed.
    pub const STATUS_DNAT: u32 = 32;
}

/// Shown types of sets (nftables' own numbers; the kernel only keeps them for `nft list`).
pub mod types {
    /// An IPv4 address.
    pub const IPV4: u32 = 7;
    /// A transport protocol.
    pub const PROTO: u32 = 12;
    /// A port.
    pub const PORT: u32 = 13;
    /// A number of 4 bytes in host order: nftables has no better concatenable name for it than "mark".
    pub const NUMBER: u32 = 19;
    /// Fields one after the other, each padded to 4 bytes.
    pub fn concat(fields: &[u32]) -> u32 {
        fields.iter().fold(0, |all, f| (all << 6) | f)
    }
}

/// What a map holds.
#[derive(Debug, Clone, Copy)]
pub enum MapData {
    /// Verdicts.
    Verdict,
    /// Values: shown type and length in bytes.
    Value(u32, u32),
}

/// A set or map to be made.
#[derive(Debug, Clone)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// Shown type of the key.
    pub key_type: u32,
    /// Length of the key in bytes.
    pub key_len: u32,
    /// For a map.
    pub data: Option<MapData>,
    /// Packets add elements, which expire where the rule says so.
    pub dynamic: bool,
    /// Elements at most, for dynamic sets.
    pub size: Option<u32>,
}

/// Up to 16 bytes of a key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Small {
    bytes: [u8; 16],
    len: u8,
}

impl Small {
    /// Four-byte fields one after the other (an address, a protocol, a port, a number).
    pub fn fields(fields: &[[u8; 4]]) -> Self {
        let mut s = Self {
            bytes: [0; 16],
            len: 0,
        };
        for (slot, field) in s.bytes.chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(field);
            s.len += 4;
        }
        s
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A port as a field of a concatenation.
pub fn port_field(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key.
    pub key: Small,
    /// The value, for a map.
    pub value: Option<Value>,
}

/// A map's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Bytes.
    Bytes(Small),
    /// A verdict.
    Verdict(Verdict),
}

/// Changes that happen all or not at all.
#[derive(Debug)]
pub struct Transaction {
    m: Messages,
    table: String,
    set_id: u32,
    changes: usize,
}

fn genmsg(res_id: u16) -> [u8; 4] {
    let [a, b] = res_id.to_be_bytes();
    [NFPROTO_IPV4, 0, a, b]
}

impl Transaction {
    /// Changes of one table.
    pub fn new(table: &str) -> Self {
        let mut m = Messages::new();
        m.begin(
            "beginning a transaction",
            BATCH_BEGIN,
            0,
            &[],
            &[0, 0, 0, 10],
        );
        Self {
            m,
            table: table.to_string(),
            set_id: 0,
            changes: 0,
        }
    }

    /// How many changes there are.
    pub fn changes(&self) -> usize {
        self.changes
    }

    fn begin(&mut self, what: String, kind: u16, flags: u16) {
        self.changes += 1;
        self.m
            .begin(what, SUBSYS << 8 | kind, flags, &[], &genmsg(0));
    }

    /// The table, with [`TABLE_OWNER`] and [`TABLE_PERSIST`] where wanted.
    pub fn add_table(&mut self, flags: u32) {
        self.begin(
            format!("adding the nft table {}", self.table),
            NEWTABLE,
            NLM_F_CREATE,
        );
        self.m.attr_str(1, &self.table);
        self.m.attr_be32(2, flags);
    }

    /// Removes the table and everything in it.
    pub fn delete_table(&mut self) {
        self.begin(
            format!("removing the nft table {}", self.table),
            DELTABLE,
            0,
        );
        self.m.attr_str(1, &self.table);
    }

    /// A chain of type `filter` or `nat` at a hook. Smaller priorities come first; -100 is dstnat, 100 srcnat.
    pub fn add_base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) {
        self.begin(
            format!("adding the nft chain {name}"),
            NEWCHAIN,
            NLM_F_CREATE,
        );
        self.m.attr_str(1, &self.table);
        self.m.attr_str(3, name);
        self.m.nest(4, |m| {
            m.attr_be32(1, hook as u32);
            m.attr_be32(2, priority as u32);
        });
        self.m.attr_be32(5, 1);
        self.m.attr_str(7, kind);
    }

    /// A chain that others go to.
    pub fn add_chain(&mut self, name: &str) {
        self.begin(
            format!("adding the nft chain {name}"),
            NEWCHAIN,
            NLM_F_CREATE,
        );
        self.m.attr_str(1, &self.table);
        self.m.attr_str(3, name);
    }

    /// Removes a chain that nothing goes to, with its rules.
    pub fn delete_chain(&mut self, name: &str) {
        self.begin(format!("removing the nft chain {name}"), DELCHAIN, 0);
        self.m.attr_str(1, &self.table);
        self.m.attr_str(3, name);
    }

    /// A rule at the end of a chain.
    pub fn add_rule(&mut self, chain: &str, exprs: &[Expr]) {
        self.begin(
            format!("adding a rule to the nft chain {chain}"),
            NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
        );
        self.m.attr_str(1, &self.table);
        self.m.attr_str(2, chain);
        self.m.nest(4, |m| {
            for expr in exprs {
                m.nest(1, |m| encode(m, expr));
            }
        });
    }

    /// A set or map.
    pub fn add_set(&mut self, set: &Set) {
        self.begin(
            format!("adding the nft set {}", set.name),
            NEWSET,
            NLM_F_CREATE,
        );
        self.set_id += 1;
        let mut flags = 0;
        if set.data.is_some() {
            flags |= 0x8;
        }
        if set.dynamic {
            flags |= 0x20;
            if set.data.is_some() {
                flags |= 0x10;
            }
        }
        let m = &mut self.m;
        m.attr_str(1, &self.table);
        m.attr_str(2, set.name);
        m.attr_be32(3, flags);
        m.attr_be32(4, set.key_type);
        m.attr_be32(5, set.key_len);
        match set.data {
            Some(MapData::Verdict) => m.attr_be32(6, 0xffff_ff00),
            Some(MapData::Value(kind, len)) => {
                m.attr_be32(6, kind);
                m.attr_be32(7, len);
            }
            None => {}
        }
        if let Some(size) = set.size {
            m.nest(9, |m| m.attr_be32(1, size));
        }
        m.attr_be32(10, self.set_id);
    }

    fn elements<'a>(
        &mut self,
        set: &str,
        add: bool,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let (what, kind, flags) = if add {
                ("adding", NEWSETELEM, NLM_F_CREATE)
            } else {
                ("removing", DELSETELEM, 0)
            };
            self.begin(format!("{what} elements of {set}"), kind, flags);
            self.m.attr_str(1, &self.table);
            self.m.attr_str(2, set);
            let at = self.m.open(3);
            while self.m.room(at, 128 + 64)
                && let Some(element) = elements.next()
            {
                let one = self.m.open(1);
                let key = self.m.open(1);
                self.m.attr(1, element.key.as_slice());
                self.m.close(key);
                if add && let Some(value) = &element.value {
                    let data = self.m.open(2);
                    match value {
                        Value::Bytes(bytes) => self.m.attr(1, bytes.as_slice()),
                        Value::Verdict(verdict) => encode_verdict(&mut self.m, verdict),
                    }
                    self.m.close(data);
                }
                self.m.close(one);
            }
            self.m.close(at);
        }
    }

    /// Elements that are not there yet.
    pub fn add_elements<'a>(&mut self, set: &str, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(set, true, elements);
    }

    /// Elements that are there.
    pub fn delete_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.elements(set, false, elements);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.m.len()
    }

    /// Is there nothing to change?
    pub fn is_empty(&self) -> bool {
        self.changes == 0
    }

    fn finish(mut self) -> Messages {
        // Older kernels do not acknowledge the end of a batch, but its last change.
        self.m.add_flags(NLM_F_ACK);
        self.m.begin(
            "committing a transaction",
            BATCH_END,
            0,
            &[],
            &[0, 0, 0, 10],
        );
        self.m
    }
}

fn encode_verdict(m: &mut Messages, verdict: &Verdict) {
    m.nest(2, |m| {
        let (code, chain) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3i32, Some(chain)),
            Verdict::Goto(chain) => (-4i32, Some(chain)),
        };
        m.attr_be32(1, code as u32);
        if let Some(chain) = chain {
            m.attr_str(2, chain);
        }
    });
}

fn value(m: &mut Messages, kind: u16, bytes: &[u8]) {
    m.nest(kind, |m| m.attr(1, bytes));
}

fn expr(m: &mut Messages, name: &str, fill: impl FnOnce(&mut Messages)) {
    m.attr_str(1, name);
    m.nest(2, fill);
}

fn payload(m: &mut Messages, base: u32, offset: u32, len: u32, to: Reg) {
    expr(m, "payload", |m| {
        m.attr_be32(1, to.number());
        m.attr_be32(2, base);
        m.attr_be32(3, offset);
        m.attr_be32(4, len);
    });
}

fn encode(m: &mut Messages, e: &Expr) {
    match e {
        Expr::Network { offset, len, to } => payload(m, 1, *offset, *len, *to),
        Expr::Transport { offset, len, to } => payload(m, 2, *offset, *len, *to),
        Expr::Meta { key, to } => expr(m, "meta", |m| {
            m.attr_be32(1, to.number());
            m.attr_be32(2, *key);
        }),
        Expr::SetMark { from } => expr(m, "meta", |m| {
            m.attr_be32(2, meta::MARK);
            m.attr_be32(3, from.number());
        }),
        Expr::Ct { key, to } => expr(m, "ct", |m| {
            m.attr_be32(1, to.number());
            m.attr_be32(2, *key);
        }),
        Expr::AddrType { source, to } => expr(m, "fib", |m| {
            m.attr_be32(1, to.number());
            m.attr_be32(2, 3);
            m.attr_be32(3, if *source { 1 } else { 2 });
        }),
        Expr::Cmp {
            from,
            equal,
            value: bytes,
        } => expr(m, "cmp", |m| {
            m.attr_be32(1, from.number());
            m.attr_be32(2, u32::from(!*equal));
            value(m, 3, bytes);
        }),
        Expr::Bitwise { reg, mask, xor } => expr(m, "bitwise", |m| {
            m.attr_be32(1, reg.number());
            m.attr_be32(2, reg.number());
            m.attr_be32(3, mask.len() as u32);
            value(m, 4, mask);
            value(m, 5, xor);
        }),
        Expr::Random { to, modulus } => expr(m, "numgen", |m| {
            m.attr_be32(1, to.number());
            m.attr_be32(2, *modulus);
            m.attr_be32(3, 1);
        }),
        Expr::Lookup { set, key, to } => expr(m, "lookup", |m| {
            m.attr_str(1, set);
            m.attr_be32(2, key.number());
            if let Some(to) = to {
                m.attr_be32(3, to.number());
            }
        }),
        Expr::VerdictMap { set, key } => expr(m, "lookup", |m| {
            m.attr_str(1, set);
            m.attr_be32(2, key.number());
            m.attr_be32(3, 0);
        }),
        Expr::Update {
            set,
            key,
            data,
            timeout_ms,
        } => expr(m, "dynset", |m| {
            m.attr_str(1, set);
            m.attr_be32(3, u32::from(timeout_ms.is_some()));
            m.attr_be32(4, key.number());
            if let Some(data) = data {
                m.attr_be32(5, data.number());
            }
            if let Some(ms) = timeout_ms {
                m.attr(6, &ms.to_be_bytes());
            }
        }),
        Expr::Dnat { address, port } => expr(m, "nat", |m| {
            m.attr_be32(1, 1);
            m.attr_be32(2, u32::from(NFPROTO_IPV4));
            m.attr_be32(3, address.number());
            if let Some(port) = port {
                m.attr_be32(5, port.number());
            }
        }),
        Expr::Masquerade => expr(m, "masq", |m| m.attr_be32(1, 0x10)),
        Expr::RejectTcp => expr(m, "reject", |m| m.attr_be32(1, 1)),
        Expr::RejectPort => expr(m, "reject", |m| {
            m.attr_be32(1, 0);
            m.attr(2, &[3]);
        }),
        Expr::Verdict(verdict) => expr(m, "immediate", |m| {
            m.attr_be32(1, 0);
            m.nest(2, |m| encode_verdict(m, verdict));
        }),
    }
}

/// Clears an address in a register. (`nft list` shows a masked address; a constant in a concatenation it cannot show.)
pub fn zero(reg: Reg) -> Expr {
    Expr::Bitwise {
        reg,
        mask: vec![0; 4],
        xor: vec![0; 4],
    }
}

/// The destination address into a register.
pub fn daddr(to: Reg) -> Expr {
    Expr::Network {
        offset: 16,
        len: 4,
        to,
    }
}

/// The source address into a register.
pub fn saddr(to: Reg) -> Expr {
    Expr::Network {
        offset: 12,
        len: 4,
        to,
    }
}

/// The transport protocol into a register.
pub fn l4proto(to: Reg) -> Expr {
    Expr::Meta {
        key: meta::L4PROTO,
        to,
    }
}

/// The destination port (TCP or UDP) into a register.
pub fn dport(to: Reg) -> Expr {
    Expr::Transport {
        offset: 2,
        len: 2,
        to,
    }
}

/// Goes on only when the address in the register is inside (or outside) a network. The register is spoilt.
pub fn network(reg: Reg, inside: bool, address: Ipv4Addr, prefix: u8) -> [Expr; 2] {
    let mask = prefix_mask(prefix);
    [
        Expr::Bitwise {
            reg,
            mask: mask.to_be_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expr::Cmp {
            from: reg,
            equal: inside,
            value: (u32::from(address) & mask).to_be_bytes().to_vec(),
        },
    ]
}

/// The mask of a prefix length.
pub fn prefix_mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

/// Goes on only when these bits of a host-order register are set (any of them).
pub fn any_bit(reg: Reg, bits: u32) -> [Expr; 2] {
    [
        Expr::Bitwise {
            reg,
            mask: bits.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expr::Cmp {
            from: reg,
            equal: false,
            value: vec![0; 4],
        },
    ]
}

/// Goes on only when an interface's name begins (or does not begin) with `prefix`.
pub fn interface(key: u32, prefix: &str, begins: bool) -> [Expr; 2] {
    [
        Expr::Meta { key, to: Reg(0) },
        Expr::Cmp {
            from: Reg(0),
            equal: begins,
            value: prefix.as_bytes().to_vec(),
        },
    ]
}

/// Goes on only for local destination (or source) addresses.
pub fn local(source: bool, is: bool) -> [Expr; 2] {
    const RTN_LOCAL: u32 = 2;
    [
        Expr::AddrType { source, to: Reg(0) },
        Expr::Cmp {
            from: Reg(0),
            equal: is,
            value: RTN_LOCAL.to_ne_bytes().to_vec(),
        },
    ]
}

/// A base chain somebody made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The hook's number (see [`Hook`]).
    pub hook: u32,
    /// Does it drop what no rule takes?
    pub drops: bool,
}

fn be32(value: Option<&[u8]>) -> Option<u32> {
    value
        .and_then(|v| v.try_into().ok())
        .map(u32::from_be_bytes)
}

impl Socket {
    /// Carries out a transaction.
    ///
    /// # Errors
    /// The first refusal: then nothing has changed.
    pub fn commit(&mut self, transaction: Transaction) -> Result<()> {
        if transaction.is_empty() {
            return Ok(());
        }
        self.transaction(transaction.finish())
    }

    /// Is there a table of this name? With its flags.
    ///
    /// # Errors
    /// When the kernel refuses (no nf_tables, for example).
    pub fn table(&mut self, name: &str) -> Result<Option<u32>> {
        let mut m = Messages::new();
        m.begin(
            "listing nft tables",
            SUBSYS << 8 | GETTABLE,
            NLM_F_DUMP,
            &[],
            &genmsg(0),
        );
        let mut found = None;
        self.dump(m, |_, body| {
            let Some(rest) = body.get(4..) else { return };
            if attr_of(rest, 1).map(text).as_deref() == Some(name) {
                found = Some(be32(attr_of(rest, 2)).unwrap_or(0));
            }
        })?;
        Ok(found)
    }

    /// Every IPv4 base chain of the machine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn base_chains(&mut self) -> Result<Vec<BaseChain>> {
        let mut m = Messages::new();
        m.begin(
            "listing nft chains",
            SUBSYS << 8 | GETCHAIN,
            NLM_F_DUMP,
            &[],
            &genmsg(0),
        );
        let mut all = Vec::new();
        self.dump(m, |_, body| {
            let Some(rest) = body.get(4..) else { return };
            let Some(hook) = attr_of(rest, 4) else { return };
            all.push(BaseChain {
                table: attr_of(rest, 1).map(text).unwrap_or_default(),
                name: attr_of(rest, 3).map(text).unwrap_or_default(),
                hook: be32(attr_of(hook, 1)).unwrap_or(u32::MAX),
                drops: be32(attr_of(rest, 5)) == Some(0),
            });
        })?;
        Ok(all)
    }

    /// Every element of a set as key bytes and value bytes (empty for a set, or for a verdict).
    ///
    /// # Errors
    /// When the kernel refuses, or there is no such set.
    pub fn set_elements(&mut self, table: &str, set: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut m = Messages::new();
        m.begin(
            format!("listing the elements of {set}"),
            SUBSYS << 8 | GETSETELEM,
            NLM_F_DUMP,
            &[],
            &genmsg(0),
        );
        m.attr_str(1, table);
        m.attr_str(2, set);
        let mut all = Vec::new();
        self.dump(m, |_, body| {
            let Some(list) = body.get(4..).and_then(|rest| attr_of(rest, 3)) else {
                return;
            };
            for (_, element) in attrs(list) {
                let bytes = |kind| {
                    attr_of(element, kind)
                        .and_then(|v| attr_of(v, 1))
                        .unwrap_or_default()
                        .to_vec()
                };
                all.push((bytes(1), bytes(2)));
            }
        })?;
        Ok(all)
    }

    /// Removes a table if it is there.
    ///
    /// # Errors
    /// EPERM when a running process owns it.
    pub fn remove_table(&mut self, name: &str) -> Result<()> {
        if self.table(name)?.is_none() {
            return Ok(());
        }
        let mut t = Transaction::new(name);
        t.delete_table();
        match self.commit(t) {
            Err(e) if e.is(&[Errno::NOENT]) => Ok(()),
            Err(e) => Err(owned(name, e)),
            Ok(()) => Ok(()),
        }
    }

    /// Replaces a table by what `fill` puts into a new one of the same name, in one transaction: there is no moment
    /// without it. The new table belongs to this socket where the kernel can do that, so that `nft flush ruleset`
    /// leaves it alone, and it stays when the socket closes.
    ///
    /// # Errors
    /// EPERM when another running process owns the table, or the first refusal.
    pub fn replace_table(
        &mut self,
        name: &str,
        mut fill: impl FnMut(&mut Transaction),
    ) -> Result<()> {
        let old = self.table(name)?.is_some();
        let mut attempt = |flags: u32| {
            let mut t = Transaction::new(name);
            if old {
                t.delete_table();
            }
            t.add_table(flags);
            fill(&mut t);
            self.commit(t)
        };
        match attempt(TABLE_OWNER | TABLE_PERSIST) {
            Err(e)
                if e.is(&[Errno::OPNOTSUPP, Errno::INVAL])
                    && e.what.starts_with("adding the nft table") =>
            {
                attempt(0)
            }
            Err(e) => Err(owned(name, e)),
            Ok(()) => Ok(()),
        }
    }
}

/// Says why a table may not be touched.
fn owned(name: &str, mut error: Error) -> Error {
    if error.is(&[Errno::PERM]) {
        error.note = Some(format!(
            "the table {name} belongs to a running process: is another skiff server in this network namespace?"
        ));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_follow_prefixes() {
        assert_eq!(prefix_mask(0), 0);
        assert_eq!(prefix_mask(24), 0xffff_ff00);
        assert_eq!(prefix_mask(32), u32::MAX);
    }

    #[test]
    fn many_elements_are_split_over_messages() {
        let elements: Vec<Element> = (0..5000u32)
            .map(|i| Element {
                key: Small::fields(&[i.to_be_bytes()]),
                value: Some(Value::Verdict(Verdict::Goto("svc-2".into()))),
            })
            .collect();
        let mut t = Transaction::new("t");
        t.add_elements("s", &elements);
        assert!(t.changes() > 1);
        assert!(t.len() > 5000 * 32);
    }
}
