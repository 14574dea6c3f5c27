//! The governor's shell: looks at the board, has [`crate::governor`] decide, and publishes. It decides nothing itself.
//!
//! ```text
//!   sampler (a thread) ─ Sample ─┐                                          ┌─▶ Orders: supervisor, dispatcher
//!   supervisor ──────── Vitals ──┼─▶ input ─▶ Governor::step ─▶ Decision ───┼─▶ status, /state, /event, the log
//!   dispatcher ──────── Demand ──┤                                announce ─┘
//!   operator ────────── Pin ─────┘                                report ─────▶ telemetry, metrics
//! ```
//! It is stepped by interval, and at once where an operator sets a pin, the first request comes to a sleeping daemon, or an
//! engine becomes ready or fails. Pins are kept here, in memory: they end with the daemon.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use crate::{
    board::identity::Kind,
    config,
    dispatch::Demand,
    engine::operate::{Orders, Vitals},
    governor::{Bytes, Decision, Governor, Limits, OperatingPoint, Pin},
    request::{ErrorCode, RequestError},
    status::StatusBoard,
    telemetry::{metrics::Metrics, snapshot::unix_seconds},
    wire::{VERSION, v1},
};

pub mod announce;
pub mod idle;
pub mod input;
pub mod pin;
pub mod report;
pub mod sampler;

use announce::{Announcer, News, Sources};
use idle::Idle;
use input::{Observer, Seen};
use pin::Configured;
use report::Readings;
use sampler::{Look, Sampler};

/// Pins on their way; an operator has one at a time.
const PINS: usize = 8;
/// Steps of [`Orders::spare`], so that orders do not change with every reading.
const SPARE: u64 = 64 << 20;

/// What the shell works with.
#[derive(Debug)]
pub struct Parts {
    /// The model's settings.
    pub engine: config::Engine,
    /// What the governor keeps to.
    pub governor: config::Governor,
    /// Where readings come from.
    pub board_root: PathBuf,
    /// Operating point, pin and reason are written here.
    pub status: StatusBoard,
    /// Gauges.
    pub metrics: Arc<Metrics>,
    /// From the supervisor.
    pub vitals: watch::Receiver<Vitals>,
    /// From the dispatcher.
    pub demand: watch::Receiver<Demand>,
    /// To both.
    pub orders: watch::Sender<Orders>,
    /// To whoever publishes events. A listener that is slow loses the oldest.
    pub events: broadcast::Sender<v1::Event>,
    /// To telemetry.
    pub readings: watch::Sender<Readings>,
}

/// Hands pins to the shell. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Handle {
    pins: mpsc::Sender<SetPin>,
    configured: Configured,
}

#[derive(Debug)]
struct SetPin {
    pin: Pin,
    reply: oneshot::Sender<v1::Status>,
}

