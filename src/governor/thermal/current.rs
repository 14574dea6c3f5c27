//! Over-current: additive increase, multiplicative decrease. The counters say how often the hardware cut the clocks, not
//! by how much, so a share of the pace is given back until the events end. A duty cycle lowers the average that OC2
//! watches; the peaks of OC3 it only makes rarer, hence the floor.

use std::time::Duration;

use crate::governor::input::Input;

/// What is left of the pace after an interval with events.
const LESS: f64 = 0.9;
/// Peaks are as high at any pace: less than half would cost more than the hardware's own cut.
const LEAST: f64 = 0.5;
/// How fast the pace comes back without events: all of the way from the floor takes ten minutes.
const MORE_PER_SECOND: f64 = 0.5 / 600.0;
/// Two decreases are at least so far apart, however short the interval is.
const APART: Duration = Duration::from_secs(1);

/// A bound on pace.
#[derive(Debug, Clone)]
pub(super) struct OverCurrent {
    pace: f64,
    lowered: Option<Duration>,
    at: Option<Duration>,
    events: u64,
}

impl OverCurrent {
    pub(super) fn new() -> Self {
        Self { pace: 1.0, lowered: None, at: None, events: 0 }
    }

    /// Events of the last interval that had any.
    pub(super) fn events(&self) -> f64 {
        self.events as f64
    }

    pub(super) fn step(&mut self, input: &Input<'_>) -> f64 {
        let seconds = self.at.map_or(0.0, |at| input.now.saturating_sub(at).as_secs_f64());
        self.at = Some(input.now);
        if input.over_current == 0 {
            self.pace = (self.pace + MORE_PER_SECOND * seconds).min(1.0);
        } else if self.lowered.is_none_or(|lowered| input.now.saturating_sub(lowered) >= APART) {
            self.pace = (self.pace * LESS).max(LEAST);
            self.lowered = Some(input.now);
            self.events = input.over_current;
        }
        self.pace
    }
}
