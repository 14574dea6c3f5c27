//! Whether an engine that says nothing hangs. Pure: what was seen and how long ago comes in, a verdict comes out.
//!
//! The thread that owns the model sends frames of its own: the progress of a load, four heartbeats a second at work, one in
//! five seconds idle, and a word ahead of a step that will take long. Its silence alone proves little, since a box that
//! swaps or starves may need a minute for a step of a second. So the kernel is asked beside what that thread does:
//!
//! ```text
//!   a frame of its own ─────────────────────▶ all is well, from the beginning
//!   none, and it waits for the disk (D, major faults) ──┐
//!   none, and it computes (R, CPU time) ────────────────┼─▶ its share of what this may last: killed at one whole
//!   none, and it stands still (stopped, deadlocked) ────┘
//! ```
//!
//! Silence is counted by looks, and each counts for the time between two looks at most: a daemon that was itself stopped, or
//! whose box slept, has seen nothing meanwhile and accuses nobody of it.

use std::{fmt, time::Duration};

/// Between two looks.
pub const LOOK: Duration = Duration::from_secs(1);

/// How long the owner of the model may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// While it neither computes nor waits for a disk. It has said how long a step will take that is known to be long.
    pub still: Duration,
    /// While it computes: the first steps on a machine that was not measured yet may take twenty times as long as assumed.
    pub computing: Duration,
    /// While it waits for memory from a disk: a mapped model that has left the page cache is read anew by one step.
    pub waiting: Duration,
}

/// Patience of each part of an engine's life, and the time between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Between two looks.
    pub look: Duration,
    /// Until its hello, which is the first thing that it does.
    pub greeting: Patience,
    /// While it loads, beside what the size of the file adds ([`Bounds::loading`]).
    pub loading: Patience,
    /// From then on.
    pub serving: Patience,
}

/// Bytes of the model in a second at which a load still gets on: the slowest card, and what is converted on one slow core.
const READ: u64 = 5 << 20;
const CONVERTED: u64 = 20 << 20;

impl Default for Bounds {
    fn default() -> Self {
        let patience = |still, computing, waiting| Patience {
            still: Duration::from_secs(still),
            computing: Duration::from_secs(computing),
            waiting: Duration::from_secs(waiting),
        };
        Self {
            look: LOOK,
            greeting: patience(10, 30, 120),
            // A device is set up, kernels are compiled, a cache is touched: nothing of that is progress of the load.
            loading: patience(30, 120, 300),
            // Two heartbeats of an idle engine.
            serving: patience(12, 60, 600),
        }
    }
}

impl Bounds {
    /// Patience with the load of a file of so many bytes: all of it may be read at once, without a word in between.
    #[must_use]
    pub fn loading(&self, bytes: u64) -> Patience {
        let Patience { still, computing, waiting } = self.loading;
        let at = |rate| Duration::from_secs(bytes / rate);
        Patience { still, computing: computing + at(CONVERTED), waiting: waiting + at(READ) }
    }
}

/// Times that a step may take of what it was expected to: while the thread stands still, as it does while a GPU works,
/// and while it computes.
const STILL_LONGER: f64 = 2.0;
const COMPUTES_LONGER: f64 = 8.0;

/// A thread, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    /// proc_pid_stat(5): `R`, `S`, `D`, `T` and so on.
    pub state: char,
    /// Ticks of the clock for which it had a core.
    pub ticks: u64,
    /// Faults that needed a disk.
    pub major_faults: u64,
}

/// What it did since the look before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Nothing at all.
    Still,
    /// It had a core, or would have liked one.
    Computing,
    /// It waited for a disk.
    Waiting,
}

impl Doing {
    /// `None` is a look at which nothing could be read: then only the longer time proves anything.
    fn between(before: Option<Thread>, now: Option<Thread>) -> Self {
        let Some(now) = now else { return Self::Computing };
        let (ticks, faults) = before.map_or((now.ticks, now.major_faults), |one| (one.ticks, one.major_faults));
        match now.state {
            'D' => Self::Waiting,
            _ if now.major_faults > faults => Self::Waiting,
            'R' => Self::Computing,
            _ if now.ticks > ticks => Self::Computing,
            _ => Self::Still,
        }
    }
}

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hangs {
    /// Since its last frame, as far as it was looked at.
    pub silent: Duration,
    /// At the last look.
    pub doing: Doing,
}

