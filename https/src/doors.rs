//! Who is let in: counts connections, in all and for each address, and strangers (who have not proved who they are) apart.
//! Strangers never push out those who are known: where there is no room for another stranger, the address with the most
//! of them loses its oldest. Knows no sockets.

use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio_util::sync::CancellationToken;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub total: usize,
    /// Of one address (IPv6: of one /64).
    pub per_address: usize,
    /// Of those who have not proved who they are.
    pub strangers: usize,
    /// Of one address among those.
    pub strangers_per_address: usize,
}

impl Limits {
    /// These, but never more than one in `part` of the file descriptors that the process may have.
    pub fn within_descriptors(mut self, part: u64) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let own = limit.current.map(|n| n / part.max(1));
        if let Some(n) = own.and_then(|n| usize::try_from(n).ok()) {
            self.total = self.total.min(n.max(1));
            self.per_address = self.per_address.min((self.total / 2).max(1));
            self.strangers = self.strangers.min((self.total / 2).max(1));
            self.strangers_per_address =
                self.strangers_per_address.min((self.strangers / 2).max(1));
        }
        self
    }
}

#[derive(Default)]
struct Visitors {
    known: usize,
    /// Oldest first.
    strangers: VecDeque<(u64, CancellationToken)>,
}

#[derive(Default)]
struct Book {
    addresses: HashMap<IpAddr, Visitors>,
    known: usize,
    strangers: usize,
    next: u64,
}

/// The count of everybody inside.
pub struct Doors {
    limits: Limits,
    book: Mutex<Book>,
}

/// A place inside, given back when dropped.
pub struct Pass {
    doors: Arc<Doors>,
    address: IpAddr,
    id: u64,
    known: AtomicBool,
    leave: CancellationToken,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pass({})", self.address)
    }
}

/// What is counted together.
fn group(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(a) => {
            let [a, b, c, d, ..] = a.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

impl Book {
    /// Sends the oldest stranger of an address away.
    fn evict(&mut self, address: IpAddr) -> bool {
        let Some(visitors) = self.addresses.get_mut(&address) else {
            return false;
        };
        let Some((_, leave)) = visitors.strangers.pop_front() else {
            return false;
        };
        leave.cancel();
        self.strangers -= 1;
        if visitors.known == 0 && visitors.strangers.is_empty() {
            self.addresses.remove(&address);
        }
        true
    }

    /// Sends the oldest stranger of the address that has the most of them away.
    fn evict_any(&mut self) -> bool {
        let most = self
            .addresses
            .iter()
            .max_by_key(|(_, v)| v.strangers.len())
            .map(|(a, _)| *a);
        most.is_some_and(|a| self.evict(a))
    }
}

impl Doors {
    /// Nobody is inside.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            book: Mutex::default(),
        })
    }

    /// A place for a stranger from this address; none when there is no room.
    pub fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Pass> {
        let (address, l) = (group(from), self.limits);
        let mut book = self.book.lock();
        let (known, strangers) = book
            .addresses
            .get(&address)
            .map_or((0, 0), |v| (v.known, v.strangers.len()));
        let full = strangers >= l.strangers_per_address || known + strangers >= l.per_address;
        if full && !book.evict(address) {
            return None;
        }
        let full = book.strangers >= l.strangers || book.known + book.strangers >= l.total;
        if full && !book.evict_any() {
            return None;
        }
        let id = book.next;
        book.next += 1;
        book.strangers += 1;
        let leave = CancellationToken::new();
        book.addresses
            .entry(address)
            .or_default()
            .strangers
            .push_back((id, leave.clone()));
        Some(Pass {
            doors: self.clone(),
            address,
            id,
            known: AtomicBool::new(false),
            leave,
        })
    }

    /// How many are inside: known ones and strangers.
    pub fn inside(&self) -> (usize, usize) {
        let book = self.book.lock();
        (book.known, book.strangers)
    }
}

