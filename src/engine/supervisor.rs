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
    backoff::Backoff,
    binaries::Binaries,
    flavours::{Choice, Exhausted, Fault, Flavours},
    follow::{Life, looks::Looks},
    frames,
    growth::{self, Growth},
    handover::Handover,
    load::{environment, load},
    operate::{Orders, Vitals},
    plan::{self, Change, Plan},
    process::EngineProcess,
    pulse,
    watch::FileWatch,
};
use crate::{
    config, gguf,
    governor::Failure,
    telemetry::metrics::Metrics,
    wire::engine::{Hello, to_engine},
};

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
    /// Beyond it an engine that lives is given up.
    pub tolerance: Tolerance,
}

/// What is put up with in an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tolerance {
    /// Before it is taken to hang.
    pub silence: pulse::Bounds,
    /// Before it is taken to leak.
    pub memory: growth::Bounds,
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
#[derive(Default)]
struct Between {
    backoff: Backoff,
    handover: Handover,
    growth: Growth,
    binaries: Binaries,
    /// Whether the configured context could not be loaded.
    scarce: bool,
    /// Whether the last engine was ended so that another goes on with what ran in it.
    replacing: bool,
    flavours: Flavours,
}

impl Between {
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
}

impl Supervisor {
    /// Runs until the dispatcher is gone. Dropping the future ends the engine.
    pub async fn run(mut self) {
        let mut between = Between::default();
        // An upgrade may come before the first engine does. Where there is none, that is said when one is wanted.
        let _none_yet = between.binaries.find(self.config.path.as_deref(), true);
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
        let mut watch = None;
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
            let watched = watch.get_or_insert_with(|| FileWatch::new(&self.config.model));
            tokio::select! {
                changed = self.orders.changed() => if changed.is_err() {
                    return false;
                },
                // It may be held because nothing could be loaded.
                news = news(&self.reload, watched) => {
                    log::info!(target: "temperd::engine", "{news}");
                    watch = None;
                    self.vitals.send_modify(|vitals| vitals.failed(Failure::Over));
                }
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
                if fault == Fault::Stranger {
                    between.binaries.forget(&binary);
                }
                between.flavours.pass_over(&binary, fault, reason);
                if plan.most_layers() > 0 {
                    self.vitals.send_modify(|vitals| vitals.layers = 0);
                }
            }
            End::Changed(change) => {
                log::info!(target: "temperd::engine", change = change.as_str(), handed_over = between.handover.holds();
                    "the engine was ended for a change");
                between.backoff.anew();
                return self.events.send(EngineEvent::Changing(change)).await.is_ok();
            }
            End::Unusable(reason) => {
                between.handover.forget();
                between.backoff.anew();
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
                let wait = between.backoff.after(ready_for, fastrand::f64());
                log::error!(target: "temperd::engine", in_a_row = between.backoff.ends(), next_in_s = wait.as_secs_f64();
                    "{reason}");
                if self.events.send(EngineEvent::Ended { reason }).await.is_err() {
                    return false;
                }
                self.metrics.engine_restarted();
                return self.back_off(wait, between).await;
            }
        }
        true
    }

    /// Tells that there is no engine, and waits for SIGHUP or another model file. `false`: nobody listens any more.
    async fn wait_for_change(&self, reason: String) -> bool {
        let mut watch = FileWatch::new(&self.config.model);
        log::error!(target: "temperd::engine", model:% = self.config.model.display();
            "{reason}; tried again on SIGHUP or when the file changes");
        if self.events.send(EngineEvent::Failed { reason }).await.is_err() {
            return false;
        }
        self.changed(&mut watch).await
    }

    /// Waits before the next engine, unless there is news of the model. `false`: nobody listens any more.
    async fn back_off(&self, wait: Duration, between: &mut Between) -> bool {
        if wait.is_zero() {
            return true;
        }
        let mut watch = FileWatch::new(&self.config.model);
        match tokio::time::timeout(wait, self.changed(&mut watch)).await {
            Ok(listened) => {
                between.backoff.anew();
                listened
            }
            Err(_over) => true,
        }
    }

    /// Waits for SIGHUP or another model file, of which what failed before says nothing. `false`: nobody listens any more.
    async fn changed(&self, watch: &mut FileWatch) -> bool {
        tokio::select! {
            news = news(&self.reload, watch) => log::info!(target: "temperd::engine", "{news}"),
            () = self.events.closed() => return false,
        }
        self.vitals.send_modify(|vitals| vitals.failed(Failure::Over));
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
        let (blocks, bytes) = match looked {
            Ok(Err(error)) => return End::Unusable(error.to_string()),
            Ok(Ok(summary)) => (summary.block_count, summary.file_bytes),
            Err(_) => (None, 0),
        };
        let wanted = plan.most_layers() > 0;
        let found = match between.binaries.find(self.config.path.as_deref(), wanted) {
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
        let program = between.binaries.program(choice.binary);
        let end = match EngineProcess::spawn(&program, &environment(&self.config), &between.handover, outgoing) {
            Ok(process) => self.live(process, choice, plan, (blocks, bytes), between).await,
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
        (blocks, bytes): (Option<u64>, u64),
        between: &mut Between,
    ) -> End {
        between.growth.begin();
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
            told: false,
            ready_since: None,
            looks: Looks::new(self.tolerance.silence),
            growth: &mut between.growth,
            may_have: &self.tolerance.memory,
            operated: None,
            saving: None,
        };
        life.run(blocks, bytes).await
    }
}

/// Waits for SIGHUP or another model file, and says which.
async fn news(reload: &Notify, watch: &mut FileWatch) -> &'static str {
    tokio::select! {
        () = reload.notified() => "SIGHUP: trying the model again",
        () = watch.changed() => "the model file has changed: trying it again",
    }
}
