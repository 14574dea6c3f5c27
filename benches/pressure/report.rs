//! The table.

use crate::{
    run::{Case, Pressure, Round},
    stats::percentile,
};

/// Most that what comes back may differ from what was predicted.
const NEAR: f64 = 0.10;

/// What all daemons have shown.
#[derive(Debug, Default)]
pub struct Found {
    pressures: Vec<Pressure>,
    longest_step: f64,
    killed: u64,
}

impl Found {
    pub fn add(&mut self, round: Round) {
        for pressure in &round.pressures {
            eprintln!("{}", line(pressure));
        }
        self.pressures.extend(round.pressures);
        self.longest_step = self.longest_step.max(round.longest_step.as_secs_f64());
        self.killed += round.killed;
    }

    /// As Markdown.
    pub fn markdown(&self, case: &Case) -> String {
        let of = |value: fn(&Pressure) -> f64| self.pressures.iter().map(value).collect::<Vec<f64>>();
        let times = of(after_step);
        let whole = of(|pressure| pressure.back.saturating_duration_since(pressure.crossed).as_secs_f64());
        let steps = of(|pressure| pressure.step.as_secs_f64());
        let off = of(|pressure| (pressure.freed as f64 / pressure.predicted as f64 - 1.0).abs());
        let (name, must, count) = (case.name, case.must, self.pressures.len());
        let restored = self.pressures.iter().filter(|pressure| pressure.restored).count();
        let met = |met: bool| if met { "yes" } else { "**no**" };
        let ms = |seconds: f64| format!("{:.0}", seconds * 1e3);
        let of_all = |values: &[f64], percent| ms(percentile(values, percent));
        let (p95, worst) = (percentile(&times, 95.0), percentile(&off, 100.0));
        let sizes = of(|pressure| pressure.predicted as f64 / f64::from(1 << 20));
        format!(
            "| {name}, {count} times below the reserve | measured | must be | met |\n|---|---|---|---|\n\
             | from the end of the decode step to memory given back, p50 / p95 / most | {} / {} / {} ms | p95 <= {} ms | {} |\n\
             | decode step that ran, p50 / most; longest of all | {} / {}; {} ms | | |\n\
             | from the broken reserve to memory given back, interval and step included, p50 / p95 | {} / {} ms | | |\n\
             | reserve restored while the helper keeps its memory | {restored} of {count} | all | {} |\n\
             | RssAnon given back, off what was predicted ({:.0} to {:.0} MiB), most | {:.1} % | <= {:.0} % | {} |\n\
             | processes ended by the kernel for want of memory | {} | 0 | {} |\n\n\
             All streams wrote their answers to the end, in the engines that they began in: else there were no table.\n\n",
            of_all(&times, 50.0),
            ms(p95),
            of_all(&times, 100.0),
            ms(must),
            met(p95 <= must),
            of_all(&steps, 50.0),
            of_all(&steps, 100.0),
            ms(self.longest_step),
            of_all(&whole, 50.0),
            of_all(&whole, 95.0),
            met(restored == count),
            percentile(&sizes, 0.0),
            percentile(&sizes, 100.0),
            worst * 100.0,
            NEAR * 100.0,
            met(worst <= NEAR),
            self.killed,
            met(self.killed == 0),
        )
    }
}

/// Seconds from the end of the step to memory given back.
fn after_step(pressure: &Pressure) -> f64 {
    pressure.back.saturating_duration_since(pressure.step_end).as_secs_f64()
}

fn line(pressure: &Pressure) -> String {
    let since = |at: std::time::Instant| at.saturating_duration_since(pressure.crossed).as_secs_f64() * 1e3;
    let mib = |bytes: u64| bytes >> 20;
    format!(
        "decided after {:.0} ms, step of {:.0} ms over after {:.0}, back after {:.0}: {:.0} ms; {} of {} MiB{}",
        since(pressure.decided),
        pressure.step.as_secs_f64() * 1e3,
        since(pressure.step_end),
        since(pressure.back),
        after_step(pressure) * 1e3,
        mib(pressure.freed),
        mib(pressure.predicted),
        if pressure.restored { "" } else { ", not restored" },
    )
}
