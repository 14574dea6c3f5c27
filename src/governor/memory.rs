//! The memory ladder: straight down to the first step that restores the reserve, up one step at a time.
//!
//! ```text
//!            available < reserve: first step that restores it         available < critical
//!   full ───────────────────────────────────────────▶ a step ─────────────────────────────▶ hold ──▶ unload
//!     ◀──────────────── one step, after the dwell ───────┘◀──── one step, after the dwell ────┘◀───────┘
//! ```
//!
//! What a step frees is counted from what is allocated now: a lower context frees nothing while no cells are beyond it.

use std::time::Duration;

use super::{
    decision::{Cache, Code, Reading, Reason, Skipped, Why},
    input::{Engine, Input, Memory},
    ladder::{CELLS, Ladder, Step, cells},
    limits::Limits,
    point::{Admit, OperatingPoint},
    units::Bytes,
};

/// How far a falling reading is followed ahead: a change of context takes up to 1.5 s at 7B shape until the memory is
/// back, and the next reading comes half a second later.
const AHEAD: Duration = Duration::from_secs(2);
/// How long memory must suffice for the next step up: Meta's oomd goes by averages of 60 s.
const DWELL: Duration = Duration::from_secs(60);
/// Most that it is stretched to where steps up were followed by steps down.
const LONGEST_DWELL: Duration = Duration::from_secs(960);
/// How long `hold` may leave memory critical before the model goes: what it frees is back by then.
const HOLD_HELPS: Duration = Duration::from_secs(3);
/// How long after a step down the engine's copy of what lives may be what lowers a reading: the decode step that runs, up to
/// 1.2 s, and the change.
const COPIES: Duration = Duration::from_secs(3);
/// earlyoom begins to act where no more of the swap is free, in percent.
const LOW_SWAP_PERCENT: u64 = 10;

/// Where the memory ladder stands.
#[derive(Debug, Clone)]
pub(super) struct MemoryLadder {
    at: usize,
    cache: Cache,
    /// Whether the layer steps up to `at` are in force; they are not where they free nothing or cost too much.
    layers: bool,
    before: Option<Before>,
    /// Since when there is more than reserve and hysteresis.
    easy: Option<Duration>,
    /// Since when the next step up can be afforded.
    affordable: Option<Duration>,
    /// When the last step up was taken, and how long the next has to wait.
    climbed: Option<Duration>,
    dwell: Duration,
    /// When the last step down was taken, and whether it had yet to give something back at the step before.
    taken: Option<Duration>,
    pending: bool,
    /// Since when memory is critical.
    critical: Option<Duration>,
    /// What the end of the engine gave back, which loading takes again.
    unloaded: Bytes,
    skipped: Vec<Skipped>,
}

/// The reading before.
#[derive(Debug, Clone, Copy)]
struct Before {
    at: Duration,
    available: Bytes,
    swap_free: Option<Bytes>,
    /// Bytes per second that it had fallen by.
    fall: f64,
}

/// What memory asks for.
pub(super) struct Asked {
    pub bound: OperatingPoint,
    pub cache: Cache,
    pub grow_to: u32,
    pub reason: Option<Reason>,
    pub skipped: Vec<Skipped>,
}

/// One step's view.
struct View<'a> {
    memory: Memory,
    engine: &'a Engine,
    full: OperatingPoint,
    limits: &'a Limits,
    now: Duration,
    /// Bytes per second of the last two falls, and seconds of the last.
    falls: [f64; 2],
    seconds: f64,
    /// Signs that memory is short already, whatever is available.
    strained: bool,
}

impl View<'_> {
    fn ladder(&self) -> &Ladder {
        &self.limits.memory
    }

    /// Below it a step down is due.
    fn line(&self) -> Bytes {
        if self.strained { self.limits.reserve + self.limits.hysteresis() } else { self.limits.reserve }
    }

    /// How much it will have fallen when a step has had its effect.
    fn fall(&self) -> Bytes {
        self.fall_without(Bytes(0))
    }

    /// The same where so much of it was the engine's copy, which would else count twice: as gone, and as falling on.
    fn fall_without(&self, copy: Bytes) -> Bytes {
        let [before, last] = self.falls;
        ahead(before, last - copy.0 as f64 / self.seconds)
    }

    /// Whether layers are worth a step at all.
    fn layers(&self) -> Result<(), Why> {
        let cost = self.engine.layer_step_cost.saturating_mul(2);
        match () {
            () if self.engine.gpu_layers == 0 || self.engine.bytes_per_gpu_layer == Bytes(0) => Err(Why::NoGain),
            () if cost > DWELL => Err(Why::Cost { cost, kept: DWELL }),
            () => Ok(()),
        }
    }
}

