//! Cells that are copied out of the cache and back into it.

use llama_cpp_2::LlamaStateSeqFlags;

use super::{Cells, position};

impl Cells<'_> {
    /// Keeps a copy of the `count` cells of `slot` instead of the cells.
    ///
    /// # Errors
    /// Where llama.cpp does not give one; the cells are still there.
    pub fn park(&mut self, slot: i32, count: usize) -> Result<(), String> {
        let state =
            self.context().state_seq_get(slot, LlamaStateSeqFlags::empty()).map_err(|error| error.to_string())?;
        self.parked.insert(slot, state);
        self.remove(slot, 0, count);
        Ok(())
    }

    /// Lets `to`, which has none, have cells like the first `count` of those that were parked of `from`, which stay parked.
    ///
    /// # Errors
    /// Where there is nothing parked or no room for it; `to` has no cells then.
    pub fn unpark(&mut self, from: i32, to: i32, count: usize) -> Result<(), String> {
        let state = self.parked.get(&from).ok_or_else(|| format!("nothing of slot {from} is parked"))?;
        let context = self.context.as_mut().expect("a resize puts another in its place");
        context.state_seq_set(state, to).map_err(|error| error.to_string())?;
        let beyond = context.kv_cache_seq_rm(to, Some(position(count)), None);
        beyond.map_err(|error| error.to_string())?;
        self.filled(to, count);
        Ok(())
    }

    /// Keeps a copy of the `count` cells of `slot` but for the first `prefix`, which others hold too, instead of the cells.
    ///
    /// # Errors
    /// Where llama.cpp does not give one; the slot has no cells and no copy then.
    pub fn park_own(&mut self, slot: i32, prefix: usize, count: usize) -> Result<(), String> {
        // A state holds all that its sequence id does. Nothing is freed by this.
        let parked = match self.context_mut().kv_cache_seq_rm(slot, Some(0), Some(position(prefix))) {
            Ok(_) => self.context().state_seq_get(slot, LlamaStateSeqFlags::empty()).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let parked = parked.map(|state| {
            self.parked.insert(slot, state);
        });
        self.remove(slot, 0, count);
        parked
    }

    /// Gives `slot` back its `count` cells: the first `prefix` are those of `holder`, the others were parked.
    ///
    /// # Errors
    /// Where there is no room, or no copy; the slot has no cells and no copy then.
    pub fn unpark_own(&mut self, slot: i32, holder: i32, prefix: usize, count: usize) -> Result<(), String> {
        let state = self.parked.remove(&slot).ok_or_else(|| format!("nothing of slot {slot} is parked"))?;
        // A state takes the place of all that its sequence id has, so what is shared comes second.
        self.context_mut().state_seq_set(&state, slot).map_err(|error| error.to_string())?;
        self.share(holder, slot, prefix).inspect_err(|_| {
            // It fails before anything is changed, by the position alone.
            self.filled(slot, count - prefix);
            self.remove(slot, 0, count);
        })?;
        self.filled(slot, count - prefix);
        Ok(())
    }

    /// Forgets the copy of this slot's cells.
    pub fn forget(&mut self, slot: i32) {
        self.parked.remove(&slot);
    }
}
