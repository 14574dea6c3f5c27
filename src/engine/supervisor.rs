//! Keeps an engine alive while the governor's orders want one: starts, feeds and replaces it, and waits where starting
//! another would not help. [`super::follow`] is the life of one engine, [`super::plan`] decides what it is loaded with and
//! when another is needed.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, watch};

use super::{
    EngineEvent, EngineHandle,
    flavours::{Choice, Exhausted, Fault, Flavours},
    follow::Life,
    frames,
    handover::Handover,
    load::{environment, load},
    locate,
    operate::{Orders, Vitals},
    plan::{self, Change, Plan},
    process::EngineProcess,
    watch::FileWatch,
};
use crate::{
    config, gguf,
    governor::Failure,
    telemetry::metrics::Metrics,
    wire::engine::{Hello, to_engine},
};

/// Between the end of an engine and the start of the next: doubled each time, up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// An engine that was ready for this long starts the back-off anew.
const STEADY: Duration = Duration::from_secs(60);
/// Engines that may end while they load before the supervisor waits for a change.
const LOAD_ATTEMPTS: u32 = 3;

/// What the supervisor works with.
#[derive(Debug)]
pub struct Supervisor {
    /// The model and its settings.
    pub config: config::Engine,
    /// What outlives the process is kept there; `None`: system prompts have no images.
    pub state_directory: Option<PathBuf>,
    /// Reaches the engine that lives.
    pub handle: EngineHandle,
    /// To the dispatcher.
    pub events: mpsc::Sender<EngineEvent>,
    /// Notified by SIGHUP.
    pub reload: Arc<Notify>,
    /// Counts restarts.
    pub metrics: Arc<Metrics>,
    /// What is to be in force.
    pub orders: watch::Receiver<Orders>,
    /// How the engine is; the governor's shell reads it.
    pub vitals: watch::Sender<Vitals>,
}

/// How one engine came to its end.
pub(super) enum End {
    /// It refused the model, or cannot be started at all: another one would do the same.
    Unusable(String),
    /// This flavour is of no use here; another may be.
    PassedOver { binary: PathBuf, fault: Fault, reason: String },
    /// It could not load so much; less of it may do.
    TooMuch { reason: String, tried: Failure },
    /// It ended; `ready_for` is how long it had been ready.
    Ended { reason: String, ready_for: Option<Duration>, had: Failure },
    /// It was ended on purpose.
    Changed(Change),
    /// Nobody listens any more.
    Shutdown,
}

impl End {
    /// `what` says it of the engine.
    pub(super) fn passed_over(choice: Choice<'_>, fault: Fault, what: &str) -> Self {
        let reason = format!("engine {} {what}", choice.binary.display());
        Self::PassedOver { binary: choice.binary.into(), fault, reason }
    }
}

/// What outlives an engine.
struct Between {
    backoff: Duration,
    failed_loads: u32,
    handover: Handover,
    /// Whether the configured context could not be loaded.
    scarce: bool,
    /// Whether the last engine was ended so that another goes on with what ran in it.
    replacing: bool,
    flavours: Flavours,
}

impl Between {
    fn new() -> Self {
        Self {
            backoff: BACKOFF_MIN,
            failed_loads: 0,
            handover: Handover::default(),
            scarce: false,
            replacing: false,
            flavours: Flavours::default(),
        }
    }

    /// What the end of an engine means for the next one. While one flavour after the other is tried, or less after more,
    /// it is still the same engine that is wanted.
    fn note(&mut self, end: &End) {
        match end {
            End::PassedOver { .. } => {}
            End::TooMuch { .. } => self.replacing = false,
            End::Changed(change) if change.goes_on() => self.replacing = true,
            _ => {
                self.replacing = false;
                self.flavours.anew();
            }
        }
    }

    fn anew(&mut self) {
        (self.backoff, self.failed_loads) = (BACKOFF_MIN, 0);
    }
}

