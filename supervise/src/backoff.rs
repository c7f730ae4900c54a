//! How long to wait before a task that failed is started again. Pure: the time it ran is an argument.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);
/// A run of this length starts the series anew.
const FORGIVEN: Duration = Duration::from_secs(60);

/// Pauses that double while failures follow each other.
#[derive(Debug, Clone)]
pub struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST }
    }
}

impl Backoff {
    /// The pause after a run that lasted `ran` and failed: 200 ms at first, twice as long each time, 30 s at the most.
    pub fn next(&mut self, ran: Duration) -> Duration {
        if ran >= FORGIVEN {
            self.pause = FIRST;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_limit_and_a_long_run_starts_anew() {
        let mut b = Backoff::default();
        let first: Vec<u128> = (0..10)
            .map(|_| b.next(Duration::ZERO).as_millis())
            .collect();
        assert_eq!(first[..3], [200, 400, 800]);
        assert_eq!(first[8..], [30_000, 30_000]);
        assert_eq!(b.next(FORGIVEN), FIRST);
    }
}
