//! The daemon: wires the parts, owns the order of start and shutdown.
//!
//! Start: sockets are bound, then the board is looked at, the engine is started and the ways in open at once: requests wait
//! while the model loads. Shutdown: the dispatcher drains (MQTT says `draining`), then the ways in close (MQTT says `stopped`), then
//! the engine ends.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{Notify, broadcast, mpsc, watch};

use crate::{
    config::Config,
    dispatch::{self, Demand, Dispatcher, Governing},
    engine::{
        EngineHandle,
        operate::{Orders, Vitals},
        supervisor::{Supervisor, Tolerance},
    },
    keeper::{self, report::Readings},
    request::check::Bounds,
    serve::{
        Phase,
        mqtt::{self, Mqtt},
        unix,
    },
    status::StatusBoard,
    telemetry::{metrics::Metrics, snapshot::Snapshots},
};

mod announce;
mod files;
mod signals;

/// Events of the engine on their way to the dispatcher: a step each few milliseconds, taken at once.
const ENGINE_EVENTS: usize = 64;

/// Decisions of the governor that a listener may leave unread.
const EVENTS: usize = 64;

/// How long the first look at the board may take; then a model is loaded without it.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// How long connections may take to read their last answer.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket cannot be bound.
    #[error(transparent)]
    Bind(#[from] unix::BindError),
    /// The process cannot listen to its signals.
    #[error("signals: {0}")]
    Signals(std::io::Error),
    /// No thread can be started.
    #[error("cannot start a thread to read the board: {0}")]
    Thread(std::io::Error),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Where it could not start; once it runs, it only ends by a signal.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let started = Instant::now();
    let mut signals = signals::Signals::new().map_err(DaemonError::Signals)?;
    files::raise_limit(config.limits.connections);
    let listener = unix::bind(&config.socket)?;
    log::info!(target: "temperd::daemon", version = crate::wire::VERSION, node = config.node.as_str(),
        socket:% = config.socket.path.display(), model:% = config.engine.model.display(); "starting");

    let status = StatusBoard::new(dispatch::initial_status(&config));
    let metrics = Arc::new(Metrics::new());
    let reload = Arc::new(Notify::new());
    let engine = EngineHandle::default();
    let (engine_events, events) = mpsc::channel(ENGINE_EVENTS);
    let (orders_sender, orders) = watch::channel(Orders::full(&config.engine));
    let (vitals_sender, vitals) = watch::channel(Vitals::default());
    let (demand_sender, demand) = watch::channel(Demand::default());
    let (events_sender, _) = broadcast::channel(EVENTS);
    let (readings_sender, readings) = watch::channel(Readings::default());
    let keeper = keeper::start(keeper::Parts {
        engine: config.engine.clone(),
        governor: config.governor.clone(),
        board_root: config.board_root.clone(),
        status: status.clone(),
        metrics: metrics.clone(),
        vitals,
        demand,
        orders: orders_sender,
        events: events_sender.clone(),
        readings: readings_sender,
    })
    .map_err(DaemonError::Thread)?;
    let governing = Governing { orders: orders.clone(), demand: demand_sender };
    let dispatcher =
        Dispatcher::start(settings(&config), engine.clone(), events, governing, status.clone(), metrics.clone());
    let supervisor = Supervisor {
        config: config.engine.clone(),
        state_directory: config.state_directory.clone(),
        handle: engine,
        events: engine_events,
        reload: reload.clone(),
        metrics: metrics.clone(),
        orders,
        vitals: vitals_sender,
        tolerance: Tolerance::default(),
    };
    let supervisor = tokio::spawn(async move {
        // No model is loaded into memory that is not there.
        let mut first = supervisor.orders.clone();
        let _late = tokio::time::timeout(FIRST_LOOK, first.changed()).await;
        supervisor.run().await;
    });

    let (phase_sender, phase) = watch::channel(Phase::Running);
    let bounds = Bounds { context: config.engine.context, payload_bytes: config.limits.payload_bytes };
    let shared = unix::Shared {
        dispatcher: dispatcher.clone(),
        keeper,
        status: status.clone(),
        metrics: metrics.clone(),
        bounds,
        socket: config.socket.clone(),
        connections: config.limits.connections,
        started: SystemTime::now(),
    };
    let unix = tokio::spawn(unix::serve(listener, shared, stopping(phase.clone())));
    let mqtt = config.mqtt.clone().map(|broker| {
        let mut snapshots = Snapshots::new(status.clone(), metrics.clone(), readings, started);
        let happened = events_sender.subscribe();
        let mqtt = Mqtt {
            config: broker,
            node: config.node.clone(),
            bounds,
            queue: config.limits.queue,
            parallel: config.engine.parallel,
            telemetry: config.telemetry.clone(),
            state_directory: config.state_directory.clone(),
            counts: metrics.mqtt().clone(),
        };
        let take = move || snapshots.take();
        let (dispatcher, status, metrics) = (dispatcher.clone(), status.clone(), metrics.clone());
        tokio::spawn(async move {
            mqtt::run(mqtt, dispatcher, status, take, happened, metrics, phase).await;
            Ok(())
        })
    });
    let announcement = tokio::spawn(announce::announce(status.watch(), config.socket.path.clone()));

    while signals.next().await == signals::Signal::Reload {
        log::info!(target: "temperd::daemon", "SIGHUP");
        reload.notify_waiters();
    }
    log::info!(target: "temperd::daemon", grace_s = config.limits.drain.as_secs(); "draining");
    announcement.abort();
    phase_sender.send_replace(Phase::Draining);
    tokio::select! {
        () = dispatcher.drain(config.limits.drain) => {}
        () = signals.terminate_again() => log::warn!(target: "temperd::daemon", "second signal: not waiting any longer"),
    }
    phase_sender.send_replace(Phase::Stopping);
    if let Some(mqtt) = mqtt {
        ended("mqtt", mqtt.await);
    }
    // Every request has its outcome; a peer that does not read it must not hold up the end.
    if let Ok(result) = tokio::time::timeout(LAST_WORDS, unix).await {
        ended("socket", result);
    }
    supervisor.abort();
    let _aborted = supervisor.await;
    log::info!(target: "temperd::daemon", "stopped");
    Ok(())
}

/// Ready once everything has its outcome.
async fn stopping(mut phase: watch::Receiver<Phase>) {
    drop(phase.wait_for(|phase| *phase == Phase::Stopping).await);
}

fn ended(part: &str, result: Result<std::io::Result<()>, tokio::task::JoinError>) {
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!(target: "temperd::daemon", part; "ended: {error}"),
        Err(error) => log::error!(target: "temperd::daemon", part; "ended by a fault: {error}"),
    }
}

fn settings(config: &Config) -> dispatch::Settings {
    dispatch::Settings {
        node: config.node.clone(),
        context: config.engine.context,
        parallel: config.engine.parallel,
        queue: config.limits.queue,
        share: config.limits.share,
        deadline: config.limits.deadline,
        max_tokens: config.limits.max_tokens,
        share_prefix: config.engine.share_prefix,
        adapters: config.engine.adapters.clone(),
    }
}
