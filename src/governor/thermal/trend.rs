//! Where a temperature goes while pace cannot change it any more: smoother and later than what pace is steered by, since
//! a step that costs a reload must not follow from noise.

use std::time::Duration;

use super::pace::lag;

/// Lag of level and slope in seconds: with the noisiest sensor assumed, 0.5 K, what is foreseen for a minute is sure to
/// some 0.2 K.
const LAG: f64 = 15.0;

/// Level and slope.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trend {
    at: Duration,
    level: f64,
    /// Kelvin per second.
    pub slope: f64,
}

impl Trend {
    pub(super) fn new(at: Duration, level: f64) -> Self {
        Self { at, level, slope: 0.0 }
    }

    pub(super) fn then(self, now: Duration, measured: f64) -> Self {
        let seconds = now.saturating_sub(self.at).as_secs_f64();
        let level = lag(self.level, measured, seconds, LAG);
        Self { at: now, level, slope: lag(self.slope, (measured - level) / LAG, seconds, LAG) }
    }

    /// Behind its lag.
    pub(super) fn level(&self) -> f64 {
        self.level
    }

    /// Without its lag.
    pub(super) fn now(&self) -> f64 {
        self.level + LAG * self.slope
    }

    /// In so much time, if it goes on so.
    pub(super) fn after(&self, time: Duration) -> f64 {
        self.now() + self.slope * time.as_secs_f64()
    }
}
