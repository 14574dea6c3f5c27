//! The batch loop's body: sequences join and leave between decode steps, and each step decodes for all of them. What
//! goes into a step is decided by `batch`, `prefix` and `lookup`, which are pure.

use std::{
    hash::{DefaultHasher, Hasher as _},
    time::Instant,
};

use llama_cpp_2::{
    DecodeError,
    llama_batch::LlamaBatch,
    token::{LlamaToken, data_array::LlamaTokenDataArray},
    vocab::LlamaVocab,
};
use temperd::wire::engine::{
    Finished, Heartbeat, Resized, SequenceOutput, Start, Step, TokenInfo, TopToken, from_engine::Frame,
};

use crate::{
    adapters::{self, Group, Member, Turns},
    batch::{Due, Part, Wish},
    cells::Cells,
    constraint::Constraints,
    curve::{Curve, Size},
    heap,
    link::Link,
    load::Plan,
    lora::Adapters,
    prefix, sampler,
    sequence::{Sequence, finished},
};

mod compose;

/// So many times nothing was to be done, 5 s apart, before cells are given back: a pause between two questions is shorter.
const RESTS: u32 = 12;
/// Share of the context's tokens that ended sequences may have parked.
const PARKED: usize = 2;

/// A model at work.
pub struct Decoder<'a> {
    link: &'a Link,
    vocab: LlamaVocab<'a>,
    cells: Cells<'a>,
    constraints: Constraints,
    plan: Plan,
    curve: Curve,
    adapters: Adapters,
    turns: Turns,
    /// Whose adapter is applied to the context.
    group: Group,
    /// The beginning of time for `turns`.
    began: Instant,
    /// In order of arrival.
    sequences: Vec<Sequence>,
    kept: prefix::Cache,
    /// Seconds that copying a cell out took last.
    copying: f64,
    steps: u64,
    /// How often [`Self::rest`] was called since the last step.
    rested: u32,
    /// Outputs for the next Step frame.
    outputs: Vec<SequenceOutput>,

    // Kept from step to step, so that a step allocates next to nothing.
    batch: LlamaBatch<'static>,
    members: Vec<Member>,
    wishes: Vec<Wish>,
    parts: Vec<Part>,
    /// Sequence, and the first row of the batch and number of rows whose logits were asked.
    rows: Vec<(usize, i32, usize)>,
    candidates: LlamaTokenDataArray,
    bytes: Vec<u8>,
}

impl<'a> Decoder<'a> {
    /// A decoder that goes by this plan.
    pub fn new(
        cells: Cells<'a>,
        (plan, curve): (Plan, Curve),
        (adapters, constraints): (Adapters, Constraints),
        link: &'a Link,
    ) -> Self {
        let batch = LlamaBatch::new(cells.context().n_batch() as usize, 1);
        Self {
            link,
            vocab: cells.model().vocab(),
            cells,
            constraints,
            plan,
            curve,
            adapters,
            turns: Turns::new(),
            group: adapters::NONE,
            began: Instant::now(),
            sequences: Vec::new(),
            kept: prefix::Cache::default(),
            copying: 0.0,
            steps: 0,
            rested: 0,
            outputs: Vec::new(),
            batch,
            members: Vec::new(),
            wishes: Vec::new(),
            parts: Vec::new(),
            rows: Vec::new(),
            candidates: LlamaTokenDataArray::new(Vec::new(), false),
            bytes: Vec::with_capacity(64),
        }
    }

    /// Whether nothing runs.
    pub fn idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// What the daemon watches.
    pub fn heartbeat(&self) -> Heartbeat {
        let cells: usize = self.sequences.iter().map(Sequence::cells).sum();
        Heartbeat {
            steps: self.steps,
            sequences: u32::try_from(self.sequences.len()).unwrap_or(u32::MAX),
            used_cells: u32::try_from(cells).unwrap_or(u32::MAX),
            kept_cells: u32::try_from(self.kept.tokens()).unwrap_or(u32::MAX),
            ..Heartbeat::default()
        }
    }

