//! One running sequence: what of it is in the KV cache, what comes next, and when its answer ends.

use llama_cpp_2::token::LlamaToken;
use temperd::wire::engine::{Finished, Start};

use crate::{batch::Due, sampler::Sampler, text::Text};

/// A sequence in its slot.
pub struct Sequence {
    /// The daemon's name for it.
    pub id: u64,
    /// llama.cpp's sequence id.
    pub slot: i32,
    /// Chooses its tokens.
    pub sampler: Sampler,
    /// Its answer so far.
    pub answer: Answer,
    /// Best tokens to report beside each chosen one, where log probabilities are wanted at all.
    pub logprobs: Option<usize>,
    /// Whether its end has been reported; it leaves its slot before the next step.
    pub ended: bool,
    /// The prompt, until it is read; then the token sampled last.
    pending: Vec<LlamaToken>,
    answering: bool,
    /// How many of `pending` are in the KV cache.
    read: usize,
    /// Tokens in the KV cache.
    cells: usize,
}

impl Sequence {
    /// A sequence that has read nothing yet.
    ///
    /// # Errors
    /// Why it cannot run: an empty or too long prompt, a token that does not exist, a sampling value out of range.
    pub fn new(start: Start, slot: i32, n_vocab: i32, context: usize) -> Result<Self, String> {
        let token = |id: &u32| i32::try_from(*id).ok().filter(|id| *id < n_vocab).map(LlamaToken);
        let pending: Option<Vec<LlamaToken>> = start.prompt.iter().map(token).collect();
        let pending = pending.ok_or_else(|| format!("the prompt holds a token beyond the vocabulary of {n_vocab}"))?;
        if pending.is_empty() {
            return Err("the prompt is empty".to_owned());
        }
        if pending.len() > context {
            return Err(format!("the prompt has {} tokens, the context {context}", pending.len()));
        }
        Ok(Self {
            id: start.sequence,
            slot,
            sampler: Sampler::new(&start.sampling.unwrap_or_default(), n_vocab, &pending)?,
            logprobs: start.logprobs.then_some(start.top_logprobs as usize),
            answer: Answer::new(start.stop, start.stop_tokens, start.max_tokens),
            ended: false,
            answering: false,
            pending,
            read: 0,
            cells: 0,
        })
    }

    /// What it has to decode next.
    pub fn due(&self) -> Due {
        if self.answering { Due::Token } else { Due::Prompt(self.pending.len() - self.read) }
    }

    /// The next `count` tokens to decode and their positions, and whether the last of them wants logits.
    pub fn next(&self, count: usize) -> (impl Iterator<Item = (LlamaToken, i32)>, bool) {
        let tokens = self.pending.iter().skip(self.read).take(count).copied();
        let positions = i32::try_from(self.cells).unwrap_or(i32::MAX)..;
        (tokens.zip(positions), self.read + count >= self.pending.len())
    }

    /// Notes that `count` tokens have been decoded.
    pub fn decoded(&mut self, count: usize) {
        self.read += count;
        self.cells += count;
    }

    /// The token to decode next.
    pub fn follow_with(&mut self, token: LlamaToken) {
        self.pending.clear();
        self.pending.push(token);
        self.read = 0;
        self.answering = true;
    }

    /// Tokens of it in the KV cache: all that precede the token to be sampled.
    pub fn cells(&self) -> usize {
        self.cells
    }
}

/// What is sent of an answer, and when it ends. Pure.
pub struct Answer {
    text: Text,
    stop_tokens: Vec<u32>,
    /// Tokens it may still have.
    left: u32,
}

/// What became of one sampled token.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Text to send now.
    pub text: String,
    /// Whether the token belongs to the answer; the one that ends it does not.
    pub counts: bool,
    /// Why the answer has ended, if it has: "stop" or "length".
    pub end: Option<&'static str>,
}

impl Answer {
    /// An empty answer of at most `max` tokens.
    pub fn new(stop: Vec<String>, stop_tokens: Vec<u32>, max: u32) -> Self {
        Self { text: Text::new(stop), stop_tokens, left: max }
    }

    /// Whether it may have any token at all.
    pub fn may_begin(&self) -> bool {
        self.left > 0
    }

