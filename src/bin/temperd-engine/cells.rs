//! The cells of the KV cache, by llama.cpp's sequence ids: taken over, given back, and kept in order where results must
//! not depend on it.

use std::collections::HashMap;

use llama_cpp_2::{SeqState, context::LlamaContext, model::LlamaModel};

use crate::{contexts::Contexts, elastic, ledger::Ledger, load::Plan};

mod image;
mod park;
mod state;

/// The context with its cells.
pub struct Cells<'a> {
    /// Absent only while another takes its place.
    context: Option<LlamaContext<'a>>,
    contexts: Contexts<'a>,
    elastic: bool,
    /// Cells beyond which there was no memory when last tried.
    bound: u32,
    free: Vec<i32>,
    /// A sequence id that holds cells nobody needs any more, and how many. With it no cell is filled again before a
    /// rebuild, so that the cells of each sequence stay in the order of its tokens: attention adds up in the order of
    /// cells, and another order gives other last bits.
    graveyard: Option<(i32, usize)>,
    /// Tokens that layers with a sliding window see.
    window: Option<usize>,
    /// How many are in use.
    ledger: Ledger,
    /// Copies of the cells of sequence ids that have none.
    parked: HashMap<i32, SeqState>,
}

impl<'a> Cells<'a> {
    /// The plan's sequence ids; one more is the graveyard where cells must stay in order.
    pub fn new(context: LlamaContext<'a>, contexts: Contexts<'a>, plan: &Plan) -> Self {
        Self {
            context: Some(context),
            bound: contexts.most(),
            contexts,
            elastic: plan.elastic,
            free: (0..plan.slots).rev().collect(),
            graveyard: plan.batch_invariant.then_some((plan.slots, 0)),
            window: plan.window,
            ledger: Ledger::default(),
            parked: HashMap::new(),
        }
    }