    /// Takes a sequence in, from the next step on, or reports why not.
    pub fn start(&mut self, mut start: Start) {
        let id = start.sequence;
        if self.sequences.iter().any(|sequence| sequence.id == id) {
            tracing::error!("sequence {id} runs already, a second start of it is ignored");
            return;
        }
        let adapter = match self.adapters.group(start.adapter, start.adapter_scale) {
            Ok(adapter) => adapter,
            Err(error) => return self.outputs.push(failed(id, error)),
        };
        let slot = if self.sequences.len() < self.plan.parallel { self.free_slot() } else { None };
        let Some(slot) = slot else {
            self.outputs.push(failed(id, format!("all {} slots are busy", self.sequences.len())));
            return;
        };
        let made = self.constraints.matcher(&mut start).and_then(|matcher| {
            let mut sequence = Sequence::new(start, slot, adapter, self.vocab.n_tokens(), self.plan.context)?;
            sequence.matcher = matcher;
            Ok(sequence)
        });
        match made {
            Ok(sequence) if sequence.answer.may_begin() => self.sequences.push(sequence),
            Ok(_) => {
                self.cells.release(slot, 0);
                let finished = Some(finished("length", None));
                self.outputs.push(SequenceOutput { sequence: id, finished, ..SequenceOutput::default() });
            }
            Err(error) => {
                self.cells.release(slot, 0);
                self.outputs.push(failed(id, error));
            }
        }
    }

    fn free_slot(&mut self) -> Option<i32> {
        if let Some(slot) = self.cells.slot() {
            return Some(slot);
        }
        self.evict().then(|| self.cells.slot()).flatten()
    }

    /// Gives up what was of use longest ago. False where nothing is kept.
    fn evict(&mut self) -> bool {
        let oldest = self.kept.evict();
        if let Some(kept) = &oldest {
            self.cells.release(kept.slot, kept.tokens.len());
        }
        oldest.is_some()
    }

    /// Ends a sequence as cancelled. One that has ended by itself meanwhile is none of ours any more.
    pub fn stop(&mut self, id: u64) {
        for sequence in self.sequences.iter_mut().filter(|sequence| sequence.id == id) {
            sequence.ended = true;
            self.outputs.push(SequenceOutput {
                sequence: id,
                text: sequence.answer.rest(),
                finished: Some(finished("cancelled", None)),
                ..SequenceOutput::default()
            });
        }
        self.release();
    }

    /// Ends every sequence with an error. What is in the KV cache is not relied on any more.
    pub fn fail_all(&mut self, why: &str) {
        for sequence in std::mem::take(&mut self.sequences) {
            self.outputs.push(failed(sequence.id, why.to_owned()));
            self.cells.release(sequence.slot, sequence.cells());
        }
        for kept in self.kept.clear() {
            self.cells.release(kept.slot, kept.tokens.len());
        }
        self.cells.clear();
    }

    /// Sends what has come together since the last time.
    pub fn flush(&mut self) {
        if !self.outputs.is_empty() {
            self.link.send(Frame::Step(Step { outputs: std::mem::take(&mut self.outputs) }));
        }
    }

    /// One decode step for all sequences.
    pub fn step(&mut self) {
        let Some(changed) = self.take_turns() else { return };
        self.begin();
        let grown = match self.grow_for_prompts() {
            Ok(grown) => grown,
            Err(error) => {
                tracing::error!("{error}");
                return self.fail_all(&error);
            }
        };
        self.draft();
        self.compose(grown);
        self.steps += 1;
        self.rested = 0;
        let (began, allocated) = (Instant::now(), self.cells.allocated());
        if !self.decode() {
            return;
        }
        self.cells.context_mut().synchronize();
        let (size, seconds) = (self.size(), began.elapsed().as_secs_f64());
        if changed {
            self.turns.changed(seconds - self.curve.seconds(size));
        } else if self.cells.allocated() == allocated {
            self.curve.observe(size, seconds);
        }
        for part in &self.parts {
            if let (Some(sequence), Some(wish)) = (self.sequences.get_mut(part.index), self.wishes.get(part.index)) {
                self.cells.filled(sequence.slot, part.count);
                // Whether drafted tokens count is known once they are verified.
                sequence.decoded(if matches!(wish.due, Due::Token { .. }) { 1 } else { part.count });
            }
        }
        for nth in 0..self.rows.len() {
            if let Some(&(index, row, count)) = self.rows.get(nth) {
                self.sample(index, row, count);
            }
        }
        self.release();
        self.park_stale(size);
    }

    /// The size of the step that was composed.
    fn size(&self) -> Size {
        let rows: usize = self.parts.iter().map(|part| part.count).sum();
        let of = |part: &Part| {
            let own = self.sequences.get(part.index).map_or(0, Sequence::cells);
            part.count as f64 * (own as f64 + part.count as f64 / 2.0)
        };
        let depth = if self.plan.looks_at_all {
            self.cells.used() as f64
        } else {
            self.parts.iter().map(of).sum::<f64>() / rows.max(1) as f64
        };
        Size { rows, outputs: self.rows.iter().map(|(_, _, count)| count).sum(), depth }
    }

