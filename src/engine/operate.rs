//! Between the governor's shell and whoever carries out what it decides: [`Orders`] go to the supervisor (processes, the
//! engine's part of the operating point) and to the dispatcher (admission), [`Vitals`] come back from the supervisor.

use std::time::Duration;

use crate::{
    config,
    governor::{Admit, Bytes, Cache, Failure, OperatingPoint},
    wire::engine::{Heartbeat, Operate, Ready},
};

/// What is to be in force.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Orders {
    /// The operating point. While nobody knows how many layers there are, `gpu_layers` bounds nothing.
    pub point: OperatingPoint,
    /// What may stay in the KV cache.
    pub cache: Cache,
    /// Tokens that the allocation may grow to.
    pub grow_to: u32,
    /// Whether no model is to be loaded because nobody has asked anything for long: the next request ends it.
    pub asleep: bool,
    /// Memory above `critical` at the last reading: a state that is handed from one engine to another must fit into it.
    pub spare: Bytes,
}

impl Orders {
    /// All that is configured, before anything was read.
    #[must_use]
    pub fn full(engine: &config::Engine) -> Self {
        let point = OperatingPoint {
            context: engine.context,
            gpu_layers: u32::MAX,
            parallel: engine.parallel,
            pace: 1.0,
            admit: Admit::Run,
        };
        Self { point, cache: Cache::Keep, grow_to: engine.context, asleep: false, spare: Bytes(0) }
    }

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
    /// Its process.
    pub pid: Option<u32>,
    /// Layers that could be on a GPU: as the last engine said that was asked for some, or as the model's file lets expect;
    /// 0 without a GPU, and while nothing is known.
    pub layers: u32,
    /// What one of them less gives back, as that engine said.
    pub bytes_per_gpu_layer: u64,
    /// Layers at most that the engine was asked for.
    pub asked: u32,
    /// Whether it has no device where there should be one.
    pub lacks_device: bool,
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

/// No engine runs so long, in seconds.
const LONGEST_S: f64 = 1e12;

/// Failures that [`Vitals`] keeps; each has a number of its own, so that none is counted twice.
pub const FAILURES: usize = 64;

impl Vitals {
    /// An engine is started.
    pub fn begin(&mut self, pid: Option<u32>) {
        self.gone();
        (self.loading, self.pid) = (true, pid);
    }

    /// The engine is ready, so long after its start. One that was not asked for layers, and may be the one for the CPU, does
    /// not know how many there could be.
    pub fn is_ready(&mut self, ready: &Ready, load: Duration, asked: u32) {
        (self.loading, self.load, self.asked) = (false, load, asked);
        if asked > 0 || ready.layers > 0 {
            (self.layers, self.bytes_per_gpu_layer) = (ready.layers, ready.bytes_per_gpu_layer);
        }
        self.allocated_context = ready.allocated_context;
        self.ready = Some(ready.clone());
    }

    /// A heartbeat; `pace` is what the engine was told. One that does not count its time is taken to use all it has.
    pub fn beat(&mut self, mut heartbeat: Heartbeat, pace: f64) {
        for said in [&mut heartbeat.at_s, &mut heartbeat.computed_s] {
            // Times that are none would go on as numbers that are none, up to the governor.
            *said = if said.is_finite() { said.clamp(0.0, LONGEST_S) } else { 0.0 };
        }
        let elapsed = heartbeat.at_s - self.heartbeat.at_s;
        let computed = heartbeat.computed_s - self.heartbeat.computed_s;
        self.busy = if elapsed > 0.0 {
            (computed / elapsed).clamp(0.0, 1.0)
        } else if heartbeat.sequences > 0 {
            pace
        } else {
            0.0
        };
        self.heartbeat = heartbeat;
    }

    /// There is no engine.
    pub fn gone(&mut self) {
        let Self { layers, bytes_per_gpu_layer, load, ref mut failures, .. } = *self;
        let failures = std::mem::take(failures);
        *self = Self { layers, bytes_per_gpu_layer, load, failures, ..Self::default() };
    }

    /// Whether fewer layers are on a GPU than should be: there is no device, it has left some to the CPU, or loads with more
    /// have `failed`. What an operator or the board's readings ask for is no lack.
    #[must_use]
    pub fn degraded(&self, failed: bool) -> bool {
        let fewer = |ready: &Ready| ready.gpu_layers < self.asked.min(ready.layers);
        self.ready.as_ref().is_some_and(|ready| failed || self.lacks_device || fewer(ready))
    }

    /// Something went wrong.
    pub fn failed(&mut self, failure: Failure) {
        let number = self.failures.last().map_or(0, |(number, _)| number + 1);
        if self.failures.len() >= FAILURES {
            self.failures.drain(..FAILURES / 2);
        }
        self.failures.push((number, failure));
    }