impl MemoryLadder {
    pub(super) fn new() -> Self {
        Self {
            at: 0,
            cache: Cache::Keep,
            layers: false,
            before: None,
            easy: None,
            affordable: None,
            climbed: None,
            dwell: DWELL,
            taken: None,
            pending: false,
            critical: None,
            unloaded: Bytes(0),
            skipped: Vec::new(),
        }
    }

    pub(super) fn step(&mut self, input: &Input<'_>, full: OperatingPoint, limits: &Limits) -> Asked {
        if let Some(memory) = input.memory {
            let view = self.look(memory, input, full, limits);
            self.descend(&view);
            self.climb(&view);
        }
        let bound = self.point(self.at, full, limits);
        let grow_to = grow_to(input, bound, limits);
        let skipped = self.skipped.clone();
        Asked { bound, cache: self.cache, grow_to, reason: self.reason(input, limits), skipped }
    }

    fn look<'a>(&mut self, memory: Memory, input: &'a Input<'_>, full: OperatingPoint, limits: &'a Limits) -> View<'a> {
        let swap_free = memory.swap.map(|(free, _)| free);
        let mut falls = [0.0; 2];
        let mut seconds = 1.0;
        let mut swapping = false;
        if let Some(before) = self.before {
            seconds = input.now.saturating_sub(before.at).as_secs_f64().max(1e-3);
            falls = [before.fall, (before.available - memory.available).0 as f64 / seconds];
            swapping = memory.major_faults > 0 && swap_free < before.swap_free;
        }
        let fall = falls[1];
        self.before = Some(Before { at: input.now, available: memory.available, swap_free, fall });
        let low_swap = memory.swap.is_some_and(|(free, all)| all > Bytes(0) && free <= all.percent(LOW_SWAP_PERCENT));
        let strained = memory.alloc_stalls > 0 || swapping || low_swap;
        View { memory, engine: &input.engine, full, limits, now: input.now, falls, seconds, strained }
    }

    fn descend(&mut self, view: &View<'_>) {
        let available = view.memory.available;
        let hold = view.ladder().position(Step::Hold);
        if available < view.limits.critical {
            if let Some(hold) = hold
                && self.at < hold
            {
                let (_, skipped, layers) = self.first_that_restores(view);
                self.take(hold, Cache::LiveOnly, layers, skipped, view.now);
            }
            self.critical.get_or_insert(view.now);
        } else {
            self.critical = None;
        }
        if hold.is_none_or(|hold| self.at >= hold) && self.sinks(view) {
            self.unload(view);
        }
        if self.critical.is_some() || view.engine.loading {
            return;
        }
        let pending = self.frees(self.at, self.cache, self.layers, view);
        let copy = self.copy(pending, view);
        let near = available < view.limits.reserve + view.limits.hysteresis();
        let fall = if near { view.fall_without(copy) } else { Bytes(0) };
        if available + pending + copy - fall >= view.line() {
            return;
        }
        let (found, skipped, layers) = self.first_that_restores(view);
        match (found, hold) {
            (Some((position, cache)), _) => self.take(position, cache, layers, skipped, view.now),
            // Nothing restores it. A fall that is only foreseen is no reason to stop.
            (None, Some(hold)) if self.at < hold && available + pending < view.line() => {
                self.take(hold, Cache::LiveOnly, layers, skipped, view.now);
            }
            _ => {}
        }
    }

    /// What a step that has yet to give something back takes for a moment: were it counted as taken by others, one broken
    /// reserve would lead to two steps. A reading may be older than the engine's word that it has.
    fn copy(&mut self, pending: Bytes, view: &View<'_>) -> Bytes {
        let before = std::mem::replace(&mut self.pending, pending > Bytes(0));
        let soon = self.taken.is_some_and(|taken| view.now.saturating_sub(taken) < COPIES);
        if soon && (before || self.pending) { to_save(view) } else { Bytes(0) }
    }

    /// The first step below the present one that restores the reserve; what was passed over on the way; and whether the
    /// layer steps on it are worth taking.
    fn first_that_restores(&self, view: &View<'_>) -> (Option<(usize, Cache)>, Vec<Skipped>, bool) {
        let ladder = view.ladder();
        let worth = view.layers();
        let layers = self.layers || worth.is_ok();
        let mut skipped = Vec::new();
        let mut before = self.frees(self.at, self.cache, self.layers, view);
        let last = ladder.position(Step::Hold).or(ladder.position(Step::Unload)).unwrap_or(ladder.steps().len() + 1);
        for position in self.at..last {
            let caches: &[Cache] = match ladder.step(position) {
                Some(Step::Trim) => &[Cache::Shrunk, Cache::LiveOnly],
                _ if ladder.has(position, Step::Trim) => &[Cache::LiveOnly],
                _ => &[Cache::Keep],
            };
            for cache in caches.iter().copied().filter(|cache| (position, *cache) > (self.at, self.cache)) {
                let frees = self.frees(position, cache, layers, view);
                let step = ladder.step(position).unwrap_or(Step::Trim);
                let why = match (step, worth) {
                    (Step::Layers(_), Err(why)) => why,
                    (Step::Trim | Step::Context(_), _) if frees > before && !room_to_save(view) => {
                        Why::NoRoomToSave { needs: to_save(view) }
                    }
                    _ if frees == before => Why::NoGain,
                    _ if view.memory.available + frees - view.fall() >= view.line() => {
                        return (Some((position, cache)), skipped, layers && passes_layers(ladder, position));
                    }
                    _ => Why::NotEnough { frees },
                };
                before = before.max(frees);
                skipped.push(Skipped { step, why });
            }
        }
        // All that is left is to stop. Layers go with it only where they free something.
        (None, skipped, layers)
    }

    /// Whether `hold` is not enough: memory is still critical when its effect is there, or falls on below it.
    fn sinks(&self, view: &View<'_>) -> bool {
        let waited = |since| view.now.saturating_sub(since) >= HOLD_HELPS;
        let held = view.ladder().has(self.at, Step::Hold);
        let coming = view.memory.available + self.frees(self.at, self.cache, self.layers, view) - view.fall();
        let falls = view.fall() > Bytes(0) && coming < view.limits.critical;
        self.critical.is_some_and(|since| waited(since) || !held) || (held && falls)
    }

    fn unload(&mut self, view: &View<'_>) {
        let Some(unload) = view.ladder().position(Step::Unload).filter(|unload| self.at < *unload) else { return };
        let all = self.frees(unload, Cache::LiveOnly, self.layers, view);
        if all > Bytes(0) {
            let mut skipped = std::mem::take(&mut self.skipped);
            skipped.retain(|skipped| skipped.step != Step::Hold);
            skipped.push(Skipped { step: Step::Hold, why: Why::NotEnough { frees: Bytes(0) } });
            self.unloaded = all;
            self.take(unload, Cache::LiveOnly, self.layers, skipped, view.now);
        }
    }

    fn take(&mut self, position: usize, cache: Cache, layers: bool, skipped: Vec<Skipped>, now: Duration) {
        // A step down soon after one up: the next one up waits longer.
        let soon = self.climbed.is_some_and(|climbed| now.saturating_sub(climbed) < self.dwell.saturating_mul(2));
        if position > self.at {
            self.dwell = if soon { self.dwell.saturating_mul(2).min(LONGEST_DWELL) } else { DWELL };
        }
        (self.at, self.cache, self.layers, self.skipped) = (position, cache, layers, skipped);
        (self.easy, self.affordable) = (None, None);
        (self.taken, self.pending) = (Some(now), true);
    }

    fn climb(&mut self, view: &View<'_>) {
        let (now, available) = (view.now, view.memory.available);
        let wanted = view.limits.reserve + view.limits.hysteresis();
        if view.strained || view.engine.loading || available < wanted {
            (self.easy, self.affordable) = (None, None);
            return;
        }
        let dwelt = |since: Duration| now.saturating_sub(since) >= self.dwell;
        if dwelt(*self.easy.get_or_insert(now)) {
            // Prefixes may be kept again, within what the context allows.
            self.cache = Cache::Keep;
        }
        let Some(next) = self.next_up(view) else { return };
        if available < wanted + self.takes(next, view) {
            self.affordable = None;
            return;
        }
        if dwelt(*self.affordable.get_or_insert(now)) {
            self.at = next;
            self.layers &= passes_layers(view.ladder(), next);
            (self.climbed, self.affordable) = (Some(now), None);
            let ladder = view.ladder();
            self.skipped.retain(|skipped| ladder.has(next, skipped.step));
        }
    }

    /// The next position up whose point is another; steps that are not in force are none.
    fn next_up(&self, view: &View<'_>) -> Option<usize> {
        let point = |position| self.point(position, view.full, view.limits);
        let here = point(self.at);
        (0..self.at).rev().find(|position| point(*position) != here).or((self.at > 0).then_some(0))
    }

    /// What the engine may come to take at a position, beyond what it has now. Where the context stays the same, what
    /// fills it is kept within the reserve by [`grow_to`].
    fn takes(&self, position: usize, view: &View<'_>) -> Bytes {
        let engine = view.engine;
        let (here, there) = (self.point(self.at, view.full, view.limits), self.point(position, view.full, view.limits));
        let more = if there.context > here.context { there.context } else { 0 };
        let cells = engine.kv_bytes_per_token.times(more.saturating_sub(engine.allocated_context));
        if here.admit == Admit::Unload && there.admit != Admit::Unload {
            return cells + self.unloaded;
        }
        cells + engine.bytes_per_gpu_layer.times(there.gpu_layers.saturating_sub(engine.gpu_layers))
    }

    /// What the engine gives back from what it has now, when a position has had its effect.
    fn frees(&self, position: usize, cache: Cache, layers: bool, view: &View<'_>) -> Bytes {
        let engine = view.engine;
        let point = view.ladder().bound(position, view.full, |step| layers || !matches!(step, Step::Layers(_)));
        let allocated = engine.kv_bytes_per_token.times(engine.allocated_context);
        if point.admit == Admit::Unload {
            let on_gpu = engine.bytes_per_gpu_layer.times(engine.gpu_layers);
            return allocated + engine.compute_buffers + on_gpu + engine.resident_weights;
        }
        let wanted = match cache {
            Cache::Keep => engine.allocated_context,
            Cache::Shrunk => cells(engine.live_tokens.saturating_add(engine.cached_tokens)),
            Cache::LiveOnly => cells(engine.live_tokens),
        };
        let kept = wanted.min(point.context).min(engine.allocated_context);
        let gone = engine.gpu_layers.saturating_sub(point.gpu_layers);
        let layers = if layers { engine.bytes_per_gpu_layer.times(gone) } else { Bytes(0) };
        allocated - engine.kv_bytes_per_token.times(kept) + layers
    }

    fn point(&self, position: usize, full: OperatingPoint, limits: &Limits) -> OperatingPoint {
        limits.memory.bound(position, full, |step| self.layers || !matches!(step, Step::Layers(_)))
    }

    fn reason(&self, input: &Input<'_>, limits: &Limits) -> Option<Reason> {
        let available = self.before?.available;
        let (code, limit) = match () {
            () if available < limits.critical => (Code::MemoryCritical, limits.critical),
            () if self.at == 0 && self.cache == Cache::Keep => return None,
            () if available < limits.reserve => (Code::MemoryLow, limits.reserve),
            () => (Code::MemoryRecovering, limits.reserve + limits.hysteresis()),
        };
        let (value, limit) = (Some(available.as_mib()), Some(limit.as_mib()));
        Some(Reason { code, reading: Reading::AvailableMib, value, limit, since: input.now })
    }
}