    /// Where every row looks at all cells, kept ones have a price in each step. They leave the cache once they have cost
    /// what copying them out and back does, which the first one tells; one at a time, since running answers wait for it.
    fn park_stale(&mut self, size: Size) {
        if !self.plan.parks {
            return;
        }
        self.kept.pay(self.curve.of_cell(size.rows));
        if self.kept.stale(2.0 * self.copying) {
            self.park_oldest();
        }
    }

    /// Parks a kept sequence where nothing runs, so that the next question does not pay for its cells. False where there is
    /// none, or cells have no price.
    pub fn park_at_rest(&mut self) -> bool {
        self.plan.parks && self.sequences.is_empty() && self.park_oldest()
    }

    fn park_oldest(&mut self) -> bool {
        let Some((slot, count)) = self.kept.oldest() else { return false };
        let began = Instant::now();
        let given_up = match self.cells.park(slot, count) {
            Ok(()) => self.kept.park(slot, self.plan.context / PARKED),
            Err(error) => {
                tracing::warn!("cells of slot {slot} could not be parked: {error}");
                self.kept.give_up(slot).into_iter().collect()
            }
        };
        self.copying = began.elapsed().as_secs_f64() / count.max(1) as f64;
        for kept in given_up {
            self.cells.release(kept.slot, kept.tokens.len());
        }
        true
    }

    /// Applies the adapter whose turn it is, and says whether that is another than before. `None` where it cannot be
    /// applied, which those concerned have been told.
    fn take_turns(&mut self) -> Option<bool> {
        self.members.clear();
        let member = |sequence: &Sequence| Member { group: sequence.adapter, priority: sequence.priority };
        self.members.extend(self.sequences.iter().map(member));
        let group = self.turns.next(self.began.elapsed().as_secs_f64(), &self.members);
        if group == self.group {
            return Some(false);
        }
        if let Err(error) = self.adapters.apply(self.cells.context_mut(), group) {
            tracing::error!("adapter group {group}: {error}");
            self.fail_all(&format!("the engine could not change the adapter: {error}"));
            return None;
        }
        self.group = group;
        Some(true)
    }

    /// Decodes what was composed. False where it could not, which those concerned have been told.
    fn decode(&mut self) -> bool {
        loop {
            match self.cells.context_mut().decode(&mut self.batch) {
                Ok(()) => return true,
                Err(DecodeError::NoKvCacheSlot) => match self.make_room() {
                    Ok(true) => {}
                    Ok(false) => {
                        // The daemon counts cells, so this is a fault of one of us; the youngest has lost the least.
                        if let Some(youngest) = self.sequences.last_mut() {
                            tracing::error!("the KV cache is full: sequence {} is given up", youngest.id);
                            youngest.ended = true;
                            self.outputs.push(failed(youngest.id, "the KV cache has no room".to_owned()));
                        }
                        self.release();
                        return false;
                    }
                    Err(error) => {
                        tracing::error!("{error}");
                        self.fail_all(&error);
                        return false;
                    }
                },
                Err(error) => {
                    // Nothing says which sequence it was, nor what of the step is in the cache.
                    tracing::error!("decode step failed: {error}");
                    self.fail_all(&format!("the engine could not decode: {error}"));
                    return false;
                }
            }
        }
    }

    /// Allocates the cells that prompts which are being read will fill, if they are that many, before they come to it. True
    /// where it did: running answers have waited for that.
    fn grow_for_prompts(&mut self) -> Result<bool, String> {
        let live = self.cells.held_by(self.sequences.iter().map(|sequence| sequence.slot));
        let unread = |sequence: &Sequence| sequence.prompt().saturating_sub(sequence.cells());
        let unread: usize = self.sequences.iter().filter(|sequence| sequence.begun).map(unread).sum();
        match self.cells.larger(live, unread) {
            Some(size) if unread > 0 => {
                let before = self.cells.allocated();
                self.resize(size)?;
                Ok(self.cells.allocated() > before)
            }
            _ => Ok(false),
        }
    }

