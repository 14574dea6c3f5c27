//! From the outcome of a request to its acknowledgement: the broker takes its final, that is put on record, and then the
//! request itself can go. The order is that of [`crate::serve::mqtt::protocol`].

use std::time::Instant;

use super::{Session, Step};
use crate::{
    request::{ErrorCode, Outcome, RequestError},
    serve::mqtt::{
        answers::Answers,
        message::Message,
        outbox::{End, Gone, Kind},
        protocol::{Left, Settlement},
    },
    wire::v1,
};

impl<A: Answers> Session<A> {
    /// An accepted request has its outcome.
    pub(super) fn outcome(&mut self, job: u64, message: Message, now: Instant) {
        let note = self.core.outcome(job, message, self.trail.stamp(now));
        let written = self.trail.write(note, self.core.seen(), now);
        if written.is_here() {
            self.core.noted(job);
        } else {
            self.running.push(Box::pin(async move {
                written.wait().await;
                Step::Noted(job)
            }));
        }
    }

    /// A message has left the outbox, one way or another.
    pub(super) fn gone(&mut self, gone: Gone, now: Instant) {
        let topic = gone.message.topic.as_str();
        match gone.end {
            End::Taken => {}
            // The log says so when the connection comes up.
            End::Unconfirmed => {
                self.counts.unconfirmed_messages.inc();
            }
            End::Expired => {
                self.counts.expired_messages.inc();
                log::warn!(target: "temperd::mqtt", topic; "message expired before the broker took it");
            }
            End::Refused(reason) => {
                self.counts.refused_messages.inc();
                log::error!(target: "temperd::mqtt", topic, reason; "the broker refuses a message: it is given up");
            }
            End::TooLarge(limit) => {
                self.counts.oversized_messages.inc();
                log::error!(
                    target: "temperd::mqtt", topic, limit, bytes = gone.message.payload.len();
                    "message is larger than the broker takes; raise the broker's limit or ask for shorter answers"
                );
            }
        }
        self.parted |= gone.kind == Kind::Farewell;
        match self.core.left(gone, self.trail.stamp(now)) {
            Left::Nothing => {}
            Left::Over(settlement) => self.settle(settlement, now),
            Left::TooLarge { job, message, limit } => self.replace(job, &message, limit, now),
        }
    }

    /// Tells the device of an answer that does not fit through the broker.
    fn replace(&mut self, number: u64, message: &Message, limit: u32, now: Instant) {
        let Some(asker) = self.core.job(number).map(|job| &job.asker) else { return };
        let bytes = message.payload.len();
        let way_out = if asker.reply.embeds { "send fewer texts at once" } else { "ask for max_reply_bytes" };
        let text = format!("the answer has {bytes} bytes, the broker takes packets of {limit}; {way_out}");
        let error = RequestError::new(ErrorCode::PayloadTooLarge, text).with_numbers(limit as usize, bytes);
        let last = v1::Final {
            id: asker.id.clone(),
            node: self.mqtt.node.clone(),
            outcome: Outcome::Failed.as_str().into(),
            error: Some(error.to_wire()),
            ..v1::Final::default()
        };
        let message = asker.reply.last(last, now);
        self.core.answer(number, message);
    }

    /// Acknowledges deliveries once what they brought is on record.
    pub(super) fn settle(&mut self, settlement: Settlement, now: Instant) {
        let Settlement { note, deliveries } = settlement;
        let written = self.trail.write(note, self.core.seen(), now);
        if written.is_here() {
            self.settled(deliveries);
        } else {
            self.running.push(Box::pin(async move {
                written.wait().await;
                Step::Settled(deliveries)
            }));
        }
    }
}
