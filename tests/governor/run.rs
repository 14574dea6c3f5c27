//! Runs a scenario under a policy and judges it by the plant's true temperature.

use super::{
    plant::{Doing, Fan, Outside, Plant, TICK},
    policy::{Fixed, INTERVAL, Policy, SET_POINT, Seen},
    scenario::Scenario,
};

/// Over the set-point where nothing jumps.
pub const OVER: f64 = 1.0;
/// Seconds after a jump until it has to be back.
pub const BACK: f64 = 30.0;
/// Seconds that running requests still take after `hold`.
const FINISH: f64 = 30.0;

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub tokens: f64,
    /// Most kelvin over the set-point, at any time.
    pub over: f64,
    /// The same after the first approach, less what a jump of power of the last [`BACK`] seconds brings by itself. At
    /// most [`OVER`] is fine. Where the set-point is never reached, as `over`.
    pub excess: f64,
    /// The highest such jump, in kelvin.
    pub jump: f64,
    /// Seconds that the kernel throttled.
    pub throttled: f64,
    /// Whether the board shut down.
    pub dead: bool,
    /// When layers or admission changed.
    pub changes: Vec<f64>,
    pub least_pace: f64,
    /// How much pace went up and down, all changes together.
    pub travel: f64,
    /// Once every five seconds: time, die, reading, pace, share of layers.
    pub trace: Vec<[f64; 5]>,
}

impl Outcome {
    /// Most ladder changes within any hour.
    pub fn changes_per_hour(&self) -> usize {
        let within = |from: &f64| self.changes.iter().filter(|at| (*from..*from + 3600.0).contains(*at)).count();
        self.changes.iter().map(within).max().unwrap_or(0)
    }
}

/// Runs all of it.
pub fn run(scenario: &Scenario, policy: &mut dyn Policy) -> Outcome {
    let mut plant = Plant::new(scenario.board, scenario.outside(0.0), scenario.seed);
    let mut doing = Doing { duty: 0.0, layers: 1.0 };
    let mut outcome = Outcome { over: f64::MIN, excess: f64::MIN, least_pace: 1.0, ..Outcome::default() };
    let mut approached: Option<f64> = None;
    let mut jump = Jump { until: 0.0, kelvin: 0.0 };
    let (mut busy, mut loading_until, mut admit, mut held_at) = (0.0, 0.0, true, f64::MIN);
    let (mut since_step, mut pace) = (INTERVAL, 1.0);
    for tick in 0..ticks(scenario.seconds) {
        let at = f64::from(tick) * TICK;
        let outside = scenario.outside(at);
        let work = scenario.work(at) && (admit || at < held_at + FINISH);
        if since_step >= INTERVAL - TICK / 2.0 {
            let hottest = (!scenario.lost(at)).then(|| plant.reading());
            let seen = Seen {
                at,
                hottest,
                busy: busy / since_step,
                work,
                layers: doing.layers,
                throttled: plant.throttled(),
                loading: at < loading_until,
                load: scenario.board.load,
            };
            let act = policy.act(seen);
            if act.doing.layers != doing.layers {
                loading_until = at + scenario.board.load;
                outcome.changes.push(at);
            }
            if act.admit != admit {
                held_at = if act.admit { f64::MIN } else { at };
                outcome.changes.push(at);
            }
            outcome.travel += (act.doing.duty - pace).abs();
            (pace, doing.layers, admit) = (act.doing.duty, act.doing.layers, act.admit);
            outcome.least_pace = outcome.least_pace.min(pace);
            (busy, since_step) = (0.0, 0.0);
        }
        let before = (scenario.outside((at - TICK).max(0.0)), doing);
        doing.duty = if work && at >= loading_until { pace } else { 0.0 };
        if tick > 0 && scenario.jumps(at - TICK, at) {
            jump.note(&plant, at, before, (outside, doing), scenario.board.thermals.die);
            outcome.jump = outcome.jump.max(jump.kelvin);
        }
        outcome.tokens += plant.tick(outside, doing);
        busy += doing.duty * TICK;
        since_step += TICK;
        let over = plant.die - SET_POINT;
        outcome.over = outcome.over.max(over);
        if approached.is_none() && over >= 0.0 {
            approached = Some(at + BACK);
        }
        if approached.is_some_and(|approached| at >= approached) {
            outcome.excess = outcome.excess.max(over - jump.allows(at));
        }
        outcome.throttled += if plant.throttled() { TICK } else { 0.0 };
        if tick % 50 == 0 {
            let reading = if scenario.lost(at) { f64::NAN } else { plant.reading() };
            outcome.trace.push([at, plant.die, reading, doing.duty, doing.layers]);
        }
    }
    if approached.is_none() {
        outcome.excess = outcome.over;
    }
    outcome.dead = plant.dead();
    outcome
}

