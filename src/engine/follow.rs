//! The life of one engine, from its hello to its end: frames come in, orders go out, and it is looked at ([`looks`]).
//!
//! ```text
//!   hello ── loading ── ready ── frames, orders ──▶ ended by itself, or by us: it hangs, or sends nonsense
//!                                  │ orders it cannot meet, a leak
//!                                  └── Save, where something lives and memory allows ── Saved ──▶ ended on purpose
//! ```

use std::{
    path::Path,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};

use super::{
    EngineEvent, EngineHandle,
    flavours::{Choice, Fault},
    frames,
    growth::{self, Growth},
    handover::Handover,
    inner,
    load::is_out_of_memory,
    operate::{Orders, Vitals},
    plan::{self, Change, Plan},
    prefixes,
    process::EngineProcess,
    supervisor::End,
};
use crate::{
    chat::Prompter,
    config,
    governor::Failure,
    wire::engine::{Hello, LoadFailed, Log, Operate, Ready, Saved, from_engine::Frame},
};

/// How long an engine may take to write its state: seconds for gigabytes, and the step that runs before it. Prompts are
/// read again where it takes longer.
const SAVED_WITHIN: Duration = Duration::from_secs(20);

pub(super) mod looks;

/// An engine, and what it lives by.
pub(super) struct Life<'a> {
    pub(super) config: &'a config::Engine,
    pub(super) state_directory: Option<&'a Path>,
    pub(super) handle: &'a EngineHandle,
    pub(super) events: &'a mpsc::Sender<EngineEvent>,
    pub(super) orders: &'a mut watch::Receiver<Orders>,
    pub(super) vitals: &'a watch::Sender<Vitals>,
    pub(super) handover: &'a mut Handover,
    /// Whether the configured context could not be loaded.
    pub(super) scarce: &'a mut bool,
    pub(super) choice: Choice<'a>,
    pub(super) plan: Plan,
    /// Whether there should be a device: a flavour for one is installed, or a number of layers configured.
    pub(super) lacks_device: bool,
    pub(super) process: EngineProcess,
    pub(super) started: Instant,
    /// Whether it has told its vocabulary.
    pub(super) told: bool,
    pub(super) ready_since: Option<Instant>,
    pub(super) looks: looks::Looks,
    pub(super) growth: &'a mut Growth,
    pub(super) may_have: &'a growth::Bounds,
    /// What it was last told.
    pub(super) operated: Option<Operate>,
    /// What it saves its state for, and until when.
    pub(super) saving: Option<(Change, Instant)>,
}

