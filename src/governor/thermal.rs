//! Heat: pace first, which is steered; where it is at its least and that is too hot, GPU layers; then `hold`.
//!
//! ```text
//!            least pace, and too hot                  still too hot             still too hot
//!   pace ────────────────────────────▶ a layer step ────────────────▶ fewest ─────────────────▶ hold
//!     ◀─ one step, after a long dwell ─┘◀─ one step ────────────────────┘◀──────────────────────┘
//! ```
//!
//! The way up is the way down, back again, and limited to what makes four changes an hour. A step down waits until the
//! one before has had its effect, or less where the trip would be reached by then. A layer step that was not enough is
//! followed by the last one: each costs a reload.

use std::{collections::VecDeque, time::Duration};

use super::{
    decision::{Code, Reading, Reason, Skipped, Why},
    input::{Heat, Input},
    ladder::{FLOOR, LEAST, Step},
    limits::Limits,
    point::{Admit, OperatingPoint},
    units::Celsius,
};

mod current;
mod gain;
mod pace;
mod trend;

use current::OverCurrent;
use pace::PaceControl;
use trend::Trend;

/// What a step down takes to show: the longest lag of a die (8 s) and the controller's own (14 s), three times over.
const SETTLES: Duration = Duration::from_secs(60);
/// Kelvin over the set-point that are borne at the least pace before layers go: one, less the noise of a smoothed
/// reading.
const BORNE: f64 = 0.75;
/// Mean pace below which there is as good as nothing left of it: with a noisy sensor it never stays at [`LEAST`].
const SPENT: f64 = 1.5 * LEAST;
/// Kelvin per second at which a temperature falls, and not just its noise: 0.1 K within [`SETTLES`]. Then what has been
/// done is enough.
const FALLS: f64 = 0.1 / 60.0;
/// The least wait before a step down, however fast it gets hotter: before, the slope is still that of the pace before.
const LEAST_WAIT: Duration = Duration::from_secs(24);
/// How long there must have been room before a step up: more than two of the 120 s that an Orin NX takes to warm up.
const DWELL: Duration = Duration::from_secs(300);
/// A step up needs so much pace: work may draw up to twice the power with more layers on the GPU.
const ROOM: f64 = 2.0 * FLOOR;
/// Steps within [`HOUR`] after which none goes up: with the two steps down that may follow there are no more than four.
const CHANGES: usize = 1;
const HOUR: Duration = Duration::from_secs(3600);
/// How long `tj` may be unreadable before it counts: one failed transfer on the bus is no fault.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the thermal ladder stands.
#[derive(Debug, Clone)]
pub(super) struct ThermalLadder {
    at: usize,
    /// Where it stood before each step down that is in force.
    before: Vec<usize>,
    /// Whether its layer steps are in force; they are not where they cost more than they are kept for.
    layers: bool,
    control: PaceControl,
    current: OverCurrent,
    pace: f64,
    /// Since when pace is spent and it is too hot, and the temperature then.
    too_hot: Option<(Duration, f64)>,
    /// Where the temperature goes, while pace is spent.
    trend: Option<Trend>,
    /// The pace, without its noise.
    mean: Trend,
    /// Since when there is room for a step up.
    cool: Option<Duration>,
    /// Since when `tj` cannot be read.
    blind: Option<Duration>,
    changes: VecDeque<Duration>,
    skipped: Vec<Skipped>,
}

/// What heat asks for.
pub(super) struct Asked {
    pub bound: OperatingPoint,
    pub reasons: Vec<Reason>,
    pub skipped: Vec<Skipped>,
}

impl ThermalLadder {
    pub(super) fn new() -> Self {
        Self {
            at: 0,
            before: Vec::new(),
            layers: false,
            control: PaceControl::new(),
            current: OverCurrent::new(),
            pace: 1.0,
            too_hot: None,
            trend: None,
            mean: Trend::new(Duration::ZERO, 1.0),
            cool: None,
            blind: None,
            changes: VecDeque::new(),
            skipped: Vec::new(),
        }
    }

