//! How long to wait before the next connection. Pure: the random number comes in.

use std::time::Duration;

use crate::backoff;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// After another client took the session: two clients of one id that both come back at once would throw each other out
/// for ever.
const TAKEN_OVER: Duration = Duration::from_secs(10);
/// A connection that lived this long was a good one: the next loss starts from the beginning.
pub const GOOD: Duration = Duration::from_secs(10);

/// Doubling waits, and a longer one after the session was taken.
#[derive(Debug)]
pub struct Backoff(backoff::Backoff);

impl Default for Backoff {
    fn default() -> Self {
        Self(backoff::Backoff::new(FIRST, LONGEST, GOOD))
    }
}

impl Backoff {
    /// The wait after a connection that was up for `lived` (`None`: never came up). `random` is from 0 to 1.
    pub fn after(&mut self, lived: Option<Duration>, taken_over: bool, random: f64) -> Duration {
        let wait = self.0.after(lived, random);
        if taken_over { wait + TAKEN_OVER } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_start_again_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.after(None, false, 1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(backoff.after(Some(GOOD), false, 1.0), FIRST);
        assert_eq!(backoff.after(Some(Duration::from_secs(1)), false, 1.0), FIRST * 2);
    }

    proptest! {
        #[test]
        fn every_wait_is_bounded(steps in prop::collection::vec((any::<bool>(), 0.0f64..=1.0), 1..100)) {
            let mut backoff = Backoff::default();
            for (taken_over, random) in steps {
                let wait = backoff.after(None, taken_over, random);
                prop_assert!(wait >= FIRST / 2 && wait <= LONGEST + TAKEN_OVER);
                prop_assert!(!taken_over || wait >= TAKEN_OVER);
            }
        }
    }
}