impl Handle {
    /// Takes the place of all pins before; answers with the status once they are in force.
    ///
    /// # Errors
    /// `invalid_request`, naming the element and its limits; `draining` where the daemon is at its end.
    pub async fn set_pin(&self, pin: &v1::Pin) -> Result<v1::Status, RequestError> {
        let pin = pin::parse(pin, self.configured)?;
        let (reply, answer) = oneshot::channel();
        let gone = || RequestError::new(ErrorCode::Draining, "the daemon is shutting down");
        self.pins.send(SetPin { pin, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// Starts the shell. It ends once every handle is gone.
///
/// # Errors
/// Where no thread can be started for the readings.
pub fn start(parts: Parts) -> io::Result<Handle> {
    let configured = Configured { context: parts.engine.context, parallel: parts.engine.parallel };
    let (sampler, identity) = Sampler::start(parts.board_root.clone())?;
    let (pins, incoming) = mpsc::channel(PINS);
    tokio::spawn(async move {
        // A board that cannot even be looked over has none of a Jetson's readings.
        let kind = identity.await.map_or(Kind::Other, |identity| identity.kind);
        Keeper::new(parts, kind).run(sampler, incoming).await;
    });
    Ok(Handle { pins, configured })
}

/// The shell's state.
struct Keeper {
    parts: Parts,
    kind: Kind,
    /// `None` until the board was looked at once.
    governor: Option<(Governor, Limits)>,
    observer: Observer,
    announcer: Announcer,
    idle: Idle,
    pin: Pin,
    look: Option<Look>,
    started: Instant,
    /// What a change of the vitals is worth a step for.
    stage: (bool, bool, usize),
    /// Whether there was a decision.
    decided: bool,
}

impl Keeper {
    fn new(parts: Parts, kind: Kind) -> Self {
        let full = OperatingPoint { gpu_layers: 0, ..Orders::full(&parts.engine).point };
        Self {
            idle: Idle::new(parts.engine.idle_unload),
            announcer: Announcer::new(full),
            parts,
            kind,
            governor: None,
            observer: Observer::default(),
            pin: Pin::default(),
            look: None,
            started: Instant::now(),
            stage: (false, false, 0),
            decided: false,
        }
    }

    async fn run(mut self, sampler: Sampler, mut pins: mpsc::Receiver<SetPin>) {
        // The first look comes before all else: there is nothing to decide by without it.
        self.looked(sampler.look(None).await);
        let mut asleep = self.step(false);
        let mut ticks = interval(self.parts.governor.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut asked = None;
            tokio::select! {
                _ = ticks.tick() => {
                    let engine = self.parts.vitals.borrow().pid;
                    self.looked(sampler.look(engine).await);
                }
                pin = pins.recv() => match pin {
                    Some(SetPin { pin, reply }) => {
                        self.pin = pin;
                        asked = Some(reply);
                    }
                    None => return,
                },
                Ok(()) = self.parts.demand.changed(), if asleep => {}
                Ok(()) = self.parts.vitals.changed() => if stage(&self.parts.vitals.borrow()) == self.stage {
                    continue;
                },
            }
            asleep = self.step(asked.is_some());
            if let Some(reply) = asked {
                let _asker_gone = reply.send(self.parts.status.get());
            }
        }
    }

    fn looked(&mut self, look: Option<Look>) {
        if look.is_none() && self.look.is_some() {
            log::warn!(target: "temperd::governor", "the board does not answer in time");
        }
        if let Some(look) = &look {
            let readings = Readings::of(look);
            self.parts.metrics.board(readings.board.memory_available_bytes, &readings.temperatures);
            self.parts.readings.send_replace(readings);
        }
        self.look = look;
        let board = input::board(self.look.as_ref().map(|look| &look.sample));
        // Without memory there are no limits to it; they come with the first reading.
        let known = self.governor.as_ref().is_some_and(|(_, limits)| limits.reserve > Bytes(0));
        if self.governor.is_none() || (!known && board.memory > Bytes(0)) {
            let limits = Limits::new(&self.parts.engine, &self.parts.governor, board);
            log::info!(target: "temperd::governor", board:% = self.kind, reserve:% = limits.reserve,
                critical:% = limits.critical, set_point_c = limits.set_point.0; "the governor keeps to these limits");
            self.governor = Some((Governor::new(limits.clone()), limits));
        }
    }

    /// One step; whether the daemon sleeps after it.
    fn step(&mut self, asked: bool) -> bool {
        let now = self.started.elapsed();
        let vitals = self.parts.vitals.borrow().clone();
        let demand = *self.parts.demand.borrow_and_update();
        self.stage = stage(&vitals);
        let Some((governor, limits)) = &mut self.governor else { return false };
        let sample = self.look.as_ref().map(|look| &look.sample);
        let seen = self.observer.observe(&self.kind, sample, &vitals, demand.requests);
        let decision = governor.step(&seen.input(now, self.pin));
        let asleep = self.idle.asleep(now, demand, vitals.loading);
        let spare = seen.memory.map_or(Bytes(0), |memory| memory.available - limits.critical);
        let mut point = decision.point;
        if vitals.layers == 0 {
            point.gpu_layers = u32::MAX;
        }
        let orders = Orders {
            point,
            cache: decision.cache,
            grow_to: decision.grow_to,
            asleep,
            spare: Bytes(spare.0 / SPARE * SPARE),
        };
        // The first ones are waited for, also where they change nothing.
        let first = !std::mem::replace(&mut self.decided, true);
        self.parts.orders.send_if_modified(|before| std::mem::replace(before, orders) != orders || first);
        let degraded = vitals.degraded(decision.layers_failed);
        self.parts.status.update(|status| {
            if let Some(engine) = &mut status.engine {
                engine.degraded = degraded;
            }
        });
        self.publish(decision, &seen, &vitals, asked, now);
        asleep
    }

    fn publish(&mut self, mut decision: Decision, seen: &Seen, vitals: &Vitals, asked: bool, now: Duration) {
        // Fewer than are allowed may have fitted.
        let has = vitals.ready.as_ref().map_or(u32::MAX, |ready| ready.gpu_layers);
        decision.point.gpu_layers = decision.point.gpu_layers.min(has);
        self.parts.metrics.operating_point(&decision.point);
        let sources = Sources { zone: seen.zone.clone(), alerts: seen.alerts.clone() };
        let unix = unix_seconds();
        let Some(news) = self.announcer.hear(&decision, asked, now, unix, &sources) else { return };
        log_news(&news);
        let pinned = self.pin != Pin::default();
        self.parts.status.update(|status| {
            status.operating_point = Some(news.point.clone());
            status.reason = news.reasons.first().cloned();
            status.pinned = pinned;
        });
        let event = v1::Event {
            node: self.parts.status.get().node,
            version: VERSION.into(),
            time: unix,
            kind: "operating_point".into(),
            operating_point: Some(news.point),
            previous: Some(news.previous),
            reasons: news.reasons,
            skipped: news.skipped,
        };
        // Without a broker nobody listens.
        let _nobody = self.parts.events.send(event);
    }
}

/// What makes a change of the vitals worth a step of its own: an engine comes or goes, or something went wrong.
fn stage(vitals: &Vitals) -> (bool, bool, usize) {
    let failures = vitals.failures.last().map_or(0, |(number, _)| usize::try_from(number + 1).unwrap_or(usize::MAX));
    (vitals.loading, vitals.ready.is_some(), failures)
}

/// One line for each.
fn log_news(news: &News) {
    let (from, to) = (shown(&news.previous), shown(&news.point));
    let skipped = news.skipped.join("; ");
    let Some(reason) = news.reasons.first() else {
        log::info!(target: "temperd::governor", from = from.as_str(), to = to.as_str(); "operating point: nothing against it");
        return;
    };
    let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    log::warn!(target: "temperd::governor", code = reason.code.as_str(), reading = reason.reading.as_str(),
        source = reason.source.as_deref().unwrap_or_default(), value = number(reason.value).as_str(),
        limit = number(reason.limit).as_str(), from = from.as_str(), to = to.as_str(), skipped = skipped.as_str();
        "operating point");
}

fn shown(point: &v1::OperatingPoint) -> String {
    let v1::OperatingPoint { context, gpu_layers, parallel, pace, admit } = point;
    format!("context {context}, layers {gpu_layers}, parallel {parallel}, pace {pace}, {admit}")
}
