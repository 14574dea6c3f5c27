//! What is counted about MQTT beyond requests.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

/// Counters; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Connections that came up.
    pub connections: Counter,
    /// Connections lost, and tries that failed.
    pub losses: Counter,
    /// Sessions that another client of the same id took over, or seems to have.
    pub takeovers: Counter,
    /// Messages given up: refused by the broker for good, or too often.
    pub refused_messages: Counter,
    /// Messages sent to a broker that confirms nothing.
    pub unconfirmed_messages: Counter,
    /// Messages whose time was over before the broker took them.
    pub expired_messages: Counter,
    /// Messages larger than the broker takes.
    pub oversized_messages: Counter,
    /// Chunks and telemetry dropped because there was no room or no connection.
    pub dropped_messages: Counter,
    /// Requests answered from a kept answer, or joined to one that is running.
    pub repeats: Counter,
    /// Messages on request topics that were passed over: retained ones, those beyond what can be held, and those to a
    /// pool that say not where the answer is wanted.
    pub ignored_requests: Counter,
}

impl Counts {
    /// Adds them to `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("mqtt");
        for (name, help, counter) in [
            ("connections", "Connections to the broker that came up", &self.connections),
            ("connection_losses", "Connections to the broker that were lost or failed", &self.losses),
            ("takeovers", "MQTT sessions taken over by another client of the same id", &self.takeovers),
            ("refused_messages", "Messages that the broker refused", &self.refused_messages),
            (
                "unconfirmed_messages",
                "Messages sent at QoS 0 since the broker takes no other",
                &self.unconfirmed_messages,
            ),
            ("expired_messages", "Messages that expired before the broker took them", &self.expired_messages),
            ("oversized_messages", "Messages larger than the broker takes", &self.oversized_messages),
            ("dropped_messages", "Chunks and telemetry dropped for want of room or connection", &self.dropped_messages),
            ("repeats", "Repeated requests that were not decoded again", &self.repeats),
            ("ignored_requests", "Messages on request topics that were passed over", &self.ignored_requests),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}