impl Supervisor {
    /// Runs until the dispatcher is gone. Dropping the future ends the engine.
    pub async fn run(mut self) {
        let mut between = Between::new();
        while self.until_wanted(&mut between).await {
            let plan = self.plan(&between);
            let end = self.one_engine(plan, &mut between).await;
            if !self.after(end, plan, &mut between).await {
                return;
            }
        }
    }

    /// What the orders ask for now.
    fn plan(&self, between: &Between) -> Plan {
        Plan::new(&self.config, &self.orders.borrow(), self.vitals.borrow().layers, between.scarce)
    }

    /// Waits until the orders want an engine. `false`: nobody listens any more.
    async fn until_wanted(&mut self, between: &mut Between) -> bool {
        let mut told = None;
        loop {
            let orders = *self.orders.borrow_and_update();
            if plan::wanted(&orders, between.replacing) {
                return true;
            }
            // Memory is what it is for.
            between.handover.forget();
            if told != Some(orders.asleep) {
                told = Some(orders.asleep);
                log::info!(target: "temperd::engine", asleep = orders.asleep, admit = orders.point.admit.as_str();
                    "no model is loaded");
                if self.events.send(EngineEvent::Unloaded { asleep: orders.asleep }).await.is_err() {
                    return false;
                }
            }
            tokio::select! {
                changed = self.orders.changed() => if changed.is_err() {
                    return false;
                },
                () = self.events.closed() => return false,
            }
        }
    }

    /// Draws the consequences. `false`: nobody listens any more.
    async fn after(&mut self, end: End, plan: Plan, between: &mut Between) -> bool {
        between.note(&end);
        match end {
            End::Shutdown => return false,
            End::PassedOver { binary, fault, reason } => {
                log::warn!(target: "temperd::engine", "{reason}; it is passed over");
                between.flavours.pass_over(&binary, fault, reason);
                if plan.most_layers() > 0 {
                    self.vitals.send_modify(|vitals| vitals.layers = 0);
                }
            }
            End::Changed(change) => {
                log::info!(target: "temperd::engine", change = change.as_str(), handed_over = between.handover.holds();
                    "the engine was ended for a change");
                between.anew();
                return self.events.send(EngineEvent::Changing(change)).await.is_ok();
            }
            End::Unusable(reason) => {
                between.handover.forget();
                between.anew();
                return self.wait_for_change(reason).await;
            }
            End::TooMuch { reason, tried } => {
                between.scarce |= matches!(tried, Failure::Load { gpu_layers: 0, .. });
                log::warn!(target: "temperd::engine", tried:?; "{reason}; less of it is tried");
                self.vitals.send_modify(|vitals| vitals.failed(tried));
                return self.wait_for_less(plan, between).await;
            }
            End::Ended { reason, ready_for, had } => {
                self.vitals.send_modify(|vitals| vitals.failed(had));
                // What a GPU does not take is tried with fewer layers.
                let counts = ready_for.is_none() && matches!(had, Failure::Crash { .. });
                between.failed_loads = if counts { between.failed_loads + 1 } else { 0 };
                if between.failed_loads >= LOAD_ATTEMPTS {
                    let reason =
                        format!("{reason}; {} engines ended while they loaded the model", between.failed_loads);
                    between.anew();
                    return self.wait_for_change(reason).await;
                }
                if ready_for.is_some_and(|time| time >= STEADY) {
                    between.backoff = BACKOFF_MIN;
                }
                log::error!(target: "temperd::engine", next_in_s = between.backoff.as_secs_f64(); "{reason}");
                if self.events.send(EngineEvent::Ended { reason }).await.is_err() {
                    return false;
                }
                self.metrics.engine_restarted();
                tokio::time::sleep(between.backoff).await;
                between.backoff = (between.backoff * 2).min(BACKOFF_MAX);
            }
        }
        true
    }

