//! The one task that owns every accepted request.

use std::{
    future::Future,
    hash::RandomState,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Adapters, Admit, Command, Demand, Settings, View, draining,
    gate::Gate,
    job::{End, Job, Limits, Times},
    model_unavailable, now,
    prompt::{self, Prompt},
    readiness::Model,
    service_time::ServiceTime,
    slots::Slots,
    ticket::{self, Ticket},
};
use crate::{
    engine::{EngineEvent, EngineHandle, operate::Orders},
    request::{
        Client, ErrorCode, Outcome, RequestError,
        queue::{self, Entry, Full, Queue},
    },
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::v1,
};

mod events;
mod start;

/// What the owner is made from.
pub(super) struct Parts {
    pub(super) settings: Settings,
    pub(super) engine: EngineHandle,
    pub(super) status: StatusBoard,
    pub(super) metrics: Arc<Metrics>,
    pub(super) view: watch::Sender<View>,
    /// To the governor's shell.
    pub(super) demand: watch::Sender<Demand>,
    /// Weak: the owner must not keep itself alive.
    pub(super) commands: mpsc::WeakSender<Command>,
}

type KeyLater = Pin<Box<dyn Future<Output = u64> + Send>>;

/// The owner's state.
pub(super) struct Owner {
    parts: Parts,
    queue: Queue<Job>,
    slots: Slots<Job>,
    /// Each resolves to the key of a request whose ticket was dropped.
    dropped: FuturesUnordered<KeyLater>,
    /// Each resolves to the key of a request that has leave to run.
    leaves: FuturesUnordered<KeyLater>,
    model: Model,
    /// What is to be in force.
    orders: watch::Receiver<Orders>,
    /// Announced while answers wait for an engine.
    pause: Option<v1::Pause>,
    load_began: Option<Instant>,
    last_load: Option<Duration>,
    /// What is admitted; what starts is bounded by the operating point too.
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
    pub(super) fn new(parts: Parts, orders: watch::Receiver<Orders>) -> Self {
        let settings = &parts.settings;
        let share = queue::share(settings.share, settings.queue, settings.parallel);
        Self {
            queue: Queue::new(settings.queue as usize, share),
            slots: Slots::default(),
            dropped: FuturesUnordered::new(),
            leaves: FuturesUnordered::new(),
            model: Model::Loading { crashed: None },
            orders,
            pause: None,
            load_began: None,
            last_load: None,
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
                Some(event) = events.recv() => self.event(event),
                Ok(()) = self.orders.changed() => self.publish_model(),
                Some(key) = self.leaves.next() => self.has_leave(key),
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
                let Admit { request, prompt, gate, arrived, reply } = *admit;
                let admitted = self.admit(request, prompt, gate, arrived.into_std());
                // Where the asker is gone the ticket is dropped with the reply, which cancels the request.
                let _asker_gone = reply.send(admitted);
            }
            Command::Room { client, reply } => {
                let _asker_gone = reply.send(self.queue.room(&client).map_err(|full| self.full(full)));
            }
            Command::Cancel { client, id, reply } => {
                let found = self.cancel(&client, &id).await;
                let _asker_gone = reply.send(found);
            }
            Command::Prepared { key, prompt } => self.prepared(key, prompt),
            Command::Drain { until, done } => {
                self.drain = Some(Drain { until: until.into_std(), done: Some(done) });
                self.parts.view.send_modify(|view| view.draining = true);
                self.publish_model();
            }
        }
    }

    fn admit(
        &mut self,
        mut request: crate::request::Request,
        prompt: Option<Prompt>,
        gate: Gate,
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
        let mut job = Job::new(request, prompt, outlet, Times { arrived, deadline }, seed);
        job.gate = gate;
        let entry = Entry {
            key,
            client: job.request.client.clone(),
            id: job.request.id.clone(),
            priority: job.request.priority,
            arrived,
            deadline,
            payload: job,
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
                    job.prompt = prompt;
                    job.preparing = false;
                }
                // Without a prompt: the engine went away meanwhile. Another may be there already.
                self.prepare_queued();
            }
            Err(error) => {
                if let Some(entry) = self.queue.remove(key) {
                    self.finish(entry.payload, End::Other { outcome: Outcome::Failed, error });
                }
            }
        }
    }

    /// The job of a running sequence, unless it has its outcome.
    pub(super) fn job_mut(&mut self, key: u64) -> Option<&mut Job> {
        self.slots.get_mut(key)?.job.as_mut()
    }

    /// The engine is done with a sequence: its slot is free, and its request, where it has no outcome yet, ends so.
    pub(super) fn sequence_ended(&mut self, key: u64, end: End) {
        let Some(slot) = self.slots.remove(key) else { return };
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
        self.queue.iter().map(|entry| (entry.key, &entry.payload)).chain(self.slots.live())
    }

    fn key_of(&self, client: &Client, id: &str) -> Option<u64> {
        let same = |job: &Job| job.request.client == *client && job.request.id == id;
        self.live().find(|(_, job)| same(job)).map(|(key, _)| key)
    }

    /// Ends a request wherever it is. A running one's slot stays taken until the engine confirms.
    async fn end(&mut self, key: u64, end: End) {
        if let Some(entry) = self.queue.remove(key) {
            self.finish(entry.payload, end);
        } else if let Some(paused) = self.slots.remove_paused(key) {
            self.queue.ended(&paused.client);
            self.finish(paused.job, end);
        } else if let Some(job) = self.slots.get_mut(key).and_then(|slot| slot.job.take()) {
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

    fn publish_load(&mut self) {
        let (depth, running) = (self.queue.len(), self.slots.len());
        let demand = Demand { requests: u32::try_from(depth + running).unwrap_or(u32::MAX), admitted: self.next_key };
        self.parts.demand.send_if_modified(|before| std::mem::replace(before, demand) != demand);
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

/// Never, where there is nothing to wait for.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
