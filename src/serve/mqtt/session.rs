//! The MQTT way in, all of it owned by one task. What becomes of a request is decided by [`super::protocol`]; here its
//! decisions are carried out. [`intake`] is what comes from the broker, [`ending`] how a request leaves; this file is
//! what goes to the broker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};

use super::{
    Mqtt,
    answers::Answers,
    codec::Format,
    connection::{self, Event},
    counts::Counts,
    link::{Link, LinkEvent},
    message::{Allowed, Message, Qos},
    outbox::Kind,
    protocol::{Job, Protocol},
    reply::{self, ReplyTo},
    topics::Topics,
    trail::Trail,
};
use crate::{
    config::PublishFormat,
    request::{dedupe, seen::Seen},
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::v1,
};

mod ending;
mod intake;
mod step;

use step::advance;
pub use step::{Accepted, Step};

/// Memory of answered requests: large enough for a device that comes back after a day, small beside the daemon's 25 MB.
pub const REMEMBERED: dedupe::Bounds =
    dedupe::Bounds { entries: 4096, bytes: 4 * 1024 * 1024, age: Duration::from_secs(86_400) };
/// Messages that may wait before status replies and telemetry are dropped.
const OPTIONAL_ROOM: usize = 256;
/// A broker that leaves a message without its PUBACK for this long has lost it.
const RECEIPT_LIMIT: Duration = Duration::from_secs(60);

/// The state.
pub struct Session<A: Answers> {
    mqtt: Mqtt,
    topics: Topics,
    answers: A,
    board: StatusBoard,
    metrics: Arc<Metrics>,
    counts: Counts,
    link: Link,
    /// What the broker of the present connection allows.
    allowed: Option<Allowed>,
    core: Protocol<Asker, Message>,
    trail: Trail,
    running: FuturesUnordered<BoxFuture<'static, Step<A::Ticket>>>,
    availability: &'static str,
    published_state: Option<v1::Status>,
    reported: Option<v1::Mqtt>,
    parted: bool,
    left: bool,
}

/// Who asked, and how they are answered.
struct Asker {
    reply: ReplyTo,
    /// The id as the final gives it, or the client's own until then.
    id: String,
}

impl<A: Answers> Session<A> {
    /// A session that is not connected yet. `seen` is what earlier daemons left, kept up by `trail`.
    pub fn new(
        mqtt: Mqtt,
        answers: A,
        board: StatusBoard,
        metrics: Arc<Metrics>,
        (trail, seen): (Trail, Option<Seen>),
    ) -> Self {
        let topics = Topics::new(&mqtt.node);
        let counts = mqtt.counts.clone();
        Self {
            link: Link::new(mqtt.settings(&topics), counts.clone()),
            topics,
            mqtt,
            answers,
            board,
            metrics,
            counts,
            allowed: None,
            core: Protocol::new(seen, REMEMBERED, OPTIONAL_ROOM),
            trail,
            running: FuturesUnordered::new(),
            availability: "online",
            published_state: None,
            reported: None,
            parted: false,
            left: false,
        }
    }

    /// The next thing that happens: on the link or to a running request. Cancel-safe.
    pub async fn next(&mut self) -> Happening<A::Ticket> {
        tokio::select! {
            event = self.link.next() => Happening::Link(event),
            Some(step) = self.running.next() => Happening::Step(step),
        }
    }

    /// Takes note of it.
    pub fn handle(&mut self, happening: Happening<A::Ticket>, now: Instant) {
        self.look_at_clock(now);
        match happening {
            Happening::Link(LinkEvent::Down) => self.down(),
            Happening::Link(LinkEvent::Connection(event)) => self.connection_event(event, now),
            Happening::Step(step) => self.step(step, now),
        }
    }

    /// Before anything is decided by it: whoever waits long may find it set.
    fn look_at_clock(&mut self, now: Instant) {
        let by = self.trail.look_at_clock(now);
        if by != 0 {
            log::info!(target: "temperd::mqtt", seconds = by; "the clock was set: what is remembered of requests is moved along");
            self.core.clock_was_set(by);
            self.trail.rewrite(self.core.seen(), now);
        }
    }

    /// Sends what can be sent.
    pub fn flush(&mut self, now: Instant) {
        if self.core.outbox.silent_since().is_some_and(|since| now.saturating_duration_since(since) >= RECEIPT_LIMIT) {
            self.link.give_up(RECEIPT_LIMIT);
            self.down();
        }
        loop {
            let link = &self.link;
            let gone = self.core.outbox.offer(now, connection::packet_bytes, |message| link.publish(message).is_ok());
            if gone.is_empty() {
                break;
            }
            gone.into_iter().for_each(|gone| self.gone(gone, now));
        }
        let link = &self.link;
        self.core.acks.release(|packet| link.acknowledge(packet).is_ok());
        self.report();
    }

