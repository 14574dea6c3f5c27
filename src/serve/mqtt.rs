//! MQTT: devices ask by publishing, answers are published back.
//!
//! ```text
//!  broker ◀─▶ connection ◀─ link ──▶ session ─────▶ dispatcher
//!  (rumqttc)  one event     makes    outbox, acks,   submit, cancel,
//!             loop each     the next jobs, repeats   tickets
//! ```
//!
//! One task owns all state ([`session::Session`]); it only waits in [`run`]. What decides is pure and apart:
//! [`topics`], [`codec`], [`reply`], [`backoff`], and [`protocol`] with its parts [`outbox`], [`acks`],
//! [`crate::request::dedupe`] and, over a restart, [`crate::request::seen`].
//!
//! A request is acknowledged to the broker only when the broker has its final: a daemon that dies in between gets it
//! again. The wire is thereby at-least-once in both directions, and a final may come twice. What has been answered, and
//! what ran when the daemon died, is known to the next one by its [`trail`].

use std::{
    future::pending,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{broadcast, watch},
    time::{Interval, MissedTickBehavior},
};

use crate::{
    config,
    request::check::Bounds,
    serve::Phase,
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::{self, v1},
};

pub mod acks;
pub mod answers;
pub mod backoff;
pub mod codec;
pub mod connection;
pub mod counts;
pub mod filter;
pub mod journal;
pub mod link;
pub mod message;
pub mod outbox;
pub mod protocol;
pub mod reply;
pub mod session;
pub mod tls;
pub mod topics;
pub mod trail;

use answers::Answers;
use codec::Format;
use connection::Settings;
use counts::Counts;
use message::Qos;
use session::{Session, availability_message};
use topics::{Op, Topics};
use trail::Trail;

/// Requests without our PUBACK, at the most; more would only move the queue from the broker into our memory.
const MOST_RECEIVED: u32 = 1024;
/// How long finals may take to the broker when the daemon stops, then the last word, then the DISCONNECT.
const FLUSH: Duration = Duration::from_secs(2);
const FAREWELL: Duration = Duration::from_secs(2);
const CLOSE: Duration = Duration::from_secs(1);

/// What the MQTT way in is made of.
#[derive(Debug, Clone)]
pub struct Mqtt {
    /// The broker and our place in it.
    pub config: config::Mqtt,
    /// Name of this box in topics and finals.
    pub node: String,
    /// Limits of requests.
    pub bounds: Bounds,
    /// Requests that wait, at the most.
    pub queue: u32,
    /// Requests that run, at the most.
    pub parallel: u32,
    /// How telemetry is published.
    pub telemetry: config::Telemetry,
    /// Where requests are remembered over a restart; `None`: nowhere.
    pub state_directory: Option<PathBuf>,
    /// What is counted; register it for `/metrics` before.
    pub counts: Counts,
}

impl Mqtt {
    /// Requests that the broker may deliver without our PUBACK: well above what can wait and run, so that a full
    /// queue refuses instead of leaving requests with the broker unseen.
    #[must_use]
    pub fn receive_maximum(&self) -> u16 {
        let wanted = self.queue.saturating_add(self.parallel).saturating_mul(4).clamp(1, MOST_RECEIVED);
        u16::try_from(wanted).unwrap_or(u16::MAX)
    }

    /// What is retained at `/info`.
    #[must_use]
    pub fn info(&self) -> v1::Info {
        let served = |op: &Op| match op {
            Op::Chat | Op::Embed | Op::Cancel | Op::Status => true,
            Op::Complete => self.config.raw_prompt,
        };
        v1::Info {
            node: self.node.clone(),
            version: wire::VERSION.into(),
            operations: Op::ALL.iter().filter(|op| served(op)).map(|op| op.as_str().into()).collect(),
            content_types: Format::CONTENT_TYPES.map(Into::into).into(),
            payload_bytes: u32::try_from(self.bounds.payload_bytes).unwrap_or(u32::MAX),
            response_topics: self.config.response_topics.clone(),
        }
    }

    /// How the connections of the node are made.
    #[must_use]
    pub fn settings(&self, topics: &Topics) -> Settings {
        let filters = |jobs: bool, qos: Qos| {
            let ops = Op::ALL.into_iter().filter(|op| op.is_job() == jobs);
            ops.flat_map(|op| topics.request_filters(op)).map(|filter| (filter, qos)).collect()
        };
        let config = &self.config;
        Settings {
            host: config.host.clone(),
            port: config.port,
            tls: config.tls,
            user: config.user.clone(),
            password_file: config.password_file.clone(),
            ca: config.ca.clone(),
            identity: config.identity.clone(),
            client_id: format!("temperd-{}", self.node),
            keeps_session: true,
            will: Some(availability_message(topics, "offline")),
            receive_maximum: self.receive_maximum(),
            subscriptions: vec![filters(true, Qos::AtLeastOnce), filters(false, Qos::AtMostOnce)],
            keep_alive: config.keep_alive,
        }
    }

