//! The cache is left to another engine.

use temperd::wire::engine::AdapterFailed;

use super::Decoder;
use crate::{handover::Leaving, sequence::Sequence};

impl Decoder<'_> {
    /// Cells that are allocated.
    pub fn allocated(&self) -> u32 {
        self.cells.allocated()
    }

    /// Adapters that cannot be used.
    pub fn adapters_failed(&self) -> Vec<AdapterFailed> {
        self.adapters.failed()
    }

    /// Whether the cache was left to another engine, or should have been.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// Saves all cells and whose they are, and makes no step any more. Returns the bytes written.
    ///
    /// # Errors
    /// Why nothing was saved.
    pub fn leave(&mut self, leaving: &Leaving<'_>) -> Result<u64, String> {
        self.left = true;
        if !self.plan.elastic {
            return Err("the cells of this model's cache cannot be moved".to_owned());
        }
        let running = self.sequences.iter().filter(|sequence| sequence.cells() > 0).map(Sequence::as_kept);
        let owned: Vec<_> = running.chain(self.kept.in_cache().cloned()).collect();
        leaving.save(&mut self.cells, &owned)
    }
}
