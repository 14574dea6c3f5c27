//! One telemetry message from the status and the counters.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::metrics::{Metrics, Totals};
use crate::{keeper::report::Readings, status::StatusBoard, wire::v1};

/// Makes telemetry messages; keeps what the last one counted, since rates are of the time between two.
#[derive(Debug)]
pub struct Snapshots {
    status: StatusBoard,
    metrics: Arc<Metrics>,
    readings: watch::Receiver<Readings>,
    started: Instant,
    last: (Instant, Totals),
}

impl Snapshots {
    /// Rates of the first message are since `started`.
    #[must_use]
    pub fn new(
        status: StatusBoard,
        metrics: Arc<Metrics>,
        readings: watch::Receiver<Readings>,
        started: Instant,
    ) -> Self {
        Self { status, metrics, readings, started, last: (started, Totals::default()) }
    }

    /// A message as of now.
    pub fn take(&mut self) -> v1::Telemetry {
        let now = Instant::now();
        let totals = self.metrics.totals();
        let (last_time, last_totals) = std::mem::replace(&mut self.last, (now, totals));
        let status = self.status.get();
        let Readings { board, daemon, engine, .. } = self.readings.borrow().clone();
        v1::Telemetry {
            node: status.node,
            version: status.version,
            time: unix_seconds(),
            uptime_s: now.duration_since(self.started).as_secs_f64(),
            model: status.model,
            operating_point: status.operating_point,
            allocated_context: status.allocated_context,
            queue: status.queue,
            running: status.running.unwrap_or_default(),
            rates: Some(rates(&last_totals, &totals, now.duration_since(last_time))),
            counters: Some(counters(&totals)),
            board: Some(board),
            daemon,
            engine,
        }
    }
}

/// Unix time in seconds.
#[must_use]
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn rates(before: &Totals, now: &Totals, elapsed: Duration) -> v1::Rates {
    let per_second = |before: u64, now: u64| {
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.0 { float(now.saturating_sub(before)) / seconds } else { 0.0 }
    };
    v1::Rates {
        prompt_tokens_per_second: per_second(before.prompt_tokens, now.prompt_tokens),
        completion_tokens_per_second: per_second(before.completion_tokens, now.completion_tokens),
    }
}

fn counters(totals: &Totals) -> v1::Counters {
    let accepted = totals.completed + totals.failed + totals.cancelled + totals.expired;
    v1::Counters {
        requests: float(accepted + totals.refused),
        completed: float(totals.completed),
        failed: float(totals.failed),
        cancelled: float(totals.cancelled),
        expired: float(totals.expired),
        refused: float(totals.refused),
        prompt_tokens: float(totals.prompt_tokens),
        completion_tokens: float(totals.completion_tokens),
    }
}

/// The wire has no 64-bit integers; a double counts exactly to 2^53.
#[allow(clippy::cast_precision_loss, reason = "exact up to 2^53, centuries of tokens")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_two_messages() {
        let before = Totals { completion_tokens: 100, ..Totals::default() };
        let now = Totals { completion_tokens: 250, prompt_tokens: 30, ..Totals::default() };
        let rates = rates(&before, &now, Duration::from_secs(3));
        assert!((rates.completion_tokens_per_second - 50.0).abs() < 1e-9);
        assert!((rates.prompt_tokens_per_second - 10.0).abs() < 1e-9);
    }

    #[test]
    fn requests_are_all_that_came_in() {
        let totals = Totals { completed: 3, failed: 1, cancelled: 1, expired: 1, refused: 4, ..Totals::default() };
        assert!((counters(&totals).requests - 10.0).abs() < 1e-9);
    }
}
