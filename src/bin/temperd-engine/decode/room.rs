//! Room in the KV cache, made while a step needs it.

use std::time::Instant;

use llama_cpp_2::DecodeError;
use temperd::wire::engine::{Resized, from_engine::Frame};

use super::{Decoder, failed};
use crate::adapters;

/// What became of a composed step.
pub(super) enum Decoded {
    /// Its rows are there.
    Done,
    /// It needs more cells than there are: drafts or a sequence have been left out, and it has to be composed without them.
    Less,
    /// It could not be decoded, which those concerned have been told.
    Failed,
}

impl Decoder<'_> {
    /// Decodes what was composed.
    pub(super) fn decode(&mut self) -> Decoded {
        let rows = usize::try_from(self.batch.n_tokens()).unwrap_or_default();
        loop {
            // Where cells can be counted llama.cpp is not asked for more than there are: it would warn of it.
            let lacking = self.plan.elastic && self.cells.spare() < rows;
            let decoded = if lacking {
                Err(DecodeError::NoKvCacheSlot)
            } else {
                self.cells.context_mut().decode(&mut self.batch)
            };
            match decoded {
                Ok(()) => return Decoded::Done,
                Err(DecodeError::NoKvCacheSlot) => match self.make_room(rows) {
                    Ok(true) => {}
                    Ok(false) if self.drop_drafts() || self.give_way() => return Decoded::Less,
                    Ok(false) => {
                        self.give_up_youngest();
                        return Decoded::Failed;
                    }
                    Err(error) => {
                        tracing::error!("{error}");
                        self.fail_all(&error);
                        return Decoded::Failed;
                    }
                },
                Err(error) => {
                    // Nothing says which sequence it was, nor what of the step is in the cache.
                    tracing::error!("decode step failed: {error}");
                    self.fail_all(&format!("the engine could not decode: {error}"));
                    return Decoded::Failed;
                }
            }
        }
    }

    /// Drafts only save time, and nobody shall have to wait for them. False where there are none.
    fn drop_drafts(&mut self) -> bool {
        let mut any = false;
        for sequence in &mut self.sequences {
            any |= !sequence.draft.0.is_empty();
            sequence.expect(None, 0);
        }
        any
    }

    /// The daemon counts cells, so that they run out is a fault of one of us; the youngest has lost the least.
    fn give_up_youngest(&mut self) {
        if let Some(youngest) = self.sequences.iter_mut().rfind(|sequence| !sequence.waits) {
            tracing::error!("the KV cache is full: sequence {} is given up", youngest.id);
            youngest.ended = true;
            self.outputs.push(failed(youngest.id, "the KV cache has no room".to_owned()));
        }
        self.release();
    }

    /// Allocates the cells that prompts which are being read will fill, if they are that many, before they come to it. True
    /// where it did: running answers have waited for that.
    pub(super) fn grow_for_prompts(&mut self) -> Result<bool, String> {
        let live = self.cells.held_by(self.sequences.iter().map(|sequence| sequence.slot));
        let reads = self.sequences.iter().filter(|sequence| sequence.begun && !sequence.waits);
        let unread: usize = reads.map(|sequence| sequence.to_read().saturating_sub(sequence.cells())).sum();
        match self.cells.larger(live, unread, self.growth()) {
            Some(size) if unread > 0 => {
                let before = self.cells.allocated();
                self.resize(size)?;
                Ok(self.cells.allocated() > before)
            }
            _ => Ok(false),
        }
    }

    /// Makes room for so many more tokens: allocates more cells where what runs fills them, else frees those that nobody
    /// needs now. A rebuild costs a copy of all the others, so it is not done for a few.
    pub(super) fn make_room(&mut self, rows: usize) -> Result<bool, String> {
        let live = self.cells.held_by(self.sequences.iter().map(|sequence| sequence.slot));
        if let Some(size) = self.cells.larger(live, rows, self.growth()) {
            let before = self.cells.allocated();
            self.resize(size)?;
            if self.cells.allocated() > before {
                return Ok(true);
            }
        }
        if !self.plan.batch_invariant {
            return Ok(self.give_up_oldest());
        }
        if self.cells.buried() < self.cells.allocated() as usize / 8 {
            for _ in 0..self.kept.len().div_ceil(2) {
                self.evict();
            }
        }
        let gained = self.cells.buried() > 0;
        self.cells.rebuild()?;
        Ok(gained)
    }

    /// Gives up the ended sequence in the cache that was of use longest ago; parked ones have no cells to give. False where
    /// there is none.
    pub(super) fn give_up_oldest(&mut self) -> bool {
        let oldest = self.kept.oldest().and_then(|(slot, _)| self.kept.give_up(slot));
        if let Some(kept) = &oldest {
            self.cells.release(kept.slot, kept.tokens.len());
        }
        oldest.is_some()
    }

    /// Allocates so many cells, and tells the daemon how many there are.
    pub(super) fn resize(&mut self, size: u32) -> Result<(), String> {
        let began = Instant::now();
        self.cells.resize(size)?;
        // The new context has no adapter yet.
        let group = std::mem::replace(&mut self.group, adapters::NONE);
        if group != self.group {
            self.adapters.apply(self.cells.context_mut(), group)?;
            self.group = group;
        }
        let (allocated, seconds) = (self.cells.allocated(), began.elapsed().as_secs_f64());
        tracing::debug!("the KV cache has {allocated} cells, after {seconds:.3} s");
        self.link.send(Frame::Resized(Resized { allocated_context: allocated }));
        Ok(())
    }
}