impl fmt::Display for Hangs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = match self.doing {
            Doing::Still => "stands still",
            Doing::Computing => "computes",
            Doing::Waiting => "waits for a disk",
        };
        write!(f, "the engine hangs: nothing was heard of it for {} s, and it {doing}", self.silent.as_secs_f32())
    }
}

/// How an engine is heard of.
#[derive(Debug)]
pub struct Pulse {
    look: Duration,
    patience: Patience,
    /// Share of the patience that the present silence has used up.
    spent: f64,
    silent: Duration,
    /// Seconds that the engine has said its next step takes.
    expected: f64,
    seen: Option<Thread>,
}

impl Pulse {
    /// Heard of just now.
    #[must_use]
    pub fn new(look: Duration, patience: Patience) -> Self {
        Self { look, patience, spent: 0.0, silent: Duration::ZERO, expected: 0.0, seen: None }
    }

    /// Another part of its life begins.
    pub fn now(&mut self, patience: Patience) {
        self.patience = patience;
        self.heard(0.0);
    }

    /// The owner of the model has sent a frame, and expects to be silent for so many seconds.
    pub fn heard(&mut self, expected: f64) {
        (self.spent, self.silent) = (0.0, Duration::ZERO);
        self.expected = if expected.is_finite() { expected.clamp(0.0, MOST_EXPECTED) } else { 0.0 };
    }

    /// A look, so long after the one before. `thread` is the owner of the model; `None` where it cannot be looked at.
    pub fn look(&mut self, elapsed: Duration, thread: Option<Thread>) -> Option<Hangs> {
        let doing = Doing::between(self.seen, thread);
        self.seen = thread.or(self.seen);
        let counts = elapsed.min(self.look);
        self.silent += counts;
        let patience = match doing {
            Doing::Still => self.patience.still.as_secs_f64() + STILL_LONGER * self.expected,
            Doing::Computing => self.patience.computing.as_secs_f64() + COMPUTES_LONGER * self.expected,
            Doing::Waiting => self.patience.waiting.as_secs_f64() + COMPUTES_LONGER * self.expected,
        };
        self.spent += counts.as_secs_f64() / patience.max(f64::MIN_POSITIVE);
        (self.spent > WHOLE).then_some(Hangs { silent: self.silent, doing })
    }
}

/// All of the patience, but for what sums of shares lose.
const WHOLE: f64 = 1.0 - 1e-9;

