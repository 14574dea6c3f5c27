//! A box whose memory others use too, in virtual time: an engine that does what the governor decides, a little later.

use std::time::Duration;

use temperd::governor::{Admit, Bytes, Cache, Decision, Engine, Governor, Heat, Input, Limits, Memory, Pin, cells};

/// Seconds between two steps.
pub const STEP: f64 = 0.5;
/// Steps until a decision has had its effect: a reshape takes up to 1.5 s at 7B shape.
const LATER: usize = 3;
/// Steps of a load.
const LOAD: u32 = 14;
/// KV cache of a token of Mistral 7B in f16.
pub const KV: Bytes = Bytes(131_072);

/// Tokens of a request, and steps that it still runs.
#[derive(Debug, Clone, Copy)]
struct Request {
    tokens: u32,
    left: u32,
}

/// The world.
#[derive(Debug, Clone)]
pub struct Shared {
    governor: Governor,
    /// What is there for others and the cache, with the engine's weights and buffers in place.
    free: Bytes,
    running: Vec<Request>,
    waiting: Vec<Request>,
    allocated: u32,
    cached: u32,
    loaded: bool,
    loading: u32,
    decisions: Vec<Decision>,
    random: fastrand::Rng,
    steps: u32,
    pub finished: u32,
}

/// What the engine takes beside its cache.
const BUFFERS: Bytes = Bytes(100 << 20);

impl Shared {
    pub fn new(limits: Limits, free: Bytes, seed: u64) -> Self {
        Self {
            governor: Governor::new(limits),
            free,
            running: Vec::new(),
            waiting: Vec::new(),
            allocated: 0,
            cached: 0,
            loaded: true,
            loading: 0,
            decisions: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            steps: 0,
            finished: 0,
        }
    }

    fn live(&self) -> u32 {
        self.running.iter().map(|request| request.tokens).sum()
    }

    /// In MiB, with what others take; below zero the kernel would kill somebody.
    #[allow(clippy::cast_possible_truncation, reason = "some GiB")]
    pub fn available(&self, others: u64) -> i64 {
        let back = if self.loaded { 0 } else { BUFFERS.as_mib() as i64 };
        (self.free.as_mib() - KV.times(self.allocated).as_mib()) as i64 + back
            - i64::try_from(others).unwrap_or(i64::MAX)
    }

    /// One step, with so many MiB taken by others.
    pub fn step(&mut self, others: u64) -> Decision {
        let available = u64::try_from(self.available(others)).unwrap_or(0);
        let input = Input {
            now: Duration::from_secs_f64(f64::from(self.steps) * STEP),
            memory: Some(Memory { available: Bytes::mib(available), swap: None, major_faults: 0, alloc_stalls: 0 }),
            heat: Heat::None,
            throttle_alert: false,
            over_current: 0,
            engine: Engine {
                loading: self.loading > 0,
                layers: 33,
                gpu_layers: if self.loaded { 33 } else { 0 },
                allocated_context: self.allocated,
                live_tokens: self.live(),
                cached_tokens: self.cached,
                kv_bytes_per_token: KV,
                compute_buffers: if self.loaded { BUFFERS } else { Bytes(0) },
                bytes_per_gpu_layer: Bytes(0),
                resident_weights: Bytes(0),
                busy: 1.0,
                requests: u32::try_from(self.running.len()).unwrap_or(u32::MAX),
                layer_step_cost: Duration::from_secs(7),
            },
            failures: &[],
            pin: Pin::default(),
        };
        let decision = self.governor.step(&input);
        self.steps += 1;
        self.decisions.push(decision.clone());
        if let Some(late) = self.decisions.len().checked_sub(LATER).and_then(|nth| self.decisions.get(nth)).cloned() {
            self.engine(&late);
        }
        decision
    }

    /// The engine and the owner of the queue.
    fn engine(&mut self, decision: &Decision) {
        self.load(decision.point.admit != Admit::Unload);
        if self.random.f64() < 0.25 && self.waiting.len() < 64 {
            self.waiting.push(Request { tokens: self.random.u32(100..2000), left: self.random.u32(4..120) });
        }
        if !self.loaded {
            return;
        }
        for request in &mut self.running {
            request.left = request.left.saturating_sub(1);
        }
        let over: Vec<Request> = self.running.extract_if(.., |request| request.left == 0).collect();
        // What is over stays as a prefix.
        self.finished += u32::try_from(over.len()).unwrap_or(0);
        self.cached += over.iter().map(|request| request.tokens).sum::<u32>();
        let context = decision.point.context;
        while self.live() > context {
            self.waiting.extend(self.running.pop());
        }
        let grow_to = decision.grow_to.max(self.allocated.min(context));
        while decision.point.admit == Admit::Run && self.running.len() < 8 {
            let next = self.waiting.first().copied();
            let Some(next) = next.filter(|next| cells(self.live() + next.tokens) <= grow_to) else { break };
            self.waiting.remove(0);
            self.running.push(next);
        }
        self.cached = match decision.cache {
            Cache::LiveOnly => 0,
            _ => self.cached.min(grow_to.saturating_sub(self.live())),
        };
        let wanted = cells(self.live() + self.cached).min(context);
        self.allocated = match decision.cache {
            Cache::Keep => self.allocated.max(wanted).min(context),
            _ => wanted,
        };
    }

    fn load(&mut self, wanted: bool) {
        if !wanted {
            self.waiting.append(&mut self.running);
            (self.loaded, self.loading, self.allocated, self.cached) = (false, 0, 0, 0);
        } else if !self.loaded {
            self.loading = if self.loading == 0 { LOAD } else { self.loading - 1 };
            self.loaded = self.loading == 0 || self.loading == 1;
            self.loading = if self.loaded { 0 } else { self.loading };
        }
    }
}
