//! Counters, gauges and histograms for `/metrics`. Latencies carry OpenTelemetry's GenAI names (dots become
//! underscores, the unit is appended), the rest our own prefix. No label ever holds an id or any text.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    governor::OperatingPoint,
    request::{ErrorCode, Outcome, WayIn},
    serve::mqtt::counts::Counts,
};

/// Media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// OpenTelemetry's advice for `gen_ai.server.time_to_first_token`, in seconds, with three buckets on top: a queue on an
/// edge box is slower than a data centre's.
const TTFT_BUCKETS: [f64; 18] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0];
/// The same for `gen_ai.server.time_per_output_token`.
const TPOT_BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0];
/// The same for `gen_ai.server.request.duration`, again prolonged upward.
const DURATION_BUCKETS: [f64; 16] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    way_in: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    way_in: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ZoneLabels {
    zone: String,
}

/// A gauge of something that is no whole number.
type FloatGauge = Gauge<f64, AtomicU64>;

/// All metrics; passed by `Arc` to whoever counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    jobs: Family<OutcomeLabels, Counter>,
    refused: Family<RefusalLabels, Counter>,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    drafted_tokens: Counter,
    accepted_tokens: Counter,
    ttft: Histogram,
    tpot: Histogram,
    duration: Histogram,
    queue_depth: Gauge,
    running: Gauge,
    model_ready: Gauge,
    engine_restarts: Counter,
    mqtt_outbox: Gauge,
    mqtt: Counts,
    gpu_layers: Gauge,
    context_tokens: Gauge,
    pace: FloatGauge,
    memory_available: FloatGauge,
    temperatures: Family<ZoneLabels, FloatGauge>,
}

