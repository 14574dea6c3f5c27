//! From the outcome of a request to its acknowledgement: the broker takes its final, that is put on record, and then the
//! request itself can go.

use std::time::Instant;

use super::{Session, Step};
use crate::{
    request::{ErrorCode, Outcome, RequestError},
    serve::mqtt::{
        acks::Delivery,
        answers::Answers,
        journal::Receipt,
        message::Message,
        outbox::{End, Gone, Kind},
    },
    wire::v1,
};

impl<A: Answers> Session<A> {
    /// A request has its outcome: this daemon did not die of it.
    pub(super) fn ended(&mut self, number: u64, now: Instant) {
        if let Some(run) = self.jobs.get(&number).and_then(|job| job.run) {
            self.trail.end(&run, now);
        }
    }

    /// A message has left the outbox, one way or another.
    pub(super) fn gone(&mut self, gone: Gone, now: Instant) {
        let topic = gone.message.topic.as_str();
        match gone.end {
            End::Taken => {}
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
        match (gone.kind, gone.end) {
            (Kind::Farewell, _) => self.parted = true,
            (Kind::Answer(number), End::TooLarge(limit)) => self.replace(number, gone.message, limit, now),
            (Kind::Answer(number), _) => self.finish(number, gone.message, now),
            _ => {}
        }
    }

    /// Tells the device of an answer that does not fit through the broker; once, and then no more of it.
    pub(super) fn replace(&mut self, number: u64, message: Message, limit: u32, now: Instant) {
        let bytes = message.payload.len();
        let Some(job) = self.jobs.get_mut(&number).filter(|job| !job.replaced) else {
            self.finish(number, message, now);
            return;
        };
        job.replaced = true;
        let way_out = if job.reply.embeds { "send fewer texts at once" } else { "ask for max_reply_bytes" };
        let text = format!("the answer has {bytes} bytes, the broker takes packets of {limit}; {way_out}");
        let error = RequestError::new(ErrorCode::PayloadTooLarge, text).with_numbers(limit as usize, bytes);
        let last = v1::Final {
            id: job.id.clone(),
            node: self.mqtt.node.clone(),
            outcome: Outcome::Failed.as_str().into(),
            error: Some(error.to_wire()),
            ..v1::Final::default()
        };
        let message = job.reply.last(last, now);
        self.push_answer(number, message);
    }

    /// The broker has the final, or never will: the request itself can be acknowledged, once that is on record.
    pub(super) fn finish(&mut self, number: u64, message: Message, now: Instant) {
        let Some(job) = self.jobs.remove(&number) else { return };
        let written = match job.run {
            Some(run) if job.accepted => {
                let size = message.payload.len() + message.topic.len();
                if self.seen.finish(run.key, number, message, size, now) {
                    self.trail.finish(&run, now)
                } else {
                    Receipt::at_once()
                }
            }
            Some(run) => {
                self.seen.forget(&run.key, number);
                Receipt::at_once()
            }
            // A final that was sent once more: that of the first may not be on record yet.
            None => self.trail.settled(),
        };
        self.settle(job.deliveries, written);
    }

    /// Acknowledges deliveries once what they brought is on record.
    pub(super) fn settle(&mut self, deliveries: Vec<Delivery>, written: Receipt) {
        if written.is_here() {
            deliveries.into_iter().for_each(|delivery| self.acks.answered(delivery));
        } else {
            self.running.push(Box::pin(async move {
                written.wait().await;
                Step::Settled(deliveries)
            }));
        }
    }
}
