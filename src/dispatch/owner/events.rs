//! What the engine does, and what that means for requests and status.

use std::time::Instant;

use super::Owner;
use crate::{
    dispatch::{
        job::{End, Job},
        model_unavailable, now,
        readiness::{self, Model},
        slots::{Ended, Suspect as _},
    },
    engine::EngineEvent,
    request::{ErrorCode, Outcome, RequestError, queue::Entry},
    telemetry::snapshot::unix_seconds,
    wire::{
        engine::{AdapterFailed, Ready, Step},
        v1,
    },
};

impl Owner {
    pub(super) fn event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Step(step) => return self.step(step, now()),
            EngineEvent::Embedded(embedded) => return self.embedded(embedded),
            EngineEvent::Loading => {
                self.parts.view.send_modify(|view| view.failed = None);
                self.load_began = Some(now());
                // Another try: why the last one was in vain stays known until one is not.
                if !matches!(self.model, Model::Loading { .. }) {
                    self.model = Model::Loading { crashed: None };
                }
                self.flavour("");
                // One after an unload is announced too: what ran before waits for it.
                let reason = self.pause.take().map_or_else(|| "loading".to_owned(), |pause| pause.reason);
                self.pause(&reason);
            }
            EngineEvent::Greeted { flavour } => self.flavour(&flavour),
            EngineEvent::Vocabulary(prompter) => {
                if let Some(note) = prompter.note() {
                    log::warn!(target: "temperd::dispatch", "{note}");
                }
                self.parts.view.send_modify(|view| view.prompter = Some(prompter));
                self.prepare_queued();
            }
            EngineEvent::Ready(ready) => self.engine_ready(&ready),
            EngineEvent::Resized(resized) => {
                self.parts.status.update(|status| status.allocated_context = resized.allocated_context);
            }
            EngineEvent::Measured(measured) => {
                self.parts.status.update(|status| {
                    if let Some(settings) = &mut status.settings {
                        settings.threads = measured.threads;
                    }
                });
            }
            EngineEvent::Ended { reason } => {
                self.engine_gone(Some(&reason));
                self.parts.status.update(|status| {
                    if let Some(engine) = &mut status.engine {
                        engine.restarts += 1;
                    }
                });
                self.model = Model::Loading { crashed: Some(reason) };
                self.pause("crashed");
            }
            EngineEvent::Changing(change) => {
                self.engine_gone(None);
                self.model =
                    if change.goes_on() { Model::Loading { crashed: None } } else { Model::Unloaded { asleep: false } };
                self.pause = None;
                if change.goes_on() {
                    self.pause(change.as_str());
                }
            }
            EngineEvent::Unloaded { asleep } => {
                self.engine_gone(None);
                self.model = Model::Unloaded { asleep };
                self.pause = None;
            }
            EngineEvent::Failed { reason } => {
                self.engine_gone(None);
                self.parts.view.send_modify(|view| view.failed = Some(reason.clone()));
                let failed = || End::Other { outcome: Outcome::Failed, error: model_unavailable(&reason) };
                for paused in self.slots.take_paused() {
                    self.queue.ended(&paused.client);
                    self.finish(paused.job, failed());
                }
                let queued: Vec<u64> = self.queue.iter().map(|entry| entry.key).collect();
                for entry in queued.into_iter().filter_map(|key| self.queue.remove(key)).collect::<Vec<_>>() {
                    self.finish(entry.payload, failed());
                }
                self.model = Model::Failed(reason);
                self.pause = None;
            }
        }
        self.publish_model();
    }

    fn engine_ready(&mut self, ready: &Ready) {
        self.model = Model::Ready;
        self.pause = None;
        self.last_load = self.load_began.take().map(|began| now().duration_since(began)).or(self.last_load);
        // llama.cpp rounds the context up; the configured one stays the limit.
        self.limits.context = self.parts.settings.context.min(ready.context);
        self.parts.view.send_modify(|view| {
            view.embedding_length = Some(ready.embedding_length);
            view.adapters_failed.clone_from(&ready.adapters_failed);
        });
        self.fail_queued_for(&ready.adapters_failed);
        log::info!(target: "temperd::dispatch", context = ready.context, gpu_layers = ready.gpu_layers,
            load_s = ready.load_s; "model ready: {}", ready.description);
        self.parts.status.update(|status| {
            status.allocated_context = ready.allocated_context;
            // As the governor's shell will say; whoever hears that the model is ready hears this with it.
            if let Some(point) = &mut status.operating_point {
                point.gpu_layers = ready.gpu_layers;
            }
            if let Some(settings) = &mut status.settings {
                settings.threads = ready.threads;
                settings.threads_batch = ready.threads_batch;
                settings.n_batch = ready.n_batch;
                settings.n_ubatch = ready.n_ubatch;
                settings.flash_attention.clone_from(&ready.flash_attention);
            }
        });
    }

    /// Ends what came in while the model was loading, for adapters that have turned out to be of no use.
    fn fail_queued_for(&mut self, failed: &[AdapterFailed]) {
        let check = |entry: &Entry<Job>| self.adapters.check(entry.payload.request.adapter.as_deref(), failed).err();
        let late: Vec<_> = self.queue.iter().filter_map(|entry| Some((entry.key, check(entry)?))).collect();
        for (key, error) in late {
            if let Some(entry) = self.queue.remove(key) {
                self.finish(entry.payload, End::Other { outcome: Outcome::Failed, error });
            }
        }
    }

    /// The engine is gone; what ran goes on in another, but for what was there each time that one crashed. `crash` is
    /// how it came to its end by itself.
    fn engine_gone(&mut self, crash: Option<&str>) {
        self.parts.view.send_modify(|view| view.prompter = None);
        self.parts.status.update(|status| status.allocated_context = 0);
        self.flavour("");
        let Ended { released, poison } = self.slots.interrupt(crash.is_some());
        for client in released {
            self.queue.ended(&client);
        }
        for (client, job) in poison {
            self.queue.ended(&client);
            let message = format!("{} engines in a row ended while it ran; it is not tried again", job.crashes());
            let error = RequestError::new(ErrorCode::Poison, message);
            log::error!(target: "temperd::dispatch", crashes = job.crashes(), way_in = job.request.way_in.as_str();
                "a request is given up: {}", crash.unwrap_or_default());
            self.finish(job, End::Other { outcome: Outcome::Failed, error });
        }
    }

    /// What the engine that lives was built for; empty where none does.
    fn flavour(&self, flavour: &str) {
        self.parts.status.update(|status| {
            if let Some(engine) = &mut status.engine {
                flavour.clone_into(&mut engine.flavour);
            }
        });
    }

    fn step(&mut self, step: Step, now: Instant) {
        for mut output in step.outputs {
            let key = output.sequence;
            let Some(slot) = self.slots.get_mut(key) else { continue };
            let finished = output.finished.take();
            if let Some(job) = &mut slot.job {
                self.parts.metrics.tokens_written(output.tokens.len() as u64);
                if let Some(after) = job.absorb(output, now) {
                    self.parts.metrics.first_token(after);
                }
            }
            let Some(finished) = finished else { continue };
            self.parts.metrics.drafted(finished.drafted.into(), finished.accepted.into());
            let end = match finished.reason.as_str() {
                reason @ ("stop" | "length") => End::Completed { finish_reason: reason.into() },
                reason => {
                    let message = finished.error.unwrap_or_else(|| format!("the engine ended the answer: {reason}"));
                    let error = RequestError::new(ErrorCode::Internal, message);
                    End::Other { outcome: Outcome::Failed, error }
                }
            };
            self.sequence_ended(key, end);
        }
    }

    /// Announces that answers wait for an engine, as long as the last one took. Before the first there is nothing to
    /// go by, and nothing that waits.
    fn pause(&mut self, reason: &str) {
        self.pause = self.last_load.map(|last| {
            let expected_end = ((unix_seconds() + last.as_secs_f64()) * 1000.0).round() / 1000.0;
            v1::Pause { reason: reason.into(), expected_end }
        });
    }

    /// Says where the model is, whether requests are answered, and why not.
    pub(super) fn publish_model(&self) {
        let reasons = readiness::reasons(self.drain.is_some(), &self.model, self.orders.borrow().point.admit);
        self.parts.metrics.model_ready(self.model == Model::Ready);
        self.parts.status.update(|status| {
            status.ready = reasons.is_empty();
            status.reasons = reasons;
            status.pause.clone_from(&self.pause);
            if let Some(model) = &mut status.model {
                model.state = self.model.as_str().into();
                model.error = self.model.error();
            }
        });
    }
}
