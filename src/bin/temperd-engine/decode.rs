//! The batch loop's body: sequences join and leave between decode steps, and each step decodes for all of them. What
//! goes into a step is decided by `batch`, `prefix` and `lookup`, which are pure.

use std::time::Instant;

use llama_cpp_2::{llama_batch::LlamaBatch, token::data_array::LlamaTokenDataArray, vocab::LlamaVocab};
use temperd::wire::engine::{Busy, SequenceOutput, Start, Step, from_engine::Frame};

use self::{images::Images, operate::Limits, room::Decoded};
use crate::{
    adapters::{self, Group, Member, Turns},
    answer::finished,
    batch::{Due, Part, Wish},
    cells::Cells,
    constraint::Constraints,
    curve::{Curve, Size},
    handover::Identity,
    heap,
    link::Link,
    load::Plan,
    lora::Adapters,
    measure::Measuring,
    prefix,
    sequence::Sequence,
};

mod compose;
mod images;
mod leave;
mod measuring;
mod operate;
mod parking;
mod room;
mod rows;

/// So many times nothing was to be done, 5 s apart, before cells are given back: a pause between two questions is shorter.
const RESTS: u32 = 12;
/// Of a step that takes longer, in seconds, the daemon is told ahead: it would take the silence for a hang one day.
const LONG: f64 = 1.0;
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
    /// What is to be measured still.
    measuring: Option<Measuring<'a>>,
    /// System prompts of the configuration.
    images: Images,
    adapters: Adapters,
    turns: Turns,
    /// Whose adapter is applied to the context.
    group: Group,
    /// The beginning of time for `turns`.
    began: Instant,
    /// In order of arrival.
    sequences: Vec<Sequence>,
    kept: prefix::Cache,
    limits: Limits,
    /// Whether it has to be found anew who runs.
    unsettled: bool,
    /// Whether all has been left to another engine: no step is made any more.
    left: bool,
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
    /// A decoder that goes by this plan. `counts` are those of threads to choose from.
    pub fn new(
        cells: Cells<'a>,
        (plan, counts, images): (Plan, Vec<usize>, Identity),
        (adapters, constraints): (Adapters, Constraints),
        link: &'a Link,
    ) -> Self {
        // A larger context may have larger batches than the first one.
        let batch = LlamaBatch::new(plan.n_batch, 1);
        let model = cells.model();
        Self {
            link,
            vocab: model.vocab(),
            limits: Limits::none(cells.most()),
            unsettled: false,
            left: false,
            cells,
            constraints,
            plan,
            curve: Curve::assumed(model.size()),
            measuring: Some(Measuring::new(model, counts, plan.keeps_cells, plan.n_batch)),
            images: Images::new(images),
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

    /// Whether there is a step to make.
    pub fn works(&self) -> bool {
        !self.left && self.sequences.iter().any(|sequence| !sequence.waits)
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
            let written = start.written.clone();
            let mut sequence = Sequence::new(start, slot, adapter, self.vocab.n_tokens(), self.plan.context)?;
            sequence.matcher = matcher;
            let none = (!sequence.answer.may_begin()).then_some("length");
            let ended = sequence.resume(&written, |token, bytes| rows::render(&self.vocab, token, bytes))?;
            Ok((sequence, none.or(ended)))
        });
        match made {
            Ok((sequence, None)) => {
                self.sequences.push(sequence);
                self.unsettled = true;
            }
            Ok((_, Some(reason))) => {
                self.cells.release(slot, 0);
                let finished = Some(finished(reason, None));
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
        self.unsettled = false;
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
        let (began, allocated) = (Instant::now(), self.cells.allocated());
        let mut less = false;
        loop {
            self.compose(grown);
            if self.parts.is_empty() {
                return;
            }
            let seconds = self.curve.seconds(self.size());
            if seconds > LONG {
                self.link.send(Frame::Busy(Busy { seconds }));
            }
            match self.decode() {
                Decoded::Done => break,
                Decoded::Less => less = true,
                Decoded::Failed => return,
            }
        }
        self.steps += 1;
        self.rested = 0;
        self.cells.context_mut().synchronize();
        let (size, seconds) = (self.size(), began.elapsed().as_secs_f64());
        if changed {
            self.turns.changed(seconds - self.curve.seconds(size));
        } else if self.cells.allocated() == allocated && !less {
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
        self.members.extend(self.sequences.iter().filter(|sequence| !sequence.waits).map(member));
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

    /// Called now and then while nothing runs: after some time the cells that nobody needs are given back.
    pub fn rest(&mut self) {
        if !self.sequences.is_empty() {
            // They wait for room. There may be memory by now that was not there before.
            self.cells.try_again();
            self.unsettled = true;
            return;
        }
        self.rested += 1;
        if self.rested < RESTS {
            return;
        }
        self.cells.try_again();
        if let Some(size) = self.cells.smaller()
            && let Err(error) = self.resize(size)
        {
            tracing::error!("{error}");
            self.fail_all(&error);
        }
        heap::trim();
        self.rested = 0;
    }

    /// Takes ended sequences out. What they have read is kept for others that begin alike.
    fn release(&mut self) {
        let (ended, running) = std::mem::take(&mut self.sequences).into_iter().partition(|sequence| sequence.ended);
        self.sequences = running;
        let ended: Vec<Sequence> = ended;
        self.unsettled |= !ended.is_empty();
        for sequence in ended {
            self.keep(sequence.as_kept());
        }
    }

    /// Keeps what others may begin with, as far as anything is kept.
    pub fn keep(&mut self, mut kept: prefix::Kept) {
        let useful = if self.plan.keeps_cells && self.limits.keeps() { kept.useful() } else { 0 };
        self.cells.remove(kept.slot, useful, kept.tokens.len());
        kept.tokens.truncate(useful);
        for kept in self.kept.insert(kept) {
            self.cells.release(kept.slot, kept.tokens.len());
        }
    }
}

fn failed(sequence: u64, error: String) -> SequenceOutput {
    SequenceOutput { sequence, finished: Some(finished("error", Some(error))), ..SequenceOutput::default() }
}