    /// How those of its pool are made; `None` where it is in none. Their session ends with them, so that the broker
    /// keeps no requests for a box that is away while others have time.
    #[must_use]
    pub fn pool_settings(&self, topics: &Topics) -> Option<Settings> {
        let filters = topics.pool_filters();
        (!filters.is_empty()).then(|| Settings {
            // No node has a name with a dot.
            client_id: format!("temperd-{}.pool", self.node),
            keeps_session: false,
            will: None,
            subscriptions: vec![filters.into_iter().map(|filter| (filter, Qos::AtLeastOnce)).collect()],
            ..self.settings(topics)
        })
    }
}

/// Serves MQTT until `phase` says [`Phase::Stopping`] and the broker has what it should. A broker that is away, at the
/// start or later, is no error: it is tried again for ever. `telemetry` takes one snapshot; `events` are published as they
/// come.
pub async fn run<A: Answers>(
    mqtt: Mqtt,
    answers: A,
    board: StatusBoard,
    mut telemetry: impl FnMut() -> v1::Telemetry + Send,
    mut events: broadcast::Receiver<v1::Event>,
    metrics: Arc<Metrics>,
    mut phase: watch::Receiver<Phase>,
) {
    let mut ticks = ticks(mqtt.telemetry.interval);
    let mut status = board.watch();
    let trail = Trail::open(mqtt.state_directory.clone()).await;
    let mut session = Session::new(mqtt, answers, board, metrics, trail);
    let mut leaving = None;
    enter(*phase.borrow_and_update(), &mut session, &mut leaving);
    loop {
        session.flush(Instant::now());
        if let Some(stage) = leaving {
            match leave(stage, &mut session, Instant::now()) {
                None => return,
                Some(next) if next != stage => {
                    leaving = Some(next);
                    continue;
                }
                Some(_) => {}
            }
        }
        let due = session.due(Instant::now()).into_iter().chain(leaving.map(Leaving::until)).min();
        let is_up = session.is_up();
        tokio::select! {
            happening = session.next() => session.handle(happening, Instant::now()),
            Ok(()) = status.changed() => session.publish_state(),
            () = tick(&mut ticks), if is_up => session.publish_telemetry(&telemetry()),
            event = next(&mut events) => match event {
                Ok(event) => session.publish_event(&event),
                Err(lost) => session.lost_events(lost),
            },
            changed = phase.changed(), if leaving.is_none() => {
                // Whoever steers us being gone means that there is nothing left to serve.
                let now = changed.map_or(Phase::Stopping, |()| *phase.borrow_and_update());
                enter(now, &mut session, &mut leaving);
            }
            () = sleep_until(due) => {}
        }
    }
}

/// The way out, each stage bounded in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Finals go out.
    Flushing(Instant),
    /// `stopped` goes out.
    Parting(Instant),
    /// The DISCONNECT goes out.
    Closing(Instant),
}

impl Leaving {
    fn until(self) -> Instant {
        match self {
            Self::Flushing(until) | Self::Parting(until) | Self::Closing(until) => until,
        }
    }
}

fn enter<A: Answers>(phase: Phase, session: &mut Session<A>, leaving: &mut Option<Leaving>) {
    match phase {
        Phase::Running => {}
        Phase::Draining => {
            session.announce("draining");
            session.retire_from_pool();
        }
        Phase::Stopping => *leaving = Some(Leaving::Flushing(Instant::now() + FLUSH)),
    }
}

/// The next stage; the same while this one lasts; `None` at the end.
fn leave<A: Answers>(stage: Leaving, session: &mut Session<A>, now: Instant) -> Option<Leaving> {
    if !session.is_up() {
        // Nobody to say goodbye to. What was not acknowledged comes again when the daemon does.
        return None;
    }
    let over = now >= stage.until();
    match stage {
        Leaving::Flushing(_) if over || session.is_idle() => {
            session.say_farewell();
            Some(Leaving::Parting(now + FAREWELL))
        }
        Leaving::Parting(_) if over || session.has_parted() => {
            session.leave();
            Some(Leaving::Closing(now + CLOSE))
        }
        Leaving::Closing(_) if over || session.has_left() => None,
        stage => Some(stage),
    }
}

/// `None` for an interval of zero: no telemetry.
fn ticks(interval: Duration) -> Option<Interval> {
    let mut ticks = (!interval.is_zero()).then(|| tokio::time::interval(interval))?;
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    Some(ticks)
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => pending().await,
    }
}

/// The next event, or how many were lost before it. Whoever made them being gone, there are no more.
async fn next(events: &mut broadcast::Receiver<v1::Event>) -> Result<v1::Event, u64> {
    match events.recv().await {
        Ok(event) => Ok(event),
        Err(broadcast::error::RecvError::Lagged(lost)) => Err(lost),
        Err(broadcast::error::RecvError::Closed) => pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}