    pub(super) fn step(&mut self, input: &Input<'_>, full: OperatingPoint, limits: &Limits) -> Asked {
        let mut reasons = Vec::new();
        let mut say = |code, reading, value, limit| {
            reasons.push(Reason { code, reading, value, limit: Some(limit), since: input.now });
        };
        let mut assumed = false;
        let value = match input.heat {
            Heat::Reading(hottest) => {
                self.see(hottest, input, full, limits);
                Some(hottest.0)
            }
            Heat::Unreadable => {
                assumed = self.blind(input, full, limits);
                None
            }
            Heat::None => {
                self.sensorless(input);
                None
            }
        };
        let pace = if self.steered(limits) { self.pace } else { 1.0 };
        if input.throttle_alert {
            say(Code::Throttled, Reading::ThrottleAlert, Some(1.0), 0.0);
        }
        if assumed {
            say(Code::HeatUnreadable, Reading::HottestC, None, limits.set_point.0);
        } else if self.at > self.top(limits) {
            let code = if self.too_hot.is_some() { Code::TooHot } else { Code::CoolingDown };
            say(code, Reading::HottestC, value, limits.set_point.0);
        }
        if pace < 1.0 && !assumed && input.heat != Heat::None {
            say(Code::Hot, Reading::HottestC, value, limits.set_point.0);
        }
        let current = self.current.step(input);
        if current < 1.0 {
            say(Code::OverCurrent, Reading::OverCurrentEvents, Some(self.current.events()), 0.0);
        }
        let bound = OperatingPoint { pace: pace.min(current), ..self.point(self.at, full, limits) };
        Asked { bound, reasons, skipped: self.skipped.clone() }
    }

    /// Without a sensor the kernel's own word is all there is.
    fn sensorless(&mut self, input: &Input<'_>) {
        self.control.lose();
        (self.at, self.layers) = (0, false);
        (self.too_hot, self.trend, self.cool, self.blind) = (None, None, None, None);
        self.before.clear();
        self.skipped.clear();
        self.pace = if input.throttle_alert { LEAST } else { 1.0 };
    }

    /// A reading. Gives way down or up where it is due.
    fn see(&mut self, hottest: Celsius, input: &Input<'_>, full: OperatingPoint, limits: &Limits) {
        self.blind = None;
        // The kernel throttles because of a zone that is hotter than what was read.
        let trip = limits.trip.map_or(hottest.0, |trip| trip.0.max(hottest.0));
        let hottest = if input.throttle_alert { Celsius(trip) } else { hottest };
        let paced = self.control.step(input.now, hottest, input.engine.busy, limits.set_point);
        // The trip is where we must not be.
        self.pace = if input.throttle_alert { LEAST } else { paced.pace };
        self.mean = self.mean.then(input.now, self.pace);
        let spent = !self.steered(limits) || self.mean.level() <= SPENT;
        let trend = if spent { self.trend.map(|trend| trend.then(input.now, paced.measured)) } else { None };
        let trend = trend.unwrap_or(Trend::new(input.now, paced.measured));
        self.trend = spent.then_some(trend);
        // Too hot now, or by the time that a step shows.
        let coming = trend.now().max(trend.after(SETTLES));
        if spent && coming > limits.set_point.0 + BORNE && input.engine.requests > 0 {
            let (since, then) = *self.too_hot.get_or_insert((input.now, trend.now()));
            let wait = if self.at > self.top(limits) { wait(trend, limits) } else { LEAST_WAIT };
            if input.now.saturating_sub(since) >= wait && !input.engine.loading {
                self.too_hot = None;
                if trend.now() > then - FALLS * wait.as_secs_f64() {
                    self.down(input, full, limits);
                }
            }
        } else {
            self.too_hot = None;
        }
        if self.at > self.top(limits) && self.pace >= ROOM {
            let since = *self.cool.get_or_insert(input.now);
            if input.now.saturating_sub(since) >= DWELL && self.changed_within_an_hour(input.now) <= CHANGES {
                self.up(input.now, limits);
            }
        } else {
            self.cool = None;
        }
    }

