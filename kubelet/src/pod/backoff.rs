//! Growing delays after failures (client-go's flowcontrol.Backoff as the kubelet uses it). Owns one entry; the
//! caller owns the clock.

use jiff::{SignedDuration, Timestamp};

/// First delay of crashing containers and failing pulls.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay.
pub const MAX: SignedDuration = SignedDuration::from_secs(300);

/// The delay after which something that failed may be tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    entry: Option<(SignedDuration, Timestamp)>,
}

impl Backoff {
    /// Until when to wait, if a failure at `failed` must still be waited for at `now`. A failure that comes more than
    /// twice the longest delay (10 minutes) after the last attempt starts afresh.
    pub fn wait_until(&self, failed: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let (delay, updated) = self.entry?;
        if expired(failed, updated) {
            return None;
        }
        let until = failed.checked_add(delay).ok()?;
        (now < until).then_some(until)
    }

    /// An attempt is made now, after the failure at `failed`: the next delay doubles.
    pub fn next(&mut self, failed: Timestamp, now: Timestamp) {
        let delay = match self.entry {
            Some((delay, updated)) if !expired(failed, updated) => (delay * 2).min(MAX),
            _ => INITIAL,
        };
        self.entry = Some((delay, now));
    }

    /// The delay in force.
    pub fn delay(&self) -> SignedDuration {
        self.entry.map_or(SignedDuration::ZERO, |(d, _)| d)
    }

    /// Forgets every failure.
    pub fn reset(&mut self) {
        self.entry = None;
    }
}

fn expired(event: Timestamp, updated: Timestamp) -> bool {
    event.duration_since(updated) > MAX * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).unwrap()
    }

    #[test]
    fn the_first_restart_is_at_once_and_the_next_ones_later_and_later() {
        let mut b = Backoff::default();
        assert_eq!(b.wait_until(at(100), at(100)), None);
        b.next(at(100), at(100));
        assert_eq!(b.wait_until(at(101), at(102)), Some(at(111)));
        assert_eq!(b.wait_until(at(101), at(111)), None);
        b.next(at(101), at(111));
        assert_eq!(b.wait_until(at(112), at(112)), Some(at(132)));
        for _ in 0..10 {
            b.next(at(112), at(112));
        }
        assert_eq!(b.delay(), MAX);
    }

    #[test]
    fn ten_quiet_minutes_start_the_delays_afresh() {
        let mut b = Backoff::default();
        b.next(at(0), at(0));
        b.next(at(1), at(20));
        assert_eq!(b.wait_until(at(20 + 601), at(20 + 601)), None);
        b.next(at(20 + 601), at(20 + 601));
        assert_eq!(b.delay(), INITIAL);
    }
}
