//! Doubling waits before something is tried again. Pure: the random number comes in.

use std::time::Duration;

/// Half of each wait is random: many that lost the same thing at one time do not all come back at once.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    good: Duration,
    ends: u32,
}

impl Backoff {
    /// Waits of `first` at the most, then twice that, up to `longest`. What lived for `good` begins anew.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration, good: Duration) -> Self {
        Self { first, longest, good, ends: 0 }
    }

    /// The wait after the end of what had lived so long (`None`: it never began). `random` is from 0 to 1.
    pub fn after(&mut self, lived: Option<Duration>, random: f64) -> Duration {
        if lived.is_some_and(|lived| lived >= self.good) {
            self.ends = 0;
        }
        let ceiling = self.first.saturating_mul(1 << self.ends.min(16)).min(self.longest);
        self.ends = self.ends.saturating_add(1);
        ceiling.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// Ends in a row.
    #[must_use]
    pub fn ends(&self) -> u32 {
        self.ends
    }

    /// What was before says nothing of the next.
    pub fn anew(&mut self) {
        self.ends = 0;
    }
}
