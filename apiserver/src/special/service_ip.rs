//! Which addresses of the service network are taken. Pure: randomness comes in. Dynamic addresses come from the upper
//! part first, so that the lower one stays free for those who ask for an address (upstream's static band).

use std::collections::HashSet;
use std::net::Ipv4Addr;

/// The service network.
#[derive(Debug, Clone)]
pub struct Addresses {
    base: u32,
    /// Usable addresses: base+1 to base+size.
    size: u32,
    text: String,
    /// Never given out unless asked for: the API server's and the DNS server's.
    kept: Vec<u32>,
    taken: HashSet<u32>,
}

/// Why an address that was asked for cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not of the network.
    Range,
    /// Somebody has it.
    Taken,
}

impl Addresses {
    /// A network like `10.43.0.0/16`.
    ///
    /// # Errors
    /// When it is none, or too small.
    pub fn new(cidr: &str, kept: &[Ipv4Addr]) -> Result<Self, String> {
        let bad = || format!("--service-cidr {cidr}: give an IPv4 network like 10.43.0.0/16");
        let (net, bits) = cidr.split_once('/').ok_or_else(bad)?;
        let (net, bits): (Ipv4Addr, u32) = (
            net.parse().map_err(|_| bad())?,
            bits.parse().map_err(|_| bad())?,
        );
        if !(8..=30).contains(&bits) {
            return Err(format!(
                "--service-cidr {cidr}: the network must be between /8 and /30"
            ));
        }
        let mask = u32::MAX << (32 - bits);
        let base = u32::from(net) & mask;
        let mut kept: Vec<u32> = kept.iter().map(|a| u32::from(*a)).collect();
        kept.push(base + 1);
        Ok(Self {
            base,
            size: !mask - 1,
            text: format!("{}/{bits}", Ipv4Addr::from(base)),
            kept,
            taken: HashSet::new(),
        })
    }

    /// The network as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn contains(&self, a: u32) -> bool {
        a > self.base && a <= self.base + self.size
    }

    /// Takes an address that somebody asks for.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn take(&mut self, a: Ipv4Addr) -> Result<(), Refused> {
        let a = u32::from(a);
        if !self.contains(a) {
            return Err(Refused::Range);
        }
        if self.taken.insert(a) {
            Ok(())
        } else {
            Err(Refused::Taken)
        }
    }

    /// Takes any address; `random` decides where to start looking.
    pub fn any(&mut self, random: u32) -> Option<Ipv4Addr> {
        let band = (self.size / 16).clamp(16, 256).min(self.size / 2);
        let upper = self.size - band;
        let free = |a: u32| !self.taken.contains(&a) && !self.kept.contains(&a);
        let found = (0..upper)
            .map(|i| self.base + 1 + band + (random % upper.max(1) + i) % upper.max(1))
            .find(|a| free(*a))
            .or_else(|| (0..band).map(|i| self.base + 1 + i).find(|a| free(*a)))?;
        self.taken.insert(found);
        Some(found.into())
    }

    /// Gives an address back.
    pub fn release(&mut self, a: Ipv4Addr) {
        self.taken.remove(&u32::from(a));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_unique_until_there_are_none() {
        let mut a =
            Addresses::new("10.0.0.0/28", &["10.0.0.10".parse().expect("ip")]).expect("net");
        let mut got = HashSet::new();
        while let Some(x) = a.any(7) {
            assert!(got.insert(x));
        }
        // 14 hosts, less the API server's and the DNS server's.
        assert_eq!(got.len(), 12);
        assert_eq!(a.take("10.0.0.10".parse().expect("ip")), Ok(()));
        assert_eq!(
            a.take("10.0.0.10".parse().expect("ip")),
            Err(Refused::Taken)
        );
        assert_eq!(
            a.take("10.0.0.15".parse().expect("ip")),
            Err(Refused::Range),
            "broadcast"
        );
        assert_eq!(
            a.take("10.0.0.0".parse().expect("ip")),
            Err(Refused::Range),
            "network"
        );
        assert!(
            Addresses::new("10.0.0.0", &[]).is_err() && Addresses::new("10.0.0.0/31", &[]).is_err()
        );
    }

    proptest! {
        #[test]
        fn any_address_is_inside_the_network_and_free(randoms in proptest::collection::vec(any::<u32>(), 1..40)) {
            let mut a = Addresses::new("192.168.7.0/26", &[]).expect("net");
            let mut seen = HashSet::new();
            for r in randoms {
                let x = a.any(r).expect("free");
                prop_assert!(a.contains(u32::from(x)) && seen.insert(x) && x != Ipv4Addr::new(192, 168, 7, 1));
            }
        }
        #[test]
        fn no_text_panics(s in "\\PC*") {
            let _ = Addresses::new(&s, &[]);
        }
    }
}
