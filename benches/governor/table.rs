//! A row per scenario: ours and what it is compared with.

use temperd::governor::{FLOOR, LEAST};

use crate::sim::{
    plant::Doing,
    policy::{Fixed, LAYER_STEPS, NONE, OnOff, Ours},
    run::{OVER, Outcome, best_fixed, run, safe_point},
    scenario::Scenario,
};

/// One scenario under every policy.
pub struct Runs {
    pub ours: Outcome,
    pub none: Outcome,
    pub on_off: Outcome,
    pub safe: (Doing, Outcome),
    /// Tokens of the best fixed point that keeps what is asked of ours, chosen with hindsight.
    pub best: Option<(f64, Doing)>,
}

impl Runs {
    pub fn of(scenario: &Scenario) -> Self {
        let safe = safe_point(scenario, FLOOR);
        // With a broken sensor or fan no fixed point is a measure of anything.
        let comparable = scenario.lost.is_none() && scenario.blocked.is_none();
        Self {
            ours: run(scenario, &mut Ours::new()),
            none: run(scenario, &mut { NONE }),
            on_off: run(scenario, &mut OnOff(true)),
            safe: (safe, run(scenario, &mut Fixed(safe))),
            best: comparable.then(|| best_fixed(scenario, LEAST, &LAYER_STEPS)).flatten(),
        }
    }
}

/// The rows so far.
#[derive(Default)]
pub struct Table {
    rows: Vec<String>,
    worst: f64,
    least: Option<f64>,
}

impl Table {
    pub fn row(&mut self, scenario: &Scenario, runs: &Runs) {
        let share = |outcome: &Outcome| runs.best.map(|(tokens, _)| outcome.tokens / tokens);
        let shown = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.3}"));
        let minutes = scenario.seconds / 60.0;
        let ours = &runs.ours;
        if runs.best.is_some() {
            self.worst = self.worst.max(ours.excess);
            self.least = [self.least, share(ours)].into_iter().flatten().reduce(f64::min);
        }
        let best =
            runs.best.map_or("-".to_owned(), |(_, point)| format!("{:.2}, {:.0} %", point.duty, point.layers * 100.0));
        let none = &runs.none;
        self.rows.push(format!(
            "| {} | {} | {:+.2} | {:+.2} | {} | {best} | {} | {:.1} | {:.0} | {:+.1} | {:.0} | {} | {} | {:+.2} | {} | {:.1} | {:+.1} | {} |",
            scenario.board.name,
            scenario.name,
            ours.over,
            ours.excess,
            shown(share(ours)),
            ours.changes_per_hour(),
            ours.travel / minutes,
            ours.throttled,
            none.over,
            none.throttled,
            shown(share(none)),
            if none.dead { "yes" } else { "no" },
            runs.on_off.over,
            shown(share(&runs.on_off)),
            runs.on_off.travel / minutes,
            runs.safe.1.over,
            shown(share(&runs.safe.1)),
        ));
    }

    /// As Markdown. Temperatures are those of the plant, in kelvin over the set-point.
    pub fn markdown(&self) -> String {
        let head = [
            "board",
            "scenario",
            "ours: most over",
            "beyond the jump",
            "tokens / best",
            "best fixed point: pace, layers",
            "changes/h",
            "pace travel/min",
            "throttled s",
            "no governor: over",
            "throttled s",
            "tokens / best",
            "shut down",
            "on/off: over",
            "tokens / best",
            "pace travel/min",
            "safe point: over",
            "tokens / best",
        ];
        let rule = "|---".repeat(head.len());
        let least = self.least.map_or("-".to_owned(), |least| format!("{least:.3}"));
        format!(
            "| {} |\n{rule}|\n{}\n\nOurs at its worst: {:+.2} K beyond the jump of power (must be <= {OVER:.1}), {least} of the \
             tokens of the best fixed point (must be >= 0.95).\n",
            head.join(" | "),
            self.rows.join("\n"),
            self.worst,
        )
    }
}
