//! How long a request takes, learnt from those that ended, to tell a refused client when to come again.

use std::time::Duration;

/// Weight of the newest sample in the running mean: about the last eight requests count.
const WEIGHT: f64 = 0.125;
/// Before anything was measured.
const GUESS: Duration = Duration::from_secs(5);
/// No hint is longer than this: by then the mean says little.
const LONGEST: Duration = Duration::from_secs(600);

/// A running mean of the time that requests spend in the engine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ServiceTime {
    mean: Option<f64>,
}

impl ServiceTime {
    /// A request ended after that long in the engine.
    pub(super) fn add(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.mean = Some(self.mean.map_or(took, |mean| mean + WEIGHT * (took - mean)));
    }

    /// Milliseconds until all of `waiting` requests have started, where `parallel` run at once: who comes again then has
    /// lost no time to those who were taken, and until then there is nothing to come for.
    pub(super) fn retry_after_ms(self, waiting: usize, parallel: u32) -> u32 {
        let mean = self.mean.unwrap_or(GUESS.as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "a queue is far shorter than 2^52")]
        let seconds = (mean * waiting.max(1) as f64 / f64::from(parallel.max(1))).min(LONGEST.as_secs_f64());
        u32::try_from(Duration::from_secs_f64(seconds).as_millis()).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_follows_what_was_measured() {
        let mut time = ServiceTime::default();
        assert_eq!(time.retry_after_ms(1, 1), 5000);
        for _ in 0..100 {
            time.add(Duration::from_secs(2));
        }
        assert_eq!(time.retry_after_ms(1, 1), 2000);
        assert_eq!(time.retry_after_ms(64, 8), 16_000);
        assert_eq!(time.retry_after_ms(0, 8), 250);
        assert_eq!(time.retry_after_ms(64, 1), 128_000);
        assert_eq!(time.retry_after_ms(1_000_000, 1), 600_000);
    }
}