fn passes_layers(ladder: &Ladder, position: usize) -> bool {
    ladder.steps().iter().take(position).any(|step| matches!(step, Step::Layers(_)))
}

/// In place a state is saved while the old cache still stands.
fn to_save(view: &View<'_>) -> Bytes {
    view.engine.kv_bytes_per_token.times(view.engine.live_tokens.min(view.engine.allocated_context))
}

fn room_to_save(view: &View<'_>) -> bool {
    view.memory.available >= to_save(view)
}

/// Tokens that the allocation may grow to and still leave the reserve.
fn grow_to(input: &Input<'_>, bound: OperatingPoint, limits: &Limits) -> u32 {
    let engine = &input.engine;
    let spare = input.memory.map_or(Bytes(0), |memory| memory.available - limits.reserve);
    let more = spare.0.checked_div(engine.kv_bytes_per_token.0).unwrap_or(u64::MAX);
    let more = u32::try_from(more).unwrap_or(u32::MAX) / CELLS * CELLS;
    engine.allocated_context.saturating_add(more).min(bound.context)
}

/// How far it falls within [`AHEAD`], by two falls in a row in bytes per second: the lesser, since one allocation is no
/// trend.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no negative; saturates")]
fn ahead(before: f64, last: f64) -> Bytes {
    Bytes((before.min(last) * AHEAD.as_secs_f64()).max(0.0) as u64)
}
