//! One running sequence: what of it is in the KV cache, what comes next, and when its answer ends.

use llama_cpp_2::token::LlamaToken;
use temperd::{
    constrain::Matcher,
    wire::engine::{Finished, Start},
};

use crate::{
    adapters::Group,
    batch::{Due, Wish},
    lookup::{Draft, Lookup},
    prefix::{Kept, Owned},
    sampler::Sampler,
    text::Text,
};

/// A sequence in its slot.
pub struct Sequence {
    /// The daemon's name for it.
    pub id: u64,
    /// llama.cpp's sequence id.
    pub slot: i32,
    /// Greater goes first.
    pub priority: i32,
    /// Chooses its tokens.
    pub sampler: Sampler,
    /// Its answer so far.
    pub answer: Answer,
    /// Where its answer is within what it must obey.
    pub matcher: Option<Matcher>,
    /// Best tokens to report beside each chosen one, where log probabilities are wanted at all.
    pub logprobs: Option<usize>,
    /// Whether digests of its logits are wanted.
    pub digests: bool,
    /// Whether its end has been reported; it leaves its slot before the next step.
    pub ended: bool,
    /// Whether what it begins with has been looked for in others' cells.
    pub begun: bool,
    /// Prompt tokens that were taken over from others' cells.
    pub cached: usize,
    /// Drafts from its own text.
    lookup: Lookup,
    /// What is drafted to follow in the next step, and whether its match was long.
    pub draft: (Vec<LlamaToken>, bool),
    /// Drafted tokens so far, and how many of them were right.
    pub drafted: (u32, u32),
    /// Prompt and answer; but for the token sampled last, the answer's are in the KV cache.
    tokens: Vec<LlamaToken>,
    prompt: usize,
    /// How many of `tokens` are in the KV cache.
    cells: usize,
    public: usize,
    scope: u64,
    /// Whose turns it shares, and whose cells.
    pub adapter: Group,
}

impl Sequence {
    /// A sequence that has read nothing yet.
    ///
    /// # Errors
    /// Why it cannot run: an empty or too long prompt, a token that does not exist, a sampling value out of range.
    pub fn new(start: Start, slot: i32, adapter: Group, n_vocab: i32, context: usize) -> Result<Self, String> {
        let token = |id: &u32| i32::try_from(*id).ok().filter(|id| *id < n_vocab).map(LlamaToken);
        let tokens: Option<Vec<LlamaToken>> = start.prompt.iter().map(token).collect();
        let tokens = tokens.ok_or_else(|| format!("the prompt holds a token beyond the vocabulary of {n_vocab}"))?;
        if tokens.is_empty() {
            return Err("the prompt is empty".to_owned());
        }
        if tokens.len() > context {
            return Err(format!("the prompt has {} tokens, the context {context}", tokens.len()));
        }
        Ok(Self {
            id: start.sequence,
            slot,
            priority: start.priority,
            sampler: Sampler::new(&start.sampling.unwrap_or_default(), n_vocab, &tokens)?,
            matcher: None,
            logprobs: start.logprobs.then_some(start.top_logprobs as usize),
            digests: start.digests,
            answer: Answer::new(start.stop, start.stop_tokens, start.max_tokens),
            ended: false,
            begun: false,
            cached: 0,
            lookup: Lookup::new(),
            draft: (Vec::new(), false),
            drafted: (0, 0),
            prompt: tokens.len(),
            cells: 0,
            public: (start.public_prefix as usize).min(tokens.len()),
            scope: start.scope,
            adapter,
            tokens,
        })
    }

    /// What it has to decode next. One that has not begun waits for another's cells.
    pub fn wish(&self) -> Wish {
        let due = match self.prompt.saturating_sub(self.cells) {
            _ if !self.begun => Due::Nothing,
            0 => Due::Token { drafted: self.draft.0.len() },
            rest => Due::Prompt(rest),
        };
        Wish { due, priority: self.priority }
    }

    /// Whether its prompt is read.
    pub fn answering(&self) -> bool {
        self.cells >= self.prompt
    }

    /// The next `count` tokens to decode, drafted ones at the end, with their positions, each with whether it wants
    /// logits.
    pub fn next(&self, count: usize) -> impl Iterator<Item = (LlamaToken, i32, bool)> {
        let tokens = self.tokens.iter().chain(&self.draft.0).enumerate().skip(self.cells).take(count);
        let last = self.tokens.len() - 1;
        tokens.map(move |(at, token)| (*token, i32::try_from(at).unwrap_or(i32::MAX), at >= last))
    }

    /// Notes that `count` tokens of the prompt, or the token sampled last, are in the KV cache.
    pub fn decoded(&mut self, count: usize) {
        self.cells += count;
    }

    /// The token that follows. Where it is the next drafted one, its cell is filled already.
    pub fn follow_with(&mut self, token: LlamaToken) {
        self.tokens.push(token);
    }

    /// Takes over the first `count` cells of another.
    pub fn take_over(&mut self, count: usize) {
        (self.cells, self.cached) = (count, count);
    }

