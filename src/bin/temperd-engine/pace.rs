//! Pace: the share of the time that the engine computes. After a step that took `c` seconds the next one begins `c / pace`
//! after the last one began, so that all streams slow down alike. Pure: the time comes in as seconds.

/// The least pace. Below it a step of a large model would be followed by minutes of silence.
const LEAST: f64 = 0.01;
/// The longest pause: whoever waits shall see that something gets on.
const LONGEST: f64 = 30.0;
/// Time lost between two steps (commands, sending) that counts as pause, in seconds. What is over is not made up for: after a
/// rest there is no burst.
const CREDIT: f64 = 0.05;

/// When the next step may begin.
#[derive(Debug)]
pub struct Pace {
    share: f64,
    /// When the next step is due.
    due: f64,
    /// What the last step took, as long as its pause may still change.
    last: Option<Work>,
    computed: f64,
}

/// A step.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// When it was due, but for what has been forgiven.
    from: f64,
    until: f64,
    seconds: f64,
}

impl Pace {
    /// Full pace.
    pub fn new() -> Self {
        Self { share: 1.0, due: 0.0, last: None, computed: 0.0 }
    }

    /// From now on this share of the time, also for the pause that is under way. What is no number is full pace.
    pub fn set(&mut self, share: f64) {
        self.share = if share.is_nan() { 1.0 } else { share.clamp(LEAST, 1.0) };
        if let Some(work) = self.last {
            self.due = self.after(work);
        }
    }

    /// Notes a step that began at `began` and took `seconds`.
    pub fn worked(&mut self, began: f64, seconds: f64) {
        let seconds = seconds.max(0.0);
        self.computed += seconds;
        let work = Work { from: self.due.max(began - CREDIT).min(began), until: began + seconds, seconds };
        self.last = Some(work);
        self.due = self.after(work);
    }

    fn after(&self, work: Work) -> f64 {
        (work.from + work.seconds / self.share).min(work.until + LONGEST)
    }

    /// Seconds until the next step may begin; 0 where it may at once.
    pub fn pause(&self, now: f64) -> f64 {
        (self.due - now).max(0.0)
    }

    /// Seconds that were computed.
    pub fn computed(&self) -> f64 {
        self.computed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pause_follows_from_the_step_and_a_new_pace_counts_at_once() {
        let mut pace = Pace::new();
        pace.worked(10.0, 0.2);
        assert_eq!(pace.pause(10.2), 0.0);
        pace.set(0.5);
        pace.worked(20.0, 0.2);
        // 0.05 s of the rest before count as pause.
        assert!((pace.pause(20.2) - 0.15).abs() < 1e-9);
        pace.set(0.1);
        assert!((pace.pause(20.2) - 1.75).abs() < 1e-9);
        pace.set(1.0);
        assert_eq!(pace.pause(20.2), 0.0);
    }

    #[test]
    fn after_a_rest_there_is_no_burst_and_no_pause_is_endless() {
        let mut pace = Pace::new();
        pace.set(0.5);
        pace.worked(0.0, 1.0);
        assert_eq!(pace.pause(100.0), 0.0);
        pace.worked(100.0, 1.0);
        assert!(pace.pause(101.0) > 0.9);
        pace.set(f64::NAN);
        assert_eq!(pace.pause(101.0), 0.0);
        pace.set(-1.0);
        assert_eq!(pace.pause(101.0), LONGEST);
    }

    proptest! {
        /// Over many steps the share that is computed is the pace, whatever is lost between them, if that is short.
        #[test]
        fn the_share_of_the_time_that_is_computed_is_the_pace(
            share in 0.05f64..1.0,
            steps in prop::collection::vec((0.001f64..0.3, 0.0f64..0.01), 50..200),
        ) {
            let mut pace = Pace::new();
            pace.set(share);
            let mut now = 0.0;
            for (seconds, lost) in &steps {
                now += pace.pause(now) + lost;
                pace.worked(now, *seconds);
                now += seconds;
                prop_assert!(pace.pause(now) <= seconds / share + 1e-9);
            }
            let all = now + pace.pause(now);
            let found = pace.computed() / all;
            let lost: f64 = steps.iter().map(|(_, lost)| lost).sum();
            prop_assert!(found <= share + CREDIT / all + 1e-9, "{found} of {share}");
            prop_assert!(found >= share * (1.0 - lost / all) - 1e-9, "{found} of {share}");
        }
    }
}
