//! An IPv4 network in CIDR notation. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// `10.42.0.0/24`: the address has no bits outside the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an IPv4 network such as 10.42.0.0/24 (IPv6 pod networks are not supported yet)"
)]
pub struct CidrError(String);

impl Cidr {
    /// The network that an address and prefix length lie in.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        let mask = crate::netlink::nft::prefix_mask(prefix);
        Self {
            address: Ipv4Addr::from(u32::from(address) & mask),
            prefix,
        }
    }

    /// Its first address (the network's own).
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its prefix length.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Its last address (the broadcast address).
    pub fn last(&self) -> Ipv4Addr {
        let mask = crate::netlink::nft::prefix_mask(self.prefix);
        Ipv4Addr::from(u32::from(self.address) | !mask)
    }

    /// The `n`th address counted from 0, None beyond the end.
    pub fn nth(&self, n: u32) -> Option<Ipv4Addr> {
        let address = u32::from(self.address).checked_add(n)?;
        (address <= u32::from(self.last())).then(|| Ipv4Addr::from(address))
    }

    /// Is this address inside?
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.address..=self.last()).contains(&address)
    }

    /// Have the two an address in common?
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let fail = || CidrError(text.to_string());
        let (address, prefix) = text.split_once('/').ok_or_else(fail)?;
        let prefix: u8 = prefix.parse().map_err(|_| fail())?;
        if prefix > 32 {
            return Err(fail());
        }
        Ok(Self::new(address.parse().map_err(|_| fail())?, prefix))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl serde::Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_parse_and_know_their_addresses() {
        let c: Cidr = "10.42.0.7/24".parse().expect("a network");
        assert_eq!(c.to_string(), "10.42.0.0/24");
        assert_eq!(c.last(), Ipv4Addr::new(10, 42, 0, 255));
        assert_eq!(c.nth(256), None);
        assert!(c.contains(Ipv4Addr::new(10, 42, 0, 9)));
        assert!(!c.contains(Ipv4Addr::new(10, 42, 1, 0)));
        for bad in ["", "10.42.0.0", "10.42.0.0/33", "fd00::/64", "x/24"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
