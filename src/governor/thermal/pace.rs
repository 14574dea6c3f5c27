//! Pace: a controller on a plant of two nodes.
//!
//! A die that answers within seconds sits on a heatsink that answers within minutes: `T = S + k u`, where `u` is the
//! share of the time that the engine works, behind the die's lag, `k` what full work heats the die above the heatsink,
//! and `S` all the rest, which moves slowly: heatsink, ambient, idle power. So `S` is `T - k u`, its slope is worth
//! following ahead, and the pace that brings the die to the set-point is
//!
//! ```text
//!   pace = (set_point - S(t + ahead)) / k
//! ```
//!
//! This is a PI controller with gain `1 / k` and the die's lag as its reset time: what it adds up is `u`, the work that
//! was really done, so nothing winds up while pace is at a limit or there is no work. An idle board is not taken for
//! one that has room for full work: `k` of it is foreseen. `k` is learned (see [`super::gain`]).

use std::time::Duration;

use super::gain::Gain;
use crate::governor::{
    ladder::{FLOOR, LEAST},
    units::Celsius,
};

/// Lag of the die; 1 to 8 s are assumed for Orin, nothing is measured.
const DIE: f64 = 4.0;
/// Lag that takes the noise off a reading, 0.1 to 0.5 K. It is seen by `u` too, so that `T - k u` does not move with
/// work alone.
const NOISE: f64 = 2.0;
/// Lag of the slope of `S`: long against the noise, short against a heatsink's 60 s and more.
const SLOPE: f64 = 8.0;
/// How far the slope is followed ahead, in seconds: all lags between a change of pace and its effect on what is
/// controlled. At a steady slope what remains of the error is then zero.
const AHEAD: f64 = DIE + NOISE + SLOPE;
/// The steepest fall that is followed, in kelvin per second: an ambient that falls by 40 K in a quarter of an hour. A
/// steeper one is less power all of a sudden, which is over at once; followed ahead it would be too much pace.
const FALL: f64 = -0.05;

/// Kelvin over the set-point that pace keeps to below [`FLOOR`]: half of the one that control may exceed it by.
const SOFT: f64 = 0.5;
/// Kelvin there for each of `k`: pace is close to its end, where noise that can only add to it is heat, and nothing is in
/// a hurry.
const GENTLE: f64 = 2.0;

/// The controller.
#[derive(Debug, Clone)]
pub(super) struct PaceControl {
    state: Option<State>,
    gain: Gain,
}

#[derive(Debug, Clone, Copy)]
struct State {
    at: Duration,
    /// The reading without its noise.
    measured: f64,
    /// Work behind the die's lag.
    die: f64,
    /// The same behind the lag that takes the noise off.
    work: f64,
    /// `S` behind a lag; how far it is behind tells the slope.
    slow: f64,
    /// Kelvin per second.
    slope: f64,
}

/// What the controller makes of a reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paced {
    /// From [`LEAST`] to 1.
    pub pace: f64,
    /// The reading without its noise.
    pub measured: f64,
}

impl PaceControl {
    pub(super) fn new() -> Self {
        Self { state: None, gain: Gain::new() }
    }

    /// Forgets the temperature, which could not be read.
    pub(super) fn lose(&mut self) {
        self.state = None;
    }

    /// One reading, and the share of the time since the last one that the engine worked.
    pub(super) fn step(&mut self, now: Duration, hottest: Celsius, busy: f64, set_point: Celsius) -> Paced {
        let busy = if busy.is_finite() { busy.clamp(0.0, 1.0) } else { 0.0 };
        let k = self.gain.kelvin();
        let state = match self.state {
            // The die has settled at whatever it was doing.
            None => {
                State { at: now, measured: hottest.0, die: busy, work: busy, slow: hottest.0 - k * busy, slope: 0.0 }
            }
            Some(before) => before.then(now, hottest.0, busy, k),
        };
        if let Some(before) = self.state {
            self.gain.learn(now.saturating_sub(before.at).as_secs_f64(), state.measured, state.work);
        }
        self.state = Some(state);
        let ahead = state.measured + AHEAD * state.slope.max(FALL);
        let below = set_point.0 - ahead;
        let pace = match state.work + below / k {
            pace if pace >= FLOOR => pace.min(1.0),
            _ => (state.work + (below + SOFT) / (GENTLE * k)).clamp(LEAST, FLOOR),
        };
        Paced { pace, measured: state.measured }
    }
}

impl State {
    fn then(self, now: Duration, hottest: f64, busy: f64, k: f64) -> Self {
        let seconds = now.saturating_sub(self.at).as_secs_f64();
        let measured = lag(self.measured, hottest, seconds, NOISE);
        let die = lag(self.die, busy, seconds, DIE);
        let work = lag(self.work, die, seconds, NOISE);
        let rest = measured - k * work;
        let slow = lag(self.slow, rest, seconds, SLOPE);
        Self { at: now, measured, die, work, slow, slope: (rest - slow) / SLOPE }
    }
}

/// A first-order lag over `seconds`.
pub(super) fn lag(from: f64, to: f64, seconds: f64, time_constant: f64) -> f64 {
    to + (from - to) * (-seconds / time_constant).exp()
}
