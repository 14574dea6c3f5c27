//! The plant: a die on a heatsink, a fan that follows the die, the kernel's own throttling, and a noisy sensor.

use super::board::{Board, Mode};

/// Seconds of one tick; a tenth of the shortest lag of a die.
pub const TICK: f64 = 0.1;
/// The throttling trip and the critical one of every Orin.
pub const TRIP: f64 = 99.0;
pub const CRITICAL: f64 = 104.5;
/// States of the GPU's cooling device on an NX (OPPs - 1), each taking a tenth of speed and power; assumed alike on all.
const STATES: u32 = 9;

/// How the board is cooled now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fan {
    /// There is none, or it is blocked.
    Still,
    /// It follows nvfancontrol's quiet profile.
    Works,
}

/// What the outside does to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outside {
    pub ambient: f64,
    pub fan: Fan,
    pub mode: Mode,
}

/// What the engine does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Doing {
    /// Share of the time that it works.
    pub duty: f64,
    /// Share of the layers on the GPU.
    pub layers: f64,
}

#[derive(Debug, Clone)]
pub struct Plant {
    board: Board,
    pub die: f64,
    pub sink: f64,
    fan_speed: f64,
    state: u32,
    before: f64,
    ticks: u64,
    dead: bool,
    random: fastrand::Rng,
}

impl Plant {
    /// Idle for a long time.
    pub fn new(board: Board, outside: Outside, seed: u64) -> Self {
        let (die, random) = (outside.ambient, fastrand::Rng::with_seed(seed));
        let mut plant =
            Self { board, die, sink: die, fan_speed: 0.0, state: 0, before: die, ticks: 0, dead: false, random };
        plant.settle(outside, Doing { duty: 0.0, layers: 1.0 });
        plant
    }

    /// Goes to where it settles if nothing changes any more, or far over all trips where it would run away.
    fn settle(&mut self, outside: Outside, doing: Doing) {
        for _ in 0..500 {
            let watts = self.watts(outside, doing);
            self.fan_speed = quiet_profile(105.0 - self.die);
            let sink = outside.ambient + watts / self.conductance(outside);
            // Half the way, since the fan answers.
            self.sink = (self.sink + 0.5 * (sink - self.sink)).min(500.0);
            self.die = self.sink + watts * self.board.thermals.die;
        }
        self.before = self.die;
    }

    /// From the heatsink to the ambient, in W/K: it grows with the wind.
    fn conductance(&self, outside: Outside) -> f64 {
        let thermals = self.board.thermals;
        let speed = if outside.fan == Fan::Works { self.fan_speed } else { 0.0 };
        1.0 / thermals.still + speed * (1.0 / thermals.windy - 1.0 / thermals.still)
    }

    /// Watts at the present temperature.
    pub fn watts(&self, outside: Outside, doing: Doing) -> f64 {
        let throttled = 1.0 - f64::from(self.state) / f64::from(STATES + 1);
        let (work, _) = outside.mode.work(doing.layers);
        let leakage = 1.0 + self.board.thermals.leakage * (self.die - 60.0);
        (outside.mode.idle + doing.duty * work * throttled) * leakage.max(0.5)
    }

    /// One tick; gives the tokens of it.
    pub fn tick(&mut self, outside: Outside, doing: Doing) -> f64 {
        if self.dead {
            return 0.0;
        }
        let thermals = self.board.thermals;
        let (_, rate) = outside.mode.work(doing.layers);
        let throttled = 1.0 - f64::from(self.state) / f64::from(STATES + 1);
        let tokens = doing.duty * rate * throttled * TICK;
        let to_sink = (self.die - self.sink) / thermals.die;
        let die_capacity = thermals.die_lag / thermals.die;
        let watts = self.watts(outside, doing);
        self.die += TICK * (watts - to_sink) / die_capacity;
        self.sink += TICK * (to_sink - (self.sink - outside.ambient) * self.conductance(outside)) / thermals.sink;
        self.ticks += 1;
        if self.ticks.is_multiple_of(20) {
            self.fan_speed = quiet_profile(105.0 - self.die);
        }
        if self.ticks.is_multiple_of(10) {
            self.step_wise();
        }
        self.dead = self.die >= CRITICAL;
        tokens
    }

    /// The kernel's governor, once a second: at the trip and rising one state more, below it and falling one less.
    fn step_wise(&mut self) {
        let rising = self.die > self.before;
        if self.die >= TRIP && rising {
            self.state = (self.state + 1).min(STATES);
        } else if self.die < TRIP && !rising {
            self.state = self.state.saturating_sub(1);
        }
        self.before = self.die;
    }

    /// Whether the kernel slows it down.
    pub fn throttled(&self) -> bool {
        self.state > 0
    }

    /// Whether it has shut down.
    pub fn dead(&self) -> bool {
        self.dead
    }

    /// A reading of `tj`, in steps of 1/32 K.
    pub fn reading(&mut self) -> f64 {
        let noise = self.board.thermals.noise * (2.0 * self.random.f64() - 1.0);
        ((self.die + noise) * 32.0).round() / 32.0
    }

    /// The die's temperature after a long time of the same.
    pub fn settles(&self, outside: Outside, doing: Doing) -> f64 {
        let mut plant = self.clone();
        plant.settle(outside, doing);
        plant.die
    }
}

/// Speed of the fan, 0 to 1, by the margin to 105 C: nvfancontrol's quiet profile of an NX.
fn quiet_profile(margin: f64) -> f64 {
    let pwm = match margin {
        margin if margin <= 10.0 => 255.0,
        margin if margin <= 31.0 => 187.0,
        margin => 187.0 * ((70.0 - margin) / 39.0).max(0.0),
    };
    pwm / 255.0
}
