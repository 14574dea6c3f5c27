//! What goes to the engine next: requests that another engine began, then the queue.

use super::Owner;
use crate::{
    config::SharePrefix,
    dispatch::{
        job::{Job, Sharing},
        now,
        readiness::Model,
        slots::{Paused, Slot},
        turn,
    },
    governor::Admit,
    request::Client,
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
    fn next_to_start(&mut self) -> Option<(u64, Paused<Job>)> {
        let point = self.orders.borrow().point;
        if self.model != Model::Ready || point.admit == Admit::Unload {
            return None;
        }
        let limits = self.limits;
        let (context, parallel) = (limits.context.min(point.context), self.parts.settings.parallel.min(point.parallel));
        let room = self.slots.room(context, parallel);
        let turn =
            turn::next(&mut self.queue, &mut self.slots, room, point.admit == Admit::Run, |job| job.cells(limits));
        for (key, leave) in turn.leaves {
            self.leaves.push(Box::pin(async move {
                leave.await;
                key
            }));
        }
        turn.starts
    }

    /// One that has ended meanwhile is no longer there.
    pub(super) fn has_leave(&mut self, key: u64) {
        if let Some((_, job)) = self.queue.payloads_mut().find(|(other, _)| *other == key) {
            job.gate.opened();
        }
    }

    async fn start(&mut self, key: u64, next: Paused<Job>) {
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