    /// No reading: hot, until one shows otherwise. Layers stay, since at the least pace they give off next to nothing, and
    /// the kernel's alert tells when that is too much. Whether it counts yet.
    fn blind(&mut self, input: &Input<'_>, full: OperatingPoint, limits: &Limits) -> bool {
        let since = *self.blind.get_or_insert(input.now);
        let blind = input.now.saturating_sub(since);
        if blind < PATIENCE && !input.throttle_alert {
            return false;
        }
        self.control.lose();
        self.pace = LEAST;
        (self.too_hot, self.trend, self.cool) = (None, None, None);
        let settled = |change: &Duration| input.now.saturating_sub(*change) >= SETTLES;
        let due = blind >= LEAST_WAIT && self.changes.back().is_none_or(settled);
        if input.throttle_alert && due && !input.engine.loading {
            self.down(input, full, limits);
        }
        true
    }

    fn steered(&self, limits: &Limits) -> bool {
        limits.thermal.position(Step::Pace).is_some()
    }

    /// The first position that can be stood on: with pace, if that is a step.
    fn top(&self, limits: &Limits) -> usize {
        limits.thermal.position(Step::Pace).unwrap_or(0)
    }

    fn down(&mut self, input: &Input<'_>, full: OperatingPoint, limits: &Limits) {
        let ladder = &limits.thermal;
        self.at = self.at.max(self.top(limits));
        let cost = input.engine.layer_step_cost.saturating_mul(2);
        let with = |position| ladder.bound(position, full, |_| true).gpu_layers;
        let present = self.point(self.at, full, limits).gpu_layers.min(input.engine.gpu_layers);
        // After one layer step within the hour the next is the last of them; where nothing is seen it is that at once.
        let again = self.changed_within_an_hour(input.now) > 0 || self.blind.is_some();
        let fewest = ladder.steps().iter().rposition(|step| matches!(step, Step::Layers(_))).map(|index| index + 1);
        let mut skipped = Vec::new();
        for position in self.at + 1..=ladder.steps().len() {
            let Some(step) = ladder.step(position) else { break };
            let why = match step {
                Step::Layers(_) if with(position) >= present => Why::NoGain,
                Step::Layers(_) if cost > DWELL => Why::Cost { cost, kept: DWELL },
                Step::Layers(_) if again && fewest.is_some_and(|fewest| position < fewest) => Why::TriedLess,
                _ => {
                    self.layers |= matches!(step, Step::Layers(_));
                    self.before.push(self.at);
                    self.take(position, input.now);
                    self.skipped = skipped;
                    return;
                }
            };
            skipped.push(Skipped { step, why });
        }
        // At the last step there is nothing more to say.
        if !skipped.is_empty() {
            self.skipped = skipped;
        }
    }

    fn up(&mut self, now: Duration, limits: &Limits) {
        let next = self.before.pop().unwrap_or_else(|| self.top(limits));
        self.take(next, now);
        self.cool = None;
        self.layers &= limits.thermal.steps().iter().take(next).any(|step| matches!(step, Step::Layers(_)));
        self.skipped.retain(|skipped| limits.thermal.has(next, skipped.step));
    }

    fn take(&mut self, position: usize, now: Duration) {
        self.at = position;
        self.changes.push_back(now);
        // Older ones are asked for no more.
        while self.changes.front().is_some_and(|change| now.saturating_sub(*change) > HOUR) {
            self.changes.pop_front();
        }
    }

    fn changed_within_an_hour(&self, now: Duration) -> usize {
        self.changes.iter().filter(|change| now.saturating_sub(**change) <= HOUR).count()
    }

    fn point(&self, position: usize, full: OperatingPoint, limits: &Limits) -> OperatingPoint {
        let point = limits.thermal.bound(position, full, |step| self.layers || !matches!(step, Step::Layers(_)));
        // A board that is too hot to work is held, not unloaded: heat comes from work, not from weights in memory.
        OperatingPoint { admit: point.admit.min(Admit::Hold), ..point }
    }
}

/// How long a further step down waits: until the one before shows, or half the time to the trip.
fn wait(trend: Trend, limits: &Limits) -> Duration {
    let Some(trip) = limits.trip.filter(|_| trend.slope > 0.0) else { return SETTLES };
    let seconds = (trip.0 - trend.now()) / trend.slope / 2.0;
    Duration::from_secs_f64(seconds.clamp(LEAST_WAIT.as_secs_f64(), SETTLES.as_secs_f64()))
}
