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
    acks::{Delivery, Line},
    answers::Answers,
    connection::{self, Event},
    counts::Counts,
    link::{Link, LinkEvent},
    message::{Allowed, Message},
    outbox::Kind,
    protocol::{Job, Protocol},
    reply::ReplyTo,
    topics::Topics,
    trail::Trail,
};
use crate::{
    request::{dedupe, seen::Seen},
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::v1,
};

mod ending;
mod intake;
mod own;
mod pool;
mod step;

pub use own::availability_message;
use pool::Pool;
use step::advance;
pub use step::{Accepted, Step};

/// Memory of answered requests: large enough for a device that comes back after a day, small beside the daemon's 25 MB.
pub const REMEMBERED: dedupe::Bounds =
    dedupe::Bounds { entries: 4096, bytes: 4 * 1024 * 1024, age: Duration::from_secs(86_400) };
/// Messages that may wait before status replies and telemetry are dropped.
const OPTIONAL_ROOM: usize = 256;
/// A broker that leaves a message without its PUBACK for so many keep-alives has lost it, and at the latest after this.
const RECEIPT_KEEP_ALIVES: u32 = 4;
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
    pool: Pool,
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
    /// Requests were left with the broker, which delivers them again on a new connection only.
    withheld: bool,
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
        let topics = Topics::new(&mqtt.node, mqtt.config.pool.as_deref());
        let counts = mqtt.counts.clone();
        Self {
            link: Link::new(mqtt.settings(&topics), counts.clone()),
            pool: Pool::new(mqtt.pool_settings(&topics), &counts),
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
            withheld: false,
        }
    }

    /// The next thing that happens: on the link or to a running request. Cancel-safe.
    pub async fn next(&mut self) -> Happening<A::Ticket> {
        tokio::select! {
            event = self.link.next() => Happening::Link(event),
            event = self.pool.next() => Happening::Pool(event),
            Some(step) = self.running.next() => Happening::Step(step),
        }
    }

    /// Takes note of it.
    pub fn handle(&mut self, happening: Happening<A::Ticket>, now: Instant) {
        self.look_at_clock(now);
        match happening {
            Happening::Link(LinkEvent::Down) => self.down(),
            Happening::Link(LinkEvent::Connection(event)) => self.connection_event(event, now),
            Happening::Pool(event) => self.pool_event(event, now),
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
        let limit = self.receipt_limit();
        if self.core.outbox.silent_since().is_some_and(|since| now.saturating_duration_since(since) >= limit) {
            self.link.give_up(limit);
            self.down();
        }
        if self.withheld && self.is_up() && self.core.jobs() < self.most_jobs() {
            self.link.renew();
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
        self.pool.release();
        self.report();
    }

    /// When [`Self::flush`] is due even if nothing happens.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let receipt = self.core.outbox.silent_since().map(|since| since + self.receipt_limit());
        self.core.outbox.due(now).into_iter().chain(receipt).min()
    }

    fn receipt_limit(&self) -> Duration {
        RECEIPT_LIMIT.min(self.mqtt.config.keep_alive * RECEIPT_KEEP_ALIVES)
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

    /// Leaves the requests of the pool to its other boxes.
    pub fn retire_from_pool(&mut self) {
        self.pool.retire();
    }

    /// The last word: `stopped`, before everything that still waits.
    pub fn say_farewell(&mut self) {
        self.availability = "stopped";
        self.pool.leave();
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

    fn connection_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Up(allowed) => self.up(allowed),
            Event::Incoming(message) => self.arrive(message, Line::Own, now),
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
        let births = self.births();
        self.core.outbox.push_first(Kind::Latest, births.into_iter());
    }

    fn down(&mut self) {
        self.allowed = None;
        self.withheld = false;
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
            Step::Settled(deliveries) => self.settled(deliveries),
            Step::Noted(job) => self.core.noted(job),
        }
    }

    /// What these deliveries brought, on either link, is answered, and on record.
    fn settled(&mut self, deliveries: Vec<Delivery>) {
        deliveries.iter().for_each(|delivery| self.pool.acks.answered(*delivery));
        self.core.settled(deliveries);
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
    /// On that of the pool.
    Pool(LinkEvent),
    /// To a running request.
    Step(Step<T>),
}
