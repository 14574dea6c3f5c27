//! The one task that owns every accepted request.

use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher as _, RandomState},
    pin::Pin,
    sync::Arc,
    time::Instant,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Adapters, Admit, Command, Settings, View, draining,
    job::{End, Job, Limits, Sharing, Times},
    model_unavailable,
    prompt::{self, Prompt},
    service_time::ServiceTime,
    ticket::{self, Ticket},
};
use crate::{
    config::SharePrefix,
    engine::{EngineEvent, EngineHandle},
    request::{
        Client, ErrorCode, Outcome, RequestError,
        queue::{self, Entry, Full, Queue},
    },
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::engine::{AdapterFailed, Ready, Start, Step},
};

/// What the owner is made from.
pub(super) struct Parts {
    pub(super) settings: Settings,
    pub(super) engine: EngineHandle,
    pub(super) status: StatusBoard,
    pub(super) metrics: Arc<Metrics>,
    pub(super) view: watch::Sender<View>,
    /// Weak: the owner must not keep itself alive.
    pub(super) commands: mpsc::WeakSender<Command>,
}

/// A sequence of the engine. Its cells are taken until the engine confirms the end, which a client does not wait for.
struct Slot {
    client: Client,
    cells: u32,
    /// `None` once the request has its outcome.
    job: Option<Job>,
}

type Dropped = Pin<Box<dyn Future<Output = u64> + Send>>;

/// The owner's state.
pub(super) struct Owner {
    parts: Parts,
    queue: Queue<Job>,
    slots: HashMap<u64, Slot>,
    /// Each resolves to the key of a request whose ticket was dropped.
    dropped: FuturesUnordered<Dropped>,
    /// Whether requests can run.
    ready: bool,
    limits: Limits,
    service_time: ServiceTime,
    next_key: u64,
    drain: Option<Drain>,
    /// Waiting and running, as last published.
    load: (usize, usize),
    scopes: RandomState,
    adapters: Adapters,
}

struct Drain {
    until: Instant,
    done: Option<oneshot::Sender<()>>,
}

impl Owner {
    pub(super) fn new(parts: Parts) -> Self {
        let settings = &parts.settings;
        let share = queue::share(settings.share, settings.queue, settings.parallel);
        Self {
            queue: Queue::new(settings.queue as usize, share),
            slots: HashMap::new(),
            dropped: FuturesUnordered::new(),
            ready: false,
            limits: Limits { context: settings.context, max_tokens: settings.max_tokens },
            service_time: ServiceTime::default(),
            next_key: 0,
            drain: None,
            load: (0, 0),
            scopes: RandomState::new(),
            adapters: Adapters::new(&settings.adapters),
            parts,
        }
    }