    /// Takes a sampled token that is rendered as `bytes`. `ends` is whether it ends the answer by the model's own
    /// rule, `full` whether the context has no room for it.
    pub fn take(&mut self, token: u32, bytes: &[u8], ends: bool, full: bool) -> Taken {
        if ends || self.stop_tokens.contains(&token) {
            return Taken { text: self.text.finish().text, counts: false, end: Some("stop") };
        }
        self.left = self.left.saturating_sub(1);
        let mut grown = self.text.push(bytes);
        let mut end = grown.stopped.then_some("stop");
        if end.is_none() && (self.left == 0 || full) {
            let rest = self.text.finish();
            grown.text.push_str(&rest.text);
            end = Some(if rest.stopped { "stop" } else { "length" });
        }
        Taken { text: grown.text, counts: true, end }
    }

    /// What was held back, where the answer ends from outside.
    pub fn rest(&mut self) -> String {
        self.text.finish().text
    }
}

/// The end of a sequence.
pub fn finished(reason: &str, error: Option<String>) -> Finished {
    Finished { reason: reason.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(prompt: Vec<u32>) -> Start {
        Start { sequence: 1, prompt, max_tokens: 4, ..Start::default() }
    }

    #[test]
    fn a_prompt_is_read_in_parts_and_only_its_last_token_wants_logits() {
        let mut sequence = Sequence::new(start(vec![5, 6, 7]), 0, 10, 8).expect("it fits");
        assert_eq!(sequence.due(), Due::Prompt(3));
        let (tokens, logits) = sequence.next(2);
        assert_eq!((tokens.collect::<Vec<_>>(), logits), (vec![(LlamaToken(5), 0), (LlamaToken(6), 1)], false));
        sequence.decoded(2);
        assert_eq!(sequence.due(), Due::Prompt(1));
        let (tokens, logits) = sequence.next(1);
        assert_eq!((tokens.collect::<Vec<_>>(), logits), (vec![(LlamaToken(7), 2)], true));
        sequence.decoded(1);
        sequence.follow_with(LlamaToken(9));
        assert_eq!(sequence.due(), Due::Token);
        let (tokens, logits) = sequence.next(1);
        assert_eq!((tokens.collect::<Vec<_>>(), logits), (vec![(LlamaToken(9), 3)], true));
    }

    #[test]
    fn a_prompt_that_cannot_run_is_refused_with_the_numbers() {
        let refused = |prompt| Sequence::new(start(prompt), 0, 10, 8).err().expect("refused");
        assert!(refused(vec![]).contains("empty"));
        assert!(refused(vec![10]).contains("vocabulary of 10"));
        assert_eq!(refused(vec![1; 9]), "the prompt has 9 tokens, the context 8");
        assert!(Sequence::new(start(vec![1; 8]), 0, 10, 8).is_ok());
    }

    #[test]
    fn an_end_token_is_not_rendered_nor_counted() {
        let mut answer = Answer::new(Vec::new(), vec![3], 9);
        assert_eq!(answer.take(1, b"a", false, false), Taken { text: "a".into(), counts: true, end: None });
        assert_eq!(answer.take(3, b"</s>", false, false), Taken { end: Some("stop"), ..Taken::default() });
        assert_eq!(answer.take(4, b"<eos>", true, false), Taken { end: Some("stop"), ..Taken::default() });
    }

    #[test]
    fn the_limit_counts_tokens_and_sends_what_was_held() {
        let mut answer = Answer::new(vec!["bc".into()], Vec::new(), 2);
        assert_eq!(answer.take(1, b"a", false, false), Taken { text: "a".into(), counts: true, end: None });
        assert_eq!(answer.take(1, b"b", false, false), Taken { text: "b".into(), counts: true, end: Some("length") });
    }

    #[test]
    fn a_full_context_ends_with_length_and_a_stop_string_with_stop() {
        let mut answer = Answer::new(vec!["bc".into()], Vec::new(), 9);
        assert_eq!(answer.take(1, b"ab", false, false), Taken { text: "a".into(), counts: true, end: None });
        assert_eq!(answer.take(1, b"c", false, true), Taken { text: String::new(), counts: true, end: Some("stop") });
        let mut answer = Answer::new(Vec::new(), Vec::new(), 9);
        assert_eq!(answer.take(1, b"a", false, true).end, Some("length"));
    }
}
