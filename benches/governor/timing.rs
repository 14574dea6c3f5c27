//! How long a step takes.

use std::{hint::black_box, time::Instant};

use temperd::governor::{Bytes, Governor, Heat, Input, Memory};

use crate::sim::policy::{Seen, input, limits};

/// Steps of one batch, and batches.
const STEPS: u32 = 10_000;
const BATCHES: u32 = 20;
/// Most that a step may take, in microseconds.
const MOST: f64 = 50.0;

/// Two boards: one at rest, and one with everything against it, where every step has reasons and looks at every rung.
pub fn step() -> String {
    let rest = |_: &mut Input<'static>, _: u32| ();
    let trouble = |input: &mut Input<'static>, nth: u32| {
        input.memory = Some(Memory { available: Bytes::mib(1400), swap: None, major_faults: 9, alloc_stalls: 9 });
        (input.engine.allocated_context, input.engine.live_tokens) = (8192, 8000);
        (input.over_current, input.pin.pace) = (1, Some(0.3));
        input.heat = if nth.is_multiple_of(16) { Heat::Unreadable } else { input.heat };
    };
    let (rest, trouble) = (measure(rest), measure(trouble));
    let met = if rest.max(trouble) <= MOST { "yes" } else { "**no**" };
    format!(
        "Step of the governor: {rest:.2} us at rest, {trouble:.2} us in trouble (the slowest of {BATCHES} batches of {STEPS}); must \
         be <= {MOST:.0} us: {met}"
    )
}

/// Microseconds of a step, in the slowest batch.
fn measure(change: impl Fn(&mut Input<'static>, u32)) -> f64 {
    let mut governor = Governor::new(limits());
    let mut slowest: f64 = 0.0;
    for batch in 0..BATCHES {
        let began = Instant::now();
        for nth in 0..STEPS {
            let at = f64::from(batch * STEPS + nth) * 0.5;
            let hottest = Some(87.0 + f64::from(nth % 7));
            let seen =
                Seen { at, hottest, busy: 0.5, work: true, layers: 1.0, throttled: false, loading: false, load: 7.0 };
            let mut input = input(seen);
            change(&mut input, nth);
            black_box(governor.step(black_box(&input)));
        }
        slowest = slowest.max(began.elapsed().as_secs_f64() * 1e6 / f64::from(STEPS));
    }
    slowest
}
