//! The operating point, and what the governor that sets it is told.

use temperd::wire::engine::{Heartbeat, Operate};

use super::Decoder;
use crate::{elastic, sequence::Sequence};

/// Where a shrink has to be looked for again after each end of a sequence, it is worth a copy of all cells from this part of
/// them on.
const WORTH_A_COPY: u32 = 8;

/// What the cache may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Cells at most.
    pub context: u32,
    /// Cells that may be allocated as matters stand.
    pub grow_to: u32,
    cache: Cache,
}

/// What may stay in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    Keep,
    Shrunk,
    LiveOnly,
}

impl Limits {
    /// Whatever was loaded.
    pub fn none(most: u32) -> Self {
        Self { context: most, grow_to: most, cache: Cache::Keep }
    }

    /// Those of a frame, of a cache that has `most` cells at most. What it does not know keeps.
    fn of(operate: &Operate, most: u32) -> Self {
        let context = if operate.context == 0 { most } else { elastic::rounded(operate.context).min(most) };
        let cache = match operate.cache.as_str() {
            "shrunk" => Cache::Shrunk,
            "live_only" => Cache::LiveOnly,
            _ => Cache::Keep,
        };
        Self { context, grow_to: elastic::rounded(operate.grow_to).min(context), cache }
    }

    /// Whether nothing is to be given back.
    pub fn keeps_all(&self) -> bool {
        self.cache == Cache::Keep
    }

    /// Whether ended sequences are kept.
    pub fn keeps(&self) -> bool {
        self.cache != Cache::LiveOnly
    }
}

impl Decoder<'_> {
    /// Has the cache obey from now on, between two steps: who does not fit is parked, and what is not allowed any more goes
    /// back. A cache whose cells cannot be moved keeps its size, and whoever runs in it goes on; what ended goes there too.
    pub fn operate(&mut self, operate: &Operate) {
        self.cells.try_again();
        self.images.try_again();
        self.limits = Limits::of(operate, self.cells.most());
        if !self.limits.keeps() {
            for kept in self.kept.clear() {
                self.cells.release(kept.slot, kept.tokens.len());
            }
        }
        self.unsettled = true;
        self.settle();
        self.trim(1);
    }

    /// Gives back what is over after a sequence has ended, where that is asked for and worth the copy.
    pub(super) fn trim_after_end(&mut self) {
        if self.limits.cache != Cache::Keep {
            self.trim(self.cells.allocated() / WORTH_A_COPY);
        }
    }

    /// Gives back at least `worth` cells, if so many are over: those of ended sequences, oldest first, as far as needed.
    fn trim(&mut self, worth: u32) {
        if !self.plan.elastic {
            return;
        }
        let allocated = self.cells.allocated();
        let size = elastic::trimmed(allocated, self.wanted(), self.limits.context);
        if allocated - size < worth.max(1) {
            return;
        }
        while self.cells.used() > size as usize && self.give_up_oldest() {}
        if self.cells.used() > size as usize {
            // What runs has been made to fit the context, so this is a fault of ours; the cells are theirs.
            tracing::error!("{} cells are in use, and {size} are allowed", self.cells.used());
            return;
        }
        if let Err(error) = self.resize(size) {
            tracing::error!("{error}");
            self.fail_all(&error);
        }
    }

    /// Cells that are of use: those that there are, or less where the rest shall be given back.
    fn wanted(&self) -> usize {
        match self.limits.cache {
            Cache::Keep => self.cells.allocated() as usize,
            Cache::Shrunk => self.live_tokens() + self.cached_tokens(),
            Cache::LiveOnly => self.live_tokens(),
        }
    }

    /// Cells to which the cache may grow for what runs: one alone may have all that it needs, so that something always gets on.
    pub(super) fn growth(&self) -> u32 {
        let room = self.room_for_all();
        let mut running = self.sequences.iter().filter(|sequence| !sequence.waits);
        let most = match (running.next(), running.next()) {
            (Some(alone), None) => room.context.min(room.ceiling.max(alone.most(self.plan.context))),
            _ => room.ceiling,
        };
        let most = if self.limits.cache == Cache::Keep { most } else { most.min(self.wanted()) };
        elastic::rounded(u32::try_from(most).unwrap_or(u32::MAX))
    }

    /// What the daemon watches.
    pub fn heartbeat(&self) -> Heartbeat {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Heartbeat {
            steps: self.steps,
            sequences: narrow(self.sequences.len()),
            used_cells: narrow(self.sequences.iter().map(Sequence::cells).sum()),
            kept_cells: narrow(self.kept.tokens()),
            live_tokens: narrow(self.live_tokens()),
            cached_tokens: narrow(self.cached_tokens()),
            parked: narrow(self.parked()),
            ..Heartbeat::default()
        }
    }

    /// Sequences that wait for room.
    pub fn parked(&self) -> usize {
        self.sequences.iter().filter(|sequence| sequence.waits).count()
    }

    /// Cells that only ended sequences hold.
    fn cached_tokens(&self) -> usize {
        self.cells.used() - self.cells.held_by(self.sequences.iter().map(|sequence| sequence.slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_within_what_was_loaded() {
        let frame = |context, grow_to, cache: &str| Operate { context, grow_to, pace: 1.0, cache: cache.to_owned() };
        assert_eq!(Limits::of(&frame(9000, 9000, "keep"), 8192), Limits::none(8192));
        assert_eq!(Limits::of(&frame(0, 8192, ""), 8192), Limits::none(8192));
        let limits = Limits::of(&frame(4000, 8192, "live_only"), 8192);
        assert_eq!((limits.context, limits.grow_to, limits.keeps()), (4096, 4096, false));
        let limits = Limits::of(&frame(4096, 100, "shrunk"), 8192);
        assert_eq!((limits.context, limits.grow_to, limits.keeps()), (4096, 256, true));
    }
}
