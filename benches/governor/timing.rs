//! How long a step takes, and a look at the board.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use temperd::{
    board::{
        Board,
        host::{self, Processes},
    },
    config,
    governor::{Bytes, Governor, Heat, Input, Memory},
};

use crate::{
    sim::policy::{Seen, input, limits},
    tree::Tree,
};

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

/// Most of a core, in percent, that looking may take at the default interval.
const MOST_OF_A_CORE: f64 = 0.2;
const LOOKS: u64 = 200;

/// What looking at this machine and at a copied board's tree takes, with the two processes that are looked at too. What the
/// drivers of a real board take is not in it.
pub fn looks() -> String {
    let tree = Tree::unpack("agx-orin-64gb-jp6-idle");
    let here = look(Path::new("/"));
    let board = look(&tree.root());
    let met = if here.max(board) <= MOST_OF_A_CORE { "yes" } else { "**no**" };
    format!(
        "Looking at the board: {here:.3} % of a core on this machine, {board:.3} % on a copy of an AGX Orin's files, at the \
         default interval; must be <= {MOST_OF_A_CORE} %: {met}"
    )
}

/// Percent of a core.
fn look(root: &Path) -> f64 {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let interval = config::Governor::default().interval;
    let mut board = Board::open(root, &host::own_cgroup().unwrap_or_default());
    let mut processes = Processes::default();
    let (start, pid) = (Instant::now(), std::process::id());
    let began = cpu();
    for nth in 0..LOOKS {
        black_box(board.sample(start + interval * u32::try_from(nth).unwrap_or(0)));
        black_box(processes.read(&[pid, pid]));
    }
    let each = Duration::from_secs_f64((cpu() - began) / LOOKS as f64);
    each.as_secs_f64() / interval.as_secs_f64() * 100.0
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
