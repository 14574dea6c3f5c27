//! What the governor keeps to: the configuration, completed by what the board is.

use std::time::Duration;

use super::{
    ladder::Ladder,
    point::OperatingPoint,
    units::{Bytes, Celsius},
};
use crate::config;

/// Memory to keep free, in percent of all. earlyoom, the killer that fits a kernel without PSI best, begins to end
/// processes where 10 % are available: we give way before it does.
const RESERVE_PERCENT: u64 = 10;
/// earlyoom kills without asking where 5 % are available.
const CRITICAL_PERCENT: u64 = 5;
/// A reserve of more is of no use: it is twice the KV cache of 8192 tokens of a 7B model in f16, and so twice what a
/// change of context can need to save its state.
const MOST_RESERVE: Bytes = Bytes(2 << 30);
/// Kelvin between the lowest throttling trip and the set-point: what the die can jump before any control can act, at
/// 20 W more through 0.6 K/W.
const MARGIN: f64 = 12.0;
/// Lowest throttling trip of every Orin, where the board names none.
const ORIN_TRIP: Celsius = Celsius(99.0);

/// What the board is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Board {
    /// All of its memory.
    pub memory: Bytes,
    /// The lowest `passive` trip that slows CPU or GPU down; `None` where no zone has one.
    pub throttle_trip: Option<Celsius>,
}

/// What the governor keeps to.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Tokens of the KV cache at most.
    pub context: u32,
    /// Sequences at once at most.
    pub parallel: u32,
    /// GPU layers at most; `None`: all that there are.
    pub gpu_layers: Option<u32>,
    /// Between two steps.
    pub interval: Duration,
    /// Memory that stays available to others.
    pub reserve: Bytes,
    /// Less is an emergency.
    pub critical: Bytes,
    /// Temperature of the hottest zone that pace steers for.
    pub set_point: Celsius,
    /// Where the kernel begins to throttle.
    pub trip: Option<Celsius>,
    /// Steps against low memory.
    pub memory: Ladder,
    /// Steps against heat.
    pub thermal: Ladder,
}

impl Limits {
    /// The configuration on a board. What is not configured follows from the board; a configured set-point that is not
    /// below the trip is lowered to one kelvin under it.
    #[must_use]
    pub fn new(engine: &config::Engine, governor: &config::Governor, board: Board) -> Self {
        let reserve = Bytes::min(board.memory.percent(RESERVE_PERCENT), MOST_RESERVE);
        let critical = Bytes::min(board.memory.percent(CRITICAL_PERCENT), MOST_RESERVE.percent(50));
        let (reserve, critical) = match (governor.reserve, governor.critical) {
            (Some(reserve), Some(critical)) => (reserve, critical),
            (Some(reserve), None) => (reserve, critical.min(reserve.percent(50))),
            (None, Some(critical)) => (reserve.max(critical + critical), critical),
            (None, None) => (reserve, critical),
        };
        let trip = board.throttle_trip.unwrap_or(ORIN_TRIP);
        let set_point = governor.set_point.map_or(trip.0 - MARGIN, |Celsius(configured)| configured.min(trip.0 - 1.0));
        Self {
            context: engine.context,
            parallel: engine.parallel,
            gpu_layers: engine.gpu_layers,
            interval: governor.interval,
            reserve,
            critical,
            set_point: Celsius(set_point),
            trip: board.throttle_trip,
            memory: governor.memory_ladder.clone(),
            thermal: governor.thermal_ladder.clone(),
        }
    }

    /// The point with nothing against it, for an engine with so many layers to put on a GPU.
    #[must_use]
    pub fn full(&self, layers: u32) -> OperatingPoint {
        OperatingPoint {
            context: self.context,
            gpu_layers: self.gpu_layers.unwrap_or(layers).min(layers),
            parallel: self.parallel,
            pace: 1.0,
            admit: super::Admit::Run,
        }
    }

    /// What must be available beyond the reserve before anything is given back to the engine: half of what lies between
    /// reserve and critical, so that what was given back and is taken by others next leaves half of it again.
    #[must_use]
    pub fn hysteresis(&self) -> Bytes {
        (self.reserve - self.critical).percent(50)
    }
}