    /// llama.cpp's context.
    pub fn context(&self) -> &LlamaContext<'a> {
        self.context.as_ref().expect("a resize puts another in its place")
    }

    /// The same, to change it.
    pub fn context_mut(&mut self) -> &mut LlamaContext<'a> {
        self.context.as_mut().expect("a resize puts another in its place")
    }

    /// The model.
    pub fn model(&self) -> &'a LlamaModel {
        self.contexts.model()
    }

    /// Cells that are allocated.
    pub fn allocated(&self) -> u32 {
        self.context().n_ctx()
    }

    /// A sequence id that holds no cell.
    pub fn slot(&mut self) -> Option<i32> {
        self.free.pop()
    }

    /// How many there are of those.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Gives back a sequence id with all its cells, of which it has `count`.
    pub fn release(&mut self, slot: i32, count: usize) {
        self.remove(slot, 0, count);
        self.parked.remove(&slot);
        self.free.push(slot);
    }

    /// Gives back a sequence id that was of use for a moment, with cells that nobody was told of. They lie behind all that
    /// were in use before, so that the order of these stays whole.
    pub fn lend_back(&mut self, slot: i32) {
        if let Err(error) = self.context_mut().kv_cache_seq_rm(slot, None, None) {
            tracing::error!("cells of slot {slot} could not be removed: {error}");
        }
        self.free.push(slot);
    }

    /// Threads of steps of one row.
    pub fn threads(&self) -> u32 {
        self.contexts.threads
    }

    /// A context beside this one, for steps of one row by so many threads.
    ///
    /// # Errors
    /// Why not.
    pub fn small_context(&self, threads: usize) -> Result<LlamaContext<'a>, String> {
        self.contexts.small(threads)
    }

    /// Notes that a step has filled `count` more cells of `slot`.
    pub fn filled(&mut self, slot: i32, count: usize) {
        self.ledger.grow(slot, count);
    }

    /// Cells in use, but for those in the graveyard.
    pub fn used(&self) -> usize {
        self.ledger.used()
    }

    /// Cells that these sequence ids hold.
    pub fn held_by(&self, slots: impl Iterator<Item = i32>) -> usize {
        self.ledger.held_by(slots)
    }

    /// Names of this sequence id's cells; what several sequences name alike is one cell.
    pub fn names(&self, slot: i32) -> &[usize] {
        self.ledger.names(slot)
    }

    /// How many cells of this sequence id, from its first, others hold too.
    pub fn shared_prefix(&self, slot: i32) -> usize {
        self.ledger.shared_prefix(slot)
    }

    /// Lets `to`, which has none, hold the first `count` cells of `from` too. Nothing is copied: a cell has several owners.
    ///
    /// # Errors
    /// A position that llama.cpp cannot count; `to` has no cells then.
    pub fn share(&mut self, from: i32, to: i32, count: usize) -> Result<(), String> {
        let shared = self.context_mut().kv_cache_seq_cp(from, to, Some(0), Some(position(count)));
        shared.map_err(|error| error.to_string())?;
        self.ledger.share(from, to, count);
        Ok(())
    }

    /// Whether the cells of `slot` are enough to go on after its first `count` tokens. Layers with a sliding window give
    /// away what it has left behind; where the window's size is not known, none may be missing.
    pub fn reach(&self, slot: i32, count: usize) -> bool {
        let first = usize::try_from(self.context().kv_cache_seq_pos_min(slot));
        first.is_ok_and(|first| first == 0 || self.window.is_some_and(|window| first + window <= count))
    }

    /// Removes the cells of the positions from `keep` to below `count` from a sequence.
    pub fn remove(&mut self, slot: i32, keep: usize, count: usize) {
        if keep >= count {
            return;
        }
        let used = self.ledger.used();
        self.ledger.truncate(slot, keep);
        let unused = used - self.ledger.used();
        let from = Some(position(keep));
        if let Some((graveyard, buried)) = &mut self.graveyard {
            *buried += unused;
            let graveyard = *graveyard;
            if let Err(error) = self.context_mut().kv_cache_seq_cp(slot, graveyard, from, None) {
                tracing::error!("cells of slot {slot} could not be kept in order: {error}");
            }
        }
        if let Err(error) = self.context_mut().kv_cache_seq_rm(slot, from, None) {
            tracing::error!("cells of slot {slot} could not be removed: {error}");
        }
    }

    /// Cells that nobody needs and that a [`Self::rebuild`] would free.
    pub fn buried(&self) -> usize {
        self.graveyard.map_or(0, |(_, buried)| buried)
    }

    /// Most cells that there may be: those of the load, as far as there was memory for them.
    pub fn most(&self) -> u32 {
        self.contexts.most().min(self.bound)
    }

    /// Lets a size be tried again for which there was no memory.
    pub fn try_again(&mut self) {
        self.bound = self.contexts.most();
    }

    /// Cells that are free.
    pub fn spare(&self) -> usize {
        (self.allocated() as usize).saturating_sub(self.used() + self.buried())
    }

    /// The larger size for `rows` more tokens, up to `most`, where none of the cells is free and `live` are those of running
    /// sequences; `None` where others have to give way.
    pub fn larger(&self, live: usize, rows: usize, most: u32) -> Option<u32> {
        self.elastic.then(|| elastic::larger(self.allocated(), live, rows, most.min(self.most()))).flatten()
    }

    /// The smaller size at rest, if there is one that holds what is in use.
    pub fn smaller(&self) -> Option<u32> {
        self.elastic.then(|| elastic::smaller(self.allocated(), self.used(), self.contexts.most())).flatten()
    }

    /// Empties all cells. Sequence ids in use are still to be released.
    pub fn clear(&mut self) {
        self.context_mut().clear_kv_cache();
        self.ledger.clear();
        if let Some((_, buried)) = &mut self.graveyard {
            *buried = 0;
        }
    }
}

fn position(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