    /// Tokens of it in the KV cache: all that precede the token to be sampled.
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// Tokens of its prompt.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// All its tokens.
    pub fn tokens(&self) -> &[LlamaToken] {
        &self.tokens
    }

    /// The prompt, for finding what it may take over. The last token is read in any case: its logits are needed.
    pub fn wanted(&self) -> Owned<'_> {
        self.owned(self.prompt.saturating_sub(1))
    }

    /// What is in the KV cache.
    pub fn held(&self) -> Owned<'_> {
        self.owned(self.cells)
    }

    /// What will be in the KV cache once the prompt is read.
    pub fn promised(&self) -> Owned<'_> {
        self.owned(self.prompt.max(self.cells))
    }

    fn owned(&self, count: usize) -> Owned<'_> {
        let tokens = self.tokens.get(..count).unwrap_or(&self.tokens);
        Owned { tokens, public: self.public, scope: self.scope, adapter: self.adapter }
    }

    /// Whether no token of the answer is there yet.
    pub fn answer_begins(&self) -> bool {
        self.tokens.len() == self.prompt
    }

    /// What of its own text may follow, at most `most` tokens.
    pub fn look_up(&mut self, most: usize) -> Option<Draft> {
        self.lookup.draft(&self.tokens, most)
    }

    /// Drafts the first `length` tokens of what was looked up.
    pub fn expect(&mut self, draft: Option<Draft>, length: usize) {
        self.draft = match draft {
            Some(mut draft) if length > 0 => {
                draft.tokens.truncate(length);
                (draft.tokens, draft.long)
            }
            _ => (Vec::new(), false),
        };
    }

    /// Notes how many of the drafted tokens were right.
    pub fn learn(&mut self, long: bool, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.lookup.forgive();
            return;
        }
        self.lookup.learn(long, drafted, accepted);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.drafted.0 = self.drafted.0.saturating_add(count(drafted));
        self.drafted.1 = self.drafted.1.saturating_add(count(accepted));
    }

    /// What stays when it has ended.
    pub fn into_kept(mut self) -> Kept {
        self.tokens.truncate(self.cells);
        Kept {
            slot: self.slot,
            public: self.public,
            scope: self.scope,
            adapter: self.adapter,
            tokens: self.tokens,
            since: 0.0,
            parked: false,
        }
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

    /// Tokens it may still have.
    pub fn left(&self) -> usize {
        self.left as usize
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
    Finished { reason: reason.to_owned(), error, ..Finished::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::NONE;

    fn start(prompt: Vec<u32>) -> Start {
        Start { sequence: 1, prompt, max_tokens: 4, ..Start::default() }
    }

    fn next(sequence: &Sequence, count: usize) -> Vec<(i32, i32, bool)> {
        sequence.next(count).map(|(token, position, logits)| (token.0, position, logits)).collect()
    }

    #[test]
    fn a_prompt_is_read_in_parts_and_only_its_last_token_wants_logits() {
        let mut sequence = Sequence::new(start(vec![5, 6, 7]), 0, NONE, 10, 8).expect("it fits");
        assert_eq!(sequence.wish().due, Due::Nothing);
        sequence.begun = true;
        assert_eq!(sequence.wish().due, Due::Prompt(3));
        assert_eq!(next(&sequence, 2), [(5, 0, false), (6, 1, false)]);
        sequence.decoded(2);
        assert_eq!(sequence.wish().due, Due::Prompt(1));
        assert_eq!(next(&sequence, 1), [(7, 2, true)]);
        sequence.decoded(1);
        sequence.follow_with(LlamaToken(9));
        assert_eq!(sequence.wish().due, Due::Token { drafted: 0 });
        assert_eq!(next(&sequence, 1), [(9, 3, true)]);
        sequence.draft = (vec![LlamaToken(1), LlamaToken(2)], false);
        assert_eq!(next(&sequence, 3), [(9, 3, true), (1, 4, true), (2, 5, true)]);
        sequence.decoded(1);
        assert_eq!(sequence.into_kept().tokens.len(), 4);
    }

    #[test]
    fn the_last_prompt_token_is_never_taken_over() {
        let mut sequence = Sequence::new(start(vec![5, 6, 7]), 0, NONE, 10, 8).expect("it fits");
        assert_eq!(sequence.wanted().tokens.len(), 2);
        sequence.begun = true;
        sequence.take_over(2);
        assert_eq!((sequence.wish().due, sequence.cached), (Due::Prompt(1), 2));
        assert_eq!(next(&sequence, 1), [(7, 2, true)]);
    }

    #[test]
    fn a_prompt_that_cannot_run_is_refused_with_the_numbers() {
        let refused = |prompt| Sequence::new(start(prompt), 0, NONE, 10, 8).err().expect("refused");
        assert!(refused(vec![]).contains("empty"));
        assert!(refused(vec![10]).contains("vocabulary of 10"));
        assert_eq!(refused(vec![1; 9]), "the prompt has 9 tokens, the context 8");
        assert!(Sequence::new(start(vec![1; 8]), 0, NONE, 10, 8).is_ok());
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
