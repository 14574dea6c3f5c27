//! What becomes of the rows whose logits a step has brought.

use std::hash::{DefaultHasher, Hasher as _};

use llama_cpp_2::{token::LlamaToken, vocab::LlamaVocab};
use temperd::wire::engine::{Finished, SequenceOutput, TokenInfo, TopToken};

use super::Decoder;
use crate::{answer::finished, sampler};

impl Decoder<'_> {
    /// Takes the rows of one sequence one after the other, as long as each was drafted rightly.
    pub(super) fn sample(&mut self, index: usize, first: i32, count: usize) {
        let Some(sequence) = self.sequences.get_mut(index) else { return };
        let mut output = SequenceOutput { sequence: sequence.id, ..SequenceOutput::default() };
        output.cached_tokens = sequence.cached.take().map(|cached| u32::try_from(cached).unwrap_or(u32::MAX));
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
            let ends = render(&self.vocab, id, &mut self.bytes);
            let mut taken = sequence.answer.take(id, &self.bytes, ends, full);
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
}

/// Adds the bytes that a token has in an answer, and says whether it ends one by the model's own rule.
pub(super) fn render(vocab: &LlamaVocab<'_>, token: u32, bytes: &mut Vec<u8>) -> bool {
    let token = LlamaToken(i32::try_from(token).unwrap_or_default());
    vocab.token_to_piece_into(token, bytes, false, None);
    vocab.is_eog(token)
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