    /// Runs until every dispatcher is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut events: mpsc::Receiver<EngineEvent>) {
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                Some(event) = events.recv() => self.event(event).await,
                Some(key) = self.dropped.next() => self.ticket_dropped(key).await,
                () = sleep_until(deadline) => self.deadlines(now()).await,
            }
            self.start_what_fits().await;
            self.publish_load();
            self.finish_drain();
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Admit(admit) => {
                let Admit { request, prompt, arrived, reply } = *admit;
                let admitted = self.admit(request, prompt, arrived.into_std());
                // Where the asker is gone the ticket is dropped with the reply, which cancels the request.
                let _asker_gone = reply.send(admitted);
            }
            Command::Cancel { client, id, reply } => {
                let found = self.cancel(&client, &id).await;
                let _asker_gone = reply.send(found);
            }
            Command::Prepared { key, prompt } => self.prepared(key, prompt),
            Command::Drain { until, done } => {
                self.drain = Some(Drain { until: until.into_std(), done: Some(done) });
                self.parts.view.send_modify(|view| view.draining = true);
                self.parts.status.update(|status| {
                    status.ready = false;
                    status.reasons = vec!["draining".into()];
                });
            }
        }
    }

    fn admit(
        &mut self,
        mut request: crate::request::Request,
        prompt: Option<Prompt>,
        arrived: Instant,
    ) -> Result<Ticket, RequestError> {
        // Asked again: much may have happened while the prompt was tokenised.
        if self.drain.is_some() {
            return Err(draining());
        }
        if let Some(reason) = &self.parts.view.borrow().failed {
            return Err(model_unavailable(reason));
        }
        if request.id.is_empty() {
            request.id = format!("r-{:016x}", fastrand::u64(..));
        }
        if self.key_of(&request.client, &request.id).is_some() {
            return Err(RequestError::new(
                ErrorCode::IdConflict,
                "a request of this id is still waiting or running; choose another id",
            ));
        }
        let deadline = arrived + request.deadline.unwrap_or(self.parts.settings.deadline);
        let (outlet, ticket) = ticket::pair(&request.id);
        let key = self.next_key;
        self.next_key += 1;
        let seed = request.sampling.seed.unwrap_or_else(|| fastrand::u32(..));
        let closed = outlet.dropped();
        let entry = Entry {
            key,
            client: request.client.clone(),
            id: request.id.clone(),
            priority: request.priority,
            arrived,
            deadline,
            payload: Job::new(request, prompt, outlet, Times { arrived, deadline }, seed),
        };
        self.queue.push(entry).map_err(|full| self.full(full))?;
        self.dropped.push(Box::pin(async move {
            closed.await;
            key
        }));
        self.prepare_queued();
        Ok(ticket)
    }

    fn full(&self, full: Full) -> RequestError {
        let parallel = self.parts.settings.parallel;
        let (code, limit, wait) = match full {
            Full::Queue { limit } => (ErrorCode::QueueFull, limit, self.queue.len()),
            Full::Share { limit } => (ErrorCode::ShareExceeded, limit, limit),
        };
        RequestError::new(code, full.to_string())
            .with_numbers(limit, limit + 1)
            .retry_after(self.service_time.retry_after_ms(wait, parallel))
    }

    /// Renders and tokenises, beside this task, what came in while no engine could.
    fn prepare_queued(&mut self) {
        let Some(prompter) = self.parts.view.borrow().prompter.clone() else { return };
        let context = self.limits.context;
        for (key, job) in self.queue.payloads_mut() {
            if job.prompt.is_some() || std::mem::replace(&mut job.preparing, true) {
                continue;
            }
            let (prompter, engine) = (prompter.clone(), self.parts.engine.clone());
            let (input, commands) = (job.request.input.clone(), self.parts.commands.clone());
            tokio::spawn(async move {
                let prompt = prompt::prepare(&input, &prompter, &engine, context).await;
                if let Some(commands) = commands.upgrade() {
                    let _owner_gone = commands.send(Command::Prepared { key, prompt }).await;
                }
            });
        }
    }

    fn prepared(&mut self, key: u64, prompt: Result<Option<Prompt>, RequestError>) {
        match prompt {
            Ok(prompt) => {
                if let Some((_, job)) = self.queue.payloads_mut().find(|(other, _)| *other == key) {
                    // None: the engine went away meanwhile; the next vocabulary brings the next try.
                    job.prompt = prompt;
                    job.preparing = false;
                }
            }
            Err(error) => {
                if let Some(entry) = self.queue.remove(key) {
                    self.finish(entry.payload, End::Other { outcome: Outcome::Failed, error });
                }
            }
        }
    }

    async fn event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Loading => {
                self.parts.view.send_modify(|view| view.failed = None);
                self.publish_model("loading", None);
            }
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
            EngineEvent::Step(step) => self.step(step, now()).await,
            EngineEvent::Embedded(embedded) => self.embedded(embedded),
            EngineEvent::Ended { reason } => {
                self.engine_gone(&reason);
                self.parts.status.update(|status| {
                    if let Some(engine) = &mut status.engine {
                        engine.restarts += 1;
                    }
                });
                self.publish_model("loading", None);
            }
            EngineEvent::Failed { reason } => {
                self.engine_gone(&reason);
                self.parts.view.send_modify(|view| view.failed = Some(reason.clone()));
                let queued: Vec<u64> = self.queue.iter().map(|entry| entry.key).collect();
                for entry in queued.into_iter().filter_map(|key| self.queue.remove(key)).collect::<Vec<_>>() {
                    let error = model_unavailable(&reason);
                    self.finish(entry.payload, End::Other { outcome: Outcome::Failed, error });
                }
                self.publish_model("failed", Some(reason));
            }
        }
    }

    fn engine_ready(&mut self, ready: &Ready) {
        self.ready = true;
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
        self.publish_model("ready", None);
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

    /// The engine is gone, and with it whatever ran.
    fn engine_gone(&mut self, reason: &str) {
        self.ready = false;
        self.parts.view.send_modify(|view| view.prompter = None);
        self.parts.status.update(|status| status.allocated_context = 0);
        for (_, slot) in std::mem::take(&mut self.slots) {
            self.queue.ended(&slot.client);
            if let Some(job) = slot.job {
                let message = format!("{reason} before the answer was complete; ask again");
                let error = RequestError::new(ErrorCode::Internal, message);
                self.finish(job, End::Other { outcome: Outcome::Failed, error });
            }
        }
    }

    async fn step(&mut self, step: Step, now: Instant) {
        for mut output in step.outputs {
            let key = output.sequence;
            let Some(slot) = self.slots.get_mut(&key) else { continue };
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

    /// The job of a running sequence, unless it has its outcome.
    pub(super) fn job_mut(&mut self, key: u64) -> Option<&mut Job> {
        self.slots.get_mut(&key)?.job.as_mut()
    }

    /// The engine is done with a sequence: its slot is free, and its request, where it has no outcome yet, ends so.
    pub(super) fn sequence_ended(&mut self, key: u64, end: End) {
        let Some(slot) = self.slots.remove(&key) else { return };
        self.queue.ended(&slot.client);
        if let Some(job) = slot.job {
            self.finish(job, end);
        }
    }

    async fn cancel(&mut self, client: &Client, id: &str) -> bool {
        let Some(key) = self.key_of(client, id) else { return false };
        let error = RequestError::new(ErrorCode::Cancelled, "cancelled by its client");
        self.end(key, End::Other { outcome: Outcome::Cancelled, error }).await;
        true
    }

    async fn ticket_dropped(&mut self, key: u64) {
        let error = RequestError::new(ErrorCode::Cancelled, "its client has gone");
        self.end(key, End::Other { outcome: Outcome::Cancelled, error }).await;
    }

    async fn deadlines(&mut self, now: Instant) {
        let late: Vec<u64> = self.live().filter(|(_, job)| job.deadline <= now).map(|(key, _)| key).collect();
        for key in late {
            let error = RequestError::new(ErrorCode::Expired, "its deadline has passed");
            self.end(key, End::Other { outcome: Outcome::Expired, error }).await;
        }
        if self.drain.as_ref().is_some_and(|drain| drain.until <= now) {
            let rest: Vec<u64> = self.live().map(|(key, _)| key).collect();
            for key in rest {
                self.end(key, End::Other { outcome: Outcome::Failed, error: draining() }).await;
            }
        }
    }

    /// All that have no outcome yet.
    fn live(&self) -> impl Iterator<Item = (u64, &Job)> {
        let queued = self.queue.iter().map(|entry| (entry.key, &entry.payload));
        let running = self.slots.iter().filter_map(|(key, slot)| Some((*key, slot.job.as_ref()?)));
        queued.chain(running)
    }

    fn key_of(&self, client: &Client, id: &str) -> Option<u64> {
        let same = |job: &Job| job.request.client == *client && job.request.id == id;
        self.live().find(|(_, job)| same(job)).map(|(key, _)| key)
    }

    /// Ends a request wherever it is. A running one's slot stays taken until the engine confirms.
    async fn end(&mut self, key: u64, end: End) {
        if let Some(entry) = self.queue.remove(key) {
            self.finish(entry.payload, end);
        } else if let Some(job) = self.slots.get_mut(&key).and_then(|slot| slot.job.take()) {
            self.finish(job, end);
            // Where the engine is gone, its end frees the slot.
            let _engine_gone = self.parts.engine.stop(key).await;
        }
    }

    fn finish(&mut self, job: Job, end: End) {
        let ended = now();
        let (outcome, way_in) = (end.outcome(), job.request.way_in);
        let took = ended.duration_since(job.arrived);
        if let Some(in_engine) = job.in_engine(ended).filter(|_| outcome == Outcome::Completed) {
            self.service_time.add(in_engine);
        }
        if let Some(per_token) = job.per_token() {
            self.parts.metrics.time_per_token(per_token);
        }
        self.parts.metrics.finished(way_in, outcome, took);
        let (prompt_tokens, completion_tokens) = job.token_counts();
        log::info!(target: "temperd::dispatch", way_in = way_in.as_str(), outcome = outcome.as_str(), prompt_tokens,
            completion_tokens, seconds = took.as_secs_f64(); "request ended");
        job.finish(&self.parts.settings.node, end, ended);
    }

    async fn start_what_fits(&mut self) {
        while self.ready {
            let limits = self.limits;
            let used: u32 = self.slots.values().map(|slot| slot.cells).sum();
            let free = limits.context.saturating_sub(used);
            let slot_free = self.slots.len() < self.parts.settings.parallel as usize;
            let fits = |entry: &Entry<Job>| slot_free && entry.payload.cells(limits).is_some_and(|cells| cells <= free);
            let Some(entry) = self.queue.pop_ready(fits) else { break };
            let Entry { key, client, payload: mut job, .. } = entry;
            let cells = job.cells(limits).unwrap_or(0);
            if job.embeds {
                let embed = job.embed(key, limits, now());
                self.parts.metrics.prompt_read(embed.tokens.len() as u64);
                self.slots.insert(key, Slot { client, cells, job: Some(job) });
                let _engine_gone = self.parts.engine.embed(embed).await;
                continue;
            }
            let prompter = self.parts.view.borrow().prompter.clone();
            let stop_tokens = prompter.map_or_else(Vec::new, |prompter| prompter.stop_tokens(&job.request.stop));
            let (adapter, adapter_scale) = self.adapters.chosen(job.request.adapter.as_deref());
            let start = job.start(key, stop_tokens, self.sharing(&client), limits, now());
            let start = Start { adapter, adapter_scale, ..start };
            self.parts.metrics.prompt_read(start.prompt.len() as u64);
            self.slots.insert(key, Slot { client, cells, job: Some(job) });
            // Where the engine is gone, its end comes as an event and fails the request.
            let _engine_gone = self.parts.engine.start(start).await;
        }
        for (ahead, (_, job)) in self.queue.payloads_mut().enumerate() {
            job.tell_ahead(ahead);
        }
    }

    /// Clients are told apart by a keyed hash: the engine needs no names.
    fn sharing(&self, client: &Client) -> Sharing {
        // 0 is nobody, 1 everybody.
        let own = || self.scopes.hash_one(client).max(2);
        match self.parts.settings.share_prefix {
            SharePrefix::All => Sharing { scope: 1, public: true },
            _ if client.is_anonymous() => Sharing { scope: 0, public: self.parts.settings.share_prefix.public() },
            share => Sharing { scope: own(), public: share.public() },
        }
    }

    fn publish_model(&mut self, state: &str, error: Option<String>) {
        self.parts.metrics.model_ready(self.ready);
        let draining = self.drain.is_some();
        self.parts.status.update(|status| {
            status.ready = self.ready && !draining;
            status.reasons = match (draining, self.ready) {
                (true, _) => vec!["draining".into()],
                (false, true) => Vec::new(),
                (false, false) => vec![format!("model_{state}")],
            };
            if let Some(model) = &mut status.model {
                model.state = state.into();
                model.error = error;
            }
        });
    }

    fn publish_load(&mut self) {
        let (depth, running) = (self.queue.len(), self.slots.len());
        // This is called for each token: mostly there is nothing new.
        if std::mem::replace(&mut self.load, (depth, running)) == (depth, running) {
            return;
        }
        self.parts.metrics.load(depth, running);
        self.parts.status.update(|status| {
            if let Some(queue) = &mut status.queue {
                queue.depth = u32::try_from(depth).unwrap_or(u32::MAX);
            }
            status.running = Some(u32::try_from(running).unwrap_or(u32::MAX));
        });
    }

    fn next_deadline(&self) -> Option<Instant> {
        let drain = self.drain.as_ref().filter(|drain| drain.done.is_some()).map(|drain| drain.until);
        self.live().map(|(_, job)| job.deadline).chain(drain).min()
    }

    fn finish_drain(&mut self) {
        let idle = self.live().next().is_none();
        if let Some(done) = self.drain.as_mut().filter(|_| idle).and_then(|drain| drain.done.take()) {
            let _asker_gone = done.send(());
        }
    }
}

/// tokio's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Never, where there is nothing to wait for.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
