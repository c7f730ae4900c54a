//! The addresses of the service network. Pure: randomness and what is taken come in. Dynamic addresses come from the upper
//! part first, so that the lower one stays free for those who ask for an address (upstream's static band).

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
        })
    }

    /// The network as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Is it one of the network that a service can have?
    pub fn contains(&self, a: Ipv4Addr) -> bool {
        let a = u32::from(a);
        a > self.base && a <= self.base + self.size
    }

    /// Any address that is not taken; `random` decides where to start looking.
    pub fn any(&self, random: u32, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let band = (self.size / 16).clamp(16, 256).min(self.size / 2);
        let upper = self.size - band;
        let free = |a: u32| !self.kept.contains(&a) && !taken(a.into());
        (0..upper)
            .map(|i| self.base + 1 + band + (random % upper.max(1) + i) % upper.max(1))
            .find(|a| free(*a))
            .or_else(|| (0..band).map(|i| self.base + 1 + i).find(|a| free(*a)))
            .map(Ipv4Addr::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn addresses_are_unique_until_there_are_none() {
        let a = Addresses::new("10.0.0.0/28", &["10.0.0.10".parse().expect("ip")]).expect("net");
        let mut got = HashSet::new();
        while let Some(x) = a.any(7, |x| got.contains(&x)) {
            assert!(got.insert(x));
        }
        // 14 hosts, less the API server's and the DNS server's.
        assert_eq!(got.len(), 12);
        let has = |x: &str| a.contains(x.parse().expect("ip"));
        assert!(has("10.0.0.10") && has("10.0.0.1"));
        assert!(
            !has("10.0.0.15") && !has("10.0.0.0"),
            "broadcast and network"
        );
        assert!(
            Addresses::new("10.0.0.0", &[]).is_err() && Addresses::new("10.0.0.0/31", &[]).is_err()
        );
    }

    proptest! {
        #[test]
        fn any_address_is_inside_the_network_and_free(randoms in proptest::collection::vec(any::<u32>(), 1..40)) {
            let a = Addresses::new("192.168.7.0/26", &[]).expect("net");
            let mut seen = HashSet::new();
            for r in randoms {
                let x = a.any(r, |x| seen.contains(&x)).expect("free");
                prop_assert!(a.contains(x) && seen.insert(x) && x != Ipv4Addr::new(192, 168, 7, 1));
            }
        }
        #[test]
        fn no_text_panics(s in "\\PC*") {
            let _ = Addresses::new(&s, &[]);
        }
    }
}
