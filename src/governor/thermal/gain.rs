//! How much full work heats the die above its heatsink, learned from how temperature and work move together.
//!
//! Both are freed of what is slow (a high-pass of [`SLOW`]), and the slope of the one over the other is a regression
//! that forgets. Only where work moves much is it looked at: the small moves are the controller's own answers to noise,
//! and would be taken for their cause.

use super::pace::lag;

/// Before anything is known: full work may heat the die by as much as lies between set-point and trip.
const GUESS: f64 = 12.0;
/// Bounds of what is believed: 0.2 to 0.6 K/W at 15 to 50 W.
const BELIEVED: (f64, f64) = (3.0, 30.0);
/// Slower moves are the heatsink's.
const SLOW: f64 = 20.0;
/// Least move of work, as a share of full work, that tells anything.
const MOVES: f64 = 0.15;
/// How long a move is remembered, in seconds of movement: a change of power mode changes the answer.
const MEMORY: f64 = 120.0;
/// Weight of the guess, in seconds of full movement.
const DOUBT: f64 = 1.0;

/// The estimate.
#[derive(Debug, Clone)]
pub(super) struct Gain {
    lagged: Option<(f64, f64)>,
    together: f64,
    alone: f64,
}

impl Gain {
    pub(super) fn new() -> Self {
        Self { lagged: None, together: 0.0, alone: 0.0 }
    }

    /// Kelvin at full work.
    pub(super) fn kelvin(&self) -> f64 {
        ((self.together + DOUBT * GUESS) / (self.alone + DOUBT)).clamp(BELIEVED.0, BELIEVED.1)
    }

    /// A temperature, and the work that has come to it so far.
    pub(super) fn learn(&mut self, seconds: f64, temperature: f64, work: f64) {
        let (slow_temperature, slow_work) = self.lagged.unwrap_or((temperature, work));
        let slow_temperature = lag(slow_temperature, temperature, seconds, SLOW);
        let slow_work = lag(slow_work, work, seconds, SLOW);
        self.lagged = Some((slow_temperature, slow_work));
        let (temperature, work) = (temperature - slow_temperature, work - slow_work);
        if work.abs() < MOVES {
            return;
        }
        self.together = lag(self.together, 0.0, seconds, MEMORY) + seconds * work * temperature;
        self.alone = lag(self.alone, 0.0, seconds, MEMORY) + seconds * work * work;
    }
}
