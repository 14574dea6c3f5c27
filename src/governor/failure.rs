//! What failed loads and crashes leave to try: less on the GPU, then less memory, then nothing for a while. A step comes
//! back after a while without a failure, and later each time that it was in vain.
//!
//! A load that fails tells how much is too much, and less is tried step by step. A crash does not, and requests that run at
//! three of them are given up: after the second one nothing is left on the GPU, so that the third try is the safest there is.

use std::time::Duration;

use super::{
    decision::{Code, Reading, Reason},
    input::{Failure, Input},
    ladder::{Ladder, Step},
    point::OperatingPoint,
};

/// Two crashes within it at the same point speak against the point; one may be chance.
const TOGETHER: Duration = Duration::from_secs(600);
/// Without a failure for so long, one step up is tried again. Each try costs a load.
const RETRY: Duration = Duration::from_secs(600);
/// Most that it is stretched to.
const LONGEST_RETRY: Duration = Duration::from_secs(86_400);

/// What has failed so far.
#[derive(Debug, Clone)]
pub(super) struct Failures {
    ladder: Ladder,
    at: usize,
    /// Where it stood before crashes took the GPU away.
    fell_from: Option<usize>,
    crash: Option<(Duration, Failure)>,
    changed: Duration,
    retry: Duration,
    cause: Option<(Code, Reading, f64)>,
}

impl Failures {
    pub(super) fn new() -> Self {
        let ladder = Ladder::failure();
        Self { ladder, at: 0, fell_from: None, crash: None, changed: Duration::ZERO, retry: RETRY, cause: None }
    }

    pub(super) fn step(&mut self, input: &Input<'_>, full: OperatingPoint) -> (OperatingPoint, Option<Reason>) {
        let idle = input.now.saturating_sub(self.changed);
        if self.at > 0 && input.failures.is_empty() && idle >= self.retry {
            let here = self.bound(full);
            match self.fell_from.take() {
                Some(before) => self.at = before,
                None => {
                    while self.at > 0 && self.bound(full) == here {
                        self.at -= 1;
                    }
                }
            }
            // In vain, if it fails again.
            self.retry = self.retry.saturating_mul(2).min(LONGEST_RETRY);
            self.changed = input.now;
        }
        for failure in input.failures {
            self.count(*failure, input.now, full);
        }
        if self.at == 0 && input.now.saturating_sub(self.changed) >= self.retry {
            self.retry = RETRY;
        }
        let bound = self.bound(full);
        let limit = |reading| match reading {
            Reading::Context => f64::from(bound.context),
            _ => f64::from(bound.gpu_layers),
        };
        let reason = self.cause.filter(|_| self.at > 0).map(|(code, reading, value)| Reason {
            code,
            reading,
            value: Some(value),
            limit: Some(limit(reading)),
            since: input.now,
        });
        (bound, reason)
    }

    fn count(&mut self, failure: Failure, now: Duration, full: OperatingPoint) {
        let (code, gpu_layers, context) = match failure {
            Failure::Load { gpu_layers, context } => (Code::LoadFailed, gpu_layers, context),
            Failure::Crash { gpu_layers, context } => {
                let before = self.crash.replace((now, failure));
                let again = |(at, what): (Duration, Failure)| what == failure && now.saturating_sub(at) <= TOGETHER;
                if !before.is_some_and(again) {
                    return;
                }
                (Code::Crashed, gpu_layers, context)
            }
            Failure::Over => {
                *self = Self::new();
                return;
            }
        };
        // The first step that is less than what was tried; with nothing left on the GPU that is a smaller context.
        let most = if code == Code::Crashed { 0 } else { gpu_layers.saturating_sub(1) };
        let less = |position: &usize| match self.ladder.step(*position) {
            Some(Step::Layers(_)) if gpu_layers == 0 => false,
            Some(Step::Layers(_)) => self.ladder.bound(*position, full, |_| true).gpu_layers <= most,
            Some(Step::Context(_)) => self.ladder.bound(*position, full, |_| true).context < context,
            _ => true,
        };
        let last = self.ladder.steps().len();
        self.fell_from = (code == Code::Crashed && gpu_layers > 0).then_some(self.at);
        self.at = (self.at.max(1)..=last).find(less).unwrap_or(last);
        self.changed = now;
        let (reading, value) =
            if gpu_layers > 0 { (Reading::GpuLayers, gpu_layers) } else { (Reading::Context, context) };
        self.cause = Some((code, reading, value.into()));
    }

    fn bound(&self, full: OperatingPoint) -> OperatingPoint {
        self.ladder.bound(self.at, full, |_| true)
    }
}
