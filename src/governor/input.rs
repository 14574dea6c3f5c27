//! What the governor is told, once each interval.

use std::time::Duration;

use super::{
    point::Pin,
    units::{Bytes, Celsius},
};

/// Everything that a decision depends on, beside those before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Input<'a> {
    /// Time since some fixed moment, by a monotonic clock.
    pub now: Duration,
    /// `None` where it cannot be read: memory then decides nothing new.
    pub memory: Option<Memory>,
    /// The hottest zone.
    pub heat: Heat,
    /// Whether any `*-throttle-alert` is active: the kernel slows the board down.
    pub throttle_alert: bool,
    /// Over-current events since the last step, all counters together.
    pub over_current: u64,
    /// The engine as it is.
    pub engine: Engine,
    /// What went wrong with it since the last step.
    pub failures: &'a [Failure],
    /// Set by an operator.
    pub pin: Pin,
}

/// Memory of the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// `min(MemAvailable - CmaFree, headroom of the cgroup where it has a limit)`.
    pub available: Bytes,
    /// Free swap and all of it; `None` without swap.
    pub swap: Option<(Bytes, Bytes)>,
    /// `pgmajfault` since the last step.
    pub major_faults: u64,
    /// `allocstall_*` since the last step, all zones together: allocations that had to reclaim memory themselves.
    pub alloc_stalls: u64,
}

/// The hottest zone of the board. A zone whose rail is off does not count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Heat {
    /// Its temperature.
    Reading(Celsius),
    /// `tj` cannot be read: a fault.
    Unreadable,
    /// There is no sensor, as on many PCs.
    None,
}

/// The engine as it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Engine {
    /// Whether a model is being loaded: memory is in motion then, and only `critical` counts.
    pub loading: bool,
    /// Layers that could be on the GPU; 0 for an engine without one.
    pub layers: u32,
    /// Layers on the GPU now.
    pub gpu_layers: u32,
    /// Tokens that the KV cache has cells for now; 0 without one.
    pub allocated_context: u32,
    /// Tokens that live sequences need, with what they may still write.
    pub live_tokens: u32,
    /// Tokens of cached prefixes beside them.
    pub cached_tokens: u32,
    /// KV cache per token, over all layers.
    pub kv_bytes_per_token: Bytes,
    /// Compute buffers; they go with the context only.
    pub compute_buffers: Bytes,
    /// What one GPU layer less gives back; 0 where it gives nothing, as on a board whose GPU reads the same DRAM copy.
    pub bytes_per_gpu_layer: Bytes,
    /// Memory of the weights that only the end of the engine gives back, beside GPU layers; 0 for a mapped file, whose
    /// pages count as available already.
    pub resident_weights: Bytes,
    /// Share of the time since the last step that the engine computed, 0 to 1: pace times load.
    pub busy: f64,
    /// Requests that run or wait.
    pub requests: u32,
    /// How long a change of GPU layers stops all answers, measured or estimated.
    pub layer_step_cost: Duration,
}

/// Something that went wrong, with what was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The engine could not load the model so.
    Load {
        /// GPU layers that were tried.
        gpu_layers: u32,
        /// Tokens of the KV cache that were tried.
        context: u32,
    },
    /// The engine died, or hung and was ended.
    Crash {
        /// GPU layers that it had.
        gpu_layers: u32,
        /// Tokens of its KV cache.
        context: u32,
    },
    /// There is another file of the model, or an operator wants it tried: what failed before says nothing of it.
    Over,
}
