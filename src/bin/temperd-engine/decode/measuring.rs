//! What steps cost is measured while nothing runs, in pieces: whoever comes meanwhile waits for one of them at most.

use temperd::wire::engine::{Measured, from_engine::Frame};

use super::Decoder;
use crate::{
    adapters, heap,
    measure::{Found, Measuring},
};

impl Decoder<'_> {
    /// Whether there is something to measure, and nothing else to do.
    pub fn measures(&self) -> bool {
        self.measuring.is_some()
            && self.sequences.is_empty()
            && !self.left
            && self.constraints.prepared()
            && Measuring::fits(&self.cells)
    }

    /// Measures the next piece.
    pub fn measure(&mut self) {
        if let Err(error) = self.measure_piece() {
            // Steps will show it.
            tracing::warn!("what steps cost could not be measured: {error}");
            self.interrupt();
            self.measuring = None;
        }
    }

    fn measure_piece(&mut self) -> Result<(), String> {
        self.without_adapter()?;
        // Its sequence ids are the first that nobody has; where all are taken, what was of use longest ago goes, as it would
        // for a request.
        let slots = self.measuring.as_ref().map_or(0, Measuring::slots);
        while self.cells.free_slots() < slots && self.evict() {}
        let Some(measuring) = &mut self.measuring else { return Ok(()) };
        match measuring.piece(&mut self.cells)? {
            Some(Found::Threads(threads)) => self.use_threads(threads)?,
            Some(Found::Curve(curve)) => {
                self.curve = curve;
                self.measuring = None;
                // What constraints and small contexts took in the meantime.
                heap::trim();
                let threads = self.cells.threads();
                self.link.send(Frame::Measured(Measured { threads }));
            }
            None => {}
        }
        Ok(())
    }

    fn use_threads(&mut self, threads: usize) -> Result<(), String> {
        let before = self.cells.threads();
        let threads = u32::try_from(threads).unwrap_or(before);
        if threads != before && self.cells.use_threads(threads).inspect_err(|error| self.lost(error))? {
            tracing::info!("threads of a step: {threads} instead of {before}");
        }
        Ok(())
    }

    /// Has steps made of the model as it is.
    pub(super) fn without_adapter(&mut self) -> Result<(), String> {
        if self.group != adapters::NONE {
            self.adapters.apply(self.cells.context_mut(), adapters::NONE)?;
            self.group = adapters::NONE;
        }
        Ok(())
    }

    /// Cells have been lost on their way from one context to the next.
    pub(super) fn lost(&mut self, error: &str) {
        tracing::error!("{error}");
        self.fail_all(error);
    }

    /// Leaves the cells to whatever comes. What is known by then stays so.
    pub fn interrupt(&mut self) {
        if let Some(measuring) = &mut self.measuring {
            measuring.interrupt(&mut self.cells);
        }
        self.interrupt_reading();
    }
}
