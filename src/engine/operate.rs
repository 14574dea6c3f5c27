//! Between the governor's shell and whoever carries out what it decides: [`Orders`] go to the supervisor (processes, the
//! engine's part of the operating point) and to the dispatcher (admission), [`Vitals`] come back from the supervisor.

use std::time::Duration;

use crate::{
    governor::{Cache, Failure, OperatingPoint},
    wire::engine::{Heartbeat, Operate, Ready},
};

/// What is to be in force.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Orders {
    /// The operating point.
    pub point: OperatingPoint,
    /// What may stay in the KV cache.
    pub cache: Cache,
    /// Tokens that the allocation may grow to.
    pub grow_to: u32,
    /// Whether no model is to be loaded because nobody has asked anything for long: the next request ends it.
    pub asleep: bool,
}

impl Orders {
    /// The engine's part.
    #[must_use]
    pub fn to_engine(self) -> Operate {
        let cache = match self.cache {
            Cache::Keep => "keep",
            Cache::Shrunk => "shrunk",
            Cache::LiveOnly => "live_only",
        };
        #[allow(clippy::cast_possible_truncation, reason = "a share between 0 and 1")]
        let pace = self.point.pace as f32;
        Operate { context: self.point.context, grow_to: self.grow_to, pace, cache: cache.into() }
    }
}

/// How the engine is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vitals {
    /// Whether a model is being loaded.
    pub loading: bool,
    /// What the engine that lives said when it was ready; `None` while there is none.
    pub ready: Option<Ready>,
    /// Cells that are allocated now.
    pub allocated_context: u32,
    /// The last one of the engine that lives.
    pub heartbeat: Heartbeat,
    /// Share of the time between the last two heartbeats that it computed, 0 to 1.
    pub busy: f64,
    /// How long the last load took.
    pub load: Duration,
    /// What went wrong since the daemon started, oldest first; only ever appended to. Bounded: an engine is started
    /// anew some times an hour at most, and the oldest half is dropped beyond [`FAILURES`].
    pub failures: Vec<(u64, Failure)>,
}

/// Failures that [`Vitals`] keeps; each has a number of its own, so that none is counted twice.
pub const FAILURES: usize = 64;
