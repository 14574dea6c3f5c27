//! Looks at an engine once a second: whether it hangs, and whether it leaks.

use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Life;
use crate::{
    engine::{
        kernel,
        plan::Change,
        pulse::{Bounds, Hangs, Pulse},
        supervisor::End,
    },
    wire::engine::from_engine::Frame,
};

/// When it is looked at, and how it is heard of in between.
pub(in crate::engine) struct Looks {
    bounds: Bounds,
    timer: Interval,
    last: Instant,
    pulse: Pulse,
    /// The tokeniser's thread, while somebody waits for it.
    tokeniser: Pulse,
}

impl Looks {
    /// Of an engine that is started now.
    pub(in crate::engine) fn new(bounds: Bounds) -> Self {
        let mut timer = interval(bounds.look);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (pulse, tokeniser) = (Pulse::new(bounds.look, bounds.greeting), Pulse::new(bounds.look, bounds.serving));
        Self { bounds, timer, last: Instant::now(), pulse, tokeniser }
    }

    /// Waits for the next look, and says how long ago the last one was.
    pub(super) async fn next(&mut self) -> Duration {
        self.timer.tick().await;
        let last = std::mem::replace(&mut self.last, Instant::now());
        self.last.duration_since(last)
    }

    /// Whether it hangs, as far as its owner's thread shows.
    pub(super) fn look(&mut self, elapsed: Duration, pid: Option<u32>) -> Option<Hangs> {
        self.pulse.look(elapsed, pid.and_then(kernel::first_thread))
    }

    /// The same of its tokeniser, where anybody `waits` for one. What that thread does is not looked at: a text takes a
    /// moment.
    fn look_at_tokeniser(&mut self, elapsed: Duration, waits: bool) -> Option<Hangs> {
        if !waits {
            self.tokeniser.heard(0.0);
            return None;
        }
        self.tokeniser.look(elapsed, None)
    }

    /// It has said hello, and loads a file of so many bytes.
    pub(super) fn loads(&mut self, bytes: u64) {
        self.pulse.now(self.bounds.loading(bytes));
    }

    /// It is ready.
    pub(super) fn serves(&mut self) {
        self.pulse.now(self.bounds.serving);
    }

    /// A frame has come. Those of other threads than the owner's say nothing of it.
    pub(super) fn heard(&mut self, frame: &Frame) {
        match frame {
            Frame::Vocabulary(_) | Frame::Log(_) => {}
            Frame::Tokenised(_) => self.tokeniser.heard(0.0),
            Frame::Busy(busy) => self.pulse.heard(busy.seconds),
            Frame::Hello(_)
            | Frame::Loading(_)
            | Frame::Ready(_)
            | Frame::LoadFailed(_)
            | Frame::Step(_)
            | Frame::Heartbeat(_)
            | Frame::Embedded(_)
            | Frame::Resized(_)
            | Frame::Saved(_)
            | Frame::Measured(_) => self.pulse.heard(0.0),
        }
    }

    /// How long anything else than a frame may keep the engine from being looked at.
    pub(super) fn patience(&self) -> Duration {
        self.bounds.look
    }
}

impl Life<'_> {
    /// Looks at it once.
    pub(super) async fn look(&mut self, elapsed: Duration) -> Option<End> {
        if let Some(hangs) = self.looks.look(elapsed, self.process.pid()) {
            return Some(self.by_itself(hangs.to_string()));
        }
        if let Some(hangs) = self.looks.look_at_tokeniser(elapsed, self.handle.is_tokenising()) {
            return Some(self.by_itself(format!("nobody tokenises: {hangs}")));
        }
        if self.ready_since.is_none() || self.saving.is_some() {
            return None;
        }
        let orders = *self.orders.borrow();
        // What it could not be told before, since it did not read.
        self.operate(&orders).await;
        if self.leaks(elapsed) {
            return self.change(Change::Leak, &orders).await;
        }
        None
    }

    pub(super) fn leaks(&mut self, elapsed: Duration) -> bool {
        let Some(anonymous) = self.process.pid().and_then(kernel::anonymous) else { return false };
        let vitals = self.vitals.borrow();
        let Some(ready) = &vitals.ready else { return false };
        let context = self.operated.as_ref().map_or(self.plan.context, |operate| operate.context);
        let leaks = self.growth.look(elapsed, anonymous, ready, context, self.may_have);
        if let Some(leaks) = leaks {
            log::warn!(target: "temperd::engine", "{leaks}; another takes its place");
        }
        leaks.is_some()
    }
}
