//! From a delivery to a running job, or to its refusal.
//!
//! A request without correlation data and id has no mark. A repeat of it by its sender is a new question; but what the
//! broker sends again after a lost connection (DUP flag) joins the job that runs, or is acknowledged without a word
//! where it is the very packet of which the broker already has the answer. What is to be done is decided by
//! [`Protocol::take`](crate::serve::mqtt::protocol::Protocol::take).

use std::time::{Duration, Instant};

use super::{Accepted, Asker, Session, Step, advance};
use crate::{
    dispatch::gate::{Gate, Knock},
    request::{
        ErrorCode, Outcome, Request, RequestError, WayIn,
        dedupe::{Fingerprint, Key, Mark},
    },
    serve::mqtt::{
        acks::{Delivery, Line},
        answers::Answers,
        codec::{self, Format, Rejected, Rules},
        message::{Incoming, Message},
        protocol::{Asked, Job, Refusal, Taken},
        reply::ReplyTo,
        topics::{self, Op, Target},
    },
    wire::v1,
};

impl<A: Answers> Session<A> {
    pub(super) fn arrive(&mut self, message: Incoming, line: Line, now: Instant) {
        let target = match line {
            Line::Own => self.topics.parse(&message.topic),
            Line::Pool => self.topics.parse_pool(&message.topic),
        }
        .filter(|_| !message.retained);
        let is_job = target.as_ref().is_some_and(|target| target.op.is_job());
        let overrun = is_job && self.is_overrun(message.packet.is_some());
        if overrun && line == Line::Own {
            // Not acknowledged: at QoS 1 the broker delivers it again on the next connection.
            self.withheld |= message.packet.is_some();
            self.ignore("more requests than this connection may hold");
            return;
        }
        let acks = match line {
            Line::Own => &mut self.core.acks,
            Line::Pool => &mut self.pool.acks,
        };
        let delivery = message.packet.map(|packet| acks.arrived(packet));
        let passed_over = match &target {
            None => Some("retained, or not a request topic of this node"),
            // The client asks again, and the next box answers.
            Some(_) if overrun => Some("more requests than can be held"),
            Some(_) if line == Line::Pool && message.response_topic.as_ref().is_none_or(String::is_empty) => {
                Some("a request to the pool without a response topic: nobody can be answered")
            }
            Some(_) => None,
        };
        let Some(target) = target.filter(|_| passed_over.is_none()) else {
            self.ignore(passed_over.unwrap_or_default());
            self.acknowledge(delivery);
            return;
        };
        let (format, known) = match Format::of(message.content_type.as_deref(), &message.payload) {
            Ok(format) => (format, true),
            Err(format) => (format, false),
        };
        let (topic, allowed) = self.response_topic(&target, message.response_topic.as_deref());
        let reply = ReplyTo {
            topic,
            format,
            correlation: message.correlation.clone(),
            expires: message.expiry.map(|life| now + life),
            max_bytes: None,
            embeds: target.op == Op::Embed,
        };
        let rules = Rules { bounds: &self.mqtt.bounds, raw_prompt: self.mqtt.config.raw_prompt, node: &self.mqtt.node };
        let asked = match (allowed, known) {
            (Err(error), _) => Err(error),
            (Ok(()), _) if line == Line::Pool && message.expiry.is_none() => Err(RequestError::invalid(
                "message expiry",
                "must be given in a request to a pool: how long it is worth an answer, by whichever box",
            )),
            (Ok(()), false) => Err(RequestError::invalid(
                "content type",
                format_args!("must be one of {} or absent", Format::CONTENT_TYPES.join(", ")),
            )),
            (Ok(()), true) => Ok(()),
        }
        .map_err(|error| Rejected { id: codec::id_of(format, &message.payload), error })
        .and_then(|()| codec::decode(&target, format, &message.payload, rules));
        match asked {
            Err(Rejected { id, error }) => self.refuse(reply, id, &error, delivery, now),
            Ok(codec::Asked::Status) => {
                let status = self.board.get();
                self.push_optional(reply.status(&status, now));
                self.acknowledge(delivery);
            }
            Ok(codec::Asked::Cancel(id)) => {
                self.acknowledge(delivery);
                self.cancel(&target, reply, id);
            }
            Ok(codec::Asked::Job(request)) => self.take(*request, &target, reply, &message, delivery, now),
        }
    }

    /// Where the answer goes, and whether the request's own wish is granted; if not, the refusal goes to the default.
    fn response_topic(&self, target: &Target, wish: Option<&str>) -> (String, Result<(), RequestError>) {
        let default = || self.topics.response(target);
        match wish.filter(|wish| !wish.is_empty()) {
            None => (default(), Ok(())),
            Some(wish) => match topics::check_response(wish, target, &self.mqtt.config.response_topics) {
                Ok(()) => (wish.to_owned(), Ok(())),
                Err(error) => (default(), Err(error)),
            },
        }
    }

