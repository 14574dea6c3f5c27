//! The cells of one sequence as bytes, to be kept outside this process.

use llama_cpp_2::LlamaStateSeqFlags;

use super::Cells;

impl Cells<'_> {
    /// Bytes that the cells of this sequence id take.
    pub fn sequence_bytes(&self, slot: i32) -> usize {
        self.context().state_seq_get_size_ext(slot, LlamaStateSeqFlags::empty())
    }

    /// Writes them to memory that has [`Self::sequence_bytes`], and says how many were written.
    ///
    /// # Errors
    /// Memory that is too small.
    pub fn write_sequence(&self, slot: i32, memory: &mut [u8]) -> Result<usize, String> {
        let needed = self.sequence_bytes(slot);
        if needed > memory.len() {
            return Err(format!("the cells take {needed} bytes, and there are {}", memory.len()));
        }
        // SAFETY: the memory is at least as large as llama.cpp has just asked for, and only this thread uses the context.
        Ok(unsafe { self.context().state_seq_get_data_ext(memory.as_mut_ptr(), slot, LlamaStateSeqFlags::empty()) })
    }

    /// Gives `slot`, which has none, the `count` cells that [`Self::write_sequence`] has written, in this process or another one
    /// of the same build with the same model and settings.
    ///
    /// # Errors
    /// Where there is no room, or they are not what they are said to be; `slot` has none then.
    pub fn enter_sequence(&mut self, slot: i32, state: &[u8], count: usize) -> Result<(), String> {
        // SAFETY: the bytes are those that a context of the same model and settings has written, and were checked to be whole.
        let taken = unsafe { self.context_mut().state_seq_set_data_ext(state, slot, LlamaStateSeqFlags::empty()) };
        let context = self.context();
        let whole = context.kv_cache_seq_pos_min(slot) == 0
            && usize::try_from(context.kv_cache_seq_pos_max(slot) + 1) == Ok(count);
        if taken && whole {
            self.filled(slot, count);
            return Ok(());
        }
        if let Err(error) = self.context_mut().kv_cache_seq_rm(slot, None, None) {
            tracing::error!("cells of slot {slot} could not be removed: {error}");
        }
        Err("the KV cache did not take them".to_owned())
    }
}
