//! System prompts that the configuration names: their cells are in the cache before anybody asks, from an image on the disk or
//! read while nothing runs, and are the last to go.
//!
//! ```text
//!   named ── image is whole and ours ──▶ kept ◀── evicted: again when nothing runs
//!     └───── none: read in pieces ──▶ kept, and an image is written by a thread of its own
//! ```

use std::{path::PathBuf, thread, time::Instant};

use llama_cpp_2::token::LlamaToken;
use temperd::wire::engine::Prefix;

use super::Decoder;
use crate::{
    adapters,
    curve::Size,
    handover::{Identity, image},
    prefix::{Kept, Owned},
};

/// Most of them; the daemon's configuration has the same bound.
const MOST: usize = 16;
/// Share of the context that all of them may have.
const SHARE: usize = 4;
/// Whoever comes while one is being read waits so long at most, in seconds.
const PIECE: f64 = 0.5;

/// All of them.
pub(super) struct Images {
    identity: Identity,
    named: Vec<Named>,
    reading: Option<Reading>,
}

struct Named {
    name: String,
    tokens: Vec<LlamaToken>,
    /// Where its image is, if it shall have one.
    path: Option<PathBuf>,
    /// Whether the image is there and good, as far as we know; `None` before anybody has looked.
    stored: Option<bool>,
    /// It could not be had as matters stand.
    failed: bool,
}

impl Named {
    fn owned(&self) -> Owned<'_> {
        Owned { tokens: &self.tokens, public: self.tokens.len(), scope: 0, adapter: adapters::NONE }
    }
}

/// One that is being read.
struct Reading {
    index: usize,
    slot: i32,
    done: usize,
}

impl Images {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, named: Vec::new(), reading: None }
    }

    /// Matters have changed.
    pub(super) fn try_again(&mut self) {
        self.named.iter_mut().for_each(|named| named.failed = false);
    }

    /// Takes one in, in the place of another of its name. Returns its place.
    fn take(&mut self, prefix: Prefix, n_vocab: i32, context: usize) -> Result<usize, String> {
        let token = |id: u32| i32::try_from(id).ok().filter(|id| *id < n_vocab).map(LlamaToken);
        let tokens: Option<Vec<LlamaToken>> = prefix.tokens.into_iter().map(token).collect();
        let tokens = tokens.ok_or("it holds a token beyond the vocabulary")?;
        self.named.retain(|named| named.name != prefix.name);
        let all = self.named.iter().map(|named| named.tokens.len()).sum::<usize>() + tokens.len();
        if tokens.is_empty() || self.named.len() == MOST {
            return Err(format!("it is empty, or one more than {MOST}"));
        }
        if all > context / SHARE {
            return Err(format!("all system prompts together have {all} tokens, at most {} are kept", context / SHARE));
        }
        let path = Some(PathBuf::from(prefix.path)).filter(|path| !path.as_os_str().is_empty());
        self.named.push(Named { name: prefix.name, tokens, path, stored: None, failed: false });
        Ok(self.named.len() - 1)
    }
}

