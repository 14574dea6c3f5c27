//! The whole state of the cache, moved from one context to the next.

use std::collections::HashMap;

use super::Cells;
use crate::{elastic, ledger::Ledger};

impl Cells<'_> {
    /// Empties the graveyard: what is needed is saved and restored without it, side by side and in the old order.
    ///
    /// # Errors
    /// Where llama.cpp does not take back what it gave; nothing is in the cache then.
    pub fn rebuild(&mut self) -> Result<(), String> {
        if self.graveyard.is_none() {
            return Ok(());
        }
        let state = self.save()?;
        self.context_mut().clear_kv_cache();
        self.restore(&state)
    }

    /// Allocates another number of cells, at least as many as are in use. What they hold is saved, the old context freed
    /// before the new one is made, and all of it restored: cells that several sequences share stay shared, and those in
    /// the graveyard go. Where there is no memory for it, the size stays as it was.
    ///
    /// # Errors
    /// Where not even that can be had again, or llama.cpp does not take back what it gave; nothing is in the cache then.
    pub fn resize(&mut self, cells: u32) -> Result<(), String> {
        let state = self.save()?;
        self.renew(cells);
        self.restore(&state)
    }

    /// Has steps of one row made by so many threads from now on. The crate sets the threads of a context when it is made
    /// only, so all cells move to another. False where they cannot be moved.
    ///
    /// # Errors
    /// As [`Self::resize`].
    pub fn use_threads(&mut self, threads: u32) -> Result<bool, String> {
        let cells = self.allocated();
        if !self.elastic && self.used() > 0 {
            return Ok(false);
        }
        self.contexts.threads = threads;
        if self.elastic {
            self.resize(cells)?;
        } else {
            self.renew(cells);
        }
        Ok(true)
    }

    /// Puts an empty context of so many cells in the place of this one.
    fn renew(&mut self, cells: u32) {
        let before = self.allocated();
        self.context = None;
        let made = self.contexts.make(cells).or_else(|error| {
            tracing::warn!("the KV cache stays at {before} cells: {error}");
            self.bound = before;
            self.contexts.make(before)
        });
        match made {
            Ok(context) => self.context = Some(context),
            Err(error) => {
                // Nothing can be decoded without one, and the daemon starts another engine.
                tracing::error!("{error}");
                std::process::abort();
            }
        }
    }

    /// Drops what nobody needs before a save, and says how many bytes it takes then.
    ///
    /// # Errors
    /// A sequence id that llama.cpp does not know.
    pub fn state_bytes(&mut self) -> Result<usize, String> {
        if let Some((graveyard, buried)) = &mut self.graveyard {
            *buried = 0;
            let graveyard = *graveyard;
            self.context_mut().kv_cache_seq_rm(graveyard, None, None).map_err(|error| error.to_string())?;
        }
        Ok(self.context().get_state_size())
    }

    /// Writes the state to memory that has [`Self::state_bytes`], and says how many were written.
    pub fn write_state(&self, memory: &mut [u8]) -> Result<usize, String> {
        let needed = self.context().get_state_size();
        if needed > memory.len() {
            return Err(format!("the state takes {needed} bytes, and there are {}", memory.len()));
        }
        // SAFETY: the memory is at least as large as llama.cpp has just asked for, and only this thread uses the context.
        Ok(unsafe { self.context().copy_state_data(memory.as_mut_ptr()) })
    }

    /// Fills the cells, of which none is in use, with a state that another engine of this build has written of the same model
    /// with the same settings; `held` names the cells of each sequence id in it.
    ///
    /// # Errors
    /// Where it does not fit or is not what it is said to be; nothing is in the cache then.
    pub fn enter(&mut self, state: &[u8], held: HashMap<i32, Vec<usize>>) -> Result<(), String> {
        let slots: Vec<(i32, usize)> = held.iter().map(|(slot, names)| (*slot, names.len())).collect();
        let ledger = Ledger::of(held);
        // No token more fits into as many cells as there are.
        let needed = u32::try_from(ledger.used() + 1).unwrap_or(u32::MAX);
        if !self.elastic || needed > self.most() {
            return Err(format!("it takes {needed} cells, and there may be {}", self.most()));
        }
        if self.allocated() < needed {
            self.renew(elastic::rounded(needed).min(self.most()));
        }
        self.restore(state)?;
        let context = self.context();
        let whole = slots.iter().all(|(slot, count)| {
            context.kv_cache_seq_pos_min(*slot) == 0
                && usize::try_from(context.kv_cache_seq_pos_max(*slot) + 1) == Ok(*count)
        });
        if !whole {
            self.clear();
            return Err("its cells are not those of its table".to_owned());
        }
        self.free.retain(|slot| !slots.iter().any(|(taken, _)| taken == slot));
        self.ledger = ledger;
        Ok(())
    }

    /// The whole state but for the graveyard.
    fn save(&mut self) -> Result<Vec<u8>, String> {
        let mut state = vec![0_u8; self.state_bytes()?];
        let written = self.write_state(&mut state)?;
        state.truncate(written);
        Ok(state)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        // SAFETY: the bytes are those that a context of the same model and settings has written, in this process or in one of
        // the same build; what has come from another was checked to be whole.
        let read = unsafe { self.context_mut().set_state_data(state) };
        if read != state.len() || read == 0 {
            self.clear();
            return Err(format!("the KV cache took back {read} of {} bytes", state.len()));
        }
        Ok(())
    }
}