    /// Runs a request, unless it is a repeat.
    fn take(
        &mut self,
        mut request: Request,
        target: &Target,
        mut reply: ReplyTo,
        message: &Incoming,
        delivery: Option<Delivery>,
        now: Instant,
    ) {
        reply.max_bytes = request.max_reply_bytes;
        let fingerprint = Fingerprint::of(reply.format.content_type(), &message.payload);
        let mark = match &message.correlation {
            Some(data) => Mark::Correlation(data),
            None if request.id.is_empty() => Mark::Payload(fingerprint),
            None => Mark::Id(&request.id),
        };
        let marked = !matches!(mark, Mark::Payload(_));
        let key = Key::new(target.op.as_str(), &request.client, &reply.topic, mark);
        let asked = Asked { key, payload: fingerprint, marked, again: message.again };
        let wish = request.sampling.seed;
        let asker = Asker { reply, id: request.id.clone() };
        let taken = self.core.take(
            &asked,
            asker,
            delivery,
            || wish.unwrap_or_else(|| fastrand::u32(..)),
            |asker, kept| Message { expires: asker.reply.lives_until(now), ..kept.clone() },
            self.trail.stamp(now),
        );
        let (number, seed) = match taken {
            Taken::Run { job, seed } => (job, seed),
            Taken::Repeat(settlement) => {
                self.counts.repeats.inc();
                self.settle(settlement, now);
                return;
            }
            Taken::Poison { job, dead } => {
                self.give_up(job, dead, now);
                return;
            }
            Taken::Refused(Asker { reply, id }, refusal) => {
                self.refuse(reply, id, &refused(refusal), delivery, now);
                return;
            }
        };
        request.sampling.seed = Some(seed);
        request.deadline = [request.deadline, message.expiry].into_iter().flatten().min();
        // Without a file there is nothing to write down, and no gate.
        let (gate, knock) = if self.core.is_kept() { Gate::shut() } else { (Gate::open(), Knock::never()) };
        let answers = self.answers.clone();
        self.running.push(Box::pin(async move {
            match answers.submit(gate, request).await {
                Ok(ticket) => advance(number, Accepted { ticket, knock }).await,
                Err(error) => Step::Refused(number, error),
            }
        }));
    }

    /// Ends a request that daemons died of.
    fn give_up(&mut self, number: u64, dead: u8, now: Instant) {
        let Some(Job { asker: Asker { reply, id }, redecoded, .. }) = self.core.job(number) else { return };
        self.metrics.finished(WayIn::Mqtt, Outcome::Failed, Duration::ZERO);
        log::error!(target: "temperd::mqtt", dead; "a request is given up: daemons ended while it ran");
        let message = format!("{dead} daemons in a row ended while it ran; it is not tried again");
        let last = v1::Final {
            id: id.clone(),
            node: self.mqtt.node.clone(),
            outcome: Outcome::Failed.as_str().into(),
            error: Some(RequestError::new(ErrorCode::Poison, message).to_wire()),
            redecoded: redecoded.then_some(true),
            ..v1::Final::default()
        };
        let message = reply.last(last, now);
        self.core.answer(number, message);
    }

    /// Refuses what the dispatcher never sees.
    fn refuse(&mut self, reply: ReplyTo, id: String, error: &RequestError, delivery: Option<Delivery>, now: Instant) {
        self.metrics.refused(WayIn::Mqtt, error.code);
        log::info!(target: "temperd::mqtt", code = error.code.as_str(); "request refused");
        if !topics::is_clean(&reply.topic) || reply.topic.len() > topics::TOPIC_BYTES {
            // A client segment that no broker would take back in a topic: nobody can be told.
            self.acknowledge(delivery);
            return;
        }
        let message = reply.refused(&id, &self.mqtt.node, error, now);
        let number = self.core.open(Asker { reply, id }, delivery);
        self.core.answer(number, message);
    }

    fn cancel(&mut self, target: &Target, reply: ReplyTo, id: String) {
        // The segment was checked when the request was read.
        let Ok(client) = target.client() else { return };
        let answers = self.answers.clone();
        if self.running.len() >= self.most_jobs() * 4 {
            self.ignore("more cancels than can be held");
            return;
        }
        self.running.push(Box::pin(async move {
            let found = answers.cancel(&client, &id).await;
            Step::Cancelled(reply, id, found)
        }));
    }

    fn acknowledge(&mut self, delivery: Option<Delivery>) {
        if let Some(delivery) = delivery {
            self.settled(vec![delivery]);
        }
    }

    /// Receive Maximum bounds what comes at QoS 1 on one connection. QoS 0 is bounded here, and so are jobs that pile
    /// up over many connections to a broker that never takes their answers.
    fn is_overrun(&self, acknowledged: bool) -> bool {
        let share = if acknowledged { 3 } else { 1 };
        self.core.jobs() >= self.most_jobs() * share
    }

    pub(super) fn most_jobs(&self) -> usize {
        usize::from(self.mqtt.receive_maximum())
    }

    fn ignore(&self, reason: &'static str) {
        self.counts.ignored_requests.inc();
        log::warn!(target: "temperd::mqtt", reason; "message ignored");
    }
}

fn refused(refusal: Refusal) -> RequestError {
    match refusal {
        Refusal::AlreadyAnswered => RequestError::new(
            ErrorCode::AlreadyAnswered,
            "this request was answered, and its answer is no longer kept; ask anew with another mark",
        ),
        Refusal::Conflict => RequestError::new(
            ErrorCode::IdConflict,
            "another request with the same correlation data or id but another payload is known; use a new one for \
             every question",
        ),
    }
}