    /// Bytes of a state that holds all cells in use; `None` where the engine does not say what they take.
    #[must_use]
    pub fn state(&self) -> Option<Bytes> {
        let per_token = self.ready.as_ref().map(|ready| ready.kv_bytes_per_token).filter(|bytes| *bytes > 0)?;
        let cells = self.heartbeat.live_tokens.saturating_add(self.heartbeat.cached_tokens);
        Some(Bytes(per_token).times(cells.min(self.allocated_context)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(at_s: f64, computed_s: f64, sequences: u32) -> Heartbeat {
        Heartbeat { at_s, computed_s, sequences, ..Heartbeat::default() }
    }

    #[test]
    fn busy_is_the_share_that_was_computed_between_two_heartbeats() {
        let mut vitals = Vitals::default();
        vitals.beat(heartbeat(10.0, 4.0, 1), 1.0);
        vitals.beat(heartbeat(10.5, 4.2, 1), 1.0);
        assert!((vitals.busy - 0.4).abs() < 1e-9, "{}", vitals.busy);
        vitals.beat(heartbeat(11.0, 9.0, 1), 1.0);
        assert!(vitals.busy <= 1.0);
    }

    #[test]
    fn times_that_are_none_are_not_taken() {
        let mut vitals = Vitals::default();
        for (at_s, computed_s) in [(1.0, f64::NAN), (f64::INFINITY, f64::INFINITY), (f64::MAX, -f64::MAX), (2.0, 1.0)] {
            vitals.beat(heartbeat(at_s, computed_s, 1), 0.5);
            assert!((0.0..=1.0).contains(&vitals.busy) && vitals.heartbeat.at_s.is_finite(), "{vitals:?}");
        }
    }

    #[test]
    fn an_engine_that_counts_no_time_is_busy_while_it_has_something_to_do() {
        let mut vitals = Vitals::default();
        vitals.beat(heartbeat(0.0, 0.0, 2), 0.3);
        assert!((vitals.busy - 0.3).abs() < 1e-9);
        vitals.beat(heartbeat(0.0, 0.0, 0), 0.3);
        assert!(vitals.busy.abs() < 1e-9);
    }

    #[test]
    fn failures_are_numbered_and_bounded_and_outlive_an_engine() {
        let mut vitals = Vitals::default();
        let crash = Failure::Crash { gpu_layers: 0, context: 1 };
        (0..200).for_each(|_| vitals.failed(crash));
        vitals.begin(Some(7));
        assert!(vitals.failures.len() <= FAILURES && vitals.loading);
        assert_eq!(vitals.failures.last().map(|(number, _)| *number), Some(199));
        assert!(vitals.failures.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1));
    }

    #[test]
    fn an_engine_that_was_asked_for_no_layers_does_not_make_them_unknown() {
        let mut vitals = Vitals::default();
        let gpu = Ready { layers: 31, gpu_layers: 31, bytes_per_gpu_layer: 7, ..Ready::default() };
        vitals.is_ready(&gpu, Duration::ZERO, u32::MAX);
        vitals.gone();
        vitals.is_ready(&Ready::default(), Duration::ZERO, 0);
        assert_eq!((vitals.layers, vitals.bytes_per_gpu_layer), (31, 7));
        vitals.is_ready(&Ready::default(), Duration::ZERO, 12);
        assert_eq!((vitals.layers, vitals.bytes_per_gpu_layer), (0, 0), "there is no device any more");
    }

    #[test]
    fn degraded_is_what_should_be_on_a_gpu_and_is_not() {
        let with = |gpu_layers, layers, asked| {
            let ready = Some(Ready { gpu_layers, layers, ..Ready::default() });
            Vitals { ready, layers: 31, asked, ..Vitals::default() }
        };
        assert!(!with(31, 31, u32::MAX).degraded(false));
        assert!(with(30, 31, u32::MAX).degraded(false), "one was left to the CPU");
        assert!(!with(12, 31, 12).degraded(false), "a pin is no lack");
        assert!(!with(0, 0, 0).degraded(false));
        assert!(with(0, 0, 0).degraded(true), "loads with more have failed");
        assert!(!with(0, 0, u32::MAX).degraded(false), "no flavour for a GPU is installed");
        assert!(Vitals { lacks_device: true, ..with(0, 0, u32::MAX) }.degraded(false));
        assert!(!Vitals { lacks_device: true, ..Vitals::default() }.degraded(true), "there is no engine");
    }

    #[test]
    fn a_state_is_known_where_the_engine_says_what_a_cell_takes() {
        let mut vitals = Vitals { allocated_context: 1000, ..Vitals::default() };
        vitals.heartbeat.live_tokens = 300;
        assert_eq!(vitals.state(), None);
        vitals.ready = Some(Ready { kv_bytes_per_token: 10, ..Ready::default() });
        assert_eq!(vitals.state(), Some(Bytes(3000)));
    }
}