impl Pass {
    /// Who came in has proved who they are; no more a stranger. Costs nothing when said again.
    pub fn known(&self) {
        if self.known.load(Relaxed) {
            return;
        }
        let mut book = self.doors.book.lock();
        // Somebody who was already sent away stays so.
        if book.remove(self.address, self.id) {
            book.known += 1;
            book.addresses.entry(self.address).or_default().known += 1;
            self.known.store(true, Relaxed);
        }
    }

    /// Resolves when the place is needed for somebody else.
    pub async fn evicted(&self) {
        self.leave.cancelled().await;
    }
}

impl Book {
    fn remove(&mut self, address: IpAddr, id: u64) -> bool {
        let Some(visitors) = self.addresses.get_mut(&address) else {
            return false;
        };
        let Ok(at) = visitors.strangers.binary_search_by_key(&id, |(id, _)| *id) else {
            return false;
        };
        visitors.strangers.remove(at);
        if visitors.known == 0 && visitors.strangers.is_empty() {
            self.addresses.remove(&address);
        }
        self.strangers -= 1;
        true
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut book = self.doors.book.lock();
        if !self.known.load(Relaxed) {
            book.remove(self.address, self.id);
            return;
        }
        book.known -= 1;
        if let Some(v) = book.addresses.get_mut(&self.address) {
            v.known -= 1;
            if v.known == 0 && v.strangers.is_empty() {
                book.addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        total: 6,
        per_address: 4,
        strangers: 4,
        strangers_per_address: 3,
    };

    fn ip(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    #[test]
    fn an_address_that_fills_its_part_loses_its_own_oldest_stranger() {
        let doors = Doors::new(LIMITS);
        let inside: Vec<Pass> = (0..3).filter_map(|_| doors.enter(ip(1))).collect();
        let fourth = doors.enter(ip(1)).expect("room");
        assert!(inside[0].leave.is_cancelled() && !inside[1].leave.is_cancelled());
        assert!(!fourth.leave.is_cancelled());
        assert_eq!(doors.inside(), (0, 3));
    }

    #[test]
    fn strangers_of_one_address_do_not_keep_another_address_out() {
        let doors = Doors::new(LIMITS);
        let many: Vec<Pass> = (0..3).filter_map(|_| doors.enter(ip(1))).collect();
        let few: Vec<Pass> = (0..2).filter_map(|_| doors.enter(ip(2))).collect();
        assert_eq!(few.len(), 2);
        assert!(many[0].leave.is_cancelled(), "whoever has the most gives");
        assert!(!few.iter().any(|p| p.leave.is_cancelled()));
    }

    #[test]
    fn those_who_are_known_are_never_sent_away() {
        let doors = Doors::new(LIMITS);
        let known: Vec<Pass> = (0..4).filter_map(|_| doors.enter(ip(1))).collect();
        // The fourth pushed the first out before anybody was known.
        known.iter().for_each(Pass::known);
        assert_eq!(doors.inside(), (3, 0));
        let one = doors.enter(ip(1)).expect("room for one more");
        one.known();
        assert!(doors.enter(ip(1)).is_none(), "the address is full");
        let two: Vec<Pass> = (2..9).filter_map(|n| doors.enter(ip(n))).collect();
        assert_eq!(two.len(), 7, "strangers push out strangers");
        assert_eq!(doors.inside(), (4, 2));
        assert!(known[1..].iter().all(|p| !p.leave.is_cancelled()));
    }

    #[test]
    fn a_place_is_given_back() {
        let doors = Doors::new(LIMITS);
        let a = doors.enter(ip(1));
        let b = doors.enter(ip(1)).expect("room");
        b.known();
        assert_eq!(doors.inside(), (1, 1));
        drop((a, b));
        assert_eq!(doors.inside(), (0, 0));
        assert!(doors.book.lock().addresses.is_empty());
    }

    #[test]
    fn one_network_of_ipv6_counts_as_one_address() {
        let doors = Doors::new(LIMITS);
        let inside: Vec<Pass> = (0..4)
            .filter_map(|n| doors.enter(format!("2001:db8::{n}").parse().expect("ip")))
            .collect();
        assert!(inside[0].leave.is_cancelled());
    }
}
