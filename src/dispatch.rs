//! Every request from admission to its one outcome.
//!
//! ```text
//!  submit ─ render, tokenise, fits? ─▶ Queued ─ slot and cells free ─▶ Running ─▶ Final
//!     └──────────── refused            └── cancelled, expired, drained ──┘  │  ▲
//!                                                             engine ends   ▼  │  another is ready
//!                                                                          Paused
//! ```
//! The end of an engine, planned or not, ends no request: what ran is kept as tokens and goes on in the next.
//! One task ([`owner`]) owns all of them. Ways in hold a [`Dispatcher`] to hand requests over and a [`Ticket`] for each
//! one that was accepted; dropping the ticket cancels the request.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    chat::Prompter,
    config::{Adapter, SharePrefix},
    constrain::check::Checker,
    engine::{EngineEvent, EngineHandle, operate::Orders},
    request::{Client, ErrorCode, Request, RequestError},
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::{engine::AdapterFailed, v1},
};

mod adapters;
mod embedding;
pub mod gate;
mod job;
mod owner;
mod prompt;
mod readiness;
mod service_time;
pub mod slots;
#[cfg(test)]
mod tests;
mod ticket;
mod tokens;
pub mod turn;

use adapters::Adapters;
use gate::Gate;
use prompt::Prompt;
pub use ticket::{Event, Ticket};

/// Commands on their way to the owner. Each way in has at most one at a time per request, so senders wait at most for
/// the owner's current step.
const COMMANDS: usize = 256;

/// How long a client should wait before it asks a daemon whose model is not there again.
const MODEL_RETRY_MS: u32 = 5000;

/// What the configuration contributes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this box in finals.
    pub node: String,
    /// Tokens that prompts and answers share.
    pub context: u32,
    /// Sequences at once.
    pub parallel: u32,
    /// Requests that wait.
    pub queue: u32,
    /// Percent of queue and slots that one client may hold.
    pub share: u32,
    /// Of a request that names none.
    pub deadline: Duration,
    /// Of a request that names none.
    pub max_tokens: u32,
    /// Who shares cached prefixes.
    pub share_prefix: SharePrefix,
    /// What requests may choose by name.
    pub adapters: Vec<Adapter>,
}

/// What there is to do, for the governor's shell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Requests that wait or run.
    pub requests: u32,
    /// Requests that were admitted so far.
    pub admitted: u64,
}

/// Between the governor's shell and the owner.
#[derive(Debug)]
pub struct Governing {
    /// What is to be in force: bounds what starts.
    pub orders: watch::Receiver<Orders>,
    /// What there is to do.
    pub demand: watch::Sender<Demand>,
}

/// What admission needs to know of the engine; the owner writes it.
#[derive(Debug, Clone, Default)]
struct View {
    prompter: Option<Arc<Prompter>>,
    /// Why no model can be had.
    failed: Option<String>,
    draining: bool,
    /// Numbers of one embedding; `None` until the model has been loaded once.
    embedding_length: Option<u32>,
    /// Adapters that the engine could not use.
    adapters_failed: Vec<AdapterFailed>,
}

/// Hands requests to the owner. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    engine: EngineHandle,
    metrics: Arc<Metrics>,
    checker: Checker,
    context: u32,
    adapters: Adapters,
}

#[derive(Debug)]
enum Command {
    Admit(Box<Admit>),
    Room { client: Client, reply: oneshot::Sender<Result<(), RequestError>> },
    Cancel { client: Client, id: String, reply: oneshot::Sender<bool> },
    Prepared { key: u64, prompt: Result<Option<Prompt>, RequestError> },
    Drain { until: Instant, done: oneshot::Sender<()> },
}

#[derive(Debug)]
struct Admit {
    request: Request,
    /// `None` while no engine can tokenise.
    prompt: Option<Prompt>,
    gate: Gate,
    arrived: Instant,
    reply: oneshot::Sender<Result<Ticket, RequestError>>,
}

impl Dispatcher {
    /// Starts the owner task. It ends once every dispatcher is gone.
    #[must_use]
    pub fn start(
        settings: Settings,
        engine: EngineHandle,
        events: mpsc::Receiver<EngineEvent>,
        governing: Governing,
        status: StatusBoard,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (commands, incoming) = mpsc::channel(COMMANDS);
        let (view_sender, view) = watch::channel(View::default());
        let context = settings.context;
        let adapters = Adapters::new(&settings.adapters);
        let parts = owner::Parts {
            settings,
            engine: engine.clone(),
            status,
            metrics: metrics.clone(),
            view: view_sender,
            demand: governing.demand,
            commands: commands.downgrade(),
        };
        let owner = owner::Owner::new(parts, governing.orders);
        tokio::spawn(owner.run(incoming, events));
        Self { commands, view, engine, metrics, checker: Checker::default(), context, adapters }
    }

    /// Admits a request: renders and tokenises it, checks the size, queues it. While no engine can tokenise, the size
    /// is checked later and may end the request as `failed`.
    ///
    /// # Errors
    /// The reason why it is refused, counted; nothing of it is kept then.
    pub async fn submit(&self, request: Request) -> Result<Ticket, RequestError> {
        self.submit_behind(Gate::open(), request).await
    }