impl Decoder<'_> {
    /// Takes in a system prompt. Where its image is good and nothing runs, it is in the cache when this returns.
    pub fn name_prefix(&mut self, prefix: Prefix) {
        let name = prefix.name.clone();
        if !self.plan.elastic || !self.plan.keeps_cells {
            tracing::info!("system prompt {name} is not kept: cells of this model's cache cannot be moved");
            return;
        }
        match self.images.take(prefix, self.vocab.n_tokens(), self.plan.context) {
            Ok(index) if self.sequences.is_empty() && self.may_hold(index) => self.restore(index),
            Ok(_) => {}
            Err(error) => tracing::warn!("system prompt {name} is not kept: {error}"),
        }
    }

    /// Whether a system prompt is to be had, and nothing else to do.
    pub fn reads_ahead(&self) -> bool {
        self.sequences.is_empty() && !self.left && self.missing().is_some()
    }

    fn missing(&self) -> Option<usize> {
        let is_missing = |index: &usize| {
            let named = self.images.named.get(*index);
            named.is_some_and(|named| !named.failed && !self.kept.has_named(&named.tokens)) && self.may_hold(*index)
        };
        (0..self.images.named.len()).find(is_missing)
    }

    /// Whether there may be room for it without another of them having to go.
    fn may_hold(&self, index: usize) -> bool {
        let tokens = self.images.named.get(index).map_or(0, |named| named.tokens.len());
        self.limits.keeps_all() && self.kept.named_tokens() + tokens <= self.room_for_all().context / 2
    }

    /// Reads the next piece. True where one of them is in the cache that was not before.
    pub fn read_ahead(&mut self) -> bool {
        let before = self.kept.named_tokens();
        if self.images.reading.is_none()
            && let Some(index) = self.missing()
        {
            self.restore(index);
            if self.missing() == Some(index) {
                let begun = self.begin_reading(index);
                self.not_to_be_had(index, begun);
            }
        } else if let Some(reading) = self.images.reading.take() {
            let index = reading.index;
            let read = self.read_piece(reading);
            self.not_to_be_had(index, read);
        }
        self.kept.named_tokens() != before
    }

    fn not_to_be_had(&mut self, index: usize, result: Result<(), String>) {
        if let (Err(error), Some(named)) = (result, self.images.named.get_mut(index)) {
            named.failed = true;
            tracing::warn!("system prompt {} is not kept: {error}", named.name);
        }
    }

    /// Has its cells from its image, or from others that have them.
    fn restore(&mut self, index: usize) {
        let began = Instant::now();
        let Some(named) = self.images.named.get_mut(index).filter(|named| named.stored != Some(false)) else { return };
        let Some(path) = named.path.clone() else { return };
        let read = image::read(&path, &self.images.identity, &named.tokens);
        named.stored = Some(matches!(read, Ok(Some(_))));
        let (name, count) = (named.name.clone(), named.tokens.len());
        let entered = match read {
            Ok(None) => return,
            Ok(Some(_)) if self.share_with_others(index) => return,
            Ok(Some(state)) => self.enter_image(index, &state),
            Err(error) => Err(error),
        };
        match entered {
            Ok(()) => {
                let seconds = began.elapsed().as_secs_f64();
                tracing::info!("system prompt {name}: {count} tokens from its image in {seconds:.3} s");
            }
            Err(error) => {
                if let Some(named) = self.images.named.get_mut(index) {
                    named.stored = Some(false);
                }
                tracing::warn!("the image of system prompt {name} is not used, and made anew: {error}");
            }
        }
    }

    fn enter_image(&mut self, index: usize, state: &[u8]) -> Result<(), String> {
        let tokens = self.images.named.get(index).map(|named| named.tokens.clone()).unwrap_or_default();
        self.room_for(tokens.len())?;
        let slot = self.free_slot().ok_or("no sequence id is free")?;
        match self.cells.enter_sequence(slot, state, tokens.len()) {
            Ok(()) => {
                self.insert(image::kept(slot, tokens));
                Ok(())
            }
            Err(error) => {
                self.cells.release(slot, 0);
                Err(error)
            }
        }
    }

    /// Shares the cells of somebody who has all of them. False where there is nobody.
    fn share_with_others(&mut self, index: usize) -> bool {
        let Some(named) = self.images.named.get(index) else { return false };
        let best = self.kept.best(&named.owned(), |slot, count| self.cells.reach(slot, count));
        let Some(best) = best.filter(|best| best.count == named.tokens.len() && !best.parked) else { return false };
        let tokens = named.tokens.clone();
        // Not by giving up the one whose cells they are.
        let Some(slot) = self.cells.slot() else { return false };
        if self.cells.share(best.slot, slot, best.count).is_err() {
            self.cells.release(slot, 0);
            return false;
        }
        self.insert(image::kept(slot, tokens));
        true
    }

    fn begin_reading(&mut self, index: usize) -> Result<(), String> {
        let Some(named) = self.images.named.get(index) else { return Ok(()) };
        let count = named.tokens.len();
        self.without_adapter()?;
        self.room_for(count)?;
        let slot = self.free_slot().ok_or("no sequence id is free")?;
        let Some(named) = self.images.named.get(index) else { return Ok(()) };
        let mut done = 0;
        if let Some(best) = self.kept.best(&named.owned(), |slot, count| self.cells.reach(slot, count)) {
            let taken = if best.parked {
                self.cells.unpark(best.slot, slot, best.count)
            } else {
                self.cells.share(best.slot, slot, best.count)
            };
            if taken.is_ok() {
                done = best.count;
            }
        }
        self.images.reading = Some(Reading { index, slot, done });
        Ok(())
    }

    fn read_piece(&mut self, mut reading: Reading) -> Result<(), String> {
        let Reading { index, slot, done } = reading;
        let Some(named) = self.images.named.get(index) else { return Ok(()) };
        let left = named.tokens.get(done..).unwrap_or_default();
        let depth = if self.plan.looks_at_all { self.cells.used() } else { done } as f64;
        let most = left.len().min(self.cells.context().n_ubatch() as usize).min(self.plan.n_batch);
        let rows = self.curve.rows_within(PIECE, 0, depth, most).max(1).min(left.len());
        if rows == 0 {
            self.has_been_read(index, slot);
            return Ok(());
        }
        self.batch.clear();
        for (position, token) in (done..).zip(left.iter().take(rows)) {
            let position = i32::try_from(position).map_err(|error| error.to_string())?;
            self.batch.add(*token, position, &[slot], false).map_err(|error| error.to_string())?;
        }
        let began = Instant::now();
        if let Err(error) = self.cells.context_mut().decode(&mut self.batch) {
            // What of the step is in the cache is not known.
            self.cells.filled(slot, rows);
            self.cells.release(slot, done + rows);
            return Err(error.to_string());
        }
        self.cells.context_mut().synchronize();
        self.curve.observe(Size { rows, outputs: 0, depth }, began.elapsed().as_secs_f64());
        self.cells.filled(slot, rows);
        reading.done += rows;
        self.images.reading = Some(reading);
        Ok(())
    }

    fn has_been_read(&mut self, index: usize, slot: i32) {
        let Some(named) = self.images.named.get_mut(index) else { return };
        let (name, tokens) = (named.name.clone(), named.tokens.clone());
        if let Some(path) = named.path.clone().filter(|_| named.stored != Some(true)) {
            // If it cannot be written, that is tried again once the cells have had to go.
            named.stored = Some(true);
            let length = self.cells.sequence_bytes(slot);
            let write = |memory: &mut [u8]| self.cells.write_sequence(slot, memory);
            let stored = image::make(&self.images.identity, &tokens, length, write).and_then(|image| {
                let name = name.clone();
                let write = move || match image::store(&path, &image) {
                    Ok(()) => tracing::info!("system prompt {name}: its image has {} bytes", image.len()),
                    Err(error) => tracing::warn!("the image of system prompt {name} cannot be written: {error}"),
                };
                let started = thread::Builder::new().name("image".into()).spawn(write);
                started.map(|_| ()).map_err(|error| error.to_string())
            });
            if let Err(error) = stored {
                tracing::warn!("system prompt {name} has no image: {error}");
            }
        }
        tracing::info!("system prompt {name}: {} tokens are kept", tokens.len());
        self.insert(image::kept(slot, tokens));
    }

    /// Makes room for so many cells while nothing runs.
    fn room_for(&mut self, count: usize) -> Result<(), String> {
        while self.cells.spare() < count {
            match self.make_room(count) {
                Ok(true) => {}
                Ok(false) => return Err("there is no room".to_owned()),
                Err(error) => {
                    self.lost(&error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Takes it into the kept ones.
    fn insert(&mut self, kept: Kept) {
        for kept in self.kept.insert(kept) {
            self.cells.release(kept.slot, kept.tokens.len());
        }
    }

    /// Leaves what has been read so far to whoever begins alike.
    pub(super) fn interrupt_reading(&mut self) {
        let Some(Reading { index, slot, done }) = self.images.reading.take() else { return };
        let tokens = self.images.named.get(index).and_then(|named| named.tokens.get(..done));
        let tokens = tokens.unwrap_or_default().to_vec();
        self.keep(Kept { named: false, ..image::kept(slot, tokens) });
    }
}