    /// Tells that there is no engine, and waits for SIGHUP or another model file. `false`: nobody listens any more.
    async fn wait_for_change(&self, reason: String) -> bool {
        let watch = FileWatch::new(&self.config.model);
        log::error!(target: "temperd::engine", model:% = self.config.model.display();
            "{reason}; tried again on SIGHUP or when the file changes");
        if self.events.send(EngineEvent::Failed { reason }).await.is_err() {
            return false;
        }
        tokio::select! {
            () = self.reload.notified() => log::info!(target: "temperd::engine", "SIGHUP: trying the model again"),
            () = watch.changed() => log::info!(target: "temperd::engine", "the model file has changed: trying it again"),
            () = self.events.closed() => return false,
        }
        true
    }

    /// Waits until the governor has drawn its conclusion from a failed load: less of it, or nothing for a while. `false`:
    /// nobody listens any more.
    async fn wait_for_less(&mut self, tried: Plan, between: &Between) -> bool {
        loop {
            if self.plan(between) != tried || !plan::wanted(&self.orders.borrow_and_update(), false) {
                return true;
            }
            tokio::select! {
                changed = self.orders.changed() => if changed.is_err() {
                    return false;
                },
                () = self.reload.notified() => return true,
                () = self.events.closed() => return false,
            }
        }
    }

    async fn one_engine(&mut self, plan: Plan, between: &mut Between) -> End {
        let model = self.config.model.clone();
        // A look at the header says more exactly what is wrong than an engine's failure does.
        let looked = tokio::task::spawn_blocking(move || gguf::inspect(&model)).await;
        let blocks = match looked {
            Ok(Err(error)) => return End::Unusable(error.to_string()),
            Ok(Ok(summary)) => summary.block_count,
            Err(_) => None,
        };
        let wanted = plan.most_layers() > 0;
        let found = match locate::flavours(self.config.path.as_deref(), wanted) {
            Ok(found) => found,
            Err(error) => return End::Unusable(error.to_string()),
        };
        let choice = match between.flavours.next(&found) {
            Ok(choice) => choice,
            Err(Exhausted { reason, by_chance: false }) => return End::Unusable(reason),
            Err(Exhausted { reason, by_chance: true }) => {
                let had = Failure::Crash { gpu_layers: 0, context: plan.context };
                return End::Ended { reason, ready_for: None, had };
            }
        };
        if self.events.send(EngineEvent::Loading).await.is_err() {
            return End::Shutdown;
        }
        let restore = between.handover.holds();
        between.handover.begin();
        let hello = Hello { protocol: frames::PROTOCOL, build: frames::BUILD.into(), flavour: String::new() };
        let asked = if choice.layers { plan } else { Plan { gpu_layers: Some(0), ..plan } };
        let load = load(&self.config, asked, restore);
        let outgoing = self.handle.attach([to_engine::Frame::Hello(hello), to_engine::Frame::Load(load)]);
        let end = match EngineProcess::spawn(choice.binary, &environment(&self.config), &between.handover, outgoing) {
            Ok(process) => self.live(process, choice, plan, blocks, between).await,
            Err(error) => End::passed_over(choice, Fault::Stranger, &format!("does not start: {error}")),
        };
        self.handle.detach();
        self.vitals.send_modify(Vitals::gone);
        end
    }

    async fn live(
        &mut self,
        process: EngineProcess,
        choice: Choice<'_>,
        plan: Plan,
        blocks: Option<u64>,
        between: &mut Between,
    ) -> End {
        self.vitals.send_modify(|vitals| vitals.begin(process.pid()));
        let life = Life {
            config: &self.config,
            state_directory: self.state_directory.as_deref(),
            handle: &self.handle,
            events: &self.events,
            orders: &mut self.orders,
            vitals: &self.vitals,
            handover: &mut between.handover,
            scarce: &mut between.scarce,
            lacks_device: plan.most_layers() > 0 && (between.flavours.passed_any() || self.config.gpu_layers.is_some()),
            choice,
            plan,
            process,
            started: Instant::now(),
            ready_since: None,
            operated: None,
            saving: None,
        };
        life.run(blocks).await
    }
}
