//! Who decides pace and layers: ours, and what it is compared with.

use std::time::Duration;

use temperd::governor::{
    Admit, Board, Bytes, Celsius, Decision, Engine, FLOOR, Governor, Heat, Input, Ladder, Limits, Memory, Pin,
};

use super::plant::{Doing, TRIP};

/// Between two steps, in seconds: the default of `governor.interval_ms`.
pub const INTERVAL: f64 = 0.5;
/// The set-point of every Orin by default.
pub const SET_POINT: f64 = 87.0;
/// Layers of the reference model.
pub const LAYERS: u32 = 32;
/// Shares of the layers that the thermal ladder knows.
pub const LAYER_STEPS: [f64; 5] = [1.0, 0.75, 0.5, 0.25, 0.0];

/// What a policy is told.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub at: f64,
    /// `None`: `tj` cannot be read.
    pub hottest: Option<f64>,
    /// Share of the time since the last time that the engine worked.
    pub busy: f64,
    pub work: bool,
    /// Share of the layers on the GPU.
    pub layers: f64,
    pub throttled: bool,
    pub loading: bool,
    /// Seconds of a load.
    pub load: f64,
}

/// What it decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Act {
    pub doing: Doing,
    /// Whether new requests start.
    pub admit: bool,
}

pub trait Policy {
    fn act(&mut self, seen: Seen) -> Act;
}

/// One point for ever; at pace 1 with all layers the kernel is on its own.
#[derive(Debug, Clone, Copy)]
pub struct Fixed(pub Doing);

/// Without a governor.
pub const NONE: Fixed = Fixed(Doing { duty: 1.0, layers: 1.0 });

impl Policy for Fixed {
    fn act(&mut self, _: Seen) -> Act {
        Act { doing: self.0, admit: true }
    }
}

/// Full below the set-point, the floor above it, with 3 K between.
#[derive(Debug, Clone, Copy)]
pub struct OnOff(pub bool);

impl Policy for OnOff {
    fn act(&mut self, seen: Seen) -> Act {
        match seen.hottest {
            Some(hottest) if hottest <= SET_POINT - 3.0 => self.0 = true,
            Some(hottest) if hottest < SET_POINT => {}
            _ => self.0 = false,
        }
        Act { doing: Doing { duty: if self.0 { 1.0 } else { FLOOR }, layers: 1.0 }, admit: true }
    }
}

/// The governor, on a board with memory to spare.
#[derive(Debug, Clone)]
pub struct Ours {
    governor: Governor,
    pub last: Option<Decision>,
}

impl Ours {
    pub fn new() -> Self {
        Self { governor: Governor::new(limits()), last: None }
    }
}

/// The limits of a board as it comes.
pub fn limits() -> Limits {
    let board = Board { memory: Bytes::mib(15_656), throttle_trip: Some(Celsius(TRIP)) };
    let (memory, thermal) = (Ladder::memory(), Ladder::thermal());
    Limits {
        context: 8192,
        parallel: 8,
        gpu_layers: None,
        interval: Duration::from_millis(500),
        reserve: board.memory.percent(10),
        critical: board.memory.percent(5),
        set_point: Celsius(SET_POINT),
        trip: board.throttle_trip,
        memory,
        thermal,
    }
}

/// What the governor is told in the simulation, of memory that is plenty.
pub fn input(seen: Seen) -> Input<'static> {
    Input {
        now: Duration::from_secs_f64(seen.at),
        memory: Some(Memory { available: Bytes::mib(8000), swap: None, major_faults: 0, alloc_stalls: 0 }),
        heat: seen.hottest.map_or(Heat::Unreadable, |hottest| Heat::Reading(Celsius(hottest))),
        throttle_alert: seen.throttled,
        over_current: 0,
        engine: Engine {
            loading: seen.loading,
            layers: LAYERS,
            gpu_layers: layers_of(seen.layers),
            allocated_context: 2048,
            live_tokens: 1000,
            cached_tokens: 500,
            kv_bytes_per_token: Bytes(131_072),
            compute_buffers: Bytes::mib(100),
            bytes_per_gpu_layer: Bytes(0),
            resident_weights: Bytes(0),
            busy: seen.busy,
            requests: u32::from(seen.work) * 8,
            layer_step_cost: Duration::from_secs_f64(seen.load),
        },
        failures: &[],
        pin: Pin::default(),
    }
}

impl Policy for Ours {
    fn act(&mut self, seen: Seen) -> Act {
        let decision = self.governor.step(&input(seen));
        let point = decision.point;
        self.last = Some(decision);
        let layers = f64::from(point.gpu_layers) / f64::from(LAYERS);
        Act { doing: Doing { duty: point.pace, layers }, admit: point.admit == Admit::Run }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 32")]
fn layers_of(share: f64) -> u32 {
    (share * f64::from(LAYERS)).round() as u32
}