    /// As [`Self::submit`], but the request runs only once leave is given.
    ///
    /// # Errors
    /// As there.
    pub async fn submit_behind(&self, gate: Gate, request: Request) -> Result<Ticket, RequestError> {
        let way_in = request.way_in;
        self.admit(gate, request).await.inspect_err(|error| {
            self.metrics.refused(way_in, error.code);
            log::info!(target: "temperd::dispatch", way_in = way_in.as_str(), code = error.code.as_str(); "refused");
        })
    }

    async fn admit(&self, gate: Gate, request: Request) -> Result<Ticket, RequestError> {
        let arrived = Instant::now();
        let view = self.view.borrow().clone();
        if view.draining {
            return Err(draining());
        }
        if let Some(reason) = view.failed {
            return Err(model_unavailable(&reason));
        }
        self.adapters.check(request.adapter.as_deref(), &view.adapters_failed)?;
        // Before anything that takes time: a flood that is refused must not cost those who are served.
        self.room(&request.client).await?;
        if let Some(constraint) = &request.constraint {
            self.checker.check(constraint).await?;
        }
        let prompt = match view.prompter {
            None => {
                prompt::check_bytes(&request.input, self.context)?;
                None
            }
            // None: the engine went away meanwhile.
            Some(prompter) => prompt::prepare(&request.input, &prompter, &self.engine, self.context).await?,
        };
        let (reply, answer) = oneshot::channel();
        let admit = Command::Admit(Box::new(Admit { request, prompt, gate, arrived, reply }));
        self.commands.send(admit).await.map_err(|_| draining())?;
        answer.await.map_err(|_| draining())?
    }

    /// Whether there is room for a request of this client. It may be gone by the time that the request is admitted.
    async fn room(&self, client: &Client) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Room { client: client.clone(), reply };
        self.commands.send(command).await.map_err(|_| draining())?;
        answer.await.map_err(|_| draining())?
    }

    /// Numbers of one embedding of the model; `None` while that is not known.
    #[must_use]
    pub fn embedding_length(&self) -> Option<u32> {
        self.view.borrow().embedding_length
    }

    /// Names of the configured adapters.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.adapters.names()
    }

    /// Cancels a queued or running request of this client; `false` where there is none of that id.
    pub async fn cancel(&self, client: &Client, id: &str) -> bool {
        let (reply, answer) = oneshot::channel();
        let command = Command::Cancel { client: client.clone(), id: id.into(), reply };
        self.commands.send(command).await.is_ok() && answer.await.unwrap_or(false)
    }

    /// Admits nothing more, and returns once every request has its outcome: by itself until `grace` is over, then as
    /// `failed`.
    pub async fn drain(&self, grace: Duration) {
        let (done, finished) = oneshot::channel();
        let command = Command::Drain { until: Instant::now() + grace, done };
        if self.commands.send(command).await.is_ok() {
            let _owner_gone = finished.await;
        }
    }
}

/// tokio's clock, which tests can stop.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn draining() -> RequestError {
    RequestError::new(ErrorCode::Draining, "the daemon is shutting down; ask again when it is back")
        .retry_after(MODEL_RETRY_MS)
}

fn model_unavailable(reason: &str) -> RequestError {
    RequestError::new(ErrorCode::ModelUnavailable, format!("no model can answer: {reason}")).retry_after(MODEL_RETRY_MS)
}

/// The status of a daemon whose owner has not said anything yet.
#[must_use]
pub fn initial_status(config: &crate::config::Config) -> v1::Status {
    let engine = &config.engine;
    let name = crate::config::Config::model_name(&engine.model);
    v1::Status {
        ready: false,
        reasons: vec!["model_loading".into()],
        node: config.node.clone(),
        version: crate::wire::VERSION.into(),
        model: Some(v1::Model { name, state: "loading".into(), error: None }),
        engine: Some(v1::Engine { flavour: String::new(), restarts: 0, degraded: false }),
        operating_point: Some(v1::OperatingPoint {
            context: engine.context,
            gpu_layers: 0,
            parallel: engine.parallel,
            pace: 1.0,
            admit: "run".into(),
        }),
        allocated_context: 0,
        pinned: false,
        reason: None,
        queue: Some(v1::Queue { depth: 0, limit: config.limits.queue }),
        running: Some(0),
        mqtt: Some(v1::Mqtt { state: if config.mqtt.is_some() { "connecting" } else { "off" }.into(), outbox: 0 }),
        settings: Some(v1::Settings {
            threads: engine.threads.unwrap_or(0),
            threads_batch: engine.threads_batch.unwrap_or(0),
            n_batch: engine.n_batch,
            n_ubatch: engine.n_ubatch,
            kv_type: engine.kv_type.as_str().into(),
            load_mode: engine.load_mode.as_str().into(),
            flash_attention: engine.flash_attention.as_str().into(),
            batch_invariant: engine.batch_invariant,
        }),
        pause: None,
        sandbox: Some(v1::Sandbox { landlock: false, seccomp: false }),
    }
}
