//! The governor against single situations, and against what must hold in any.

use std::time::Duration;

use super::*;

mod failures;
mod heat;
mod laws;
mod memory;
mod points;

/// KV cache of a token of Mistral 7B in f16: 32 layers x 2 x 1024 values x 2 bytes.
const KV: Bytes = Bytes(131_072);

/// An Orin NX 16 GB: a reserve of 1500 MiB, critical below 750, hysteresis 375.
fn limits() -> Limits {
    Limits {
        context: 8192,
        parallel: 8,
        gpu_layers: None,
        interval: Duration::from_millis(500),
        reserve: Bytes::mib(1500),
        critical: Bytes::mib(750),
        set_point: Celsius(87.0),
        trip: Some(Celsius(99.0)),
        memory: Ladder::memory(),
        thermal: Ladder::thermal(),
    }
}

/// A cool board with memory to spare; an engine with half of its cache allocated: 1000 tokens live, 1000 cached.
fn at_rest(now: Duration) -> Input<'static> {
    Input {
        now,
        memory: Some(available(8000)),
        heat: Heat::Reading(Celsius(60.0)),
        throttle_alert: false,
        over_current: 0,
        engine: Engine {
            loading: false,
            layers: 33,
            gpu_layers: 33,
            allocated_context: 4096,
            live_tokens: 1000,
            cached_tokens: 1000,
            kv_bytes_per_token: KV,
            compute_buffers: Bytes::mib(100),
            bytes_per_gpu_layer: Bytes(0),
            resident_weights: Bytes::mib(3000),
            busy: 1.0,
            requests: 4,
            layer_step_cost: Duration::from_secs(7),
        },
        failures: &[],
        pin: Pin::default(),
    }
}

fn available(mib: u64) -> Memory {
    Memory { available: Bytes::mib(mib), swap: None, major_faults: 0, alloc_stalls: 0 }
}

/// A governor and its clock, half a second a step, and an engine that does at once what is decided.
struct Bench {
    governor: Governor,
    now: Duration,
    point: Option<OperatingPoint>,
}

impl Bench {
    fn new() -> Self {
        Self::with(limits())
    }

    fn with(limits: Limits) -> Self {
        Self { governor: Governor::new(limits), now: Duration::ZERO, point: None }
    }

    /// One step of a board that is at rest but for a change.
    fn step(&mut self, change: impl FnOnce(&mut Input<'static>)) -> Decision {
        let mut input = at_rest(self.now);
        if let Some(point) = self.point {
            (input.engine.busy, input.engine.gpu_layers) = (point.pace, point.gpu_layers);
        }
        change(&mut input);
        self.now += Duration::from_millis(500);
        let decision = self.governor.step(&input);
        self.point = Some(decision.point);
        decision
    }

    /// The same for some seconds; gives the last decision.
    fn steps(&mut self, seconds: u32, change: impl Fn(&mut Input<'static>)) -> Decision {
        let mut last = self.step(&change);
        for _ in 1..seconds * 2 {
            last = self.step(&change);
        }
        last
    }
}

fn codes(decision: &Decision) -> Vec<Code> {
    decision.reasons.iter().map(|reason| reason.code).collect()
}
