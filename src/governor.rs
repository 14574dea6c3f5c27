//! The governor: readings and time in, an operating point and its reasons out. It reads no clock and does no I/O; the
//! same inputs in the same order give the same decisions.
//!
//! ```text
//!   memory ──▶ memory ladder  ─┐
//!   heat   ──▶ thermal ladder ─┼─▶ element-wise minimum ──▶ Decision { point, cache, grow_to, reasons, skipped }
//!   losses ──▶ failures       ─┤
//!   pin    ────────────────────┘
//! ```
//!
//! Nobody else changes the operating point. A pin is an upper bound, and readings go below it. The set-points and
//! thresholds are configuration ([`Limits`]); what is built in stands beside its constant, with where it comes from.

use std::time::Duration;

mod decision;
mod failure;
mod input;
mod ladder;
mod limits;
mod memory;
mod point;
#[cfg(test)]
mod tests;
mod thermal;
mod units;

pub use decision::{Cache, Code, Decision, Reading, Reason, Skipped, Why};
pub use input::{Engine, Failure, Heat, Input, Memory};
pub use ladder::{Against, BadLadder, CELLS, FLOOR, LEAST, Ladder, NoStep, Step, cells};
pub use limits::{Board, Limits};
pub use point::{Admit, OperatingPoint, Pin};
pub use units::{Bytes, Celsius};

use failure::Failures;
use memory::MemoryLadder;
use thermal::ThermalLadder;

/// The state between two steps.
#[derive(Debug, Clone)]
pub struct Governor {
    limits: Limits,
    memory: MemoryLadder,
    thermal: ThermalLadder,
    failures: Failures,
    /// When each code of the last decision came up.
    since: Vec<(Code, Duration)>,
}

impl Governor {
    /// Stands at the full point.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let (memory, thermal, failures) = (MemoryLadder::new(), ThermalLadder::new(), Failures::new());
        Self { limits, memory, thermal, failures, since: Vec::new() }
    }

    /// Decides. `input.now` must not go back; if it does, no time has passed.
    pub fn step(&mut self, input: &Input<'_>) -> Decision {
        let full = self.limits.full(input.engine.layers);
        let memory = self.memory.step(input, full, &self.limits);
        let heat = self.thermal.step(input, full, &self.limits);
        let (left, failed) = self.failures.step(input, full);
        let unfailed = full.least(memory.bound).least(heat.bound);
        let free = unfailed.least(left);
        let pin = input.pin.over(full);
        let point = free.least(pin);
        let pinned = point != free;
        let mut reasons = heat.reasons;
        reasons.extend(memory.reason);
        reasons.extend(failed);
        reasons.extend(pinned.then(|| pin_reason(pin, free, input.now)));
        reasons.sort_by_key(|reason| reason.code);
        for reason in &mut reasons {
            let before = self.since.iter().find(|(code, _)| *code == reason.code);
            reason.since = before.map_or(reason.since, |(_, since)| *since);
        }
        self.since = reasons.iter().map(|reason| (reason.code, reason.since)).collect();
        Decision {
            point,
            cache: memory.cache,
            grow_to: memory.grow_to.min(point.context),
            pinned,
            layers_failed: point.gpu_layers < unfailed.least(pin).gpu_layers,
            reasons,
            skipped: [memory.skipped, heat.skipped].concat(),
        }
    }
}

/// The first element that the pin lowers.
fn pin_reason(pin: OperatingPoint, free: OperatingPoint, now: Duration) -> Reason {
    let (reading, value, limit) = if pin.context < free.context {
        (Reading::Context, free.context.into(), pin.context.into())
    } else if pin.gpu_layers < free.gpu_layers {
        (Reading::GpuLayers, free.gpu_layers.into(), pin.gpu_layers.into())
    } else if pin.parallel < free.parallel {
        (Reading::Parallel, free.parallel.into(), pin.parallel.into())
    } else if pin.pace < free.pace {
        (Reading::Pace, free.pace, pin.pace)
    } else {
        return Reason { code: Code::Pinned, reading: Reading::Admit, value: None, limit: None, since: now };
    };
    Reason { code: Code::Pinned, reading, value: Some(value), limit: Some(limit), since: now }
}
