//! The node ports. Pure: randomness and what is taken come in.

/// A range of ports.
#[derive(Debug, Clone)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// Ports from `first` to `last`, both inclusive.
    pub fn new(first: u16, last: u16) -> Self {
        Self {
            first,
            last: last.max(first),
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
    /// Any port that is not taken; `random` decides where to start looking.
    pub fn any(&self, random: u32, taken: impl Fn(u16) -> bool) -> Option<u16> {
        let n = u32::from(self.last - self.first) + 1;
        (0..n)
            .map(|i| self.first + ((random % n + i) % n) as u16)
            .find(|p| !taken(*p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ports_are_unique_until_there_are_none() {
        let p = Ports::new(30000, 30003);
        let mut got = HashSet::from([30001]);
        while let Some(x) = p.any(u32::MAX, |x| got.contains(&x)) {
            assert!(got.insert(x));
        }
        assert_eq!(got.len(), 4);
        got.remove(&30002);
        assert_eq!(p.any(0, |x| got.contains(&x)), Some(30002));
    }
}
