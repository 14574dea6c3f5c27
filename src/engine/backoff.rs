//! How long to wait before the next engine. Pure: the random number comes in.

use std::time::Duration;

use crate::backoff;

/// After the second end in a row. After the first there is nothing to wait for: one may be chance, and streams wait.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);
/// An engine that was ready for this long was a good one: its end is the first again.
const STEADY: Duration = Duration::from_secs(60);

/// Doubling waits, but for the first.
#[derive(Debug)]
pub struct Backoff(backoff::Backoff);

impl Default for Backoff {
    fn default() -> Self {
        // The wait that would come before [`FIRST`] is none.
        Self(backoff::Backoff::new(FIRST / 2, LONGEST, STEADY))
    }
}

impl Backoff {
    /// The wait after the end of an engine that had been ready for so long (`None`: never). `random` is from 0 to 1.
    pub fn after(&mut self, ready_for: Option<Duration>, random: f64) -> Duration {
        let wait = self.0.after(ready_for, random);
        if self.0.ends() == 1 { Duration::ZERO } else { wait }
    }

    /// Engines that ended in a row.
    #[must_use]
    pub fn ends(&self) -> u32 {
        self.0.ends()
    }

    /// Another load, or another file: what was before says nothing of it.
    pub fn anew(&mut self) {
        self.0.anew();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_begin_again_after_a_good_engine() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.after(None, 1.0).as_millis()).collect();
        assert_eq!(waits, [0, 250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(backoff.after(Some(Duration::from_secs(1)), 0.0), LONGEST / 2);
        assert_eq!((backoff.after(Some(STEADY), 1.0), backoff.ends()), (Duration::ZERO, 1));
        assert_eq!(backoff.after(None, 1.0), FIRST);
        backoff.anew();
        assert_eq!(backoff.after(None, 1.0), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn every_wait_is_bounded(ends in prop::collection::vec((prop::option::of(0_u64..100), 0.0f64..=1.0), 1..200)) {
            let mut backoff = Backoff::default();
            let mut waited = Duration::ZERO;
            for (ready_for, random) in ends {
                let wait = backoff.after(ready_for.map(Duration::from_secs), random);
                prop_assert!(wait <= LONGEST);
                // Half of it is random, and the doubled half is no less than all before.
                prop_assert!(wait.is_zero() || wait * 2 >= waited.min(LONGEST));
                waited = wait;
            }
        }
    }
}