impl Life<'_> {
    /// From hello to the end, with a model of so many blocks in a file of so many bytes.
    pub(super) async fn run(mut self, blocks: Option<u64>, bytes: u64) -> End {
        if let Err(end) = self.greet(blocks).await {
            let _status = self.process.end().await;
            return end;
        }
        self.looks.loads(bytes);
        loop {
            let saved_by = self.saving.map(|(_, until)| until);
            let end = tokio::select! {
                frame = self.process.next() => match frame {
                    Ok(Some(frame)) => self.frame(inner(frame)).await,
                    Ok(None) => return self.ended().await,
                    Err(error) => Some(self.by_itself(format!("the engine sent a frame that cannot be read: {error}"))),
                },
                Ok(()) = self.orders.changed() => self.ordered().await,
                elapsed = self.looks.next() => self.look(elapsed).await,
                () = sleep_until(saved_by) => {
                    log::warn!(target: "temperd::engine", "the engine does not save its state in time");
                    self.saving.map(|(change, _)| End::Changed(change))
                }
                () = self.events.closed() => return End::Shutdown,
            };
            if let Some(end) = end {
                // The next one must not load beside it.
                let _status = self.process.end().await;
                return end;
            }
        }
    }

    /// Waits for its hello. The error is why it is passed over.
    async fn greet(&mut self, blocks: Option<u64>) -> Result<(), End> {
        let (choice, none) = (self.choice, "is no temperd-engine");
        let stranger = |what: &str| Err(End::passed_over(choice, Fault::Stranger, what));
        let died = |how: String| End::passed_over(choice, Fault::Died, &format!("says nothing: {how}"));
        let frame = loop {
            tokio::select! {
                frame = self.process.next() => break frame,
                elapsed = self.looks.next() => if let Some(hangs) = self.looks.look(elapsed, self.process.pid()) {
                    return Err(died(hangs.to_string()));
                },
            }
        };
        let theirs = match frame {
            Ok(Some(frame)) => inner(frame),
            Ok(None) => return Err(died(self.process.status().await.map_or_else(|error| error.to_string(), how))),
            Err(error) => return stranger(&format!("{none}: {error}")),
        };
        let Some(Frame::Hello(theirs)) = theirs else { return stranger(none) };
        if theirs.protocol != frames::PROTOCOL || theirs.build != frames::BUILD {
            return stranger(&format!(
                "is of build {} (protocol {}), the daemon of {} ({}): restart temperd after an upgrade, or install both \
                 from one package",
                theirs.build,
                theirs.protocol,
                frames::BUILD,
                frames::PROTOCOL
            ));
        }
        self.expect_layers(&theirs, blocks);
        self.events.send(EngineEvent::Greeted { flavour: theirs.flavour }).await.map_err(|_| End::Shutdown)
    }

    /// An engine with a GPU has a layer more than the model has blocks, until it says so itself.
    fn expect_layers(&self, theirs: &Hello, blocks: Option<u64>) {
        let cpu = theirs.flavour.is_empty() || theirs.flavour == "cpu" || !self.choice.layers;
        let layers = blocks.and_then(|blocks| u32::try_from(blocks.checked_add(1)?).ok()).filter(|_| !cpu);
        self.vitals.send_modify(|vitals| {
            if vitals.layers == 0 {
                vitals.layers = layers.unwrap_or(0);
            }
        });
    }

    async fn frame(&mut self, frame: Option<Frame>) -> Option<End> {
        let frame = frame?;
        self.looks.heard(&frame);
        if let Some(nonsense) = self.nonsense(&frame) {
            return Some(self.by_itself(format!("the engine sent a frame that makes no sense: {nonsense}")));
        }
        let event = match frame {
            Frame::Vocabulary(vocabulary) => match Prompter::new(&vocabulary) {
                Ok(prompter) => {
                    self.told = true;
                    let prompter = Arc::new(prompter);
                    prefixes::tell(&self.config.system_prompts, self.state_directory, &prompter, self.handle);
                    EngineEvent::Vocabulary(prompter)
                }
                Err(error) => return Some(End::Unusable(error.to_string())),
            },
            Frame::Ready(ready) => return self.ready(ready).await,
            Frame::LoadFailed(failed) => return Some(self.load_failed(failed)),
            Frame::Resized(resized) => {
                self.vitals.send_modify(|vitals| vitals.allocated_context = resized.allocated_context);
                EngineEvent::Resized(resized)
            }
            Frame::Measured(measured) => EngineEvent::Measured(measured),
            Frame::Step(step) => EngineEvent::Step(step),
            Frame::Embedded(embedded) => EngineEvent::Embedded(embedded),
            Frame::Tokenised(answer) => {
                self.handle.tokenised(answer);
                return None;
            }
            Frame::Heartbeat(heartbeat) => {
                let pace = self.orders.borrow().point.pace;
                self.vitals.send_modify(|vitals| vitals.beat(heartbeat, pace));
                return None;
            }
            Frame::Saved(saved) => return self.saved(&saved),
            Frame::Log(line) => {
                forward(&line);
                return None;
            }
            Frame::Hello(_) | Frame::Loading(_) | Frame::Busy(_) => return None,
        };
        self.events.send(event).await.is_err().then_some(End::Shutdown)
    }

    /// What is wrong with a frame by what came before it. Where a model is loaded once, a second outcome of the load could
    /// end requests that run; and numbers that are none would reach the governor.
    fn nonsense(&self, frame: &Frame) -> Option<&'static str> {
        let ready = self.ready_since.is_some();
        match frame {
            Frame::Vocabulary(_) | Frame::Ready(_) | Frame::LoadFailed(_) if ready => {
                Some("its model was loaded before")
            }
            Frame::Ready(_) if !self.told => Some("it is ready without a vocabulary"),
            Frame::Ready(ready) if ready.context == 0 => Some("it has no context"),
            Frame::Heartbeat(beat) if !(beat.at_s.is_finite() && beat.computed_s.is_finite()) => {
                Some("its clock has no time")
            }
            _ => None,
        }
    }

    /// The operating point is in force before the first request comes.
    async fn ready(&mut self, ready: Ready) -> Option<End> {
        self.ready_since = Some(Instant::now());
        self.looks.serves();
        self.handover.forget();
        *self.scarce &= self.plan.context < self.config.context;
        let lacks_device = self.lacks_device && ready.layers == 0;
        if lacks_device {
            log::warn!(target: "temperd::engine", "layers were to be on a GPU, and no device is there: all is on the CPU");
        }
        self.vitals.send_modify(|vitals| {
            vitals.is_ready(&ready, self.started.elapsed(), self.plan.most_layers());
            vitals.lacks_device = lacks_device;
        });
        // What it has now is what it began with.
        self.leaks(Duration::ZERO);
        let orders = *self.orders.borrow();
        self.operate(&orders).await;
        if self.events.send(EngineEvent::Ready(ready)).await.is_err() {
            return Some(End::Shutdown);
        }
        // They may have changed while it was loading.
        self.ordered().await
    }

    async fn ordered(&mut self) -> Option<End> {
        let orders = *self.orders.borrow_and_update();
        if self.saving.is_some() {
            return None;
        }
        let (has, layers) = {
            let vitals = self.vitals.borrow();
            (vitals.ready.as_ref().map(|ready| ready.gpu_layers), vitals.layers)
        };
        let plan = Plan::new(self.config, &orders, layers, *self.scarce);
        let Some(change) = plan::change(self.plan, has, plan, &orders) else {
            if has.is_some() {
                self.operate(&orders).await;
            }
            return None;
        };
        self.change(change, &orders).await
    }

    /// Has another engine take the place of this one, with its state where that can be.
    async fn change(&mut self, change: Change, orders: &Orders) -> Option<End> {
        if change.goes_on() && self.can_save(orders) && told(self.looks.patience(), self.handle.save()).await {
            self.saving = Some((change, Instant::now() + SAVED_WITHIN));
            return None;
        }
        Some(End::Changed(change))
    }

    /// Tells the engine its part of the operating point, where that is another.
    async fn operate(&mut self, orders: &Orders) {
        let operate = orders.to_engine();
        if self.operated.as_ref() != Some(&operate)
            && told(self.looks.patience(), self.handle.operate(operate.clone())).await
        {
            self.operated = Some(operate);
        }
    }

    /// Whether its state is worth handing over, and fits into memory beside it.
    fn can_save(&self, orders: &Orders) -> bool {
        let vitals = self.vitals.borrow();
        let lives = vitals.heartbeat.sequences > 0;
        lives && self.handover.can_save() && vitals.state().is_some_and(|state| state < orders.spare)
    }

    fn saved(&mut self, saved: &Saved) -> Option<End> {
        let (change, _) = self.saving?;
        match &saved.error {
            None if saved.bytes > 0 => self.handover.saved(),
            error => {
                let error = error.as_deref().unwrap_or("nothing was saved");
                log::warn!(target: "temperd::engine", "its state is not handed over: {error}");
            }
        }
        Some(End::Changed(change))
    }

    /// What another flavour or less could load is told from what is broken.
    fn load_failed(&self, LoadFailed { message, no_device }: LoadFailed) -> End {
        if no_device && self.choice.layers {
            return End::passed_over(self.choice, Fault::NoDevice, &format!("cannot use a GPU: {message}"));
        }
        let layers = self.vitals.borrow().layers;
        let gpu_layers = self.plan.most_layers().min(layers);
        if gpu_layers == 0 && !is_out_of_memory(&message) {
            return End::Unusable(message);
        }
        let tried = Failure::Load { gpu_layers, context: self.plan.context };
        End::TooMuch { reason: message, tried }
    }

    async fn ended(mut self) -> End {
        if let Some((change, _)) = self.saving {
            return End::Changed(change);
        }
        let reason = match self.process.status().await {
            Ok(status) => how(status),
            Err(error) => format!("the engine ended: {error}"),
        };
        self.by_itself(reason)
    }

    fn by_itself(&self, reason: String) -> End {
        let vitals = self.vitals.borrow();
        let context = self.orders.borrow().point.context.min(self.plan.context);
        let ready_for = self.ready_since.map(|since| since.elapsed());
        let gpu_layers = match &vitals.ready {
            Some(ready) => ready.gpu_layers,
            None => self.plan.most_layers().min(vitals.layers),
        };
        // One that dies while it puts layers on a GPU could not be loaded so; without, one death may be chance.
        let had = if ready_for.is_none() && gpu_layers > 0 {
            Failure::Load { gpu_layers, context }
        } else {
            Failure::Crash { gpu_layers, context }
        };
        End::Ended { reason, ready_for, had }
    }
}

/// Whether it could be told. One that does not read any more must not keep us from looking at it.
async fn told(patience: Duration, telling: impl Future<Output = bool>) -> bool {
    tokio::time::timeout(patience, telling).await.unwrap_or(false)
}

/// Never, where there is nothing to wait for.
async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("the engine was ended by signal {signal}"),
        None => format!("the engine ended with exit code {}", status.code().unwrap_or_default()),
    }
}

/// A line of the engine's, in our log at its level.
fn forward(line: &Log) {
    let level = line.level.parse().unwrap_or(log::Level::Info);
    log::log!(target: "temperd::engine", level, "{}", line.message.trim_end());
}
