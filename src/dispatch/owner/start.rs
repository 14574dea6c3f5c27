//! What goes to the engine next: requests that another engine began, then the queue.

use super::Owner;
use crate::{
    config::SharePrefix,
    dispatch::{
        job::{Job, Sharing},
        now,
        readiness::Model,
        slots::{Paused, Resume, Room, Slot},
    },
    governor::Admit,
    request::{Client, queue::Entry},
    wire::engine::Start,
};

impl Owner {
    pub(super) async fn start_what_fits(&mut self) {
        while let Some((key, next)) = self.next_to_start() {
            self.start(key, next).await;
        }
        for (ahead, (_, job)) in self.queue.payloads_mut().enumerate() {
            job.tell_ahead(ahead);
        }
    }

    /// Takes the next one out, if there is room for it within the operating point. Under `hold` what has begun goes on.
    fn next_to_start(&mut self) -> Option<(u64, Paused)> {
        let point = self.orders.borrow().point;
        if self.model != Model::Ready || point.admit == Admit::Unload {
            return None;
        }
        let limits = self.limits;
        let (context, parallel) = (limits.context.min(point.context), self.parts.settings.parallel.min(point.parallel));
        let room = self.slots.room(context, parallel);
        match self.slots.resume(room) {
            Resume::Take(key, paused) => return Some((key, *paused)),
            Resume::Wait => return None,
            Resume::Nobody if point.admit != Admit::Run => return None,
            Resume::Nobody => {}
        }
        self.knock(room);
        let cells = |entry: &Entry<Job>| entry.payload.cells(limits);
        let Entry { key, client, payload: job, .. } = self.queue.pop_ready_of(
            // One without tokens yet is not passed over: nobody knows its size.
            |entry| cells(entry).is_none_or(|cells| cells <= room.context),
            |entry| cells(entry).is_some_and(|cells| room.fits(cells)) && entry.payload.gate.is_open(),
        )?;
        let cells = job.cells(limits).unwrap_or(0);
        Some((key, Paused { client, cells, job }))
    }

    /// Asks for leave for all that would start now, at once: what they wait for may be one and the same. None behind them
    /// starts before they do.
    fn knock(&mut self, mut room: Room) {
        let limits = self.limits;
        for (key, job) in self.queue.payloads_mut() {
            let Some(cells) = job.cells(limits) else { return };
            if cells > room.context {
                continue;
            }
            if !room.fits(cells) {
                return;
            }
            room = room.less(cells);
            if let Some(leave) = job.gate.knock() {
                self.leaves.push(Box::pin(async move {
                    leave.await;
                    key
                }));
            }
        }
    }

    /// One that has ended meanwhile is no longer there.
    pub(super) fn has_leave(&mut self, key: u64) {
        if let Some((_, job)) = self.queue.payloads_mut().find(|(other, _)| *other == key) {
            job.gate.opened();
        }
    }

    async fn start(&mut self, key: u64, next: Paused) {
        let Paused { client, cells, mut job } = next;
        let (limits, first) = (self.limits, !job.has_run());
        if job.embeds {
            let embed = job.embed(key, limits, now());
            if first {
                self.parts.metrics.prompt_read(embed.tokens.len() as u64);
            }
            self.slots.insert(key, Slot { client, cells, job: Some(job) });
            let _engine_gone = self.parts.engine.embed(embed).await;
            return;
        }
        let prompter = self.parts.view.borrow().prompter.clone();
        let stop_tokens = prompter.map_or_else(Vec::new, |prompter| prompter.stop_tokens(&job.request.stop));
        let (adapter, adapter_scale) = self.adapters.chosen(job.request.adapter.as_deref());
        let start = job.start(key, stop_tokens, self.sharing(&client), limits, now());
        let start = Start { adapter, adapter_scale, ..start };
        if first {
            self.parts.metrics.prompt_read(start.prompt.len() as u64);
        }
        self.slots.insert(key, Slot { client, cells, job: Some(job) });
        // Where the engine is gone, its end comes as an event, and the request waits for another.
        let _engine_gone = self.parts.engine.start(start).await;
    }

    /// Clients are told apart by a keyed hash: the engine needs no names.
    fn sharing(&self, client: &Client) -> Sharing {
        use std::hash::BuildHasher as _;
        // 0 is nobody, 1 everybody.
        let own = || self.scopes.hash_one(client).max(2);
        match self.parts.settings.share_prefix {
            SharePrefix::All => Sharing { scope: 1, public: true },
            _ if client.is_anonymous() => Sharing { scope: 0, public: self.parts.settings.share_prefix.public() },
            share => Sharing { scope: own(), public: share.public() },
        }
    }
}