    /// When [`Self::flush`] is due even if nothing happens.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let receipt = self.core.outbox.silent_since().map(|since| since + RECEIPT_LIMIT);
        self.core.outbox.due(now).into_iter().chain(receipt).min()
    }

    /// Whether the broker can be reached.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Whether every request has been answered and the broker has all of it.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.core.outbox.is_empty()
    }

    /// Announces what we are up to.
    pub fn announce(&mut self, availability: &'static str) {
        self.availability = availability;
        if self.is_up() {
            self.push_latest(self.availability_message());
        }
    }

    /// The last word: `stopped`, before everything that still waits.
    pub fn say_farewell(&mut self) {
        self.availability = "stopped";
        self.core.outbox.push_first(Kind::Farewell, std::iter::once(self.availability_message()));
    }

    /// Whether the broker has our last word.
    pub fn has_parted(&self) -> bool {
        self.parted
    }

    /// Ends the connection in good order, so that the will is not published.
    pub fn leave(&mut self) {
        // Without room for the DISCONNECT the caller's time limit ends it.
        self.left = self.link.leave().is_err();
    }

    /// Whether the connection is over.
    pub fn has_left(&self) -> bool {
        self.left
    }

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

    fn connection_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Up(allowed) => self.up(allowed),
            Event::Incoming(message) => self.arrive(message, now),
            Event::Sent(packet) => self.core.outbox.sent(packet),
            Event::Receipt(packet, receipt) => {
                if let Some(gone) = self.core.outbox.receipt(packet, receipt, now) {
                    self.gone(gone, now);
                }
            }
            Event::Progress => {}
            Event::Left => self.left = true,
        }
    }

    fn up(&mut self, allowed: Allowed) {
        self.allowed = Some(allowed);
        self.core.connected(allowed);
        let state = published(self.board.get());
        let births = [
            self.availability_message(),
            self.own_message(self.topics.info(), &self.mqtt.info(), true),
            self.own_message(self.topics.state(), &state, true),
        ];
        self.published_state = Some(state);
        self.core.outbox.push_first(Kind::Latest, births.into_iter());
    }

    fn down(&mut self) {
        self.allowed = None;
        self.core.disconnected();
    }

    fn step(&mut self, step: Step<A::Ticket>, now: Instant) {
        match step {
            Step::Chunk(job, accepted, chunk) => {
                if let Some(message) = self.core.job(job).map(|job| job.asker.reply.chunk(chunk, now)) {
                    self.publish_at_once(message);
                }
                self.running.push(Box::pin(advance(job, accepted)));
            }
            Step::Turn(job, accepted, leave) => {
                let note = self.core.turn(job, self.trail.stamp(now));
                let written = self.trail.write(note, self.core.seen(), now);
                self.running.push(Box::pin(async move {
                    written.wait().await;
                    leave.give();
                    advance(job, accepted).await
                }));
            }
            Step::Final(number, mut last) => {
                if let Some(Job { asker, redecoded, .. }) = self.core.job_mut(number) {
                    asker.id.clone_from(&last.id);
                    last.redecoded = redecoded.then_some(true);
                    let message = asker.reply.last(*last, now);
                    self.outcome(number, message, now);
                }
            }
            Step::Embedded(number, mut reply) => {
                if let Some(Job { asker, redecoded, .. }) = self.core.job_mut(number) {
                    asker.id.clone_from(&reply.id);
                    reply.redecoded = redecoded.then_some(true);
                    let message = asker.reply.embedded(*reply, now);
                    self.outcome(number, message, now);
                }
            }
            Step::Refused(number, error) => {
                if let Some(Job { asker, .. }) = self.core.job(number) {
                    let message = asker.reply.refused(&asker.id, &self.mqtt.node, &error, now);
                    self.core.answer(number, message);
                }
            }
            Step::Cancelled(reply, id, found) => self.push_optional(reply.cancel(id, found, now)),
            Step::Settled(deliveries) => self.core.settled(deliveries),
            Step::Noted(job) => self.core.noted(job),
        }
    }

    fn availability_message(&self) -> Message {
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

    fn push_latest(&mut self, message: Message) {
        let _room = self.core.outbox.push(Kind::Latest, message);
    }

    fn push_optional(&mut self, message: Message) {
        if !self.core.outbox.push(Kind::Optional, message) {
            self.counts.dropped_messages.inc();
        }
    }

    /// At QoS 0: now or never.
    fn publish_at_once(&self, message: Message) {
        let limit = self.allowed.and_then(|allowed| allowed.packet_bytes);
        let fits = limit.is_none_or(|limit| connection::packet_bytes(&message) <= limit as usize);
        if !fits || self.link.publish(&message).is_err() {
            self.counts.dropped_messages.inc();
        }
    }

    fn report(&mut self) {
        let state = if self.link.is_up() { "connected" } else { "connecting" };
        let outbox = self.core.outbox.len();
        self.metrics.mqtt_outbox(outbox);
        let mqtt = v1::Mqtt { state: state.into(), outbox: u32::try_from(outbox).unwrap_or(u32::MAX) };
        if self.reported.as_ref() != Some(&mqtt) {
            self.board.update(|status| status.mqtt = Some(mqtt.clone()));
            self.reported = Some(mqtt);
        }
    }
}

/// What [`Session::next`] brings.
pub enum Happening<T> {
    /// On the link to the broker.
    Link(LinkEvent),
    /// To a running request.
    Step(Step<T>),
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