/// A jump of power, and what it heats the die by.
struct Jump {
    until: f64,
    kelvin: f64,
}

impl Jump {
    fn note(&mut self, plant: &Plant, at: f64, before: (Outside, Doing), after: (Outside, Doing), die: f64) {
        let more = plant.watts(after.0, after.1) - plant.watts(before.0, before.1);
        *self = Self { until: at + BACK, kelvin: more.max(0.0) * die };
    }

    fn allows(&self, at: f64) -> f64 {
        if at <= self.until { self.kelvin } else { 0.0 }
    }
}

/// Where pace at its floor without GPU layers settles, at the worst moment of a scenario.
pub fn settles(scenario: &Scenario, floor: f64) -> f64 {
    let least = Doing { duty: floor, layers: 0.0 };
    let moments = (0..20).map(|part| scenario.outside(scenario.seconds * f64::from(part) / 20.0));
    let worst = moments.max_by(|one, other| {
        let heat = |outside: &Outside| (outside.ambient, outside.fan == Fan::Still, outside.mode.cpu);
        heat(one).partial_cmp(&heat(other)).unwrap_or(std::cmp::Ordering::Equal)
    });
    worst.map_or(f64::MIN, |outside| Plant::new(scenario.board, outside, 1).settles(outside, least))
}

/// The best of all fixed points, chosen with hindsight, that keeps what is asked of ours: its tokens, and which it is.
pub fn best_fixed(scenario: &Scenario, floor: f64, layer_steps: &[f64]) -> Option<(f64, Doing)> {
    let mut best: Option<(f64, Doing)> = None;
    for layers in layer_steps {
        for step in 1..=20 {
            let duty = f64::from(step) * 0.05;
            if duty < floor - 1e-9 {
                continue;
            }
            let doing = Doing { duty, layers: *layers };
            let outcome = run(scenario, &mut Fixed(doing));
            let kept = outcome.excess <= OVER && !outcome.dead && outcome.throttled == 0.0;
            if kept && best.is_none_or(|(tokens, _)| outcome.tokens > tokens) {
                best = Some((outcome.tokens, doing));
            }
        }
    }
    best
}

/// What an integrator would set who cannot watch the board: the most pace, with all layers on the GPU, that settles at
/// the set-point or below at 50 C ambient with the scenario's cooling; the floor where there is none.
pub fn safe_point(scenario: &Scenario, floor: f64) -> Doing {
    let fan = if scenario.fan { Fan::Works } else { Fan::Still };
    let outside = Outside { ambient: 50.0, fan, mode: scenario.board.modes[0] };
    let plant = Plant::new(scenario.board, outside, 1);
    let points = (1..=20).rev().map(|step| Doing { duty: f64::from(step) * 0.05, layers: 1.0 });
    let mut safe = points.filter(|doing| plant.settles(outside, *doing) <= SET_POINT);
    safe.next().filter(|doing| doing.duty >= floor).unwrap_or(Doing { duty: floor, layers: 1.0 })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hours")]
fn ticks(seconds: f64) -> u32 {
    (seconds / TICK).round() as u32
}