/// Totals since the start, for telemetry.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs, reason = "they are the fields of the message `Counters`")]
pub struct Totals {
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub expired: u64,
    pub refused: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            jobs: Family::default(),
            refused: Family::default(),
            prompt_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            drafted_tokens: Counter::default(),
            accepted_tokens: Counter::default(),
            ttft: Histogram::new(TTFT_BUCKETS),
            tpot: Histogram::new(TPOT_BUCKETS),
            duration: Histogram::new(DURATION_BUCKETS),
            queue_depth: Gauge::default(),
            running: Gauge::default(),
            model_ready: Gauge::default(),
            engine_restarts: Counter::default(),
            mqtt_outbox: Gauge::default(),
            mqtt: Counts::default(),
            gpu_layers: Gauge::default(),
            context_tokens: Gauge::default(),
            pace: FloatGauge::default(),
            memory_available: FloatGauge::default(),
            temperatures: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("temperd_jobs", "Accepted requests by outcome", self.jobs.clone());
        r.register("temperd_refused", "Requests that were not accepted", self.refused.clone());
        r.register("temperd_prompt_tokens", "Prompt tokens read", self.prompt_tokens.clone());
        r.register("temperd_completion_tokens", "Answer tokens written", self.completion_tokens.clone());
        r.register("temperd_drafted_tokens", "Tokens drafted by prompt lookup", self.drafted_tokens.clone());
        r.register("temperd_accepted_tokens", "Drafted tokens that were right", self.accepted_tokens.clone());
        let seconds = || Unit::Seconds;
        r.register_with_unit(
            "gen_ai_server_time_to_first_token",
            "Arrival to first token",
            seconds(),
            self.ttft.clone(),
        );
        r.register_with_unit(
            "gen_ai_server_time_per_output_token",
            "Mean time of an answer's tokens after the first",
            seconds(),
            self.tpot.clone(),
        );
        r.register_with_unit("gen_ai_server_request_duration", "Arrival to outcome", seconds(), self.duration.clone());
        r.register("temperd_queue_depth", "Requests that wait", self.queue_depth.clone());
        r.register("temperd_running", "Requests in the engine", self.running.clone());
        r.register("temperd_model_ready", "1 where the model can answer", self.model_ready.clone());
        r.register("temperd_engine_restarts", "Engines replaced after their end", self.engine_restarts.clone());
        r.register("temperd_mqtt_outbox_entries", "Messages not acknowledged by the broker", self.mqtt_outbox.clone());
        r.register("temperd_gpu_layers", "Layers on the GPU", self.gpu_layers.clone());
        r.register("temperd_context_tokens", "Tokens that the KV cache may hold", self.context_tokens.clone());
        r.register("temperd_pace_ratio", "Share of the time that the engine may work", self.pace.clone());
        r.register(
            "temperd_memory_available_bytes",
            "Memory that can be had without swapping",
            self.memory_available.clone(),
        );
        r.register("temperd_temperature_celsius", "Temperature by zone", self.temperatures.clone());
        self.mqtt.register(r.sub_registry_with_prefix("temperd"));
    }

    /// A request that was not accepted.
    pub fn refused(&self, way_in: WayIn, code: ErrorCode) {
        self.refused.get_or_create(&RefusalLabels { way_in: way_in.as_str(), code: code.as_str() }).inc();
    }

    /// The outcome of an accepted request, with its time from arrival to outcome.
    pub fn finished(&self, way_in: WayIn, outcome: Outcome, took: Duration) {
        self.jobs.get_or_create(&OutcomeLabels { way_in: way_in.as_str(), outcome: outcome.as_str() }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// A prompt went to the engine.
    pub fn prompt_read(&self, tokens: u64) {
        self.prompt_tokens.inc_by(tokens);
    }

    /// An answer has ended, for which so many tokens were drafted, and so many of them were right.
    pub fn drafted(&self, drafted: u64, accepted: u64) {
        self.drafted_tokens.inc_by(drafted);
        self.accepted_tokens.inc_by(accepted);
    }

    /// Tokens of an answer arrived.
    pub fn tokens_written(&self, tokens: u64) {
        self.completion_tokens.inc_by(tokens);
    }

    /// Arrival to first token.
    pub fn first_token(&self, after: Duration) {
        self.ttft.observe(after.as_secs_f64());
    }

    /// First token to last, over the tokens after the first.
    pub fn time_per_token(&self, mean: Duration) {
        self.tpot.observe(mean.as_secs_f64());
    }

    /// Requests that wait and run.
    pub fn load(&self, queued: usize, running: usize) {
        self.queue_depth.set(i64::try_from(queued).unwrap_or(i64::MAX));
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
    }

    /// Whether the model can answer.
    pub fn model_ready(&self, ready: bool) {
        self.model_ready.set(ready.into());
    }

    /// An engine ended and another takes its place.
    pub fn engine_restarted(&self) {
        self.engine_restarts.inc();
    }

    /// Messages that the broker has not acknowledged.
    pub fn mqtt_outbox(&self, entries: usize) {
        self.mqtt_outbox.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// The operating point in force.
    pub fn operating_point(&self, point: &OperatingPoint) {
        self.gpu_layers.set(point.gpu_layers.into());
        self.context_tokens.set(point.context.into());
        self.pace.set(point.pace);
    }

    /// Readings of the board: memory in bytes, where it could be read, and the zones that could. One that could not keeps
    /// no old value.
    pub fn board(&self, memory_available: Option<f64>, temperatures: &[(String, f64)]) {
        self.memory_available.set(memory_available.unwrap_or(f64::NAN));
        self.temperatures.clear();
        for (zone, degrees) in temperatures {
            self.temperatures.get_or_create(&ZoneLabels { zone: zone.clone() }).set(*degrees);
        }
    }

    /// What MQTT counts by itself.
    #[must_use]
    pub fn mqtt(&self) -> &Counts {
        &self.mqtt
    }

    /// Totals since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let ways = [WayIn::Http, WayIn::Grpc, WayIn::Mqtt];
        let by_outcome = |outcome: Outcome| {
            let of = |way_in: &WayIn| OutcomeLabels { way_in: way_in.as_str(), outcome: outcome.as_str() };
            ways.iter().map(|way_in| self.jobs.get(&of(way_in)).map_or(0, |counter| counter.get())).sum()
        };
        let refusals = ErrorCode::ALL
            .iter()
            .flat_map(|code| ways.iter().map(|way_in| RefusalLabels { way_in: way_in.as_str(), code: code.as_str() }));
        Totals {
            completed: by_outcome(Outcome::Completed),
            failed: by_outcome(Outcome::Failed),
            cancelled: by_outcome(Outcome::Cancelled),
            expired: by_outcome(Outcome::Expired),
            refused: refusals.map(|labels| self.refused.get(&labels).map_or(0, |counter| counter.get())).sum(),
            prompt_tokens: self.prompt_tokens.get(),
            completion_tokens: self.completion_tokens.get(),
        }
    }

    /// The text that Prometheus reads, of type [`CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_rendered_and_summed() {
        let metrics = Metrics::new();
        metrics.finished(WayIn::Http, Outcome::Completed, Duration::from_secs(1));
        metrics.finished(WayIn::Mqtt, Outcome::Completed, Duration::from_secs(2));
        metrics.refused(WayIn::Grpc, ErrorCode::QueueFull);
        metrics.tokens_written(7);
        let text = metrics.render();
        assert!(text.contains("temperd_jobs_total{way_in=\"http\",outcome=\"completed\"} 1"), "{text}");
        assert!(text.contains("temperd_refused_total{way_in=\"grpc\",code=\"queue_full\"} 1"), "{text}");
        assert!(text.contains("gen_ai_server_request_duration_seconds_count 2"), "{text}");
        metrics.board(Some(5e9), &[("tj-thermal".into(), 61.5), ("cv0-thermal".into(), 50.0)]);
        metrics.board(Some(4e9), &[("tj-thermal".into(), 62.0)]);
        let text = metrics.render();
        assert!(text.contains("temperd_temperature_celsius{zone=\"tj-thermal\"} 62.0"), "{text}");
        assert!(!text.contains("cv0-thermal"), "{text}");
        assert!(text.contains("temperd_memory_available_bytes 4000000000"), "{text}");
        let totals = metrics.totals();
        assert_eq!((totals.completed, totals.refused, totals.completion_tokens), (2, 1, 7));
    }
}
