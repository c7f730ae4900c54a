//! Which node ports are taken. Pure: randomness comes in.

use std::collections::HashSet;

/// A range of ports.
#[derive(Debug, Clone)]
pub struct Ports {
    first: u16,
    last: u16,
    taken: HashSet<u16>,
}

impl Ports {
    /// Ports from `first` to `last`, both inclusive.
    pub fn new(first: u16, last: u16) -> Self {
        Self {
            first,
            last: last.max(first),
            taken: HashSet::new(),
        }
    }
    /// `30000-32767`
    pub fn text(&self) -> String {
        format!("{}-{}", self.first, self.last)
    }
    /// Is it one of the range?
    pub fn contains(&self, port: i64) -> bool {
        (i64::from(self.first)..=i64::from(self.last)).contains(&port)
    }
    /// Takes a port; false when somebody has it.
    pub fn take(&mut self, port: u16) -> bool {
        self.taken.insert(port)
    }
    /// Takes any port.
    pub fn any(&mut self, random: u32) -> Option<u16> {
        let n = u32::from(self.last - self.first) + 1;
        let found = (0..n)
            .map(|i| self.first + ((random % n + i) % n) as u16)
            .find(|p| !self.taken.contains(p))?;
        self.taken.insert(found);
        Some(found)
    }
    /// Gives a port back.
    pub fn release(&mut self, port: u16) {
        self.taken.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_unique_until_there_are_none() {
        let mut p = Ports::new(30000, 30003);
        assert!(p.take(30001) && !p.take(30001));
        let mut got = HashSet::new();
        while let Some(x) = p.any(u32::MAX) {
            assert!(got.insert(x) && x != 30001);
        }
        assert_eq!(got.len(), 3);
        p.release(30002);
        assert_eq!(p.any(0), Some(30002));
    }
}
