//! What the node says of itself: availability, info, state, telemetry and events.

use super::Session;
use crate::{
    config::PublishFormat,
    serve::mqtt::{
        answers::Answers,
        codec::Format,
        message::{Message, Qos},
        reply,
        topics::Topics,
    },
    wire::v1,
};

impl<A: Answers> Session<A> {
    /// Publishes the state where it differs from what was published.
    pub fn publish_state(&mut self) {
        let state = published(self.board.get());
        if self.is_up() && self.published_state.as_ref() != Some(&state) {
            let message = self.own_message(self.topics.state(), &state, true);
            self.published_state = Some(state);
            self.push_latest(message);
        }
    }

    /// Publishes a snapshot.
    pub fn publish_telemetry(&mut self, telemetry: &v1::Telemetry) {
        let message = self.own_message(self.topics.telemetry(), telemetry, false);
        if self.mqtt.telemetry.qos == 0 {
            self.publish_at_once(Message { qos: Qos::AtMostOnce, ..message });
        } else {
            self.push_optional(message);
        }
    }

    /// Publishes something that has happened; while the broker is away it waits, where there is room.
    pub fn publish_event(&mut self, event: &v1::Event) {
        self.push_optional(self.own_message(self.topics.event(), event, false));
    }

    /// Events that came faster than they could be taken.
    pub fn lost_events(&self, lost: u64) {
        self.counts.dropped_messages.inc_by(lost);
    }

    /// What is said first on each connection.
    pub(super) fn births(&mut self) -> [Message; 3] {
        let state = published(self.board.get());
        let births = [
            self.availability_message(),
            self.own_message(self.topics.info(), &self.mqtt.info(), true),
            self.own_message(self.topics.state(), &state, true),
        ];
        self.published_state = Some(state);
        births
    }

    pub(super) fn availability_message(&self) -> Message {
        availability_message(&self.topics, self.availability)
    }

    /// Something about ourselves, in the configured form.
    fn own_message<M: prost::Message + serde::Serialize>(&self, topic: String, body: &M, retain: bool) -> Message {
        let format = match self.mqtt.telemetry.format {
            PublishFormat::Json => Format::Json,
            PublishFormat::Protobuf => Format::Protobuf,
        };
        Message {
            topic,
            payload: reply::encode(format, body).into(),
            qos: Qos::AtLeastOnce,
            retain,
            content_type: format.content_type(),
            utf8: format.is_utf8(),
            correlation: None,
            user: Vec::new(),
            expires: None,
        }
    }
}

/// The status as it is retained: without what changes with every request.
fn published(mut status: v1::Status) -> v1::Status {
    status.queue = None;
    status.running = None;
    status.mqtt = Some(v1::Mqtt { state: "connected".into(), outbox: 0 });
    status
}

/// The retained word on whether we are there; also the form of the will.
pub fn availability_message(topics: &Topics, word: &'static str) -> Message {
    Message {
        topic: topics.availability(),
        payload: word.into(),
        qos: Qos::AtLeastOnce,
        retain: true,
        content_type: Format::Text.content_type(),
        utf8: true,
        correlation: None,
        user: Vec::new(),
        expires: None,
    }
}
