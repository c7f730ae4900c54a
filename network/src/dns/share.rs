//! How much of what there is for all one address may have at once, so that one pod cannot keep the names from the others.
//! Owns counts; refuses by giving none.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Counts by address.
pub struct Shares {
    most: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them; given back when dropped.
pub struct Share {
    of: Arc<Shares>,
    address: IpAddr,
}

impl Shares {
    /// At most so many for one address.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: Mutex::default(),
        })
    }

    /// One more for this address; none when it has all it may.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let address = address.to_canonical();
        let mut held = self.held.lock();
        let count = held.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share {
            of: self.clone(),
            address,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.of.held.lock();
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_nothing_from_another_and_gives_back() {
        let shares = Shares::new(2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held: Vec<_> = (0..3).map(|_| shares.take(a)).collect();
        assert!(held[1].is_some() && held[2].is_none());
        assert!(shares.take(b).is_some());
        drop(held);
        assert!(shares.take(a).is_some());
        assert!(shares.held.lock().is_empty());
    }
}