/// Nobody may ask for more: it would be another way to hang.
const MOST_EXPECTED: f64 = 600.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVING: Patience = Patience {
        still: Duration::from_secs(12),
        computing: Duration::from_secs(60),
        waiting: Duration::from_secs(600),
    };

    fn pulse() -> Pulse {
        Pulse::new(LOOK, SERVING)
    }

    fn stopped() -> Option<Thread> {
        Some(Thread { state: 'T', ticks: 7, major_faults: 3 })
    }

    /// Looks, a second apart, until the verdict.
    fn looks(pulse: &mut Pulse, mut thread: impl FnMut(u64) -> Option<Thread>) -> (u64, Hangs) {
        (1..10_000).find_map(|n| Some((n, pulse.look(LOOK, thread(n))?))).expect("it comes to an end")
    }

    #[test]
    fn one_that_stands_still_is_given_up_soon_one_that_computes_later_one_that_waits_for_a_disk_last() {
        let (seconds, hangs) = looks(&mut pulse(), |_| stopped());
        assert_eq!((seconds, hangs.doing, hangs.silent), (12, Doing::Still, Duration::from_secs(12)));
        assert_eq!(hangs.to_string(), "the engine hangs: nothing was heard of it for 12 s, and it stands still");
        let endless = |n| Some(Thread { state: 'R', ticks: n, major_faults: 0 });
        assert_eq!(looks(&mut pulse(), endless).0, 60);
        let sleeps_in_between = |n| Some(Thread { state: 'S', ticks: n, major_faults: 0 });
        assert_eq!(looks(&mut pulse(), sleeps_in_between).1.doing, Doing::Computing);
        let starved = |_| Some(Thread { state: 'R', ticks: 0, major_faults: 0 });
        assert_eq!(looks(&mut pulse(), starved).0, 60, "it has no core, which is not its fault");
        let thrashes = |n| Some(Thread { state: 'R', ticks: n, major_faults: n });
        assert!(looks(&mut pulse(), thrashes).0 > 580, "the first look has none to be compared with");
        let dead_disk = |_| Some(Thread { state: 'D', ticks: 0, major_faults: 0 });
        assert_eq!(looks(&mut pulse(), dead_disk).0, 600);
        assert_eq!(looks(&mut pulse(), |_| None).0, 60, "nothing can be read of it");
    }

    #[test]
    fn what_it_said_of_its_step_is_waited_for() {
        let mut pulse = pulse();
        pulse.heard(30.0);
        assert_eq!(looks(&mut pulse, |_| stopped()).0, 72);
        // Its next frame ends the step.
        pulse.heard(0.0);
        assert_eq!(looks(&mut pulse, |_| stopped()).0, 12);
        for nonsense in [f64::NAN, f64::INFINITY, -1.0] {
            pulse.heard(nonsense);
            assert_eq!(looks(&mut pulse, |_| stopped()).0, 12);
        }
        pulse.heard(1e300);
        assert!(looks(&mut pulse, |_| stopped()).0 < 3600);
    }

    #[test]
    fn a_frame_begins_anew_and_what_came_before_is_forgotten() {
        let mut pulse = pulse();
        for _ in 0..100 {
            (0..11).for_each(|_| assert_eq!(pulse.look(LOOK, stopped()), None));
            pulse.heard(0.0);
        }
        // Each second counts by what was done in it.
        (0..6).for_each(|_| assert_eq!(pulse.look(LOOK, stopped()), None));
        let computes = |n| Some(Thread { state: 'R', ticks: n, major_faults: 3 });
        assert_eq!(looks(&mut pulse, computes).0, 30);
    }

    #[test]
    fn a_daemon_that_was_stopped_has_seen_nothing() {
        let mut pulse = pulse();
        for _ in 0..11 {
            assert_eq!(pulse.look(Duration::from_secs(86_400), stopped()), None);
        }
        assert!(pulse.look(Duration::from_secs(86_400), stopped()).is_some(), "twelve looks have found it so");
    }

    #[test]
    fn a_load_has_as_long_as_its_file_takes_on_the_slowest_card() {
        let bounds = Bounds::default();
        let (small, large) = (bounds.loading(98 << 20), bounds.loading(3 << 30));
        assert!(small.waiting < large.waiting && small.computing < large.computing);
        assert_eq!((small.still, large.still), (bounds.loading.still, bounds.loading.still));
        assert!(large.waiting.as_secs() >= (3 << 30) / READ);
        // Its progress counts, so a whole load may take longer than all of it.
        let mut pulse = Pulse::new(LOOK, small);
        for _ in 0..20 {
            (0..29).for_each(|_| assert_eq!(pulse.look(LOOK, stopped()), None));
            pulse.heard(0.0);
        }
    }

    fn threads() -> impl Strategy<Value = Option<Thread>> {
        let thread = (prop::sample::select(vec!['R', 'S', 'D', 'T', 'Z', '?']), 0_u64..3, 0_u64..3);
        prop::option::of(thread.prop_map(|(state, ticks, major_faults)| Thread { state, ticks, major_faults }))
    }

    proptest! {
        /// Whatever is seen: nobody is given up before the shortest patience, and nobody lives on after the longest, by the
        /// time that was really looked at.
        #[test]
        fn no_verdict_is_too_early_and_none_never_comes(
            looks in prop::collection::vec((0_u64..5_000, threads(), prop::option::weighted(0.02, 0.0_f64..5.0)), 1..1500),
        ) {
            let mut pulse = pulse();
            let (mut silent, mut expected) = (Duration::ZERO, 0.0);
            for (millis, thread, heard) in looks {
                if let Some(seconds) = heard {
                    pulse.heard(seconds);
                    (silent, expected) = (Duration::ZERO, seconds);
                }
                let elapsed = Duration::from_millis(millis);
                silent += elapsed.min(LOOK);
                let verdict = pulse.look(elapsed, thread);
                let most = SERVING.waiting.as_secs_f64() + COMPUTES_LONGER * expected;
                match verdict {
                    Some(hangs) => {
                        prop_assert!(silent.as_secs_f64() >= SERVING.still.as_secs_f64() + STILL_LONGER * expected - 1e-6);
                        prop_assert_eq!(hangs.silent, silent);
                        break;
                    }
                    None => prop_assert!(silent.as_secs_f64() < most + 1e-6),
                }
            }
        }
    }
}