    /// Allocates more cells where what runs fills them, else frees those that nobody needs now. A rebuild costs a copy of
    /// all the others, so it is not done for a few.
    fn make_room(&mut self) -> Result<bool, String> {
        let live = self.cells.held_by(self.sequences.iter().map(|sequence| sequence.slot));
        let rows = usize::try_from(self.batch.n_tokens()).unwrap_or_default();
        if let Some(size) = self.cells.larger(live, rows) {
            let before = self.cells.allocated();
            self.resize(size)?;
            if self.cells.allocated() > before {
                return Ok(true);
            }
        }
        if !self.plan.batch_invariant {
            // Parked ones have no cells to give.
            let oldest = self.kept.oldest().and_then(|(slot, _)| self.kept.give_up(slot));
            if let Some(kept) = &oldest {
                self.cells.release(kept.slot, kept.tokens.len());
            }
            return Ok(oldest.is_some());
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

    /// Allocates so many cells, and tells the daemon how many there are.
    fn resize(&mut self, size: u32) -> Result<(), String> {
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

    /// Called now and then while nothing runs: after some time the cells that nobody needs are given back.
    pub fn rest(&mut self) {
        self.rested += 1;
        if self.rested < RESTS || !self.sequences.is_empty() {
            return;
        }
        if let Some(size) = self.cells.smaller()
            && let Err(error) = self.resize(size)
        {
            tracing::error!("{error}");
            self.fail_all(&error);
        }
        heap::trim();
        self.rested = 0;
    }

    /// Takes the rows of one sequence one after the other, as long as each was drafted rightly.
    fn sample(&mut self, index: usize, first: i32, count: usize) {
        let Some(sequence) = self.sequences.get_mut(index) else { return };
        let mut output = SequenceOutput { sequence: sequence.id, ..SequenceOutput::default() };
        if sequence.answer_begins() {
            output.cached_tokens = Some(u32::try_from(sequence.cached).unwrap_or(u32::MAX));
        }
        let drafted = std::mem::take(&mut sequence.draft);
        let filled = sequence.cells() + drafted.0.len();
        let mut accepted = 0;
        for (row, nth) in (first..).zip(0..count) {
            let logits = self.cells.context().get_logits_ith(row);
            let allowed = match sequence.allowed() {
                Ok(allowed) => allowed,
                Err(error) => {
                    output.finished = Some(finished("error", Some(error)));
                    sequence.ended = true;
                    break;
                }
            };
            let cells = sequence.cells();
            let token = sequence.sampler.sample(logits, cells, allowed.as_ref(), &mut self.candidates);
            let id = u32::try_from(token.0).unwrap_or_default();
            let full = sequence.cells() >= self.plan.context;
            self.bytes.clear();
            self.vocab.token_to_piece_into(token, &mut self.bytes, false, None);
            let mut taken = sequence.answer.take(id, &self.bytes, self.vocab.is_eog(token), full);
            let obeyed = sequence.obey(id, &mut taken);
            output.text.push_str(&taken.text);
            if sequence.digests {
                output.digests.push(digest(logits));
            }
            if taken.counts {
                output.tokens.push(id);
                if let Some(top) = sequence.logprobs {
                    output.logprobs.push(token_info(&self.vocab, logits, token, top));
                }
            }
            if let Some(reason) = obeyed.as_ref().map_or(Some("error"), |()| taken.end) {
                let (drafted, accepted) = sequence.drafted;
                output.finished = Some(Finished { drafted, accepted, ..finished(reason, obeyed.err()) });
                sequence.ended = true;
                break;
            }
            sequence.follow_with(token);
            if drafted.0.get(nth) != Some(&token) {
                break;
            }
            accepted += 1;
            sequence.decoded(1);
        }
        sequence.learn(drafted.1, drafted.0.len(), accepted);
        self.cells.remove(sequence.slot, sequence.cells(), filled);
        self.outputs.push(output);
    }

    /// Takes ended sequences out. What they have read is kept for others that begin alike.
    fn release(&mut self) {
        let (ended, running) = std::mem::take(&mut self.sequences).into_iter().partition(|sequence| sequence.ended);
        self.sequences = running;
        let ended: Vec<Sequence> = ended;
        for sequence in ended {
            let mut kept = sequence.into_kept();
            let useful = if self.plan.keeps_cells { kept.useful() } else { 0 };
            self.cells.remove(kept.slot, useful, kept.tokens.len());
            kept.tokens.truncate(useful);
            for kept in self.kept.insert(kept) {
                self.cells.release(kept.slot, kept.tokens.len());
            }
        }
    }
}

fn failed(sequence: u64, error: String) -> SequenceOutput {
    SequenceOutput { sequence, finished: Some(finished("error", Some(error))), ..SequenceOutput::default() }
}

fn token_info(vocab: &LlamaVocab<'_>, logits: &[f32], token: LlamaToken, top: usize) -> TokenInfo {
    let bytes = |token| vocab.token_to_piece(token, true, None);
    let (logprob, best) = sampler::logprobs(logits, token, top);
    let top = best.into_iter().map(|(token, logprob)| TopToken { bytes: bytes(token), logprob }).collect();
    TokenInfo { bytes: bytes(token), logprob, top }
}

/// Tells rows of logits apart, bit for bit.
fn digest(logits: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for logit in logits {
        hasher.write_u32(logit.to_bits());
    }
    hasher.finish()
}
