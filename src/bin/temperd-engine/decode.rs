//! The batch loop's body: sequences join and leave between decode steps, and each step decodes for all of them.

use llama_cpp_2::{
    DecodeError,
    context::LlamaContext,
    llama_batch::LlamaBatch,
    model::LlamaModel,
    token::{LlamaToken, data_array::LlamaTokenDataArray},
    vocab::LlamaVocab,
};
use temperd::wire::engine::{Heartbeat, SequenceOutput, Start, Step, TokenInfo, TopToken, from_engine::Frame};

use crate::{
    batch::{self, Due, Part},
    link::Link,
    sampler,
    sequence::{Sequence, finished},
};

/// A model at work.
pub struct Decoder<'a> {
    link: &'a Link,
    vocab: LlamaVocab<'a>,
    context: LlamaContext<'a>,
    /// In order of arrival.
    sequences: Vec<Sequence>,
    free_slots: Vec<i32>,
    steps: u64,
    /// Outputs for the next Step frame.
    outputs: Vec<SequenceOutput>,

    // Kept from step to step, so that a step allocates next to nothing.
    batch: LlamaBatch<'static>,
    due: Vec<Due>,
    parts: Vec<Part>,
    /// Sequence and row of the batch whose logits were asked.
    rows: Vec<(usize, i32)>,
    candidates: LlamaTokenDataArray,
    bytes: Vec<u8>,
}

impl<'a> Decoder<'a> {
    /// A decoder for up to `parallel` sequences.
    pub fn new(model: &'a LlamaModel, context: LlamaContext<'a>, parallel: u32, link: &'a Link) -> Self {
        let batch = LlamaBatch::new(context.n_batch() as usize, 1);
        let free_slots = (0..i32::try_from(parallel).unwrap_or(i32::MAX)).rev().collect();
        Self {
            link,
            vocab: model.vocab(),
            context,
            sequences: Vec::new(),
            free_slots,
            steps: 0,
            outputs: Vec::new(),
            batch,
            due: Vec::new(),
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
        }
    }

    /// Takes a sequence in, from the next step on, or reports why not.
    pub fn start(&mut self, start: Start) {
        let id = start.sequence;
        if self.sequences.iter().any(|sequence| sequence.id == id) {
            tracing::error!("sequence {id} runs already, a second start of it is ignored");
            return;
        }
        let Some(slot) = self.free_slots.pop() else {
            self.outputs.push(failed(id, format!("all {} slots are busy", self.sequences.len())));
            return;
        };
        match Sequence::new(start, slot, self.vocab.n_tokens(), self.context.n_ctx() as usize) {
            Ok(sequence) if sequence.answer.may_begin() => self.sequences.push(sequence),
            Ok(_) => {
                self.free_slots.push(slot);
                let finished = Some(finished("length", None));
                self.outputs.push(SequenceOutput { sequence: id, finished, ..SequenceOutput::default() });
            }
            Err(error) => {
                self.free_slots.push(slot);
                self.outputs.push(failed(id, error));
            }
        }
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

    /// Ends every sequence with an error.
    pub fn fail_all(&mut self, why: &str) {
        for sequence in &mut self.sequences {
            sequence.ended = true;
            self.outputs.push(failed(sequence.id, why.to_owned()));
        }
        self.release();
    }

    /// Sends what has come together since the last time.
    pub fn flush(&mut self) {
        if !self.outputs.is_empty() {
            self.link.send(Frame::Step(Step { outputs: std::mem::take(&mut self.outputs) }));
        }
    }

    /// One decode step for all sequences.
    pub fn step(&mut self) {
        self.compose();
        self.steps += 1;
        match self.context.decode(&mut self.batch) {
            Ok(()) => {}
            Err(DecodeError::NoKvCacheSlot) => {
                // The daemon counts cells, so this is a fault of one of us; the youngest has lost the least.
                if let Some(youngest) = self.sequences.last_mut() {
                    tracing::error!("the KV cache is full: sequence {} is given up", youngest.id);
                    youngest.ended = true;
                    self.outputs.push(failed(youngest.id, "the KV cache has no room".to_owned()));
                }
                self.release();
                return;
            }
            Err(error) => {
                // Nothing says which sequence it was, nor what of the step is in the cache.
                tracing::error!("decode step failed: {error}");
                self.fail_all(&format!("the engine could not decode: {error}"));
                return;
            }
        }
        for part in &self.parts {
            if let Some(sequence) = self.sequences.get_mut(part.index) {
                sequence.decoded(part.count);
            }
        }
        for row in 0..self.rows.len() {
            if let Some(&(index, row)) = self.rows.get(row) {
                self.sample(index, row);
            }
        }
        self.release();
    }

    fn compose(&mut self) {
        self.due.clear();
        self.due.extend(self.sequences.iter().map(Sequence::due));
        batch::plan(&self.due, self.context.n_batch() as usize, &mut self.parts);
        self.batch.clear();
        self.rows.clear();
        for part in &self.parts {
            let Some(sequence) = self.sequences.get(part.index) else { continue };
            let (tokens, logits) = sequence.next(part.count);
            for (nth, (token, position)) in tokens.enumerate() {
                let logits = logits && nth + 1 == part.count;
                let added = self.batch.add(token, position, &[sequence.slot], logits);
                added.expect("the plan's room is the batch's size");
            }
            if logits {
                self.rows.push((part.index, self.batch.n_tokens() - 1));
            }
        }
    }

    fn sample(&mut self, index: usize, row: i32) {
        let Some(sequence) = self.sequences.get_mut(index) else { return };
        let logits = self.context.get_logits_ith(row);
        let token = sequence.sampler.sample(logits, sequence.cells(), &mut self.candidates);
        let id = u32::try_from(token.0).unwrap_or_default();
        let ends = self.vocab.is_eog(token);
        let full = sequence.cells() >= self.context.n_ctx() as usize;
        self.bytes.clear();
        self.vocab.token_to_piece_into(token, &mut self.bytes, false, None);
        let taken = sequence.answer.take(id, &self.bytes, ends, full);

        let mut output = SequenceOutput { sequence: sequence.id, text: taken.text, ..SequenceOutput::default() };
        if taken.counts {
            output.tokens.push(id);
            if let Some(top) = sequence.logprobs {
                output.logprobs.push(token_info(&self.vocab, logits, token, top));
            }
        }
        if let Some(reason) = taken.end {
            output.finished = Some(finished(reason, None));
            sequence.ended = true;
        } else {
            sequence.follow_with(token);
        }
        self.outputs.push(output);
    }

    /// Empties the slots of sequences that have ended.
    fn release(&mut self) {
        let (context, free_slots) = (&mut self.context, &mut self.free_slots);
        self.sequences.retain(|sequence| {
            if sequence.ended {
                if let Err(error) = context.kv_cache_seq_rm(sequence.slot, None, None) {
                    tracing::error!("slot {} could not be emptied: {error}", sequence.slot);
                }
                free_slots.push(sequence.slot);
            }
            !sequence.ended
        });
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
